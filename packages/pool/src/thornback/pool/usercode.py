"""What user code can do to its process, as data: rows of a table, and the programs that do it.

A row says what a rank does and what has to come back. `check_user_code` of `thornback.pool.testing`
holds a backend to it. The programs are pickled by reference: they are found wherever this package
is installed.

Over 400 lines: one table, and the functions that it names.
"""

from __future__ import annotations

import builtins
import ctypes
import json
import os
import pickle
import re
import resource
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from typing import Final, NoReturn

import attrs

from thornback.pool.ports import Attribute, ProgramResult, RankCall, SeenBy
from thornback.pool.worker import proctree, unpatched

MISCHIEF: Final = 0
"""The rank that does what the row says."""
GOOD: Final = 1
"""The rank that comes after it, in the same slot, and only looks around."""
LOG_CAP_BYTES: Final = 64 << 20
"""Disk space that the log of one rank process may take."""
FLOOD_BYTES: Final = 100 << 20
MEMORY_LIMIT_BYTES: Final = 256 << 20

_RAISED = "builtins."
_DIED = "thornback.pool.RankProcessDied"
_TIMED_OUT = "thornback.pool.RankTimedOut"
_CHILDREN = 50
_FOREVER_S = 3600.0


@attrs.frozen(kw_only=True, slots=True)
class UserCodeRow:
    """One thing that user code can do, and what has to come back of it."""

    name: str
    does: Callable[[RankCall], object] = attrs.field(repr=False)
    """The body of the rank: returns its result as text, or something that is none."""
    in_setup: bool = False
    """It is done in the set-up, not in the rank."""
    ok: bool = False
    """Whether the rank has a result all the same."""
    processes: int = 0
    """Of `ok`: how many process ids, of the rank's machine, the result lists as JSON."""
    seen_by: SeenBy = SeenBy.RANK
    error_type: str = ""
    """`module.qualname` of the error that comes back; empty: of `ok`."""
    attributes: Mapping[str, Attribute] = attrs.field(factory=dict)
    """That the error has, among others."""
    words: str = ""
    """That its message holds."""
    log: str = ""
    """That the tail of the log holds."""
    kind: str = ""
    """What it is classified as: a value of `thornback.faults.FaultKind`; empty: of `ok`."""
    same_process: bool = False
    """The next rank runs in the same process: nothing was broken."""
    timeout_s: float | None = None
    """Of the rank."""
    setup_timeout_s: float | None = None
    """None: the default."""
    rank_memory_bytes: int | None = None
    """The limit that its worker has to have."""


@attrs.frozen(slots=True)
class UserProgram:
    """The program of a row: misbehaves in rank `MISCHIEF` and looks around in rank `GOOD`."""

    row: str
    """Its name."""

    def setup(self, context: RankCall, /) -> None:
        """Misbehave if that is what the row is about."""
        row = _BY_NAME[self.row]
        if row.in_setup and context.rank == MISCHIEF:
            row.does(context)
        _AFTER_SETUP.update(_surroundings())

    def run(self, context: RankCall, /) -> ProgramResult:
        """Misbehave, or look around."""
        if context.rank == GOOD:
            return ProgramResult(result=_as_json(_look_around()))
        answer = _BY_NAME[self.row].does(context)
        # A wrong answer is one of the rows.
        return ProgramResult(result=answer) if isinstance(answer, str) else answer  # type: ignore[return-value]


_as_json = json.JSONEncoder().encode
_AFTER_SETUP: dict[str, object] = {}
_HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM, signal.SIGUSR1, signal.SIGPROF)
_TOLD = ("THORNBACK_RANK", "THORNBACK_EPOCH", "THORNBACK_ATTEMPT")
"""Variables that differ from rank to rank."""


def _surroundings() -> dict[str, object]:
    """Return what a rank may change of its process and the next rank must not meet."""
    umask = unpatched.os.umask(0o077)
    unpatched.os.umask(umask)
    return {
        "folder": unpatched.os.getcwd(),
        "umask": umask,
        "environ": {name: text for name, text in os.environ.items() if name not in _TOLD},
        "handlers": [str(unpatched.signal.getsignal(number)) for number in _HANDLED],
        "mask": sorted(unpatched.signal.pthread_sigmask(signal.SIG_BLOCK, ())),
        "recursion": sys.getrecursionlimit(),
    }


