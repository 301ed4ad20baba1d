"""What the driver needs from others, as protocols, and the data that they exchange with it.

The driver is their consumer, so they are defined here. `thornback.placement` (`Leases`),
`thornback.pool` (`Workers`), `thornback.faults` (`Classifier`) and this package's own file journal
fulfil them without knowing. A custom executor brings a `Platform`, whose `Connection` holds any
`Leases` and `Workers`: `Executor(platform=..., state=...)`.

Async methods are called under asyncio or trio, in the event loop of the run. A cancelled call may
have done its work or not, unless the entry promises more.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Literal, Protocol, TypeAlias, runtime_checkable

import attrs
from opentelemetry.trace import TracerProvider

from thornback.faults import ErrorData, Fault
from thornback.placement import Explanation, GangRequest, Lease
from thornback.pool import (
    Assignment,
    Beat,
    Blobs,
    GangLostError,
    PoolObserver,
    Report,
    WorkerSpec,
)

__all__ = [
    "Attribute",
    "ChecksRuntimeEnvs",
    "Classifier",
    "Clock",
    "Companion",
    "Completion",
    "Connection",
    "Dispatched",
    "Identity",
    "Journal",
    "JournalFactory",
    "Json",
    "Leases",
    "LiveRun",
    "Opened",
    "Places",
    "PlacesOutputs",
    "Platform",
    "Ranks",
    "ReadsResults",
    "StageIdentity",
    "Workers",
]

Ranks: TypeAlias = tuple[range, ...]
"""Ranks of one stage: ranges with step 1, disjoint and ascending."""
Attribute: TypeAlias = str | int | float | bool | None
"""A fact about a failure, by name."""
Json: TypeAlias = bool | int | float | str | list["Json"] | dict[str, "Json"] | None
"""What `json.loads` returns."""


class Clock(Protocol):
    """Time, so that tests can bring their own."""

    def monotonic(self) -> float:
        """Seconds on a clock that never goes back."""
        ...

    def time_ns(self) -> int:
        """Nanoseconds since 1970: for spans and files only, never for a decision."""
        ...

    async def sleep(self, delay_s: float, /) -> None:
        """Return after so many seconds; can be cancelled."""
        ...


class Classifier(Protocol):
    """Turns an error into a fault. `thornback.faults.Classifier` is one."""

    def classify(
        self, error: BaseException | ErrorData, facts: Mapping[str, Attribute], /
    ) -> Fault:
        """Return the fault; never raises.

        Args:
            error: an exception that was raised in the driver, or one from elsewhere as data.
            facts: `origin` (who saw it: rank, process, worker, placement, driver), `phase`, and
                what else is known.
        """
        ...


class Leases(Protocol):
    """Leases gangs of resources. `thornback.placement.Allocator` is one."""

    async def acquire(
        self,
        request: GangRequest,
        /,
        *,
        avoid: Sequence[str],
        timeout_s: float,
        wait_for_nodes_s: float | None,
    ) -> Lease:
        """Wait until the resources are reserved, all or none, and return a held lease.

        Args:
            request: what is needed.
            avoid: nodes that are suspected: a preference, never a ban.
            timeout_s: give up after so long if it fits the nodes, but they are busy.
            wait_for_nodes_s: give up after so long if no nodes come that could hold it; None: as
                the platform sees fit.

        Raises:
            Exception: it can never be placed, or was not in time; it is classified, and the gang
                counts as lost.

        Cancellation: nothing is held, also of what would have been reserved late.
        """
        ...

    async def release(self, lease: Lease, /, *, timeout_s: float) -> bool:
        """Give it back within `timeout_s` seconds. Idempotent, never raises; True: confirmed."""
        ...

    def drains(self) -> AsyncIterator[tuple[str, float | None]]:
        """Yield (node, seconds left or None) for every notice that a node will go away.

        It may end, or raise: then no more notices come, and the run goes on.
        """
        ...


@runtime_checkable
class ExplainsWaits(Protocol):
    """Optional extension of `Leases`: explains why gangs wait."""

    def explain_to(self, observe: Callable[[Explanation], None], /) -> None:
        """Call `observe` with every explanation from now on, in the event loop."""
        ...


class Workers(Protocol):
    """Keeps the workers of gangs and hands them work. `thornback.pool.WorkerPool` is one.

    Gangs and assignments are named by numbers of the driver's, each used once.
    """

    async def open(
        self,
        gang: int,
        nodes: Sequence[str],
        handle: object,
        spec: WorkerSpec,
        /,
        *,
        timeout_s: float,
    ) -> None:
        """Start one worker per node; return when all have answered.

        Args:
            gang: its number.
            nodes: `Lease.nodes`.
            handle: `Lease.handle`: opaque to the driver.
            spec: what the workers are like.
            timeout_s: for all of it, in seconds.

        Raises:
            GangLostError: a worker could not be started, or did not answer in time.

        Cancellation: close the gang; `close` must know it already.
        """
        ...

    def run(self, gang: int, work: Assignment, /) -> AsyncIterator[Report]:
        """Yield reports until every rank was in one of them once, as an outcome or as returned.

        Raises:
            GangLostError: while iterating; ranks that were not reported until then count as lost.
        """
        ...

    async def recall(self, gang: int, assignment: int, /, *, kill: bool) -> None:
        """Have ranks that were not started returned; with `kill` also the one that runs, which is
        killed. Hastens the end of `run`; unknown numbers are a no-op."""
        ...

    async def lost(self, gang: int, /) -> GangLostError:
        """Return when, and only if, the gang is lost; with the reason, which is not raised."""
        ...

    async def beat(self, gang: int, /) -> Sequence[Beat]:
        """Ask the workers what they run now; a worker that does not answer is left out."""
        ...

    async def drain(self, node: str, left_s: float | None, /) -> None:
        """Tell what runs on a node, and what follows there in gangs that are open now, that it goes
        away in so many seconds (None: soon, without a deadline). Another notice replaces it;
        unknown nodes are a no-op.

        Cancellation: some may have been told.
        """
        ...

    async def close(self, gang: int, /, *, kill: bool, timeout_s: float) -> bool:
        """End the workers within `timeout_s` seconds, with `kill` at once. Idempotent, never
        raises; True: all deaths are confirmed."""
        ...


def _texts(value: object) -> dict[str, str]:
    """Return the texts by name in a mapping. It may come from a file that somebody has edited."""
    pairs = value.items() if isinstance(value, Mapping) else ()
    return {n: t for n, t in pairs if isinstance(n, str) and isinstance(t, str)}


@attrs.frozen(kw_only=True, slots=True)
class StageIdentity:
    """What makes two stages of two runs the same stage."""

    name: str
    world_size: int
    """Number of ranks."""
    function: str
    """`module.qualname` of the stage's function."""
    version: str = ""
    """The user's own; a change makes a different stage."""
    items_digest: str = ""
    """sha256 over the items, where the stage has items."""
    parents: tuple[str, ...] = ()
    """Names of the stages that it comes after."""
    params: Mapping[str, str] = attrs.field(factory=dict, hash=False, converter=_texts)
    """A digest of each value that is bound to its functions, by name (`partial[0]`, `closure.n`,
    `setup.self.path`); empty where the value has no stable form. Never the value."""
    code: str = ""
    """Python version and digest of the code of its functions; empty: neither this nor `params` was
    recorded. Another one is a reason to warn, not to refuse."""


