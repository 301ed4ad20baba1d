"""Time for the pool: the real clock, and waits that work with any."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio

from thornback.pool.ports import Clock

T = TypeVar("T")


class Flag:
    """An event that costs nothing until somebody waits for it."""

    __slots__ = ("_event", "_set")

    def __init__(self) -> None:
        self._set = False
        self._event: anyio.Event | None = None

    def set(self) -> None:
        """Wake everybody who waits, now or later."""
        self._set = True
        if self._event is not None:
            self._event.set()

    async def wait(self) -> None:
        """Return when it is set."""
        if not self._set:
            self._event = self._event or anyio.Event()
            await self._event.wait()


class Expired(Exception):
    """A wait of ours has passed its bound (not a `TimeoutError`, which a backend may raise for
    reasons of its own)."""


class SystemClock:
    """The clock of the machine (fulfils `Clock`)."""

    def monotonic(self) -> float:
        """Seconds that never go back."""
        return time.monotonic()

    async def sleep(self, delay_s: float, /) -> None:
        """Wait."""
        await anyio.sleep(delay_s)


async def within(clock: Clock, delay_s: float, call: Callable[[], Awaitable[T]]) -> T:
    """Return what `call` returns, or raise what it raises; `Expired` if that takes longer than
    `delay_s`.

    Cancellation: `call` is cancelled with it. At expiry it is cancelled and awaited: it must not
    shield itself for long.
    """
    answers: list[T] = []
    failures: list[Exception] = []
    async with anyio.create_task_group() as group:

        async def alarm() -> None:
            await clock.sleep(delay_s)
            group.cancel_scope.cancel()

        group.start_soon(alarm)
        try:
            answers.append(await call())
        except Exception as error:  # noqa: BLE001  # raised below, outside of the group
            failures.append(error)
        group.cancel_scope.cancel()
    if failures:
        raise failures[0]
    if not answers:
        raise Expired(f"no answer within {delay_s:g} s")
    return answers[0]
