"""Bugs planted into scheduler and roster: each must be caught, by the check that is there for it.

The seeded runs have the same checks. A bug that no seed finds would say that they prove little.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import attrs
import pytest

from tests.simulation.worlds import RosterGang, scenario_of
from thornback.faults import Fault, Standing
from thornback.pool import Outcome, Report
from thornback.pool import roster as pool
from thornback.pool.severity import Loss
from thornback.scheduler import Scheduler, SchedulerParams, StagePlan
from thornback.scheduler.commands import (
    CloseGang,
    Command,
    Dispatch,
    FinishRun,
    Record,
    RecordState,
    RunState,
)
from thornback.scheduler.events import Event, GangLost, RanksReturned, RanksSucceeded, RunStarted
from thornback.scheduler.gangs import Assignment
from thornback.scheduler.ports import Delta, Dependencies, RetryPolicy, Verdict
from thornback.scheduler.simulate import Unfinished
from thornback.scheduler.stages import FailedRank
from thornback.scheduler.testing import FakeDelta, FakeVerdict

MOST_SEEDS = 80
"""A bug that so many runs do not show is not caught."""
RARE = (305,)
"""Seeds that show a bug which few others do: tried first."""


class Watchful(Scheduler[Fault]):
    """Remembers what it has dispatched: for the bugs below."""

    def __init__(
        self,
        stages: Sequence[StagePlan[Fault]],
        dependencies: Dependencies,
        params: SchedulerParams | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(stages, dependencies, params, seed)
        self.sizes = [plan.world_size for plan in stages]
        self.given: dict[int, Dispatch] = {}

    def handle(self, event: Event[Fault], now: float) -> Sequence[Command]:
        commands = self.spoil(event, now)
        self.given |= {c.assignment: c for c in commands if isinstance(c, Dispatch)}
        return commands

    def spoil(self, event: Event[Fault], now: float) -> list[Command]:
        return list(super().handle(event, now))


class SkipsTheFence(Watchful):
    """Records a success whose assignment no longer holds the rank."""

    def spoil(self, event: Event[Fault], now: float) -> list[Command]:
        stale = isinstance(event, RanksSucceeded) and not self.outstanding(event.assignment)
        commands = super().spoil(event, now)
        if stale and isinstance(event, RanksSucceeded) and not self.finished:
            stage = self.given[event.assignment].stage
            commands.append(
                Record(
                    stage=stage,
                    ranks=event.ranks,
                    assignment=event.assignment,
                    state=RecordState.DONE,
                )
            )
        return commands


class RecordsBeforeSuccess(Watchful):
    """Records a rank when it is dispatched."""

    def spoil(self, event: Event[Fault], now: float) -> list[Command]:
        commands = super().spoil(event, now)
        return commands + [
            Record(stage=c.stage, ranks=c.ranks, assignment=c.assignment, state=RecordState.DONE)
            for c in commands
            if isinstance(c, Dispatch)
        ]


class LosesAReturnedRange(Watchful):
    """Forgets the last range of what is handed back."""

    def spoil(self, event: Event[Fault], now: float) -> list[Command]:
        if isinstance(event, RanksReturned):
            event = attrs.evolve(event, ranks=event.ranks[:-1])
        return super().spoil(event, now)


class ForgetsCloseGang(Watchful):
    """Does not close a gang that is lost."""

    def spoil(self, event: Event[Fault], now: float) -> list[Command]:
        commands = super().spoil(event, now)
        if isinstance(event, GangLost):
            return [c for c in commands if not isinstance(c, CloseGang)]
        return commands


class ChargesCompany(Watchful):
    """Lets ranks pay that were lost in company."""

    def _give_back(self, assignment: Assignment[Fault], halve: bool) -> None:
        for rank in (rank for piece in assignment.outstanding for rank in piece):
            assignment.stage.failures.setdefault(rank, FailedRank()).tries += 1
        super()._give_back(assignment, halve)


class DoesNotIsolate(Watchful):
    """Gives back what was lost in company in batches of any size."""

    def _give_back(self, assignment: Assignment[Fault], halve: bool) -> None:
        super()._give_back(assignment, False)


class AnnouncesBeforeRecorded(Watchful):
    """Counts a success as durable at once."""

    def spoil(self, event: Event[Fault], now: float) -> list[Command]:
        commands = super().spoil(event, now)
        for record in [c for c in commands if isinstance(c, Record)]:
            commands += super().spoil(record.recorded(), now)
        return commands


class ForgetsTimers(Watchful):
    """Never asks to be woken."""

    @property
    def wake_at(self) -> float | None:
        return None


class FinishesEarly(Watchful):
    """Ends the run at the last success."""

    def spoil(self, event: Event[Fault], now: float) -> list[Command]:
        commands = super().spoil(event, now)
        counts = [self.counts(stage) for stage in range(len(self.sizes))]
        left = sum(c.blocked + c.ready + c.running + c.backoff for c in counts)
        if isinstance(event, RanksSucceeded) and not left and not self.finished:
            commands.append(FinishRun(state=RunState.SUCCEEDED))
        return commands


class DispatchesTwice(Watchful):
    """Hands ranks to two assignments at a time."""

    def spoil(self, event: Event[Fault], now: float) -> list[Command]:
        commands = super().spoil(event, now)
        return commands + [
            attrs.evolve(c, assignment=c.assignment + 10_000)
            for c in commands
            if isinstance(c, Dispatch)
        ]


class RepeatsWhatIsDone(Watchful):
    """Does not look at what an earlier driver has recorded."""

    def spoil(self, event: Event[Fault], now: float) -> list[Command]:
        return super().spoil(RunStarted() if isinstance(event, RunStarted) else event, now)


@attrs.frozen
class Spoilt:
    """A policy with other verdicts than the stage's own."""

    policy: RetryPolicy[Fault]
    change: dict[str, Any]

    def decide(
        self,
        fault: Fault,
        history: Sequence[tuple[Fault, str, Standing]],
        standing: Standing,
        draw: float,
        /,
    ) -> FakeVerdict:
        said: Verdict = self.policy.decide(fault, history, standing, draw)
        fields = {name: getattr(said, name) for name in attrs.fields_dict(FakeVerdict)}
        return FakeVerdict(**{**fields, **self.change})


