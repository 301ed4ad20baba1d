"""Hand ready ranks to free slots: idle ones first, in the order of priority, then in advance."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, islice
from typing import Generic, TypeVar

import attrs

from thornback.scheduler.board import Board
from thornback.scheduler.gangs import Gang, Lane, Shape
from thornback.scheduler.ranges import NO_LIMIT
from thornback.scheduler.settling import pressure
from thornback.scheduler.stages import one

F = TypeVar("F")
LOOKED_AT = 16
"""Retried ranks that are looked at for one that may run on a node: more would make an event cost
O(ranks)."""


@attrs.define(slots=True, eq=False)
class _Round(Generic[F]):
    """The books, and which lanes of a shape had gangs when the feeding began, lowest priority
    first. In between lanes lose them only, or get them to be filled at once; so with many lanes
    that wait, not each has to look at all others."""

    board: Board[F]
    has_others: bool = False
    idle: dict[Shape[F], list[Lane[F]]] = attrs.field(factory=dict)
    usable: dict[Shape[F], list[Lane[F]]] = attrs.field(factory=dict)


def _new_round(board: Board[F]) -> _Round[F]:
    new: _Round[F] = _Round(board)
    if len(board.active) > 1:
        new.has_others = True
        for lane in reversed(board.active):
            if lane.usable:
                new.usable.setdefault(lane.shape, []).append(lane)
                if lane.idle:
                    new.idle.setdefault(lane.shape, []).append(lane)
    return new


def feed(board: Board[F]) -> None:
    """Dispatch what can be dispatched."""
    board.slow = pressure(board) if board.unrecorded else None
    if board.slow is not None:
        return
    _feed_idle(_new_round(board))
    if board.yielding and _keep_on_unneeded(board):
        _feed_idle(_new_round(board))
    for lane in board.active:
        if lane.draining and lane.waiting:
            _feed_draining(board, lane)
        if lane.queueable and lane.ready.count and not lane.alone:
            _queue_ahead(board, lane)


def _feed_idle(this: _Round[F]) -> None:
    """Fill the idle slots of all lanes, and of gangs that they can get from others."""
    board = this.board
    for lane in board.active:
        while lane.ready.count or lane.alone:
            gang = _free_gang(this, lane) if lane.free else None
            if gang is None and this.has_others:
                gang = _borrowed(this, lane)
            if gang is None:
                if this.has_others:
                    _have_others_make_way(this, lane)
                break
            rank = _retried_for(this, lane, gang) if lane.alone else None
            if rank is not None:
                lane.alone.remove(rank)
                board.dispatch(lane, gang, one(rank), NO_LIMIT)
            else:
                board.dispatch(lane, gang, *lane.ready.take(_size(lane)))


def _keep_on_unneeded(board: Board[F]) -> bool:
    """Let gangs go on that make way for a lane in which nothing waits any more; return whether
    there was one. The next event may be as far away as the end of the longest rank."""
    lanes = [lane for lane in board.active if lane.yielding]
    gangs = [gang for lane in lanes for gang in lane.yielding.values()]
    unneeded = [gang for gang in gangs if gang.yields_to and not gang.yields_to.waiting]
    for gang in unneeded:
        board.keep_on(gang)
    return bool(unneeded)


def _free_gang(this: _Round[F], lane: Lane[F]) -> Gang[F] | None:
    """Return a gang of the lane with an idle slot that something ready may use."""
    return next((gang for gang in lane.free.values() if _may_use(this, lane, gang)), None)


def _may_use(this: _Round[F], lane: Lane[F], gang: Gang[F]) -> bool:
    """Whether something that is ready may run in this gang."""
    return lane.ready.count > 0 or _retried_for(this, lane, gang) is not None


def _borrowed(this: _Round[F], lane: Lane[F]) -> Gang[F] | None:
    """Take over an idle gang of equal shape that something ready may use."""
    for gang in _spare(this, lane):
        if _may_use(this, lane, gang):
            this.board.hand_over(gang, lane)
            return gang
    return None


def _spare(this: _Round[F], lane: Lane[F]) -> Iterator[Gang[F]]:
    """Yield the idle gangs that the lane may take over: of lanes of its shape whose own work is
    done, or has less priority."""
    others = this.idle.get(lane.shape)
    if others is None or not lane.may_gain:
        return
    for other in others:
        if other is lane or (other.waiting and not lane.outranks(other)):
            continue
        for gang in other.idle.values():
            if not (other.waiting and gang.kept):
                yield gang


def _have_others_make_way(this: _Round[F], lane: Lane[F]) -> None:
    """Have gangs of less priority end what they run, to be taken over then: as many as the lane can
    fill. Without this a gang of many slots, or of short ranks in advance, would never be idle.

    Not while new ones of its shape may be there in a moment, not before a gang has done anything
    for its lane, and not while the lane has a slot that nothing of it may use: so nothing is only
    handed to and fro.
    """
    others = this.usable.get(lane.shape)
    if others is None or lane.free or not lane.outranks(others[0]):
        return
    wanted = min(lane.waiting // lane.slots, len(lane.opening) + lane.stage.room) - lane.coming
    if wanted < 1 or not (lane.failed_openings or _is_stuck(this.board, lane.shape)):
        return
    for other in others:
        if not lane.outranks(other):
            return
        able = (
            gang
            for gang in other.usable.values()
            if gang.finished and not gang.kept and _may_use(this, lane, gang)
        )
        for gang in list(islice(able, wanted)):
            this.board.make_way(gang, lane)
            wanted -= 1


def _is_stuck(board: Board[F], shape: Shape[F]) -> bool:
    """Whether a gang of the shape is long in coming."""
    long_ago = board.now - board.params.linger_s
    return any(gang.asked_at <= long_ago for gang in shape.opening.values())


def _size(lane: Lane[F]) -> int:
    if lane.stage.plan.nodes > 1:
        return 1
    return lane.stage.pace.size(lane.ready.count, len(lane.usable) * lane.slots)


def _retried_for(this: _Round[F], lane: Lane[F], gang: Gang[F]) -> int | None:
    """Return a rank that has failed before and may run in this gang."""
    board = this.board
    for position, rank in enumerate(lane.alone):
        if position == LOOKED_AT:
            return None
        record = lane.stage.failures[rank]
        if not any(node in record.avoid for node in gang.nodes):
            return rank
        if board.now - record.ready_at >= board.params.avoid_wait_s:
            return rank
        if not _elsewhere(this, lane, record.avoid):
            return rank
    return None


def _elsewhere(this: _Round[F], lane: Lane[F], avoid: list[str]) -> bool:
    """Whether a gang off these nodes is ready, or may be taken over: else waiting for one would be
    for nothing."""
    able = chain(lane.usable.values(), _spare(this, lane))
    return any(not any(node in avoid for node in gang.nodes) for gang in able)


def _queue_ahead(board: Board[F], lane: Lane[F]) -> None:
    """Give busy slots an assignment in advance, so that short ranks do not wait for messages.

    Not while ranks wait that must travel alone: the slots would never be idle for them.
    """
    mean_s = lane.stage.pace.mean_s
    if mean_s is None or mean_s >= board.params.reclaim_s or lane.stage.plan.nodes > 1:
        return
    while lane.queueable and lane.ready.count and lane.ready.first_limit == NO_LIMIT:
        gang = next(iter(lane.queueable.values()))
        board.dispatch(lane, gang, *lane.ready.take(_size(lane)))


def _feed_draining(board: Board[F], lane: Lane[F]) -> None:
    """Give a gang on a draining node what it can finish in time; nothing if that is not known."""
    mean_s = lane.stage.pace.mean_s
    if mean_s is None or lane.stage.plan.nodes > 1:
        return
    for gang in list(lane.draining.values()):
        while len(gang.live) < lane.slots and gang.yields_to is None and lane.ready.count:
            left_s = ((gang.drain_by or 0.0) - board.now) * board.params.drain_share
            if left_s < mean_s or left_s <= 0:
                break
            fits = NO_LIMIT if left_s > mean_s * NO_LIMIT else int(left_s / mean_s)
            board.dispatch(lane, gang, *lane.ready.take(min(fits, _size(lane))))
