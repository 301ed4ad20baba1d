"""Lets foreign threads run functions in the event loop, without blocking them. The only such place.

By the loop's own means: `anyio.from_thread.run_sync` would block the foreign thread until the loop
runs, and anyio's `run_sync_soon` is undocumented and there from 4.16 on only.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from anyio.lowlevel import current_token


class LoopBridge:
    """Made within a running event loop; used from any thread."""

    def __init__(self) -> None:
        loop: Any = current_token().native_token  # asyncio's loop, or trio's token
        self._soon = getattr(loop, "call_soon_threadsafe", None) or loop.run_sync_soon
        self._posted: deque[Callable[[], object]] = deque()
        self._armed = False

    def post(self, function: Callable[[], object]) -> None:
        """Have the loop call `function` soon. Never blocks, never raises; after the loop: no-op.

        Many posts wake the loop once. `function` must not raise.
        """
        self._posted.append(function)
        if not self._armed:
            self._armed = True
            with suppress(RuntimeError):
                self._soon(self._drain)

    def _drain(self) -> None:
        # Disarm first: what is posted from here on wakes the loop again.
        self._armed = False
        while self._posted:
            self._posted.popleft()()
