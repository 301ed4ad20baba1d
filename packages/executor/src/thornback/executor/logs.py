"""Keeps what rank processes have written beside the state: `<state>/logs/<term>/<gang>-<log>`.

A log keeps its offsets, so that `AttemptReport.log_slice` is true of it: in a file, what is missing
is a hole with a line about it. Stores without files that grow (object stores) get a folder per log,
with objects `<offset>.log`.

Also where the workers run on this machine, the bytes come this way, and are not written to their
place by the rank processes themselves: so a flood stays within the bounds of the pool and cannot
fill the disk of the journal, all platforms behave alike, and a worker's own folder needs no other
owner. It costs one copy.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Protocol

import anyio
from anyio.abc import TaskGroup
from fsspec.implementations.local import LocalFileSystem

from thornback.executor.apart import apart
from thornback.executor.confidential import shown_url
from thornback.executor.journal.store import FLAT, file_system
from thornback.executor.logbuffer import LogBuffer, LogParams, Stretch, name_of
from thornback.executor.paths import is_url
from thornback.faults import redact
from thornback.pool import LogChunk

logger = logging.getLogger(__name__)
LOGS = "logs"


class Sink(Protocol):
    """Where logs are written (blocking). A write that failed is repeated, longer perhaps."""

    def write(self, batch: Sequence[Stretch], /) -> None:
        """Write all of it. Raises anything while the store is out of order."""
        ...


class LogStore:
    """Writes chunks in a task of its own. Never slows or fails the run: what it cannot keep up with
    is lost, counted, and told once.

    An async context manager: at its end what is left is written, within `flush_s`.

    Args:
        url: folder of the run's logs.
        flush_s: see above.
        storage_options: of the folder's file system, as fsspec takes them; never logged.
        params: bounds.
        sink: where to; None: the folder.
    """

    def __init__(
        self,
        url: str,
        *,
        flush_s: float,
        storage_options: Mapping[str, object] | None = None,
        params: LogParams | None = None,
        sink: Sink | None = None,
    ) -> None:
        self.url = url
        self._is_local = not is_url(url)
        self._flush_s = flush_s
        self._params = params or LogParams()
        self._sink = sink or _Lazy(url, storage_options or {})
        self._buffer = LogBuffer(self._params, 0.0 if self._is_local else self._params.every_s)
        self._limiter = anyio.CapacityLimiter(1)
        self._news = anyio.Event()
        self._ended = anyio.Event()
        self._scope = anyio.CancelScope(shield=True)
        self._closing = False
        self._given_up = False
        self._told: set[str] = set()
        self._tasks: TaskGroup | None = None

    @property
    def lost(self) -> int:
        """Bytes that were left out."""
        return self._buffer.lost

    def url_of(self, gang: int, log_path: str, /) -> str:
        """Return where a log is kept that has this path on its node; empty if it has none."""
        if not log_path:
            return ""
        return f"{shown_url(self.url)}/{name_of(gang, log_path)}{'' if self._is_local else '/'}"

    def put(self, chunks: Sequence[LogChunk]) -> None:
        """Take chunks to be written; returns at once. Only from the loop's own thread."""
        now = anyio.current_time()
        for chunk in chunks:
            if self._given_up or self._ended.is_set():
                self._buffer.lost += len(chunk.data)
            else:
                self._buffer.add(chunk, now)
        if self._buffer.lost:
            self._tell("lost", "logs of ranks are not whole: more was written than is kept")
        self._news.set()

    async def __aenter__(self) -> LogStore:
        self._tasks = anyio.create_task_group()
        await self._tasks.__aenter__()
        self._tasks.start_soon(self._run)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Write what is left. An exception of the body passes through as it is."""
        assert self._tasks is not None
        self._closing = True
        self._news.set()
        with anyio.move_on_after(self._flush_s, shield=True) as flush:
            await self._ended.wait()
        if flush.cancelled_caught:
            self._tell("flush", "the last logs of ranks were not stored within %s s", self._flush_s)
        self._scope.cancel()
        # Our task does not raise, so the group has nothing to add to an ordinary exception.
        ordinary = isinstance(error, Exception)
        await self._tasks.__aexit__(
            None if ordinary else kind,
            None if ordinary else error,
            None if ordinary else traceback,
        )

    async def _run(self) -> None:
        """Write until closed. Shielded: what a cancelled run has written is the most wanted."""
        try:
            with self._scope:
                while True:
                    last = self._closing
                    self._news = anyio.Event()
                    batch = self._buffer.due(anyio.current_time(), everything=last)
                    if batch and await self._write(batch):
                        continue
                    if last:
                        return
                    await self._wait()
        finally:
            self._buffer.give_up()  # what is left, and what a write has not confirmed
            self._ended.set()

    async def _wait(self) -> None:
        due_at = self._buffer.due_at()
        with anyio.CancelScope(deadline=float("inf") if due_at is None else due_at):
            await self._news.wait()

    async def _write(self, batch: Sequence[Stretch]) -> bool:
        write: Callable[[], None] = partial(self._sink.write, batch)
        try:
            with anyio.move_on_after(self._params.write_s) as scope:
                await apart(write, self._limiter)
        except Exception as error:  # noqa: BLE001  # whatever a store raises
            self._tell("failed", "logs of ranks cannot be stored at the moment: %r", error)
            self._buffer.failed(batch, anyio.current_time())
            return False
        if scope.cancelled_caught:  # its thread is lost, so that there is no second one
            self._tell("hangs", "logs of ranks are not stored any more: the store does not answer")
            self._given_up = True
            self._buffer.give_up()
            return False
        self._buffer.done(batch)
        return True

    def _tell(self, what: str, text: str, *values: object) -> None:
        """Warn, once of a kind."""
        if what not in self._told:
            self._told.add(what)
            logger.warning("%s (%s)", redact(text % values), shown_url(self.url))


class FileSink:
    """Files in a folder. Idempotent: every byte has its place."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def write(self, batch: Sequence[Stretch], /) -> None:
        """Write each stretch at its offsets."""
        for stretch in batch:
            with self._open(stretch.name) as file:
                end = stretch.after
                for offset, data in stretch.pieces:
                    note = _missing(offset - end)
                    if 0 < len(note) <= offset - end:
                        file.seek(end)
                        file.write(note)
                    file.seek(offset)
                    file.write(data)
                    end = offset + len(data)

    def _open(self, name: str) -> Any:  # a file object that is written to at any place
        path = os.path.join(self._folder, name)
        flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC
        try:
            return open(os.open(path, flags, 0o644), "wb")
        except FileNotFoundError:
            os.makedirs(self._folder, exist_ok=True)
            return open(os.open(path, flags, 0o644), "wb")


