"""Gangs as Ray placement groups.

Theory of operation. A reservation is a non-detached placement group (it dies with its driver).
Readiness comes by a callback on `pg.ready()`, which is free of tasks and threads since ray 2.60; on
an older one a single table call per tick serves all groups that wait. Ray can call a group ready
though its node has died: what the GCS knows of that is asked before it is granted; what it does not
know yet is for the workers to find. Every call that talks to the GCS blocks, so it runs in one of
four threads.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Generic, TypeVar

import anyio
import anyio.to_thread
import attrs
import ray
import ray.exceptions
from ray.util.placement_group import (
    PlacementGroup,
    get_placement_group,
    placement_group,
    placement_group_table,
    remove_placement_group,
)

from thornback.placement.bridge import LoopBridge
from thornback.placement.bundles import (
    GangRequest,
    NodeType,
    NodeView,
    Strategy,
    Supply,
    resources_of,
    selectors_of,
)
from thornback.placement.errors import PlacementError, PlacementRemoved
from thornback.placement.labels import leaving_out
from thornback.placement.ports import Grant, Reservation, Snapshot

__all__ = ["RayCluster", "RayParams"]

_log = logging.getLogger(__name__)
_T = TypeVar("_T")
_SETTLE_S = 1.0
_SETTLE_EVERY_S = 0.002
_NODE_ID = "ray.io/node-id"  # these are the labels' names since ray 2.49
_NODE_GROUP = "ray.io/node-group"


@attrs.frozen(kw_only=True, slots=True)
class RayParams:
    """How a `RayCluster` talks to Ray."""

    look_every_s: float = 1.0
    """Ray has no notices of drains in Python: this is the interval while somebody waits for
    them."""
    poll_every_s: float = 0.5
    """Interval of the one table call for all waiting groups, where Ray has no task-less
    readiness."""
    undo_s: float = 10.0
    """The bound of undoing what an allocator that ends has given up: it may end so much later."""
    threads: int = 4
    """Calls to the GCS under way at the same time."""


class RayCluster:
    """The Ray that this process is connected to. Nodes are named by their id in hex.

    `Lease.handle` is the `PlacementGroup`. Used in one event loop, and not before `ray.init`.

    Args:
        params: intervals and bounds.
        supply: whether nodes may come; default: ELASTIC when an autoscaler has told Ray its node
            types, else CHANGING.
        callbacks: False: poll for readiness, as on a Ray without task-less `pg.ready()`; None: find
            out.

    Raises:
        PlacementError: Ray is not initialised, or is reached through Ray Client (`ray://`).
    """

    def __init__(
        self,
        *,
        params: RayParams | None = None,
        supply: Supply | None = None,
        callbacks: bool | None = None,
    ) -> None:
        _require_ray()
        self.params = params or RayParams()
        """Intervals and bounds."""
        self.callbacks = has_callbacks() if callbacks is None else callbacks
        """Whether Ray tells when a group is ready; else it is asked."""
        self._supply = supply
        self._limiter = anyio.CapacityLimiter(self.params.threads)
        self._looking = False
        self._told_no_drains = False
        self._table = _Shared(self, _table)
        self._alive = _Shared(self, _alive)

    async def reserve(
        self, request: GangRequest, strategy: Strategy, avoid: Sequence[str], /
    ) -> Reservation:
        """Create a placement group. See `Cluster`.

        Cancellation: a group that is made all the same is removed by the thread that made it.
        """
        creation = Creation(
            bundles=[ray_bundle(request)] * request.nodes,
            strategy=strategy.value,
            name=f"thornback-{request.name or 'gang'}-{uuid.uuid4().hex[:12]}",
            selector=ray_selectors(request, avoid),
            callbacks=self.callbacks,
        )
        try:
            group, ready = await self.call(creation.create)
        except BaseException:
            # Failed without an answer, perhaps; or cancelled by an allocator that gives up.
            creation.unwanted = True  # also where no thread is free for more
            with anyio.move_on_after(self.params.undo_s, shield=True):
                await self.call(creation.undo)
            raise
        return _RayReservation(self, group, ready)

    async def look(self) -> Snapshot:
        """Return the live nodes. See `Cluster`."""
        if self._looking:
            raise PlacementError("the last look at Ray's nodes has not returned yet")
        return await self.call(self._look)

    async def changed(self, since: Snapshot, /) -> None:
        """Sleep for `look_every_s`: Ray tells nothing by itself."""
        await anyio.sleep(self.params.look_every_s)

    async def call(self, function: Callable[[], _T]) -> _T:
        """Return what a blocking call to Ray returns; it runs in a thread, a few at once.

        Cancellation: the thread goes on alone.
        """
        return await anyio.to_thread.run_sync(
            function, abandon_on_cancel=True, limiter=self._limiter
        )

    async def _row_of(self, group_id: str) -> Mapping[str, Any]:
        """Return the group's row of a table at most `poll_every_s` old; one call serves all."""
        return (await self._table.get(self.params.poll_every_s)).get(group_id, {})

    async def _all_alive(self, nodes: Sequence[str]) -> bool:
        """Return whether the GCS takes all these nodes for alive, not a moment ago, but now."""
        return set(nodes) <= await self._alive.get()

    def _look(self) -> Snapshot:
        self._looking = True
        try:
            drains = self._draining()
            nodes = tuple(_view(node, drains, time.time()) for node in _live_nodes())
            types = _node_types(nodes)
            supply = Supply.ELASTIC if types else Supply.CHANGING
            return Snapshot(nodes=nodes, supply=self._supply or supply, node_types=types)
        finally:
            self._looking = False

    def _draining(self) -> Mapping[str, int]:
        """Source: ray 2.60 `_private/state.py` `get_draining_nodes`; ms since 1970, 0: no
        deadline."""
        get: Callable[[], dict[str, int]] | None = getattr(
            ray._private.state.state, "get_draining_nodes", None
        )
        if get is not None:
            return get()
        if not self._told_no_drains:
            self._told_no_drains = True
            _log.warning("this Ray cannot tell which nodes drain: preemptions come unannounced")
        return {}


