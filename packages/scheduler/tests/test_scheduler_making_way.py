"""What comes between a gang that makes way for a higher priority and the moment it is handed over.

See also `test_scheduler_priorities.py`. Every play goes on to the end of its run.
"""

from __future__ import annotations

from packages.scheduler.tests.contention import (
    LOW,
    URGENT,
    contended,
    end_all,
    end_one,
    finish,
    gangs_of,
    given,
    held,
    long_awaited,
    low,
    recalled,
    urgent,
    yielding,
)
from thornback.scheduler import SchedulerParams
from thornback.scheduler.testing import closed, plan, play

PRESSED = SchedulerParams(max_unrecorded=3)


def test_a_stage_that_has_a_gang_does_not_wait_for_an_event_to_have_others_make_way() -> None:
    """Its ranks may take hours: a timer is set for when the gang that opens is long in coming."""
    one_by_one = SchedulerParams(max_opening=1)
    game = contended(low(2, slots=2), urgent(8, slots=2), params=one_by_one)
    began = game.now
    (opening,) = (n for n, gang in game.referee.gangs.items() if gang.state == "opening")
    game.now += 3.0
    game.ready(opening)
    game.tick(2.0)
    assert yielding(game) == [], "the second was asked for two seconds ago"
    assert game.scheduler.wake_at == began + 3.0 + 5.0
    game.tick()
    assert yielding(game) == gangs_of(game, LOW)[:1]
    finish(game, room=4)


def test_the_timer_is_set_with_the_first_gang_that_is_asked_for() -> None:
    """Also for a stage that does not starve: it was given an idle one."""
    game = play(
        plan(1),
        low(2, slots=2),
        urgent(8, slots=2),
        plan(3, slots=2, shape=1, max_gangs=2),
        parents=[[], [], [0], []],
    )
    game.start()
    for gang in list(game.referee.gangs):
        game.ready(gang)
    for gang in gangs_of(game, LOW):
        end_one(game, gang)
    _, idle = gangs_of(game, 3)
    end_all(game, idle)
    game.record()
    game.tick(30.0)
    end_all(game, *gangs_of(game, 0))
    assert given(game.record()) == [(idle, URGENT)] * 2
    assert game.scheduler.wake_at == game.now + 5.0
    game.tick()
    assert yielding(game) == gangs_of(game, LOW)
    game.close()
    finish(game, room=5)


def test_however_often_pending_gangs_are_looked_at_one_timer_is_set_for_them() -> None:
    game = contended(low(2, slots=2), urgent(16, slots=2, max_gangs=6))
    timers = game.scheduler._board._timers
    assert len(gangs_of(game, URGENT)) == 6
    assert len(timers) == 4, "for each stage that had no gang, and for all that were asked for"
    before = len(timers)
    for _ in range(9):
        game.tick(0.1)
    assert len(timers) == before
    finish(game, room=4)


# -- gangs of several nodes ------------------------------------------------------------------------


def test_gangs_of_several_nodes_make_way_at_the_end_of_their_rank() -> None:
    game = contended(low(3, nodes=2), urgent(2, nodes=2))
    first, second, third = gangs_of(game, LOW)
    commands = game.tick(5.0)
    assert yielding(game) == [first, second], "one for each rank"
    assert recalled(commands) == [*held(game, first), *held(game, second)]
    assert given(end_one(game, third)) == [(third, URGENT)], "at its free moment, like any"
    assert given(end_one(game, second)) == [(second, URGENT)]
    assert yielding(game) == []
    assert given(end_one(game, first)) == [(first, LOW)]
    finish(game, room=3)


def test_a_rank_that_not_all_nodes_had_begun_comes_back_and_its_gang_is_handed_over() -> None:
    game = contended(low(1, nodes=2), urgent(1, nodes=2))
    (gang,) = gangs_of(game, LOW)
    (number,) = recalled(game.tick(5.0))
    ready = game.scheduler.counts(LOW).ready
    assert given(game.give_back(number, *game.scheduler.outstanding(number))) == [(gang, URGENT)]
    assert game.scheduler.counts(LOW).ready == ready + 1
    finish(game, room=1)


def test_a_rank_that_fails_while_its_gang_makes_way_waits_for_the_next() -> None:
    game = contended(low(1, nodes=2), urgent(1, nodes=2))
    (gang,) = gangs_of(game, LOW)
    game.tick(5.0)
    (number,) = held(game, gang)
    rank = game.scheduler.outstanding(number)[0].start
    assert given(game.fail(number, rank, "later", "1a")) == [(gang, URGENT)]
    finish(game, room=1)


# -- which gangs -----------------------------------------------------------------------------------


