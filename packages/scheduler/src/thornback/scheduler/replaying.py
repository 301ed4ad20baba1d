"""Repeats a recorded run: the same events give the same commands, or here is the first that
differ."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Generic, TypeVar

import attrs

from thornback.faults import Standing
from thornback.scheduler.commands import Command
from thornback.scheduler.events import Ranks
from thornback.scheduler.machine import Scheduler
from thornback.scheduler.params import StagePlan
from thornback.scheduler.recorded import (
    Entry,
    Record,
    RecordedDelta,
    RecordedVerdict,
    RecordError,
)
from thornback.scheduler.states import SchedulerError

F = TypeVar("F")


@attrs.frozen(kw_only=True, slots=True)
class Difference(Generic[F]):
    """Where a repeated run first went another way than its record."""

    number: int
    """Of the entry, from 1: in a file it stands one line further down."""
    entry: Entry[F]
    """What is recorded."""
    commands: tuple[Command, ...]
    """What the scheduler answered now."""
    note: str
    """What differs, in one sentence."""

    def __str__(self) -> str:
        lines = [f"entry {self.number}, {self.entry.event}, at {self.entry.at} s: {self.note}"]
        for what, commands in (("recorded", self.entry.commands), ("now", self.commands)):
            lines += [f"  {what}: {command}" for command in commands] or [f"  {what}: nothing"]
        return "\n".join(lines)


def replay(record: Record[F]) -> Difference[F] | None:
    """Tell a new scheduler the events of a record; return where its commands first differ, or what
    it asks of policies and dependencies; None: nowhere.

    Policies and dependencies answer what they have answered then: what is tried is the scheduler.

    Raises:
        RecordError: the beginning of the record was dropped; or a line of it makes no sense.
    """
    rerun = Rerun(record)
    for number, entry in enumerate(rerun, start=1):
        commands, note = rerun.last
        if not note and commands != entry.commands:
            note = "other commands"
        if note:
            return Difference(number=number, entry=entry, commands=commands, note=note)
    return None


class Rerun(Generic[F]):
    """A run that is repeated entry by entry; its scheduler can be asked between them."""

    def __init__(self, record: Record[F]) -> None:
        """Raises `RecordError` if the beginning of the record was dropped."""
        if record.dropped:
            raise RecordError(f"its first {record.dropped} entries were not kept")
        self._record = record
        self._answers = _Answers()
        header = record.header
        plans: list[StagePlan[F]] = [
            StagePlan(policy=_RecordedPolicy(self._answers, stage), **each.plan)  # type: ignore[arg-type]
            for stage, each in enumerate(header.plans)
        ]
        dependencies = _RecordedDependencies(self._answers)
        self.scheduler: Scheduler[F] = Scheduler(plans, dependencies, header.params, header.seed)
        self.last: tuple[tuple[Command, ...], str] = ((), "")
        """What came of the last entry: the commands, and what was not as recorded, but for them."""

    def __iter__(self) -> Iterator[Entry[F]]:
        """Yield every entry after the scheduler was told its event."""
        for entry in self._record.entries:
            self.last = self._tell(entry)
            yield entry

    def _tell(self, entry: Entry[F]) -> tuple[tuple[Command, ...], str]:
        self._answers.verdicts = deque(entry.verdicts)
        self._answers.deltas = deque(entry.deltas)
        commands: Sequence[Command] = ()
        error = ""
        try:
            commands = self.scheduler.handle(entry.event, entry.at)
        except _NotRecordedError as missing:
            return (), str(missing)
        except Exception as raised:  # noqa: BLE001  # it is compared with what was raised then
            error = f"{type(raised).__name__}: {raised}"
        if error != entry.error:
            note = f"it raised {error or 'nothing'}; recorded is {entry.error or 'nothing'}"
            return tuple(commands), note
        return tuple(commands), self._answers.left()


class _NotRecordedError(SchedulerError):
    """The scheduler asks what it has not asked then."""


class _Answers:
    """What policies and dependencies answered during one event."""

    def __init__(self) -> None:
        self.verdicts: deque[RecordedVerdict] = deque()
        self.deltas: deque[RecordedDelta] = deque()

    def verdict(self, stage: int, draw: float) -> RecordedVerdict:
        """Return the next verdict, if that is what was asked."""
        if not self.verdicts:
            raise _NotRecordedError(f"the policy of stage {stage} was not asked then")
        verdict = self.verdicts.popleft()
        if (verdict.stage, verdict.draw) != (stage, draw):
            raise _NotRecordedError(f"the policy of stage {stage} is asked about another fault")
        return verdict

    def delta(self, asked: tuple[int, Ranks, bool] | None) -> RecordedDelta:
        """Return the next delta, if that is what was asked."""
        if not self.deltas or self.deltas[0].asked != asked:
            raise _NotRecordedError(f"the dependencies were not told {asked or 'the start'} then")
        return self.deltas.popleft()

    def left(self) -> str:
        """Return what was asked then, and is not now; empty: nothing."""
        if self.verdicts:
            return f"the policy of stage {self.verdicts[0].stage} is not asked any more"
        if self.deltas:
            return f"the dependencies are not told {self.deltas[0].asked or 'the start'} any more"
        return ""


class _RecordedPolicy:
    def __init__(self, answers: _Answers, stage: int) -> None:
        self._answers = answers
        self._stage = stage

    def decide(
        self,
        fault: object,
        history: Sequence[tuple[object, str, Standing]],
        standing: Standing,
        draw: float,
        /,
    ) -> RecordedVerdict:
        return self._answers.verdict(self._stage, draw)


class _RecordedDependencies:
    def __init__(self, answers: _Answers) -> None:
        self._answers = answers

    def start(self) -> RecordedDelta:
        return self._answers.delta(None)

    def finished(self, stage: int, ranks: Sequence[range], ok: bool, /) -> RecordedDelta:
        return self._answers.delta((stage, tuple(ranks), ok))
