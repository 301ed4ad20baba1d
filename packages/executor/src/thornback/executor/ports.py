"""What the driver needs from others, as protocols, and the records that go to the journal.

The driver is their consumer, so they are defined here; `placement`, `pool` and `faults` fulfil them
without knowing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Literal, Protocol, TypeAlias

import attrs
from opentelemetry.trace import TracerProvider

from thornback.faults import ErrorData, Fault
from thornback.placement import GangRequest, Lease
from thornback.pool import Assignment, Beat, Blobs, GangLostError, Report, WorkerSpec

Ranks: TypeAlias = tuple[range, ...]
Attribute: TypeAlias = str | int | float | bool | None
Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"


class Clock(Protocol):
    """Time, so that tests can bring their own."""

    def monotonic(self) -> float:
        """Seconds on a clock that never goes back."""
        ...

    def time_ns(self) -> int:
        """Nanoseconds since 1970: for spans and files only, never for a decision."""
        ...

    async def sleep(self, delay_s: float, /) -> None: ...


class Classifier(Protocol):
    """Turns an error into a fault."""

    def classify(
        self, error: BaseException | ErrorData, facts: Mapping[str, Attribute], /
    ) -> Fault:
        """Return the fault. `facts["origin"]` says who saw it; never raises."""
        ...


class Leases(Protocol):
    """Leases gangs of resources."""

    async def acquire(self, request: GangRequest, /, *, avoid: Sequence[str]) -> Lease:
        """Return a held lease. Cancelled: nothing is held."""
        ...

    async def release(self, lease: Lease, /, *, timeout_s: float) -> bool:
        """Give it back. Idempotent, never raises; True: confirmed."""
        ...

    def drains(self) -> AsyncIterator[tuple[str, float | None]]:
        """Yield (node, seconds left or None) for every notice that a node will go away."""
        ...


class Workers(Protocol):
    """Keeps the workers of gangs and hands them work."""

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
        """Start one worker per node; return when all have answered. Raises `GangLostError`.
        Cancelled: close it."""
        ...

    def run(self, gang: int, work: Assignment, /) -> AsyncIterator[Report]:
        """Yield reports until every rank is reported once. Raises `GangLostError`."""
        ...

    async def recall(self, gang: int, assignment: int, /, *, kill: bool) -> None:
        """Hasten the end of `run`. Unknown ids: a no-op."""
        ...

    async def lost(self, gang: int, /) -> GangLostError:
        """Return when, and only if, the gang is lost."""
        ...

    async def beat(self, gang: int, /) -> Sequence[Beat]:
        """Ask the workers now; a worker that does not answer is left out."""
        ...

    async def close(self, gang: int, /, *, kill: bool, timeout_s: float) -> bool:
        """End the workers. Idempotent, never raises; True: all deaths confirmed."""
        ...


@attrs.frozen(kw_only=True, slots=True)
class StageIdentity:
    """What makes two stages of two runs the same stage."""

    name: str
    world_size: int
    function: str
    """Qualified name."""
    version: str = ""
    """The user's own; a change makes a different stage."""
    items_digest: str = ""
    """sha256 over the items, where the stage has items."""
    parents: tuple[str, ...] = ()


@attrs.frozen(kw_only=True, slots=True)
class Identity:
    """What makes two runs runs of the same job."""

    job: str
    stages: tuple[StageIdentity, ...]


@attrs.frozen(kw_only=True, slots=True)
class Opened:
    """What the journal knows of earlier runs, by name of stage."""

    term: int
    done: Mapping[str, Ranks] = attrs.field(factory=dict)
    failed: Mapping[str, Ranks] = attrs.field(factory=dict)


@attrs.frozen(kw_only=True, slots=True)
class Completion:
    """The end of some ranks of one stage."""

    stage: str
    ranks: Ranks
    state: Literal["done", "failed", "skipped"]
    epoch: str = ""
    results: Mapping[int, str] = attrs.field(factory=dict)
    """JSON text by rank; a rank without one returned None."""
    outputs: Sequence[tuple[str, str]] = ()
    """(staged, final) to be promoted after the record is durable."""
    certificate: Mapping[str, Json] | None = None
    """Of a failed or skipped rank: why."""


class Journal(Protocol):
    """The durable record of finished ranks. The driver is its only writer."""

    async def open(
        self, identity: Identity, /, *, on_mismatch: Literal["refuse", "adopt", "fresh"]
    ) -> Opened:
        """Claim the next term. Raises `HeldByAnother`, `IdentityMismatch`, `JournalError`."""
        ...

    async def commit(self, records: Sequence[Completion], /) -> None:
        """Durable and promoted at return. Raises `Superseded`, `JournalError`."""
        ...

    async def results(self, stage: str, /) -> Mapping[int, str]:
        """Return the recorded results of a stage, JSON text by rank."""
        ...

    async def close(self) -> None:
        """Commit what is pending, give the claim back. Idempotent."""
        ...


@attrs.frozen(kw_only=True, slots=True)
class Connection:
    """A platform that is connected."""

    name: str
    """Which cluster: for people."""
    leases: Leases
    workers: Workers


class Platform(Protocol):
    """Where gangs live. A custom executor brings its own."""

    def prepare(self) -> None:
        """Called in the caller's thread before any loop runs. Raises `BackendUnavailable`.
        Repeated: a no-op."""
        ...

    def connect(
        self, blobs: Blobs, tracers: TracerProvider, /
    ) -> AbstractAsyncContextManager[Connection]:
        """Return leases and workers; the end of the context closes whatever they still hold."""
        ...
