"""The story of one rank, out of a record: when it could run, what it waited for, where it ran, what
went wrong and what was decided about it, how it ended.

What it waited for is not in the record: it is asked of a scheduler that is told the same events
again. Where the beginning of a record was dropped, that part of the story is missing.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Iterable, Iterator
from typing import Generic, TypeVar

import attrs

from thornback.scheduler.board import jitter
from thornback.scheduler.commands import Command, Dispatch, FinishRun, Recall, RecordState
from thornback.scheduler.commands import Record as RecordCommand
from thornback.scheduler.events import (
    CancelRequested,
    GangLost,
    GangReady,
    JournalFailed,
    RankFailed,
    RanksReturned,
    RanksSucceeded,
    Recorded,
    RunStarted,
)
from thornback.scheduler.recorded import Entry, Record, RecordedDelta, RecordedVerdict
from thornback.scheduler.replaying import Rerun
from thornback.scheduler.states import RankState, UsageError

F = TypeVar("F")
_S = RankState
ENDS = (RankState.DONE, RankState.FAILED, RankState.SKIPPED)


class MomentKind(enum.Enum):
    """What happened to the rank."""

    FOUND = "found"
    """An earlier run has settled it."""
    WAITS = "waits"
    """Why it does not run yet."""
    READY = "ready"
    """It may run."""
    DISPATCHED = "dispatched"
    """It was given to a gang."""
    RECALLED = "recalled"
    """Its assignment was asked back."""
    RETURNED = "returned"
    """It came back unharmed."""
    LOST = "lost"
    """Its gang was lost."""
    FAILED = "failed"
    """It reported a fault."""
    JUDGED = "judged"
    """What the retry policy decided about it."""
    SUCCEEDED = "succeeded"
    """It reported a result."""
    STALE = "stale"
    """A report that came too late, or again: it changed nothing."""
    ENDED = "ended"
    """It is DONE, FAILED or SKIPPED; or the run has ended before it was."""
    RUN = "run"
    """Something that concerns the whole run: it was cancelled, or its journal failed."""


@attrs.frozen(kw_only=True, slots=True)
class Moment:
    """One thing that happened to a rank. `str()` is a line for people."""

    at_s: float
    """Seconds since the first entry of the record."""
    kind: MomentKind
    text: str
    """A plain sentence, without the time."""
    gang: int | None = None
    nodes: tuple[str, ...] = ()
    """Of the gang."""
    assignment: int | None = None
    fault: str = ""
    """What failed, in one line."""

    def __str__(self) -> str:
        return f"{self.at_s:10.3f} s  {self.text}"


def story(record: Record[F], stage: int, rank: int) -> tuple[Moment, ...]:
    """Return what happened to a rank, oldest first.

    Raises:
        UsageError: the run has no such stage or rank.
        RecordError: a line of the record makes no sense.
    """
    plans = record.header.plans
    if not 0 <= stage < len(plans):
        raise UsageError(f"There is no stage {stage}; stages are 0..{len(plans) - 1}.")
    size = plans[stage].plan["world_size"] or 0
    if not 0 <= rank < size:
        raise UsageError(f"Stage {stage} has no rank {rank}; its ranks are 0..{size - 1}.")
    teller: _Teller[F] = _Teller(record, stage, rank)
    for entry, state, reason in _with_reasons(record, stage, rank):
        teller.take(entry, state, reason)
    return tuple(teller.moments)


def _with_reasons(
    record: Record[F], stage: int, rank: int
) -> Iterator[tuple[Entry[F], RankState | None, str | None]]:
    """Yield every entry, with the state of the rank after it, and why the ready ranks of its stage
    had no gang then; of a record without its beginning neither is known."""
    if record.dropped:
        yield from ((entry, None, None) for entry in record.entries)
        return
    rerun = Rerun(record)
    for entry in rerun:
        scheduler = rerun.scheduler
        yield entry, scheduler.state(stage, rank), scheduler.waiting_reason(stage)


def _holds(ranks: Iterable[range], rank: int) -> bool:
    return any(rank in piece for piece in ranks)


def _line(fault: object) -> str:
    return str(fault).strip().partition("\n")[0]


class _Teller(Generic[F]):
    """Follows one rank through the entries."""

    def __init__(self, record: Record[F], stage: int, rank: int) -> None:
        self.moments: list[Moment] = []
        self._header = record.header
        self._stage = stage
        self._rank = rank
        # Of a record without its beginning it is not known where the rank was.
        self._state = RankState.BLOCKED if not record.dropped else None
        self._attempt = 1
        self._held: Dispatch | None = None
        self._past: dict[int, int] = {}
        """Assignments that had the rank, with their gangs."""
        self._nodes: dict[int, tuple[str, ...]] = {}
        self._start: float | None = None
        self._now = 0.0
        self._since = 0.0
        """When the state was last changed."""
        self._reason = ""
        """Told last."""

    def take(self, entry: Entry[F], state: RankState | None, reason: str | None) -> None:
        """Take in an entry, and how the rank and its stage are after it, as far as known."""
        if self._start is None:
            self._start = entry.at
        self._now = max(self._now, entry.at - self._start)
        self._event(entry)
        for verdict in entry.verdicts:
            if verdict.stage == self._stage and verdict.draw == self._draw(self._rank):
                self._judged(verdict)
        self._deltas(entry.deltas)
        for command in entry.commands:
            self._command(command)
        if isinstance(entry.event, RunStarted) and self._state is RankState.BLOCKED:
            self._tell(MomentKind.WAITS, "waits for the ranks that it depends on")
        if self._state is RankState.BACKOFF and state is RankState.READY:
            self._become(RankState.READY)
            self._tell(MomentKind.READY, "may run again: its delay is over")
        if self._state is RankState.READY and reason is not None:
            self._waits(f"waits for a gang: {reason}")

    def _tell(self, kind: MomentKind, text: str, *, fault: object = "", gang: int = -1) -> None:
        held = self._held
        if gang < 0 and held is not None:
            gang = held.gang
        self.moments.append(
            Moment(
                at_s=self._now,
                kind=kind,
                text=text,
                gang=None if gang < 0 else gang,
                nodes=self._nodes.get(gang, ()),
                assignment=None if held is None else held.assignment,
                fault=_line(fault),
            )
        )

    def _become(self, state: RankState) -> None:
        self._state, self._since, self._reason = state, self._now, ""

    def _waits(self, text: str) -> None:
        """Tell why it waits, unless only a number in it has changed."""
        kind = re.sub(r"[\d.]+", "", text)
        if kind != self._reason:
            self._reason = kind
            self._tell(MomentKind.WAITS, text)

    def _draw(self, rank: int) -> float:
        return jitter(self._header.seed, self._stage, rank, self._attempt)

    def _name(self, stage: int, rank: int) -> str:
        return f"rank {rank} of stage {self._header.plans[stage].name!r}"

    def _where(self, gang: int) -> str:
        nodes = self._nodes.get(gang)
        return f"gang {gang}" + (f" on {', '.join(nodes)}" if nodes else "")

    # -- events

    def _event(self, entry: Entry[F]) -> None:
        match entry.event:
            case RunStarted():
                self._found(entry.event)
            case GangReady():
                self._nodes.setdefault(entry.event.gang, entry.event.nodes)
            case GangLost():
                self._gang_lost(entry.event, entry.verdicts)
            case RanksSucceeded() if _holds(entry.event.ranks, self._rank):
                if self._reports(entry.event.assignment, "a result"):
                    self._tell(MomentKind.SUCCEEDED, "succeeded; its result waits for the journal")
                    self._release(RankState.RECORDING)
            case RankFailed() if entry.event.rank == self._rank:
                self._failed(entry.event)
            case RanksReturned() if _holds(entry.event.ranks, self._rank):
                if self._reports(entry.event.assignment, "that it did not run"):
                    self._tell(MomentKind.RETURNED, "came back, free of charge: it may run again")
                    self._release(RankState.READY)
            case Recorded(stage=self._stage) if _holds(entry.event.ranks, self._rank):
                if self._state is RankState.RECORDING:
                    self._become(RankState.DONE)
                    self._tell(MomentKind.ENDED, "is DONE: its result is recorded")
            case JournalFailed() if self._state not in ENDS:
                text = f"the journal failed: {_line(entry.event.fault)}"
                self._tell(MomentKind.RUN, text, fault=entry.event.fault)
            case CancelRequested() if self._state not in ENDS:
                self._tell(MomentKind.RUN, f"the run was cancelled: {entry.event.reason}")
            case _:
                pass

    def _found(self, event: RunStarted) -> None:
        for ranks, state in ((event.done, RankState.DONE), (event.failed, RankState.FAILED)):
            if self._state is RankState.BLOCKED and _holds(ranks.get(self._stage, ()), self._rank):
                self._become(state)
                self._tell(MomentKind.FOUND, f"an earlier run has recorded it as {state.name}")

    def _reports(self, assignment: int, what: str) -> bool:
        """Return whether a report counts; else tell that it does not."""
        if self._held is not None and self._held.assignment == assignment:
            return True
        if assignment in self._past:
            text = f"assignment {assignment} reported {what}: dropped, it does not hold the rank"
            self._tell(MomentKind.STALE, text, gang=self._past[assignment])
        return False

    def _release(self, state: RankState) -> None:
        """It is outstanding no more."""
        self._held = None
        self._become(state)

    def _failed(self, event: RankFailed[F]) -> None:
        if self._reports(event.assignment, "a fault"):
            where = f" on {event.node}" if event.node else ""
            text = f"failed{where} after {event.ran_s:.1f} s: {_line(event.fault)}"
            self._tell(MomentKind.FAILED, text, fault=event.fault)
            self._release(RankState.READY)

    def _gang_lost(self, event: GangLost[F], verdicts: tuple[RecordedVerdict, ...]) -> None:
        fault = _line(event.fault)
        if self._held is not None and self._held.gang == event.gang:
            text = f"{self._where(event.gang)} was lost: {fault}"
            self._tell(MomentKind.LOST, text, fault=event.fault)
            self._release(RankState.READY)
            if not any(each.draw == self._draw(self._rank) for each in verdicts):
                self._tell(MomentKind.RETURNED, "came back, free of charge: it may run again")
        elif (
            self._state is RankState.READY
            and event.gang not in self._nodes
            and any(each.stage == self._stage for each in verdicts)
        ):
            self._waits(f"waits: a gang could not be opened: {fault}")

    # -- decisions

    def _judged(self, verdict: RecordedVerdict) -> None:
        if not verdict.retry:
            self._tell(MomentKind.JUDGED, f"is given up: {verdict.reason}")
            return
        how = f"in {verdict.delay_s:.1f} s" if verdict.delay_s > 0 else "at once"
        if verdict.memory_bytes is not None:
            how += f", with {verdict.memory_bytes} bytes of memory"
        charge = "" if verdict.charged else ", free of charge"
        self._tell(MomentKind.JUDGED, f"is tried again {how}{charge}: {verdict.reason}")
        self._become(RankState.BACKOFF if verdict.delay_s > 0 else RankState.READY)
        self._attempt += int(verdict.charged or verdict.machine_fault)

    def _deltas(self, deltas: Iterable[RecordedDelta]) -> None:
        for delta in deltas:
            if self._state is not RankState.BLOCKED:
                return
            for stage, ranks in delta.ready:
                if stage == self._stage and self._rank in ranks:
                    what = "it depends on nothing" if delta.asked is None else "what it depends on"
                    ready = what if delta.asked is None else f"{what} has ended"
                    self._become(RankState.READY)
                    self._tell(MomentKind.READY, f"may run: {ready}")
            for stage, ranks, (root, of) in delta.skipped:
                if stage == self._stage and self._rank in ranks:
                    self._become(RankState.SKIPPED)
                    # -1: each because of the one of its own number.
                    cause = self._name(root, of if of >= 0 else self._rank)
                    self._tell(MomentKind.ENDED, f"is SKIPPED: {cause} failed")

    def _command(self, command: Command) -> None:
        match command:
            case Dispatch(stage=self._stage) if _holds(command.ranks, self._rank):
                self._dispatched(command)
            case Recall():
                if self._held is not None and self._held.assignment == command.assignment:
                    how = "with a kill" if command.kill else "if it has not started"
                    self._tell(MomentKind.RECALLED, f"is asked back, {how}")
            case RecordCommand(stage=self._stage, state=RecordState.FAILED):
                if _holds(command.ranks, self._rank):
                    self._become(RankState.FAILED)
                    self._tell(MomentKind.ENDED, "is FAILED")
            case FinishRun() if self._state not in ENDS:
                why = f": {command.reason}" if command.reason else ""
                text = f"the run has {command.state.value}, and this rank has not ended{why}"
                self._tell(MomentKind.ENDED, text)
            case _:
                pass

    def _dispatched(self, command: Dispatch) -> None:
        waited = self._now - self._since
        others = sum(map(len, command.ranks)) - 1
        self._held = command
        self._past[command.assignment] = command.gang
        self._attempt = max(self._attempt, command.attempt)
        text = f"is given to {self._where(command.gang)}: assignment {command.assignment}"
        text += f", attempt {command.attempt}, " + (f"with {others} others" if others else "alone")
        if waited > 0:
            text += f"; it had waited {waited:.1f} s"
        self._become(RankState.RUNNING)
        self._tell(MomentKind.DISPATCHED, text)
