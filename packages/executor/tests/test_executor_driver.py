"""The driver over verified fakes: a cluster and workers in memory, led by the test.

Long, since all of it stands on the one driver that is led, and on how its parts are held up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import anyio
import attrs
import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from packages.executor.tests.disks import GatedRows
from thornback.executor import (
    After,
    AttemptReport,
    ExecutorParams,
    Job,
    RankContext,
    Stage,
    StageProgress,
    handover,
)
from thornback.executor.blobs import RunBlobs
from thornback.executor.clock import SystemClock
from thornback.executor.driver import Driver, Parts
from thornback.executor.job import identity_of
from thornback.executor.journal.testing import FakeJournal, FakeState
from thornback.executor.plan import RunPlan, Settings
from thornback.executor.ports import Completion, Json
from thornback.executor.tracing import RunTracer
from thornback.executor.waiting import WaitingTexts
from thornback.executor.watching import Watchers
from thornback.faults import Classifier, Fault, FaultKind, StopReason
from thornback.placement import Allocator
from thornback.placement.testing import FakeCluster
from thornback.pool import Assignment, CaughtError, Outcome, SeenBy, WorkerPool
from thornback.pool.testing import FakeBackend, FakeWorker
from thornback.scheduler import events as ev

pytestmark = pytest.mark.anyio
Script = Callable[[FakeWorker, Assignment, int], Outcome | None]


def work(ctx: RankContext) -> int:
    """Never called: the fake workers' script answers instead."""
    return ctx.rank


def succeed(worker: FakeWorker, assignment: Assignment, rank: int) -> Outcome:
    return Outcome(rank=rank, ok=True, result=str(rank), node=worker.node, ran_s=0.2)


def died(rank: int, signal: int = 11) -> Outcome:
    error = CaughtError(
        type_names=("thornback.pool.RankProcessDied",),
        message=f"killed by signal {signal}",
        attributes={"signal": signal},
    )
    return Outcome(rank=rank, ok=False, error=error, seen_by=SeenBy.PROCESS, log_tail="bye")


def raised(rank: int) -> Outcome:
    error = CaughtError(type_names=("builtins.ValueError", "builtins.Exception"), message="bad")
    return Outcome(rank=rank, ok=False, error=error)


@attrs.define
class World:
    """One driver and everything around it."""

    job: Job
    script: Script = succeed
    journal: FakeJournal = attrs.field(factory=FakeJournal)
    observers: Sequence[Any] = ()
    spans: InMemorySpanExporter = attrs.field(factory=InMemorySpanExporter)
    cluster: FakeCluster = attrs.field(
        factory=lambda: FakeCluster({"n1": {"CPU": 2.0}, "n2": {"CPU": 2.0}})
    )
    pool: type[WorkerPool] = WorkerPool
    kind: type[Driver] = Driver
    params: ExecutorParams = attrs.field(factory=lambda: ExecutorParams(close_s=2.0, release_s=2.0))
    backend: FakeBackend = attrs.field(init=False)
    driver: Driver = attrs.field(init=False)
    recorded: dict[str, dict[int, str]] = attrs.field(factory=dict)

    async def run(self) -> Driver:
        """Run to the end, within 10 s."""
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self.spans))
        plan = RunPlan(self.job, Settings(state_url="/state", cwd="/", seed=1))
        names = [stage.name for stage in plan.stages]
        tracer = RunTracer(provider.get_tracer("test"), self.job.name, names)
        opened = await self.journal.open(identity_of(self.job), on_mismatch="refuse")
        self.backend = FakeBackend(self.script)
        blobs = RunBlobs(plan, self.journal)
        with anyio.fail_after(10):
            async with Allocator(self.cluster) as leases, self.pool(self.backend, blobs) as pool:
                parts = Parts(
                    leases=leases,
                    workers=pool,
                    journal=self.journal,
                    classifier=Classifier(),
                    clock=SystemClock(),
                )
                self.driver = self.kind(
                    plan,
                    parts,
                    opened,
                    tracer=tracer,
                    watchers=Watchers(self.observers),
                    params=self.params,
                )
                try:
                    await self.driver.run()
                finally:
                    end = self.driver.end
                    tracer.finished(end.state.value if end else "failed", "")
                    with anyio.CancelScope(shield=True):
                        for name in names if end else ():
                            self.recorded[name] = dict(await self.journal.results(name))
                        await self.journal.close()
                    assert self.cluster.reserved == 0
                    assert all(worker.kills or worker.obituary for worker in self.backend.workers)
        return self.driver

    def state(self) -> str:
        assert self.driver.end is not None
        return self.driver.end.state.value

    def certificates(self) -> list[Mapping[str, Json]]:
        """Return those that were recorded, oldest first."""
        records = self.journal.state.records
        return [record.certificate for record in records if record.certificate is not None]

    def counts(self, stage: int = 0) -> tuple[int, int, int]:
        progress = self.driver.progress()[stage]
        return progress.done, progress.failed, progress.skipped


