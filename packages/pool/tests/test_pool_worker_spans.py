"""What user code traces in a rank comes back with its outcome, and cannot harm it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from thornback.pool import Assignment, Outcome, SpanData, WorkerSpec
from thornback.pool.worker.params import SupervisorParams
from thornback.pool.worker.sources import source_program
from thornback.pool.worker.spandata import MAX_RANK_BYTES, MAX_SPANS, spans_from_plain
from thornback.pool.worker.supervisor import Supervisor

pytestmark = pytest.mark.anyio

BOUND_S = 60.0
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SAMPLED = f"00-{TRACE}-{PARENT}-01"
IMPORTS = """
import json, sys, time
from opentelemetry import trace
from opentelemetry.trace import SpanKind, Link, Status, StatusCode
tracer = trace.get_tracer('mine')
"""
"""Before every body and set-up here."""


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def no_way(reason: str) -> None:
    raise AssertionError(f"the worker gave up: {reason}")


@asynccontextmanager
async def running(spec: WorkerSpec) -> AsyncIterator[Supervisor]:
    params = SupervisorParams(reclaim_s=BOUND_S)
    with anyio.fail_after(BOUND_S):
        supervisor = Supervisor(spec, "node-1", params=params, give_up=no_way)
        await supervisor.start()
        try:
            yield supervisor
        finally:
            assert await supervisor.close()


async def traced(
    body: str,
    *,
    setup: str = "pass",
    ranks: int = 1,
    traceparent: str = SAMPLED,
    env: Mapping[str, str] | None = None,
) -> tuple[Outcome, ...]:
    """Run the body as the ranks of one assignment, one after the other in one process."""
    async with running(WorkerSpec(env=env or {})) as supervisor:
        await supervisor.load("p", source_program(IMPORTS + body, IMPORTS + setup))
        work = Assignment(
            assignment=1,
            epoch="000001.000000001",
            stage=0,
            ranks=(range(ranks),),
            program="p",
            traceparent=traceparent,
        )
        report = await supervisor.run(work)
        assert report.final
        return report.outcomes


def named(outcome: Outcome) -> dict[str, SpanData]:
    assert len({span.name for span in outcome.spans}) == len(outcome.spans)
    return {span.name: span for span in outcome.spans}


FAMILY = """
with tracer.start_as_current_span('parent', kind=SpanKind.CLIENT, attributes={'size': 3}) as parent:
    parent.add_event('saw it', {'what': ['a', 'b']})
    with trace.get_tracer('other').start_as_current_span('child') as child:
        child.set_status(Status(StatusCode.ERROR, 'broken'))
    linked = tracer.start_span('linked', links=[Link(child.get_span_context(), {'why': 'x'})])
    linked.end()
return [f'{child.get_span_context().trace_id:032x}', f'{child.get_span_context().span_id:016x}']
"""


async def test_spans_travel_with_the_outcome_as_they_were_made() -> None:
    (outcome,) = await traced(FAMILY)
    assert outcome.ok, outcome.error
    trace_id, child_id = json.loads(outcome.result or "")
    assert trace_id == TRACE
    assert [span.name for span in outcome.spans] == ["parent", "child", "linked"]
    parent, child, linked = outcome.spans
    assert (parent.parent_id, child.parent_id, linked.parent_id) == (
        "",
        parent.span_id,
        parent.span_id,
    )
    assert child.span_id == child_id
    assert (parent.kind, dict(parent.attributes), parent.scope) == ("client", {"size": 3}, "mine")
    assert (child.status, child.status_text, child.scope) == ("error", "broken", "other")
    assert linked.links == ((f"00-{trace_id}-{child_id}-01", {"why": "x"}),)
    ((before_end_s, name, attributes),) = parent.events
    assert (name, attributes) == ("saw it", {"what": ("a", "b")})
    assert outcome.ran_s >= parent.before_end_s >= before_end_s >= child.before_end_s > 0
    assert parent.before_end_s >= parent.duration_s >= child.duration_s + linked.duration_s
    assert not any(span.in_setup for span in outcome.spans)
    assert outcome.spans_dropped == 0


async def test_each_rank_has_its_own_spans_and_a_failed_one_too() -> None:
    body = """
