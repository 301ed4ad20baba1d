"""This machine as a cluster."""

from __future__ import annotations

import os

import anyio
import pytest

from thornback.placement import (
    Allocator,
    Bundle,
    GangRequest,
    Lease,
    Strategy,
    Supply,
    Unschedulable,
)
from thornback.placement.on_local import LocalCluster, machine_memory_bytes

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def test_the_machine_is_one_node_with_its_cpus_and_memory() -> None:
    (node,) = (await LocalCluster().look()).nodes
    assert node.name == "local"
    assert node.resources["CPU"] == os.cpu_count()
    assert node.resources["GPU"] == 0
    assert 0 < machine_memory_bytes() == node.resources["memory"]
    assert (await LocalCluster().look()).supply is Supply.FIXED


async def test_what_never_fits_is_refused_at_once_with_numbers() -> None:
    async with Allocator(LocalCluster(cpus=2)) as leases:
        with pytest.raises(Unschedulable, match=r"needs 1 x {CPU: 3}; largest node has {CPU: 2}"):
            await leases.acquire(GangRequest(bundle=Bundle(cpus=3)))


async def test_memory_beyond_the_machine_names_the_largest_level() -> None:
    async with Allocator(LocalCluster(cpus=2, memory_bytes=1000)) as leases:
        with pytest.raises(Unschedulable) as caught:
            await leases.acquire(GangRequest(bundle=Bundle(cpus=1, memory_bytes=1001)))
    assert caught.value.largest_memory_bytes == 1000


async def test_several_nodes_need_pack_here() -> None:
    pair = GangRequest(bundle=Bundle(cpus=1), nodes=2)
    async with Allocator(LocalCluster(cpus=2)) as leases:
        with pytest.raises(Unschedulable, match=r"strategy=Strategy\.PACK"):
            await leases.acquire(pair)
        packed = GangRequest(bundle=Bundle(cpus=1), nodes=2, strategy=Strategy.PACK)
        assert (await leases.acquire(packed)).nodes == ("local", "local")


async def test_those_who_wait_are_served_when_it_is_free() -> None:
    one = GangRequest(bundle=Bundle(cpus=1))
    served: list[Lease] = []
    async with Allocator(LocalCluster(cpus=1)) as leases, anyio.create_task_group() as tasks:
        first = await leases.acquire(one)

        async def wait() -> None:
            lease = await leases.acquire(one)
            served.append(lease)
            assert await leases.release(lease, timeout_s=1)

        for _ in range(3):
            tasks.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        assert not served
        assert await leases.release(first, timeout_s=1)
    assert len(served) == 3
