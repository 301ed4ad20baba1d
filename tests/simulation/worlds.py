"""What the simulated runs share: the real roster, classifier, policy and graph, put into a
simulated world; and a world for every seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import attrs

from thornback.faults import Fault, RetryPolicy
from thornback.graph import Dag, Node
from thornback.pool import CaughtError, FinishedWhen, Outcome, Report, SeenBy
from thornback.pool import roster as pool
from thornback.pool.severity import Loss
from thornback.scheduler import Scheduler, SchedulerParams, StagePlan
from thornback.scheduler.events import Ranks
from thornback.scheduler.simulate import (
    Deliver,
    GangGone,
    GangSide,
    Grace,
    Incident,
    IncidentKind,
    KillRank,
    Mishap,
    MishapKind,
    News,
    RunStats,
    SimulatedCluster,
    SimulatedFaults,
    Simulation,
    classified,
)
from thornback.scheduler.simulate.agenda import Chances
from thornback.scheduler.simulate.classified import SEEN
from thornback.scheduler.simulate.gangside import Instruction
from thornback.scheduler.simulate.simulation import MakeScheduler

GIB = 2**30
KINDS = tuple(MishapKind)


def caught(mishap: Mishap) -> CaughtError:
    """Return the error that the pool would hold; it also says which mishap it was."""
    seen = SEEN[mishap.kind]
    told = {"memory": mishap.memory_bytes, "largest": mishap.largest_bytes}
    kept = {f"mishap_{name}": value for name, value in told.items()}
    return CaughtError(
        type_names=seen.types,
        message=seen.message or mishap.kind.value,
        attributes={
            **seen.facts,
            **kept,
            "mishap": KINDS.index(mishap.kind),
            "mishap_node": mishap.node,
            "mishap_only_node": mishap.only_node,
        },
    )


def mishap_of(error: CaughtError | BaseException) -> Mishap:
    """Return the mishap that an error came from."""
    assert isinstance(error, CaughtError)
    known = error.attributes
    memory, largest = known["mishap_memory"], known["mishap_largest"]
    assert memory is None or isinstance(memory, int)
    assert largest is None or isinstance(largest, int)
    return Mishap(
        kind=KINDS[int(known["mishap"] or 0)],
        node=str(known["mishap_node"]),
        only_node=bool(known["mishap_only_node"]),
        memory_bytes=memory,
        largest_bytes=largest,
    )


class RosterGang:
    """The pool's real roster, as the simulation asks for it (fulfils `GangSide`)."""

    make: type[pool.Roster] = pool.Roster

    def __init__(self, nodes: Sequence[str], silence_s: float) -> None:
        self._nodes = list(nodes)
        self._roster = self.make(self._nodes, silence_s=silence_s)

    def answered(self, member: int, /) -> None:
        self._roster.answered(member)

    def ticked(self, now: float, /) -> Sequence[int]:
        return self._roster.ticked(now)

    def assigned(self, assignment: int, ranks: Ranks, led: bool, /) -> bool:
        when = FinishedWhen.LEADER if led else FinishedWhen.ALL
        return self._roster.assigned(assignment, ranks, finished_when=when)

    def owes(self, member: int, assignment: int, /) -> bool:
        return self._roster.owes(member, assignment)

    def reported(self, member: int, assignment: int, news: News, /) -> Sequence[Instruction]:
        node = self._nodes[member]
        good = [Outcome(rank=rank, ok=True, ran_s=ran_s, node=node) for rank, ran_s in news.done]
        bad = [
            Outcome(
                rank=rank,
                ok=False,
                ran_s=ran_s,
                node=node,
                error=caught(mishap),
                seen_by=SeenBy(SEEN[mishap.kind].origin),
            )
            for rank, mishap, ran_s in news.failed
        ]
        report = Report(outcomes=(*good, *bad), returned=news.returned, final=news.final)
        return self._told(self._roster.reported(member, assignment, report))

    def died(self, member: int, mishap: Mishap, /) -> Sequence[Instruction]:
        seen = SEEN[mishap.kind]
        loss = Loss(error=caught(mishap), node=mishap.node, phase=seen.phase, facts=seen.facts)
        return self._told(self._roster.died(member, loss))

    def vouched(self, member: int, assignment: int, /) -> Sequence[Instruction]:
        return self._told(self._roster.vouched(member, assignment))

    def grace_over(self, assignment: int, /) -> Sequence[Instruction]:
        return self._told(self._roster.grace_over(assignment))

    def _told(self, instructions: Sequence[pool.Instruction]) -> list[Instruction]:
        return [_translated(instruction) for instruction in instructions]


def _translated(instruction: pool.Instruction) -> Instruction:
    match instruction:
        case pool.Deliver():
            report = instruction.report
            news = News(
                done=tuple((each.rank, each.ran_s) for each in report.outcomes if each.ok),
                failed=tuple(
                    (each.rank, mishap_of(each.error), each.ran_s)
                    for each in report.outcomes
                    if each.error is not None
                ),
                returned=report.returned,
                final=report.final,
            )
            return Deliver(assignment=instruction.assignment, news=news)
        case pool.KillRank():
            return KillRank(
                member=instruction.member,
                assignment=instruction.assignment,
                vouch=instruction.vouch,
            )
        case pool.Grace():
            return Grace(assignment=instruction.assignment)
        case pool.GangGone():
            return GangGone(mishap=mishap_of(instruction.loss.error))


