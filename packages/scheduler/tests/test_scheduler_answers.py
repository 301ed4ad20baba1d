"""What a driver owes: which events settle a command, and what comes too late."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from thornback.scheduler import RankState
from thornback.scheduler.commands import (
    CloseGang,
    Command,
    Dispatch,
    FinishRun,
    OpenGang,
    Record,
    RecordState,
    RunState,
    ShapeKey,
)
from thornback.scheduler.events import (
    CancelRequested,
    Event,
    GangClosed,
    GangLost,
    GangReady,
    JournalFailed,
    RankFailed,
    RanksReturned,
    RanksSucceeded,
    Recorded,
)
from thornback.scheduler.testing import Play, plan, play

T = TypeVar("T")


def only(kind: type[T], commands: Iterable[Command]) -> T:
    (command,) = (command for command in commands if isinstance(command, kind))
    return command


def at_work() -> tuple[Play[str], Record, Dispatch]:
    """Return a play of one gang, what it was asked to record, and an assignment of ranks 1 and
    2; rank 3 is queued behind them."""
    game = play(plan(4, max_gangs=1))
    first = only(Dispatch, game.send(only(OpenGang, game.start()).ready("n")))
    record, work, _ = game.send(first.succeeded(0, busy_s=0.001))
    assert isinstance(record, Record)
    assert isinstance(work, Dispatch)
    assert work.ranks == (range(1, 3),)
    return game, record, work


def test_a_command_makes_its_answers() -> None:
    opening = OpenGang(gang=3, shape=ShapeKey(0))
    assert opening.ready("a", "b") == GangReady(gang=3, nodes=("a", "b"))
    assert opening.lost("full") == GangLost(gang=3, fault="full")
    assert opening.lost("died", "a") == GangLost(gang=3, fault="died", node="a")
    assert CloseGang(gang=3).closed() == GangClosed(gang=3, confirmed=True)
    assert CloseGang(gang=3).closed(False) == GangClosed(gang=3, confirmed=False)
    some = Dispatch(gang=3, assignment=8, stage=1, ranks=(range(2, 4), range(7, 8)))
    assert some.succeeded(7, 0.5) == RanksSucceeded(assignment=8, ranks=(range(7, 8),), busy_s=0.5)
    failed = RankFailed(assignment=8, rank=2, fault="code", node="a", ran_s=0.5)
    assert some.failed(2, "code", "a", ran_s=0.5) == failed
    unknown = RankFailed(assignment=8, rank=2, fault="code", node="")
    assert some.failed(2, "code", "") == unknown
    assert some.returned() == RanksReturned(assignment=8, ranks=some.ranks)
    assert some.returned((range(7, 8),)) == RanksReturned(assignment=8, ranks=(range(7, 8),))
    assert some.lost("died", "a") == GangLost(gang=3, fault="died", node="a")
    record = Record(stage=1, ranks=some.ranks, assignment=8, state=RecordState.DONE)
    assert record.recorded() == Recorded(stage=1, ranks=some.ranks)
    assert record.failed("disk") == JournalFailed(fault="disk")


def test_a_gang_that_is_closed_before_it_has_opened_owes_one_answer() -> None:
    game = play(plan(1))
    opening = only(OpenGang, game.start())
    closing = only(CloseGang, game.send(CancelRequested(reason="enough")))
    assert game.send(opening.ready("n")) == []
    assert game.send(opening.lost("impossible")) == []
    end = FinishRun(state=RunState.CANCELLED, reason="enough")
    assert game.send(closing.closed()) == [end]


def test_each_rank_is_answered_once_and_the_first_answer_holds() -> None:
    game, _, work = at_work()
    assert only(Record, game.send(work.succeeded(1, 0.001))).ranks == (range(1, 2),)
    assert game.scheduler.outstanding(work.assignment) == (range(2, 3),)
    assert game.send(work.failed(1, "code", "n")) == []
    assert game.send(work.returned((range(1, 2),))) == []
    assert game.scheduler.state(0, 1) is RankState.RECORDING
    only(Record, game.send(work.failed(2, "code", "n")))
    before = game.scheduler.counts(0)
    late: list[Event[str]] = [
        work.failed(1, "code", "n"),
        work.succeeded(2, 0.001),
        work.returned(),
    ]
    for event in late:
        assert game.send(event) == []
    assert game.scheduler.counts(0) == before


def test_an_assignment_may_be_closed_by_giving_all_of_it_back() -> None:
    game, _, work = at_work()
    game.send(work.succeeded(1, 0.001))
    assert game.send(work.returned()) == []  # not behind what is queued there
    again = only(Dispatch, game.succeed(work.assignment + 1))
    assert again.ranks == (range(2, 3),)
    assert again.attempt == 1
    assert again.assignment != work.assignment


def test_what_a_lost_gang_owed_runs_again_and_its_late_reports_are_dropped() -> None:
    game, _, work = at_work()
    closing = only(CloseGang, game.send(work.lost("preempted", "n")))
    assert game.scheduler.counts(0).ready == 3
    for event in (work.succeeded(1, 0.1), work.failed(2, "code", "n"), work.lost("crash")):
        assert game.send(event) == []
    assert game.scheduler.counts(0).ready == 3
    assert game.send(closing.closed()) == []
    assert game.send(closing.closed()) == []


def test_a_gang_that_is_closed_to_kill_owes_no_other_answer() -> None:
    game, record, work = at_work()
    closing = only(CloseGang, game.send(record.failed("the disk is full")))
    assert closing.kill
    assert game.send(work.succeeded(1, 0.1)) == []
    (end,) = game.send(closing.closed(confirmed=False))
    assert isinstance(end, FinishRun)
    assert end.state is RunState.FAILED
    assert "the disk is full" in end.reason
    assert game.send(work.returned()) == []


def test_ranks_may_be_recorded_in_parts_and_together() -> None:
    game, first, work = at_work()
    game.send(RanksSucceeded(assignment=work.assignment, ranks=work.ranks, busy_s=0.01))
    game.send(Recorded(stage=0, ranks=(range(2, 3),)))
    assert [game.scheduler.state(0, rank) for rank in range(3)] == [
        RankState.RECORDING,
        RankState.RECORDING,
        RankState.DONE,
    ]
    game.send(Recorded(stage=0, ranks=(*first.ranks, range(1, 3))))
    assert game.scheduler.counts(0).done == 3
    assert game.send(first.recorded()) == []


def test_the_wait_for_an_event_ends_at_the_timer() -> None:
    game = play(plan(1, max_gangs=1))
    opening = only(OpenGang, game.start())
    work = only(Dispatch, game.send(opening.ready("n")))
    game.send(work.failed(0, "later", "n"), after_s=1.0)
    assert game.tick() == []  # another timer
    assert game.scheduler.wake_at == 6.0
    assert game.scheduler.wait_s(game.now) == 6.0 - game.now > 0.0
    assert game.scheduler.wait_s(9.0) == 0.0
    assert only(Dispatch, game.tick()).attempt == 2


def test_without_a_timer_the_wait_has_no_end() -> None:
    game = play(plan(1))
    game.start()
    game.send(CancelRequested(reason="enough"))
    assert game.scheduler.wake_at is None
    assert game.scheduler.wait_s(0.0) is None


def test_ranks_are_recorded_as_they_were_given_out_not_as_they_were_reported() -> None:
    """`range(0, 3, 3)` equals `range(0, 1)`, but whoever stores its ends has three ranks done."""
    game = play(plan(9, max_gangs=1))
    game.start()
    game.ready(0)
    odd = (range(0, 3, 3),)
    (record,) = (
        command
        for command in game.send(RanksSucceeded(assignment=0, ranks=odd, busy_s=9.0))
        if isinstance(command, Record)
    )
    assert [(piece.start, piece.stop, piece.step) for piece in record.ranks] == [(0, 1, 1)]
