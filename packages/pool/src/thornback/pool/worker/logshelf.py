"""The logs of a worker: which there are, what of them is to be sent, what has arrived; and what a
dead worker leaves of them.

A reader says with each call how far it has come, so a call can be repeated and an answer lost. The
bytes are read from the files, which the kernel keeps: what a process wrote before a SIGKILL, its
own or the worker's, is there.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Mapping

import attrs

from thornback.pool.ports import LogChunk
from thornback.pool.worker.proctree import start_time
from thornback.pool.worker.ranklog import RankLog

MAX_CHUNK_BYTES = 256 << 10
"""Of one log, in one answer."""
MAX_ANSWER_BYTES = 1 << 20
MAX_CHUNKS = 256
"""In one answer."""
MAX_BEHIND_BYTES = 4 << 20
"""A reader that is further behind than this gets only the end."""
MAX_CLOSED_LOGS = 4096
"""Of processes that have ended; the oldest of more are dropped, whether they were read or not."""
MAX_SALVAGED_BYTES = 32 << 20
OWN_MARK = ".thornback-own"
"""Name of an empty file that marks a folder as a worker's own: only such are removed."""
_SUFFIX = ".log"
_SLOT = "-slot"


@attrs.frozen(slots=True)
class Owner:
    """A process on this node that outlives the worker, and salvages and removes what it leaves."""

    pid: int = 0
    """0: there is none."""
    started: int = 0

    @classmethod
    def of(cls, pid: int) -> Owner:
        """Name a process that lives, so that no other with its id can be taken for it."""
        return cls(pid, start_time(pid) if pid else 0)

    @property
    def gone(self) -> bool:
        """Whether it was there, and is not any more."""
        return self.pid != 0 and (self.started == 0 or start_time(self.pid) != self.started)