class _Shared(Generic[_T]):
    """A blocking call to Ray whose result serves all who ask at about the same time."""

    def __init__(self, cluster: RayCluster, function: Callable[[], _T]) -> None:
        self._cluster = cluster
        self._function = function
        self._lock = anyio.Lock()
        self._last: tuple[float, _T] | None = None
        """When the newest call began, and what it returned."""

    async def get(self, age_s: float = 0.0) -> _T:
        """Return what a call returned that began no more than `age_s` before this one."""
        asked = anyio.current_time()
        async with self._lock:
            if self._last is None or self._last[0] < asked - age_s:
                began = anyio.current_time()
                self._last = (began, await self._cluster.call(self._function))
            return self._last[1]


@attrs.define(kw_only=True)
class Creation:
    """One creation, in a thread, that may have to be undone while it runs."""

    bundles: list[dict[str, float]]
    strategy: str
    name: str
    selector: list[dict[str, str]] | None
    callbacks: bool
    _lock: threading.Lock = attrs.field(factory=threading.Lock)
    unwanted: bool = attrs.field(default=False, init=False)
    """Set from any thread: a creation under way undoes itself."""
    _group: PlacementGroup | None = None

    def create(self) -> tuple[PlacementGroup, ray.ObjectRef[PlacementGroup] | None]:
        options = {} if self.selector is None else {"bundle_label_selector": self.selector}
        if self.unwanted:
            raise PlacementRemoved(f"placement group {self.name} is not wanted any more")
        group = placement_group(self.bundles, strategy=self.strategy, name=self.name, **options)
        with self._lock:
            self._group = group
            unwanted = self.unwanted
        if unwanted:
            remove_group(group)
        return group, group.ready() if self.callbacks and not unwanted else None

    def undo(self) -> None:
        """Remove the group, now or as soon as it is made; also one made without an answer."""
        with self._lock:
            self.unwanted = True
            group = self._group
        try:
            remove_group(group or get_placement_group(self.name))
        except ValueError:
            pass  # there is no group of this name: nothing was made yet, or ever
        except ray.exceptions.RayError as error:
            _log.warning(
                "placement group %s may be left until this driver ends: %s", self.name, error
            )


class _RayReservation:
    def __init__(
        self,
        cluster: RayCluster,
        group: PlacementGroup,
        ready: ray.ObjectRef[PlacementGroup] | None,
    ) -> None:
        self._cluster = cluster
        self._group = group
        self._ready = ready
        """Kept alive until the end: dropping it would drop the callback."""
        self._bridge = LoopBridge()
        self._settled = anyio.Event()
        if ready is not None:
            self._listen(ready)

    async def granted(self) -> Grant:
        while True:
            if self._cluster.callbacks:
                await self._settled.wait()
                row = await self._cluster.call(self._row)
            else:
                row = await self._cluster._row_of(self._group.id.hex())
            state = row.get("state", "REMOVED" if self._cluster.callbacks else "PENDING")
            if state == "CREATED":
                # A group that lost a bundle names no node for it, and is CREATED for some moments.
                nodes = tuple(node for _, node in sorted(row["bundles_to_node_id"].items()))
                if await self._cluster._all_alive(nodes):
                    return Grant(nodes=nodes, handle=self._group)
            if state == "REMOVED":
                raise PlacementRemoved(f"placement group {self._group.id.hex()} was removed")
            # Not yet, or again not: a node died, so that it is, or will be, RESCHEDULING.
            await anyio.sleep(self._cluster.params.poll_every_s)
            if self._cluster.callbacks:
                ready = await self._cluster.call(self._group.ready)
                # Not before: a wait that is cancelled there would be for ever the next time.
                self._ready, self._settled = ready, anyio.Event()
                self._listen(ready)

    async def remove(self) -> bool:
        try:
            return await self._cluster.call(self._remove)
        except anyio.get_cancelled_exc_class():
            # Given up, perhaps before a thread was free for it: nobody else would remove it.
            with anyio.move_on_after(self._cluster.params.undo_s, shield=True):
                await self._cluster.call(self._remove)
            raise

    def _listen(self, ready: ray.ObjectRef[PlacementGroup]) -> None:
        """Source: ray 2.60 `object_ref.pyi` `_on_ready`: called from a thread of C++."""
        bridge, settled = self._bridge, self._settled
        ready._on_ready(lambda error: bridge.post(settled.set))

    def _row(self) -> Mapping[str, Any]:
        row: Mapping[str, Any] = placement_group_table(self._group)
        return row

    def _remove(self) -> bool:
        remove_group(self._group)
        if self._row().get("state", "REMOVED") != "REMOVED":
            return False
        if self._ready is not None:
            # An error that nobody fetches would be printed by Ray at some later moment.
            with suppress(ray.exceptions.RayError):
                ray.get(self._ready, timeout=1)
            self._ready = None
        return True


