"""Leases gangs and never leaks them: deadlines, explanations, cancellation, release.

Theory of operation. `Allocator` keeps one `Attempt` (a task) per reservation in a task group of its
own, and one `Watcher`. `acquire` starts an attempt and waits for the first of: granted, failed,
found unplaceable for too long, deadline. Whatever ends the wait, cancellation too, the attempt is
told to leave, and its task removes what there is. `judge` decides how long to wait; nothing here
knows Ray.
"""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from types import TracebackType

import anyio
import attrs
from anyio.abc import TaskGroup
from opentelemetry import trace

from thornback.placement.attempt import Attempt, LeaseState
from thornback.placement.bundles import (
    GangRequest,
    Lease,
    Supply,
    resources_of,
    strategy_of,
)
from thornback.placement.errors import AllocatorClosed, PlacementTimedOut, Unschedulable
from thornback.placement.explain import (
    Diagnoses,
    Diagnosis,
    describe,
    largest_memory_bytes,
    may_come,
    show_resources,
)
from thornback.placement.fit import fitting
from thornback.placement.params import (
    AllocatorParams,
    Explainer,
    Explanation,
    judge,
    log_explanation,
)
from thornback.placement.ports import Cluster, Snapshot
from thornback.placement.watch import Listener, Watcher, drain_notices

_log = logging.getLogger(__name__)


@attrs.frozen(kw_only=True, slots=True)
class LeaseView:
    """One entry of `Allocator.leases()`."""

    lease_id: int
    """That of the lease, if it has become one."""
    state: LeaseState
    """Where it is."""
    request: GangRequest
    """What was asked for."""
    nodes: tuple[str, ...] = ()
    """One node per bundle; empty: not granted."""


BUSY_AFTER_S = 1.0
"""A request that waits for so long has met busy nodes: a backend grants free ones sooner."""


