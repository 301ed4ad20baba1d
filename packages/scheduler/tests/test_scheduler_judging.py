"""When a stage stops: everything fails on the machines, or every rank fails alike."""

from __future__ import annotations

import pytest

from thornback.faults import Standing, StopReason
from thornback.scheduler import SchedulerParams
from thornback.scheduler.commands import Record, RecordState
from thornback.scheduler.events import GangPlaced, GangReady
from thornback.scheduler.stages import one
from thornback.scheduler.testing import (
    VERDICTS,
    FakeVerdict,
    Play,
    ScriptedPolicy,
    dispatches,
    opened,
    plan,
    play,
)

ALIKE = ScriptedPolicy(
    {
        "never": FakeVerdict(retry=False, machine_fault=True, stop=StopReason.FINAL),
        "bug": FakeVerdict(retry=False, signature="NameError at job.py:3"),
        "other": FakeVerdict(retry=False, signature="KeyError at job.py:9"),
    }
)


class Convicts(ScriptedPolicy):
    """Gives a rank up as soon as a death is settled against it."""

    def decide(
        self,
        fault: str,
        history: object,
        standing: Standing,
        draw: float,
        /,
    ) -> FakeVerdict:
        again = FakeVerdict(blames_node=True, machine_fault=True, delay_s=0.0)
        if standing is Standing.RANK:
            return FakeVerdict(retry=False, reason="poison", stop=StopReason.POISON)
        return again


def held(game: Play[str], gang: int) -> list[int]:
    return list(game.referee.gangs[gang].live)


def all_fail(game: Play[str], fault: str, most: int) -> int:
    """Let every rank fail that runs, and every gang be ready; return how many failed."""
    failed = 0
    while not game.scheduler.finished and failed < most:
        opening = [n for n, gang in game.referee.gangs.items() if gang.state == "opening"]
        running = [n for n, (_, _, ranks) in game.referee.outstanding.items() if ranks]
        if opening:
            game.ready(opening[0], "here")
        elif running:
            rank = game.scheduler.outstanding(running[0])[0].start
            game.fail(running[0], rank, fault, "here")
            failed += 1
        elif not (game.close() or game.record()):
            game.tick()
    return failed


@pytest.mark.parametrize("gangs", [1, 2, 8, 64])
def test_stage_in_which_everything_dies_stops_within_the_bound(gangs: int) -> None:
    game = play(plan(2000, max_gangs=gangs))
    game.start()
    assert all_fail(game, "died", 1000) <= 20 + 2 * gangs
    assert "no progress: " in game.scheduler.reason(0, 1999)


@pytest.mark.parametrize(("gangs", "slots"), [(1, 4), (8, 2)])
def test_bound_counts_the_slots_where_each_gang_is_on_its_own_bad_node(
    gangs: int, slots: int
) -> None:
    game = play(plan(2000, max_gangs=gangs, slots=slots))
    game.start()
    for gang in range(gangs):
        game.send(GangReady(gang=gang, nodes=(f"node-{gang}",), fitting=gangs))
    failed = 0
    while not game.scheduler.finished:
        running = [n for n, (_, _, ranks) in game.referee.outstanding.items() if ranks]
        opening = [n for n, gang in game.referee.gangs.items() if gang.state == "opening"]
        if running:
            (rank, *_) = game.scheduler.outstanding(running[0])[0]
            gang = game.referee.outstanding[running[0]][0]
            game.fail(running[0], rank, "died", f"node-{gang % gangs}")
            failed += 1
        elif opening:
            nodes = (f"node-{opening[0] % gangs}",)
            game.send(GangReady(gang=opening[0], nodes=nodes, fitting=gangs))
        elif not (game.close() or game.record()):
            game.tick()
    assert 20 <= failed <= 20 + 2 * gangs * slots
    assert "no progress: " in game.scheduler.reason(0, 1999)


def test_attempts_that_are_given_up_count_as_machine_faults() -> None:
    policy = ScriptedPolicy({"died": FakeVerdict(retry=False, machine_fault=True)})
    game = play(plan(2000, max_gangs=2, policy=policy))
    game.start()
    assert all_fail(game, "died", 1000) <= 20 + 2 * 2