def once(what: Callable[[FakeWorker, int], Outcome | None], rank: int) -> Script:
    """Return a script in which `rank` meets `what` the first time, and everything else succeeds."""
    met: list[int] = []

    def script(worker: FakeWorker, assignment: Assignment, at: int) -> Outcome | None:
        if at == rank and not met:
            met.append(at)
            return what(worker, at)
        return succeed(worker, assignment, at)

    return script


async def test_every_rank_is_recorded_once_and_every_gang_is_closed() -> None:
    world = World(Job("j", [Stage("a", work, ranks=7), Stage("b", work, after="a")]))
    await world.run()
    assert world.state() == "succeeded"
    assert world.recorded["a"] == {rank: str(rank) for rank in range(7)}
    assert world.counts(1) == (1, 0, 0)


async def test_failed_rank_is_certified_and_its_dependents_are_skipped() -> None:
    def script(worker: FakeWorker, assignment: Assignment, rank: int) -> Outcome:
        return raised(rank) if rank == 1 else succeed(worker, assignment, rank)

    world = World(Job("j", [Stage("a", work, ranks=3), Stage("b", work, after="a")]), script)
    driver = await world.run()
    assert world.state() == "failed"
    assert world.counts(0) == (2, 1, 0)
    assert world.counts(1) == (0, 0, 1)
    (attempt,) = driver.certifier.chronicle.attempts
    assert (attempt.rank, attempt.fault.kind) == (1, FaultKind.APPLICATION)
    assert not attempt.retried


async def test_rank_whose_process_died_is_tried_again() -> None:
    world = World(Job("j", [Stage("a", work, ranks=4)]), once(lambda w, r: died(r), 2))
    driver = await world.run()
    assert world.counts() == (4, 0, 0)
    (attempt,) = driver.certifier.chronicle.attempts
    assert (attempt.rank, attempt.fault.kind) == (2, FaultKind.WORKER_CRASH)
    assert attempt.retried
    assert attempt.log_tail == "bye"


async def test_lost_worker_gives_its_ranks_back() -> None:
    def die(worker: FakeWorker, rank: int) -> None:
        worker.die(ConnectionResetError("the worker is gone"))

    world = World(Job("j", [Stage("a", work, ranks=20)]), once(die, 3))
    driver = await world.run()
    assert world.state() == "succeeded"
    assert world.counts() == (20, 0, 0)
    losses = [a for a in driver.certifier.chronicle.attempts if a.lost_ranks]
    assert losses
    assert all(a.retried for a in losses)


async def test_journal_that_fails_ends_the_run_and_leaves_nothing_behind() -> None:
    class Broken(FakeJournal):
        async def commit(self, records: Sequence[Completion], /) -> None:
            raise OSError("disk is gone")

    world = World(Job("j", [Stage("a", work, ranks=4)]), journal=Broken())
    await world.run()
    assert world.state() == "failed"
    assert world.counts()[0] == 0


