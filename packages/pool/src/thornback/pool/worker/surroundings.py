"""What a rank may change of its process without meaning the next rank: put back before it runs.

Cheap things only, a few microseconds in all. What a rank does to modules, `sys.path`, threads,
resource limits or locales stays: a stage whose ranks do that needs a process per rank
(`fresh=True`).
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any

from thornback.pool.worker.unpatched import os, signal

# Not those of `signal`, which turn numbers into enums: that takes 20 times as long.
_raw_signal = importlib.import_module("_signal")
_getsignal: Callable[[int], Any] = _raw_signal.getsignal
_sigmask: Callable[[int, Any], Any] = _raw_signal.pthread_sigmask

_FIXED = {signal.SIGKILL, signal.SIGSTOP}
_SIGNALS = tuple(sorted(int(each) for each in signal.Signals if each not in _FIXED and each < 32))


class Surroundings:
    """The working directory, umask, signal handlers, signal mask and recursion limit of this
    process. Belongs to the main thread."""

    def __init__(self) -> None:
        self._known = False

    def remember(self) -> None:
        """Take them as they are now for what `restore` makes them again."""
        try:
            self._folder = os.getcwdb()
        except OSError:  # it has been removed
            self._folder = b""
        self._umask = os.umask(0o077)
        os.umask(self._umask)
        self._handlers = [_getsignal(number) for number in _SIGNALS]
        self._mask = _sigmask(signal.SIG_BLOCK, ())
        self._recursion = sys.getrecursionlimit()
        self._known = True

    def restore(self) -> None:
        """Make them what they were at `remember`; before that: a no-op."""
        if not self._known:
            return
        sys.setrecursionlimit(self._recursion)
        os.umask(self._umask)
        if [_getsignal(number) for number in _SIGNALS] != self._handlers:
            self._restore_handlers()
        _sigmask(signal.SIG_SETMASK, self._mask)
        try:
            moved = os.getcwdb() != self._folder
        except OSError:  # the rank has removed it
            moved = True
        if moved and self._folder:
            self._go_back()

    def _restore_handlers(self) -> None:
        # A timer whose handler is gone would end the process.
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.setitimer(signal.ITIMER_PROF, 0)
        for number, handler in zip(_SIGNALS, self._handlers, strict=True):
            # None: one that was not set from Python, which Python cannot set either.
            if handler is not None and _getsignal(number) != handler:
                signal.signal(number, handler)

    def _go_back(self) -> None:
        try:
            os.chdir(self._folder)
        except OSError as error:  # somebody has removed it
            text = f"thornback: cannot return to the working directory {self._folder!r}: {error}\n"
            os.write(2, text.encode("utf-8", "backslashreplace"))


class Environment:
    """The environment variables of this process, as they were before a rank."""

    def __init__(self) -> None:
        self._variables = os.environ
        self._known: dict[Any, Any] = {}

    def remember(self) -> None:
        """Take them as they are now for what `restore` makes them again."""
        self._known = _raw(self._variables).copy()

    def restore(self) -> None:
        """Make them what they were at `remember`, also where user code replaced `os.environ`."""
        sys.modules["os"].environ = self._variables  # type: ignore[attr-defined]  # it is `os`
        now = _raw(self._variables)
        if now == self._known:
            return
        for name in [*now]:
            if name not in self._known:
                del os.environb[name]
        for name, value in self._known.items():
            if now.get(name) != value:
                os.environb[name] = value


def _raw(variables: Any) -> dict[Any, Any]:
    """Return the mapping of bytes below `os.environ`: to go through `os.environ` itself decodes
    every variable, which takes 50 times as long.

    Source: CPython 3.11 to 3.14, `os._Environ`.
    """
    found: dict[Any, Any] = variables._data
    return found
