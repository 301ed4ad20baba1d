"""Named worlds: the real scheduler, graph, retry policy and roster where one thing goes wrong.

Budget of this folder: 30 s. A seed of `test_seeded_runs` that fails becomes a named test here.
"""

from __future__ import annotations

import attrs
import pytest

from tests.simulation.worlds import GIB, Scenario, scenario_of
from thornback.faults import Fault, RetryPolicy
from thornback.scheduler import StagePlan
from thornback.scheduler.commands import RunState
from thornback.scheduler.simulate import (
    Incident,
    IncidentKind,
    RunStats,
    SimulatedCluster,
    SimulatedFaults,
)


def scenario(
    faults: SimulatedFaults | None = None,
    cluster: SimulatedCluster | None = None,
    *incidents: Incident,
    retries: int = 0,
    seed: int = 0,
) -> Scenario:
    """Return 191 ranks in four stages of three shapes."""
    policy = RetryPolicy(retries=retries, memory_bytes=GIB)
    return Scenario(
        stages=(
            StagePlan(world_size=120, shape=0, slots=4, policy=policy, priority=2),
            StagePlan(world_size=30, shape=1, nodes=2, policy=policy, priority=1, max_gangs=2),
            StagePlan(world_size=40, shape=0, slots=4, policy=policy, priority=1),
            StagePlan(world_size=1, shape=2, policy=policy),
        ),
        parents=((), (), (0,), (1, 2)),
        cluster=cluster or SimulatedCluster(),
        faults=faults or SimulatedFaults(),
        incidents=incidents,
        seed=seed,
    )


def assert_all_done(stats: RunStats) -> None:
    assert stats.finish is not None
    assert stats.finish.state is RunState.SUCCEEDED, stats.finish
    assert (stats.done, stats.failed, stats.skipped) == (191, 0, 0)


@pytest.mark.parametrize("seed", range(10))
def test_a_flaky_cluster_delays_a_run_and_changes_nothing(seed: int) -> None:
    faults = SimulatedFaults(rank_failures=0.02, worker_deaths=0.01, preemption_s=60.0)
    stats = scenario(faults, retries=10, seed=seed).run()
    assert_all_done(stats)
    assert stats.attempts > 191
    assert stats.wasted_s > 0.0


def test_the_flaky_cluster_is_flaky() -> None:
    faults = SimulatedFaults(worker_deaths=0.01, preemption_s=40.0)
    assert sum(scenario(faults, seed=seed).run().gangs_lost for seed in range(5)) > 5


@pytest.mark.parametrize("seed", range(5))
def test_failures_for_good_skip_what_comes_after_and_the_run_ends(seed: int) -> None:
    stats = scenario(SimulatedFaults(rank_failures=0.05), seed=seed).run()
    assert stats.finish is not None
    assert stats.finish.state is RunState.FAILED
    assert stats.failed
    assert stats.skipped
    assert stats.done + stats.failed + stats.skipped == 191


@pytest.mark.parametrize("seed", range(3))
def test_shapes_that_do_not_fit_beside_each_other_all_get_their_turn(seed: int) -> None:
    # Two nodes with room for one gang each: the shape of two nodes needs the whole cluster.
    cluster = SimulatedCluster(nodes=2, gangs_per_node=1, rank_s=5.0)
    assert_all_done(scenario(cluster=cluster, seed=seed).run())


@pytest.mark.parametrize("seed", range(3))
def test_lost_late_and_repeated_messages_cost_time_and_nothing_else(seed: int) -> None:
    faults = SimulatedFaults(reports_lost=0.2, reports_late=0.2, answers_repeated=0.3)
    stats = scenario(faults, retries=10, seed=seed).run()
    assert_all_done(stats)
    assert stats.makespan_s > scenario(seed=seed).run().makespan_s


def test_a_rank_that_always_takes_its_worker_down_is_found_and_the_others_are_done() -> None:
    faults = SimulatedFaults(culprits=0.02)
    cluster = SimulatedCluster(rank_s=0.02)
    stats = scenario(faults, cluster, seed=3).run()
    assert stats.failed
    assert stats.failed + stats.done + stats.skipped == 191
    assert stats.failed <= 12, "the culprits, and nobody else"


def test_what_needs_more_memory_gets_it_and_what_needs_too_much_is_given_up() -> None:
    cluster = SimulatedCluster(
        place_bytes=4 * GIB, gangs_per_node=2, rank_bytes=GIB // 2, memory_sigma=0.9
    )
    stats = scenario(cluster=cluster, seed=1).run()
    assert stats.attempts > 191
    assert stats.done > stats.failed + stats.skipped > 0
    roomy = attrs.evolve(cluster, memory_sigma=0.5)
    assert_all_done(scenario(cluster=roomy, seed=1).run())


def test_silent_workers_and_hanging_ranks_are_ended() -> None:
    faults = SimulatedFaults(worker_silences=0.02, hangs=0.02)
    cluster = SimulatedCluster(timeout_s=60.0, rank_sigma=0.3)
    stats = scenario(faults, cluster, retries=5, seed=2).run()
    assert_all_done(stats)
    assert stats.makespan_s > 60.0


