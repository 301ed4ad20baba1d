"""For tests: a clock by hand.

Public as `thornback.pool.testing`.
"""

from __future__ import annotations

import anyio
import anyio.lowlevel


class ManualClock:
    """Time that passes only by `advance` (fulfils `Clock`)."""

    def __init__(self) -> None:
        self._now = 0.0
        self._sleepers: dict[anyio.Event, float] = {}

    def monotonic(self) -> float:
        """Seconds since the clock was made."""
        return self._now

    async def sleep(self, delay_s: float, /) -> None:
        """Wait until the test has let so much time pass."""
        done = anyio.Event()
        self._sleepers[done] = self._now + delay_s
        try:
            await done.wait()
        finally:
            self._sleepers.pop(done, None)

    async def advance(self, delay_s: float) -> None:
        """Let time pass, from sleeper to sleeper, and the tasks that wake run until they wait
        again."""
        end = self._now + delay_s
        await settle()
        while (due := min(self._sleepers.values(), default=end + 1.0)) <= end:
            self._now = max(self._now, due)
            for done, at in list(self._sleepers.items()):
                if at <= due:
                    del self._sleepers[done]
                    done.set()
            await settle()
        self._now = end


async def settle() -> None:
    """Let the other tasks run until they wait for something (as far as they do no real input or
    output)."""
    for _ in range(60):
        await anyio.lowlevel.checkpoint()
