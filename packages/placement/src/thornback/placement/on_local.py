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

__all__ = ["LocalCluster", "machine_memory_bytes"]


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
        resources: custom resources by name; an accelerator is `{"accelerator_type:A100": 1}`.
        node: the name of the node.
        labels: of the node, for requests that select by them.
    """

    def __init__(
        self,
        *,
        cpus: float | None = None,
        gpus: float = 0.0,
        memory_bytes: int | None = None,
        resources: Mapping[str, float] | None = None,
        node: str = "local",
        labels: Mapping[str, str] | None = None,
    ) -> None:
        amounts = {
            "CPU": float(os.cpu_count() or 1) if cpus is None else cpus,
            "GPU": gpus,
            "memory": float(machine_memory_bytes() if memory_bytes is None else memory_bytes),
            **(resources or {}),
        }
        self._view = NodeView(name=node, resources=amounts, labels=dict(labels or {}))
        self._ledger: Ledger[_LocalReservation] = Ledger(
            _LocalReservation.grant, {node: amounts}, labels={node: self._view.labels}
        )

    @property
    def node(self) -> str:
        """The name of the one node."""
        return self._view.name

    @property
    def reserved(self) -> int:
        """How many reservations there are, waiting or granted."""
        return len(self._ledger.waiting) + len(self._ledger.held)

    async def reserve(
        self, request: GangRequest, strategy: Strategy, avoid: Sequence[str], /
    ) -> Reservation:
        """Ask for the bundles. Never fails; see `Cluster`."""
        reservation = _LocalReservation(self._ledger)
        self._ledger.ask(reservation, request, avoid)
        return reservation

    async def look(self) -> Snapshot:
        """Return the one node, which never changes."""
        return Snapshot(nodes=(self._view,), supply=Supply.FIXED)

    async def changed(self, since: Snapshot, /) -> None:
        """Never return: the machine stays as it is."""
        await anyio.sleep_forever()


class _LocalReservation:
    def __init__(self, ledger: Ledger[_LocalReservation]) -> None:
        self._ledger = ledger
        self._nodes: tuple[str, ...] = ()
        self._removed = False
        self._settled = anyio.Event()

    def grant(self, nodes: tuple[str, ...]) -> None:
        self._nodes = nodes
        self._settled.set()

    async def granted(self) -> Grant:
        await self._settled.wait()
        if self._removed:
            raise PlacementRemoved("the reservation on this machine was removed")
        return Grant(nodes=self._nodes, handle=self)

    async def remove(self) -> bool:
        self._removed = True
        self._settled.set()
        self._ledger.drop(self)
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