async def test_cancelled_driver_closes_what_it_holds() -> None:
    class Stop:
        def started(self, info: object) -> None: ...
        def failed(self, attempt: AttemptReport) -> None: ...
        def finished(self, report: object) -> None: ...
        def progressed(self, stages: Sequence[StageProgress]) -> None:
            if any(stage.running for stage in stages):
                scope.cancel()

    world = World(Job("j", [Stage("a", work, ranks=4)]), lambda w, a, r: None, observers=[Stop()])
    with anyio.CancelScope() as scope:
        await world.run()  # asserts in its own finally that nothing is held
    assert scope.cancelled_caught
    assert world.driver.end is None


async def test_cancel_request_ends_the_run_in_order() -> None:
    class Canceller:
        def __init__(self) -> None:
            self.world: World | None = None

        def started(self, info: object) -> None: ...
        def failed(self, attempt: AttemptReport) -> None: ...
        def finished(self, report: object) -> None: ...
        def progressed(self, stages: object) -> None:
            assert self.world is not None
            if any(stage.running for stage in self.world.driver.progress()):
                self.world.driver.cancel("enough", kill=True)

    canceller = Canceller()
    world = World(
        Job("j", [Stage("a", work, ranks=4)]), lambda w, a, r: None, observers=[canceller]
    )
    canceller.world = world
    await world.run()
    assert world.state() == "cancelled"


class Listening(Driver):
    """Keeps what the scheduler is told."""

    def _event(self, posted: Any) -> Any:
        event = super()._event(posted)
        if isinstance(event, ev.RankFailed | ev.GangLost):
            vars(self).setdefault("faults", []).append(event.fault)
        return event


async def faults_of_a_cancelled_run(
    dies: Callable[[FakeWorker, int], None], *, kill: bool
) -> list[Fault]:
    """Cancel a run while its only rank runs, and let what the recall reaches die of it."""

    def recalled(worker: FakeWorker, payload: Any) -> None:
        dies(worker, payload[0])

    def start(worker: FakeWorker, assignment: Assignment, rank: int) -> None:
        worker.overrides["recall"] = partial(recalled, worker)
        world.driver.cancel("enough", kill=kill)

    world = World(Job("j", [Stage("a", work, ranks=1)]), start, kind=Listening)
    await world.run()
    assert world.state() == "cancelled"
    faults: list[Fault] = vars(world.driver).get("faults", [])
    assert faults, "nothing failed"
    assert kill is not bool(world.driver.certifier.chronicle.attempts), "no failure of ours is told"
    return faults


def rank_dies(worker: FakeWorker, number: int) -> None:
    worker.finish(number, died(0))


def worker_dies(worker: FakeWorker, number: int) -> None:
    worker.die(facts={"death_cause": "WORKER_DIED"})


@pytest.mark.parametrize("dies", [rank_dies, worker_dies])
async def test_what_dies_of_our_own_kill_counts_as_cancelled(
    dies: Callable[[FakeWorker, int], None],
) -> None:
    for fault in await faults_of_a_cancelled_run(dies, kill=True):
        assert (fault.kind, fault.facts["cancelled_by_us"]) == (FaultKind.CANCELLED, True)


async def test_what_dies_after_a_recall_that_kills_nothing_has_failed() -> None:
    (fault,) = await faults_of_a_cancelled_run(rank_dies, kill=False)
    assert fault.kind is FaultKind.WORKER_CRASH
    assert "cancelled_by_us" not in fault.facts


async def test_observer_that_raises_is_not_called_again_and_harms_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Broken:
        calls = 0

        def progressed(self, stages: object) -> None:
            self.calls += 1
            raise RuntimeError("observer is broken")

    broken = Broken()
    world = World(Job("j", [Stage("a", work, ranks=4)]), observers=[broken])
    await world.run()
    assert world.state() == "succeeded"
    assert broken.calls == 1
    assert "observer is broken" in caplog.text


