"""How many gangs without work are kept, and for how long those that are not there yet."""

from __future__ import annotations

from thornback.scheduler.testing import Play, closed, dispatches, opened, plan, play


def held(game: Play[str], gang: int) -> list[int]:
    return list(game.referee.gangs[gang].live)


def test_one_is_kept_for_each_rank_of_a_batch_that_may_be_handed_back() -> None:
    """Not only one for all that run: what has not been started may come back while that runs."""
    game = play(plan(11, max_gangs=1), plan(1), plan(1))
    game.start()
    for gang in range(3):
        game.ready(gang)
    while game.scheduler.counts(0).ready:
        game.succeed(held(game, 0)[0], busy_s=0.001)
    assert [game.scheduler.counts(0).running, len(held(game, 0))] == [3, 2]
    for gang in (1, 2):
        assert closed(game.succeed(held(game, gang)[0])) == []


def test_stages_of_one_shape_keep_one_together_for_a_rank_that_still_runs() -> None:
    """Not one each: what a hundred stages leave over would stay for as long as the last rank."""
    game = play(*(plan(1) for _ in range(4)))
    game.start()
    for gang in range(4):
        game.ready(gang)
    gone = [closed(game.succeed(held(game, gang)[0])) for gang in range(3)]
    assert [len(gangs) for gangs in gone] == [0, 1, 1]
    (running,) = (number for number, seen in game.referee.gangs.items() if seen.live)
    (spare,) = (
        number
        for number, seen in game.referee.gangs.items()
        if seen.state == "ready" and number != running
    )
    assert [gang for gang, _, _ in dispatches(game.lost(running, "preempted"))] == [spare]


def test_a_gang_of_several_slots_is_kept_for_as_many_ranks() -> None:
    game = play(plan(6, slots=2), plan(1, shape=1), plan(3, slots=2), parents=[[], [], [1]])
    asked = opened(game.start())
    gangs = asked[:3]
    for gang in gangs:
        game.ready(gang)
    gone: list[int] = []
    for gang in gangs:
        for number in held(game, gang):
            gone += closed(game.succeed(number, busy_s=9.0))
    assert gone == gangs[:1], "three ranks to come need two"


def test_however_often_work_comes_and_goes_one_timer_is_set_for_pending_gangs() -> None:
    game = play(plan(61, max_gangs=2, slots=60))
    game.start()
    game.ready(0)
    game.succeed(held(game, 0)[0], busy_s=9.0)
    assert game.scheduler.counts(0).gangs == 2
    assert game.scheduler.counts(0).ready == 0
    before = len(game.scheduler._board._timers)
    for number in held(game, 0)[:40]:
        game.give_back(number, *game.scheduler.outstanding(number))
    assert len(game.scheduler._board._timers) <= before + 1


def test_a_gang_without_work_is_closed_at_the_very_time_at_which_another_shape_is_in_need() -> None:
    """By numbers with which 4.7 + 5.0 - 5.0 is less than 4.7."""
    game = play(plan(2), plan(1, shape=1))
    game.now = 4.7
    asked = opened(game.start())
    for gang in asked[:2]:
        game.ready(gang)
    assert closed(game.succeed(held(game, asked[0])[0])) == [], "for the rank that still runs"
    game.record()
    assert game.scheduler.wake_at == 4.7 + 5.0
    assert closed(game.tick()) == [asked[0]]


def test_a_shape_in_need_is_noticed_in_time_also_when_it_was_in_need_before() -> None:
    """The timer of then is for when it may make others yield again, which may be hours away."""
    game = play(plan(3), plan(1, shape=1))
    asked = opened(game.start())
    for gang in asked[:3]:
        game.ready(gang)
    while game.now < 60.0:
        game.tick()
    game.ready(asked[3])
    game.tick(10.0)
    game.lost(asked[3], "preempted")
    game.close()
    since = game.now
    assert closed(game.succeed(held(game, asked[0])[0])) == []
    game.record()
    assert game.scheduler.wake_at == since + 5.0
    assert closed(game.tick()) == [asked[0]]
