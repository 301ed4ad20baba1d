"""Keeps new work off suspected nodes, and lets nodes on parole prove themselves."""

from __future__ import annotations

from typing import TypeVar

from thornback.scheduler.board import NEVER, Board
from thornback.scheduler.gangs import Gang, Lane, Shape

F = TypeVar("F")


def review(board: Board[F]) -> None:
    """Bring the gangs in line with what is known against their nodes.

    Comes after the evidence has changed, when a term of suspicion ends, and when a lane has waited
    too long for a node that is not suspected.
    """
    board.evidence.changed = False
    board.review_at = NEVER
    parole_at = board.evidence.next_parole(board.now)
    if parole_at is not None:
        _review_at(board, parole_at)
    for shape in board.shapes.values():
        _review_shape(board, shape)


def _review_shape(board: Board[F], shape: Shape[F]) -> None:
    suspects = board.evidence.suspects(shape.nodes, shape.most_suspects, board.now)
    for lane in shape.lanes:
        if not suspects:
            lane.closed_held = 0
        for gang in list(lane.gangs.values()):
            gang.forced = gang.forced and any(node in suspects for node in gang.nodes)
            held = not gang.forced and any(node in suspects for node in gang.nodes)
            # Where no node can be avoided, a slow start would only cost time.
            on_parole = shape.most_suspects > 0 and any(
                board.evidence.is_on_parole(node, board.now) for node in gang.nodes
            )
            _mark(board, gang, held=held, probing=gang.forced or on_parole)
        if lane.held and not lane.usable:
            _force_in_time(board, lane)


def _mark(board: Board[F], gang: Gang[F], *, held: bool, probing: bool) -> None:
    if gang.number in gang.lane.held and gang.lane.stage.room < 1:
        held = True  # another gang was asked for in its place
    if (held, probing) == (gang.held, gang.probing):
        return
    gang.held, gang.probing = held, probing
    gang.lane.place(gang)
    if held:
        for assignment in gang.live.values():
            board.recall(assignment)


def _force_in_time(board: Board[F], lane: Lane[F]) -> None:
    """Use suspected nodes when a lane has found no other for long."""
    if not lane.waiting:
        return
    since = board.now if lane.starved_at is None else lane.starved_at
    due_at = since + board.params.avoid_wait_s
    if board.now < due_at:
        _review_at(board, due_at)
        return
    for gang in list(lane.held.values()):
        if lane.stage.room < 1 and lane.opening:
            board.close(next(reversed(lane.opening.values())))  # the one that was to replace it
        gang.forced = True
        _mark(board, gang, held=False, probing=True)


def _review_at(board: Board[F], at: float) -> None:
    if at < board.review_at:
        board.review_at = at
        board.wake(at)
