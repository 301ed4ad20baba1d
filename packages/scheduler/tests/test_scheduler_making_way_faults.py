"""What goes wrong, is stopped or needs more memory while gangs make way for a higher priority.

See also `test_scheduler_making_way.py`. Every play goes on to the end of its run.
"""

from __future__ import annotations

import pytest

from packages.scheduler.tests.contention import (
    LOW,
    URGENT,
    Play,
    contended,
    end_one,
    finish,
    gangs_of,
    given,
    go_on,
    held,
    long_awaited,
    low,
    recalled,
    urgent,
    yielding,
)
from thornback.scheduler import SchedulerParams
from thornback.scheduler.commands import FinishRun, OpenGang, RunState, ShapeKey
from thornback.scheduler.events import CancelRequested, NodeDraining
from thornback.scheduler.testing import GIB, closed, opened

# -- memory ----------------------------------------------------------------------------------------


def with_memory(game: Play, gang: int, count: int = 1) -> list[int]:
    """So many ranks of a gang fail, and are tried again with more memory; return the gangs that are
    asked for, for them."""
    asked = []
    for number in held(game, gang)[:count]:
        rank = game.scheduler.outstanding(number)[0].start
        asked += [
            command.gang
            for command in game.fail(number, rank, "oom")
            if isinstance(command, OpenGang) and command.shape == ShapeKey(1, 3 * GIB)
        ]
    return asked


def without(game: Play, gang: int) -> None:
    """A gang is lost, and the next one could not be opened: so its stage may have another."""
    (successor,) = opened(game.lost(gang, "preempted"))
    game.lost(successor, "waited")


def test_gangs_do_not_make_way_for_a_rank_that_needs_more_memory_than_they_have() -> None:
    game = contended(low(2, slots=2), urgent(2, slots=2))
    own = gangs_of(game, URGENT)[0]
    game.ready(own)
    (asked,) = with_memory(game, own)
    game.record()
    game.tick(50.0)
    assert not yielding(game)
    assert given(game.ready(asked)) == [(asked, URGENT)]
    finish(game, room=4)


def test_a_gang_with_more_memory_does_not_make_way_for_ranks_of_the_base_shape() -> None:
    game = contended(low(4, slots=2), urgent(10, slots=2))
    first, second, third, fourth = gangs_of(game, LOW)
    without(game, fourth)
    (large, *_) = with_memory(game, third, 2)
    game.ready(large)
    assert given(end_one(game, large)) == [(large, LOW)]
    game.tick(5.0)
    assert yielding(game) == [first, second, third]
    game.tick(5.0)
    assert yielding(game) == [first, second, third]
    finish(game, room=4)


def test_among_gangs_with_more_memory_the_lower_priority_makes_way_too() -> None:
    """They have one slot: so one is enough for one rank, whatever the stage has else."""
    game = contended(low(3, slots=2), urgent(2, slots=2))
    first, _, third = gangs_of(game, LOW)
    without(game, third)
    (large, *_) = with_memory(game, first, 2)
    game.ready(large)
    assert given(end_one(game, large)) == [(large, LOW)]
    own = gangs_of(game, URGENT)[0]
    game.ready(own)
    with_memory(game, own)
    game.tick(5.0)
    assert yielding(game) == [large]
    with_memory(game, first)
    assert given(end_one(game, large)) == [(large, URGENT)]
    finish(game, room=4)


# -- nodes and gangs that go away ------------------------------------------------------------------


@pytest.mark.parametrize(("nodes", "slots"), [(1, 1), (2, 1), (1, 3)])
def test_a_gang_on_a_node_that_goes_away_is_closed_when_free_for_who_has_none(
    nodes: int, slots: int
) -> None:
    """It gets no more work, and the next makes way when it is gone: not in its place."""
    game = contended(low(2, nodes=nodes, slots=slots), urgent(slots, nodes=nodes, slots=slots))
    first, second = gangs_of(game, LOW)
    game.tick(5.0)
    assert yielding(game) == [first]
    game.send(NodeDraining(node=f"{first}{'ab'[nodes - 1]}", left_s=100.0))
    for left in reversed(range(slots)):
        assert yielding(game) == [first]
        commands = end_one(game, first)
        assert given(commands) == []
        assert closed(commands) == ([] if left else [first])
    assert yielding(game) == [second]
    finish(game, room=2)


