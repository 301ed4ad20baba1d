"""Whole runs on a simulated cluster, in simulated time: deterministic from a seed, no clock, no
threads.

For the liveness statement ("given fair answers, the run finishes"), for tuning, and for whoever
wants to know how long a job would take on flaky nodes. The world here is simple on purpose: nodes
with room for a number of gangs, which come up, drain and die; ranks that take a time, fail, or kill
their worker.
"""

from __future__ import annotations

import hashlib
import heapq
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Generic, TypeVar

import attrs

from thornback.scheduler.commands import (
    CloseGang,
    Command,
    Dispatch,
    FinishRun,
    OpenGang,
    Recall,
    Record,
)
from thornback.scheduler.events import (
    Event,
    GangClosed,
    GangLost,
    GangReady,
    NodeDraining,
    RankFailed,
    RanksReturned,
    RanksSucceeded,
    Recorded,
    RunStarted,
    Ticked,
)
from thornback.scheduler.machine import Scheduler
from thornback.scheduler.params import SchedulerParams, StagePlan
from thornback.scheduler.ports import Dependencies
from thornback.scheduler.states import SchedulerError, UsageError

__all__ = [
    "RunStats",
    "SimulatedCluster",
    "SimulatedFaults",
    "Simulation",
    "Unfinished",
]

F = TypeVar("F")


class Unfinished(SchedulerError):
    """A simulated run did not end within its bounds."""

    def __init__(self, story: str, stats: RunStats) -> None:
        super().__init__(story, stats)
        self.story = story
        """Which bound."""
        self.stats = stats
        """How far it came."""


@attrs.frozen(kw_only=True, slots=True)
class SimulatedFaults(Generic[F]):
    """The faults that the world hands to the retry policies, and how often things go wrong."""

    rank_fails: F
    """A rank's code failed."""
    rank_failures: float = 0.0
    """Probability per attempt of a rank."""
    worker_dies: F
    """A rank took its worker with it."""
    worker_deaths: float = 0.0
    """Probability per attempt of a rank."""
    node_preempted: F
    """A node died after a notice."""
    preemption_s: float | None = None
    """Mean seconds that a node lives until it is drained; None: no node is."""
    notice_s: float = 30.0
    """Seconds between the notice and the end."""
    placement_times_out: F
    """A gang found no room in time."""
    place_s: float = 600.0
    """That time, in seconds."""


@attrs.frozen(kw_only=True, slots=True)
class SimulatedCluster:
    """Nodes and times. All times are simulated seconds."""

    nodes: int = 4
    """Nodes at the start; one that goes away comes back after `back_s`."""
    gangs_per_node: int = 2
    """How many gangs a node has room for, of whatever shape."""
    start_s: float = 3.0
    """Mean seconds to start a gang's workers (exponential)."""
    close_s: float = 0.5
    """Seconds to close a gang."""
    record_s: float = 0.2
    """Seconds until a record is durable."""
    rank_s: float = 1.0
    """Median seconds of a rank (log-normal)."""
    rank_sigma: float = 1.0
    """Standard deviation of the logarithm of that; 0: all take the same."""
    reclaim_s: float = 2.0
    """Workers hand back what they have not started after so long."""
    back_s: float = 60.0
    """A node that went away comes back, empty and under a new name, after so long."""


@attrs.define(slots=True, kw_only=True)
class RunStats:
    """What a simulated run came to. Seconds are simulated ones."""

    makespan_s: float = 0.0
    """From the start to `FinishRun`."""
    finish: FinishRun | None = None
    """The last command; None: it did not come."""
    events: int = 0
    """That the scheduler was told."""
    attempts: int = 0
    """Ranks that were started, counted per start."""
    gangs_opened: int = 0
    """Gangs that were asked for."""
    gangs_lost: int = 0
    """Gangs that were ready and died."""
    busy_s: float = 0.0
    """Slot seconds that ranks ran."""
    wasted_s: float = 0.0
    """Part of it that came to nothing."""


@attrs.define(slots=True, eq=False)
class _Slot:
    queue: list[int] = attrs.field(factory=list)
    """Assignments, the running one first."""
    running: int | None = None
    """The rank."""
    started_at: float = 0.0


@attrs.define(slots=True, eq=False)
class _Gang:
    shape: OpenGang
    slots: list[_Slot] = attrs.field(factory=list)
    nodes: tuple[str, ...] = ()
    closed: bool = False


@attrs.define(slots=True, eq=False)
class _Work:
    command: Dispatch
    todo: list[int]
    given_at: float
    spent: list[tuple[int, float]] = attrs.field(factory=list)