def remove_group(group: PlacementGroup) -> None:
    """Remove a placement group, not in the middle of its scheduling.

    Ray would keep for ever what it has prepared for a group that is removed before that is
    committed (seen on ray 2.60: one in a hundred of those removed in the first milliseconds). So
    this waits, for `_SETTLE_S` at most, until the group is created, or found to be without room.
    Blocks.
    """
    deadline = time.monotonic() + _SETTLE_S
    while not _is_settled(placement_group_table(group)) and time.monotonic() < deadline:
        time.sleep(_SETTLE_EVERY_S)
    remove_placement_group(group)


def _is_settled(row: Mapping[str, Any]) -> bool:
    """Source: ray 2.60 `_private/state.py` `_gen_placement_group_info`."""
    state = row.get("state", "REMOVED")
    if state in ("PENDING", "RESCHEDULING"):
        return row.get("stats", {}).get("scheduling_state") in ("NO_RESOURCES", "INFEASIBLE")
    return bool(state != "PREPARED")


def has_callbacks() -> bool:
    """Return whether `pg.ready()` needs no task (since ray 2.55), and refs have callbacks that
    fetch nothing (since ray 2.60). Source: ray PR 60657."""
    core_worker = getattr(ray._raylet, "CoreWorker", None)
    return hasattr(core_worker, "async_wait_placement_group_ready") and hasattr(
        ray.ObjectRef, "_on_ready"
    )


def ray_bundle(request: GangRequest) -> dict[str, float]:
    """Return the bundle in Ray's words. Ray refuses an empty one: a trace of a CPU stands for
    it."""
    return resources_of(request.bundle) or {"CPU": 0.001}


def ray_selectors(request: GangRequest, avoid: Sequence[str]) -> list[dict[str, str]] | None:
    """Return the selectors of each bundle, which leave out the nodes to avoid; None: there are
    none."""
    each = [dict(selectors) for selectors in selectors_of(request)]
    if avoid:
        for selectors in each:
            selectors[_NODE_ID] = leaving_out(selectors.get(_NODE_ID), avoid)
    return each if any(each) else None


def _require_ray() -> None:
    from ray.util.client import ray as client

    if client.is_connected():  # type: ignore[no-untyped-call]  # ray has no types here
        raise PlacementError(
            "Ray Client (ray://...) is not supported: run the driver on a node of the cluster, "
            "with ray.init(address='auto'), or submit it with `ray job submit`"
        )
    if not ray.is_initialized():
        raise PlacementError("Ray is not initialised: call ray.init() before RayCluster()")


def _view(node: Mapping[str, Any], drains: Mapping[str, int], wall_s: float) -> NodeView:
    name = node["NodeID"]
    until_ms = drains.get(name, 0)
    return NodeView(
        name=name,
        resources=dict(node["Resources"]),
        labels=dict(node.get("Labels") or {}),
        draining=name in drains,
        left_s=max(0.0, until_ms / 1000 - wall_s) if until_ms else None,
    )


def _node_types(nodes: Sequence[NodeView]) -> tuple[NodeType, ...]:
    """Return what an autoscaler told Ray that it may add; empty: it told nothing.

    Source: ray 2.60 `_private/state.py` `get_cluster_config`, `autoscaler.proto` NodeGroupConfig.
    """
    config = ray._private.state.state.get_cluster_config()
    there = Counter(node.labels.get(_NODE_GROUP) for node in nodes if not node.draining)
    return tuple(
        NodeType(
            name=group.name,
            resources={name: float(amount) for name, amount in group.resources.items()},
            # A new node has none of the ids that there are.
            labels={_NODE_GROUP: group.name, _NODE_ID: ""},
            more=None if group.max_count < 0 else max(0, group.max_count - there[group.name]),
        )
        for group in (() if config is None else config.node_group_configs)
    )


def _live_nodes() -> list[Mapping[str, Any]]:
    nodes = ray.nodes()  # type: ignore[no-untyped-call]  # ray has no types here
    return [node for node in nodes if node["Alive"]]


def _alive() -> set[str]:
    return {node["NodeID"] for node in _live_nodes()}


def _table() -> Mapping[str, Mapping[str, Any]]:
    rows: Mapping[str, Mapping[str, Any]] = placement_group_table()
    return rows
