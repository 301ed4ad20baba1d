"""Whole lives of an allocator, with faults: nothing is given twice, nothing is left at the end."""

from __future__ import annotations

import anyio
import attrs
from hypothesis import given
from hypothesis import strategies as st

from thornback.placement import (
    Allocator,
    AllocatorParams,
    Bundle,
    GangRequest,
    Lease,
    LeaseState,
    NodeType,
    PlacementError,
    RemovalParams,
    Strategy,
    Supply,
    matches,
)
from thornback.placement.bundles import selectors_of
from thornback.placement.testing import FakeCluster

LABELS = {"n0": {"zone": "a"}, "n2": {"zone": "b"}}
PARAMS = AllocatorParams(
    wait_for_nodes_s=0.0,
    avoid_s=0.0,
    release_s=0.02,
    look_again_s=0.0,
    removal=RemovalParams(attempts=2, delay_s=0.0),
)

requests = st.builds(
    GangRequest,
    bundle=st.builds(Bundle, cpus=st.sampled_from([0.0, 0.5, 1.0, 2.0, 9.0])),
    nodes=st.integers(1, 2),
    strategy=st.sampled_from(Strategy),
    labels=st.one_of(
        st.just({}),
        st.fixed_dictionaries({"zone": st.sampled_from(["a", "!a", "in(a,b)", "nowhere"])}),
    ),
)
picks = st.integers(0, 3)
steps = st.one_of(
    st.tuples(st.just("acquire"), requests),
    st.tuples(st.just("acquire elsewhere"), requests),
    st.tuples(st.sampled_from(["release", "cancel"]), picks),
    st.tuples(
        st.sampled_from(
            [
                "hold creations",
                "let creations",
                "fail creation",
                "fail removal",
                "fail look",
                "remove behind",
                "drain",
                "add node",
                "know node types",
                "settle",
            ]
        ),
        st.none(),
    ),
)


@attrs.define
class World:
    """An allocator, the tasks that use it, and what they got."""

    fake: FakeCluster
    leases: Allocator
    held: dict[int, Lease] = attrs.field(factory=dict)
    scopes: list[anyio.CancelScope] = attrs.field(factory=list)
    nodes: int = 2

    async def user(self, request: GangRequest, avoid: tuple[str, ...]) -> None:
        """One user: acquires, and keeps the lease or takes the error."""
        scope = anyio.CancelScope()
        self.scopes.append(scope)
        with scope:
            try:
                lease = await self.leases.acquire(request, avoid=avoid)
            except (PlacementError, OSError):
                return
            assert len(lease.nodes) == request.nodes
            for selectors, node in zip(selectors_of(request), lease.nodes, strict=True):
                assert matches(selectors, LABELS.get(node, {}))
            self.held[lease.lease_id] = lease

    async def step(self, tasks: anyio.abc.TaskGroup, name: str, detail: object) -> None:
        if isinstance(detail, GangRequest):
            tasks.start_soon(self.user, detail, ("n0",) if name == "acquire elsewhere" else ())
            return
        if isinstance(detail, int):
            await self._pick(name, detail)
            return
        match name:
            case "hold creations":
                self.fake.creations.close()
            case "let creations":
                self.fake.creations.open()
            case "fail creation":
                self.fake.creation_faults.add(OSError("creation"))
            case "fail removal":
                self.fake.removal_faults.add(OSError("removal"))
            case "fail look":
                self.fake.look_faults.add(OSError("look"))
            case "remove behind":
                self.fake.remove_reservations()
            case "drain":
                self.fake.drain_node(f"n{self.nodes - 1}", 60.0)
            case "know node types":
                self.fake.supply = Supply.ELASTIC
                self.fake.node_types = (NodeType(name="small", resources={"CPU": 1.0}, more=1),)
            case "add node":
                name = f"n{self.nodes}"
                self.fake.add_node(name, {"CPU": 2.0}, LABELS.get(name))
                self.nodes += 1
            case _:
                await anyio.wait_all_tasks_blocked()

    async def _pick(self, name: str, number: int) -> None:
        if name == "cancel" and self.scopes:
            self.scopes[number % len(self.scopes)].cancel()
        if name == "release" and self.held:
            lease_id = sorted(self.held)[number % len(self.held)]
            await self.leases.release(self.held[lease_id], timeout_s=0.02)
            del self.held[lease_id]

    def check(self) -> None:
        self.fake.ledger.check_invariants()
        known = {view.lease_id: view for view in self.leases.leases()}
        assert self.fake.reserved <= len(known), "every reservation is somebody's"
        for lease in self.held.values():
            view = known[lease.lease_id]
            assert (view.state, view.nodes) == (LeaseState.HELD, lease.nodes)


async def live(program: list[tuple[str, object]]) -> None:
    fake = FakeCluster({"n0": {"CPU": 2.0}, "n1": {"CPU": 2.0}}, labels=LABELS)
    async with Allocator(fake, params=PARAMS, observe=lambda _: None) as leases:
        world = World(fake, leases)
        async with anyio.create_task_group() as tasks:
            for name, detail in program:
                await world.step(tasks, name, detail)
                world.check()
            fake.creations.open()
            await anyio.lowlevel.checkpoint()
            confirmed = await leases.close()
            assert confirmed == (leases.leases() == ())
    assert fake.creations.waiting == 0
    assert fake.created == fake.removed + fake.reserved
    if confirmed:
        assert fake.reserved == 0, "acquired = released"


@given(st.lists(steps, max_size=20))
def test_whatever_happens_nothing_is_left(program: list[tuple[str, object]]) -> None:
    anyio.run(live, program)
