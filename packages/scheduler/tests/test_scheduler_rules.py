"""One test per rule: the journey of a rank, slots and batches, stale events, ends, plans."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from thornback.scheduler import (
    InvalidTransition,
    RankState,
    Scheduler,
    SchedulerParams,
    UsageError,
)
from thornback.scheduler.commands import (
    CloseGang,
    Dispatch,
    FinishRun,
    OpenGang,
    Recall,
    Record,
    RecordState,
    RunState,
    ShapeKey,
)
from thornback.scheduler.events import (
    CancelRequested,
    Event,
    GangClosed,
    GangReady,
    JournalFailed,
    RanksReturned,
    RanksSucceeded,
    Recorded,
    RunStarted,
    Ticked,
)
from thornback.scheduler.stages import one
from thornback.scheduler.testing import (
    VERDICTS,
    FakeDelta,
    FakeDependencies,
    Play,
    ScriptedPolicy,
    closed,
    dispatches,
    plan,
    play,
)


def test_only_stages_with_ready_ranks_or_gangs_are_looked_at() -> None:
    """Else each event of a job of a hundred stages would cost a hundred looks."""
    game = play(*(plan(2, shape=n) for n in range(20)), parents=[(), *((n,) for n in range(19))])
    game.start()
    for number in range(20):
        assert [lane.stage.number for lane in game.scheduler._board.active] == [number]
        for gang in (2 * number, 2 * number + 1):
            game.ready(gang)
            game.succeed(gang)
        game.record()
    game.close()
    assert game.scheduler.finished
    assert not game.scheduler._board.active


def test_handle_many_waiting_stages_looks_only_at_those_that_can_get_a_gang() -> None:
    """Else each event of a job of a thousand stages that wait would cost a thousand looks."""
    game = play(*(plan(1) for _ in range(100)))
    game.start()
    board = game.scheduler._board
    most = board.params.max_opening + 2
    looked_at = [len(board.active)]
    game.ready(0)
    for assignment in range(100):  # the one gang is handed on at once, from stage to stage
        looked_at.append(len(board.active))
        game.succeed(assignment)
        game.record()
    assert max(looked_at) <= most
    game.close()
    assert game.scheduler.finished


# -- a whole journey -------------------------------------------------------------------------------


def test_one_rank_goes_the_whole_way() -> None:
    game = play(plan(1, shape=4))
    assert game.start() == [OpenGang(gang=0, shape=ShapeKey(4))]
    assert game.ready(0) == [Dispatch(gang=0, assignment=0, stage=0, ranks=one(0))]
    assert game.scheduler.gang_of(0) == 0
    assert game.succeed(0) == [
        Record(stage=0, ranks=one(0), assignment=0, state=RecordState.DONE),
        CloseGang(gang=0),
    ]
    assert game.scheduler.state(0, 0) is RankState.RECORDING
    assert game.record() == []
    assert game.close() == [FinishRun(state=RunState.SUCCEEDED)]
    assert game.scheduler.finished
    assert game.send(Ticked()) == []


def test_the_end_waits_for_the_record_though_the_gang_is_gone() -> None:
    game = play(plan(1))
    game.start()
    game.ready(0)
    game.succeed(0)
    assert game.close() == []
    assert game.record() == [FinishRun(state=RunState.SUCCEEDED)]


def test_a_slot_is_fed_before_the_record_and_dependents_wait_for_it() -> None:
    game = play(plan(2, max_gangs=1), plan(1, max_gangs=1), parents=[[], [0]])
    game.start()
    game.ready(0)
    fed = game.succeed(0, busy_s=9.0)
    assert dispatches(fed) == [(0, 1, one(1))]
    game.succeed(1)
    assert game.scheduler.counts(1).blocked == 1
    assert dispatches(game.record()) == [(0, 2, one(0))]


def test_what_an_earlier_run_recorded_is_not_run_or_recorded_again() -> None:
    game = play(plan(5, max_gangs=1), plan(1), parents=[[], [0]])
    game.start(done={0: (range(0, 2), range(3, 5))})
    assert game.scheduler.counts(0).done == 4
    assert dispatches(game.ready(0)) == [(0, 0, one(2))]
    assert [c.ranks for c in game.succeed(0) if isinstance(c, Record)] == [one(2)]


def test_a_rank_that_failed_earlier_skips_what_comes_after() -> None:
    game = play(plan(1), plan(2), plan(1), parents=[[], [0], [1]])
    commands = game.start(failed={0: one(0), 1: (range(0, 1),)})
    records = [c for c in commands if isinstance(c, Record)]
    assert [(r.stage, r.ranks, r.state) for r in records] == [
        (1, (range(1, 2),), RecordState.SKIPPED),
        (2, one(0), RecordState.SKIPPED),
    ]
    assert game.scheduler.reason(2, 0) == "skipped: rank 0 of stage 0 failed"
    assert game.scheduler.reason(0, 0) == "failed in an earlier run"
    (end,) = game.record()
    assert isinstance(end, FinishRun)
    assert end.state is RunState.FAILED


def test_blocked_ranks_that_nothing_releases_end_the_run() -> None:
    class Silent(FakeDependencies):
        def finished(self, stage: int, ranks: Sequence[range], ok: bool) -> FakeDelta:
            return FakeDelta()

    game = Play(Scheduler([plan(1), plan(1)], Silent([1, 1], [[], [0]])))
    game.start()
    game.ready(0)
    game.succeed(0)
    assert closed(game.record()) == [0]
    (end,) = game.close()
    assert isinstance(end, FinishRun)
    assert end.state is RunState.FAILED
    assert "nothing will ever release" in end.reason


# -- slots and batches -----------------------------------------------------------------------------


def test_batches_start_at_one_double_and_share_what_is_left() -> None:
    game = play(plan(100, max_gangs=1))
    game.start()
    sizes = [len(r[0]) for _, _, r in dispatches(game.ready(0))]
    assert sizes == [1]
    for assignment in range(12):
        if game.scheduler.outstanding(assignment):
            fed = game.succeed(assignment, busy_s=0.001)
            sizes += [sum(map(len, ranks)) for _, _, ranks in dispatches(fed)]
    # One runs and one is queued, so each success shows twice its own size to work.
    assert sizes[:7] == [1, 2, 2, 4, 4, 8, 8]
    assert sizes[-1] < 16
    assert sum(sizes) <= 100


def test_long_ranks_travel_one_by_one_and_nothing_is_queued_behind_them() -> None:
    game = play(plan(50, max_gangs=1, slots=2))
    game.start()
    assert len(dispatches(game.ready(0))) == 2
    assert dispatches(game.succeed(0, busy_s=3.0)) == [(0, 2, one(2))]


def test_what_comes_back_from_a_queue_is_not_queued_again_there() -> None:
    game = play(plan(50, max_gangs=1))
    game.start()
    game.ready(0)
    fed = dispatches(game.succeed(0, busy_s=0.5))
    assert [ranks for _, _, ranks in fed] == [one(1), one(2)]
    assert dispatches(game.give_back(2, *one(2))) == []
    assert game.scheduler.counts(0).ready == 48
    assert dispatches(game.succeed(1, busy_s=0.5))[0] == (0, 3, one(2))


def test_an_assignment_takes_several_pieces() -> None:
    game = play(plan(40, max_gangs=1))
    game.start(done={0: tuple(range(r, r + 1) for r in range(1, 40, 2))})
    game.ready(0)
    game.succeed(0, busy_s=0.001)
    (_, _, ranks), *_ = dispatches(game.succeed(1, busy_s=0.001))
    assert len(ranks) > 1
    assert all(len(piece) == 1 for piece in ranks)


def test_a_gang_of_several_nodes_has_one_rank_at_a_time() -> None:
    game = play(plan(50, max_gangs=1, nodes=2))
    game.start()
    game.ready(0, "a", "b")
    for assignment in range(5):
        assert len(dispatches(game.succeed(assignment, busy_s=0.001))) == 1


# -- stale events ----------------------------------------------------------------------------------


def test_stale_events_change_nothing() -> None:
    game = play(plan(3, max_gangs=1))
    game.start()
    game.ready(0)
    game.succeed(0)
    game.lost(0, "preempted")
    before = game.scheduler.counts(0)
    stale: list[Event[str]] = [
        RunStarted(),
        GangReady(gang=0, nodes=("n",)),
        RanksSucceeded(assignment=0, ranks=one(0)),
        RanksSucceeded(assignment=1, ranks=one(1)),
        RanksReturned(assignment=1, ranks=one(1)),
        Recorded(stage=0, ranks=one(2)),
    ]
    for event in stale:
        assert game.send(event) == [], event
    assert game.lost(0, "crash") == []
    assert game.fail(1, 1, "code") == []
    assert game.scheduler.counts(0) == before


def test_a_report_counts_only_for_ranks_outstanding_in_that_assignment() -> None:
    game = play(plan(3, max_gangs=1))
    game.start()
    game.ready(0)
    assert game.send(RanksSucceeded(assignment=0, ranks=(range(0, 3),), busy_s=9.0)) == [
        Record(stage=0, ranks=one(0), assignment=0, state=RecordState.DONE),
        Dispatch(gang=0, assignment=1, stage=0, ranks=one(1)),
    ]


def test_impossible_events_are_refused() -> None:
    game = play(plan(3))
    game.start()
    with pytest.raises(InvalidTransition, match="never asked for"):
        game.scheduler.handle(GangClosed(gang=99), 0.0)
    with pytest.raises(InvalidTransition, match="OPENING"):
        game.scheduler.handle(GangClosed(gang=0), 0.0)
    with pytest.raises(InvalidTransition, match="assignment 5"):
        game.scheduler.handle(RanksReturned(assignment=5, ranks=one(0)), 0.0)
    with pytest.raises(UsageError, match="no stage 7"):
        game.scheduler.handle(Recorded(stage=7, ranks=one(0)), 0.0)
    with pytest.raises(UsageError, match="within"):
        game.scheduler.handle(Recorded(stage=0, ranks=(range(2, 9),)), 0.0)


# -- ends ------------------------------------------------------------------------------------------


def test_cancel_lets_running_ranks_finish_and_keeps_what_is_recorded() -> None:
    game = play(plan(9, max_gangs=2))
    game.start()
    game.ready(0)
    commands = game.send(CancelRequested(reason="enough"))
    assert commands == [Recall(assignment=0), CloseGang(gang=1)]
    assert game.scheduler.wake_at is None
    assert game.succeed(0)[-1] == CloseGang(gang=0)
    assert game.close() == []
    assert game.record() == [FinishRun(state=RunState.CANCELLED, reason="enough")]


def test_a_second_cancel_kills_and_what_was_killed_is_not_judged() -> None:
    policy = ScriptedPolicy(VERDICTS)
    game = play(plan(2, max_gangs=1, policy=policy))
    game.start()
    game.ready(0)
    game.send(CancelRequested(reason="enough"))
    assert game.send(CancelRequested(reason="enough")) == []
    assert game.send(CancelRequested(reason="now", kill=True)) == [Recall(assignment=0, kill=True)]
    assert game.fail(0, 0, "code") == [CloseGang(gang=0)]
    assert game.close() == [FinishRun(state=RunState.CANCELLED, reason="enough")]
    assert not policy.asked


def test_cancel_before_anything_has_begun() -> None:
    game = play(plan(2))
    assert game.send(CancelRequested(reason="no")) == [
        FinishRun(state=RunState.CANCELLED, reason="no")
    ]


def test_a_failed_journal_ends_the_run_and_announces_nothing() -> None:
    game = play(plan(3, max_gangs=2), plan(1), parents=[[], [0]])
    game.start()
    game.ready(0)
    game.ready(1)
    game.succeed(0)
    commands = game.send(JournalFailed(fault="disk"))
    assert commands == [CloseGang(gang=0, kill=True), CloseGang(gang=1, kill=True)]
    (end,) = game.close()
    assert isinstance(end, FinishRun)
    assert end.state is RunState.FAILED
    assert "disk" in end.reason
    assert game.scheduler.counts(0).done == 0


def test_back_pressure_stops_dispatching_until_the_journal_has_caught_up() -> None:
    game = play(plan(9, max_gangs=1), params=SchedulerParams(max_unrecorded=1))
    game.start()
    game.ready(0)
    game.succeed(0, busy_s=9.0)
    assert dispatches(game.succeed(1, busy_s=9.0)) == []
    assert dispatches(game.record()) != []
    game = play(plan(9, max_gangs=1))
    game.start()
    game.ready(0)
    game.succeed(0, busy_s=9.0)
    game.now += 61.0
    assert dispatches(game.succeed(1, busy_s=9.0)) == []
    assert dispatches(game.record()) != []


def test_a_record_that_ends_back_pressure_or_comes_with_a_timer_lets_the_run_go_on() -> None:
    game = play(plan(9, max_gangs=1))
    game.start()
    game.ready(0)
    game.succeed(0, busy_s=9.0)
    game.fail(1, 1, "later")
    game.succeed(2, busy_s=9.0)
    game.give_back(3, *one(3))
    game.now += 5.0
    assert game.scheduler.counts(0).backoff == 1
    game.record()
    assert game.scheduler.counts(0).backoff == 0, "its time has come, and a record was the event"
    game.scheduler.check_invariants()


# -- plans -----------------------------------------------------------------------------------------


def test_impossible_plans_are_refused() -> None:
    with pytest.raises(UsageError, match="world_size must be an int >= 1, not 0"):
        plan(0)
    with pytest.raises(UsageError, match=r"slots must be 1, not 3"):
        plan(1, nodes=2, slots=3)
    with pytest.raises(UsageError, match="give them different shapes"):
        play(plan(1, slots=1), plan(1, slots=2))
    with pytest.raises(UsageError, match="at least one stage"):
        play()
    with pytest.raises(UsageError, match="target_s must be above 0"):
        SchedulerParams(target_s=0.0)
    with pytest.raises(UsageError, match=r"within 0\.\.2"):
        play(plan(3)).start(done={0: (range(2, 5),)})
