"""Hand ready ranks to free slots: idle ones first, in the order of priority, then in advance."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from itertools import chain, islice
from types import MappingProxyType
from typing import Any, Generic, TypeVar

import attrs

from thornback.scheduler.board import Board
from thornback.scheduler.gangs import Gang, Lane, Shape
from thornback.scheduler.opening import is_wanted, may_open_elsewhere
from thornback.scheduler.ranges import NO_LIMIT
from thornback.scheduler.settling import pressure
from thornback.scheduler.stages import one

F = TypeVar("F")
LOOKED_AT = 16
"""Retried ranks that are looked at for one that may run on a node: more would make an event cost
O(ranks)."""


@attrs.frozen(slots=True, eq=False)
class _Others(Generic[F]):
    """Which lanes of a shape had gangs when the feeding began, lowest priority first. In between
    lanes lose them only, or get them to be filled at once; so with many lanes that wait, not each
    has to look at all others."""

    idle: Mapping[Shape[F], list[Lane[F]]]
    usable: Mapping[Shape[F], list[Lane[F]]]


NOBODY: _Others[Any] = _Others(MappingProxyType({}), MappingProxyType({}))


def _others(board: Board[F]) -> _Others[F]:
    idle: dict[Shape[F], list[Lane[F]]] = {}
    usable: dict[Shape[F], list[Lane[F]]] = {}
    for lane in reversed(board.active):
        if lane.usable:
            usable.setdefault(lane.shape, []).append(lane)
            if lane.idle:
                idle.setdefault(lane.shape, []).append(lane)
    return _Others(idle, usable)


def feed(board: Board[F]) -> None:
    """Dispatch what can be dispatched."""
    board.slow = pressure(board) if board.unrecorded else None
    if board.slow is not None:
        board.activate_all()  # their clocks stop
        return
    _feed_idle(board)
    if board.yielding and _keep_on_unneeded(board):
        _feed_idle(board)
    for lane in board.active:
        if lane.stage.tripped is not None:
            continue
        if lane.draining and lane.waiting:
            _feed_draining(board, lane)
        if lane.queueable and lane.ready.count and not lane.alone:
            _queue_ahead(board, lane)
    if board.yielding and _keep_on_unneeded(board):  # the last were fed in advance
        _feed_idle(board)


def _feed_idle(board: Board[F]) -> None:
    """Fill the idle slots of all lanes, and of gangs that they can get from others."""
    others = _others(board) if len(board.active) > 1 or board.resting else NOBODY
    for lane in board.lanes_for(partial(_may_get_one, others)) if board.resting else board.active:
        if lane.stage.tripped is not None:
            _let_old_gangs_prove(board, lane)
            continue
        while lane.ready.count or lane.alone:
            gang = _free_gang(board, others, lane) if lane.free else None
            if gang is None and others.usable:
                gang = _borrowed(board, others, lane)
            if gang is None:
                if others.usable:
                    _have_others_make_way(board, others, lane)
                break
            # In trouble fresh ranks go first: they give evidence; culprits would fill all slots.
            fresh = lane.ready.count and lane.stage.streak.first_gang is not None
            rank = _retried_for(board, others, lane, gang) if lane.alone and not fresh else None
            if rank is not None:
                lane.alone.remove(rank)
                board.dispatch(lane, gang, one(rank), NO_LIMIT)
            else:
                board.dispatch(lane, gang, *lane.ready.take(_size(lane, gang)))


def _may_get_one(others: _Others[F], lane: Lane[F]) -> bool:
    """Whether a lane without a gang can get one of its shape: an idle one, or one of a lane that it
    outranks. If not, neither can those after it."""
    usable = others.usable.get(lane.shape)
    if usable is None:
        return False
    idle = others.idle.get(lane.shape, ())
    return any(other.idle for other in idle) or lane.outranks(usable[0])


def _let_old_gangs_prove(board: Board[F], lane: Lane[F]) -> None:
    """Give one rank to each gang that was asked for before the trouble of its stage began: its node
    may be a good one. Nobody else gets any."""
    for gang in list(lane.idle.values()):
        if not gang.assigned and lane.stage.streak.is_older(gang.number):
            if lane.ready.count:
                board.dispatch(lane, gang, *lane.ready.take(1))
            elif lane.alone:
                board.dispatch(lane, gang, one(lane.alone.popleft()), NO_LIMIT)


def _keep_on_unneeded(board: Board[F]) -> bool:
    """Let gangs go on that make way for a lane which does not wait for them any more: nothing is
    ready there, or it was given an idle one. Return whether there was one. The next event may be as
    far away as the end of the longest rank."""
    lanes = [lane for lane in board.active if lane.yielding]
    gangs = [gang for lane in lanes for gang in lane.yielding.values()]
    unneeded = [gang for gang in gangs if gang.yields_to and not is_wanted(gang, gang.yields_to)]
    for gang in unneeded:
        board.keep_on(gang)
    return bool(unneeded)


def _free_gang(board: Board[F], others: _Others[F], lane: Lane[F]) -> Gang[F] | None:
    """Return a gang of the lane with an idle slot that something ready may use."""
    for gang in lane.free.values():
        if gang.live and gang.is_unproven:
            continue
        if lane.ready.count or _retried_for(board, others, lane, gang) is not None:
            return gang
    return None


def _borrowed(board: Board[F], others: _Others[F], lane: Lane[F]) -> Gang[F] | None:
    """Take over an idle gang of equal shape that something ready may use."""
    for gang in _spare(others, lane):
        if lane.ready.count or _retried_for(board, others, lane, gang) is not None:
            board.hand_over(gang, lane)
            return gang
    return None


def _spare(others: _Others[F], lane: Lane[F]) -> Iterator[Gang[F]]:
    """Yield the idle gangs that the lane may take over: of lanes of its shape whose own work is
    done, or has less priority."""
    lanes = others.idle.get(lane.shape)
    if lanes is None or not lane.may_gain:
        return
    for other in lanes:
        if other is lane or (other.waiting and not lane.outranks(other)):
            continue
        for gang in other.idle.values():
            if not (other.waiting and gang.kept):
                yield gang


def _have_others_make_way(board: Board[F], others: _Others[F], lane: Lane[F]) -> None:
    """Have gangs of less priority end what they run, to be taken over then: as many as the lane can
    fill. Without this a gang of many slots, or of short ranks in advance, would never be idle.

    Not while new ones of its shape may be there in a moment, not before a gang has done anything
    for its lane, and not while the lane has a slot that nothing of it may use: so nothing is only
    handed to and fro.
    """
    lanes = others.usable.get(lane.shape)
    if lanes is None or lane.free or not lane.outranks(lanes[0]):
        return
    wanted = min(lane.waiting // lane.slots, len(lane.opening) + lane.stage.room) - lane.coming
    if wanted < 1 or not (lane.failed_openings or _is_stuck(board, lane.shape)):
        return
    for other in lanes:
        if not lane.outranks(other):
            return
        able = (
            gang
            for gang in other.usable.values()
            if gang.finished
            and not gang.kept
            and (lane.ready.count or _retried_for(board, others, lane, gang) is not None)
        )
        for gang in list(islice(able, wanted)):
            board.make_way(gang, lane)
            wanted -= 1


def _is_stuck(board: Board[F], shape: Shape[F]) -> bool:
    """Whether a gang of the shape is long in coming; while it may become so, a timer is set."""
    if not shape.opening:
        return False
    due_at = min(gang.asked_at for gang in shape.opening.values()) + board.params.linger_s
    if board.now >= due_at:
        return True
    if shape.stuck_wake <= board.now:  # one timer at a time, however often this is asked
        shape.stuck_wake = due_at
        board.wake(due_at)
    return False


def _size(lane: Lane[F], gang: Gang[F]) -> int:
    pace = lane.stage.pace
    if pace.is_slow or lane.stage.plan.nodes > 1 or gang.probing or gang.is_unproven:
        return 1
    return pace.size(lane.ready.count, len(lane.usable) * lane.slots)


def _retried_for(board: Board[F], others: _Others[F], lane: Lane[F], gang: Gang[F]) -> int | None:
    """Return a rank that has failed before and may run in this gang."""
    for position, rank in enumerate(lane.alone):
        if position == LOOKED_AT:
            return None
        record = lane.stage.failures[rank]
        if not (gang.probing or any(node in record.avoid for node in gang.nodes)):
            return rank
        if board.now >= record.ready_at + board.params.avoid_wait_s:  # added as the timer was
            return rank
        if not (_elsewhere(others, lane, record.avoid) or may_open_elsewhere(lane, record)):
            return rank
    return None


def _elsewhere(others: _Others[F], lane: Lane[F], avoid: list[str]) -> bool:
    """Whether a gang off these nodes is ready, or may be taken over: else waiting for one would be
    for nothing."""
    able = chain(lane.usable.values(), _spare(others, lane))
    return any(not (gang.probing or any(node in avoid for node in gang.nodes)) for gang in able)


def _is_fed_ahead(board: Board[F], lane: Lane[F]) -> bool:
    """Whether ranks of the lane are so short that busy slots get some in advance."""
    mean_s = lane.stage.pace.mean_s
    return mean_s is not None and mean_s < board.params.reclaim_s and lane.stage.plan.nodes == 1


def _queue_ahead(board: Board[F], lane: Lane[F]) -> None:
    """Give busy slots an assignment in advance, so that short ranks do not wait for messages.

    Not while ranks wait that must travel alone: the slots would never be idle for them.
    """
    if not _is_fed_ahead(board, lane):
        return
    while lane.queueable and lane.ready.count and lane.ready.first_limit == NO_LIMIT:
        gang = next(iter(lane.queueable.values()))
        board.dispatch(lane, gang, *lane.ready.take(_size(lane, gang)))


def _feed_draining(board: Board[F], lane: Lane[F]) -> None:
    """Give a gang on a draining node what it can finish in time; nothing if that is not known."""
    mean_s = lane.stage.pace.mean_s
    if mean_s is None or lane.stage.plan.nodes > 1:
        return
    able = [gang for gang in lane.draining.values() if not gang.held and gang.yields_to is None]
    for gang in able:
        while len(gang.live) < gang.places and lane.ready.count:
            left_s = ((gang.drain_by or 0.0) - board.now) * board.params.drain_share
            if left_s < mean_s or left_s <= 0:
                break
            fits = NO_LIMIT if left_s > mean_s * NO_LIMIT else int(left_s / mean_s)
            board.dispatch(lane, gang, *lane.ready.take(min(fits, _size(lane, gang))))
