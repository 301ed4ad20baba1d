"""When a run is over, and how it has ended."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

from thornback.scheduler.board import Board, Ending
from thornback.scheduler.commands import FinishRun, RunState
from thornback.scheduler.stages import Stage
from thornback.scheduler.states import RankState

F = TypeVar("F")


def finish(board: Board[F]) -> None:
    """End the run if nothing is left to do, or nothing can be done. Comes last after an event."""
    if board.ending is None and not board.assignments and _is_stuck(board):
        board.ending = Ending(RunState.FAILED, "ranks are blocked that nothing will ever release")
    if board.ending is not None:
        for gang in [gang for gang in board.gangs.values() if not gang.live]:
            board.close(gang)
    if not board.gangs:
        _finish_if_done(board)


def _is_stuck(board: Board[F]) -> bool:
    """Whether only blocked ranks are left: a fault of the dependencies, and no reason to hang."""
    if (
        board.recording
        or board.resting
        or any(lane.waiting or lane.backoff for lane in board.active)
    ):
        return False
    left = board.unsettled()
    blocked = [stage.unfinished == stage.in_state[RankState.BLOCKED] for stage in left]
    return bool(left) and all(blocked)


def _finish_if_done(board: Board[F]) -> None:
    ending, is_settled = board.ending, not board.unsettled()
    if ending is None and not is_settled:
        return
    if (ending is None or not ending.unrecorded) and any(map(_is_recording, board.stages)):
        return
    board.finished = True
    if ending is not None and (ending.unrecorded or not is_settled):
        board.out.append(FinishRun(state=ending.state, reason=ending.reason))
    else:
        board.out.append(_verdict_on(board.stages))


def _is_recording(stage: Stage[F]) -> bool:
    """Whether the journal still owes an answer about ranks of the stage."""
    return bool(stage.in_state[RankState.RECORDING] or stage.owed)


def _verdict_on(stages: Sequence[Stage[F]]) -> FinishRun:
    """Return how a run ended whose ranks are all settled."""
    complaints: list[str] = []
    for stage in stages:
        counts, most = stage.counts(), stage.plan.max_failed
        if counts.failed + counts.skipped > most:
            allowed = f", {most} allowed" if most else ""
            for count, what in ((counts.failed, "failed"), (counts.skipped, "skipped")):
                if count:
                    complaints.append(f"stage {stage.number}: {count} ranks {what}{allowed}")
        if stage.stopped is not None:
            complaints.append(f"stage {stage.number} was stopped: {stage.stopped.text}")
    if complaints:
        return FinishRun(state=RunState.FAILED, reason="; ".join(complaints))
    return FinishRun(state=RunState.SUCCEEDED)
