"""Quarantine: suspected nodes get no new ranks, and prove themselves one rank at a time."""

from __future__ import annotations

from collections.abc import Iterable

from thornback.scheduler import SchedulerParams
from thornback.scheduler.commands import Command, OpenGang, Recall
from thornback.scheduler.events import GangPlaced, GangReady, NodeDraining, Ranks
from thornback.scheduler.stages import one
from thornback.scheduler.testing import Play, closed, dispatches, opened, plan, play

PARAMS = SchedulerParams(parole_s=100.0, avoid_wait_s=10.0)


def ready(game: Play[str], gang: int, *nodes: str, fitting: int | None = 4) -> list[Command]:
    return game.send(GangReady(gang=gang, nodes=nodes, fitting=fitting))


def avoided(commands: Iterable[Command]) -> list[tuple[str, ...]]:
    return [c.avoid for c in commands if isinstance(c, OpenGang)]


def held(game: Play[str], gang: int) -> list[int]:
    return list(game.referee.gangs[gang].live)


def with_bad_a(**more: int) -> Play[str]:
    """Gangs 0 on a and 1 on b; two ranks have died on a."""
    game = play(plan(100, **{"max_gangs": 2, **more}), params=PARAMS)
    game.start()
    ready(game, 0, "a")
    ready(game, 1, "b")
    for _ in range(2):
        number = held(game, 0)[0]
        game.fail(number, game.scheduler.outstanding(number)[0].start, "died", "a")
    return game


def test_suspected_node_gets_no_rank_and_its_gang_is_closed() -> None:
    game = with_bad_a()
    assert game.referee.gangs[0].state == "closing"
    assert [gang for gang, _, _ in dispatches(game.succeed(held(game, 1)[0], busy_s=9.0))] == [1]


def test_gang_on_a_suspected_node_ends_what_it_runs_and_hands_back_the_rest() -> None:
    game = play(plan(100, slots=3, max_gangs=2), params=PARAMS)
    game.start()
    ready(game, 0, "a")
    ready(game, 1, "b")
    first, *_ = held(game, 0)
    ((_, second, _),) = dispatches(game.fail(first, 0, "died", "a"))
    rank = game.scheduler.outstanding(second)[0].start
    commands = game.fail(second, rank, "died", "a")
    running = held(game, 0)
    assert len(running) == 2
    assert {c.assignment for c in commands if isinstance(c, Recall)} == set(running)
    for number in running:
        assert not dispatches(game.succeed(number, busy_s=9.0)) or held(game, 0) == []
    assert game.referee.gangs[0].state == "closing"


def test_new_gangs_avoid_a_suspected_node() -> None:
    game = with_bad_a()
    asked = [gang for gang in game.referee.gangs if gang > 1]
    assert asked
    assert game.scheduler._board.gangs[asked[0]].avoid == ("a",)


def test_only_node_is_never_avoided() -> None:
    game = play(plan(50, max_gangs=1), params=PARAMS)
    game.start()
    ready(game, 0, "a", fitting=1)
    for number in range(4):
        game.fail(number, game.scheduler.outstanding(number)[0].start, "died", "a")
    assert game.referee.gangs[0].state == "ready"
    assert held(game, 0)


def test_at_most_half_of_the_nodes_are_suspected_at_once() -> None:
    game = play(plan(100, max_gangs=3), params=PARAMS)
    game.start()
    for gang, node in enumerate("abc"):
        ready(game, gang, node, fitting=3)
    for gang, node in enumerate("abc"):
        for _ in range(2):
            if held(game, gang):
                number = held(game, gang)[0]
                game.fail(number, game.scheduler.outstanding(number)[0].start, "died", node)
    assert len(game.scheduler._board.evidence.suspects(dict.fromkeys("abc"), 1, game.now)) == 1
    assert sum(gang.state == "ready" for gang in game.referee.gangs.values()) >= 2


def test_gang_of_two_nodes_always_finds_room_among_three() -> None:
    game = play(plan(100, nodes=2, max_gangs=2), params=PARAMS)
    game.start()
    ready(game, 0, "a", "b", fitting=3)
    ready(game, 1, "b", "c", fitting=3)
    for node in ("a", "b", "c"):
        game.scheduler._board.evidence.suspect(node, game.now, 99)
    commands = game.lost(0, "preempted")
    assert [len(nodes) for nodes in avoided(commands)] == [1], "two of three must be left"
    game = play(plan(100, nodes=2, max_gangs=1), params=PARAMS)
    game.start()
    ready(game, 0, "a", "b", fitting=2)
    commands = game.lost(0, "gone", "a")
    assert avoided([*commands, *game.close()]) == [()]


