"""The trace file and its checker, with the SDK and without a run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.trace import Link, Span, SpanContext, Status, StatusCode, Tracer

from thornback.cli.trace_file import check_trace, file_tracing

Line = dict[str, Any]


def write_run(folder: Path) -> Path:
    """Write the spans of a small run in which rank 3 failed once."""
    provider, exporter = file_tracing(folder)
    tracer = provider.get_tracer("test")
    with (
        tracer.start_as_current_span("thornback.run", attributes={"thornback.job": "demo"}),
        tracer.start_as_current_span("thornback.stage"),
    ):
        before = assignment(tracer, 1, None)
        assignment(tracer, 2, before)
    provider.shutdown()
    assert exporter.path is not None
    return exporter.path


def assignment(tracer: Tracer, attempt: int, before: SpanContext | None) -> SpanContext:
    links = [Link(before, {"why": "retry"})] if before else []
    with tracer.start_as_current_span("thornback.assignment"):
        rank: Span = tracer.start_span("thornback.rank", links=links)
        rank.set_attribute("thornback.rank", 3)
        rank.set_attribute("thornback.attempt", attempt)
        rank.set_attribute("ranks", (1, 2))
        if before is None:
            rank.set_status(Status(StatusCode.ERROR, "killed"))
        rank.end()
    return rank.get_span_context()


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    return write_run(tmp_path / "traces")


def lines_of(path: Path) -> list[Line]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_is_one_span_with_everything_in_it(run_file: Path) -> None:
    first = lines_of(run_file)[0]
    assert set(first) == {
        "name", "trace_id", "span_id", "parent_id", "links",
        "start_ns", "end_ns", "attributes", "status", "status_text",
    }  # fmt: skip
    assert first["name"] == "thornback.rank"
    assert first["attributes"] == {"thornback.rank": 3, "thornback.attempt": 1, "ranks": [1, 2]}
    assert (first["status"], first["status_text"]) == ("ERROR", "killed")
    assert (len(first["trace_id"]), len(first["span_id"])) == (32, 16)
    assert 0 < first["start_ns"] <= first["end_ns"]


def test_a_whole_tree_is_fine(run_file: Path) -> None:
    check = check_trace(run_file)
    assert check.ok, check.problems
    assert (check.spans, check.ranks, check.retried) == (6, 2, 1)


def test_every_run_has_a_file_of_its_own(tmp_path: Path) -> None:
    paths = [write_run(tmp_path), write_run(tmp_path)]
    (tmp_path / "run-004.jsonl").write_text("")  # as if run-003 had been deleted
    paths.append(write_run(tmp_path))
    assert [path.name for path in paths] == ["run-001.jsonl", "run-002.jsonl", "run-005.jsonl"]


def test_spans_are_in_the_file_as_soon_as_they_end(tmp_path: Path) -> None:
    provider, exporter = file_tracing(tmp_path)
    provider.get_tracer("test").start_span("early").end()
    assert exporter.path is not None
    assert [line["name"] for line in lines_of(exporter.path)] == ["early"]
    provider.shutdown()
    provider.shutdown()


def test_nothing_traced_leaves_no_file(tmp_path: Path) -> None:
    provider, exporter = file_tracing(tmp_path / "traces")
    provider.shutdown()
    assert exporter.path is None
    assert not (tmp_path / "traces").exists()


def test_a_file_that_cannot_be_written_loses_spans_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "traces").write_text("in the way")
    provider, exporter = file_tracing(tmp_path / "traces")
    for name in ("one", "two"):
        provider.get_tracer("test").start_span(name).end()
    provider.shutdown()
    assert isinstance(exporter.error, OSError)


def test_the_provider_is_nobodys_global(run_file: Path) -> None:
    assert not isinstance(trace.get_tracer_provider(), type(file_tracing(run_file)[0]))


def orphan(lines: list[Line]) -> None:
    lines[1]["parent_id"] = "0" * 16


def second_root(lines: list[Line]) -> None:
    lines[3]["parent_id"] = None


def no_run(lines: list[Line]) -> None:
    del lines[-1]


def foreign_trace(lines: list[Line]) -> None:
    lines[0]["trace_id"] = "f" * 32


def twice(lines: list[Line]) -> None:
    lines.append(lines[0])


def circle(lines: list[Line]) -> None:
    lines[1]["parent_id"] = lines[0]["span_id"]


def rank_of_stage(lines: list[Line]) -> None:
    lines[0]["parent_id"] = lines[4]["span_id"]


def unlinked(lines: list[Line]) -> None:
    lines[2]["links"] = []


def link_to_nothing(lines: list[Line]) -> None:
    lines[2]["links"][0]["span_id"] = "0" * 16


def backwards(lines: list[Line]) -> None:
    lines[2]["end_ns"] = lines[2]["start_ns"] - 1


def no_span(lines: list[Line]) -> None:
    del lines[0]["span_id"]


def no_object(lines: list[Any]) -> None:
    lines[0] = 3


def no_time(lines: list[Line]) -> None:
    lines[0]["end_ns"] = None


def no_link(lines: list[Line]) -> None:
    lines[2]["links"] = ["x"]


def link_without_span(lines: list[Line]) -> None:
    lines[2]["links"] = [{"span_id": []}]


def attempt_in_words(lines: list[Line]) -> None:
    lines[2]["attributes"]["thornback.attempt"] = "second"
    lines[2]["parent_id"] = "0" * 16


def empty(lines: list[Line]) -> None:
    lines.clear()


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (orphan, "is not in the file"),
        (second_root, "spans without a parent"),
        (no_run, "is not in the file"),
        (foreign_trace, "2 traces"),
        (twice, "occurs 2 times"),
        (circle, "circle"),
        (rank_of_stage, "not below an assignment"),
        (unlinked, "is attempt 2 and has no link"),
        (link_to_nothing, "links to span"),
        (backwards, "ends before it starts"),
        (no_span, "line 1: no span_id"),
        (no_object, "line 1: no object"),
        (no_time, "line 1: no end_ns"),
        (no_link, "line 3: no links"),
        (link_without_span, "which is not in the file"),
        (attempt_in_words, "is not in the file"),
        (empty, "0 traces"),
    ],
)
def test_the_checker_finds(
    run_file: Path, spoil: Callable[[list[Line]], None], problem: str
) -> None:
    lines = lines_of(run_file)
    spoil(lines)
    run_file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    check = check_trace(run_file)
    assert not check.ok
    assert problem in "\n".join(check.problems)


def test_a_torn_line_is_named(run_file: Path) -> None:
    with run_file.open("a") as file:
        file.write('{"name": "thornback.ra')
    assert any(
        problem.startswith("line 7: not a span") for problem in check_trace(run_file).problems
    )