def test_faults_of_no_machine_stop_no_stage() -> None:
    game = play(plan(30, max_gangs=2, policy=ScriptedPolicy(VERDICTS, budget=3)))
    game.start()
    assert all_fail(game, "again", 1000) == 30 * 4


def test_a_few_bad_nodes_stop_no_stage_while_a_good_one_is_known() -> None:
    params = SchedulerParams(no_progress_faults=4)
    game = play(plan(500, max_gangs=2, slots=6), params=params)
    game.start()
    game.send(GangReady(gang=0, nodes=("bad",), fitting=8))
    game.send(GangReady(gang=1, nodes=("good",), fitting=8))
    game.succeed(min(game.referee.gangs[1].live), busy_s=9.0)
    for running in list(game.referee.gangs[0].live)[:6]:
        rank = game.scheduler.outstanding(running)[0].start
        game.fail(running, rank, "died", "bad")
    (stage,) = game.scheduler._board.stages
    assert stage.streak.faults == 6
    assert stage.tripped is None
    assert dispatches(game.succeed(min(game.referee.gangs[1].live), busy_s=9.0))


def test_faults_that_blame_no_node_count_in_full_beside_a_good_one() -> None:
    """A broken installation is broken on all nodes, however well earlier ranks went."""
    policy = ScriptedPolicy({"broken": FakeVerdict(machine_fault=True)})
    game = play(plan(2000, max_gangs=1, policy=policy))
    game.start()
    game.send(GangReady(gang=0, nodes=("a",), fitting=8))
    game.succeed(0, busy_s=9.0)
    game.record()
    for number in range(1, 21):
        assert game.scheduler._board.stages[0].tripped is None
        game.fail(number, game.scheduler.outstanding(number)[0].start, "broken", "a")
    assert "no progress: 20 machine faults" in game.scheduler.reason(0, 1999)


def test_success_of_another_stage_does_not_keep_a_stage_going_that_only_dies() -> None:
    """Their gangs share the nodes, so each death is soon settled against its rank."""
    game = play(plan(2000, max_gangs=2), plan(2000, max_gangs=2, shape=1))
    game.start()
    for gang, node in enumerate("abab"):
        game.send(GangReady(gang=gang, nodes=(node,), fitting=8))
    # Each node is known to be good before the ranks of stage 0 begin to die.
    for gang in range(4):
        game.succeed(held(game, gang)[0], busy_s=9.0)
    game.record()
    faults = 0
    while any(held(game, gang) for gang in (0, 1)):
        for gang, node in enumerate("ab"):
            if held(game, gang):
                number = held(game, gang)[0]
                game.fail(number, game.scheduler.outstanding(number)[0].start, "died", node)
                faults += 1
            for _ in range(2):  # the second one was dispatched after the death
                game.succeed(held(game, gang + 2)[0], busy_s=9.0)
        game.record()
        assert faults <= 20 + 2 * 2
    assert "no progress: " in game.scheduler.reason(0, 1999)


def test_older_gang_that_has_its_place_is_waited_for_and_may_save_the_stage() -> None:
    game = play(plan(90, max_gangs=2), params=SchedulerParams(no_progress_faults=2))
    game.start()
    game.ready(0, "a")
    game.send(GangPlaced(gang=1, nodes=("b",)))
    for _ in range(2):
        (number,) = game.referee.gangs[0].live
        game.fail(number, game.scheduler.outstanding(number)[0].start, "died", "a")
    game.tick(100.0)
    assert game.scheduler.counts(0).ready == 90, "it does not stop, and dispatches nothing"
    ((gang, number, _),) = dispatches(game.ready(1, "b"))
    assert gang == 1
    assert dispatches(game.succeed(number, busy_s=9.0)), "one success lets the stage go on"


def test_older_gang_without_a_place_is_waited_for_a_moment_only() -> None:
    params = SchedulerParams(no_progress_faults=3, place_wait_s=2.0)
    game = play(plan(90, max_gangs=2), params=params)
    game.start()
    game.ready(0, "a")
    for _ in range(3):
        (number,) = game.referee.gangs[0].live
        game.fail(number, game.scheduler.outstanding(number)[0].start, "died", "a")
    assert game.scheduler.counts(0).ready == 90
    game.tick(2.0)
    assert game.scheduler.counts(0).ready == 0


