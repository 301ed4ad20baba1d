"""Spans of a run, by the OpenTelemetry API alone: without an SDK they cost next to nothing and go
nowhere.

    thornback.run
      thornback.gang            one per gang; beneath it those of allocator and pool
      thornback.stage           from its first dispatch to its last record
        thornback.assignment    its context is the traceparent that the ranks get
          thornback.rank        one per attempt, made from its outcome
            ...                 what user code traced in the rank, made again from its outcome

A retry is linked to the attempt before. A rank span is made for faults, for retries, for ranks of
100 ms and more, and for ranks in which user code traced something; others are counted on their
assignment."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TypeVar

import attrs
from opentelemetry import trace
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, Status, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from thornback.executor.ports import Ranks
from thornback.faults import Fault, Redactor
from thornback.pool import Outcome, SpanData

logger = logging.getLogger(__name__)
LONG_RANK_S = 0.1
USER_SPANS_PER_S = 1000
"""Spans of user code that are made again, on average: at 20 to 50 us each (measured, with a
processor), at most a twentieth of the driver's time."""
USER_SPANS_AT_ONCE = 5000
"""Beyond the average: at most a quarter of a second."""
MAX_LINKED_LOST_RANKS = 1000
"""Of one lost assignment; more are retried without a link, so that a loss costs bounded memory."""
_KINDS = {kind.name.lower(): kind for kind in SpanKind}
_FAR_S = 1e9
V = TypeVar("V")


@attrs.define(slots=True)
class _Assignment:
    span: Span
    stage: int
    attempt: int
    quick: int = 0
    dropped: int = 0
    """Spans of user code."""


