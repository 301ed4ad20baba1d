"""A straight line to a worker: calls over a TCP connection of our own, beside those of Ray, which
cost several times as much. Internal to the pool.

Both ends prove that they know a secret, which has come by Ray, before anything is unpickled. After
that the frames are those of `worker.wire`, neither encrypted nor signed: as Ray's own without TLS.
A line is an extra: who has none, or loses it, calls by Ray, and all calls may be repeated.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import secrets
import socket

import anyio

from thornback.pool.connection import Connection
from thornback.pool.worker.answering import Answering, Handle

_LOG = logging.getLogger(__name__)
_NONCE_BYTES = 32
_PROOF_BYTES = 32
_PROVE_S = 5.0
"""For a caller to prove that it knows the secret."""
_MOST_CALLERS = 16
"""Connections of callers that have proved that they know the secret; one is expected."""
_MOST_STRANGERS = 64
"""Connections that have not proved it yet. Another one closes the oldest of them: a real caller
needs one round trip, so idle connections cannot keep it out."""
_IDLE_S, _PROBE_EVERY_S, _PROBES, _UNHEARD_MS = 10, 5, 3, 20_000
"""A peer that the network has lost is noticed within half a minute: before `PoolParams.silence_s`.
"""


class LineRefused(Exception):
    """There is somebody else at the other end."""


def _proof(secret: bytes, who: bytes, nonce: bytes) -> bytes:
    return hmac.digest(secret, who + nonce, "sha256")


def _watchful(stream: socket.socket) -> None:
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _IDLE_S)
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _PROBE_EVERY_S)
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, _PROBES)
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNHEARD_MS)


class LineServer:
    """The worker's end: answers calls with `handle`, in the asyncio loop that it is opened in.

    Lives until it is closed, or its process ends.
    """

    def __init__(self, handle: Handle, secret: bytes) -> None:
        self._answering = Answering(handle)
        self._secret = secret
        self._callers: dict[asyncio.StreamWriter, None] = {}
        self._strangers: dict[asyncio.StreamWriter, None] = {}
        """Oldest first."""
        self._server: asyncio.Server | None = None

    async def open(self, address: str) -> int:
        """Listen; return the port.

        Raises:
            OSError: it cannot.
        """
        self._server = await asyncio.start_server(self._serve, address, 0)
        port: int = self._server.sockets[0].getsockname()[1]
        return port

    def close(self) -> None:
        """Hang up, and take no more callers. Idempotent."""
        if self._server is not None:
            self._server.close()
        for writer in (*self._callers, *self._strangers):
            writer.close()
        self._answering.cancel()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            self._admit(writer)
            await asyncio.wait_for(self._introduce(reader, writer), _PROVE_S)
            self._strangers.pop(writer, None)
            if len(self._callers) >= _MOST_CALLERS:
                raise LineRefused(f"there are {_MOST_CALLERS} callers already")
            self._callers[writer] = None
            await self._answer_all(reader, writer)
        except (OSError, EOFError, LineRefused, TimeoutError) as error:
            _LOG.debug("a line has ended: %r", error)
        finally:
            self._strangers.pop(writer, None)
            self._callers.pop(writer, None)
            writer.close()

    def _admit(self, writer: asyncio.StreamWriter) -> None:
        """Count a new connection as a stranger, and drop the oldest stranger if there are too
        many."""
        if len(self._strangers) >= _MOST_STRANGERS:
            oldest = next(iter(self._strangers))
            del self._strangers[oldest]
            oldest.transport.abort()
        self._strangers[writer] = None

    async def _introduce(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        _watchful(writer.get_extra_info("socket"))
        nonce = secrets.token_bytes(_NONCE_BYTES)
        writer.write(nonce)
        theirs = await reader.readexactly(_NONCE_BYTES)
        proof = await reader.readexactly(_PROOF_BYTES)
        if not hmac.compare_digest(proof, _proof(self._secret, b"pool", nonce)):
            raise LineRefused("a caller does not know the secret")
        writer.write(_proof(self._secret, b"worker", theirs))

    async def _answer_all(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await self._answering.serve(reader, writer)


async def dial(address: str, port: int, secret: bytes) -> Connection:
    """Make the pool's end of a line.

    Raises:
        OSError: nobody answers.
        LineRefused: it is not our worker who answers.

    Cancellation: nothing is left open; bound it.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    stream = socket.socket(family, socket.SOCK_STREAM)
    made = False
    try:
        stream.setblocking(False)
        _watchful(stream)
        try:
            stream.connect((address, port))
        except BlockingIOError:
            await anyio.wait_writable(stream)
            if failure := stream.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                raise OSError(failure, f"no line to {address}:{port}") from None
        nonce = await _receive(stream, _NONCE_BYTES)
        ours = secrets.token_bytes(_NONCE_BYTES)
        stream.send(ours + _proof(secret, b"pool", nonce))  # an empty buffer takes so little
        proof = await _receive(stream, _PROOF_BYTES)
        if not hmac.compare_digest(proof, _proof(secret, b"worker", ours)):
            raise LineRefused(f"who answers at {address}:{port} does not know the secret")
        made = True
        return Connection(stream)
    finally:
        if not made:
            stream.close()


async def _receive(stream: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        await anyio.wait_readable(stream)
        part = stream.recv(size - len(data))
        if not part:
            raise LineRefused("it was hung up")
        data += part
    return data
