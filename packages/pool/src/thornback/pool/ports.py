"""The data that crosses the pool's borders, and the protocols that a worker backend fulfils.

Only plain, picklable values: they travel between driver, worker and rank process. Only durations
cross a process border, never instants.

Over 400 lines, and not split: declarations with what they promise, which refer to each other.
"""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol, TypeAlias

import attrs

Ranks: TypeAlias = tuple[range, ...]
"""Ranks as ranges that do not overlap."""
Attribute: TypeAlias = str | int | float | bool | None
"""Value of a fact, or of an attribute of an error."""
SpanValue: TypeAlias = (
    str
    | bool
    | int
    | float
    | tuple[str, ...]
    | tuple[bool, ...]
    | tuple[int, ...]
    | tuple[float, ...]
)
"""Value of an attribute of a span."""


@attrs.frozen(kw_only=True, slots=True)
class CaughtError:
    """An exception as data (it fulfils `thornback.faults.ErrorData`)."""

    type_names: tuple[str, ...]
    """`module.qualname` along the MRO, most derived first, without `object`."""
    message: str
    """Its `str()`, bounded."""
    traceback: str = ""
    """As Python prints it, bounded; empty: unknown."""
    attributes: Mapping[str, Attribute] = attrs.field(factory=dict)
    """Plain ones that it has, such as `errno` or `status_code`; none whose name sounds secret."""
    causes: tuple[CaughtError, ...] = ()
    """What it was raised from, nearest first."""
    members: tuple[CaughtError, ...] = ()
    """Of an exception group: its leaves."""


class SeenBy(enum.Enum):
    """Who saw a failure: the values are those of `thornback.faults.Origin`."""

    RANK = "rank"
    """The rank's own code raised it."""
    PROCESS = "process"
    """The supervisor: the rank process died, or was killed at its time-out or memory limit."""
    WORKER = "worker"
    """The pool: the worker is gone."""


@attrs.frozen(kw_only=True, slots=True)
class WorkerSpec:
    """What the workers of a gang are like."""

    slots: int = 1
    """How many rank processes run at the same time; 1 in a gang of several nodes."""
    cpus: float = 1.0
    """Of the whole bundle, as leased; slots share it."""
    gpus: float = 0.0
    """Of the whole bundle; where the worker has `CUDA_VISIBLE_DEVICES`, each slot has its share in
    it."""
    memory_bytes: int = 0
    """Of the whole bundle; 0: not reserved."""
    resources: Mapping[str, float] = attrs.field(factory=dict)
    """Custom resources of the bundle, by name."""
    rank_memory_bytes: int | None = None
    """Kill a rank whose tree of processes holds more resident memory than this; None: no limit."""
    env: Mapping[str, str] = attrs.field(factory=dict, repr=False)
    """Environment variables of the rank processes."""
    preload: tuple[str, ...] = ()
    """Modules that the fork server imports, so that rank processes start with them."""
    log_dir: str = ""
    """Folder on the worker's node for one log file per rank process, which stay there; empty: the
    worker has a folder of its own, which is removed at its end."""
    runtime_env: Mapping[str, object] = attrs.field(factory=dict, repr=False)
    """Passed on to Ray; worker processes of this machine refuse anything but empty."""


class FinishedWhen(enum.Enum):
    """When a rank that several nodes run together is finished."""

    ALL = "all"
    """Every node has returned."""
    LEADER = "leader"
    """Node 0 has returned: what the others do then does not count, and they are ended after
    `Assignment.grace_s`."""


