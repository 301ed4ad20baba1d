"""A cluster in memory that a test commands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import anyio
import attrs

from thornback.placement.bundles import GangRequest, NodeView, Strategy, Supply
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
        self._open = anyio.Event()

    def open(self) -> None:
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
        self._errors.extend(errors)

    def raise_next(self) -> None:
        error = self._errors.pop(0) if self._errors else None
        if error is not None:
            raise error


class FakeCluster:
    """A cluster in memory that the test commands: nodes come, drain and go, calls hang and fail.

    Args:
        nodes: resources by node name.
        supply: whether other nodes may come, as the allocator is told.
    """

    def __init__(
        self,
        nodes: Mapping[str, Mapping[str, float]] | None = None,
        *,
        supply: Supply = Supply.CHANGING,
    ) -> None:
        self.creations, self.removals, self.looks = Gate(), Gate(), Gate()
        """Close one to let these calls hang. A held creation has taken place already: only the
        answer is late."""
        self.creation_faults, self.removal_faults, self.look_faults = Faults(), Faults(), Faults()
        self.created = 0
        self.removed = 0
        self.look_count = 0
        self.supply = supply
        self.ledger = Ledger()
        self._views: dict[str, NodeView] = {}
        self._reservations: dict[int, FakeReservation] = {}
        self._version = 0
        self._moved = anyio.Event()
        for name, resources in (nodes or {}).items():
            self.add_node(name, resources)

    @property
    def reserved(self) -> int:
        """How many reservations there are, waiting or granted: 0 when nothing leaks."""
        return len(self._reservations)

    def add_node(self, name: str, resources: Mapping[str, float]) -> None:
        """A node joins."""
        self._views[name] = NodeView(name=name, resources=dict(resources))
        self.ledger.add_node(name, resources)
        self._move()

    def drain_node(self, name: str, left_s: float | None = None) -> None:
        """A notice that it will go away. It takes nothing new; what is on it stays."""
        self._views[name] = attrs.evolve(self._views[name], draining=True, left_s=left_s)
        self.ledger.close_node(name)
        self._move()

    def remove_node(self, name: str) -> None:
        """It is gone."""
        del self._views[name]
        self.ledger.remove_node(name)
        self._move()

    def remove_reservations(self) -> None:
        """Somebody else removes every reservation."""
        for reservation in list(self._reservations.values()):
            reservation.end()

    async def reserve(
        self, request: GangRequest, strategy: Strategy, avoid: Sequence[str], /
    ) -> Reservation:
        """See `Cluster`."""
        self.creation_faults.raise_next()
        self.created += 1
        reservation = FakeReservation(self, self.created)
        self._reservations[self.created] = reservation
        self.ledger.ask(self.created, attrs.evolve(request, strategy=strategy), avoid)
        self._serve()
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
            nodes=tuple(self._views.values()), supply=self.supply, version=self._version
        )

    async def changed(self, since: Snapshot, /) -> None:
        """See `Cluster`."""
        while self._version == since.version:
            await self._moved.wait()

    def forget(self, ticket: int) -> None:
        """Called by a reservation that ended."""
        if self._reservations.pop(ticket, None) is not None:
            self.removed += 1
            self.ledger.drop(ticket)
            self._serve()

    def _serve(self) -> None:
        for ticket, nodes in self.ledger.serve():
            self._reservations[ticket].grant(nodes)

    def _move(self) -> None:
        self._version += 1
        self._moved.set()
        self._moved = anyio.Event()
        self._serve()


class FakeReservation:
    """Made by `FakeCluster.reserve`."""

    def __init__(self, cluster: FakeCluster, ticket: int) -> None:
        self._cluster = cluster
        self._ticket = ticket
        self._nodes: tuple[str, ...] = ()
        self._ended = False
        self._settled = anyio.Event()

    def grant(self, nodes: tuple[str, ...]) -> None:
        self._nodes = nodes
        self._settled.set()

    def end(self) -> None:
        self._ended = True
        self._settled.set()
        self._cluster.forget(self._ticket)

    async def granted(self) -> Grant:
        await self._settled.wait()
        if self._ended:
            raise PlacementRemoved(f"reservation {self._ticket} was removed")
        return Grant(nodes=self._nodes, handle=self)

    async def remove(self) -> bool:
        await self._cluster.removals.passed()
        self._cluster.removal_faults.raise_next()
        self.end()
        return True
