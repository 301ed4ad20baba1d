"""What shall be done: everything that the scheduler can ask for.

Commands carry ids and plain data only. Begin them in the order in which they were returned; then
they may go on side by side. Each but `Recall` and `FinishRun` is owed exactly one kind of answer,
whatever happens: who carries it out turns *any* exception into that answer. The scheduler sets no
limit to how long an answer may take, and what waits for it waits as long: give each step a time-out
of your own. Each command makes its answers itself: `command.ready("node-1")`.

- `OpenGang`: `GangReady` or `GangLost`, once; after `GangReady`, one `GangLost` when it is lost.
- `CloseGang`: `GangClosed`, always. It settles an `OpenGang` that was not answered and every
  `Dispatch` of the gang that still owes something: what is said about those from then on changes
  nothing.
- `Dispatch`: each rank once, in `RanksSucceeded`, `RankFailed` or `RanksReturned`, in any number of
  events; or `GangLost` for all that are left. Post what a gang has reported before its `GangLost`:
  what comes after it is dropped, and those ranks run again.
- `Record`: `Recorded` for all of its ranks, in any number of events; or `JournalFailed`.
"""

from __future__ import annotations

import enum
from typing import TypeAlias, TypeVar

import attrs

from thornback.faults import StopReason
from thornback.scheduler.events import (
    GangClosed,
    GangLost,
    GangReady,
    JournalFailed,
    RankFailed,
    Ranks,
    RanksReturned,
    RanksSucceeded,
    Recorded,
)

__all__ = [
    "CloseGang",
    "Command",
    "Dispatch",
    "FinishRun",
    "OpenGang",
    "Recall",
    "Record",
    "RecordState",
    "RunState",
    "ShapeKey",
]

F = TypeVar("F")


@attrs.frozen(slots=True)
class ShapeKey:
    """Names a shape of gang: one of the job's own (`base`), or that one with another amount of
    memory."""

    base: int
    """`StagePlan.shape`."""
    memory_bytes: int | None = None
    """Memory **per rank** asked for as a remedy for OOM; such a gang has one slot. None: as the
    stage asked."""


class RecordState(enum.Enum):
    """How a rank ended, as the journal keeps it."""

    DONE = "done"
    """It has a result."""
    FAILED = "failed"
    """It was given up."""
    SKIPPED = "skipped"
    """It never ran: another one failed, or its stage was stopped."""


class RunState(enum.Enum):
    """How a run ended."""

    SUCCEEDED = "succeeded"
    """No stage was stopped, and none has more ranks failed or skipped than its `max_failed`."""
    FAILED = "failed"
    """Anything else; `FinishRun.reason` says what."""
    CANCELLED = "cancelled"
    """`CancelRequested` came before every rank was settled."""


@attrs.frozen(kw_only=True, slots=True)
class OpenGang:
    """Lease a gang of this shape and start its workers. Answer: `GangReady` or `GangLost`.

    A `CloseGang` may come before the answer: then stop trying, and answer that one only.
    """

    gang: int
    shape: ShapeKey
    avoid: tuple[str, ...] = ()
    """Nodes to avoid if there are others: a preference, never a ban."""

    def ready(self, *nodes: str, fitting: int | None = None) -> GangReady:
        """Return the answer that every worker of the gang is alive, on these nodes. `fitting`: how
        many nodes there are for this shape."""
        return GangReady(gang=self.gang, nodes=nodes, fitting=fitting)

    def lost(self, fault: F, node: str | None = None) -> GangLost[F]:
        """Return the answer that the gang could not be opened; or, later, that it is lost. `node`:
        the one to be suspected, where the fault has one."""
        return GangLost(gang=self.gang, fault=fault, node=node)


@attrs.frozen(kw_only=True, slots=True)
class CloseGang:
    """End the workers and give the lease back. Sent once for every `OpenGang`, also after its
    `GangLost`. Answer: `GangClosed`, always."""

    gang: int
    kill: bool = False
    """End ranks that still run. Without it none does: the gang holds no assignment any more."""

    def closed(self, confirmed: bool = True) -> GangClosed:
        """Return the answer. `confirmed`: it is known that the workers are dead and the lease is
        gone; when your time-out is over, False."""
        return GangClosed(gang=self.gang, confirmed=confirmed)


