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
        board.review_by(parole_at)
    probes: dict[str, Gang[F]] = {}
    for shape in board.shapes.values():
        _review_shape(board, shape, probes)
    for lane in board.lanes:
        if lane.held and lane.waiting and not lane.usable:
            _use_in_time(board, lane, probes)


def _review_shape(board: Board[F], shape: Shape[F], probes: dict[str, Gang[F]]) -> None:
    """Review the gangs of one shape. `probes`: the one gang that may use each doubtful node."""
    suspects = board.evidence.suspects(shape.nodes, shape.most_suspects, board.now)
    for lane in shape.lanes:
        for gang in list(lane.gangs.values()):
            is_suspect = any(node in suspects for node in gang.nodes)
            gang.forced = gang.forced and is_suspect
            # Where no node can be avoided, a slow start would only cost time.
            on_parole = shape.most_suspects > 0 and any(
                board.evidence.is_on_parole(node, board.now) for node in gang.nodes
            )
            probing = gang.forced or (on_parole and not is_suspect)
            held = is_suspect and not gang.forced
            if probing:
                first = [probes.setdefault(node, gang) for node in gang.nodes]
                held = any(other is not gang for other in first)
            _mark(board, gang, held=held, probing=probing)
        if any(not gang.probing for gang in lane.usable.values()):
            lane.forced = 0


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


def _use_in_time(board: Board[F], lane: Lane[F], probes: dict[str, Gang[F]]) -> None:
    """Use a suspected node when a lane has found no other for long; after each fault there it waits
    longer."""
    since = board.now if lane.starved_at is None else lane.starved_at
    pause_s = board.params.avoid_wait_s * 2.0 ** min(lane.forced, 30)
    due_at = max(since, lane.forced_at) + min(pause_s, board.params.no_room_s)
    if board.now < due_at:
        board.review_by(due_at)
        return
    free = [gang for gang in lane.held.values() if not any(node in probes for node in gang.nodes)]
    if not free:  # gangs of others try them
        board.review_by(board.now + board.params.avoid_wait_s)
        return
    lane.forced += 1
    lane.forced_at = board.now
    if lane.stage.room < 1 and lane.opening:
        board.close(next(reversed(lane.opening.values())))  # the one that was to replace it
    gang = free[0]
    gang.forced = True
    probes.update(dict.fromkeys(gang.nodes, gang))
    _mark(board, gang, held=False, probing=True)
