"""Where the rules about gangs begin and end: see also `test_scheduler_edges.py`."""

from __future__ import annotations

import math

import pytest

from thornback.scheduler import SchedulerParams
from thornback.scheduler.commands import Dispatch, OpenGang, Recall, ShapeKey
from thornback.scheduler.events import NodeDraining
from thornback.scheduler.stages import one
from thornback.scheduler.testing import (
    GIB,
    VERDICTS,
    FakeVerdict,
    Play,
    ScriptedPolicy,
    closed,
    dispatches,
    opened,
    plan,
    play,
)


def next_gang(game: Play[str], gang: int) -> None:
    """Let time pass until this gang is asked for."""
    while gang not in game.referee.gangs:
        game.tick()


# -- gangs -----------------------------------------------------------------------------------------


def test_stages_of_one_shape_ask_for_eight_gangs_together() -> None:
    assert len(opened(play(plan(5), plan(100)).start())) == 8


def test_a_stage_with_room_for_one_gang_takes_a_warm_one() -> None:
    game = play(plan(1), plan(1, max_gangs=1), parents=[[], [0]])
    game.start()
    game.ready(0)
    game.succeed(0)
    commands = game.record()
    assert dispatches(commands) == [(0, 1, one(0))]
    assert opened(commands) == []


def test_ten_openings_that_fail_in_a_row_stop_the_stage() -> None:
    game = play(plan(2, max_gangs=1))
    game.start()
    for gang in range(10):
        assert game.scheduler.counts(0).ready == 2
        next_gang(game, gang)
        game.lost(gang, "waited")
        game.close()
    assert game.scheduler.counts(0).skipped == 2
    assert "10 gangs in a row" in game.scheduler.reason(0, 1)


def test_a_stage_in_trouble_waits_for_what_runs_and_dispatches_nothing_more() -> None:
    game = play(plan(20, max_gangs=2))
    game.start()
    game.tick(1.0)
    game.ready(1)
    game.lost(1, "crash")
    game.close()
    game.tick(1.0)
    ((_, running, _),) = dispatches(game.ready(0))
    for gang in range(2, 11):
        next_gang(game, gang)
        game.tick(1.0)
        game.ready(gang)
        game.lost(gang, "crash")
        game.close()
    counts = game.scheduler.counts(0)
    assert (counts.ready, counts.running, counts.gangs) == (19, 1, 1)
    assert game.scheduler.outstanding(running)
    game.lost(0, "crash")
    counts = game.scheduler.counts(0)
    assert (counts.failed, counts.skipped) == (11, 9), "those that were lost with their gangs"


def test_a_stage_that_is_stopped_fails_also_what_waits_for_a_timer() -> None:
    policy = ScriptedPolicy(
        {"later": FakeVerdict(delay_s=5.0, machine_fault=True), "code": VERDICTS["code"]}
    )
    params = SchedulerParams(no_progress_faults=2)
    game = play(plan(5, slots=3, max_gangs=1, policy=policy), params=params)
    game.start()
    game.ready(0)
    game.fail(0, 0, "later")
    assert game.scheduler.counts(0).backoff == 1
    game.fail(3, 3, "later")
    assert game.scheduler.counts(0).running == 2, "these may succeed"
    for assignment, rank in ((1, 1), (2, 2)):
        game.fail(assignment, rank, "code")
    counts = game.scheduler.counts(0)
    assert (counts.backoff, counts.failed, counts.skipped) == (0, 4, 1)


def test_a_stage_in_trouble_asks_batches_back_and_lets_others_be() -> None:
    params = SchedulerParams(no_progress_faults=1)
    game = play(plan(99, max_gangs=1), plan(99, shape=1, max_gangs=1), params=params)
    game.start()
    game.ready(0)
    game.ready(1)
    for gang in (0, 1):
        for _ in range(3):
            game.succeed(min(game.referee.gangs[gang].live), busy_s=0.001)
    first, second = game.referee.gangs[0].live
    commands = game.fail(first, game.scheduler.outstanding(first)[0].start, "died")
    recalled = [c.assignment for c in commands if isinstance(c, Recall)]
    assert recalled == [first, second]


