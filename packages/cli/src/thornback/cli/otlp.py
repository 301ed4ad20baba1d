"""Spans to an OpenTelemetry collector, if the standard environment variables name one.

Needs the extra `otlp`. A collector that is slow, refuses or is not there costs the run nothing but
`FLUSH_S` at its end, and one line that says so.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from urllib.parse import urlsplit

from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

FLUSH_S = 5.0
"""How long the end of a run waits for spans that are still to be sent."""

FLUSH_THREAD = "thornback-otlp-flush"

_ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
_TRACES_ENDPOINT = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"
_HTTP = "http/protobuf"
_HEADERS_LOGGER = "opentelemetry.util.re"
_HEADERS_TEXT = "OTEL_EXPORTER_OTLP_HEADERS: expected name=value pairs"
"""Instead of its message, which quotes what may be a secret."""
_LOGGERS = (
    _HEADERS_LOGGER,
    "opentelemetry.exporter",
    "opentelemetry.sdk._shared_internal",
    "opentelemetry.sdk.trace.export",
)
"""Who logs what goes wrong with sending; also in older releases of the SDK."""
_REASON_CHARS = 200


def collector(warn: Callable[[str], None]) -> CollectorSpans | None:
    """Return a processor that sends spans to the collector that the environment names, or None.

    Heeded: `OTEL_EXPORTER_OTLP_TRACES_ENDPOINT`, `OTEL_EXPORTER_OTLP_ENDPOINT`,
    `OTEL_TRACES_EXPORTER`, `OTEL_SDK_DISABLED` and the protocol here; headers, time-out,
    compression, certificates and batches (`OTEL_BSP_...`) by the exporter and the SDK.

    Args:
        warn: is told, in one line and with the mend, why spans that should be sent cannot be.
    """
    base, full = os.environ.get(_ENDPOINT, ""), os.environ.get(_TRACES_ENDPOINT, "")
    if not (base or full) or not _is_wanted():
        return None
    name = _TRACES_ENDPOINT if full else _ENDPOINT
    protocol = _first("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL") or _HTTP
    if protocol != _HTTP:
        warn(
            f"{name} is set, but the protocol {protocol!r} is not supported, so no spans are sent: "
            f"set OTEL_EXPORTER_OTLP_TRACES_PROTOCOL={_HTTP}, and the port for it (usually 4318)"
        )
        return None
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    except ImportError:
        warn(
            f"{name} is set, but its exporter is not installed, so no spans are sent: "
            "pip install 'thornback[otlp]'"
        )
        return None
    log = FirstMessage()
    try:
        return CollectorSpans(
            OTLPSpanExporter(), full or f"{base.removesuffix('/')}/v1/traces", log=log
        )
    except Exception as error:  # noqa: BLE001  # also of plug-ins that the environment names
        log.stop_listening()
        warn(f"{name} is set, but no spans are sent: {error}")
        return None


class CollectorSpans(SpanProcessor):
    """Sends ended spans in batches, on a thread of its own; never raises, and never waits but for
    `flush_s` in `shutdown`.

    Args:
        exporter: does the sending; whatever it does is seen by nobody but `failure`.
        endpoint: where to, for people.
        log: has listened since before the exporter was made; `shutdown` ends that.
        flush_s: the bound of `shutdown`.
    """

    def __init__(
        self,
        exporter: SpanExporter,
        endpoint: str,
        *,
        log: FirstMessage,
        flush_s: float = FLUSH_S,
    ) -> None:
        self._exporter = _CountingExporter(exporter)
        self._secret = [part for part in _private_parts(endpoint) if part]
        self._flush_s = flush_s
        self._lock = threading.Lock()  # spans may end on any thread
        self._batches: BatchSpanProcessor | None = None
        self._ended = 0
        self._log = log
        self.endpoint = self._without_secrets(endpoint)
        """Without user, password and query."""

    @property
    def sent(self) -> int:
        """How many spans the collector has accepted."""
        return self._exporter.sent

    @property
    def failure(self) -> str:
        """One line about spans that were not accepted, with the first reason; empty if all were."""
        missing = self._ended - self.sent
        if not missing:
            return ""
        reason = self._without_secrets(self._log.text) or f"not within {self._flush_s:g} s"
        return f"{missing} of {self._ended} spans did not reach {self.endpoint} ({reason})"

    def on_end(self, span: ReadableSpan) -> None:
        """Queue an ended span."""
        with self._lock:
            self._ended += 1
            if self._batches is None:
                # Not before: its thread would be started again in every child that a starting Ray
                # forks, and a run that is refused needs none.
                self._batches = BatchSpanProcessor(self._exporter)
        self._batches.on_end(span)

    def shutdown(self) -> None:
        """Send what is queued, for `flush_s` at most. Idempotent."""
        batches, self._batches = self._batches, None
        if batches is None:
            self._log.stop_listening()
            return

        def send_all() -> None:
            batches.shutdown()  # type: ignore[no-untyped-call]  # the SDK has no type here
            self._log.stop_listening()  # nobody is left who could tell of sending

        # The bounds of `shutdown` itself are others, or missing, from release to release.
        flush = threading.Thread(target=send_all, name=FLUSH_THREAD, daemon=True)
        flush.start()
        flush.join(self._flush_s)
        if flush.is_alive():
            self._exporter.shutdown()  # no further attempts

    def _without_secrets(self, text: str) -> str:
        for secret in self._secret:
            text = text.replace(secret, "")
        return text


class _CountingExporter(SpanExporter):
    """Counts what was accepted."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self.sent = 0  # written by the one thread that sends

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        result = self._exporter.export(spans)
        if result is SpanExportResult.SUCCESS:
            self.sent += len(spans)
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()


