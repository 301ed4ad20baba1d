"""One test per rule of the scheduler: failures, retries and lost gangs."""

from __future__ import annotations

from collections.abc import Sequence

from thornback.faults import Standing, StopReason
from thornback.scheduler import (
    Scheduler,
    SchedulerParams,
)
from thornback.scheduler.commands import (
    CloseGang,
    Dispatch,
    FinishRun,
    OpenGang,
    Record,
    RecordState,
    RunState,
    ShapeKey,
)
from thornback.scheduler.stages import one
from thornback.scheduler.testing import (
    GIB,
    VERDICTS,
    FakeDelta,
    FakeDependencies,
    FakeVerdict,
    Play,
    ScriptedPolicy,
    closed,
    dispatches,
    opened,
    plan,
    play,
)

# -- failures and retries --------------------------------------------------------------------------


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


def test_skipped_ranks_count_as_failed_ones_and_may_be_allowed_too() -> None:
    class OneToOne(FakeDependencies):
        """Rank i of stage 1 waits for rank i of stage 0."""

        def finished(self, stage: int, ranks: Sequence[range], ok: bool) -> FakeDelta:
            if stage == 1:
                return FakeDelta()
            if ok:
                return FakeDelta(ready=tuple((1, piece) for piece in ranks))
            return FakeDelta(skipped=tuple((1, piece, (0, -1)) for piece in ranks))

    def end_of(allowed: int) -> FinishRun:
        stages = [plan(3, max_failed=2, max_gangs=1), plan(3, max_failed=allowed, max_gangs=1)]
        game: Play[str] = Play(Scheduler(stages, OneToOne([3, 3], [[], [0]])))
        game.start()
        game.ready(0)
        game.fail(0, 0, "code")
        game.fail(1, 1, "code")
        game.succeed(2)
        game.record()
        game.succeed(3)
        assert game.scheduler.reason(1, 1) == "skipped: the same rank of stage 0 failed"
        (end,) = [*game.record(), *game.close()]
        assert isinstance(end, FinishRun)
        return end

    assert end_of(2) == FinishRun(state=RunState.SUCCEEDED)
    assert end_of(1).reason == "stage 1: 2 ranks skipped, 1 allowed"


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


def test_the_policy_is_asked_with_the_whole_history_and_a_fixed_draw() -> None:
    policy = ScriptedPolicy(VERDICTS)
    game = play(plan(1, policy=policy))
    game.start()
    game.ready(0, "a")
    game.fail(0, 0, "again", "a")
    game.fail(1, 0, "preempted", "a")
    (last,) = [c for c in game.fail(2, 0, "again", "b") if isinstance(c, Dispatch)]
    alone = Standing.UNDECIDED  # no other rank can give evidence
    assert [asked[:3] for asked in policy.asked] == [
        ("again", (), alone),
        ("preempted", (("again", "a", alone),), alone),
        ("again", (("again", "a", alone), ("preempted", "a", alone)), alone),
    ]
    draws = [draw for _, _, _, draw in policy.asked]
    assert draws[1] == draws[2] != draws[0]
    assert all(0.0 <= draw < 1.0 for draw in draws)
    assert (last.attempt, last.timeout_factor) == (3, 2.0)


def test_a_rank_goes_to_another_node_if_one_has_a_gang_and_waits_no_longer_than_said() -> None:
    game = play(plan(2, max_gangs=2))
    game.start()
    game.ready(0, "a")
    game.ready(1, "b")
    assert dispatches(game.fail(0, 0, "again", "a")) == []
    assert dispatches(game.tick(11.0)) == [(0, 2, one(0))]
    game.fail(2, 0, "again", "a")
    assert dispatches(game.succeed(1)) == [(1, 3, one(0))]


def test_a_rank_stays_where_it_is_if_there_is_no_other_node() -> None:
    game = play(plan(1))
    game.start()
    game.ready(0, "a")
    assert dispatches(game.fail(0, 0, "again", "a")) == [(0, 1, one(0))]


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


