"""The allocator on a real Ray: latency, deadlines, cancellation, avoidance, drains."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from thornback.placement import (
    Allocator,
    AllocatorParams,
    Bundle,
    Explanation,
    GangRequest,
    Lease,
    PlacementRemoved,
    PlacementTimedOut,
    Strategy,
    Unschedulable,
)

if TYPE_CHECKING:
    from thornback.placement.on_ray import RayCluster

pytestmark = [pytest.mark.anyio, pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

ONE = GangRequest(bundle=Bundle(cpus=1))
ALL = GangRequest(bundle=Bundle(cpus=2), nodes=2)
NEVER = GangRequest(bundle=Bundle(cpus=0, gpus=8), nodes=2)


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def states() -> dict[str, str]:
    """State by id of every placement group that Ray remembers."""
    from ray.util.placement_group import placement_group_table

    return {group: row["state"] for group, row in placement_group_table().items()}


def held() -> int:
    return sum(state != "REMOVED" for state in states().values())


@pytest.fixture
def cluster() -> Iterator[RayCluster]:
    from thornback.placement.on_ray import RayCluster

    assert held() == 0
    yield RayCluster()
    assert held() == 0, "every group of the test is removed"


async def test_a_lease_takes_milliseconds(cluster: RayCluster) -> None:
    took_s = []
    async with Allocator(cluster) as leases:
        for _ in range(20):
            start = time.perf_counter()
            lease = await leases.acquire(ONE)
            took_s.append(time.perf_counter() - start)
            assert await leases.release(lease, timeout_s=10)
    took_s.sort()
    print(f"acquire: median {took_s[10] * 1000:.1f} ms, worst {took_s[-1] * 1000:.1f} ms")
    assert took_s[10] < 1.0


async def test_bundles_are_on_the_nodes_that_the_lease_names(cluster: RayCluster) -> None:
    import ray
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    def node_of(handle: Any, index: int) -> str:
        where = ray.remote(num_cpus=1)(lambda: ray.get_runtime_context().get_node_id())
        strategy = PlacementGroupSchedulingStrategy(handle, placement_group_bundle_index=index)
        return str(ray.get(where.options(scheduling_strategy=strategy).remote(), timeout=120))

    async with Allocator(cluster).lease(ALL) as lease:
        assert len(set(lease.nodes)) == 2
        for index, node in enumerate(lease.nodes):
            assert await cluster.call(partial(node_of, lease.handle, index)) == node


async def test_a_gang_of_nothing_is_placed(cluster: RayCluster) -> None:
    nothing = GangRequest(bundle=Bundle(cpus=0), nodes=3, strategy=Strategy.PACK)
    async with Allocator(cluster).lease(nothing) as lease:
        assert len(lease.nodes) == 3


async def test_cancelled_while_pending_leaves_only_removed_groups(cluster: RayCluster) -> None:
    before = states()
    async with Allocator(cluster) as leases, leases.lease(ALL):
        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(leases.acquire, ONE)
            await anyio.wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()
        new = [state for group, state in states().items() if group not in before]
        assert sorted(new) == ["CREATED"] + ["REMOVED"] * 5


async def test_the_deadline_holds(cluster: RayCluster) -> None:
    params = AllocatorParams(place_s=0.5)
    async with (
        Allocator(cluster).lease(ALL),
        Allocator(cluster, params=params) as leases,
    ):
        start = time.perf_counter()
        with pytest.raises(PlacementTimedOut, match="was not placed within"):
            await leases.acquire(ONE)
        assert time.perf_counter() - start < 10
        assert held() == 1


async def test_groups_that_never_fit_do_not_delay_one_that_does(cluster: RayCluster) -> None:
    said: list[Explanation] = []
    async with (
        Allocator(cluster, observe=said.append) as leases,
        anyio.create_task_group() as tasks,
    ):
        for _ in range(20):
            tasks.start_soon(leases.acquire, NEVER)
        await anyio.wait_all_tasks_blocked()
        start = time.perf_counter()
        with anyio.fail_after(10):
            lease = await leases.acquire(ONE)
        print(f"placed among 20 that never fit in {time.perf_counter() - start:.3f} s")
        assert await leases.release(lease, timeout_s=10)
        tasks.cancel_scope.cancel()
    assert [e.text for e in said] == [
        "needs 2 x {GPU: 8} on different nodes; largest node has {GPU: 0}"
    ]


async def test_what_never_fits_fails_with_numbers(cluster: RayCluster) -> None:
    params = AllocatorParams(infeasible_after_s=0.0)
    huge = GangRequest(bundle=Bundle(cpus=2, memory_bytes=2**50))
    async with Allocator(cluster, params=params, observe=lambda _: None) as leases:
        with pytest.raises(Unschedulable, match=r"memory: 1024 TiB}; largest node") as caught:
            await leases.acquire(huge)
    assert caught.value.largest_memory_bytes
    assert caught.value.largest_memory_bytes < 2**50


async def test_avoided_nodes_are_avoided_while_others_can_hold_it(cluster: RayCluster) -> None:
    nodes = [node.name for node in (await cluster.look()).nodes if node.resources.get("CPU")]
    async with Allocator(cluster) as leases:
        for avoided in nodes * 3:
            async with leases.lease(ONE, avoid=[avoided]) as lease:
                assert lease.nodes != (avoided,)
        async with leases.lease(ALL, avoid=nodes) as lease:
            assert sorted(lease.nodes) == sorted(nodes), "there are no others"


async def test_avoidance_ends_when_the_others_stay_busy(cluster: RayCluster) -> None:
    nodes = [node.name for node in (await cluster.look()).nodes if node.resources.get("CPU")]
    full = GangRequest(bundle=Bundle(cpus=2))
    hasty = Allocator(cluster, params=AllocatorParams(avoid_s=0.2))
    async with Allocator(cluster).lease(full, avoid=nodes[:1]) as lease:
        assert lease.nodes == (nodes[1],)
        async with hasty.lease(full, avoid=nodes[:1]) as other:
            assert other.nodes == (nodes[0],), "the other one is busy for longer than avoid_s"


async def test_a_group_removed_by_others_ends_the_wait(cluster: RayCluster) -> None:
    from ray.util.placement_group import (
        get_placement_group,
        placement_group_table,
        remove_placement_group,
    )

    removed: list[Exception] = []

    async def acquire(leases: Allocator) -> None:
        try:
            await leases.acquire(ONE)
        except PlacementRemoved as error:
            removed.append(error)

    def remove_pending() -> bool:
        rows = placement_group_table().values()
        names = [row["name"] for row in rows if row["state"] == "PENDING"]
        for name in names:
            remove_placement_group(get_placement_group(name))
        return bool(names)

    with anyio.fail_after(30):
        async with (
            Allocator(cluster) as leases,
            leases.lease(ALL),
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(acquire, leases)
            while not await cluster.call(remove_pending):
                pass
    assert len(removed) == 1


async def test_a_creation_is_undone_in_every_order(cluster: RayCluster) -> None:
    from ray.util.placement_group import placement_group

    from thornback.placement.on_ray import Creation

    def creation(name: str) -> Creation:
        return Creation(
            bundles=[{"CPU": 1}], strategy="PACK", name=name, selector=None, callbacks=True
        )

    def check() -> None:
        first = creation("thornback-undone-after")
        first.create()
        first.undo()
        first.undo()
        second = creation("thornback-undone-before")
        second.undo()
        with pytest.raises(PlacementRemoved):
            second.create()
        third = creation("thornback-made-without-an-answer")
        placement_group([{"CPU": 1}], name=third.name)
        third.undo()

    await cluster.call(check)
    assert held() == 0


async def test_a_drain_is_told(cluster: RayCluster, ray_cluster: Any) -> None:
    import ray
    from ray.core.generated import autoscaler_pb2

    worker: Any = ray._private.worker.global_worker
    messages: Any = autoscaler_pb2
    victim = ray_cluster.add_node(num_cpus=1, resources={"victim": 1})
    try:
        on_victim = GangRequest(bundle=Bundle(cpus=1, resources={"victim": 1}))
        async with Allocator(cluster) as leases, aclosing(leases.drains()) as drains:
            lease = await leases.acquire(on_victim)
            assert lease.nodes == (victim.node_id,)
            gcs = worker.gcs_client
            reason = messages.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
            until_ms = int((time.time() + 60) * 1000)
            accepted, why = gcs.drain_node(victim.node_id, reason, "spot", until_ms)
            assert accepted, why
            with anyio.fail_after(20):
                node, left_s = await anext(drains)
            assert node == victim.node_id
            assert left_s == pytest.approx(60, abs=20)
            await refused(cluster, on_victim)
            assert await leases.release(lease, timeout_s=10)
    finally:
        ray_cluster.remove_node(victim)


async def refused(cluster: RayCluster, request: GangRequest) -> None:
    params = AllocatorParams(infeasible_after_s=0.0)
    async with Allocator(cluster, params=params, observe=lambda _: None) as leases:
        with pytest.raises(Unschedulable, match="1 node draining"):
            await leases.acquire(request)


async def test_many_leases_at_once(cluster: RayCluster) -> None:
    got: list[Lease] = []
    tiny = GangRequest(bundle=Bundle(cpus=0.01))

    async with Allocator(cluster) as leases:

        async def acquire() -> None:
            got.append(await leases.acquire(tiny))

        async with anyio.create_task_group() as tasks:
            for _ in range(100):
                tasks.start_soon(acquire)
        assert held() == 100
    assert len(got) == 100
