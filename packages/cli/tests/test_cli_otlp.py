"""Spans to a collector: a real HTTP server here, none, or one that never answers."""

from __future__ import annotations

import importlib.util
import io
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter
from rich.console import Console

from thornback.cli.demo.run import check_written
from thornback.cli.display import Display
from thornback.cli.otlp import FLUSH_THREAD, CollectorSpans, FirstMessage, collector
from thornback.cli.trace_file import file_tracing

EXPORTER = "opentelemetry.exporter.otlp.proto.http.trace_exporter"


class Receiver:
    """A collector on loopback. `status` is its answer; None: it keeps the request and says
    nothing until it is closed."""

    def __init__(self, status: int | None = 200) -> None:
        trace_service = pytest.importorskip(
            "opentelemetry.proto.collector.trace.v1.trace_service_pb2",
            reason="the extra 'otlp' is not installed",
        )
        self.spans: list[Any] = []
        self.resources: list[dict[str, str]] = []
        self.headers: list[Mapping[str, str]] = []
        self.asked = threading.Event()
        closing = self.closing = threading.Event()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.headers.append({k.lower(): v for k, v in self.headers.items()})
                receiver.asked.set()
                if status is None:
                    closing.wait()
                    return
                if status == 200:
                    receiver.take(trace_service.ExportTraceServiceRequest.FromString(body))
                self.send_response(status)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                """Nothing: standard error is looked at."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = False  # `close` waits for them
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def take(self, request: Any) -> None:
        for group in request.resource_spans:
            self.resources.append({a.key: a.value.string_value for a in group.resource.attributes})
            self.spans += [span for scope in group.scope_spans for span in scope.spans]

    def ids(self) -> set[str]:
        return {span.span_id.hex() for span in self.spans}

    def close(self) -> None:
        self.closing.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.close()


@pytest.fixture
def silent() -> Iterator[Receiver]:
    receiver = Receiver(status=None)
    yield receiver
    receiver.close()


@pytest.fixture
def nobody() -> str:
    """Return the address of a port at which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing of OpenTelemetry is set by whoever runs the tests, and loopback has no proxy. What a
    test left to be sent is given up before the next one."""
    for name in os.environ:
        if name.startswith("OTEL_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield
    for thread in threading.enumerate():
        if thread.name == FLUSH_THREAD:
            thread.join()


def sending(*, flush_s: float = 60) -> CollectorSpans:
    """Return what sends to the collector that the environment names, with another bound."""
    exporter = pytest.importorskip(EXPORTER, reason="the extra 'otlp' is not installed")
    endpoint = os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] + "/v1/traces"
    log = FirstMessage()
    made: SpanExporter = exporter.OTLPSpanExporter()
    return CollectorSpans(made, endpoint, log=log, flush_s=flush_s)


def trace_some(provider: TracerProvider, count: int) -> None:
    tracer = provider.get_tracer("test")
    with tracer.start_as_current_span("thornback.run"):
        for number in range(count - 1):
            tracer.start_span("thornback.rank", attributes={"thornback.rank": number}).end()


def file_ids(path: Path | None) -> set[str]:
    assert path is not None
    return {json.loads(line)["span_id"] for line in path.read_text().splitlines()}


# --- whether, and where to -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": ""},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_SDK_DISABLED": "true"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_TRACES_EXPORTER": "none"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_TRACES_EXPORTER": "console"},
    ],
)
def test_nothing_is_sent_and_nothing_said_when_nobody_asks(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    warnings: list[str] = []
    assert collector(warnings.append) is None
    assert warnings == []


@pytest.mark.parametrize(
    "name", ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"]
)
def test_without_the_extra_the_mend_is_named(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.setitem(sys.modules, EXPORTER, None)  # as if it were not installed
    warnings: list[str] = []
    assert collector(warnings.append) is None
    assert warnings == [
        f"{name} is set, but its exporter is not installed, so no spans are sent: "
        "pip install 'thornback[otlp]'"
    ]


def test_another_protocol_is_refused_with_the_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4317")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    warnings: list[str] = []
    assert collector(warnings.append) is None
    (line,) = warnings
    assert "'grpc' is not supported" in line
    assert "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL=http/protobuf" in line


def test_an_exporter_that_cannot_be_made_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(EXPORTER, reason="the extra 'otlp' is not installed")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://[::1")
    warnings: list[str] = []
    assert collector(warnings.append) is None
    (line,) = warnings
    assert line.startswith("OTEL_EXPORTER_OTLP_ENDPOINT is set, but no spans are sent: ")


def test_the_endpoint_is_shown_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(EXPORTER, reason="the extra 'otlp' is not installed")
    endpoint = "http://user:secret@127.0.0.1:4318/v1/traces?key=secret"
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", endpoint)
    spans = collector(pytest.fail)
    assert spans is not None
    spans.shutdown()
    assert spans.endpoint == "http://127.0.0.1:4318/v1/traces"


# --- sending -------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["", "/"])
def test_every_span_of_the_file_arrives(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, path: str
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url + path)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-key=k")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "nightly")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "always_off")  # a trace with holes is no tree
    provider, trace = file_tracing(tmp_path)
    spans = collector(pytest.fail)
    assert spans is not None
    provider.add_span_processor(spans)
    trace_some(provider, 1000)
    provider.shutdown()
    provider.shutdown()
    assert receiver.ids() == file_ids(trace.path)
    assert (spans.sent, spans.failure) == (1000, "")
    assert spans.endpoint == f"{receiver.url}/v1/traces"
    assert {resource["service.name"] for resource in receiver.resources} == {"nightly"}
    assert {headers["x-key"] for headers in receiver.headers} == {"k"}


def test_nobody_there_is_told_in_one_line(
    nobody: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", nobody)
    spans = sending(flush_s=0.3)
    provider, trace = file_tracing(tmp_path)
    provider.add_span_processor(spans)
    trace_some(provider, 3)
    provider.shutdown()
    assert spans.sent == 0
    assert spans.failure.startswith(f"3 of 3 spans did not reach {nobody}/v1/traces (")
    assert spans.failure.endswith("Connection refused)")
    assert "\n" not in spans.failure
    assert len(file_ids(trace.path)) == 3
    assert caplog.records == []


@pytest.mark.timeout(20)  # what it must not wait for takes longer
def test_a_collector_that_never_answers_is_not_waited_for(
    silent: Receiver, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", silent.url)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "3600")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "4")
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "8")
    spans = sending(flush_s=0.1)
    provider, trace = file_tracing(tmp_path)
    provider.add_span_processor(spans)
    trace_some(provider, 4)
    assert silent.asked.wait(30)  # from now on the sending thread hangs
    trace_some(provider, 100)
    assert len(file_ids(trace.path)) == 104
    provider.shutdown()  # returns although no request has been answered
    assert not silent.closing.is_set()
    assert spans.failure.startswith("104 of 104 spans did not reach ")


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ("x-key=k", "401"),
        ("no secret may be quoted", "OTEL_EXPORTER_OTLP_HEADERS: expected name=value pairs"),
    ],
)
def test_a_collector_that_refuses_is_told_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, headers: str, reason: str
) -> None:
    receiver = Receiver(status=401)
    try:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", headers)
        spans = sending()
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(spans)
        trace_some(provider, 2)
        provider.shutdown()
    finally:
        receiver.close()
    assert spans.failure.startswith("2 of 2 spans did not reach ")
    assert reason in spans.failure
    assert "secret" not in spans.failure


def test_the_loggers_are_left_as_they_were(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    def state() -> list[tuple[bool, int]]:
        names = ("opentelemetry.exporter", "opentelemetry.sdk.trace.export")
        loggers = [logging.getLogger(name) for name in names]
        return [(logger.propagate, len(logger.handlers)) for logger in loggers]

    assert all(propagate for propagate, _ in state())

    before = state()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", receiver.url)
    for count in (0, 1):
        spans = sending()
        assert state() != before
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(spans)
        if count:
            trace_some(provider, count)
        provider.shutdown()
        assert state() == before


@pytest.mark.parametrize(("disabled", "fine"), [("true", True), ("", False)])
def test_only_where_tracing_is_off_may_a_trace_be_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, disabled: str, fine: bool
) -> None:
    monkeypatch.setenv("OTEL_SDK_DISABLED", disabled)
    provider, trace = file_tracing(tmp_path)
    if disabled:
        trace_some(provider, 3)
    provider.shutdown()
    assert trace.path is None
    output = io.StringIO()
    assert check_written(trace, Display(Console(file=output), lambda: 0.0)) == fine
    assert ("no whole trace was written" in output.getvalue()) == (not fine)


# --- the demo ------------------------------------------------------------------------------------


def interrupted_demo(folder: Path, variables: Mapping[str, str]) -> tuple[str, str]:
    """Run the demo until it has recorded something, then press Ctrl-C; return what it printed.

    To its end it would take ten times as long, and end in the same way.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", "thornback.cli", "demo", "--backend", "local", "--cpus", "2"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        env={**os.environ, **variables},
    )
    with process:
        assert process.stdout is not None
        printed = ""
        for line in process.stdout:
            printed += line
            if "] index " in line and "index 0/32" not in line:
                process.send_signal(signal.SIGINT)
                break
        rest, errors = process.communicate(timeout=60)
    assert process.returncode == 130, printed + rest + errors
    return printed + rest, errors


