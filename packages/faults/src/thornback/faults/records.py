"""Exceptions as data: all that is needed to classify one later, elsewhere, without its class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

from thornback.faults.kinds import (
    MESSAGE_CHARS,
    TRACEBACK_CHARS,
    Attribute,
    ErrorData,
    plain_value,
)
from thornback.faults.text import clip, looks_secret
from thornback.faults.values import Value

MAX_CAUSES = 8
MAX_MEMBERS = 16
MAX_MEMBER_CAUSES = 4
MAX_TYPES = 40
MAX_ATTRIBUTES = 32
MAX_FRAMES = 50

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
    "non_retryable",
    "phase",
)


class ErrorRecord(Value):
    """An exception as plain data: it fulfils `ErrorData`, pickles, and is bounded in size."""

    type_names: tuple[str, ...]
    """`module.qualname` along the MRO, most derived first, without `object`."""
    message: str = ""
    """What `str(exc)` said."""
    traceback: str = ""
    """What Python would have printed, with the causes."""
    attributes: Mapping[str, Attribute] = {}
    """Plain public attributes, without those whose names look like secrets."""
    causes: tuple[ErrorRecord, ...] = ()
    """The chain of causes, nearest first, flat; what a `RayTaskError` wraps counts as its cause."""
    members: tuple[ErrorRecord, ...] = ()
    """The leaves, when it is an exception group."""

    @classmethod
    def of(cls, error: BaseException | ErrorData) -> ErrorRecord:
        """Return the record of an exception (or of other error data). Never raises an `Exception`.

        Even where `str(exc)`, a property or the MRO raises; cyclic and endless chains are cut.
        """
        if isinstance(error, ErrorRecord):
            return error
        if not isinstance(error, BaseException):
            return _copy(error)
        chain = _chain(error, MAX_CAUSES + 1)
        head, *causes = [_one(link) for link in chain]
        return head.__replace__(traceback=_traceback(chain), causes=tuple(causes))


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
        message=clip(data.message, MESSAGE_CHARS),
        traceback=clip(data.traceback, TRACEBACK_CHARS),
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
        if inner is not None and hasattr(inner, "type_names"):
            return cast(ErrorData, inner)
    if error.__cause__ is not None:
        return error.__cause__
    return None if error.__suppress_context__ else error.__context__


def _leaves(group: BaseExceptionGroup[BaseException], limit: int) -> list[BaseException]:
    """Return the first leaves, in order, without recursion: groups may be nested deeply."""
    leaves: list[BaseException] = []
    todo: list[BaseException] = [group]
    while todo and len(leaves) < limit:
        error = todo.pop()
        if isinstance(error, BaseExceptionGroup):
            todo.extend(reversed(error.exceptions))
        else:
            leaves.append(error)
    return leaves


def _type_names(error: BaseException) -> tuple[str, ...]:
    mro: Sequence[type] = type(error).__mro__
    return tuple(
        clip(f"{_get(cls, '__module__')}.{_get(cls, '__qualname__')}", 300)
        for cls in mro[:MAX_TYPES]
        if cls is not object
    )


def _message(error: BaseException) -> str:
    try:
        return clip(str.__str__(str(error)), MESSAGE_CHARS)
    except Exception as broken:  # noqa: BLE001 - user code may raise anything; it must become data
        return f"<str() of this {type(error).__qualname__} raised {type(broken).__qualname__}>"


def _attributes(error: BaseException) -> dict[str, Attribute]:
    """Return plain public attributes: first those that rules know, then the instance's own."""
    found: dict[str, Attribute] = {}
    own = _get(error, "__dict__")
    names = [*KNOWN_ATTRIBUTES, *(own if isinstance(own, dict) else ())]
    for name in names:
        if len(found) == MAX_ATTRIBUTES:
            break
        if not isinstance(name, str) or name.startswith("_") or looks_secret(name):
            continue
        value = plain_value(_get(error, name))
        if value is not None and len(name) <= 64:
            found.setdefault(name, value)
    for name, value in _response(error):
        if value is not None:
            found.setdefault(name, value)
    return found


def _response(error: BaseException) -> list[tuple[str, Attribute]]:
    """Return what an HTTP answer says: requests, httpx, huggingface_hub; botocore's is a dict."""
    response = _get(error, "response")
    if isinstance(response, dict):
        about, meta = response.get("Error"), response.get("ResponseMetadata")
        code = about.get("Code") if isinstance(about, dict) else None
        status = meta.get("HTTPStatusCode") if isinstance(meta, dict) else None
        headers = meta.get("HTTPHeaders") if isinstance(meta, dict) else None
        after = headers.get("retry-after") if isinstance(headers, dict) else None
        found = [("error_code", code), ("status_code", status), ("retry_after", after)]
    else:
        headers = _get(response, "headers")
        get = _get(headers, "get")
        try:
            after = get("Retry-After") if callable(get) else None
        except Exception:  # noqa: BLE001 - code of a foreign class, on the way to a description
            after = None
        found = [("status_code", _get(response, "status_code")), ("retry_after", after)]
    return [(name, plain_value(value)) for name, value in found]


def _get(thing: object, name: str) -> object:
    try:
        return getattr(thing, name, None)
    except Exception:  # noqa: BLE001 - properties of user classes may raise anything
        return None


def _traceback(chain: Sequence[BaseException | ErrorData]) -> str:
    """Return the text that Python would print; for a long chain or group, the exception's own."""
    import traceback  # Not above: it brings `tokenize`, and is needed only when something failed.

    head = chain[0]
    if not isinstance(head, BaseException):
        return ""
    short = len(chain) <= MAX_CAUSES
    if isinstance(head, BaseExceptionGroup):
        short = short and len(_leaves(head, MAX_MEMBERS)) < MAX_MEMBERS
    try:
        if short:
            text = "".join(traceback.format_exception(head, limit=-MAX_FRAMES))
        else:
            frames = "".join(traceback.format_tb(head.__traceback__, limit=-MAX_FRAMES))
            text = f"{frames}{type(head).__qualname__}: {_message(head)}\n"
    except Exception as broken:  # noqa: BLE001 - a broken exception class must not hide the failure
        text = f"<its traceback could not be formatted: {type(broken).__qualname__}>\n"
    return clip(text, TRACEBACK_CHARS)
