"""Blocking calls that have an order, and may never return, in a thread that nobody waits for."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import TypeVar

import anyio

from thornback.executor.apart import poster

T = TypeVar("T")
_LOOKS = 10
"""How often it is looked, while a call is waited for, whether it goes on: a process that was paused
has lost one look, not all of its patience."""


class Ended(Exception):
    """A call was not waited for any longer, because `OneByOne.end` was called."""


class OneByOne:
    """Blocking calls that one thread makes, in the order in which they are given.

    The thread is started by the first call. It ends after `end`, as soon as the call at hand
    returns; nobody waits for that, nor does Python at its exit. For one event loop.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._news = threading.Condition(self._lock)
        self._calls: deque[Callable[[], object]] = deque()
        self._thread: threading.Thread | None = None
        self._ended = False
        self.made = 0
        """Calls that have returned. Written by the thread only."""
        self._asked: dict[anyio.Event, None] = {}
        """Who waits for an answer."""

    def give(self, call: Callable[[], object]) -> None:
        """Have this called, which must not raise. After `end`: a no-op.

        Raises:
            RuntimeError: there can be no more threads.
        """
        if self._thread is None and not self._ended:
            thread = threading.Thread(target=self._work, name="thornback-file", daemon=True)
            thread.start()
            self._thread = thread
        with self._lock:
            if not self._ended:
                self._calls.append(call)
                self._news.notify()

    async def ask(self, call: Callable[[], T], *, timeout_s: float) -> T:
        """Return what this returns, or raise what it raises, when everything that was given before
        has been called.

        Args:
            call: what is to be called.
            timeout_s: how long one call may take; also one of those before it.

        Raises:
            TimeoutError: one has not returned within that.
            Ended: `end` was called first.
            RuntimeError: there can be no more threads.

        Cancellation: it is called all the same.
        """
        results: list[T] = []
        errors: list[BaseException] = []
        answered, soon = anyio.Event(), poster()

        def body() -> None:
            try:
                results.append(call())
            except BaseException as error:  # noqa: BLE001  # it belongs to the caller
                errors.append(error)
            soon(answered.set)

        self._asked[answered] = None
        try:
            self.give(body)
            await self._wait(answered, timeout_s)
        finally:
            del self._asked[answered]
        if errors:
            raise errors[0]
        if not results:
            raise Ended
        return results[0]

    def end(self, last: Callable[[], object]) -> None:
        """Have nothing called any more but this, which must not raise, when the call at hand has
        returned; not even this, if nothing ever was. Idempotent; waits for nothing."""
        with self._lock:
            if self._ended:
                return
            self._ended = True
            self._calls.clear()
            self._calls.append(last)
            self._news.notify()
        for answered in self._asked:
            answered.set()

    async def _wait(self, answered: anyio.Event, timeout_s: float) -> None:
        made, looks = self.made, 0
        while looks < _LOOKS and not self._ended:
            with anyio.move_on_after(timeout_s / _LOOKS):
                await answered.wait()
                return
            looks = looks + 1 if made == self.made else 0
            made = self.made
        if not self._ended and not answered.is_set():
            raise TimeoutError(f"no answer for {timeout_s:g} s")

    def _work(self) -> None:
        while self._one():
            pass

    def _one(self) -> bool:
        """Wait for the next call and make it; False: that was the last."""
        with self._lock:
            self._news.wait_for(lambda: self._calls or self._ended)
            if not self._calls:
                return False
            call = self._calls.popleft()
        call()
        self.made += 1
        return True