def test_a_gang_whose_node_goes_away_works_on_when_the_other_stage_has_one() -> None:
    """And the next one makes way instead, at once."""
    game = contended(low(2, slots=2), urgent(4, slots=2))
    first, second = gangs_of(game, LOW)
    game.tick(5.0)
    own = gangs_of(game, URGENT)[0]
    game.ready(own)
    assert yielding(game) == [first, second]
    game.tick(1.0)
    game.send(NodeDraining(node=f"{first}a", left_s=100.0))
    assert yielding(game) == [second]
    assert given(end_one(game, first)) == [(first, LOW)], "what it can finish"
    finish(game, room=3)


def test_who_has_waited_long_does_not_keep_a_gang_whose_node_goes_away() -> None:
    """That notice may come at the very moment."""
    game, (first, second, _) = long_awaited()
    game.send(NodeDraining(node=f"{second}a", left_s=100.0), after_s=60.0)
    assert yielding(game) == []
    assert given(end_one(game, first)) == [(first, LOW)]
    finish(game, room=4)


def test_when_a_gang_is_lost_on_its_way_the_next_makes_way() -> None:
    game = contended(low(2, slots=2), urgent(2, slots=2))
    first, second = gangs_of(game, LOW)
    game.tick(5.0)
    assert yielding(game) == [first]
    before = game.scheduler.counts(LOW).ready
    commands = game.lost(first, "preempted")
    assert recalled(commands) == held(game, second)
    assert yielding(game) == [second]
    assert game.scheduler.counts(LOW).ready == before + 2, "they do not pay for it"
    end_one(game, second)
    assert given(end_one(game, second)) == [(second, URGENT)] * 2
    finish(game, room=2)


# -- ends ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kill", [False, True])
def test_a_cancelled_run_closes_gangs_on_their_way(kill: bool) -> None:
    game = contended(low(2, slots=2), urgent(4, slots=2))
    first, second = gangs_of(game, LOW)
    game.tick(5.0)
    numbers = [*held(game, first), *held(game, second)]
    commands = game.send(CancelRequested(reason="enough", kill=kill))
    assert recalled(commands) == (numbers if kill else []), "they are recalled already"
    assert first not in closed(commands)
    end_one(game, first)
    assert closed(end_one(game, first)) == [first]
    for number in held(game, second):
        game.give_back(number, *game.scheduler.outstanding(number))
    while not game.scheduler.finished:
        go_on(game, room=0)
    (counts, finish_run) = game.scheduler.counts(URGENT), game.referee.finish
    assert finish_run == FinishRun(state=RunState.CANCELLED, reason="enough")
    assert (counts.ready, counts.gangs) == (4, 0)


def test_gangs_work_on_at_once_when_the_stage_they_make_way_for_is_in_trouble() -> None:
    game = contended(
        low(2, slots=2), urgent(4, slots=2), params=SchedulerParams(no_progress_faults=1)
    )
    first, second = gangs_of(game, LOW)
    game.tick(5.0)
    assert yielding(game) == [first, second]
    own = gangs_of(game, URGENT)[0]
    game.ready(own)
    assert given(end_one(game, first)) == []
    (number, other) = held(game, own)
    rank = game.scheduler.outstanding(number)[0].start
    commands = game.fail(number, rank, "died")
    assert game.scheduler.counts(URGENT).ready == 3, "it waits for what runs, and is given no more"
    assert yielding(game) == []
    assert given(commands) == [(first, LOW)]
    assert held(game, own) == [other]
    finish(game, room=3)