class Simulation(Generic[F]):
    """One run of a real `Scheduler`. The same arguments always give the same run. Use once."""

    def __init__(
        self,
        stages: Sequence[StagePlan[F]],
        dependencies: Dependencies,
        faults: SimulatedFaults[F],
        cluster: SimulatedCluster | None = None,
        *,
        params: SchedulerParams | None = None,
        seed: int = 0,
        watch: Callable[[Event[F], Sequence[Command], Scheduler[F]], None] | None = None,
    ) -> None:
        """Take the job and the world.

        Args:
            stages: as for `Scheduler`.
            dependencies: as for `Scheduler`.
            faults: what goes wrong, and how often.
            cluster: the nodes; None: the defaults.
            params: as for `Scheduler`.
            seed: of the world's chances and of the scheduler's jitter.
            watch: sees every event with the commands it led to: for checks and stories.

        Raises:
            UsageError: a gang has more nodes than the cluster; or as `Scheduler` does.
        """
        self.stages = list(stages)
        """The plans that were given."""
        self.cluster = cluster or SimulatedCluster()
        """The nodes."""
        self.faults = faults
        """What goes wrong."""
        self.scheduler: Scheduler[F] = Scheduler(stages, dependencies, params, seed)
        """The scheduler, to be asked how far it is."""
        self.stats = RunStats()
        """The figures so far."""
        self._watch = watch
        self._seed = seed
        self._draws = 0
        self._now = 0.0
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._planned = 0
        self._room: dict[str, int] = {}
        self._nodes_made = 0
        self._gangs: dict[int, _Gang] = {}
        self._pending: dict[int, OpenGang] = {}
        self._work: dict[int, _Work] = {}
        for plan in self.stages:
            if plan.nodes > self.cluster.nodes:
                raise UsageError(f"a gang of {plan.nodes} nodes, and {self.cluster.nodes} nodes")

    def run(self, *, most_events: int = 1_000_000) -> RunStats:
        """Run to the end and return the figures.

        Raises:
            Unfinished: nothing is left to happen, or more than `most_events` have.
        """
        for _ in range(self.cluster.nodes):
            self._node_comes()
        self._tell(RunStarted())
        while not self.scheduler.finished:
            if self.stats.events > most_events:
                raise Unfinished(f"not finished after {most_events} events", self.stats)
            self._step()
        self.stats.makespan_s = self._now
        return self.stats

    def _step(self) -> None:
        wake_at = self.scheduler.wake_at
        if self._agenda and (wake_at is None or self._agenda[0][0] <= wake_at):
            self._now, _, happen = heapq.heappop(self._agenda)
            happen()
        elif wake_at is not None:
            self._now = max(self._now, wake_at)
            self._tell(Ticked())
        else:
            raise Unfinished("nothing is left to happen", self.stats)

    def _at(self, delay_s: float, happen: Callable[[], None]) -> None:
        self._planned += 1
        heapq.heappush(self._agenda, (self._now + delay_s, self._planned, happen))

    def _draw(self) -> float:
        """Return the next number in (0, 1) of this run's own sequence."""
        self._draws += 1
        digest = hashlib.blake2b(f"{self._seed}/{self._draws}".encode(), digest_size=6).digest()
        return (int.from_bytes(digest) + 0.5) / (1 << 48)

    def _exponential(self, mean_s: float) -> float:
        return -mean_s * math.log(self._draw())

    def _tell(self, event: Event[F]) -> None:
        self.stats.events += 1
        commands = self.scheduler.handle(event, self._now)
        if self._watch is not None:
            self._watch(event, commands, self.scheduler)
        for command in commands:
            self._carry_out(command)

    # -- commands ----------------------------------------------------------------------------------

    def _carry_out(self, command: Command) -> None:
        match command:
            case OpenGang():
                self.stats.gangs_opened += 1
                self._pending[command.gang] = command
                self._at(self.faults.place_s, lambda: self._placement_times_out(command.gang))
                self._at(0.0, self._place)
            case CloseGang():
                self._pending.pop(command.gang, None)
                self._at(self.cluster.close_s, lambda: self._closed(command.gang))
            case Dispatch():
                self._dispatched(command)
            case Recall():
                self._at(0.01, lambda: self._hand_back(command.assignment, kill=command.kill))
            case Record():
                event = Recorded(stage=command.stage, ranks=command.ranks)
                self._at(self.cluster.record_s, lambda: self._tell(event))
            case FinishRun():
                self.stats.finish = command

    def _place(self) -> None:
        """Place what fits, oldest first; nodes with most room first, avoided ones last."""
        for number, command in list(self._pending.items()):
            plan = next(plan for plan in self.stages if plan.shape == command.shape.base)
            nodes = [node for node, room in self._room.items() if room > 0]
            nodes.sort(key=lambda node: (node in command.avoid, -self._room[node], node))
            if len(nodes) < plan.nodes:
                continue
            del self._pending[number]
            slots = 1 if command.shape.memory_bytes is not None else plan.slots
            gang = _Gang(command, [_Slot() for _ in range(slots)], tuple(nodes[: plan.nodes]))
            for node in gang.nodes:
                self._room[node] -= 1
            self._gangs[number] = gang
            self._at(self._exponential(self.cluster.start_s), partial(self._started, number))

    def _started(self, number: int) -> None:
        gang = self._gangs.get(number)
        if gang is not None and not gang.closed:
            self._tell(GangReady(gang=number, nodes=gang.nodes))

    def _placement_times_out(self, number: int) -> None:
        if self._pending.pop(number, None) is not None:
            self._tell(GangLost(gang=number, fault=self.faults.placement_times_out))

    def _closed(self, number: int) -> None:
        gang = self._gangs.pop(number, None)
        if gang is not None:
            for node in gang.nodes:
                if node in self._room:
                    self._room[node] += 1
        self._tell(GangClosed(gang=number))
        self._place()

    # -- ranks -------------------------------------------------------------------------------------

    def _dispatched(self, command: Dispatch) -> None:
        ranks = [rank for piece in command.ranks for rank in piece]
        self._work[command.assignment] = _Work(command, ranks, self._now)
        slot = min(self._gangs[command.gang].slots, key=lambda slot: len(slot.queue))
        slot.queue.append(command.assignment)
        self._at(self.cluster.reclaim_s, lambda: self._hand_back(command.assignment, kill=False))
        if slot.running is None:
            self._next_rank(command.gang, slot)

    def _next_rank(self, number: int, slot: _Slot) -> None:
        if slot.running is not None:
            return
        while slot.queue and not self._work[slot.queue[0]].todo:
            slot.queue.pop(0)
        gang = self._gangs.get(number)
        if not slot.queue or gang is None or gang.closed:
            return
        assignment = slot.queue[0]
        rank = self._work[assignment].todo.pop(0)
        slot.running, slot.started_at = rank, self._now
        self.stats.attempts += 1
        normal = math.sqrt(-2 * math.log(self._draw())) * math.cos(2 * math.pi * self._draw())
        takes_s = self.cluster.rank_s * math.exp(self.cluster.rank_sigma * normal)
        fate = self._draw()
        self._at(takes_s, lambda: self._rank_ends(number, slot, assignment, rank, fate))

    def _rank_ends(self, number: int, slot: _Slot, assignment: int, rank: int, fate: float) -> None:
        gang = self._gangs.get(number)
        is_on = slot.running == rank and slot.queue and slot.queue[0] == assignment
        if gang is None or gang.closed or not is_on:
            return
        ran_s = self._now - slot.started_at
        self.stats.busy_s += ran_s
        if fate < self.faults.worker_deaths:
            self.stats.wasted_s += ran_s
            slot.running = None
            self._lose(number, self.faults.worker_dies)
            return
        work = self._work[assignment]
        slot.running = None
        if fate < self.faults.worker_deaths + self.faults.rank_failures:
            self.stats.wasted_s += ran_s
            self._tell(
                RankFailed(
                    assignment=assignment,
                    rank=rank,
                    fault=self.faults.rank_fails,
                    node=gang.nodes[0],
                    ran_s=ran_s,
                )
            )
        else:
            work.spent.append((rank, ran_s))
        if not work.todo or self._now - work.given_at >= self.cluster.reclaim_s:
            self._report(assignment)
        if not gang.closed:
            self._next_rank(number, slot)

    def _report(self, assignment: int) -> None:
        work = self._work[assignment]
        if work.spent:
            ranks = tuple(range(rank, rank + 1) for rank, _ in sorted(work.spent))
            busy_s = sum(ran_s for _, ran_s in work.spent)
            work.spent = []
            self._tell(RanksSucceeded(assignment=assignment, ranks=ranks, busy_s=busy_s))

    def _hand_back(self, assignment: int, *, kill: bool) -> None:
        work = self._work[assignment]
        gang = self._gangs.get(work.command.gang)
        if gang is None or gang.closed:
            return
        self._report(assignment)
        back, work.todo = work.todo, []
        for slot in gang.slots:
            if kill and slot.running is not None and slot.queue[0] == assignment:
                self.stats.wasted_s += self._now - slot.started_at
                back.append(slot.running)
                slot.running = None
        if back:
            ranks = tuple(range(rank, rank + 1) for rank in sorted(back))
            self._tell(RanksReturned(assignment=assignment, ranks=ranks))
        for slot in gang.slots:
            if slot.running is None:
                self._next_rank(work.command.gang, slot)

    # -- nodes -------------------------------------------------------------------------------------

    def _lose(self, number: int, fault: F) -> None:
        gang = self._gangs[number]
        if gang.closed:
            return
        gang.closed = True
        self.stats.gangs_lost += 1
        for slot in gang.slots:
            if slot.running is not None:
                self.stats.busy_s += self._now - slot.started_at
                self.stats.wasted_s += self._now - slot.started_at
        self._tell(GangLost(gang=number, fault=fault, node=gang.nodes[0]))

    def _node_comes(self) -> None:
        self._nodes_made += 1
        node = f"node-{self._nodes_made}"
        self._room[node] = self.cluster.gangs_per_node
        if self.faults.preemption_s is not None:
            lives_s = self._exponential(self.faults.preemption_s)
            self._at(lives_s, lambda: self._node_drains(node))
        self._place()

    def _node_drains(self, node: str) -> None:
        self._room[node] = 0
        self._tell(NodeDraining(node=node, left_s=self.faults.notice_s))
        self._at(self.faults.notice_s, lambda: self._node_dies(node))

    def _node_dies(self, node: str) -> None:
        del self._room[node]
        for number, gang in list(self._gangs.items()):
            if node in gang.nodes:
                self._lose(number, self.faults.node_preempted)
        self._at(self.cluster.back_s, self._node_comes)