def with_verdicts(**change: object) -> type[Watchful]:
    class WithVerdicts(Watchful):
        """Does not heed what the policy says."""

        def __init__(
            self,
            stages: Sequence[StagePlan[Fault]],
            dependencies: Dependencies,
            params: SchedulerParams | None = None,
            seed: int = 0,
        ) -> None:
            plans = [attrs.evolve(p, policy=Spoilt(p.policy, change)) for p in stages]
            super().__init__(plans, dependencies, params, seed)

    WithVerdicts.__name__ = f"Says{'And'.join(change)}"
    return WithVerdicts


class Impatient:
    """Dependencies that release everything at once."""

    def __init__(self, dependencies: Dependencies, sizes: Sequence[int]) -> None:
        self._dependencies = dependencies
        self._sizes = sizes

    def start(self, /) -> Delta:
        self._dependencies.start()
        return FakeDelta(ready=tuple((s, range(size)) for s, size in enumerate(self._sizes)))

    def finished(self, stage: int, ranks: Sequence[range], ok: bool, /) -> Delta:
        self._dependencies.finished(stage, ranks, ok)
        return FakeDelta()


class DoesNotWaitForParents(Watchful):
    """Runs stages before what they depend on."""

    def __init__(
        self,
        stages: Sequence[StagePlan[Fault]],
        dependencies: Dependencies,
        params: SchedulerParams | None = None,
        seed: int = 0,
    ) -> None:
        sizes = [plan.world_size for plan in stages]
        super().__init__(stages, Impatient(dependencies, sizes), params, seed)


class TrustsNodeZero(pool.Roster):
    """Takes node 0's success for that of all."""

    def reported(
        self, member: int, assignment: int, report: Report
    ) -> tuple[pool.Instruction, ...]:
        good = [outcome for outcome in report.outcomes if outcome.ok]
        if member == 0 and good and len(self._nodes) > 1 and self.owes(0, assignment):
            self.withdrawn(assignment)
            final = Report(outcomes=tuple(good), final=True)
            return (pool.Deliver(assignment=assignment, report=final),)
        return super().reported(member, assignment, report)


class BlamesTheFirst(pool.Roster):
    """Does not wait for the cause, and takes the first failure for it."""

    def reported(
        self, member: int, assignment: int, report: Report
    ) -> tuple[pool.Instruction, ...]:
        bad: list[Outcome] = [outcome for outcome in report.outcomes if not outcome.ok]
        if bad and len(self._nodes) > 1 and self.owes(member, assignment):
            self.withdrawn(assignment)
            final = Report(outcomes=tuple(bad), final=True)
            return (pool.Deliver(assignment=assignment, report=final),)
        return super().reported(member, assignment, report)