@attrs.frozen(kw_only=True, slots=True)
class Identity:
    """What makes two runs runs of the same job."""

    job: str
    """Its name."""
    stages: tuple[StageIdentity, ...]


@attrs.frozen(kw_only=True, slots=True)
class Opened:
    """What the journal knows of earlier runs, by name of stage."""

    term: int
    """How many drivers have held this state, this one included."""
    done: Mapping[str, Ranks] = attrs.field(factory=dict)
    """Not to be run again."""
    failed: Mapping[str, Ranks] = attrs.field(factory=dict)
    """Given up by an earlier run."""
    targets: Mapping[str, Iterable[tuple[int, int]]] = attrs.field(factory=dict)
    """`Completion.targets` of ranks that are done."""
    warnings: tuple[str, ...] = ()
    """What users should know about these records, one sentence each."""
    damaged: tuple[str, ...] = ()
    """What could not be read of the record, each object with the reason: lost ranks run again."""


@attrs.frozen(kw_only=True, slots=True)
class Completion:
    """The end of some ranks of one stage, or that their end does not count."""

    stage: str
    """Its name."""
    ranks: Ranks
    state: Literal["done", "failed", "skipped", "void"]
    """`void`: they must run again. Nothing counts that earlier records say of them, while later
    records do. Such a record has neither results nor outputs."""
    epoch: str = ""
    """Of the assignment that did them, as `000007.000000123`; empty where no assignment did."""
    results: Mapping[int, str] = attrs.field(factory=dict)
    """JSON text by rank; a rank without one returned None."""
    outputs: Sequence[tuple[str, str]] = ()
    """(staged, final) to be promoted after the record is durable."""
    targets: Iterable[tuple[int, int]] = ()
    """Rank and hash (64 bits) of each final name of `outputs`."""
    certificate: Mapping[str, Json] | None = None
    """Of a failed or skipped rank: why."""


