"""Frames on a stream: 8 bytes of length (big-endian), then that many bytes.

Between the driver side and a local worker, and from a supervisor to its fork server and rank
processes, the bytes are a pickled tuple. From a rank process to the supervisor they are JSON: user
code can write anything to that stream, and the supervisor must not unpickle what it does not trust.

Driver side to worker: requests are `(call_id: int, method: str, payload: object)`, replies
`(call_id, True, result)` or `(call_id, False, CaughtError)`, in any order. The first request is
`start`.
"""

from __future__ import annotations

import json
import socket
import struct

from thornback.pool.worker.unpatched import pickle

_HEADER = struct.Struct(">Q")
_ENCODE = json.JSONEncoder(separators=(",", ":")).encode


class FrameError(Exception):
    """The bytes on a stream are not ours: too long a frame, or no frame at all."""


class Frames:
    """Cuts a stream of bytes into frames."""

    def __init__(self, max_bytes: int = 1 << 40) -> None:
        self._buffer = bytearray()
        self._max_bytes = max_bytes

    def feed(self, data: bytes) -> list[bytes]:
        """Return the frames that are complete now.

        Raises:
            FrameError: a frame claims to be longer than `max_bytes`; the stream is of no use from
            then on.
        """
        self._buffer += data
        found: list[bytes] = []
        start = 0
        while len(self._buffer) - start >= _HEADER.size:
            (length,) = _HEADER.unpack_from(self._buffer, start)
            if length > self._max_bytes:
                raise FrameError(f"a frame of {length} bytes, expected at most {self._max_bytes}")
            end = start + _HEADER.size + length
            if len(self._buffer) < end:
                break
            found.append(bytes(memoryview(self._buffer)[start + _HEADER.size : end]))
            start = end
        if start:
            del self._buffer[:start]
        return found


def frame(body: bytes) -> bytes:
    """Return the body with its header."""
    return _HEADER.pack(len(body)) + body


def pickled(value: object) -> bytes:
    """Return a frame with the pickled value."""
    return frame(pickle.dumps(value, protocol=pickle.HIGHEST_PROTOCOL))


def unpickled(body: bytes) -> object:
    """Return the value of a frame's body. Only for streams whose writer is trusted."""
    value: object = pickle.loads(body)
    return value


def as_json(value: object) -> bytes:
    """Return a frame with the value as JSON."""
    return frame(_ENCODE(value).encode("ascii"))


def receive(stream: socket.socket) -> bytes | None:
    """Block until a whole frame is there; None at the end of the stream (also in the middle of a
    frame)."""
    header = _receive_exactly(stream, _HEADER.size)
    if header is None:
        return None
    (length,) = _HEADER.unpack(header)
    return _receive_exactly(stream, length)


def _receive_exactly(stream: socket.socket, length: int) -> bytes | None:
    data = bytearray(length)
    view = memoryview(data)
    got = 0
    while got < length:
        count = stream.recv_into(view[got:])
        if count == 0:
            return None
        got += count
    return bytes(data)
