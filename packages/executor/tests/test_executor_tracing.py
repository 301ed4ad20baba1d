"""Spans of user code are made again beneath their rank's, within bounds, and harm nothing."""

from __future__ import annotations

import logging
from typing import Any

import attrs
import pytest
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode

from thornback.executor.tracing import USER_SPANS_AT_ONCE, USER_SPANS_PER_S, RunTracer
from thornback.pool import Outcome, SpanData

NOW_NS = 1_700_000_000_000_000_000
S = 1_000_000_000
INNER = SpanData(name="inner", span_id="00000000000000aa", before_end_s=1.5, duration_s=1.0)


class World:
    """A run of one stage with one assignment."""

    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.provider = TracerProvider()
        self.provider.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.tracer = RunTracer(self.provider.get_tracer("test"), "j", ["a"])
        self.traceparent = self.tracer.dispatched(0, 1, 1, (range(9),), 1, "000001.000000001")

    def outcome(self, *spans: SpanData, now_ns: int = NOW_NS, **fields: Any) -> None:
        outcome = Outcome(**{"rank": 0, "ok": True, "ran_s": 0.0, **fields, "spans": spans})
        self.tracer.outcome(1, outcome, None, now_ns)

    def finish(self) -> dict[str, ReadableSpan]:
        """Return the spans by name; several of one name: the last."""
        self.tracer.assignment_ended(1)
        self.tracer.finished("succeeded", "")
        return {span.name: span for span in self.exporter.get_finished_spans()}

    def count(self, name: str) -> int:
        return [span.name for span in self.exporter.get_finished_spans()].count(name)


def parent_of(span: ReadableSpan) -> int:
    assert span.parent is not None
    return span.parent.span_id


def id_of(span: ReadableSpan) -> int:
    context = span.get_span_context()
    assert context is not None
    return context.span_id


def test_a_span_is_made_again_as_it_was() -> None:
    world = World()
    child = attrs.evolve(
        INNER,
        name="child",
        span_id="00000000000000bb",
        parent_id=INNER.span_id,
        kind="client",
        status="error",
        status_text="broken",
        scope="mine",
        before_end_s=1.0,
        duration_s=0.25,
        attributes={"a": (1, 2)},
        events=((0.875, "exception", {"exception.type": "ValueError"}),),
        links=(
            (f"00-{'1' * 32}-{INNER.span_id}-01", {"to": "the one before"}),
            (f"00-{'1' * 32}-{'2' * 16}-01", {"to": "elsewhere"}),
            ("nonsense", {}),
        ),
    )
    world.outcome(INNER, child, ran_s=2.0, ago_s=0.5)
    spans = world.finish()
    rank, inner, made = spans["thornback.rank"], spans["inner"], spans["child"]
    assert parent_of(inner) == id_of(rank)
    assert parent_of(made) == id_of(inner)
    assert parent_of(rank) == id_of(spans["thornback.assignment"])
    end_ns = NOW_NS - S // 2
    assert (rank.start_time, rank.end_time) == (end_ns - 2 * S, end_ns)
    assert (inner.start_time, inner.end_time) == (end_ns - 3 * S // 2, end_ns - S // 2)
    assert (made.start_time, made.end_time) == (end_ns - S, end_ns - 3 * S // 4)
    assert (made.kind, made.status.status_code) == (SpanKind.CLIENT, StatusCode.ERROR)
    assert made.status.description == "broken"
    assert dict(made.attributes or {}) == {"a": (1, 2), "otel.scope.name": "mine"}
    ((name, time_ns),) = [(event.name, event.timestamp) for event in made.events]
    assert (name, time_ns) == ("exception", end_ns - 7 * S // 8)
    assert [link.context.span_id for link in made.links] == [id_of(inner), int("2" * 16, 16)]
    assert {span.context.trace_id for span in (rank, inner, made) if span.context} == {
        int(world.traceparent.split("-")[1], 16)
    }


def test_a_short_rank_has_a_span_if_user_code_made_one() -> None:
    world = World()
    world.outcome()
    world.outcome(INNER, rank=1)
    attributes = world.finish()["thornback.assignment"].attributes or {}
    assert world.count("thornback.rank") == 1
    assert attributes["thornback.ranks_counted"] == 1
    assert "thornback.spans_dropped" not in attributes


def test_spans_of_the_set_up_lie_where_their_time_is() -> None:
    early = attrs.evolve(INNER, in_setup=True)
    world = World()
    world.outcome(early)
    spans = world.finish()
    assert parent_of(spans["inner"]) == id_of(spans["thornback.assignment"])
    world = World()
    world.outcome(early, phase="setup")
    spans = world.finish()
    assert parent_of(spans["inner"]) == id_of(spans["thornback.rank"])


def test_what_exceeds_the_driver_s_time_is_dropped_and_counted() -> None:
    world = World()
    for rank in range(USER_SPANS_AT_ONCE // 1000):
        world.outcome(*[INNER] * 1000, rank=rank, spans_dropped=7)
    world.outcome(INNER, INNER, rank=20)  # nothing is left, and it is short
    world.outcome(*[INNER] * 900, rank=21, now_ns=NOW_NS + S // 4)
    world.outcome(INNER, rank=22, now_ns=NOW_NS)  # a clock that was set back gives nothing
    ranks = [s for s in world.exporter.get_finished_spans() if s.name == "thornback.rank"]
    counts = [(each.attributes or {}).get("thornback.spans_dropped") for each in ranks]
    assert counts == [7] * (USER_SPANS_AT_ONCE // 1000) + [900 - USER_SPANS_PER_S // 4]
    attributes = world.finish()["thornback.assignment"].attributes or {}
    assert attributes["thornback.spans_dropped"] == 3
    assert attributes["thornback.ranks_counted"] == 2
    assert world.count("inner") == USER_SPANS_AT_ONCE + USER_SPANS_PER_S // 4


def test_nonsense_is_taken_as_it_can_be() -> None:
    world = World()
    odd = attrs.evolve(
        INNER,
        kind="odd",
        status="odd",
        parent_id="not one of these",
        before_end_s=1e300,
        duration_s=-1e300,
        events=((-1e300, "", {}),),
    )
    world.outcome(odd)
    span = world.finish()["inner"]
    assert span.kind is SpanKind.INTERNAL
    assert (span.start_time, span.end_time) == (NOW_NS - 10**18, NOW_NS - 10**18)


def test_an_sdk_that_refuses_a_span_harms_nothing(caplog: pytest.LogCaptureFixture) -> None:
    class Refuses(SpanProcessor):
        def on_start(self, span: Span, parent_context: object = None) -> None:
            if span.name == "inner":
                raise RuntimeError("no")

    world = World()
    world.provider.add_span_processor(Refuses())
    with caplog.at_level(logging.WARNING):
        world.outcome(INNER)
        world.outcome(INNER, rank=1)
    world.finish()
    assert world.count("thornback.rank") == 2
    assert len(caplog.records) == 1