def _look_around() -> dict[str, object]:
    """Return what the next rank finds: its process, what is not as after the set-up, strangers, and
    the disk space of its log."""
    mark = unpatched.os.environb[b"THORNBACK_WORKER"]
    ours = (unpatched.os.getpid(), unpatched.os.getppid())
    found = proctree.pids_with_environment(b"THORNBACK_WORKER=" + mark)
    return {
        "pid": unpatched.os.getpid(),
        "changed": [name for name, value in _surroundings().items() if _AFTER_SETUP[name] != value],
        "strangers": [pid for pid in found if pid not in ours and proctree.is_alive(pid)],
        "log_bytes": unpatched.os.fstat(1).st_blocks * 512,
    }


# -- raises


class PickyError(Exception):
    """Pickles, and does not unpickle."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} and {second}")


class LockedError(Exception):
    """Does not pickle."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.lock = threading.Lock()


class MuteError(Exception):
    """Cannot be put into words."""

    def __str__(self) -> str:
        raise SystemExit(1)

    __repr__ = __str__


def _raises(call: RankCall) -> NoReturn:
    raise ValueError("bad rank")


def _exits_3(call: RankCall) -> NoReturn:
    sys.exit(3)


def _exits_0(call: RankCall) -> NoReturn:
    sys.exit(0)


def _interrupts(call: RankCall) -> NoReturn:
    raise KeyboardInterrupt


def _raises_picky(call: RankCall) -> NoReturn:
    raise PickyError("one", "two")


def _raises_locked(call: RankCall) -> NoReturn:
    raise LockedError("it holds a lock")


def _raises_mute(call: RankCall) -> NoReturn:
    raise MuteError


def _raises_group(call: RankCall) -> NoReturn:
    raise ExceptionGroup("several", [ValueError("one"), OSError(28, "full")])


def _returns_no_result(call: RankCall) -> object:
    return threading.Lock()


def _recurses(call: RankCall) -> NoReturn:
    _recurses(call)


# -- leaves something behind


def _leaves_thread(daemon: bool) -> str:
    threading.Thread(target=time.sleep, args=(_FOREVER_S,), daemon=daemon).start()
    return "[]"


def _leaves_daemon_thread(call: RankCall) -> str:
    return _leaves_thread(True)


def _leaves_other_thread(call: RankCall) -> str:
    return _leaves_thread(False)


def _sleeper(**options: object) -> int:
    command = [sys.executable, "-S", "-c", f"import time; time.sleep({_FOREVER_S})"]
    return subprocess.Popen(command, **options).pid  # type: ignore[call-overload,no-any-return]  # options of Popen


def _daemonised() -> int:
    """Return the id of a process that has done all it can to be nobody's child."""
    reader, writer = os.pipe()
    if (child := os.fork()) == 0:
        os.setsid()
        if (grandchild := os.fork()) == 0:
            time.sleep(_FOREVER_S)
        os.write(writer, str(grandchild).encode())
        os._exit(0)
    os.waitpid(child, 0)
    told = os.read(reader, 16)  # not to the end: the grandchild holds the other end, too
    os.close(reader)
    os.close(writer)
    return int(told)


def _leaves_grandchildren(call: RankCall) -> str:
    return json.dumps([_daemonised(), _sleeper(start_new_session=True), _sleeper()])


def _leaves_grandchildren_and_raises(call: RankCall) -> NoReturn:
    _leaves_grandchildren(call)
    raise ValueError("bad rank")


def _leaves_grandchildren_and_exits(call: RankCall) -> NoReturn:
    _leaves_grandchildren(call)
    os._exit(5)


def _leaves_grandchildren_and_hangs(call: RankCall) -> NoReturn:
    _leaves_grandchildren(call)
    _hangs(call)


def _leaves_many_children(call: RankCall) -> str:
    pids = []
    for _ in range(_CHILDREN):
        if (pid := os.fork()) == 0:
            time.sleep(_FOREVER_S)
            os._exit(0)
        pids.append(pid)
    return json.dumps(pids)


