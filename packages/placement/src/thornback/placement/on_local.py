"""This machine as a cluster of one node, with honest accounts and without polling."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import anyio

from thornback.placement.bundles import GangRequest, NodeView, Strategy, Supply
from thornback.placement.errors import PlacementRemoved
from thornback.placement.ledger import Ledger
from thornback.placement.ports import Grant, Reservation, Snapshot


class LocalCluster:
    """One node with CPUs, GPUs and memory that are counted, not enforced.

    Requests are served first come first served; a small one may overtake a large one, eight times
    at most. A gang of several nodes fits only with `strategy=Strategy.PACK` (all bundles on the one
    node).

    Args:
        cpus: default: the machine's logical CPUs.
        gpus: default none.
        memory_bytes: default: the machine's memory, or the limit of its control group if that is
            less.
        resources: custom resources by name.
        node: the name of the node.
    """

    def __init__(
        self,
        *,
        cpus: float | None = None,
        gpus: float = 0.0,
        memory_bytes: int | None = None,
        resources: Mapping[str, float] | None = None,
        node: str = "local",
    ) -> None:
        amounts = {
            "CPU": float(os.cpu_count() or 1) if cpus is None else cpus,
            "GPU": gpus,
            "memory": float(machine_memory_bytes() if memory_bytes is None else memory_bytes),
            **(resources or {}),
        }
        self._view = NodeView(name=node, resources=amounts)
        self._ledger = Ledger()
        self._ledger.add_node(node, amounts)
        self._reservations: dict[int, _LocalReservation] = {}
        self._count = 0

    @property
    def node(self) -> str:
        """The name of the one node."""
        return self._view.name

    @property
    def reserved(self) -> int:
        """How many reservations there are, waiting or granted."""
        return len(self._reservations)

    async def reserve(
        self, request: GangRequest, strategy: Strategy, avoid: Sequence[str], /
    ) -> Reservation:
        """Ask for the bundles. Never fails; see `Cluster`."""
        self._count += 1
        reservation = _LocalReservation(self, self._count)
        self._reservations[self._count] = reservation
        self._ledger.ask(self._count, request, avoid)
        self._serve()
        return reservation

    async def look(self) -> Snapshot:
        """Return the one node, which never changes."""
        return Snapshot(nodes=(self._view,), supply=Supply.FIXED)

    async def changed(self, since: Snapshot, /) -> None:
        """Never return: the machine stays as it is."""
        await anyio.sleep_forever()

    def _drop(self, ticket: int) -> None:
        self._ledger.drop(ticket)
        self._reservations.pop(ticket, None)
        self._serve()

    def _serve(self) -> None:
        for ticket, nodes in self._ledger.serve():
            self._reservations[ticket].grant(nodes)


class _LocalReservation:
    def __init__(self, cluster: LocalCluster, ticket: int) -> None:
        self._cluster = cluster
        self._ticket = ticket
        self._nodes: tuple[str, ...] | None = None
        self._removed = False
        self._settled = anyio.Event()

    def grant(self, nodes: tuple[str, ...]) -> None:
        self._nodes = nodes
        self._settled.set()

    async def granted(self) -> Grant:
        await self._settled.wait()
        if self._removed or self._nodes is None:
            raise PlacementRemoved(f"reservation {self._ticket} on this machine was removed")
        return Grant(nodes=self._nodes, handle=self)

    async def remove(self) -> bool:
        if not self._removed:
            self._removed = True
            self._settled.set()
            self._cluster._drop(self._ticket)
        return True


def machine_memory_bytes() -> int:
    """Return the machine's memory in bytes, or the limit of this control group if that is less.

    Source: POSIX `sysconf` (on Linux the MemTotal of /proc/meminfo) and cgroup v2 `memory.max`.
    """
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return total
    return min(total, int(limit)) if limit.isdigit() else total
