"""Spans as JSON lines: a tracer provider that writes them to a file, and a checker that reads them.

A line is one ended span, an object with `name`, `trace_id`, `span_id`, `parent_id` (null: none),
`links`, `start_ns`, `end_ns`, `attributes`, `status` and `status_text`. A file belongs to one run.
`thornback demo` writes one below its state, `traces/run-NNN.jsonl`.
"""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, TextIO

import attrs
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import format_span_id, format_trace_id

__all__ = ["TraceCheck", "check_trace"]

RUN = "thornback.run"
RANK = "thornback.rank"
_TYPES: Mapping[str, type | UnionType] = {
    "name": str,
    "trace_id": str,
    "span_id": str,
    "parent_id": str | None,
    "links": list,
    "start_ns": int,
    "end_ns": int,
    "attributes": dict,
}


class JsonLinesExporter(SpanExporter):
    """Appends each span to a file as soon as it ends, so that a killed driver loses no ended span.

    The file is made at the first span, with a number of its own in the folder: a run that traced
    nothing leaves none, and no run overwrites the trace of another. A file that cannot be written
    loses spans, never the run: `error` says so, and nothing further is tried.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()  # a provider may end spans on any thread
        self._file: TextIO | None = None
        self._closed = False
        self.path: Path | None = None
        self.error: OSError | None = None

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Write the spans. Never raises `OSError`."""
        lines = "".join(json.dumps(span_line(span)) + "\n" for span in spans)
        with self._lock:
            if self._closed or self.error is not None:
                return SpanExportResult.FAILURE
            try:
                self._file = self._file or self._open()
                self._file.write(lines)
                self._file.flush()
            except OSError as error:
                self.error = error
                return SpanExportResult.FAILURE
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        """Close the file. Idempotent; later spans are dropped."""
        with self._lock:
            self._closed = True
            if self._file is not None:
                self._file.close()

    def _open(self) -> TextIO:
        self._folder.mkdir(parents=True, exist_ok=True)
        number = 1 + len(list(self._folder.glob("run-*.jsonl")))
        while True:
            self.path = self._folder / f"run-{number:03d}.jsonl"
            try:
                return self.path.open("x", encoding="utf-8")
            except FileExistsError:
                number += 1