def test_two_gangs_on_a_node_on_parole_get_one_rank_together() -> None:
    game = play(plan(100, max_gangs=3), params=PARAMS)
    game.start()
    ready(game, 0, "b")
    game.scheduler._board.evidence.suspect("a", game.now, 0)
    game.tick(PARAMS.parole_s)
    fed = [dispatches(ready(game, gang, "a")) for gang in (1, 2)]
    assert [len(given) for given in fed] == [1, 0]
    ((_, number, _),) = fed[0]
    game.fail(number, game.scheduler.outstanding(number)[0].start, "died", "a")
    assert held(game, 1) == held(game, 2) == []


def test_retry_of_a_bug_prefers_a_node_that_is_not_on_parole() -> None:
    game = play(plan(3, max_gangs=3), params=PARAMS)
    game.start()
    game.scheduler._board.evidence.suspect("c", game.now, 0)
    game.tick(PARAMS.parole_s)
    for gang, node in enumerate("abc"):
        ready(game, gang, node)
    game.fail(0, 0, "again", "a")
    assert dispatches(game.succeed(held(game, 2)[0], busy_s=9.0)) == [], "it might fail there"
    assert dispatches(game.succeed(held(game, 1)[0], busy_s=9.0))[0][0] == 1


def test_suspected_node_is_used_one_rank_at_a_time_when_no_other_becomes_free() -> None:
    game = play(plan(50, slots=2, max_gangs=1), params=PARAMS)
    game.start()
    ready(game, 0, "a")
    for _ in range(2):
        number = held(game, 0)[0]
        game.fail(number, game.scheduler.outstanding(number)[0].start, "died", "a")
    game.succeed(held(game, 0)[0], busy_s=9.0)
    assert held(game, 0) == [], "another node is waited for"
    assert game.referee.gangs[0].state == "ready", "and this one is kept until then"
    since = game.now
    while not (given := dispatches(game.tick())):
        assert game.now < since + 60.0
    assert [gang for gang, _, _ in given] == [0]
    assert game.now == since + PARAMS.avoid_wait_s
    (number,) = held(game, 0)
    again = game.now
    game.fail(number, game.scheduler.outstanding(number)[0].start, "died", "a")
    while not dispatches(game.tick()):
        pass
    assert game.now == again + 2 * PARAMS.avoid_wait_s, "after a fault there it waits longer"
    assert game.scheduler._board.stages[0].streak.faults == 0, "such faults stop no stage"


def test_suspected_node_gets_one_rank_where_two_shapes_find_no_other() -> None:
    game = play(plan(9, max_gangs=1), plan(9, max_gangs=1, shape=1), params=PARAMS)
    game.start()
    game.scheduler._board.evidence.suspect("a", game.now, 0)
    for gang in (0, 1):
        assert dispatches(ready(game, gang, "a", fitting=8)) == []
    given: list[tuple[int, int]] = []
    while game.now < PARAMS.avoid_wait_s:
        given += [(gang, number) for gang, number, _ in dispatches(game.tick())]
    assert len(given) == 1
    ((gang, number),) = given
    later = dispatches(game.fail(number, 0, "died", "a"))
    assert [each for each, _, _ in later] == [1 - gang], "it has waited as long"


def test_suspected_node_is_used_in_time_also_where_the_others_are_lost_later() -> None:
    game = play(plan(50, slots=3, max_gangs=2), params=PARAMS)
    game.start()
    ready(game, 0, "a")
    ready(game, 1, "b")
    for number in held(game, 0)[:2]:
        game.fail(number, game.scheduler.outstanding(number)[0].start, "died", "a")
    assert game.referee.gangs[0].state == "ready", "it still runs something"
    game.tick(20.0)
    game.lost(1, "preempted")
    game.close()
    for number in held(game, 0)[1:]:
        game.give_back(number, *game.scheduler.outstanding(number))
    game.tick(PARAMS.avoid_wait_s)
    (running,) = held(game, 0)
    assert [gang for gang, _, _ in dispatches(game.succeed(running, busy_s=9.0))] == [0]


def test_suspected_node_that_drains_gets_no_rank_that_would_fit() -> None:
    game = play(plan(50, slots=2, max_gangs=2), params=PARAMS)
    game.start()
    ready(game, 0, "a")
    ready(game, 1, "b")
    game.succeed(held(game, 1)[0], busy_s=9.0)
    game.send(NodeDraining(node="a", left_s=500.0))
    first, *_ = held(game, 0)
    given = dispatches(game.fail(first, game.scheduler.outstanding(first)[0].start, "died", "a"))
    assert [gang for gang, _, _ in given] == [0], "what can end in time"
    second = given[0][1]
    rank = game.scheduler.outstanding(second)[0].start
    assert dispatches(game.fail(second, rank, "died", "a")) == []


def test_gang_that_is_placed_on_a_node_to_avoid_is_closed_before_it_starts() -> None:
    game = with_bad_a()
    game.close()
    (pending,) = [n for n, gang in game.referee.gangs.items() if gang.state == "opening"]
    commands = game.send(GangPlaced(gang=pending, nodes=("a",)))
    assert closed(commands) == [pending]
    assert not opened(game.close()), "only that node has room: nothing is asked for"
    while not opened(game.tick()):
        pass
    assert game.now >= PARAMS.parole_s, "until its parole"


