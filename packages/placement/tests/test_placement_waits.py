"""Waiting that ends early, in vain, or hopes for an autoscaler: in every phase, 200 at once."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

import anyio
import attrs
import pytest

from thornback.placement import (
    Allocator,
    AllocatorParams,
    Bundle,
    Explanation,
    GangRequest,
    Grant,
    NodeType,
    NodeView,
    PlacementTimedOut,
    RemovalParams,
    Reservation,
    Snapshot,
    Strategy,
    Supply,
    Unschedulable,
)
from thornback.placement.attempt import Attempt
from thornback.placement.explain import Diagnoses
from thornback.placement.params import Explainer
from thornback.placement.testing import FakeCluster

pytestmark = pytest.mark.anyio

ONE = GangRequest(bundle=Bundle(cpus=1))
TWO = GangRequest(bundle=Bundle(cpus=2), nodes=2)
PAIR = GangRequest(bundle=Bundle(cpus=1), nodes=2)
HUGE = GangRequest(bundle=Bundle(cpus=100), name="huge")


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def cluster(supply: Supply = Supply.CHANGING) -> FakeCluster:
    return FakeCluster({"a": {"CPU": 2}, "b": {"CPU": 2}}, supply=supply)


SMALL = NodeType(name="small", resources={"CPU": 8}, more=4)
BIG = NodeType(name="big", resources={"CPU": 200, "memory": 2**40}, more=2)


async def test_what_fits_when_nodes_come_is_told_and_waited_for() -> None:
    fake, said = cluster(Supply.ELASTIC), list[Explanation]()
    fake.node_types = (SMALL, BIG)
    pair = GangRequest(bundle=Bundle(cpus=100), nodes=2)
    async with (
        Allocator(fake, observe=said.append) as leases,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(leases.acquire, pair)
        await anyio.wait_all_tasks_blocked()
        assert [e.text for e in said] == [
            "needs 2 x {CPU: 100} on different nodes; largest node has {CPU: 2}; "
            "would fit on 2 more nodes of type 'big'; waiting for the autoscaler"
        ]
        assert said[0].fails_in_s == pytest.approx(600, abs=5)
        fake.add_node("c", {"CPU": 1})
        await anyio.wait_all_tasks_blocked()
        assert len(said) == 1, "the reason is the same"
        fake.add_node("d", {"CPU": 200})
        await anyio.wait_all_tasks_blocked()
        assert said[-1].text.endswith(
            "would fit on 1 more node of type 'big'; waiting for the autoscaler"
        )
        fake.add_node("e", {"CPU": 200})
    assert len(said) == 2
    assert fake.reserved == 0


async def test_what_no_node_type_can_hold_is_refused_soon() -> None:
    fake, said = cluster(Supply.ELASTIC), list[Explanation]()
    fake.node_types = (SMALL,)
    params = AllocatorParams(wait_for_nodes_s=math.inf, place_s=math.inf)
    async with Allocator(fake, params=params, observe=said.append) as leases:
        with pytest.raises(Unschedulable, match=r"no node type .*: largest has {CPU: 8}"):
            await leases.acquire(HUGE)
    (explanation,) = said
    assert explanation.text == (
        "needs 1 x {CPU: 100}; largest node has {CPU: 2}; "
        "no node type of the autoscaler can hold it: largest has {CPU: 8}"
    )


async def test_no_room_while_a_node_drains_is_not_hopeless() -> None:
    fake = cluster(Supply.ELASTIC)
    fake.node_types = (attrs.evolve(SMALL, more=0),)
    fake.add_node("c", {"CPU": 8})
    fake.drain_node("c", 60.0)
    async with Allocator(fake, observe=lambda _: None) as leases:
        with anyio.move_on_after(0.05) as scope:
            await leases.acquire(GangRequest(bundle=Bundle(cpus=8)))
        assert scope.cancelled_caught, "its successor may hold the gang"


async def test_node_types_do_not_count_where_nothing_comes() -> None:
    fake = cluster(Supply.CHANGING)
    fake.node_types = (BIG,)
    params = AllocatorParams(wait_for_nodes_s=0.0)
    async with Allocator(fake, params=params, observe=lambda _: None) as leases:
        with pytest.raises(Unschedulable) as caught:
            await leases.acquire(HUGE)
    assert "autoscaler" not in str(caught.value)


async def test_a_preference_does_not_wait_for_the_autoscaler() -> None:
    fake = cluster(Supply.ELASTIC)
    fake.node_types = (NodeType(name="same", resources={"CPU": 2}),)
    async with Allocator(fake) as leases:
        assert (await leases.acquire(TWO, avoid=["a"])).nodes == ("a", "b")


@asynccontextmanager
async def in_phase(phase: str, fake: FakeCluster) -> AsyncGenerator[None, None]:
    """Let an `acquire` of ONE within come to this phase, and no further."""
    async with Allocator(fake) as others:
        if phase == "creating":
            fake.creations.close()
        if phase == "pending":
            await others.acquire(TWO)
        yield
        fake.creations.open()
        fake.removals.open()


PHASES = pytest.mark.parametrize("phase", ["creating", "pending", "granted", "removing"])


@PHASES
async def test_cancelled_in_every_phase_nothing_is_held(phase: str) -> None:
    fake = cluster()
    async with in_phase(phase, fake), Allocator(fake) as leases:
        before = fake.reserved

        async def use() -> None:
            async with leases.lease(ONE):
                if phase == "removing":
                    fake.removals.close()
                    return
                await anyio.sleep_forever()

        with anyio.fail_after(10):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(use)
                await anyio.wait_all_tasks_blocked()
                assert fake.reserved == before + 1
                tasks.cancel_scope.cancel()
                fake.creations.open()
                fake.removals.open()
        assert fake.reserved == before
        assert leases.leases() == ()


@PHASES
async def test_out_of_time_in_every_phase_nothing_is_held(phase: str) -> None:
    fake = cluster()
    params = AllocatorParams(place_s=0.01, release_s=0.01)
    async with in_phase(phase, fake), Allocator(fake, params=params) as leases:
        before = fake.reserved
        with anyio.fail_after(10):
            if phase in {"creating", "pending"}:
                with pytest.raises(PlacementTimedOut):
                    await leases.acquire(ONE)
            else:
                lease = await leases.acquire(ONE)
                if phase == "removing":
                    fake.removals.close()
                confirmed = await leases.release(lease, timeout_s=0.01)
                assert confirmed is (phase == "granted")
        fake.creations.open()
        fake.removals.open()
        await anyio.wait_all_tasks_blocked()
        assert fake.reserved == before
        assert leases.leases() == ()


async def test_200_that_never_fit_delay_nobody() -> None:
    fake = cluster()
    async with (
        Allocator(fake, observe=lambda _: None) as leases,
        anyio.create_task_group() as tasks,
    ):
        for _ in range(200):
            tasks.start_soon(leases.acquire, HUGE)
        await anyio.wait_all_tasks_blocked()
        assert fake.reserved == 200
        with anyio.fail_after(5):
            lease = await leases.acquire(ONE)
        assert lease.nodes == ("a",)
        assert fake.look_count < 10, "nobody looks by himself"
        tasks.cancel_scope.cancel()
    assert fake.reserved == 0


async def test_busy_others_use_the_nodes_is_explained_once_with_numbers() -> None:
    fake, said = cluster(), list[Explanation]()
    heard = anyio.Event()

    def observe(explanation: Explanation) -> None:
        said.append(explanation)
        heard.set()

    async with (
        Allocator(fake) as others,
        Allocator(fake, observe=lambda _: None) as leases,
        anyio.create_task_group() as tasks,
    ):
        leases.explain_to(observe)
        await others.acquire(GangRequest(bundle=Bundle(cpus=2)))
        await leases.acquire(ONE)
        tasks.start_soon(leases.acquire, PAIR)
        tasks.start_soon(leases.acquire, PAIR)
        with anyio.fail_after(2.0):
            await heard.wait()
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()
    (explanation,) = said
    assert explanation.busy
    assert explanation.text == (
        "needs 2 x {CPU: 1} on different nodes; 2 nodes have {CPU: 4}, this run holds {CPU: 1}; "
        "others use what it needs of the rest"
    )


async def test_busy_only_this_run_uses_the_nodes_says_nothing() -> None:
    fake, said = cluster(), list[Explanation]()
    async with (
        Allocator(fake, observe=said.append) as leases,
        anyio.create_task_group() as tasks,
    ):
        await leases.acquire(TWO)
        with anyio.move_on_after(1.3):
            await leases.acquire(ONE)
        tasks.cancel_scope.cancel()
    assert said == []


def test_explainer_reason_that_flickers_is_told_after_growing_pauses() -> None:
    said = list[Explanation]()
    explainer = Explainer(said.append)
    for tick in range(600):
        for _ in range(2):
            explainer.tell(ONE, str(tick), float(tick), 600.0, busy=True)
        explainer.forget(ONE)
    assert 8 <= len(said) <= 20
    assert explainer.tell(ONE, "new", 600.0, 600.0) > 600.0, "told when the pause is over"
    assert explainer.tell(ONE, "new", 700.0, 600.0) == math.inf
    assert said[-1].text == "new"


class Restless:
    """A cluster whose `changed` returns at once and yields nothing to the event loop."""

    def __init__(self) -> None:
        self.looks = 0

    async def reserve(
        self, request: GangRequest, strategy: Strategy, avoid: Sequence[str], /
    ) -> Reservation:
        return await FakeCluster({}).reserve(request, strategy, avoid)

    async def look(self) -> Snapshot:
        self.looks += 1
        return Snapshot(nodes=(NodeView(name="a", resources={"CPU": 1}),))

    async def changed(self, since: Snapshot, /) -> None:
        return


async def test_watcher_changed_returns_at_once_does_not_spin() -> None:
    fake = Restless()
    async with Allocator(fake, observe=lambda _: None) as leases:
        with pytest.raises(PlacementTimedOut), anyio.fail_after(5.0):
            await leases.acquire(GangRequest(bundle=Bundle(cpus=1)), timeout_s=0.5)
    assert fake.looks <= 35


async def test_acquire_node_comes_after_place_s_is_granted_not_busy() -> None:
    """A look may show the node before its resources can be granted."""
    fake, got, done = cluster(), list[tuple[str, ...]](), anyio.Event()
    fake.creations.close()

    async def acquire(leases: Allocator) -> None:
        got.append((await leases.acquire(HUGE, timeout_s=0.5)).nodes)
        done.set()

    async with (
        Allocator(fake, observe=lambda _: None) as leases,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(acquire, leases)
        with anyio.move_on_after(0.6) as longer_than_place_s:
            await done.wait()
        assert longer_than_place_s.cancelled_caught
        fake.add_node("c", {"CPU": 200})
        await anyio.wait_all_tasks_blocked()
        fake.creations.open()
    assert got == [("c",)]


async def test_diagnoses_busy_many_ask_alike_is_found_once_per_look_and_lease() -> None:
    nodes = tuple(NodeView(name=name, resources={"CPU": 2}) for name in "ab")
    diagnoses, snapshot = Diagnoses(), Snapshot(nodes=nodes)
    first = diagnoses.busy(ONE, snapshot, (), [])
    assert first is not None
    assert diagnoses.busy(attrs.evolve(ONE, name="called otherwise"), snapshot, (), []) is first
    ours = Attempt(
        lease_id=1,
        request=ONE,
        strategy=Strategy.PACK,
        avoid=(),
        removal=RemovalParams(),
        on_settled=lambda: None,
        grant=Grant(nodes=("a",)),
    )
    assert "this run holds {CPU: 1}" in (diagnoses.busy(ONE, snapshot, (), [ours]) or "")
    assert "1 node has {CPU: 2}" in (diagnoses.busy(ONE, snapshot, ("a",), []) or "")
    fewer = Snapshot(nodes=nodes[:1])
    assert "1 node has {CPU: 2}" in (diagnoses.busy(ONE, fewer, (), []) or "")