def file_tracing(folder: Path) -> tuple[TracerProvider, JsonLinesExporter]:
    """Return a provider whose spans go to a file in `folder`, and its exporter, which knows which.

    The provider is nobody's global and registers no exit handler: call its `shutdown`. It records
    every span, since a file that lacks some is no tree; the names in `OTEL_SERVICE_NAME` and
    `OTEL_RESOURCE_ATTRIBUTES` are for other processors, which may be added.
    """
    exporter = JsonLinesExporter(folder)
    resource = Resource({"service.name": "thornback"}).merge(OTELResourceDetector().detect())
    provider = TracerProvider(sampler=ALWAYS_ON, resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider, exporter


def span_line(span: ReadableSpan) -> dict[str, Any]:
    """Return a span as JSON. Ids are hexadecimal, times are nanoseconds since 1970."""
    return {
        "name": span.name,
        "trace_id": format_trace_id(span.context.trace_id),
        "span_id": format_span_id(span.context.span_id),
        "parent_id": format_span_id(span.parent.span_id) if span.parent else None,
        "links": [
            {
                "trace_id": format_trace_id(link.context.trace_id),
                "span_id": format_span_id(link.context.span_id),
                "attributes": _plain(link.attributes or {}),
            }
            for link in span.links
        ],
        "start_ns": span.start_time,
        "end_ns": span.end_time,
        "attributes": _plain(span.attributes or {}),
        "status": span.status.status_code.name,
        "status_text": span.status.description,
    }


def _plain(attributes: Mapping[str, Any]) -> dict[str, Any]:
    return {
        key: list(value) if isinstance(value, tuple) else value for key, value in attributes.items()
    }


@attrs.frozen(kw_only=True, slots=True)
class TraceCheck:
    """What a trace file holds, and what is wrong with it."""

    spans: int = 0
    """All spans, those of ranks among them."""
    ranks: int = 0
    """Rank spans: one per attempt that was worth a span."""
    retried: int = 0
    """Rank spans that follow a failed attempt: of attempt 2 or later, or linked."""
    problems: tuple[str, ...] = ()
    """What is wrong, a line each, with the line of the file or the span; empty if nothing is."""

    @property
    def ok(self) -> bool:
        """Whether it is one whole tree."""
        return not self.problems


def check_trace(path: Path) -> TraceCheck:
    """Return whether the spans of a file are one tree from run to rank, with the retries linked.

    Checked: every line is a span; one trace; ids are unique; the only span without a parent is the
    run; every parent is in the file, and leads to the run; a span does not end before it starts;
    every rank span lies below an assignment; every rank span of attempt 2 or later links to a span
    that is in the file. Time and memory are proportional to the file.

    Args:
        path: a file of JSON lines, as `thornback demo` writes it. What is wrong in it, also a torn
            line, is a problem in the answer, and raises nothing.

    Raises:
        OSError: the file cannot be read.
        UnicodeDecodeError: it is not text.
    """
    spans: list[dict[str, Any]] = []
    problems: list[str] = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            span = json.loads(line)
        except json.JSONDecodeError as error:
            problems.append(f"line {number}: not a span ({error})")
            continue
        if lacking := _lacking(span):
            problems.append(f"line {number}: no {', '.join(lacking)}")
        else:
            spans.append(span)
    ranks = [span for span in spans if span["name"] == RANK]
    retried = [span for span in ranks if _attempt(span) > 1 or span["links"]]
    return TraceCheck(
        spans=len(spans),
        ranks=len(ranks),
        retried=len(retried),
        problems=(*problems, *_tree_problems(spans), *_link_problems(spans, retried)),
    )


def _lacking(span: object) -> list[str]:
    """Return what a parsed line must have to be a span, and has not, or of another type."""
    if not isinstance(span, dict):
        return ["object"]
    lacking = [key for key, kind in _TYPES.items() if not isinstance(span.get(key), kind)]
    if "links" not in lacking and not all(isinstance(link, dict) for link in span["links"]):
        lacking.append("links")
    return lacking


def _attempt(span: Mapping[str, Any]) -> int:
    attempt = span["attributes"].get("thornback.attempt", 1)
    return attempt if isinstance(attempt, int) else 1


def _title(span: Mapping[str, Any]) -> str:
    return f"{span['name']} {span['span_id']}"


def _tree_problems(spans: Sequence[dict[str, Any]]) -> list[str]:
    by_id = {span["span_id"]: span for span in spans}
    traces = sorted({span["trace_id"] for span in spans})
    roots = [span for span in spans if span.get("parent_id") is None]
    problems = []
    if len(traces) != 1:
        problems.append(f"{len(traces)} traces, expected one")
    if [root["name"] for root in roots] != [RUN]:
        named = ", ".join(_title(root) for root in roots) or "none"
        problems.append(f"spans without a parent: {named}; expected one, {RUN}")
    counted = Counter(span["span_id"] for span in spans)
    problems += [f"span id {key} occurs {n} times" for key, n in counted.items() if n > 1]
    for span in spans:
        if span["start_ns"] > span["end_ns"]:
            problems.append(f"{_title(span)} ends before it starts")
        ancestors, reason = _ancestors(span, by_id)
        if reason:
            problems.append(f"{_title(span)} is an orphan: {reason}")
        elif span["name"] == RANK and "thornback.assignment" not in ancestors:
            problems.append(f"{_title(span)} is not below an assignment")
    return problems


def _ancestors(
    span: Mapping[str, Any], by_id: Mapping[str, Mapping[str, Any]]
) -> tuple[list[str], str]:
    """Return the names of a span's ancestors, and why they do not lead to a root, if so."""
    names: list[str] = []
    seen = {span["span_id"]}
    while (parent := span.get("parent_id")) is not None:
        if parent in seen:
            return names, f"its parents form a circle at {parent}"
        if parent not in by_id:
            return names, f"parent {parent} is not in the file"
        seen.add(parent)
        span = by_id[parent]
        names.append(span["name"])
    return names, ""


def _link_problems(
    spans: Sequence[Mapping[str, Any]], retried: Sequence[Mapping[str, Any]]
) -> list[str]:
    known = {(span["trace_id"], span["span_id"]) for span in spans}
    problems = []
    for span in retried:
        links = [(str(link.get("trace_id")), str(link.get("span_id"))) for link in span["links"]]
        if not links:
            problems.append(f"{_title(span)} is attempt {_attempt(span)} and has no link")
        problems += [
            f"{_title(span)} links to span {span_id}, which is not in the file"
            for trace_id, span_id in links
            if (trace_id, span_id) not in known
        ]
    return problems
