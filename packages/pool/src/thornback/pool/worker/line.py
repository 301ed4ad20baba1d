"""A rank process's end of its two sockets: what it is told, and what it says, also in the middle of
user code.

While the main thread is in user code, whoever asks for something (an input, a checkpoint, a drain)
reads the stream, from any thread, one at a time under a lock. What it finds besides its own answer
is kept for the others. A forked copy of the process neither reads nor writes.
"""

from __future__ import annotations

import base64
import contextlib
import math
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

from thornback.pool.worker import wire
from thornback.pool.worker.news import MAX_CHECKPOINT_BYTES
from thornback.pool.worker.unpatched import os, pickle, select, time

ANSWER_LIMIT_S = 30.0
"""For the supervisor to take a checkpoint, or to send an input."""
_PROGRESS_EVERY_S = 1.0
_CHUNK_BYTES = 1 << 18
_TICKET_BYTES = 1 << 14


class Line:
    """Belongs to the main thread, but for the methods that `Mouth` calls."""

    def __init__(self, stream: socket.socket, tickets: socket.socket) -> None:
        self._stream = stream
        self._tickets = tickets
        self._ticket = memoryview(bytearray(_TICKET_BYTES))
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._frames = wire.Frames()
        self._out = bytearray()
        """What is still to be sent, the rest of a frame first."""
        self._done: list[object] | None = None
        """The end of the last rank, still to be sent."""
        self._mail: dict[tuple[str, int], tuple[Any, ...]] = {}
        self._inputs: dict[str, bytes | None] = {}
        self._speaker = 0
        """Serial of the rank that may ask now; -1: the set-up, which may ask for inputs only."""
        self._checkpoints = 0
        self._kept = 0
        """Number of the newest checkpoint that the supervisor has."""
        self._goes_at: float | None = None
        """When the node goes away, on the clock of the machine (see `draining`)."""
        self._told_progress_at = -math.inf
        for each in (stream, tickets):
            each.settimeout(None)  # a module may have set another default
        # A forked copy must neither speak for us nor keep the sockets open after our death.
        os.register_at_fork(after_in_child=self._hang_up)

    def _hang_up(self) -> None:
        self._stream.close()
        self._tickets.close()

    # -- between ranks -----------------------------------------------------------------------------

    def say(self, message: list[object]) -> None:
        """Send a message, before user code runs or anything is waited for."""
        self._out += wire.as_json(message)

    def say_done(self, message: list[object]) -> None:
        """Send the end of a rank, before user code runs or anything is waited for."""
        self._done = message

    def say_started(self, serial: int) -> None:
        """Send at once that a rank begins, along with the end of the one before."""
        if self._done is not None:
            self._flush_done(serial)
        else:
            self.say(["started", serial])
        self._send(None)

    def _flush_done(self, following: int) -> None:
        if self._done is not None:
            self.say([*self._done, following])
            self._done = None

    def await_leave(self, serial: int) -> None:
        """Send the end of a failed rank, and wait until the supervisor lets this process go on."""
        self._flush_done(0)
        self._send(None)
        self.mail("go", serial)

    def next_ticket(self) -> tuple[Any, ...] | None:
        """Return the next ticket; None: the supervisor is gone.

        The end of a rank is not sent yet if the next ticket is there already: see
        `say_started`.
        """
        size = 0
        if self._done is not None:
            with contextlib.suppress(BlockingIOError):
                size = self._tickets.recv_into(self._ticket, 0, socket.MSG_DONTWAIT)
        if size == 0:
            self._flush_done(0)
            self._send(None)
        if size == 0:
            size = self._tickets.recv_into(self._ticket)
        if size == 0:
            return None
        ticket: tuple[Any, ...] = pickle.loads(self._ticket[:size])
        return ticket

    def mail(self, kind: str, number: int) -> tuple[Any, ...]:
        """Return the message of that kind and number, which lies on the stream or will; forget
        those before it, whose tickets were taken back."""
        with self._lock:
            self._wait(lambda: (kind, number) in self._mail, None)
            found = self._mail[kind, number]
            for key in [key for key in self._mail if key[0] == kind and key[1] <= number]:
                del self._mail[key]
        return found

    def open(self, speaker: int) -> None:
        """Let the rank of this serial (-1: the set-up) speak from now on."""
        self._speaker = speaker
        self._told_progress_at = -math.inf

    def close(self) -> None:
        """Let it speak no more. Waits for what a thread of its is saying."""
        with self._lock:
            self._speaker = 0

    # -- in user code ------------------------------------------------------------------------------

    def input(self, speaker: int, key: str) -> bytes:
        """See `RankCall.inputs`."""
        deadline = time.monotonic() + ANSWER_LIMIT_S
        with self._speaking(speaker, f"input {key!r} was asked for", deadline):
            if key not in self._inputs:
                self.say(["need", key])
                self._send(deadline)
                if not self._wait(lambda: key in self._inputs, deadline):
                    raise TimeoutError(f"no answer within {ANSWER_LIMIT_S:g} s for input {key!r}")
            found = self._inputs[key]
            if found is None:
                del self._inputs[key]
                raise KeyError(
                    f"input {key!r} is not known to this worker: expected a key named in "
                    "the assignment's inputs"
                )
            return found

    def checkpoint(self, speaker: int, data: bytes) -> None:
        """See `RankCall.checkpoint`."""
        if not isinstance(data, bytes | bytearray | memoryview):
            raise TypeError(f"expected bytes as a checkpoint, got {type(data).__qualname__}")
        data = bytes(data)
        if len(data) > MAX_CHECKPOINT_BYTES:
            raise ValueError(
                f"a checkpoint may be at most {MAX_CHECKPOINT_BYTES} bytes, got {len(data)}: "
                "write large data to a file and save its path"
            )
        deadline = time.monotonic() + ANSWER_LIMIT_S
        with self._speaking(speaker, "a checkpoint was to be saved", deadline):
            self._checkpoints += 1
            number = self._checkpoints
            text = base64.b64encode(data).decode("ascii")
            self.say(["checkpoint", speaker, number, text])
            self._send(deadline)
            if not self._wait(lambda: self._kept >= number, deadline):
                raise TimeoutError(f"the worker has not kept a checkpoint in {ANSWER_LIMIT_S:g} s")

    def progress(self, speaker: int, done: float, total: float | None) -> None:
        """See `RankCall.progress`. A no-op also when a thread is saying something else, after the
        rank, and in a forked copy."""
        done, total = float(done), None if total is None else float(total)
        if not (math.isfinite(done) and (total is None or math.isfinite(total))):
            raise ValueError(f"expected finite numbers as progress, got {done} of {total}")
        now = time.monotonic()
        if now - self._told_progress_at < _PROGRESS_EVERY_S or os.getpid() != self._pid:
            return
        if self._lock.acquire(blocking=False):
            try:
                if self._speaker == speaker and speaker > 0:
                    self._told_progress_at = now
                    self.say(["progress", speaker, done, total])
                    self._send(now + _PROGRESS_EVERY_S)
            except TimeoutError:
                return  # the rest goes with what is said next
            finally:
                self._lock.release()

    def draining(self) -> float | None:
        """See `RankCall.draining`. In a forked copy: what was known at the fork.

        An instant crosses a process border here, the only one: on the monotonic clock, which all
        processes of one kernel share. A notice can lie unread on the stream for long, and a
        duration would start again then.
        """
        if os.getpid() == self._pid and self._lock.acquire(blocking=False):
            try:
                with contextlib.suppress(OSError):  # user code closed it; its end is seen elsewhere
                    self._pull()
            finally:
                self._lock.release()
        goes_at = self._goes_at
        return None if goes_at is None else max(0.0, goes_at - time.monotonic())

    @contextlib.contextmanager
    def _speaking(self, speaker: int, what: str, deadline: float) -> Iterator[None]:
        """Hold the lock as the rank that runs. Raises RuntimeError, TimeoutError."""
        mine = os.getpid() == self._pid
        # In a copy the lock may be held for ever, by a thread that was not copied.
        if mine and not self._lock.acquire(timeout=max(0.0, deadline - time.monotonic())):
            raise TimeoutError(f"{what}, but another thread has waited for its answer for too long")
        try:
            if not mine or self._speaker != speaker:
                raise RuntimeError(
                    f"{what} outside of the rank it belongs to: do it while the rank runs, and in "
                    "the rank's own process"
                )
            yield
        finally:
            if mine:
                self._lock.release()

    # -- the stream --------------------------------------------------------------------------------

    def _send(self, deadline: float | None) -> None:
        """Send what there is. Raises TimeoutError: the rest goes with what is said next."""
        while self._out:
            try:
                sent = self._stream.send(self._out, socket.MSG_DONTWAIT)
            except BlockingIOError:
                if not self._ready(select.POLLOUT, deadline):
                    raise TimeoutError("the worker does not listen") from None
            else:
                del self._out[:sent]

    def _wait(self, there: Callable[[], bool], deadline: float | None) -> bool:
        """Read until it is there; False: not by then."""
        self._pull()
        while not there():
            if not self._ready(select.POLLIN, deadline):
                return False
            self._pull()
        return True

    def _ready(self, what: int, deadline: float | None) -> bool:
        poll = select.poll()
        poll.register(self._stream, what)
        left_s = None if deadline is None else max(0.0, deadline - time.monotonic())
        return bool(poll.poll(None if left_s is None else left_s * 1000))

    def _pull(self) -> None:
        """Take in what lies on the stream, without waiting."""
        while True:
            try:
                data = self._stream.recv(_CHUNK_BYTES, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return
            if not data:
                os._exit(0)  # the supervisor is gone
            for body in self._frames.feed(data):
                self._heard(wire.unpickled(body))

    def _heard(self, message: object) -> None:
        match message:
            case ("input", str(key), bytes() | None as blob):
                self._inputs[key] = blob
            case ("kept", int(number)):
                self._kept = max(self._kept, number)
            case ("drain", float(goes_at)):
                self._goes_at = goes_at
            case (str(kind), int(number), *rest):
                self._mail[kind, number] = tuple(rest)


class Mouth:
    """What a rank can ask and say: the functions of its `RankCall`."""

    __slots__ = ("_line", "_speaker")

    def __init__(self, line: Line, speaker: int) -> None:
        self._line = line
        self._speaker = speaker

    def inputs(self, key: str) -> bytes:
        """See `RankCall.inputs`."""
        return self._line.input(self._speaker, key)

    def checkpoint(self, data: bytes) -> None:
        """See `RankCall.checkpoint`."""
        if self._speaker < 0:
            raise RuntimeError("a checkpoint belongs to a rank: save it in `run`, not in `setup`")
        self._line.checkpoint(self._speaker, data)

    def progress(self, done: float, total: float | None = None) -> None:
        """See `RankCall.progress`."""
        self._line.progress(self._speaker, done, total)
