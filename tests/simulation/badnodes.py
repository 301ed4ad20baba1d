"""Worlds with nodes that are broken and stay so, one for every seed, and the oracle for them.

Three families. `NODES`: up to half of the nodes are bad; every rank must succeed, bad nodes must
cost few faults, and the run must hardly take longer than without them. `RANKS`: some ranks can
never succeed, besides; these must fail, and no others. `ALL`: every node is bad; the run must stop
soon.
"""

from __future__ import annotations

import enum
import sys

import attrs

from tests.simulation.worlds import RosterGang
from thornback.faults import Fault, RetryPolicy
from thornback.graph import Dag, Node
from thornback.scheduler import Scheduler, SchedulerError, SchedulerParams, StagePlan
from thornback.scheduler.commands import RunState
from thornback.scheduler.simulate import (
    BadKind,
    BadNode,
    RunStats,
    SimulatedCluster,
    SimulatedFaults,
    Simulation,
    classified,
)
from thornback.scheduler.simulate.agenda import Chances
from thornback.scheduler.simulate.fates import Fates
from thornback.scheduler.simulate.simulation import MakeScheduler

PARAMS = SchedulerParams()
FLAPS_S = 60.0
MOST_EVENTS = 300_000
CHECKED_EVERY = 4
BROKEN_OFF = (AssertionError, SchedulerError, LookupError, TypeError, ValueError)
"""What comes out of a run that breaks off: one of the things that can be wrong."""
SLACK_S = PARAMS.avoid_wait_s
"""What a run of seconds may take longer: it waits for another node, and opens a gang there."""


class Family(enum.Enum):
    """What is broken."""

    NODES = "nodes"
    RANKS = "ranks"
    ALL = "all"


@attrs.frozen(kw_only=True)
class BadWorld:
    """A job and a cluster with bad nodes."""

    family: Family
    stages: tuple[StagePlan[Fault], ...]
    parents: tuple[tuple[int, ...], ...]
    cluster: SimulatedCluster
    faults: SimulatedFaults
    seed: int

    def run(self, *, checked: bool, make: MakeScheduler[Fault] = Scheduler) -> RunStats:
        """Run it; with every check of the simulator, which takes twice as long, or without."""
        nodes = [
            Node(world_size=plan.world_size, parents=parents, max_failed=plan.max_failed)
            for plan, parents in zip(self.stages, self.parents, strict=True)
        ]
        simulation = Simulation(
            self.stages,
            lambda: Dag(nodes),
            classified,
            self.cluster,
            self.faults,
            params=PARAMS,
            seed=self.seed,
            checked=checked,
            gang_side=RosterGang,
            make=make,
        )
        return simulation.run(most_events=MOST_EVENTS)

    def without_bad_nodes(self) -> BadWorld:
        """Return the same world in which the bad nodes do not exist."""
        bad = {each.number for each in self.faults.bad_nodes}
        at_start = self.cluster.nodes
        late = [
            at_s
            for position, at_s in enumerate(self.cluster.joins_s)
            if at_start + 1 + position not in bad
        ]
        cluster = attrs.evolve(
            self.cluster,
            nodes=at_start - sum(number <= at_start for number in bad),
            joins_s=tuple(late),
        )
        return attrs.evolve(self, cluster=cluster, faults=attrs.evolve(self.faults, bad_nodes=()))

    @property
    def hopeless(self) -> int:
        """How many ranks can never succeed."""
        sizes = [plan.world_size for plan in self.stages]
        fates = Fates(self.cluster, self.faults, Chances(self.seed), sizes)
        return sum(
            fates.always(stage, rank) is not None
            for stage, size in enumerate(sizes)
            for rank in range(size)
        )


