"""The short way from one assignment of a gang to its next: taken when it is that simple, and only
then. Each play is checked, event by event, against a scheduler that looks at everything."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from thornback.scheduler import SchedulerParams, StagePlan
from thornback.scheduler.commands import CloseGang, Command, Dispatch, OpenGang
from thornback.scheduler.events import CancelRequested, NodeDraining, RanksSucceeded
from thornback.scheduler.ranges import NO_LIMIT
from thornback.scheduler.testing import (
    FakeDependencies,
    FakeVerdict,
    Play,
    ScriptedPolicy,
    plan,
)

LONG_S, SHORT_S = 9.0, 0.9
"""Longer and shorter than `reclaim_s`: without and with an assignment in advance."""
Stages = Callable[..., Play[str]]


@pytest.fixture
def stages(compared: type[Any]) -> Stages:
    """Return what makes a play of stages, without dependencies."""

    def made(*plans: StagePlan[str], params: SchedulerParams | None = None) -> Play[str]:
        sizes = [each.world_size for each in plans]
        return Play(compared(plans, FakeDependencies(sizes, ()), params))

    return made


def begun(game: Play[str], gangs: int, busy_s: float) -> Play[str]:
    """The gangs are ready, and each has run one assignment of such ranks."""
    game.start()
    for gang in range(gangs):
        game.ready(gang)
    for gang in range(gangs):
        end_one(game, gang, busy_s)
    game.record()
    return game


def end_one(game: Play[str], gang: int, busy_s: float) -> list[Command]:
    """The oldest assignment of a gang ends."""
    number = next(iter(game.referee.gangs[gang].live))
    return game.succeed(number, busy_s=busy_s * len(game.scheduler.outstanding(number)[0]))


def short(game: Play[str]) -> int:
    """How often the short way was taken."""
    return int(game.scheduler.short)  # type: ignore[attr-defined]  # of the one that compares


def to_gangs(commands: list[Command]) -> list[int]:
    return [command.gang for command in commands if isinstance(command, Dispatch)]


@pytest.mark.parametrize("slots", [1, 3])
@pytest.mark.parametrize("busy_s", [LONG_S, SHORT_S])
def test_a_gang_is_given_the_next_ranks_at_once(stages: Stages, busy_s: float, slots: int) -> None:
    game = begun(stages(plan(500, slots=slots, max_gangs=2)), 2, busy_s)
    before = short(game)
    for _ in range(20):
        assert to_gangs(end_one(game, 1, busy_s)) == [1]
        game.record()
    assert short(game) == before + 20


def test_who_came_free_is_the_last_to_be_fed_in_advance(stages: Stages) -> None:
    game = begun(stages(plan(500, max_gangs=3)), 3, LONG_S)
    assert to_gangs(end_one(game, 0, LONG_S)) == [0]
    fed = end_one(game, 2, 0.0)
    while len(fed) < 3:  # until the average has come down
        fed = end_one(game, 2, 0.0)
    assert to_gangs(fed) == [2, 1, 0, 2]


def test_when_ranks_become_short_again_all_gangs_are_fed_in_advance(stages: Stages) -> None:
    """Also where the one that ends still has one in advance, from when they last were short."""
    params = SchedulerParams(pace_weight=0.5)
    game = begun(stages(plan(900, max_gangs=2), params=params), 2, SHORT_S)
    assert to_gangs(end_one(game, 0, 4.0)) == [], "the average is 2.45 s now"
    assert sorted(to_gangs(end_one(game, 1, 0.1))) == [0, 1]


def test_a_report_of_some_ranks_is_enough_to_feed_all_gangs_in_advance(stages: Stages) -> None:
    params = SchedulerParams(pace_weight=0.5)
    game = begun(stages(plan(900, max_gangs=2), params=params), 2, 0.2)
    assert to_gangs(end_one(game, 0, 5.0)) == [], "the average is 2.6 s now"
    (oldest, _) = game.referee.gangs[1].live
    (ranks,) = game.scheduler.outstanding(oldest)
    assert len(ranks) == 2
    assert to_gangs(game.succeed(oldest, ranks[0], busy_s=0.1)) == [0], "and now 1.35 s"


def test_a_gang_with_more_than_it_may_have_now_gets_nothing(stages: Stages) -> None:
    game = begun(stages(plan(900, max_gangs=1)), 1, SHORT_S)
    assert len(game.referee.gangs[0].live) == 2
    before = short(game)
    assert to_gangs(end_one(game, 0, 900.0)) == []
    assert short(game) == before


def test_nothing_is_queued_behind_ranks_that_are_suspected(stages: Stages) -> None:
    """Also if they came to a busy gang, in company of others, and are the last of their kind."""
    policy = ScriptedPolicy({"crash": FakeVerdict(blames_rank=True)})
    game = begun(stages(plan(900, max_gangs=3, policy=policy)), 3, 0.02)
    for gang in 7 * [0, 1, 2]:
        end_one(game, gang, 0.02)
    game.record()
    game.lost(2, "crash")
    pieces = game.scheduler._board.lanes[0].ready.pieces
    while not (pieces()[1][2] == NO_LIMIT and pieces()[0][1] - pieces()[0][0] < pieces()[0][2] - 2):
        end_one(game, 0, 0.02)
    _, queued = game.referee.gangs[1].live
    (ranks,) = game.scheduler.outstanding(queued)
    game.give_back(queued, ranks[-2:])
    assert to_gangs(end_one(game, 1, 0.02)) == [1]
    _, suspected = game.referee.gangs[1].live
    assert len(game.scheduler.outstanding(suspected)) == 2
    assert to_gangs(end_one(game, 1, 0.02)) == []


def test_the_last_ready_ranks_go_the_long_way(stages: Stages) -> None:
    """Which looks at whether that leaves gangs without work."""
    game = begun(stages(plan(6, max_gangs=2)), 2, LONG_S)
    assert to_gangs(end_one(game, 0, LONG_S)) == [0]
    before = short(game)
    assert to_gangs(end_one(game, 0, LONG_S)) == [0], "the last"
    assert short(game) == before
    end_one(game, 0, LONG_S)
    assert any(isinstance(c, CloseGang) for c in end_one(game, 1, LONG_S))


def test_a_gang_that_was_delayed_is_asked_for_with_any_event(stages: Stages) -> None:
    policy = ScriptedPolicy({"no room": FakeVerdict(charged=False)})
    game = stages(plan(500, policy=policy), params=SchedulerParams(max_opening=2))
    game.start()
    game.lost(0, "no room")
    game.close()
    game.ready(1)
    assert not any(isinstance(c, OpenGang) for c in end_one(game, 1, LONG_S))
    assert game.scheduler.wake_at is not None
    (number,) = game.referee.gangs[1].live
    ranks = game.scheduler.outstanding(number)
    success = RanksSucceeded(assignment=number, ranks=ranks, busy_s=LONG_S)
    later = game.send(success, game.scheduler.wake_at - game.now)
    assert any(isinstance(c, OpenGang) for c in later), "no tick was needed"


def test_a_rank_that_has_failed_before_takes_precedence(stages: Stages) -> None:
    policy = ScriptedPolicy({"later": FakeVerdict(delay_s=5.0)})
    game = begun(stages(plan(500, max_gangs=1, policy=policy)), 1, LONG_S)
    (number,) = game.referee.gangs[0].live
    (rank,) = game.scheduler.outstanding(number)[0]
    assert to_gangs(game.fail(number, rank, "later")) == [0]
    (number,) = game.referee.gangs[0].live
    ranks = game.scheduler.outstanding(number)
    success = RanksSucceeded(assignment=number, ranks=ranks, busy_s=LONG_S)
    (again,) = (c for c in game.send(success, 5.0) if isinstance(c, Dispatch))
    assert rank in again.ranks[0], "its delay is over: no tick was needed"


def test_a_gang_on_a_node_that_goes_away_gets_what_it_can_finish_only(stages: Stages) -> None:
    game = stages(plan(500, max_gangs=2))
    game.start()
    game.ready(0, "a")
    game.ready(1, "b")
    for gang in (0, 1):
        end_one(game, gang, LONG_S)
    game.send(NodeDraining(node="a", left_s=3.0))
    before = short(game)
    assert 0 not in to_gangs(end_one(game, 0, LONG_S))
    assert to_gangs(end_one(game, 1, LONG_S)) == [1]
    assert short(game) == before, "while one drains, all is looked at"


def test_what_the_journal_owes_holds_the_next_ranks_back(stages: Stages) -> None:
    params = SchedulerParams(max_unrecorded=3)
    game = begun(stages(plan(500, max_gangs=2), params=params), 2, LONG_S)
    given = [to_gangs(end_one(game, 0, LONG_S)) for _ in range(4)]
    assert given == [[0], [0], [0], []]
    assert to_gangs(game.record()) == [0], "while gang 1 goes on"


@pytest.mark.parametrize("kill", [False, True])
def test_a_run_that_is_cancelled_gives_nobody_more(stages: Stages, kill: bool) -> None:
    game = begun(stages(plan(500, max_gangs=2)), 2, LONG_S)
    game.send(CancelRequested(reason="enough", kill=kill))
    assert to_gangs(end_one(game, 0, LONG_S)) == []


def test_another_stage_that_waits_is_looked_at(stages: Stages) -> None:
    """It may be the one that is given the gang."""
    game = stages(plan(500, max_gangs=1), plan(500, max_gangs=1, shape=1))
    begun(game, 2, LONG_S)
    before = short(game)
    for gang in (0, 1):
        assert to_gangs(end_one(game, gang, LONG_S)) == [gang]
    assert short(game) == before