@attrs.define(slots=True, unsafe_hash=True)  # not frozen: see `Record`
class Dispatch:
    """Run these ranks, in order, in one slot of the gang.

    Answer: each rank once in `RanksSucceeded`, `RankFailed` or `RanksReturned`; or `GangLost` for
    all that are left. A slot may be given a second assignment before the first is answered: run it
    after that. An assignment that takes longer than `SchedulerParams.reclaim_s` shall hand back by
    itself what it has not started, so that other slots can take it.
    """

    gang: int
    assignment: int
    """The token of this try: together with the rank it tells one attempt from another."""
    stage: int
    ranks: Ranks
    attempt: int = 1
    """1 + the faults of the rank, without preemptions; above 1 only for one that travels alone."""
    timeout_factor: float = 1.0
    """Multiplies the time-out of the rank, where it has one."""

    def succeeded(self, rank: int, busy_s: float) -> RanksSucceeded:
        """Return the answer for one rank that has a result, after `busy_s` seconds in its slot.

        Keep the result under (assignment, rank) until a `Record` names both. Who reports many
        ranks together makes one `RanksSucceeded` of them instead.
        """
        return RanksSucceeded(
            assignment=self.assignment, ranks=(range(rank, rank + 1),), busy_s=busy_s
        )

    def failed(self, rank: int, fault: F, node: str, ran_s: float = 0.0) -> RankFailed[F]:
        """Return the answer for one rank that failed on `node`; the others go on."""
        return RankFailed(
            assignment=self.assignment, rank=rank, fault=fault, node=node, ran_s=ran_s
        )

    def returned(self, ranks: Ranks | None = None) -> RanksReturned:
        """Return the answer for ranks that were not started, or were killed by a `Recall`: they are
        free of charge, and will be dispatched again.

        None: for all that have no answer yet; if none is left, the event changes nothing. So it may
        close every assignment, however that ended.
        """
        return RanksReturned(
            assignment=self.assignment, ranks=self.ranks if ranks is None else ranks
        )

    def lost(self, fault: F, node: str | None = None) -> GangLost[F]:
        """Return the answer that the gang is lost with all that it has not answered."""
        return GangLost(gang=self.gang, fault=fault, node=node)


@attrs.frozen(kw_only=True, slots=True)
class Recall:
    """Hasten the answer of a `Dispatch`: ranks not started are returned; with `kill` the running
    one too. No answer of its own. Where a rank cannot be killed, it is answered when it ends."""

    assignment: int
    kill: bool = False


# Not frozen, though nobody changes it: it is made for every rank, and would take three times as
# long. The two of a rank would be a tenth of all that it costs here.
@attrs.define(slots=True, unsafe_hash=True)
class Record:
    """Make the end of these ranks durable. Answer: `Recorded`, or `JournalFailed`, which ends the
    run."""

    stage: int
    ranks: Ranks
    assignment: int | None
    """The assignment whose payload is the result; None for ranks that were skipped or given up
    without one."""
    state: RecordState
    stop: StopReason | None = None
    """Why the ranks are not tried again; None for DONE, and for ranks that depended on others."""

    def recorded(self) -> Recorded:
        """Return the answer that all of these ranks are durable."""
        return Recorded(stage=self.stage, ranks=self.ranks)

    def failed(self, fault: F) -> JournalFailed[F]:
        """Return the answer that nothing can be recorded any more."""
        return JournalFailed(fault=fault)


@attrs.frozen(kw_only=True, slots=True)
class FinishRun:
    """The last command, without an answer: every rank is settled (unless cancelled, or the journal
    has failed), every gang closed."""

    state: RunState
    reason: str = ""
    """For people; empty for SUCCEEDED."""


Command: TypeAlias = OpenGang | CloseGang | Dispatch | Recall | Record | FinishRun
"""Any of them: `match` on it and end in `typing.assert_never`."""
