"""Judges a simulated run from outside, after every event, by what the events and commands promise.

O(1) after every event, but for the ranks that the event is about:

- the contract (`Referee`): one authorised assignment per rank, gangs opened and closed in pairs,
  each success recorded once, nothing after the end;
- the fence: what the scheduler takes for outstanding is what really is;
- the order: nothing is dispatched that the dependencies have not released, and they are told of
  nothing that is not durable;
- the costs (`Costs`): a rank that was lost in company pays nothing and comes back in half the
  batch; one that pays travels alone, with its attempt number, its history and its memory; what is
  settled for or against a node has a witness;
- no stall: finished, or an answer is owed, or a timer is set; and ready ranks have a gang or a
  reason.

Liveness, once the world is fair: an event makes *progress* when a rank ends, when a fault uses
up budget (charged, or free of charge up to `max_free`), or when a batch is halved. Each of those
lowers (budget left + log2 of the batch limits, unfinished ranks), which has an end; so the run ends
if the time between two of them is bounded, and that is what is checked. `check_invariants` is
called every 100th time, and at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from thornback.scheduler.commands import (
    Command,
    Dispatch,
    FinishRun,
    OpenGang,
    Record,
    RecordState,
    RunState,
)
from thornback.scheduler.events import (
    CancelRequested,
    Event,
    JournalFailed,
    RankFailed,
    RanksReturned,
    RanksSucceeded,
)
from thornback.scheduler.machine import Scheduler
from thornback.scheduler.ports import Delta, Dependencies
from thornback.scheduler.simulate.costs import Asked, Costs
from thornback.scheduler.simulate.driver import Driver, patience_s
from thornback.scheduler.states import InvariantBroken
from thornback.scheduler.testing import Referee

F = TypeVar("F")
FULL_CHECK_EVERY = 100


def need(holds: bool, story: Callable[[], str]) -> None:
    """Raise `InvariantBroken` with the story where something does not hold."""
    if not holds:
        raise InvariantBroken(story())


class WatchedDependencies:
    """Dependencies (fulfils that port) that are watched: what they have released, and whether what
    they are told is true."""

    def __init__(
        self,
        dependencies: Dependencies,
        sizes: Sequence[int],
        is_done: Callable[[int, range], bool],
    ) -> None:
        self._dependencies = dependencies
        self._released = [bytearray(size) for size in sizes]
        self._is_done = is_done

    def start(self, /) -> Delta:
        """See `Dependencies`."""
        return self._note(self._dependencies.start())

    def finished(self, stage: int, ranks: Sequence[range], ok: bool, /) -> Delta:
        """See `Dependencies`. Raises `InvariantBroken` for a result that is not durable."""
        for piece in ranks:
            need(
                not ok or self._is_done(stage, piece),
                lambda: f"ranks {ranks} of stage {stage} count as done and are not durable",
            )
        return self._note(self._dependencies.finished(stage, ranks, ok))

    def is_released(self, stage: int, piece: range) -> bool:
        """Whether all of these ranks may run."""
        return self._released[stage].count(1, piece.start, piece.stop) == len(piece)

    def _note(self, delta: Delta) -> Delta:
        for stage, piece in delta.ready:
            self._released[stage][piece.start : piece.stop] = b"\x01" * len(piece)
        return delta


class Umpire(Generic[F]):
    """Watches one driver; raises `AssertionError` (which `InvariantBroken` is) at a breach."""

    def __init__(
        self,
        driver: Driver[F],
        scheduler: Scheduler[F],
        dependencies: WatchedDependencies,
        asked: list[Asked[F]],
    ) -> None:
        self.referee: Referee[F] = Referee()
        """The contract of events and commands, and what it has seen so far."""
        self._driver = driver
        self._scheduler = scheduler
        self._dependencies = dependencies
        self._costs: Costs[F] = Costs(driver.world.stages, self.referee, asked)
        self._told = 0
        self._ending = False
        self._assignment: int | None = None
        self._progressed_at: float | None = None
        self._progress = False

    def before(self, event: Event[F], /) -> None:
        """The scheduler is about to be told this."""
        self._told += 1
        match event:
            case RanksSucceeded() | RankFailed() | RanksReturned():
                self._assignment = event.assignment
            case CancelRequested() | JournalFailed():
                self._ending = True
        self._progress = isinstance(event, RanksSucceeded)
        if not self._ending:
            self._costs.before(event)
        self.referee.tell(event)

    def after(self, event: Event[F], commands: Sequence[Command], /) -> None:
        """The scheduler has answered."""
        if not self._ending:
            records = [command for command in commands if isinstance(command, Record)]
            self._progress |= self._costs.after(event, records)
        self.referee.heard(commands)
        for command in commands:
            match command:
                case OpenGang():
                    self._costs.opened(command)
                case Dispatch():
                    self._check_released(command)
                    if not self._ending:
                        self._costs.dispatched(command)
                case Record():
                    self._progress = True
                case FinishRun():
                    self._check_end(command)
        self._check_fence()
        self._check_no_stall(asks=bool(commands))
        self._check_liveness()
        if self._told % FULL_CHECK_EVERY == 0 or self._scheduler.finished:
            self._driver.stats.checks += 1
            self._scheduler.check_invariants()

    def _check_released(self, command: Dispatch) -> None:
        for piece in command.ranks:
            need(
                self._dependencies.is_released(command.stage, piece),
                lambda: f"{command}: what it depends on is not done",
            )

    def _check_fence(self) -> None:
        """Compare what is outstanding in the assignment that the event was about."""
        number, self._assignment = self._assignment, None
        if number is None:
            return
        believed = [rank for piece in self._scheduler.outstanding(number) for rank in piece]
        held = sorted(self.referee.outstanding[number][2])
        need(
            believed == held,
            lambda: f"assignment {number}: {held} are outstanding, the scheduler says {believed}",
        )

    def _check_no_stall(self, *, asks: bool) -> None:
        scheduler = self._scheduler
        if scheduler.finished:
            return
        need(
            scheduler.wake_at is not None or asks or self._driver.owes,
            lambda: "stall: nothing is owed, no timer is set, and the run has not finished",
        )
        for number in range(len(self._driver.world.stages)):
            counts = scheduler.counts(number)
            if counts.ready and not counts.gangs and not scheduler.waiting_reason(number):
                raise InvariantBroken(
                    f"stall: stage {number} has ready ranks, no gang, and no reason: {counts}"
                )

    def _check_liveness(self) -> None:
        """In a fair world, progress comes within a bound, as long as the run is not over."""
        driver = self._driver
        if not driver.fair:
            return
        now = driver.agenda.now
        if self._progress or self._progressed_at is None:
            self._progressed_at = now
        waited_s = now - self._progressed_at
        driver.stats.longest_wait_s = max(driver.stats.longest_wait_s, waited_s)
        bound_s = patience_s(driver.world)
        need(waited_s <= bound_s, lambda: f"no progress for {waited_s:.0f} s, bound {bound_s:.0f}")

    def _check_end(self, command: FinishRun) -> None:
        need(
            not self._driver.crews and not self._driver.pending and not self._driver.closing,
            lambda: f"{command} with gangs that are still there",
        )
        if self._ending:
            return
        durable = self._driver.world.durable
        total = sum(plan.world_size for plan in self._driver.world.stages)
        done, failed, skipped = (durable.count(state) for state in RecordState)
        need(
            done + failed + skipped == total,
            lambda: f"{command}: {done} done, {failed} failed, {skipped} skipped of {total} ranks",
        )
        need(
            command.state is not RunState.SUCCEEDED or not skipped,
            lambda: f"{command}: {skipped} ranks were skipped",
        )


class Story(Generic[F]):
    """Keeps the last events with the commands they led to: what is told with a breach."""

    def __init__(self, driver: Driver[F], most: int = 40) -> None:
        self._driver = driver
        self._most = most
        self._entries: list[tuple[float, Event[F], Sequence[Command]]] = []

    def before(self, event: Event[F], /) -> None:
        """Keep an event."""
        self._entries.append((self._driver.agenda.now, event, ()))
        del self._entries[: -self._most]

    def after(self, event: Event[F], commands: Sequence[Command], /) -> None:
        """Keep what it led to."""
        self._entries[-1] = self._entries[-1][0], event, commands

    def __str__(self) -> str:
        lines = [f"the last events of driver {self._driver.term}:"]
        for now, event, commands in self._entries:
            lines.append(f"{now:10.2f} {event}")
            lines += [f"{'':10} -> {command}" for command in commands]
        return "\n".join(lines)
