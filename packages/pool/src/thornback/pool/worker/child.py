"""The rank process: runs user code, one rank after the other, and says what came of it.

It speaks with the supervisor over one stream. Down (pickled tuples): `("setup", blob, fields)`,
once and first; `("rank", serial, fields)`; `("input", key, blob)`, the answer to `need`. Up (JSON
lists): `["set_up", error, peak, spans]`, `["started", serial]`, `["done", serial, result, outputs,
error, ran_s, peak, spans]`, `["need", key]`. `fields` are those of `RankCall`; `spans` as in
`spandata`. When the stream ends, so does the process.

What is guarded against. User code may fork and come back (only the original answers), close or
replace the standard streams (they are put back before each rank), leave processes behind (ended
after each rank), leave an alarm behind (cancelled). It shares the interpreter with us, so what it
breaks on purpose stays broken until the process is replaced.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import pickle
import resource
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from typing import NoReturn

from thornback.pool.caught import catch, to_plain
from thornback.pool.ports import Program, ProgramResult, RankCall
from thornback.pool.worker import proctree, wire
from thornback.pool.worker.leftovers import Leftovers
from thornback.pool.worker.tracing import RankTracing

MAX_RESULT_BYTES = 1 << 20
"""Of the JSON text of a result, and of all paths of its outputs."""


def rank_process_main(
    stream: socket.socket, log_path: str, env: Mapping[str, str], parent: int, /
) -> None:
    """Set the process up and serve the supervisor until the stream ends."""
    os.setsid()
    proctree.die_with_parent()
    if os.getppid() != parent:  # it died before we asked to die with it
        os._exit(1)
    proctree.adopt_orphans()
    proctree.be_killed_first()
    os.environ.update(env)
    _reseed()
    RankProcess(_out_of_the_way(stream), StandardStreams(log_path)).serve()


def _out_of_the_way(stream: socket.socket) -> socket.socket:
    """Move the stream to a high descriptor: code that closes "all" descriptors rarely goes that
    far."""
    highest = min(resource.getrlimit(resource.RLIMIT_NOFILE)[0], 1024)
    with contextlib.suppress(OSError):
        moved = fcntl.fcntl(stream.fileno(), fcntl.F_DUPFD_CLOEXEC, max(3, highest - 32))
        stream.close()
        return socket.socket(fileno=moved)
    return stream


def _reseed() -> None:
    """Undo that all children inherit one state; Python reseeds its own generator at a fork."""
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()


class StandardStreams:
    """Descriptors 0, 1, 2 and their Python objects: nothing to read, and all output to the log
    file."""

    def __init__(self, log_path: str) -> None:
        self._log_path = log_path or os.devnull
        self._log_fd = -1
        self._stdout: io.TextIOWrapper | None = None
        self._stderr: io.TextIOWrapper | None = None

    def restore(self) -> None:
        """Make them as they should be, whatever user code did to them."""
        try:
            os.dup2(self._log_fd, 1)
            os.dup2(self._log_fd, 2)
        except OSError:
            self._reopen()
        if self._stdout is None or self._stdout.closed:
            self._stdout = _text(1, line_buffering=True)
        if self._stderr is None or self._stderr.closed:
            self._stderr = _text(2, line_buffering=True)
        sys.stdout = self._stdout
        sys.stderr = self._stderr

    def _reopen(self) -> None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        try:
            opened = os.open(self._log_path, flags, 0o644)
        except OSError:  # a full disk must not end the rank
            opened = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        os.dup2(opened, 1)
        os.dup2(opened, 2)
        self._log_fd = fcntl.fcntl(2, fcntl.F_DUPFD_CLOEXEC, 64)
        if opened > 2:
            os.close(opened)
        with open(os.devnull, "rb", buffering=0) as nothing:
            os.dup2(nothing.fileno(), 0)

    def flush(self) -> None:
        """Write out what Python still holds, also in objects that user code put in their place."""
        for stream in (sys.stdout, sys.stderr, self._stdout):
            try:
                if stream is not None:
                    stream.flush()
            except Exception:  # noqa: BLE001  # closed, broken, or of a class of the user's
                continue


def _text(fd: int, *, line_buffering: bool) -> io.TextIOWrapper:
    raw = open(fd, "wb", closefd=False)  # noqa: SIM115  # lives as long as the process
    return io.TextIOWrapper(
        raw, encoding="utf-8", errors="backslashreplace", line_buffering=line_buffering
    )


class RankProcess:
    """Serves one supervisor with one program."""

    def __init__(self, stream: socket.socket, streams: StandardStreams) -> None:
        self._stream = stream
        self._streams = streams
        self._pid = os.getpid()
        self._program: Program | None = None
        self._inputs: dict[str, bytes] = {}
        self._lock = threading.Lock()
        self._open_call: object = None
        """The call that may ask for inputs now."""
        self._leftovers = Leftovers()
        self._tracing = RankTracing()
        # A forked copy must neither speak for us nor keep the stream open after our death.
        os.register_at_fork(after_in_child=stream.close)

    def serve(self) -> None:
        """Carry out what the supervisor says until the stream ends."""
        self._streams.restore()
        while (body := wire.receive(self._stream)) is not None:
            match wire.unpickled(body):
                case ("rank", int(serial), dict(fields)):
                    self._run(serial, fields)
                case ("setup", bytes(blob), dict(fields)):
                    self._set_up(blob, fields)

    def _set_up(self, blob: bytes, fields: dict[str, object]) -> None:
        error, spans = None, None
        call = self._begin(fields)
        try:
            self._program = pickle.loads(blob)
            self._program.setup(call)
        except BaseException as caught:  # noqa: BLE001  # user code: any exception becomes data
            self._leave_if_copy(caught)
            error = to_plain(catch(caught, skip_frames=1))
        self._leave_if_copy(None)
        self._tracing.end_set_up()
        if error is not None:  # else they travel with the first rank
            spans = self._tracing.end()
        self._end()
        self._leftovers.remember()
        self._send(["set_up", error, proctree.own_peak_rss_bytes(), spans])

    def _run(self, serial: int, fields: dict[str, object]) -> None:
        result, outputs, error = None, [], None
        call = self._begin(fields)
        self._send(["started", serial])
        started = time.monotonic()
        try:
            assert self._program is not None, "a rank before its setup"
            done = checked(self._program.run(call))
            result, outputs = done.result, [list(pair) for pair in done.outputs]
        except BaseException as caught:  # noqa: BLE001  # user code: any exception becomes data
            self._leave_if_copy(caught)
            error = to_plain(catch(caught, skip_frames=1))
        self._leave_if_copy(None)
        ran_s = time.monotonic() - started
        spans = self._tracing.end()
        self._end()
        self._leftovers.end()
        peak = proctree.own_peak_rss_bytes()
        self._send(["done", serial, result, outputs, error, ran_s, peak, spans])

    def _begin(self, fields: dict[str, object]) -> RankCall:
        self._streams.restore()
        for name in ("rank", "attempt", "epoch", "stage"):
            os.environ[f"THORNBACK_{name.upper()}"] = str(fields[name])
        proctree.reset_own_peak()
        token = self._open_call = object()
        call = RankCall(inputs=lambda key: self._input(token, key), **fields)  # type: ignore[arg-type]  # checked by its sender
        self._tracing.begin(call.traceparent, call.epoch)
        return call

    def _end(self) -> None:
        with self._lock:
            self._open_call = None
        signal.setitimer(signal.ITIMER_REAL, 0)
        self._streams.flush()

    def _input(self, token: object, key: str) -> bytes:
        """Ask the supervisor for a blob; the main thread is in user code meanwhile and does not
        read."""
        with self._lock:
            if self._open_call is not token or os.getpid() != self._pid:
                raise RuntimeError(
                    f"input {key!r} was asked for outside of the rank it belongs to: read inputs "
                    "while the rank runs, and in the rank's own process"
                )
            if key not in self._inputs:
                self._send(["need", key])
                body = wire.receive(self._stream)
                if body is None:
                    os._exit(0)
                match wire.unpickled(body):
                    case ("input", str(name), bytes(blob)) if name == key:
                        self._inputs[key] = blob
                    case _:
                        raise KeyError(
                            f"input {key!r} is not known to this worker: expected a key named in "
                            "the assignment's inputs"
                        )
            return self._inputs[key]

    def _send(self, message: list[object]) -> None:
        self._stream.sendall(wire.as_json(message))

    def _leave_if_copy(self, error: BaseException | None) -> None:
        """End a forked copy that came back from user code, as the interpreter would have ended
        it."""
        if os.getpid() != self._pid:
            self._streams.flush()
            _leave(error)


def _leave(error: BaseException | None) -> NoReturn:
    code = 0
    try:
        if isinstance(error, SystemExit):
            code = error.code if isinstance(error.code, int) else int(error.code is not None)
        elif error is not None:
            code = 1
            traceback.print_exception(error)
    finally:
        os._exit(code & 0xFF)


def checked(value: object) -> ProgramResult:
    """Return the value if it is a result that may be sent.

    Raises:
        TypeError: it is not a `ProgramResult` of texts.
        ValueError: it is too large, or not encodable as UTF-8.
    """
    if not isinstance(value, ProgramResult):
        raise TypeError(
            f"expected a ProgramResult from the program, got {type(value).__qualname__}"
        )
    if not isinstance(value.result, str | None):
        raise TypeError(
            f"expected JSON text or None as result, got {type(value.result).__qualname__}"
        )
    texts = [text for pair in value.outputs for text in pair]
    if not all(isinstance(text, str) for text in texts) or any(len(p) != 2 for p in value.outputs):
        raise TypeError("expected (staged, final) pairs of str as outputs")
    for what, size in (
        ("result", len((value.result or "").encode())),
        ("outputs", sum(len(text.encode()) for text in texts)),
    ):
        if size > MAX_RESULT_BYTES:
            raise ValueError(
                f"the {what} of a rank may be at most {MAX_RESULT_BYTES} bytes, got {size}: "
                "write large data to files and return their paths"
            )
    return value
