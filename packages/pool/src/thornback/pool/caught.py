"""Turns an exception into data.

Exceptions never cross a process border themselves: many do not pickle, more do not unpickle, and
what unpickles may run the code of others. `thornback.faults.ErrorRecord` decides what is kept, and
how much of it; this module adds what only the process that raised the exception knows.
"""

from __future__ import annotations

import os
import sys
import time
import traceback
from types import TracebackType

import attrs

from thornback.faults import ErrorRecord
from thornback.pool.ports import Attribute, CaughtError

USER_FRAME = "user_frame"
"""Attribute of what is caught: where in the user's code it was raised."""
# Known without a look at the disk: a process without free files has failures to report as well.
_NOT_USERS = (
    "<frozen",
    f"{os.path.dirname(os.__file__)}{os.sep}",
    f"{os.path.dirname(os.path.dirname(os.path.abspath(__file__)))}{os.sep}",
)
_INSTALLED = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")
_TRACEBACK = vars(BaseException)["__traceback__"]


def catch(error: BaseException, *, skip_frames: int = 0) -> CaughtError:
    """Return the exception as data, with its chain of causes and, for a group, its leaves. Never
    raises.

    Args:
        error: any exception. It loses the frames that are skipped.
        skip_frames: frames to leave out at the top of the traceback. Frames of ours that follow are
            left out as well: who reads it looks for their own code.
    """
    try:
        frame = _cut(error, skip_frames)
    # Bare: names of files and modules may be objects of anybody's, whose methods raise anything.
    except:  # noqa: E722
        frame = ""
    caught = _caught(ErrorRecord.of(error))
    if "builtins.SystemExit" in caught.type_names:
        caught = _exited(caught)
    told: dict[str, Attribute] = {USER_FRAME: frame} if frame else {}
    if "retry_after" in caught.attributes:
        # It may be a date, and who reads this later does not know when it was raised.
        told["observed_at"] = time.time()
    return attrs.evolve(caught, attributes={**caught.attributes, **told})


def _cut(error: BaseException, skip_frames: int) -> str:
    """Take our own frames off its traceback; return where in the user's code it was raised."""
    handled, trace = sys.exc_info()[1:]
    hidden = handled is error and not isinstance(handled, BaseException)
    if not hidden:
        # By the base class: a foreign one may have made the attribute anything.
        trace = _TRACEBACK.__get__(error)
    frame = _user_frame(trace)
    if hidden:  # by its metaclass, which leaves nothing to set
        return frame
    for _ in range(skip_frames):
        trace = trace.tb_next if trace is not None else None
    while skip_frames and trace is not None and trace.tb_next is not None and _is_ours(trace):
        trace = trace.tb_next
    _TRACEBACK.__set__(error, trace)
    return frame


def _is_ours(trace: TracebackType) -> bool:
    name = trace.tb_frame.f_globals.get("__name__")
    return type(name) is str and name.startswith("thornback.")


def _caught(record: ErrorRecord) -> CaughtError:
    return CaughtError(
        type_names=record.type_names,
        message=record.message,
        traceback=record.traceback,
        attributes=record.attributes,
        causes=tuple(map(_caught, record.causes)),
        members=tuple(map(_caught, record.members)),
    )


def _exited(caught: CaughtError) -> CaughtError:
    """Say that it left before it had returned, and with which code: Python makes 1 of a text."""
    code = caught.attributes.get("code", None if caught.message in ("", "None") else caught.message)
    if code is None or isinstance(code, int):
        message = f"exited {f'with code {code} ' if code else ''}before returning"
        return attrs.evolve(
            caught, message=message, attributes={**caught.attributes, "exit_code": code or 0}
        )
    return attrs.evolve(caught, attributes={**caught.attributes, "exit_code": 1})


def _user_frame(trace: TracebackType | None) -> str:
    """Return the innermost frame of user code, as `job.py:12 in clean`: of all ranks that fail by
    one bug it is the same. Where all code is installed, it is the innermost frame of all."""
    innermost = found = ""
    for frame, line in traceback.walk_tb(trace):
        path, name = frame.f_code.co_filename, frame.f_code.co_name
        innermost = f"{os.path.basename(path)}:{line} in {name}"
        if not path.startswith(_NOT_USERS) and not any(part in path for part in _INSTALLED):
            found = innermost
    return found or innermost


def to_plain(error: CaughtError) -> list[object]:
    """Return it as lists, strings and numbers, for JSON."""
    return [
        list(error.type_names),
        error.message,
        error.traceback,
        dict(error.attributes),
        [to_plain(cause) for cause in error.causes],
        [to_plain(member) for member in error.members],
    ]


def from_plain(plain: object) -> CaughtError:
    """Undo `to_plain`.

    Raises:
        ValueError: that is not what `to_plain` returns.
    """
    match plain:
        case [list(names), str(message), str(trace), dict(attributes), list(causes), list(members)]:
            if not all(isinstance(name, str) for name in names) or not all(
                isinstance(value, str | int | float | bool | None) for value in attributes.values()
            ):
                raise ValueError("not an error as data: names and attributes must be plain")
            return CaughtError(
                type_names=tuple(names),
                message=message,
                traceback=trace,
                attributes=attributes,
                causes=tuple(from_plain(cause) for cause in causes),
                members=tuple(from_plain(member) for member in members),
            )
    raise ValueError(f"not an error as data: {str(plain)[:80]!r}")
