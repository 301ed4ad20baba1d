"""Fakes and a referee, for tests of whatever drives a `Scheduler` or stands in for its ports.

Nothing here imports a test framework. Faults are plain strings.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Generic, TypeVar

import attrs

from thornback.faults import Standing, StopReason
from thornback.scheduler.commands import (
    CloseGang,
    Command,
    Dispatch,
    FinishRun,
    OpenGang,
    Recall,
    Record,
    RecordState,
)
from thornback.scheduler.events import (
    Event,
    GangClosed,
    GangLost,
    GangReady,
    RankFailed,
    Ranks,
    RanksReturned,
    RanksSucceeded,
    Recorded,
    RunStarted,
    Ticked,
)
from thornback.scheduler.machine import Scheduler
from thornback.scheduler.params import SchedulerParams, StagePlan
from thornback.scheduler.ports import RetryPolicy

__all__ = [
    "FakeDelta",
    "FakeDependencies",
    "FakeVerdict",
    "GangSeen",
    "Play",
    "Referee",
    "ScriptedPolicy",
    "check_retry_policy",
    "closed",
    "dispatches",
    "opened",
]

F = TypeVar("F")


@attrs.frozen(kw_only=True, slots=True)
class FakeVerdict:
    """A verdict as a value (fulfils `Verdict`). The default: try again at once, charged."""

    retry: bool = True
    delay_s: float = 0.0
    charged: bool = True
    machine_fault: bool = False
    blames_rank: bool = False
    blames_node: bool = False
    memory_bytes: int | None = None
    timeout_factor: float = 1.0
    reason: str = "scripted"
    stop: StopReason | None = None
    signature: str = ""


class ScriptedPolicy:
    """Gives the verdict that stands beside the fault (fulfils `RetryPolicy[str]`); notes what it
    was asked.

    A rank with `budget` charged faults is given up, whatever the script says.
    """

    def __init__(self, verdicts: Mapping[str, FakeVerdict], budget: int | None = None) -> None:
        """Take the verdict on each fault, and how many charged ones a rank may have; None: any."""
        self._verdicts = dict(verdicts)
        self._budget = budget
        self.asked: list[tuple[str, tuple[tuple[str, str, Standing], ...], Standing, float]] = []
        """(fault, history, standing, draw) of every call."""

    def decide(
        self,
        fault: str,
        history: Sequence[tuple[str, str, Standing]],
        standing: Standing,
        draw: float,
        /,
    ) -> FakeVerdict:
        """Return the scripted verdict. Raises KeyError for a fault that the script does not
        have."""
        self.asked.append((fault, tuple(history), standing, draw))
        verdict = self._verdicts[fault]
        paid = sum(self._verdicts[past].charged for past, _, _ in history)
        if self._budget is not None and paid >= self._budget and verdict.charged:
            return attrs.evolve(verdict, retry=False, reason=f"{verdict.reason}: budget spent")
        return verdict


@attrs.frozen(kw_only=True, slots=True)
class FakeDelta:
    """What has changed (fulfils `Delta`)."""

    ready: tuple[tuple[int, range], ...] = ()
    skipped: tuple[tuple[int, range, tuple[int, int]], ...] = ()


class FakeDependencies:
    """Stages joined by barriers (fulfils `Dependencies`), with a set per stage: simple, and slow.

    A stage may run when all ranks of its parents are done; the first failure skips all below.
    """

    def __init__(self, world_sizes: Sequence[int], parents: Sequence[Sequence[int]] = ()) -> None:
        """Take the size of each stage and the positions of its parents; none by default."""
        self._sizes = list(world_sizes)
        self._parents = [list(p) for p in parents] or [[] for _ in world_sizes]
        self._open = [dict.fromkeys(range(size)) for size in world_sizes]
        self._released: dict[int, None] = {}
        self._skipped: dict[int, None] = {}

    def start(self) -> FakeDelta:
        """Release the stages without parents."""
        return self._release()

    def finished(self, stage: int, ranks: Sequence[range], ok: bool) -> FakeDelta:
        """Take note of an end. Raises `AssertionError` for ranks that were skipped."""
        assert stage not in self._skipped, f"told of skipped ranks {ranks} of stage {stage}"
        if not ok:
            first = next((rank for piece in ranks for rank in piece), None)
            return FakeDelta() if first is None else self._skip(stage, (stage, first))
        for rank in (rank for piece in ranks for rank in piece):
            self._open[stage].pop(rank, None)
        return self._release()

    def _release(self) -> FakeDelta:
        ready = []
        for stage, parents in enumerate(self._parents):
            if stage in self._released or stage in self._skipped:
                continue
            if not any(self._open[parent] for parent in parents):
                self._released[stage] = None
                ready.append((stage, range(self._sizes[stage])))
        return FakeDelta(ready=tuple(ready))

    def _skip(self, stage: int, root: tuple[int, int]) -> FakeDelta:
        self._open[stage].setdefault(root[1])  # a failed rank never ends well
        skipped: list[tuple[int, range, tuple[int, int]]] = []
        for child, parents in enumerate(self._parents):
            if stage in parents and child not in self._skipped and child not in self._released:
                self._skipped[child] = None
                skipped.append((child, range(self._sizes[child]), root))
                skipped += self._skip(child, root).skipped
        return FakeDelta(skipped=tuple(skipped))


@attrs.define(slots=True)
class GangSeen:
    """A gang, as a `Referee` sees it."""

    state: str = "opening"
    """opening, ready, closing or gone."""
    live: dict[int, None] = attrs.field(factory=dict)
    """Its assignments of which something is outstanding."""


class Referee(Generic[F]):
    """Watches a scheduler from outside, knowing only the contract of events and commands.

    Tell it every event *before* `handle`, and every answer after; it raises `AssertionError` at the
    first breach: a gang closed twice or never, work for a gang that is not ready, a rank dispatched
    while it is outstanding or recorded, a result that was dropped or recorded twice, a command
    after the last.
    """

    def __init__(self) -> None:
        self.gangs: dict[int, GangSeen] = {}
        """All that were asked for, by number."""
        self.outstanding: dict[int, tuple[int, int, dict[int, None]]] = {}
        """By assignment: gang, stage, ranks."""
        self.records: list[Record] = []
        """Asked for; who answers them takes them out (`Play.record` does), oldest first."""
        self.ended: dict[tuple[int, int], RecordState] = {}
        """How each (stage, rank) ended that was to be recorded."""
        self.done: dict[tuple[int, int], None] = {}
        """(stage, rank) that are durable."""
        self.finish: FinishRun | None = None
        """The last command."""
        self.opened = 0
        """`OpenGang`s."""
        self.closes = 0
        """`CloseGang`s."""
        self._busy: dict[tuple[int, int], int] = {}
        self._reported: dict[tuple[int, int], int] = {}

    def tell(self, event: Event[F]) -> None:
        """Note an event that the scheduler is about to be told."""
        self._reported.clear()
        match event:
            case GangReady():
                gang = self.gangs[event.gang]
                gang.state = "ready" if gang.state == "opening" else gang.state
            case GangLost():
                for assignment in list(self.gangs[event.gang].live):
                    self._settle(assignment, self._ranks(assignment))
            case GangClosed():
                self.gangs[event.gang].state = "gone"
            case RanksSucceeded():
                _, stage, _ = self.outstanding[event.assignment]
                for rank in self._settle(event.assignment, event.ranks):
                    self._reported[stage, rank] = event.assignment
            case RankFailed():
                self._settle(event.assignment, (range(event.rank, event.rank + 1),))
            case RanksReturned():
                self._settle(event.assignment, event.ranks)
            case Recorded():
                for rank in (rank for piece in event.ranks for rank in piece):
                    if self.ended.get((event.stage, rank)) is RecordState.DONE:
                        self.done[event.stage, rank] = None
            case _:
                pass

    def heard(self, commands: Iterable[Command]) -> None:
        """Judge the scheduler's answer to the event."""
        for command in commands:
            assert self.finish is None, f"{command} after {self.finish}"
            match command:
                case OpenGang():
                    assert command.gang not in self.gangs, f"{command}: twice"
                    self.gangs[command.gang] = GangSeen()
                    self.opened += 1
                case CloseGang():
                    gang = self.gangs[command.gang]
                    assert gang.state in ("opening", "ready"), f"{command}: it is {gang.state}"
                    assert command.kill or not gang.live, f"{command}: it holds {gang.live}"
                    gang.state = "closing"
                    self.closes += 1
                    for assignment in list(gang.live):
                        self._settle(assignment, self._ranks(assignment))
                case Dispatch():
                    self._dispatched(command)
                case Record():
                    self._record(command)
                case Recall():
                    assert command.assignment in self.outstanding, f"{command}: unknown"
                case FinishRun():
                    self._finished(command)

    def _ranks(self, assignment: int) -> Ranks:
        return tuple(range(rank, rank + 1) for rank in self.outstanding[assignment][2])

    def _settle(self, assignment: int, ranks: Ranks) -> list[int]:
        gang, stage, held = self.outstanding[assignment]
        settled = [rank for piece in ranks for rank in piece if rank in held]
        for rank in settled:
            del held[rank]
            del self._busy[stage, rank]
        if not held:
            self.gangs[gang].live.pop(assignment, None)
        return settled

    def _dispatched(self, command: Dispatch) -> None:
        gang = self.gangs[command.gang]
        assert gang.state == "ready", f"{command}: the gang is {gang.state}"
        assert command.assignment not in self.outstanding, f"{command}: twice"
        ranks = [rank for piece in command.ranks for rank in piece]
        assert ranks == sorted(dict.fromkeys(ranks)), f"{command}: not ascending and disjoint"
        assert all(piece and piece.step == 1 for piece in command.ranks), f"{command}: empty range"
        assert command.attempt == 1 or len(ranks) == 1, f"{command}: a retried rank in company"
        for rank in ranks:
            key = command.stage, rank
            assert key not in self._busy, f"{command}: {rank} is outstanding in {self._busy[key]}"
            assert key not in self.ended, f"{command}: {rank} is {self.ended[key]}"
            self._busy[key] = command.assignment
        gang.live[command.assignment] = None
        held = dict.fromkeys(ranks)
        self.outstanding[command.assignment] = (command.gang, command.stage, held)

    def _record(self, command: Record) -> None:
        self.records.append(command)
        for rank in (rank for piece in command.ranks for rank in piece):
            key = command.stage, rank
            assert key not in self.ended, f"{command}: {rank} is {self.ended[key]} already"
            assert key not in self._busy, f"{command}: {rank} is outstanding"
            self.ended[key] = command.state
            if command.state is RecordState.DONE:
                assert self._reported.get(key) == command.assignment, f"{command}: no such result"

    def _finished(self, command: FinishRun) -> None:
        left = {number: gang.state for number, gang in self.gangs.items() if gang.state != "gone"}
        assert not left, f"{command} with gangs {left}"
        assert self.opened == self.closes, f"{self.opened} opened, {self.closes} closed"
        assert not self._busy, f"{command} with ranks {list(self._busy)} outstanding"
        self.finish = command