async def test_done_ranks_of_an_earlier_run_are_not_run_again() -> None:
    state = FakeState()
    job = Job("j", [Stage("a", work, ranks=5)])
    await World(job, once(lambda w, r: raised(r), 4), journal=FakeJournal(state)).run()
    ran: list[int] = []

    def note(worker: FakeWorker, assignment: Assignment, rank: int) -> Outcome:
        ran.append(rank)
        return succeed(worker, assignment, rank)

    again = World(job, note, journal=FakeJournal(state))
    await again.run()
    assert ran == [4]
    assert again.counts() == (5, 0, 0)


async def test_spans_form_one_tree_and_a_retry_is_linked() -> None:
    world = World(Job("j", [Stage("a", work, ranks=4)]), once(lambda w, r: died(r), 2))
    await world.run()
    spans = {
        span.context.span_id: span for span in world.spans.get_finished_spans() if span.context
    }
    roots = [span for span in spans.values() if span.parent is None]
    assert [span.name for span in roots] == ["thornback.run"]
    assert all(span.parent.span_id in spans for span in spans.values() if span.parent)
    ranks = [span for span in spans.values() if span.name == "thornback.rank"]

    def parent(span: ReadableSpan) -> ReadableSpan:
        assert span.parent is not None
        return spans[span.parent.span_id]

    for span in ranks:
        path = [parent(span).name, parent(parent(span)).name, parent(parent(parent(span))).name]
        assert path == ["thornback.assignment", "thornback.stage", "thornback.run"]
    tries = [span for span in ranks if (span.attributes or {})["thornback.rank"] == 2]
    assert len(tries) == 2
    assert tries[1].links[0].context.span_id in {s.context.span_id for s in tries[:1] if s.context}


async def test_a_cancel_right_behind_the_dispatch_reaches_it() -> None:
    """Each is a task of its own, and on trio they may run in any order."""

    class CancelAtOnce(Driver):
        def _dispatch(self, command: Any, group: Any) -> None:
            super()._dispatch(command, group)
            self.cancel("at once", kill=True)

    for seed in range(8):
        world = World(Job(f"j{seed}", [Stage("a", work, ranks=2)]), lambda w, a, r: None)
        world.kind = CancelAtOnce
        await world.run()
        assert world.state() == "cancelled"


async def test_workers_that_break_their_promise_at_the_close_do_not_keep_the_lease() -> None:
    class Raises(WorkerPool):
        async def close(self, gang: int, /, *, kill: bool, timeout_s: float) -> bool:
            await super().close(gang, kill=kill, timeout_s=timeout_s)
            raise RuntimeError("promised not to")

    world = World(Job("j", [Stage("a", work, ranks=2)]), pool=Raises)
    driver = await world.run()
    assert world.state() == "succeeded"
    assert driver.unconfirmed


async def test_the_certificate_of_a_rank_given_up_with_its_worker_says_so() -> None:
    def die(worker: FakeWorker, assignment: Assignment, rank: int) -> Outcome | None:
        if rank == 0:
            worker.die(ConnectionResetError("gone"))
            return None
        return succeed(worker, assignment, rank)

    world = World(Job("j", [Stage("a", work, ranks=2, max_retries=1)]), die)
    driver = await world.run()
    last = [a for a in driver.certifier.chronicle.attempts if a.rank == 0][-1]
    assert not last.retried
    assert "given up" in last.verdict
    (ended,) = driver.certifier.chronicle.given_up
    assert ended.last == last
    assert (ended.stop, last.stop) == (StopReason.UNDECIDED, StopReason.UNDECIDED)


ENDS = [
    (Stage("a", work), lambda w, a, r: raised(r), StopReason.NO_RETRIES),
    (Stage("a", work, retries=1), lambda w, a, r: raised(r), StopReason.BUDGET),
    (Stage("a", work), lambda w, a, r: died(r), StopReason.UNDECIDED),
]


