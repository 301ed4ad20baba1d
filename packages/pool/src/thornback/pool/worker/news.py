"""What a rank process says to its supervisor. Nothing of it is trusted: user code can write
anything to that stream."""

from __future__ import annotations

import base64
import json
import math
from typing import TypeAlias

import attrs

from thornback.pool.caught import from_plain
from thornback.pool.ports import CaughtError, SpanData
from thornback.pool.worker.spandata import spans_from_plain

MAX_CHECKPOINT_BYTES = 1 << 20
_MAX_SIZE = 1 << 62
"""Of a log."""
_DECODER = json.JSONDecoder()


@attrs.frozen(kw_only=True, slots=True)
class SetUp:
    """The set-up of the program is over."""

    error: CaughtError | None
    peak_rss_bytes: int
    spans: tuple[SpanData, ...] = ()
    """Only of a failure."""
    spans_dropped: int = 0
    has_teardown: bool = False


@attrs.frozen(slots=True)
class Done:
    """A rank is over."""

    serial: int
    result: str | None
    outputs: tuple[tuple[str, str], ...]
    error: CaughtError | None
    ran_s: float
    peak_rss_bytes: int
    spans: tuple[SpanData, ...] = ()
    spans_dropped: int = 0
    log_size: int = -1
    """At its end; -1: unknown."""
    next: int = 0
    """Serial of the rank that begins right after; 0: none does."""


@attrs.frozen(slots=True)
class Started:
    """A rank has begun."""

    serial: int


@attrs.frozen(slots=True)
class TornDown:
    """The teardown of the program is over."""


@attrs.frozen(slots=True)
class Need:
    """The program asks for a blob."""

    key: str


@attrs.frozen(slots=True)
class Saved:
    """A rank has saved something for its next attempt, and waits until it is kept."""

    serial: int
    number: int
    """Of the process's checkpoints."""
    data: bytes = attrs.field(repr=False)


@attrs.frozen(slots=True)
class Progressed:
    """A rank tells how far it is."""

    serial: int
    done: float
    total: float | None


News: TypeAlias = SetUp | Done | Started | TornDown | Need | Saved | Progressed


def parse(body: bytes) -> News:
    """Read what a rank process says; nothing is trusted.

    Raises:
        ValueError: it is not what a rank process says.
    """
    value = _value(body)
    match value:
        case [
            "done",
            int(serial),
            str() | None as result,
            list(outputs),
            error,
            float(ran_s),
            int(peak),
            plain_spans,
            int(size),
            int(following),
        ] if -1 <= size <= _MAX_SIZE and 0.0 <= ran_s < math.inf:
            spans, dropped = spans_from_plain(plain_spans) if plain_spans is not None else ((), 0)
            pairs = tuple(map(_pair, outputs)) if outputs else ()
            caught = None if error is None else from_plain(error)
            return Done(serial, result, pairs, caught, ran_s, peak, spans, dropped, size, following)
        case ["started", int(serial)]:
            return Started(serial)
    if (news := _rare(value)) is None:
        raise ValueError(f"not a message of a rank process: {body[:80]!r}")
    return news


def _rare(value: object) -> News | None:
    match value:
        case ["set_up", error, int(peak), plain_spans, bool(has_teardown)]:
            spans, dropped = spans_from_plain(plain_spans)
            return SetUp(
                error=None if error is None else from_plain(error),
                peak_rss_bytes=peak,
                spans=spans,
                spans_dropped=dropped,
                has_teardown=has_teardown,
            )
        case ["torn_down"]:
            return TornDown()
        case ["need", str(key)]:
            return Need(key)
        case ["checkpoint", int(serial), int(number), str(text)]:
            data = base64.b64decode(text, validate=True)
            if len(data) <= MAX_CHECKPOINT_BYTES:
                return Saved(serial, number, data)
        case ["progress", int(serial), float(done), float() | None as total] if _finite(
            done, total
        ):
            return Progressed(serial, done, total)
    return None


def _value(body: bytes) -> object:
    text = body.decode("ascii")
    value, end = _DECODER.raw_decode(text)
    if end != len(text):
        raise ValueError("more than one value")
    return value


def _finite(done: float, total: float | None) -> bool:
    return math.isfinite(done) and (total is None or math.isfinite(total))


def _pair(plain: object) -> tuple[str, str]:
    match plain:
        case [str(staged), str(final)]:
            return staged, final
    raise ValueError(f"not an output: {str(plain)[:80]!r}")