class RunTracer:
    """Live spans of one run. Every method is quick and does no I/O (exporting is the SDK's
    affair)."""

    def __init__(
        self, tracer: Tracer, job: str, stages: Sequence[str], redactor: Redactor | None = None
    ) -> None:
        self._tracer = tracer
        self._redactor = redactor or Redactor()
        self._names = tuple(stages)
        self._run = tracer.start_span("thornback.run", attributes={"thornback.job": job})
        self._stages: dict[int, Span] = {}
        self._gangs: dict[int, Span] = {}
        self._assignments: dict[int, _Assignment] = {}
        self._before: dict[tuple[int, int], SpanContext] = {}
        self._left = float(USER_SPANS_AT_ONCE)
        self._refilled_ns = 0
        self._told = False

    def _child(self, name: str, parent: Span, attributes: dict[str, str | int | float]) -> Span:
        context = trace.set_span_in_context(parent)
        return self._tracer.start_span(name, context=context, attributes=attributes)

    def started(self, term: int, state_url: str, backend: str) -> None:
        """Note what became known after the run span was opened."""
        self._run.set_attributes(
            {"thornback.term": term, "thornback.state": state_url, "thornback.backend": backend}
        )

    def gang_opened(self, gang: int) -> Span:
        """Open and return the span of a gang."""
        span = self._child("thornback.gang", self._run, {"thornback.gang": gang})
        self._gangs[gang] = span
        return span

    def gang_lost(self, gang: int, fault: Fault) -> None:
        """Mark the gang's span as failed; it ends with `gang_closed`."""
        if span := self._gangs.get(gang):
            _blame(span, fault)

    def gang_closed(self, gang: int, confirmed: bool) -> None:
        """End the gang's span."""
        if span := self._gangs.pop(gang, None):
            span.set_attribute("thornback.confirmed", confirmed)
            span.end()

    def dispatched(
        self, stage: int, gang: int, assignment: int, ranks: Ranks, attempt: int, epoch: str
    ) -> str:
        """Open the span of an assignment and return its traceparent."""
        if stage not in self._stages:
            name = {"thornback.stage": self._names[stage]}
            self._stages[stage] = self._child("thornback.stage", self._run, {**name})
        span = self._child(
            "thornback.assignment",
            self._stages[stage],
            {
                "thornback.stage": self._names[stage],
                "thornback.gang": gang,
                "thornback.epoch": epoch,
                "thornback.ranks": " ".join(f"{r.start}-{r.stop - 1}" for r in ranks[:32]),
                "thornback.attempt": attempt,
            },
        )
        self._assignments[assignment] = _Assignment(span, stage, attempt)
        carrier: dict[str, str] = {}
        TraceContextTextMapPropagator().inject(carrier, trace.set_span_in_context(span))
        return carrier.get("traceparent", "")

    def outcome(self, assignment: int, outcome: Outcome, fault: Fault | None, now_ns: int) -> None:
        """Make the span of a rank's attempt, where it deserves one."""
        live = self._assignments.get(assignment)
        if live is None:
            return
        key = (live.stage, outcome.rank)
        before = self._before.pop(key, None)
        room = self._take(len(outcome.spans), now_ns)
        dropped = outcome.spans_dropped + len(outcome.spans) - room
        if fault is None and before is None and outcome.ran_s < LONG_RANK_S and not room:
            live.quick += 1
            live.dropped += dropped
            return
        end_ns = now_ns - int(outcome.ago_s * 1e9)
        links = [Link(before, {"thornback.link": "retry of"})] if before else []
        span = self._tracer.start_span(
            "thornback.rank",
            context=trace.set_span_in_context(live.span),
            start_time=end_ns - int(outcome.ran_s * 1e9),
            links=links,
            attributes={
                "thornback.stage": self._names[live.stage],
                "thornback.rank": outcome.rank,
                "thornback.attempt": live.attempt,
                "thornback.node": outcome.node,
                "thornback.peak_rss_bytes": outcome.peak_rss_bytes,
            },
        )
        if fault is not None:
            _blame(span, fault)
            self._before[key] = span.get_span_context()
        if dropped:
            span.set_attribute("thornback.spans_dropped", dropped)
        if room:
            early = span if outcome.phase == "setup" else live.span
            self._make_again(outcome.spans[:room], early, span, end_ns)
        span.end(end_time=end_ns)

    def _take(self, wanted: int, now_ns: int) -> int:
        """Return how many spans of user code may be made now."""
        if not wanted:
            return 0
        passed_s = max(0, now_ns - self._refilled_ns) / 1e9
        self._refilled_ns = now_ns
        self._left = min(USER_SPANS_AT_ONCE, self._left + passed_s * USER_SPANS_PER_S)
        taken = min(wanted, int(self._left))
        self._left -= taken
        return taken

    def _make_again(self, spans: Sequence[SpanData], early: Span, rank: Span, end_ns: int) -> None:
        """Make spans of user code again, parents first; those of the set-up lie below `early`."""
        made: dict[str, SpanContext] = {}
        try:
            for data in spans:
                above = early if data.in_setup else rank
                if data.parent_id in made:
                    above = trace.NonRecordingSpan(made[data.parent_id])
                made[data.span_id] = self._make_one(data, above, made, end_ns)
        except Exception:  # the data are not ours, and the SDK is not ours
            if not self._told:
                logger.warning("spans of ranks are lost: they could not be made", exc_info=True)
            self._told = True

    def _make_one(
        self, data: SpanData, above: Span, made: Mapping[str, SpanContext], end_ns: int
    ) -> SpanContext:
        others = [(_context_of(traceparent), attributes) for traceparent, attributes in data.links]
        span = self._tracer.start_span(
            data.name,
            context=trace.set_span_in_context(above),
            kind=_KINDS.get(data.kind, SpanKind.INTERNAL),
            attributes={**self._without_secrets(data.attributes), "otel.scope.name": data.scope},
            links=[
                Link(made.get(trace.format_span_id(other.span_id), other), attributes)
                for other, attributes in others
                if other.is_valid
            ],
            start_time=_ago(end_ns, data.before_end_s),
        )
        for before_end_s, name, attributes in data.events:
            told = self._without_secrets(attributes)
            span.add_event(name, told, timestamp=_ago(end_ns, before_end_s))
        if data.status == "ok":
            span.set_status(StatusCode.OK)
        elif data.status == "error":
            span.set_status(StatusCode.ERROR, self._redactor.redact(data.status_text))
        span.end(end_time=_ago(end_ns, data.before_end_s - data.duration_s))
        return span.get_span_context()

    def _without_secrets(self, attributes: Mapping[str, V]) -> dict[str, V | str]:
        """Return attributes of a span of user code: they may hold URLs and texts of exceptions."""
        hide = self._redactor.redact
        return {k: hide(v) if isinstance(v, str) else v for k, v in attributes.items()}

    def assignment_ended(
        self, assignment: int, lost: Ranks = (), fault: Fault | None = None
    ) -> None:
        """End the span of an assignment; `lost` are the ranks it will never report."""
        live = self._assignments.pop(assignment, None)
        if live is None:
            return
        if fault is not None:
            _blame(live.span, fault)
            if sum(map(len, lost)) <= MAX_LINKED_LOST_RANKS:
                for rank in (rank for piece in lost for rank in piece):
                    self._before[live.stage, rank] = live.span.get_span_context()
        live.span.set_attribute("thornback.ranks_counted", live.quick)
        if live.dropped:
            live.span.set_attribute("thornback.spans_dropped", live.dropped)
        live.span.end()

    def stage_ended(self, stage: int, done: int, failed: int, skipped: int) -> None:
        """End the span of a stage."""
        if span := self._stages.pop(stage, None):
            counts = {"done": done, "failed": failed, "skipped": skipped}
            span.set_attributes({f"thornback.{name}": count for name, count in counts.items()})
            if failed or skipped:
                span.set_status(Status(StatusCode.ERROR, f"{failed} failed, {skipped} skipped"))
            span.end()

    def finished(self, state: str, reason: str) -> None:
        """End every span that is still open, the run's last."""
        for assignment in list(self._assignments):
            self.assignment_ended(assignment)
        for stage in list(self._stages):
            self._stages.pop(stage).end()
        for gang in list(self._gangs):
            self._gangs.pop(gang).end()
        self._run.set_attribute("thornback.state_at_end", state)
        if state != "succeeded":
            self._run.set_status(Status(StatusCode.ERROR, reason))
        self._run.end()


def _ago(end_ns: int, before_end_s: float) -> int:
    """Return a time that exporters can write: user code may have given any."""
    return end_ns - int(min(max(-_FAR_S, before_end_s), _FAR_S) * 1e9)


def _context_of(traceparent: str) -> SpanContext:
    context = TraceContextTextMapPropagator().extract({"traceparent": traceparent})
    return trace.get_current_span(context).get_span_context()


def _blame(span: Span, fault: Fault) -> None:
    span.set_attributes(
        {
            "thornback.fault.kind": fault.kind.value,
            "thornback.fault.origin": fault.origin.value,
            "thornback.fault.rule": fault.rule,
        }
    )
    span.set_status(Status(StatusCode.ERROR, fault.message[:500]))
