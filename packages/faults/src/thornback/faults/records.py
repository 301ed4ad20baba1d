"""Exceptions as data: all that is needed to classify one later, elsewhere, without its class."""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import cast

import attrs

from thornback.faults import untrusted
from thornback.faults.frames import is_library
from thornback.faults.kinds import (
    MESSAGE_CHARS,
    TRACEBACK_CHARS,
    Attribute,
    ErrorData,
    copied,
    plain_value,
)
from thornback.faults.printing import message_of, traceback_of, type_names
from thornback.faults.redaction import looks_secret
from thornback.faults.text import clip, safe
from thornback.faults.untrusted import attempt, get, is_a, text
from thornback.faults.values import Value

MAX_CAUSES = 8
MAX_MEMBERS = 16
MAX_MEMBER_CAUSES = 4
MAX_TYPES = 40
MAX_ATTRIBUTES = 32
MAX_NAMES = 200
"""Of attributes, that are looked at."""
NAME_CHARS = 300
UNDESCRIBED = "<this exception cannot be described>"

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
        if type(error) is ErrorRecord:
            return error
        if not is_a(error, BaseException):
            return _copy(cast(ErrorData, error))
        bare = cls(type_names=attempt(("?",), type_names, error), message=UNDESCRIBED)
        return attempt(bare, _record_of, cast(BaseException, error))


def _record_of(error: BaseException) -> ErrorRecord:
    head, *causes = [_one(link) for link in _chain(error, MAX_CAUSES + 1)]
    return head.__replace__(traceback=traceback_of(error), causes=tuple(causes))


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
        type_names=tuple(clip(text(n) or "?", NAME_CHARS) for n in data.type_names[:MAX_TYPES]),
        message=safe(text(data.message) or "", MESSAGE_CHARS),
        traceback=safe(text(data.traceback) or "", TRACEBACK_CHARS),
        attributes=dict(data.attributes),
        causes=tuple(_copy(cause) for cause in data.causes[:MAX_CAUSES]),
        members=tuple(_copy(member) for member in data.members[:MAX_MEMBERS]),
    )