def _forks_and_comes_back(call: RankCall) -> str:
    """Return twice: the copy has to end there, as if its program had."""
    if (copy := os.fork()) and (status := os.waitpid(copy, 0)[1]):
        raise RuntimeError(f"the copy that came back ended with status {status}")
    return "[]"


def _leaves_its_pipe_open(call: RankCall) -> NoReturn:
    """Hand every socket of ours to a child in a session of its own, and exit."""
    for name in os.listdir("/proc/self/fd"):
        try:
            if int(name) > 2 and os.path.realpath(f"/proc/self/fd/{name}").find("socket:") >= 0:
                os.set_inheritable(int(name), True)
        except OSError:  # the descriptor of the listing itself
            continue
    _sleeper(close_fds=False, start_new_session=True)
    os._exit(5)


# -- dies


def _exits_at_once(call: RankCall) -> NoReturn:
    os._exit(7)


def _signals(number: int) -> NoReturn:
    print("last words", flush=True)
    os.kill(os.getpid(), number)
    raise AssertionError("it was to die of that")


def _segfaults(call: RankCall) -> object:
    return ctypes.string_at(0)


def _aborts(call: RankCall) -> NoReturn:
    os.abort()


def _terminates(call: RankCall) -> NoReturn:
    _signals(signal.SIGTERM)


def _kills(call: RankCall) -> NoReturn:
    _signals(signal.SIGKILL)


def _overflows(call: RankCall) -> int:
    """Overflow the stack of the main thread, which the kernel lets grow as far as its limit.

    In a C library that calls itself for each parenthesis: CPython counts its own calls since 3.12,
    and raises `RecursionError`.
    """
    resource.setrlimit(
        resource.RLIMIT_STACK, (1 << 20, resource.getrlimit(resource.RLIMIT_STACK)[1])
    )
    compiled = ctypes.create_string_buffer(1024)
    extended = 1
    return int(ctypes.CDLL(None).regcomp(compiled, b"(" * (1 << 20), extended))


def _takes_memory(call: RankCall) -> NoReturn:
    held = bytearray(os.urandom(1 << 20)) * (2 * MEMORY_LIMIT_BYTES >> 20)
    _hangs(call)
    raise AssertionError(len(held))


# -- takes too long


def _hangs(call: RankCall) -> NoReturn:
    while True:
        threading.Event().wait()


def _spins(call: RankCall) -> NoReturn:
    while True:
        pass


def _hangs_in_c(call: RankCall) -> object:
    """Backtrack for longer than anybody lives, and keep the GIL."""
    return re.match("(a+)+$", "a" * 60 + "b")


def _blocks_signals(call: RankCall) -> NoReturn:
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    _hangs(call)


def _stops(call: RankCall) -> NoReturn:
    os.kill(os.getpid(), signal.SIGSTOP)
    _hangs(call)


# -- streams and descriptors


def _closes_stdout(call: RankCall) -> str:
    sys.stdout.close()
    sys.stderr.close()
    os.close(1)
    os.close(2)
    return "[]"


class _Garbage:
    """No stream at all."""

    def __getattr__(self, name: str) -> object:
        raise SystemError(f"no {name}")


def _replaces_stdout(call: RankCall) -> str:
    sys.stdout = sys.stderr = _Garbage()
    return "[]"


def _floods(call: RankCall) -> str:
    line = b"x" * 1023 + b"\n"
    for _ in range(FLOOD_BYTES >> 20):
        os.write(1, line * 1024)
    return "[]"


def _closes_low_descriptors(call: RankCall) -> str:
    os.closerange(3, 256)
    return "[]"


def _closes_all_descriptors(call: RankCall) -> str:
    os.closerange(3, max(4096, resource.getrlimit(resource.RLIMIT_NOFILE)[0]))
    return "[]"


# -- its surroundings, and functions that we use as well


def _changes_folder(call: RankCall) -> str:
    os.chdir("/")
    return "[]"


def _loses_folder(call: RankCall) -> str:
    """Stand in a folder that is gone."""
    folder = tempfile.mkdtemp()
    os.chdir(folder)
    os.rmdir(folder)
    return "[]"


def _changes_umask(call: RankCall) -> str:
    os.umask(0o777)
    return "[]"