def test_the_spans_of_the_demo_arrive(receiver: Receiver, tmp_path: Path) -> None:
    output, errors = interrupted_demo(tmp_path, {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.url})
    (path,) = (tmp_path / ".thornback" / "demo" / "traces").iterdir()
    assert receiver.ids() == file_ids(path)
    names = {span.name for span in receiver.spans}
    assert {"thornback.run", "thornback.stage", "thornback.rank"} <= names
    assert f"spans    {len(receiver.spans)} sent to {receiver.url}/v1/traces" in output
    assert errors.count("\n") == 2, errors  # that it is being interrupted, and that it was


def test_without_a_collector_or_the_extra_the_demo_goes_on(nobody: str, tmp_path: Path) -> None:
    variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": nobody, "OTEL_EXPORTER_OTLP_TIMEOUT": "1"}
    output, errors = interrupted_demo(tmp_path, variables)
    assert "spans    " not in output
    lines = errors.splitlines()
    (warning,) = (line for line in lines if " spans " in line)
    if importlib.util.find_spec("opentelemetry.exporter"):
        assert " spans did not reach " in warning
        assert warning.endswith("; the trace file has them")
    else:
        assert warning.endswith("so no spans are sent: pip install 'thornback[otlp]'")
    assert len(lines) == 3
    assert "interrupted" in lines[-1]
