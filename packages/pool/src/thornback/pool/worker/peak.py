"""The most memory that a rank process has had resident since its rank began."""

from __future__ import annotations

import sys

from thornback.pool.worker.streams import out_of_the_way
from thornback.pool.worker.unpatched import os, resource

_RESET = b"5"
"""Source: proc(5), `/proc/pid/clear_refs`: 5 resets the peak resident set size ("high water
mark")."""


class PeakMemory:
    """Of the process that makes it, which has not called `exec`.

    `getrusage` tells the larger of two marks: the one that can be reset, and one that only counts
    what the process was before an `exec`. Source: Linux, `kernel/sys.c`, `getrusage`.
    """

    def __init__(self) -> None:
        self._fd = -1

    def reset(self) -> None:
        """Count from now on, where the kernel can."""
        try:
            os.write(self._fd, _RESET)
        except OSError:  # not opened yet, or closed by user code
            self._open()

    def _open(self) -> None:
        try:
            opened = os.open("/proc/self/clear_refs", os.O_WRONLY | os.O_CLOEXEC)
        except OSError:
            return
        try:
            self._fd = out_of_the_way(opened)
            os.write(self._fd, _RESET)
        except OSError:
            self._fd = -1
        finally:
            os.close(opened)

    def bytes(self) -> int:
        """Return it; 0: unknown."""
        if not sys.platform.startswith("linux"):
            return 0
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