# -- lost gangs ------------------------------------------------------------------------------------


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
        while not any(culprit_in(game, a, culprit) for a in game.referee.gangs[gang].live):
            game.succeed(min(game.referee.gangs[gang].live), busy_s=0.001)
        (held,) = [a for a in game.referee.gangs[gang].live if culprit_in(game, a, culprit)]
        sizes.append(sum(map(len, game.scheduler.outstanding(held))))
        game.lost(gang, "crash")
        game.close()
        while gang + 1 not in game.referee.gangs:
            game.tick()
        game.ready(gang + 1)
    assert sizes == [8, 4, 1, 1, 1, 1], "from the second fault on, new gangs get one at a time"
    paid = [len(history) for _, history, _, _ in policy.asked if history]
    assert paid == [1, 2, 3], "the culprit pays, once it is alone"


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
    assert [history for _, history, _, _ in policy.asked] == [(), ()]
    ((_, fresh, ranks),) = dispatches(game.ready(gang))
    assert ranks == one(2), "in trouble fresh ranks go first"
    (retried,) = [c for c in game.succeed(fresh, busy_s=9.0) if isinstance(c, Dispatch)]
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


# -- no progress, suspicion ------------------------------------------------------------------------


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
    ended = {c.state: c.ranks for c in commands if isinstance(c, Record)}
    assert ended == {RecordState.FAILED: (range(3),)}, "each was lost with a gang"
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


def test_a_stage_is_not_stopped_while_something_of_it_runs() -> None:
    game = play(plan(9, max_gangs=2))
    game.start()
    game.ready(0)
    for gang in range(1, 11):
        while gang not in game.referee.gangs:
            game.tick()
        game.ready(gang)
        game.lost(gang, "crash")
        game.close()
    assert game.scheduler.counts(0).ready == 8
    assert game.scheduler.outstanding(0) == one(0)
    assert game.scheduler.waiting_reason(0) is None, "one gang is there"
    assert dispatches(game.succeed(0)), "the machines are not what fails the others"


def test_twenty_machine_faults_since_the_last_success_stop_the_stage() -> None:
    game = play(plan(3, max_gangs=1))
    game.start()
    game.ready(0)
    for assignment in range(20):
        (rank,) = game.scheduler.outstanding(assignment)[0]
        commands = game.fail(assignment, rank, "died")
    ended = [c for c in commands if isinstance(c, Record)]
    assert {c.stop for c in ended} == {StopReason.NO_PROGRESS}
    assert "20 machine faults, and no rank finished" in game.scheduler.reason(0, 2)


def test_faults_of_the_ranks_own_code_say_nothing_of_progress() -> None:
    """A last rank that may be tried thirty times is tried thirty times."""
    own = ScriptedPolicy({"own": FakeVerdict(machine_fault=False)})
    game = play(plan(1, max_gangs=1, policy=own))
    game.start()
    game.ready(0)
    for assignment in range(30):
        game.fail(assignment, 0, "own")
    assert game.scheduler.outstanding(30) == one(0)


def test_in_a_stopped_stage_what_is_returned_or_released_is_skipped() -> None:
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
    game.fail(0, 0, "died")
    commands = game.fail(3, 2, "died")
    assert not [c for c in commands if isinstance(c, Record)], "rank 1 runs"
    ended = {c.state: c.ranks for c in game.give_back(1, *one(1)) if isinstance(c, Record)}
    assert ended == {
        RecordState.FAILED: (*one(0), *one(2)),
        RecordState.SKIPPED: (*one(1), *one(3)),
    }
    game.succeed(2)
    skipped = [c.ranks for c in game.record() if isinstance(c, Record)]
    assert skipped == [one(4)]
    assert "2 machine faults" in game.scheduler.reason(0, 4)


def test_suspected_nodes_are_avoided_but_never_more_than_half() -> None:
    game = play(plan(100, max_gangs=1))
    game.start()
    game.ready(0, "a")
    (again,) = [c for c in game.lost(0, "gone", "a") if isinstance(c, OpenGang)]
    assert again.avoid == ("a",), "how many nodes there are is not known yet"
    game.ready(1, "b")
    (again,) = [c for c in game.lost(1, "preempted") if isinstance(c, OpenGang)]
    assert again.avoid == ("a",)
    game.ready(2, "b")
    game.now += 1000.0
    (again,) = [c for c in game.lost(2, "preempted") if isinstance(c, OpenGang)]
    assert again.avoid == (), "suspicion expires"
