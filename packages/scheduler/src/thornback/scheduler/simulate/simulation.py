"""Whole runs on a simulated cluster, in simulated time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Generic, TypeAlias, TypeVar

import attrs

from thornback.scheduler.commands import Command, RecordState
from thornback.scheduler.events import CancelRequested, Event
from thornback.scheduler.machine import Scheduler
from thornback.scheduler.params import SchedulerParams, StagePlan
from thornback.scheduler.ports import Dependencies
from thornback.scheduler.simulate.costs import Asked, WatchedPolicy
from thornback.scheduler.simulate.driver import Driver, World, patience_s
from thornback.scheduler.simulate.gangside import GangSide, SimpleGang
from thornback.scheduler.simulate.load import LoadStats
from thornback.scheduler.simulate.umpire import Story, Umpire, WatchedDependencies
from thornback.scheduler.simulate.values import (
    Incident,
    IncidentKind,
    Mishap,
    RunStats,
    SimulatedCluster,
    SimulatedFaults,
    Unfinished,
)
from thornback.scheduler.states import UsageError

F = TypeVar("F")


MakeScheduler: TypeAlias = Callable[
    [Sequence[StagePlan[F]], Dependencies, SchedulerParams | None, int], Scheduler[F]
]
"""Makes a scheduler: the class itself, as a rule."""


class Simulation(Generic[F]):
    """One run, with real `Scheduler`s. The same arguments always give the same run. Use once."""

    def __init__(
        self,
        stages: Sequence[StagePlan[F]],
        dependencies: Callable[[], Dependencies],
        fault: Callable[[Mishap], F],
        cluster: SimulatedCluster | None = None,
        faults: SimulatedFaults | None = None,
        *,
        incidents: Sequence[Incident] = (),
        params: SchedulerParams | None = None,
        seed: int = 0,
        checked: bool = True,
        gang_side: Callable[[Sequence[str], float], GangSide] = SimpleGang,
        make: MakeScheduler[F] = Scheduler,
        watch: Callable[[Event[F], Sequence[Command], Scheduler[F]], None] | None = None,
    ) -> None:
        """Take the job and the world.

        Args:
            stages: as for `Scheduler`.
            dependencies: makes those of one driver; a restarted one needs new ones.
            fault: classifies what goes wrong, for the retry policies: `classified` for the
                `RetryPolicy` of thornback-faults.
            cluster: the nodes; None: the defaults.
            faults: how often things go wrong; None: never.
            incidents: what is planned to go wrong.
            params: as for `Scheduler`.
            seed: of the world's chances and of the scheduler's jitter.
            checked: an `Umpire` judges after every event; a million ranks are faster without.
            gang_side: makes a pool's books of one gang, from its nodes and from how many seconds a
                worker may be silent.
            make: makes the scheduler: for those who want to see a faulty one caught.
            watch: sees every event with the commands it led to.

        Raises:
            UsageError: a gang has more nodes than the cluster; ranks hang and have no time limit;
                or as `Scheduler` does.
        """
        cluster, faults = cluster or SimulatedCluster(), faults or SimulatedFaults()
        most = max(cluster.nodes, cluster.most_nodes or 0)
        for plan in stages:
            if plan.nodes > most:
                raise UsageError(f"a gang of {plan.nodes} nodes, and {most} nodes")
        if faults.hangs and cluster.timeout_s is None:
            raise UsageError("ranks hang, and have no time limit: give timeout_s")
        self._world: World[F] = World(stages, cluster, faults, seed, fault, gang_side)
        self._dependencies = dependencies
        self._params = params
        self._seed = seed
        self._checked = checked
        self._make = make
        self._watch = watch
        self._story: Story[F] | None = None
        self._driver = self._new_driver(1)
        nodes = self._world.nodes
        nodes.drains = lambda node: self._driver.node_drains(node)
        nodes.dies = lambda node, kind: self._driver.node_dies(node, kind)
        nodes.comes = lambda: self._driver.place()
        nodes.waits = self._waits
        for incident in incidents:
            self._world.agenda.at(incident.at_s, partial(self._happen, incident))

    @property
    def scheduler(self) -> Scheduler[F]:
        """The scheduler, to be asked how far it is; another one after a restart."""
        return self._driver.scheduler

    @property
    def stats(self) -> RunStats:
        """The figures so far."""
        return self._world.stats

    def load(self) -> LoadStats:
        """Return what the driver had to carry so far."""
        return self._world.load.stats()

    def run(self, *, most_events: int = 1_000_000) -> RunStats:
        """Run to the end and return the figures.

        Raises:
            Unfinished: it has not ended after `most_events`; or nobody answers any more.
            AssertionError: something was done that must not be; its notes tell the last events.
        """
        agenda, stats = self._world.agenda, self._world.stats
        try:
            self._world.nodes.start()
            self._driver.begin()
            while self._driver.dead or not self._driver.scheduler.finished:
                if stats.events > most_events:
                    raise Unfinished(f"not finished after {most_events} events", stats)
                if agenda.now > self._driver.told_at + patience_s(self._world):
                    quiet_s = agenda.now - self._driver.told_at
                    raise Unfinished(f"nothing was answered for {quiet_s:.0f} s", stats)
                self._step()
        except Exception as error:
            error.add_note(f"seed {self._seed}; {self._story}")
            raise
        finally:
            self._sum_up()
        return stats

    def _sum_up(self) -> None:
        world = self._world
        stats, durable = world.stats, world.durable
        stats.makespan_s = world.agenda.now
        stats.longest_rank_s = world.fates.longest_s
        stats.wasted_s = max(0.0, stats.busy_s - world.useful_s)
        stats.done, stats.failed, stats.skipped = (durable.count(state) for state in RecordState)

    def _step(self) -> None:
        driver, agenda = self._driver, self._world.agenda
        wake_at = None if driver.dead or driver.paused else driver.scheduler.wake_at
        if wake_at is not None and wake_at < agenda.next_at:
            agenda.now = max(agenda.now, wake_at)
            driver.tick()
        elif agenda.next_at == float("inf"):
            raise Unfinished("nothing is left to happen", self._world.stats)
        else:
            agenda.step()

    def _new_driver(self, term: int) -> Driver[F]:
        world = self._world
        dependencies = self._dependencies()
        sizes = [plan.world_size for plan in world.stages]
        watched = WatchedDependencies(dependencies, sizes, world.durable.is_done)
        order = watched if self._checked else dependencies
        asked: list[Asked[F]] = []
        plans = [
            attrs.evolve(plan, policy=WatchedPolicy(plan.policy, number, asked))
            for number, plan in enumerate(world.stages)
        ]
        stages = plans if self._checked else world.stages
        scheduler: Scheduler[F] = self._make(stages, order, self._params, self._seed)
        driver = Driver(world, scheduler, term)
        if self._checked:
            self._story = Story(driver)
            driver.watching = [self._story, Umpire(driver, scheduler, watched, asked)]
        if self._watch is not None:
            driver.watching.append(_Watch(self._watch, scheduler))
        return driver

    def _happen(self, incident: Incident) -> None:
        driver, nodes = self._driver, self._world.nodes
        node = nodes.nth(incident.node)
        kind = incident.kind
        if kind is IncidentKind.PREEMPT_NODE and node is not None:
            nodes.preempt(node)
        elif kind is IncidentKind.KILL_NODE and node is not None:
            nodes.kill(node)
        elif driver.dead or driver.scheduler.finished:
            return
        elif kind is IncidentKind.RESTART_DRIVER:
            driver.crash()
            self._world.agenda.at(self._world.faults.restart_s, self._restart)
        elif kind is IncidentKind.PAUSE_DRIVER:
            driver.pause(incident.lasts_s)
        elif kind is IncidentKind.JOURNAL_OUTAGE:
            driver.journal.outage_until = self._world.agenda.now + incident.lasts_s
        elif kind in (IncidentKind.CANCEL, IncidentKind.CANCEL_AND_KILL):
            kill = kind is IncidentKind.CANCEL_AND_KILL
            driver.tell(CancelRequested(reason="as planned", kill=kill))

    def _restart(self) -> None:
        self._driver = self._new_driver(self._driver.term + 1)
        self._driver.begin()

    def _waits(self, since: float) -> int:
        if self._driver.dead:
            return 0
        return sum(at <= since for _, at in self._driver.pending.values())


class _Watch(Generic[F]):
    """Passes on what was handled."""

    def __init__(
        self,
        watch: Callable[[Event[F], Sequence[Command], Scheduler[F]], None],
        scheduler: Scheduler[F],
    ) -> None:
        self._watch = watch
        self._scheduler = scheduler

    def before(self, event: Event[F], /) -> None:
        """Nothing to do yet."""

    def after(self, event: Event[F], commands: Sequence[Command], /) -> None:
        """Pass on."""
        self._watch(event, commands, self._scheduler)