def _changes_variables(call: RankCall) -> str:
    os.environ["THORNBACK_STAGE"] = "another"
    os.environ["LEFT_BY_A_RANK"] = "1"
    del os.environ["PATH"]
    return "[]"


def _replaces_variables(call: RankCall) -> str:
    os.environ.clear()
    os.environ = {"ONLY": "this"}  # type: ignore[assignment]  # noqa: B003  # what some do
    return "[]"


def _ignores_signals(call: RankCall) -> str:
    for number in _HANDLED:
        signal.signal(number, signal.SIG_IGN)
    return "[]"


def _leaves_timers(call: RankCall) -> str:
    """As a sampling profiler that was not stopped."""
    for number, timer in (
        (signal.SIGPROF, signal.ITIMER_PROF),
        (signal.SIGVTALRM, signal.ITIMER_VIRTUAL),
    ):
        signal.signal(number, lambda *_: None)
        signal.setitimer(timer, 0.001, 0.001)
    return "[]"


def _leaves_signals_blocked(call: RankCall) -> str:
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    return "[]"


def _lowers_recursion_limit(call: RankCall) -> str:
    sys.setrecursionlimit(60)
    return "[]"


def _breaks(*_: object, **__: object) -> NoReturn:
    raise SystemError("it was replaced")


_STANDARD = (
    (builtins, ("open", "print")),
    (time, ("monotonic", "perf_counter", "sleep", "time")),
    (json, ("dumps", "loads")),
    (pickle, ("dumps", "loads")),
    (select, ("poll",)),
    (signal, ("setitimer", "getsignal", "signal", "pthread_sigmask")),
    (resource, ("getrusage", "getrlimit")),
    (os, ("close", "dup2", "fstat", "getcwdb", "getpid", "kill", "listdir", "open", "umask")),
    (os, ("waitid", "waitpid", "write")),
)


def _breaks_standard_functions(call: RankCall) -> str:
    """Replace functions that our side uses, for good."""
    for module, names in _STANDARD:
        for name in names:
            setattr(module, name, _breaks)
    return "[]"


def _stops_the_clock(call: RankCall) -> str:
    time.monotonic = time.perf_counter = time.time = lambda: 0.0
    time.sleep = lambda seconds: None
    return "[]"


# -- the table


def _raise_row(
    name: str,
    does: Callable[[RankCall], object],
    error_type: str,
    words: str = "",
    **attributes: Attribute,
) -> UserCodeRow:
    return UserCodeRow(
        name=name,
        does=does,
        error_type=error_type,
        words=words,
        attributes=attributes,
        kind="application",
        same_process=True,
    )


def _death_row(
    name: str,
    does: Callable[[RankCall], object],
    words: str = "",
    log: str = "",
    **attributes: Attribute,
) -> UserCodeRow:
    return UserCodeRow(
        name=name,
        does=does,
        seen_by=SeenBy.PROCESS,
        error_type=_DIED,
        words=words,
        log=log,
        attributes=attributes,
        kind="worker_crash",
    )


def _late_row(name: str, does: Callable[[RankCall], object]) -> UserCodeRow:
    return UserCodeRow(
        name=name,
        does=does,
        seen_by=SeenBy.PROCESS,
        error_type=_TIMED_OUT,
        words="took longer than 0.5 s",
        attributes={"timeout_s": 0.5},
        kind="timeout",
        timeout_s=0.5,
    )


def _harmless_row(name: str, does: Callable[[RankCall], object], processes: int = 0) -> UserCodeRow:
    return UserCodeRow(name=name, does=does, ok=True, processes=processes, same_process=True)


_HERE = __name__ + "."

