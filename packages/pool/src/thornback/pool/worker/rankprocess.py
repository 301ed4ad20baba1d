"""The supervisor's end of one rank process: what is asked of it, what it says, how it ends.

Two streams of news meet here: the process's own, and the fork server's notice of its death. A
process can say that a rank is done and die right after, so a death counts only once its own stream
has been read to the end.
"""

from __future__ import annotations

import asyncio
import json
import signal
import socket
from collections.abc import Callable
from typing import TypeAlias

import attrs

from thornback.pool.caught import from_plain
from thornback.pool.ports import CaughtError, SpanData
from thornback.pool.worker import wire
from thornback.pool.worker.deaths import Death, KillReason
from thornback.pool.worker.ranklog import RankLog
from thornback.pool.worker.spandata import spans_from_plain

MAX_FRAME_BYTES = 32 << 20
"""A result and outputs of 1 MiB each, in the worst case of JSON escapes, and an error."""
_DRAIN_S = 0.25
"""How long after a death its stream may be held open by something else."""
_HANG_UP_S = 0.5
"""How long after the end of its stream a process may take to be dead."""


@attrs.frozen(kw_only=True, slots=True)
class SetUp:
    """The set-up of the program is over."""

    error: CaughtError | None
    peak_rss_bytes: int
    spans: tuple[SpanData, ...] = ()
    """Only of a failure."""
    spans_dropped: int = 0


@attrs.frozen(kw_only=True, slots=True)
class Done:
    """A rank is over."""

    serial: int
    result: str | None
    outputs: tuple[tuple[str, str], ...]
    error: CaughtError | None
    ran_s: float
    peak_rss_bytes: int
    spans: tuple[SpanData, ...] = ()
    spans_dropped: int = 0


@attrs.frozen(kw_only=True, slots=True)
class Started:
    """A rank has begun."""

    serial: int


@attrs.frozen(kw_only=True, slots=True)
class Need:
    """The program asks for a blob."""

    key: str


News: TypeAlias = SetUp | Done | Started | Need


def parse(body: bytes) -> News:
    """Read what a rank process says; nothing is trusted.

    Raises:
        ValueError: it is not what a rank process says.
    """
    match json.loads(body):
        case ["started", int(serial)]:
            return Started(serial=serial)
        case [
            "done",
            int(serial),
            str() | None as result,
            list(outputs),
            error,
            float(ran_s),
            int(peak),
            plain_spans,
        ]:
            spans, dropped = spans_from_plain(plain_spans)
            return Done(
                serial=serial,
                result=result,
                outputs=tuple(map(_pair, outputs)),
                error=None if error is None else from_plain(error),
                ran_s=ran_s,
                peak_rss_bytes=peak,
                spans=spans,
                spans_dropped=dropped,
            )
        case ["set_up", error, int(peak), plain_spans]:
            caught = None if error is None else from_plain(error)
            spans, dropped = spans_from_plain(plain_spans)
            return SetUp(error=caught, peak_rss_bytes=peak, spans=spans, spans_dropped=dropped)
        case ["need", str(key)]:
            return Need(key=key)
    raise ValueError(f"not a message of a rank process: {body[:80]!r}")


def _pair(plain: object) -> tuple[str, str]:
    match plain:
        case [str(staged), str(final)]:
            return staged, final
    raise ValueError(f"not an output: {str(plain)[:80]!r}")


