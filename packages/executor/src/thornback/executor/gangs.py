"""Carries out `OpenGang` and `CloseGang`: id -> lease and workers. Does what it is told, and
decides nothing.

A gang has one task for its whole life: lease, start the workers, say ready, then wait until it is
lost. `CloseGang` cancels that task, waits until it has settled, and undoes what is held, in this
order: workers, then lease."""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable
from functools import partial

import anyio
import attrs
from opentelemetry import trace

from thornback.executor.params import ExecutorParams
from thornback.executor.plan import RunPlan
from thornback.executor.ports import Attribute, Leases, Workers
from thornback.executor.tracing import RunTracer
from thornback.faults import ErrorData
from thornback.placement import Lease
from thornback.pool import CaughtError, GangLostError
from thornback.scheduler.commands import CloseGang, OpenGang
from thornback.scheduler.events import GangClosed, GangPlaced, GangReady

logger = logging.getLogger(__name__)
_SLACK_S = 5.0
"""What a step may take beyond the time that it was given, until it is abandoned."""
_NODES_S = 3600.0
"""Backstop for the wait for nodes where the platform decides how long it is."""
_NUMBERS = re.compile(r"\d+")
"""Process ids and the like, which make no other reason."""
_MOST_WARNINGS = 5
_EXPLAIN_S = 10.0
"""Longer than the allocator's own deadline, whose error says why nothing was placed."""


@attrs.frozen(kw_only=True, slots=True)
class Loss:
    """A gang that could not be opened or is gone, not classified yet."""

    gang: int
    error: BaseException | ErrorData
    facts: dict[str, Attribute]
    node: str | None = None


@attrs.define(slots=True, eq=False)
class _LiveGang:
    scope: anyio.CancelScope
    settled: anyio.Event = attrs.field(factory=anyio.Event)
    lease: Lease | None = None


class GangKeeper:
    """Holds every gang that was opened and is not closed."""

    def __init__(
        self,
        plan: RunPlan,
        leases: Leases,
        workers: Workers,
        tracer: RunTracer,
        params: ExecutorParams,
        post: Callable[[GangPlaced | GangReady | GangClosed | Loss], None],
        reports_in: Callable[[int], Awaitable[None]],
    ) -> None:
        self._plan = plan
        self._leases = leases
        self._workers = workers
        self._tracer = tracer
        self._params = params
        self._post = post
        self._reports_in = reports_in
        self._gangs: dict[int, _LiveGang] = {}
        self._warned: set[str] = set()

    def __len__(self) -> int:
        return len(self._gangs)

    def expect(self, gang: int) -> None:
        """Register a gang before its task runs, so that a close that overtakes the task finds
        it."""
        self._gangs[gang] = _LiveGang(anyio.CancelScope())

    async def open(self, command: OpenGang) -> None:
        """Live the gang's life; ends when it is lost or its close cancels it. Any exception becomes
        a `Loss`."""
        live = self._gangs[command.gang]
        span = self._tracer.gang_opened(command.gang)
        try:
            with live.scope, trace.use_span(span, end_on_exit=False):
                await self._live(command, live)
        finally:
            live.settled.set()

    async def _live(self, command: OpenGang, live: _LiveGang) -> None:
        gang = command.gang
        origin, phase = "placement", "place"
        try:
            params = self._params
            nodes_s = params.wait_for_nodes_s
            # It may wait for nodes first, and then until they are free.
            most_s = params.place_s + (_NODES_S if nodes_s is None else nodes_s) + _EXPLAIN_S
            with anyio.fail_after(most_s):
                live.lease = await self._leases.acquire(
                    self._plan.request(command.shape),
                    avoid=command.avoid,
                    timeout_s=params.place_s,
                    wait_for_nodes_s=nodes_s,
                )
            origin, phase = "worker", "start"
            lease = live.lease
            self._post(GangPlaced(gang=gang, nodes=lease.nodes))
            spec = self._plan.worker_spec(command.shape)
            await self._workers.open(
                gang,
                lease.nodes,
                lease.handle,
                spec,
                timeout_s=self._plan.start_s(command.shape, self._params.start_s),
            )
            self._post(GangReady(gang=gang, nodes=lease.nodes, fitting=lease.fitting))
            raise await self._workers.lost(gang)
        except GangLostError as error:
            facts = {**error.facts, "origin": "worker", "phase": error.phase}
            if error.phase == "start":
                self._warn(error)
            await self._reports_in(gang)
            self._post(Loss(gang=gang, error=error.error, facts=facts, node=error.node))
        except Exception as error:  # noqa: BLE001  # the command's one answer, whatever happened
            self._post(Loss(gang=gang, error=error, facts={"origin": origin, "phase": phase}))

    def _warn(self, error: GangLostError) -> None:
        """Log why workers do not start, each reason once: the run may try again for minutes."""
        head, _, rest = str(error).partition("\n")
        reason = _NUMBERS.sub("", head)
        if reason in self._warned or len(self._warned) >= _MOST_WARNINGS:
            return
        self._warned.add(reason)
        trace = error.error.traceback if isinstance(error.error, CaughtError) else ""
        detail = "".join(f"\n{text}" for text in dict.fromkeys((rest, trace)) if text)
        logger.warning("a worker did not start: %s%s", head, detail)

    async def close(self, command: CloseGang) -> None:
        """End the workers, give the lease back, and say so, confirmed or not."""
        confirmed = False
        try:
            confirmed = await self._undo(command.gang, kill=command.kill)
        finally:
            self._tracer.gang_closed(command.gang, confirmed)
            self._post(GangClosed(gang=command.gang, confirmed=confirmed))

    async def close_all(self) -> None:
        """Close what is held; only for a driver that ends before its scheduler has finished."""
        async with anyio.create_task_group() as group:
            for gang in list(self._gangs):
                group.start_soon(self._undo_quietly, gang)

    async def _undo_quietly(self, gang: int) -> None:
        await self._undo(gang, kill=True)

    async def _undo(self, gang: int, *, kill: bool) -> bool:
        """Undo what is held, workers first; each step is bounded, and taken in any case."""
        live = self._gangs.get(gang)
        if live is None:
            return True
        params, workers, leases = self._params, self._workers, self._leases
        live.scope.cancel()
        with anyio.move_on_after(params.close_s, shield=True):
            await live.settled.wait()
        ended = await _bounded(
            partial(workers.close, gang, kill=kill, timeout_s=params.close_s), params.close_s
        )
        given_back = True
        if live.lease is not None:
            release = partial(leases.release, live.lease, timeout_s=params.release_s)
            given_back = await _bounded(release, params.release_s)
        self._gangs.pop(gang, None)
        return ended and given_back and live.settled.is_set()


async def _bounded(step: Callable[[], Awaitable[bool]], timeout_s: float) -> bool:
    """Take a step of the clean-up, shielded; False if it raised or did not end in time."""
    try:
        with anyio.move_on_after(timeout_s + _SLACK_S, shield=True):
            return await step()
    except Exception:  # foreign code that promised not to raise: go on undoing
        logger.exception("a step of closing a gang raised")
    return False