# -- every rank fails alike ------------------------------------------------------------------------


def test_stage_whose_ranks_fail_alike_stops_and_skips_the_rest() -> None:
    game = play(plan(2000, slots=4, max_gangs=2, policy=ALIKE, fail_fast=20))
    game.start()
    assert all_fail(game, "bug", 1000) <= 20 + 2 * 8
    ended = game.referee.ended
    assert ended[0, 0] is RecordState.FAILED
    assert ended[0, 1999] is RecordState.SKIPPED
    assert "every rank fails alike" in game.scheduler.reason(0, 1999)


def test_rest_of_a_stage_that_fails_alike_is_recorded_with_the_reason() -> None:
    game = play(plan(50, max_gangs=1, policy=ALIKE, fail_fast=2))
    game.start()
    game.ready(0)
    game.fail(0, 0, "bug")
    records = [c for c in game.fail(1, 1, "bug") if isinstance(c, Record)]
    stops = {c.state: c.stop for c in records}
    assert stops[RecordState.SKIPPED] is StopReason.ALL_ALIKE


def test_different_bugs_are_counted_apart() -> None:
    game = play(plan(50, max_gangs=1, policy=ALIKE, fail_fast=3))
    game.start()
    game.ready(0)
    for number in range(4):
        game.fail(number, number, ("bug", "other")[number % 2])
    assert game.scheduler.counts(0).running == 1
    game.fail(4, 4, "bug")
    assert game.scheduler.counts(0).skipped == 45


@pytest.mark.parametrize("when", ["in this run", "earlier"])
def test_stage_with_a_success_does_not_fail_fast(when: str) -> None:
    game = play(plan(50, max_gangs=1, policy=ALIKE, fail_fast=3))
    game.start(done={0: one(0)} if when == "earlier" else {})
    game.ready(0)
    if when == "in this run":
        game.succeed(0, busy_s=9.0)
    number = max(game.referee.outstanding)
    for _ in range(10):
        game.fail(number, game.scheduler.outstanding(number)[0].start, "bug")
        number = max(game.referee.outstanding)
    assert game.scheduler.counts(0).running == 1


# -- no rank can ever run --------------------------------------------------------------------------


def test_stage_stops_at_the_first_fault_that_is_final_for_every_machine() -> None:
    game = play(plan(50, slots=2, max_gangs=1, policy=ALIKE))
    game.start()
    game.ready(0)
    game.fail(0, 0, "never")
    assert game.scheduler.counts(0).skipped == 0, "the other slot may still succeed"
    records = [c for c in game.fail(1, 1, "never") if isinstance(c, Record)]
    assert {c.state: c.stop for c in records} == {
        RecordState.FAILED: StopReason.FINAL,
        RecordState.SKIPPED: StopReason.FINAL,
    }
    assert "no rank of it can run: never" in game.scheduler.reason(0, 49)


def test_stage_with_a_success_goes_on_after_a_final_fault_of_one_machine() -> None:
    game = play(plan(50, slots=2, max_gangs=1, policy=ALIKE))
    game.start()
    game.ready(0)
    game.fail(0, 0, "never")
    game.succeed(1, busy_s=9.0)
    assert game.scheduler.counts(0).skipped == 0
    assert game.scheduler.counts(0).running > 0


# -- evidence against a rank that waits ------------------------------------------------------------


def test_rank_that_is_convicted_while_it_waits_is_given_up_at_once() -> None:
    game = play(plan(4, max_gangs=2, policy=Convicts({})))
    game.start()
    game.ready(0, "a")
    game.ready(1, "b")
    ((_, later, _),) = dispatches(game.fail(0, 0, "died", "a"))
    assert game.scheduler.counts(0).failed == 0
    commands = game.succeed(later, busy_s=9.0)
    (ended,) = [c for c in commands if isinstance(c, Record) and c.state is RecordState.FAILED]
    assert (ended.ranks, ended.stop) == (one(0), StopReason.POISON)


# -- waiting for resources -------------------------------------------------------------------------


def test_busy_openings_are_asked_again_without_end() -> None:
    busy = FakeVerdict(charged=False)
    game = play(plan(3, max_gangs=1, policy=ScriptedPolicy({"busy": busy})))
    (gang,) = opened(game.start())
    for _ in range(50):
        game.lost(gang, "busy")
        game.close()
        while not (asked := opened(game.tick())):
            pass
        (gang,) = asked
    assert game.scheduler.counts(0).ready == 3


