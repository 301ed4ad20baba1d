"""Records the spans of a rank with the SDK of OpenTelemetry: the one module here that imports it.

Imported by `tracing` when user code starts its first span. The SDK is the user's: its environment
variables (sampler, limits) count. It calls from any thread of the user's. No lock is taken, since a
fork could leave one locked: single operations on a dict are atomic.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from itertools import islice

from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.trace import SpanContext, format_span_id, format_trace_id

from thornback.pool.ports import SpanValue
from thornback.pool.worker.spandata import MAX_SPANS, PlainSpan

MAX_SPAN_BYTES = 16 << 10
"""Of one span as JSON; a larger one travels without attributes, events and links."""
MAX_ATTRIBUTES = 64
MAX_EVENTS = 32
MAX_LINKS = 32
MAX_ITEMS = 128
"""Of an attribute that is a sequence."""
MAX_TEXT_CHARS = 4096
"""Of a name or an attribute: enough for most tracebacks."""


class SpanRecorder(SpanProcessor):
    """Keeps the spans of the rank that runs, in the order of their starts: parents first."""

    def __init__(self) -> None:
        # With the default resource it would look for detectors in every installed distribution.
        self.provider = TracerProvider(resource=Resource.get_empty(), shutdown_on_exit=False)
        self.provider.add_span_processor(self)
        self._since_ns = time.time_ns()
        self._spans: dict[int, Span | tuple[PlainSpan, int] | None] = {}
        """Running; or ended, as JSON of that size; or of no use."""
        self._of_setup = 0
        self._dropped = 0

    def has_room(self) -> bool:
        """Count a span that is about to start; False: it is one too many, and dropped."""
        if len(self._spans) < MAX_SPANS:
            return True
        self._dropped += 1
        return False

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Keep a span."""
        if self.has_room():
            self._spans[span.get_span_context().span_id] = span

    def on_end(self, span: ReadableSpan) -> None:
        """Turn a span of this rank into data; what its attributes hold is then free."""
        context = span.get_span_context()
        if context is not None and context.span_id in self._spans:
            self._spans[context.span_id] = self._encoded(span, span.end_time or 0)

    def end_set_up(self) -> None:
        """Say that what was kept so far belongs to the set-up."""
        self._of_setup = len(self._spans)

    def take(self, most_bytes: int) -> tuple[list[object] | None, int]:
        """Return what was kept, for `spans_from_plain`, and its size; keep nothing of it.

        A span that has not ended is taken as it is now.
        """
        now_ns = time.time_ns()
        kept, self._spans = self._spans, {}
        of_setup, self._of_setup = self._of_setup, 0
        dropped, self._dropped = self._dropped, 0
        taken: dict[str, PlainSpan] = {}
        size = taken_of_setup = 0
        for position, record in enumerate(kept.values()):
            encoded = self._encoded(record, now_ns) if isinstance(record, Span) else record
            if encoded is None or size + encoded[1] > most_bytes:
                dropped += 1
                continue
            size += encoded[1]
            plain = encoded[0]
            taken[str(plain[1])] = plain
            taken_of_setup += position < of_setup
            if plain[2] not in taken:
                plain[2] = ""
        if not taken and not dropped:
            return None, 0
        return [dropped, taken_of_setup, self._seconds(now_ns), list(taken.values())], size

    def _seconds(self, time_ns: int) -> float:
        return (time_ns - self._since_ns) / 1e9

    def _encoded(self, span: ReadableSpan, end_ns: int) -> tuple[PlainSpan, int] | None:
        try:
            for bare in (False, True):
                plain = self._plain(span, end_ns, bare)
                size = len(json.dumps(plain))
                if size <= MAX_SPAN_BYTES:
                    return plain, size
        except Exception:  # noqa: BLE001  # of a user's value, or of an SDK we do not know
            return None
        return None

    def _plain(self, span: ReadableSpan, end_ns: int, bare: bool) -> PlainSpan:
        context, start_ns = span.get_span_context(), span.start_time
        assert context is not None, "a span that has started has one"
        assert start_ns is not None, "a span that has started has one"
        attributes: dict[str, SpanValue] = {} if bare else _attributes(span.attributes)
        if bare:
            attributes["thornback.trimmed"] = True
        if span.end_time is None:
            attributes["thornback.unfinished"] = True
        scope = span.instrumentation_scope
        return [
            _text(span.name),
            format_span_id(context.span_id),
            format_span_id(span.parent.span_id) if span.parent is not None else "",
            self._seconds(start_ns),
            (end_ns - start_ns) / 1e9,
            _text(scope.name) if scope is not None else "",
            span.kind.name.lower(),
            span.status.status_code.name.lower(),
            _text(span.status.description or ""),
            attributes,
            [
                [self._seconds(event.timestamp), _text(event.name), _attributes(event.attributes)]
                for event in islice(() if bare else span.events, MAX_EVENTS)
            ],
            [
                [_traceparent(link.context), _attributes(link.attributes)]
                for link in islice(() if bare else span.links, MAX_LINKS)
            ],
        ]


def _traceparent(context: SpanContext) -> str:
    ids = f"{format_trace_id(context.trace_id)}-{format_span_id(context.span_id)}"
    return f"00-{ids}-{context.trace_flags:02x}"


def _attributes(attributes: Mapping[str, object] | None) -> dict[str, SpanValue]:
    return {
        _text(name): _value(value)
        for name, value in islice((attributes or {}).items(), MAX_ATTRIBUTES)
    }


def _value(value: object) -> SpanValue:
    """Return what every SDK takes for an attribute; newer ones take more."""
    match value:
        case bool() | float():
            return value
        case int() if value.bit_length() < 64:
            return value
        case list() | tuple():
            items = [_value(each) for each in islice(value, MAX_ITEMS)]
            if len({type(each) for each in items}) > 1 or any(type(i) is tuple for i in items):
                return tuple(_text(each) for each in items)
            return tuple(items)  # type: ignore[return-value]  # of one type, and no tuples
    return _text(value)


def _text(value: object) -> str:
    text = str(value)
    if len(text) > MAX_TEXT_CHARS:
        text = text[: MAX_TEXT_CHARS - 3] + "..."
    return text.encode(errors="replace").decode()  # half a surrogate pair: exporters fail on it
