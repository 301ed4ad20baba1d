"""One test per rule of the scheduler: how gangs are asked for, shared, drained and given up."""

from __future__ import annotations

from thornback.scheduler.commands import (
    CloseGang,
    Dispatch,
    OpenGang,
    Recall,
    Record,
    RecordState,
)
from thornback.scheduler.events import (
    NodeDraining,
)
from thornback.scheduler.stages import one
from thornback.scheduler.testing import (
    closed,
    dispatches,
    opened,
    plan,
    play,
)

# -- opening ---------------------------------------------------------------------------------------


def test_gangs_are_asked_for_as_there_is_work_and_at_most_eight_at_a_time() -> None:
    assert len(opened(play(plan(3, slots=2)).start())) == 2
    game = play(plan(100))
    assert len(opened(game.start())) == 8
    assert opened(game.ready(0)) == [8]
    assert len(opened(play(plan(100, max_gangs=3)).start())) == 3


def test_pending_gangs_are_closed_when_the_work_is_gone() -> None:
    game = play(plan(2))
    game.start()
    game.ready(0)
    game.succeed(0)
    assert closed(game.succeed(1)) == [1, 0] or closed(game.tick()) == []
    assert sorted(n for n, g in game.referee.gangs.items() if g.state == "closing") == [0, 1]


def test_a_pending_gang_lingers_while_its_work_may_come_back() -> None:
    game = play(plan(3))
    game.start()
    game.ready(0)
    game.ready(1)
    game.succeed(0, busy_s=9.0)
    assert game.referee.gangs[2].state == "opening"
    assert closed(game.tick(5.0)) == [2]


def test_a_gang_that_cannot_be_opened_is_asked_for_again_later_and_later() -> None:
    game = play(plan(5))
    game.start()
    gaps = []
    gang = 0
    for _ in range(4):
        for other, seen in list(game.referee.gangs.items()):
            if seen.state == "opening":
                game.lost(other, "waited")
        game.close()
        asked_at = game.now
        while not (again := opened(game.tick())):
            pass
        assert len(again) == 1, "slow start"
        gang = again[0]
        gaps.append(game.now - asked_at)
    assert gaps == [1.0, 2.0, 4.0, 8.0]
    assert len(opened(game.ready(gang))) == 4


def test_a_shape_that_does_not_fit_fails_its_stage_only_if_it_has_no_gang() -> None:
    game = play(plan(2, max_gangs=2))
    game.start()
    game.ready(0)
    assert game.lost(1, "impossible") == [CloseGang(gang=1, kill=True)]
    game = play(plan(2, max_gangs=2), plan(1, shape=1), parents=[[], [0]])
    game.start()
    records = [c for c in game.lost(0, "impossible") if isinstance(c, Record)]
    assert [(r.stage, r.ranks, r.state) for r in records] == [
        (0, (range(0, 2),), RecordState.FAILED),
        (1, one(0), RecordState.SKIPPED),
    ]
    assert game.scheduler.reason(0, 1) == "no node is that large"


def test_a_refusal_beside_other_shapes_counts_only_when_repeated() -> None:
    game = play(plan(1), plan(1, shape=1))
    game.start()
    game.ready(0)
    for gang in (1, 2):
        assert not [c for c in game.lost(gang, "impossible") if isinstance(c, Record)]
        game.tick()
    assert [c.stage for c in game.lost(3, "impossible") if isinstance(c, Record)] == [1]


def test_avoidance_is_dropped_when_it_makes_a_shape_impossible() -> None:
    game = play(plan(100, max_gangs=1))
    game.start()
    game.ready(0, "b")
    game.lost(0, "preempted")
    game.ready(1, "a")
    game.lost(1, "gone", "a")
    (again,) = [c for c in game.lost(2, "impossible") if isinstance(c, OpenGang)]
    assert again.avoid == ()
    assert game.scheduler.counts(0).failed == 0


# -- sharing a cluster -----------------------------------------------------------------------------


def test_higher_priority_goes_first_then_the_order_of_the_job() -> None:
    game = play(plan(1), plan(1), plan(1, priority=1))
    game.start()
    commands = game.ready(0)
    assert [c.stage for c in commands if isinstance(c, Dispatch)] == [2]


def test_a_warm_gang_is_handed_to_the_next_stage_of_its_shape() -> None:
    game = play(plan(1), plan(1), parents=[[], [0]])
    game.start()
    game.ready(0)
    assert closed(game.succeed(0)) == []
    assert dispatches(game.record()) == [(0, 1, one(0))]
    assert game.scheduler.counts(1).gangs == 1


def test_an_idle_gang_is_closed_when_nobody_can_want_its_shape() -> None:
    game = play(plan(1), plan(1, shape=1), parents=[[], [0]])
    game.start()
    game.ready(0)
    assert closed(game.succeed(0)) == [0]


def test_an_idle_warm_gang_is_given_up_to_a_shape_that_waits() -> None:
    game = play(plan(1), plan(1, shape=1), plan(1), parents=[[], [], [1]])
    game.start()
    game.ready(0)
    assert closed(game.succeed(0)) == [], "stage 2 can want it"
    assert closed(game.tick(4.0)) == []
    assert closed(game.tick(1.0)) == [0]


