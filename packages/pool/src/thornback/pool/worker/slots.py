"""One slot of a worker: runs assignments, one at a time, in a rank process that it keeps, and
replaces when it must.

A process runs one program. It is replaced when it died, was killed, failed in its set-up, is broken
(see `health`) or worn (`max_ranks_per_child`, `max_growth_bytes`), or another program's turn has
come: what the last program's set-up holds (GPU memory, a model) goes with it. One that is alive and
idle tears its program down first. The replacement waits for the next rank, so that no process is
set up without work.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import attrs

from thornback.pool.ports import (
    Assignment,
    CaughtError,
    ParkedSlot,
    RunningRank,
    SeenBy,
    WorkerSpec,
)
from thornback.pool.worker import outcomes
from thornback.pool.worker.assignments import Books
from thornback.pool.worker.deaths import Death, KillReason, timed_out
from thornback.pool.worker.feed import Feed, FeedContext
from thornback.pool.worker.health import SlotHealth
from thornback.pool.worker.params import SupervisorParams
from thornback.pool.worker.proctree import rss_bytes, tree_rss_bytes
from thornback.pool.worker.rankprocess import RankProcess


@attrs.frozen(kw_only=True, slots=True)
class SlotContext:
    """What the slots of one worker share."""

    spec: WorkerSpec
    node: str
    node_index: int
    nodes: int
    address: str
    params: SupervisorParams
    blobs: Mapping[str, bytes]
    start_process: Callable[[int, str], Awaitable[RankProcess]]
    """Forks a process for (slot, key of the program). May be cancelled."""
    own_gpus: Callable[[int], tuple[str, ...]]
    """Returns the GPUs that no other slot uses."""
    stuck: Callable[[], None]
    """The fork server does not answer: kill it."""
    oom_risen: Callable[[], bool]


_REASON_CHARS = 500


class _Recalled(Exception):
    """The rank was recalled with a kill: it has no outcome."""


class _Failed(Exception):
    """The rank cannot be run; carries the fields of its outcome."""

    def __init__(self, fields: Mapping[str, Any]) -> None:
        super().__init__(fields)
        self.fields = fields


class Slot:
    """Runs assignments, one at a time. Belongs to the event loop's thread."""

    def __init__(self, index: int, context: SlotContext) -> None:
        self._index = index
        self._context = context
        self._gpus = context.own_gpus(index)
        self._health = SlotHealth(own_gpus=bool(self._gpus))
        self._process: RankProcess | None = None
        self._forking: asyncio.Task[RankProcess] | None = None
        self._books: Books | None = None
        self._feed: Feed | None = None
        self._began = 0.0
        self._teardown_s = 0.0
        self._recalled = False

    async def run(self, books: Books, saved: Callable[[Callable[[], None]], None]) -> None:
        """Run an assignment until its books are over: if the slot is `parked` meanwhile, the rest
        is handed back. `saved` is called at each checkpoint, with what lets the rank go on.

        Cancellation: a process that runs ranks is killed; close the fork server.
        """
        loop = asyncio.get_running_loop()
        context = FeedContext(
            node=self._context.node,
            params=self._context.params,
            health=self._health,
            oom_risen=self._context.oom_risen,
            saved=saved,
        )
        work = books.work
        self._books, self._recalled = books, False
        tries = 0
        try:
            while self.parked is None and (books.out or books.begin() is not None):
                self._began = loop.time()
                try:
                    process = await self._process_for(work, books.out[0].rank)
                except _Recalled:
                    books.end(None, loop.time())
                    continue
                except _Failed as failure:
                    books.end(failure.fields, loop.time())
                    continue
                self._teardown_s = work.teardown_timeout_s
                self._feed = Feed(process, books, context)
                tries = await self._feed.run(self._fields(work), tries)
                self._feed = None
            if self.parked is not None:
                books.hand_back()
        finally:
            self._books = self._feed = None

    @property
    def parked(self) -> ParkedSlot | None:
        """Describe why the slot is parked; None: it is in use."""
        error = self._health.parked
        if error is None:
            return None
        name = error.type_names[0].rpartition(".")[2] if error.type_names else "an error"
        reason = f"{name}: {error.message}"[:_REASON_CHARS]
        return ParkedSlot(slot=self._index, gpus=self._gpus, reason=reason)

    def has_failed(self, work: Assignment) -> bool:
        """Return whether a rank of this assignment failed in the process that would run it."""
        process = self._process
        if process is None or not process.accepts or not _suits(process, work):
            return False  # a fresh process would run it
        return self._health.has_failed(rank for each in work.ranks for rank in each)

    def is_set_up_for(self, work: Assignment) -> bool:
        """Return whether an assignment could start here without a set-up."""
        process = self._process
        return process is not None and process.usable and _suits(process, work)

    def hand_back(self) -> None:
        """Return what has not started of the assignment that runs."""
        if self._feed is not None:
            self._feed.hand_back()
        elif self._books is not None:
            self._books.hand_back()

    def recall(self) -> None:
        """Kill what runs; it is returned, unless it is over already. Hand back first."""
        self._recalled = True
        if self._forking is not None:
            self._forking.cancel()
        elif self._process is not None:
            self._process.kill(KillReason.RECALLED)

    def running(self) -> RunningRank | None:
        """Tell what runs now: a rank whose process has said that it began with it.

        A kill before that would be nobody's fault, and so is not to be aimed at it.
        """
        if self._process is not None:
            self._process.pull()
        feed, books = self._feed, self._books
        if feed is None or books is None or feed.began is None or self._process is None:
            return None
        return RunningRank(
            assignment=books.work.assignment,
            rank=books.out[0].rank,
            attempt=books.work.attempt,
            pid=self._process.pid,
            ran_s=max(0.0, asyncio.get_running_loop().time() - feed.began),
            progress=feed.progress,
            log_path=self._process.log.path,
            log_start=self._process.log_end,
        )

    def check(self) -> None:
        """Enforce the bounds of memory and disk; to be called every `tick_s`."""
        process, limit = self._process, self._context.spec.rank_memory_bytes
        if process is None or process.death is not None:
            return
        process.log.trim()
        if limit is not None and self._books is not None:
            found = tree_rss_bytes(process.pid)
            process.peak_tree_rss_bytes = max(process.peak_tree_rss_bytes, found)
            if found > limit:
                detail = f"it held {found} bytes of memory, its limit is {limit}"
                if self._feed is None:  # in its set-up
                    process.kill(KillReason.MEMORY, detail)
                else:
                    self._feed.kill(KillReason.MEMORY, detail)

    async def tear_down(self) -> None:
        """Let an idle process end its program in order. Bounded by the program's own limit.

        Cancellation: the process goes on; kill it.
        """
        process = self._process
        if process is None or not process.usable or not process.has_teardown:
            return
        loop = asyncio.get_running_loop()
        timer = loop.call_later(self._teardown_s, process.kill, KillReason.RETIRED)
        try:
            await process.tear_down()
        finally:
            timer.cancel()

    async def retire(self) -> None:
        """End the process that there is, in order if it can, and wait until its tree is gone (the
        fork server is killed if it is slow).

        Cancellation: the process goes on; kill it.
        """
        process = self._process
        if process is not None:
            await self.tear_down()
            process.kill(KillReason.RETIRED)
            await process.dead.wait()
            process.log.close()
            self._process = None

    def close(self) -> None:
        """Let go of the process, after all are dead."""
        if self._process is not None:
            self._process.log.close()

    # -- the process -------------------------------------------------------------------------------

    def _fields(self, work: Assignment) -> dict[str, object]:
        """Return the fields of the `RankCall` that all ranks have in common, and `env`."""
        return {
            "attempt": work.attempt,
            "epoch": work.epoch,
            "stage": work.stage,
            "slot": self._index,
            "node": self._context.node,
            "traceparent": work.traceparent,
            "node_index": self._context.node_index,
            "nodes": self._context.nodes,
            "address": self._context.address,
            "env": dict(work.env),
        }

    async def _process_for(self, work: Assignment, rank: int) -> RankProcess:
        """Return a process with the program set up, the one that there is if it will do.

        Raises:
            _Failed: the set-up failed.
            _Recalled: meanwhile the rank was recalled with a kill.
        """
        process = self._process
        if process is not None and process.usable and _suits(process, work):
            return process
        await self.retire()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + work.setup_timeout_s
        process = self._process = await self._fork(work, rank)
        self._health.began(work.program)
        process.log.mark(0, work.stage, rank)
        left_s = max(0.0, deadline - loop.time())
        timer = loop.call_later(left_s, process.kill, KillReason.TIMED_OUT)
        fields = {**self._fields(work), "rank": rank}
        try:
            answer = await process.set_up(self._context.blobs[work.program], fields)
        finally:
            timer.cancel()
        if isinstance(answer, Death):
            if answer.killed_for is KillReason.RECALLED:
                raise _Recalled
            oom_risen = self._context.oom_risen()
            error = outcomes.why_dead(answer, work, "setup", oom_risen=oom_risen)
            peak = answer.max_rss_bytes
            raise self._failed(rank, error, SeenBy.PROCESS, process, peak)
        if answer.error is not None:
            peak = answer.peak_rss_bytes
            failed = self._failed(rank, answer.error, SeenBy.RANK, process, peak)
            self._health.set_up_failed(answer.error)
            await self.retire()
            spans = {"spans": answer.spans, "spans_dropped": answer.spans_dropped}
            raise _Failed({**failed.fields, **spans})
        process.has_teardown = answer.has_teardown
        process.first_rss_bytes = rss_bytes(process.pid)
        process.log_end = process.log.size()
        return process

    def _failed(
        self,
        rank: int,
        error: CaughtError,
        seen_by: SeenBy,
        process: RankProcess | None,
        peak_rss_bytes: int = 0,
    ) -> _Failed:
        return _Failed(
            outcomes.failed(
                rank,
                self._context.node,
                error,
                seen_by=seen_by,
                phase="setup",
                ran_s=max(0.0, asyncio.get_running_loop().time() - self._began),
                pid=process.pid if process else 0,
                log=process.log if process else None,
                peak_rss_bytes=peak_rss_bytes,
            )
        )

    async def _fork(self, work: Assignment, rank: int) -> RankProcess:
        """Return a fresh process; a recall ends the wait."""
        if self._recalled:
            raise _Recalled
        loop = asyncio.get_running_loop()
        timeout_s = work.setup_timeout_s
        start = self._context.start_process(self._index, work.program)
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
            raise self._failed(rank, error, SeenBy.PROCESS, None)
        return task.result()


def _suits(process: RankProcess, work: Assignment) -> bool:
    """Whether its next rank may be one of this assignment, whose limit may be lower than that of
    the last."""
    most = work.max_ranks_per_child
    worn = process.worn or (most is not None and process.ranks >= most)
    return process.program == work.program and not worn


async def _as_coroutine(awaitable: Awaitable[RankProcess]) -> RankProcess:
    return await awaitable


async def tear_down_all(slots: Sequence[Slot], timeout_s: float, hurry: asyncio.Event) -> None:
    """Let idle rank processes end in order; those that do not in time, or until `hurry` is set, are
    cut off."""
    if hurry.is_set():
        return
    loop = asyncio.get_running_loop()
    tasks = [loop.create_task(slot.tear_down()) for slot in slots]
    alarm = loop.call_later(timeout_s, hurry.set)
    enough = loop.create_task(hurry.wait())
    try:
        for task in tasks:
            await asyncio.wait({task, enough}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        alarm.cancel()
        for each in (*tasks, enough):
            each.cancel()
        await asyncio.gather(*tasks, enough, return_exceptions=True)