class Journal(Protocol):
    """The durable record of finished ranks. The driver is its only writer.

    `thornback.executor.journal.testing` has one in memory, and `check_journal`.
    """

    async def open(
        self, identity: Identity, /, *, on_mismatch: Literal["refuse", "adopt", "fresh"]
    ) -> Opened:
        """Claim the state and return what is recorded in it. Once per journal.

        Args:
            identity: of the job that is to be run.
            on_mismatch: if the state is of another job: refuse it, adopt the records of stages of
                the same name, or start afresh.

        Raises:
            HeldByAnother: another driver holds the state.
            IdentityMismatch: it is of another job, and that is refused.
            NewerFormat: a later version has written it.
            JournalError: it cannot be read or claimed.

        Cancellation: nothing is held.
        """
        ...

    async def commit(self, records: Sequence[Completion], /) -> None:
        """Return when the records are durable and promoted: their outputs are under their final
        names, and whatever else the journal makes of a record is there.

        May be called while another call goes on.

        Raises:
            Superseded: another driver has taken the state over; nothing of this call counts.
            JournalError: the store failed for too long. Every later call raises it, too.

        Cancellation: the records may be durable or not.
        """
        ...

    async def results(self, stage: str, /) -> Mapping[int, str]:
        """Return the recorded results of a stage: JSON text by rank, ascending.

        Raises:
            JournalError: it is not open, or cannot be read.
        """
        ...

    async def close(self) -> None:
        """Commit what is pending, give the claim back. Idempotent; bounded."""
        ...


JournalFactory: TypeAlias = Callable[[], AbstractAsyncContextManager[Journal]]
"""Makes the journal of one run, whose context is left after everything else of it is closed."""


@attrs.frozen(kw_only=True, slots=True)
class Places:
    """Where the outputs of a run may be. All are absolute local paths or URLs."""

    state: str
    """Of the state below which ranks stage them."""
    folder: str
    """In which the driver was started."""
    declared: Sequence[str] = ()
    """`Job.outputs`."""


@runtime_checkable
class PlacesOutputs(Protocol):
    """Optional extension of `Journal`: promotes outputs, also those that an earlier run has
    recorded and not promoted."""

    def place_outputs(self, places: Places, /) -> None:
        """Say where outputs may be, before `open`. Of those of an earlier run only the record
        speaks, which others may have written: they are promoted to the state's parent folder, the
        driver's folder and what is declared, and nowhere else."""
        ...


