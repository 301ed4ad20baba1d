"""Blocking jobs in a few threads of the driver, which nobody waits for until the end."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Hashable

logger = logging.getLogger(__name__)


class Backlog:
    """Runs jobs, one at a time for each key; of those that wait, the newest of a key replaces the
    older.

    Threads are daemons, there while there is work: one that hangs holds up its key, and nothing
    else. What a job raises is logged, the first time as a warning.

    Args:
        what: the jobs do, for the log.
        threads: at most.
        most: keys that wait; what is put beyond is dropped.
    """

    def __init__(self, what: str, *, threads: int = 4, most: int = 10_000) -> None:
        self.dropped = 0
        """Jobs that were never run."""
        self._what = what
        self._threads = threads
        self._most = most
        self._changed = threading.Condition()
        self._waiting: dict[Hashable, Callable[[], object]] = {}
        self._busy: dict[Hashable, None] = {}
        self._running = 0
        self._closed = False
        self._warned = False

    def put(self, key: Hashable, job: Callable[[], object]) -> None:
        """Have a job run soon. Never blocks; after `close` it is dropped."""
        with self._changed:
            full = len(self._waiting) >= self._most and key not in self._waiting
            if self._closed or full:
                self.dropped += 1
                return
            self._waiting[key] = job
            if self._running >= self._threads:
                return
            self._running += 1
        try:
            threading.Thread(target=self._work, name="thornback-backlog", daemon=True).start()
        except RuntimeError:  # there can be no more threads now: another one, or the next `put`
            with self._changed:
                self._running -= 1

    def close(self, *, timeout_s: float) -> bool:
        """Wait until all is done, for at most `timeout_s`; False: it was not, and what had not
        begun is dropped. What hangs goes on alone. Idempotent."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while (self._waiting or self._busy) and self._running:
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    break
                self._changed.wait(left_s)
            self._closed = True
            done = not self._waiting and not self._busy
            self.dropped += len(self._waiting)
            self._waiting.clear()
        return done

    def _work(self) -> None:
        while True:
            with self._changed:
                free = [key for key in self._waiting if key not in self._busy][:1]
                if not free:
                    self._running -= 1
                    self._changed.notify_all()
                    return
                (key,) = free
                job = self._waiting.pop(key)
                self._busy[key] = None
            try:
                job()
            except Exception as error:  # noqa: BLE001  # whatever a store raises
                level = logging.DEBUG if self._warned else logging.WARNING
                self._warned = True
                logger.log(level, "%s: %r", self._what, error)
            finally:
                with self._changed:
                    del self._busy[key]
                    self._changed.notify_all()