@pytest.mark.parametrize(("stage", "script", "stop"), ENDS, ids=[str(e[2].value) for e in ENDS])
async def test_why_a_rank_is_given_up_is_a_word_in_report_and_record(
    stage: Stage, script: Script, stop: StopReason
) -> None:
    world = World(Job("j", [stage, Stage("b", work, after="a")]), script)
    chronicle = (await world.run()).certifier.chronicle
    *earlier, last = chronicle.attempts
    assert [attempt.stop for attempt in earlier] == [None] * len(earlier)
    (ended,) = chronicle.given_up
    assert (ended.stop, last.stop) == (stop, stop)
    assert (ended.reason, last.retried) == (last.verdict, False)
    given_up, skipped = world.certificates()
    assert (given_up["stop"], skipped["stop"]) == (stop.value, None)
    paper = given_up["last"]
    assert isinstance(paper, dict)
    assert (paper["stop"], paper["verdict"]) == (stop.value, given_up["reason"])


def tight(monkeypatch: pytest.MonkeyPatch, disk: GatedRows, **options: int) -> None:
    """Have results that wait put on this disk at once."""
    made = partial(WaitingTexts, 0, open_rows=lambda: disk, **options)
    monkeypatch.setattr(handover, "WaitingTexts", made)


def chain(*others: Stage) -> Job:
    own = After("a", kind="one_to_one")
    return Job("j", [Stage("a", work, ranks=3), Stage("b", work, ranks=3, after=own), *others])


async def test_a_disk_that_hangs_fails_only_what_is_in_it_and_holds_up_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    disk = GatedRows()
    tight(monkeypatch, disk)
    world = World(chain(Stage("c", work, ranks=20)))
    world.params = attrs.evolve(world.params, disk_s=0.1)
    driver = await world.run()
    assert [world.counts(stage) for stage in range(3)] == [(3, 0, 0), (0, 3, 0), (20, 0, 0)]
    messages = {attempt.fault.message for attempt in driver.certifier.chronicle.attempts}
    assert len(messages) == 1
    assert "no answer for 0.1 s" in messages.pop()
    assert disk.calls == []
    disk.let.set()


async def test_a_run_is_cancelled_while_the_disk_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    disk = GatedRows()
    tight(monkeypatch, disk)
    world = World(chain())
    world.params = attrs.evolve(world.params, close_s=0.05)
    async with anyio.create_task_group() as group:
        group.start_soon(world.run)
        while not disk.hangs.is_set():
            await anyio.lowlevel.checkpoint()
        world.driver.cancel("enough", kill=True)
    assert world.state() == "cancelled"
    assert disk.calls == []
    disk.let.set()
    assert disk.closed.wait(20)
    assert disk.calls == ["write", "close"]


async def test_a_cancel_that_kills_nothing_has_ranks_wait_for_the_disk_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    disk = GatedRows()
    tight(monkeypatch, disk)
    world = World(chain())
    async with anyio.create_task_group() as group:
        group.start_soon(world.run)
        while not disk.hangs.is_set():
            await anyio.lowlevel.checkpoint()
        world.driver.cancel("enough", kill=False)
        await anyio.wait_all_tasks_blocked()
        assert world.driver.end is None
        disk.let.set()
    assert world.state() == "cancelled"


async def test_a_disk_that_is_slower_than_the_results_has_the_run_wait_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    disk = GatedRows()
    tight(monkeypatch, disk, max_on_way_bytes=0)
    world = World(chain())
    async with anyio.create_task_group() as group:
        group.start_soon(world.run)
        while not disk.hangs.is_set():
            await anyio.lowlevel.checkpoint()
        disk.let.set()
    assert [world.counts(stage) for stage in range(2)] == [(3, 0, 0), (3, 0, 0)]
    assert disk.closed.wait(20)
    assert {"write", "read", "close"} <= set(disk.calls)
