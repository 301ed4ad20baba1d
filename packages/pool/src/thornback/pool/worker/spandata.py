"""Spans on their way from a rank process to its supervisor: as JSON, bounded, and not trusted."""

from __future__ import annotations

import math
from typing import TypeAlias

from thornback.pool.ports import SpanData, SpanValue

MAX_SPANS = 1000
"""Of one rank, with those of the set-up before it; later ones are dropped and counted."""
MAX_RANK_BYTES = 256 << 10
"""Of the spans of one rank, as JSON."""
MAX_ASSIGNMENT_BYTES = 1 << 20
"""Of the spans of all ranks of one assignment, since they travel in one report."""

PlainSpan: TypeAlias = list[object]
"""A span as JSON. Its times are seconds since a moment that only its process knows."""


def spans_from_plain(plain: object) -> tuple[tuple[SpanData, ...], int]:
    """Return the spans of a rank, and how many were dropped.

    `plain` is None (there are none) or `[dropped, how many of the first are of the set-up, end of
    the rank, spans]`.

    Raises:
        ValueError: that is not what a rank process says of its spans.
    """
    match plain:
        case None:
            return (), 0
        case [int(dropped), int(of_setup), float(end_s), list(spans)] if len(spans) <= MAX_SPANS:
            read = enumerate(spans)
            return tuple(_span(span, end_s, index < of_setup) for index, span in read), dropped
    raise ValueError(f"not the spans of a rank: {str(plain)[:80]!r}")


def _span(plain: object, end_s: float, in_setup: bool) -> SpanData:
    match plain:
        case [
            str(name),
            str(span_id),
            str(parent_id),
            float(start_s),
            float(duration_s),
            str(scope),
            str(kind),
            str(status),
            str(status_text),
            dict(attributes),
            list(events),
            list(links),
        ]:
            return SpanData(
                name=name,
                span_id=span_id,
                parent_id=parent_id,
                before_end_s=_finite(end_s - start_s),
                duration_s=_finite(duration_s),
                scope=scope,
                kind=kind,
                status=status,
                status_text=status_text,
                attributes=_attributes(attributes),
                events=tuple(_event(event, end_s) for event in events),
                links=tuple(_link(link) for link in links),
                in_setup=in_setup,
            )
    raise ValueError(f"not a span: {str(plain)[:80]!r}")


def _event(plain: object, end_s: float) -> tuple[float, str, dict[str, SpanValue]]:
    match plain:
        case [float(at_s), str(name), dict(attributes)]:
            return _finite(end_s - at_s), name, _attributes(attributes)
    raise ValueError(f"not an event of a span: {str(plain)[:80]!r}")


def _link(plain: object) -> tuple[str, dict[str, SpanValue]]:
    match plain:
        case [str(traceparent), dict(attributes)]:
            return traceparent, _attributes(attributes)
    raise ValueError(f"not a link of a span: {str(plain)[:80]!r}")


def _finite(seconds: float) -> float:
    if not math.isfinite(seconds):
        raise ValueError(f"not a time of a span: {seconds}")
    return seconds


def _attributes(plain: dict[object, object]) -> dict[str, SpanValue]:
    return {str(name): _value(value) for name, value in plain.items()}


def _value(plain: object) -> SpanValue:
    match plain:
        case str() | bool() | int() | float():
            return plain
        case list() if all(isinstance(each, str | int | float) for each in plain):
            return tuple(plain)
    raise ValueError(f"not a value of a span's attribute: {str(plain)[:80]!r}")
