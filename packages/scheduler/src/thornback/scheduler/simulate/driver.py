"""A simulated driver: carries out every command of one scheduler, and tells it every event.

One driver is one term: when it dies, its gangs die with it, and what it had planned comes to
nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Generic, Protocol, TypeVar, assert_never

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
    GangPlaced,
    GangReady,
    JournalFailed,
    NodeDraining,
    RankFailed,
    RanksReturned,
    RanksSucceeded,
    Recorded,
    RunStarted,
    Ticked,
)
from thornback.scheduler.machine import Scheduler
from thornback.scheduler.params import StagePlan
from thornback.scheduler.ranges import normalised
from thornback.scheduler.simulate.agenda import Agenda, Chances
from thornback.scheduler.simulate.crew import Crew
from thornback.scheduler.simulate.fates import Fates
from thornback.scheduler.simulate.gangside import GangSide, News
from thornback.scheduler.simulate.journal import Durable, Journal
from thornback.scheduler.simulate.load import LoadMeter
from thornback.scheduler.simulate.nodes import Node, Nodes
from thornback.scheduler.simulate.values import (
    BadKind,
    Mishap,
    MishapKind,
    RunStats,
    SimulatedCluster,
    SimulatedFaults,
)
from thornback.scheduler.states import InvariantBroken

F = TypeVar("F")
READY_TRAVELS_S = 0.05
REFUSED_AFTER_S = 1.0
"""Until a backend has said that no node is large enough."""


class World(Generic[F]):
    """What outlives a driver."""

    def __init__(
        self,
        stages: Sequence[StagePlan[F]],
        cluster: SimulatedCluster,
        faults: SimulatedFaults,
        seed: int,
        fault: Callable[[Mishap], F],
        gang_side: Callable[[Sequence[str], float], GangSide],
    ) -> None:
        sizes = [plan.world_size for plan in stages]
        self.stages = list(stages)
        self.cluster = cluster
        self.faults = faults
        self.fault = fault
        self.gang_side = gang_side
        self.agenda = Agenda()
        self.chances = Chances(seed)
        self.stats = RunStats()
        self.load = LoadMeter()
        self.fates = Fates(cluster, faults, self.chances, sizes)
        self.nodes = Nodes(cluster, faults, self.agenda, self.chances, self.stats)
        self.durable = Durable(sizes)
        self.useful_s = 0.0


def patience_s(world: World[F]) -> float:
    """Return the longest that a run can go without an answer, and a fair world without progress:
    each step once at its longest, and the longest rank."""
    faults, cluster = world.faults, world.cluster
    steps_s = faults.place_s + faults.start_timeout_s + faults.silence_s + faults.notice_s
    steps_s += 2 * faults.recall_s + faults.journal_timeout_s + cluster.back_s + faults.restart_s
    waits_s = 60.0 + 60.0 + 30.0  # the yield rule, the longest backoff, asking again
    scaling_s = cluster.scale_after_s + cluster.node_start_s
    return 2 * (steps_s + waits_s + world.fates.longest_s) + scaling_s


class Watching(Protocol[F]):
    """Whoever looks over a driver's shoulder."""

    def before(self, event: Event[F], /) -> None: ...
    def after(self, event: Event[F], commands: Sequence[Command], /) -> None: ...


