"""The driver's end of the stream to a worker process (see `worker.wire`). Internal to the pool."""

from __future__ import annotations

import socket
from contextlib import suppress

import anyio
import attrs

from thornback.pool.ports import CaughtError
from thornback.pool.worker import wire

_CHUNK_BYTES = 1 << 18


class WorkerGoneError(Exception):
    """The connection to a worker process has ended: it is dead, or dying."""


class WorkerCallError(Exception):
    """The supervisor could not carry out a call, though it lives: a full disk, a bug of ours.

    Attributes:
        error: what it caught, as data.
    """

    def __init__(self, method: str, error: CaughtError) -> None:
        super().__init__(method, error)
        self.error = error

    def __str__(self) -> str:
        return f"the worker failed in {self.args[0]!r}: {self.error.message}"


@attrs.define(slots=True, eq=False)
class _Reply:
    """A call under way. `wake`: its answer is there, or it is its turn to read."""

    answered: bool = False
    ok: bool = False
    value: object = None
    wake: anyio.Event = attrs.field(factory=anyio.Event)


class Connection:
    """Calls over one socket, without a task of its own.

    One of the callers that wait reads for all, and passes the reading on when it has its own
    answer. What is to be sent lies in one buffer, so a caller that is cancelled in the middle of a
    frame leaves the rest to the next sender.
    """

    def __init__(self, stream: socket.socket) -> None:
        stream.setblocking(False)
        self._stream = stream
        self._frames = wire.Frames()
        self._out = bytearray()
        self._sending = anyio.Lock()
        self._waiting: dict[int, _Reply] = {}
        self._reader: int | None = None
        self._calls = 0
        self._aborted = False
        self.ended = False
        """Nobody holds the other end any more, or this one was closed."""

    async def call(self, method: str, payload: object) -> object:
        """Call a method of the supervisor and return its answer.

        Raises:
            WorkerGoneError: the connection has ended.
            WorkerCallError: the supervisor could not do it.
        """
        self._calls += 1
        if not self.ended:
            self._out += wire.pickled((self._calls, method, payload))
        reply = await self._reply(self._calls)
        if reply is None:
            raise WorkerGoneError(f"{method}: the connection to the worker has ended")
        if reply.ok:
            return reply.value
        if isinstance(reply.value, CaughtError):
            raise WorkerCallError(method, reply.value)
        raise WorkerGoneError(f"{method}: the worker answered with {reply.value!r:.200}")

    def hang_up(self) -> None:
        """Send nothing any more: at the end of its stream the worker ends itself. Idempotent."""
        with suppress(OSError):
            self._stream.shutdown(socket.SHUT_WR)

    async def hung_up(self) -> None:
        """Return when nobody holds the other end any more."""
        self._calls += 1
        await self._reply(self._calls)  # to what was never asked

    def abort(self) -> None:
        """End the connection now, for everybody who waits, whatever the other end does.
        Idempotent."""
        self._aborted = True
        with suppress(OSError):
            self._stream.shutdown(socket.SHUT_RDWR)  # wakes who reads or writes
        if not self.ended:
            self._end()
        self._close_if_unused()

    def _close_if_unused(self) -> None:
        if self._aborted and not self._waiting:  # never under the feet of who waits for it
            self._stream.close()

    def close(self) -> None:
        """End the connection. Idempotent."""
        if not self.ended:
            self._end()
        with suppress(OSError):
            self._stream.close()

    async def _reply(self, number: int) -> _Reply | None:
        """Send what there is, and wait for an answer; None: the connection has ended."""
        reply = self._waiting[number] = _Reply()
        try:
            await self._send()
            while not reply.answered:
                if self.ended:
                    return None
                if self._reader in (None, number):
                    self._reader = number
                    await self._read()
                else:
                    reply.wake = anyio.Event()
                    await reply.wake.wait()
        finally:
            del self._waiting[number]
            if self._reader == number:
                self._pass_on()
            self._close_if_unused()
        return reply

    async def _send(self) -> None:
        async with self._sending:
            while self._out and not self.ended:
                try:
                    sent = self._stream.send(memoryview(self._out)[:_CHUNK_BYTES])
                except (BlockingIOError, InterruptedError):
                    await anyio.wait_writable(self._stream)
                except OSError:
                    self._out.clear()  # nobody takes it; that there is no answer, the reader sees
                else:
                    del self._out[:sent]

    async def _read(self) -> None:
        """Wait for bytes and hand out the answers in them."""
        try:
            data = self._stream.recv(_CHUNK_BYTES)
        except (BlockingIOError, InterruptedError):
            await anyio.wait_readable(self._stream)
            return
        except OSError:
            data = b""
        if not data:
            self._end()
            return
        for body in self._frames.feed(data):
            self._hand_out(body)

    def _hand_out(self, body: bytes) -> None:
        match wire.unpickled(body):
            case (int(number), bool(ok), value) if (reply := self._waiting.get(number)) is not None:
                reply.answered, reply.ok, reply.value = True, ok, value
                reply.wake.set()

    def _pass_on(self) -> None:
        """Let another caller read: who waits longest, which is `watch`, so that the role seldom
        moves."""
        self._reader = next((n for n, r in self._waiting.items() if not r.answered), None)
        if self._reader is not None:
            self._waiting[self._reader].wake.set()

    def _end(self) -> None:
        self.ended = True
        for reply in self._waiting.values():
            reply.wake.set()
