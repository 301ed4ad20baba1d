"""Where the rules begin and end: what is *not* done, what is done once only, and by which timer."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from thornback.scheduler import Scheduler, SchedulerParams, UsageError
from thornback.scheduler.commands import CloseGang, Dispatch, OpenGang, Recall, ShapeKey
from thornback.scheduler.events import (
    CancelRequested,
    RanksSucceeded,
    Recorded,
    RunStarted,
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

# -- ranks that have failed ------------------------------------------------------------------------


def test_a_retried_rank_that_comes_back_travels_alone_again() -> None:
    game = play(plan(99, max_gangs=1))
    game.start()
    game.ready(0)
    for assignment in range(3):
        game.succeed(assignment, busy_s=0.001)
    (rank, *others) = [rank for piece in game.scheduler.outstanding(3) for rank in piece]
    game.fail(3, rank, "again")
    game.succeed(3, *others, busy_s=0.001)
    (alone,) = [c for c in game.succeed(4, busy_s=0.001) if isinstance(c, Dispatch)]
    assert (alone.ranks, alone.attempt) == (one(rank), 2)
    (again,) = [c for c in game.give_back(alone.assignment, *one(rank)) if isinstance(c, Dispatch)]
    assert (again.ranks, again.attempt) == (one(rank), 2)


def test_a_rank_that_was_given_more_memory_keeps_it_when_it_comes_back() -> None:
    game = play(plan(1))
    game.start()
    game.ready(0)
    (big,) = opened(game.fail(0, 0, "oom"))
    ((_, assignment, _),) = dispatches(game.ready(big))
    assert [c.gang for c in game.give_back(assignment, *one(0)) if isinstance(c, Dispatch)] == [big]


def test_the_wait_for_another_node_ends_by_a_timer() -> None:
    game = play(plan(2, max_gangs=2))
    game.start()
    game.ready(0, "a")
    game.ready(1, "b")
    game.tick(50.0)
    game.fail(0, 0, "again", "a")
    while not (fed := dispatches(game.tick())):
        pass
    assert fed == [(0, 2, one(0))]
    assert game.now == 60.0


def test_the_wait_for_another_node_ends_at_the_very_time_of_its_timer() -> None:
    """By a number with which x + 10.0 - x is less than 10.0."""
    game = play(plan(2, max_gangs=2))
    game.now = now = 23.08665415409843
    game.start()
    game.ready(0, "a")
    game.ready(1, "b")
    game.fail(0, 0, "again", "a")
    fed: list[object] = []
    while not fed:
        assert game.scheduler.wake_at is not None, "no other time to look is known"
        game.now = game.scheduler.wake_at
        fed += dispatches(game.tick(0.0))
    assert game.now == now + 10.0


def test_a_retry_of_any_kind_waits_for_a_gang_on_another_node() -> None:
    game = play(plan(2, max_gangs=2))
    game.start()
    game.ready(0, "a")
    game.ready(1, "b")
    assert dispatches(game.fail(0, 0, "again", "a")) == []
    assert dispatches(game.succeed(1)) == [(1, 2, one(0))]


def test_an_idle_gang_is_not_taken_from_an_equal_that_waits_for_another_node() -> None:
    game = play(plan(2, max_gangs=2), plan(1))
    game.start()
    game.ready(0, "a")
    game.ready(1, "b")
    assert dispatches(game.fail(0, 0, "again", "a")) == []


def test_a_retried_rank_borrows_an_idle_gang_of_its_shape() -> None:
    game = play(plan(1), plan(2, max_gangs=2))
    game.start()
    game.ready(0)
    game.ready(1)
    game.fail(1, 0, "later")
    game.tick(5.0)
    (again,) = [c for c in game.succeed(0, busy_s=9.0) if isinstance(c, Dispatch)]
    assert (again.gang, again.stage, again.ranks, again.attempt) == (0, 1, one(0), 2)


def test_memory_that_is_refused_may_be_tried_at_another_level() -> None:
    verdicts = dict(VERDICTS, less=FakeVerdict(memory_bytes=2 * GIB))
    game = play(plan(1, policy=ScriptedPolicy(verdicts)))
    game.start()
    game.ready(0)
    (big,) = opened(game.fail(0, 0, "oom"))
    asked = [c.shape for c in game.lost(big, "less") if isinstance(c, OpenGang)]
    assert asked == [ShapeKey(0, 2 * GIB)]


@pytest.mark.parametrize(("nodes", "told"), [(("a",), "a"), (("a", "b"), "")])
def test_a_lost_gang_names_its_node_in_the_history_if_it_has_only_one(
    nodes: tuple[str, ...], told: str
) -> None:
    policy = ScriptedPolicy(VERDICTS)
    game = play(plan(1, policy=policy, nodes=len(nodes), max_gangs=1))
    game.start()
    game.ready(0, *nodes)
    (gang,) = opened(game.lost(0, "crash"))
    ((_, assignment, _),) = dispatches(game.ready(gang, *nodes))
    game.fail(assignment, 0, "code")
    fault, ((earlier, where, _),), _, _ = policy.asked[-1]
    assert (fault, earlier, where) == ("code", "crash", told)


def test_a_node_is_suspected_only_when_the_verdict_blames_it() -> None:
    for fault, node, avoided in (("crash", "a", ()), ("again", None, ())):
        game = play(plan(9, max_gangs=2))
        game.start()
        game.ready(0, "a")
        game.ready(1, "b")
        (again,) = [c for c in game.lost(0, fault, node) if isinstance(c, OpenGang)]
        assert again.avoid == avoided, fault


def test_what_is_known_of_a_failed_rank_is_forgotten_when_it_succeeds() -> None:
    game = play(plan(2, max_gangs=1))
    game.start()
    game.ready(0)
    game.fail(0, 0, "again")
    assert list(game.scheduler._board.stages[0].failures) == [0]
    game.succeed(1)
    assert not game.scheduler._board.stages[0].failures


def test_draws_fill_the_whole_interval() -> None:
    policy = ScriptedPolicy(VERDICTS)
    game = play(plan(40, max_gangs=1, policy=policy))
    game.start()
    game.ready(0)
    for rank in range(40):
        game.fail(rank, rank, "code")
    draws = sorted(draw for _, _, _, draw in policy.asked)
    assert draws[0] < 0.2
    assert 0.8 < draws[-1] < 1.0


def test_a_node_where_two_ranks_die_is_kept_from_new_gangs() -> None:
    game = play(plan(9, max_gangs=2))
    game.start()
    game.ready(0, "a")
    game.ready(1, "b")
    ((_, second, _),) = dispatches(game.fail(0, 0, "died", "a"))
    commands = game.fail(second, 2, "died", "a")
    assert dispatches(commands) == []
    (instead,) = [c for c in commands if isinstance(c, OpenGang)]
    assert instead.avoid == ("a",)


# -- batches, records, ends ------------------------------------------------------------------------


def test_nothing_is_queued_ahead_where_a_rank_takes_as_long_as_the_worker_waits() -> None:
    for busy_s, fed in ((2.0, 1), (1.9, 2)):
        game = play(plan(9, max_gangs=1))
        game.start()
        game.ready(0)
        assert len(dispatches(game.succeed(0, busy_s=busy_s))) == fed


def test_the_seconds_of_a_report_are_for_all_that_it_names() -> None:
    game = play(plan(9, max_gangs=1))
    game.start()
    game.ready(0)
    # Only rank 0 counts; but it has not taken the 4.5 s by itself, which nothing is queued behind.
    fed = game.send(RanksSucceeded(assignment=0, ranks=(range(3),), busy_s=4.5))
    assert len(dispatches(fed)) == 2


def test_reports_without_a_time_let_batches_grow() -> None:
    game = play(plan(99, max_gangs=1))
    game.start()
    game.ready(0)
    game.send(RanksSucceeded(assignment=0, ranks=one(0)))
    assert game.scheduler.outstanding(1) == (range(1, 3),)


def test_of_a_queued_batch_that_comes_back_in_part_nothing_is_queued_there_again() -> None:
    game = play(plan(99, max_gangs=1))
    game.start()
    game.ready(0)
    for assignment in range(3):
        game.succeed(assignment, busy_s=0.001)
    game.succeed(3, busy_s=0.001)
    (queued,) = game.scheduler.outstanding(5)
    assert dispatches(game.give_back(5, queued[1:])) == []
    assert dispatches(game.succeed(4, busy_s=0.001))[0][2][0].start == queued[1]


def test_a_batch_that_hands_back_what_it_has_not_started_gets_nothing_behind_it() -> None:
    game = play(plan(99, max_gangs=1))
    game.start()
    game.ready(0)
    for assignment in range(3):
        game.succeed(assignment, busy_s=0.001)
    assert dispatches(game.succeed(3, busy_s=99.0)) == [], "ranks take long now"
    (batch,) = game.scheduler.outstanding(4)
    assert dispatches(game.give_back(4, batch[1:])) == []
    assert dispatches(game.succeed(4, busy_s=0.0))[0][2][0].start == batch[1]


def test_suspects_are_not_queued_behind_others() -> None:
    game = play(plan(400, max_gangs=2))
    game.start()
    game.ready(0)
    game.ready(1)
    for _ in range(4):
        for gang in (0, 1):
            game.succeed(min(game.referee.gangs[gang].live), busy_s=0.001)
    game.lost(0, "crash")
    first, second = game.referee.gangs[1].live
    assert dispatches(game.succeed(first, busy_s=0.001)) == []
    ((gang, _, ranks),) = dispatches(game.succeed(second, busy_s=0.001))
    assert gang == 1
    assert 1 <= sum(map(len, ranks)) <= 4


def test_a_success_that_skips_others_gives_up_the_gang_that_waited_for_them() -> None:
    class Either(FakeDependencies):
        """Stage 1 runs only if stage 0 fails."""

        def finished(self, stage: int, ranks: Sequence[range], ok: bool) -> FakeDelta:
            return FakeDelta(skipped=((1, range(1), (0, 0)),) if stage == 0 and ok else ())

    game: Play[str] = Play(Scheduler([plan(1), plan(1)], Either([1, 1], [[], [0]])))
    game.start()
    game.ready(0)
    assert closed(game.succeed(0)) == []
    assert game.record()[-1:] == [CloseGang(gang=0)]


def test_ranks_that_were_to_be_killed_are_not_asked_for_twice() -> None:
    game = play(plan(2, max_gangs=1))
    game.start()
    game.ready(0)
    kill = CancelRequested(reason="now", kill=True)
    assert game.send(kill) == [Recall(assignment=0, kill=True)]
    assert game.send(kill) == []


def test_a_run_starts_once() -> None:
    game = play(plan(3, max_gangs=1))
    game.start(done={0: one(0)})
    assert game.start(done={0: one(0)}) == []
    assert game.scheduler.counts(0).ready == 2


def test_stages_that_are_not_there_are_refused() -> None:
    for stage in (-1, 1):
        with pytest.raises(UsageError, match=f"no stage {stage}"):
            play(plan(3)).send(RunStarted(done={stage: one(0)}))
        game = play(plan(3))
        game.start()
        with pytest.raises(UsageError, match=f"no stage {stage}"):
            game.scheduler.handle(Recorded(stage=stage, ranks=one(0)), 0.0)


def test_numbers_below_zero_are_refused() -> None:
    with pytest.raises(UsageError, match="shape must be an int >= 0, not -1"):
        plan(1, shape=-1)
    with pytest.raises(UsageError, match="max_gangs must be an int >= 1, not 0"):
        plan(1, max_gangs=0)
    with pytest.raises(UsageError, match="max_batch must be an int >= 1, not True"):
        SchedulerParams(max_batch=True)