if call.rank == 1: return
with tracer.start_as_current_span(f'rank {call.rank}'):
    if call.rank == 2: raise ValueError('bad')
"""
    outcomes = await traced(body, ranks=4)
    assert [[span.name for span in outcome.spans] for outcome in outcomes] == [
        ["rank 0"],
        [],
        ["rank 2"],
        ["rank 3"],
    ]
    assert not outcomes[2].ok
    (failed,) = outcomes[2].spans
    assert (failed.status, failed.status_text) == ("error", "ValueError: bad")
    ((_, name, attributes),) = failed.events
    assert (name, attributes["exception.type"]) == ("exception", "ValueError")


async def test_spans_of_the_set_up_travel_with_the_first_rank_or_its_failure() -> None:
    setup = "with tracer.start_as_current_span('load'): pass"
    body = "with tracer.start_as_current_span(f'rank {call.rank}'): pass"
    first, second = await traced(body, setup=setup, ranks=2)
    assert {name: span.in_setup for name, span in named(first).items()} == {
        "load": True,
        "rank 0": False,
    }
    assert list(named(second)) == ["rank 1"]
    load = named(first)["load"]
    assert load.before_end_s - load.duration_s > first.ran_s
    (failed,) = await traced(body, setup=f"{setup}\nraise ValueError('no model')")
    assert (failed.phase, list(named(failed))) == ("setup", ["load"])


SAY = """
context = trace.get_current_span().get_span_context()
return [f'{context.trace_id:032x}', f'{context.span_id:016x}', context.is_remote,
        [name for name in sys.modules if name.startswith('opentelemetry.sdk')]]
"""


@pytest.mark.parametrize("flags", ["00", "01"])
async def test_the_assignment_is_the_current_context_and_costs_no_sdk(flags: str) -> None:
    (outcome,) = await traced(SAY, traceparent=SAMPLED[:-2] + flags)
    assert json.loads(outcome.result or "") == [TRACE, PARENT, True, []]


@pytest.mark.parametrize(
    "traceparent", ["", "nonsense", SAMPLED[:-2] + "00", f"00-{'0' * 32}-{PARENT}-01"]
)
async def test_without_a_traced_assignment_nothing_is_recorded(traceparent: str) -> None:
    body = "with tracer.start_as_current_span('x') as span: pass\n" + SAY
    (outcome,) = await traced(body, traceparent=traceparent)
    assert outcome.ok, outcome.error
    assert (outcome.spans, outcome.spans_dropped) == ((), 0)
    assert json.loads(outcome.result or "")[3] == []


async def test_what_a_rank_attached_does_not_reach_the_next() -> None:
    body = """
from opentelemetry import context, baggage
seen = [baggage.get_baggage('mine'), f'{trace.get_current_span().get_span_context().span_id:016x}']
context.attach(baggage.set_baggage('mine', '1', trace.set_span_in_context(tracer.start_span('x'))))
return seen
"""
    outcomes = await traced(body, ranks=2)
    assert [json.loads(outcome.result or "") for outcome in outcomes] == [[None, PARENT]] * 2


OWN = """
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
assert isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)
mine, provider = InMemorySpanExporter(), TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(mine))
trace.set_tracer_provider(provider)
assert trace.get_tracer_provider() is provider
"""
MINE = """
with tracer.start_as_current_span('x'): pass
(span,) = mine.get_finished_spans()
return [f'{span.context.trace_id:032x}', f'{span.parent.span_id:016x}']
"""


@pytest.mark.parametrize("where", ["setup", "rank", "late"])
async def test_a_provider_of_the_user_s_is_left_alone_and_continues_the_trace(where: str) -> None:
    if where == "setup":
        setup, body = f"{OWN}\nstate['mine'] = mine", f"mine = state['mine']\n{MINE}"
    else:  # also by tracers that have made spans before it was set
        late = "with tracer.start_as_current_span('early'): pass\n" if where == "late" else ""
        setup, body = "pass", f"{late}{OWN}{MINE}"
    (outcome,) = await traced(body, setup=setup)
    assert outcome.ok, outcome.error
    assert json.loads(outcome.result or "") == [TRACE, PARENT]
    assert [span.name for span in outcome.spans] == (["early"] if where == "late" else [])


async def test_a_provider_named_by_the_environment_is_left_alone() -> None:
    env = {"OTEL_PYTHON_TRACER_PROVIDER": "sdk_tracer_provider"}
    body = "tracer.start_span('x').end()\nreturn type(trace.get_tracer_provider()).__module__"
    (outcome,) = await traced(body, env=env)
    assert (outcome.result, outcome.spans) == ('"opentelemetry.sdk.trace"', ())


@pytest.mark.parametrize("how", ["missing", "broken"])
async def test_without_a_usable_sdk_spans_are_nothing(tmp_path: Path, how: str) -> None:
    error = "ImportError" if how == "missing" else "RuntimeError"
    blocker = f"""
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.startswith('opentelemetry.sdk'): raise {error}(name)
sys.meta_path.insert(0, Blocker())
"""
    (tmp_path / "thornback_blocks_sdk.py").write_text(blocker)
    setup = f"sys.path.insert(0, {str(tmp_path)!r})\nimport thornback_blocks_sdk"
    body = """