def world_of(seed: int, family: Family = Family.NODES) -> BadWorld:
    """Return the world of a seed."""
    chances = Chances(seed)

    def draw(name: str) -> float:
        return chances.draw("bad world", name)

    def number(name: str, least: int, most: int) -> int:
        return least + int(draw(name) * (most + 1 - least))

    def size(name: str, least: float, most: float) -> float:
        """Return something between, each order of magnitude as probable."""
        return float(least * (most / least) ** draw(name))

    def likely(name: str, chance: float) -> bool:
        return draw(name) < chance

    nodes, slots = round(size("nodes", 2, 200)), number("slots", 1, 8)
    per_node = number("gangs per node", 1, 4)
    rank_s = round(size("rank_s", 0.01, 3600), 3)
    retries = number("retries", 0, 2) if likely("retries?", 0.3) else 0
    total = round(size("ranks", 1, 5000))
    count = min(total, number("stages", 1, 3))
    most = number("most", 1, nodes * per_node) if likely("limited", 0.3) else None
    stages = tuple(
        StagePlan(
            world_size=total // count,
            slots=slots,
            max_gangs=most,
            # What comes after a stage runs, however many of its ranks can never succeed.
            max_failed=total if family is Family.RANKS else 0,
            policy=RetryPolicy(retries=retries),
        )
        for _ in range(count)
    )
    chain = likely("chain", 0.7)
    parents = tuple((stage - 1,) if chain and stage else () for stage in range(count))

    kinds = [kind for kind in BadKind if kind is not BadKind.GPU or slots > 1]
    main, mixed = kinds[number("kind", 0, len(kinds) - 1)], likely("mixed", 0.2)
    flaps_s = FLAPS_S if likely("flaps", 0.2) and family is not Family.ALL else None
    if family is Family.ALL and main is BadKind.GPU:
        main = BadKind.EXIT  # the other slots would work
    fast_s = round(size("after", 0.005, min(1.0, rank_s)), 3)
    after_s = rank_s / 2 if likely("slowly", 0.2) else fast_s

    def bad_node(position: int) -> BadNode:
        kind = kinds[number(f"kind {position}", 0, len(kinds) - 1)] if mixed else main
        if family is Family.ALL and kind is BadKind.GPU:
            kind = main
        return BadNode(number=position, kind=kind, after_s=after_s, flaps_s=flaps_s)

    # With nothing else to run there is no evidence: the ordinary budget of 3 retries decides.
    most_bad = 3 if min(plan.world_size for plan in stages) < 4 else nodes
    if family is Family.ALL:
        bad = {position: bad_node(position) for position in range(1, nodes + 1)}
    else:
        share = 1 if likely("one", 0.4) else number("bad", 1, max(1, nodes // 2))
        share = min(share, most_bad)
        order = sorted(range(1, nodes + 1), key=lambda n: draw(f"order {n}"))
        bad = {position: bad_node(position) for position in order[:share]}
    late: list[float] = []
    if likely("late", 0.25):
        joins = number("joins", 1, max(1, nodes // 2))
        late = sorted(300 * draw(f"late {n}") for n in range(joins))
    for position in range(nodes + 1, nodes + 1 + len(late)):
        # At any time at most half of the nodes that are there are bad.
        may_be_bad = likely(f"bad {position}", 0.3) and 2 * len(bad) + 2 <= position
        may_be_bad = may_be_bad and len(bad) < most_bad
        if family is Family.ALL or may_be_bad:
            bad[position] = bad_node(position)
    poison = bugs = 0.0
    if family is Family.RANKS:
        poison, bugs = 0.02 * number("poison", 0, 3), 0.02 * number("bugs", 0, 3)
    return BadWorld(
        family=family,
        stages=stages,
        parents=parents,
        cluster=SimulatedCluster(
            nodes=nodes,
            gangs_per_node=per_node,
            rank_s=rank_s,
            rank_sigma=number("sigma", 0, 4) / 2,
            rank_bytes=1,
            joins_s=tuple(late),
            start_s=1.0,
        ),
        faults=SimulatedFaults(bad_nodes=tuple(bad.values()), poison=poison, bugs=bugs),
        seed=seed,
    )


# -- the oracle ------------------------------------------------------------------------------------


def paroles(world: BadWorld, makespan_s: float) -> int:
    """Return how often a bad node can have been on parole."""
    terms, over_s = 0, 0.0
    while True:
        over_s += min(PARAMS.max_parole_s, PARAMS.parole_s * 2.0 ** min(terms, 30))
        if over_s > makespan_s:
            return terms
        terms += 1


def wrongs(world: BadWorld) -> list[str]:
    """Run a world, and return what is wrong; empty: nothing."""
    try:
        stats = world.run(checked=world.seed % CHECKED_EVERY == 0)
    except BROKEN_OFF as error:
        return [f"broke off: {type(error).__name__}: {str(error)[:300]}"]
    if world.family is Family.ALL:
        return too_late(world, stats)
    return [*unjust(world, stats), *too_many_faults(world, stats), *too_slow(world, stats)]


def unjust(world: BadWorld, stats: RunStats) -> list[str]:
    """Check that all ranks succeed but those that can never do."""
    able = sum(plan.world_size for plan in world.stages) - world.hopeless
    if stats.done == able:
        return []
    reason = stats.finish.reason if stats.finish else "the run did not end"
    return [
        f"{stats.done} ranks are done, {able} can be; {stats.failed} failed, {stats.skipped} "
        f"skipped: {reason[:300]}"
    ]


def too_many_faults(world: BadWorld, stats: RunStats) -> list[str]:
    """Check that bad nodes cost few faults."""
    if world.family is not Family.NODES:
        return []  # a rank that can never succeed fails on bad nodes, too
    slots = world.stages[0].slots * world.cluster.gangs_per_node
    most = 2 * slots + 8 + paroles(world, stats.makespan_s)
    bad = [f"node-{each.number}" for each in world.faults.bad_nodes]
    return [
        f"{stats.faults[node]} faults on {node}, at most {most} expected"
        for node in bad
        if stats.faults.get(node, 0) > most
    ]


def too_slow(world: BadWorld, stats: RunStats) -> list[str]:
    """Check that the run takes hardly longer than on the good nodes alone."""
    if world.family is not Family.NODES:
        return []
    alone = world.without_bad_nodes().run(checked=False)
    # A rank that dies late is run once more after the others, in each stage of a chain.
    late_s = alone.longest_rank_s + max(each.after_s for each in world.faults.bad_nodes)
    most_s = 1.15 * alone.makespan_s + max(2, len(world.stages)) * late_s + SLACK_S
    if stats.makespan_s <= most_s:
        return []
    return [
        f"took {stats.makespan_s:.1f} s, at most {most_s:.1f} s expected: "
        f"{alone.makespan_s:.1f} s without bad nodes, longest rank {alone.longest_rank_s:.2f} s"
    ]


def too_late(world: BadWorld, stats: RunStats) -> list[str]:
    """Check that a run in which nothing can succeed stops soon."""
    found = []
    most = PARAMS.no_progress_faults + 2 * stats.most_slots
    ranks = sum(plan.world_size for plan in world.stages)
    if stats.done:
        found.append(f"{stats.done} ranks are done on bad nodes")
    if stats.attempts > most * len(world.stages):
        found.append(f"{stats.attempts} attempts, at most {most} expected for {ranks} ranks")
    if stats.finish is None or stats.finish.state is not RunState.FAILED:
        found.append(f"ended as {stats.finish}")
    return found


def main() -> None:
    """Run the worlds that the command line names: `nodes 17`, or `nodes 0 100`."""
    family, first, *last = sys.argv[1:]
    for seed in range(int(first), int(last[0]) if last else int(first) + 1):
        found = wrongs(world_of(seed, Family(family)))
        if found or not last:
            print(seed, *(found or ["all is well"]), sep="; ", flush=True)


if __name__ == "__main__":
    main()
