"""The supervisor's end of a fork server: starts it, asks it for rank processes, hears of their
deaths."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence

import attrs

from thornback.pool.worker import proctree, wire
from thornback.pool.worker.logshelf import Owner

_CODE = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1])['path']; "
    "from thornback.pool.worker.forkserver import main; main()"
)
_MAX_FDS = 16
_PER_FORK = 3
_EXIT_S = 2.0
"""For a fork server that has closed its stream to end."""
_SAID_BYTES = 2048
_CLOEXEC: int = getattr(socket, "MSG_CMSG_CLOEXEC", 0)


class ForkServerLost(Exception):
    """The fork server ended, or is of no use any more; its children are dead or dying.

    Attributes:
        exit_code: with which it exited by itself; None: it did not, or that is not known.
    """

    exit_code: int | None = None


class ForkFailed(Exception):
    """The system could not fork: no memory, or no process ids left. Unlike `ForkServerLost`, trying
    again may help."""


def _said(log_path: str) -> str:
    """Return the last lines of a log, as the end of a message; empty: there are none."""
    try:
        with open(log_path, "rb") as log:
            log.seek(max(0, os.fstat(log.fileno()).st_size - _SAID_BYTES))
            text = log.read().decode("utf-8", "replace").strip()
    except OSError:  # there was no room for a log
        return ""
    return f": {text.rpartition(chr(10))[2].strip()}\nIt wrote:\n{text}" if text else ""


@attrs.frozen(slots=True)
class Sockets:
    """Our ends of the sockets of a rank process."""

    stream: socket.socket
    tickets: socket.socket
    """What is sent here, the process takes."""
    back: socket.socket
    """The end that the process takes from: what it has not taken yet can be taken back here."""

    @classmethod
    def made(cls) -> tuple[Sockets, socket.socket, socket.socket]:
        """Return a new set, and the two ends of the process."""
        stream, theirs = socket.socketpair()
        tickets, takes = socket.socketpair(type=socket.SOCK_SEQPACKET)
        return cls(stream, tickets, takes.dup()), theirs, takes

    def close(self) -> None:
        """Close all. Idempotent."""
        for each in (self.stream, self.tickets, self.back):
            each.close()


@attrs.frozen(kw_only=True, slots=True)
class ForkServerConfig:
    """How to start a fork server."""

    env: Mapping[str, str] = attrs.field(repr=False)
    marker: str
    """Value of THORNBACK_WORKER in `env`: names everything that descends from this fork server."""
    preload: Sequence[str]
    log_path: str
    log_dir: str
    """Removed at the end, if the worker should not live to do it (see `forkserver`), and if it is
    the worker's own."""
    owner: Owner
    """Who salvages the logs."""
    logs_asked: bool
    """Somebody reads them already."""


