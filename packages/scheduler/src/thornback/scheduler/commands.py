"""What shall be done: everything that the scheduler can ask for.

Commands carry ids and plain data only, and each but `FinishRun` and `Recall` is owed exactly one
kind of answer.
"""

from __future__ import annotations

import enum
from typing import TypeAlias

import attrs

from thornback.scheduler.events import Ranks


@attrs.frozen(slots=True)
class ShapeKey:
    """Names a shape of gang: one of the job's own (`base`), or that one with another amount of
    memory."""

    base: int
    memory_bytes: int | None = None
    """Memory **per rank** asked for as a remedy for OOM; such a gang has one slot. None: as the
    stage asked."""


class RecordState(enum.Enum):
    """How a rank ended, as the journal keeps it."""

    DONE = "done"
    FAILED = "failed"
    SKIPPED = "skipped"


class RunState(enum.Enum):
    """How a run ended."""

    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


@attrs.frozen(kw_only=True, slots=True)
class OpenGang:
    """Lease a gang of this shape and start its workers. Answer: `GangReady` or `GangLost`."""

    gang: int
    shape: ShapeKey
    avoid: tuple[str, ...] = ()
    """Nodes to avoid if there are others: a preference, never a ban."""


@attrs.frozen(kw_only=True, slots=True)
class CloseGang:
    """End the workers and give the lease back. Sent once for every `OpenGang`. Answer:
    `GangClosed`, always."""

    gang: int
    kill: bool = False


@attrs.frozen(kw_only=True, slots=True)
class Dispatch:
    """Run these ranks, in order, in one slot of the gang.

    Answer: each rank once in `RanksSucceeded`, `RankFailed` or `RanksReturned`; or `GangLost` for
    all that is left.
    """

    gang: int
    assignment: int
    stage: int
    ranks: Ranks
    attempt: int = 1
    """1 + the charged faults of the rank; above 1 only for a rank that travels alone."""
    timeout_factor: float = 1.0


@attrs.frozen(kw_only=True, slots=True)
class Recall:
    """Hasten the answer of a `Dispatch`: ranks not started are returned; with `kill` the running
    one too."""

    assignment: int
    kill: bool = False


@attrs.frozen(kw_only=True, slots=True)
class Record:
    """Make the end of these ranks durable. Answer: `Recorded` or `JournalFailed`."""

    stage: int
    ranks: Ranks
    assignment: int | None
    """The assignment whose payload is the result; None for ranks that were skipped or given up
    without one."""
    state: RecordState


@attrs.frozen(kw_only=True, slots=True)
class FinishRun:
    """The last command: every rank is settled (unless cancelled), every gang closed."""

    state: RunState
    reason: str = ""


Command: TypeAlias = OpenGang | CloseGang | Dispatch | Recall | Record | FinishRun
