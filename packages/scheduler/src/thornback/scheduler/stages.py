"""What is known of one stage: the state of each rank, those that have failed, how fast it goes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Generic, TypeVar

import attrs

from thornback.faults import Standing, StopReason
from thornback.scheduler.events import Ranks
from thornback.scheduler.evidence import PastFault
from thornback.scheduler.pace import Pace
from thornback.scheduler.params import SchedulerParams, StageCounts, StagePlan
from thornback.scheduler.ranges import normalised
from thornback.scheduler.states import (
    OWED,
    OWING,
    RANK_STEPS,
    RECEIVED,
    RankMove,
    RankState,
    RankStep,
    UsageError,
    after_rank_move,
)

if TYPE_CHECKING:
    from thornback.scheduler.gangs import Lane

F = TypeVar("F")


@attrs.define(slots=True)
class FailedRank(Generic[F]):
    """A rank that has failed at least once: the only ranks with an object."""

    history: list[PastFault[F]] = attrs.field(factory=list)
    """Its faults, oldest first: also free ones, which have budgets of their own."""
    tries: int = 0
    """That failed, and were no preemptions."""
    avoid: list[str] = attrs.field(factory=list)
    """Nodes on which it has failed."""
    memory_bytes: int | None = None
    """Stays raised once raised: a rank that needed more memory needs it after a preemption too."""
    timeout_factor: float = 1.0
    wants_elsewhere: bool = False
    """Its last fault may be the machine's: a gang on another node is asked for, if there is one."""
    ready_at: float = 0.0
    """Since when it waits for a slot."""

    @property
    def attempt(self) -> int:
        return 1 + self.tries

    @property
    def is_known_killer(self) -> bool:
        """Whether a fault is settled against it: what it does elsewhere says nothing of nodes."""
        return any(past.standing is Standing.RANK for past in self.history)

    def past(self, without: PastFault[F] | None = None) -> tuple[tuple[F, str, Standing], ...]:
        """Return the history as a policy reads it."""
        return tuple((p.fault, p.node, p.standing) for p in self.history if p is not without)


class Stage(Generic[F]):
    """One stage. Moves ranks; decides nothing."""

    def __init__(self, number: int, plan: StagePlan[F], params: SchedulerParams) -> None:
        self.number = number
        self.plan = plan
        self.order = (-plan.priority, number)
        self.states = bytearray(plan.world_size)
        self.in_state = [0] * len(RankState)
        self.in_state[RankState.BLOCKED] = plan.world_size
        self.owed = 0
        """Receipts of the journal for FAILED and SKIPPED ranks that have not come."""
        self.failures: dict[int, FailedRank[F]] = {}
        self.pace = Pace(params)
        self.lanes: list[Lane[F]] = []
        self.assigned = 0
        """Assignments of which something is outstanding."""
        self.stopped: Stopped | None = None
        """Why the whole stage was given up."""
        self.tripped: Stopped | None = None
        """Why nothing more is dispatched until what runs has ended."""
        self.tripped_idle_at: float | None = None
        """Since when nothing of it runs, while it is tripped."""
        self.streak = Streak()
        self.alike: dict[str, int] = {}
        """Ranks given up by signature, while none has succeeded."""
        self._reasons: dict[int, tuple[range, str]] = {}

    def move(self, piece: range, source: RankState, move: RankMove) -> None:
        """Move ranks that are all in one state. Raises `InvalidTransition`."""
        if move not in RANK_STEPS[source]:
            raise self._refusal(piece, source, move)
        self.step(piece, RANK_STEPS[source][move])

    def step(self, piece: range, step: RankStep) -> None:
        """Likewise, for a move that was looked up before: those of every rank."""
        before, after, byte, move = step
        states = self.states
        start = piece.start
        size = len(piece)
        if size == 1 and states[start] == before:  # the ordinary case
            states[start] = byte
        elif states.count(before, start, piece.stop) == size:
            states[start : piece.stop] = bytes((byte,)) * size
        else:
            raise self._refusal(piece, RankState(before), move)
        in_state = self.in_state
        in_state[before] -= size
        in_state[after] += size
        if byte != after:
            self.owed += size

    def _refusal(self, piece: range, source: RankState, move: RankMove) -> UsageError:
        """Return what is wrong, or raise it. Raises `InvalidTransition`."""
        after_rank_move(source, move, f"ranks {piece} of stage {self.number}")
        for state, _run in self.runs(piece):
            if state is not source:
                after_rank_move(state, move, f"{piece} of stage {self.number}, from {source.name}")
        return UsageError(
            f"{move.value}: {piece} of stage {self.number} is not all in {source.name}"
        )

    def any_in(self, state: RankState, ranks: Ranks) -> bool:
        """Return whether one of these ranks is in that state, and no receipt is owed."""
        states = self.states
        for piece in ranks:
            start = piece.start  # most are known by their first
            if states[start] == state or states.count(state, start, piece.stop):
                return True
        return False

    def those_in(self, state: RankState, ranks: Ranks) -> Ranks:
        """Return the ranks that are in that state: `ranks` itself if all are."""
        for piece in ranks:
            if self.states.count(state, piece.start, piece.stop) != len(piece):
                break
        else:
            return ranks
        return tuple(run for piece in ranks for known, run in self.runs(piece) if known is state)

    def runs(self, piece: range) -> Iterator[tuple[RankState, range]]:
        """Yield the states of these ranks, as runs of equal ones."""
        part = bytes(self.states[piece.start : piece.stop])
        if part and part.count(part[0]) == len(part):  # the ordinary case, at the speed of C
            yield RankState(part[0] & ~OWED), piece
            return
        start = piece.start
        for byte, group in groupby(part):
            stop = start + sum(1 for _ in group)
            yield RankState(byte & ~OWED), range(start, stop)
            start = stop

    def receipt(self, ranks: Ranks) -> None:
        """Note the journal's receipt for those of these ranks that are FAILED or SKIPPED and owed
        one."""
        for piece in ranks:
            part = self.states[piece.start : piece.stop]
            self.states[piece.start : piece.stop] = part.translate(RECEIVED)
            self.owed -= sum(map(part.count, OWING))

    def own(self, ranks: Ranks, what: str) -> Ranks:
        """Return the ranks normalised. Raises `UsageError` for ranks that the stage does not
        have."""
        for piece in ranks:
            if piece.step != 1 or piece.start < 0 or piece.stop > len(self.states):
                raise UsageError(
                    f"{what}: {piece!r} of stage {self.number}; expected ranges of step 1 within "
                    f"0..{len(self.states) - 1}."
                )
        return ranks if len(ranks) == 1 and ranks[0] else normalised(ranks)

    def note(self, ranks: Sequence[range], reason: str) -> None:
        """Remember why these ranks ended badly."""
        for piece in ranks:
            self._reasons[piece.start] = (piece, reason)

    def reason(self, rank: int) -> str:
        """Return why this rank ended badly; empty if it did not."""
        exact = self._reasons.get(rank)
        if exact is not None:
            return exact[1]
        return next((why for piece, why in self._reasons.values() if rank in piece), "")

    @property
    def room(self) -> int:
        """How many more gangs it may have; draining and suspected ones do not count."""
        room = self.plan.max_gangs
        if room is None:
            return 1 << 30
        for lane in self.lanes:
            room -= len(lane.opening) + len(lane.gangs) - len(lane.draining) - len(lane.held)
        return room

    @property
    def unfinished(self) -> int:
        """Ranks that may still need a slot."""
        return sum(self.in_state[: RankState.RECORDING]) + self.in_state[RankState.BACKOFF]

    def counts(self) -> StageCounts:
        """Return how far it is. O(1)."""
        blocked, ready, running, recording, backoff, done, failed, skipped = self.in_state
        return StageCounts(
            blocked=blocked,
            ready=ready,
            running=running,
            recording=recording,
            backoff=backoff,
            done=done,
            failed=failed,
            skipped=skipped,
            gangs=sum(len(lane.opening) + len(lane.gangs) for lane in self.lanes),
        )