class RankProcess(asyncio.Protocol):
    """A child of the fork server, from its fork to its death. Belongs to the event loop's
    thread."""

    def __init__(
        self,
        pid: int,
        stream: socket.socket,
        log: RankLog,
        *,
        program: str,
        kill: Callable[[int], None],
        blob: Callable[[str], bytes | None],
    ) -> None:
        """Take over a new process.

        Args:
            pid: of the process.
            stream: our end of the stream to it.
            log: its log; not closed here, for it is read after the death.
            program: key of the one program that it runs.
            kill: has the fork server kill it.
            blob: gives an input that the program asks for; None: unknown key.
        """
        self.pid = pid
        self.log = log
        self.program = program
        self.death: Death | None = None
        self.dead = asyncio.Event()
        self.peak_tree_rss_bytes = 0
        """The most that was seen of the whole tree since the last `ask`; 0: not polled."""
        self._stream = stream
        self._kill = kill
        self._blob = blob
        self._frames = wire.Frames(MAX_FRAME_BYTES)
        self._transport: asyncio.WriteTransport | None = None
        self._answer: asyncio.Future[SetUp | Done | Death] | None = None
        self._on_started: Callable[[], None] = lambda: None
        self._serial = 0
        self._hung_up = False
        self._reaped: tuple[int, int] | None = None
        self._killed_for: KillReason | None = None
        self._detail = ""

    async def connect(self) -> None:
        """Start to listen. It may be dead by then."""
        if self.death is None:
            self._stream.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.create_unix_connection(lambda: self, sock=self._stream)

    @property
    def usable(self) -> bool:
        """Whether it may be given something to do."""
        return not (self._hung_up or self._reaped or self._killed_for or self._answer)

    async def ask(
        self,
        message: tuple[object, ...],
        *,
        serial: int = 0,
        on_started: Callable[[], None] | None = None,
    ) -> SetUp | Done | Death:
        """Send a `setup` or `rank` message and return what came of it: the answer, or the death of
        the process."""
        if self.death is not None:
            return self.death
        self._serial = serial
        self._on_started = on_started or (lambda: None)
        self.peak_tree_rss_bytes = 0
        self._answer = asyncio.get_running_loop().create_future()
        try:
            self._write(message)
            return await self._answer
        finally:
            self._answer = None

    def kill(self, reason: KillReason, detail: str = "") -> None:
        """Have its whole tree killed. The first reason stands; dead already: a no-op."""
        if self._reaped is None:
            if self._killed_for is None:
                self._killed_for, self._detail = reason, detail
            self._kill(self.pid)

    def reaped(self, status: int, max_rss_bytes: int) -> None:
        """Learn that it is dead, and its tree gone."""
        if self._reaped is None:
            self._reaped = (status, max_rss_bytes)
            if self._hung_up or self._transport is None:
                self.finish()
            else:
                asyncio.get_running_loop().call_later(_DRAIN_S, self.finish)

    def finish(self) -> None:
        """Let the death count, also if its stream has not been read to the end. Idempotent."""
        if self.death is not None or self._reaped is None:
            return
        status, max_rss_bytes = self._reaped
        ours = self._killed_for is not None and (status & 0x7F) == signal.SIGKILL
        self.death = Death(
            pid=self.pid,
            status=status,
            max_rss_bytes=max(max_rss_bytes, self.peak_tree_rss_bytes),
            killed_for=self._killed_for if ours else None,
            detail=self._detail if ours else "",
        )
        if self._transport is not None:
            self._transport.abort()
        else:
            self._stream.close()
        self.dead.set()
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(self.death)

    def _write(self, message: tuple[object, ...]) -> None:
        if self._transport is not None and not self._hung_up:
            self._transport.write(wire.pickled(message))

    # -- asyncio.Protocol ------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        assert isinstance(transport, asyncio.WriteTransport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """Take the news; kill the process if they are not what a rank process says."""
        try:
            for body in self._frames.feed(data):
                self._heard(parse(body))
        except (wire.FrameError, ValueError, RecursionError) as error:
            self._breached(f"something else wrote to its stream: {error}")

    def _heard(self, news: News) -> None:
        pending = self._answer is not None and not self._answer.done()
        match news:
            case Started(serial=serial) if pending and serial == self._serial:
                self._on_started()
            case Need(key=key):
                blob = self._blob(key)
                self._write(("unknown", key) if blob is None else ("input", key, blob))
            case Done(serial=serial) if pending and serial == self._serial:
                assert self._answer is not None
                self._answer.set_result(news)
            case SetUp() if pending and self._serial == 0:
                assert self._answer is not None
                self._answer.set_result(news)
            case _:
                self._breached("it answered what it was not asked")

    def _breached(self, detail: str) -> None:
        self._hung_up = True  # nothing more is read
        self.kill(KillReason.PROTOCOL, detail)
        if self._transport is not None:
            self._transport.abort()

    def eof_received(self) -> bool | None:
        """Close our side too."""
        return None

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for the notice of death; a process that only closed its stream is killed."""
        self._hung_up = True
        if self._reaped is not None:
            self.finish()
        else:
            asyncio.get_running_loop().call_later(
                _HANG_UP_S, self.kill, KillReason.PROTOCOL, "it closed its stream to the supervisor"
            )
