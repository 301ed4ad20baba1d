"""Lets foreign threads run functions in the event loop, without blocking them. The only such place.

Source: anyio 4.16 `abc/_eventloop.py` `run_sync_soon`, which is not part of anyio's documented
interface: hence one small file. `anyio.from_thread.run_sync` would block the foreign thread until
    the loop runs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import suppress

import anyio
from anyio.lowlevel import current_token


class LoopBridge:
    """Made within a running event loop; used from any thread."""

    def __init__(self) -> None:
        self._token = current_token()
        self._posted: deque[Callable[[], object]] = deque()
        self._armed = False

    def post(self, function: Callable[[], object]) -> None:
        """Have the loop call `function` soon. Never blocks, never raises; after the loop: no-op.

        Many posts wake the loop once. `function` must not raise.
        """
        self._posted.append(function)
        if not self._armed:
            self._armed = True
            with suppress(anyio.RunFinishedError):
                self._token.backend_class.run_sync_soon(self._drain, (), self._token.native_token)

    def _drain(self) -> None:
        # Disarm first: what is posted from here on wakes the loop again.
        self._armed = False
        while self._posted:
            self._posted.popleft()()
