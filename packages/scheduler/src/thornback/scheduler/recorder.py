"""Records what a scheduler is told and what it answers; tells the story of one rank; repeats a run.

The machine knows nothing of it, and costs nothing more when nothing is recorded. Public: this
module; what a record consists of is described in `recorded`, which is private.

    recorder = Recorder(plans, dependencies, write=file.write)
    commands = recorder.handle(event, now)  # instead of that of a `Scheduler`
    print(*recorder.story(0, 17), sep="\\n")

    with open("run.jsonl") as file:
        print(replay(read_record(file)))  # None: the same commands again
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import attrs

from thornback.faults import Standing
from thornback.scheduler.commands import Command
from thornback.scheduler.events import Event
from thornback.scheduler.machine import Scheduler
from thornback.scheduler.params import SchedulerParams, StagePlan
from thornback.scheduler.ports import Delta, Dependencies, RetryPolicy, Verdict
from thornback.scheduler.recorded import (
    Entry,
    Header,
    Record,
    RecordedDelta,
    RecordedFault,
    RecordedPlan,
    RecordedVerdict,
    RecordError,
    entry_line,
    header_line,
    read_record,
)
from thornback.scheduler.replaying import Difference, replay
from thornback.scheduler.story import Moment, MomentKind, story

__all__ = [
    "Difference",
    "Entry",
    "Moment",
    "MomentKind",
    "Record",
    "RecordError",
    "RecordedFault",
    "Recorder",
    "read_record",
    "replay",
    "story",
]

F = TypeVar("F")


class Recorder(Generic[F]):
    """A `Scheduler` whose events and commands are recorded: give every event to `handle` here.

    Never fails or changes what the scheduler does. Not for several threads at once.
    """

    def __init__(
        self,
        stages: Sequence[StagePlan[F]],
        dependencies: Dependencies,
        params: SchedulerParams | None = None,
        seed: int = 0,
        *,
        names: Sequence[str] = (),
        keep: int | None = 10_000,
        write: Callable[[str], object] | None = None,
    ) -> None:
        """Make the scheduler.

        Args:
            stages: as for `Scheduler`.
            dependencies: as for `Scheduler`.
            params: as for `Scheduler`.
            seed: as for `Scheduler`.
            names: what the stages are called, for people; by default "0", "1", ...
            keep: so many of the last entries are kept here; None: all.
            write: is given every entry as a line of text: `file.write`. What it raises ends the
                writing, not the run: see `broken`.

        Raises:
            UsageError: as `Scheduler`.
        """
        params = params or SchedulerParams()
        self._verdicts: list[RecordedVerdict] = []
        self._deltas: list[RecordedDelta] = []
        noted = [
            attrs.evolve(plan, policy=_NotedPolicy(plan.policy, stage, self._verdicts))
            for stage, plan in enumerate(stages)
        ]
        self.scheduler: Scheduler[F] = Scheduler(
            noted, _NotedDependencies(dependencies, self._deltas), params, seed
        )
        """To be asked as any; but tell it nothing that `handle` is not told."""
        self.broken: Exception | None = None
        """What `write` has raised: nothing was written after that."""
        self._entries: deque[Entry[F]] = deque(maxlen=keep)
        self._count = 0
        self._write = write
        self._header = Header(
            plans=tuple(
                RecordedPlan(name=name, plan=_numbers(plan))
                for name, plan in zip(names or map(str, range(len(stages))), stages, strict=True)
            ),
            params=params,
            seed=seed,
        )
        self._put(header_line(self._header) if write is not None else "")

    def handle(self, event: Event[F], now: float) -> Sequence[Command]:
        """Do as `Scheduler.handle`, and record it: also what it raises."""
        self._verdicts.clear()
        self._deltas.clear()
        try:
            commands = self.scheduler.handle(event, now)
        except Exception as error:
            self._note(event, now, (), f"{type(error).__name__}: {error}")
            raise
        self._note(event, now, commands, "")
        return commands

    def record(self) -> Record[F]:
        """Return what is kept here."""
        kept = tuple(self._entries)
        return Record(header=self._header, entries=kept, dropped=self._count - len(kept))

    def story(self, stage: int, rank: int) -> tuple[Moment, ...]:
        """Return the story of a rank, as far as it is kept here: see `story`."""
        return story(self.record(), stage, rank)

    def _note(self, event: Event[F], now: float, commands: Sequence[Command], error: str) -> None:
        entry = Entry(
            at=now,
            event=event,
            verdicts=tuple(self._verdicts),
            deltas=tuple(self._deltas),
            commands=tuple(commands),
            error=error,
        )
        self._entries.append(entry)
        self._count += 1
        if self._write is not None:
            self._put(entry_line(entry))

    def _put(self, line: str) -> None:
        if self._write is None:
            return
        try:
            self._write(line)
        except Exception as error:  # noqa: BLE001  # foreign code: the commands must not be lost by it
            self.broken, self._write = error, None


class _NotedPolicy(Generic[F]):
    """Notes the verdicts of a policy; gives them on unchanged (fulfils `RetryPolicy`)."""

    def __init__(self, policy: RetryPolicy[F], stage: int, notes: list[RecordedVerdict]) -> None:
        self._policy = policy
        self._stage = stage
        self._notes = notes

    def decide(
        self,
        fault: F,
        history: Sequence[tuple[F, str, Standing]],
        standing: Standing,
        draw: float,
        /,
    ) -> Verdict:
        verdict = self._policy.decide(fault, history, standing, draw)
        self._notes.append(RecordedVerdict.of(verdict, self._stage, draw))
        return verdict


class _NotedDependencies:
    """Notes what dependencies answer; gives it on unchanged (fulfils `Dependencies`)."""

    def __init__(self, dependencies: Dependencies, notes: list[RecordedDelta]) -> None:
        self._dependencies = dependencies
        self._notes = notes

    def start(self) -> Delta:
        delta = self._dependencies.start()
        self._notes.append(RecordedDelta.of(delta, None))
        return delta

    def finished(self, stage: int, ranks: Sequence[range], ok: bool, /) -> Delta:
        delta = self._dependencies.finished(stage, ranks, ok)
        self._notes.append(RecordedDelta.of(delta, (stage, tuple(ranks), ok)))
        return delta


def _numbers(plan: StagePlan[F]) -> dict[str, int | None]:
    names = [field.name for field in attrs.fields(StagePlan) if field.name != "policy"]
    return {name: getattr(plan, name) for name in names}
