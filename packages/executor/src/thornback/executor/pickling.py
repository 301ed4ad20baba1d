"""Pickles code by value, with the names of its files and its source lines.

A traceback shows a source line that `linecache` finds. Code that is sent by value (functions of a
script or a notebook, lambdas, classes) comes from files that other machines do not have, and
cloudpickle leaves their names out since 3.1.3. So each piece of code brings its own lines along,
and the process that loads it enters them into `linecache`.

Rank processes import this module when they load such code.
"""

from __future__ import annotations

import io
import itertools
import linecache
import sys
from collections.abc import Callable
from types import CodeType, FunctionType
from typing import Any

import cloudpickle

from thornback.executor.names import MAIN, is_main

MAX_LINES = 5_000
"""Source lines that one piece of code brings along, at most: its first ones."""

_by_cloudpickle: Callable[[CodeType], tuple[Any, ...]] = cloudpickle.CloudPickler.dispatch_table[
    CodeType
]


def dumps(value: object) -> bytes:
    """Return the pickle of a value, as `cloudpickle.dumps`. Raises what its `__reduce__` raises."""
    file = io.BytesIO()
    SourcePickler(file).dump(value)
    return file.getvalue()


class SourcePickler(cloudpickle.CloudPickler):  # type: ignore[misc]  # it has no types
    """A `CloudPickler` whose code keeps its file names and source lines."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self._globals: dict[str, dict[str, Any]] = {}
        """By file name, the globals of its functions: a loader in them may have the source."""
        self._sent: dict[str, list[range]] = {}
        """By file name, the numbers of the lines that are on their way."""

    def reducer_override(self, value: Any, /) -> Any:
        """See `pickle.Pickler.reducer_override`."""
        if isinstance(value, FunctionType | type):
            _send_script(value.__module__)
        if isinstance(value, FunctionType):
            self._globals.setdefault(value.__code__.co_filename, value.__globals__)
        if isinstance(value, CodeType):
            make, arguments, *_ = _by_cloudpickle(value)
            return load_code, (make, arguments, value.co_filename, *self._lines_of(value))
        return super().reducer_override(value)

    def _lines_of(self, code: CodeType) -> tuple[int, str]:
        """Return the number of the first line of a piece of code, and its lines, unless those of a
        function around it hold them."""
        name, first = code.co_filename, max(1, code.co_firstlineno)
        sent = self._sent.setdefault(name, [])
        if not sent:
            linecache.checkcache(name)  # it may have been edited since a traceback showed it
        if any(first in lines for lines in sent):
            return first, ""
        lines = linecache.getlines(name, self._globals.get(name))
        last = min(_last_line(code), len(lines), first + MAX_LINES - 1)
        sent.append(range(first, last + 1))
        return first, "".join(lines[first - 1 : last])


def _send_script(name: object) -> None:
    """Have what a script defines sent by value, also where the script is not `__main__`: in a
    process that `multiprocessing` spawned it is `__mp_main__`.

    It stays so: no other process could import it, and another thread may be pickling, too.
    """
    if not isinstance(name, str) or name == MAIN or not is_main(name):
        return
    module = sys.modules.get(name)
    # One that is not there cloudpickle sends by value anyway.
    if module is not None and name not in cloudpickle.list_registry_pickle_by_value():
        cloudpickle.register_pickle_by_value(module)


def _last_line(code: CodeType) -> int:
    """Return the last line of a piece of code and of the code inside it."""
    ends = (end for _, end, _, _ in code.co_positions() if end is not None)
    inner = (_last_line(each) for each in code.co_consts if isinstance(each, CodeType))
    return max(itertools.chain((code.co_firstlineno,), ends, inner))


def load_code(
    make: Callable[..., CodeType], arguments: tuple[Any, ...], name: str, first: int, text: str, /
) -> CodeType:
    """Return the code that cloudpickle makes, with the name of its file; enter its source lines.
    Named in pickles: another thornback may call it.

    Args:
        make: makes the code of `arguments`.
        arguments: as cloudpickle reduces code to.
        name: of the file.
        first: number of the first line.
        text: lines from `first` on; may be empty.
    """
    if text:
        _enter(name, first, list(io.StringIO(text)))  # `splitlines` would also split at form feeds
    return make(*arguments).replace(co_filename=name)


def _enter(name: str, first: int, lines: list[str]) -> None:
    """Enter lines of a file into `linecache`, beside those that are there.

    An entry without a time of modification is never compared with a file: one of that name here may
    be another.
    """
    known = linecache.cache.get(name)
    old = known[2] if known is not None and len(known) == 4 else []
    new = [*old, *["\n"] * (first - 1 + len(lines) - len(old))]
    new[first - 1 : first - 1 + len(lines)] = lines
    linecache.cache[name] = (sum(map(len, new)), None, new, name)
