"""The clock that a run goes by, unless it is given another one."""

from __future__ import annotations

import time

import anyio


class SystemClock:
    """The clock of this machine (fulfils `Clock`)."""

    def monotonic(self) -> float:
        """Return seconds since some start."""
        return time.monotonic()

    def time_ns(self) -> int:
        """Return nanoseconds since 1970."""
        return time.time_ns()

    async def sleep(self, delay_s: float, /) -> None:
        """Sleep."""
        await anyio.sleep(delay_s)
