"""Exceptions as data: all that is needed to classify one later, elsewhere, without its class."""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import cast

import attrs

from thornback.faults.frames import is_library
from thornback.faults.kinds import (
    MESSAGE_CHARS,
    TRACEBACK_CHARS,
    Attribute,
    ErrorData,
    copied,
    plain_value,
)
from thornback.faults.redaction import looks_secret
from thornback.faults.text import clip, safe
from thornback.faults.values import Value

MAX_CAUSES = 8
MAX_MEMBERS = 16
MAX_MEMBER_CAUSES = 4
MAX_TYPES = 40
MAX_ATTRIBUTES = 32
MAX_FRAMES = 50

FORKS = ("fork", "forkpty", "_fork_exec", "_posix_spawn", "posix_spawn")

WRAPPED = {"ray.exceptions.RayTaskError": "cause", "thornback.pool.GangLostError": "error"}
"""Exceptions that only carry another one: class -> attribute."""

# What may be a property of the class, or lives in C: it is not in `vars(exc)`.
KNOWN_ATTRIBUTES = (
    "errno",
    "code",
    "exit_code",
    "returncode",
    "signal",
    "preempted",
    "actor_init_failed",
    "status",
    "status_code",
    "retry_after",
    "retry_after_s",
    "non_retryable",
    "phase",
)


@attrs.frozen(kw_only=True)
class ErrorRecord(Value):
    """An exception as plain data: it fulfils `ErrorData`, pickles, is JSON, and bounded in size.

    What `of` returns holds no text that looks like a secret.
    """

    type_names: tuple[str, ...]
    """`module.qualname` along the MRO, most derived first, without `object`."""
    message: str = ""
    """What `str(exc)` said."""
    traceback: str = ""
    """What Python would have printed, with the causes."""
    attributes: Mapping[str, Attribute] = attrs.field(factory=dict, converter=copied)
    """Plain public attributes, without those whose names look like secrets."""
    causes: tuple[ErrorRecord, ...] = ()
    """The chain of causes, nearest first, flat; what a `RayTaskError` wraps counts as its cause."""
    members: tuple[ErrorRecord, ...] = ()
    """The leaves, when it is an exception group."""

    @classmethod
    def of(cls, error: BaseException | ErrorData) -> ErrorRecord:
        """Return the record of an exception (or of other error data). An exception never makes it
        raise: not even one whose `str()`, properties or MRO raise `SystemExit`.

        Cyclic and endless chains are cut. What an exception was raised *from* is a cause. The
        exception that was being handled (`__context__`) is one only for exceptions of libraries,
        raised in their own code: a bug in an `except ConnectionError:` block is a bug.
        """
        if isinstance(error, ErrorRecord):
            return error
        if not isinstance(error, BaseException):
            return _copy(error)
        chain = _chain(error, MAX_CAUSES + 1)
        head, *causes = [_one(link) for link in chain]
        return head.__replace__(traceback=_traceback(error, len(chain)), causes=tuple(causes))


def public_name(name: str) -> str:
    """Return the name a class of ours is exported by: `thornback.pool.x.Y` -> `thornback.pool.Y`.

    Rules name what is public; where a package keeps the class is its own business.
    """
    if not name.startswith("thornback."):
        return name
    parts = name.split(".")
    return ".".join((*parts[:2], parts[-1]))


def _copy(data: ErrorData) -> ErrorRecord:
    return ErrorRecord(
        type_names=tuple(clip(str(name), 300) for name in data.type_names[:MAX_TYPES]),
        message=safe(data.message, MESSAGE_CHARS),
        traceback=safe(data.traceback, TRACEBACK_CHARS),
        attributes=dict(data.attributes),
        causes=tuple(_copy(cause) for cause in data.causes[:MAX_CAUSES]),
        members=tuple(_copy(member) for member in data.members[:MAX_MEMBERS]),
    )


def _one(link: BaseException | ErrorData, *, depth: int = 0) -> ErrorRecord:
    """Return the record of one link of a chain, without its causes and traceback."""
    if not isinstance(link, BaseException):
        return _copy(link)
    members: tuple[ErrorRecord, ...] = ()
    if isinstance(link, BaseExceptionGroup) and depth == 0:
        members = tuple(_leaf(leaf) for leaf in _leaves(link, MAX_MEMBERS))
    return ErrorRecord(
        type_names=_type_names(link),
        message=_message(link),
        attributes=_attributes(link),
        members=members,
    )


