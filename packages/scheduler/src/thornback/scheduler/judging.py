"""What a fault costs and what is tried next. The policy decides about the fault; here is what
follows.

Who pays when a worker is lost: only a rank that was alone in an assignment that can have been
running. All others go back free of charge, with half the batch limit where a rank's code may be to
blame, so that the culprit is alone after log2(k) losses. What was merely queued in a slot goes back
likewise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias, TypeVar

from thornback.scheduler.board import Board
from thornback.scheduler.events import GangLost, RankFailed
from thornback.scheduler.gangs import Assignment, Gang, Lane
from thornback.scheduler.ports import Verdict
from thornback.scheduler.settling import (
    give_up,
    give_up_lane_ready,
    postpone,
    stop,
    take_back,
)
from thornback.scheduler.stages import FailedRank, Stage, one
from thornback.scheduler.states import GangMove, GangState, RankState, UsageError

F = TypeVar("F")
GiveBack: TypeAlias = Callable[[Assignment[F], bool], None]
FAULT_SHOWN = 200
"""Characters of a fault in an error: some bring the last lines of a log."""


def rank_failed(board: Board[F], assignment: Assignment[F], event: RankFailed[F]) -> None:
    """Judge the failure of one rank that was outstanding."""
    stage = assignment.stage
    if board.ending is not None and board.ending.kill:
        # Whatever it says, it says so because we have killed it.
        take_back(board, stage, one(event.rank))
        return
    verdict = _judge(
        board, stage, event.rank, event.fault, event.node, RankState.RUNNING, assignment.number
    )
    if verdict.blames_node and event.node:
        board.suspicion.blame(event.node, board.now)
    if verdict.retry and verdict.charged and verdict.infrastructure:
        stage.streak.failed(assignment.number, board.next_assignment, board.now)
        _stop_without_progress(board, stage, verdict)


def _decided(stage: Stage[F], fault: F, history: Sequence[tuple[F, str]], draw: float) -> Verdict:
    """Ask the policy. Raises `UsageError` for numbers that make no sense: a delay that is not
    finite would be a timer that never comes, and the run would wait for it for good."""
    verdict = stage.plan.policy.decide(fault, history, draw)
    delay_s, factor, memory = verdict.delay_s, verdict.timeout_factor, verdict.memory_bytes
    if not 0.0 <= delay_s < math.inf:
        wrong = f"delay_s={delay_s!r}; expected finite seconds, at least 0"
    elif not 0.0 < factor < math.inf:
        wrong = f"timeout_factor={factor!r}; expected a finite number above 0"
    elif memory is not None and memory < 1:
        wrong = f"memory_bytes={memory!r}; expected at least 1, or None"
    else:
        return verdict
    raise UsageError(
        f"The retry policy of stage {stage.number} says {wrong}. "
        "thornback.scheduler.testing.check_retry_policy checks a policy. "
        f"The fault: {str(fault)[:FAULT_SHOWN]}"
    )


def _judge(
    board: Board[F],
    stage: Stage[F],
    rank: int,
    fault: F,
    node: str,
    source: RankState,
    assignment: int | None,
) -> Verdict:
    """Ask the policy about one rank and do what it says."""
    record = stage.failures.get(rank) or FailedRank()
    draw = board.draw(stage.number, rank, record.attempt)
    verdict = _decided(stage, fault, tuple(record.history), draw)
    if not verdict.retry or (stage.stopped is not None and board.ending is None):
        reason = verdict.reason if not verdict.retry else f"{stage.stopped} ({verdict.reason})"
        stage.failures.pop(rank, None)
        give_up(board, stage, one(rank), source, reason, assignment)
        return verdict
    stage.failures[rank] = record
    record.history.append((fault, node))
    if verdict.charged:
        record.charged += 1
    if verdict.avoid_node and node and node not in record.avoid:
        record.avoid.append(node)
    if verdict.memory_bytes is not None:
        record.memory_bytes = verdict.memory_bytes
    record.timeout_factor = verdict.timeout_factor
    postpone(board, stage, rank, source, verdict.delay_s)
    return verdict


def gang_lost(board: Board[F], gang: Gang[F], event: GangLost[F], give_back: GiveBack[F]) -> None:
    """Close a gang that is lost, or could not be opened, and judge what it held."""
    was_ready = gang.state is GangState.READY
    held = list(gang.live.values())
    for assignment in held:
        board.forget(assignment)
    board.close(gang, GangMove.LOST, kill=True)
    if board.ending is not None:
        for assignment in held:
            take_back(board, assignment.stage, assignment.outstanding)
        return
    stage = gang.lane.stage
    draw = board.draw(stage.number, -1, gang.number)
    verdict = _decided(stage, event.fault, (), draw)
    if verdict.blames_node and event.node:
        board.suspicion.blame(event.node, board.now)
    if was_ready:
        _lost_at_work(board, gang, held, event, verdict, give_back)
    else:
        _lost_at_opening(board, gang, event, verdict)


def _lost_at_work(
    board: Board[F],
    gang: Gang[F],
    held: list[Assignment[F]],
    event: GangLost[F],
    verdict: Verdict,
    give_back: GiveBack[F],
) -> None:
    lane, stage = gang.lane, gang.lane.stage
    node = event.node or (gang.nodes[0] if len(gang.nodes) == 1 else "")
    # Halving is progress of its own: in a batch of 10,000 a culprit is alone after 14 losses.
    isolates = verdict.blames_rank and any(assignment.left > 1 for assignment in held)
    for position, assignment in reversed(list(enumerate(held))):  # the oldest back to the front
        if position < lane.slots and assignment.left == 1:
            rank = assignment.outstanding[0].start
            _judge(board, stage, rank, event.fault, node, RankState.RUNNING, assignment.number)
        else:
            give_back(assignment, verdict.blames_rank)
    if held and verdict.charged and not isolates:
        stage.streak.lost(gang.number, board.next_gang, board.now)
        if stage.streak.losses > 1:
            _ask_later(board, lane, verdict.delay_s, stage.streak.losses - 2)
        _stop_without_progress(board, stage, verdict)


def _lost_at_opening(board: Board[F], gang: Gang[F], event: GangLost[F], verdict: Verdict) -> None:
    lane = gang.lane
    memory = lane.shape.key.memory_bytes
    if not verdict.retry and gang.avoid:
        # It may not have fitted only because of what we wanted to avoid.
        lane.try_anywhere = True
        return
    if gang.number > lane.refused_up_to:  # eight that time out together have failed once
        lane.failed_openings += 1
        lane.refused_up_to = board.next_gang - 1
    _ask_later(board, lane, verdict.delay_s, lane.failed_openings - 1)
    if any(sister.usable for sister in lane.shape.lanes):
        return  # the stage runs with the gangs there are
    in_company = any(other.gangs for other in board.lanes if other.shape is not lane.shape)
    if not verdict.retry and in_company and lane.failed_openings < board.params.refusals_in_company:
        return
    if memory is not None and (not verdict.retry or verdict.memory_bytes is not None):
        _judge_waiting(board, lane, event)
    elif not verdict.retry:
        give_up_lane_ready(board, lane.stage, memory, verdict.reason)
    elif verdict.charged:
        lane.stage.streak.lost(gang.number, board.next_gang, board.now)
        _stop_without_progress(board, lane.stage, verdict)


def _judge_waiting(board: Board[F], lane: Lane[F], event: GangLost[F]) -> None:
    """This much memory is refused: each rank that waits for it tries the policy's next level, or
    ends."""
    waiting = list(lane.alone)
    lane.alone.clear()
    for rank in waiting:
        _judge(board, lane.stage, rank, event.fault, event.node or "", RankState.READY, None)


def _ask_later(board: Board[F], lane: Lane[F], delay_s: float, doublings: int) -> None:
    params = board.params
    delay_s = max(delay_s, params.open_backoff_s) * 2.0 ** min(doublings, 30)
    lane.retry_at = board.now + min(delay_s, params.max_open_backoff_s)
    board.wake(lane.retry_at)


def _stop_without_progress(board: Board[F], stage: Stage[F], verdict: Verdict) -> None:
    """Stop a stage in which everything fails. Not while a gang works that is older than the
    trouble."""
    streak, params = stage.streak, board.params
    if streak.losses >= params.no_progress_losses:
        what = f"{streak.losses} gangs in a row were lost"
    elif streak.faults >= params.no_progress_faults:
        what = f"{streak.faults} attempts in a row failed"
    else:
        return
    if board.ending is not None:
        return
    for lane in stage.lanes:
        for gang in lane.gangs.values():
            if gang.ready_at < streak.since and gang.live:
                return
    stop(board, stage, f"no progress: {what}, and no rank finished. The last: {verdict.reason}")