class ForgetsTheRest(pool.Roster):
    """Does not hand on what a worker has handed back."""

    def reported(
        self, member: int, assignment: int, report: Report
    ) -> tuple[pool.Instruction, ...]:
        told = super().reported(member, assignment, report)
        return tuple(
            attrs.evolve(each, report=attrs.evolve(each.report, returned=()))
            if isinstance(each, pool.Deliver)
            else each
            for each in told
        )


class LeavesSiblingsAlone(pool.Roster):
    """Does not recall the others when one node has failed."""

    def reported(
        self, member: int, assignment: int, report: Report
    ) -> tuple[pool.Instruction, ...]:
        told = super().reported(member, assignment, report)
        return tuple(each for each in told if not isinstance(each, pool.KillRank))


class VouchesForThePeers(pool.Roster):
    """Takes those that had ended their part for alive, though nobody has asked them."""

    def reported(
        self, member: int, assignment: int, report: Report
    ) -> tuple[pool.Instruction, ...]:
        told = super().reported(member, assignment, report)
        for each in told:
            if isinstance(each, pool.KillRank) and not self.owes(each.member, assignment):
                told += self.vouched(each.member, assignment)
        return told


class KeepsTheLossToItself(pool.Roster):
    """Never says that a gang is lost."""

    def died(self, member: int, loss: Loss) -> tuple[pool.Instruction, ...]:
        super().died(member, loss)
        return ()


SCHEDULERS: list[tuple[type[Watchful], str]] = [
    (SkipsTheFence, "no such result|is RecordState|has not ended well"),
    (RecordsBeforeSuccess, "is outstanding"),
    (LosesAReturnedRange, "are outstanding, the scheduler says"),
    (ForgetsCloseGang, "stall: nothing is owed"),
    (ChargesCompany, "have failed"),
    (DoesNotIsolate, "may travel with"),
    (AnnouncesBeforeRecorded, "count as done and are not durable"),
    (ForgetsTimers, "stall: nothing is owed"),
    (FinishesEarly, "with gangs"),
    (DispatchesTwice, "is outstanding in"),
    (RepeatsWhatIsDone, "have a durable result already"),
    (DoesNotWaitForParents, "what it depends on is not done"),
    (with_verdicts(retry=True), "that are not given up"),
    (with_verdicts(memory_bytes=None), "bytes, and shall have"),
]
ROSTERS: list[tuple[type[pool.Roster], str]] = [
    (TrustsNodeZero, "has not ended well"),
    (BlamesTheFirst, "is blamed for"),
    (ForgetsTheRest, "nothing was answered"),
    (LeavesSiblingsAlone, "nothing was answered|no progress|nothing is left to happen"),
    (VouchesForThePeers, "is blamed for"),
    (KeepsTheLossToItself, "nothing is left to happen|nothing was answered"),
]


def name(case: object) -> str:
    return case.__name__ if isinstance(case, type) else "caught"


def first_complaint(run: Callable[[int], object]) -> tuple[int, str]:
    """Return the first seed whose run is stopped, and what was said."""
    for seed in chain(RARE, range(MOST_SEEDS)):
        try:
            run(seed)
        except (AssertionError, Unfinished) as complaint:
            return seed, str(complaint)
    return MOST_SEEDS, "nothing was noticed"


@pytest.mark.parametrize(("bug", "complaint"), SCHEDULERS, ids=name)
def test_a_bug_of_the_scheduler_is_caught(bug: type[Watchful], complaint: str) -> None:
    seed, said = first_complaint(
        lambda seed: scenario_of(seed).simulation(make=bug).run(most_events=20_000)
    )
    assert re.search(complaint, said), f"seed {seed}: {said}"


@pytest.mark.parametrize(("bug", "complaint"), ROSTERS, ids=name)
def test_a_bug_of_the_roster_is_caught(bug: type[pool.Roster], complaint: str) -> None:
    class FaultyGang(RosterGang):
        make = bug

    seed, said = first_complaint(
        lambda seed: scenario_of(seed).simulation(gang_side=FaultyGang).run(most_events=20_000)
    )
    assert re.search(complaint, said), f"seed {seed}: {said}"
