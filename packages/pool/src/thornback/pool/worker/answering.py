"""A worker's end of a stream of calls: answers them side by side.

Frames and messages are those of `wire.py`. Who calls is trusted: what it sends is unpickled.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeAlias

from thornback.pool.caught import catch
from thornback.pool.worker import wire

Handle: TypeAlias = Callable[[str, object], Awaitable[object]]
"""Answers (method, payload); what it raises is sent as data."""
_CHUNK_BYTES = 1 << 18


class Answering:
    """Answers the calls of any number of streams. Belongs to one asyncio event loop."""

    def __init__(self, handle: Handle) -> None:
        self._handle = handle
        self._calls: dict[asyncio.Task[None], None] = {}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer until the stream ends; answers that are due then are worked on and dropped.

        Raises:
            ConnectionError: as the stream.
        """
        frames, loop = wire.Frames(), asyncio.get_running_loop()
        while data := await reader.read(_CHUNK_BYTES):
            for body in frames.feed(data):
                task = loop.create_task(self._answer(body, writer))
                self._calls[task] = None
                task.add_done_callback(self._calls.pop)

    def cancel(self) -> None:
        """Stop working on answers."""
        for task in tuple(self._calls):
            task.cancel()

    async def _answer(self, body: bytes, writer: asyncio.StreamWriter) -> None:
        match wire.unpickled(body):
            case (int(call), str(method), payload):
                pass
            case other:
                raise wire.FrameError(f"expected (id, method, payload), got {str(other)[:80]}")
        try:
            reply = (call, True, await self._handle(method, payload))
        except Exception as error:  # noqa: BLE001  # whatever it is, the caller must hear of it
            reply = (call, False, catch(error))
        if not writer.is_closing():
            writer.write(wire.pickled(reply))
