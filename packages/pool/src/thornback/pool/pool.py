"""`WorkerPool`: opens gangs of workers, hands them assignments, and tells what became of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from types import TracebackType

import anyio
from anyio.abc import TaskGroup
from opentelemetry import trace
from opentelemetry.trace import Status, StatusCode
from opentelemetry.util.types import AttributeValue

from thornback.faults import safe
from thornback.pool.clock import SystemClock
from thornback.pool.gang import Gang
from thornback.pool.losses import not_open
from thornback.pool.poolparams import PoolParams, Surroundings
from thornback.pool.ports import (
    Assignment,
    Beat,
    Blobs,
    Clock,
    GangLostError,
    PoolObserver,
    Report,
    WorkerBackend,
    WorkerSpec,
)
from thornback.pool.rendezvous import checked
from thornback.pool.reports import Reports
from thornback.pool.telling import Telling

_STATUS_CHARS = 500
"""Of the status of a span that failed."""
_BEATS_PER_S = 50.0
"""Of all workers together, at most: 3 % of a core on Ray, where one costs the driver 0.6 ms."""


class WorkerPool:
    """Keeps the workers of gangs alive and hands them work, under anyio on asyncio and trio.

    An async context manager: what is still open when it is left is killed, shielded and bounded.
    Numbers of gangs and of assignments are the caller's, and are used once. Close every gang that
    you opened, also one that failed to open or was lost: only `close` says whether its workers are
    dead for certain.

    Args:
        backend: starts single workers.
        blobs: gives programs and inputs by key, once per worker that needs them.
        params: bounds and rhythms.
        observer: told of heartbeats, and of what the ranks write; None: logs stay where they are.
        clock: time, for tests.
        tracer_provider: for the span `thornback.workers.open`; None: the global one.
    """

    def __init__(
        self,
        backend: WorkerBackend,
        blobs: Blobs,
        params: PoolParams | None = None,
        *,
        observer: PoolObserver | None = None,
        clock: Clock | None = None,
        tracer_provider: trace.TracerProvider | None = None,
    ) -> None:
        self._surroundings = Surroundings(
            backend=backend,
            blobs=blobs,
            params=params or PoolParams(),
            clock=clock or SystemClock(),
            telling=Telling(observer),
        )
        self._gangs: dict[int, Gang] = {}
        self._tasks: TaskGroup | None = None
        self._left: anyio.Event | None = None
        self._tracer = trace.get_tracer("thornback.pool", tracer_provider=tracer_provider)

    async def __aenter__(self) -> WorkerPool:
        """Start the heartbeat."""
        if self._left is not None:
            raise RuntimeError("a WorkerPool is entered once: make a new one")
        self._left = anyio.Event()
        self._tasks = anyio.create_task_group()
        await self._tasks.__aenter__()
        self._tasks.start_soon(self._heartbeat)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Kill what is open. An exception of the body passes through as it is."""
        tasks, left = self._entered()
        close_s = self._surroundings.params.close_s
        with anyio.CancelScope(shield=True):
            async with anyio.create_task_group() as group:
                for gang in list(self._gangs):
                    group.start_soon(self._kill, gang, close_s)
        self._tasks = None
        left.set()
        tasks.cancel_scope.cancel()
        # None of our tasks raises, so the group has nothing to add to an ordinary exception, and
        # would wrap it.
        ordinary = isinstance(error, Exception)
        await tasks.__aexit__(
            None if ordinary else kind,
            None if ordinary else error,
            None if ordinary else traceback,
        )

    async def open(
        self,
        gang: int,
        nodes: Sequence[str],
        handle: object,
        spec: WorkerSpec,
        /,
        *,
        timeout_s: float,
    ) -> None:
        """Start one worker per node, all at once; return when all have given a sign of life.

        Args:
            gang: a number that is not in use.
            nodes: one per worker, in the order of the lease's bundles.
            handle: of the lease; for the backend.
            spec: what the workers are like.
            timeout_s: for all of it; the end of what was started comes on top, at most `kill_s` and
                `salvage_s`.

        Raises:
            GangLostError: phase `start` or `ping`: a worker did not come up (everything started has
                been killed), or phase `close`: the gang was closed meanwhile.
            ValueError: the number is in use, there is no node, or there are several nodes and
                several slots.
            RuntimeError: the pool is not entered.

        Cancellation: everything started is killed; close the gang to know it for certain.
        """
        tasks, _ = self._entered()
        if gang in self._gangs:
            raise ValueError(f"gang {gang} is open already, or was not closed: use a new number")
        if spec.slots < 1 or (len(nodes) > 1 and spec.slots > 1):
            raise ValueError(
                f"a gang of {len(nodes)} nodes cannot have {spec.slots} slots: it takes one slot, "
                "or one node with at least one"
            )
        attributes: dict[str, AttributeValue] = {
            "thornback.gang": gang,
            "thornback.nodes": tuple(nodes),
            "thornback.slots": spec.slots,
        }
        record = Gang(gang, nodes, handle, spec, self._surroundings)
        self._gangs[gang] = record
        # Not by the tracer, which would record the text of the error with any secret in it.
        with self._tracer.start_as_current_span(
            "thornback.workers.open",
            attributes=attributes,
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            try:
                await record.open(tasks, timeout_s)
            except Exception as error:
                said = safe(f"{type(error).__name__}: {error}", _STATUS_CHARS)
                span.set_status(Status(StatusCode.ERROR, said))
                raise

    def run(self, gang: int, work: Assignment, /) -> AsyncIterator[Report]:
        """Hand out an assignment, at once; iterate over the reports.

        Every rank is in exactly one `outcomes` or `returned` of all reports, whatever the worker
        sends; the last report is `final`. One reader.

        Raises:
            ValueError: at once: the assignment is under way already, has no ranks or one twice, has
                several ranks on a gang of several nodes, or a rendezvous that is not known.
            GangLostError: from the iteration: the gang is lost, is closed under way (its error is a
                `GangClosed`), or is not open (`GangNotOpen`); what was reported until then is
                delivered first.
            Exception: from the iteration: what `blobs` raised; no rank has been started then.

        Cancellation: a reader that stops early or is cancelled leaves the work running until it
        ends, is recalled or the gang is closed.
        """
        record = self._gangs.get(gang)
        if record is not None:
            return record.run(work)
        checked(work.rendezvous)
        reports = Reports()
        reports.fail(not_open(gang))
        return reports

    async def recall(self, gang: int, assignment: int, /, *, kill: bool) -> None:
        """Hasten the end of `run`: ranks not started are returned; with `kill`, so is the running
        one.

        Returns at once; a worker that does not comply with a kill within `recall_s` is killed, and
        its gang lost. Unknown, ended, closed: a no-op.
        """
        record = self._gangs.get(gang)
        if record is not None:
            record.recall(assignment, kill=kill)

    async def lost(self, gang: int, /) -> GangLostError:
        """Return when, and only if, the gang is lost: also when it failed to open.

        For a gang that is closed, or was never opened, this waits until it is cancelled, or the
        pool is left.

        Raises:
            anyio.ClosedResourceError: the pool was left.
            RuntimeError: the pool is not entered.
        """
        _, left = self._entered()
        record = self._gangs.get(gang)
        if record is not None:
            await record.settled.wait()
            if record.loss is not None:
                return record.lost()
        await left.wait()
        raise anyio.ClosedResourceError("the worker pool was left")

    async def beat(self, gang: int, /) -> Sequence[Beat]:
        """Ask the workers now; one that does not answer within `ask_s` is left out. Unknown or
        closed: empty."""
        record = self._gangs.get(gang)
        return () if record is None else await record.beats()

    async def drain(self, node: str, left_s: float | None, /) -> None:
        """Tell the ranks that run on a node, and those that follow there, that it goes away.

        Gangs that open later are not told: tell those again. Takes `ask_s` at most, never raises.

        Args:
            node: as given to `open`; nobody there: a no-op.
            left_s: seconds until then; None: not known. The newest notice counts.
        """
        async with anyio.create_task_group() as group:
            for record in list(self._gangs.values()):
                group.start_soon(record.drain, node, left_s)

    async def close(self, gang: int, /, *, kill: bool, timeout_s: float) -> bool:
        """End the workers of a gang, and with them all that is under way.

        Args:
            gang: unknown or closed: nothing is left to do, True.
            kill: False lets idle rank processes tear down in order, for half of the time, and then
                fetches the rest of the logs for the observer, before the kill.
            timeout_s: for all of it.

        Returns:
            Whether all deaths are confirmed. After False, close again to try again.

        Cancellation: shielded. Never raises.
        """
        record = self._gangs.get(gang)
        if record is None:
            return True
        confirmed = await record.close(kill=kill, timeout_s=timeout_s)
        if confirmed and self._gangs.get(gang) is record:
            del self._gangs[gang]
        return confirmed

    async def _kill(self, gang: int, timeout_s: float) -> None:
        await self.close(gang, kill=True, timeout_s=timeout_s)

    async def _heartbeat(self) -> None:
        while True:
            await self._surroundings.clock.sleep(self._pause_s())
            for gang in list(self._gangs.values()):
                gang.pulse()

    def _pause_s(self) -> float:
        """Return the seconds to the next heartbeat: soon, for what ranks write, as long as all
        workers together are asked at most 50 times a second."""
        params = self._surroundings.params
        if not self._surroundings.telling.wanted:
            return params.beat_every_s
        workers = sum(gang.size for gang in self._gangs.values())
        return min(params.beat_every_s, max(params.logs_every_s, workers / _BEATS_PER_S))

    def _entered(self) -> tuple[TaskGroup, anyio.Event]:
        if self._tasks is None or self._left is None:
            raise RuntimeError("the WorkerPool is not entered: use `async with WorkerPool(...)`")
        return self._tasks, self._left