class Driver(Generic[F]):
    """One term."""

    def __init__(self, world: World[F], scheduler: Scheduler[F], term: int) -> None:
        self.world = world
        self.agenda, self.chances, self.stats = world.agenda, world.chances, world.stats
        self.cluster, self.faults, self.fates = world.cluster, world.faults, world.fates
        self.scheduler = scheduler
        self.term = term
        self.dead = False
        self.told_at = world.agenda.now
        """When the scheduler was last told anything."""
        self.watching: list[Watching[F]] = []
        self.crews: dict[int, Crew] = {}
        self.pending: dict[int, tuple[OpenGang, float]] = {}
        """Gangs that wait for room, and since when."""
        self.closing: dict[int, None] = {}
        self.journal = Journal(
            world.durable,
            world.cluster,
            world.faults,
            world.agenda,
            world.chances,
            world.stats,
            self._recorded,
            self._journal_failed,
        )
        self._dispatched: dict[int, Crew] = {}
        """By assignment, while it owes anything."""
        self._well: dict[tuple[int, int], tuple[int, float]] = {}
        """By (assignment, rank): on how many members it still has to succeed, and what it took on
        the others."""
        self._seen: dict[str, None] = {}
        self._inbox: deque[Event[F]] = deque()
        self._paused_until = 0.0
        self._repeats = 0
        self._plans = {plan.shape: plan for plan in world.stages}

    # -- events ------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Start, with what is durable."""
        durable, failed = self.world.durable, {}
        self.stats.drivers += 1
        if not self.faults.retry_failed:
            failed = durable.ranks(RecordState.FAILED)
        self.tell(RunStarted(done=durable.ranks(RecordState.DONE), failed=failed))

    @property
    def paused(self) -> bool:
        """It stands still."""
        return self.agenda.now < self._paused_until

    @property
    def fair(self) -> bool:
        """See `SimulatedFaults.fair_after_s`."""
        return self.world.nodes.fair

    @property
    def only_node(self) -> bool:
        """No gang of this driver was on another node."""
        return len(self._seen) < 2

    @property
    def owes(self) -> bool:
        """The world owes an answer to the scheduler."""
        if self.pending or self.closing or self.journal.owes or self._inbox:
            return True
        return any(not c.over and (c.left or not c.ready) for c in self.crews.values())

    def tell(self, event: Event[F]) -> None:
        """Let the scheduler know, now or when the driver goes on."""
        if self.dead:
            return
        if self.paused:
            self._inbox.append(event)
            return
        self._handle(event)

    def tick(self) -> None:
        """It is time for what the scheduler has planned."""
        self._handle(Ticked())

    def pause(self, lasts_s: float) -> None:
        """Stand still for a while; then drain the inbox, and only then look at the clock."""
        self._paused_until = max(self._paused_until, self.agenda.now + lasts_s)
        self.agenda.at(lasts_s, self._go_on)

    def _go_on(self) -> None:
        if self.paused:
            return
        while self._inbox and not self.dead:
            self._handle(self._inbox.popleft())

    def _answer(self, event: Event[F]) -> None:
        """Tell the answer to a command; perhaps once more, later."""
        self._repeats += 1
        key = self.term, self._repeats
        if not self.fair and self.chances.happens(self.faults.answers_repeated, "again", *key):
            delay_s = self.chances.exponential(self.faults.late_s, "when again", *key)
            self.agenda.at(delay_s, lambda: self.tell(event))
        self.tell(event)

    def _handle(self, event: Event[F]) -> None:
        if self.scheduler.finished:
            return
        self.stats.events += 1
        self.told_at = now = self.agenda.now
        self.world.load.event(now)
        for watching in self.watching:
            watching.before(event)
        commands = self.scheduler.handle(event, now)
        for watching in self.watching:
            watching.after(event, commands)
        for command in commands:
            self._carry_out(command)

    # -- commands ----------------------------------------------------------------------------------

    def _carry_out(self, command: Command) -> None:
        match command:
            case OpenGang():
                self._open(command)
            case CloseGang():
                self._close(command.gang)
            case Dispatch():
                crew = self.crews[command.gang]
                self._dispatched[command.assignment] = crew
                self.world.load.dispatched(self.agenda.now, len(crew.workers), command.ranks)
                crew.run(command)
            case Recall():
                self._recall(command)
            case Record():
                if command.state is RecordState.DONE:
                    self._vouch(command)
                self.world.load.recorded(self.agenda.now, command.ranks)
                self.journal.record(command)
            case FinishRun():
                self.stats.finish = command
            case _:
                assert_never(command)

    def _recall(self, command: Recall) -> None:
        crew = self._dispatched.get(command.assignment)
        if crew is not None:
            self.world.load.recalled(self.agenda.now, len(crew.workers))
            crew.recall(command.assignment, kill=command.kill)

    def _open(self, command: OpenGang) -> None:
        self.stats.gangs_opened += 1
        number = command.gang
        self.pending[number] = command, self.agenda.now
        memory = command.shape.memory_bytes
        if memory is not None and self._places(memory) > self.cluster.gangs_per_node:
            self.agenda.at(REFUSED_AFTER_S, lambda: self._refuse(number, MishapKind.IMPOSSIBLE))
            return
        self.agenda.at(self.faults.place_s, lambda: self._refuse(number, MishapKind.PLACE))
        self.agenda.at(0.0, self.place)
        if command.avoid:
            self.agenda.at(self.cluster.avoid_s, self.place)

    def _places(self, memory_bytes: int) -> int:
        return -(-memory_bytes // self.cluster.place_bytes)

    def _refuse(self, number: int, kind: MishapKind) -> None:
        if self.pending.pop(number, None) is None:
            return
        largest = self.cluster.gangs_per_node * self.cluster.place_bytes
        mishap = Mishap(kind=kind, largest_bytes=largest)
        self._answer(GangLost(gang=number, fault=self.world.fault(mishap)))

    def place(self) -> None:
        """Place what fits, oldest first."""
        if self.dead:
            return
        full: dict[tuple[int, int, tuple[str, ...]], None] = {}
        for number, (command, since) in list(self.pending.items()):
            plan, memory = self._plans[command.shape.base], command.shape.memory_bytes
            places = 1 if memory is None else self._places(memory)
            strictly = self.agenda.now < since + self.cluster.avoid_s
            key = places, plan.nodes, command.avoid if strictly else ()
            if key in full or places > self.cluster.gangs_per_node:
                continue
            nodes = self.world.nodes.find(places, plan.nodes, command.avoid, strictly=strictly)
            if nodes is None:
                full[key] = None
                continue
            del self.pending[number]
            for node in nodes:
                node.room -= places
            slots = 1 if memory is not None else plan.slots
            self.crews[number] = Crew(command, nodes, places, slots, self)
            start_s = self.chances.exponential(self.cluster.start_s, "start", self.term, number)
            start_s = min(start_s, self.faults.start_timeout_s)
            self.agenda.at(start_s, partial(self._start, number, start_s))
            names = tuple(node.name for node in nodes)
            self.agenda.at(0.0, partial(self.tell, GangPlaced(gang=number, nodes=names)))

    def _start(self, number: int, took_s: float) -> None:
        crew = self.crews.get(number)
        if crew is None or crew.closing or crew.over or self.dead:
            return
        key, timeout_s = (self.term, number), self.faults.start_timeout_s
        dead = [worker.node.name for worker in crew.workers if not worker.alive]
        bad = next((n for n in crew.nodes if n.badness(self.agenda.now) is BadKind.SETUP), None)
        if not self.fair and self.chances.happens(self.faults.start_failures, "starts", *key):
            dead = dead or [crew.nodes[0].name]
        if dead or took_s >= timeout_s:
            mishap = Mishap(kind=MishapKind.START, node=(dead or [""])[0])
            self.agenda.at(max(0.0, timeout_s - took_s), lambda: self.gone(crew, mishap))
        elif not self.fair and self.chances.happens(self.faults.setup_failures, "sets up", *key):
            mishap = Mishap(kind=MishapKind.SETUP, node=crew.nodes[0].name)
            self.gone(crew, mishap)
        elif bad is not None:
            mishap = Mishap(kind=MishapKind.SETUP, node=bad.name)
            after_s = 0.0 if bad.bad is None else bad.bad.after_s
            self.agenda.at(after_s, lambda: self.gone(crew, mishap))
        else:
            names = tuple(node.name for node in crew.nodes)
            crew.start(self.world.gang_side(names, self.faults.silence_s))
            self._seen.update(dict.fromkeys(names))
            self.agenda.at(READY_TRAVELS_S, lambda: self._ready(crew))

    def _ready(self, crew: Crew) -> None:
        if crew.over and not crew.closing:
            return  # lost meanwhile; but the answer may cross a `CloseGang`
        crew.ready = True
        names = tuple(node.name for node in crew.nodes)
        slots = sum(each.slots for each in self.crews.values() if each.ready and not each.over)
        self.stats.most_slots = max(self.stats.most_slots, slots)
        fitting = self.world.nodes.fitting(crew.places)
        self._answer(GangReady(gang=crew.command.gang, nodes=names, fitting=fitting))

    def _close(self, number: int) -> None:
        self.pending.pop(number, None)
        self.closing[number] = None
        crew = self.crews.get(number)
        if crew is not None:
            crew.closing = True
            crew.end()
        self.agenda.at(self.cluster.close_s, lambda: self._closed(number))

    def _closed(self, number: int) -> None:
        if self.dead:
            return
        del self.closing[number]
        self._free(self.crews.pop(number, None))
        self._answer(GangClosed(gang=number))
        self.place()

    def _free(self, crew: Crew | None) -> None:
        for node in () if crew is None else crew.nodes:
            self.world.nodes.free(node, crew.places if crew else 0)

    # -- what gangs say ----------------------------------------------------------------------------

    def gone(self, crew: Crew, mishap: Mishap, /) -> None:
        """A gang is lost, or could not be opened."""
        if crew.over or self.dead:
            return
        self.stats.gangs_lost += crew.ready
        crew.end()
        self._count(mishap)
        lost = GangLost(
            gang=crew.command.gang, fault=self.world.fault(mishap), node=mishap.node or None
        )
        self._answer(lost)

    def _count(self, mishap: Mishap) -> None:
        faults = self.stats.faults
        faults[mishap.node] = faults.get(mishap.node, 0) + 1

    def deliver(self, crew: Crew, assignment: int, news: News, /) -> None:
        """A gang reports."""
        self.world.load.reported(self.agenda.now, len(crew.workers), news)
        for rank, mishap, ran_s in news.failed:
            self._count(mishap)
            fault = self.world.fault(mishap)
            self._answer(
                RankFailed(
                    assignment=assignment, rank=rank, fault=fault, node=mishap.node, ran_s=ran_s
                )
            )
        if news.done:
            pieces = tuple(normalised(range(rank, rank + 1) for rank, _ in news.done))
            busy_s = sum(ran_s for _, ran_s in news.done)
            self._answer(RanksSucceeded(assignment=assignment, ranks=pieces, busy_s=busy_s))
        if news.returned:
            self._answer(RanksReturned(assignment=assignment, ranks=news.returned))
        self._settle(crew, assignment, news)

    def _settle(self, crew: Crew, assignment: int, news: News) -> None:
        ranks = len(news.done) + len(news.failed) + sum(map(len, news.returned))
        if assignment not in crew.left:
            return  # what it was told has ended the gang
        crew.left[assignment] -= ranks
        if crew.left[assignment] <= 0:
            del crew.left[assignment]
            self._dispatched.pop(assignment, None)

    def well(self, crew: Crew, assignment: int, rank: int, ran_s: float, /) -> None:
        """A rank has really ended well, on one more member."""
        needed = 1 if crew.is_led(assignment) else len(crew.workers)
        missing, spent_s = self._well.get((assignment, rank), (needed, 0.0))
        self._well[assignment, rank] = missing - 1, spent_s + ran_s

    def _vouch(self, record: Record) -> None:
        """Check that what is to be recorded has really happened, on every member that counts."""
        number = -1 if record.assignment is None else record.assignment
        for rank in (rank for piece in record.ranks for rank in piece):
            missing, _ = self._well.get((number, rank), (1, 0.0))
            if missing > 0:
                raise InvariantBroken(f"{record}: rank {rank} has not ended well in that")

    # -- what the world says -----------------------------------------------------------------------

    def node_drains(self, node: Node) -> None:
        """A node has its notice."""
        self.tell(NodeDraining(node=node.name, left_s=self.faults.notice_s))

    def node_dies(self, node: Node, kind: MishapKind) -> None:
        """A node is gone."""
        for crew in list(self.crews.values()):
            if node in crew.nodes and not crew.over:
                crew.node_died(node, kind)

    def crash(self) -> None:
        """The driver dies, and its gangs with it."""
        self.journal.crash()
        self.dead = True
        for crew in self.crews.values():
            crew.end()
            self._free(crew)

    def _recorded(self, record: Record) -> None:
        if record.state is RecordState.DONE:
            number = -1 if record.assignment is None else record.assignment
            for rank in (rank for piece in record.ranks for rank in piece):
                self.world.useful_s += self._well.pop((number, rank), (0, 0.0))[1]
        self._answer(Recorded(stage=record.stage, ranks=record.ranks))

    def _journal_failed(self) -> None:
        mishap = Mishap(kind=MishapKind.JOURNAL)
        self._answer(JournalFailed(fault=self.world.fault(mishap)))
