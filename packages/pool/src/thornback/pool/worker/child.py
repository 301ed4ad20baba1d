"""The rank process: runs user code, one rank after the other, and says what came of it.

It has two sockets. Tickets come one a packet: each is taken by this process or taken back by the
supervisor, never both, since the kernel hands a packet out once. So a rank whose ticket was taken
back was not started. What is too large for a packet comes as a message on the stream.

Tickets (pickled tuples): `("rank", serial, work, rank, args, restored)`; `("large", serial, work,
rank)`, whose `("large", serial, args, restored)` is on the stream; `("do", serial)`, which says
that a `setup` or `teardown` is there. When they end, so does the process.

Messages down the stream (pickled tuples): `("work", number, fields)`, what the ranks of an
assignment have in common; `("do", serial, "setup", blob, fields)`, first; `("do", serial,
"teardown")`, last; `("input", key, blob or None)`; `("kept", number)`, the answer to a checkpoint;
`("drain", instant)`. `fields` are those of `RankCall`, and `env`.

Up (JSON lists): `["set_up", error, peak, spans, has a teardown]`; `["started", serial]`; `["done",
serial, result, outputs, error, ran_s, peak, spans, log size, following]`; `["torn_down"]`;
`["need", key]`; `["checkpoint", serial, number, base64]`; `["progress", serial, done, total]`.
`spans` as in `spandata`. `following` is the serial of a rank that begins right after, or 0: one
message is less work than two. It goes out before that rank's code runs, so a death costs one rank.

What is guarded against. User code may fork and come back (only the original answers), close or
replace the standard streams (they are put back before each rank), leave processes behind (ended
after each rank), leave an alarm behind (cancelled), change the working directory, the umask, the
environment, signal handlers or the signal mask (put back to what they were after the set-up), and
replace functions of the standard library (we use copies, see `unpatched`). It shares the
interpreter with us, so what else it breaks stays broken until the process is replaced.
"""

from __future__ import annotations

import contextlib
import socket
import sys
from collections.abc import Mapping
from typing import Any, NoReturn

from thornback.pool.caught import catch, to_plain
from thornback.pool.ports import CaughtError, Program, ProgramResult, RankCall
from thornback.pool.worker import proctree
from thornback.pool.worker.leftovers import Leftovers
from thornback.pool.worker.line import Line, Mouth
from thornback.pool.worker.peak import PeakMemory
from thornback.pool.worker.streams import StandardStreams, out_of_the_way
from thornback.pool.worker.surroundings import Environment, Surroundings
from thornback.pool.worker.tracing import RankTracing
from thornback.pool.worker.unpatched import os, pickle, signal, time

MAX_RESULT_BYTES = 1 << 20
"""Of the JSON text of a result, and of all paths of its outputs."""

_TOLD = ("attempt", "epoch", "stage")
"""Fields that are variables as well."""


def rank_process_main(
    stream: socket.socket,
    tickets: socket.socket,
    log_path: str,
    env: Mapping[str, str],
    parent: int,
    /,
) -> None:
    """Set the process up and serve the supervisor until the tickets end."""
    os.setsid()
    proctree.die_with_parent()
    if os.getppid() != parent:  # it died before we asked to die with it
        os._exit(1)
    proctree.adopt_orphans()
    proctree.be_killed_first()
    os.environ.update(env)
    _reseed()
    line = Line(_moved(stream), _moved(tickets))
    RankProcess(line, StandardStreams(log_path)).serve()


def _moved(sock: socket.socket) -> socket.socket:
    with contextlib.suppress(OSError):
        moved = out_of_the_way(sock.fileno())
        sock.close()
        return socket.socket(fileno=moved)
    return sock


def _reseed() -> None:
    """Undo that all children inherit one state; Python reseeds its own generator at a fork."""
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()


