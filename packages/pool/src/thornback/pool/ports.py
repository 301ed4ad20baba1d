"""The data that crosses the pool's borders, and the protocols that a worker backend fulfils.

Only plain, picklable values: they travel between driver, worker and rank process. Only durations
cross a process border, never instants.
"""

from __future__ import annotations

import enum
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol, TypeAlias

import attrs

Ranks: TypeAlias = tuple[range, ...]
Attribute: TypeAlias = str | int | float | bool | None


@attrs.frozen(kw_only=True, slots=True)
class CaughtError:
    """An exception as data (it fulfils `thornback.faults.ErrorData`)."""

    type_names: tuple[str, ...]
    """`module.qualname` along the MRO, most derived first, without `object`."""
    message: str
    traceback: str = ""
    attributes: Mapping[str, Attribute] = attrs.field(factory=dict)
    causes: tuple[CaughtError, ...] = ()
    members: tuple[CaughtError, ...] = ()


class SeenBy(enum.Enum):
    """Who saw a failure: the values are those of `thornback.faults.Origin`."""

    RANK = "rank"
    PROCESS = "process"
    WORKER = "worker"


@attrs.frozen(kw_only=True, slots=True)
class WorkerSpec:
    """What the workers of a gang are like."""

    slots: int = 1
    cpus: float = 1.0
    """Of the whole bundle, as leased; slots share it."""
    gpus: float = 0.0
    memory_bytes: int = 0
    """Of the whole bundle; 0: not reserved."""
    resources: Mapping[str, float] = attrs.field(factory=dict)
    rank_memory_bytes: int | None = None
    """Kill a rank whose tree of processes holds more resident memory than this; None: no limit."""
    env: Mapping[str, str] = attrs.field(factory=dict)
    """Environment variables of the rank processes."""
    preload: tuple[str, ...] = ()
    """Modules that the fork server imports, so that rank processes start with them."""
    log_dir: str = ""
    """Folder on the worker's node for one log file per rank process; empty: the worker makes a
    temporary one."""
    runtime_env: Mapping[str, object] = attrs.field(factory=dict)
    """Passed on to Ray; the local backend refuses anything but empty."""


@attrs.frozen(kw_only=True, slots=True)
class Assignment:
    """Ranks of one stage for one slot, to be run in order."""

    assignment: int
    epoch: str
    """(term, assignment) as `000007.000000123`: names this try in paths, logs and spans."""
    stage: int
    ranks: Ranks
    attempt: int = 1
    program: str
    """Key of the blob to unpickle in the rank process: a `Program`."""
    args: tuple[bytes, ...] = ()
    """Opaque to the pool: one per rank, in order, or none at all."""
    inputs: tuple[str, ...] = ()
    """Keys of further blobs that the program may ask for."""
    timeout_s: float | None = None
    """Per rank, from its start."""
    setup_timeout_s: float = 900.0
    traceparent: str = ""


@attrs.frozen(kw_only=True, slots=True)
class Outcome:
    """What one rank came to, in one attempt. Exactly one per rank that was started and not
    recalled by a kill."""

    rank: int
    ok: bool
    result: str | None = None
    """JSON text."""
    outputs: tuple[tuple[str, str], ...] = ()
    """(staged, final): what the rank published."""
    error: CaughtError | None = None
    seen_by: SeenBy = SeenBy.RANK
    phase: str = "rank"
    """What was under way when it failed: `setup` or `rank`."""
    node: str = ""
    """Filled in by the pool."""
    pid: int = 0
    ago_s: float = 0.0
    """Seconds between the end of the rank and the sending of the report: places it on the
    driver's clock."""
    ran_s: float = 0.0
    peak_rss_bytes: int = 0
    log_tail: str = ""
    """The last lines the rank wrote; only for failures."""
    log_path: str = ""
    log_slice: tuple[int, int] = (0, 0)
    """Offsets of this rank in the log file of its process."""


@attrs.frozen(kw_only=True, slots=True)
class Report:
    """News of an assignment. Reports of one assignment add up to: every rank once in `outcomes`
    or in `returned`."""

    outcomes: tuple[Outcome, ...] = ()
    returned: Ranks = ()
    """Never started, or killed by a recall."""
    running: int | None = None
    """The rank that runs now; None and `final`: the assignment is finished."""
    final: bool = False


