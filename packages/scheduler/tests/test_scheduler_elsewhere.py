"""Ranks that were told to try another node: which gang they wait for, take over, or do without."""

from __future__ import annotations

from thornback.scheduler import SchedulerParams
from thornback.scheduler.feeding import LOOKED_AT
from thornback.scheduler.stages import one
from thornback.scheduler.testing import FakeVerdict, Play, ScriptedPolicy, dispatches, plan, play

AGAIN = ScriptedPolicy({"again": FakeVerdict()})


def held(game: Play[str], gang: int) -> list[int]:
    return list(game.referee.gangs[gang].live)


def first_rank(game: Play[str], number: int) -> int:
    return game.scheduler.outstanding(number)[0].start


def test_an_idle_gang_where_the_rank_has_failed_is_passed_over_for_one_elsewhere() -> None:
    """Also where it would be the first to be taken over."""
    game = play(plan(1, policy=AGAIN), plan(2), plan(9), parents=[[], [], [0, 1]])
    game.start()
    for gang, node in enumerate(("bad", "bad", "good")):
        game.ready(gang, node)
    for gang in (1, 2):
        game.succeed(held(game, gang)[0])
    (number,) = held(game, 0)
    commands = game.fail(number, 0, "again", "bad")
    assert [(gang, ranks) for gang, _, ranks in dispatches(commands)] == [(2, one(0))]
    assert game.scheduler.counts(0).gangs == 2, "and the one it failed in stays"


def test_only_the_first_that_wait_are_looked_at_for_one_that_may_run() -> None:
    """An event must not cost as much as ranks that have failed; whoever is hidden behind so many
    comes to light with the next that goes, or when their wait is over."""
    slots = LOOKED_AT + 1
    params = SchedulerParams(avoid_wait_s=10.0)
    game = play(plan(2 * slots, slots=slots, max_gangs=2, policy=AGAIN), params=params)
    game.start()
    game.ready(0, "bad")
    game.ready(1, "good")
    *failing, last = held(game, 0)
    for number in failing:
        assert not dispatches(game.fail(number, first_rank(game, number), "again", "bad"))
    plain = first_rank(game, last)
    assert not dispatches(game.fail(last, plain, "again", "bad"))
    assert game.scheduler.counts(0).ready == slots
    (number, *_) = held(game, 1)
    given = dispatches(game.succeed(number, busy_s=9.0))
    assert [(gang, ranks) for gang, _, ranks in given] == [(1, one(0))]
    given = dispatches(game.tick(10.0))
    assert {gang for gang, _, _ in given} == {0}
    assert len(given) == LOOKED_AT
