"""Blocking calls to a store, which may never return, in threads that nobody waits for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from typing import Any, Generic, TypeVar

import anyio
import attrs
from anyio.lowlevel import current_token

A = TypeVar("A")
T = TypeVar("T")


async def apart(function: Callable[[], T], limiter: anyio.CapacityLimiter) -> T:
    """Return what a blocking function returns, or raise what it raises; it has a thread of its own.

    Not by `anyio.to_thread`: under asyncio its threads are not daemonic, so that Python would wait
    at its exit, for ever, for a call that was given up. Source: anyio 4.16 `_backends/_asyncio.py`
    `WorkerThread`.

    Cancellation: the thread goes on alone, and counts for the limiter until it ends.
    """
    results: list[T] = []
    errors: list[BaseException] = []
    ended, borrower = anyio.Event(), object()
    soon = poster()

    def end() -> None:
        limiter.release_on_behalf_of(borrower)
        ended.set()

    def body() -> None:
        try:
            results.append(function())
        except BaseException as error:  # noqa: BLE001  # whatever it is, it belongs to the caller
            errors.append(error)
        soon(end)

    await limiter.acquire_on_behalf_of(borrower)
    try:
        threading.Thread(target=body, name="thornback-store", daemon=True).start()
    except BaseException:  # there can be no more threads
        limiter.release_on_behalf_of(borrower)
        raise
    await ended.wait()
    if errors:
        raise errors[0]
    return results[0]


def poster() -> Callable[[Callable[[], None]], None]:
    """Return what has a function called in this loop, from any thread.

    By the loop's own means: `anyio.from_thread.run_sync` waits for an answer, for ever if the loop
    ends just now.
    """
    loop: Any = current_token().native_token  # asyncio's loop, or trio's token
    soon = getattr(loop, "call_soon_threadsafe", None) or loop.run_sync_soon

    def post(function: Callable[[], None]) -> None:
        with suppress(RuntimeError):  # it has ended: nobody waits
            soon(function)

    return post


def in_order(
    function: Callable[[A], T], items: Sequence[A], at_once: int
) -> Generator[T, None, None]:
    """Yield what a blocking function returns for each item, in their order (blocking).

    Up to `at_once` calls are in flight, in daemonic threads, and at most twice as many results
    wait to be taken. Closed early, it starts no more calls and waits for none.

    Raises:
        Exception: what the function raised for the first of the items for which it did. No call is
            started after that, and those in flight have ended by then: repeated, calls do not pile
            up. So it lasts as long as the slowest of them, and the caller has to bound it.
    """
    threads = min(len(items), at_once)
    if threads < 2:
        yield from map(function, items)
        return
    flight = _Flight(function, items, window=2 * at_once)
    try:
        flight.start(threads)
        for index in range(len(items)):
            yield flight.take(index)
    except GeneratorExit:
        flight.stop()
        raise
    except BaseException:
        flight.stop()
        flight.wait()
        raise


@attrs.frozen(slots=True)
class _Raised:
    error: BaseException


class _Flight(Generic[A, T]):
    """Calls that threads of its own start in order, and another thread takes in order."""

    def __init__(self, function: Callable[[A], T], items: Sequence[A], *, window: int) -> None:
        self._function = function
        self._items = items
        self._window = window
        self._lock = threading.Lock()
        self._news = threading.Condition(self._lock)
        self._room = threading.Condition(self._lock)
        self._ended: dict[int, T | _Raised] = {}
        self._started = 0
        self._taken = 0
        self._threads = 0
        self._stopped = False

    def start(self, threads: int) -> None:
        """Start so many threads, or as many as there can be.

        Raises:
            RuntimeError: there can be none.
        """
        for number in range(threads):
            thread = threading.Thread(target=self._work, name="thornback-store", daemon=True)
            with self._lock:
                self._threads += 1
            try:
                thread.start()
            except RuntimeError:
                with self._lock:
                    self._threads -= 1
                if number == 0:
                    raise
                return

    def take(self, index: int) -> T:
        """Return the result of the next item as soon as it is there; raise what its call raised."""
        with self._lock:
            self._news.wait_for(lambda: index in self._ended)
            ended = self._ended.pop(index)
            self._taken = index + 1
            self._room.notify()
        if isinstance(ended, _Raised):
            raise ended.error
        return ended

    def stop(self) -> None:
        """Start no more calls."""
        with self._lock:
            self._stopped = True
            self._room.notify_all()

    def wait(self) -> None:
        """Return when no call is in flight."""
        with self._lock:
            self._news.wait_for(lambda: self._threads == 0)

    def _work(self) -> None:
        while (index := self._next()) is not None:
            ended: T | _Raised
            try:
                ended = self._function(self._items[index])
            except BaseException as error:  # noqa: BLE001  # it belongs to whoever takes it
                ended = _Raised(error)
            with self._lock:
                self._ended[index] = ended
                self._stopped = self._stopped or isinstance(ended, _Raised)
                if index == self._taken:
                    self._news.notify()

    def _next(self) -> int | None:
        """Return the item that this thread is to do; None: it is to end."""
        with self._lock:
            self._room.wait_for(self._may_go_on)
            if self._stopped or self._started == len(self._items):
                self._threads -= 1
                self._room.notify_all()
                self._news.notify()
                return None
            self._started += 1
            return self._started - 1

    def _may_go_on(self) -> bool:
        there_is_room = self._started < self._taken + self._window
        return self._stopped or self._started == len(self._items) or there_is_room