class ObjectSink:
    """Objects `<folder>/<gang>-<log>/<offset>.log` of a file system of fsspec; a line stands for
    what is missing within one."""

    def __init__(self, fs: Any, folder: str) -> None:  # fsspec ships no types
        self._fs = fs
        self._folder = folder
        protocols = (fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol
        self._flat = not FLAT.isdisjoint(protocols)

    def write(self, batch: Sequence[Stretch], /) -> None:
        """Write one object per stretch: all at once, where the store can."""
        objects = {
            f"{self._folder}/{stretch.name}/{stretch.pieces[0][0]:012d}.log": _joined(stretch)
            for stretch in batch
        }
        try:
            self._fs.pipe(objects)
        except FileNotFoundError:
            if self._flat:
                raise
            for stretch in batch:
                self._fs.makedirs(f"{self._folder}/{stretch.name}", exist_ok=True)
            self._fs.pipe(objects)


class _Lazy:
    """Opens the sink at the first write, in its thread: that may import a package and connect."""

    def __init__(self, url: str, storage_options: Mapping[str, object]) -> None:
        self._url = url
        self._storage_options = storage_options
        self._sink: Sink | None = None

    def write(self, batch: Sequence[Stretch], /) -> None:
        if self._sink is None:
            fs, path = file_system(self._url, self._storage_options)
            local = isinstance(fs, LocalFileSystem)
            self._sink = FileSink(path) if local else ObjectSink(fs, path.rstrip("/"))
        self._sink.write(batch)


def _joined(stretch: Stretch) -> bytes:
    parts: list[bytes] = []
    end = stretch.pieces[0][0]
    for offset, data in stretch.pieces:
        parts += [_missing(offset - end), data]
        end = offset + len(data)
    return b"".join(parts)


def _missing(count: int) -> bytes:
    return f"\n[thornback: {count} bytes are left out here]\n".encode() if count > 0 else b""
