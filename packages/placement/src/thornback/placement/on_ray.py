"""Gangs as Ray placement groups.

Theory of operation. A reservation is a non-detached placement group (it dies with its driver).
Readiness comes by a callback on `pg.ready()`, which is free of tasks and threads since ray 2.60; on
an older one a single table call per tick serves all groups that wait. Every call that talks to the
GCS blocks, so it runs in one of four threads.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeVar

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
from thornback.placement.bundles import GangRequest, NodeView, Strategy, Supply, resources_of
from thornback.placement.errors import PlacementError, PlacementRemoved
from thornback.placement.ports import Grant, Reservation, Snapshot

__all__ = ["RayCluster", "RayParams"]

_log = logging.getLogger(__name__)
_T = TypeVar("_T")


@attrs.frozen(kw_only=True, slots=True)
class RayParams:
    """How a `RayCluster` talks to Ray."""

    look_every_s: float = 1.5
    """Ray has no notices of drains in Python: this is the interval while somebody waits for
    them."""
    poll_every_s: float = 0.5
    """Interval of the one table call for all waiting groups, where Ray has no task-less
    readiness."""
    undo_s: float = 10.0
    """The bound of undoing a creation whose answer nobody waits for any more."""
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
        self._poll = anyio.Lock()
        self._polled_at = float("-inf")
        self._rows: Mapping[str, Mapping[str, Any]] = {}

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
            selector=self._selector(request, avoid),
            callbacks=self.callbacks,
        )
        try:
            group, ready = await self.call(creation.create)
        except BaseException:
            # Failed without an answer, perhaps; or cancelled by an allocator that gives up.
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

    async def _table_row(self, group_id: str) -> Mapping[str, Any]:
        """Return the group's row of a table at most `poll_every_s` old; one call serves all."""
        async with self._poll:
            if anyio.current_time() - self._polled_at >= self.params.poll_every_s:
                self._rows = await self.call(placement_group_table)
                self._polled_at = anyio.current_time()
            return self._rows.get(group_id, {})

    def _selector(self, request: GangRequest, avoid: Sequence[str]) -> list[dict[str, str]] | None:
        if not avoid:
            return None
        # The label's name since ray 2.49: an older one takes this, and avoids nothing.
        return [{"ray.io/node-id": f"!in({','.join(avoid)})"}] * request.nodes

    def _look(self) -> Snapshot:
        self._looking = True
        try:
            drains = self._draining()
            nodes = ray.nodes()  # type: ignore[no-untyped-call]  # ray has no types here
            return Snapshot(
                nodes=tuple(_view(node, drains, time.time()) for node in nodes if node["Alive"]),
                supply=self._supply or _supply(),
            )
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


@attrs.define(kw_only=True)
class Creation:
    """One creation, in a thread, that may have to be undone while it runs."""

    bundles: list[dict[str, float]]
    strategy: str
    name: str
    selector: list[dict[str, str]] | None
    callbacks: bool
    _lock: threading.Lock = attrs.field(factory=threading.Lock)
    _unwanted: bool = False
    _group: PlacementGroup | None = None

    def create(self) -> tuple[PlacementGroup, ray.ObjectRef[PlacementGroup] | None]:
        options = {} if self.selector is None else {"bundle_label_selector": self.selector}
        with self._lock:
            if self._unwanted:
                raise PlacementRemoved(f"placement group {self.name} is not wanted any more")
        group = placement_group(self.bundles, strategy=self.strategy, name=self.name, **options)
        with self._lock:
            self._group = group
            unwanted = self._unwanted
        if unwanted:
            remove_placement_group(group)
        return group, group.ready() if self.callbacks and not unwanted else None

    def undo(self) -> None:
        """Remove the group, now or as soon as it is made; also one made without an answer."""
        with self._lock:
            self._unwanted = True
            group = self._group
        try:
            remove_placement_group(group or get_placement_group(self.name))
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
                row = await self._cluster._table_row(self._group.id.hex())
            state = row.get("state", "REMOVED" if self._cluster.callbacks else "PENDING")
            if state == "CREATED":
                nodes = row["bundles_to_node_id"]
                return Grant(nodes=tuple(nodes[i] for i in sorted(nodes)), handle=self._group)
            if state == "REMOVED":
                raise PlacementRemoved(f"placement group {self._group.id.hex()} was removed")
            # Not yet, or again not (RESCHEDULING: a node died between ready and the look).
            await anyio.sleep(self._cluster.params.poll_every_s)
            if self._cluster.callbacks:
                self._settled = anyio.Event()
                ready = await self._cluster.call(self._group.ready)
                self._ready = ready
                self._listen(ready)

    async def remove(self) -> bool:
        return await self._cluster.call(self._remove)

    def _listen(self, ready: ray.ObjectRef[PlacementGroup]) -> None:
        """Source: ray 2.60 `object_ref.pyi` `_on_ready`: called from a thread of C++."""
        bridge, settled = self._bridge, self._settled
        ready._on_ready(lambda error: bridge.post(settled.set))

    def _row(self) -> Mapping[str, Any]:
        row: Mapping[str, Any] = placement_group_table(self._group)
        return row

    def _remove(self) -> bool:
        remove_placement_group(self._group)
        if self._row().get("state", "REMOVED") != "REMOVED":
            return False
        if self._ready is not None:
            # An error that nobody fetches would be printed by Ray at some later moment.
            with suppress(ray.exceptions.RayError):
                ray.get(self._ready, timeout=1)
            self._ready = None
        return True


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
        draining=name in drains,
        left_s=max(0.0, until_ms / 1000 - wall_s) if until_ms else None,
    )


def _supply() -> Supply:
    """Source: ray 2.60 `_private/state.py` `get_cluster_config`: what an autoscaler set."""
    config = ray._private.state.state.get_cluster_config()
    if config is not None and len(config.node_group_configs) > 0:
        return Supply.ELASTIC
    return Supply.CHANGING