def test_ready_ranks_are_given_up_when_the_user_has_waited_enough() -> None:
    game = play(plan(3, max_gangs=1), params=SchedulerParams(wait_s=30.0))
    game.start()
    records: list[Record] = []
    while not records:
        records = [c for c in game.tick() if isinstance(c, Record)]
    assert game.now == 30.0
    assert {c.stop for c in records} == {StopReason.NOT_PLACED}


def test_wait_ends_no_stage_whose_gang_has_its_place_and_starts_slowly() -> None:
    game = play(plan(3, max_gangs=1), params=SchedulerParams(wait_s=30.0))
    game.start()
    game.send(GangPlaced(gang=0, nodes=("a",)), after_s=5.0)
    assert game.tick(40.0) == []
    assert dispatches(game.ready(0, "a"))


def test_wait_for_resources_that_the_run_holds_itself_begins_when_they_are_free() -> None:
    params = SchedulerParams(wait_s=30.0)
    game = play(plan(1, max_gangs=1), plan(1, max_gangs=1, shape=1), params=params)
    game.start()
    game.ready(0, "a")
    game.tick(40.0)
    game.succeed(0)
    game.tick(3.0)
    game.close()
    assert game.scheduler.counts(1).ready == 1, "the gang that is gone may have made room"
    freed_at = game.now
    while game.scheduler.counts(1).ready:
        game.tick()
    assert game.now == freed_at + 30.0


# -- in trouble ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("fault", "following"), [("died", 1), ("again", 0)])
def test_fresh_ranks_go_before_retries_only_while_the_stage_is_in_trouble(
    fault: str, following: int
) -> None:
    game = play(plan(9, max_gangs=1))
    game.start()
    game.ready(0)
    ((_, _, ranks),) = dispatches(game.fail(0, 0, fault))
    assert ranks == one(following)


def test_gang_that_has_finished_nothing_gets_one_rank_at_a_time_in_trouble() -> None:
    game = play(plan(90, slots=4, max_gangs=2))
    game.start()
    game.ready(0, "a")
    game.fail(0, 0, "died", "a")
    game.fail(1, 1, "died", "a")
    ((_, number, _),) = dispatches(game.ready(1, "b"))
    given = dispatches(game.succeed(number, busy_s=9.0))
    assert [gang for gang, _, _ in given].count(1) == 4, "now it has finished one"


def test_tripped_stage_gives_one_rank_to_an_older_gang_and_none_to_others() -> None:
    game = play(plan(90, slots=4, max_gangs=2), params=SchedulerParams(no_progress_faults=2))
    game.start()
    game.ready(0, "a")
    game.send(GangPlaced(gang=1, nodes=("b",)))
    game.fail(0, 0, "died", "a")
    assert not dispatches(game.fail(1, 1, "died", "a"))
    for number in held(game, 0):
        game.give_back(number, *game.scheduler.outstanding(number))
    assert held(game, 0) == []
    assert len(dispatches(game.ready(1, "b"))) == 1
    assert held(game, 0) == []


def test_tripped_stage_gives_nothing_to_a_gang_asked_for_in_its_trouble() -> None:
    game = play(plan(90, max_gangs=3), params=SchedulerParams(no_progress_faults=2))
    game.start()
    game.ready(0, "a")
    game.send(GangPlaced(gang=1, nodes=("b",)))
    ((_, number, ranks),) = dispatches(game.fail(0, 0, "died", "a"))
    game.lost(2, "preempted")
    game.close()
    while not (younger := opened(game.tick())):
        pass
    assert not dispatches(game.fail(number, ranks[0].start, "died", "a"))
    assert not dispatches(game.ready(younger[0], "c"))
    assert len(dispatches(game.ready(1, "b"))) == 1


def test_stage_without_a_limit_tries_every_rank_although_all_fail_alike() -> None:
    game = play(plan(50, max_gangs=1, policy=ALIKE, fail_fast=None))
    game.start()
    assert all_fail(game, "bug", 1000) == 50
    assert game.scheduler.counts(0).skipped == 0
