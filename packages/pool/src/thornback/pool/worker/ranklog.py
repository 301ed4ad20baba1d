"""The log file of one rank process: appended to by the process, measured and kept in bounds by the
supervisor."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
from collections import deque

MAX_MARKS = 4096
"""Ranks of which a log remembers where they began, while nobody reads it."""
_BLOCK_BYTES = 4096
_KEEP_SIZE = 1
_PUNCH_HOLE = 2
"""Source: fallocate(2)."""


class RankLog:
    """An append-only file. Offsets stay valid for its life: what a flood wrote first is given back
    as a hole. Once closed, it can still be read."""

    def __init__(self, path: str, cap_bytes: int) -> None:
        """Create the file. If that fails (a full disk), there is no log: `path` is empty then."""
        self.path = path
        self._cap_bytes = cap_bytes
        self._dropped_to = 0
        self._truncated = 0
        self._final_size = 0
        self._marks: deque[tuple[int, int, int]] = deque(maxlen=MAX_MARKS)
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError:
            self._fd = -1
            self.path = ""

    def size(self) -> int:
        """Return the offset at which the next byte will be written."""
        return os.fstat(self._fd).st_size if self._fd >= 0 else self._final_size

    @property
    def closed(self) -> bool:
        """Nothing more will be written."""
        return self._fd < 0

    def written(self) -> tuple[int, int]:
        """Return the part that can be read, for `read`: from what a flood has left, to the end."""
        end = self._truncated + self.size()
        return self._truncated + self._dropped_to, end

    def mark(self, offset: int, stage: int, rank: int) -> None:
        """Note that what is written from this offset on is of that rank."""
        offset += self._truncated
        if self._marks and self._marks[-1][0] == offset:  # the last one wrote nothing
            self._marks.pop()
        self._marks.append((offset, stage, rank))

    def marks(self, start: int, end: int) -> tuple[tuple[int, int, int], ...]:
        """Return the marks that say which ranks wrote a part, in offsets as for `read`. Earlier
        ones are forgotten."""
        while len(self._marks) > 1 and self._marks[1][0] <= start:
            self._marks.popleft()
        return tuple(mark for mark in self._marks if mark[0] < end)

    def read(self, offset: int, length: int) -> bytes:
        """Return what was written there, counted from the first byte ever written; nothing if it
        cannot be read."""
        offset -= self._truncated
        try:
            if self._fd >= 0:
                return os.pread(self._fd, length, offset)
            with open(self.path, "rb", buffering=0) as file:
                return os.pread(file.fileno(), length, offset)
        except OSError:  # somebody has removed it, or the disk fails
            return b""

    def tail(
        self, start: int, end: int | None = None, *, max_bytes: int = 4096, max_lines: int = 64
    ) -> str:
        """Return the last lines written from `start` on, until `end` (None: until now)."""
        if self._fd < 0:
            return ""
        end = self.size() if end is None else min(end, self.size())
        start = min(start, end)
        begin = max(start, end - max_bytes)
        try:
            data = os.pread(self._fd, end - begin, begin)
        except OSError:
            return ""
        lines = data.replace(b"\0", b"").decode("utf-8", "replace").splitlines(keepends=True)
        if begin > start and len(lines) > 1:
            lines = lines[1:]  # cut off in the middle
        return "".join(lines[-max_lines:])

    def trim(self, end: int | None = None) -> None:
        """Keep the disk space within the cap: give the oldest half back when it is reached.

        Args:
            end: its size, as somebody says who need not be trusted; None: look.
        """
        if end is not None and end - self._dropped_to <= self._cap_bytes:
            return
        end = self.size()
        if end - self._dropped_to <= self._cap_bytes:
            return
        drop_to = (end - self._cap_bytes // 2) // _BLOCK_BYTES * _BLOCK_BYTES
        if not _punch_hole(self._fd, self._dropped_to, drop_to - self._dropped_to):
            # A file system without holes: offsets of this file start again.
            os.ftruncate(self._fd, 0)
            self._truncated += end
            drop_to = 0
        self._dropped_to = drop_to

    def close(self) -> None:
        """Let go of the file; remove it if nothing was written. Idempotent."""
        if self._fd < 0:
            return
        self._final_size = self.size()
        os.close(self._fd)
        self._fd = -1
        if self._final_size == 0:
            self.remove()

    def remove(self) -> None:
        """Remove the file, closed before."""
        with contextlib.suppress(OSError):
            os.unlink(self.path)


def _punch_hole(fd: int, offset: int, length: int) -> bool:
    if not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    fallocate = getattr(libc, "fallocate64", None) or getattr(libc, "fallocate", None)
    if fallocate is None:
        return False
    arguments = (ctypes.c_int64(offset), ctypes.c_int64(length))
    return bool(fallocate(fd, _PUNCH_HOLE | _KEEP_SIZE, *arguments) == 0)
