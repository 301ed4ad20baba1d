"""For tests of your own: a cluster in memory, and suites that any cluster must pass.

`check_cluster` and `check_leases` raise `AssertionError`; they need no test framework and run under
asyncio and trio. They are run against `FakeCluster`, `LocalCluster` and a real Ray.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import anyio
import attrs

from thornback.placement.allocator import Allocator
from thornback.placement.bundles import GangRequest, Lease, selectors_of, strategy_of
from thornback.placement.errors import AllocatorClosed, PlacementRemoved, Unschedulable
from thornback.placement.explain import explain_unplaceable
from thornback.placement.fake import FakeCluster, FakeReservation, Faults, Gate
from thornback.placement.labels import matches
from thornback.placement.params import AllocatorParams
from thornback.placement.ports import Cluster, Grant, Reservation

__all__ = [
    "ClusterCase",
    "FakeCluster",
    "FakeReservation",
    "Faults",
    "Gate",
    "MakeCase",
    "check_cluster",
    "check_leases",
]


@attrs.frozen(kw_only=True, slots=True)
class ClusterCase:
    """A cluster to be checked, with nothing reserved, and what to ask it."""

    cluster: Cluster
    """To be checked."""
    fits: GangRequest
    """Fits at once, together with another one of it."""
    fills: GangRequest
    """Fits alone, but not together with another one of it."""
    never: GangRequest
    """Fits not even when all is free."""
    reserved: Callable[[], Awaitable[int]]
    """How many reservations the cluster itself knows of, waiting or granted."""
    bound_s: float = 20.0
    """No step that must end may take longer."""
    labelled: GangRequest | None = None
    """As `fits`, on nodes that it selects by labels; None: the nodes have none, and nothing is
    checked."""
    mislabelled: GangRequest | None = None
    """As `fits`, but no node has the labels that it selects by."""


MakeCase = Callable[[], AbstractAsyncContextManager[ClusterCase]]
"""Returns a case for one check, which is left at its end: for clean-up."""


async def check_cluster(make: MakeCase) -> None:
    """Check that a cluster does what `Cluster` and `Reservation` say.

    Raises:
        AssertionError: it does not.
        TimeoutError: something hung for `ClusterCase.bound_s`.
    """
    checks = (
        _looks,
        _grants,
        _waits_and_wakes,
        _removes_pending,
        _obeys_avoidance,
        _obeys_labels,
        _grants_no_other_labels,
    )
    for check in checks:
        async with make() as case:
            with anyio.fail_after(case.bound_s):
                await check(case)
            await _empty(case, check.__name__)


async def check_leases(make: MakeCase) -> None:
    """Check that an `Allocator` on this cluster keeps its guarantees.

    Raises:
        AssertionError: it does not.
        TimeoutError: something hung for `ClusterCase.bound_s`.
    """
    checks = (_leases, _cancels, _refuses, _refuses_labels, _prefers, _closes)
    for check in checks:
        async with make() as case:
            with anyio.fail_after(case.bound_s):
                await check(case)
            await _empty(case, check.__name__)


async def _empty(case: ClusterCase, after: str) -> None:
    count = await case.reserved()
    assert count == 0, f"after {after}: {count} reservations are left"


async def _reserve(
    case: ClusterCase, request: GangRequest, avoid: Sequence[str] = ()
) -> Reservation:
    return await case.cluster.reserve(request, strategy_of(request), avoid)


async def _looks(case: ClusterCase) -> None:
    snapshot = await case.cluster.look()
    names = [node.name for node in snapshot.nodes]
    assert names, "a cluster shows its nodes"
    assert len(set(names)) == len(names), f"names of nodes are unique: {names}"
    for request in (case.fits, case.fills):
        assert explain_unplaceable(request, snapshot.nodes) is None, (
            "what fits is not explained away"
        )
    assert explain_unplaceable(case.never, snapshot.nodes), "what never fits is explained"
    with anyio.move_on_after(0):
        await case.cluster.changed(snapshot)


async def _grants(case: ClusterCase) -> None:
    first, second = await _reserve(case, case.fits), await _reserve(case, case.fits)
    names = [node.name for node in (await case.cluster.look()).nodes]
    for reservation in (first, second):
        grant = await reservation.granted()
        assert len(grant.nodes) == case.fits.nodes, "one node per bundle"
        assert all(node in names for node in grant.nodes), f"{grant.nodes} are among {names}"
        assert grant.handle is not None, "a grant has a handle for the workers"
        assert (await reservation.granted()).nodes == grant.nodes, "asked again, answers again"
    assert await case.reserved() == 2
    for reservation in (first, second, first):
        assert await reservation.remove(), "removal is confirmed, also the second time"


async def _waits_and_wakes(case: ClusterCase) -> None:
    first, second = await _reserve(case, case.fills), await _reserve(case, case.fills)
    await first.granted()
    async with _waiting(second) as grants:
        assert not grants, "what is held is not given to another one"
        assert await first.remove()
        await second.granted()
    assert len(grants) == 1, "a waiting reservation is granted when the resources are free"
    assert await second.remove()


@asynccontextmanager
async def _waiting(reservation: Reservation) -> AsyncIterator[list[Grant]]:
    grants: list[Grant] = []

    async def wait() -> None:
        grants.append(await reservation.granted())

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        yield grants


async def _removes_pending(case: ClusterCase) -> None:
    reservation = await _reserve(case, case.never)
    with anyio.move_on_after(0.05) as scope:
        await reservation.granted()
    assert scope.cancelled_caught, "what never fits is never granted, and waiting can be cancelled"
    removed = anyio.Event()

    async def wait() -> None:
        try:
            await reservation.granted()
        except PlacementRemoved:
            removed.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        assert await reservation.remove()
    assert removed.is_set(), "who waits for a removed reservation gets PlacementRemoved"


async def _obeys_avoidance(case: ClusterCase) -> None:
    first = await _reserve(case, case.fits)
    avoided = (await first.granted()).nodes
    assert await first.remove()
    others = [n for n in (await case.cluster.look()).nodes if n.name not in avoided]
    second = await _reserve(case, case.fits, avoided)
    if explain_unplaceable(case.fits, others) is None:
        nodes = (await second.granted()).nodes
        assert not set(nodes) & set(avoided), f"{nodes} avoid {avoided}"
    assert await second.remove()


async def _obeys_labels(case: ClusterCase) -> None:
    request = case.labelled
    if request is None:
        return
    nodes = {node.name: node for node in (await case.cluster.look()).nodes}
    assert explain_unplaceable(request, list(nodes.values())) is None, "what fits is not explained"
    for avoid in ((), tuple(nodes)[:1]):
        others = [node for name, node in nodes.items() if name not in avoid]
        if explain_unplaceable(request, others) is not None:
            continue
        reservation = await _reserve(case, request, avoid)
        chosen = (await reservation.granted()).nodes
        for selectors, name in zip(selectors_of(request), chosen, strict=True):
            assert matches(selectors, nodes[name].labels), f"{name} matches {selectors}"
            assert name not in avoid, f"{name} is avoided, also when labels are selected by"
        assert await reservation.remove()


async def _grants_no_other_labels(case: ClusterCase) -> None:
    if case.mislabelled is None:
        return
    assert explain_unplaceable(case.mislabelled, (await case.cluster.look()).nodes)
    reservation = await _reserve(case, case.mislabelled)
    following = await _reserve(case, case.fits)
    with anyio.move_on_after(0.05) as scope:
        await reservation.granted()
    assert scope.cancelled_caught, "nothing is granted on nodes without the labels"
    await following.granted()
    assert await following.remove()
    assert await reservation.remove()


async def _leases(case: ClusterCase) -> None:
    async with Allocator(case.cluster) as leases:
        lease = await leases.acquire(case.fits)
        assert len(lease.nodes) == case.fits.nodes
        assert lease.handle is not None
        assert await leases.release(lease, timeout_s=case.bound_s), "release is confirmed"
        assert await leases.release(lease, timeout_s=case.bound_s), "twice is once"
        await _empty(case, "release")
    async with Allocator(case.cluster).lease(case.fits) as lease:
        assert len(lease.nodes) == case.fits.nodes


async def _cancels(case: ClusterCase) -> None:
    async with Allocator(case.cluster) as leases, leases.lease(case.fills):
        got: list[Lease] = []

        async def acquire() -> None:
            got.append(await leases.acquire(case.fills))

        for blocked in (False, True):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(acquire)
                if blocked:
                    await anyio.wait_all_tasks_blocked()
                tasks.cancel_scope.cancel()
            assert not got, "a cancelled acquire returns nothing"
            assert await case.reserved() == 1, "a cancelled acquire holds nothing"


async def _refuses(case: ClusterCase) -> None:
    await _refused(case, case.never)


async def _refuses_labels(case: ClusterCase) -> None:
    if case.mislabelled is not None:
        await _refused(case, case.mislabelled)


async def _refused(case: ClusterCase, request: GangRequest) -> None:
    params = AllocatorParams(infeasible_after_s=0.0)
    said: list[str] = []
    async with Allocator(
        case.cluster, params=params, observe=lambda explanation: said.append(explanation.text)
    ) as leases:
        refusal = ""
        try:
            await leases.acquire(request)
        except Unschedulable as error:
            refusal = str(error)
        assert "needs" in refusal, f"what never fits is refused, with numbers: {refusal!r}"
        assert len(said) == 1, f"the observer is told once: {said}"
        await _empty(case, "a refusal")


async def _prefers(case: ClusterCase) -> None:
    names = [node.name for node in (await case.cluster.look()).nodes]
    async with Allocator(case.cluster) as leases:
        lease = await leases.acquire(case.fits, avoid=names)
        assert lease.nodes, "avoidance is dropped when nothing else would be left"
        assert await leases.release(lease, timeout_s=case.bound_s)


async def _closes(case: ClusterCase) -> None:
    notices = []
    async with Allocator(case.cluster) as leases, anyio.create_task_group() as tasks:
        await leases.acquire(case.fits)

        async def drain() -> None:
            notices.extend([notice async for notice in leases.drains()])

        tasks.start_soon(drain)
        await anyio.wait_all_tasks_blocked()
        assert await leases.close(), "close releases what is held, and confirms it"
        assert await leases.close(), "twice is once"
        await _empty(case, "close")
        try:
            await leases.acquire(case.fits)
        except AllocatorClosed:
            pass
        else:
            raise AssertionError("a closed allocator refuses")
