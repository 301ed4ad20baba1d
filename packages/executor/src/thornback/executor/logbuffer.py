"""What is to be written of the logs of rank processes, and when. Pure."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

import attrs

from thornback.pool import LogChunk


@attrs.frozen(kw_only=True, slots=True)
class LogParams:
    """Bounds of the log store."""

    every_s: float = 30.0
    """Rhythm of writing to a store that knows whole objects only: one object per log and rhythm.
    A file is appended to at once."""
    log_bytes: int = 4 << 20
    """So much of one log is written before its time."""
    max_bytes: int = 64 << 20
    """Held in memory, of all logs; from the half on everything is written before its time, and what
    exceeds it is lost."""
    write_s: float = 120.0
    """For one write; a store that takes longer hangs, and is given up."""
    retry_s: float = 5.0
    """Before a write that failed is tried again."""


@attrs.frozen(kw_only=True, slots=True)
class Stretch:
    """Part of one log, to be written."""

    name: str
    """`<gang>-<log>`."""
    after: int
    """Offset up to which it was written before; what is missing from there on is lost."""
    pieces: tuple[tuple[int, bytes], ...]
    """(offset, bytes), ascending; not empty."""

    @property
    def size(self) -> int:
        """Number of bytes."""
        return sum(len(data) for _, data in self.pieces)

    @property
    def end(self) -> int:
        """Offset behind the last byte."""
        offset, data = self.pieces[-1]
        return offset + len(data)


@attrs.define(slots=True)
class _Log:
    end: int = 0
    """Offset up to which it has arrived; what comes again is left out."""
    written: int = 0
    since: float = 0.0
    """When the first of `pieces` came."""
    size: int = 0
    closed: bool = False
    flying: bool = False
    """A part of it was taken out, and is neither done nor failed."""
    pieces: list[tuple[int, bytes]] = attrs.field(factory=list)


class LogBuffer:
    """Collects chunks by log. What was taken by `due` counts as held until it is `done`, or comes
    back by `failed`. One batch at a time."""

    def __init__(self, params: LogParams, every_s: float) -> None:
        self._params = params
        self._every_s = every_s
        self._logs: dict[str, _Log] = {}
        self._waiting: dict[str, None] = {}
        """Names of logs with pieces, the oldest first."""
        self._held = 0
        self._not_before = float("-inf")
        self.lost = 0
        """Bytes that were left out, here or at the worker."""

    def add(self, chunk: LogChunk, now: float) -> None:
        """Collect a chunk; what has arrived before is left out."""
        name = name_of(chunk.gang, chunk.log)
        log = self._logs.setdefault(name, _Log())
        log.closed = log.closed or chunk.closed
        data = chunk.data[max(0, log.end - chunk.offset) :]
        offset = chunk.offset + len(chunk.data) - len(data)
        if data:
            self.lost += max(0, offset - log.end)
            log.end = offset + len(data)
            if self._held + len(data) <= self._params.max_bytes:
                self._take(name, log, offset, data, now)
            else:
                self.lost += len(data)
        self._forget_ended(name)

    def _take(self, name: str, log: _Log, offset: int, data: bytes, now: float) -> None:
        if not log.pieces:
            log.since = now
            self._waiting[name] = None
        log.pieces.append((offset, data))
        log.size += len(data)
        self._held += len(data)

    def due(self, now: float, *, everything: bool = False) -> list[Stretch]:
        """Take out what is to be written now."""
        if not everything and now < self._not_before:
            return []
        hurry = everything or self._held > self._params.max_bytes // 2
        names = [name for name in self._waiting if hurry or self._is_due(self._logs[name], now)]
        return [self._cut(name) for name in names]

    def due_at(self) -> float | None:
        """Return when something will be due if nothing comes; None: never."""
        if not self._waiting:
            return None
        if self._held > self._params.max_bytes // 2:
            return self._not_before
        logs = [self._logs[name] for name in self._waiting]
        first = min(log.since if self._is_full(log) else log.since + self._every_s for log in logs)
        return max(first, self._not_before)

    def _is_full(self, log: _Log) -> bool:
        return log.closed or log.size >= self._params.log_bytes

    def _is_due(self, log: _Log, now: float) -> bool:
        return self._is_full(log) or log.since + self._every_s <= now

    def _cut(self, name: str) -> Stretch:
        log = self._logs[name]
        del self._waiting[name]
        stretch = Stretch(name=name, after=log.written, pieces=tuple(log.pieces))
        log.pieces, log.size, log.flying = [], 0, True
        return stretch

    def done(self, batch: Sequence[Stretch]) -> None:
        """The batch was written."""
        for stretch in batch:
            log = self._logs[stretch.name]
            log.written, log.flying = stretch.end, False
            self._held -= stretch.size
            self._forget_ended(stretch.name)

    def failed(self, batch: Sequence[Stretch], now: float) -> None:
        """The batch was not written, or not all of it: it will be due again, whole."""
        self._not_before = now + self._params.retry_s
        for stretch in batch:
            log = self._logs[stretch.name]
            log.pieces[:0] = stretch.pieces
            log.size += stretch.size
            log.since, log.flying = now, False
            self._waiting[stretch.name] = None

    def give_up(self) -> None:
        """Forget all that is held, and count it as lost."""
        self.lost += self._held
        self._held = 0
        self._logs.clear()
        self._waiting.clear()

    def _forget_ended(self, name: str) -> None:
        """A process has one log each: closed ones would be many in a long run."""
        log = self._logs[name]
        if log.closed and not log.pieces and not log.flying:
            del self._logs[name]


def name_of(gang: int, log: str) -> str:
    """Return the name under which a log of a gang is kept; `log` is its name, or its path on the
    node."""
    return f"{gang}-{re.sub(r'[^A-Za-z0-9_.-]', '_', os.path.basename(log))}"