def test_a_gang_that_is_half_empty_is_not_filled_again_because_another_was_handed_over() -> None:
    """And a third one does not begin instead: else none would ever be empty."""
    game = contended(low(3, slots=2), urgent(4, slots=2))
    first, second, _ = gangs_of(game, LOW)
    game.tick(5.0)
    assert yielding(game) == [first, second]
    assert given(end_one(game, second)) == []
    commands = end_all(game, first)
    assert given(commands) == [(first, URGENT)] * 2
    assert not recalled(commands)
    assert yielding(game) == [second]
    assert given(end_one(game, second)) == [(second, URGENT)] * 2
    finish(game, room=3)


def test_nor_because_the_higher_priority_has_a_slot_free_for_a_moment() -> None:
    """However often its own ranks end."""
    game = contended(low(3, slots=4), urgent(40, slots=4, max_gangs=2))
    own = gangs_of(game, URGENT)[0]
    game.ready(own)
    game.tick(5.0)
    (gang,) = yielding(game)
    for left in (3, 2, 1):
        assert given(end_one(game, gang)) == []
        commands = end_one(game, own)
        assert set(given(commands)) == {(own, URGENT)}
        assert not recalled(commands)
        assert yielding(game) == [gang]
        assert len(held(game, gang)) == left
    assert given(end_one(game, gang)) == [(gang, URGENT)] * 4
    finish(game, room=4)


def test_a_gang_works_on_as_soon_as_idle_slots_are_enough() -> None:
    """Those are filled when the journal has caught up."""
    game = contended(low(2, slots=3), urgent(6, slots=3), params=PRESSED)
    own, (first, second) = gangs_of(game, URGENT)[0], gangs_of(game, LOW)
    game.tick(5.0)
    assert yielding(game) == [first, second]
    end_one(game, second)
    for _ in range(3):
        assert given(end_one(game, first)) == []
    assert game.scheduler._board.slow is not None
    assert yielding(game) == [second], "three slots are idle, and six ranks wait"
    assert given(game.ready(own)) == []
    assert yielding(game) == []
    assert given(game.record()) == [(first, URGENT)] * 3 + [(own, URGENT)] * 3 + [(second, LOW)]
    finish(game, room=3)


def test_a_gang_on_its_way_goes_to_a_still_higher_priority_that_has_come_meanwhile() -> None:
    game = play(
        plan(1),
        low(1, slots=2),
        urgent(40, slots=2),
        plan(1, shape=2),
        plan(2, priority=2, slots=2, shape=1),
        parents=[[], [], [0], [], [3]],
    )
    game.start()
    ((starter,), (gang,), (later,)) = (gangs_of(game, stage) for stage in (0, LOW, 3))
    for number in (starter, gang, later):
        game.ready(number)
    end_one(game, gang)
    end_all(game, starter)
    game.record()
    game.tick(5.0)
    assert yielding(game) == [gang]
    end_one(game, gang)
    end_all(game, later)
    game.record()
    assert given(end_one(game, gang)) == [(gang, 4), (gang, 4)]
    assert given(end_all(game, gang)) == [(gang, URGENT)] * 2, "which is next"
    finish(game, room=1)


def test_who_has_fewer_ranks_than_a_gang_has_slots_waits_for_the_yield_rule() -> None:
    """So many slots are not left empty for less, but nobody starves."""
    game = contended(low(2, slots=3), urgent(2, slots=3))
    gangs = gangs_of(game, LOW)
    game.tick(59.0)
    assert not yielding(game)
    assert given(end_one(game, gangs[0])) == [(gangs[0], LOW)]
    game.record()
    assert recalled(game.tick(1.0)) == held(game, gangs[1])
    assert yielding(game) == [gangs[1]]
    for after in (0, 0, 2):
        assert given(end_one(game, gangs[1])) == [(gangs[1], URGENT)] * after
    finish(game, room=2)


def test_who_has_waited_long_keeps_one_of_its_own_instead_of_an_exchange() -> None:
    """By the yield rule it would get one from those for whom its own make way."""
    game, (first, second, _) = long_awaited()
    assert given(game.tick(60.0)) == []
    assert yielding(game) == [first]
    assert given(end_one(game, second)) == [(second, LOW)]
    game.record()
    game.tick(60.0)
    assert yielding(game) == [first], "nor is it made to make way again"
    assert given(end_one(game, first)) == [(first, URGENT)] * 2
    finish(game, room=4)


def test_what_is_too_little_for_a_gang_waits_for_a_slot_of_its_own_stage() -> None:
    """It has a gang: so the yield rule does not hold, and none is emptied for one rank."""
    game = contended(low(2, slots=3), urgent(4, slots=3))
    own = gangs_of(game, URGENT)[0]
    game.ready(own)
    game.record()
    for _ in range(3):
        game.tick(50.0)
        assert not yielding(game)
    assert given(end_one(game, own)) == [(own, URGENT)]
    finish(game, room=3)


def test_nobody_makes_way_for_a_stage_that_has_its_most_gangs() -> None:
    game = contended(low(2), urgent(40, max_gangs=1))
    (own,) = gangs_of(game, URGENT)
    game.ready(own)
    game.tick(6.0)
    assert not yielding(game)
    for gang in gangs_of(game, LOW):
        assert given(end_one(game, gang)) == [(gang, LOW)]
    finish(game, room=3)