@pytest.mark.parametrize("seed", range(3))
def test_a_driver_that_dies_three_times_repeats_nothing_that_is_recorded(seed: int) -> None:
    dies = [Incident(at_s=at, kind=IncidentKind.RESTART_DRIVER) for at in (8.0, 45.0, 80.0)]
    stats = scenario(None, SimulatedCluster(rank_s=3.0), *dies, seed=seed).run()
    assert_all_done(stats)
    assert stats.drivers == 4


def test_a_driver_that_stood_still_hears_first_and_looks_at_the_clock_then() -> None:
    still = Incident(at_s=10.0, kind=IncidentKind.PAUSE_DRIVER, lasts_s=300.0)
    stats = scenario(None, None, still).run()
    assert_all_done(stats)
    assert stats.gangs_lost == 0


def test_a_journal_that_fails_for_a_while_delays_and_one_that_fails_for_good_ends() -> None:
    outage = Incident(at_s=10.0, kind=IncidentKind.JOURNAL_OUTAGE, lasts_s=100.0)
    stats = scenario(None, None, outage).run()
    assert_all_done(stats)
    assert stats.makespan_s > 100.0
    for_good = attrs.evolve(outage, lasts_s=10_000.0)
    ended = scenario(None, None, for_good).run()
    assert ended.finish is not None
    assert ended.finish.state is RunState.FAILED
    assert "journal" in ended.finish.reason
    assert 0 < ended.done < 191


@pytest.mark.parametrize("kill", [False, True])
def test_a_cancelled_run_ends_soon_and_keeps_what_it_has(kill: bool) -> None:
    kind = IncidentKind.CANCEL_AND_KILL if kill else IncidentKind.CANCEL
    cluster = SimulatedCluster(rank_s=20.0)
    stats = scenario(None, cluster, Incident(at_s=60.0, kind=kind)).run()
    assert stats.finish is not None
    assert stats.finish.state is RunState.CANCELLED
    assert 0 < stats.done < 191
    assert (stats.makespan_s < 65.0) is kill


def test_an_autoscaler_makes_it_faster_and_goes_back() -> None:
    small = SimulatedCluster(nodes=2, rank_s=30.0)
    alone = scenario(cluster=small).run()
    scaled = scenario(cluster=attrs.evolve(small, most_nodes=12)).run()
    assert_all_done(scaled)
    assert scaled.makespan_s < 0.7 * alone.makespan_s


def test_slow_nodes_cost_time() -> None:
    fast = SimulatedCluster(rank_s=10.0)
    slow = attrs.evolve(fast, slow_share=0.5, slow_factor=5.0)
    assert scenario(cluster=slow).run().makespan_s > 1.3 * scenario(cluster=fast).run().makespan_s


def test_nodes_that_flap_are_survived_and_so_are_kills_at_bad_moments() -> None:
    faults = SimulatedFaults(flapping_share=0.5, fair_after_s=600.0)
    kills = [Incident(at_s=at, kind=IncidentKind.KILL_NODE, node=1) for at in (2.0, 3.0, 20.0)]
    stats = scenario(faults, None, *kills, retries=3, seed=4).run()
    assert_all_done(stats)
    assert stats.nodes_lost > 3


def test_node_zero_may_decide_for_the_others() -> None:
    cluster = SimulatedCluster(led_stages=(1,))
    stats = scenario(SimulatedFaults(process_deaths=0.02), cluster, retries=3, seed=5).run()
    assert_all_done(stats)


def test_in_a_fair_world_progress_comes_and_the_wait_for_it_is_measured() -> None:
    faults = SimulatedFaults(preemption_s=30.0, reports_lost=0.3, fair_after_s=120.0)
    stats = scenario(faults, SimulatedCluster(rank_s=20.0), seed=6).run()
    assert_all_done(stats)
    assert 0.0 < stats.longest_wait_s < 600.0


def test_a_node_that_dies_after_its_part_is_blamed_for_what_its_sibling_fails_of() -> None:
    # Node 0's part had ended well, and its node had died, when the other node failed of that: all
    # had reported then, and the death was not known yet. The simulation itself sees who is blamed.
    stats = scenario_of(1014).run()
    assert stats.finish is not None
    assert stats.finish.state is RunState.SUCCEEDED


def test_a_lane_asks_for_a_gang_when_another_has_taken_over_its_pending_ones() -> None:
    # The stage was at its `max_gangs` when it was asked, and was not asked again.
    stats = scenario_of(1708).run()
    assert stats.finish is not None


def test_the_same_seed_gives_the_same_run() -> None:
    faults = SimulatedFaults(rank_failures=0.02, worker_deaths=0.01, preemption_s=100.0)
    assert scenario(faults, retries=10, seed=7).run() == scenario(faults, retries=10, seed=7).run()
    assert scenario(faults, retries=10, seed=7).run() != scenario(faults, retries=10, seed=8).run()


def test_two_policies_meet_the_same_world() -> None:
    def run(policy: RetryPolicy) -> RunStats:
        faults = SimulatedFaults(rank_failures=0.05)
        plan: StagePlan[Fault] = StagePlan(world_size=100, policy=policy)
        world = Scenario(
            stages=(plan,), parents=((),), cluster=SimulatedCluster(), faults=faults, seed=3
        )
        return world.run()

    strict, patient = run(RetryPolicy(retries=0)), run(RetryPolicy(retries=3))
    assert strict.failed > 0
    assert patient.failed == 0
    assert strict.attempts == 100, "each rank once, and the same ones fail"
    assert patient.attempts >= 100 + strict.failed
