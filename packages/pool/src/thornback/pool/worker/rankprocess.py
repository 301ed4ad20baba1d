"""The supervisor's end of one rank process: what is asked of it, what it says, how it ends.

Two streams of news meet here: the process's own, and the fork server's notice of its death. A
process can say that a rank is done and die right after, so a death counts only once its own stream
has been read: what it wrote before it died is there by then.

Ranks go to it as tickets (see `child`), of which those that it has not taken can be taken back.
"""

from __future__ import annotations

import asyncio
import pickle
import signal
import socket
from collections.abc import Callable, Mapping
from typing import Protocol

from thornback.pool.worker import wire
from thornback.pool.worker.deaths import Death, KillReason
from thornback.pool.worker.forks import Sockets
from thornback.pool.worker.news import (
    Done,
    Need,
    News,
    Progressed,
    Saved,
    SetUp,
    Started,
    TornDown,
    parse,
)
from thornback.pool.worker.pace import Pace
from thornback.pool.worker.ranklog import RankLog

MAX_FRAME_BYTES = 32 << 20
"""A result and outputs of 1 MiB each, in the worst case of JSON escapes, and an error."""
MAX_TICKET_BYTES = 8 << 10
"""What is larger goes by the stream."""
_CHUNK_BYTES = 1 << 18
_PULLS = 16
"""Chunks that are read in one go, before others have their turn."""
_HANG_UP_S = 0.5
"""How long after the end of its stream a process may take to be dead."""


class Unexpected(ValueError):
    """A process said what it was not asked."""


class Listener(Protocol):
    """Who gives ranks to a process."""

    def heard(self, news: Started | Done | Saved | Progressed, /) -> None:
        """Take news of a rank. Raises `Unexpected`."""

    def settled(self) -> None:
        """Go on: all that there was has been heard."""

    def withdraw(self) -> None:
        """Take back what has not started: the process is to be killed."""

    def died(self, death: Death, /) -> None:
        """The process is dead; nothing more will be heard."""