@attrs.frozen(kw_only=True, slots=True)
class Assignment:
    """Ranks of one stage for one slot, to be run in order."""

    assignment: int
    """The caller's number for it, used once."""
    epoch: str
    """(term, assignment) as `000007.000000123`: names this try in paths, logs and spans."""
    stage: int
    """The caller's number of the stage: told to the program."""
    ranks: Ranks
    """In the order in which they are run. One, in a gang of several nodes."""
    attempt: int = 1
    """From 1: told to the program."""
    program: str
    """Key of the blob to unpickle in the rank process: a `Program`."""
    args: tuple[bytes, ...] = ()
    """Opaque to the pool: one per rank, in order, or none at all."""
    inputs: tuple[str, ...] = ()
    """Keys of further blobs that the program may ask for."""
    timeout_s: float | None = None
    """Per rank, from its start; None: no limit."""
    setup_timeout_s: float = 900.0
    """For `Program.setup`, once per rank process."""
    traceparent: str = ""
    """W3C trace context that the ranks belong to; empty: none."""
    env: Mapping[str, str] = attrs.field(factory=dict, repr=False)
    """Environment variables that the ranks have besides those of the worker; taken back after."""
    restored: tuple[bytes | None, ...] = ()
    """What earlier attempts saved last (`RankCall.checkpoint`): one per rank, in order, or none at
    all."""
    max_ranks_per_child: int | None = None
    """A rank process is replaced after so many ranks; 1: each rank has a fresh one; None: no
    limit."""
    max_growth_bytes: int | None = None
    """A rank process is replaced after a rank with whose end its resident memory is larger by more
    than this than it was after its set-up; None: no limit."""
    teardown_timeout_s: float = 10.0
    """For `teardown` of the program, once per rank process that ends in order."""
    rendezvous: str = ""
    """`torch`: the ranks have RANK (index of the node), WORLD_SIZE (number of nodes), MASTER_ADDR
    and MASTER_PORT. In a gang of several nodes all have, in any case, THORNBACK_ADDRESSES (of the
    nodes, in order, with commas) and THORNBACK_MASTER_PORT (free on node 0). Empty: no more than
    that."""
    finished_when: FinishedWhen = FinishedWhen.ALL
    """Of a gang of several nodes."""
    grace_s: float = 30.0
    """With `FinishedWhen.LEADER`: how long the others may go on after node 0 has returned."""


@attrs.frozen(kw_only=True, slots=True)
class Checkpoint:
    """What a rank has saved for its next attempt, should this one fail."""

    rank: int
    version: int
    """Counts the checkpoints of an assignment, from 1."""
    data: bytes = attrs.field(repr=False)


@attrs.frozen(kw_only=True, slots=True)
class LogChunk:
    """Bytes that a rank process has written to its log. Of one log they come in order and join,
    but for what is `skipped`."""

    log: str
    """Name of the log, unique in its gang; `Outcome.log_path` ends with it."""
    offset: int
    """Of the first byte, in the log file."""
    data: bytes = attrs.field(repr=False)
    skipped: int = 0
    """Bytes left out before these: a flood."""
    closed: bool = False
    """Nothing more will be written to this log."""
    marks: tuple[tuple[int, int, int], ...] = ()
    """(offset, stage, rank), ascending: from that byte on the process ran this rank, or its set-up.
    The first one may be of an earlier offset. Empty: as before."""
    gang: int = 0
    """Filled in by the pool."""
    node: str = ""
    """Filled in by the pool."""


@attrs.frozen(kw_only=True, slots=True)
class SpanData:
    """A span that user code made in a rank with OpenTelemetry, as data: to be made again where the
    trace is exported."""

    name: str
    span_id: str
    """16 hexadecimal digits: names it among the spans of its rank."""
    parent_id: str = ""
    """Names an earlier span of the same rank; empty: its parent is the rank."""
    before_end_s: float
    """Seconds between its start and the end of the rank (of the set-up, where that failed): places
    it on the driver's clock."""
    duration_s: float
    scope: str = ""
    """Name of the tracer that made it."""
    kind: str = "internal"
    """`internal`, `server`, `client`, `producer` or `consumer`."""
    status: str = "unset"
    """`unset`, `ok` or `error`."""
    status_text: str = ""
    attributes: Mapping[str, SpanValue] = attrs.field(factory=dict)
    events: tuple[tuple[float, str, Mapping[str, SpanValue]], ...] = ()
    """(seconds between it and the end of the rank, name, attributes); an exception is one."""
    links: tuple[tuple[str, Mapping[str, SpanValue]], ...] = ()
    """(traceparent of the other span, attributes)."""
    in_setup: bool = False
    """Made in the set-up that came before the rank."""


