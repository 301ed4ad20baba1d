"""The allocator on a real Ray: latency, deadlines, cancellation, avoidance, drains, labels, dead
nodes, autoscalers.

Longer than other files: each test here holds the one cluster, and checks that it leaves nothing.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import anyio.to_thread
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
RARE = GangRequest(bundle=Bundle(cpus=0, resources={"rare": 8}), nodes=2)


@pytest.fixture
def anyio_backend() -> str:
    """What of this depends on the loop is in the conformance suites, which run on both."""
    return "asyncio"


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


async def test_200_groups_that_never_fit_delay_nobody_and_cost_no_threads(
    cluster: RayCluster,
) -> None:
    said: list[Explanation] = []
    async with (
        Allocator(cluster, observe=said.append) as leases,
        anyio.create_task_group() as tasks,
    ):
        alone_s = await seconds_to_place(leases)
        threads = threading.active_count()
        for _ in range(200):
            tasks.start_soon(leases.acquire, NEVER)
        with anyio.fail_after(60):
            while await cluster.call(held) < 200:
                pass
        among_s = [await seconds_to_place(leases) for _ in range(5)]
        print(
            f"placed alone in {alone_s:.3f} s, among 200 that never fit in "
            f"{', '.join(f'{s:.3f}' for s in among_s)} s; "
            f"{threads} threads before, {threading.active_count()} after"
        )
        assert min(among_s) < 5
        # Not one a group: only those that the calls to the GCS share.
        assert threading.active_count() <= threads + cluster.params.threads
        assert len(native_threads()) < 200
        tasks.cancel_scope.cancel()
    assert [e.text for e in said] == [
        "needs 2 x {GPU: 8} on different nodes; largest node has {GPU: 0}"
    ]


def native_threads() -> list[str]:
    return os.listdir("/proc/self/task")


async def seconds_to_place(leases: Allocator) -> float:
    start = time.perf_counter()
    with anyio.fail_after(60):
        lease = await leases.acquire(ONE)
    took_s = time.perf_counter() - start
    assert await leases.release(lease, timeout_s=30)
    return took_s


async def test_what_never_fits_fails_with_numbers(cluster: RayCluster) -> None:
    params = AllocatorParams(wait_for_nodes_s=0.0)
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
            noticed = time.perf_counter()
            with anyio.fail_after(20):
                node, left_s = await anext(drains)
            print(f"told of a drain after {time.perf_counter() - noticed:.2f} s")
            assert time.perf_counter() - noticed < 5, "2 s on a quiet machine"
            assert node == victim.node_id
            assert left_s == pytest.approx(60, abs=20)
            await refused(cluster, on_victim)
            assert await leases.release(lease, timeout_s=10)
    finally:
        ray_cluster.retire_node(victim)


async def refused(cluster: RayCluster, request: GangRequest) -> None:
    params = AllocatorParams(wait_for_nodes_s=0.0)
    async with Allocator(cluster, params=params, observe=lambda _: None) as leases:
        with pytest.raises(Unschedulable, match="1 node draining"):
            await leases.acquire(request)


@pytest.mark.parametrize(
    ("strategy", "nodes", "on"),
    [
        (Strategy.PACK, 2, [2]),
        (Strategy.PACK, 3, [2, 1]),
        (Strategy.SPREAD, 2, [1, 1]),
        (Strategy.SPREAD, 3, [2, 1]),
        (Strategy.STRICT_PACK, 2, [2]),
        (Strategy.STRICT_SPREAD, 2, [1, 1]),
    ],
)
async def test_every_strategy_places_as_fit_says(
    cluster: RayCluster, strategy: Strategy, nodes: int, on: list[int]
) -> None:
    import ray

    request = GangRequest(bundle=Bundle(cpus=1), nodes=nodes, strategy=strategy)
    with anyio.fail_after(30):
        # PACK and SPREAD are wishes: Ray fulfils them as far as it knows what is free.
        while (await cluster.call(ray.available_resources)).get("CPU") != 4:
            pass
        async with Allocator(cluster).lease(request) as lease:
            assert sorted(Counter(lease.nodes).values(), reverse=True) == on


@pytest.mark.parametrize("strategy", [Strategy.STRICT_PACK, Strategy.STRICT_SPREAD])
async def test_every_strict_strategy_refuses_what_it_cannot_hold(
    cluster: RayCluster, strategy: Strategy
) -> None:
    request = GangRequest(bundle=Bundle(cpus=1), nodes=3, strategy=strategy)
    params = AllocatorParams(wait_for_nodes_s=0.0)
    async with Allocator(cluster, params=params, observe=lambda _: None) as leases:
        with pytest.raises(Unschedulable, match=r"with strategy=Strategy\.PACK it would fit"):
            await leases.acquire(request)


async def test_labels_and_accelerators_choose_the_node(
    cluster: RayCluster, ray_cluster: Any
) -> None:
    node = ray_cluster.add_node(
        num_cpus=1,
        num_gpus=2,
        resources={"accelerator_type:A100": 1, "disk": 2},
        labels={"zone": "a", "market": "spot"},
    )
    try:
        params = AllocatorParams(wait_for_nodes_s=0.0)
        async with Allocator(cluster, params=params, observe=lambda _: None) as leases:
            await placed_by_labels(leases, node.node_id)
            a100 = Bundle(cpus=0, gpus=1, resources={"disk": 0.5}, accelerator="A100")
            async with leases.lease(GangRequest(bundle=a100)) as lease:
                assert lease.nodes == (node.node_id,)
            t4 = GangRequest(bundle=Bundle(cpus=0, gpus=1, accelerator="T4"))
            with pytest.raises(Unschedulable) as caught:
                await leases.acquire(t4)
            assert str(caught.value) == (
                "needs 1 x {GPU: 1, accelerator: T4}; largest node has {GPU: 2, accelerator: A100}"
            )
    finally:
        ray_cluster.retire_node(node)


async def placed_by_labels(leases: Allocator, node: str) -> None:
    """Only `node` has labels of its own: zone a, market spot."""
    bundle = Bundle(cpus=1)
    with anyio.fail_after(60):
        for labels in ({"zone": "a"}, {"zone": "in(b, a)", "market": "spot"}):
            async with leases.lease(GangRequest(bundle=bundle, labels=labels)) as lease:
                assert lease.nodes == (node,)
        for labels in ({"zone": "!a"}, {"zone": "!in(a,b)"}):
            async with leases.lease(GangRequest(bundle=bundle, labels=labels)) as lease:
                assert node not in lease.nodes, "a label that is missing is not a"
        each = GangRequest(bundle=bundle, nodes=3, labels=[{}, {"zone": "a"}, {"zone": "!a"}])
        async with leases.lease(each) as lease:
            assert lease.nodes[1] == node
        elsewhere = GangRequest(bundle=bundle, labels={"market": "!on-demand"})
        async with leases.lease(elsewhere, avoid=[node]) as lease:
            assert node not in lease.nodes, "labels and avoidance hold together"
        pinned = GangRequest(bundle=bundle, labels={"ray.io/node-id": node})
        async with leases.lease(pinned, avoid=[node]) as lease:
            assert lease.nodes == (node,), "avoidance is dropped: there is no other"
        with pytest.raises(Unschedulable, match=r"none of \d nodes has zone=b \(zone: a\)"):
            await leases.acquire(GangRequest(bundle=bundle, labels={"zone": "b"}))


@contextmanager
def autoscaler_with(**node_groups: tuple[dict[str, int], int]) -> Iterator[None]:
    """Tell Ray, as an autoscaler does, of node groups by name: (resources, at most how many)."""
    import ray
    from ray.core.generated import autoscaler_pb2

    messages: Any = autoscaler_pb2
    raylet: Any = ray._raylet
    worker: Any = ray._private.worker.global_worker
    gcs = worker.gcs_client
    config = messages.ClusterConfig()
    for name, (resources, count) in node_groups.items():
        group = config.node_group_configs.add(name=name, max_count=count)
        group.resources.update(resources)
    gcs.report_cluster_config(config.SerializeToString())
    try:
        yield
    finally:
        gcs.internal_kv_del(
            raylet.GCS_AUTOSCALER_CLUSTER_CONFIG_KEY.encode(),
            False,
            raylet.GCS_AUTOSCALER_STATE_NAMESPACE.encode(),
        )


async def test_what_an_autoscaler_may_bring_is_told_and_waited_for(cluster: RayCluster) -> None:
    said: list[Explanation] = []
    with autoscaler_with(cpu=({"CPU": 4}, -1), rare=({"CPU": 8, "rare": 8}, 2)):
        async with (
            Allocator(cluster, observe=said.append) as leases,
            anyio.create_task_group() as tasks,
        ):
            start = time.perf_counter()
            tasks.start_soon(leases.acquire, RARE)
            with anyio.fail_after(20):
                while not said:
                    await anyio.lowlevel.checkpoint()
            print(f"told of the autoscaler after {time.perf_counter() - start:.2f} s")
            assert time.perf_counter() - start < 5
            tasks.cancel_scope.cancel()
    assert [e.text for e in said] == [
        "needs 2 x {rare: 8} on different nodes; largest node has {rare: 0}; "
        "would fit on 2 more nodes of type 'rare'; waiting for the autoscaler"
    ]
    assert said[0].fails_in_s > 500, "it waits until the placement deadline"


async def test_what_no_autoscaler_can_bring_is_refused(cluster: RayCluster) -> None:
    params = AllocatorParams(wait_for_nodes_s=0.0)
    with autoscaler_with(rare=({"CPU": 8, "rare": 4}, 10)):
        async with Allocator(cluster, params=params, observe=lambda _: None) as leases:
            with anyio.fail_after(20), pytest.raises(Unschedulable) as caught:
                await leases.acquire(RARE)
    assert str(caught.value).endswith(
        "no node type of the autoscaler can hold it: largest has {rare: 4}"
    )
    assert (await cluster.look()).node_types == (), "what the test told is taken back"


async def test_a_node_that_is_known_to_be_dead_is_never_leased(
    cluster: RayCluster, ray_cluster: Any
) -> None:
    victim = ray_cluster.add_node(num_cpus=1, resources={"victim": 1})
    killed = False
    try:
        only_there = GangRequest(bundle=Bundle(cpus=1, resources={"victim": 1}))
        params = AllocatorParams(wait_for_nodes_s=0.0)
        async with Allocator(cluster, params=params, observe=lambda _: None) as leases:
            async with leases.lease(only_there) as lease:
                assert lease.nodes == (victim.node_id,)
            ray_cluster.remove_node(victim)
            killed = True
            start, corpses, refusal = time.perf_counter(), 0, ""
            with anyio.fail_after(60):
                while not refusal:
                    known = victim.node_id not in await live_nodes(cluster)
                    async with leases.lease(ONE) as lease:
                        assert not (known and victim.node_id in lease.nodes)
                    try:
                        async with leases.lease(only_there):
                            assert not known, "the GCS knew that the node was dead"
                            corpses += 1  # Ray did not know: the ping of its worker will
                    except Unschedulable as error:
                        refusal = str(error)
            print(
                f"{corpses} leases of a dead node within {time.perf_counter() - start:.1f} s, "
                f"then: {refusal}"
            )
    finally:
        if not killed:
            ray_cluster.retire_node(victim)


async def test_a_ready_group_waits_while_the_gcs_takes_its_node_for_dead(
    cluster: RayCluster,
) -> None:
    from thornback.placement.on_ray import RayCluster

    asked: list[Sequence[str]] = []

    class Doubtful(RayCluster):
        doubts = True

        async def _all_alive(self, nodes: Sequence[str]) -> bool:
            asked.append(nodes)
            return await super()._all_alive(["", *nodes] if self.doubts else nodes)

    doubtful = Doubtful()
    reservation = await doubtful.reserve(ONE, Strategy.PACK, ())
    with anyio.fail_after(30), anyio.move_on_after(2) as scope:
        await reservation.granted()
    assert scope.cancelled_caught, "a group with a bundle that is nowhere is not granted"
    assert len(asked) > 1, "it was ready"
    doubtful.doubts = False
    with anyio.fail_after(30):
        grant = await reservation.granted()
    assert grant.nodes == asked[-1]
    assert await reservation.remove()


async def live_nodes(cluster: RayCluster) -> list[str]:
    return [node.name for node in (await cluster.look()).nodes]


@pytest.mark.parametrize("callbacks", [None, False])
async def test_a_group_that_loses_a_node_is_granted_when_it_is_whole_again(
    ray_cluster: Any, callbacks: bool | None
) -> None:
    from thornback.placement.on_ray import RayCluster

    cluster = RayCluster(callbacks=callbacks)
    gang = GangRequest(bundle=Bundle(cpus=0, resources={"victim": 1}), nodes=2)
    victims = [ray_cluster.add_node(num_cpus=0, resources={"victim": 1}) for _ in range(2)]
    try:
        reservation = await cluster.reserve(gang, Strategy.STRICT_SPREAD, ())
        with anyio.fail_after(30):
            assert set((await reservation.granted()).nodes) == {v.node_id for v in victims}
        lost = victims.pop()
        ray_cluster.remove_node(lost)
        with anyio.fail_after(60):
            while lost.node_id in await live_nodes(cluster):
                pass
        with anyio.move_on_after(1.5) as scope:
            await reservation.granted()
        assert scope.cancelled_caught, "half a gang is not granted"
        victims.append(ray_cluster.add_node(num_cpus=0, resources={"victim": 1}))
        with anyio.fail_after(60):
            grant = await reservation.granted()
        assert set(grant.nodes) == {v.node_id for v in victims}
        assert await reservation.remove()
    finally:
        for victim in victims:
            ray_cluster.retire_node(victim)
    assert held() == 0


@asynccontextmanager
async def busy(cluster: RayCluster) -> AsyncIterator[None]:
    """Let no call to the GCS begin within: the only thread that makes them waits."""
    go, waiting = threading.Event(), threading.Event()

    def wait() -> None:
        waiting.set()
        assert go.wait(60)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(cluster.call, wait)
        await anyio.to_thread.run_sync(waiting.wait)
        try:
            yield
        finally:
            go.set()


async def test_a_removal_that_is_given_up_is_done_all_the_same(cluster: RayCluster) -> None:
    from thornback.placement.on_ray import RayCluster, RayParams

    slow = RayCluster(params=RayParams(threads=1))
    reservation = await slow.reserve(ONE, Strategy.PACK, ())
    async with anyio.create_task_group() as tasks, busy(slow):
        tasks.start_soon(reservation.remove)
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()
    assert await cluster.call(held) == 0


async def test_a_creation_that_is_given_up_while_no_thread_is_free_undoes_itself(
    cluster: RayCluster,
) -> None:
    from thornback.placement.on_ray import RayCluster, RayParams

    begun, go = threading.Event(), threading.Event()

    class Slow(str):
        """A strategy: Ray compares it, in the thread, before it makes the group."""

        __slots__ = ()

        def __eq__(self, other: object) -> bool:
            begun.set()
            assert go.wait(60)
            return super().__eq__(other)

        __hash__ = str.__hash__

    slow = RayCluster(params=RayParams(threads=1, undo_s=0.05))
    strategy: Any = SimpleNamespace(value=Slow("PACK"))
    made = len(states())
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(slow.reserve, ONE, strategy, ())
        await anyio.to_thread.run_sync(begun.wait, 60)
        tasks.cancel_scope.cancel()
    go.set()
    with anyio.fail_after(30):
        while len(await cluster.call(states)) == made:
            pass  # it is made all the same
        while await cluster.call(held):
            pass


async def test_a_wait_can_be_cancelled_at_any_moment_and_taken_up_again(
    cluster: RayCluster,
) -> None:
    from thornback.placement.on_ray import RayCluster

    class Interrupted(RayCluster):
        whole = False

        async def _all_alive(self, nodes: Sequence[str]) -> bool:
            return self.whole

        async def call(self, function: Any) -> Any:
            if getattr(function, "__name__", "") == "ready":
                scope.cancel()
            return await super().call(function)

    interrupted = Interrupted()
    if not interrupted.callbacks:
        pytest.skip("this Ray is asked whether a group is ready, and nothing is waited for anew")
    reservation = await interrupted.reserve(ONE, Strategy.PACK, ())
    with anyio.fail_after(30):
        with anyio.CancelScope() as scope:
            await reservation.granted()
        assert scope.cancelled_caught
        interrupted.whole = True
        assert len((await reservation.granted()).nodes) == 1
    assert await reservation.remove()


async def test_cancelled_or_late_while_the_gcs_is_slow_nothing_is_held(
    cluster: RayCluster,
) -> None:
    from thornback.placement.on_ray import RayCluster, RayParams

    slow = RayCluster(params=RayParams(threads=1))
    params = AllocatorParams(place_s=0.05, release_s=0.05)
    async with Allocator(slow, params=params) as leases, busy(slow):
        with pytest.raises(PlacementTimedOut):
            await leases.acquire(ONE)
    async with (
        Allocator(slow, params=AllocatorParams(release_s=0.05)) as leases,
        busy(slow),
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(leases.acquire, ONE)
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()
    async with Allocator(slow) as leases:
        lease = await leases.acquire(ONE)
        async with busy(slow):
            assert not await leases.release(lease, timeout_s=0.05), "not confirmed yet"
        assert await leases.release(lease, timeout_s=10)
        assert leases.leases() == ()
    assert await cluster.call(held) == 0


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


async def test_groups_that_are_removed_at_once_leave_nothing_reserved(cluster: RayCluster) -> None:
    """Ray itself leaks what it has prepared for a group that is removed before it is committed."""
    import ray
    from ray.util.placement_group import placement_group

    from thornback.placement.on_ray import remove_group

    def make_and_remove() -> None:
        for number in range(400):
            group = placement_group([{"CPU": 1}])
            removed_at = time.perf_counter() + number % 40 * 1e-4  # so in every phase
            while time.perf_counter() < removed_at:
                pass
            remove_group(group)

    await cluster.call(make_and_remove)
    with anyio.fail_after(30):  # Ray counts late what is given back
        while (await cluster.call(ray.available_resources)).get("CPU") != 4:
            pass