@attrs.frozen(kw_only=True)
class Scenario:
    """A job and a world, as values: Hypothesis makes and shrinks them, a seed names them."""

    stages: tuple[StagePlan[Fault], ...]
    parents: tuple[tuple[int, ...], ...]
    cluster: SimulatedCluster
    faults: SimulatedFaults
    incidents: tuple[Incident, ...] = ()
    params: SchedulerParams = attrs.field(factory=SchedulerParams)
    seed: int = 0

    @property
    def ranks(self) -> int:
        return sum(plan.world_size for plan in self.stages)

    def dag(self) -> Dag:
        return Dag(
            [
                Node(
                    world_size=plan.world_size,
                    parents=self.parents[number],
                    max_failed=plan.max_failed,
                )
                for number, plan in enumerate(self.stages)
            ]
        )

    def simulation(
        self,
        *,
        make: MakeScheduler[Fault] = Scheduler,
        gang_side: Callable[[Sequence[str], float], GangSide] = RosterGang,
    ) -> Simulation[Fault]:
        return Simulation(
            self.stages,
            self.dag,
            classified,
            self.cluster,
            self.faults,
            incidents=self.incidents,
            params=self.params,
            seed=self.seed,
            make=make,
            gang_side=gang_side,
        )

    def run(self, *, most_events: int = 200_000) -> RunStats:
        return self.simulation().run(most_events=most_events)


def scenario_of(seed: int) -> Scenario:
    """Return the world of a seed: nine in ten have up to 50 ranks, and every kind of trouble comes
    in some and stays away in others."""
    chances = Chances(seed)

    def pick(name: str, *values: float) -> float:
        return values[int(chances.draw("scenario", name) * len(values))]

    def number(name: str, *values: int) -> int:
        return values[int(chances.draw("scenario", name) * len(values))]

    small = chances.draw("scenario", "small") < 0.9
    memory = number("memory", 0, 0, 1)
    policy = RetryPolicy(
        retries=number("retries", 0, 2, 10), memory_bytes=2 * GIB if memory else None
    )
    count = number("stages", 1, 2, 3, 4)
    stages, parents = [], []
    for stage in range(count):
        size = number(f"size {stage}", 1, 2, 5, 12) if small else number(f"size {stage}", 20, 120)
        several = number(f"several {stage}", 0, 0, 1)
        stages.append(
            StagePlan(
                world_size=min(size, 20) if several else size,
                shape=10 + stage if several else number(f"shape {stage}", 0, 0, 1),
                slots=1 if several else 2,
                nodes=1 + several,
                max_gangs=number(f"most {stage}", 0, 1, 3) or None,
                policy=policy,
                priority=number(f"priority {stage}", 0, 1),
                max_failed=number(f"max failed {stage}", 0, 0, 2),
            )
        )
        parents.append(tuple(p for p in range(stage) if number(f"edge {p} {stage}", 0, 0, 1)))
    faults = SimulatedFaults(
        rank_failures=pick("failures", 0, 0, 0.05),
        process_deaths=pick("processes", 0, 0, 0.05),
        worker_deaths=pick("workers", 0, 0, 0.05),
        worker_silences=pick("silences", 0, 0, 0.03),
        hangs=pick("hangs", 0, 0, 0.03),
        culprits=pick("culprits", 0, 0, 0, 0.05),
        start_failures=pick("starts", 0, 0, 0.2),
        setup_failures=pick("setups", 0, 0, 0.2),
        preemption_s=pick("preemption", 0, 60, 300) or None,
        notice_s=pick("notice", 5, 30),
        unannounced=pick("unannounced", 0, 0.3, 1),
        flapping_share=pick("flapping", 0, 0, 0.5),
        reports_lost=pick("lost", 0, 0, 0.1),
        reports_late=pick("late", 0, 0, 0.1),
        answers_repeated=pick("repeated", 0, 0, 0.2),
        journal_errors=pick("journal", 0, 0, 0.2),
        fair_after_s=pick("fair", 60, 300, 1200),
        retry_failed=bool(number("retry failed", 0, 1)),
    )
    cluster = SimulatedCluster(
        nodes=number("nodes", 2, 3, 5),
        gangs_per_node=number("places", 1, 2, 3),
        rank_s=pick("rank", 0.05, 1, 20),
        rank_sigma=pick("sigma", 0, 1, 1.5),
        rank_bytes=GIB,
        memory_sigma=pick("memory sigma", 0, 0.7) if memory else 0.0,
        timeout_s=pick("timeout", 30, 120),
        most_nodes=number("most nodes", 0, 0, 8) or None,
        slow_share=pick("slow", 0, 0, 0.3),
        led_stages=tuple(s for s, plan in enumerate(stages) if plan.nodes > 1 and s % 2),
    )
    kinds = [*IncidentKind, *(kind for kind in IncidentKind if "CANCEL" not in kind.name)]
    incidents = tuple(
        Incident(
            at_s=round(chances.exponential(40.0, "incident", n), 1),
            kind=kinds[int(chances.draw("incident kind", n) * len(kinds))],
            node=number(f"incident node {n}", 0, 1, 2),
            lasts_s=pick(f"incident lasts {n}", 5, 90),
        )
        for n in range(number("incidents", 0, 0, 1, 3))
    )
    params = SchedulerParams(
        max_opening=number("opening", 2, 8), max_unrecorded=number("unrecorded", 5, 100_000)
    )
    return Scenario(
        stages=tuple(stages),
        parents=tuple(parents),
        cluster=cluster,
        faults=faults,
        incidents=incidents,
        params=params,
        seed=seed,
    )
