"""The driver's inbox: events in order of arrival, never full, and a wait that ends at a given
time."""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

import anyio

T = TypeVar("T")


class Inbox(Generic[T]):
    """Unbounded on purpose: every event answers a command, so there are never more than commands in
    flight."""

    def __init__(self) -> None:
        self._items: deque[T] = deque()
        self._arrived = anyio.Event()

    def __bool__(self) -> bool:
        return bool(self._items)

    def post(self, item: T) -> None:
        """Append; wakes the waiter. Only from the loop's own thread."""
        self._items.append(item)
        self._arrived.set()

    def wake(self) -> None:
        """End the wait, without an item: there is something to be told. As `post`."""
        self._arrived.set()

    def pop(self) -> T:
        """Return the oldest item. Raises `IndexError` when empty."""
        return self._items.popleft()

    async def wait(self, timeout_s: float | None) -> None:
        """Return when there is an item, at a `wake`, or after `timeout_s` seconds (None: no limit,
        somebody owes an answer)."""
        if self._items:
            await anyio.lowlevel.checkpoint()
            return
        self._arrived = anyio.Event()
        with anyio.move_on_after(timeout_s):
            await self._arrived.wait()
