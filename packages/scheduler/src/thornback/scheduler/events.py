"""What has happened: everything that the scheduler can be told.

Events are facts, named in the past tense. Ids (`gang`, `assignment`, `stage`) are small integers
that the scheduler gave out itself in its commands (`stage` is the position of the stage in the
job); `node` is the backend's name of a machine. Ranks count from 0. A fault `F` is opaque here:
only the retry policy of the stage looks into it.

What answers a command is best made by the command itself (`commands`). What nobody asked for is
`RunStarted`, `GangPlaced`, `NodeDraining`, `CancelRequested` and `Ticked`. An event that is
repeated, late, or about something that was given up is *stale*: it changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Generic, TypeAlias, TypeVar

import attrs

__all__ = [
    "CancelRequested",
    "Event",
    "GangClosed",
    "GangLost",
    "GangPlaced",
    "GangReady",
    "JournalFailed",
    "NodeDraining",
    "RankFailed",
    "Ranks",
    "RanksReturned",
    "RanksSucceeded",
    "Recorded",
    "RunStarted",
    "Ticked",
]

Ranks: TypeAlias = tuple[range, ...]
"""Disjoint, ascending, non-empty ranges of step 1: work that is resumed has holes, and must still
travel in batches."""

F = TypeVar("F")


@attrs.frozen(kw_only=True, slots=True)
class RunStarted:
    """The first event of a run. What an earlier run has recorded, by stage; nothing by default."""

    done: Mapping[int, Ranks] = attrs.field(factory=dict)
    """Ranks that have a durable result: they are neither run nor recorded again."""
    failed: Mapping[int, Ranks] = attrs.field(factory=dict)
    """Ranks that failed earlier and shall stay failed; a run that tries them again leaves them out.
    """


@attrs.frozen(kw_only=True, slots=True)
class GangPlaced:
    """A gang holds its resources, and its workers are starting. Optional: it answers nothing."""

    gang: int
    nodes: tuple[str, ...]
    """Where its workers start."""


@attrs.frozen(kw_only=True, slots=True)
class GangReady:
    """Answers `OpenGang`: every worker of the gang is alive and has answered."""

    gang: int
    nodes: tuple[str, ...]
    """Where its workers are."""
    fitting: int | None = None
    """Live nodes whose resources fit the shape, free or not: at most half of them are suspected.
    None: not known; then the nodes count that gangs of the shape have been on."""


@attrs.frozen(kw_only=True, slots=True)
class GangLost(Generic[F]):
    """Answers `OpenGang` (the gang could not be opened), or ends a gang that was ready, and with it
    all that its assignments still owe. It is closed then, as any other."""

    gang: int
    fault: F
    node: str | None = None
    """The node to suspect, where the fault has one. Without it all nodes of the gang are."""


@attrs.frozen(kw_only=True, slots=True)
class GangClosed:
    """Answers `CloseGang`, always."""

    gang: int
    confirmed: bool = True
    """Whether the deaths of its workers and the removal of its reservation were confirmed in time.
    """


@attrs.frozen(kw_only=True, slots=True)
class RanksSucceeded:
    """Ranks of an assignment returned a result, which is not recorded yet."""

    assignment: int
    ranks: Ranks
    busy_s: float = 0.0
    """Seconds that the slot spent on these ranks together: they size later assignments. 0 says that
    a rank takes no time; then an assignment grows to `SchedulerParams.max_batch` ranks."""


@attrs.frozen(kw_only=True, slots=True)
class RankFailed(Generic[F]):
    """One rank of an assignment failed; the others of the assignment go on."""

    assignment: int
    rank: int
    fault: F
    node: str
    """Where it ran; empty: not known."""
    ran_s: float = 0.0
    """Seconds that it ran."""


@attrs.frozen(kw_only=True, slots=True)
class RanksReturned:
    """Ranks that were never started, or were killed by our own `Recall`: free of charge. They are
    dispatched again."""

    assignment: int
    ranks: Ranks


@attrs.frozen(kw_only=True, slots=True)
class Recorded:
    """Answers `Record`: durable. Moves DONE ranks out of RECORDING; for FAILED and SKIPPED only a
    receipt."""

    stage: int
    ranks: Ranks


@attrs.frozen(kw_only=True, slots=True)
class JournalFailed(Generic[F]):
    """Answers `Record`: the journal cannot record any more. Ends the run; nothing unrecorded is
    announced."""

    fault: F


@attrs.frozen(kw_only=True, slots=True)
class NodeDraining:
    """A node will go away. No running rank is killed for it."""

    node: str
    left_s: float | None = None
    """Seconds until then; None: no deadline was given."""


@attrs.frozen(kw_only=True, slots=True)
class CancelRequested:
    """The user wants the run to end. What is recorded stays."""

    reason: str
    """For people: `FinishRun` gives it back."""
    kill: bool = False
    """Kill running ranks at once, instead of letting them finish."""


@attrs.frozen(kw_only=True, slots=True)
class Ticked:
    """`Scheduler.wake_at` has come. Send it only when no other event is waiting: a driver
    that was paused must not decide on what is out of date."""


RareEvent: TypeAlias = (
    RunStarted
    | GangPlaced
    | GangReady
    | GangLost[F]
    | GangClosed
    | RankFailed[F]
    | RanksReturned
    | JournalFailed[F]
    | NodeDraining
    | CancelRequested
    | Ticked
)
"""Those that do not come for every rank."""
Event: TypeAlias = RareEvent[F] | RanksSucceeded | Recorded
"""Any of them; `Event[F]` for faults of type `F`."""