def test_a_pending_gang_is_given_up_by_a_timer_and_each_time_anew() -> None:
    game = play(plan(4, max_gangs=3))
    game.start()
    game.ready(0)
    game.ready(1)
    game.tick(1.0)
    game.succeed(0, busy_s=9.0)
    game.succeed(1, busy_s=9.0)
    assert game.scheduler.counts(0).ready == 0
    game.tick(3.0)
    game.lost(0, "preempted")
    game.close()
    game.tick(1.0)
    game.succeed(3, busy_s=9.0)
    assert game.scheduler.counts(0).ready == 0, "again, since 5.0"
    while not (gone := closed(game.tick())):
        pass
    assert gone == [2]
    assert game.now == 10.0


def test_a_pending_gang_lingers_also_where_an_earlier_one_has_become_ready() -> None:
    game = play(plan(5, max_gangs=3))
    game.start()
    game.ready(0)
    game.ready(1)
    for running in (0, 1, 2):
        game.succeed(running, busy_s=9.0)
    assert game.scheduler.counts(0).ready == 0, "the third is not needed, since 0.0"
    game.ready(2)
    game.tick(20.0)
    game.lost(0, "preempted")
    assert opened(game.lost(1, "preempted")) == [3]
    (running,) = game.referee.gangs[2].live
    assert closed(game.succeed(running, busy_s=9.0)) == []
    assert game.scheduler.counts(0).ready == 0, "nor is the fourth, since 20.0"
    assert closed(game.tick(4.9)) == []
    assert closed(game.tick(0.1)) == [3]


def test_what_a_batch_still_needs_is_what_its_ranks_take_together() -> None:
    for left_s, recalled in ((0.7, [4, 5]), (0.9, [5]), (1.1, [])):
        game = play(plan(99, max_gangs=1))
        game.start()
        game.ready(0, "a")
        for assignment in range(4):
            game.succeed(assignment, busy_s=0.1 * len(game.scheduler.outstanding(assignment)[0]))
        assert [len(game.scheduler.outstanding(n)[0]) for n in (4, 5)] == [4, 5]
        commands = game.send(NodeDraining(node="a", left_s=left_s))
        assert [c.assignment for c in commands if isinstance(c, Recall)] == recalled


def test_only_gangs_on_a_draining_node_drain() -> None:
    game = play(plan(9, max_gangs=2))
    game.start()
    game.ready(0, "a")
    game.ready(1, "b")
    commands = game.send(NodeDraining(node="a", left_s=60.0))
    assert commands == [Recall(assignment=0), OpenGang(gang=2, shape=ShapeKey(0), avoid=("a",))]
    assert dispatches(game.succeed(1, busy_s=9.0)) == [(1, 2, one(2))]


def test_work_on_a_draining_node_takes_half_of_the_time_that_is_left() -> None:
    game = play(plan(9, max_gangs=1))
    game.start()
    game.ready(0, "a")
    game.succeed(0, busy_s=3.0)
    assert [type(c) for c in game.send(NodeDraining(node="a", left_s=10.0))] == [OpenGang]
    assert dispatches(game.succeed(1, busy_s=3.0)) == [(0, 2, one(2))]
    game.now = 5.0
    assert closed(game.succeed(2, busy_s=3.0)) == [0]


@pytest.mark.parametrize(("left_s", "busy_s"), [(1e300, 1e-300), (math.inf, 1.0), (9.0, 0.0)])
def test_what_fits_on_a_draining_node_may_be_without_bounds(left_s: float, busy_s: float) -> None:
    game = play(plan(9, max_gangs=1))
    game.start()
    game.ready(0, "a")
    game.succeed(0, busy_s=busy_s)
    game.send(NodeDraining(node="a", left_s=left_s))
    held = list(game.referee.gangs[0].live)
    commands = [c for number in held for c in game.succeed(number, busy_s=busy_s)]
    assert [gang for gang, _, _ in dispatches(commands)] == [0]


