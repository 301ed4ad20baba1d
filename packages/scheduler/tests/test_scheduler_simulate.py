"""The simulator by itself, with its own model of a pool."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from thornback.faults import Fault, FaultKind, RetryPolicy, Standing
from thornback.scheduler import (
    InvariantBroken,
    Scheduler,
    SchedulerParams,
    StagePlan,
    UsageError,
)
from thornback.scheduler.commands import Command, FinishRun, Record, RecordState, RunState
from thornback.scheduler.events import Event
from thornback.scheduler.ports import Dependencies, Verdict
from thornback.scheduler.ports import RetryPolicy as SchedulerRetryPolicy
from thornback.scheduler.simulate import (
    BadKind,
    BadNode,
    Deliver,
    GangGone,
    Grace,
    Incident,
    IncidentKind,
    KillRank,
    Mishap,
    MishapKind,
    News,
    RunStats,
    SimpleGang,
    SimulatedCluster,
    SimulatedFaults,
    Simulation,
    Unfinished,
    classified,
)
from thornback.scheduler.simulate.agenda import Agenda, Chances
from thornback.scheduler.simulate.fates import Fates
from thornback.scheduler.simulate.journal import Durable
from thornback.scheduler.simulate.load import LoadMeter
from thornback.scheduler.simulate.nodes import Nodes
from thornback.scheduler.testing import FakeDependencies

DIED = Mishap(kind=MishapKind.WORKER, node="a")
CODE = Mishap(kind=MishapKind.CODE, node="a")


def simulation(
    faults: SimulatedFaults | None = None,
    *incidents: Incident,
    ranks: int = 40,
    nodes: int = 1,
    checked: bool = True,
) -> Simulation[Fault]:
    policy = RetryPolicy(retries=3)
    stages: list[StagePlan[Fault]] = [StagePlan(world_size=ranks, slots=2, policy=policy)]
    return Simulation(
        stages,
        lambda: FakeDependencies([ranks]),
        classified,
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
    policy = RetryPolicy()
    with pytest.raises(UsageError, match="a gang of 2 nodes"):
        Simulation(
            [StagePlan(world_size=1, nodes=2, policy=policy)],
            lambda: FakeDependencies([1]),
            classified,
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
    with pytest.raises(UsageError, match="A bad node needs number >= 1"):
        BadNode(number=0, kind=BadKind.EXIT)


def test_a_breach_tells_the_seed_and_the_last_events() -> None:
    class Faulty(Scheduler[Fault]):
        def handle(self, event: Event[Fault], now: float) -> list[Command]:
            return [c for c in super().handle(event, now) if not isinstance(c, Record)]

    broken = Simulation(
        [StagePlan(world_size=3, policy=RetryPolicy())],
        lambda: FakeDependencies([3]),
        classified,
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


# -- what goes wrong -------------------------------------------------------------------------------


def test_classified_every_mishap_has_its_kind() -> None:
    kinds = {kind: classified(Mishap(kind=kind, node="a")).kind for kind in MishapKind}
    assert kinds == {
        MishapKind.CODE: FaultKind.APPLICATION,
        MishapKind.COLLATERAL: FaultKind.APPLICATION,
        MishapKind.PROCESS: FaultKind.WORKER_CRASH,
        MishapKind.TIMEOUT: FaultKind.TIMEOUT,
        MishapKind.OOM: FaultKind.OOM,
        MishapKind.WORKER: FaultKind.WORKER_CRASH,
        MishapKind.SILENT: FaultKind.TIMEOUT,
        MishapKind.PREEMPTED: FaultKind.PREEMPTION,
        MishapKind.NODE: FaultKind.NODE_LOST,
        MishapKind.START: FaultKind.TIMEOUT,
        MishapKind.SETUP: FaultKind.SETUP,
        MishapKind.PLACE: FaultKind.TIMEOUT,
        MishapKind.IMPOSSIBLE: FaultKind.UNSCHEDULABLE,
        MishapKind.JOURNAL: FaultKind.SYSTEM,
        MishapKind.EIO: FaultKind.RESOURCE,
        MishapKind.ENOSPC: FaultKind.RESOURCE,
        MishapKind.LOAD: FaultKind.SETUP,
        MishapKind.GPU: FaultKind.RESOURCE,
    }


def bad_run(
    kind: BadKind, *, ranks: int = 30, nodes: int = 2, flaps_s: float | None = None
) -> RunStats:
    bad = BadNode(number=1, kind=kind, flaps_s=flaps_s)
    stages: list[StagePlan[Fault]] = [StagePlan(world_size=ranks, slots=2, policy=RetryPolicy())]
    return Simulation(
        stages,
        lambda: FakeDependencies([ranks]),
        classified,
        SimulatedCluster(nodes=nodes, gangs_per_node=1, rank_s=20.0, rank_sigma=0.0),
        SimulatedFaults(bad_nodes=(bad,)),
    ).run()


@pytest.mark.parametrize("kind", [BadKind.EXIT, BadKind.ENOSPC, BadKind.LOAD])
def test_bad_node_fails_every_rank_there(kind: BadKind) -> None:
    stats = bad_run(kind)
    assert stats.faults["node-1"] >= 2
    assert "node-2" not in stats.faults
    assert (stats.done, stats.attempts) == (30, 30 + stats.faults["node-1"])


def test_bad_node_setup_opens_no_gang_there() -> None:
    stats = bad_run(BadKind.SETUP)
    assert (stats.done, stats.attempts, stats.most_slots) == (30, 30, 2)
    assert stats.faults["node-1"] >= 1


def test_bad_node_gpu_parks_its_slot_after_two_faults() -> None:
    stats = bad_run(BadKind.GPU, nodes=1)
    assert (stats.done, stats.faults) == (30, {"node-1": 2})
    assert stats.makespan_s > 30 * 20.0, "one of two slots did it all"


def test_bad_node_flapping_is_good_by_turns() -> None:
    agenda = Agenda()
    bad = BadNode(number=1, kind=BadKind.EXIT, flaps_s=60.0)
    nodes = Nodes(
        SimulatedCluster(nodes=1), SimulatedFaults(bad_nodes=(bad,)), agenda, Chances(0), RunStats()
    )
    nodes.start()
    node = nodes.by_name["node-1"]
    seen = [node.badness(30.0 * half_minute) for half_minute in range(6)]
    assert seen == [BadKind.EXIT, BadKind.EXIT, None, None, BadKind.EXIT, BadKind.EXIT]
    assert bad_run(BadKind.EXIT, flaps_s=60.0).done == 30


def test_avoided_node_is_used_only_when_waiting_has_not_helped() -> None:
    agenda, faults = Agenda(), SimulatedFaults()
    cluster = SimulatedCluster(nodes=2, gangs_per_node=1)
    nodes = Nodes(cluster, faults, agenda, Chances(0), RunStats())
    nodes.start()
    assert nodes.fitting(1) == 2

    def found(*avoid: str, strictly: bool) -> list[str] | None:
        nodes_found = nodes.find(1, 1, avoid, strictly=strictly)
        return None if nodes_found is None else [node.name for node in nodes_found]

    assert found("node-1", strictly=True) == ["node-2"]
    nodes.by_name["node-2"].room = 0
    assert found("node-1", strictly=True) is None
    assert found("node-1", strictly=False) == ["node-1"]
    assert found("node-1", "node-2", strictly=True) == ["node-1"], "no other could hold it"


def test_nodes_that_join_late_are_there_in_time() -> None:
    agenda = Agenda()
    cluster = SimulatedCluster(nodes=1, joins_s=(5.0, 9.0))
    nodes = Nodes(cluster, SimulatedFaults(), agenda, Chances(0), RunStats())
    nodes.start()
    agenda.step()
    assert (agenda.now, list(nodes.by_name)) == (5.0, ["node-1", "node-2"])
    agenda.step()
    assert (agenda.now, nodes.fitting(1)) == (9.0, 3)


@pytest.mark.parametrize("faults", [SimulatedFaults(poison=0.1), SimulatedFaults(bugs=0.1)])
def test_broken_ranks_fail_and_no_others(faults: SimulatedFaults) -> None:
    fates = Fates(SimulatedCluster(), faults, Chances(0), [40])
    broken = sum(fates.always(0, rank) is not None for rank in range(40))
    stats = simulation(faults, nodes=2).run()
    assert broken > 0
    assert (stats.failed, stats.done) == (broken, 40 - broken)


# -- the checks ------------------------------------------------------------------------------------


class Wrong(Scheduler[Fault]):
    """Asks the policy with a standing for which there is no evidence."""

    standing = Standing.RANK

    def __init__(
        self,
        stages: Sequence[StagePlan[Fault]],
        dependencies: Dependencies,
        params: SchedulerParams | None = None,
        seed: int = 0,
    ) -> None:
        plans = [attrs.evolve(p, policy=Misled(p.policy, self.standing)) for p in stages]
        super().__init__(plans, dependencies, params, seed)


class WrongNode(Wrong):
    """Holds every fault against the node."""

    standing = Standing.NODE


@attrs.frozen
class Misled:
    """A policy that hears another standing."""

    policy: SchedulerRetryPolicy[Fault]
    standing: Standing

    def decide(
        self,
        fault: Fault,
        history: Sequence[tuple[Fault, str, Standing]],
        standing: Standing,
        draw: float,
        /,
    ) -> Verdict:
        return self.policy.decide(fault, history, self.standing, draw)


@pytest.mark.parametrize(
    ("make", "story"),
    [(Wrong, "nobody can have run there since"), (WrongNode, "nothing else has failed on")],
)
def test_costs_standing_without_evidence_is_a_breach(make: type[Wrong], story: str) -> None:
    stages: list[StagePlan[Fault]] = [StagePlan(world_size=40, policy=RetryPolicy())]
    broken = Simulation(
        stages,
        lambda: FakeDependencies([40]),
        classified,
        faults=SimulatedFaults(process_deaths=0.3),
        make=make,
    )
    with pytest.raises(InvariantBroken, match=story):
        broken.run()


# -- the load --------------------------------------------------------------------------------------


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
