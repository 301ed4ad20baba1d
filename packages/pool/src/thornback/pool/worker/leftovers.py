"""Ends the processes that a rank started and did not wait for."""

from __future__ import annotations

import contextlib
import sys

from thornback.pool.worker import proctree
from thornback.pool.worker.unpatched import os, time

_LIMIT_S = 2.0
_EVERY_S = 0.001


class Leftovers:
    """Knows which children of this process may stay; to be used in the rank process, a subreaper.

    May stay: what the program's `setup` started and left running, with everything below it. Also
    the two helpers that `multiprocessing` starts once per process and goes on to use: its resource
    tracker, and its own fork server, but nothing below that one.
    """

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._kept: frozenset[int] = frozenset()

    def remember(self) -> None:
        """Let the children that there are now stay for good."""
        self._kept = frozenset(proctree.children_of(self._pid))

    def end(self) -> bool:
        """Kill and reap all others, and what they leave behind in turn; False: not all are gone
        within 2 s."""
        deadline = time.monotonic() + _LIMIT_S
        while strangers := self._strangers():
            if time.monotonic() > deadline:
                return False
            for pid in strangers:
                proctree.kill(pid)
            for pid in strangers:
                # Not our child if it was below multiprocessing's fork server; gone if a thread of
                # the user waited for it.
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)
            if self._strangers():
                time.sleep(_EVERY_S)
        return True

    def _strangers(self) -> list[int]:
        """Direct children: an id among them cannot name another process before we reap it. What
        they started comes to us once they are dead."""
        if not proctree.has_children():
            return []
        children = proctree.children_of(self._pid)
        tracker, server = _multiprocessing_helpers()
        found = [pid for pid in children if pid not in self._kept and pid not in (tracker, server)]
        if server in children and server not in self._kept:
            found += [pid for pid in proctree.children_of(server) if proctree.is_alive(pid)]
        return found


def _multiprocessing_helpers() -> tuple[int, int]:
    """Return the ids of the resource tracker and the fork server; 0: none.

    Source: CPython 3.11 to 3.13, `multiprocessing/resource_tracker.py`,
    `multiprocessing/forkserver.py`. Reaping the fork server would make its next `ensure_running`
    raise ChildProcessError.
    """
    tracker = sys.modules.get("multiprocessing.resource_tracker")
    server = sys.modules.get("multiprocessing.forkserver")
    return (
        getattr(getattr(tracker, "_resource_tracker", None), "_pid", None) or 0,
        getattr(getattr(server, "_forkserver", None), "_forkserver_pid", None) or 0,
    )