with tracer.start_as_current_span('parent'), tracer.start_as_current_span('child') as span:
    span.set_attribute('a', 1)
with open('/proc/self/fd/2') as log: return log.read().count('are not recorded')
"""
    outcomes = await traced(body, setup=setup, ranks=2)
    for outcome in outcomes:
        assert outcome.ok, outcome.error
        assert (outcome.spans, outcome.spans_dropped) == ((), 0)
        assert outcome.result == ("0" if how == "missing" else "1"), "what is broken is said once"


HARMLESS = {
    "values": """
class Odd:
    def __str__(self): return 'odd'
with tracer.start_as_current_span('kept') as span:
    span.set_attribute('object', Odd())
    span.set_attribute('huge', 1 << 70)
    span.set_attribute('bytes', b'ab')
    span.set_attribute('nan', float('nan'))
    span.set_attribute('half', 'a\\udc00')
    span.set_attribute('long', 'x' * 100_000)
    span.set_attribute('many', list(range(100_000)))
    span.set_attribute('mixed', ['a', 1])
""",
    "never-ends": "tracer.start_span('kept', attributes={'a': 1})",
    "threads": """
import threading
def late():
    for number in range(100_000):
        tracer.start_span('late').end()
with tracer.start_as_current_span('kept'): pass
if call.rank == 0: threading.Thread(target=late, daemon=True).start(); return
""",
    "forks": """
import os
with tracer.start_as_current_span('kept'):
    if os.fork() == 0:
        with tracer.start_as_current_span('copy'): pass
        os._exit(0)
    os.wait()
""",
    "breaks-the-recorder": """
from thornback.pool.worker import sdkspans
sdkspans._text = None
with tracer.start_as_current_span('lost'): pass
""",
    "breaks-opentelemetry": """