def _leaf(error: BaseException) -> ErrorRecord:
    head, *causes = [_one(link, depth=1) for link in _chain(error, MAX_MEMBER_CAUSES + 1)]
    return head.__replace__(causes=tuple(causes))


def _chain(error: BaseException, limit: int) -> list[BaseException | ErrorData]:
    """Return the exception and its causes, nearest first; stops at a cycle, and at `limit`."""
    chain: list[BaseException | ErrorData] = []
    link: BaseException | ErrorData | None = error
    while link is not None and len(chain) < limit and not any(link is one for one in chain):
        chain.append(link)
        if not isinstance(link, BaseException):
            chain.extend(link.causes[: limit - len(chain)])
            break
        link = _below(link)
    return chain


def _below(error: BaseException) -> BaseException | ErrorData | None:
    for name in _type_names(error):
        attribute = WRAPPED.get(public_name(name))
        inner = None if attribute is None else _get(error, attribute)
        if isinstance(inner, BaseException):
            return inner
        if _get(inner, "type_names") is not None:
            return cast(ErrorData, inner)
    cause = _get(error, "__cause__")
    if isinstance(cause, BaseException):
        return cause
    context = _get(error, "__context__")
    if _get(error, "__suppress_context__") or not isinstance(context, BaseException):
        return None
    # The traceback of what was handled begins in the frame that handled it.
    handled = _get(context, "__traceback__")
    if not isinstance(handled, TracebackType):
        return None
    file = handled.tb_frame.f_code.co_filename
    return context if is_translation(_type_names(error), file) else None


def is_translation(type_names: Sequence[str], file: str) -> bool:
    """Return whether an exception raised in an `except` block replaces the one that was handled.

    True for exceptions of libraries and for OSErrors if a library's file has the `except` block.
    Other built-in exceptions, such as a KeyError, are bugs of that block.
    """
    own = type_names[0].startswith("builtins.") and "builtins.OSError" not in type_names
    return not own and is_library(file)


def _leaves(group: BaseExceptionGroup[BaseException], limit: int) -> list[BaseException]:
    """Return the first leaves, in order, without recursion: groups may be nested deeply."""
    leaves: list[BaseException] = []
    todo: list[BaseException] = [group]
    while todo and len(leaves) < limit:
        error = todo.pop()
        if isinstance(error, BaseExceptionGroup):
            inner = _get(error, "exceptions")
            todo.extend(reversed(inner) if isinstance(inner, tuple) else ())
        else:
            leaves.append(error)
    return leaves


def _type_names(error: BaseException) -> tuple[str, ...]:
    # Not `__mro__`: a metaclass can make that anything.
    mro: Sequence[type] = type.__dict__["__mro__"].__get__(type(error))
    return tuple(
        clip(f"{_get(cls, '__module__')}.{_get(cls, '__qualname__')}", 300)
        for cls in mro[:MAX_TYPES]
        if cls is not object
    )


def _message(error: BaseException) -> str:
    try:
        return safe(str.__str__(str(error)), MESSAGE_CHARS)
    except BaseException as broken:  # noqa: BLE001 - user code may raise anything; it must become data
        return f"<str() of this {type(error).__qualname__} raised {type(broken).__qualname__}>"


def _attributes(error: BaseException) -> dict[str, Attribute]:
    """Return plain public attributes: those that rules know, then the instance's, its classes'."""
    found: dict[str, Attribute] = {}
    for name in (*KNOWN_ATTRIBUTES, *_own_names(error)):
        if len(found) == MAX_ATTRIBUTES:
            break
        if not isinstance(name, str) or name.startswith("_") or looks_secret(name):
            continue
        value = plain_value(_get(error, name))
        if value is not None and len(name) <= 64:
            found.setdefault(name, value)
    for name, value in (*_answer(error), *_circumstances(error)):
        if value is not None:
            found.setdefault(name, value)
    return found


def _own_names(error: BaseException) -> list[str]:
    """Return the names of the instance, and those that its classes give plain values to."""
    own = _get(error, "__dict__")
    names = list(dict.keys(own)) if isinstance(own, dict) else []
    for cls in type.__dict__["__mro__"].__get__(type(error))[:MAX_TYPES]:
        if _get(cls, "__module__") != "builtins":
            names += [n for n, value in vars(cls).items() if plain_value(value) is not None]
    return names


