"""Turns an exception into data.

Exceptions never cross a process border themselves: many do not pickle, more do not unpickle, and
what unpickles may run the code of others. Everything is bounded, and nothing that an exception's
own methods do can make this raise.
"""

from __future__ import annotations

import os
import re
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

from thornback.pool.ports import Attribute, CaughtError

MAX_MESSAGE_CHARS = 4096
MAX_TRACEBACK_CHARS = 16384
MAX_ATTRIBUTES = 32
MAX_ATTRIBUTE_CHARS = 512
MAX_CAUSES = 8
MAX_MEMBERS = 32
USER_FRAME = "user_frame"
"""Attribute of what is caught: where in the user's code it was raised."""

_WELL_KNOWN = (
    "errno",
    "strerror",
    "filename",
    "exit_code",
    "returncode",
    "signal",
    "preempted",
    "actor_init_failed",
    "retry_after",
    "status",
    "status_code",
    "code",
)
"""Attributes that classifiers ask for, also where they are properties or slots."""
_SECRET = re.compile(r"token|secret|passw|credential|api_?key|authorization|cookie", re.IGNORECASE)

T = TypeVar("T")


def catch(error: BaseException, *, skip_frames: int = 0) -> CaughtError:
    """Return the exception as data, with its chain of causes and, for a group, its leaves. Never
    raises.

    Args:
        error: any exception.
        skip_frames: frames of our own to leave out at the top of the traceback.
    """
    frame = _safely(lambda: _user_frame(error), "")
    return _caught(
        error,
        trace=_safely(lambda: _format(error, skip_frames), ""),
        frame=frame,
        causes=tuple(_caught(cause, members=_members(cause)) for cause in _chain(error)),
        members=_members(error),
    )


def _caught(
    error: BaseException,
    *,
    trace: str = "",
    frame: str = "",
    causes: tuple[CaughtError, ...] = (),
    members: tuple[CaughtError, ...] = (),
) -> CaughtError:
    return CaughtError(
        type_names=type_names(type(error)),
        message=_message(error),
        traceback=trace,
        attributes=_attributes(error) | ({USER_FRAME: frame} if frame else {}),
        causes=causes,
        members=members,
    )


def _members(error: BaseException) -> tuple[CaughtError, ...]:
    return tuple(
        _caught(leaf, causes=tuple(_caught(cause) for cause in _chain(leaf)))
        for leaf in _leaves(error)
    )


def _safely(call: Callable[[], T], otherwise: T) -> T:
    try:
        return call()
    except BaseException:  # noqa: BLE001  # methods of a foreign exception may raise anything, also SystemExit
        return otherwise


def type_names(cls: type[BaseException]) -> tuple[str, ...]:
    """Return `module.qualname` along the MRO, most derived first, without `object`."""
    return tuple(
        f"{each.__module__}.{each.__qualname__}" for each in cls.__mro__ if each is not object
    )


def _message(error: BaseException) -> str:
    if isinstance(error, SystemExit):
        if error.code is None or error.code == 0:
            return "exited before returning"
        if isinstance(error.code, int):
            return f"exited with code {error.code} before returning"
    name = type(error).__qualname__
    return _clip(_safely(lambda: str(error), f"<str() of this {name} failed>"), MAX_MESSAGE_CHARS)


def _clip(text: str, limit: int) -> str:
    """Keep the beginning and the end: both tell."""
    if len(text) <= limit:
        return text
    head = limit // 4
    return f"{text[:head]}\n... {len(text) - limit} characters left out ...\n{text[head - limit :]}"


def _format(error: BaseException, skip_frames: int) -> str:
    trace = error.__traceback__
    for _ in range(skip_frames):
        trace = trace.tb_next if trace is not None else None
    lines = traceback.TracebackException(type(error), error, trace, compact=True).format()
    return _clip("".join(lines), MAX_TRACEBACK_CHARS)


def _user_frame(error: BaseException) -> str:
    """Return the innermost frame of user code, as `job.py:12 in clean`: of all ranks that fail by
    one bug it is the same. Where all code is installed, it is the innermost frame of all."""
    import sysconfig  # only a failure needs it

    installed = [
        sysconfig.get_path(kind) for kind in ("stdlib", "platstdlib", "purelib", "platlib")
    ]
    installed.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    prefixes = ("<frozen", *(f"{path}{os.sep}" for path in installed))
    innermost = found = ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        path, name = frame.f_code.co_filename, frame.f_code.co_name
        innermost = f"{os.path.basename(path)}:{line} in {name}"
        if not path.startswith(prefixes):
            found = innermost
    return found or innermost


def _chain(error: BaseException) -> list[BaseException]:
    """Return what the exception was raised from or while handling, nearest first."""
    found: list[BaseException] = []
    seen = {id(error)}
    current: BaseException | None = error
    while current is not None and len(found) < MAX_CAUSES:
        following = current.__cause__
        if following is None and not current.__suppress_context__:
            following = current.__context__
        if following is None or id(following) in seen:
            break
        seen.add(id(following))
        found.append(following)
        current = following
    return found


def _leaves(error: BaseException) -> list[BaseException]:
    found: list[BaseException] = []

    def collect(group: BaseExceptionGroup[BaseException], depth: int) -> None:
        for member in group.exceptions:
            if len(found) >= MAX_MEMBERS:
                return
            if isinstance(member, BaseExceptionGroup) and depth < MAX_CAUSES:
                collect(member, depth + 1)
            else:
                found.append(member)

    if isinstance(error, BaseExceptionGroup):
        collect(error, 0)
    return found


def _attributes(error: BaseException) -> dict[str, Attribute]:
    found: dict[str, Attribute] = {}
    for name, value in _candidates(error):
        if len(found) >= MAX_ATTRIBUTES:
            break
        if name in found or name.startswith("_") or _SECRET.search(name):
            continue
        if isinstance(value, str):
            found[name] = _clip(str(value), MAX_ATTRIBUTE_CHARS)
        elif isinstance(value, bool):
            found[name] = value
        elif isinstance(value, int):
            if value.bit_length() < 64:
                found[name] = int(value)
        elif isinstance(value, float):
            found[name] = float(value)
    return found


def _candidates(error: BaseException) -> Iterator[tuple[str, object]]:
    if isinstance(error, SystemExit):
        code = error.code
        yield "exit_code", 0 if code is None else code if isinstance(code, int) else 1
    for name in _WELL_KNOWN:
        yield name, _safely(lambda name=name: getattr(error, name, None), None)  # type: ignore[misc]  # mypy has no type for a lambda with a default
    nothing: Mapping[str, object] = {}
    yield from _safely(lambda: _response(getattr(error, "response", None)), nothing).items()
    yield from _safely(lambda: dict(vars(error)), nothing).items()


def _response(response: object) -> Mapping[str, object]:
    """Read a failed HTTP request: an object as of requests or httpx, or a mapping as of
    botocore."""
    if isinstance(response, Mapping):
        meta = response.get("ResponseMetadata", {})
        headers = meta.get("HTTPHeaders", {})
        return {
            "status_code": meta.get("HTTPStatusCode"),
            "error_code": response.get("Error", {}).get("Code"),
            "retry_after": headers.get("retry-after"),
        }
    headers = getattr(response, "headers", None) or {}
    return {
        "status_code": getattr(response, "status_code", None) or getattr(response, "status", None),
        "retry_after": headers.get("Retry-After") or headers.get("retry-after"),
    }


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