@attrs.frozen(kw_only=True, slots=True)
class Outcome:
    """What one rank came to, in one attempt. Exactly one per rank that was started and not
    recalled by a kill."""

    rank: int
    ok: bool
    """Whether the program returned."""
    result: str | None = None
    """JSON text."""
    outputs: tuple[tuple[str, str], ...] = ()
    """(staged, final): what the rank published."""
    error: CaughtError | None = None
    """Why it failed; None: `ok`."""
    seen_by: SeenBy = SeenBy.RANK
    """Who saw the failure."""
    phase: str = "rank"
    """What was under way when it failed: `setup` or `rank`."""
    healthy_before: bool = False
    """The rank raised an error in a process in which another rank had succeeded."""
    node: str = ""
    """Filled in by the pool."""
    pid: int = 0
    """Of the rank process; 0: it had none."""
    ago_s: float = 0.0
    """Seconds between the end of the rank and the sending of the report: places it on the
    driver's clock."""
    ran_s: float = 0.0
    """Seconds that it ran, without its set-up."""
    peak_rss_bytes: int = 0
    """The most resident memory that its tree of processes was seen with."""
    log_tail: str = ""
    """The last lines the rank wrote; only for failures."""
    log_path: str = ""
    """The log file of its process, on the worker's node; empty: none."""
    log_slice: tuple[int, int] = (0, 0)
    """Offsets of this rank in the log file of its process."""
    spans: tuple[SpanData, ...] = attrs.field(default=(), repr=False)
    """What user code traced in the rank, in the order of the starts; bounded. Empty without a
    sampled `Assignment.traceparent`, without the extra `tracing` on the worker, and where user code
    has a tracer provider of its own. Lost with a rank process that dies."""
    spans_dropped: int = 0
    """Spans beyond the bounds (1,000 and 256 KiB a rank, 1 MiB an assignment)."""


@attrs.frozen(kw_only=True, slots=True)
class Report:
    """News of an assignment. Reports of one assignment add up to: every rank once in `outcomes`
    or in `returned`."""

    outcomes: tuple[Outcome, ...] = ()
    """Of ranks that have ended since the last report."""
    returned: Ranks = ()
    """Never started, or killed by a recall."""
    running: int | None = None
    """The rank that runs now; None and `final`: the assignment is finished."""
    final: bool = False
    """It is the last of its assignment."""
    checkpoint: Checkpoint | None = None
    """The newest that the running rank has saved; older ones may be left out."""
    left: tuple[Checkpoint, ...] = ()
    """What ranks that have ended without success since the last report had saved last, but for what
    is in `checkpoint`; of very much the newest 16 MiB."""


@attrs.frozen(kw_only=True, slots=True)
class RunningRank:
    """A rank that a worker runs at this moment."""

    assignment: int
    rank: int
    attempt: int
    pid: int
    """Of the rank process."""
    ran_s: float
    """Seconds since its start."""
    progress: tuple[float, float | None] | None = None
    """(done, total or None), as the rank told last; None: it told nothing."""
    log_path: str = ""
    """Of the log of its process, on the node; empty: there is none."""
    log_start: int = 0
    """Offset in the log of the first byte that it can have written."""


@attrs.frozen(kw_only=True, slots=True)
class ParkedSlot:
    """A slot that gets no more work, because GPUs that only it uses have failed."""

    slot: int
    """Its number, from 0."""
    gpus: tuple[str, ...]
    """As in `CUDA_VISIBLE_DEVICES`."""
    reason: str
    """The error that decided this, bounded."""


@attrs.frozen(kw_only=True, slots=True)
class Beat:
    """A worker's sign of life."""

    host: str
    """Name of its machine."""
    pid: int
    """Of the worker (the supervisor)."""
    rss_bytes: int
    """Its resident memory, without that of the rank processes."""
    running: tuple[RunningRank, ...] = ()
    """At most one per slot."""
    parked: tuple[ParkedSlot, ...] = ()
    """Slots that get no more work. The worker continues with the others; without any, it is
    lost."""
    address: str = ""
    """IP address at which the other nodes of its gang reach it."""
    log_dir: str = ""
    """Folder of the logs, on its node."""
    log_prefix: str = ""
    """What the names of its logs begin with, and those of no other worker."""
    logs: tuple[LogChunk, ...] = attrs.field(default=(), repr=False)
    """What was asked for of the logs; bounded."""
    node: str = ""
    """Filled in by the pool."""