class RankProcess:
    """Serves one supervisor with one program."""

    def __init__(self, line: Line, streams: StandardStreams) -> None:
        self._line = line
        self._streams = streams
        self._pid = os.getpid()
        self._program: Program | None = None
        self._work = 0
        self._fields: dict[str, Any] = {}
        """What the ranks of the assignment have in common."""
        self._env: dict[str, str] = {}
        self._names: dict[str, str] = {}
        self._surroundings = Surroundings()
        self._environment = Environment()
        self._leftovers = Leftovers()
        self._tracing = RankTracing()
        self._peak = PeakMemory()

    def serve(self) -> None:
        """Carry out what the supervisor says until the tickets end."""
        self._streams.restore()
        while (ticket := self._line.next_ticket()) is not None:
            match ticket:
                case ("rank", int(serial), int(work), int(rank), args, restored):
                    self._run(serial, work, rank, args, restored)
                case ("large", int(serial), int(work), int(rank)):
                    args, restored = self._line.mail("large", serial)
                    self._run(serial, work, rank, args, restored)
                case ("do", int(serial)):
                    self._do(*self._line.mail("do", serial))

    def _do(self, what: object, *rest: Any) -> None:
        if what == "setup":
            self._set_up(*rest)
        else:
            self._tear_down()

    def _set_up(self, blob: bytes, fields: dict[str, Any]) -> None:
        error, spans = None, None
        self._take_work(0, fields)
        before = self._begin()
        mouth = Mouth(self._line, -1)
        self._line.open(-1)
        try:
            call = self._call(mouth, fields["rank"], None, None)
            self._program = pickle.loads(blob)
            self._program.setup(call)
        except:  # noqa: E722  # user code: any exception becomes data
            error = to_plain(self._caught(skip_frames=1))
        self._leave_if_copy(None)
        self._tracing.end_set_up()
        if error is not None:  # else they travel with the first rank
            spans = self._tracing.end()
        self._end(before)
        self._surroundings.remember()
        self._leftovers.remember()
        ends = callable(getattr(self._program, "teardown", None))
        self._line.say(["set_up", error, self._peak.bytes(), spans, ends])

    def _run(
        self, serial: int, work: int, rank: int, args: bytes | None, restored: bytes | None
    ) -> None:
        result, outputs, error = None, [], None
        if work != self._work:
            self._take_work(work, *self._line.mail("work", work))
        before = self._begin()
        self._line.open(serial)
        call = self._call(Mouth(self._line, serial), rank, args, restored)
        self._environment.remember()
        self._line.say_started(serial)
        started = time.monotonic()
        try:
            assert self._program is not None, "a rank before its setup"
            done = checked(self._program.run(call))
            result, outputs = done.result, [list(pair) for pair in done.outputs]
        except:  # noqa: E722  # user code: any exception becomes data
            error = to_plain(self._caught(skip_frames=1))
        self._leave_if_copy(None)
        ran_s = time.monotonic() - started
        spans = self._tracing.end()
        self._environment.restore()
        self._end(before)
        self._leftovers.end()
        peak, size = self._peak.bytes(), self._streams.log_size()
        self._line.say_done(["done", serial, result, outputs, error, ran_s, peak, spans, size])
        if error is not None:  # the supervisor may replace this process before the next rank
            self._line.await_leave(serial)

    def _tear_down(self) -> None:
        """Let the program end what it has begun. What it raises goes to the log."""
        before = self._begin()
        try:
            self._program.teardown()  # type: ignore[union-attr]  # it has one: `_set_up` said so
        except:  # noqa: E722  # user code
            text = self._caught().traceback
            _log(f"thornback: the teardown of the program failed:\n{text}")
        self._leave_if_copy(None)
        self._end(before)
        self._line.say(["torn_down"])

    def _take_work(self, number: int, fields: dict[str, Any]) -> None:
        self._work = number
        self._env = fields.pop("env")
        self._fields = fields
        self._names = {f"THORNBACK_{name.upper()}": str(fields[name]) for name in _TOLD}

    def _call(
        self, mouth: Mouth, rank: int, args: bytes | None, restored: bytes | None
    ) -> RankCall:
        _set_variable("THORNBACK_RANK", str(rank))
        return RankCall(
            **{**self._fields, "rank": rank},
            args=args,
            restored=restored,
            inputs=mouth.inputs,
            draining=self._line.draining,
            checkpoint=mouth.checkpoint,
            progress=mouth.progress,
        )

    def _begin(self) -> dict[str, str | None]:
        """Prepare for user code; returns the variables to put back after it."""
        self._surroundings.restore()
        self._streams.restore()
        before = {name: os.environ.get(name) for name in self._env}
        os.environ.update(self._env)
        for name, value in self._names.items():
            _set_variable(name, value)
        self._peak.reset()
        self._tracing.begin(self._fields["traceparent"], self._fields["epoch"])
        return before

    def _end(self, before: Mapping[str, str | None]) -> None:
        self._line.close()
        signal.setitimer(signal.ITIMER_REAL, 0)
        self._streams.flush()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

    def _caught(self, skip_frames: int = 0) -> CaughtError:
        """Return the exception that is being handled.

        Handlers are bare: the metaclass of an exception can see to it that it is no BaseException.
        """
        error = sys.exc_info()[1]
        assert error is not None, "nothing is being handled"
        self._leave_if_copy(error)
        return catch(error, skip_frames=skip_frames)

    def _leave_if_copy(self, error: BaseException | None) -> None:
        """End a forked copy that came back from user code, as the interpreter would have ended
        it."""
        if os.getpid() != self._pid:
            self._streams.flush()
            _leave(error)


def _set_variable(name: str, value: str) -> None:
    if os.environ.get(name) != value:  # to write one costs a call into C
        os.environ[name] = value


def _log(text: str) -> None:
    with contextlib.suppress(OSError):  # user code closed it, or the disk is full
        os.write(2, text.encode("utf-8", "backslashreplace"))


def _leave(error: BaseException | None) -> NoReturn:
    code = int(error is not None)  # also if what follows raises
    try:
        if error is not None:
            caught = catch(error)
            if "builtins.SystemExit" in caught.type_names:
                code = int(caught.attributes["exit_code"] or 0)
            else:
                _log(caught.traceback)
    finally:
        os._exit(code & 0xFF)


def checked(value: object) -> ProgramResult:
    """Return the value if it is a result that may be sent.

    Raises:
        TypeError: it is not a `ProgramResult` of texts.
        ValueError: it is too large, or its result is not encodable as UTF-8.
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
        # Names of files need not be UTF-8; Python has surrogates in their place.
        ("outputs", sum(len(text.encode("utf-8", "surrogatepass")) for text in texts)),
    ):
        if size > MAX_RESULT_BYTES:
            raise ValueError(
                f"the {what} of a rank may be at most {MAX_RESULT_BYTES} bytes, got {size}: "
                "write large data to files and return their paths"
            )
    return value