class LogShelf:
    """The logs of a worker that lives, in one folder.

    Args:
        folder: where they are.
        own: the folder is the worker's own; then a log that was read to its end is removed.
        marker: the first part of all names: no other worker has it.
        cap_bytes: disk space for each.
        most_closed: how many are kept of processes that have ended.
    """

    def __init__(
        self,
        folder: str,
        *,
        own: bool,
        marker: str,
        cap_bytes: int,
        most_closed: int = MAX_CLOSED_LOGS,
    ) -> None:
        self.folder = folder
        self._own = own
        self._marker = marker
        self._cap_bytes = cap_bytes
        self._most_closed = most_closed
        self._logs: dict[str, RankLog] = {}
        """By name, who was served longest ago first."""
        self._told: dict[str, None] = {}
        """Those of which a chunk said that they are closed."""

    def new(self, slot: int, number: int) -> RankLog:
        """Make the log of process `number` of this worker."""
        name = f"{self._marker}{_SLOT}{slot}-{number}{_SUFFIX}"
        log = RankLog(os.path.join(self.folder, name), self._cap_bytes)
        if log.path:
            self._logs[name] = log
            self._drop_oldest()
        return log

    @property
    def empty(self) -> bool:
        """Whether everything was read, and will not be asked for again."""
        return not self._logs

    def chunks(self, offsets: Mapping[str, int]) -> tuple[LogChunk, ...]:
        """Return what follows these offsets, as far as there is room; logs not named: from 0.

        A closed log that a chunk has said so of, and that is named with all its bytes, is
        forgotten. So the reader names it in the call after that chunk, and need not from then on.
        """
        found: list[LogChunk] = []
        left = MAX_ANSWER_BYTES
        for name, log in tuple(self._logs.items()):
            offset = offsets.get(name, 0)
            first, end = log.written()
            read_up = log.closed and offset >= end
            if read_up and (name in self._told or end == 0):
                self._forget(name)
                continue
            if left <= 0 or len(found) == MAX_CHUNKS:
                continue
            chunk = _chunk(name, offset, (first, end), log.read, log.closed, left)
            if chunk.data or chunk.skipped or chunk.closed:
                marks = log.marks(chunk.offset, chunk.offset + len(chunk.data))
                found.append(attrs.evolve(chunk, marks=marks))
                left -= len(chunk.data)
                self._logs[name] = self._logs.pop(name)  # the others come first next time
                if chunk.closed:
                    self._told[name] = None
        return tuple(found)

    def _forget(self, name: str) -> None:
        log = self._logs.pop(name)
        self._told.pop(name, None)
        if self._own:
            log.remove()

    def _drop_oldest(self) -> None:
        if len(self._logs) > self._most_closed + 1:
            closed = [name for name, log in self._logs.items() if log.closed]
            for name in closed[: len(closed) - self._most_closed // 2]:
                self._forget(name)


def _chunk(
    name: str,
    offset: int,
    written: tuple[int, int],
    read: Callable[[int, int], bytes],
    closed: bool,
    most: int,
) -> LogChunk:
    """Return what follows an offset. `closed` of it: and that is all there will be."""
    first, end = written
    start = max(offset, first)
    if end - start > MAX_BEHIND_BYTES:
        start = end - MAX_BEHIND_BYTES
    data = b""
    if start < end:
        data = read(start, min(end - start, MAX_CHUNK_BYTES, most))
        if not data:  # it cannot be read any more
            start = end
    if start > offset and 0 < (line := data.find(b"\n") + 1) < len(data):
        start, data = start + line, data[line:]  # begin with a whole line
    return LogChunk(
        log=name,
        offset=start,
        data=data,
        skipped=max(0, start - offset),
        closed=closed and start + len(data) >= end,
    )


def make_own(folder: str) -> None:
    """Mark a new folder as a worker's own. Raises OSError."""
    with open(os.path.join(folder, OWN_MARK), "x"):
        return


def remove_own(folder: str) -> None:
    """Remove a worker's own folder; any other is left alone. Never raises, idempotent."""
    if folder and os.path.exists(os.path.join(folder, OWN_MARK)):
        shutil.rmtree(folder, ignore_errors=True)


def salvage(
    log_dir: str, log_prefix: str, offsets: Mapping[str, int], *, remove: bool = False
) -> list[LogChunk]:
    """Return what a dead worker's rank processes had written and it had not sent.

    To be called on its node, when it is dead. Bounded as a beat is, for each log; and in all.

    Args:
        log_dir: `Beat.log_dir` of the worker.
        log_prefix: its `Beat.log_prefix`: in a folder that it shared with others, the names tell
            which logs are its.
        offsets: how much of each log has arrived; logs that are not named: nothing.
        remove: remove the folder, if it was the worker's own: nobody else will.

    Returns:
        The rest of each log, in chunks that join; all are `closed`. Nothing if there is no folder.
    """
    found: list[LogChunk] = []
    left = MAX_SALVAGED_BYTES
    for name, path in _files(log_dir):
        if name.startswith(log_prefix):
            for chunk in _rest(name, path, offsets.get(name, 0), left):
                found.append(chunk)
                left -= len(chunk.data)
    if remove:
        remove_own(log_dir)
    return found


def _files(folder: str) -> list[tuple[str, str]]:
    try:
        names = sorted(os.listdir(folder), key=lambda name: (len(name), name))
    except OSError:
        return []
    logs = [name for name in names if name.endswith(_SUFFIX) and _SLOT in name]
    return [(name, os.path.join(folder, name)) for name in logs]


def _rest(name: str, path: str, offset: int, most: int) -> list[LogChunk]:
    """Return the rest of one file, as far as there is room for it."""
    found: list[LogChunk] = []
    try:
        with open(path, "rb", buffering=0) as file:
            end = os.fstat(file.fileno()).st_size
            while offset < end and most > 0:
                chunk = _chunk(
                    name,
                    offset,
                    (_data_begins(file.fileno(), offset, end), end),
                    lambda at, length: os.pread(file.fileno(), length, at),
                    True,
                    most,
                )
                found.append(chunk)
                offset = chunk.offset + len(chunk.data)
                most -= len(chunk.data)
    except OSError:  # a disk that fails: what was read counts
        return found
    return found


def _data_begins(fd: int, offset: int, end: int) -> int:
    """Return where the bytes begin that a flood has not lost (see `RankLog.trim`)."""
    try:
        return os.lseek(fd, offset, os.SEEK_DATA)
    except OSError as error:
        return end if error.errno == errno.ENXIO else offset  # nothing but a hole; not known here