class Play(Generic[F]):
    """A scheduler, a referee and a clock: events go in by short names, commands come out by kind.

    After every event the invariants are checked and the referee judges.
    """

    def __init__(self, scheduler: Scheduler[F], now: float = 0.0) -> None:
        """Take a scheduler that has been told nothing yet, and the time on its clock."""
        self.scheduler = scheduler
        """What is played."""
        self.now = now
        """Seconds; goes on with `send(..., after_s)` and `tick`."""
        self.referee: Referee[F] = Referee()
        """What it has seen so far."""

    def send(self, event: Event[F], after_s: float = 0.0) -> list[Command]:
        """Send an event some seconds after the last one; return the commands.

        Raises:
            AssertionError: the referee saw a breach, or (`InvariantBroken`) an invariant fails.
        """
        self.now += after_s
        self.referee.tell(event)
        commands = list(self.scheduler.handle(event, self.now))
        self.referee.heard(commands)
        self.scheduler.check_invariants()
        return commands

    def start(
        self,
        *,
        done: Mapping[int, Ranks] | None = None,
        failed: Mapping[int, Ranks] | None = None,
    ) -> list[Command]:
        """The run starts, with what an earlier run has recorded."""
        return self.send(RunStarted(done=done or {}, failed=failed or {}))

    def ready(self, gang: int, *nodes: str) -> list[Command]:
        """The gang is ready, on node `n` unless said otherwise."""
        return self.send(GangReady(gang=gang, nodes=nodes or ("n",)))

    def lost(self, gang: int, fault: F, node: str | None = None) -> list[Command]:
        """The gang is lost."""
        return self.send(GangLost(gang=gang, fault=fault, node=node))

    def succeed(self, assignment: int, *ranks: int, busy_s: float = 1.0) -> list[Command]:
        """Ranks succeed, after `busy_s` seconds in all: whatever is outstanding, unless some are
        named."""
        pieces = tuple(range(rank, rank + 1) for rank in ranks)
        pieces = pieces or self.scheduler.outstanding(assignment)
        return self.send(RanksSucceeded(assignment=assignment, ranks=pieces, busy_s=busy_s))

    def fail(self, assignment: int, rank: int, fault: F, node: str = "n") -> list[Command]:
        """A rank fails."""
        return self.send(RankFailed(assignment=assignment, rank=rank, fault=fault, node=node))

    def give_back(self, assignment: int, *ranks: range) -> list[Command]:
        """Ranks come back."""
        return self.send(RanksReturned(assignment=assignment, ranks=ranks))

    def record(self) -> list[Command]:
        """The journal answers all it was asked."""
        commands: list[Command] = []
        while self.referee.records:
            record = self.referee.records.pop(0)
            commands += self.send(Recorded(stage=record.stage, ranks=record.ranks))
        return commands

    def close(self) -> list[Command]:
        """Every gang that is closing is closed."""
        closing = [n for n, gang in self.referee.gangs.items() if gang.state == "closing"]
        return [command for gang in closing for command in self.send(GangClosed(gang=gang))]

    def tick(self, after_s: float | None = None) -> list[Command]:
        """Time passes: so many seconds, or until `wake_at`. Raises AssertionError where there is no
        timer."""
        if after_s is None:
            assert self.scheduler.wake_at is not None, "no timer is set"
            after_s = max(0.0, self.scheduler.wake_at - self.now)
        return self.send(Ticked(), after_s)


