"""Used as a stranger would. Never executed: mypy reads it, against the sources and against the
installed wheel."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from typing import assert_never, assert_type

import anyio
from opentelemetry import trace

from thornback.placement import (
    Allocator,
    AllocatorClosed,
    AllocatorParams,
    Bundle,
    Cluster,
    Explanation,
    GangRequest,
    Grant,
    Lease,
    LeaseState,
    LeaseView,
    Ledger,
    NodeType,
    NodeView,
    PlacementError,
    PlacementRemoved,
    PlacementTimedOut,
    RemovalParams,
    Reservation,
    Snapshot,
    Strategy,
    Supply,
    Unschedulable,
    explain_unplaceable,
    matches,
)


class Booking:
    """Fulfils `Reservation`."""

    async def granted(self) -> Grant:
        return Grant(nodes=("a", "b"), handle="job 4711")

    async def remove(self) -> bool:
        return True


class Batch:
    """Fulfils `Cluster`; its parameters have names of their own."""

    async def reserve(self, what: GangRequest, how: Strategy, without: Sequence[str], /) -> Booking:
        if how is Strategy.STRICT_SPREAD and what.nodes > 2:
            raise PlacementRemoved("withdrawn")
        return Booking()

    async def look(self) -> Snapshot:
        node = NodeView(
            name="a",
            resources={"CPU": 8, "GPU": 0.5},
            labels={"zone": "a"},
            draining=True,
            left_s=30.0,
        )
        types = (NodeType(name="gpu", resources={"GPU": 8}, labels={"zone": "b"}, more=4),)
        return Snapshot(nodes=(node,), supply=Supply.ELASTIC, version=1, node_types=types)

    async def changed(self, seen: Snapshot, /) -> None:
        assert_type(seen.nodes, tuple[NodeView, ...])
        await anyio.sleep(5)


reservation: Reservation = Booking()
cluster: Cluster = Batch()


def requests() -> None:
    bundle = Bundle(cpus=0.5, gpus=1, memory_bytes=2**30, resources={"disk": 1.5})
    request = GangRequest(bundle=bundle, nodes=2, strategy=Strategy.SPREAD, name="mine")
    assert_type(request.bundle.cpus, float)
    assert_type(request.bundle.memory_bytes, int)
    assert_type(request.strategy, Strategy | None)
    nodes = [NodeView(name="a", resources={"CPU": 1}), NodeView(name="b", resources={})]
    assert_type(explain_unplaceable(request, nodes), str | None)
    types = [NodeType(name="gpu", resources={"GPU": 8})]
    assert_type(types[0].more, int | None)
    assert_type(explain_unplaceable(request, nodes, types), str | None)


def labels() -> None:
    bundle = Bundle(gpus=1, accelerator="A100")
    assert_type(bundle.accelerator, str)
    for_all = GangRequest(bundle=bundle, nodes=2, labels={"zone": "in(a,b)", "market": "!spot"})
    for_each = GangRequest(bundle=bundle, nodes=2, labels=[{"zone": "a"}, {}])
    for request in (for_all, for_each):
        for selectors in request.labels:
            assert_type(selectors["zone"], str)
            assert_type(matches(selectors, {"zone": "a"}), bool)


def told(explanation: Explanation) -> None:
    assert_type(explanation.request, GangRequest)
    assert_type(explanation.text, str)
    assert_type(explanation.fails_in_s, float)


async def leases() -> None:
    request = GangRequest(bundle=Bundle())
    removal = RemovalParams(attempts=3, delay_s=0.1)
    params = AllocatorParams(
        place_s=60,
        wait_for_nodes_s=5,
        avoid_s=5,
        release_s=10,
        look_s=5,
        look_again_s=1,
        drain_slack_s=1,
        removal=removal,
    )
    tracer = trace.get_tracer("mine")
    async with Allocator(cluster, params=params, observe=told, tracer=tracer) as allocator:
        assert_type(allocator, Allocator)
        lease = await allocator.acquire(request, avoid=("a",))
        assert_type(lease, Lease)
        assert_type(lease.lease_id, int)
        assert_type(lease.nodes, tuple[str, ...])
        assert_type(lease.handle, object)
        assert_type(await allocator.release(lease, timeout_s=30), bool)
        drains = allocator.drains()
        assert_type(drains, AsyncGenerator[tuple[str, float | None], None])
        async for node, left_s in drains:
            assert_type(node, str)
            assert_type(left_s, float | None)
        for view in allocator.leases():
            assert_type(view, LeaseView)
            assert_type(view.nodes, tuple[str, ...])
            match view.state:
                case LeaseState.PENDING | LeaseState.HELD | LeaseState.RELEASING:
                    pass
                case _:
                    assert_never(view.state)
        assert_type(await allocator.close(), bool)
    async with Allocator(Batch()).lease(request, avoid=["b"]) as lease:
        assert_type(lease, Lease)


async def errors(allocator: Allocator) -> str:
    try:
        await allocator.acquire(GangRequest(bundle=Bundle()))
    except Unschedulable as error:
        assert_type(error.largest_memory_bytes, int | None)
        return error.message
    except PlacementTimedOut as error:
        return f"{error.message} after {error.timeout_s} s"
    except (AllocatorClosed, PlacementRemoved):
        return "gone"
    except PlacementError as error:
        return str(error)
    return ""


def accounts() -> None:
    def granted(ticket: str, nodes: tuple[str, ...]) -> None:
        print(ticket, nodes)

    ledger = Ledger(granted, {"a": {"CPU": 1}}, patience=4, labels={"a": {"zone": "a"}})
    assert_type(ledger, Ledger[str])
    ledger.add_node("b", {"CPU": 2.5})
    ledger.add_node("c", {"CPU": 2.5}, {"zone": "b"})
    ledger.ask("first", GangRequest(bundle=Bundle()), avoid=["a"])
    assert_type(ledger.waiting, tuple[str, ...])
    assert_type(ledger.held, tuple[str, ...])
    assert_type(ledger.drop("first"), bool)
    ledger.close_node("a")
    ledger.remove_node("a")
    ledger.check_invariants()


async def local() -> None:
    from thornback.placement.on_local import LocalCluster, machine_memory_bytes

    here = LocalCluster(
        cpus=2,
        gpus=1,
        memory_bytes=machine_memory_bytes() // 2,
        resources={"disk": 1},
        node="here",
        labels={"zone": "a"},
    )
    as_cluster: Cluster = here
    assert_type(await as_cluster.look(), Snapshot)
    assert_type(here.node, str)
    assert_type(here.reserved, int)


async def on_ray() -> None:
    from thornback.placement.on_ray import RayCluster, RayParams

    params = RayParams(look_every_s=2, poll_every_s=1, undo_s=5, threads=2)
    as_cluster: Cluster = RayCluster(params=params, supply=Supply.ELASTIC, callbacks=False)
    await as_cluster.changed(await as_cluster.look())


async def conformance() -> None:
    from thornback.placement.testing import (
        ClusterCase,
        FakeCluster,
        FakeReservation,
        Faults,
        Gate,
        MakeCase,
        check_cluster,
        check_leases,
    )

    fake = FakeCluster(
        {"a": {"CPU": 1}},
        supply=Supply.FIXED,
        labels={"a": {"zone": "a"}},
        node_types=[NodeType(name="big", resources={"CPU": 64})],
    )
    as_cluster: Cluster = fake
    assert_type(fake.node_types, tuple[NodeType, ...])
    fake.add_node("b", {"CPU": 1})
    fake.add_node("c", {"CPU": 1}, {"zone": "b"})
    fake.drain_node("b", 30)
    fake.remove_node("b")
    fake.supply = Supply.CHANGING
    made = await as_cluster.reserve(GangRequest(bundle=Bundle()), Strategy.PACK, ())
    assert_type(made, Reservation)
    fake.remove_reservations()
    assert_type(fake.ledger, Ledger[FakeReservation])
    gates: tuple[Gate, ...] = (fake.creations, fake.removals, fake.looks)
    for gate in gates:
        gate.close()
        assert_type(gate.waiting, int)
        gate.open()
        await gate.passed()
    faults: tuple[Faults, ...] = (fake.creation_faults, fake.removal_faults, fake.look_faults)
    for each in faults:
        each.add(None, OSError("no"))
        each.raise_next()
    counts: tuple[int, ...] = (fake.created, fake.removed, fake.look_count, fake.reserved)
    print(counts)

    async def reserved() -> int:
        return fake.reserved

    @contextlib.asynccontextmanager
    async def make() -> AsyncIterator[ClusterCase]:
        request = GangRequest(bundle=Bundle())
        yield ClusterCase(
            cluster=fake,
            fits=request,
            fills=request,
            never=request,
            reserved=reserved,
            bound_s=5,
            labelled=request,
            mislabelled=None,
        )

    as_make: MakeCase = make
    suites: tuple[Callable[[MakeCase], object], ...] = (check_cluster, check_leases)
    for suite in suites:
        suite(as_make)
    await check_cluster(as_make)
    await check_leases(as_make)