def test_a_batch_on_a_draining_node_is_no_larger_than_what_fits() -> None:
    game = play(plan(999, max_gangs=1))
    game.start()
    game.ready(0, "a")
    for assignment in range(4):
        size = len(game.scheduler.outstanding(assignment)[0])
        game.succeed(assignment, busy_s=0.125 * size)
    game.send(NodeDraining(node="a", left_s=9.0))
    game.now += 8.1
    for assignment in (4, 5):
        commands = game.succeed(assignment, busy_s=0.5)
    assert [len(ranks[0]) for _, _, ranks in dispatches(commands)] == [3], "in 0.45 s, of 4"


# -- yielding --------------------------------------------------------------------------------------


def starving(gangs: int, *others: int, params: SchedulerParams | None = None) -> Play[str]:
    """Return a run of which stage 0 has so many gangs, and stages of other shapes wait for one:
    until the first is asked to yield."""
    waiting = (plan(1, shape=shape) for shape in others)
    game = play(plan(99, max_gangs=gangs), *waiting, params=params)
    game.start()
    for gang in range(gangs):
        game.ready(gang)
    for gang in range(gangs):
        (running,) = game.referee.gangs[gang].live
        game.succeed(running, busy_s=9.0)
    game.record()  # else nothing is dispatched, and nobody is asked to yield
    while not any(isinstance(command, Recall) for command in game.tick()):
        assert game.now < 600.0, "nobody is asked to yield"
    return game


def free(game: Play[str], gang: int) -> list[int]:
    """End what a gang runs; return the gangs that are closed then."""
    (running,) = game.referee.gangs[gang].live
    return closed(game.succeed(running, busy_s=9.0))


def test_a_shape_that_starves_is_helped_by_a_timer_and_not_more_often() -> None:
    game = starving(4, 1)
    assert game.now == 60.0
    for _ in range(3):
        assert game.tick(19.0) == []
    assert [type(c) for c in game.tick(4.0)] == [Recall], "a minute later, it is as hungry as ever"


def test_a_shape_that_starves_is_helped_in_time_also_when_idle_gangs_are_kept_for_longer() -> None:
    assert starving(4, 1, params=SchedulerParams(yield_after_s=3.0, linger_s=5.0)).now == 3.0


def test_who_was_asked_to_yield_works_on_when_it_is_not_needed_any_more() -> None:
    game = starving(2, 1)
    (running,) = game.referee.gangs[1].live
    assert [gang for gang, _, _ in dispatches(game.ready(2))] == [2]
    assert [gang for gang, _, _ in dispatches(game.succeed(running, busy_s=9.0))] == [1]


def test_others_that_starve_keep_their_pending_gangs_when_room_is_made() -> None:
    game = starving(2, 1, 2)
    assert free(game, 1) == [1]
    assert [n for n, seen in game.referee.gangs.items() if seen.state == "opening"] == [2, 3]


def test_who_made_room_gives_up_what_it_still_asks_for() -> None:
    game = play(plan(99, max_gangs=3), plan(1, shape=1))
    game.start()
    for gang in (0, 1):
        game.ready(gang)
    for gang in (0, 1):
        (running,) = game.referee.gangs[gang].live
        game.succeed(running, busy_s=9.0)
    game.tick(60.0)
    assert free(game, 1) == [1, 2], "and not 3, for which the room is"