@runtime_checkable
class ReadsResults(Protocol):
    """What a `JournalFactory` is, too, for `RunReport.results`: by then its journal is closed."""

    def read_results(self, stage: str, /) -> Mapping[int, str]:
        """Return what `Journal.results` has returned last, JSON text by rank (blocking).

        Raises:
            JournalError: it cannot be read.
        """
        ...


@attrs.frozen(kw_only=True, slots=True)
class Connection:
    """A platform that is connected."""

    name: str
    """Which cluster: for people."""
    leases: Leases
    workers: Workers
    size: str = ""
    """How large it is, for people: `3 nodes, 24 CPUs`; empty: there is no need to say."""


class Platform(Protocol):
    """Where gangs live. A custom executor brings its own.

    `thornback.executor.on_local.LocalPlatform` and `thornback.executor.on_ray.RayPlatform` are two.
    """

    def prepare(self) -> None:
        """Do what has to be done in the thread of `Executor.run`, before any loop runs. Repeated: a
        no-op.

        Raises:
            BackendUnavailable: it cannot be used here.
        """
        ...

    def connect(
        self, blobs: Blobs, tracers: TracerProvider, observer: PoolObserver | None, /
    ) -> AbstractAsyncContextManager[Connection]:
        """Return leases and workers; the end of the context closes whatever they still hold.

        Args:
            blobs: gives programs and inputs by key, for `Workers`.
            tracers: of the run: spans of leases and workers lie below their gang's.
            observer: is told what workers send beside their reports: signs of life, and what ranks
                write to their logs. None: that is not wanted, and costs nothing.

        Cancellation: as the end of the context.
        """
        ...


@runtime_checkable
class SaysStart(Protocol):
    """Optional extension of `Platform`: says what `prepare` is about to do."""

    def starting(self) -> str:
        """Return a line for people; empty: nothing that takes seconds. Does not block."""
        ...


@runtime_checkable
class ChecksRuntimeEnvs(Protocol):
    """Optional extension of `Platform`: checks a `runtime_env` before anything runs."""

    def check_runtime_env(self, env: Mapping[str, object], where: str, /) -> None:
        """Return if workers can have this, as far as that can be known here. Blocks, for a moment.

        Args:
            env: that of a stage over that of the executor, with absolute paths. Not empty.
            where: whose it is: the beginning of the error.

        Raises:
            UsageError: they cannot.
        """
        ...


@attrs.frozen(kw_only=True, slots=True)
class Dispatched:
    """An assignment that was handed to a gang: what a companion of the run sees."""

    stage: str
    """Its name."""
    gang: int
    """Its number: for `LiveRun.beat`."""
    assignment: int
    """Its number: for `LiveRun.outstanding`."""
    ranks: Ranks
    attempt: int
    """From 1; above it, the ranks have failed before."""


class LiveRun(Protocol):
    """A run that goes on, as its companions see it. Only to be used in the run's event loop."""

    def dispatches(self) -> AsyncIterator[Dispatched]:
        """Yield every assignment from now on, as it is handed over. A reader that is 1,000 behind
        misses some."""
        ...

    def outstanding(self, assignment: int, /) -> Ranks:
        """Return the ranks of an assignment that were not reported yet; empty: it is over."""
        ...

    async def beat(self, gang: int, /) -> Sequence[Beat]:
        """Ask the workers of a gang what they run now; empty: the gang is gone."""
        ...

    def cancel(self, reason: str, /, *, kill: bool) -> None:
        """Ask for the run's end: nothing new is started, with `kill` also what runs is killed; what
        is recorded stays."""
        ...


Companion: TypeAlias = Callable[[LiveRun], Awaitable[None]]
"""Goes along with a run, in the driver: started with it, cancelled at its end. What it raises is
logged and ends the companion, not the run."""
