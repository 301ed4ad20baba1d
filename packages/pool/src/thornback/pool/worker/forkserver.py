"""The fork server of a worker: a single-threaded program that forks rank processes and ends what
they leave behind.

Why a program of its own. The worker's process has threads (gRPC, when it is a Ray actor) and must
not be forked; and a process started afresh per child would import everything again. This one
imports the stage's modules once; a child is then a fork away, and starts with them.

Why it kills. It is in a session of its own, so it outlives whoever kills the worker's process
group, and sees the end of its stream to the supervisor, however the supervisor ended: then it ends
all children and itself. It is the subreaper of its children: what they leave running (also when it
called `setsid` or forked twice) becomes its child, and a child that it did not fork is an orphan of
a dead rank process.

Requests (pickled tuples): `("fork", request, log_path, env)`, `("kill", pid)`, `("keep",)`: the
logs are being read. Answers: `("hello", pid)` at the start; `("forked", request, pid)` with three
sockets: the supervisor's ends of the child's stream and of its tickets, and a copy of the child's
end of the tickets; `("failed", request, reason)`; `("died", pid, wait_status, max_rss_bytes)` for
each child, after everything that it left behind is gone.

At the end of its stream, with the children gone, it removes the worker's own folder of logs, if
nobody has read them, or if who was to salvage them is dead as well. What dies at the same moment,
but a little later, leaves the folder.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import importlib
import json
import os
import selectors
import signal
import socket
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from typing import Protocol

from thornback.pool.worker import proctree, wire
from thornback.pool.worker.logshelf import Owner, remove_own

SWEEP_LIMIT_S = 2.0
"""A death is reported at the latest so long after it, also if an orphan cannot be killed (stuck in
the kernel)."""
END_LIMIT_S = 5.0
_SWEEP_EVERY_S = 0.002


class ChildMain(Protocol):
    """What a forked child runs; it should not return."""

    def __call__(
        self,
        stream: socket.socket,
        tickets: socket.socket,
        log_path: str,
        env: Mapping[str, str],
        parent: int,
        /,
    ) -> None: ...


class ForkServer:
    """Forks on request, reports deaths, sweeps orphans; all in one thread."""

    def __init__(self, control: socket.socket, child_main: ChildMain) -> None:
        self._control = control
        self._child_main = child_main
        self._frames = wire.Frames()
        self._pid = os.getpid()
        self._children: dict[int, None] = {}
        self._deaths: list[tuple[int, int, int]] = []
        self._report_by = 0.0
        self._ended = False
        self._hung_up = False
        self.logs_asked = False
        """Somebody reads the logs: they must not be removed with the worker."""
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)

    def serve(self) -> bool:
        """Work until the control stream ends or SIGTERM comes; then end all children.

        Returns:
            The stream ended.
        """
        # Our starter is a thread of our host, which may have signals blocked; a mask is inherited.
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        signal.signal(
            signal.SIGCHLD, lambda *_: None
        )  # without a handler the wake-up is not written
        signal.signal(signal.SIGTERM, self._end)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with selectors.DefaultSelector() as selector:
            selector.register(self._control, selectors.EVENT_READ)
            selector.register(self._wake_read, selectors.EVENT_READ)
            while not self._ended:
                ready = selector.select(_SWEEP_EVERY_S if self._deaths else None)
                for key, _ in ready:
                    if key.fileobj is self._control:
                        self._read_control()
                    else:
                        self._drain_wakeups()
                self._reap()
                self._sweep()
        self._end_all()
        return self._hung_up

    def _end(self, *_: object) -> None:
        self._ended = True

    def _drain_wakeups(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self._wake_read, 4096)

    def _read_control(self) -> None:
        try:
            data = self._control.recv(65536)
        except ConnectionError:
            data = b""
        if not data:
            self._ended = self._hung_up = True
        for body in self._frames.feed(data):
            match wire.unpickled(body):
                case ("fork", int(request), str(log_path), dict(env)):
                    self._fork(request, log_path, env)
                case ("keep",):
                    self.logs_asked = True
                case ("kill", int(pid)) if pid in self._children:
                    proctree.kill_group(pid)
                    proctree.kill(pid)

    def _send(self, message: tuple[object, ...], fds: Sequence[int] = ()) -> None:
        data = wire.pickled(message)
        try:
            sent = socket.send_fds(self._control, [data], fds) if fds else 0
            self._control.sendall(data[sent:])
        except OSError:  # the supervisor is gone
            self._ended = self._hung_up = True

    def _fork(self, request: int, log_path: str, env: Mapping[str, str]) -> None:
        with contextlib.ExitStack() as sockets:
            try:
                ours, theirs = map(sockets.enter_context, socket.socketpair())
                sends, takes = map(
                    sockets.enter_context, socket.socketpair(type=socket.SOCK_SEQPACKET)
                )
                pid = os.fork()
            except OSError as error:
                self._send(("failed", request, str(error)))
                return
            if pid == 0:
                ours.close()
                sends.close()
                self._be_child(theirs, takes, log_path, env)
            self._children[pid] = None
            fds = [each.fileno() for each in (ours, sends, takes)]
            self._send(("forked", request, pid), fds)

    def _be_child(
        self, stream: socket.socket, tickets: socket.socket, log_path: str, env: Mapping[str, str]
    ) -> None:
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            self._control.close()
            os.close(self._wake_read)
            os.close(self._wake_write)
            self._child_main(stream, tickets, log_path, env, self._pid)
            code = 0
        except BaseException:  # noqa: BLE001  # nothing of a child may return into the fork server's loop
            traceback.print_exc()
        finally:
            os._exit(code)

    def _reap(self) -> None:
        while (dead := _next_dead()) is not None:
            pid, status, max_rss_bytes = dead
            if pid in self._children:
                del self._children[pid]
                if not self._deaths:
                    self._report_by = time.monotonic() + SWEEP_LIMIT_S
                self._deaths.append((pid, status, max_rss_bytes))

    def _orphans(self) -> list[int]:
        return [pid for pid in proctree.children_of(self._pid) if pid not in self._children]

    def _sweep(self) -> None:
        """Kill orphans. When none is left, report the deaths: a next attempt must not meet what the
        last one left."""
        orphans = self._orphans()
        for pid in orphans:
            proctree.kill(pid)
        if self._deaths and (not orphans or time.monotonic() > self._report_by):
            deaths, self._deaths = self._deaths, []
            for death in deaths:
                self._send(("died", *death))

    def _end_all(self) -> None:
        deadline = time.monotonic() + END_LIMIT_S
        while time.monotonic() < deadline:
            for pid in self._children:
                proctree.kill_group(pid)
                proctree.kill(pid)
            self._reap()
            for pid in self._orphans():
                proctree.kill(pid)
            if not self._children and not self._orphans():
                return
            time.sleep(_SWEEP_EVERY_S)


def _next_dead() -> tuple[int, int, int] | None:
    """Reap one dead child: (pid, wait status, peak resident bytes).

    Its process group is killed while it is still a zombie: until it is reaped, its id cannot name
    another group.
    """
    try:
        if sys.platform.startswith("linux"):
            dead = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if dead is None:
                return None
            if os.getpgid(dead.si_pid) == dead.si_pid:
                proctree.kill_group(dead.si_pid)
            pid, status, usage = os.wait4(dead.si_pid, 0)
        else:
            pid, status, usage = os.wait4(-1, os.WNOHANG)
            if pid:
                proctree.kill_group(pid)
    except (ChildProcessError, ProcessLookupError):
        return None
    return (pid, status, usage.ru_maxrss * 1024) if pid else None


def _preload(names: Sequence[str]) -> None:
    for name in names:
        try:
            importlib.import_module(name)
        except BaseException:  # noqa: BLE001  # user code; the rank that needs the module will say what is wrong
            print(f"thornback: could not preload {name!r}:", file=sys.stderr)
            traceback.print_exc()


def main() -> None:
    """Run as a program: `sys.argv[1]` is the configuration as JSON, see `forks.py`."""
    from thornback.pool.worker.child import rank_process_main

    config = json.loads(sys.argv[1])
    control = socket.socket(fileno=config["fd"])
    control.set_inheritable(False)
    proctree.adopt_orphans()
    # For fatal errors. It writes to descriptor 2: our log, and in a child the child's.
    faulthandler.enable()
    server = ForkServer(control, rank_process_main)
    server.logs_asked = config["logs_asked"]
    if not config.get("again"):
        server._send(("hello", os.getpid()))
    if config["preload"]:
        # While it imports, it does not see the end of its stream. A worker that dies then leaves
        # the folder of its logs.
        proctree.die_with_parent()
        if os.getppid() != config["parent"]:
            os._exit(1)
        _preload(config["preload"])
        proctree.outlive_parent()
    if proctree.thread_count() > 1:
        print(
            "thornback: preloaded modules started threads; starting without them", file=sys.stderr
        )
        sys.stderr.flush()
        control.set_inheritable(True)
        again = json.dumps({**config, "preload": [], "again": True})
        os.execv(sys.executable, [again if each == sys.argv[1] else each for each in sys.orig_argv])
    gc.collect()
    gc.freeze()  # so that the collector of a child does not touch, and so copy, every page
    hung_up = server.serve()
    if hung_up and (not server.logs_asked or Owner(*config["owner"]).gone):
        remove_own(config["log_dir"])
    os._exit(0)