def _one(link: BaseException | ErrorData, *, depth: int = 0) -> ErrorRecord:
    """Return the record of one link of a chain, without its causes and traceback."""
    if not is_a(link, BaseException):
        broken = ErrorRecord(type_names=("?",), message=UNDESCRIBED)
        return attempt(broken, _copy, cast(ErrorData, link))
    error = cast(BaseException, link)
    leaves = _leaves(error, MAX_MEMBERS) if depth == 0 and untrusted.members(error) else []
    return ErrorRecord(
        type_names=type_names(error),
        message=message_of(error),
        attributes=attempt({}, _attributes, error),
        members=tuple(map(_leaf, leaves)),
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
        link = _below(cast(BaseException, link)) if is_a(link, BaseException) else None
    last = chain[-1]
    if not is_a(last, BaseException):
        more = get(last, "causes")
        chain += more[: limit - len(chain)] if type(more) in (list, tuple) else ()  # type: ignore[index]  # it is one
    return chain


def _below(error: BaseException) -> BaseException | ErrorData | None:
    for name in type_names(error):
        attribute = WRAPPED.get(public_name(name))
        inner = None if attribute is None else get(error, attribute)
        if is_a(inner, BaseException):
            return cast(BaseException, inner)
        if get(inner, "type_names") is not None:
            return cast(ErrorData, inner)
    cause = untrusted.cause(error)
    if cause is not None:
        return cause
    context = untrusted.context(error)
    # The traceback of what was handled begins in the frame that handled it.
    handled = None if context is None else untrusted.traceback(context)
    if handled is None:
        return None
    file = text(handled.tb_frame.f_code.co_filename) or ""
    return context if is_translation(type_names(error), file) else None


def is_translation(type_names: Sequence[str], file: str) -> bool:
    """Return whether an exception raised in an `except` block replaces the one that was handled.

    True for exceptions of libraries and for OSErrors if a library's file has the `except` block.
    Other built-in exceptions, such as a KeyError, are bugs of that block.
    """
    own = type_names[0].startswith("builtins.") and "builtins.OSError" not in type_names
    return not own and is_library(file)


def _leaves(group: BaseException, limit: int) -> list[BaseException]:
    """Return the first leaves, in order, without recursion: groups may be nested deeply."""
    leaves: list[BaseException] = []
    todo = [group]
    while todo and len(leaves) < limit:
        error = todo.pop()
        inner = untrusted.members(error)
        if inner:
            todo.extend(reversed(inner))
        else:
            leaves.append(error)
    return leaves


def _attributes(error: BaseException) -> dict[str, Attribute]:
    """Return plain public attributes: those that rules know, then the instance's, its classes'."""
    found: dict[str, Attribute] = {}
    for name in (*KNOWN_ATTRIBUTES, *_own_names(error)):
        if len(found) == MAX_ATTRIBUTES:
            break
        if name.startswith("_") or not name.isprintable() or looks_secret(name):
            continue
        value = plain_value(get(error, name))
        if value is not None and len(name) <= 64:
            found.setdefault(name, value)
    for name, value in (*_answer(error), *_circumstances(error)):
        if value is not None:
            found.setdefault(name, value)
    return found


def _own_names(error: BaseException) -> list[str]:
    """Return the names of the instance, and those that its classes give plain values to."""
    names = [*islice(untrusted.instance_dict(error), MAX_NAMES)]
    for cls in untrusted.mro(type(error))[:MAX_TYPES]:
        if not untrusted.class_name(cls).startswith("builtins."):
            own = islice(untrusted.namespace(cls).items(), MAX_NAMES)
            names += [name for name, value in own if plain_value(value) is not None]
    # Others may have methods of their own.
    return [name for name in names if type(name) is str]


def _answer(error: BaseException) -> list[tuple[str, Attribute]]:
    """Return what a server answered: requests, httpx, aiohttp, urllib; botocore has a dict."""
    response = get(error, "response")
    if is_a(response, dict):
        about, meta = _item(response, "Error"), _item(response, "ResponseMetadata")
        headers = _item(meta, "HTTPHeaders")
        found = [
            ("error_code", _item(about, "Code")),
            ("status_code", _item(meta, "HTTPStatusCode")),
        ]
    else:
        headers = get(error if response is None else response, "headers")
        found = [("status_code", get(response, "status_code"))]
    found.append(("retry_after", attempt(None, _retry_after, headers)))
    return [(name, plain_value(value)) for name, value in found]


def _item(mapping: object, name: str) -> object:
    """Return what a dict has under a name; None if it is none, or has nothing."""
    return dict.get(mapping, name) if is_a(mapping, dict) else None  # type: ignore[call-overload]  # it is one


def _circumstances(error: BaseException) -> list[tuple[str, Attribute]]:
    """Return what only methods or frames tell: the status of a call over gRPC, and whether the
    system refused a process (`of_fork`: sockets and locks fail with the same errno)."""
    found: list[tuple[str, Attribute]] = []
    if "grpc.RpcError" in type_names(error):
        code = get(error, "code")
        status = attempt(None, code) if callable(code) else None
        found.append(("grpc_status", plain_value(get(status, "name"))))
    if is_a(error, OSError) and plain_value(get(error, "errno")) == errno.EAGAIN:
        last = untrusted.traceback(error)
        while last is not None and last.tb_next is not None:
            last = last.tb_next
        names = last.tb_frame.f_code.co_names if last is not None else ()
        if any(text(name) in FORKS for name in names):
            found.append(("of_fork", True))
    return found


def _retry_after(headers: object) -> object:
    """Return for how many seconds a server asks for patience; of a date, by the server's clock. The
    date itself, where the server does not tell what its clock says. Raises what headers raise."""
    ask = get(headers, "get")
    if not callable(ask):
        return None
    millis = ask("retry-after-ms")
    if millis is not None:
        return float(millis) / 1000
    after, now = ask("Retry-After") or ask("retry-after"), ask("Date") or ask("date")
    if type(after) is not str or type(now) is not str or after.strip().isdigit():
        return after
    return seconds_until(after, seconds_of(now))


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
