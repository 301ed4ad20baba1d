"""Workers as processes of this machine, talked to over a socket pair. Linux; asyncio and trio."""

from __future__ import annotations

import os
import pickle
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Mapping
from contextlib import suppress

import anyio
import attrs

from thornback.pool.clock import Expired, SystemClock, within
from thornback.pool.ports import Attribute, CaughtError, GangLostError, WorkerSpec
from thornback.pool.worker.wire import Frames, pickled

_RECEIVE_BYTES = 1 << 18
_EXIT_S = 5.0
"""A process that has closed its end of the connection takes at most so long to be gone."""


class WorkerGoneError(Exception):
    """The connection to a local worker has ended: its process is dead, or dying."""


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

    method: str
    answered: bool = False
    ok: bool = False
    value: object = None
    wake: anyio.Event = attrs.field(factory=anyio.Event)


class _Connection:
    """Calls over one socket, without a task of its own.

    One of the callers that wait reads for all, and passes the reading on when it has its own
    answer. What is to be sent lies in one buffer, so a caller that is cancelled in the middle of a
    frame leaves the rest to the next sender.
    """

    def __init__(self, stream: socket.socket) -> None:
        self._stream = stream
        self._frames = Frames()
        self._out = bytearray()
        self._sending = anyio.Lock()
        self._waiting: dict[int, _Reply] = {}
        self._reader: int | None = None
        self._calls = 0
        self.ended = False

    async def call(self, method: str, payload: object) -> object:
        """Call a method of the supervisor and return its answer."""
        if self.ended:
            raise WorkerGoneError(f"{method}: the connection to the worker has ended")
        self._calls += 1
        number = self._calls
        self._out += pickled((number, method, payload))
        reply = self._waiting[number] = _Reply(method)
        try:
            await self._send()
            while not reply.answered:
                if self.ended:
                    raise WorkerGoneError(f"{method}: the connection to the worker has ended")
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
        if reply.ok:
            return reply.value
        if isinstance(reply.value, CaughtError):
            raise WorkerCallError(method, reply.value)
        raise WorkerGoneError(f"{method}: the worker answered with {reply.value!r:.200}")

    def close(self) -> None:
        """End the connection; the worker then ends itself. Idempotent."""
        if not self.ended:
            self._end()
        with suppress(OSError):
            self._stream.close()

    async def _send(self) -> None:
        async with self._sending:
            while self._out and not self.ended:
                try:
                    sent = self._stream.send(memoryview(self._out)[:_RECEIVE_BYTES])
                except (BlockingIOError, InterruptedError):
                    await anyio.wait_writable(self._stream)
                except OSError:
                    self._end()
                else:
                    del self._out[:sent]

    async def _read(self) -> None:
        """Wait for bytes and hand out the answers in them."""
        try:
            data = self._stream.recv(_RECEIVE_BYTES)
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
        number, ok, value = pickle.loads(body)
        reply = self._waiting.get(number)
        if reply is not None:
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


@attrs.define(slots=True, eq=False)
class _LocalWorker:
    """A process and the connection to it."""

    process: subprocess.Popen[bytes]
    connection: _Connection
    node: str


