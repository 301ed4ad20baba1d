"""For tests: an in-memory backend that does what the test says.

Public as `thornback.pool.testing`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import TypeAlias

import anyio
import anyio.lowlevel
import attrs

from thornback.pool.ports import (
    Assignment,
    Attribute,
    Beat,
    CaughtError,
    Checkpoint,
    LogChunk,
    Outcome,
    ParkedSlot,
    Ranks,
    Report,
    RunningRank,
    WorkerSpec,
)

_LOG_BYTES = 256 << 10
"""Of a log that a fake worker sends with a beat."""


class FakeUnavailableError(Exception):
    """The fake worker cannot be reached now."""


class FakeDeathError(Exception):
    """The fake worker is dead."""


def fake_script(worker: FakeWorker, assignment: Assignment, rank: int) -> Outcome | None:
    """Do what the program's bytes say: `fails`, `blocks`, anything else succeeds with the rank as
    its result."""
    match worker.blobs[assignment.program]:
        case b"blocks":
            return None
        case b"fails":
            error = CaughtError(type_names=("builtins.ValueError",), message=f"bad rank {rank}")
            return Outcome(rank=rank, ok=False, error=error, pid=worker.pid)
        case _:
            return Outcome(rank=rank, ok=True, result=str(rank), pid=worker.pid)


@attrs.define(slots=True, eq=False)
class _FakeCall:
    """An assignment on a fake worker."""

    first: Report
    last: Report | None
    saved: Checkpoint | None = None
    progress: tuple[float, float | None] | None = None

    def unseen(self, seen: int) -> Checkpoint | None:
        """Return the newest checkpoint, unless it has arrived."""
        return self.saved if self.saved is not None and self.saved.version > seen else None


@attrs.define(slots=True, eq=False)
class _FakeLog:
    """A log of a fake worker."""

    data: bytes = b""
    closed: bool = False

    def after(self, name: str, offset: int) -> LogChunk | None:
        """Return what follows an offset, bounded."""
        data = self.data[offset : offset + _LOG_BYTES]
        closed = self.closed and offset + len(data) == len(self.data)
        if not data and not closed:
            return None
        return LogChunk(log=name, offset=offset, data=data, closed=closed)


@attrs.define(slots=True, eq=False)
class FakeWorker:
    """An in-memory worker (fulfils `Worker`), to be led by the test. Made by `FakeBackend`."""

    node: str
    """This and what follows: with what `FakeBackend.start` was called."""
    index: int
    nodes: int
    handle: object
    spec: WorkerSpec
    pid: int
    """Made up."""
    script: Script
    """What its ranks come to."""
    blobs: dict[str, bytes] = attrs.field(factory=dict)
    """What was loaded, by key."""
    calls: list[tuple[str, object]] = attrs.field(factory=list)
    """Every call that reached it: (method, payload)."""
    kills: int = 0
    """How often it was killed."""
    unkillable: bool = False
    """A kill is not confirmed."""
    log_dir: str = "/logs"
    """What its beats say."""
    drains: list[float | None] = attrs.field(factory=list)
    """The notices that it was given."""
    parked: tuple[ParkedSlot, ...] = ()
    """What its beats say."""
    loss: CaughtError | None = None
    """See `use_up`."""
    ports: int = 0
    """How many ports it was asked for; they are 20001 and those that follow."""
    closed: bool = False
    """It was closed: from then on it answers beats only."""
    salvages: list[tuple[str, Mapping[str, int]]] = attrs.field(factory=list)
    """With what `salvage` was called."""
    stuck_in_start: bool = False
    """`FakeBackend.start` never returns."""
    stuck_in_end: bool = False
    """Neither `kill` nor `death` returns."""
    stuck_in_salvage: bool = False
    """`salvage` never returns."""
    overrides: dict[str, Callable[[object], object]] = attrs.field(factory=dict)
    """By method: what answers a call instead of the worker."""
    obituary: tuple[BaseException, Mapping[str, Attribute]] | None = None
    """What `die` was given; None: it lives."""
    _silent: bool = attrs.field(default=False, init=False)
    _cut: bool = attrs.field(default=False, init=False)
    _assignments: dict[int, _FakeCall] = attrs.field(factory=dict, init=False)
    _logs: dict[str, _FakeLog] = attrs.field(factory=dict, init=False)
    _changed: anyio.Event = attrs.field(factory=anyio.Event, init=False)

    def die(
        self,
        error: BaseException | None = None,
        facts: Mapping[str, Attribute] | None = None,
    ) -> None:
        """Be dead: what is pending and what comes fails."""
        if self.obituary is None:
            default = FakeDeathError(f"worker {self.index} on {self.node} died")
            self.obituary = (error or default, dict(facts or {}))
            self._change()

    def use_up(self, loss: CaughtError) -> None:
        """Report that all slots are parked: the pool then ends this worker."""
        self.loss = loss
        self._change()

    def fall_silent(self, silent: bool = True) -> None:
        """Answer nothing from now on, or again."""
        self._silent = silent
        self._change()

    def cut(self, cut: bool = True) -> None:
        """Be out of reach: what is pending and what comes fails as unavailable; or be in reach
        again."""
        self._cut = cut
        self._change()

    def finish(self, assignment: int, outcome: Outcome | None) -> None:
        """End the running rank of an assignment; None: it was killed by a recall, so it is
        returned."""
        call = self._assignments[assignment]
        if call.last is None and call.first.running is not None:
            rank = call.first.running
            returned: Ranks = () if outcome else (range(rank, rank + 1),)
            call.last = Report(
                outcomes=(outcome,) if outcome else (), returned=returned, final=True
            )
            self._change()

    def checkpoint(self, assignment: int, data: bytes) -> None:
        """Let the running rank of an assignment save something."""
        call = self._assignments[assignment]
        if call.last is None and call.first.running is not None:
            version = call.saved.version + 1 if call.saved is not None else 1
            call.saved = Checkpoint(rank=call.first.running, version=version, data=data)
            self._change()

    def progress(self, assignment: int, done: float, total: float | None = None) -> None:
        """Let the running rank of an assignment tell how far it is: with the next beat."""
        self._assignments[assignment].progress = (done, total)

    def write(self, log: str, data: bytes, *, closed: bool = False) -> None:
        """Let a rank process write to its log, and close it."""
        shelved = self._logs.setdefault(log, _FakeLog())
        shelved.data += data
        shelved.closed = closed

    def count(self, method: str) -> int:
        """How many calls of a method there were."""
        return sum(1 for name, _ in self.calls if name == method)

    def _change(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()

    async def _until(self, ready: Callable[[], bool]) -> None:
        while True:
            if self.obituary is not None:
                raise self.obituary[0]
            if self._cut:
                raise FakeUnavailableError(f"worker {self.index} on {self.node} is out of reach")
            if not self._silent and ready():
                return
            await self._changed.wait()

    async def call(self, method: str, payload: object, /) -> object:
        """Do what a supervisor does with a call. See `Worker.call`.

        Raises:
            FakeDeathError: it is dead; or what the test gave to `die`.
            FakeUnavailableError: it is cut off.
        """
        self.calls.append((method, payload))
        await anyio.lowlevel.checkpoint()
        await self._until(lambda: True)
        if method in self.overrides:
            return self.overrides[method](payload)
        if self.closed and method != "beat":
            raise ValueError(f"{method}: the worker is closed")
        match method, payload:
            case "load", (str(key), bytes(blob)):
                self.blobs[key] = blob
                return None
            case "run", (Assignment() as assignment, _):
                return self._run(assignment).first
            case "wait", (int(number), _, int(seen)):
                return await self._wait(self._assignments[number], seen)
            case "beat", (_, offsets) if offsets is None or isinstance(offsets, Mapping):
                return self._beat(offsets)
            case "drain", float() | int() | None as left_s:
                self.drains.append(left_s)
                return None
            case "port", None:
                self.ports += 1
                return 20000 + self.ports
            case "recall", (int(number), bool(kill)):
                if kill and number in self._assignments:
                    self.finish(number, None)
                return None
            case "watch", _:
                await self._until(lambda: self.closed or self.loss is not None)
                return self.loss
            case "close", float() | int() | None:
                self.closed = True
                self._change()
                return True
        raise ValueError(f"no such method of a supervisor: {method}({payload!r})")

    def is_unavailable(self, error: BaseException, /) -> bool:
        """Whether it was only cut off."""
        return isinstance(error, FakeUnavailableError)

    async def kill(self, *, timeout_s: float) -> bool:
        """Die, unless it is `unkillable`. See `Worker.kill`."""
        self.kills += 1
        await self._end()
        if self.unkillable:
            return False
        self.die(FakeDeathError("killed"), {"death_cause": "KILLED"})
        return True

    async def death(
        self, error: BaseException, /
    ) -> tuple[CaughtError | BaseException, Mapping[str, Attribute]]:
        """Return the error, and the facts that the test gave to `die`. See `Worker.death`."""
        await self._end()
        return (error, {}) if self.obituary is None else (error, self.obituary[1])

    async def salvage(
        self, log_dir: str, log_prefix: str, offsets: Mapping[str, int], /
    ) -> Sequence[LogChunk]:
        """Return what is left of its logs, which it then has no more. See `Worker.salvage`."""
        self.salvages.append((log_dir, dict(offsets)))
        await anyio.lowlevel.checkpoint()
        if self.stuck_in_salvage:
            await anyio.sleep_forever()
        left, self._logs = self._logs, {}
        rest = (each.after(name, offsets.get(name, 0)) for name, each in left.items())
        return [attrs.evolve(chunk, closed=True) for chunk in rest if chunk is not None]

    async def _wait(self, call: _FakeCall, seen: int) -> Report:
        await self._until(lambda: call.last is not None or call.unseen(seen) is not None)
        news = call.last or Report(running=call.first.running)
        return attrs.evolve(news, checkpoint=call.unseen(seen))

    def _beat(self, offsets: Mapping[str, int] | None) -> Beat:
        chunks: list[LogChunk] = []
        for name, shelved in list(self._logs.items()) if offsets is not None else ():
            at = (offsets or {}).get(name)
            if shelved.closed and at == len(shelved.data):
                del self._logs[name]
            elif (chunk := shelved.after(name, at or 0)) is not None:
                chunks.append(chunk)
        return Beat(
            host="fake",
            pid=self.pid,
            rss_bytes=1,
            running=self._running(),
            parked=self.parked,
            address=f"10.0.0.{self.index + 1}",
            log_dir=self.log_dir,
            logs=tuple(chunks),
        )

    async def _end(self) -> None:
        await anyio.lowlevel.checkpoint()
        if self.stuck_in_end:
            await anyio.sleep_forever()

    def _run(self, assignment: Assignment) -> _FakeCall:
        if assignment.assignment not in self._assignments:
            ranks = list(chain.from_iterable(assignment.ranks))
            outcomes: list[Outcome] = []
            running = None
            while ranks and running is None:
                rank = ranks.pop(0)
                outcome = self.script(self, assignment, rank)
                if outcome is None:
                    running = rank
                else:
                    outcomes.append(outcome)
            returned = tuple(range(rank, rank + 1) for rank in ranks)
            final = running is None
            report = Report(
                outcomes=tuple(outcomes), returned=returned, running=running, final=final
            )
            call = _FakeCall(first=report, last=report if final else None)
            self._assignments[assignment.assignment] = call
        return self._assignments[assignment.assignment]

    def _running(self) -> tuple[RunningRank, ...]:
        return tuple(
            RunningRank(
                assignment=number,
                rank=call.first.running,
                attempt=1,
                pid=self.pid,
                ran_s=0.0,
                progress=call.progress,
            )
            for number, call in self._assignments.items()
            if call.last is None and call.first.running is not None
        )


Script: TypeAlias = Callable[[FakeWorker, Assignment, int], Outcome | None]
"""What a rank comes to on a fake worker; None: it runs until `FakeWorker.finish`, a recall or the
end."""


class FakeBackend:
    """In-memory workers (fulfils `WorkerBackend`).

    Args:
        script: what ranks come to; None: `fake_script`.
        on_start: called with each new worker before it lives; may prepare it, or raise, which fails
            the start.
    """

    def __init__(
        self,
        script: Script | None = None,
        on_start: Callable[[FakeWorker], None] | None = None,
    ) -> None:
        self.workers: list[FakeWorker] = []
        """In the order of their starts; of a gang started at once, that order is not fixed."""
        self._script = script or fake_script
        self._on_start = on_start

    def of(self, node: str) -> FakeWorker:
        """Return the last worker that was started on a node."""
        return next(worker for worker in reversed(self.workers) if worker.node == node)

    def crash(self, pid: int) -> None:
        """Let the worker of that (made up) process die."""
        next(worker for worker in self.workers if worker.pid == pid).die()

    async def start(
        self, node: str, index: int, nodes: int, handle: object, spec: WorkerSpec, /
    ) -> FakeWorker:
        """Make a worker."""
        pid = 1000 + len(self.workers)
        worker = FakeWorker(node, index, nodes, handle, spec, pid, self._script)
        if self._on_start is not None:
            self._on_start(worker)
        self.workers.append(worker)
        try:
            await anyio.lowlevel.checkpoint()
            if worker.stuck_in_start:
                await anyio.sleep_forever()
        except BaseException:
            worker.die()
            raise
        return worker


async def fake_blobs(key: str) -> bytes:
    """Give every key as its own bytes: `Assignment.program` says what `fake_script` does."""
    return key.encode()
