"""The invariants, checked in full: the books against each other, and that the run cannot stall.
O(ranks)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TypeVar

from thornback.scheduler.board import NEVER, Board
from thornback.scheduler.gangs import Gang, Lane
from thornback.scheduler.opening import why_not_asked
from thornback.scheduler.stages import Stage
from thornback.scheduler.states import OWED, GangState, InvariantBroken, RankState

F = TypeVar("F")


def check(board: Board[F]) -> None:
    """Raise `InvariantBroken` where something does not hold."""
    for stage in board.stages:
        _check_counts(stage)
        _check_running(board, stage)
        _check_ready(board, stage)
    for gang in board.gangs.values():
        _check_gang(board, gang)
    for lane in board.lanes:
        _check_lane(board, lane)
    _check_limits(board)
    _check_trouble(board)
    if board.ending is None or not board.ending.unrecorded:
        recording = sum(stage.in_state[RankState.RECORDING] for stage in board.stages)
        _need(board.recording == recording, f"{recording} ranks wait for a record, not counted so")
    _check_end(board)
    if not board.finished and (board.started or board.ending is not None):
        _check_no_stall(board)


def _need(holds: bool, story: str) -> None:
    if not holds:
        raise InvariantBroken(story)


def _check_counts(stage: Stage[F]) -> None:
    found = Counter(byte & ~OWED for byte in stage.states)
    for state in RankState:
        _need(
            stage.in_state[state] == found[state],
            f"stage {stage.number} counts {stage.in_state[state]} ranks as {state.name}, "
            f"but {found[state]} are",
        )
    owed = sum(byte >= OWED for byte in stage.states)
    _need(stage.owed == owed, f"stage {stage.number} counts {stage.owed} receipts, {owed} are owed")


def _ranks(pieces: Iterable[range]) -> list[int]:
    return [rank for piece in pieces for rank in piece]


def _in(stage: Stage[F], state: RankState) -> list[int]:
    return [rank for rank, byte in enumerate(stage.states) if byte & ~OWED == state]


def _check_running(board: Board[F], stage: Stage[F]) -> None:
    mine = [a for a in board.assignments.values() if a.stage is stage]
    _need(len(mine) == stage.assigned, f"stage {stage.number} miscounts its assignments")
    held = sorted(rank for a in mine for rank in _ranks(a.outstanding))
    _need(
        held == _in(stage, RankState.RUNNING),
        f"stage {stage.number}: ranks {_in(stage, RankState.RUNNING)} are RUNNING, but {held} are "
        "outstanding in assignments",
    )
    for assignment in mine:
        left = len(_ranks(assignment.outstanding))
        _need(
            left == assignment.left > 0,
            f"assignment {assignment.number} counts {assignment.left} ranks, holds {left}",
        )
        gang = assignment.gang
        _need(
            gang.live.get(assignment.number) is assignment and gang.state is GangState.READY,
            f"assignment {assignment.number} is not held by a READY gang ({gang.number})",
        )
        _need(gang.lane.stage is stage, f"gang {gang.number} runs two stages")


def _check_ready(board: Board[F], stage: Stage[F]) -> None:
    queued: list[int] = []
    for lane in stage.lanes:
        in_ranges = _ranks(range(start, stop) for start, stop, _ in lane.ready.pieces())
        _need(len(in_ranges) == lane.ready.count, f"a queue of stage {stage.number} miscounts")
        queued += in_ranges
        for rank in lane.alone:
            _need(
                rank in stage.failures
                and stage.failures[rank].memory_bytes == lane.shape.key.memory_bytes,
                f"rank {rank} of stage {stage.number} travels alone in the wrong lane",
            )
        queued += lane.alone
    ready = _in(stage, RankState.READY)
    _need(
        sorted(queued) == ready,
        f"stage {stage.number}: ranks {ready} are READY, but {sorted(queued)} are queued",
    )
    if board.finished or board.ending is not None:
        return
    timed = [rank for number, rank in board.timed() if number == stage.number]
    waiting = _in(stage, RankState.BACKOFF)
    _need(
        set(waiting) <= set(timed),
        f"stage {stage.number}: ranks {waiting} wait, timers are set for {sorted(timed)}",
    )


def _check_gang(board: Board[F], gang: Gang[F]) -> None:
    lane, who = gang.lane, f"gang {gang.number} ({gang.state.value})"
    _need(gang.state is GangState.READY or not gang.live, f"{who} holds assignments")
    _need(len(gang.live) <= 2 * lane.slots, f"{who} holds {len(gang.live)} assignments")
    for number in gang.live:
        _need(number in board.assignments, f"{who} holds assignment {number}, which is unknown")
    suspects = sum(assignment.suspect for assignment in gang.live.values())
    _need(gang.suspects == suspects, f"{who} counts {gang.suspects} suspects, holds {suspects}")
    ready = gang.state is GangState.READY
    places = {
        "opening": (lane.opening, gang.state is GangState.OPENING),
        "gangs": (lane.gangs, ready),
        "held": (lane.held, ready and gang.held and gang.drain_by is None),
        "draining": (lane.draining, ready and gang.drain_by is not None),
        "yielding": (lane.yielding, ready and gang.yields_to is not None),
        "usable": (lane.usable, gang.usable),
        "free": (lane.free, gang.usable and len(gang.live) < gang.places),
        "idle": (lane.idle, gang.usable and not gang.live),
        "queueable": (
            lane.queueable,
            gang.usable
            and lane.slots <= len(gang.live) < 2 * lane.slots
            and gang.ahead
            and not gang.suspects
            and not gang.probing,
        ),
    }
    for name, (part, belongs) in places.items():
        _need((gang.number in part) == belongs, f"{who} and the lane's {name} disagree")


def _check_lane(board: Board[F], lane: Lane[F]) -> None:
    for gang in [*lane.opening.values(), *lane.gangs.values()]:
        _need(
            board.gangs.get(gang.number) is gang and gang.lane is lane,
            f"gang {gang.number} stands in a lane that it does not belong to",
        )
    is_active = any(known is lane for known in board.active)
    _need(lane.active == is_active, f"a lane of stage {lane.stage.number} is not where it says")
    _need(
        is_active
        or lane.rests
        or not (lane.waiting or lane.opening or lane.gangs or lane.starved_at is not None),
        f"a lane of stage {lane.stage.number} has work or gangs, and nobody looks at it",
    )
    rests = any(known is lane for known in lane.shape.resting)
    _need(
        rests == lane.rests and (not rests or (lane.may_rest and not lane.active)),
        f"a lane of stage {lane.stage.number} rests and should not, or is not where it says",
    )
    coming = sum(gang.yields_to is lane for gang in board.gangs.values())
    _need(lane.coming == coming, f"a lane of stage {lane.stage.number} miscounts who yields to it")
    stage = lane.stage
    backoff = sum(
        stage.failures[rank].memory_bytes == lane.shape.key.memory_bytes
        for rank in _in(stage, RankState.BACKOFF)
    )
    _need(lane.backoff == backoff, f"a lane of stage {stage.number} miscounts its delayed ranks")


def _check_trouble(board: Board[F]) -> None:
    """Check what is kept of stages that may be stopped, and of gangs on doubtful nodes."""
    for stage in board.stages:
        times = sum(known is stage for known in board.tripped)
        _need(
            times == (stage.tripped is not None),
            f"stage {stage.number} stands {times} times among those in trouble: {stage.tripped}",
        )
        _need(
            stage.tripped is None
            or (stage.stopped is None and stage.streak.first_gang is not None),
            f"stage {stage.number} is in trouble, and no success would end that",
        )
    probed: dict[str, int] = {}
    for gang in board.gangs.values():
        if gang.state is not GangState.READY:
            continue
        kept = [a.number for a in gang.live.values() if gang.held and not a.recalled]
        _need(not kept, f"gang {gang.number} is held, and {kept} are not asked back")
        _need(not gang.forced or gang.probing, f"gang {gang.number} is forced, and not probing")
        for node in gang.nodes if gang.probing and not gang.held else ():
            other = probed.setdefault(node, gang.number)
            _need(other == gang.number, f"gangs {other} and {gang.number} both probe {node}")


def _check_limits(board: Board[F]) -> None:
    for shape in board.shapes.values():
        _need(
            len(shape.opening) <= board.params.max_opening,
            f"{len(shape.opening)} gangs of {shape.key} are opening",
        )
        opening = sorted(number for lane in shape.lanes for number in lane.opening)
        _need(opening == sorted(shape.opening), f"{shape.key} miscounts its opening gangs")
    for stage in board.stages:
        _need(stage.room >= 0, f"stage {stage.number} has {-stage.room} gangs too many")
    _need(
        board.next_gang == board.closed + len(board.gangs),
        f"{board.next_gang} gangs were opened, {board.closed} closed, {len(board.gangs)} are known",
    )


def _check_end(board: Board[F]) -> None:
    if not board.finished:
        return
    _need(not board.gangs and not board.assignments, "finished with gangs or assignments")
    if board.ending is not None:
        return
    for stage in board.stages:
        _need(
            not stage.unfinished, f"finished with {stage.unfinished} ranks of {stage.number} open"
        )
        _need(not stage.in_state[RankState.RECORDING], f"finished while recording {stage.number}")


def _check_no_stall(board: Board[F]) -> None:
    recording = any(s.in_state[RankState.RECORDING] or s.owed for s in board.stages)
    asked = any(g.state is not GangState.READY for g in board.gangs.values())
    _need(
        bool(board.assignments) or asked or recording or board.wake_at is not None,
        "nothing is owed, no timer is set, and the run has not finished: "
        + "; ".join(str(stage.counts()) for stage in board.stages),
    )
    for lane in board.lanes:
        if lane.waiting and not lane.usable and not lane.opening:
            _need(
                why_not_asked(board, lane) is not None,
                f"stage {lane.stage.number} has {lane.waiting} ready ranks for {lane.shape.key}, "
                "no gang, and no reason",
            )
        if lane.held and lane.waiting and not lane.usable and board.slow is None:
            _need(
                board.ending is not None or board.review_at < NEVER,
                f"stage {lane.stage.number} starves beside suspected nodes, and never uses them",
            )
        able = [gang for gang in lane.free.values() if not (gang.live and gang.is_unproven)]
        if lane.ready.count and able and board.ending is None:
            _need(
                board.slow is not None or lane.stage.tripped is not None,
                f"stage {lane.stage.number}: free slots, and work waits",
            )
