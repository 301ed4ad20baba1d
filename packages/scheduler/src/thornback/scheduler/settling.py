"""How ranks end, and what follows for others: release, record, give up, skip, stop a stage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from thornback.faults import StopReason
from thornback.scheduler.board import Board
from thornback.scheduler.commands import Record, RecordState
from thornback.scheduler.events import Ranks, Recorded, RunStarted
from thornback.scheduler.gangs import Assignment, Lane
from thornback.scheduler.ports import Delta
from thornback.scheduler.ranges import NO_LIMIT, normalised, split
from thornback.scheduler.stages import Stage, Stopped, one
from thornback.scheduler.states import RANK_STEPS, RankMove, RankState, UsageError

F = TypeVar("F")
# Looked up once: these are in the path of every event.
RECORDING, HAS_RESULT = RankState.RECORDING, RecordState.DONE
SUCCEED = RANK_STEPS[RankState.RUNNING][RankMove.SUCCEEDED]
RECORD = RANK_STEPS[RECORDING][RankMove.RECORDED]


def start(board: Board[F], event: RunStarted) -> None:
    """Take over what an earlier run has recorded, and release what may run."""
    done = _known(board, event.done, "done")
    failed = _known(board, event.failed, "failed")
    board.started = True
    for stage, ranks in done:
        for piece in ranks:
            stage.move(piece, RankState.BLOCKED, RankMove.FOUND_DONE)
    for stage, ranks in failed:
        for piece in ranks:
            stage.move(piece, RankState.BLOCKED, RankMove.FOUND_FAILED)
        stage.note(ranks, "failed in an earlier run")
    skipped: dict[int, list[range]] = {}
    follow(board, board.dependencies.start())
    for stage, ranks in done:
        follow(board, board.dependencies.finished(stage.number, ranks, True))
    for stage, ranks in failed:
        # One that is skipped in this run has ended already as far as the dependencies know.
        _, ranks = split(ranks, normalised(skipped.get(stage.number, ())))
        if not ranks:
            continue
        delta = board.dependencies.finished(stage.number, ranks, False)
        for number, piece, _root in delta.skipped:
            skipped.setdefault(number, []).append(piece)
        follow(board, delta)


def _known(
    board: Board[F], by_stage: Mapping[int, Ranks], what: str
) -> list[tuple[Stage[F], Ranks]]:
    known = []
    for number, ranks in sorted(by_stage.items()):
        if not 0 <= number < len(board.stages):
            raise UsageError(f"RunStarted.{what}: there is no stage {number}.")
        stage = board.stages[number]
        known.append((stage, stage.own(ranks, f"RunStarted.{what}")))
    return known


def follow(board: Board[F], delta: Delta) -> None:
    """Carry out what the dependencies say. Ranks that an earlier run has settled stay as they
    are."""
    for number, ranks in delta.ready:
        stage = board.stages[number]
        for state, piece in list(stage.runs(ranks)):
            if state is RankState.BLOCKED:
                _release(board, stage, piece)
    for number, ranks, (root_stage, root_rank) in delta.skipped:
        stage = board.stages[number]
        for state, piece in list(stage.runs(ranks)):
            if state is RankState.BLOCKED:
                stage.move(piece, RankState.BLOCKED, RankMove.ROOT_FAILED)
                who = "the same rank" if root_rank < 0 else f"rank {root_rank}"
                stage.note((piece,), f"skipped: {who} of stage {root_stage} failed")
                _record(board, stage, (piece,), RecordState.SKIPPED, None)


def _release(board: Board[F], stage: Stage[F], piece: range) -> None:
    stage.move(piece, RankState.BLOCKED, RankMove.RELEASED)
    if stage.stopped is not None:
        leave_out(board, stage, (piece,), RankState.READY, stage.stopped)
    else:
        board.release(stage, piece)


def tell(board: Board[F]) -> None:
    """Tell the dependencies of every end, and of the ends that follow, without recursion."""
    while board.ended_ranks:
        _tell(board, *board.ended_ranks.popleft())


def _tell(board: Board[F], stage: Stage[F], ranks: Ranks, ok: bool) -> bool:
    """Tell the dependencies, and carry out what they say; return whether they said anything."""
    delta = board.dependencies.finished(stage.number, ranks, ok)
    if not (delta.ready or delta.skipped):
        return False
    follow(board, delta)
    return True


def _record(
    board: Board[F],
    stage: Stage[F],
    ranks: Ranks,
    state: RecordState,
    number: int | None,
    stop: StopReason | None = None,
) -> None:
    board.out.append(
        Record(stage=stage.number, ranks=ranks, assignment=number, state=state, stop=stop)
    )


def succeed(board: Board[F], assignment: Assignment[F], ranks: Ranks, count: int) -> None:
    """Take over results of so many ranks: from now on they wait for the journal only."""
    stage = assignment.stage
    for piece in ranks:
        stage.step(piece, SUCCEED)
    board.recording += count
    if assignment.retried:
        stage.failures.pop(ranks[0].start, None)
    if stage.streak.first_gang is not None:
        stage.streak.end()
        if stage.tripped is not None:
            stage.tripped = None
            board.tripped.remove(stage)
    board.unrecorded.append((board.now, stage, ranks))
    board.out.append(Record(stage.number, ranks, assignment.number, HAS_RESULT))


def recorded(board: Board[F], event: Recorded) -> bool:
    """Make durable what was RECORDING; for the other ends it is a receipt, and repeated a no-op.
    Return whether that has released or skipped others."""
    if not 0 <= event.stage < len(board.stages):
        raise UsageError(f"Recorded: there is no stage {event.stage}.")
    stage = board.stages[event.stage]
    ranks = stage.own(event.ranks, "Recorded")
    waited = stage.those_in(RECORDING, ranks)
    for piece in waited:
        stage.step(piece, RECORD)
        board.recording -= len(piece)
    if waited is not ranks:
        stage.receipt(ranks)
    unrecorded = board.unrecorded
    while unrecorded:
        _, owner, oldest = unrecorded[0]
        if owner.any_in(RECORDING, oldest):
            break
        unrecorded.popleft()
    return bool(waited) and _tell(board, stage, waited, True)


def pressure(board: Board[F]) -> str | None:
    """Return why nothing is dispatched until the journal has caught up; None: it keeps up."""
    waiting = board.recording
    if waiting:
        if waiting > board.params.max_unrecorded:
            return f"back-pressure: {waiting} ranks are not recorded yet"
        age_s = board.now - board.unrecorded[0][0]
        if age_s > board.params.max_unrecorded_s:
            return f"back-pressure: a result has waited {age_s:.0f} s for the journal"
    return None


def give_up(
    board: Board[F],
    stage: Stage[F],
    ranks: Ranks,
    source: RankState,
    reason: Stopped,
    number: int | None = None,
) -> None:
    """End ranks as FAILED, with a record."""
    for piece in ranks:
        stage.move(piece, source, RankMove.GIVEN_UP)
    stage.note(ranks, reason.text)
    _record(board, stage, ranks, RecordState.FAILED, number, reason.why)
    board.ended_ranks.append((stage, ranks, False))


def leave_out(
    board: Board[F], stage: Stage[F], ranks: Ranks, source: RankState, reason: Stopped
) -> None:
    """End ranks of a stopped stage: FAILED those that have failed before, SKIPPED the others."""
    failed = [one(rank)[0] for rank in stage.failures]
    left, others = split(ranks, normalised(failed)) if failed else ((), ranks)
    if left:
        give_up(board, stage, left, source, reason)
    if not others:
        return
    for piece in others:
        stage.move(piece, source, RankMove.LEFT_OUT)
    stage.note(others, f"skipped: the stage was stopped: {reason.text}")
    _record(board, stage, others, RecordState.SKIPPED, None, reason.why)
    board.ended_ranks.append((stage, others, False))


def take_back(board: Board[F], stage: Stage[F], ranks: Ranks, limit: int = NO_LIMIT) -> None:
    """Let ranks that were running be tried at once, free of charge."""
    if not ranks:
        return
    if stage.stopped is not None and board.ending is None:
        leave_out(board, stage, ranks, RankState.RUNNING, stage.stopped)
        return
    for piece in ranks:
        stage.move(piece, RankState.RUNNING, RankMove.GIVEN_BACK)
    board.queue(stage, ranks, limit)


def postpone(
    board: Board[F], stage: Stage[F], rank: int, source: RankState, delay_s: float
) -> None:
    """Let a rank that has failed be tried again after a delay, alone."""
    piece = one(rank)[0]
    if delay_s <= 0 or board.ending is not None:
        if source is RankState.RUNNING:
            stage.move(piece, source, RankMove.GIVEN_BACK)
        board.queue_alone(stage, rank)
        return
    stage.move(piece, source, RankMove.POSTPONED)
    board.lane_of(stage, rank).backoff += 1
    board.wake(board.now + delay_s, stage.number, rank)


def ready_again(board: Board[F]) -> None:
    """Queue the ranks whose delay is over."""
    for number, rank in board.due():
        stage = board.stages[number]
        if stage.states[rank] == RankState.BACKOFF:
            board.lane_of(stage, rank).backoff -= 1
            stage.move(one(rank)[0], RankState.BACKOFF, RankMove.DUE)
            board.queue_alone(stage, rank)


def take_ready(board: Board[F], lane: Lane[F]) -> Ranks:
    """Take all ranks that are ready in a lane out of its queues."""
    if lane.rests:
        board.activate(lane)  # it has none any more
    pieces = [range(start, stop) for start, stop, _ in lane.ready.pieces()]
    pieces += [one(rank)[0] for rank in lane.alone]
    lane.ready.clear()
    lane.alone.clear()
    return normalised(pieces)


def stop(board: Board[F], stage: Stage[F], reason: Stopped) -> None:
    """Stop a stage: what waits ends now; what runs may finish, and is not tried again."""
    if stage.stopped is not None:
        return
    stage.stopped = reason
    if stage.tripped is not None:
        stage.tripped = None
        board.tripped.remove(stage)
    for lane in stage.lanes:
        lane.backoff = 0
        ready = take_ready(board, lane)
        if ready:
            leave_out(board, stage, ready, RankState.READY, reason)
    if stage.in_state[RankState.BACKOFF]:
        everything = range(stage.plan.world_size)
        waiting = stage.those_in(RankState.BACKOFF, (everything,))
        give_up(board, stage, waiting, RankState.BACKOFF, reason)
    recall_unstarted(board, stage)


def recall_unstarted(board: Board[F], stage: Stage[F]) -> None:
    """Ask for the ranks of a stage that were dispatched and have not started."""
    for assignment in board.assignments.values():
        if assignment.stage is stage:
            board.recall(assignment)


def give_up_ready(board: Board[F], lane: Lane[F], reason: Stopped) -> None:
    """Give up what is ready in one lane."""
    ready = take_ready(board, lane)
    if ready:
        give_up(board, lane.stage, ready, RankState.READY, reason)