class RankProcess:
    """A child of the fork server, from its fork to its death. Belongs to the event loop's
    thread."""

    def __init__(
        self,
        pid: int,
        sockets: Sockets,
        log: RankLog,
        *,
        program: str,
        kill: Callable[[int], None],
        blob: Callable[[str], bytes | None],
    ) -> None:
        """Take over a new process.

        Args:
            pid: of the process.
            sockets: our ends.
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
        """The most that was seen of the whole tree, since it was last set to 0."""
        self.has_teardown = False
        self.ranks = 0
        """That it has run."""
        self.first_rss_bytes = 0
        """Its resident memory after the set-up."""
        self.log_end = 0
        """Size of its log at the end of the last rank."""
        self.worn = False
        """It is to be replaced before the next rank."""
        self.pace = Pace()
        self.listener: Listener | None = None
        self._sockets = sockets
        sockets.stream.setblocking(False)
        sockets.tickets.setblocking(False)
        sockets.back.setblocking(True)  # it shares that with the process's own end
        sockets.tickets.shutdown(socket.SHUT_RD)  # nothing that is written there can pile up
        self._kill = kill
        self._blob = blob
        self._frames = wire.Frames(MAX_FRAME_BYTES)
        self._out = bytearray()
        self._loop: asyncio.AbstractEventLoop | None = None
        """Set while it is listened to."""
        self._nap: asyncio.TimerHandle | None = None
        self._answer: asyncio.Future[SetUp | TornDown | Death] | None = None
        self._awaited: type[SetUp] | type[TornDown] = SetUp
        self._serial = 0
        self._hung_up = False
        self._reaped: tuple[int, int] | None = None
        self._killed_for: KillReason | None = None
        self._detail = ""

    def connect(self) -> None:
        """Start to listen. It may be dead by then."""
        if self.death is None:
            self._loop = asyncio.get_running_loop()
            self._loop.add_reader(self._sockets.stream, self._readable)

    @property
    def accepts(self) -> bool:
        """Whether it is of any use to send it something."""
        return not (self._hung_up or self._reaped or self._killed_for)

    @property
    def usable(self) -> bool:
        """Whether it may be given something new to do."""
        return self.accepts and self._answer is None and self.listener is None

    # -- what is asked of it ---------------------------------------------------------------------

    async def set_up(self, blob: bytes, fields: Mapping[str, object]) -> SetUp | Death:
        """Have it set its program up; once, and first."""
        answer = await self._ask(SetUp, ("setup", blob, dict(fields)))
        assert not isinstance(answer, TornDown), "only what was asked is answered"
        return answer

    async def tear_down(self) -> TornDown | Death:
        """Have its program end in order; last."""
        answer = await self._ask(TornDown, ("teardown",))
        assert not isinstance(answer, SetUp), "only what was asked is answered"
        return answer

    async def _ask(
        self, awaited: type[SetUp] | type[TornDown], message: tuple[object, ...]
    ) -> SetUp | TornDown | Death:
        if self.death is not None:
            return self.death
        self._awaited = awaited
        self._answer = asyncio.get_running_loop().create_future()
        try:
            serial = self.next_serial()
            self._write(("do", serial, *message))
            self._send(pickle.dumps(("do", serial)))  # nothing else is in the queue
            return await self._answer
        finally:
            self._answer = None

    def next_serial(self) -> int:
        """Return a number for a ticket, or for a work."""
        self._serial += 1
        return self._serial

    def tell_work(self, fields: Mapping[str, object]) -> int:
        """Tell what the ranks of an assignment have in common; returns the number of that."""
        number = self.next_serial()
        self._write(("work", number, dict(fields)))
        return number

    def send(self, ticket: tuple[object, ...]) -> bool:
        """Put a ticket into its queue. False: there is no room now."""
        return self._send(pickle.dumps(ticket, pickle.HIGHEST_PROTOCOL))

    def send_large(
        self, serial: int, work: int, rank: int, args: bytes | None, restored: bytes | None
    ) -> bool:
        """Put a ticket of a rank into its queue, with what belongs to it on the stream. One at a
        time, lest they pile up. False: there is no room now."""
        sent = self._send(pickle.dumps(("large", serial, work, rank)))
        if sent:
            self._write(("large", serial, args, restored))
        return sent

    def take_back(self) -> list[int]:
        """Take back the tickets that it has not taken; returns their serials. They will never be
        started.

        They come in order, but it may take one in the middle of this.
        """
        found: list[int] = []
        while self.death is None:
            try:
                ticket = self._sockets.back.recv(2 * MAX_TICKET_BYTES, socket.MSG_DONTWAIT)
            except OSError:
                break
            if not ticket:  # user code has shut the socket down
                break
            found.append(pickle.loads(ticket)[1])
        return found

    def drain(self, goes_at: float) -> None:
        """Tell it when its node goes away, on the monotonic clock."""
        self._write(("drain", goes_at))

    def go_on(self, serial: int) -> None:
        """Let the process take its next ticket, after the rank of this serial failed."""
        self._write(("go", serial))

    def kept(self, number: int) -> None:
        """Tell it that its checkpoint of that number is kept."""
        self._write(("kept", number))

    def nap(self, delay_s: float) -> None:
        """Do not listen for a while: what it says can wait, and be read in one go."""
        if self._loop is not None and self._nap is None and not self._hung_up:
            self._loop.remove_reader(self._sockets.stream)
            self._nap = self._loop.call_later(delay_s, self._wake)

    def _wake(self) -> None:
        self._nap = None
        if self._loop is not None and not self._hung_up:
            self._loop.add_reader(self._sockets.stream, self._readable)

    # -- its end -----------------------------------------------------------------------------------

    def kill(self, reason: KillReason, detail: str = "") -> None:
        """Have its whole tree killed. The first reason stands; dead already: a no-op."""
        if self._reaped is None:
            if self._killed_for is None:
                self._killed_for, self._detail = reason, detail
                if self.listener is not None:
                    self.listener.withdraw()
            self._kill(self.pid)

    def reaped(self, status: int, max_rss_bytes: int) -> None:
        """Learn that it is dead, and its tree gone."""
        if self._reaped is None:
            self._reaped = (status, max_rss_bytes)
            while self.hear():
                continue  # all that it wrote is there; something else may hold the stream open
            self._finish(*self._reaped)

    def _finish(self, status: int, max_rss_bytes: int) -> None:
        ours = self._killed_for is not None and (status & 0x7F) == signal.SIGKILL
        death = Death(
            pid=self.pid,
            status=status,
            max_rss_bytes=max(max_rss_bytes, self.peak_tree_rss_bytes),
            killed_for=self._killed_for if ours else None,
            detail=self._detail if ours else "",
        )
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(death)
        if self.listener is not None:
            self.listener.died(death)
        self._hang_up()
        self.death = death
        self._sockets.close()
        self.dead.set()

    def _hang_up(self) -> None:
        """Neither read nor write any more. Idempotent."""
        self._hung_up = True
        if self._loop is not None:
            self._loop.remove_reader(self._sockets.stream)
            self._loop.remove_writer(self._sockets.stream)
            self._loop = None
        if self._nap is not None:
            self._nap.cancel()
        self._out.clear()

    # -- its stream --------------------------------------------------------------------------------

    def _send(self, ticket: bytes) -> bool:
        try:
            self._sockets.tickets.send(ticket)
        except OSError:  # no room, or no memory
            return False
        return True

    def _write(self, message: tuple[object, ...]) -> None:
        if self.accepts:
            self._out += wire.pickled(message)
            self._flush()

    def _flush(self) -> None:
        try:
            while self._out:
                del self._out[: self._sockets.stream.send(self._out)]
        except BlockingIOError:
            if self._loop is not None:
                self._loop.add_writer(self._sockets.stream, self._flush)
            return
        except OSError:  # its end is seen when reading
            self._out.clear()
        if self._loop is not None:
            self._loop.remove_writer(self._sockets.stream)

    def _readable(self) -> None:
        self.pull()

    def pull(self) -> None:
        """Hear what there is now, and go on."""
        self.hear()
        if self.listener is not None:
            self.listener.settled()

    def hear(self) -> bool:
        """Hear what there is now; False: nothing is left to be heard."""
        return all(self._pull_once() for _ in range(_PULLS))

    def _pull_once(self) -> bool:
        if self._hung_up:
            return False
        try:
            data = self._sockets.stream.recv(_CHUNK_BYTES)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self._ended()
            return False
        try:
            for body in self._frames.feed(data):
                self._heard(parse(body))
        except (wire.FrameError, ValueError, RecursionError) as error:
            what = "" if isinstance(error, Unexpected) else "something else wrote to its stream: "
            self.kill(KillReason.PROTOCOL, f"{what}{error}")
            self._hang_up()  # nothing more is read
        return len(data) == _CHUNK_BYTES

    def _heard(self, news: News) -> None:
        if isinstance(news, Need):
            self._write(("input", news.key, self._blob(news.key)))
        elif isinstance(news, SetUp | TornDown):
            pending = self._answer is not None and not self._answer.done()
            if not pending or not isinstance(news, self._awaited):
                raise Unexpected("it answered what it was not asked")
            assert self._answer is not None
            self._answer.set_result(news)
        elif self.listener is None:
            raise Unexpected("it answered what it was not asked")
        else:
            self.listener.heard(news)

    def _ended(self) -> None:
        """Its stream has ended: wait for the notice of death; a process that only closed its
        stream is killed."""
        self._hang_up()
        if self._reaped is None:
            asyncio.get_running_loop().call_later(
                _HANG_UP_S, self.kill, KillReason.PROTOCOL, "it closed its stream to the supervisor"
            )
