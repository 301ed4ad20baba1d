"""A simulated worker: its slots run assignments, rank by rank, and it reports.

It reports when an assignment has ended, at once when a rank has failed, and when an assignment is
older than the reclaim time; then it hands back what it has not started. A report carries all that
was not acknowledged yet, so one that is lost or late costs time and nothing else.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol

import attrs

from thornback.scheduler.events import Ranks
from thornback.scheduler.ranges import normalised
from thornback.scheduler.simulate.agenda import Agenda
from thornback.scheduler.simulate.gangside import News
from thornback.scheduler.simulate.nodes import Node
from thornback.scheduler.simulate.values import Mishap, MishapKind

RECALL_TRAVELS_S = 0.01
GPU_FAULTS = 2
"""In a row: then a slot is parked."""


@attrs.define(slots=True, eq=False)
class Work:
    """An assignment, as one worker has it."""

    number: int
    stage: int
    todo: deque[int]
    given_at: float
    timeout_factor: float
    done: list[tuple[int, float]] = attrs.field(factory=list)
    failed: list[tuple[int, Mishap, float]] = attrs.field(factory=list)
    back: list[int] = attrs.field(factory=list)
    """What was not acknowledged yet, like the two above."""
    over: bool = False
    """Nothing more will come of it."""
    reports: int = 0


@attrs.frozen(slots=True)
class Fate:
    """What becomes of one try of a rank on one member."""

    takes_s: float | None
    """Seconds until it ends, well or not; None: it waits for others, without end."""
    kind: MishapKind | None = None
    """How it ends; None: well."""


@attrs.define(slots=True, eq=False)
class Running:
    """A rank that runs."""

    work: Work
    rank: int
    since: float


@attrs.define(slots=True, eq=False)
class Slot:
    """A place for one rank at a time."""

    number: int
    queue: deque[Work] = attrs.field(factory=deque)
    running: Running | None = None
    gpu_faults: int = 0
    """In a row."""
    parked: bool = False
    """Its GPU is broken: it gets nothing more to do."""


class Surroundings(Protocol):
    """What a worker needs of its gang and its world."""

    agenda: Agenda
    reclaim_s: float

    def fate(self, worker: Worker, slot: int, work: Work, rank: int, /) -> Fate: ...
    def mishap(self, worker: Worker, kind: MishapKind, rank: int, work: Work, /) -> Mishap: ...
    def send(self, worker: Worker, work: Work, news: News, /) -> None: ...
    def ran(self, worker: Worker, work: Work, rank: int, ran_s: float, well: bool, /) -> None: ...
    def worker_fails(self, worker: Worker, kind: MishapKind, /) -> None: ...
    def disturb(self, worker: Worker, work: Work, kind: MishapKind, /) -> None: ...


class Worker:
    """One member of a gang. Dead or silent, nothing that it is told has an effect."""

    def __init__(self, member: int, node: Node, slots: int, around: Surroundings) -> None:
        self.member = member
        self.node = node
        self.alive = True
        self.silent = False
        """It does not answer any more, and nobody knows yet."""
        self.works: dict[int, Work] = {}
        self._slots = [Slot(number) for number in range(slots)]
        self._around = around
        self._agenda = around.agenda

    @property
    def dead(self) -> bool:
        """It does nothing any more."""
        return not self.alive or self.silent

    def run(self, number: int, stage: int, ranks: Ranks, timeout_factor: float) -> None:
        """Take an assignment into the slot with least to do."""
        if self.dead:
            return
        todo = deque(rank for piece in ranks for rank in piece)
        work = self.works[number] = Work(number, stage, todo, self._agenda.now, timeout_factor)
        slots = [slot for slot in self._slots if not slot.parked]
        slot = min(slots, key=lambda slot: len(slot.queue))
        slot.queue.append(work)
        if slot.running is None:
            self._next(slot)
        if work.todo:
            self._agenda.at(self._around.reclaim_s, lambda: self._hand_back(work, kill=False))

    def recall(self, number: int, *, kill: bool) -> None:
        """Hand back what is not started; with `kill` also what runs. Unknown: nothing."""
        work = self.works.get(number)
        if work is not None:
            self._agenda.at(RECALL_TRAVELS_S, lambda: self._hand_back(work, kill=kill))

    def end(self) -> None:
        """Die: what runs is lost. Repeated: nothing."""
        if not self.alive:
            return
        self.alive = False
        for slot in self._slots:
            self._break_off(slot)
        self.works.clear()

    def acknowledge(self, work: Work, news: News) -> None:
        """The other side has this: it need not be sent again."""
        if news.final:
            self.works.pop(work.number, None)
            return
        # By value: an older report may arrive after a newer one.
        done, failed = dict.fromkeys(news.done), dict.fromkeys(each[0] for each in news.failed)
        work.done = [each for each in work.done if each not in done]
        work.failed = [each for each in work.failed if each[0] not in failed]
        back = dict.fromkeys(rank for piece in news.returned for rank in piece)
        work.back = [rank for rank in work.back if rank not in back]

    def resend(self, work: Work, reports: int) -> None:
        """Send again what was not acknowledged, unless a later report has been sent."""
        if not self.dead and self.works.get(work.number) is work and work.reports == reports:
            self._send(work)

    def shake(self, work: Work, collateral_after_s: float | None) -> None:
        """A sibling is gone: what runs fails of it after so long, or waits without end (None)."""
        for slot in self._slots:
            running = slot.running
            if running is None or running.work is not work:
                continue
            again = slot.running = Running(work, running.rank, running.since)
            if collateral_after_s is not None:
                fate = Fate(takes_s=0.0, kind=MishapKind.COLLATERAL)
                self._agenda.at(collateral_after_s, self._end_of(slot, again, fate))

    def _next(self, slot: Slot) -> None:
        while slot.queue and not slot.queue[0].todo:
            slot.queue.popleft()
        if self.dead or not slot.queue:
            return
        work = slot.queue[0]
        rank = work.todo.popleft()
        slot.running = running = Running(work, rank, self._agenda.now)
        fate = self._around.fate(self, slot.number, work, rank)
        if fate.takes_s is not None:
            self._agenda.at(fate.takes_s, self._end_of(slot, running, fate))

    def _end_of(self, slot: Slot, running: Running, fate: Fate) -> Callable[[], None]:
        def end() -> None:
            if slot.running is running and not self.dead:
                self._rank_ends(slot, running, fate.kind)

        return end

    def _rank_ends(self, slot: Slot, running: Running, kind: MishapKind | None) -> None:
        work, rank = running.work, running.rank
        if kind in (MishapKind.WORKER, MishapKind.SILENT):
            self._around.worker_fails(self, kind)
            return
        ran_s = self._break_off(slot, well=kind is None)
        if kind is None:
            work.done.append((rank, ran_s))
        else:
            work.failed.append((rank, self._around.mishap(self, kind, rank, work), ran_s))
            self._around.disturb(self, work, kind)
        slot.gpu_faults = slot.gpu_faults + 1 if kind is MishapKind.GPU else 0
        if slot.gpu_faults == GPU_FAULTS:
            self._park(slot)
        work.over = not work.todo
        late = self._agenda.now - work.given_at >= self._around.reclaim_s
        if work.over or late or kind is not None:
            self._send(work)
        self._next(slot)

    def _park(self, slot: Slot) -> None:
        """Give a slot nothing more to do, unless it is the last one."""
        if sum(not each.parked for each in self._slots) == 1:
            return
        slot.parked = True
        works, slot.queue = slot.queue, deque()
        for work in works:
            self._hand_back(work, kill=False)

    def _break_off(self, slot: Slot, *, well: bool = False) -> float:
        """What runs ends; return for how long it has run."""
        running, slot.running = slot.running, None
        if running is None:
            return 0.0
        ran_s = self._agenda.now - running.since
        self._around.ran(self, running.work, running.rank, ran_s, well)
        return ran_s

    def _hand_back(self, work: Work, *, kill: bool) -> None:
        if self.dead or work.over:
            return
        work.back += work.todo
        work.todo.clear()
        running = False
        for slot in self._slots:
            if slot.running is None or slot.running.work is not work:
                continue
            if kill:
                work.back.append(slot.running.rank)
                self._break_off(slot)
            else:
                running = True
        work.over = not running
        if work.over or work.back or work.done:
            self._send(work)
        for slot in self._slots:
            if slot.running is None:
                self._next(slot)

    def _send(self, work: Work) -> None:
        work.reports += 1
        work.back.sort()
        news = News(
            done=tuple(work.done),
            failed=tuple(work.failed),
            returned=tuple(normalised(range(rank, rank + 1) for rank in work.back)),
            final=work.over,
        )
        self._around.send(self, work, news)