class Program(Protocol):
    """What a blob named by `Assignment.program` unpickles to, inside the rank process. The pool
    knows no more of it.

    It may have a method `teardown(self)` besides: called once per process that ends in order
    (another program's turn, the process is to be replaced, the worker is closed without a kill),
    for `Assignment.teardown_timeout_s` at most. What it raises is written to the log.
    """

    def setup(self, context: RankCall, /) -> None:
        """Called once per process and program, before its first rank, with what that rank gets.

        Raises:
            BaseException: fails that rank, in phase `setup`; the next one gets a new process.
        """
        ...

    def run(self, context: RankCall, /) -> ProgramResult:
        """Run one rank.

        Raises:
            BaseException: is the rank's failure, also `SystemExit` and `KeyboardInterrupt`.
        """
        ...


@attrs.frozen(kw_only=True, slots=True)
class RankCall:
    """What a program is told about the rank."""

    rank: int
    attempt: int
    """Of the assignment, as are epoch, stage and traceparent."""
    epoch: str
    stage: int
    slot: int
    """Number of the rank process among those that run at the same time, from 0."""
    node: str
    """Where the worker is, as the lease says."""
    args: bytes | None
    """This rank's part of `Assignment.args`; None: there are none."""
    traceparent: str
    inputs: Callable[[str], bytes] = attrs.field(eq=False, repr=False)
    """Returns the blob of a key named in `Assignment.inputs`."""
    draining: Callable[[], float | None] = attrs.field(default=lambda: None, eq=False, repr=False)
    """Returns the seconds until the node goes away, as far as is known (`math.inf`: soon, without a
    deadline; 0.0: any moment); None: nothing is known of that. Cheap."""
    checkpoint: Callable[[bytes], None] = attrs.field(
        default=lambda data: None, eq=False, repr=False
    )
    """Saves bytes for the next attempt of this rank; replaces what was saved before. Returns when
    they are with the worker, which sends them on at once, or with the assignment's first report
    (within 2 s of its start). While the node drains they are sent at once in any case, and it
    returns when the pool has them, or after 5 s. In a gang of several nodes those of node 0 count.
    Raises `ValueError` for more than 1 MiB."""
    progress: Callable[[float, float | None], None] = attrs.field(
        default=lambda done, total: None, eq=False, repr=False
    )
    """Tells how much is done (of how much, or None); more often than once a second is left out."""
    restored: bytes | None = None
    """What an earlier attempt of this rank has saved; None: nothing."""
    node_index: int = 0
    """Position of this worker in its gang, from 0."""
    nodes: int = 1
    """How many workers the gang has: all of them run this rank."""
    address: str = ""
    """IP address of the worker's node, as `Beat.address`; empty: not known."""


@attrs.frozen(kw_only=True, slots=True)
class ProgramResult:
    """What a rank returned."""

    result: str | None = None
    """JSON text, at most 1 MiB."""
    outputs: tuple[tuple[str, str], ...] = ()
    """(staged, final): paths of what it wrote, and where that belongs."""


class GangLostError(Exception):
    """A gang of workers is gone for good: could not be opened, a worker died or fell silent.

    Attributes:
        error: what happened, as data (`CaughtError`) or as the exception that the backend raised.
        node: the node it happened on, where known.
        phase: `start`, `ping`, `setup`, `run`, `heartbeat`.
        facts: what the backend knows of the death: `death_cause`, `preempted`, `exit_type`,
            `node_death_reason`, ...; and `node_draining`, where the pool was told of a drain.
    """

    def __init__(
        self,
        error: CaughtError | BaseException,
        node: str | None = None,
        phase: str = "run",
        facts: Mapping[str, Attribute] | None = None,
    ) -> None:
        super().__init__(error, node, phase, facts)
        self.error = error
        self.node = node
        self.phase = phase
        self.facts: Mapping[str, Attribute] = dict(facts or {})

    def __str__(self) -> str:
        text = self.error.message if isinstance(self.error, CaughtError) else str(self.error)
        return f"gang lost in phase {self.phase!r} on node {self.node or 'unknown'}: {text}"