class LocalBackend:
    """Starts workers as subprocesses of this one (fulfils `WorkerBackend`).

    A worker ends itself, with everything below it, when this process dies: its end of the
    connection closes.

    Args:
        python: the interpreter; it must find this package. None: the one that runs this.
    """

    def __init__(self, python: str | None = None) -> None:
        self._python = python or sys.executable
        self._clock = SystemClock()

    async def start(
        self, node: str, index: int, nodes: int, handle: object, spec: WorkerSpec, /
    ) -> object:
        """Start a worker; returns when its supervisor is ready.

        Raises:
            ValueError: the spec has a runtime_env.
            OSError: no process, or no log file, can be made.
            GangLostError: it died while it started; says how.
            WorkerCallError: its supervisor could not start.

        Cancellation: the process is killed.
        """
        if spec.runtime_env:
            raise ValueError(
                f"runtime_env {dict(spec.runtime_env)!r} needs Ray: leave it out on the local "
                "backend, and install what the job needs into the environment of this process"
            )
        worker = self._spawn(node, index, spec)
        started = False
        try:
            await worker.connection.call("start", (spec, node, index, nodes))
            started = True
        except WorkerGoneError as error:
            died, facts = await self.death(worker, error)
            raise GangLostError(died, node, "start", facts) from error
        finally:
            if not started:
                with anyio.CancelScope(shield=True):
                    await self.kill(worker, timeout_s=_EXIT_S)
        return worker

    async def call(self, worker: object, method: str, payload: object, /) -> object:
        """Call the supervisor.

        Raises:
            WorkerGoneError: its process is dead or dying.
            WorkerCallError: it lives, but could not do it.
        """
        return await _local(worker).connection.call(method, payload)

    def is_unavailable(self, error: BaseException, /) -> bool:
        """Return False: on one machine a connection that ended has ended for good."""
        return False

    async def kill(self, worker: object, /, *, timeout_s: float) -> bool:
        """SIGKILL the worker; what it started ends with it. True: its process is gone and
        reaped."""
        known = _local(worker)
        known.process.kill()
        gone = await self._exited(known.process, timeout_s)
        known.connection.close()
        return gone

    async def death(
        self, worker: object, error: BaseException, /
    ) -> tuple[CaughtError | BaseException, Mapping[str, Attribute]]:
        """Tell how the process ended: a `WorkerDied` with `exit_code` and `signal`, also as facts.

        A worker that has not ended (silent, or an error of a call) is left alone: the error is
        returned as it is.
        """
        known = _local(worker)
        if isinstance(error, WorkerCallError):
            return error.error, {}
        if not known.connection.ended and known.process.poll() is None:
            return error, {}
        pid = known.process.pid
        facts: dict[str, Attribute] = {"pid": pid}
        what = "has closed its connection, but not ended"
        if await self._exited(known.process, _EXIT_S):
            status = known.process.returncode
            facts["exit_code"] = status
            what = f"exited with code {status}"
            if status < 0:
                facts["signal"] = -status
                what = f"was killed by {signal.Signals(-status).name}"
        message = f"the worker process {pid} {what}"
        died = CaughtError(
            type_names=("thornback.pool.WorkerDied",), message=message, attributes=facts
        )
        return died, facts

    def _spawn(self, node: str, index: int, spec: WorkerSpec) -> _LocalWorker:
        # In the loop's thread on purpose (some milliseconds): a worker may ask the kernel to be
        # killed with its parent, which for the kernel is the *thread* that forked; a pool thread
        # ends when it is idle.
        ours, theirs = socket.socketpair()
        output = 2
        try:
            if spec.log_dir:
                os.makedirs(spec.log_dir, exist_ok=True)
                prefix = f"worker-{index}-"
                output, _ = tempfile.mkstemp(prefix=prefix, suffix=".log", dir=spec.log_dir)
            process = subprocess.Popen(
                [self._python, "-m", "thornback.pool.worker", "--fd", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=_environment(),
                process_group=0,  # Ctrl-C in a terminal is for the driver only
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
            if output != 2:
                os.close(output)
        ours.setblocking(False)
        return _LocalWorker(process, _Connection(ours), node)

    async def _exited(self, process: subprocess.Popen[bytes], timeout_s: float) -> bool:
        """Wait until a process is gone, and reap it. No thread: its pidfd becomes readable."""
        if process.poll() is not None:
            return True
        pidfd = os.pidfd_open(process.pid)
        try:
            await within(self._clock, timeout_s, lambda: anyio.wait_readable(pidfd))
        except Expired:
            return process.poll() is not None
        finally:
            os.close(pidfd)
        process.wait()
        return True


def _local(worker: object) -> _LocalWorker:
    if not isinstance(worker, _LocalWorker):
        raise TypeError(f"expected a worker made by LocalBackend, got {type(worker).__name__}")
    return worker


def _environment() -> dict[str, str]:
    """Return the environment of a worker: ours, and our way to find modules, as on Ray.

    What the interpreter finds by itself is left out, so that programs of another Python that a rank
    starts are not misled.
    """
    own = sysconfig.get_paths()
    own_dirs = (own["purelib"], own["platlib"])
    stdlib = (own["stdlib"], own["platstdlib"])
    found = [
        path
        for path in sys.path
        if path
        and path not in own_dirs
        and not path.startswith(stdlib)
        and os.path.basename(path) != f"python{sys.version_info[0]}{sys.version_info[1]}.zip"
    ]
    inherited = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    paths = os.pathsep.join(dict.fromkeys([*found, *inherited]))
    return {**os.environ, "PYTHONPATH": paths} if paths else dict(os.environ)
