"""What a stage of higher priority gets from the others of its shape, beyond gangs that are idle."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from thornback.scheduler import SchedulerParams, opening
from thornback.scheduler.commands import Command, Dispatch, Recall
from thornback.scheduler.events import NodeDraining, RanksSucceeded
from thornback.scheduler.gangs import Lane, Shape
from thornback.scheduler.testing import (
    FakeVerdict,
    Play,
    ScriptedPolicy,
    closed,
    dispatches,
    opened,
    plan,
    play,
)

ELSEWHERE = ScriptedPolicy({"again": FakeVerdict(), "later": FakeVerdict()})


def contended(*, slots: int, urgent: int, low_s: float, max_gangs: int | None = None) -> Play[str]:
    """Return a play at whose end the urgent stage 2 has just become ready, while stage 1 runs ranks
    of `low_s` seconds on gangs 1 and 2, which are all that there is."""
    game = play(
        plan(1),
        plan(500, max_gangs=2, slots=slots, shape=1),
        plan(urgent, priority=1, slots=slots, shape=1, max_gangs=max_gangs),
        parents=[[], [], [0]],
    )
    game.start()
    for gang in range(3):
        game.ready(gang)
    for gang in (1, 2):
        for assignment in list(game.referee.gangs[gang].live):
            game.succeed(assignment, busy_s=low_s)
    (first,) = game.referee.gangs[0].live
    game.succeed(first)
    game.record()
    game.close()
    assert game.scheduler.counts(2).ready == urgent
    return game


def held(game: Play[str], gang: int) -> list[int]:
    return list(game.referee.gangs[gang].live)


def opened_by(game: Play[str], stage: int) -> list[int]:
    """The gangs that a stage has, opening ones too."""
    gangs = game.scheduler._board.gangs.values()
    return [gang.number for gang in gangs if gang.lane.stage.number == stage]


def yielding(game: Play[str]) -> list[int]:
    return [gang.number for gang in game.scheduler._board.gangs.values() if gang.yields_to]


def end_all(game: Play[str], gang: int, busy_s: float = 1.0) -> list[Command]:
    """All that a gang holds ends well; the commands that follow."""
    return [c for number in held(game, gang) for c in game.succeed(number, busy_s=busy_s)]


def stages(commands: list[Command], gang: int) -> list[int]:
    return [c.stage for c in commands if isinstance(c, Dispatch) and c.gang == gang]


def test_gangs_of_several_slots_make_way_for_a_higher_priority() -> None:
    game = contended(slots=2, urgent=4, low_s=9.0)
    (number, _) = held(game, 1)
    assert stages(game.succeed(number, busy_s=9.0), 1) == [1], "new gangs may come in a moment"
    game.tick(5.0)
    # Both are to go: the urgent stage can fill them.
    assert {g.number for g in game.scheduler._board.gangs.values() if g.yields_to} == {1, 2}
    (first, second) = held(game, 1)
    assert stages(game.succeed(first, busy_s=9.0), 1) == [], "it is not filled up again"
    assert stages(game.succeed(second, busy_s=9.0), 1) == [2, 2]
    assert stages(end_all(game, 2, 9.0), 2) == [2, 2]
    assert game.scheduler.counts(2).running == 4


def test_a_stage_that_has_a_gang_gets_more_of_them_all_the_same() -> None:
    """Neither does it starve then, nor who has made way."""
    game = contended(slots=2, urgent=4, low_s=9.0)
    own = next(n for n, gang in game.referee.gangs.items() if gang.state == "opening")
    assert stages(game.ready(own), own) == [2, 2]
    game.tick(5.0)
    assert stages(end_all(game, 1, 9.0), 1) == [2, 2]
    assert stages(end_all(game, 2, 9.0), 2) == [1, 1]


def test_short_ranks_in_advance_come_back_for_a_higher_priority() -> None:
    game = contended(slots=1, urgent=1, low_s=0.3)
    before = len(held(game, 1)) + len(held(game, 2))
    assert before == 4, "one runs and one waits in each slot"
    commands = game.tick(5.0)
    recalled = [c.assignment for c in commands if isinstance(c, Recall)]
    assert recalled == held(game, 1), "one gang is enough for one rank"
    running, queued = held(game, 1)
    assert dispatches(game.give_back(queued, *game.scheduler.outstanding(queued))) == []
    assert stages(game.succeed(running, busy_s=0.3), 1) == [2]


def test_no_more_gangs_make_way_than_are_filled_or_allowed() -> None:
    game = contended(slots=2, urgent=3, low_s=9.0)
    game.tick(5.0)
    assert len([g for g in game.scheduler._board.gangs.values() if g.yields_to]) == 1
    game = contended(slots=2, urgent=40, low_s=9.0, max_gangs=1)
    game.tick(5.0)
    assert len([g for g in game.scheduler._board.gangs.values() if g.yields_to]) == 1


def test_stages_of_equal_priority_keep_their_gangs() -> None:
    busy = {"max_gangs": 1, "slots": 2, "shape": 1}
    game = play(
        plan(1),
        plan(50, **busy),
        plan(50, priority=1, **busy),
        plan(9, priority=1, slots=2, shape=1),
        parents=[[], [], [], [0]],
    )
    game.start()
    for gang in range(3):
        game.ready(gang)
    for gang in (1, 2):
        game.succeed(held(game, gang)[0], busy_s=9.0)
    game.succeed(held(game, 0)[0])
    game.record()
    game.tick(5.0)
    (yielding,) = (g for g in game.scheduler._board.gangs.values() if g.yields_to)
    assert yielding.lane.stage.number == 1


def test_the_lowest_priority_makes_way_first_and_the_next_for_what_is_missing() -> None:
    busy = {"max_gangs": 1, "slots": 2, "shape": 1}
    game = play(
        plan(1),
        plan(50, priority=1, **busy),
        plan(50, **busy),
        plan(3, priority=2, slots=2, shape=1),
        plan(5, priority=2, slots=2, shape=1),
        parents=[[], [], [], [0], [0]],
    )
    game.start()
    order = {game.scheduler._board.gangs[n].lane.stage.number: n for n in game.referee.gangs}
    for gang in range(3):
        game.ready(gang)
    for stage in (1, 2):
        game.succeed(held(game, order[stage])[0], busy_s=9.0)
    game.succeed(held(game, order[0])[0])
    game.record()
    game.tick(5.0)
    made_way = {g.number: g.yields_to for g in game.scheduler._board.gangs.values() if g.yields_to}
    assert {n: lane.stage.number for n, lane in made_way.items()} == {order[2]: 3, order[1]: 4}


def test_a_gang_works_on_when_the_higher_priority_is_served_otherwise() -> None:
    game = contended(slots=2, urgent=2, low_s=9.0)
    game.tick(5.0)
    (yielding,) = (g for g in game.scheduler._board.gangs.values() if g.yields_to)
    (own,) = [n for n, g in game.referee.gangs.items() if g.state == "opening"]
    assert stages(game.ready(own), own) == [2, 2]
    number = held(game, yielding.number)[0]
    assert stages(game.succeed(number, busy_s=9.0), yielding.number) == [1]
    assert yielding.lane.coming == 0


def test_a_gang_that_was_handed_over_does_something_before_it_is_taken_back() -> None:
    game = contended(slots=1, urgent=2, low_s=9.0)
    game.tick(5.0)
    for gang in (1, 2):
        assert stages(end_all(game, gang, 9.0), gang) == [2]
    (last,) = held(game, 1)
    assert stages(game.succeed(last), 1) == [1], "it goes back when nothing urgent is left"
    (failing,) = held(game, 2)
    rank = game.scheduler.outstanding(failing)[0].start
    assert stages(game.fail(failing, rank, "later"), 2) == [1]
    game.tick(5.0)
    assert not [g for g in game.scheduler._board.gangs.values() if g.yields_to]
    assert stages(end_all(game, 1), 1) == [2], "at its free moment, like any of one slot"


def looks(monkeypatch: pytest.MonkeyPatch, stages: int) -> int:
    """How often a lane is looked at by an event while so many stages wait for the gangs of one."""
    game = play(*(plan(9, priority=n % 3, slots=2) for n in range(stages)))
    game.start()
    game.ready(0)
    game.tick(6.0)
    count = 0

    def counted(answer: Callable[..., object]) -> Callable[..., object]:
        def look(*args: object) -> object:
            nonlocal count
            count += 1
            return answer(*args)

        return look

    with monkeypatch.context() as patch:
        patch.setattr(Lane, "outranks", counted(Lane.outranks))
        for name in ("waiting", "may_gain"):
            part = vars(Lane)[name]
            patch.setattr(Lane, name, property(counted(part.fget)))
        game.scheduler.handle(RanksSucceeded(assignment=0, ranks=(range(1),), busy_s=9.0), 7.0)
    return count


def test_stages_that_wait_do_not_all_look_at_each_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten times as many cost ten times as much, not a hundred times."""
    few, many = looks(monkeypatch, 20), looks(monkeypatch, 200)
    assert 0 < many <= 12 * few


