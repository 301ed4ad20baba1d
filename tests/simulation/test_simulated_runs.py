"""Whole runs of the real scheduler, graph and retry policy on simulated clusters, one per seed.

Budget: 30 s for all. A seed that fails becomes a named test.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from thornback.faults import Fault, FaultKind, Origin, RetryPolicy
from thornback.graph import Dag, Node
from thornback.scheduler import Scheduler, StagePlan
from thornback.scheduler.commands import Command, RunState
from thornback.scheduler.events import Event
from thornback.scheduler.simulate import (
    RunStats,
    SimulatedCluster,
    SimulatedFaults,
    Simulation,
)
from thornback.scheduler.testing import Referee


def fault(kind: FaultKind, origin: Origin, phase: str = "") -> Fault:
    return Fault(
        kind=kind,
        origin=origin,
        rule="simulated",
        error_type="simulated.Failure",
        message=f"simulated {kind.value}",
        phase=phase,
    )


def faults(
    *, rank_failures: float = 0.0, worker_deaths: float = 0.0, preemption_s: float | None = None
) -> SimulatedFaults[Fault]:
    return SimulatedFaults(
        rank_fails=fault(FaultKind.APPLICATION, Origin.RANK),
        rank_failures=rank_failures,
        worker_dies=fault(FaultKind.WORKER_CRASH, Origin.WORKER, "run"),
        worker_deaths=worker_deaths,
        node_preempted=fault(FaultKind.PREEMPTION, Origin.WORKER, "run"),
        preemption_s=preemption_s,
        placement_times_out=fault(FaultKind.TIMEOUT, Origin.PLACEMENT, "place"),
    )


def stages(retries: int) -> list[StagePlan[Fault]]:
    policy = RetryPolicy(retries=retries)
    return [
        StagePlan(world_size=120, shape=0, slots=4, policy=policy, priority=2),
        StagePlan(world_size=30, shape=1, nodes=2, policy=policy, priority=1, max_gangs=2),
        StagePlan(world_size=40, shape=0, slots=4, policy=policy, priority=1),
        StagePlan(world_size=1, shape=2, policy=policy),
    ]


def dag() -> Dag:
    return Dag(
        [
            Node(world_size=120),
            Node(world_size=30),
            Node(world_size=40, parents=(0,)),
            Node(world_size=1, parents=(1, 2)),
        ]
    )


def run(
    seed: int, world: SimulatedFaults[Fault], retries: int, cluster: SimulatedCluster | None = None
) -> tuple[RunStats, Referee[Fault]]:
    referee: Referee[Fault] = Referee()

    def watch(
        event: Event[Fault], commands: Sequence[Command], scheduler: Scheduler[Fault]
    ) -> None:
        referee.tell(event)
        referee.heard(commands)
        if simulation.stats.events % 20 == 0:
            scheduler.check_invariants()

    simulation = Simulation(stages(retries), dag(), world, cluster, seed=seed, watch=watch)
    return simulation.run(most_events=50_000), referee


@pytest.mark.parametrize("seed", range(30))
def test_a_flaky_cluster_delays_a_run_and_changes_nothing(seed: int) -> None:
    world = faults(rank_failures=0.02, worker_deaths=0.01, preemption_s=40.0)
    stats, referee = run(seed, world, retries=10)
    assert stats.finish is not None
    assert stats.finish.state is RunState.SUCCEEDED, stats.finish
    assert len(referee.done) == 191
    assert stats.attempts > 191


def test_the_flaky_cluster_is_flaky() -> None:
    world = faults(worker_deaths=0.01, preemption_s=40.0)
    assert sum(run(seed, world, retries=0)[0].gangs_lost for seed in range(5)) > 5


@pytest.mark.parametrize("seed", range(15))
def test_failures_for_good_skip_what_comes_after_and_the_run_ends(seed: int) -> None:
    stats, referee = run(seed, faults(rank_failures=0.05), retries=0)
    assert stats.finish is not None
    assert stats.finish.state is RunState.FAILED
    assert len(referee.ended) == 191


@pytest.mark.parametrize("seed", range(5))
def test_shapes_that_do_not_fit_beside_each_other_all_get_their_turn(seed: int) -> None:
    # Two nodes with room for one gang each: the shape of two nodes needs the whole cluster.
    cluster = SimulatedCluster(nodes=2, gangs_per_node=1, rank_s=5.0)
    stats, referee = run(seed, faults(), retries=0, cluster=cluster)
    assert stats.finish is not None
    assert stats.finish.state is RunState.SUCCEEDED, stats.finish
    assert len(referee.done) == 191


def test_the_same_seed_gives_the_same_run() -> None:
    world = faults(rank_failures=0.02, worker_deaths=0.01, preemption_s=100.0)
    assert run(7, world, retries=10)[0] == run(7, world, retries=10)[0]
    assert run(7, world, retries=10)[0] != run(8, world, retries=10)[0]