class Allocator:
    """Leases gangs on a cluster. Use it as an asynchronous context manager, in one event loop.

    Guarantees:
        A cancelled or failed `acquire` holds nothing. Leaving the context releases everything,
        within `release_s`. What could not be confirmed is logged and `close` returns False.

    End the workers of a gang *before* you release its lease: on Ray an actor that is submitted to,
    or waits in, a removed placement group can hang for ever.

    Args:
        cluster: where to place.
        params: the durations.
        observe: called when a request waits, because it does not fit the nodes or because they are
            in use, and again only when the reason has changed. It must not block. What it raises is
            logged. None: logs a warning.
        tracer: for the span `thornback.place` round each `acquire`; default: the global one.
    """

    def __init__(
        self,
        cluster: Cluster,
        *,
        params: AllocatorParams | None = None,
        observe: Callable[[Explanation], None] | None = None,
        tracer: trace.Tracer | None = None,
    ) -> None:
        self._cluster = cluster
        self._params = params or AllocatorParams()
        self._explainer = Explainer(observe or log_explanation)
        self._tracer = tracer or trace.get_tracer("thornback.placement")
        self._diagnoses = Diagnoses()
        self._tasks: TaskGroup | None = None
        self._watcher = Watcher(
            cluster, look_s=self._params.look_s, look_again_s=self._params.look_again_s
        )
        self._attempts: dict[int, Attempt] = {}
        self._count = 0
        self._closed = False

    async def __aenter__(self) -> Allocator:
        if self._tasks is not None or self._closed:
            raise AllocatorClosed("an Allocator is opened once; make another one")
        self._tasks = await anyio.create_task_group().__aenter__()
        self._tasks.start_soon(self._watcher.run, name="thornback.placement.watcher")
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        tasks = self._tasks
        assert tasks is not None
        await self.close()
        self._tasks = None
        tasks.cancel_scope.cancel()
        # Without the exception of the body: the task group would wrap it in an exception group.
        await tasks.__aexit__(None, None, None)

    async def acquire(
        self,
        request: GangRequest,
        /,
        *,
        avoid: Sequence[str] = (),
        timeout_s: float | None = None,
        wait_for_nodes_s: float | None = None,
    ) -> Lease:
        """Return a held lease.

        Args:
            request: the gang.
            avoid: nodes to avoid if there are others: a preference, never a ban.
            timeout_s: replaces `AllocatorParams.place_s`.
            wait_for_nodes_s: replaces `AllocatorParams.wait_for_nodes_s`.

        Raises:
            Unschedulable: the present nodes could not hold it, for `wait_for_nodes_s`.
            PlacementTimedOut: it fits the nodes, but was not granted within `timeout_s`.
            PlacementRemoved: somebody removed the reservation while it was waited for.
            AllocatorClosed: the allocator is not open, or was closed meanwhile.
            Exception: what the backend raised when it was asked.

        Cancellation: nothing is held. A creation under way is not abandoned but undone; that is
        waited for, shielded, for at most `release_s`, and goes on in the background after that.
        """
        attributes: dict[str, str | int] = {
            "thornback.nodes": request.nodes,
            "thornback.bundle": show_resources(resources_of(request.bundle)),
        }
        with (
            self._tracer.start_as_current_span("thornback.place", attributes=attributes) as span,
            self._watcher.listen() as listener,
        ):
            params = self._params
            lease = await self._place(
                request,
                tuple(avoid),
                params.place_s if timeout_s is None else timeout_s,
                params.wait_for_nodes_s if wait_for_nodes_s is None else wait_for_nodes_s,
                listener,
            )
            span.set_attribute("thornback.lease", lease.lease_id)
            span.set_attribute("thornback.node_names", lease.nodes)
        return lease

    def explain_to(self, observe: Callable[[Explanation], None], /) -> None:
        """Call this observer, too, with every explanation from now on."""
        self._explainer.add(observe)

    async def release(self, lease: Lease, /, *, timeout_s: float) -> bool:
        """Give the lease back. Idempotent, never raises; kill the gang's workers first.

        Returns:
            True: the backend confirmed that nothing is reserved any more (also when it was released
            before). False: not within `timeout_s`; a later `release` or `close` tries again.

        Cancellation: waits nevertheless, for at most `timeout_s`.
        """
        attempt = self._attempts.get(lease.lease_id)
        if attempt is None or attempt.grant is None or attempt.grant.nodes != lease.nodes:
            return True
        return await self._retire(attempt, timeout_s)

    @asynccontextmanager
    async def lease(
        self, request: GangRequest, *, avoid: Sequence[str] = ()
    ) -> AsyncGenerator[Lease, None]:
        """Acquire, and release at the end. Opens the allocator, and closes it, if it is not open.

        Raises: as `acquire`.
        """
        async with AsyncExitStack() as stack:
            if self._tasks is None:
                await stack.enter_async_context(self)
            lease = await self.acquire(request, avoid=avoid)
            try:
                yield lease
            finally:
                await self.release(lease, timeout_s=self._params.release_s)

    async def drains(self) -> AsyncGenerator[tuple[str, float | None], None]:
        """Yield (node, seconds left or None) for every notice that a node will go away.

        A drain under way is told at once, each drain once, and again only when its deadline moved.
        Ends when the allocator is closed. The cluster is looked at only while somebody iterates (or
        waits for a lease).
        """
        known: Mapping[str, float | None] = {}
        with self._watcher.listen() as listener:
            while not self._closed:
                news = listener.renew()
                snapshot = self._watcher.snapshot
                if snapshot is not None:
                    now, slack_s = anyio.current_time(), self._params.drain_slack_s
                    notices = drain_notices(known, snapshot.nodes, now, slack_s)
                    known = notices.known
                    for notice in notices.fresh:
                        yield notice
                await news.wait()

    def leases(self) -> tuple[LeaseView, ...]:
        """Return everything that is asked for, held, or not confirmed as removed; oldest first."""
        return tuple(
            LeaseView(
                lease_id=attempt.lease_id,
                state=attempt.state,
                request=attempt.request,
                nodes=attempt.grant.nodes if attempt.grant else (),
            )
            for attempt in self._attempts.values()
        )

    async def close(self) -> bool:
        """Release everything and refuse more. Idempotent, never raises, takes at most `release_s`.

        A pending `acquire` raises `AllocatorClosed`, `drains` ends. Cancellation: shielded.

        Returns:
            True when every removal was confirmed. What was not is logged with its request.
        """
        self._closed = True
        self._watcher.wake_all()
        waiting = list(self._attempts.values())
        with anyio.CancelScope(shield=True):
            async with anyio.create_task_group() as retiring:
                for attempt in waiting:
                    retiring.start_soon(self._retire, attempt, self._params.release_s)
        left = list(self._attempts.values())
        for attempt in left:
            attempt.abandon()
            _log.error(
                "lease %d (%s): the removal was not confirmed within %g s and is given up",
                attempt.lease_id,
                describe(attempt.request),
                self._params.release_s,
            )
        return not left

    async def _place(
        self,
        request: GangRequest,
        avoid: tuple[str, ...],
        place_s: float,
        nodes_s: float,
        listener: Listener,
    ) -> Lease:
        """First without the nodes to avoid, as long as the others could hold it; then anywhere."""
        deadline = anyio.current_time() + place_s
        if avoid and await self._looked(listener):
            until = min(deadline, anyio.current_time() + self._params.avoid_s)
            try:
                return await self._try(request, avoid, until, nodes_s, listener)
            except (Unschedulable, PlacementTimedOut) as error:
                _log.info("no longer avoids %s: %s", ", ".join(avoid), error)
        return await self._try(request, (), deadline, nodes_s, listener)

    async def _looked(self, listener: Listener) -> bool:
        """Wait for the first look. False: it failed, so nobody knows whether avoidance is
        possible."""
        looks = self._watcher.looks
        with anyio.move_on_after(self._params.look_s):
            while self._watcher.snapshot is None and self._watcher.looks == looks:
                if self._closed:
                    break
                await listener.renew().wait()
        return self._watcher.snapshot is not None

    async def _try(
        self,
        request: GangRequest,
        avoid: tuple[str, ...],
        deadline: float,
        nodes_s: float,
        listener: Listener,
    ) -> Lease:
        if self._tasks is None or self._closed:
            raise AllocatorClosed(
                "the allocator is not open: use it inside "
                "`async with Allocator(cluster) as leases:`"
            )
        self._count += 1
        attempt = Attempt(
            lease_id=self._count,
            request=request,
            strategy=strategy_of(request),
            avoid=avoid,
            removal=self._params.removal,
            on_settled=listener.poke,
        )
        self._attempts[attempt.lease_id] = attempt
        self._tasks.start_soon(self._live, attempt)
        try:
            return await self._settled(attempt, deadline, nodes_s, listener)
        except BaseException:
            # Cancellation as much as failure: whatever it was, nothing may stay reserved.
            await self._retire(attempt, self._params.release_s)
            raise

    async def _live(self, attempt: Attempt) -> None:
        await attempt.run(self._cluster)
        if attempt.confirmed:
            self._attempts.pop(attempt.lease_id, None)

    async def _settled(
        self, attempt: Attempt, deadline: float, nodes_s: float, listener: Listener
    ) -> Lease:
        """Wait for the outcome of the attempt, as long as `judge` allows."""
        started, since = anyio.current_time(), None
        while True:
            news = listener.renew()
            if self._closed:
                # Also when it was granted a moment ago: close() has taken it back already.
                raise AllocatorClosed("the allocator was closed while the lease was pending")
            if attempt.grant is not None:
                self._explainer.forget(attempt.request)
                grant, seen = attempt.grant, self._watcher.snapshot
                return Lease(
                    lease_id=attempt.lease_id,
                    nodes=grant.nodes,
                    fitting=None if seen is None else fitting(attempt.request, seen.nodes),
                    handle=grant.handle,
                )
            if attempt.error is not None:
                raise attempt.error
            snapshot, now = self._watcher.snapshot, anyio.current_time()
            found = self._unplaceable(attempt, snapshot)
            if found is None and since is not None:
                # `place_s` counts only while it fits: a node that came late must not be called busy
                # before it can be granted.
                deadline += now - since
            since = None if found is None else now if since is None else since
            until = judge(
                _supply(attempt, snapshot),
                since,
                deadline,
                nodes_s,
                hopeless=found is not None and found.hopeless,
            )
            again_at = self._explained(attempt, snapshot, found, started, until, now)
            if now >= until:
                raise _failure(attempt, snapshot, found, now - started)
            wake_at = min(until, again_at)
            with anyio.move_on_after(wake_at - now if wake_at < math.inf else None):
                await news.wait()

    def _explained(
        self,
        attempt: Attempt,
        snapshot: Snapshot | None,
        found: Diagnosis | None,
        started: float,
        until: float,
        now: float,
    ) -> float:
        """Say why the attempt waits. Return when to look again, if nothing happens before."""
        request = attempt.request
        if snapshot is None:
            return math.inf
        if found is not None:
            if attempt.avoid:
                return math.inf  # a preference that cannot be met is dropped, which is not news
            return self._explainer.tell(request, found.text, now, until - now)
        if now < started + BUSY_AFTER_S:
            return started + BUSY_AFTER_S
        holders = [each for each in self._attempts.values() if each.grant is not None]
        busy = self._diagnoses.busy(request, snapshot, attempt.avoid, holders)
        if busy is None:
            self._explainer.forget(request)
            return math.inf
        return self._explainer.tell(request, busy, now, until - now, busy=True)

    def _unplaceable(self, attempt: Attempt, snapshot: Snapshot | None) -> Diagnosis | None:
        if snapshot is None:
            return None
        return self._diagnoses.of(attempt.request, snapshot, attempt.avoid)

    async def _retire(self, attempt: Attempt, timeout_s: float) -> bool:
        """End the attempt; wait for it, shielded and bounded. True: confirmed."""
        attempt.leave()
        if attempt.gone.is_set() and not attempt.confirmed and self._tasks is not None:
            attempt.revive()
            self._tasks.start_soon(self._live, attempt)
        with anyio.move_on_after(timeout_s, shield=True):
            await attempt.gone.wait()
        return attempt.confirmed


def _supply(attempt: Attempt, snapshot: Snapshot | None) -> Supply:
    # Avoidance is dropped at once when it stands in the way: the other nodes are there to be used.
    if attempt.avoid:
        return Supply.FIXED
    return Supply.CHANGING if snapshot is None else snapshot.supply


def _failure(
    attempt: Attempt, snapshot: Snapshot | None, found: Diagnosis | None, waited_s: float
) -> Unschedulable | PlacementTimedOut:
    if found is not None and snapshot is not None:
        return Unschedulable(
            found.text,
            largest_memory_bytes(attempt.request, snapshot.nodes, may_come(snapshot)),
        )
    return PlacementTimedOut(
        f"{describe(attempt.request)} was not placed within {waited_s:.1f} s: the nodes could "
        "hold it, but were not free, or the cluster did not answer",
        waited_s,
    )
