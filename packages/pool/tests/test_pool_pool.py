"""The pool on fake workers and a clock by hand: opening, working, closing."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio
import anyio.lowlevel
import attrs
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from thornback.pool import (
    Assignment,
    Blobs,
    CaughtError,
    GangLostError,
    Outcome,
    Report,
    Worker,
    WorkerPool,
    WorkerSpec,
)
from thornback.pool.testing import (
    FakeBackend,
    FakeDeathError,
    FakeWorker,
    ManualClock,
    assignment,
    fake_blobs,
    reported,
    settle,
)

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@attrs.define(slots=True, eq=False)
class Bed:
    """A pool, its fakes, and a group for tasks beside the test."""

    pool: WorkerPool
    backend: FakeBackend
    clock: ManualClock
    group: anyio.abc.TaskGroup

    async def open(self, *nodes: str, gang: int = 1, timeout_s: float = 180.0) -> list[FakeWorker]:
        spec = WorkerSpec(slots=2 if len(nodes) == 1 else 1)
        await self.pool.open(gang, nodes, "lease", spec, timeout_s=timeout_s)
        return [self.backend.of(node) for node in nodes]

    async def read(self, work: Assignment, gang: int = 1) -> Reader:
        reader = Reader()
        self.group.start_soon(reader.read, self.pool.run(gang, work))
        await settle()
        return reader


class Reader:
    """Reads the reports of an assignment, beside the test."""

    def __init__(self) -> None:
        self.reports: list[Report] = []
        self.error: Exception | None = None
        self.done = False

    async def read(self, reports: AsyncIterator[Report]) -> None:
        try:
            async for report in reports:
                self.reports.append(report)
        except Exception as error:  # noqa: BLE001  # kept for the test to look at
            self.error = error
        self.done = True

    def loss(self) -> GangLostError:
        assert isinstance(self.error, GangLostError), f"expected a loss, got {self.error!r}"
        return self.error


def type_of(error: CaughtError | BaseException) -> str:
    return error.type_names[0] if isinstance(error, CaughtError) else type(error).__name__


@asynccontextmanager
async def bed(
    on_start: Callable[[FakeWorker], None] = lambda worker: None, blobs: Blobs = fake_blobs
) -> AsyncIterator[Bed]:
    backend, clock = FakeBackend(on_start=on_start), ManualClock()
    with anyio.fail_after(10):
        async with (
            anyio.create_task_group() as group,
            WorkerPool(backend, blobs, clock=clock) as pool,
        ):
            yield Bed(pool, backend, clock, group)
            group.cancel_scope.cancel()


# Opening


async def test_open_starts_one_worker_per_node_and_pings_it() -> None:
    async with bed() as it:
        workers = await it.open("a", "b", "c")
        assert [(w.node, w.index, w.nodes, w.handle) for w in workers] == [
            ("a", 0, 3, "lease"),
            ("b", 1, 3, "lease"),
            ("c", 2, 3, "lease"),
        ]
        assert [worker.count("beat") for worker in workers] == [1, 1, 1]


async def test_a_worker_that_does_not_come_up_in_time_costs_the_gang() -> None:
    def silence(worker: FakeWorker) -> None:
        worker.fall_silent(worker.node == "b")

    async with bed(silence) as it:
        failures: list[GangLostError] = []

        async def open_it() -> None:
            with pytest.raises(GangLostError) as caught:
                await it.open("a", "b", timeout_s=180.0)
            failures.append(caught.value)

        it.group.start_soon(open_it)
        await it.clock.advance(179.0)
        assert not failures
        await it.clock.advance(2.0)
        (failure,) = failures
        assert type_of(failure.error) == "thornback.pool.WorkerStartTimedOut"
        assert (failure.phase, failure.node) == ("start", "b")
        assert "1 of 2 workers (on b) within 180 s" in str(failure)
        assert [worker.kills for worker in it.backend.workers] == [1, 1]
        assert type_of((await it.pool.lost(1)).error) == "thornback.pool.WorkerStartTimedOut"
        assert await it.pool.close(1, kill=True, timeout_s=1.0)


async def test_a_worker_that_is_late_with_a_runtime_env_is_told_of_that() -> None:
    async with bed(lambda worker: worker.fall_silent(True)) as it:
        spec = WorkerSpec(runtime_env={"pip": ["torch"]})
        said: list[str] = []

        async def open_it() -> None:
            with pytest.raises(GangLostError) as caught:
                await it.pool.open(1, ["a"], None, spec, timeout_s=180.0)
            said.append(str(caught.value))

        it.group.start_soon(open_it)
        await it.clock.advance(181.0)
        assert "within 180 s; perhaps their runtime_env (pip) is still being built" in said[0]
        assert "torch" not in said[0]


async def test_a_start_that_hangs_is_undone() -> None:
    def hang(worker: FakeWorker) -> None:
        worker.stuck_in_start = worker.node == "b"

    async with bed(hang) as it:
        it.group.start_soon(lambda: Reader().read(_opened(it, "a", "b")))
        await it.clock.advance(181.0)
        assert all(worker.obituary for worker in it.backend.workers)


async def _opened(it: Bed, *nodes: str) -> AsyncIterator[Report]:
    await it.open(*nodes)
    yield Report()


async def test_a_start_that_fails_costs_the_gang_and_ends_the_others() -> None:
    def refuse(worker: FakeWorker) -> None:
        if worker.node == "b":
            raise OSError("no process left")

    async with bed(refuse) as it:
        with pytest.raises(GangLostError, match="no process left") as caught:
            await it.open("a", "b")
        assert isinstance(caught.value.error, OSError)
        assert (caught.value.phase, caught.value.node) == ("start", "b")
        assert all(worker.obituary for worker in it.backend.workers)


async def test_a_worker_that_dies_at_its_first_ping_is_explained() -> None:
    async with bed(lambda worker: worker.die(facts={"death_cause": "NODE_DIED"})) as it:
        with pytest.raises(GangLostError) as caught:
            await it.open("a")
        assert caught.value.phase == "ping"
        assert caught.value.facts == {"death_cause": "NODE_DIED"}


async def test_a_cancelled_open_leaves_nothing() -> None:
    async with bed(lambda worker: worker.fall_silent()) as it:
        with anyio.CancelScope() as scope:
            it.group.start_soon(_cancel_later, scope)
            await it.open("a", "b")
        assert scope.cancelled_caught
        assert [worker.kills for worker in it.backend.workers] == [1, 1]
        assert await it.pool.close(1, kill=True, timeout_s=1.0)


async def _cancel_later(scope: anyio.CancelScope) -> None:
    await settle()
    scope.cancel()


async def test_a_close_ends_an_open_under_way() -> None:
    async with bed(lambda worker: worker.fall_silent()) as it:
        reader = Reader()
        it.group.start_soon(reader.read, _opened(it, "a"))
        await settle()
        assert await it.pool.close(1, kill=True, timeout_s=1.0)
        await settle()
        assert type_of(reader.loss().error) == "thornback.pool.GangClosed"
        assert reader.loss().phase == "close"


async def test_a_close_confirms_nothing_while_a_start_is_being_undone() -> None:
    undone, clock = anyio.Event(), ManualClock()
    answers: list[bool] = []
    errors: list[str] = []

    class Slow:
        async def start(
            self, node: str, index: int, nodes: int, handle: object, spec: WorkerSpec, /
        ) -> Worker:
            with anyio.CancelScope(shield=True):
                await undone.wait()
            await anyio.lowlevel.checkpoint()
            raise AssertionError("it was cancelled before")

    async def close() -> None:
        answers.append(await pool.close(1, kill=True, timeout_s=8.0))

    async def start() -> None:
        with pytest.raises(GangLostError) as caught:
            await pool.open(1, ["a"], "lease", WorkerSpec(), timeout_s=9.0)
        errors.append(caught.value.phase)

    with anyio.fail_after(10):
        async with (
            anyio.create_task_group() as group,
            WorkerPool(Slow(), fake_blobs, clock=clock) as pool,
        ):
            group.start_soon(start)
            await settle()
            group.start_soon(close)
            await clock.advance(1.0)  # an eighth of its time is for the start to end
            undone.set()
            assert answers == [False]
            await settle()
            assert errors == ["close"]
            await close()
            assert answers == [False, True]


async def test_bad_gangs_are_refused() -> None:
    async with bed() as it:
        await it.open("a")
        with pytest.raises(ValueError, match="gang 1 is open already"):
            await it.open("b")
        with pytest.raises(ValueError, match="2 nodes cannot have 2 slots"):
            await it.pool.open(2, ["a", "b"], None, WorkerSpec(slots=2), timeout_s=1.0)
        with pytest.raises(ValueError, match="at least one node"):
            await it.pool.open(2, [], None, WorkerSpec(), timeout_s=1.0)
        with pytest.raises(ValueError, match="each once"):
            it.pool.run(1, assignment(1))


async def test_a_pool_that_is_not_entered_says_so() -> None:
    pool = WorkerPool(FakeBackend(), fake_blobs)
    with pytest.raises(RuntimeError, match="async with"):
        await pool.open(1, ["a"], None, WorkerSpec(), timeout_s=1.0)


async def test_opening_makes_a_span() -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    async with WorkerPool(FakeBackend(), fake_blobs, tracer_provider=provider) as pool:
        await pool.open(4, ["a"], None, WorkerSpec(), timeout_s=5.0)
    (span,) = exporter.get_finished_spans()
    assert span.name == "thornback.workers.open"
    assert dict(span.attributes or {}) == {
        "thornback.gang": 4,
        "thornback.nodes": ("a",),
        "thornback.slots": 1,
    }


# Closing


async def test_an_unconfirmed_death_is_answered_and_can_be_tried_again() -> None:
    async with bed() as it:
        (worker,) = await it.open("a")
        worker.unkillable = True
        assert not await it.pool.close(1, kill=True, timeout_s=1.0)
        worker.unkillable = False
        assert await it.pool.close(1, kill=True, timeout_s=1.0)
        assert await it.pool.close(1, kill=True, timeout_s=1.0)
        assert worker.kills == 2


async def test_a_close_without_kill_asks_first_and_kills_then() -> None:
    async with bed() as it:
        (worker,) = await it.open("a")
        assert await it.pool.close(1, kill=False, timeout_s=1.0)
        assert ("close", 0.5) in worker.calls, "half of the time is for teardowns"
        assert worker.kills == 1
        (worker,) = await it.open("a", gang=2)
        assert await it.pool.close(2, kill=True, timeout_s=1.0)
        assert (worker.count("close"), worker.kills) == (0, 1)


async def test_a_worker_that_does_not_close_is_killed_in_time() -> None:
    async with bed() as it:
        (worker,) = await it.open("a")
        worker.fall_silent()
        answers: list[bool] = []

        async def close() -> None:
            answers.append(await it.pool.close(1, kill=False, timeout_s=10.0))

        it.group.start_soon(close)
        await it.clock.advance(7.0)
        assert not answers
        await it.clock.advance(1.0)
        assert answers == [True]
        assert worker.kills == 1


async def test_closing_twice_at_once_is_one_close() -> None:
    async with bed() as it:
        (worker,) = await it.open("a")
        async with anyio.create_task_group() as group:
            for _ in range(2):
                group.start_soon(lambda: it.pool.close(1, kill=True, timeout_s=1.0))
        assert worker.kills == 1


async def test_leaving_the_pool_kills_what_is_open_and_passes_errors_through() -> None:
    backend = FakeBackend()

    async def use() -> None:
        async with WorkerPool(backend, fake_blobs) as pool:
            await pool.open(1, ["a", "b"], None, WorkerSpec(), timeout_s=5.0)
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await use()
    assert [worker.kills for worker in backend.workers] == [1, 1]


async def test_lost_never_calls_a_closed_gang_lost() -> None:
    ended: list[str] = []
    backend = FakeBackend()

    async def wait(pool: WorkerPool) -> None:
        try:
            await pool.lost(1)
        except anyio.ClosedResourceError:
            ended.append("left")
        else:
            ended.append("lost")

    async def close_it(pool: WorkerPool, group: anyio.abc.TaskGroup) -> None:
        async with pool:
            await pool.open(1, ["a"], None, WorkerSpec(), timeout_s=5.0)
            group.start_soon(wait, pool)
            await settle()
            await pool.close(1, kill=True, timeout_s=1.0)
            group.start_soon(wait, pool)
            await settle()
            assert ended == []

    async with anyio.create_task_group() as group:
        await close_it(WorkerPool(backend, fake_blobs), group)
    assert ended == ["left", "left"]


# Working


async def test_blobs_are_loaded_once_per_worker_also_when_asked_for_at_once() -> None:
    asked: list[str] = []
    gate = anyio.Event()

    async def blobs(key: str) -> bytes:
        asked.append(key)
        await gate.wait()
        return key.encode()

    async with bed(blobs=blobs) as it:
        (worker,) = await it.open("a")
        work = attrs.evolve(assignment(1, 0), inputs=("parents",))
        readers = [await it.read(work), await it.read(attrs.evolve(work, assignment=2))]
        assert asked == ["ok"]
        gate.set()
        await settle()
        readers.append(await it.read(attrs.evolve(work, assignment=3)))
        assert all(reader.done and not reader.error for reader in readers)
        assert asked == ["ok", "parents"]
        loads = [payload for method, payload in worker.calls if method == "load"]
        assert loads == [("ok", b"ok"), ("parents", b"parents")]


async def test_a_blob_that_cannot_be_had_fails_the_assignment_not_the_gang() -> None:
    broken = True

    async def blobs(key: str) -> bytes:
        if broken:
            raise LookupError(f"no blob {key}")
        return key.encode()

    async with bed(blobs=blobs) as it:
        (worker,) = await it.open("a")
        reader = await it.read(assignment(1, 0))
        assert isinstance(reader.error, LookupError)
        assert worker.count("run") == 0
        broken = False
        reader = await it.read(assignment(1, 0))
        assert reported(reader.reports)[0][0].ok


async def test_finished_assignments_are_acknowledged_with_the_next_call() -> None:
    async with bed() as it:
        (worker,) = await it.open("a")
        await it.read(assignment(1, 0))
        await it.read(assignment(2, 0))
        await it.read(assignment(3, 0))
        acks = [payload[1] for name, payload in worker.calls if name == "run"]  # type: ignore[index]  # a fake keeps objects
        assert acks == [(), (1,), (2,)]


async def test_a_recall_before_the_work_was_sent_hands_it_back() -> None:
    gate = anyio.Event()

    async def blobs(key: str) -> bytes:
        await gate.wait()
        return key.encode()

    async with bed(blobs=blobs) as it:
        (worker,) = await it.open("a")
        reader = await it.read(assignment(1, 0, 1))
        await it.pool.recall(1, 1, kill=False)
        gate.set()
        await settle()
        assert reported(reader.reports) == ({}, [0, 1])
        assert reader.reports[-1].final
        assert worker.count("run") == 0


async def test_a_recall_without_kill_lets_the_running_rank_go_on() -> None:
    async with bed() as it:
        (worker,) = await it.open("a")
        reader = await it.read(assignment(1, 0, 1, program="blocks"))
        await it.pool.recall(1, 1, kill=False)
        await it.clock.advance(30.0)
        assert not reader.done
        worker.finish(1, Outcome(rank=0, ok=True))
        await settle()
        outcomes, returned = reported(reader.reports)
        assert (list(outcomes), returned) == ([0], [1])


async def test_a_worker_that_ignores_a_kill_is_killed_itself() -> None:
    async with bed() as it:
        (worker,) = await it.open("a")
        worker.overrides["recall"] = lambda payload: None
        reader = await it.read(assignment(1, 0, program="blocks"))
        await it.pool.recall(1, 1, kill=True)
        await it.clock.advance(14.0)
        assert not reader.done
        await it.clock.advance(2.0)
        assert type_of(reader.loss().error) == "thornback.pool.RecallTimedOut"
        assert reader.loss().phase == "recall"
        assert worker.kills == 1


@pytest.mark.parametrize("answer", [Report(running=0), "nonsense"])
async def test_a_worker_that_breaks_the_contract_is_killed(answer: object) -> None:
    async with bed() as it:
        (worker,) = await it.open("a")
        worker.overrides["wait"] = lambda payload: answer
        reader = await it.read(assignment(1, 0, program="blocks"))
        assert type_of(reader.loss().error) == "thornback.pool.WorkerMisbehaved"
        assert worker.kills == 1


async def test_several_nodes_give_one_outcome() -> None:
    async with bed() as it:
        await it.open("a", "b")
        reader = await it.read(assignment(1, 4))
        outcomes, returned = reported(reader.reports)
        assert (outcomes[4].node, outcomes[4].result, returned) == ("a", "4", [])


async def test_the_failure_of_one_node_ends_the_rank_on_the_others() -> None:
    async with bed() as it:
        first, second = await it.open("a", "b")
        reader = await it.read(assignment(1, 4, program="blocks"))
        error = CaughtError(type_names=("builtins.ValueError",), message="no")
        second.finish(1, Outcome(rank=4, ok=False, error=error))
        await settle()
        assert ("recall", (1, True)) in first.calls
        outcomes, _ = reported(reader.reports)
        assert outcomes[4].node == "b"
        assert reader.done
        assert not reader.error
        again = await it.read(assignment(2, 5))
        assert reported(again.reports)[0][5].ok, "the gang lives on"


async def test_what_was_reported_before_a_loss_is_delivered_before_it() -> None:
    async with bed() as it:
        (worker,) = await it.open("a")
        reports = it.pool.run(1, assignment(1, 0, 1, program="blocks"))
        await settle()
        worker.die(FakeDeathError("gone"), {"signal": 9})
        await settle()
        first = await anext(reports)
        assert (first.running, first.returned) == (0, (range(1, 2),))
        with pytest.raises(GangLostError, match="gone"):
            await anext(reports)
