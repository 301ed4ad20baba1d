"""Shows on the driver's stderr what ranks write, and how a run begins.

On stderr, whatever a rank wrote to: its two streams go into one log, and a driver's stdout is its
own result, which `python job.py | next` reads.

Nothing here slows or fails a run. Lines that are too many, or that stderr does not take in time,
are left out and counted.
"""

from __future__ import annotations

import logging
import os
import queue
import re
import select
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TypeAlias

import attrs

from thornback.executor.plaintext import counted, printable
from thornback.faults import redact, safe
from thornback.pool import LogChunk

logger = logging.getLogger("thornback.executor")
LeftOut: TypeAlias = Callable[[str, int, str], bool]
"""Says of a line of a rank (stage, rank, text) whether it is left out."""

LINES_PER_S = 100.0
"""Of all ranks together; a burst may have twice as many."""
LOG_LINES_PER_S = 20.0
"""Of one rank process, so that one which floods leaves room to the others."""
LOG_BURST = 60.0
RANK_LINES = 5.0
"""Of each rank, whatever the one before it in the same process wrote."""
LINE_CHARS = 1_000
PARTIAL_BYTES = 8_000
"""Kept of a line that has no end yet."""
WAITING = 2_000
"""Lines that wait for stderr, at most."""
NOTE_EVERY_S = 5.0
CLOSE_S = 1.0
"""For stderr to take what is left at the end of a run."""

_COLOURS = re.compile(rb"\x1b\[[0-9;:]*m")


class Printer:
    """Writes lines to stderr in a thread of its own, which nobody waits for. Once stderr is closed,
    what comes is dropped. A context manager: at its end what is left is written, within `CLOSE_S`.

    Args:
        silent: write nothing.
    """

    def __init__(self, *, silent: bool = False) -> None:
        self.silent = silent
        self.dropped = 0
        """Lines for which there was no room."""
        self._lines: queue.Queue[str | None] = queue.Queue(WAITING)
        self._thread: threading.Thread | None = None
        self._ended = False

    def print(self, line: str) -> None:
        """Have a line written; returns at once."""
        if self.silent:
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="thornback-print", daemon=True)
            with suppress(RuntimeError):  # there can be no more threads: nothing is shown
                self._thread.start()
        try:
            self._lines.put_nowait(line)
        except queue.Full:
            self.dropped += 1

    def __enter__(self) -> Printer:
        return self

    def __exit__(self, *_: object) -> None:
        if self._thread is not None and self._thread.ident is not None:
            with suppress(queue.Full):
                self._lines.put(None, timeout=CLOSE_S)
                self._thread.join(CLOSE_S)
        # A thread that is stuck must not write the rest later: stderr may be another one by then.
        self._ended = True

    def _work(self) -> None:
        open_ = True
        while (line := self._lines.get()) is not None and not self._ended:
            if open_:
                try:
                    _write(f"{line}\n")
                except (OSError, ValueError, AttributeError):  # closed; or there is none
                    open_ = False


def _write(text: str) -> None:
    """Write to stderr, past Python's buffer where that is possible: the interpreter cannot end in
    order while a thread that is stuck in a slow pipe holds the lock of that buffer."""
    stream = sys.stderr
    try:
        descriptor = stream.fileno()
    except (OSError, ValueError, AttributeError):
        stream.write(text)
        stream.flush()
        return
    data = memoryview(text.encode("utf-8", "backslashreplace"))
    while data:
        try:
            data = data[os.write(descriptor, data) :]
        except BlockingIOError:  # somebody made it non-blocking
            select.select((), (descriptor,), ())


def say(printer: Printer, text: str) -> None:
    """Log a line about the run at level INFO; print it where the user has configured no logging."""
    text = redact(text)
    logger.info("%s", text)
    if not logger.hasHandlers():
        printer.print(f"thornback: {printable(text)}")


@attrs.define(slots=True)
class _Room:
    """How many lines may be shown: so many a second, after a burst."""

    per_s: float
    most: float
    left: float
    at: float

    def fill(self, now: float) -> None:
        self.left = min(self.most, self.left + (now - self.at) * self.per_s)
        self.at = now


@attrs.define(slots=True)
class _Log:
    room: _Room
    partial: bytes = b""
    stage: str = ""
    rank: int | None = None