class FirstMessage(logging.Handler):
    """Takes the place of all handlers of the loggers that tell of sending; keeps the first line.

    Else every attempt would print its own, in the middle of the progress.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.text = ""
        self._propagated = {name: logging.getLogger(name).propagate for name in _LOGGERS}
        for name in _LOGGERS:
            logger = logging.getLogger(name)
            logger.propagate = False
            logger.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the first message, or rather the first cause of the error in it."""
        if not self.text:
            text = _HEADERS_TEXT if record.name == _HEADERS_LOGGER else _reason(record)
            line = " ".join(text.split())
            self.text = line if len(line) <= _REASON_CHARS else line[: _REASON_CHARS - 3] + "..."

    def stop_listening(self) -> None:
        """Leave the loggers as they were. Idempotent."""
        for name, propagated in self._propagated.items():
            logger = logging.getLogger(name)
            logger.propagate = propagated
            logger.removeHandler(self)


def _reason(record: logging.LogRecord) -> str:
    """Return what went wrong, without the layers above it: they repeat it at length."""
    logged = record.args.values() if isinstance(record.args, Mapping) else record.args or ()
    raised = record.exc_info[1] if record.exc_info else None
    error = raised or next((arg for arg in logged if isinstance(arg, Exception)), None)
    if error is None:
        return record.getMessage()
    while cause := error.__cause__ or error.__context__:
        error = cause
    return f"{type(error).__name__}: {error}"


def is_disabled() -> bool:
    """Return whether the environment turns the SDK off, the trace file with it."""
    return os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true"


def _is_wanted() -> bool:
    exporters = (os.environ.get("OTEL_TRACES_EXPORTER") or "otlp").split(",")
    named = {name.strip().lower() for name in exporters}
    return not is_disabled() and bool(named & {"otlp", "otlp_proto_http"})


def _first(*names: str) -> str:
    return next((value for name in names if (value := os.environ.get(name, "").strip())), "")


def _private_parts(endpoint: str) -> tuple[str, str]:
    parts = urlsplit(endpoint)
    user = parts.netloc.rpartition("@")[0]
    return (f"{user}@" if user else "", f"?{parts.query}" if parts.query else "")