def test_a_gang_works_on_when_the_last_that_the_other_may_have_becomes_ready() -> None:
    game = contended(low(2, slots=2), urgent(40, slots=2, max_gangs=1))
    first, second = gangs_of(game, LOW)
    game.tick(5.0)
    assert yielding(game) == [first]
    assert given(end_one(game, first)) == []
    (own,) = gangs_of(game, URGENT)
    assert given(game.ready(own)) == [(own, URGENT), (own, URGENT), (first, LOW)]
    assert not yielding(game)
    assert given(end_one(game, second)) == [(second, LOW)]
    finish(game, room=3)


# -- back-pressure ---------------------------------------------------------------------------------


def test_nobody_is_made_to_make_way_while_nothing_is_dispatched() -> None:
    game = contended(low(2, slots=2), urgent(4, slots=2), params=PRESSED)
    gangs = gangs_of(game, LOW)
    for gang in gangs:
        end_all(game, gang)
    assert game.scheduler._board.slow is not None
    assert not recalled(game.tick(5.0))
    assert not yielding(game)
    assert given(game.record()) == []
    assert yielding(game) == gangs
    finish(game, room=2)


def test_gangs_that_make_way_when_back_pressure_begins_are_handed_over_once() -> None:
    """They wait where they are wanted."""
    game = contended(low(3, slots=2), urgent(6, slots=2), params=PRESSED)
    gangs = gangs_of(game, LOW)
    game.tick(5.0)
    assert yielding(game) == gangs
    went = []
    for gang in gangs:
        assert given(end_one(game, gang)) == []
    for gang in gangs:
        assert given(end_one(game, gang)) == []
        went.append([n for n in gangs if n in gangs_of(game, URGENT)])
    assert went == [gangs[:1], gangs[:2], gangs]
    assert game.scheduler._board.slow is not None
    for _ in range(5):
        assert game.tick(40.0) == []
    assert given(game.record()) == [(gang, URGENT) for gang in gangs for _ in range(2)]
    finish(game, room=3)


def test_nobody_yields_while_nothing_is_dispatched() -> None:
    """A gang that is closed for another shape would be missed when the journal has caught up."""
    game = play(plan(40, max_gangs=2), plan(4, shape=1), params=PRESSED)
    game.start()
    for gang in gangs_of(game, 0):
        game.ready(gang)
    while game.scheduler._board.slow is None:
        end_one(game, gangs_of(game, 0)[0])
    for _ in range(5):
        assert closed(game.tick(40.0)) == [] == yielding(game)
    game.record()
    assert game.scheduler.wake_at == game.now + 5.0, "from now on it starves"
    finish(game, room=3)


def test_nobody_yields_at_the_very_time_at_which_a_result_has_waited_too_long() -> None:
    """Nothing has been fed since: so that has not been noticed yet."""
    params = SchedulerParams(max_unrecorded_s=30.0)
    game = play(plan(40, max_gangs=2), plan(4, shape=1), params=params)
    game.start()
    for gang in gangs_of(game, 0):
        game.ready(gang)
        end_one(game, gang)
    game.record()
    game.tick(20.0)
    end_one(game, gangs_of(game, 0)[0])
    assert game.scheduler.wake_at == 60.0
    assert game.tick() == [] == yielding(game)
    assert game.scheduler._board.slow is not None
    game.record()
    finish(game, room=3)


# -- who made way for nothing ----------------------------------------------------------------------


def test_a_gang_works_on_at_once_when_who_starved_is_given_an_idle_one() -> None:
    game = play(
        plan(1, slots=2, shape=1),
        plan(40, slots=2, max_gangs=2),
        plan(9, slots=2, shape=1, max_gangs=1),
    )
    game.start()
    (other,) = gangs_of(game, 0)
    for gang in (other, *gangs_of(game, LOW)):
        game.ready(gang)
    for gang in gangs_of(game, LOW):
        end_all(game, gang)
    game.record()
    while not yielding(game):
        game.tick()
    (victim,) = yielding(game)
    assert given(end_one(game, victim)) == []
    assert given(end_all(game, other)) == [(other, URGENT)] * 2 + [(victim, LOW)]
    finish(game, room=4)


def test_a_gang_works_on_at_once_when_the_last_for_which_it_made_way_are_fed_in_advance() -> None:
    game = contended(low(1, slots=2), urgent(8, slots=2), params=SchedulerParams(max_batch=1))
    (victim,) = gangs_of(game, LOW)
    first, second, *_ = gangs_of(game, URGENT)
    game.tick(5.0)
    assert yielding(game) == [victim]
    assert given(end_one(game, victim)) == []
    game.ready(first)
    assert given(end_one(game, first, 0.1)) == [(first, URGENT)] * 3
    assert given(game.ready(second)) == [(second, URGENT)] * 3 + [(victim, LOW)]
    finish(game, room=4)
