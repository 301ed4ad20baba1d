"""The allocator over a cluster in memory: calls hang, fail, come late, or twice."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import aclosing

import anyio
import anyio.lowlevel
import attrs
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from thornback.placement import (
    Allocator,
    AllocatorClosed,
    AllocatorParams,
    Bundle,
    Explanation,
    GangRequest,
    Lease,
    LeaseState,
    PlacementRemoved,
    PlacementTimedOut,
    RemovalParams,
    Supply,
    Unschedulable,
)
from thornback.placement.params import judge
from thornback.placement.testing import FakeCluster

pytestmark = pytest.mark.anyio

ONE = GangRequest(bundle=Bundle(cpus=1))
TWO = GangRequest(bundle=Bundle(cpus=2), nodes=2)
HUGE = GangRequest(bundle=Bundle(cpus=100), name="huge")
NO_PAUSE = RemovalParams(attempts=3, delay_s=0.0)


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def cluster(supply: Supply = Supply.CHANGING) -> FakeCluster:
    return FakeCluster({"a": {"CPU": 2}, "b": {"CPU": 2}}, supply=supply)


async def test_a_lease_names_its_nodes_and_comes_back() -> None:
    fake = cluster()
    async with Allocator(fake) as leases:
        lease = await leases.acquire(TWO)
        assert lease.nodes == ("a", "b")
        (view,) = leases.leases()
        assert (view.state, view.nodes) == (LeaseState.HELD, ("a", "b"))
        assert await leases.release(lease, timeout_s=1)
        assert await leases.release(lease, timeout_s=1)
        assert leases.leases() == ()
    assert (fake.created, fake.removed, fake.reserved) == (1, 1, 0)


async def test_leaving_the_context_releases_everything() -> None:
    fake = cluster()

    async def use() -> None:
        async with Allocator(fake) as leases:
            await leases.acquire(ONE)
            await leases.acquire(ONE)
            assert fake.reserved == 2
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await use()
    assert fake.reserved == 0


async def test_one_line_leases() -> None:
    fake = cluster()
    async with Allocator(fake).lease(ONE) as lease:
        assert lease.nodes == ("a",)
        assert fake.reserved == 1
    assert fake.reserved == 0


async def test_the_body_of_a_lease_raises_its_own_error() -> None:
    fake = cluster()
    with pytest.raises(ZeroDivisionError):
        async with Allocator(fake).lease(ONE):
            raise ZeroDivisionError
    assert fake.reserved == 0


async def test_a_cancelled_holder_still_releases() -> None:
    fake = cluster()
    with anyio.CancelScope() as scope:
        async with Allocator(fake) as leases:
            await leases.acquire(ONE)
            scope.cancel()
            await anyio.lowlevel.checkpoint()
    assert scope.cancelled_caught
    assert fake.reserved == 0


async def test_cancelled_while_pending_holds_nothing() -> None:
    fake = cluster()
    async with Allocator(fake) as leases:
        await leases.acquire(TWO)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(leases.acquire, ONE)
            await anyio.wait_all_tasks_blocked()
            assert fake.reserved == 2
            tasks.cancel_scope.cancel()
        assert fake.reserved == 1


async def test_a_creation_that_finishes_late_is_undone() -> None:
    fake = cluster()
    fake.creations.close()
    async with Allocator(fake) as leases:
        scope = anyio.CancelScope()

        async def acquire() -> None:
            with scope:
                await leases.acquire(ONE)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(acquire)
            await anyio.wait_all_tasks_blocked()
            scope.cancel()
            await anyio.wait_all_tasks_blocked()
            assert fake.reserved == 1, "the creation is not abandoned"
            fake.creations.open()
        assert scope.cancelled_caught
        assert fake.reserved == 0
        assert leases.leases() == ()


async def test_a_creation_that_never_returns_delays_a_cancellation_only_so_long() -> None:
    fake = cluster()
    fake.creations.close()
    async with Allocator(fake, params=AllocatorParams(release_s=0.0)) as leases:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(leases.acquire, ONE)
            await anyio.wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()
        (view,) = leases.leases()
        assert view.state is LeaseState.RELEASING
        fake.creations.open()
        await anyio.wait_all_tasks_blocked()
        assert leases.leases() == (), "undone in the background"
        assert fake.reserved == 0


async def test_closing_gives_up_on_a_creation_that_never_returns(
    caplog: pytest.LogCaptureFixture,
) -> None:
    fake = cluster()
    fake.creations.close()
    async with (
        Allocator(fake, params=AllocatorParams(release_s=0.0, place_s=0.0)) as leases,
    ):
        with pytest.raises(PlacementTimedOut):
            await leases.acquire(ONE)
        assert not await leases.close()
    assert "1 x {CPU: 1}" in caplog.text
    assert fake.reserved == 0, "the cancelled creation undid itself"


async def test_a_creation_that_fails_is_the_callers_error() -> None:
    fake = cluster()
    fake.creation_faults.add(OSError("no route"))
    async with Allocator(fake) as leases:
        with pytest.raises(OSError, match="no route"):
            await leases.acquire(ONE)
        assert leases.leases() == ()
        assert await leases.acquire(ONE), "the next one is not concerned"


async def test_a_reservation_removed_by_others_is_an_error_while_pending() -> None:
    fake = cluster()
    caught: list[Exception] = []

    async def acquire(leases: Allocator) -> None:
        try:
            await leases.acquire(ONE)
        except PlacementRemoved as error:
            caught.append(error)

    async with Allocator(fake) as leases, anyio.create_task_group() as tasks:
        await leases.acquire(TWO)
        tasks.start_soon(acquire, leases)
        await anyio.wait_all_tasks_blocked()
        fake.remove_reservations()
    assert len(caught) == 1


async def test_what_would_fit_but_is_not_free_times_out() -> None:
    fake = cluster()
    async with Allocator(fake) as holder:
        await holder.acquire(TWO)
        async with Allocator(fake, params=AllocatorParams(place_s=0.0)) as leases:
            with pytest.raises(PlacementTimedOut, match=r"1 x {CPU: 1} was not placed") as caught:
                await leases.acquire(ONE)
            assert caught.value.timeout_s >= 0
            assert fake.reserved == 1


@pytest.mark.parametrize("supply", [Supply.CHANGING, Supply.FIXED])
async def test_what_can_never_fit_is_refused_and_explained_once(supply: Supply) -> None:
    fake, said = cluster(supply), list[Explanation]()
    params = AllocatorParams(wait_for_nodes_s=0.0 if supply is Supply.CHANGING else math.inf)
    async with Allocator(fake, params=params, observe=said.append) as leases:
        for _ in range(2):
            with pytest.raises(Unschedulable, match=r"largest node has {CPU: 2}"):
                await leases.acquire(HUGE)
        assert fake.reserved == 0
    (explanation,) = said
    assert explanation.text == "needs 1 x {CPU: 100}; largest node has {CPU: 2}"
    assert explanation.fails_in_s == 0


async def test_what_can_never_fit_now_is_told_at_once_and_waits_for_new_nodes() -> None:
    fake, said = cluster(Supply.ELASTIC), list[Explanation]()
    async with Allocator(fake, observe=said.append) as leases, anyio.create_task_group() as tasks:
        tasks.start_soon(leases.acquire, HUGE)
        tasks.start_soon(leases.acquire, HUGE)
        await anyio.wait_all_tasks_blocked()
        assert [e.text for e in said] == ["needs 1 x {CPU: 100}; largest node has {CPU: 2}"]
        assert said[0].fails_in_s == pytest.approx(600, abs=5)
        fake.add_node("c", {"CPU": 50})
        await anyio.wait_all_tasks_blocked()
        assert said[1].text.endswith("largest node has {CPU: 50}"), "told again: it changed"
        fake.add_node("d", {"CPU": 200})
    assert len(said) == 2


async def test_an_observer_that_raises_fails_nobody(caplog: pytest.LogCaptureFixture) -> None:
    def observe(explanation: Explanation) -> None:
        raise ZeroDivisionError

    async with Allocator(cluster(Supply.FIXED), observe=observe) as leases:
        with pytest.raises(Unschedulable):
            await leases.acquire(HUGE)
    assert "observer" in caplog.text


@pytest.mark.parametrize(
    ("supply", "since", "until"),
    [
        (Supply.CHANGING, None, 600.0),
        (Supply.CHANGING, 10.0, 40.0),
        (Supply.CHANGING, 590.0, 620.0),
        (Supply.FIXED, 10.0, 10.0),
        (Supply.ELASTIC, 10.0, 40.0),
    ],
)
def test_how_long_to_wait(supply: Supply, since: float | None, until: float) -> None:
    assert judge(supply, since, 600.0, 30.0) == until


def test_judge_no_node_type_can_hold_it_refuses_at_once() -> None:
    assert judge(Supply.ELASTIC, 10.0, 600.0, 30.0, hopeless=True) == 10.0
    assert judge(Supply.ELASTIC, None, 600.0, 30.0) == 600.0


async def test_avoided_nodes_are_avoided() -> None:
    async with Allocator(cluster()) as leases:
        assert (await leases.acquire(ONE)).nodes == ("a",)
        assert (await leases.acquire(ONE, avoid=["a"])).nodes == ("b",)


async def test_avoidance_is_dropped_at_once_when_the_others_could_not_hold_it() -> None:
    fake = cluster()
    async with Allocator(fake) as leases:
        assert (await leases.acquire(TWO, avoid=["a"])).nodes == ("a", "b")
        assert fake.reserved == 1, "the first attempt is gone"


async def test_avoidance_is_dropped_after_a_while_when_the_others_are_busy() -> None:
    fake = cluster()
    async with Allocator(fake, params=AllocatorParams(avoid_s=0.0)) as leases:
        assert (await leases.acquire(ONE, avoid=["a"])).nodes == ("a",)
        assert fake.reserved == 1


async def test_avoidance_is_dropped_when_nobody_knows_the_nodes() -> None:
    fake = cluster()
    fake.look_faults.add(OSError("down"))
    params = AllocatorParams(look_again_s=math.inf)
    async with Allocator(fake, params=params) as leases:
        assert (await leases.acquire(ONE, avoid=["a"])).nodes == ("a",)


async def test_a_removal_that_fails_is_tried_again() -> None:
    fake = cluster()
    fake.removal_faults.add(OSError("once"), OSError("twice"))
    async with Allocator(fake, params=AllocatorParams(removal=NO_PAUSE)) as leases:
        lease = await leases.acquire(ONE)
        assert await leases.release(lease, timeout_s=5)
    assert fake.reserved == 0


async def test_a_removal_that_stays_unconfirmed_is_said_and_tried_by_the_next_release() -> None:
    fake = cluster()
    fake.removal_faults.add(*[OSError("no")] * 3)
    async with Allocator(fake, params=AllocatorParams(removal=NO_PAUSE)) as leases:
        lease = await leases.acquire(ONE)
        assert not await leases.release(lease, timeout_s=5)
        (view,) = leases.leases()
        assert view.state is LeaseState.RELEASING
        assert await leases.release(lease, timeout_s=5)
        assert leases.leases() == ()


async def test_close_tries_once_more_what_was_not_confirmed() -> None:
    fake = cluster()
    fake.removal_faults.add(*[OSError("no")] * 3)
    async with Allocator(fake, params=AllocatorParams(removal=NO_PAUSE)) as leases:
        assert not await leases.release(await leases.acquire(ONE), timeout_s=5)
        assert await leases.close()
    assert fake.reserved == 0


async def test_a_removal_that_hangs_is_bounded_and_goes_on() -> None:
    fake = cluster()
    async with Allocator(fake) as leases:
        lease = await leases.acquire(ONE)
        fake.removals.close()
        assert not await leases.release(lease, timeout_s=0)
        fake.removals.open()
        assert await leases.release(lease, timeout_s=5)
        assert fake.removed == 1


async def test_two_releases_at_once_remove_once() -> None:
    fake, confirmed = cluster(), list[bool]()
    async with Allocator(fake) as leases:
        lease = await leases.acquire(ONE)

        async def release() -> None:
            confirmed.append(await leases.release(lease, timeout_s=5))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(release)
            tasks.start_soon(release)
    assert confirmed == [True, True]
    assert fake.removed == 1


async def test_release_within_a_cancelled_scope_is_done() -> None:
    fake = cluster()
    async with Allocator(fake) as leases:
        lease = await leases.acquire(ONE)
        with anyio.CancelScope() as scope:
            scope.cancel()
            assert await leases.release(lease, timeout_s=5)
        assert fake.reserved == 0


async def test_a_lease_of_another_allocator_is_left_alone() -> None:
    async with Allocator(cluster()) as leases:
        await leases.acquire(ONE)
        assert await leases.release(Lease(lease_id=1, nodes=("z",)), timeout_s=1)
        assert await leases.release(Lease(lease_id=9, nodes=("a",)), timeout_s=1)
        assert len(leases.leases()) == 1


async def test_closing_ends_a_pending_acquire() -> None:
    fake, caught = cluster(), list[Exception]()

    async def acquire(leases: Allocator) -> None:
        try:
            await leases.acquire(ONE)
        except AllocatorClosed as error:
            caught.append(error)

    async with Allocator(fake) as leases, anyio.create_task_group() as tasks:
        await leases.acquire(TWO)
        tasks.start_soon(acquire, leases)
        await anyio.wait_all_tasks_blocked()
        assert await leases.close()
        assert fake.reserved == 0
    assert len(caught) == 1


@pytest.mark.parametrize("ticks", range(6))
async def test_no_lease_is_returned_after_close_has_begun(ticks: int) -> None:
    fake, closing, outcomes = cluster(), False, list[str]()

    async def acquire(leases: Allocator) -> None:
        try:
            await leases.acquire(ONE)
            outcomes.append("late" if closing else "in time")
        except AllocatorClosed:
            outcomes.append("refused")

    async with Allocator(fake) as leases, anyio.create_task_group() as tasks:
        await leases.acquire(TWO)
        tasks.start_soon(acquire, leases)
        await anyio.wait_all_tasks_blocked()
        fake.add_node("c", {"CPU": 1})
        for _ in range(ticks):
            await anyio.lowlevel.checkpoint()
        closing = True
        assert await leases.close()
    assert outcomes in (["in time"], ["refused"])
    assert fake.reserved == 0


async def test_a_cancelled_owner_waits_for_a_creation_under_way() -> None:
    fake, scope = cluster(), anyio.CancelScope()
    fake.creations.close()

    async def own() -> None:
        with scope:
            async with Allocator(fake) as leases:
                await leases.acquire(ONE)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(own)
        await anyio.wait_all_tasks_blocked()
        scope.cancel()
        await anyio.wait_all_tasks_blocked()
        assert fake.creations.waiting == 1, "shielded, not abandoned"
        fake.creations.open()
    assert scope.cancelled_caught
    assert (fake.removed, fake.reserved) == (1, 0)


async def test_an_allocator_must_be_open_and_is_opened_once() -> None:
    leases = Allocator(cluster())
    with pytest.raises(AllocatorClosed, match="async with"):
        await leases.acquire(ONE)
    async with leases:
        pass
    with pytest.raises(AllocatorClosed, match="another one"):
        async with leases:
            pass


async def next_notice(drains: AsyncIterator[tuple[str, float | None]]) -> tuple[str, float | None]:
    with anyio.fail_after(5):
        return await anext(drains)


async def test_drains_are_told_once_each_to_everybody() -> None:
    fake = cluster()
    fake.drain_node("a", 60.0)
    async with Allocator(fake) as leases:
        async with aclosing(leases.drains()) as first, aclosing(leases.drains()) as second:
            assert await next_notice(first) == ("a", 60.0)
            assert await next_notice(second) == ("a", 60.0)
            fake.drain_node("b")
            assert await next_notice(first) == ("b", None)
            assert await next_notice(second) == ("b", None)
        looks = fake.look_count
        fake.add_node("c", {"CPU": 1})
        fake.add_node("d", {"CPU": 1})
        await anyio.wait_all_tasks_blocked()
        assert fake.look_count == looks, "nobody listens, so nobody looks"


async def test_a_look_that_fails_is_logged_once_and_repeated(
    caplog: pytest.LogCaptureFixture,
) -> None:
    fake = cluster()
    fake.look_faults.add(OSError("down"), OSError("down"), None)
    fake.drain_node("a")
    params = AllocatorParams(look_again_s=0.0)
    async with Allocator(fake, params=params) as leases, aclosing(leases.drains()) as drains:
        assert await next_notice(drains) == ("a", None)
    assert caplog.text.count("down") == 1


async def test_a_look_that_hangs_does_not_hold_up_a_lease() -> None:
    fake = cluster()
    fake.looks.close()
    async with Allocator(fake) as leases:
        assert await leases.acquire(ONE)


async def test_a_lease_is_a_span() -> None:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("test")
    async with Allocator(cluster(), tracer=tracer).lease(TWO) as lease:
        pass
    (span,) = exporter.get_finished_spans()
    assert span.name == "thornback.place"
    assert dict(span.attributes or {}) == {
        "thornback.nodes": 2,
        "thornback.bundle": "{CPU: 2}",
        "thornback.lease": lease.lease_id,
        "thornback.node_names": ("a", "b"),
    }


def test_allocator_params_deprecated_name_sets_wait_for_nodes() -> None:
    params = AllocatorParams(infeasible_after_s=1.0)
    assert params == AllocatorParams(wait_for_nodes_s=1.0)
    assert attrs.evolve(params, wait_for_nodes_s=2.0).wait_for_nodes_s == 2.0


async def test_acquire_timeout_replaces_place_s() -> None:
    fake = cluster()
    async with Allocator(fake) as leases:
        await leases.acquire(TWO)
        with pytest.raises(PlacementTimedOut):
            await leases.acquire(ONE, timeout_s=0.0)
        with pytest.raises(Unschedulable):
            await leases.acquire(HUGE, timeout_s=600.0, wait_for_nodes_s=0.0)
        assert fake.reserved == 1


async def test_acquire_timeout_is_over_still_waits_for_nodes() -> None:
    async with Allocator(cluster(), observe=lambda _: None) as leases:
        with anyio.move_on_after(0.3) as scope:
            await leases.acquire(HUGE, timeout_s=0.1)
        assert scope.cancelled_caught, "the time-out is for what fits the nodes"