@attrs.frozen(kw_only=True, slots=True)
class RunningRank:
    """A rank that a worker runs at this moment."""

    assignment: int
    rank: int
    attempt: int
    pid: int
    """Of the rank process."""
    ran_s: float


@attrs.frozen(kw_only=True, slots=True)
class Beat:
    """A worker's sign of life."""

    host: str
    pid: int
    """Of the worker (the supervisor)."""
    rss_bytes: int
    running: tuple[RunningRank, ...] = ()
    node: str = ""
    """Filled in by the pool."""


class Program(Protocol):
    """What a blob named by `Assignment.program` unpickles to, inside the rank process. The pool
    knows no more of it."""

    def setup(self, context: RankCall, /) -> None:
        """Called once per process and program, before its first rank."""
        ...

    def run(self, context: RankCall, /) -> ProgramResult:
        """Run one rank. Any exception is the rank's failure."""
        ...


@attrs.frozen(kw_only=True, slots=True)
class RankCall:
    """What a program is told about the rank."""

    rank: int
    attempt: int
    epoch: str
    stage: int
    slot: int
    node: str
    args: bytes | None
    traceparent: str
    inputs: Callable[[str], bytes] = attrs.field(eq=False, repr=False)
    """Returns the blob of a key named in `Assignment.inputs`."""
    node_index: int = 0
    """Position of this worker in its gang."""
    nodes: int = 1


@attrs.frozen(kw_only=True, slots=True)
class ProgramResult:
    """What a rank returned."""

    result: str | None = None
    """JSON text."""
    outputs: tuple[tuple[str, str], ...] = ()


class GangLostError(Exception):
    """A gang of workers is gone for good: could not be opened, a worker died or fell silent.

    Attributes:
        error: what happened, as data (`CaughtError`) or as the exception that the backend raised.
        node: the node it happened on, where known.
        phase: `start`, `ping`, `setup`, `run`, `heartbeat`.
        facts: what the backend knows of the death: `death_cause`, `preempted`, `exit_type`,
        `node_death_reason`, ...
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


Blobs: TypeAlias = Callable[[str], Awaitable[bytes]]
"""Gives the bytes of a blob by key, once per worker that needs it (the driver side keeps
programs and inputs)."""


class WorkerBackend(Protocol):
    """Starts, calls and kills single workers. `worker` is opaque, made by `start`."""

    async def start(
        self, node: str, index: int, nodes: int, handle: object, spec: WorkerSpec, /
    ) -> object:
        """Start worker `index` of `nodes`, on bundle `index` of the lease.

        May return before it is alive. Raises whatever went wrong, or `GangLostError` where it can
        explain it; then, and when cancelled, nothing is left.
        """
        ...

    async def call(self, worker: object, method: str, payload: object, /) -> object:
        """Call a method of the supervisor: `load`, `run`, `wait`, `beat`, `recall`, `watch`,
        `close`.

        Cancelled: never blocks; a late answer is dropped.

        Raises:
            Exception: whatever the backend raises when the worker is gone or out of reach. Failures
            of user code are
                data in the `Report`, never raised.
        """
        ...

    def is_unavailable(self, error: BaseException, /) -> bool:
        """Tell whether a `call` failed only because the worker is out of reach: it may be alive,
        it may have got it."""
        ...

    async def kill(self, worker: object, /, *, timeout_s: float) -> bool:
        """Kill it. Idempotent, never raises. True: its death is confirmed."""
        ...

    async def death(
        self, worker: object, error: BaseException, /
    ) -> tuple[CaughtError | BaseException, Mapping[str, Attribute]]:
        """Explain a death: the error to classify, and the structured facts that the backend
        knows. Bounded."""
        ...


class Clock(Protocol):
    """Time, so that tests can bring their own."""

    def monotonic(self) -> float:
        """Seconds on a clock that never goes back."""
        ...

    async def sleep(self, delay_s: float, /) -> None: ...


MemberNodes: TypeAlias = Sequence[str]
