"""Gangs on hosts that nobody else uses: a cluster of your own."""

from collections.abc import Mapping, Sequence

import anyio

from thornback import placement
from thornback.placement import Allocator, Bundle, GangRequest, Grant, Ledger, Snapshot, Strategy


class Reserved:
    """What `Hosts.reserve` returns (fulfils `Reservation`)."""

    def __init__(self, ledger: Ledger["Reserved"]) -> None:
        self._ledger, self._settled = ledger, anyio.Event()
        self._nodes: tuple[str, ...] = ()

    def grant(self, nodes: tuple[str, ...]) -> None:
        self._nodes = nodes
        self._settled.set()

    async def granted(self) -> Grant:
        await self._settled.wait()
        if not self._nodes:
            raise placement.PlacementRemoved("the hosts were given back")
        return Grant(nodes=self._nodes, handle=self)

    async def remove(self) -> bool:
        self._ledger.drop(self)
        self.grant(())  # whoever waits need not wait any more
        return True


class Hosts:
    """Hosts by name, with what they have (fulfils `Cluster`)."""

    def __init__(self, hosts: Mapping[str, Mapping[str, float]]) -> None:
        self.ledger = Ledger(Reserved.grant, hosts)
        nodes = [placement.NodeView(name=name, resources=hosts[name]) for name in hosts]
        self._now = Snapshot(nodes=tuple(nodes), supply=placement.Supply.FIXED)

    async def reserve(self, request: GangRequest, _: Strategy, avoid: Sequence[str], /) -> Reserved:
        self.ledger.ask(reserved := Reserved(self.ledger), request, avoid)
        return reserved

    async def look(self) -> Snapshot:
        return self._now

    async def changed(self, since: Snapshot, /) -> None:
        await anyio.sleep_forever()  # these hosts never change


async def main() -> None:
    hosts = Hosts({"a": {"CPU": 64, "GPU": 8}, "b": {"CPU": 64}, "c": {"CPU": 64, "GPU": 8}})
    async with Allocator(hosts).lease(GangRequest(bundle=Bundle(gpus=8), nodes=2)) as lease:
        print(lease.nodes)


if __name__ == "__main__":
    anyio.run(main)