from opentelemetry import context
context._RUNTIME_CONTEXT = None
""",
    "ends-twice": "span = tracer.start_span('kept'); span.end(); span.end()",
    "ends-before-it-starts": "tracer.start_span('kept', start_time=1 << 62).end(-5)",
    "names": "tracer.start_span(None).end(); tracer.start_span('\\udc00' * 100_000).end()",
}


@pytest.mark.parametrize("body", HARMLESS.values(), ids=HARMLESS)
async def test_nothing_that_is_traced_harms_a_rank(body: str) -> None:
    outcomes = await traced(f"{body}\nreturn call.rank", ranks=2)
    for outcome in outcomes:
        assert outcome.ok, outcome.error
        assert {span.name for span in outcome.spans} <= {"kept", "late", "None", "?" * 4093 + "..."}


async def test_values_are_made_plain_and_short() -> None:
    (outcome,) = await traced(HARMLESS["values"])
    (span,) = outcome.spans
    assert span.attributes.get("object") in ("odd", None)  # older SDKs drop what is not plain
    assert span.attributes.get("mixed") in (("a", "1"), None)
    assert span.attributes["huge"] == str(1 << 70)
    assert span.attributes["nan"] != span.attributes["nan"]
    assert span.attributes["half"] == "a?"
    assert span.attributes["long"] == "x" * 4093 + "..."
    assert span.attributes["many"] == tuple(range(128))


async def test_a_span_that_has_not_ended_is_taken_as_it_is() -> None:
    outcomes = await traced(HARMLESS["never-ends"] + "\nif call.rank: return", ranks=1)
    (span,) = outcomes[0].spans
    assert dict(span.attributes) == {"a": 1, "thornback.unfinished": True}
    assert span.before_end_s == pytest.approx(span.duration_s, abs=1e-6)


async def test_a_span_that_ends_in_the_next_rank_is_not_there_again() -> None:
    body = "if call.rank: state['x'].end()\nelse: state['x'] = tracer.start_span('x')"
    outcomes = await traced(body, ranks=2)
    assert [len(outcome.spans) for outcome in outcomes] == [1, 0]


async def test_a_flood_is_cut_off_and_counted() -> None:
    body = """
with tracer.start_as_current_span('outer'):
    for number in range(50_000):
        with tracer.start_as_current_span('inner'): pass
"""
    first, second = await traced(f"if call.rank: return\n{body}", ranks=2)
    assert len(first.spans) == MAX_SPANS
    assert first.spans_dropped == 50_001 - MAX_SPANS
    assert {span.parent_id for span in first.spans[1:]} == {first.spans[0].span_id}
    assert (second.spans, second.spans_dropped) == ((), 0)


async def test_bytes_are_bounded_by_rank_and_by_assignment() -> None:
    body = """
for number in range(100):
    with tracer.start_as_current_span(f'{number}', attributes={'x': 'x' * 4000}): pass
with tracer.start_as_current_span('large') as span:
    for number in range(100): span.set_attribute(f'{number}', 'x' * 4000)
"""
    outcomes = await traced(body, ranks=6)
    sizes = [sum(len(str(dict(span.attributes))) for span in o.spans) for o in outcomes]
    assert MAX_RANK_BYTES * 0.9 < sizes[0] < MAX_RANK_BYTES
    assert all(len(o.spans) + o.spans_dropped == 101 for o in outcomes)
    assert [len(o.spans) > 50 for o in outcomes[:4]] == [True] * 4
    assert len(outcomes[4].spans) < 10
    assert len(outcomes[5].spans) < 10
    large = outcomes[0].spans[-1]
    assert (large.name, dict(large.attributes)) == ("large", {"thornback.trimmed": True})


GOOD = ["n", "1", "", 1.0, 0.5, "", "internal", "ok", "", {"a": [1]}, [[1.5, "e", {}]], [["t", {}]]]


@pytest.mark.parametrize(
    "plain",
    [
        [],
        [0, 0, 2.0],
        [0, 0, "2", []],
        [0, 0, 2.0, [GOOD] * (MAX_SPANS + 1)],
        [0, 0, 2.0, [GOOD[:-1]]],
        [0, 0, 2.0, [[*GOOD[:3], float("inf"), *GOOD[4:]]]],
        [0, 0, float("nan"), [GOOD]],
        [0, 0, 2.0, [[*GOOD[:4], float("nan"), *GOOD[5:]]]],
        [0, 0, 2.0, [[*GOOD[:9], {"a": {}}, [], []]]],
        [0, 0, 2.0, [[*GOOD[:9], {"a": [[]]}, [], []]]],
        [0, 0, 2.0, [[*GOOD[:10], [["e"]], []]]],
        [0, 0, 2.0, [[*GOOD[:11], [[1, {}]]]]],
    ],
)
def test_what_is_not_spans_is_refused(plain: object) -> None:
    assert len(spans_from_plain([7, 1, 2.0, [GOOD, GOOD]])[0]) == 2
    with pytest.raises(ValueError, match=r"not (a|the|an) "):
        spans_from_plain(plain)