USER_CODE: tuple[UserCodeRow, ...] = (
    _raise_row("raise", _raises, _RAISED + "ValueError", "bad rank"),
    _raise_row("exit-3", _exits_3, _RAISED + "SystemExit", "exited with code 3", exit_code=3),
    _raise_row("exit-0", _exits_0, _RAISED + "SystemExit", "exited before returning", exit_code=0),
    _raise_row("keyboard-interrupt", _interrupts, _RAISED + "KeyboardInterrupt"),
    _raise_row("error-does-not-unpickle", _raises_picky, _HERE + "PickyError", "one and two"),
    _raise_row("error-holds-a-lock", _raises_locked, _HERE + "LockedError", "it holds a lock"),
    _raise_row("error-has-no-words", _raises_mute, _HERE + "MuteError", "str() of this"),
    _raise_row("exception-group", _raises_group, _RAISED + "ExceptionGroup", "several"),
    _raise_row("no-result", _returns_no_result, _RAISED + "TypeError", "expected a ProgramResult"),
    _raise_row("recursion-in-python", _recurses, _RAISED + "RecursionError"),
    _raise_row("grandchildren-then-raise", _leaves_grandchildren_and_raises, "builtins.ValueError"),
    _harmless_row("daemon-thread-left", _leaves_daemon_thread),
    _harmless_row("other-thread-left", _leaves_other_thread),
    _harmless_row("grandchildren-left", _leaves_grandchildren, processes=3),
    _harmless_row("many-children-left", _leaves_many_children, processes=_CHILDREN),
    _harmless_row("fork-comes-back", _forks_and_comes_back),
    _harmless_row("stdout-closed", _closes_stdout),
    _harmless_row("stdout-replaced", _replaces_stdout),
    _harmless_row("stdout-flooded", _floods),
    _harmless_row("low-descriptors-closed", _closes_low_descriptors),
    _harmless_row("folder-changed", _changes_folder),
    _harmless_row("folder-removed", _loses_folder),
    _harmless_row("umask-changed", _changes_umask),
    _harmless_row("variables-changed", _changes_variables),
    _harmless_row("variables-replaced", _replaces_variables),
    _harmless_row("signals-ignored", _ignores_signals),
    _harmless_row("timers-left", _leaves_timers),
    _harmless_row("signals-blocked", _leaves_signals_blocked),
    _harmless_row("recursion-limit-lowered", _lowers_recursion_limit),
    _harmless_row("clock-stopped", _stops_the_clock),
    _harmless_row("standard-functions-broken", _breaks_standard_functions),
    _death_row("all-descriptors-closed", _closes_all_descriptors),
    _death_row("os-exit", _exits_at_once, "exited with code 7", exit_code=7),
    _death_row("sigsegv", _segfaults, "SIGSEGV", "Fatal Python error: Segm", signal=11),
    _death_row("sigabrt", _aborts, "SIGABRT", "Fatal Python error: Abort", signal=6),
    _death_row("sigterm", _terminates, "SIGTERM", "last words", signal=15),
    _death_row("sigkill", _kills, "SIGKILL", "last words", signal=9),
    _death_row("stack-overflow-in-c", _overflows, "SIGSEGV", "in _overflows", signal=11),
    _death_row("grandchildren-then-exit", _leaves_grandchildren_and_exits, exit_code=5),
    _death_row("pipe-held-open-by-a-child", _leaves_its_pipe_open, exit_code=5),
    _late_row("late-asleep", _hangs),
    _late_row("late-in-python", _spins),
    _late_row("late-in-c-with-the-gil", _hangs_in_c),
    _late_row("late-with-signals-blocked", _blocks_signals),
    _late_row("late-and-stopped", _stops),
    _late_row("late-with-grandchildren", _leaves_grandchildren_and_hangs),
    attrs.evolve(
        _raise_row("setup-raises", _raises, _RAISED + "ValueError", "bad rank"),
        in_setup=True,
        kind="setup",
        same_process=False,
    ),
    attrs.evolve(
        _raise_row("setup-exits", _exits_3, _RAISED + "SystemExit", exit_code=3),
        in_setup=True,
        kind="setup",
        same_process=False,
    ),
    attrs.evolve(_death_row("setup-is-killed", _kills, "SIGKILL", signal=9), in_setup=True),
    attrs.evolve(
        _late_row("setup-is-late", _hangs),
        in_setup=True,
        kind="setup",
        timeout_s=None,
        setup_timeout_s=1.0,
        words="set-up took longer than 1 s",
        attributes={"timeout_s": 1.0},
    ),
    attrs.evolve(
        _death_row("memory-over-its-limit", _takes_memory, signal=9, memory_limit_exceeded=True),
        kind="oom",
        rank_memory_bytes=MEMORY_LIMIT_BYTES,
    ),
)
"""Every row, those that need a worker of their own last."""

_BY_NAME: Final = {row.name: row for row in USER_CODE}