def test_parole_gives_one_rank_at_a_time_and_a_fault_doubles_the_term() -> None:
    game = with_bad_a(slots=2)
    for number in held(game, 0):
        game.succeed(number, busy_s=9.0)
    game.close()
    game.record()
    board = game.scheduler._board
    game.tick(101.0)
    (pending,) = [n for n, gang in game.referee.gangs.items() if gang.state == "opening"]
    ready(game, pending, "a")
    assert len(held(game, pending)) == 1
    (number,) = held(game, pending)
    game.fail(number, game.scheduler.outstanding(number)[0].start, "died", "a")
    assert held(game, pending) == []
    assert board.evidence.parole_at(("a",), game.now) == game.now + 200.0


def test_retry_of_a_bug_prefers_another_node() -> None:
    game = play(plan(4, max_gangs=2), params=PARAMS)
    game.start()
    ready(game, 0, "a")
    ready(game, 1, "b")
    game.fail(0, 0, "again", "a")
    while game.scheduler.counts(0).ready > 1:
        game.succeed(held(game, 0)[0], busy_s=9.0)
    assert (1, one(0)) in [
        (gang, ranks) for gang, _, ranks in dispatches(game.succeed(held(game, 1)[0], busy_s=9.0))
    ]


def test_lone_rank_gets_a_gang_on_another_node_in_place_of_the_idle_one() -> None:
    game = play(plan(1, max_gangs=1), params=PARAMS)
    game.start()
    ready(game, 0, "a", fitting=3)
    commands = game.fail(0, 0, "died", "a")
    assert closed(commands) == [0]
    assert avoided([*commands, *game.close()]) == [("a",)]


def test_lone_rank_stays_where_there_is_no_other_node() -> None:
    game = play(plan(1, max_gangs=1), params=PARAMS)
    game.start()
    ready(game, 0, "a", fitting=1)
    assert [gang for gang, _, _ in dispatches(game.fail(0, 0, "died", "a"))] == [0]


def test_gang_that_was_opening_when_its_node_began_to_drain_obeys_the_deadline() -> None:
    game = play(plan(9, max_gangs=1))
    game.start()
    game.send(NodeDraining(node="a", left_s=5.0))
    assert dispatches(game.ready(0, "a")) == [], "how long a rank takes is not known"
    assert game.referee.gangs[0].state == "closing"


def test_gang_asked_for_after_the_notice_found_no_other_node_and_is_used() -> None:
    game = play(plan(9, max_gangs=1))
    game.start()
    game.send(NodeDraining(node="a", left_s=500.0))
    game.ready(0, "a")
    (gang,) = [number for number, seen in game.referee.gangs.items() if seen.state == "opening"]
    assert dispatches(game.ready(gang, "a"))


# -- what a new gang avoids ------------------------------------------------------------------------


def test_new_gang_avoids_a_draining_node() -> None:
    game = play(plan(50, max_gangs=1), params=PARAMS)
    game.start()
    ready(game, 0, "a")
    assert avoided(game.send(NodeDraining(node="a", left_s=500.0))) == [("a",)]


def test_new_gang_avoids_at_most_half_of_the_nodes_that_fit() -> None:
    game = play(plan(50, max_gangs=2), params=PARAMS)
    game.start()
    ready(game, 0, "a", fitting=2)
    ready(game, 1, "b", fitting=2)
    assert avoided(game.send(NodeDraining(node="a", left_s=500.0))) == [("a",)]
    assert avoided(game.send(NodeDraining(node="b", left_s=500.0))) == [("a",)]


def test_second_new_gang_avoids_a_node_on_parole_that_the_first_may_try() -> None:
    game = with_bad_a(max_gangs=3)
    game.close()
    game.tick(PARAMS.parole_s)
    for gang in [number for number, seen in game.referee.gangs.items() if seen.state == "opening"]:
        game.lost(gang, "preempted")
    game.close()
    asked: list[tuple[str, ...]] = []
    while not asked:
        asked = avoided(game.tick())
    assert asked == [(), ("a",)]


def test_lone_rank_that_always_comes_to_its_node_again_waits_for_a_moment_only() -> None:
    game = play(plan(1, max_gangs=1), params=PARAMS)
    game.start()
    ready(game, 0, "a", fitting=3)
    game.fail(0, 0, "died", "a")
    failed_at = game.now
    given: list[tuple[int, int, Ranks]] = []
    while not given:
        assert game.now <= failed_at + PARAMS.avoid_wait_s
        game.close()
        game.tick(1.0)
        (pending,) = [n for n, gang in game.referee.gangs.items() if gang.state == "opening"]
        given = dispatches(ready(game, pending, "a", fitting=3))
    assert game.now == failed_at + PARAMS.avoid_wait_s
