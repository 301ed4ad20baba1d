"""Judges faults: what they cost, what is tried next, and when a stage stops.

The retry policy decides about each fault; this module carries the decision out.

Who pays when a worker is lost: only a rank that was alone in an assignment that can have been
running. All others go back free of charge, with half the batch limit where a rank's code may be to
blame, so that the culprit is alone after log2(k) losses. What was merely queued in a slot goes back
likewise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeAlias, TypeVar

from thornback.faults import Standing, StopReason
from thornback.scheduler.board import Board
from thornback.scheduler.events import GangLost, RankFailed
from thornback.scheduler.evidence import Case, PastFault
from thornback.scheduler.gangs import Assignment, Gang, Lane
from thornback.scheduler.opening import ask_after_parole
from thornback.scheduler.ports import Verdict
from thornback.scheduler.settling import (
    give_up,
    give_up_ready,
    postpone,
    recall_unstarted,
    stop,
    take_back,
)
from thornback.scheduler.stages import FailedRank, Stage, Stopped, one
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
    nodes = (event.node,) if event.node else assignment.gang.nodes
    verdict = _judge(board, stage, event.rank, event.fault, RankState.RUNNING, assignment, nodes)
    if verdict.signature:
        settled = board.evidence.ran_well(
            nodes,
            stage.number,
            event.rank,
            assignment.number,
            board.now,
            probing=assignment.gang.probing,
            ran_s=event.ran_s,
        )
        convict(board, settled)
    gang = assignment.gang
    if verdict.machine_fault and gang.forced:
        # A node that was known to be bad says nothing about the others.
        gang.forced = False
        board.evidence.changed = True
    elif verdict.machine_fault:
        _count_fault(board, gang, nodes, verdict)
        if verdict.stop is StopReason.FINAL and not _has_success(stage):
            text = f"no rank of it can run: {_line(event.fault)}"
            _trip(board, stage, Stopped(StopReason.FINAL, text))
        else:
            _stop_without_progress(board, stage, event.fault)
    elif not verdict.retry and verdict.signature:
        _stop_if_all_alike(board, stage, verdict)


def convict(board: Board[F], cases: Sequence[Case[F]]) -> None:
    """Ask the policy again about faults that are settled against their ranks: one that waits may be
    given up now, and one that runs is judged with this in its history."""
    for case in cases:
        stage, rank = board.stages[case.stage], case.rank
        record = stage.failures.get(rank)
        if record is None or not any(past is case.past for past in record.history):
            continue  # it has finished since, or was given up
        source = next(state for state, _ in stage.runs(one(rank)[0]))
        if source not in (RankState.READY, RankState.BACKOFF):
            continue
        draw = board.draw(stage.number, rank, record.attempt)
        past = case.past
        verdict = _decided(stage, past.fault, record.past(without=past), past.standing, draw)
        if verdict.retry:
            continue
        lane = board.lane_of(stage, rank)
        if source is RankState.READY:
            lane.alone.remove(rank)
        else:
            lane.backoff -= 1
        del stage.failures[rank]
        give_up(board, stage, one(rank), source, _final(verdict))


def _final(verdict: Verdict) -> Stopped:
    return Stopped(verdict.stop or StopReason.NO_RETRIES, verdict.reason)


def _decided(
    stage: Stage[F],
    fault: F,
    history: Sequence[tuple[F, str, Standing]],
    standing: Standing,
    draw: float,
) -> Verdict:
    """Ask the policy. Raises `UsageError` for numbers that make no sense: a delay that is not
    finite would be a timer that never comes, and the run would wait for it for good."""
    verdict = stage.plan.policy.decide(fault, history, standing, draw)
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
    source: RankState,
    assignment: Assignment[F] | None,
    nodes: Sequence[str],
) -> Verdict:
    """Ask the policy about one rank and do what it says.

    Args:
        board: the state of the scheduler.
        stage: of the rank.
        rank: that failed.
        fault: what happened.
        source: the state of the rank.
        assignment: that it failed in; None: it waited for a gang.
        nodes: where: one, or all of its gang if the root cause is not known.
    """
    record = stage.failures.get(rank) or FailedRank()
    draw = board.draw(stage.number, rank, record.attempt)
    node = nodes[0] if len(nodes) == 1 else ""
    is_known_killer = record.is_known_killer
    standing = board.evidence.standing(stage.number, rank, nodes, is_known_killer=is_known_killer)
    if standing is Standing.OPEN and not (nodes and _others_wait(board)):
        standing = Standing.UNDECIDED
    verdict = _decided(stage, fault, record.past(), standing, draw)
    past = PastFault(fault, node, standing)
    if verdict.blames_node and verdict.machine_fault and assignment is not None:
        case = Case(
            stage=stage.number,
            rank=rank,
            past=past,
            nodes=list(nodes),
            last_assignment=board.next_assignment - 1,
            ran_s=board.now - assignment.at,
            is_known_killer=is_known_killer,
        )
        board.evidence.add(case, board.now)
    number = None if assignment is None else assignment.number
    if not verdict.retry or (stage.stopped is not None and board.ending is None):
        reason = _final(verdict)
        if verdict.retry and stage.stopped is not None:
            reason = Stopped(stage.stopped.why, f"{stage.stopped.text} ({verdict.reason})")
        stage.failures.pop(rank, None)
        give_up(board, stage, one(rank), source, reason, number)
        return verdict
    stage.failures[rank] = record
    record.history.append(past)
    record.tries += verdict.charged or verdict.machine_fault
    record.avoid += [name for name in nodes if name not in record.avoid]
    if verdict.memory_bytes is not None:
        record.memory_bytes = verdict.memory_bytes
    record.timeout_factor = verdict.timeout_factor
    record.wants_elsewhere = verdict.blames_node
    postpone(board, stage, rank, source, verdict.delay_s)
    return verdict


def _others_wait(board: Board[F]) -> bool:
    """Whether other ranks will start somewhere: only these can give evidence about a node."""
    return bool(board.resting) or any(lane.waiting or lane.backoff for lane in board.active)


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
    verdict = _decided(stage, event.fault, (), Standing.UNDECIDED, draw)
    alone = sum(assignment.left == 1 for assignment in held[: gang.lane.slots])
    # The loss of a worker that ran one rank is evidence like the death of a rank process. A node
    # that is gone, or a worker that ran several, is no case against a rank.
    if verdict.blames_node and not (verdict.machine_fault and alone == 1):
        for node in (event.node,) if event.node else gang.nodes:
            gang.lane.shape.nodes[node] = None  # no gang of it may ever have been ready there
            board.evidence.suspect(node, board.now, board.next_assignment - 1)
    if verdict.machine_fault:
        _count_fault(board, gang, (event.node,) if event.node else gang.nodes, verdict)
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
    nodes = (event.node,) if event.node else gang.nodes
    # Halving is progress of its own: in a batch of 10,000 a culprit is alone after 14 losses.
    isolates = verdict.blames_rank and any(assignment.left > 1 for assignment in held)
    for position, assignment in reversed(list(enumerate(held))):  # the oldest back to the front
        if position < lane.slots and assignment.left == 1:
            rank = assignment.outstanding[0].start
            _judge(board, stage, rank, event.fault, RankState.RUNNING, assignment, nodes)
        else:
            give_back(assignment, verdict.blames_rank)
    if held and verdict.charged and not isolates:
        stage.streak.lost(gang.number, board.next_gang)
        if stage.streak.losses > 1:
            most_s = board.params.max_open_backoff_s
            _ask_later(board, lane, verdict.delay_s, stage.streak.losses - 2, most_s)
    _stop_without_progress(board, stage, event.fault)


def _lost_at_opening(board: Board[F], gang: Gang[F], event: GangLost[F], verdict: Verdict) -> None:
    lane = gang.lane
    memory = lane.shape.key.memory_bytes
    if not verdict.retry and gang.avoid:
        # It may not have fitted only because of what we wanted to avoid.
        lane.try_anywhere = True
        return
    if verdict.retry and not verdict.charged and not verdict.machine_fault:
        # The resources are busy, or their node was preempted: asked again, outside all streaks.
        lane.retry_at = board.now + max(verdict.delay_s, board.params.open_backoff_s)
        board.wake(lane.retry_at)
        return
    if gang.number > lane.refused_up_to:  # eight that time out together have failed once
        lane.failed_openings += 1
        lane.refused_up_to = board.next_gang - 1
    nodes = (event.node,) if event.node else gang.nodes
    most_s = board.params.max_open_backoff_s
    if any(node in gang.avoid for node in nodes):
        most_s = board.params.no_room_s  # only nodes that are to be avoided have room
    _ask_later(board, lane, verdict.delay_s, lane.failed_openings - 1, most_s)
    if any(sister.usable for sister in lane.shape.lanes):
        ask_after_parole(board, lane, gang, nodes)
        return  # the stage runs with the gangs there are
    in_company = any(other.gangs for other in board.lanes if other.shape is not lane.shape)
    if not verdict.retry and in_company and lane.failed_openings < board.params.refusals_in_company:
        return
    if memory is not None and (not verdict.retry or verdict.memory_bytes is not None):
        _judge_waiting(board, lane, event)
    elif not verdict.retry:
        give_up_ready(board, lane, _final(verdict))
    else:
        lane.stage.streak.lost(gang.number, board.next_gang)
        _stop_without_progress(board, lane.stage, event.fault)


def _judge_waiting(board: Board[F], lane: Lane[F], event: GangLost[F]) -> None:
    """This much memory is refused: each rank that waits for it tries the policy's next level, or
    ends."""
    waiting = list(lane.alone)
    lane.alone.clear()
    for rank in waiting:
        nodes = (event.node,) if event.node else ()
        _judge(board, lane.stage, rank, event.fault, RankState.READY, None, nodes)


def _ask_later(
    board: Board[F], lane: Lane[F], delay_s: float, doublings: int, most_s: float
) -> None:
    delay_s = max(delay_s, board.params.open_backoff_s) * 2.0 ** min(doublings, 30)
    lane.retry_at = board.now + min(delay_s, most_s)
    board.wake(lane.retry_at)


def _count_fault(board: Board[F], gang: Gang[F], nodes: Sequence[str], verdict: Verdict) -> None:
    """Count a machine fault for the rule that stops a stage in which everything fails."""
    node = nodes[0] if len(nodes) == 1 and verdict.blames_node else ""
    gang.lane.stage.streak.failed(board.next_gang, node)


def _share(board: Board[F], stage: Stage[F]) -> int:
    """Return how many faults of one node count: a few bad nodes must not stop a stage while it has
    a gang that is known to be good. Gangs of other stages prove nothing: only its own ranks may
    be bad."""
    most, fitting = board.params.no_progress_faults, stage.lanes[0].shape.fitting
    gangs = (gang for lane in stage.lanes for gang in lane.gangs.values() if gang.finished)
    if fitting and any(not stage.streak.has_failed_on(gang.nodes) for gang in gangs):
        return max(2, math.ceil(most / fitting))
    return most


def _stop_without_progress(board: Board[F], stage: Stage[F], last: F) -> None:
    """Stop a stage in which everything fails. `last`: the newest fault."""
    streak, params = stage.streak, board.params
    if streak.losses >= params.no_progress_losses:
        what = f"{streak.losses} gangs in a row were lost"
    elif (
        streak.faults >= params.no_progress_faults
        and streak.weight(_share(board, stage)) >= params.no_progress_faults
    ):
        what = f"{streak.faults} machine faults"
    else:
        return
    text = f"no progress: {what}, and no rank finished since. The last: {_line(last)}"
    _trip(board, stage, Stopped(StopReason.NO_PROGRESS, text))


def _stop_if_all_alike(board: Board[F], stage: Stage[F], verdict: Verdict) -> None:
    """Stop a stage whose first ranks all fail with the same error of the user's code."""
    limit = stage.plan.fail_fast
    if limit is None or _has_success(stage):
        return
    stage.streak.begin(board.next_gang)
    count = stage.alike[verdict.signature] = stage.alike.get(verdict.signature, 0) + 1
    if count >= limit:
        text = f"every rank fails alike: {count} ranks, and none finished. {verdict.reason}"
        _trip(board, stage, Stopped(StopReason.ALL_ALIKE, text))


