"""A run over real processes is one trace, from `thornback.run` to the spans of user code."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from thornback.executor import Executor, Job, RankContext, RunReport, Stage

MS = 1_000_000
"""Clocks of one machine: how far the wall clock may be from the monotonic one, in ns."""


def run(folder: Path, stage: Stage) -> tuple[RunReport, list[ReadableSpan]]:
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    executor = Executor.on_local(state=str(folder / "state"), cpus=2, tracer_provider=provider)
    report = executor.run(Job("j", [stage]), check=False)
    return report, list(exporter.get_finished_spans())


def ancestry(span: ReadableSpan, spans: list[ReadableSpan]) -> list[ReadableSpan]:
    """Return a span and those above it, up to the run."""
    found = [span]
    while (above := found[-1].parent) is not None:
        found += [each for each in spans if id_of(each) == above.span_id]
    return found


def begin_of(span: ReadableSpan) -> int:
    assert span.start_time is not None
    return span.start_time


def end_of(span: ReadableSpan) -> int:
    assert span.end_time is not None
    return span.end_time


def id_of(span: ReadableSpan) -> int:
    context = span.get_span_context()
    assert context is not None
    return context.span_id


def paths(spans: list[ReadableSpan]) -> list[str]:
    """Return every span as the names from the run to it; of ranks also number and attempt."""

    def name(span: ReadableSpan) -> str:
        what = span.attributes or {}
        if span.name != "thornback.rank":
            return span.name.removeprefix("thornback.")
        return f"rank {what['thornback.rank']!r} attempt {what['thornback.attempt']!r}"

    assert len({span.context.trace_id for span in spans if span.context}) == 1
    return sorted("/".join(map(name, reversed(ancestry(span, spans)))) for span in spans)


def test_what_a_rank_traces_lies_beneath_its_span_in_every_attempt(tmp_path: Path) -> None:
    def load(ctx: RankContext) -> None:
        from opentelemetry import trace

        with trace.get_tracer("mine").start_as_current_span("load"):
            pass

    def work(ctx: RankContext) -> None:
        from opentelemetry import trace

        with trace.get_tracer("mine").start_as_current_span("clean"):
            with trace.get_tracer("mine").start_as_current_span("step"):
                pass
            if ctx.rank == 1 and ctx.attempt == 1:
                raise ValueError("once")

    stage = Stage("a", work, ranks=2, retries=1, setup=load, max_gangs=1)
    report, spans = run(tmp_path, stage)
    assert report.state == "succeeded", report
    assert [each for each in paths(spans) if "assignment/" in each] == [
        "run/stage/assignment/load",
        "run/stage/assignment/rank 0 attempt 1",
        "run/stage/assignment/rank 0 attempt 1/clean",
        "run/stage/assignment/rank 0 attempt 1/clean/step",
        "run/stage/assignment/rank 1 attempt 1",
        "run/stage/assignment/rank 1 attempt 1/clean",
        "run/stage/assignment/rank 1 attempt 1/clean/step",
        "run/stage/assignment/rank 1 attempt 2",
        "run/stage/assignment/rank 1 attempt 2/clean",
        "run/stage/assignment/rank 1 attempt 2/clean/step",
    ]
    for step in (span for span in spans if span.name == "step"):
        for inner, outer in pairwise(ancestry(step, spans)[:3]):  # step, clean, rank
            assert begin_of(outer) - MS <= begin_of(inner) <= end_of(inner) <= end_of(outer) + MS


def test_spans_of_a_rank_that_is_killed_are_lost_and_of_its_next_attempt_are_there(
    tmp_path: Path,
) -> None:
    def work(ctx: RankContext) -> None:
        import os

        from opentelemetry import trace

        with trace.get_tracer("mine").start_as_current_span("clean"):
            if ctx.attempt == 1:
                os.kill(os.getpid(), 9)

    report, spans = run(tmp_path, Stage("a", work))
    assert report.state == "succeeded", report
    assert [each for each in paths(spans) if "rank" in each] == [
        "run/stage/assignment/rank 0 attempt 1",
        "run/stage/assignment/rank 0 attempt 2",
        "run/stage/assignment/rank 0 attempt 2/clean",
    ]


def test_a_provider_of_the_user_s_continues_the_trace_below_the_assignment(tmp_path: Path) -> None:
    def work(ctx: RankContext) -> list[str]:
        from opentelemetry import trace
        from opentelemetry.sdk.trace import TracerProvider

        trace.set_tracer_provider(TracerProvider())
        with trace.get_tracer("mine").start_as_current_span("mine") as span:
            context = span.get_span_context()
        assert isinstance(span, ReadableSpan)
        assert span.parent is not None
        return [f"{context.trace_id:032x}", f"{span.parent.span_id:016x}", ctx.traceparent[:52]]

    report, spans = run(tmp_path, Stage("a", work))
    assert report.state == "succeeded", report
    (result,) = report.results("a").values()
    assert isinstance(result, list)
    (assignment,) = (span for span in spans if span.name == "thornback.assignment")
    context = assignment.get_span_context()
    assert context is not None
    expected = [f"{context.trace_id:032x}", f"{context.span_id:016x}"]
    assert result == [*expected, "-".join(["00", *expected])]
    assert "mine" not in {span.name for span in spans}


def test_without_a_provider_on_the_driver_a_rank_pays_nothing(tmp_path: Path) -> None:
    def work(ctx: RankContext) -> list[str]:
        import sys

        from opentelemetry import trace

        with trace.get_tracer("mine").start_as_current_span("clean"):
            return [ctx.traceparent, *(name for name in sys.modules if name.endswith("sdkspans"))]

    report = Executor.on_local(state=str(tmp_path), cpus=2).run(Job("j", [Stage("a", work)]))
    assert report.results("a") == {0: [""]}
