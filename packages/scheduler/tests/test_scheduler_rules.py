"""One test per rule of the scheduler."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from thornback.scheduler import (
    InvalidTransition,
    RankState,
    Scheduler,
    SchedulerParams,
    StagePlan,
    UsageError,
)
from thornback.scheduler.commands import (
    CloseGang,
    Command,
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
    NodeDraining,
    Ranks,
    RanksReturned,
    RanksSucceeded,
    Recorded,
    RunStarted,
    Ticked,
)
from thornback.scheduler.testing import (
    FakeDelta,
    FakeDependencies,
    FakeVerdict,
    Play,
    ScriptedPolicy,
)

GIB = 2**30
VERDICTS = {
    "code": FakeVerdict(retry=False, reason="its code failed"),
    "again": FakeVerdict(timeout_factor=2.0),
    "later": FakeVerdict(delay_s=5.0),
    "crash": FakeVerdict(blames_rank=True, reason="its worker died"),
    "elsewhere": FakeVerdict(avoid_node=True, blames_node=True),
    "preempted": FakeVerdict(charged=False),
    "oom": FakeVerdict(memory_bytes=3 * GIB),
    "impossible": FakeVerdict(retry=False, reason="no node is that large"),
    "waited": FakeVerdict(delay_s=1.0),
}


def plan(world_size: int, **more: object) -> StagePlan[str]:
    policy = more.pop("policy", None) or ScriptedPolicy(VERDICTS)
    return StagePlan(world_size=world_size, policy=policy, **more)  # type: ignore[arg-type]  # tests


def play(
    *stages: StagePlan[str],
    parents: Sequence[Sequence[int]] = (),
    params: SchedulerParams | None = None,
) -> Play[str]:
    sizes = [stage.world_size for stage in stages]
    return Play(Scheduler(stages, FakeDependencies(sizes, parents), params, seed=3))


def dispatches(commands: Sequence[Command]) -> list[tuple[int, int, Ranks]]:
    """(gang, assignment, ranks)."""
    return [(c.gang, c.assignment, c.ranks) for c in commands if isinstance(c, Dispatch)]


def opened(commands: Sequence[Command]) -> list[int]:
    return [command.gang for command in commands if isinstance(command, OpenGang)]


def closed(commands: Sequence[Command]) -> list[int]:
    return [command.gang for command in commands if isinstance(command, CloseGang)]


def one(rank: int) -> Ranks:
    return (range(rank, rank + 1),)


# -- a whole journey ------------------------------------------------------------------------------


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


# -- slots and batches ----------------------------------------------------------------------------


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


# -- stale events ---------------------------------------------------------------------------------


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


# -- failures and retries -------------------------------------------------------------------------


def test_a_failure_for_good_is_recorded_and_skips_what_depends_on_it() -> None:
    game = play(plan(1), plan(2), parents=[[], [0]])
    game.start()
    game.ready(0)
    commands = game.fail(0, 0, "code")
    assert [
        (c.stage, c.ranks, c.assignment, c.state) for c in commands if isinstance(c, Record)
    ] == [
        (0, one(0), 0, RecordState.FAILED),
        (1, (range(0, 2),), None, RecordState.SKIPPED),
    ]
    assert game.scheduler.reason(0, 0) == "its code failed"
    game.close()
    (end,) = game.record()
    assert end == FinishRun(
        state=RunState.FAILED, reason="stage 0: 1 ranks failed; stage 1: 2 ranks skipped"
    )


def test_so_many_failures_as_allowed_are_a_success() -> None:
    game = play(plan(2, max_failed=1, max_gangs=1))
    game.start()
    game.ready(0)
    game.fail(0, 0, "code")
    game.succeed(1)
    game.record()
    assert game.close() == [FinishRun(state=RunState.SUCCEEDED)]


def test_a_retry_waits_for_its_time_and_travels_alone_with_its_attempt_number() -> None:
    game = play(plan(9, max_gangs=1))
    game.start()
    game.ready(0)
    game.succeed(0, busy_s=9.0)
    game.fail(1, 1, "later")
    assert game.scheduler.counts(0).backoff == 1
    assert game.scheduler.wake_at == game.now + 5.0
    game.tick()
    (again,) = [c for c in game.succeed(2, busy_s=0.001) if isinstance(c, Dispatch)][:1]
    assert (again.ranks, again.attempt) == (one(1), 2)
    assert game.scheduler.counts(0).backoff == 0


def test_time_never_goes_back() -> None:
    game = play(plan(2, max_gangs=1))
    game.start()
    game.tick(100.0)
    game.now = 10.0
    game.ready(0)
    game.fail(0, 0, "later")
    assert game.scheduler.wake_at == 105.0


def test_the_policy_is_asked_with_the_charged_history_and_a_fixed_draw() -> None:
    policy = ScriptedPolicy(VERDICTS)
    game = play(plan(1, policy=policy))
    game.start()
    game.ready(0, "a")
    game.fail(0, 0, "again", "a")
    game.fail(1, 0, "preempted", "a")
    (last,) = [c for c in game.fail(2, 0, "again", "b") if isinstance(c, Dispatch)]
    assert [(fault, history) for fault, history, _ in policy.asked] == [
        ("again", ()),
        ("preempted", (("again", "a"),)),
        ("again", (("again", "a"),)),
    ]
    draws = [draw for _, _, draw in policy.asked]
    assert draws[1] == draws[2] != draws[0]
    assert all(0.0 <= draw < 1.0 for draw in draws)
    assert (last.attempt, last.timeout_factor) == (3, 2.0)


def test_a_rank_goes_to_another_node_if_one_has_a_gang_and_waits_no_longer_than_said() -> None:
    game = play(plan(2, max_gangs=2))
    game.start()
    game.ready(0, "a")
    game.ready(1, "b")
    assert dispatches(game.fail(0, 0, "elsewhere", "a")) == []
    assert dispatches(game.tick(11.0)) == [(0, 2, one(0))]
    game.fail(2, 0, "elsewhere", "a")
    assert dispatches(game.succeed(1)) == [(1, 3, one(0))]


def test_a_rank_stays_where_it_is_if_there_is_no_other_node() -> None:
    game = play(plan(1))
    game.start()
    game.ready(0, "a")
    assert dispatches(game.fail(0, 0, "elsewhere", "a")) == [(0, 1, one(0))]


def test_more_memory_is_another_shape_with_one_slot() -> None:
    game = play(plan(3, slots=4, max_gangs=2))
    game.start()
    game.ready(0)
    commands = game.fail(0, 0, "oom")
    assert [c.shape for c in commands if isinstance(c, OpenGang)] == [ShapeKey(0, 3 * GIB)]
    (big,) = opened(commands)
    (again,) = [c for c in game.ready(big) if isinstance(c, Dispatch)]
    assert (again.gang, again.ranks, again.attempt) == (big, one(0), 2)
    assert big in closed(game.succeed(again.assignment))


def test_memory_that_no_node_has_is_judged_for_each_rank_that_waits_for_it() -> None:
    verdicts = dict(VERDICTS, refused=FakeVerdict(retry=False, reason="the most there is"))
    game = play(plan(2, policy=ScriptedPolicy(verdicts), max_gangs=2))
    game.start()
    game.ready(0)
    game.succeed(0)
    (big,) = opened(game.fail(1, 1, "oom"))
    game.close()
    commands = game.lost(big, "refused")
    assert [(c.ranks, c.state) for c in commands if isinstance(c, Record)] == [
        (one(1), RecordState.FAILED)
    ]
    assert game.scheduler.reason(0, 1) == "the most there is"


# -- lost gangs -----------------------------------------------------------------------------------


def grown(world_size: int = 200, slots: int = 1) -> Play[str]:
    """A run in which batches have grown: one gang, which holds assignments of many ranks."""
    game = play(plan(world_size, max_gangs=1, slots=slots))
    game.start()
    game.ready(0)
    for assignment in range(6):
        game.succeed(assignment, busy_s=0.001)
    game.record()
    return game


def test_a_lost_worker_sends_a_batch_back_in_halves_until_the_culprit_is_alone() -> None:
    game = grown()
    policy = game.scheduler._board.stages[0].plan.policy  # the script that was given
    assert isinstance(policy, ScriptedPolicy)
    culprit = game.scheduler.outstanding(6)[0].start
    sizes = []
    for gang in range(6):
        (held,) = [a for a in game.referee.gangs[gang].live if culprit_in(game, a, culprit)]
        sizes.append(sum(map(len, game.scheduler.outstanding(held))))
        game.lost(gang, "crash")
        game.close()
        while gang + 1 not in game.referee.gangs:
            game.tick()
        game.ready(gang + 1)
    assert sizes == [8, 4, 2, 1, 1, 1]
    paid = [len(history) for _, history, _ in policy.asked if history]
    assert paid == [1, 2], "the culprit pays, once it is alone"


def culprit_in(game: Play[str], assignment: int, rank: int) -> bool:
    return any(rank in piece for piece in game.scheduler.outstanding(assignment))


def test_a_preempted_worker_sends_its_batch_back_whole() -> None:
    game = grown()
    size = sum(map(len, game.scheduler.outstanding(6)))
    (gang,) = opened(game.lost(0, "preempted"))
    game.close()
    (_, _, ranks), *_ = dispatches(game.ready(gang))
    assert sum(map(len, ranks)) >= size > 1


def test_only_a_rank_that_can_have_been_running_pays_for_a_lost_worker() -> None:
    policy = ScriptedPolicy(VERDICTS)
    game = play(plan(9, max_gangs=1, policy=policy))
    game.start()
    game.ready(0)
    fed = dispatches(game.succeed(0, busy_s=0.4))
    assert [ranks for _, _, ranks in fed] == [one(1), one(2)]
    (gang,) = opened(game.lost(0, "crash"))
    # Once for the gang, once for rank 1, which was running; rank 2 was queued behind it.
    assert [history for _, history, _ in policy.asked] == [(), ()]
    commands = game.ready(gang)
    (retried,) = [c for c in commands if isinstance(c, Dispatch)]
    assert (retried.ranks, retried.attempt) == (one(1), 2)


def test_nothing_is_queued_behind_a_suspect_or_before_it() -> None:
    game = play(plan(20, max_gangs=1))
    game.start()
    game.ready(0)
    fed = dispatches(game.succeed(0, busy_s=0.1))
    assert [ranks for _, _, ranks in fed] == [(range(1, 3),), (range(3, 5),)]
    game.fail(1, 1, "again")
    assert dispatches(game.succeed(1, busy_s=0.1)) == [], "the slot shall get idle for it"
    (retried,) = [c for c in game.succeed(2, busy_s=0.1) if isinstance(c, Dispatch)]
    assert (retried.ranks, retried.attempt) == (one(1), 2)
    assert len(dispatches(game.succeed(3, busy_s=0.1))) == 2


def test_every_opened_gang_is_closed_once_also_after_a_loss() -> None:
    game = play(plan(1))
    game.start()
    assert game.lost(0, "waited")[0] == CloseGang(gang=0, kill=True)
    assert game.lost(0, "waited") == []
    assert game.close() == []
    game.tick()
    assert game.referee.opened == 2


# -- opening --------------------------------------------------------------------------------------


def test_gangs_are_asked_for_as_there_is_work_and_at_most_eight_at_a_time() -> None:
    assert len(opened(play(plan(3, slots=2)).start())) == 2
    game = play(plan(100))
    assert len(opened(game.start())) == 8
    assert opened(game.ready(0)) == [8]
    assert len(opened(play(plan(100, max_gangs=3)).start())) == 3


def test_pending_gangs_are_closed_when_the_work_is_gone() -> None:
    game = play(plan(2))
    game.start()
    game.ready(0)
    game.succeed(0)
    assert closed(game.succeed(1)) == [1, 0] or closed(game.tick()) == []
    assert sorted(n for n, g in game.referee.gangs.items() if g.state == "closing") == [0, 1]


def test_a_pending_gang_lingers_while_its_work_may_come_back() -> None:
    game = play(plan(3))
    game.start()
    game.ready(0)
    game.ready(1)
    game.succeed(0, busy_s=9.0)
    assert game.referee.gangs[2].state == "opening"
    assert closed(game.tick(5.0)) == [2]


def test_a_gang_that_cannot_be_opened_is_asked_for_again_later_and_later() -> None:
    game = play(plan(5))
    game.start()
    gaps = []
    gang = 0
    for _ in range(4):
        for other, seen in list(game.referee.gangs.items()):
            if seen.state == "opening":
                game.lost(other, "waited")
        game.close()
        asked_at = game.now
        while not (again := opened(game.tick())):
            pass
        assert len(again) == 1, "slow start"
        gang = again[0]
        gaps.append(game.now - asked_at)
    assert gaps == [1.0, 2.0, 4.0, 8.0]
    assert len(opened(game.ready(gang))) == 4


def test_a_shape_that_does_not_fit_fails_its_stage_only_if_it_has_no_gang() -> None:
    game = play(plan(2, max_gangs=2))
    game.start()
    game.ready(0)
    assert game.lost(1, "impossible") == [CloseGang(gang=1, kill=True)]
    game = play(plan(2, max_gangs=2), plan(1, shape=1), parents=[[], [0]])
    game.start()
    records = [c for c in game.lost(0, "impossible") if isinstance(c, Record)]
    assert [(r.stage, r.ranks, r.state) for r in records] == [
        (0, (range(0, 2),), RecordState.FAILED),
        (1, one(0), RecordState.SKIPPED),
    ]
    assert game.scheduler.reason(0, 1) == "no node is that large"


def test_a_refusal_beside_other_shapes_counts_only_when_repeated() -> None:
    game = play(plan(1), plan(1, shape=1))
    game.start()
    game.ready(0)
    for gang in (1, 2):
        assert not [c for c in game.lost(gang, "impossible") if isinstance(c, Record)]
        game.tick()
    assert [c.stage for c in game.lost(3, "impossible") if isinstance(c, Record)] == [1]


def test_ten_gangs_lost_in_a_row_stop_the_stage() -> None:
    game = play(plan(3, max_gangs=1))
    game.start()
    for gang in range(10):
        game.ready(gang)
        commands = game.lost(gang, "crash")
        game.close()
        if gang < 9:
            while not game.referee.gangs.get(gang + 1):
                game.tick()
    assert [c.ranks for c in commands if isinstance(c, Record)] == [(range(0, 3),)]
    assert game.scheduler.reason(0, 0).startswith("no progress: 10 gangs in a row were lost")
    (end,) = game.record()
    assert isinstance(end, FinishRun)
    assert "no progress" in end.reason


def test_a_rank_that_finishes_or_a_preemption_does_not_count_as_no_progress() -> None:
    game = play(plan(60, max_gangs=1))
    game.start()
    for gang in range(24):
        commands = game.ready(gang)
        (_, assignment, _), *_ = dispatches(commands)
        if gang % 6 == 5:
            game.succeed(assignment, busy_s=9.0)
        game.lost(gang, "crash" if gang % 2 else "preempted")
        game.close()
        while not game.referee.gangs.get(gang + 1):
            game.tick()
    assert game.scheduler.counts(0).failed == 0


def test_a_rack_that_dies_is_one_loss_not_twelve() -> None:
    game = play(plan(100))
    game.start()
    for gang in range(12):
        game.ready(gang)
    for gang in range(12):
        game.lost(gang, "crash")
    assert game.scheduler.counts(0).failed == 0


def test_a_stage_is_not_stopped_while_a_gang_works_that_is_older_than_the_trouble() -> None:
    game = play(plan(9, max_gangs=2))
    game.start()
    game.ready(0)
    for gang in range(1, 14):
        game.tick(1.0)
        game.ready(gang)
        game.lost(gang, "crash")
        game.close()
        while gang + 1 not in game.referee.gangs:
            game.tick()
    assert game.scheduler.counts(0).failed == 0
    assert game.scheduler.outstanding(0) == one(0)


def test_twenty_faults_in_a_row_stop_the_stage() -> None:
    game = play(plan(3, max_gangs=1))
    game.start()
    game.ready(0)
    for assignment in range(20):
        (rank,) = game.scheduler.outstanding(assignment)[0]
        commands = game.fail(assignment, rank, "again")
    assert [c.state for c in commands if isinstance(c, Record)] == [RecordState.FAILED]
    assert "20 attempts in a row failed" in game.scheduler.reason(0, 2)


def test_in_a_stopped_stage_whatever_comes_back_or_is_released_fails_too() -> None:
    class InParts(FakeDependencies):
        """Rank 4 of stage 0 waits for stage 1."""

        def start(self) -> FakeDelta:
            return FakeDelta(ready=((0, range(4)), (1, range(1))))

        def finished(self, stage: int, ranks: Sequence[range], ok: bool) -> FakeDelta:
            return FakeDelta(ready=((0, range(4, 5)),)) if stage == 1 else FakeDelta()

    stages = [plan(5, slots=2, max_gangs=1), plan(1, shape=1)]
    params = SchedulerParams(no_progress_faults=2)
    game: Play[str] = Play(Scheduler(stages, InParts([5, 1]), params))
    game.start()
    game.ready(0)
    game.ready(1)
    game.fail(0, 0, "again")
    assert game.scheduler.counts(0).failed == 0
    game.fail(3, 0, "again")
    assert game.scheduler.counts(0).failed == 3, "0 and what was ready"
    assert game.scheduler.counts(0).running == 1
    failed = [c.ranks for c in game.give_back(1, *one(1)) if isinstance(c, Record)]
    assert failed == [one(1)]
    game.succeed(2)
    failed = [c.ranks for c in game.record() if isinstance(c, Record)]
    assert failed == [one(4)]
    assert "2 attempts in a row" in game.scheduler.reason(0, 4)


def test_blamed_nodes_are_avoided_but_never_more_than_half() -> None:
    game = play(plan(100, max_gangs=1))
    game.start()
    game.ready(0, "a")
    (again,) = [c for c in game.lost(0, "elsewhere", "a") if isinstance(c, OpenGang)]
    assert again.avoid == (), "there is no other node yet"
    game.ready(1, "b")
    (again,) = [c for c in game.lost(1, "preempted") if isinstance(c, OpenGang)]
    assert again.avoid == ("a",)
    game.ready(2, "b")
    game.now += 1000.0
    (again,) = [c for c in game.lost(2, "preempted") if isinstance(c, OpenGang)]
    assert again.avoid == (), "suspicion expires"


def test_avoidance_is_dropped_when_it_makes_a_shape_impossible() -> None:
    game = play(plan(100, max_gangs=1))
    game.start()
    game.ready(0, "b")
    game.lost(0, "preempted")
    game.ready(1, "a")
    game.lost(1, "elsewhere", "a")
    (again,) = [c for c in game.lost(2, "impossible") if isinstance(c, OpenGang)]
    assert again.avoid == ()
    assert game.scheduler.counts(0).failed == 0


# -- sharing a cluster ----------------------------------------------------------------------------


def test_higher_priority_goes_first_then_the_order_of_the_job() -> None:
    game = play(plan(1), plan(1), plan(1, priority=1))
    game.start()
    commands = game.ready(0)
    assert [c.stage for c in commands if isinstance(c, Dispatch)] == [2]


def test_a_warm_gang_is_handed_to_the_next_stage_of_its_shape() -> None:
    game = play(plan(1), plan(1), parents=[[], [0]])
    game.start()
    game.ready(0)
    assert closed(game.succeed(0)) == []
    assert dispatches(game.record()) == [(0, 1, one(0))]
    assert game.scheduler.counts(1).gangs == 1


def test_an_idle_gang_is_closed_when_nobody_can_want_its_shape() -> None:
    game = play(plan(1), plan(1, shape=1), parents=[[], [0]])
    game.start()
    game.ready(0)
    assert closed(game.succeed(0)) == [0]


def test_an_idle_warm_gang_is_given_up_to_a_shape_that_waits() -> None:
    game = play(plan(1), plan(1, shape=1), plan(1), parents=[[], [], [1]])
    game.start()
    game.ready(0)
    assert closed(game.succeed(0)) == [], "stage 2 can want it"
    assert closed(game.tick(4.0)) == []
    assert closed(game.tick(1.0)) == [0]


def test_a_shape_that_starves_gets_the_gang_of_another_at_its_free_moment() -> None:
    game = play(plan(50, max_gangs=2), plan(1, shape=1))
    game.start()
    game.ready(0)
    game.ready(1)
    game.succeed(0, busy_s=9.0)
    game.succeed(1, busy_s=9.0)
    game.tick(59.0)
    assert not [g for g in game.scheduler._board.gangs.values() if g.yields_to]
    commands = game.tick(1.0)
    assert [type(c) for c in commands] == [Recall]
    victim = 1
    (running,) = game.referee.gangs[victim].live
    assert closed(game.succeed(running, busy_s=9.0)) == [victim]
    assert opened(game.close()) == [], "the room is for the other shape"
    assert "yielded" not in (game.scheduler.waiting_reason(0) or "")
    (starving,) = [n for n, g in game.referee.gangs.items() if g.state == "opening"]
    game.ready(starving)
    assert game.scheduler.counts(1).running == 1


def test_a_stage_that_starves_is_handed_a_warm_gang_of_its_shape_and_keeps_it() -> None:
    game = play(plan(50, max_gangs=2, slots=2), plan(9, slots=2))
    game.start()
    game.ready(0)
    game.ready(1)
    for assignment in range(4):
        game.succeed(assignment, busy_s=9.0)
    game.tick(60.0)
    (victim,) = [g for g in game.scheduler._board.gangs.values() if g.yields_to]
    for assignment in list(victim.live):
        commands = game.succeed(assignment, busy_s=9.0)
    assert [(c.gang, c.stage) for c in commands if isinstance(c, Dispatch)] == [
        (victim.number, 1),
        (victim.number, 1),
    ]
    assert game.referee.gangs[victim.number].state == "ready"
    (first, _) = victim.live
    commands = game.succeed(first, busy_s=9.0)
    assert [c.stage for c in commands if isinstance(c, Dispatch)] == [1]


def test_higher_priority_takes_a_gang_at_its_next_free_moment() -> None:
    game = play(plan(1), plan(50, max_gangs=1), plan(5, priority=1), parents=[[], [], [0]])
    game.start()
    game.ready(0)
    game.ready(1)
    game.succeed(0, busy_s=9.0)
    game.record()
    (running,) = game.referee.gangs[1].live
    commands = game.succeed(running, busy_s=9.0)
    assert [(c.gang, c.stage) for c in commands if isinstance(c, Dispatch)] == [(1, 2)]


def test_idle_gangs_are_kept_while_a_batch_may_be_handed_back() -> None:
    game = play(plan(21, max_gangs=2))
    game.start()
    game.ready(0)
    number = 0
    while game.scheduler.counts(0).ready:
        game.succeed(number, busy_s=0.4)
        number += 1
    game.ready(1)
    assert game.scheduler.counts(0).running == 2, "one runs, one waits behind it"
    last = max(game.referee.gangs[0].live)
    assert dispatches(game.give_back(last, *game.scheduler.outstanding(last))) == [
        (1, last + 1, one(20))
    ]


def test_the_only_gang_is_not_taken_for_a_stage_of_less_priority() -> None:
    game = play(plan(50, max_gangs=1), plan(1, shape=1))
    game.start()
    game.ready(0)
    game.succeed(0, busy_s=9.0)
    game.tick(61.0)
    assert not [g for g in game.scheduler._board.gangs.values() if g.yields_to]


def test_waiting_reason_names_why_there_is_no_gang() -> None:
    game = play(plan(1))
    game.start()
    assert game.scheduler.waiting_reason(0) is None
    game.lost(0, "waited")
    assert "asked again in 1.0 s" in (game.scheduler.waiting_reason(0) or "")


# -- drains ---------------------------------------------------------------------------------------


def test_a_draining_gang_is_replaced_gets_no_long_work_and_is_closed_when_free() -> None:
    game = play(plan(9, max_gangs=1))
    game.start()
    game.ready(0, "a")
    commands = game.send(NodeDraining(node="a", left_s=60.0))
    assert [type(c) for c in commands] == [Recall, OpenGang], commands
    assert game.send(NodeDraining(node="a", left_s=60.0)) == []
    assert closed(game.succeed(0, busy_s=50.0)) == [0]
    assert dispatches(game.ready(1, "a")) == [(1, 1, one(1))], "the only place there is"
    assert game.send(NodeDraining(node="a", left_s=50.0)) == []


def test_a_draining_gang_still_gets_what_it_can_finish() -> None:
    game = play(plan(99, max_gangs=1))
    game.start()
    game.ready(0, "a")
    game.succeed(0, busy_s=1.0)
    game.send(NodeDraining(node="a", left_s=10.0))
    assert len(dispatches(game.succeed(1, busy_s=1.0))) <= 1
    assert game.referee.gangs[0].state == "ready"
    game.now += 9.0
    for assignment in list(game.referee.gangs[0].live):
        game.succeed(assignment, busy_s=1.0)
    assert game.referee.gangs[0].state == "closing"


# -- ends -----------------------------------------------------------------------------------------


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


# -- plans ----------------------------------------------------------------------------------------


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
