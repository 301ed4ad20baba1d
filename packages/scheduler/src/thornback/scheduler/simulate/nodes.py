"""The nodes of a simulated world: they come, get their notice, die, flap, and are scaled."""

from __future__ import annotations

from collections.abc import Callable

import attrs

from thornback.scheduler.simulate.agenda import Agenda, Chances
from thornback.scheduler.simulate.values import (
    BadKind,
    BadNode,
    MishapKind,
    RunStats,
    SimulatedCluster,
    SimulatedFaults,
)

SCALE_EVERY_S = 10.0
"""How often the autoscaler looks."""


@attrs.define(slots=True, eq=False)
class Node:
    """A machine that is there."""

    name: str
    number: int
    room: int
    """Places that are free."""
    slowness: float
    """Ranks take so many times longer."""
    flaps: bool
    bad: BadNode | None = None
    alive: bool = True
    draining: bool = False
    empty_since: float = 0.0

    def badness(self, now: float) -> BadKind | None:
        """Return what is wrong with it at this time; None: nothing."""
        if self.bad is None:
            return None
        # The phases differ from node to node, so that not all are bad at once.
        phase = 0.0 if self.bad.flaps_s is None else now / self.bad.flaps_s + 0.37 * self.number
        return None if int(phase) % 2 else self.bad.kind


class Nodes:
    """All nodes that are there, and what becomes of them."""

    def __init__(
        self,
        cluster: SimulatedCluster,
        faults: SimulatedFaults,
        agenda: Agenda,
        chances: Chances,
        stats: RunStats,
    ) -> None:
        self.by_name: dict[str, Node] = {}
        """In the order in which they came."""
        self.drains: Callable[[Node], None] = lambda node: None
        """Called when a node gets its notice."""
        self.dies: Callable[[Node, MishapKind], None] = lambda node, kind: None
        """Called when a node is gone."""
        self.comes: Callable[[], None] = lambda: None
        """Called when there may be more room than before."""
        self.waits: Callable[[float], int] = lambda since: 0
        """Asked how many gangs have waited for room since before that time."""
        self._cluster = cluster
        self._faults = faults
        self._agenda = agenda
        self._chances = chances
        self._stats = stats
        self._bad = {bad.number: bad for bad in faults.bad_nodes}
        self._made = 0
        self._coming = 0

    def start(self) -> None:
        """Let the first nodes come."""
        for _ in range(self._cluster.nodes):
            self._come()
        for at_s in self._cluster.joins_s:
            self._agenda.at(at_s, self._come)
        if self._cluster.most_nodes is not None:
            self._agenda.at(SCALE_EVERY_S, self._scale)

    @property
    def fair(self) -> bool:
        """Nothing happens to nodes any more but what is planned."""
        fair_at = self._faults.fair_after_s
        return fair_at is not None and self._agenda.now >= fair_at

    def fitting(self, places: int) -> int:
        """Return how many nodes can hold a gang's share, free or not."""
        return len(self._able(places, ()))

    def find(
        self, places: int, nodes: int, avoid: tuple[str, ...], *, strictly: bool
    ) -> list[Node] | None:
        """Return nodes for a gang, those with most room first; None: no room.

        `strictly`: avoided nodes are left out if the others could hold the gang. Else they come
        last.
        """
        if strictly and avoid and len(self._able(places, avoid)) < nodes:
            strictly = False
        fits = [
            node
            for node in self.by_name.values()
            if node.room >= places
            and not node.draining
            and not (strictly and avoid and node.name in avoid)
        ]
        if len(fits) < nodes:
            return None
        if nodes == 1:
            return [min(fits, key=lambda node: (node.name in avoid, -node.room, node.number))]
        fits.sort(key=lambda node: (node.name in avoid, -node.room, node.number))
        return fits[:nodes]

    def _able(self, places: int, avoid: tuple[str, ...]) -> list[Node]:
        if places > self._cluster.gangs_per_node:
            return []
        return [
            node for node in self.by_name.values() if not node.draining and node.name not in avoid
        ]

    def free(self, node: Node, places: int) -> None:
        """Take back places of a node, dead or alive."""
        node.room += places
        node.empty_since = self._agenda.now

    def nth(self, position: int) -> Node | None:
        """Return a node by its position among those that are there, modulo their number."""
        there = list(self.by_name.values())
        return there[position % len(there)] if there else None

    def _come(self, name: str = "", number: int = 0) -> None:
        faults, chances, cluster = self._faults, self._chances, self._cluster
        if not name:
            self._made += 1
            number, name = self._made, f"node-{self._made}"
        slow = chances.happens(cluster.slow_share, "slow", number)
        flaps = chances.happens(faults.flapping_share, "flaps", number)
        slowness = cluster.slow_factor if slow else 1.0
        node = Node(name, number, cluster.gangs_per_node, slowness, flaps)
        node.bad = self._bad.get(number)
        node.empty_since = self._agenda.now
        self.by_name[name] = node
        self._fate(node)
        self.comes()

    def _fate(self, node: Node) -> None:
        faults, chances = self._faults, self._chances
        lives = node.number, int(self._agenda.now * 1000)
        if node.flaps:
            stays_s = chances.exponential(faults.flapping_s, "stays", *lives)
            self._agenda.at(stays_s, lambda: self._unless_fair(self.kill, node))
        elif faults.preemption_s is not None:
            lives_s = chances.exponential(faults.preemption_s, "lives", *lives)
            quiet = chances.happens(faults.unannounced, "unannounced", *lives)
            end = self.kill if quiet else self.preempt
            self._agenda.at(lives_s, lambda: self._unless_fair(end, node))

    def _unless_fair(self, end: Callable[[Node], None], node: Node) -> None:
        if not self.fair:
            end(node)

    def preempt(self, node: Node) -> None:
        """Give a node its notice; it dies when that is over. Repeated, or dead: nothing."""
        if not node.alive or node.draining:
            return
        node.draining = True
        self._agenda.at(self._faults.notice_s, lambda: self.kill(node, MishapKind.PREEMPTED))
        self.drains(node)

    def kill(self, node: Node, kind: MishapKind = MishapKind.NODE) -> None:
        """Let a node die now. Dead: nothing."""
        if not node.alive:
            return
        self._leave(node)
        self._stats.nodes_lost += 1
        if node.flaps:
            away_s = self._chances.exponential(
                self._faults.flapping_s / 3, "away", node.number, int(self._agenda.now * 1000)
            )
            self._agenda.at(away_s, lambda: self._come(node.name, node.number))
        else:
            self._coming += 1
            self._agenda.at(self._cluster.back_s, self._arrive)
        self.dies(node, kind)

    def _leave(self, node: Node) -> None:
        node.alive = False
        del self.by_name[node.name]

    def _arrive(self) -> None:
        self._coming -= 1
        self._come()

    def _scale(self) -> None:
        cluster, now = self._cluster, self._agenda.now
        most = cluster.most_nodes or 0
        wanted = self.waits(now - cluster.scale_after_s)
        for _ in range(min(wanted, most - len(self.by_name) - self._coming)):
            self._coming += 1
            self._agenda.at(cluster.node_start_s, self._arrive)
        for node in list(self.by_name.values()):
            idle = node.room == cluster.gangs_per_node and now - node.empty_since >= cluster.idle_s
            if idle and not wanted and len(self.by_name) > cluster.nodes:
                self._leave(node)
        self._agenda.at(SCALE_EVERY_S, self._scale)