def test_what_idle_gangs_are_wanted_for_is_counted_once_for_all_stages(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    game = play(plan(1), plan(1), plan(1), plan(1), plan(9), parents=[[], [], [], [], [3]])
    game.start()
    for gang in range(4):
        game.ready(gang)
    for gang in range(3):
        end_all(game, gang)
    counted, count = [], opening._most_idle

    def counting(shape: Shape[str], most: int) -> int:
        counted.append(shape)
        return count(shape, most)

    monkeypatch.setattr(opening, "_most_idle", counting)
    game.tick(1.0)
    assert [gang.state for gang in game.referee.gangs.values()] == ["ready"] * 4
    assert len(counted) == 1


def test_equal_priorities_wait_for_the_yield_rule() -> None:
    params = SchedulerParams(yield_after_s=60.0)
    game = play(plan(50, max_gangs=1, slots=2), plan(4, slots=2), params=params)
    game.start()
    game.ready(0)
    for number in held(game, 0):
        game.succeed(number, busy_s=9.0)
    game.tick(50.0)
    assert not [g for g in game.scheduler._board.gangs.values() if g.yields_to]


def test_a_rank_told_to_try_elsewhere_takes_over_an_idle_gang_elsewhere() -> None:
    """And does not go to the node it was to avoid because its own stage has no other."""
    game = play(plan(2), plan(1), parents=[[], []])
    commands = game.start()
    assert opened(commands) == [0, 1, 2]
    game.ready(0, "bad")
    game.ready(1, "bad")
    game.ready(2, "good")  # of stage 1
    game.succeed(held(game, 2)[0])
    (number,) = held(game, 0)
    rank = game.scheduler.outstanding(number)[0].start
    commands = game.fail(number, rank, "again", node="bad")
    (again,) = [c for c in commands if isinstance(c, Dispatch)]
    assert (again.gang, again.ranks[0].start) == (2, rank)


def test_a_gang_that_the_yield_rule_gave_is_not_taken_back_whoever_had_it() -> None:
    """Three priorities: the middle one gets the gang that the lowest had won, and keeps it too."""
    game = play(
        plan(500),
        plan(500, priority=2),
        plan(1, shape=1),
        plan(500, priority=1),
        parents=[[], [], [], [2]],
    )
    game.start()
    first, second = opened_by(game, 1)[:2]
    for gang in (first, second):
        game.ready(gang)
        assert stages(end_all(game, gang, 9.0), gang) == [1]
    game.tick(60.0)
    (won,) = yielding(game)
    assert stages(end_all(game, won, 9.0), won) == [0]
    assert stages(end_all(game, won, 9.0), won) == [0]
    (starter,) = opened_by(game, 2)
    game.ready(starter)
    end_all(game, starter)
    game.record()
    game.tick(60.0)
    assert won in yielding(game)
    assert stages(end_all(game, won, 9.0), won) == [3]
    assert stages(end_all(game, won, 9.0), won) == [3], "the highest does not take it at once"


def test_nobody_makes_way_for_a_rank_that_must_not_run_there() -> None:
    """It would wait there, as the gang that it failed in does; and work queued in advance would be
    recalled for nothing, again and again."""
    game = play(plan(500, max_gangs=2), plan(2, priority=1, policy=ELSEWHERE))
    game.start()
    good, bad = opened_by(game, 1)[:2]
    game.ready(good, "good")
    game.ready(bad, "bad")
    low = opened_by(game, 0)
    for gang in low:
        game.ready(gang, "bad")
        end_all(game, gang, 0.3)
    (number,) = held(game, bad)
    game.fail(number, game.scheduler.outstanding(number)[0].start, "again", node="bad")
    assert not [c for c in game.tick(6.0) if isinstance(c, Recall)], "one gang is idle already"
    game.lost(bad, "later", "bad")
    assert not [c for c in game.tick(3.0) if isinstance(c, Recall)], "and none is any use"
    assert not yielding(game)


def test_a_gang_elsewhere_makes_way_for_a_rank_that_must_not_run_where_it_failed() -> None:
    game = play(
        plan(500, max_gangs=2, slots=2),
        plan(4, priority=1, policy=ELSEWHERE, slots=2),
    )
    game.start()
    own, other = opened_by(game, 1)[:2]
    game.ready(own, "good")
    game.ready(other, "bad")
    for gang, node in zip(opened_by(game, 0), ("bad", "good"), strict=True):
        game.ready(gang, node)
        for number in held(game, gang):
            game.succeed(number, busy_s=9.0)
    for number in held(game, other):
        game.fail(number, game.scheduler.outstanding(number)[0].start, "again", node="bad")
    game.lost(other, "later", "bad")
    game.tick(6.0)
    assert [game.scheduler._board.gangs[gang].nodes for gang in yielding(game)] == [("good",)]


def test_a_gang_that_must_go_soon_makes_way_for_nobody_who_has_one() -> None:
    """It cannot be handed over, and nobody starves: so it ends its time at work, and the pending
    gangs of other shapes stay."""
    game = play(
        plan(1),
        plan(500, max_gangs=2, slots=2, shape=1),
        plan(40, priority=1, slots=2, shape=1),
        plan(50, shape=2),
        parents=[[], [], [0], []],
    )
    game.start()
    low, others = opened_by(game, 1), opened_by(game, 3)
    game.ready(0)
    for gang in low:
        game.ready(gang, "doomed")
        end_all(game, gang, 9.0)
    game.ready(others[0])
    end_all(game, 0)
    game.record()
    game.close()
    game.ready(opened_by(game, 2)[0], "stays")
    game.tick(5.0)
    assert yielding(game) == low
    game.send(NodeDraining(node="doomed", left_s=100.0))
    assert not yielding(game)
    commands = end_all(game, low[0], 9.0)
    assert not closed(commands)
    assert set(stages(commands, low[0])) == {1}


def test_a_gang_works_on_at_once_when_one_that_is_idle_serves_the_higher_priority() -> None:
    """And not only with the next event, which may be hours away."""
    game = play(
        plan(1),
        plan(500, max_gangs=1, slots=2, shape=1),
        plan(2, max_gangs=1, slots=2, shape=1),
        plan(2, priority=1, slots=2, shape=1),
        parents=[[], [], [], [0]],
    )
    game.start()
    (low,), (other,) = opened_by(game, 1), opened_by(game, 2)
    for gang in (0, low, other):
        game.ready(gang)
    game.succeed(held(game, low)[0], busy_s=9.0)
    end_all(game, 0)
    game.record()
    game.close()
    game.tick(5.0)
    assert yielding(game) == [low]
    game.succeed(held(game, low)[0], busy_s=9.0)
    commands = end_all(game, other, 9.0)
    assert stages(commands, other) == [3, 3]
    assert stages(commands, low) == [1], "its free slot"