def test_a_stage_that_waits_for_all_the_gangs_it_may_have_is_helped_too() -> None:
    game = play(plan(99, max_gangs=2), plan(1, shape=1, max_gangs=1))
    game.start()
    game.ready(0)
    game.ready(1)
    for running in (0, 1):
        game.succeed(running, busy_s=9.0)
    (recall,) = game.tick(60.0)
    assert recall == Recall(assignment=3)
    assert free(game, 1) == [1], "one that is asked for stands under `max_gangs` already"
    game.close()
    assert [gang for gang, _, _ in dispatches(game.ready(2))] == [2]


def test_a_warm_gang_is_had_in_exchange_for_the_last_pending_one() -> None:
    game = play(plan(50, max_gangs=2), plan(9, max_gangs=1))
    game.start()
    game.ready(0)
    game.ready(1)
    for running in (0, 1):
        game.succeed(running, busy_s=9.0)
    game.tick(60.0)
    (running,) = game.referee.gangs[1].live
    commands = game.succeed(running, busy_s=9.0)
    assert [(c.gang, c.stage) for c in commands if isinstance(c, Dispatch)] == [(1, 1)]
    assert (game.scheduler.counts(0).gangs, game.scheduler.counts(1).gangs) == (2, 1)
    assert [gang for gang, _, _ in dispatches(game.ready(2))] == [2]
    assert game.scheduler.counts(0).running == 2, "the pending one is the giver's now"


def test_a_stage_that_may_have_no_more_gangs_yields_to_itself() -> None:
    game = play(plan(99, max_gangs=2), plan(99, shape=1, max_gangs=2))
    game.start()
    for gang in range(4):
        game.ready(gang)
    for running in (1, 2, 3):
        game.succeed(running, busy_s=9.0)
    game.fail(0, 0, "oom")
    assert game.scheduler.waiting_reason(0) == "the stage has its 2 gangs in other shapes"
    assert [type(command) for command in game.tick(60.0)] == [Recall]
    (yielding,) = (g for g in game.scheduler._board.gangs.values() if g.yields_to)
    assert yielding.lane.stage.number == 0, "another stage's would make it no room"
    (running,) = yielding.live
    commands = game.succeed(running, busy_s=9.0)
    assert closed(commands) == [yielding.number]
    assert [c.shape for c in commands if isinstance(c, OpenGang)] == [ShapeKey(0, 3 * GIB)]


def test_nobody_yields_to_a_stage_that_could_not_have_the_gang_any_more() -> None:
    game = play(plan(99, max_gangs=2), plan(99, shape=1, max_gangs=2))
    game.start()
    for gang in (0, 2, 3):
        game.ready(gang)
    for running in (1, 2):
        game.succeed(running, busy_s=9.0)
    game.lost(1, "waited")
    (pending,) = opened(game.fail(0, 0, "oom"))
    assert [type(command) for command in game.tick(60.0)] == [Recall]
    (yielding,) = (g for g in game.scheduler._board.gangs.values() if g.yields_to)
    assert yielding.lane.stage.number == 1
    assert len(opened(game.lost(pending, "waited"))) == 1, "its place is taken at once"
    (running,) = yielding.live
    assert dispatches(game.succeed(running, busy_s=9.0))[0][0] == yielding.number


def test_who_made_room_asks_again_when_its_time_is_over() -> None:
    game = starving(2, 1)
    game.tick(5.0)
    assert free(game, 1) == [1]
    game.close()
    game.record()
    while not (asked := opened(game.tick())):
        assert game.now < 600.0, "it is never asked for again"
    assert (asked, game.now) == ([3], 125.0)


def test_a_higher_priority_does_not_take_back_at_once_what_it_has_yielded() -> None:
    game = play(plan(50, max_gangs=2, priority=1), plan(9))
    game.start()
    game.ready(0)
    game.ready(1)
    for running in (0, 1):
        game.succeed(running, busy_s=9.0)
    game.tick(60.0)
    for _ in range(2):
        (running,) = game.referee.gangs[1].live
        commands = game.succeed(running, busy_s=9.0)
        assert [(c.gang, c.stage) for c in commands if isinstance(c, Dispatch)] == [(1, 1)]
