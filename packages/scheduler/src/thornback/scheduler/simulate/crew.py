"""A simulated gang: its workers, the pool's books of it, and the messages between them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Protocol, assert_never

from thornback.scheduler.commands import Dispatch, OpenGang
from thornback.scheduler.simulate.agenda import Agenda, Chances
from thornback.scheduler.simulate.fates import Fates
from thornback.scheduler.simulate.gangside import (
    Deliver,
    GangGone,
    GangSide,
    Grace,
    Instruction,
    KillRank,
    News,
)
from thornback.scheduler.simulate.nodes import Node
from thornback.scheduler.simulate.values import (
    BadKind,
    Mishap,
    MishapKind,
    RunStats,
    SimulatedCluster,
    SimulatedFaults,
)
from thornback.scheduler.simulate.worker import RECALL_TRAVELS_S, Fate, Work, Worker
from thornback.scheduler.states import InvariantBroken

LATENCY_S = 0.002
"""Of a message."""
DEATH_SEEN_S = 0.05
"""Until the pool knows that a process has died."""
FAILS_AS = {
    BadKind.EXIT: MishapKind.PROCESS,
    BadKind.EIO: MishapKind.EIO,
    BadKind.ENOSPC: MishapKind.ENOSPC,
    BadKind.LOAD: MishapKind.LOAD,
    BadKind.GPU: MishapKind.GPU,
}
"""How ranks fail on a bad node."""
_AS_GRAVE = (
    MishapKind.CODE,
    MishapKind.TIMEOUT,
    MishapKind.COLLATERAL,
    MishapKind.EIO,
    MishapKind.ENOSPC,
    MishapKind.LOAD,
    MishapKind.GPU,
)
"""Of these the one that is heard of first is the cause, which a late report can be."""
PREEMPTION_SEEN_S = 0.5
"""Until it knows that a node with a notice is gone."""


class Driving(Protocol):
    """What a gang needs of its driver and the world."""

    agenda: Agenda
    chances: Chances
    cluster: SimulatedCluster
    faults: SimulatedFaults
    fates: Fates
    stats: RunStats
    term: int
    dead: bool

    @property
    def fair(self) -> bool: ...
    @property
    def only_node(self) -> bool: ...
    def deliver(self, crew: Crew, assignment: int, news: News, /) -> None: ...
    def gone(self, crew: Crew, mishap: Mishap, /) -> None: ...
    def well(self, crew: Crew, assignment: int, rank: int, ran_s: float, /) -> None: ...


class Crew:
    """One gang that has found room (fulfils the surroundings of its workers)."""

    def __init__(
        self, command: OpenGang, nodes: Sequence[Node], places: int, slots: int, driver: Driving
    ) -> None:
        self.command = command
        self.nodes = tuple(nodes)
        self.places = places
        """That it holds on each node."""
        self.slots = slots
        self.agenda = driver.agenda
        self.reclaim_s = driver.cluster.reclaim_s
        self.ready = False
        """The scheduler was told that it is ready."""
        self.closing = False
        self.over = False
        """Lost or closed: the pool has forgotten it."""
        self.left: dict[int, int] = {}
        """By assignment: the ranks that are not answered."""
        self.workers = [Worker(m, node, slots, self) for m, node in enumerate(self.nodes)]
        memory = command.shape.memory_bytes
        self.rank_bytes = driver.cluster.place_bytes // slots if memory is None else memory
        self._side: GangSide | None = None
        self._driver = driver
        self._led: dict[int, bool] = {}
        self._causes: dict[int, MishapKind] = {}
        """By assignment of several nodes: what really went wrong first."""

    # -- what the driver asks ----------------------------------------------------------------------

    def start(self, side: GangSide) -> None:
        """All its workers have answered."""
        self._side = side
        for worker in self.workers:
            side.answered(worker.member)
        if self._driver.faults.worker_silences > 0.0:
            self._beat()

    def run(self, command: Dispatch) -> None:
        """Hand out an assignment, on every member."""
        number = command.assignment
        led = command.stage in self._driver.cluster.led_stages
        self.left[number] = sum(map(len, command.ranks))
        self._led[number] = led and len(self.workers) > 1
        if self._side is None or self.over:
            return
        if self._side.assigned(number, command.ranks, led):
            for worker in self.workers:
                worker.run(number, command.stage, command.ranks, command.timeout_factor)

    def is_led(self, assignment: int) -> bool:
        """Whether node 0 of several decides about an assignment."""
        return self._led.get(assignment, False)

    def recall(self, assignment: int, *, kill: bool) -> None:
        """Recall an assignment from every member."""
        for worker in self.workers:
            self._recall(worker, assignment, kill)

    def node_died(self, node: Node, kind: MishapKind) -> None:
        """A machine is gone. The pool notices later."""
        for worker in self.workers:
            if worker.node is not node or not worker.alive:
                continue
            self._disturb_all(worker, kind)
            worker.end()
            seen_s = PREEMPTION_SEEN_S
            if kind is MishapKind.NODE:
                key = self._driver.term, self.command.gang, worker.member
                seen_s = self._driver.chances.exponential(
                    self._driver.faults.detect_s, "seen", *key
                )
            self._declare(worker, kind, seen_s)

    def end(self) -> None:
        """Forget it, and end what still lives. Repeated: nothing."""
        self.over = True
        self.left.clear()
        for worker in self.workers:
            worker.end()

    # -- what the workers ask ----------------------------------------------------------------------

    def fate(self, worker: Worker, slot: int, work: Work, rank: int, /) -> Fate:
        """Decide how a rank ends."""
        driver, members = self._driver, len(self.workers)
        if members == 1:
            key: tuple[int, ...] = (driver.fates.next_try(work.stage, rank),)
        else:
            key = (driver.term, work.number)
        if worker.member == 0:
            driver.stats.attempts += 1
        fate = driver.fates.of(
            work.stage,
            rank,
            key,
            member=worker.member,
            members=members,
            memory_bytes=self.rank_bytes,
            slowness=worker.node.slowness,
            timeout_factor=work.timeout_factor,
            fair=driver.fair,
        )
        bad = worker.node.badness(self.agenda.now)
        if bad in FAILS_AS and (bad is not BadKind.GPU or slot == 0):
            return _spoilt(worker.node, fate, FAILS_AS[bad])
        serves = self.is_led(work.number) and worker.member > 0
        return Fate(None) if serves and fate.kind is None else fate

    def mishap(self, worker: Worker, kind: MishapKind, rank: int, work: Work, /) -> Mishap:
        """Describe how a rank failed."""
        driver = self._driver
        used = largest = None
        if kind is MishapKind.OOM:
            used = self.rank_bytes
            largest = driver.cluster.gangs_per_node * driver.cluster.place_bytes
        return Mishap(
            kind=kind,
            node=worker.node.name,
            only_node=driver.only_node,
            memory_bytes=used,
            largest_bytes=largest,
        )

    def ran(self, worker: Worker, work: Work, rank: int, ran_s: float, well: bool, /) -> None:
        """Note what a rank cost."""
        self._driver.stats.busy_s += ran_s
        if well:
            self._driver.well(self, work.number, rank, ran_s)

    def send(self, worker: Worker, work: Work, news: News, /) -> None:
        """Carry a report to the driver: perhaps late, perhaps not at all."""
        driver, faults = self._driver, self._driver.faults
        key = driver.term, self.command.gang, worker.member, work.number, work.reports
        delay_s, reports = LATENCY_S, work.reports
        if not driver.fair:
            if driver.chances.happens(faults.reports_lost, "lost", *key):
                self.agenda.at(faults.resend_s, lambda: worker.resend(work, reports))
                return
            if driver.chances.happens(faults.reports_late, "late", *key):
                delay_s += driver.chances.exponential(faults.late_s, "how late", *key)
        self.agenda.at(delay_s, lambda: self._arrive(worker, work, news))

    def worker_fails(self, worker: Worker, kind: MishapKind, /) -> None:
        """A rank takes its worker down, or makes it go silent."""
        self._disturb_all(worker, kind)
        if kind is MishapKind.SILENT:
            worker.silent = True
        else:
            worker.end()
            self._declare(worker, kind, DEATH_SEEN_S)

    def disturb(self, worker: Worker, work: Work, kind: MishapKind, /) -> None:
        """A part of a rank is gone: the others fail of it, or wait for it without end."""
        chances = self._driver.chances
        if len(self.workers) > 1:
            self._causes.setdefault(work.number, kind)
        for sibling in self.workers:
            if sibling is worker:
                continue
            key = self._driver.term, work.number, sibling.member
            after_s = None
            if chances.draw("fails of it", *key) < 0.5:
                after_s = chances.draw("after", *key)
            known = sibling.works.get(work.number)
            if known is not None:
                sibling.shake(known, after_s)

    # -- inside ------------------------------------------------------------------------------------

    def _disturb_all(self, worker: Worker, kind: MishapKind) -> None:
        """What the others still run may need it, also where its own part has ended well."""
        works = {work.number: work for each in self.workers for work in each.works.values()}
        for number in sorted(works):
            self.disturb(worker, works[number], kind)

    def _declare(self, worker: Worker, kind: MishapKind, after_s: float) -> None:
        mishap = Mishap(kind=kind, node=worker.node.name, only_node=self._driver.only_node)

        def tell() -> None:
            if self._side is not None and not self.over and not self._driver.dead:
                self._apply(self._side.died(worker.member, mishap))

        self.agenda.at(after_s, tell)

    def _arrive(self, worker: Worker, work: Work, news: News) -> None:
        if self._driver.dead:
            return
        worker.acknowledge(work, news)
        if self._side is not None and not self.over:
            self._apply(self._side.reported(worker.member, work.number, news))

    def _apply(self, instructions: Sequence[Instruction]) -> None:
        for instruction in instructions:
            match instruction:
                case Deliver():
                    self._check_cause(instruction)
                    self._driver.deliver(self, instruction.assignment, instruction.news)
                case KillRank():
                    worker = self.workers[instruction.member]
                    self._recall(worker, instruction.assignment, kill=True)
                    if instruction.vouch:
                        self._question(worker, instruction.assignment)
                case Grace():
                    end_grace = partial(self._end_grace, instruction.assignment)
                    self.agenda.at(self._driver.cluster.grace_s, end_grace)
                case GangGone():
                    self._driver.gone(self, instruction.mishap)
                case _:
                    assert_never(instruction)

    def _check_cause(self, given: Deliver) -> None:
        """See that nobody is blamed for what he only suffered."""
        cause = self._causes.get(given.assignment)
        for rank, mishap, _ in given.news.failed:
            if mishap.kind is MishapKind.COLLATERAL and cause not in (None, *_AS_GRAVE):
                raise InvariantBroken(
                    f"gang {self.command.gang}, rank {rank}: {mishap} is blamed for {cause}"
                )

    def _end_grace(self, assignment: int) -> None:
        if self._side is not None and not self.over:
            self._apply(self._side.grace_over(assignment))

    def _recall(self, worker: Worker, assignment: int, kill: bool) -> None:
        worker.recall(assignment, kill=kill)
        if kill:
            recall_s = self._driver.faults.recall_s
            self.agenda.at(recall_s, lambda: self._insist(worker, assignment))

    def _question(self, worker: Worker, assignment: int) -> None:
        """Who lives when a recall arrives answers it; that cannot be lost, unlike a report."""

        def answer() -> None:
            if self._side is not None and not self.over and not self._driver.dead:
                self._apply(self._side.vouched(worker.member, assignment))

        def arrive() -> None:
            if not worker.dead:
                self.agenda.at(LATENCY_S, answer)

        self.agenda.at(RECALL_TRAVELS_S, arrive)

    def _insist(self, worker: Worker, assignment: int) -> None:
        """A recall with a kill was ignored, or its answer was lost: the worker is killed."""
        if self._side is None or self.over or not self._side.owes(worker.member, assignment):
            return
        worker.end()
        self._declare(worker, MishapKind.SILENT, 0.0)

    def _beat(self) -> None:
        if self.over or self._driver.dead or self._side is None:
            return
        for worker in self.workers:
            if not worker.dead:
                self._side.answered(worker.member)
        for member in self._side.ticked(self.agenda.now):
            worker = self.workers[member]
            worker.end()
            self._declare(worker, MishapKind.SILENT, 0.0)
        self.agenda.at(self._driver.faults.beat_s, self._beat)


def _spoilt(node: Node, fate: Fate, kind: MishapKind) -> Fate:
    """Return the fate of a rank on a bad node: it fails as soon as the node fails it."""
    after_s = fate.takes_s if node.bad is None else node.bad.after_s
    return Fate(after_s if fate.takes_s is None else min(fate.takes_s, after_s or 0.0), kind)
