"""A cluster in memory that a test commands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import anyio
import attrs

from thornback.placement.bundles import GangRequest, NodeType, NodeView, Strategy, Supply
from thornback.placement.errors import PlacementRemoved
from thornback.placement.ledger import Ledger
from thornback.placement.ports import Grant, Reservation, Snapshot


class Gate:
    """Open, or closed by the test: whoever comes to it waits until it is opened again."""

    def __init__(self) -> None:
        self._open = anyio.Event()
        self._open.set()
        self.waiting = 0
        """How many wait at it now."""

    def close(self) -> None:
        """Let nobody pass from now on."""
        self._open = anyio.Event()

    def open(self) -> None:
        """Let all pass who wait, and who come."""
        self._open.set()

    async def passed(self) -> None:
        """Return when it is open."""
        self.waiting += 1
        try:
            await self._open.wait()
        finally:
            self.waiting -= 1


class Faults:
    """Errors that the next calls shall raise, in order; None: let that call pass."""

    def __init__(self) -> None:
        self._errors: list[Exception | None] = []

    def add(self, *errors: Exception | None) -> None:
        """Add errors for calls to come."""
        self._errors.extend(errors)

    def raise_next(self) -> None:
        """Raise the next error, if there is one."""
        error = self._errors.pop(0) if self._errors else None
        if error is not None:
            raise error


class FakeCluster:
    """A cluster in memory that the test commands: nodes come, drain and go, calls hang and fail.

    Args:
        nodes: resources by node name.
        supply: whether other nodes may come, as the allocator is told.
        labels: of the nodes, by node name.
        node_types: what may come, as the allocator is told.
    """

    def __init__(
        self,
        nodes: Mapping[str, Mapping[str, float]] | None = None,
        *,
        supply: Supply = Supply.CHANGING,
        labels: Mapping[str, Mapping[str, str]] | None = None,
        node_types: Sequence[NodeType] = (),
    ) -> None:
        self.creations = Gate()
        """Close it to let `reserve` hang. It has taken place then: only the answer is late."""
        self.removals = Gate()
        """Close it to let `FakeReservation.remove` hang."""
        self.looks = Gate()
        """Close it to let `look` hang."""
        self.creation_faults = Faults()
        """What the next calls of `reserve` raise."""
        self.removal_faults = Faults()
        """What the next calls of `FakeReservation.remove` raise."""
        self.look_faults = Faults()
        """What the next calls of `look` raise."""
        self.created = 0
        """How many reservations were made."""
        self.removed = 0
        """How many of them were ended."""
        self.look_count = 0
        """How often it was looked at."""
        self.supply = supply
        """As the allocator is told."""
        self.node_types = tuple(node_types)
        """As the allocator is told."""
        self.ledger: Ledger[FakeReservation] = Ledger(FakeReservation.grant)
        """What is held, and who waits."""
        self._views: dict[str, NodeView] = {}
        self._version = 0
        self._moved = anyio.Event()
        for name, resources in (nodes or {}).items():
            self.add_node(name, resources, (labels or {}).get(name))

    @property
    def reserved(self) -> int:
        """How many reservations there are, waiting or granted: 0 when nothing leaks."""
        return len(self.ledger.waiting) + len(self.ledger.held)

    def add_node(
        self,
        name: str,
        resources: Mapping[str, float],
        labels: Mapping[str, str] | None = None,
    ) -> None:
        """A node joins."""
        view = NodeView(name=name, resources=dict(resources), labels=dict(labels or {}))
        self._views[name] = view
        self.ledger.add_node(name, resources, view.labels)
        self._move()

    def drain_node(self, name: str, left_s: float | None = None) -> None:
        """A notice that it will go away. It takes nothing new; what is on it stays."""
        self._views[name] = attrs.evolve(self._views[name], draining=True, left_s=left_s)
        self.ledger.close_node(name)
        self._move()

    def remove_node(self, name: str) -> None:
        """It is gone, with what was on it."""
        del self._views[name]
        self.ledger.remove_node(name)
        self._move()

    def remove_reservations(self) -> None:
        """Somebody else removes every reservation."""
        for reservation in (*self.ledger.waiting, *self.ledger.held):
            reservation.end()

    async def reserve(
        self, request: GangRequest, strategy: Strategy, avoid: Sequence[str], /
    ) -> Reservation:
        """See `Cluster`."""
        self.creation_faults.raise_next()
        self.created += 1
        reservation = FakeReservation(self)
        self.ledger.ask(reservation, attrs.evolve(request, strategy=strategy), avoid)
        try:
            await self.creations.passed()
        except BaseException:
            reservation.end()
            raise
        return reservation

    async def look(self) -> Snapshot:
        """See `Cluster`."""
        self.look_count += 1
        await self.looks.passed()
        self.look_faults.raise_next()
        return Snapshot(
            nodes=tuple(self._views.values()),
            supply=self.supply,
            version=self._version,
            node_types=self.node_types,
        )

    async def changed(self, since: Snapshot, /) -> None:
        """See `Cluster`."""
        while self._version == since.version:
            await self._moved.wait()

    def forget(self, reservation: FakeReservation) -> None:
        """Called by a reservation that ended."""
        if self.ledger.drop(reservation):
            self.removed += 1

    def _move(self) -> None:
        self._version += 1
        self._moved.set()
        self._moved = anyio.Event()


class FakeReservation:
    """Made by `FakeCluster.reserve`."""

    def __init__(self, cluster: FakeCluster) -> None:
        self._cluster = cluster
        self._nodes: tuple[str, ...] = ()
        self._ended = False
        self._settled = anyio.Event()

    def grant(self, nodes: tuple[str, ...]) -> None:
        """It holds these nodes: whoever waits in `granted` goes on."""
        self._nodes = nodes
        self._settled.set()

    def end(self) -> None:
        """It is removed, by whomever: who waits in `granted` gets `PlacementRemoved`."""
        self._ended = True
        self._settled.set()
        self._cluster.forget(self)

    async def granted(self) -> Grant:
        """See `Reservation`."""
        await self._settled.wait()
        if self._ended:
            raise PlacementRemoved("the reservation was removed")
        return Grant(nodes=self._nodes, handle=self)

    async def remove(self) -> bool:
        """See `Reservation`. Hangs and fails as `FakeCluster.removals` and `removal_faults` say."""
        await self._cluster.removals.passed()
        self._cluster.removal_faults.raise_next()
        self.end()
        return True