class ForkServerClient:
    """One fork server. All methods belong to the event loop's thread."""

    def __init__(
        self,
        config: ForkServerConfig,
        *,
        on_forked: Callable[[int, int, Sockets], None],
        on_death: Callable[[int, int, int], None],
        on_lost: Callable[[], None],
    ) -> None:
        """Make it, not started.

        Args:
            config: how to start it.
            on_forked: called with (request, pid, our ends of its sockets) for each new child,
                before `fork` returns
                and before its death can be told; also if nobody waits for it any more.
            on_death: called with (pid, wait status, peak resident bytes) for each dead child.
            on_lost: called once if the fork server ends without `close`.
        """
        self._config = config
        self._on_forked = on_forked
        self._on_death = on_death
        self._on_lost = on_lost
        self._frames = wire.Frames()
        self._fds: deque[int] = deque()
        self._forks: dict[int, asyncio.Future[int]] = {}
        self._hello: asyncio.Future[int] | None = None
        self._control: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self.lost = False

    def start(self) -> None:
        """Start its process, without waiting for it.

        Raises:
            ForkServerLost: it could not be started.
        """
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair()
        self._control = ours
        self._hello = loop.create_future()
        config = {
            "fd": theirs.fileno(),
            "parent": os.getpid(),
            "path": sys.path,
            "preload": list(self._config.preload),
            "log_dir": self._config.log_dir,
            "owner": [self._config.owner.pid, self._config.owner.started],
            "logs_asked": self._config.logs_asked,
        }
        with theirs:
            try:
                self._process = self._spawn(json.dumps(config), theirs.fileno())
            except OSError as error:
                self._lose()
                raise ForkServerLost(f"the fork server could not be started: {error}") from error
        ours.setblocking(False)
        loop.add_reader(ours.fileno(), self._readable)

    async def answered(self, limit_s: float) -> None:
        """Return when it has said hello; it preloads modules after that.

        Raises:
            ForkServerLost: it has ended, or gave no answer within `limit_s`.
        """
        assert self._hello is not None, "it was not started"
        try:
            async with asyncio.timeout(limit_s):
                await self._hello
        except TimeoutError:
            self.terminate()
            why = f"the fork server gave no answer within {limit_s:g} s"
        except ForkServerLost:
            await self._exited(_EXIT_S)
            status = None if self._process is None else self._process.poll()
            why = f"the fork server ended while it started (exit status {status})"
        else:
            return
        error = ForkServerLost(why + _said(self._config.log_path))
        if self._process is not None and (self._process.returncode or 0) > 0:
            error.exit_code = self._process.returncode
        raise error

    def _spawn(self, config: str, fd: int) -> subprocess.Popen[bytes]:
        with contextlib.ExitStack() as stack:
            try:
                log = stack.enter_context(open(self._config.log_path, "ab"))
            except OSError:  # a full disk
                log = stack.enter_context(open(os.devnull, "ab"))
            return subprocess.Popen(
                # -P: without it Python would look for modules in the current directory first.
                [sys.executable, "-P", "-c", _CODE, config],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=dict(self._config.env),
                pass_fds=[fd],
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """Of the fork server; 0: not started."""
        return self._process.pid if self._process else 0

    async def fork(self, request: int, log_path: str, env: Mapping[str, str]) -> int:
        """Return the pid of a new child, after `on_forked` was called for it.

        Raises:
            ForkServerLost: there is no fork server any more.
            ForkFailed: the system refused.
        """
        answer: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._forks[request] = answer
        try:
            self._send(("fork", request, log_path, dict(env)))
            return await answer
        finally:
            self._forks.pop(request, None)

    def kill(self, pid: int) -> None:
        """Kill a child; its death will be told. Unknown or dead: a no-op."""
        with contextlib.suppress(ForkServerLost):
            self._send(("kill", pid))

    def keep_logs(self) -> None:
        """Tell it that somebody reads the logs."""
        with contextlib.suppress(ForkServerLost):
            self._send(("keep",))

    def terminate(self) -> None:
        """Kill the fork server and, with it, all children at once; for when it does not answer.
        Idempotent."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
        self._lose()

    async def close(self, limit_s: float, children: Collection[int] = ()) -> bool:
        """Let it end all children and itself; kill it if that takes longer than `limit_s`. True:
        nothing is left.

        Args:
            limit_s: for it to end.
            children: known pids, whose end is waited for where it could not tell of it.
        """
        self._on_lost = lambda: None
        self._lose()
        gone = await self._exited(limit_s)
        if not gone:
            self.terminate()
            gone = await self._exited(1.0)
        await self.sweep(children)
        return gone

    async def _exited(self, limit_s: float) -> bool:
        if self._process is None:
            return True
        loop = asyncio.get_running_loop()
        deadline = loop.time() + limit_s
        delay_s = 0.001
        # Not `Popen.wait` in a thread, nor asyncio's child watcher: it depends on our host's loop.
        while self._process.poll() is None:
            if loop.time() > deadline:
                return False
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, 0.05)
        return True

    async def sweep(self, children: Collection[int]) -> None:
        """Kill what the fork server could not end, because it was killed itself: by the mark in the
        environment.

        Until nothing was found three times in a row: while a process begins another program
        (`execve`), its environment reads as empty. It does so, too, while a process is about to
        end: `children` are waited for.
        """
        if self._process is None or self._process.poll() == 0:
            return
        entry = f"THORNBACK_WORKER={self._config.marker}".encode()
        nothing = 0
        for _ in range(50):
            pids = [p for p in proctree.pids_with_environment(entry) if proctree.is_alive(p)]
            for pid in pids:
                proctree.kill(pid)
            alive = pids or any(map(proctree.is_alive, children))
            nothing = 0 if alive else nothing + 1
            if nothing == 3:
                return
            await asyncio.sleep(0.01)

    def _send(self, message: tuple[object, ...]) -> None:
        data = wire.pickled(message)
        if self._control is None:
            raise ForkServerLost("there is no fork server any more")
        try:
            sent = self._control.send(data)
        except OSError:
            sent = -1
        if sent != len(data):  # it is gone, or has not read for thousands of requests
            self.terminate()
            raise ForkServerLost("the fork server does not take requests any more")

    def _readable(self) -> None:
        assert self._control is not None
        try:
            data, fds, _, _ = socket.recv_fds(self._control, 65536, _MAX_FDS, _CLOEXEC)
        except BlockingIOError:
            return
        except OSError:
            data, fds = b"", []
        self._fds.extend(fds)
        if not data:
            self._lose()
            return
        for body in self._frames.feed(data):
            self._handle(wire.unpickled(body))

    def _handle(self, message: object) -> None:
        match message:
            case ("hello", int(pid)) if self._hello is not None and not self._hello.done():
                self._hello.set_result(pid)
            case ("forked", int(request), int(pid)):
                fds = [self._fds.popleft() for _ in range(_PER_FORK)]
                sockets = Sockets(*(socket.socket(fileno=fd) for fd in fds))
                for fd in fds:
                    os.set_inheritable(fd, False)
                self._on_forked(request, pid, sockets)
                answer = self._forks.get(request)
                if answer is not None and not answer.done():
                    answer.set_result(pid)
            case ("failed", int(request), str(reason)):
                answer = self._forks.get(request)
                if answer is not None and not answer.done():
                    answer.set_exception(ForkFailed(f"could not fork a rank process: {reason}"))
            case ("died", int(pid), int(status), int(max_rss_bytes)):
                self._on_death(pid, status, max_rss_bytes)

    def _lose(self) -> None:
        """Let go of the stream; whoever waits for an answer gets `ForkServerLost`."""
        if self._control is not None:
            asyncio.get_running_loop().remove_reader(self._control.fileno())
            self._control.close()
            self._control = None
        while self._fds:
            os.close(self._fds.popleft())
        error = ForkServerLost("the fork server has ended")
        for answer in (self._hello, *self._forks.values()):
            if answer is not None and not answer.done():
                answer.set_exception(error)
                answer.exception()  # nobody may be waiting, and that is not worth a warning
        if not self.lost:
            self.lost = True
            self._on_lost()
