"""Time for the pool: the real clock, and a bound on a wait that works with any clock."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import anyio

from thornback.pool.ports import Clock

T = TypeVar("T")


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
