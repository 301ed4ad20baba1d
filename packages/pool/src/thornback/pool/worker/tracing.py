"""Tracing in a rank process: the spans of user code belong to the run's trace.

While a rank (or the set-up) runs, its assignment's context is OpenTelemetry's current one. So the
spans of a tracer provider of the user's, and the requests of instrumented clients, continue the
run's trace. It is the assignment's context and not the rank's, because the driver makes the rank's
span after the rank has ended, and its id is not known before.

Where the user has set no provider and the driver traces (the traceparent is sampled), ours stands
in. It costs nothing until user code starts a span: only then is the SDK imported (`sdkspans`), and
what it records goes back with the rank's outcome. Without the SDK, spans are what they are without
us: nothing. A provider that user code sets wins, whenever it does.

Nothing here may fail or slow a rank. Whatever goes wrong, spans are not recorded.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, Any

from opentelemetry import context as otel_context
from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.environment_variables import OTEL_PYTHON_TRACER_PROVIDER
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from thornback.pool.worker.spandata import MAX_ASSIGNMENT_BYTES, MAX_RANK_BYTES

if TYPE_CHECKING:
    from thornback.pool.worker.sdkspans import SpanRecorder

logger = logging.getLogger(__name__)
_NOBODY = trace.NoOpTracer()


class RankTracing:
    """The tracing of one rank process, from rank to rank."""

    def __init__(self) -> None:
        self._provider = _Provider(self)
        self._recorder: SpanRecorder | None = None
        self._unusable = False
        """The SDK cannot be imported."""
        self._recording = False
        """A rank or a set-up runs, and the driver traces."""
        self._traceparent = ""
        self._context = Context()
        self._sampled = False
        self._epoch = ""
        self._left_bytes = 0

    def begin(self, traceparent: str, epoch: str) -> None:
        """Let what follows belong to this assignment, until `end_set_up` or `end`."""
        try:
            if traceparent != self._traceparent:
                self._parse(traceparent)
            if epoch != self._epoch:
                self._epoch, self._left_bytes = epoch, MAX_ASSIGNMENT_BYTES
            otel_context.attach(self._context)  # until the next: no user code runs between
            if self._sampled:
                self._stand_in()
            self._recording = self._sampled
        except Exception:  # noqa: BLE001  # tracing never fails a rank
            self._recording = False

    def end_set_up(self) -> None:
        """Go on to the first rank, with which the spans of the set-up travel."""
        self._recording = False
        if self._recorder is not None:
            self._recorder.end_set_up()

    def end(self) -> list[object] | None:
        """Return the spans of the rank, for `spans_from_plain`."""
        self._recording = False
        if self._recorder is None:
            return None
        try:
            spans, size = self._recorder.take(min(MAX_RANK_BYTES, self._left_bytes))
        except Exception:  # noqa: BLE001  # tracing never fails a rank
            return None
        self._left_bytes -= size
        return spans

    def provider(self) -> trace.TracerProvider | None:
        """Return whose span it is that starts now: the user's, the recorder's, or nobody's."""
        provider = trace.get_tracer_provider()
        if provider is not self._provider:
            return provider
        recorder = self._recorder_to_use()
        return recorder.provider if recorder is not None and recorder.has_room() else None

    def _recorder_to_use(self) -> SpanRecorder | None:
        if self._recording and self._recorder is None and not self._unusable:
            try:
                from thornback.pool.worker.sdkspans import SpanRecorder

                self._recorder = SpanRecorder()
            except ImportError:  # thornback-pool[tracing] is not installed here
                self._unusable = True
            except Exception:  # tracing never fails a rank
                self._unusable = True
                logger.warning("the spans of ranks are not recorded here", exc_info=True)
        return self._recorder if self._recording else None

    def _parse(self, traceparent: str) -> None:
        carrier = {"traceparent": traceparent}
        self._context = TraceContextTextMapPropagator().extract(carrier, Context())
        found = trace.get_current_span(self._context).get_span_context()
        self._sampled = found.is_valid and found.trace_flags.sampled
        self._traceparent = traceparent

    def _stand_in(self) -> None:
        """Be the tracer provider, if there is none.

        Not by `set_tracer_provider`, which works once per process: that once is the user's.
        Source: opentelemetry-api 1.25 to 1.45, `trace/__init__.py`.
        """
        if trace._TRACER_PROVIDER is None and OTEL_PYTHON_TRACER_PROVIDER not in os.environ:
            trace._TRACER_PROVIDER = self._provider


class _Provider(trace.ProxyTracerProvider):
    """Of the class that says "none was set yet": libraries look at it before they set one."""

    def __init__(self, tracing: RankTracing) -> None:
        self._tracing = tracing

    def get_tracer(self, *args: Any, **kwargs: Any) -> trace.Tracer:
        """Return a tracer that finds out at every span who makes it."""
        return _Tracer(self._tracing, args, kwargs)


class _Tracer(trace.Tracer):
    def __init__(self, tracing: RankTracing, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._tracing = tracing
        self._args = args
        self._kwargs = kwargs
        self._last: tuple[trace.TracerProvider | None, trace.Tracer] = None, _NOBODY

    def start_span(self, *args: Any, **kwargs: Any) -> trace.Span:
        """Start a span."""
        return self._tracer().start_span(*args, **kwargs)

    def start_as_current_span(self, *args: Any, **kwargs: Any) -> Any:
        """Start a span as the current one; a decorator, too."""
        return self._tracer().start_as_current_span(*args, **kwargs)

    def _tracer(self) -> trace.Tracer:
        provider, (last, tracer) = self._tracing.provider(), self._last
        if provider is None:
            return _NOBODY
        if provider is not last:
            tracer = provider.get_tracer(*self._args, **self._kwargs)
            self._last = provider, tracer
        return tracer