class PoolObserver(Protocol):
    """Is told what workers send beside their reports. Called in the event loop: must be quick, and
    not block. What it raises is logged."""

    def beat(self, gang: int, beat: Beat, /) -> None:
        """A worker gave a sign of life: one every `PoolParams.beat_every_s`."""
        ...

    def logs(self, chunks: Sequence[LogChunk], /) -> None:
        """Rank processes have written something: at most `PoolParams.beat_every_s` ago, or the
        worker is dead and this is what it had not sent."""
        ...


Blobs: TypeAlias = Callable[[str], Awaitable[bytes]]
"""Gives the bytes of a blob by key, once per worker that needs it (the driver side keeps
programs and inputs)."""


class Worker(Protocol):
    """A worker that was started, as the pool reaches it."""

    async def call(self, method: str, payload: object, /) -> object:
        """Call a method of the supervisor, as `(method, payload)`, and return its answer.

        Many calls are under way at once, `watch` until the worker ends; if it can run nothing more,
        `watch` returns the reason as a `CaughtError`, and the pool kills the worker. The methods
        are `load`, `run`, `wait`, `beat`, `recall`, `drain`, `port`, `watch` and `close`; what they
        carry is between the pool and the supervisor (`Supervisor.handle`).

        Raises:
            Exception: whatever the backend raises when the worker is gone or out of reach: at once
                when it dies, also from calls that are pending. Failures of user code are data in
                the `Report`, never raised.

        Cancellation: does not block; a late answer is dropped. Other calls go on.
        """
        ...

    def is_unavailable(self, error: BaseException, /) -> bool:
        """Tell whether a `call` raised this only because the worker is out of reach: it may be
        alive, and may have got the call. Never of a worker that was killed."""
        ...

    async def kill(self, *, timeout_s: float) -> bool:
        """Kill it. Idempotent, never raises.

        Returns:
            True: its death is confirmed. False: not within `timeout_s`; it may be tried again.
        """
        ...

    async def death(
        self, error: BaseException, /
    ) -> tuple[CaughtError | BaseException, Mapping[str, Attribute]]:
        """Explain what a `call` raised; takes a few seconds at most.

        Returns:
            The error to classify, and facts that the backend knows of the death: `death_cause`,
            `preempted`, `signal`, `exit_code`, `node_death_reason`, ... Of a worker that may be
            alive, the error itself.
        """
        ...

    async def salvage(
        self, log_dir: str, log_prefix: str, offsets: Mapping[str, int], /
    ) -> Sequence[LogChunk]:
        """Read what a dead worker's rank processes had written to their logs and it had not sent;
        takes a few seconds at most.

        Args:
            log_dir: `Beat.log_dir` of the worker.
            log_prefix: its `Beat.log_prefix`.
            offsets: how much of each log has arrived; logs that are not named: nothing.

        Returns:
            The rest of each log; nothing where the node is gone as well. What
            `thornback.pool.worker.logshelf.salvage` returns on the node.
        """
        ...


class WorkerBackend(Protocol):
    """Starts workers."""

    async def start(
        self, node: str, index: int, nodes: int, handle: object, spec: WorkerSpec, /
    ) -> Worker:
        """Start worker `index` of `nodes`, on bundle `index` of the lease. May return before it is
        alive.

        Args:
            node: where, as the lease says.
            index: from 0.
            nodes: how many workers the gang has.
            handle: of the lease.
            spec: what the worker is like.

        Raises:
            GangLostError: it could not be started, and this explains why.
            Exception: whatever went wrong. In both cases nothing is left running.

        Cancellation: nothing is left running.
        """
        ...


class Clock(Protocol):
    """Time, so that tests can bring their own."""

    def monotonic(self) -> float:
        """Seconds on a clock that never goes back."""
        ...

    async def sleep(self, delay_s: float, /) -> None:
        """Return after so many seconds."""
        ...
