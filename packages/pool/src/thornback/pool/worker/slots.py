"""One slot of a worker: runs one rank at a time in a rank process that it keeps, and replaces when
it must.

A process runs one program. It is replaced when it died, was killed, failed in its set-up, or
another program's turn has come: what the last program's set-up holds (GPU memory, a model) goes
with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping

import attrs

from thornback.pool.ports import Assignment, CaughtError, Outcome, RunningRank, SeenBy, WorkerSpec
from thornback.pool.worker.deaths import Death, KillReason, died, timed_out
from thornback.pool.worker.params import SupervisorParams
from thornback.pool.worker.proctree import tree_rss_bytes
from thornback.pool.worker.rankprocess import Done, RankProcess, SetUp

_TRIES_TO_START = 3
"""A process that dies before it begins with the rank (something an earlier rank left behind killed
it) is not the rank's fault; up to a point."""


@attrs.frozen(kw_only=True, slots=True)
class SlotContext:
    """What the slots of one worker share."""

    spec: WorkerSpec
    node: str
    node_index: int
    nodes: int
    params: SupervisorParams
    blobs: Mapping[str, bytes]
    start_process: Callable[[int, str], Awaitable[RankProcess]]
    """Forks a process for (slot, key of the program). May be cancelled."""
    stuck: Callable[[], None]
    """The fork server does not answer: kill it."""
    oom_risen: Callable[[], bool]


@attrs.frozen(kw_only=True, slots=True)
class _Order:
    """One rank to run."""

    assignment: Assignment
    rank: int
    args: bytes | None
    slot: int
    context: SlotContext

    def fields(self, args: bytes | None) -> dict[str, object]:
        """Return the fields of the `RankCall`, but for `inputs`."""
        work = self.assignment
        return {
            "rank": self.rank,
            "attempt": work.attempt,
            "epoch": work.epoch,
            "stage": work.stage,
            "slot": self.slot,
            "node": self.context.node,
            "args": args,
            "traceparent": work.traceparent,
            "node_index": self.context.node_index,
            "nodes": self.context.nodes,
        }


class _Recalled(Exception):
    """The rank was recalled with a kill: it has no outcome."""


class _NotStarted(Exception):
    """The process died before it began with the rank."""