def _has_success(stage: Stage[F]) -> bool:
    return bool(stage.in_state[RankState.DONE] or stage.in_state[RankState.RECORDING])


def _line(fault: object) -> str:
    return str(fault).strip().partition("\n")[0][:FAULT_SHOWN]


def _trip(board: Board[F], stage: Stage[F], why: Stopped) -> None:
    """Dispatch nothing more of a stage until what runs has ended: one bad node may have failed all
    of these, while the ranks on the others take longer."""
    if board.ending is not None or stage.stopped is not None:
        return
    if stage.tripped is None:
        stage.tripped_idle_at = None
        board.tripped.append(stage)
        recall_unstarted(board, stage)
    stage.tripped = why


def stop_tripped(board: Board[F]) -> None:
    """Stop the tripped stages of which nothing is left that may succeed."""
    for stage in list(board.tripped):
        if stage.assigned:
            continue
        if stage.tripped_idle_at is None:
            stage.tripped_idle_at = board.now
        due_at = stage.tripped_idle_at + board.params.place_wait_s
        if any(_may_prove(board, gang, due_at) for gang in _old_gangs(stage)):
            if board.now < due_at:
                board.wake(due_at)
            continue
        assert stage.tripped is not None
        stop(board, stage, stage.tripped)


def _old_gangs(stage: Stage[F]) -> list[Gang[F]]:
    """Return the gangs of a stage that were asked for before its trouble began."""
    gangs = (g for lane in stage.lanes for g in (*lane.opening.values(), *lane.gangs.values()))
    return [gang for gang in gangs if stage.streak.is_older(gang.number)]


def _may_prove(board: Board[F], gang: Gang[F], due_at: float) -> bool:
    """Whether a gang has not shown yet that its node is bad, too. One that is not placed may wait
    for resources that the stage itself holds."""
    if gang.state is not GangState.OPENING:
        return gang.usable and not gang.assigned
    if not gang.nodes:
        return board.now < due_at
    shape = gang.lane.shape
    suspects = board.evidence.suspects(shape.nodes, shape.most_suspects, board.now)
    return not any(node in suspects for node in gang.nodes)
