"""The scheduler: events in, commands out. Synchronous, without clock, random source or I/O.

`handle` first enters the event into the books (stale events change nothing), then lets the books
settle: ranks whose delay is over become ready, lanes yield, free slots are fed, gangs are asked for
or given up, and the run ends when nothing is left. The theory of operation stands in `states.py`.

A record that releases nobody needs less than that: it leaves gangs and ready ranks as they were.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, TypeVar, assert_never

from thornback.scheduler import settling
from thornback.scheduler.board import Board, Drain, Ending
from thornback.scheduler.checks import check
from thornback.scheduler.commands import Command, RunState
from thornback.scheduler.events import (
    CancelRequested,
    Event,
    GangClosed,
    GangLost,
    GangPlaced,
    GangReady,
    JournalFailed,
    NodeDraining,
    RankFailed,
    Ranks,
    RanksReturned,
    RanksSucceeded,
    RareEvent,
    Recorded,
    RunStarted,
    Ticked,
)
from thornback.scheduler.feeding import feed
from thornback.scheduler.finishing import finish
from thornback.scheduler.gangs import Assignment, Gang
from thornback.scheduler.judging import convict, gang_lost, rank_failed, stop_tripped
from thornback.scheduler.opening import adjust, make_yield, turn_away, why_not_asked
from thornback.scheduler.params import SchedulerParams, StageCounts, StagePlan
from thornback.scheduler.ports import Dependencies
from thornback.scheduler.quarantine import review
from thornback.scheduler.ranges import normalised, total
from thornback.scheduler.stages import one
from thornback.scheduler.states import (
    GangMove,
    GangState,
    InvalidTransition,
    RankState,
)

F = TypeVar("F")


class Scheduler(Generic[F]):
    """Decides for one run: tell it every event, carry out every command, and tell it when `wake_at`
    comes. Not for several threads at once."""

    def __init__(
        self,
        stages: Sequence[StagePlan[F]],
        dependencies: Dependencies,
        params: SchedulerParams | None = None,
        seed: int = 0,
    ) -> None:
        """Take the stages in the order of the job.

        Args:
            stages: one plan each; `stage` in events and commands is the position here.
            dependencies: which ranks may run; asked and told by this scheduler alone.
            params: tuning; None: the defaults.
            seed: of the jitter; runs with equal seeds, events and times give equal commands.

        Raises:
            UsageError: no stages, or stages of one shape that differ in slots or nodes.
        """
        self._board: Board[F] = Board(stages, dependencies, params or SchedulerParams(), seed)

    # -- what the driver asks ----------------------------------------------------------------------

    @property
    def wake_at(self) -> float | None:
        """When `Ticked` is due at the latest, on the clock of `now`; None: no timer is set."""
        return self._board.wake_at

    def wait_s(self, now: float) -> float | None:
        """Return the seconds until `wake_at`, at least 0, to wait for an event at most: then send
        `Ticked`. None: no timer is set, wait for an event."""
        wake_at = self._board.wake_at
        return None if wake_at is None else max(0.0, wake_at - now)

    @property
    def finished(self) -> bool:
        """`FinishRun` was given; every later event is a no-op."""
        return self._board.finished

    def counts(self, stage: int) -> StageCounts:
        """Return how far a stage is. O(1). Raises IndexError for a stage that is not there, as all
        questions about stages do."""
        return self._board.stages[stage].counts()

    def outstanding(self, assignment: int) -> Ranks:
        """Return the ranks that the assignment still owes; empty if it is settled, lost or
        unknown."""
        known = self._board.assignments.get(assignment)
        return () if known is None else tuple(known.outstanding)

    def gang_of(self, assignment: int) -> int | None:
        """Return the gang of an assignment of which something is outstanding; None: nothing is."""
        known = self._board.assignments.get(assignment)
        return None if known is None else known.gang.number

    def reason(self, stage: int, rank: int) -> str:
        """Return why a rank is FAILED or SKIPPED, in one sentence; empty if it is not."""
        return self._board.stages[stage].reason(rank)

    def state(self, stage: int, rank: int) -> RankState:
        """Return where a rank is. O(1). Raises `UsageError` for a rank that is not there."""
        known = self._board.stages[stage]
        known.own(one(rank), "state()")
        return next(state for state, _ in known.runs(one(rank)[0]))

    def waiting_reason(self, stage: int) -> str | None:
        """Return why ready ranks of a stage have no gang, open or opening; None: they have one, or
        none is ready."""
        for lane in self._board.stages[stage].lanes:
            if lane.waiting and not lane.usable and not lane.opening:
                return why_not_asked(self._board, lane)
        return None

    def check_invariants(self) -> None:
        """Check the books against each other, and that the run cannot stall. O(ranks): for tests.

        Raises:
            InvariantBroken: with the story.
        """
        check(self._board)

    # -- events ------------------------------------------------------------------------------------

    def handle(self, event: Event[F], now: float) -> Sequence[Command]:
        """Take in what has happened; return what to do, in this order.

        A stale event (repeated, late, about something that was given up) changes nothing. `now` is
        in monotonic seconds; an earlier one than before counts as no time passed.

        Raises:
            UsageError: `RunStarted` or `Recorded` with a stage or ranks that are not there; ranges
                of another step than 1; a verdict of a retry policy with numbers that make no sense.
            InvalidTransition: a gang or an assignment that was never asked for, or a `GangClosed`
                without its `CloseGang`.

        What a policy or the dependencies raise goes through; do not use the scheduler after that.
        """
        board = self._board
        if board.finished:
            return ()
        if now > board.now:
            board.now = now
        if isinstance(event, RanksSucceeded):  # nearly all events are one of these two
            moved = self._ranks_succeeded(event)
        elif isinstance(event, Recorded):
            moved = settling.recorded(board, event)
        else:
            self._enter(event)
            moved = True
        if board.ended_ranks:
            settling.tell(board)
        if moved or not board.assignments or board.slow is not None or board.now >= board.due_at:
            self._settle(moved)
        if not board.out:
            return ()
        out, board.out = board.out, []
        return out

    def _enter(self, event: RareEvent[F]) -> None:
        board = self._board
        match event:
            case RunStarted():
                if not board.started:
                    settling.start(board, event)
            case GangPlaced():
                gang = self._gang(event.gang)
                if gang is not None and gang.state is GangState.OPENING:
                    gang.nodes = event.nodes
                    gang.lane.shape.nodes.update(dict.fromkeys(event.nodes))
                    turn_away(board, gang)
            case GangReady():
                self._gang_ready(event)
            case GangLost():
                gang = self._gang(event.gang)
                if gang is not None and gang.state is not GangState.CLOSING:
                    gang_lost(board, gang, event, self._give_back)
            case GangClosed():
                gang = self._gang(event.gang)
                if gang is not None:
                    gang.move(GangMove.CLOSED)
                    del board.gangs[gang.number]
                    board.closed += 1
                    if gang.nodes:
                        board.held_until = board.now
            case RankFailed():
                self._rank_failed(event)
            case RanksReturned():
                self._ranks_returned(event)
            case JournalFailed():
                self._journal_failed(event)
            case NodeDraining():
                self._node_draining(event)
            case CancelRequested():
                self._cancel(event)
            case Ticked():
                pass  # the books settle after each of these
            case _:
                assert_never(event)

    def _gang(self, number: int) -> Gang[F] | None:
        """Return a gang; None: it is gone. Raises `InvalidTransition` for one that was never asked
        for."""
        gang = self._board.gangs.get(number)
        if gang is None and not 0 <= number < self._board.next_gang:
            raise InvalidTransition("(none)", "an event", f"gang {number} was never asked for")
        return gang

    def _assignment(self, number: int) -> Assignment[F] | None:
        known = self._board.assignments.get(number)
        if known is None and not 0 <= number < self._board.next_assignment:
            raise InvalidTransition("(none)", "an event", f"assignment {number} was never given")
        return known

    def _gang_ready(self, event: GangReady) -> None:
        gang, board = self._gang(event.gang), self._board
        if gang is None or not gang.move(GangMove.ANSWERED):
            return
        gang.nodes = event.nodes
        gang.ready_at = board.now
        gang.lane.failed_openings = 0
        gang.lane.try_anywhere = False
        shape = gang.lane.shape
        shape.nodes.update(dict.fromkeys(event.nodes))
        shape.fitting = event.fitting
        drains = [board.drains[node] for node in event.nodes if node in board.drains]
        late = [drain.by for drain in drains if gang.number < drain.next_gang]
        if late:  # a gang that was asked for after the notice found no other place: it is used
            gang.drain_by = min(late)
        gang.lane.place(gang)
        board.evidence.changed |= bool(board.evidence)

    def _ranks_succeeded(self, event: RanksSucceeded) -> bool:
        """Return whether more may follow from it than is done here."""
        board, given = self._board, event.ranks
        assignment = board.assignments.get(event.assignment) or self._assignment(event.assignment)
        if assignment is None:
            return False
        before, held = assignment.outstanding, assignment.left
        ranks = assignment.settle(given)
        if not ranks:
            return False
        gang, left = assignment.gang, assignment.left
        count = held - left
        # The seconds are for all that was reported, also what is not outstanding any more.
        reported = count if ranks is before else total(normalised(given))
        assignment.stage.pace.learn(event.busy_s, reported, 0 if left else assignment.size)
        gang.finished += count
        settling.succeed(board, assignment, ranks, count)
        if board.evidence:
            number, rank = assignment.stage.number, ranks[0].start
            settled = board.evidence.ran_well(
                gang.nodes, number, rank, assignment.number, board.now, probing=gang.probing
            )
            convict(board, settled)
        if left:
            return True
        gang.ahead = True
        board.forget(assignment)
        if gang.most_live is not None:
            gang.most_live = None  # try again: what was in the way may be over
            gang.lane.place(gang)
        gang.lane.loaded(gang)
        return True

    def _rank_failed(self, event: RankFailed[F]) -> None:
        assignment, board = self._assignment(event.assignment), self._board
        if assignment is None or not assignment.settle(one(event.rank)):
            return
        if not assignment.left:
            board.free_slot(assignment)
        rank_failed(board, assignment, event)

    def _ranks_returned(self, event: RanksReturned) -> None:
        assignment, board = self._assignment(event.assignment), self._board
        ranks = assignment.settle(event.ranks) if assignment is not None else ()
        if assignment is None or not ranks:
            return
        if not assignment.recalled:
            # What runs there takes long: nothing more is queued behind it until it ends.
            assignment.gang.ahead = False
        settling.take_back(board, assignment.stage, ranks, assignment.limit)
        gang = assignment.gang
        if not assignment.left:
            board.forget(assignment)
            was_started = assignment.recalled or total(ranks) < assignment.size
            if not was_started and len(gang.live) < gang.lane.slots:
                gang.most_live = max(1, len(gang.live))
        gang.lane.place(gang)

    def _give_back(self, assignment: Assignment[F], halve: bool) -> None:
        """Queue again what a lost gang still owed, with half the batch limit if its ranks are
        suspected."""
        limit = assignment.limit
        if halve:
            limit = max(1, min(limit, assignment.left) // 2)
        settling.take_back(self._board, assignment.stage, assignment.outstanding, limit)

    def _node_draining(self, event: NodeDraining) -> None:
        board = self._board
        left_s = board.params.drain_s if event.left_s is None else max(0.0, event.left_s)
        by = board.now + left_s
        # Nodes come and go for as long as a run lasts: those that are gone are forgotten.
        board.drains = {node: drain for node, drain in board.drains.items() if drain.by > board.now}
        known = board.drains.get(event.node)
        repeated = known is not None
        if known is not None:
            board.drains[event.node] = Drain(min(by, known.by), known.next_gang)
        else:
            board.drains[event.node] = Drain(by, board.next_gang)
        for gang in board.gangs.values():
            if gang.state is not GangState.READY or event.node not in gang.nodes:
                continue
            if gang.drain_by is not None:
                gang.drain_by = min(gang.drain_by, by)
            elif not repeated:
                # A gang that came here after the notice found no other place: it is used as it is.
                gang.drain_by = by
                gang.lane.place(gang)
                self._recall_late(gang, left_s)

    def _recall_late(self, gang: Gang[F], left_s: float) -> None:
        mean_s = gang.lane.stage.pace.mean_s
        for assignment in gang.live.values():
            takes_s = None if mean_s is None else mean_s * assignment.left
            if takes_s is None or takes_s > left_s * self._board.params.drain_share:
                self._board.recall(assignment)

    # -- ends --------------------------------------------------------------------------------------

    def _cancel(self, event: CancelRequested) -> None:
        board = self._board
        if board.ending is None:
            board.ending = Ending(RunState.CANCELLED, event.reason, event.kill)
        board.ending.kill = board.ending.kill or event.kill
        for assignment in list(board.assignments.values()):
            board.recall(assignment, kill=board.ending.kill)

    def _journal_failed(self, event: JournalFailed[F]) -> None:
        board = self._board
        if board.ending is not None and board.ending.unrecorded:
            return
        reason = f"the journal cannot record any more: {event.fault}"
        board.ending = Ending(RunState.FAILED, reason, kill=True, unrecorded=True)
        for gang in list(board.gangs.values()):
            for assignment in list(gang.live.values()):
                settling.take_back(board, assignment.stage, assignment.outstanding)
                assignment.outstanding = ()
                board.free_slot(assignment)
            board.close(gang, kill=True)

    def _settle(self, moved: bool) -> None:
        """Let everything follow that follows from the books. Gangs and ready ranks are looked at if
        something has moved, back-pressure may have ended, or a timer is due."""
        board = self._board
        if not board.started and board.ending is None:
            return
        is_due = board.now >= board.due_at
        if board.ending is None and (moved or board.slow is not None or is_due):
            if is_due:
                settling.ready_again(board)
                board.activate_all()
            stop_tripped(board)
            settling.tell(board)
            if board.evidence.changed or board.now >= board.review_at:
                review(board)
            if board.starving or board.yielding:
                make_yield(board)
            feed(board)
            adjust(board)
            if board.ended_ranks:  # what was given up may release others
                settling.tell(board)
                feed(board)
                adjust(board)
        finish(board)
