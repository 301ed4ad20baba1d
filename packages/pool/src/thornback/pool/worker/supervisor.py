"""The supervisor: a worker's side of the pool. It keeps rank processes and never runs user code in
its own.

It knows neither Ray nor the driver. Its host calls `handle(method, payload)`: a Ray actor, or
`python -m thornback.pool.worker` on a socket (see `server.py`). The parts, from outside in:
`assignments` (what is to be reported), `waiting` (which slot gets it), `slots` (one assignment at a
time), `health` (whether its process is to be replaced), `feed` (its ranks), `rankprocess` (one
child), `nursery` and `forks` (the fork server that makes and ends children), `logshelf` (what
children write).

Everything that user code can do comes back as data in a `Report`. What is raised here is a wrong
call (`SupervisorRefused`). A worker that cannot go on ends its own process, so that the pool sees
it lost.

Over 400 lines, and not split further: what is left is one method per call, and what it promises.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import socket
import sys
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from typing import NoReturn

from thornback.pool import losses
from thornback.pool.ports import Assignment, Beat, CaughtError, ParkedSlot, Report, WorkerSpec
from thornback.pool.worker.assignments import Part
from thornback.pool.worker.deaths import OomKills
from thornback.pool.worker.entries import Entries, Entry
from thornback.pool.worker.environ import own_gpus
from thornback.pool.worker.freeport import FreePorts
from thornback.pool.worker.nursery import Nursery
from thornback.pool.worker.params import SupervisorParams
from thornback.pool.worker.proctree import rss_bytes
from thornback.pool.worker.slots import Slot, SlotContext, tear_down_all
from thornback.pool.worker.waiting import WaitingRoom

GAVE_UP_EXIT_CODE = 70


class SupervisorRefused(Exception):
    """The call was wrong, or came after the end: unlike a rank's failure, which is data in a
    report."""


def end_this_process(reason: str) -> NoReturn:
    """End the worker, so that the pool sees it lost; the fork server then ends all rank
    processes."""
    with contextlib.suppress(OSError, ValueError):
        print(f"thornback: the worker gives up: {reason}", file=sys.stderr, flush=True)
    os._exit(GAVE_UP_EXIT_CODE)


class Supervisor:
    """Runs assignments in `spec.slots` rank processes. All methods belong to one asyncio event
    loop."""

    def __init__(
        self,
        spec: WorkerSpec,
        node: str,
        node_index: int = 0,
        nodes: int = 1,
        *,
        address: str = "127.0.0.1",
        log_root: str = "",
        owner: int = 0,
        params: SupervisorParams | None = None,
        give_up: Callable[[str], None] = end_this_process,
    ) -> None:
        """Make it, not started.

        Args:
            spec: what the worker is like.
            node: name of the node, for outcomes.
            node_index: position of this worker in its gang of `nodes`.
            nodes: size of the gang.
            address: IP address at which other nodes reach this one.
            log_root: folder in which the worker's own folder of logs is made, where the spec names
                none; empty: the system's temporary folder.
            owner: pid of a process on this node that outlives the worker, and will salvage and
                remove that folder (`logshelf.salvage`), once its logs were asked for; 0: none.
            params: bounds.
            give_up: called with the reason when the worker cannot go on; it should end the process.
        """
        if spec.slots < 1:
            raise SupervisorRefused(f"a worker needs at least 1 slot, got {spec.slots}")
        self._params = params or SupervisorParams()
        self._give_up = give_up
        self._blobs: dict[str, bytes] = {}
        self._entries = Entries(spec.slots)
        self._oom = OomKills()
        self._tasks: dict[asyncio.Task[None], None] = {}
        self._address = address
        self._ports = FreePorts()
        self._closing: asyncio.Task[bool] | None = None
        self._hurry = asyncio.Event()
        """The closing must not wait for user code any more."""
        self._ended = False
        self._started = False
        self._draining = False
        self._loss: CaughtError | None = None
        """Why the worker cannot run anything more; None: it can."""
        self._over = asyncio.Event()
        """The worker is closed, or cannot run anything more."""
        self._sent = asyncio.Event()
        """A final report was sent. Replaced when set."""
        self._nursery = Nursery(
            spec,
            node_index,
            nodes,
            params=self._params,
            log_root=log_root,
            owner=owner,
            blob=self._blobs.get,
            give_up=give_up,
        )
        context = SlotContext(
            spec=spec,
            node=node,
            node_index=node_index,
            nodes=nodes,
            address=address,
            params=self._params,
            blobs=self._blobs,
            start_process=self._nursery.start_process,
            own_gpus=partial(own_gpus, spec, os.environ),
            stuck=self._nursery.stuck,
            oom_risen=self._oom.risen,
        )
        self._slots = [Slot(index, context) for index in range(spec.slots)]
        self._room = WaitingRoom(self._slots)

    # -- for the host ----------------------------------------------------------------------------

    async def start(self) -> None:
        """Start the fork server, and be ready for calls.

        Raises:
            ForkServerLost: it does not start, or gives no answer within `fork_server_s`. Nothing is
                left running.
            OSError: there is no place for the logs.
        """
        try:
            await self._nursery.start()
        except BaseException:
            await self.close()
            raise
        self._started = True
        for slot in self._slots:
            self._spawn(self._serve(slot))
        self._spawn(self._tick())

    async def handle(self, method: str, payload: object) -> object:
        """Dispatch a call of the pool: the one entry for all hosts.

        Payloads: `load` (key, blob); `run` (assignment, ack); `wait` (assignment id, ack, seen);
        `recall` (assignment id, kill); `beat` (ack, offsets or None); `drain` seconds or None;
        `close` seconds or None; `port` and `watch`: anything. `ack` is a tuple of the ids of
        assignments whose final report has arrived.

        Raises:
            SupervisorRefused: an unknown method or payload, or what the method raises.
        """
        match method, payload:
            case "load", (str(key), bytes(blob)):
                await self.load(key, blob)
                return None
            case "run", (Assignment() as assignment, ack):
                return await self.run(assignment, _ids(ack))
            case "wait", (int(number), ack, int(seen)):
                return await self.wait(number, _ids(ack), seen)
            case "recall", (int(number), bool(kill)):
                await self.recall(number, kill=kill)
                return None
            case "beat", (ack, Mapping() | None as offsets):
                return await self.beat(_ids(ack), offsets)
            case "drain", int() | float() | None as left_s:
                await self.drain(left_s)
                return None
            case "port", _:
                return await self.port()
            case "watch", _:
                return await self.watch()
            case "close", int() | float() | None as timeout_s:
                return await self.close(timeout_s)
        raise SupervisorRefused(
            f"no method {method!r} for a payload of {type(payload).__name__}: expected load, run, "
            "wait, recall, beat, drain, port, watch or close with the payload that "
            "`Supervisor.handle` describes"
        )

    async def load(self, key: str, blob: bytes) -> None:
        """Keep a blob (a program or an input) for the rank processes. Again: a no-op."""
        self._blobs.setdefault(key, blob)

    async def run(self, assignment: Assignment, ack: Sequence[int] = ()) -> Report:
        """Accept an assignment and return its first report: everything, or what there is after
        `reclaim_s`.

        An assignment that has run for `reclaim_s` hands back what it has not started and goes on
        with the running rank: then the report is not final, and `wait` returns the rest. One that
        has waited for a slot for so long hands back everything; but if it waited only because its
        rank had failed in the process of an idle slot, it runs there now. Called again with the
        same id: nothing is run twice, the same report is returned.

        Raises:
            SupervisorRefused: the worker is closed, has 2 assignments per slot already, lacks the
            program, or has
                forgotten the assignment because it was acknowledged.

        Cancellation: the assignment goes on; `recall` ends it.
        """
        self._entries.acknowledge(ack)
        entry = self._entries.get(assignment.assignment) or self._accept(assignment)
        await entry.first_made.wait()
        return self._sendable(entry, entry.books.first, 0)

    async def wait(self, number: int, ack: Sequence[int] = (), seen: int = 0) -> Report:
        """Return the final report; or, at once when there is one, a report that is not final with a
        checkpoint newer than version `seen`.

        The final report carries such a checkpoint, too, unless its rank has succeeded. Again if
        asked again, until it is acknowledged. Raises as `run`.
        """
        self._entries.acknowledge(ack)
        entry = self._entries.get(number)
        if entry is None:
            raise SupervisorRefused(f"assignment {number} is not known here: it must be run first")
        books = entry.books
        entry.confirm(seen)
        while books.last is None and not self._ended:
            if (checkpoint := books.newer(seen)) is not None:
                return Report(running=books.running, checkpoint=checkpoint)
            await entry.news.wait()
        return self._sendable(entry, books.last, seen)

    async def recall(self, number: int, *, kill: bool) -> None:
        """Hand back what has not started; with `kill` also the running rank, whose tree is killed.
        Unknown: a no-op."""
        entry = self._entries.get(number)
        if entry is None:
            self._entries.recalled_early(number)
        if entry is None or entry.books.over:
            return
        self._hand_back(entry)
        if kill and entry.slot is not None and entry.books.running is not None:
            entry.slot.recall()  # the report follows with its end
        else:
            self._report(entry)

    async def beat(self, ack: Sequence[int] = (), offsets: Mapping[str, int] | None = None) -> Beat:
        """Tell that the worker lives, and what it runs; with `offsets`, also what rank processes
        have written.

        Args:
            ack: assignments whose final report has arrived.
            offsets: how much of each log has arrived (see `LogShelf.chunks`); None: no logs are
                wanted. Answered after `close` as well.
        """
        self._entries.acknowledge(ack)
        return Beat(
            host=socket.gethostname(),
            pid=os.getpid(),
            rss_bytes=rss_bytes(os.getpid()),
            running=tuple(each for slot in self._slots if (each := slot.running()) is not None),
            parked=self._parked,
            address=self._address,
            log_dir=self._nursery.log_dir,
            log_prefix=self._nursery.log_prefix,
            logs=() if offsets is None else self._nursery.logs(offsets),
        )

    async def drain(self, left_s: float | None) -> None:
        """Tell the ranks, those to come as well, that the node goes away in `left_s` seconds (None:
        soon). The newest notice counts."""
        if left_s is not None and math.isnan(left_s):
            raise SupervisorRefused("expected seconds or None as the time left, got nan")
        left_s = math.inf if left_s is None else max(0.0, float(left_s))
        self._draining = True
        for entry in self._entries.all():  # what was saved already must not stay here either
            if entry.books.first is None and entry.books.checkpoint is not None:
                self._reclaim(entry)
        self._nursery.drain(asyncio.get_running_loop().time() + left_s)

    async def port(self) -> int:
        """Return a TCP port that is free on this node, none twice within a minute. Raises OSError:
        there is none."""
        return self._ports.one()

    async def watch(self) -> CaughtError | None:
        """Return None when the worker is closed, or the reason when all its slots are parked.

        The pool keeps this call pending, so that it notices the death of the worker at once.
        """
        await self._over.wait()
        return self._loss

    async def close(self, timeout_s: float | None = None) -> bool:
        """End all rank processes with their trees, and the fork server. Idempotent, bounded.

        Args:
            timeout_s: programs of idle rank processes may tear down first, for at most so long in
                all. None: kill at once, also when called during a close that waits for them.

        Returns:
            True: nothing is left.

        Cancellation: the closing goes on.
        """
        if timeout_s is None or math.isnan(timeout_s):
            self._hurry.set()
        if self._closing is None:
            closing = self._close(max(0.0, timeout_s or 0.0))
            self._closing = asyncio.get_running_loop().create_task(closing)
        return await asyncio.shield(self._closing)

    def leave_logs(self) -> None:
        """Remove the worker's own folder of logs, unless somebody still wants them; after `close`,
        when nobody can ask for them any more."""
        self._nursery.leave_logs()

    # -- assignments -----------------------------------------------------------------------------

    def _accept(self, work: Assignment) -> Entry:
        refusal = "the worker is not running"
        if self._closing is None and self._started:
            refusal = self._entries.refusal(work, loaded=work.program in self._blobs)
        if refusal:
            raise SupervisorRefused(f"assignment {work.assignment} is refused: {refusal}")
        entry = self._entries.add(work)
        if self._entries.was_recalled(work.assignment) or len(self._parked) == len(self._slots):
            entry.books.hand_back()
            self._report(entry)
            return entry
        self._arm(entry)
        self._room.put(entry)
        return entry

    async def _serve(self, slot: Slot) -> None:
        """Run assignments in a slot, one after the other, until it is parked."""
        while slot.parked is None:
            entry = await self._room.take(slot)
            if entry.books.over:  # handed back while it waited
                continue
            entry.slot = slot
            self._arm(entry)
            await slot.run(entry.books, partial(self._saved, entry))
            self._report(entry)
            entry.slot = None
        self._park(slot.parked)
        await slot.retire()

    @property
    def _parked(self) -> tuple[ParkedSlot, ...]:
        return tuple(parked for slot in self._slots if (parked := slot.parked) is not None)

    def _park(self, slot: ParkedSlot) -> None:
        """Take a slot out of use. After the last one, hand back everything and give notice."""
        gpus = ", ".join(slot.gpus)
        with contextlib.suppress(OSError, ValueError):
            print(
                f"thornback: slot {slot.slot} gets no more work, since its GPU ({gpus}) failed: "
                f"{slot.reason}",
                file=sys.stderr,
                flush=True,
            )
        parked = self._parked
        if len(parked) < len(self._slots):
            self._room.match()
            return
        for entry in self._entries.all():
            if not entry.books.over:
                self._hand_back(entry)
                self._report(entry)
        self._spawn(self._give_notice(losses.no_slot_left(parked)))

    async def _give_notice(self, loss: CaughtError) -> None:
        """Answer `watch` with the reason, once the pool has fetched all reports."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._params.confirm_s):
                while not all(entry.sent for entry in self._entries.all()):
                    await self._sent.wait()
        self._loss = loss
        self._over.set()

    def _saved(self, entry: Entry, go_on: Callable[[], None]) -> None:
        """A rank has saved a checkpoint. While the node drains nothing is left for later: it is
        sent at once, and the rank waits until it has arrived."""
        if self._draining:
            entry.hold(go_on, self._params.confirm_s)
            if entry.books.first is None:
                asyncio.get_running_loop().call_soon(self._reclaim, entry)
        else:
            go_on()
        entry.tell()

    def _arm(self, entry: Entry) -> None:
        if entry.timer is not None:
            entry.timer.cancel()
        loop = asyncio.get_running_loop()
        entry.timer = loop.call_later(self._params.reclaim_s, self._reclaim, entry)

    def _reclaim(self, entry: Entry) -> None:
        if self._room.hurry(entry):
            return
        self._hand_back(entry)
        self._report(entry)

    def _hand_back(self, entry: Entry) -> None:
        if entry.slot is not None:
            entry.slot.hand_back()
        else:
            self._room.drop(entry)
            entry.books.hand_back()

    def _report(self, entry: Entry) -> None:
        entry.books.report()
        if entry.books.first is not None:
            entry.first_made.set()
            if entry.timer is not None:
                entry.timer.cancel()
        if entry.books.last is not None:
            entry.tell()

    def _sendable(self, entry: Entry, part: Part | None, seen: int) -> Report:
        if part is None:
            raise SupervisorRefused("the worker is closed")
        if part.final and not entry.sent:
            entry.sent = True
            self._sent.set()
            self._sent = asyncio.Event()
        return part.report(asyncio.get_running_loop().time(), entry.books.newer(seen))

    async def _tick(self) -> None:
        ticks_per_s = max(1, round(1.0 / self._params.tick_s))
        ticks = 0
        while True:
            await asyncio.sleep(self._params.tick_s)
            ticks += 1
            for slot in self._slots:
                slot.check()
            if ticks % ticks_per_s == 0:
                self._oom.sample()

    # -- tasks and the end -----------------------------------------------------------------------

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks[task] = None
        task.add_done_callback(self._task_ended)

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        del self._tasks[task]
        if not task.cancelled() and (error := task.exception()) is not None:
            self._give_up(f"a bug in the supervisor: {type(error).__name__}: {error}")

    async def _close(self, timeout_s: float) -> bool:
        tasks = tuple(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for entry in self._entries.all():
            if entry.timer is not None:
                entry.timer.cancel()
            entry.confirm()
        await tear_down_all(self._slots, timeout_s, self._hurry)
        self._ended = True
        for entry in self._entries.all():
            entry.first_made.set()
            entry.tell()
        gone = await self._nursery.close()
        for slot in self._slots:
            slot.close()
        self._over.set()
        return gone


def _ids(ack: object) -> Sequence[int]:
    match ack:
        case int():
            return (ack,)
        case tuple() | list() if all(isinstance(each, int) for each in ack):
            return ack
        case None:
            return ()
    raise SupervisorRefused(f"expected ids of assignments as ack, got {type(ack).__name__}")