def dispatches(commands: Iterable[Command]) -> list[tuple[int, int, Ranks]]:
    """Return (gang, assignment, ranks) of each `Dispatch`."""
    return [(c.gang, c.assignment, c.ranks) for c in commands if isinstance(c, Dispatch)]


def opened(commands: Iterable[Command]) -> list[int]:
    """Return the gangs that are asked for."""
    return [command.gang for command in commands if isinstance(command, OpenGang)]


def closed(commands: Iterable[Command]) -> list[int]:
    """Return the gangs that are closed."""
    return [command.gang for command in commands if isinstance(command, CloseGang)]


def check_retry_policy(policy: RetryPolicy[F], faults: Sequence[F]) -> None:
    """Check that a policy is pure and total over these faults, as the scheduler relies on it.

    Raises:
        AssertionError: it gives two verdicts on equal questions, or one that makes no sense.
    """
    for fault in faults:
        for length in range(4):
            cases = [(standing, draw) for standing in Standing for draw in (0.0, 0.5, 0.999)]
            for standing, draw in cases:
                history = tuple((fault, f"node-{n}", standing) for n in range(length))
                verdict, again = (policy.decide(fault, history, standing, draw) for _ in range(2))
                for name in attrs.fields_dict(FakeVerdict):
                    assert getattr(verdict, name) == getattr(again, name), f"{fault}: {name} varies"
                assert 0 <= verdict.delay_s < math.inf, f"{fault}: delay {verdict.delay_s}"
                factor = verdict.timeout_factor
                assert 0 < factor < math.inf, f"{fault}: factor {factor}"
                assert verdict.memory_bytes is None or verdict.memory_bytes > 0, f"{fault}: memory"
                assert verdict.reason, f"{fault}: no reason"