class RankConsole:
    """Shows lines of ranks as `[stage:rank] text`. Belongs to one thread, as do its calls.

    Args:
        stages: names of the stages, by number.
        printer: what writes.
        monotonic: seconds, for the limit of lines.
        where: where all that ranks write is kept.
        hide: removes secrets from a line.
        left_out: which lines are not wanted; None: all are.
    """

    def __init__(
        self,
        stages: Sequence[str],
        printer: Printer,
        monotonic: Callable[[], float],
        *,
        where: str,
        hide: Callable[[str], str] = redact,
        left_out: LeftOut | None = None,
    ) -> None:
        self._stages = [printable(name) for name in stages]
        self._printer = printer
        self._monotonic = monotonic
        self._where = where
        self._hide = hide
        self._left_out = left_out
        self._logs: dict[tuple[int, str], _Log] = {}
        most = 2 * LINES_PER_S
        self._room = _Room(per_s=LINES_PER_S, most=most, left=most, at=monotonic())
        self._missing = 0
        self._noted_at = float("-inf")

    def put(self, chunks: Sequence[LogChunk]) -> None:
        """Show what ranks have written, as far as there is room. Returns at once."""
        now = self._monotonic()
        self._room.fill(now)
        for chunk in chunks:
            key = (chunk.gang, chunk.log)
            log = self._logs.get(key)
            if log is None:
                room = _Room(per_s=LOG_LINES_PER_S, most=LOG_BURST, left=LOG_BURST, at=now)
                log = self._logs[key] = _Log(room)
            log.room.fill(now)
            self._show(log, chunk)
            if chunk.closed:
                del self._logs[key]
        if self._missing and now >= self._noted_at + NOTE_EVERY_S:
            self._note(now)

    def close(self) -> None:
        """Say how many lines were left out, and have everything written that can be in time."""
        self._missing += self._printer.dropped
        if self._missing:
            self._note(self._monotonic())

    def _note(self, now: float) -> None:
        self._printer.print(
            f"thornback: not shown here: {counted(self._missing, 'line')} of ranks, which are too "
            f"many; everything is in {redact(self._where)}"
        )
        self._missing, self._noted_at = 0, now

    def _show(self, log: _Log, chunk: LogChunk) -> None:
        if chunk.skipped:
            log.partial = b""
        end = chunk.offset + len(chunk.data)
        at = chunk.offset
        for offset, stage, rank in chunk.marks:
            until = min(max(offset, at), end)
            self._lines(log, chunk.data[at - chunk.offset : until - chunk.offset])
            self._turn(log, stage, rank)
            at = until
        self._lines(log, chunk.data[at - chunk.offset :])
        if chunk.closed:
            self._end_line(log)

    def _turn(self, log: _Log, stage: int, rank: int) -> None:
        """Note whose the next bytes are; a line that the last rank did not end ends there."""
        name = self._stages[stage] if 0 <= stage < len(self._stages) else str(stage)
        if (name, rank) != (log.stage, log.rank):
            self._end_line(log)
            log.stage, log.rank = name, rank
            log.room.left = max(log.room.left, RANK_LINES)

    def _end_line(self, log: _Log) -> None:
        if log.partial:
            self._lines(log, b"\n")

    def _lines(self, log: _Log, data: bytes) -> None:
        *whole, rest = (log.partial + data).split(b"\n")
        # Of a progress bar only its last state counts.
        log.partial = rest.rpartition(b"\r")[2] if rest[-1:] != b"\r" else rest
        log.partial = log.partial[-PARTIAL_BYTES:]
        for number, line in enumerate(whole):
            if min(self._room.left, log.room.left) < 1:
                self._missing += len(whole) - number
                break
            self._line(log, line)

    def _line(self, log: _Log, line: bytes) -> None:
        line = line.rstrip(b"\r").rpartition(b"\r")[2].rstrip()
        text = _COLOURS.sub(b"", line).decode("utf-8", "replace").replace("\0", "")
        rank = -1 if log.rank is None else log.rank
        if not text or (self._left_out is not None and self._left_out(log.stage, rank, text)):
            return
        self._room.left -= 1
        log.room.left -= 1
        who = f"[{log.stage}:{log.rank}] " if log.rank is not None else ""
        self._printer.print(who + printable(safe(text, LINE_CHARS, self._hide)))
