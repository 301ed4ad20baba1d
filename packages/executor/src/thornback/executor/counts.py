"""Counts of every stage, for people: the scheduler's, and what ranks tell. Decides nothing."""

from __future__ import annotations

from thornback.executor.partials import Partials
from thornback.executor.plan import RunPlan
from thornback.executor.ports import Opened
from thornback.executor.report import StageProgress
from thornback.faults import Fault
from thornback.scheduler import Scheduler


class Counts:
    """Reads what others keep; keeps only what earlier runs had recorded."""

    def __init__(
        self, plan: RunPlan, scheduler: Scheduler[Fault], partials: Partials, opened: Opened
    ) -> None:
        self._plan = plan
        self._scheduler = scheduler
        self._partials = partials
        self._before = [sum(map(len, opened.done.get(stage.name, ()))) for stage in plan.stages]

    def progress(self) -> tuple[StageProgress, ...]:
        """Return the counts of every stage, in the order of submission."""
        sums = self._partials.sums()
        return tuple(
            StageProgress(
                name=stage.name,
                total=stage.world_size,
                done=counts.done,
                failed=counts.failed,
                skipped=counts.skipped,
                running=counts.running + counts.recording,
                gangs=counts.gangs,
                recorded_before=self._before[number],
                partial=sums.get(number, 0.0),
            )
            for number, stage in enumerate(self._plan.stages)
            for counts in (self._scheduler.counts(number),)
        )