def test_a_shape_that_starves_gets_the_gang_of_another_at_its_free_moment() -> None:
    game = play(plan(50, max_gangs=2), plan(1, shape=1))
    game.start()
    game.ready(0)
    game.ready(1)
    game.succeed(0, busy_s=9.0)
    game.succeed(1, busy_s=9.0)
    game.tick(59.0)
    assert not [g for g in game.scheduler._board.gangs.values() if g.yields_to]
    commands = game.tick(1.0)
    assert [type(c) for c in commands] == [Recall]
    victim = 1
    (running,) = game.referee.gangs[victim].live
    assert closed(game.succeed(running, busy_s=9.0)) == [victim]
    assert opened(game.close()) == [], "the room is for the other shape"
    assert "yielded" not in (game.scheduler.waiting_reason(0) or "")
    (starving,) = [n for n, g in game.referee.gangs.items() if g.state == "opening"]
    game.ready(starving)
    assert game.scheduler.counts(1).running == 1


def test_a_stage_that_starves_is_handed_a_warm_gang_of_its_shape_and_keeps_it() -> None:
    game = play(plan(50, max_gangs=2, slots=2), plan(9, slots=2))
    game.start()
    game.ready(0)
    game.ready(1)
    for assignment in range(4):
        game.succeed(assignment, busy_s=9.0)
    game.tick(60.0)
    (victim,) = [g for g in game.scheduler._board.gangs.values() if g.yields_to]
    for assignment in list(victim.live):
        commands = game.succeed(assignment, busy_s=9.0)
    assert [(c.gang, c.stage) for c in commands if isinstance(c, Dispatch)] == [
        (victim.number, 1),
        (victim.number, 1),
    ]
    assert game.referee.gangs[victim.number].state == "ready"
    (first, _) = victim.live
    commands = game.succeed(first, busy_s=9.0)
    assert [c.stage for c in commands if isinstance(c, Dispatch)] == [1]


def test_higher_priority_takes_a_gang_at_its_next_free_moment() -> None:
    game = play(plan(1), plan(50, max_gangs=1), plan(5, priority=1), parents=[[], [], [0]])
    game.start()
    game.ready(0)
    game.ready(1)
    game.succeed(0, busy_s=9.0)
    game.record()
    (running,) = game.referee.gangs[1].live
    commands = game.succeed(running, busy_s=9.0)
    assert [(c.gang, c.stage) for c in commands if isinstance(c, Dispatch)] == [(1, 2)]


def test_idle_gangs_are_kept_while_a_batch_may_be_handed_back() -> None:
    game = play(plan(21, max_gangs=2))
    game.start()
    game.ready(0)
    number = 0
    while game.scheduler.counts(0).ready:
        game.succeed(number, busy_s=0.4)
        number += 1
    game.ready(1)
    assert game.scheduler.counts(0).running == 2, "one runs, one waits behind it"
    last = max(game.referee.gangs[0].live)
    assert dispatches(game.give_back(last, *game.scheduler.outstanding(last))) == [
        (1, last + 1, one(20))
    ]


def test_the_only_gang_is_not_taken_for_a_stage_of_less_priority() -> None:
    game = play(plan(50, max_gangs=1), plan(1, shape=1))
    game.start()
    game.ready(0)
    game.succeed(0, busy_s=9.0)
    game.tick(61.0)
    assert not [g for g in game.scheduler._board.gangs.values() if g.yields_to]


def test_waiting_reason_names_why_there_is_no_gang() -> None:
    game = play(plan(1))
    game.start()
    assert game.scheduler.waiting_reason(0) is None
    game.lost(0, "waited")
    assert "asked again in 1.0 s" in (game.scheduler.waiting_reason(0) or "")


# -- drains ----------------------------------------------------------------------------------------


def test_a_draining_gang_is_replaced_gets_no_long_work_and_is_closed_when_free() -> None:
    game = play(plan(9, max_gangs=1))
    game.start()
    game.ready(0, "a")
    commands = game.send(NodeDraining(node="a", left_s=60.0))
    assert [type(c) for c in commands] == [Recall, OpenGang], commands
    assert game.send(NodeDraining(node="a", left_s=60.0)) == []
    assert closed(game.succeed(0, busy_s=50.0)) == [0]
    assert dispatches(game.ready(1, "a")) == [(1, 1, one(1))], "the only place there is"
    assert game.send(NodeDraining(node="a", left_s=50.0)) == []


def test_nodes_that_are_gone_are_forgotten() -> None:
    game = play(plan(9))
    game.start()
    for node in range(50):
        game.send(NodeDraining(node=f"spot-{node}", left_s=1.0), 10.0)
    assert list(game.scheduler._board.drains) == ["spot-49"]


def test_a_draining_gang_still_gets_what_it_can_finish() -> None:
    game = play(plan(99, max_gangs=1))
    game.start()
    game.ready(0, "a")
    game.succeed(0, busy_s=1.0)
    game.send(NodeDraining(node="a", left_s=10.0))
    assert len(dispatches(game.succeed(1, busy_s=1.0))) <= 1
    assert game.referee.gangs[0].state == "ready"
    game.now += 9.0
    for assignment in list(game.referee.gangs[0].live):
        game.succeed(assignment, busy_s=1.0)
    assert game.referee.gangs[0].state == "closing"