def _answer(error: BaseException) -> list[tuple[str, Attribute]]:
    """Return what a server answered: requests, httpx, aiohttp, urllib; botocore has a dict."""
    response = _get(error, "response")
    if isinstance(response, dict):
        about, meta = response.get("Error"), response.get("ResponseMetadata")
        code = about.get("Code") if isinstance(about, dict) else None
        status = meta.get("HTTPStatusCode") if isinstance(meta, dict) else None
        headers = meta.get("HTTPHeaders") if isinstance(meta, dict) else None
        found = [("error_code", code), ("status_code", status)]
    else:
        headers = _get(error if response is None else response, "headers")
        found = [("status_code", _get(response, "status_code"))]
    found.append(("retry_after", _retry_after(headers)))
    return [(name, plain_value(value)) for name, value in found]


def _circumstances(error: BaseException) -> list[tuple[str, Attribute]]:
    """Return what only methods or frames tell: the status of a call over gRPC, and whether the
    system refused a process (`of_fork`: sockets and locks fail with the same errno)."""
    found: list[tuple[str, Attribute]] = []
    if "grpc.RpcError" in _type_names(error):
        found.append(("grpc_status", plain_value(_get(_call(_get(error, "code")), "name"))))
    if isinstance(error, OSError) and _get(error, "errno") == errno.EAGAIN:
        last = _get(error, "__traceback__")
        while isinstance(last, TracebackType) and last.tb_next is not None:
            last = last.tb_next
        names = last.tb_frame.f_code.co_names if isinstance(last, TracebackType) else ()
        if any(name in FORKS for name in names):
            found.append(("of_fork", True))
    return found


def _call(method: object) -> object:
    try:
        return method() if callable(method) else None
    except BaseException:  # noqa: BLE001 - code of a foreign class, on the way to a description
        return None


def _retry_after(headers: object) -> object:
    """Return for how many seconds a server asks for patience; of a date, by the server's clock. The
    date itself, where the server does not tell what its clock says."""
    get = _get(headers, "get")
    if not callable(get):
        return None
    try:
        millis = get("retry-after-ms")
        if millis is not None:
            return float(millis) / 1000
        after, now = get("Retry-After") or get("retry-after"), get("Date") or get("date")
        if not (isinstance(after, str) and isinstance(now, str)) or after.strip().isdigit():
            return after
        return seconds_until(after, seconds_of(now))
    except BaseException:  # noqa: BLE001 - code of a foreign class, on the way to a description
        return None


def seconds_of(date: str) -> float:
    """Return an HTTP date in seconds since 1970.

    Raises:
        ValueError: `date` is not a valid HTTP date.
    """
    from email.utils import parsedate_to_datetime  # Not above: it brings `socket`.

    return parsedate_to_datetime(date).timestamp()


def seconds_until(date: str, now: float) -> float:
    """Return the seconds from `now` until an HTTP date; 0 if it has passed.

    Raises:
        ValueError: `date` is not a valid HTTP date.
    """
    return max(seconds_of(date) - now, 0.0)


def _get(thing: object, name: str) -> object:
    try:
        return getattr(thing, name, None)
    except BaseException:  # noqa: BLE001 - properties of user classes may raise anything
        return None


def _traceback(head: BaseException, links: int) -> str:
    """Return the text that Python would print; for a long chain or group, the exception's own."""
    short = links <= MAX_CAUSES
    if isinstance(head, BaseExceptionGroup):
        short = short and len(_leaves(head, MAX_MEMBERS)) < MAX_MEMBERS
    try:
        # Not above: it brings `tokenize`, and is needed only when something failed. The import
        # fails where that is that no more files can be opened.
        import traceback

        if short:
            text = "".join(traceback.format_exception(head, limit=-MAX_FRAMES))
        else:
            frames = "".join(traceback.format_tb(head.__traceback__, limit=-MAX_FRAMES))
            text = f"{frames}{type(head).__qualname__}: {_message(head)}\n"
    except BaseException as broken:  # noqa: BLE001 - a broken exception class must not hide the failure
        text = f"<its traceback could not be formatted: {type(broken).__qualname__}>\n"
    return safe(text, TRACEBACK_CHARS)