@attrs.define(slots=True)
class Streak:
    """What went wrong since a rank of the stage last finished."""

    losses: int = 0
    """Gangs lost in a row: each was asked for after the loss before it was known, so a rack that
    dies with fifty gangs is one event."""
    faults: int = 0
    """Machine faults, all of them."""
    by_node: dict[str, int] = attrs.field(factory=dict)
    """Those of each node; "": it is not known, or not to blame."""
    first_gang: int | None = None
    """Gangs before this one were asked for before the trouble began; None: there is none."""
    last_gang: int = -1
    """Gangs up to this one were asked for before the last loss was known."""

    def lost(self, gang: int, next_gang: int) -> None:
        """Count the loss of a gang."""
        self.begin(next_gang)
        if gang > self.last_gang:
            self.losses += 1
            self.last_gang = next_gang - 1

    def failed(self, next_gang: int, node: str) -> None:
        """Count a machine fault."""
        self.begin(next_gang)
        self.faults += 1
        self.by_node[node] = self.by_node.get(node, 0) + 1

    def has_failed_on(self, nodes: Sequence[str]) -> bool:
        """Return whether one of these nodes is to blame for some of them."""
        return any(node in self.by_node for node in nodes)

    def weight(self, share: int) -> int:
        """Return the machine faults, of each node at most so many."""
        return sum(min(n, share) if node else n for node, n in self.by_node.items())

    def begin(self, next_gang: int) -> None:
        """Note that there is trouble, if it is new."""
        if self.first_gang is None:
            self.first_gang = next_gang

    def end(self) -> None:
        """A rank has finished."""
        self.losses = self.faults = 0
        self.by_node.clear()
        self.first_gang = None

    def is_older(self, gang: int) -> bool:
        """Return whether a gang was asked for before the trouble began."""
        return self.first_gang is not None and gang < self.first_gang


@attrs.frozen(slots=True)
class Stopped:
    """Why a stage is stopped."""

    why: StopReason
    text: str


def one(rank: int) -> Ranks:
    """Return a single rank as ranges."""
    return (range(rank, rank + 1),)