class _Failed(Exception):
    """The rank cannot be run; carries its outcome."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome)
        self.outcome = outcome


class Slot:
    """Runs ranks, one at a time. Belongs to the event loop's thread."""

    def __init__(self, index: int, context: SlotContext) -> None:
        self._index = index
        self._context = context
        self._process: RankProcess | None = None
        self._forking: asyncio.Task[RankProcess] | None = None
        self._order: _Order | None = None
        self._began = 0.0
        self._started = False
        self._serial = 0
        self._recalled = False

    async def run(self, assignment: Assignment, rank: int, args: bytes | None) -> Outcome | None:
        """Run one rank and return its outcome; None if it was recalled with a kill.

        Cancellation: the process is left as it is; close the fork server.
        """
        order = _Order(
            assignment=assignment, rank=rank, args=args, slot=self._index, context=self._context
        )
        self._order, self._recalled = order, False
        try:
            for tries_left in reversed(range(_TRIES_TO_START)):
                try:
                    return await self._run(order, may_retry=tries_left > 0)
                except _NotStarted:
                    continue
        except _Recalled:
            return None
        except _Failed as failure:
            return failure.outcome
        finally:
            self._order = None
        raise AssertionError("the last try does not ask for another")

    def recall(self) -> None:
        """Kill what runs; `run` returns None then, unless the rank is over already."""
        self._recalled = True
        if self._forking is not None:
            self._forking.cancel()
        elif self._process is not None:
            self._process.kill(KillReason.RECALLED)

    def running(self) -> RunningRank | None:
        """Tell what runs now: a rank whose process has said that it began with it.

        A kill before that would be nobody's fault, and so is not to be aimed at it.
        """
        if self._order is None or self._process is None or not self._started:
            return None
        return RunningRank(
            assignment=self._order.assignment.assignment,
            rank=self._order.rank,
            attempt=self._order.assignment.attempt,
            pid=self._process.pid,
            ran_s=max(0.0, asyncio.get_running_loop().time() - self._began),
        )

    def check(self) -> None:
        """Enforce the bounds of memory and disk; to be called every `tick_s`."""
        process, limit = self._process, self._context.spec.rank_memory_bytes
        if process is None or process.death is not None:
            return
        process.log.trim()
        if limit is not None and self._order is not None:
            found = tree_rss_bytes(process.pid)
            process.peak_tree_rss_bytes = max(process.peak_tree_rss_bytes, found)
            if found > limit:
                detail = f"it held {found} bytes of memory, its limit is {limit}"
                process.kill(KillReason.MEMORY, detail)

    def close(self) -> None:
        """Let go of the process, after all are dead."""
        if self._process is not None:
            self._process.log.close()

    # -- one try ---------------------------------------------------------------------------------

    async def _run(self, order: _Order, *, may_retry: bool) -> Outcome:
        loop = asyncio.get_running_loop()
        self._began, self._started = loop.time(), False
        process = self._process
        if process is None or not process.usable or process.program != order.assignment.program:
            process = await self._set_up(order)
        self._serial += 1
        log_start = process.log.size()
        limits = self._context.params
        late = f"it did not begin with the rank within {limits.start_limit_s:g} s"
        timer = loop.call_later(limits.start_limit_s, process.kill, KillReason.NOT_STARTED, late)

        def on_started() -> None:
            nonlocal timer
            self._started = True
            timer.cancel()
            self._began = loop.time()
            if (timeout_s := order.assignment.timeout_s) is not None:
                timer = loop.call_later(timeout_s, process.kill, KillReason.TIMED_OUT)

        message = ("rank", self._serial, order.fields(order.args))
        try:
            answer = await process.ask(message, serial=self._serial, on_started=on_started)
        finally:
            timer.cancel()
        if isinstance(answer, Done):
            return self._done(order, process, answer, log_start)
        assert isinstance(answer, Death), "a rank is answered by Done or a death"
        if not self._started and may_retry and answer.killed_for is not KillReason.RECALLED:
            raise _NotStarted
        return self._died(order, process, answer, log_start, "rank")

    async def _set_up(self, order: _Order) -> RankProcess:
        """Return a fresh process with the program set up."""
        await self._retire()
        loop = asyncio.get_running_loop()
        timeout_s = order.assignment.setup_timeout_s
        deadline = loop.time() + timeout_s
        process = self._process = await self._fork(order)
        left_s = max(0.0, deadline - loop.time())
        timer = loop.call_later(left_s, process.kill, KillReason.TIMED_OUT)
        blob = self._context.blobs[order.assignment.program]
        try:
            answer = await process.ask(("setup", blob, order.fields(None)))
        finally:
            timer.cancel()
        if isinstance(answer, Death):
            raise _Failed(self._died(order, process, answer, 0, "setup"))
        assert isinstance(answer, SetUp), "a setup is answered by SetUp or a death"
        if answer.error is not None:
            peak = answer.peak_rss_bytes
            error = answer.error
            failed = self._failed(order, process, error, SeenBy.RANK, "setup", 0, peak)
            await self._retire()
            raise _Failed(_with_spans(failed, answer))
        return process

    async def _fork(self, order: _Order) -> RankProcess:
        """Return a fresh process; a recall ends the wait."""
        if self._recalled:
            raise _Recalled
        loop = asyncio.get_running_loop()
        timeout_s = order.assignment.setup_timeout_s
        start = self._context.start_process(self._index, order.assignment.program)
        task = self._forking = loop.create_task(_as_coroutine(start))
        try:
            await asyncio.wait({task}, timeout=timeout_s)
        finally:
            self._forking = None
            task.cancel()
        if self._recalled:
            if task.done() and not task.cancelled():
                task.result().kill(KillReason.RECALLED)
            raise _Recalled
        if not task.done():
            self._context.stuck()
            error = timed_out("start of a rank process", timeout_s)
            raise _Failed(self._failed(order, None, error, SeenBy.PROCESS, "setup", 0, 0))
        return task.result()

    async def _retire(self) -> None:
        """End the process that there is, and wait until its tree is gone (the fork server is killed
        if it is slow)."""
        process, self._process = self._process, None
        if process is not None:
            process.kill(KillReason.RETIRED)
            await process.dead.wait()
            process.log.close()

    # -- outcomes --------------------------------------------------------------------------------

    def _done(self, order: _Order, process: RankProcess, done: Done, log_start: int) -> Outcome:
        process.log.trim()
        peak = max(done.peak_rss_bytes, process.peak_tree_rss_bytes)
        if done.error is not None:
            failed = self._failed(
                order, process, done.error, SeenBy.RANK, "rank", log_start, peak, done.ran_s
            )
            return _with_spans(failed, done)
        return Outcome(
            rank=order.rank,
            ok=True,
            result=done.result,
            outputs=done.outputs,
            node=self._context.node,
            pid=process.pid,
            ran_s=done.ran_s,
            peak_rss_bytes=peak,
            log_path=process.log.path,
            log_slice=(log_start, process.log.size()),
            spans=done.spans,
            spans_dropped=done.spans_dropped,
        )

    def _died(
        self, order: _Order, process: RankProcess, death: Death, log_start: int, phase: str
    ) -> Outcome:
        """Explain a death under a rank. Raises `_Recalled` if we were asked for it."""
        if death.killed_for is KillReason.RECALLED:
            raise _Recalled
        work = order.assignment
        limit_s = work.setup_timeout_s if phase == "setup" else work.timeout_s
        if death.killed_for is KillReason.TIMED_OUT and limit_s is not None:
            error = timed_out("set-up" if phase == "setup" else "rank", limit_s)
        else:
            by_kernel = death.signal == 9 and death.killed_for is None
            error = died(death, oom_kill=by_kernel and self._context.oom_risen())
        peak = death.max_rss_bytes
        return self._failed(order, process, error, SeenBy.PROCESS, phase, log_start, peak)

    def _failed(
        self,
        order: _Order,
        process: RankProcess | None,
        error: CaughtError,
        seen_by: SeenBy,
        phase: str,
        log_start: int,
        peak_rss_bytes: int,
        ran_s: float | None = None,
    ) -> Outcome:
        log = process.log if process is not None else None
        now = asyncio.get_running_loop().time()
        return Outcome(
            rank=order.rank,
            ok=False,
            error=error,
            seen_by=seen_by,
            phase=phase,
            node=self._context.node,
            pid=process.pid if process is not None else 0,
            ran_s=max(0.0, now - self._began) if ran_s is None else ran_s,
            peak_rss_bytes=peak_rss_bytes,
            log_tail=log.tail(log_start) if log is not None else "",
            log_path=log.path if log is not None else "",
            log_slice=(log_start, log.size()) if log is not None else (0, 0),
        )


def _with_spans(failed: Outcome, answer: Done | SetUp) -> Outcome:
    return attrs.evolve(failed, spans=answer.spans, spans_dropped=answer.spans_dropped)


async def _as_coroutine(awaitable: Awaitable[RankProcess]) -> RankProcess:
    return await awaitable
