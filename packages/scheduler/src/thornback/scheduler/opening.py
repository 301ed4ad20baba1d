"""How many gangs there shall be: ask for more, give up pending and idle ones, make one shape yield
to another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import TypeVar

from thornback.faults import StopReason
from thornback.scheduler.board import Board
from thornback.scheduler.gangs import Gang, Lane, Shape
from thornback.scheduler.settling import give_up_ready, pressure
from thornback.scheduler.stages import FailedRank, Stopped
from thornback.scheduler.states import RankState

F = TypeVar("F")
# Members of an Enum class cost more to look up than to use.
BLOCKED, RUNNING = RankState.BLOCKED, RankState.RUNNING


def make_yield(board: Board[F]) -> None:
    """Let lanes that have starved for long have a gang of others. Comes before `feeding.feed`, so
    `Board.slow` is of the last event: a result may have waited too long for the journal since."""
    is_slow = pressure(board) is not None
    for lane in board.active:
        if lane.starves and not is_slow and lane.stage.tripped is None:
            _make_others_yield(board, lane)
    for lane in board.active:
        if lane.yielding:
            _carry_out_yields(board, lane)
    board.yielding = any(lane.yielding for lane in board.active)


def adjust(board: Board[F]) -> None:
    """Bring the gangs in line with the work. Comes after `feeding.feed`: what is ready now found no
    slot."""
    starving, spare = [], []
    for lane in board.active:
        if lane.usable or board.slow is not None:  # a gang would be of no use before the journal
            lane.starved_at = None
        elif _note_starving(board, lane) and not _has_waited_enough(board, lane):
            starving.append(lane)
        is_empty = lane.opening and not lane.waiting
        if lane.idle or lane.draining or lane.held or is_empty or lane.empty_at is not None:
            spare.append(lane)
    board.starving = bool(starving or board.resting)
    if spare:  # giving up first: it may make room under `max_gangs`
        _give_up(board, spare, starving)
    most, once_more = board.params.max_opening, True
    while once_more:
        once_more = False
        lanes = board.lanes_for(partial(_may_ask, most=most)) if board.resting else board.active
        for lane in lanes:
            waits = lane.ready.count or lane.alone
            if waits and len(lane.opening) < most and _ask(board, lane):
                # That left a stage room, and an earlier lane may wait for it.
                once_more = True
    if board.thinned:
        board.retire_lanes()
    if starving:
        board.rest(starving)


def _may_ask(lane: Lane[F], most: int) -> bool:
    """Whether one more gang of the shape may be opening."""
    return len(lane.shape.opening) < most


def _give_up(board: Board[F], spare: list[Lane[F]], starving: list[Lane[F]]) -> None:
    """Close what is not wanted in lanes that may have too many gangs."""
    linger_s = board.params.linger_s  # added as the timer was: a difference would be rounded
    in_need = {lane.shape for lane in starving if board.now >= (lane.starved_at or 0.0) + linger_s}
    if len(board.shapes) > 1:  # else there is no other that could be in need
        for shape in board.resting:
            since = (lane.starved_at or 0.0 for lane in shape.resting)
            if any(board.now >= at + linger_s for at in since):
                in_need.add(shape)
    most_idle: dict[Shape[F], int] = {}  # for all lanes of a shape together
    left: dict[Shape[F], int] = {}
    for lane in spare:
        shape = lane.shape
        if shape not in most_idle:
            idle = sum(len(known.idle) for known in spare if known.shape is shape)
            most_idle[shape] = left[shape] = _most_idle(shape, max(1, idle))
        _give_up_idle(board, lane, 0 if in_need and in_need != {shape} else left[shape])
        left[shape] = max(0, left[shape] - len(lane.idle))
        _give_up_pending(board, lane, most_idle[shape])


def _note_starving(board: Board[F], lane: Lane[F]) -> bool:
    """Note since when a lane without a usable gang has ready ranks."""
    if not lane.waiting:
        lane.starved_at = None
        return False
    if lane.starved_at is None:
        lane.starved_at = board.now
        if lane.held:
            board.review_by(board.now + board.params.avoid_wait_s)
    if lane.stage.tripped is not None:
        return True  # nobody yields to it
    wake = lane.starved_at + board.params.linger_s
    patience = max(lane.starved_at + board.params.yield_after_s, lane.next_yield_at)
    if wake <= board.now or patience < wake:
        wake = patience
    # No more timers than are needed, however often this comes and goes: mostly there is one.
    if lane.starved_wake <= board.now or wake < lane.starved_wake:
        lane.starved_wake = wake
        board.wake(wake)
    return True


def _has_waited_enough(board: Board[F], lane: Lane[F]) -> bool:
    """Give up what is ready in a lane that has waited for busy resources for as long as the user
    wanted. Only time in which the run holds nothing counts: else what it waits for may be its own.
    """
    wait_s = board.params.wait_s
    if wait_s is None or lane.starved_at is None:
        return False
    if any(gang.nodes for gang in board.gangs.values()):
        return False  # it ends with `GangClosed`
    due_at = max(lane.starved_at, board.held_until) + wait_s
    if board.now < due_at:
        board.wake(due_at)
        return False
    text = f"no resources became free within wait_s={wait_s:g} s"
    give_up_ready(board, lane, Stopped(StopReason.NOT_PLACED, text))
    lane.starved_at = None
    return True


# -- asking ----------------------------------------------------------------------------------------


def why_not_asked(board: Board[F], lane: Lane[F]) -> str | None:
    """Return why no gang is asked for now although ranks are ready; None: one can be."""
    if board.ending is not None:
        return f"the run is ending: {board.ending.reason}"
    if board.slow is not None:
        return board.slow
    if board.now < lane.retry_at:
        wait_s = lane.retry_at - board.now
        return f"a gang could not be opened or was lost; asked again in {wait_s:.1f} s"
    if _is_yielding(board, lane):
        return "it has yielded to a stage that had no gang"
    if lane.stage.tripped is not None:
        return f"nothing more is started before what runs has ended: {lane.stage.tripped.text}"
    if len(lane.shape.opening) >= board.params.max_opening:
        return f"{len(lane.shape.opening)} gangs of its shape are opening already"
    if lane.stage.room < 1:
        return f"the stage has its {lane.stage.plan.max_gangs} gangs in other shapes"
    return None


def _is_yielding(board: Board[F], lane: Lane[F]) -> bool:
    to = lane.yielding_to
    return to is not None and board.now < lane.yielding_until and to.starves


def _ask(board: Board[F], lane: Lane[F]) -> bool:
    """Ask for as many gangs as there is ready work for, within all limits; return whether a pending
    one of another stage was taken over."""
    _make_room_elsewhere(board, lane)
    room = lane.stage.room
    if room < 1:
        return False
    params = board.params
    wanted = min(math.ceil(lane.waiting / lane.slots), params.max_opening)
    if lane.failed_openings:
        wanted = 1  # slow start: one, until one could be opened
    missing = min(wanted - len(lane.opening), room)
    if missing < 1 or why_not_asked(board, lane) is not None:
        return False
    adopted = False
    while missing > 0 and _adopt(board, lane):
        missing -= 1
        adopted = True
    for _ in range(min(missing, params.max_opening - len(lane.shape.opening))):
        board.open(lane)
    return adopted


def _adopt(board: Board[F], lane: Lane[F]) -> bool:
    """Take over a pending gang of equal shape that its own lane has no work for."""
    if len(lane.shape.lanes) == 1:
        return False
    unneeded = [gang for gang in lane.shape.opening.values() if not gang.lane.waiting]
    if not unneeded:
        return False
    board.bind(min(unneeded, key=lambda gang: gang.lane.order), lane)
    return True


def may_open_elsewhere(lane: Lane[F], record: FailedRank[F]) -> bool:
    """Whether there are other nodes than those on which a rank has failed by the machine's fault,
    as far as is known, and the lane has or may ask for a gang there."""
    fitting = lane.shape.fitting
    if not record.wants_elsewhere or fitting is None or fitting <= len(record.avoid):
        return False
    return lane.may_gain or bool(lane.idle)


def _make_room_elsewhere(board: Board[F], lane: Lane[F]) -> None:
    """Close an idle gang that stands in the way of one on another node, which is all that the ranks
    of the lane wait for."""
    if lane.ready.count or not lane.idle or lane.stage.room > 0 or lane.opening:
        return
    record = lane.stage.failures[lane.alone[0]]
    if board.now >= lane.retry_at and may_open_elsewhere(lane, record):
        board.close(next(iter(lane.idle.values())))


# -- giving up -------------------------------------------------------------------------------------


def _most_idle(shape: Shape[F], most: int) -> int:
    """Return how many gangs without work can still be wanted: `most` or more if it is so many."""
    waiting, running = 0, False
    settled: list[Lane[F]] = []
    slots = shape.lanes[0].slots
    for lane in reversed(shape.unsettled):  # those that come late wait for longest
        stage, outstanding = lane.stage, 0
        wanted = lane.waiting + lane.backoff
        if shape.key.memory_bytes is None and stage.stopped is None:
            outstanding = stage.in_state[RUNNING]
            wanted += stage.in_state[BLOCKED]
            wanted += max(0, outstanding - stage.assigned)  # not started: may be handed back
            running |= outstanding > 0
        waiting += wanted
        if waiting >= most * slots:
            break
        if not wanted and not outstanding and not stage.unfinished:
            settled.append(lane)
    for lane in settled:  # they will need no slot again
        del shape.unsettled[lane]
    # A rank that runs may come back while its gang does not: one spare for all of them.
    return math.ceil(waiting / slots) + int(running)


def _give_up_pending(board: Board[F], lane: Lane[F], most_idle: int) -> None:
    """Close gangs that are still opening when the work they were asked for is gone."""
    if lane.waiting or not lane.opening:
        lane.empty_at = None
        return
    if lane.empty_at is None:
        lane.empty_at = board.now
    until = lane.empty_at + board.params.linger_s
    if lane.empty_wake <= board.now < until:
        lane.empty_wake = until
        board.wake(until)
    if board.now >= until or most_idle == 0:
        for gang in list(lane.opening.values()):
            board.close(gang)


def _give_up_idle(board: Board[F], lane: Lane[F], keep: int) -> None:
    """Close gangs without work that are not wanted any more, or that another shape waits for: all
    but `keep`."""
    if lane.draining:
        for gang in [g for g in lane.draining.values() if not g.live and g.yields_to is None]:
            board.close(gang)
    if lane.held and (lane.usable or not lane.waiting):
        _close_held(board, lane)
    if lane.waiting or not lane.idle:
        return
    for gang in list(lane.idle.values())[: max(0, len(lane.idle) - keep)]:
        board.close(gang)


def _close_held(board: Board[F], lane: Lane[F]) -> None:
    """Close gangs on suspected nodes that have ended what they ran."""
    for gang in [gang for gang in lane.held.values() if not gang.live]:
        board.close(gang)
        ask_after_parole(board, lane, gang, gang.nodes)


def turn_away(board: Board[F], gang: Gang[F]) -> None:
    """Close a gang that came to a suspected node that it was to avoid, before its workers start
    there; not if its lane has no other."""
    lane, shape = gang.lane, gang.lane.shape
    suspects = board.evidence.suspects(shape.nodes, shape.most_suspects, board.now)
    if lane.usable and any(node in suspects and node in gang.avoid for node in gang.nodes):
        board.close(gang)
        ask_after_parole(board, lane, gang, gang.nodes)


def ask_after_parole(board: Board[F], lane: Lane[F], gang: Gang[F], nodes: Sequence[str]) -> None:
    """Ask for no other gang for some time where one came to a node that it was to avoid: only such
    nodes have room, and the next would come there too."""
    if not any(node in gang.avoid for node in nodes):
        return
    parole_at = board.evidence.parole_at(nodes, board.now)
    retry_at = min(parole_at, board.now + board.params.no_room_s)
    for other in lane.shape.lanes:
        if not other.usable:
            continue
        other.retry_at = max(other.retry_at, retry_at)
        board.wake(other.retry_at)
        for pending in [each for each in other.opening.values() if not each.nodes]:
            board.close(pending)


# -- yielding --------------------------------------------------------------------------------------


def _make_others_yield(board: Board[F], lane: Lane[F]) -> None:
    """A lane that has starved for long makes the lowest-priority one give up a gang."""
    params = board.params
    if board.now < lane.next_yield_at or not _has_starved(board, lane):
        return
    gang = _victim(lane, board)
    pause_s = params.yield_after_s
    own = _on_the_way_to(gang.lane, lane) if gang is not None else None
    if own is not None:
        board.keep_on(own)
        own.kept = True
    elif gang is not None:
        board.make_way(gang, lane)
        pause_s = max(pause_s, params.yield_openings * (gang.ready_at - gang.asked_at))
    lane.next_yield_at = board.now + pause_s


def _has_starved(board: Board[F], lane: Lane[F]) -> bool:
    """Whether the yield rule holds for a lane: it has been without a gang for so long."""
    since = lane.starved_at
    return since is not None and board.now >= since + board.params.yield_after_s


def _on_the_way_to(victim: Lane[F], lane: Lane[F]) -> Gang[F] | None:
    """Return the lane's own gang that makes way for the one that is to give one up, and has most
    left to run: to keep that one does as much as to exchange two, and empties none."""
    own = [gang for gang in lane.yielding.values() if gang.yields_to is victim]
    able = [gang for gang in own if gang.drain_by is None]
    return max(able, key=lambda gang: len(gang.live), default=None)


def _victim(lane: Lane[F], board: Board[F]) -> Gang[F] | None:
    for other in reversed(board.lanes):
        if not (lane.may_gain or other.stage is lane.stage):
            continue  # that gang would make no room under `max_gangs`
        if len(other.usable) > 1 or (other.usable and lane.order < other.order):
            able = [gang for gang in other.usable.values() if gang.finished]
            if able:
                return min(able, key=lambda gang: (len(gang.live), -gang.number))
    return None


def _carry_out_yields(board: Board[F], lane: Lane[F]) -> None:
    """At its free moment a yielding gang is handed over, or closed to make room."""
    for gang in list(lane.yielding.values()):
        to = gang.yields_to
        assert to is not None
        if not is_wanted(gang, to):
            board.keep_on(gang)
        elif gang.live:
            continue
        elif lane.shape is to.shape and gang.drain_by is None:
            won = not to.outranks(lane) or _has_starved(board, to)
            board.hand_over(gang, to)
            gang.kept = won
        else:
            board.close(gang)
            _hold_back_others(board, to)


def is_wanted(gang: Gang[F], to: Lane[F]) -> bool:
    """Whether the lane still waits for this gang. On a node that goes away it is of no use but to
    a lane that starves: it can only be closed, to make room."""
    if to.stage.tripped is not None or not (to.may_gain or to.stage is gang.lane.stage):
        return False
    can_have_it = to.shape is gang.lane.shape and gang.drain_by is None
    takes_precedence = can_have_it and to.outranks(gang.lane)
    return to.starves or (takes_precedence and _wants_slots(to))


def _wants_slots(lane: Lane[F]) -> bool:
    """Whether more is ready than the idle slots of the lane take: these are filled next. To let a
    gang go on because of them would fill it again, and another would begin to make way."""
    most = len(lane.free) * lane.slots
    return lane.waiting > most or lane.waiting > sum(
        lane.slots - len(gang.live) for gang in lane.free.values()
    )


def _hold_back_others(board: Board[F], to: Lane[F]) -> None:
    """Keep lanes that have a gang from taking the room that was just made."""
    for other in board.lanes:
        if other is not to and not other.starves:
            other.yielding_to = to
            other.yielding_until = board.now + board.params.yield_after_s
            board.wake(other.yielding_until)
            for gang in list(other.opening.values()):
                if other.shape is not to.shape:
                    board.close(gang)
