"""Workers as processes of this machine: what a backend of your own can be made of. Linux; asyncio
and trio.

A backend that starts its workers behind a command of its own needs no more than this:

    class Polite:
        async def start(self, node, index, nodes, handle, spec, /) -> Worker:
            command = ["nice", *worker_command()]
            return await WorkerProcess.start(command, node, index, nodes, spec)
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial

import anyio
import anyio.to_thread
import attrs

from thornback.pool.connection import Connection, WorkerCallError, WorkerGoneError
from thornback.pool.ports import Attribute, CaughtError, GangLostError, LogChunk, WorkerSpec
from thornback.pool.worker import logshelf

__all__ = ["WorkerCallError", "WorkerGoneError", "WorkerProcess", "worker_command"]

_EXIT_S = 5.0
"""A worker whose connection has ended takes at most so long to be gone."""
_TAIL_BYTES = 4096
"""Of what a worker wrote that could not start."""
_LATE_PATH = "THORNBACK_LATE_PATH"
"""Variable with the entries of the driver's `sys.path` that come after the standard library, which
PYTHONPATH cannot express."""
_START = (
    "import os, sys; "
    f"late = os.environ.pop({_LATE_PATH!r}, '').split(os.pathsep); "
    "sys.path += [each for each in late if each and each not in sys.path]; "
    "from thornback.pool.worker.server import main; sys.exit(main())"
)


def worker_command(python: str | None = None) -> list[str]:
    """Return the command of a worker, for `WorkerProcess.start`.

    Args:
        python: the interpreter; it must find this package. None: the one that runs this.
    """
    # -P: without it Python would look for modules in the current directory first.
    return [python or sys.executable, "-P", "-c", _START, "--fd", "0", "--join-output"]


class WorkerProcess:
    """A worker as a process of this machine (fulfils `Worker`). Made by `start`, in one event loop.

    It ends itself, with everything below it, when its connection to this process ends: so also
    when this process dies.
    """

    def __init__(self, process: subprocess.Popen[bytes], connection: Connection) -> None:
        self._process = process
        self._connection = connection

    @classmethod
    async def start(
        cls, command: Sequence[str], node: str, index: int, nodes: int, spec: WorkerSpec
    ) -> WorkerProcess:
        """Start a worker; returns when its supervisor is ready.

        Args:
            command: `worker_command()`, on its own or behind a command that runs it with the same
                standard input: `nice`, `taskset`, `prlimit`, `sudo`, `systemd-run --scope`. That
                input is the connection. Run with our environment and ways to find modules, in a
                process group of its own: Ctrl-C in a terminal is for the driver only. What it
                writes goes to a file in `spec.log_dir`, if that is given, else to our standard
                error; what it writes to standard error before it is ready also explains why it
                did not start.
            node: the name that outcomes have.
            index: position in the gang of `nodes`.
            nodes: how many workers the gang has.
            spec: what the worker is like.

        Raises:
            GangLostError: it ended before it was ready, or could not be: says why.
            OSError: no process, or no log file, can be made.
            ValueError: the spec has a `runtime_env`.

        Cancellation: nothing is left running.
        """
        if spec.runtime_env:
            raise ValueError(
                f"runtime_env {dict(spec.runtime_env)!r} needs Ray: leave it out, and install what "
                "the job needs into the environment of this process"
            )
        with _Output(index, spec) as output:
            worker = cls(*_spawn(command, output))
            started = False
            try:
                await worker.call("start", (spec, node, index, nodes, os.getpid()))
                started = True
            except (WorkerCallError, WorkerGoneError) as error:
                reason, facts = await worker.death(error)
                raise GangLostError(output.explain(reason), node, "start", facts) from error
            finally:
                if not started:
                    with anyio.CancelScope(shield=True):
                        await worker.kill(timeout_s=_EXIT_S)
            return worker

    @property
    def pid(self) -> int:
        """The process id of the command."""
        return self._process.pid

    async def call(self, method: str, payload: object, /) -> object:
        """See `Worker.call`.

        Raises:
            WorkerGoneError: it is dead or dying.
            WorkerCallError: it lives, but could not do it.
        """
        return await self._connection.call(method, payload)

    def is_unavailable(self, error: BaseException, /) -> bool:
        """Return False: on one machine a connection that has ended has ended for good."""
        return False

    async def kill(self, *, timeout_s: float) -> bool:
        """SIGKILL the process group of the command, and end the connection, at which whatever
        lives of the worker ends itself. See `Worker.kill`.

        Returns:
            True: the command is gone and reaped, and nobody holds the other end of the connection.
        """
        if self._process.poll() is None:  # else its number may be another's by now
            with suppress(ProcessLookupError, PermissionError):  # `sudo` is not ours to kill
                os.killpg(self._process.pid, signal.SIGKILL)
        self._connection.hang_up()
        with anyio.move_on_after(timeout_s):
            await self._connection.hung_up()
            await self._exited()
            self._connection.close()
            return True
        return False

    async def death(
        self, error: BaseException, /
    ) -> tuple[CaughtError | BaseException, Mapping[str, Attribute]]:
        """Tell how the process ended: a `WorkerDied` with `exit_code` and `signal`, also as facts.
        See `Worker.death`.

        Of a worker that has not ended (silent, or its answer was an error) the error is returned,
        without facts.
        """
        if isinstance(error, WorkerCallError):
            return error.error, {}
        if not self._connection.ended and self._process.poll() is None:
            return error, {}
        facts: dict[str, Attribute] = {"pid": self.pid}
        with anyio.move_on_after(_EXIT_S):
            await self._exited()
        status = self._process.poll()
        if status is None:
            what = "has closed its connection, but not ended"
        else:
            facts["exit_code"] = status
            what = f"exited with code {status}"
            if status < 0:
                facts["signal"] = -status
                names = (each.name for each in signal.Signals if each == -status)
                what = f"was killed by {next(names, f'signal {-status}')}"
        message = f"the worker process {self.pid} {what}"
        died = CaughtError(
            type_names=("thornback.pool.WorkerDied",), message=message, attributes=facts
        )
        return died, facts

    async def salvage(
        self, log_dir: str, log_prefix: str, offsets: Mapping[str, int], /
    ) -> Sequence[LogChunk]:
        """Read the rest of its logs, in a thread, and remove their folder if it was its own. See
        `Worker.salvage`.

        Cancellation: the thread goes on to the end.
        """
        read = partial(logshelf.salvage, log_dir, log_prefix, offsets, remove=True)
        return await anyio.to_thread.run_sync(read, abandon_on_cancel=True)

    async def _exited(self) -> None:
        """Return when the process is gone, and reaped. No thread: its pidfd becomes readable."""
        if self._process.poll() is not None:
            return
        pidfd = os.pidfd_open(self._process.pid)
        try:
            await anyio.wait_readable(pidfd)
        finally:
            os.close(pidfd)
        self._process.wait()


class _Output:
    """Where a worker writes to: standard output as `WorkerProcess.start` says, standard error to a
    file in memory until it has started, and then to standard output (see `worker.server`).

    A context manager. At its end, what the worker wrote to that file is copied to its output,
    unless that is our own standard error and `explain` has returned it.
    """

    def __init__(self, index: int, spec: WorkerSpec) -> None:
        self._log = -1
        self._explained = False
        if spec.log_dir:
            os.makedirs(spec.log_dir, exist_ok=True)
            prefix = f"worker-{index}-"
            self._log, _ = tempfile.mkstemp(prefix=prefix, suffix=".log", dir=spec.log_dir)
        try:
            self.errors = os.memfd_create("thornback-worker-stderr")
        except BaseException:
            self._close_log()
            raise

    @property
    def output(self) -> int:
        """The descriptor of its standard output."""
        return self._log if self._log >= 0 else 2

    def __enter__(self) -> _Output:
        return self

    def __exit__(self, *_: object) -> None:
        if self._log >= 0 or not self._explained:
            with suppress(OSError):  # a full disk, or a closed standard error
                os.lseek(self.errors, 0, os.SEEK_SET)
                while data := os.read(self.errors, 1 << 16):
                    os.write(self.output, data)
        os.close(self.errors)
        self._close_log()

    def _close_log(self) -> None:
        if self._log >= 0:
            os.close(self._log)

    def explain(self, reason: CaughtError | BaseException) -> CaughtError | BaseException:
        """Return why a worker did not start, with the last lines that it wrote."""
        size = os.fstat(self.errors).st_size
        data = os.pread(self.errors, _TAIL_BYTES, max(0, size - _TAIL_BYTES))
        text = data.decode("utf-8", "replace").strip()
        if not text or not isinstance(reason, CaughtError):
            return reason
        self._explained = True
        last = text.rpartition("\n")[2].strip()
        return attrs.evolve(
            reason,
            message=f"{reason.message} before it was ready: {last}",
            traceback=reason.traceback or text,
        )


def _spawn(command: Sequence[str], output: _Output) -> tuple[subprocess.Popen[bytes], Connection]:
    # In the loop's thread on purpose (some milliseconds): a worker may ask the kernel to be killed
    # with its parent, which for the kernel is the *thread* that forked; a pool thread ends when it
    # is idle.
    ours, theirs = socket.socketpair()
    try:
        process = subprocess.Popen(
            command,
            stdin=theirs.fileno(),  # `sudo` closes all but the standard streams
            stdout=output.output,
            stderr=output.errors,
            env=_environment(),
            process_group=0,
        )
    except BaseException:
        ours.close()
        raise
    finally:
        theirs.close()
    return process, Connection(ours)


def _environment() -> dict[str, str]:
    """Return the environment of a worker: ours, and our way to find modules, in our order.

    What the interpreter finds by itself is left out, so that programs of another Python that a rank
    starts are not misled.
    """
    own = sysconfig.get_paths()
    own_dirs = (own["purelib"], own["platlib"])
    stdlib = (own["stdlib"], own["platstdlib"])
    archive = f"python{sys.version_info[0]}{sys.version_info[1]}.zip"
    early: list[str] = []
    late: list[str] = []
    found = early
    for path in sys.path:
        if not isinstance(path, str) or os.pathsep in path:  # no variable can express these
            continue
        if path.startswith(stdlib) or os.path.basename(path) == archive:
            found = late
        elif path not in own_dirs:
            found.append(os.path.abspath(path))  # an empty one is the current directory
    if not sys.flags.ignore_environment:
        inherited = os.environ.get("PYTHONPATH", "").split(os.pathsep)
        early += [os.path.abspath(path) for path in inherited if path]
    variables = {"PYTHONPATH": early, _LATE_PATH: late}
    told = {name: os.pathsep.join(dict.fromkeys(paths)) for name, paths in variables.items()}
    return {**os.environ, **{name: paths for name, paths in told.items() if paths}}
