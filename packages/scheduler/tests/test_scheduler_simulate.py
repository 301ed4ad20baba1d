"""The simulator by itself, with its own model of a pool and its own policy."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thornback.scheduler import InvariantBroken, Scheduler, StagePlan, UsageError
from thornback.scheduler.commands import Command, FinishRun, Record, RecordState, RunState
from thornback.scheduler.events import Event
from thornback.scheduler.simulate import (
    Deliver,
    GangGone,
    Grace,
    Incident,
    IncidentKind,
    KillRank,
    Mishap,
    MishapKind,
    News,
    SimpleGang,
    SimulatedCluster,
    SimulatedFaults,
    SimulatedPolicy,
    Simulation,
    Unfinished,
)
from thornback.scheduler.simulate.agenda import Agenda, Chances
from thornback.scheduler.simulate.journal import Durable
from thornback.scheduler.simulate.load import LoadMeter
from thornback.scheduler.testing import FakeDependencies, check_retry_policy

DIED = Mishap(kind=MishapKind.WORKER, node="a")
CODE = Mishap(kind=MishapKind.CODE, node="a")


def simulation(
    faults: SimulatedFaults | None = None,
    *incidents: Incident,
    ranks: int = 40,
    nodes: int = 1,
    checked: bool = True,
) -> Simulation[Mishap]:
    stages = [StagePlan(world_size=ranks, slots=2, policy=SimulatedPolicy(code=3))]
    return Simulation(
        stages,
        lambda: FakeDependencies([ranks]),
        lambda mishap: mishap,
        SimulatedCluster(nodes=nodes),
        faults,
        incidents=incidents,
        checked=checked,
    )


def test_a_simulated_run_tells_what_it_cost() -> None:
    stats = simulation().run()
    assert stats.finish == FinishRun(state=RunState.SUCCEEDED)
    assert (stats.done, stats.attempts, stats.gangs_lost) == (40, 40, 0)
    assert stats.wasted_s == pytest.approx(0.0, abs=1e-6)
    assert stats.busy_s / 4 < stats.makespan_s < stats.busy_s
    worse = simulation(SimulatedFaults(worker_deaths=0.05)).run()
    assert worse.attempts > 40
    assert worse.wasted_s > 0.0
    assert worse.gangs_lost > 0


def test_checks_change_nothing_but_what_they_cost() -> None:
    faults = SimulatedFaults(worker_deaths=0.05, preemption_s=30.0)
    checked, free = simulation(faults).run(), simulation(faults, checked=False).run()
    assert (checked.checks > 0, free.checks) == (True, 0)
    assert (checked.makespan_s, checked.events) == (free.makespan_s, free.events)


def test_a_simulated_run_is_bounded_and_impossible_ones_are_refused() -> None:
    with pytest.raises(Unfinished, match="10 events") as caught:
        simulation().run(most_events=10)
    assert caught.value.stats.events == 11
    policy = SimulatedPolicy()
    with pytest.raises(UsageError, match="a gang of 2 nodes"):
        Simulation(
            [StagePlan(world_size=1, nodes=2, policy=policy)],
            lambda: FakeDependencies([1]),
            lambda mishap: mishap,
            SimulatedCluster(nodes=1),
        )
    with pytest.raises(UsageError, match="timeout_s"):
        simulation(SimulatedFaults(hangs=0.1))
    with pytest.raises(UsageError, match=r"worker_deaths must be within 0..1, not 2"):
        SimulatedFaults(worker_deaths=2)
    with pytest.raises(UsageError, match="nodes must be above 0"):
        SimulatedCluster(nodes=0)
    with pytest.raises(UsageError, match="preemption_s must be None or above 0"):
        SimulatedFaults(preemption_s=0.0)
    with pytest.raises(UsageError, match="oom must not be negative"):
        SimulatedPolicy(oom=-1)


def test_a_breach_tells_the_seed_and_the_last_events() -> None:
    class Faulty(Scheduler[Mishap]):
        def handle(self, event: Event[Mishap], now: float) -> list[Command]:
            return [c for c in super().handle(event, now) if not isinstance(c, Record)]

    broken = Simulation(
        [StagePlan(world_size=3, policy=SimulatedPolicy())],
        lambda: FakeDependencies([3]),
        lambda mishap: mishap,
        make=Faulty,
        seed=11,
    )
    with pytest.raises(InvariantBroken) as caught:
        broken.run()
    (note,) = caught.value.__notes__
    assert "seed 11" in note
    assert "RanksSucceeded" in note


def test_a_restarted_driver_resumes_and_a_pause_is_not_a_loss() -> None:
    again = simulation(None, Incident(at_s=10.0, kind=IncidentKind.RESTART_DRIVER)).run()
    assert (again.drivers, again.done) == (2, 40)
    assert again.makespan_s > simulation().run().makespan_s
    paused = Incident(at_s=5.0, kind=IncidentKind.PAUSE_DRIVER, lasts_s=100.0)
    assert simulation(None, paused).run().gangs_lost == 0


def test_chances_depend_on_what_they_are_for_only() -> None:
    one, other = Chances(1), Chances(1)
    other.draw("something else", 3)
    assert one.draw("rank", 7) == other.draw("rank", 7)
    assert one.draw("rank", 7) != one.draw("rank", 8) != Chances(2).draw("rank", 8)
    draws = [one.draw("n", n) for n in range(2_000)]
    assert 0.48 < sum(draws) / len(draws) < 0.52
    assert sum(one.exponential(5.0, n) for n in range(2_000)) / 2_000 == pytest.approx(5.0, rel=0.1)
    middle = sorted(one.log_normal(3.0, 1.0, n) for n in range(2_001))[1_000]
    assert middle == pytest.approx(3.0, rel=0.1)


def test_an_agenda_keeps_the_order_of_planning_within_a_moment() -> None:
    agenda, seen = Agenda(), list[str]()
    agenda.at(2.0, lambda: seen.append("late"))
    agenda.at(1.0, lambda: seen.append("first"))
    agenda.at(1.0, lambda: seen.append("second"))
    while agenda.next_at < float("inf"):
        agenda.step()
    assert (seen, agenda.now) == (["first", "second", "late"], 2.0)


def test_what_is_durable_is_recorded_once() -> None:
    durable = Durable([5])
    done = Record(stage=0, ranks=(range(1, 3),), assignment=1, state=RecordState.DONE)
    durable.put(done)
    durable.put(Record(stage=0, ranks=(range(4, 5),), assignment=1, state=RecordState.FAILED))
    assert durable.ranks(RecordState.DONE) == {0: (range(1, 3),)}
    assert durable.ranks(RecordState.SKIPPED) == {}
    assert (durable.count(RecordState.DONE), durable.count(RecordState.FAILED)) == (2, 1)
    with pytest.raises(InvariantBroken, match="durable result already"):
        durable.put(done)


# -- the model of a pool --------------------------------------------------------------------------


def test_a_gang_of_one_passes_on_each_rank_once() -> None:
    gang = SimpleGang(["a"])
    gang.assigned(1, (range(4),), False)
    (told,) = gang.reported(0, 1, News(done=((0, 1.0),), failed=((1, CODE, 2.0),)))
    assert told == Deliver(assignment=1, news=News(done=((0, 1.0),), failed=((1, CODE, 2.0),)))
    (last,) = gang.reported(0, 1, News(done=((0, 1.0),), returned=(range(2, 3),), final=True))
    assert last == Deliver(assignment=1, news=News(returned=(range(2, 4),), final=True))
    assert gang.reported(0, 1, News(done=((0, 1.0),), final=True)) == ()
    assert gang.died(0, DIED) == (GangGone(mishap=DIED),)
    assert gang.died(0, DIED) == ()
    assert not gang.assigned(2, (range(1),), False)


def test_a_gang_of_several_waits_for_all_and_blames_the_worst() -> None:
    gang = SimpleGang(["a", "b", "c"])
    gang.assigned(1, (range(5, 6),), False)
    assert gang.reported(0, 1, News(done=((5, 1.0),), final=True)) == ()
    kills = gang.reported(1, 1, News(failed=((5, CODE, 1.0),), final=True))
    assert kills == tuple(KillRank(member=m, assignment=1, vouch=True) for m in (0, 2))
    oom = Mishap(kind=MishapKind.OOM, node="c")
    assert gang.reported(2, 1, News(failed=((5, oom, 1.0),), final=True)) == ()
    assert gang.vouched(2, 1) == []
    (told,) = gang.vouched(0, 1)
    assert told == Deliver(assignment=1, news=News(failed=((5, oom, 1.0),), final=True))
    assert gang.vouched(0, 1) == ()


def test_who_had_ended_its_part_and_is_dead_is_the_cause() -> None:
    gang = SimpleGang(["a", "b"])
    gang.assigned(1, (range(1),), False)
    gang.reported(0, 1, News(done=((0, 1.0),), final=True))
    (kill,) = gang.reported(1, 1, News(failed=((0, CODE, 1.0),), final=True))
    assert kill == KillRank(member=0, assignment=1, vouch=True)
    assert gang.died(0, DIED) == (GangGone(mishap=DIED),)


def test_a_loss_waits_for_the_others_and_leaves_the_rank_to_the_gang() -> None:
    gang = SimpleGang(["a", "b"])
    gang.assigned(1, (range(1),), False)
    assert gang.died(1, DIED) == (KillRank(member=0, assignment=1),)
    assert gang.reported(0, 1, News(failed=((0, CODE, 1.0),), final=True)) == (
        GangGone(mishap=DIED),
    )


def test_node_zero_decides_where_it_is_to_and_the_others_have_their_grace() -> None:
    gang = SimpleGang(["a", "b"])
    gang.assigned(1, (range(1),), True)
    assert gang.reported(0, 1, News(done=((0, 3.0),), final=True)) == (Grace(assignment=1),)
    assert gang.grace_over(1) == [KillRank(member=1, assignment=1)]
    (told,) = gang.reported(1, 1, News(failed=((0, CODE, 1.0),), final=True))
    assert told == Deliver(assignment=1, news=News(done=((0, 3.0),), final=True))
    assert gang.grace_over(1) == ()


def test_who_is_silent_is_named() -> None:
    gang = SimpleGang(["a", "b"], silence_s=25.0)
    for now in (0.0, 10.0, 20.0):
        gang.answered(0)
        assert gang.ticked(now) == []
    assert gang.ticked(30.0) == [1]


@given(
    st.lists(st.tuples(st.integers(0, 3), st.booleans(), st.booleans(), st.booleans()), max_size=12)
)
def test_a_gang_of_one_answers_for_each_rank_exactly_once(
    reports: list[tuple[int, bool, bool, bool]],
) -> None:
    gang = SimpleGang(["a"])
    gang.assigned(1, (range(4),), False)
    seen: list[int] = []
    for rank, good, back, final in [*reports, (0, True, False, True)]:
        news = News(
            done=((rank, 1.0),) if good and not back else (),
            failed=((rank, CODE, 1.0),) if not good and not back else (),
            returned=(range(rank, rank + 1),) if back else (),
            final=final,
        )
        for told in gang.reported(0, 1, news):
            assert isinstance(told, Deliver)
            seen += [rank for rank, *_ in told.news.done]
            seen += [rank for rank, *_ in told.news.failed]
            seen += [rank for piece in told.news.returned for rank in piece]
    assert sorted(seen) == [0, 1, 2, 3]


# -- the policy and the load ----------------------------------------------------------------------


def test_the_policy_by_a_table_is_a_policy() -> None:
    policy = SimulatedPolicy()
    check_retry_policy(policy, [Mishap(kind=kind, node="a") for kind in MishapKind])
    assert not policy.decide(CODE, (), 0.5).retry
    assert not policy.decide(Mishap(kind=MishapKind.PREEMPTED), (), 0.5).charged
    assert policy.decide(DIED, [(DIED, "a")] * 2, 0.5).retry
    assert not policy.decide(DIED, [(DIED, "a")] * 3, 0.5).retry


def test_after_oom_the_policy_asks_for_more_up_to_the_most_there_is() -> None:
    policy, history, asked = SimulatedPolicy(), list[tuple[Mishap, str]](), 4
    for more in (6, 9, 10):
        oom = Mishap(kind=MishapKind.OOM, memory_bytes=asked, largest_bytes=10)
        verdict = policy.decide(oom, history, 0.5)
        assert (verdict.retry, verdict.memory_bytes) == (True, more)
        history.append((oom, "a"))
        asked = more
    most = Mishap(kind=MishapKind.OOM, memory_bytes=10, largest_bytes=10)
    assert not policy.decide(most, history, 0.5).retry


def test_the_load_is_counted_by_the_second() -> None:
    meter = LoadMeter()
    meter.event(0.5)
    meter.dispatched(0.5, 2, (range(5),))
    meter.reported(0.9, 2, News(done=((1, 1.0),), final=True))
    meter.event(9.5)
    meter.reported(9.5, 1, News(returned=(range(2),)))
    meter.recorded(9.5, (range(3), range(4, 5)))
    stats = meter.stats()
    assert (stats.events, stats.messages) == (2, 2 + 2 + 1 + 1)
    assert (stats.peak_events, stats.peak_messages) == (1, 4)
    assert stats.mean_messages == pytest.approx(0.6)
    assert stats.journal_bytes == stats.peak_journal_bytes > 0
    assert LoadMeter().stats().messages == 0


def test_a_run_says_what_its_driver_had_to_carry() -> None:
    run = simulation(ranks=100)
    run.run()
    load = run.load()
    assert load.messages >= 2 * 100 / 10
    assert load.peak_messages <= load.messages
    assert load.bytes > 1_000 * load.messages / 2