GIB = 2**30
VERDICTS: Mapping[str, FakeVerdict] = {
    "code": FakeVerdict(retry=False, reason="its code failed"),
    "again": FakeVerdict(timeout_factor=2.0),
    "later": FakeVerdict(delay_s=5.0),
    "crash": FakeVerdict(blames_rank=True, machine_fault=True, reason="its worker died"),
    "died": FakeVerdict(blames_node=True, machine_fault=True, reason="its process died"),
    "gone": FakeVerdict(blames_node=True, reason="its node is gone"),
    "preempted": FakeVerdict(charged=False),
    "oom": FakeVerdict(memory_bytes=3 * GIB),
    "impossible": FakeVerdict(retry=False, reason="no node is that large"),
    "waited": FakeVerdict(delay_s=1.0),
}


def plan(world_size: int, **more: object) -> StagePlan[str]:
    """Return a stage whose policy follows `VERDICTS`, unless another is given."""
    policy = more.pop("policy", None) or ScriptedPolicy(VERDICTS)
    # The caller names fields of StagePlan, which are of many types.
    return StagePlan(world_size=world_size, policy=policy, **more)  # type: ignore[arg-type]


def play(
    *stages: StagePlan[str],
    parents: Sequence[Sequence[int]] = (),
    params: SchedulerParams | None = None,
) -> Play[str]:
    """Return a play of these stages; `parents` by position, none by default."""
    sizes = [stage.world_size for stage in stages]
    return Play(Scheduler(stages, FakeDependencies(sizes, parents), params, seed=3))
