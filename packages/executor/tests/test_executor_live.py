"""What happens between two reports, led by the test: checkpoints, drains, progress, logs.

Longer than 400 lines: its led leases and workers serve all of these.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TypeAlias

import anyio
import attrs
import pytest
from opentelemetry.trace import NoOpTracerProvider

from thornback.executor import AttemptReport, ExecutorParams, Job, RankContext, Stage, StageProgress
from thornback.executor.clock import SystemClock
from thornback.executor.drains import GRACE_S, NO_DEADLINE_S, DrainTeller
from thornback.executor.driver import Driver, Parts
from thornback.executor.job import identity_of
from thornback.executor.journal.testing import FakeJournal
from thornback.executor.plan import RunPlan, Settings
from thornback.executor.tracing import RunTracer
from thornback.executor.watching import Watchers, WorkerNews
from thornback.faults import Classifier, Fault, FaultKind
from thornback.placement import GangRequest, Lease
from thornback.pool import (
    Assignment,
    Beat,
    CaughtError,
    Checkpoint,
    GangLostError,
    Outcome,
    Report,
    RunningRank,
    SeenBy,
    WorkerSpec,
)

pytestmark = pytest.mark.anyio
Script: TypeAlias = Callable[["Workers", int, Assignment], AsyncIterator[Report]]


def work(ctx: RankContext) -> None:
    """Never called: the script answers instead."""


class Leases:
    """Gives every gang nodes of its own; drains when the test says so."""

    def __init__(self) -> None:
        self.count = 0
        self.noticed: Callable[[], None] = lambda: None
        self.notices, self.incoming = anyio.create_memory_object_stream[tuple[str, float | None]](
            10
        )

    async def acquire(
        self,
        request: GangRequest,
        /,
        *,
        avoid: Sequence[str],
        timeout_s: float,
        wait_for_nodes_s: float | None,
    ) -> Lease:
        self.count += 1
        return Lease(lease_id=self.count, nodes=("n1", "n2", "n3")[: request.nodes])

    async def release(self, lease: Lease, /, *, timeout_s: float) -> bool:
        return True

    async def drains(self) -> AsyncIterator[tuple[str, float | None]]:
        async for notice in self.incoming:
            yield notice
            self.noticed()


@attrs.define(eq=False)
class Workers:
    """Does with each assignment what the script says."""

    script: Script
    dispatched: list[Assignment] = attrs.field(factory=list)
    drained: list[tuple[str, float | None]] = attrs.field(factory=list)
    on_drain: Callable[[], None] = lambda: None
    told: anyio.Event = attrs.field(factory=anyio.Event)
    opening: anyio.Event = attrs.field(factory=anyio.Event)
    may_open: anyio.Event = attrs.field(factory=anyio.Event)

    async def open(
        self,
        gang: int,
        nodes: Sequence[str],
        handle: object,
        spec: WorkerSpec,
        /,
        *,
        timeout_s: float,
    ) -> None:
        self.opening.set()
        await self.may_open.wait()

    async def run(self, gang: int, work: Assignment, /) -> AsyncIterator[Report]:
        self.dispatched.append(work)
        async for report in self.script(self, gang, work):
            yield report

    async def recall(self, gang: int, assignment: int, /, *, kill: bool) -> None: ...

    async def lost(self, gang: int, /) -> GangLostError:
        await anyio.sleep_forever()
        raise AssertionError

    async def beat(self, gang: int, /) -> Sequence[Beat]:
        return []

    async def drain(self, node: str, left_s: float | None, /) -> None:
        self.drained.append((node, left_s))
        self.told.set()
        self.on_drain()

    async def close(self, gang: int, /, *, kill: bool, timeout_s: float) -> bool:
        return True


class Watch:
    """Keeps every progress that is told."""

    def __init__(self) -> None:
        self.partials: list[float] = []
        self.faults: list[Fault] = []
        self.told = anyio.Event()

    def started(self, info: object) -> None: ...
    def failed(self, attempt: AttemptReport) -> None:
        self.faults.append(attempt.fault)

    def finished(self, report: object) -> None: ...

    def progressed(self, stages: Sequence[StageProgress]) -> None:
        self.partials.append(stages[0].partial)
        self.told.set()
        self.told = anyio.Event()

    async def until(self, partial: float) -> None:
        while partial not in self.partials:
            await self.told.wait()


@attrs.define(eq=False)
class World:
    """A driver with led workers."""

    script: Script
    stage: Stage = attrs.field(factory=lambda: Stage("a", work))
    leases: Leases = attrs.field(factory=Leases)
    watch: Watch = attrs.field(factory=Watch)
    drain_s: float = 10.0
    seed: int = 0
    workers: Workers = attrs.field(init=False)
    driver: Driver = attrs.field(init=False)
    open_at_once: bool = True
    gang: int = -1

    def __attrs_post_init__(self) -> None:
        self.workers = Workers(self.script)
        if self.open_at_once:
            self.workers.may_open.set()

    async def run(self) -> str:
        """Run to the end, within 10 s; return how it ended."""
        job = Job("j", [self.stage])
        plan = RunPlan(job, Settings(state_url="/state", cwd="/", seed=self.seed))
        journal = FakeJournal()
        opened = await journal.open(identity_of(job), on_mismatch="refuse")
        parts = Parts(
            leases=self.leases,
            workers=self.workers,
            journal=journal,
            classifier=Classifier(),
            clock=SystemClock(),
        )
        self.driver = Driver(
            plan,
            parts,
            opened,
            tracer=RunTracer(NoOpTracerProvider().get_tracer("test"), "j", ["a"]),
            watchers=Watchers([self.watch]),
            params=ExecutorParams(drain_s=self.drain_s, close_s=2.0, release_s=2.0, progress_s=0.0),
            log_url=lambda gang, path: f"logs/{gang}-{path}",
        )
        with anyio.fail_after(10), self.leases.notices, self.leases.incoming:
            await self.driver.run()
        await journal.close()
        assert self.driver.end is not None
        return self.driver.end.state.value

    def kept(self) -> tuple[bytes | None, ...]:
        """What ranks have saved that are not settled."""
        return self.driver._checkpoints.of(0, (range(self.stage.world_size),))


def saved(rank: int, version: int, data: bytes) -> Report:
    return Report(running=rank, checkpoint=Checkpoint(rank=rank, version=version, data=data))


def ok(work: Assignment) -> Report:
    ranks = [rank for piece in work.ranks for rank in piece]
    return Report(outcomes=tuple(Outcome(rank=rank, ok=True) for rank in ranks), final=True)


def died(rank: int, checkpoint: Checkpoint | None = None) -> Report:
    error = CaughtError(
        type_names=("thornback.pool.RankProcessDied",), message="died", attributes={"signal": 11}
    )
    outcome = Outcome(
        rank=rank,
        ok=False,
        error=error,
        seen_by=SeenBy.PROCESS,
        node="n1",
        log_path="r.log",
        log_slice=(3, 9),
    )
    return Report(outcomes=(outcome,), final=True, checkpoint=checkpoint)


# -- checkpoints


async def test_the_next_attempt_gets_what_the_last_one_saved_last() -> None:
    async def script(workers: Workers, gang: int, work: Assignment) -> AsyncIterator[Report]:
        if work.attempt == 1:
            yield saved(0, 1, b"one")
            yield saved(0, 2, b"two")
            yield saved(0, 1, b"one")  # sent again
            yield died(0, Checkpoint(rank=0, version=3, data=b"three"))
        else:
            yield ok(work)

    world = World(script)
    assert await world.run() == "succeeded"
    assert [work.restored for work in world.workers.dispatched] == [(), (b"three",)]
    assert world.kept() == ()


async def test_a_rank_that_comes_back_uncharged_has_its_checkpoint_too() -> None:
    async def script(workers: Workers, gang: int, work: Assignment) -> AsyncIterator[Report]:
        if len(workers.dispatched) == 1:
            yield saved(0, 1, b"half")
            yield Report(returned=work.ranks, final=True)
        else:
            yield ok(work)

    world = World(script)
    assert await world.run() == "succeeded"
    assert [(w.attempt, w.restored) for w in world.workers.dispatched] == [(1, ()), (1, (b"half",))]


async def test_a_rank_that_is_lost_with_its_gang_has_its_checkpoint_too() -> None:
    async def script(workers: Workers, gang: int, work: Assignment) -> AsyncIterator[Report]:
        if len(workers.dispatched) == 1:
            yield saved(0, 1, b"half")
            raise GangLostError(ConnectionResetError("gone"), "n1")
        yield ok(work)

    world = World(script)
    assert await world.run() == "succeeded"
    assert [work.restored for work in world.workers.dispatched] == [(), (b"half",)]


async def test_what_a_lost_assignment_saves_late_does_not_count() -> None:
    class CloseLate(Workers):
        async def close(self, gang: int, /, *, kill: bool, timeout_s: float) -> bool:
            if gang in lost:
                await heard.wait()
            return True

    async def script(workers: Workers, gang: int, work: Assignment) -> AsyncIterator[Report]:
        if work.ranks[0].start == 1:
            yield ok(work)
        elif not lost:
            lost[gang] = work.assignment
            yield saved(0, 1, b"good")
            raise GangLostError(ConnectionResetError("gone"), "n1")
        elif not heard.is_set():  # the gang that is lost is not closed yet, and is heard of again
            (first,) = lost.values()
            assert first in world.driver._assignments
            world.driver._reported(first, saved(0, 99, b"late"))
            heard.set()
            yield died(0)
        else:
            yield ok(work)

    heard, lost = anyio.Event(), dict[int, int]()
    # By this seed rank 0 waits 0.2 s before its second retry: else up to 2 s.
    world = World(script, Stage("a", work, ranks=2, max_gangs=2), seed=9979)
    world.workers = CloseLate(script)
    world.workers.may_open.set()
    assert await world.run() == "succeeded"
    assert [work.restored for work in world.workers.dispatched if work.ranks[0].start == 0] == [
        (),
        (b"good",),
        (b"good",),
    ]


async def test_an_assignment_saves_only_for_ranks_that_it_holds() -> None:
    async def script(workers: Workers, gang: int, work: Assignment) -> AsyncIterator[Report]:
        yield saved(7, 1, b"not mine")
        if work.attempt == 1:
            yield died(work.ranks[0].start)
        else:
            yield ok(work)

    world = World(script)
    assert await world.run() == "succeeded"
    assert [work.restored for work in world.workers.dispatched] == [(), ()]


async def test_a_rank_that_is_given_up_leaves_nothing() -> None:
    async def script(workers: Workers, gang: int, work: Assignment) -> AsyncIterator[Report]:
        yield saved(0, 1, b"half")
        yield died(0)

    world = World(script, Stage("a", work, max_retries=1))
    assert await world.run() == "failed"
    assert len(world.workers.dispatched) == 2
    assert world.kept() == ()


async def test_failed_attempts_say_where_their_log_is() -> None:
    async def script(workers: Workers, gang: int, work: Assignment) -> AsyncIterator[Report]:
        yield died(0) if work.attempt == 1 else ok(work)

    world = World(script)
    await world.run()
    (attempt,) = world.driver.certifier.chronicle.attempts
    assert (attempt.log_url, attempt.log_slice) == (f"logs/{attempt.gang}-r.log", (3, 9))
    assert attempt.as_json()["log_slice"] == [3, 9]


# -- drains


async def test_workers_are_told_that_their_node_drains() -> None:
    async def script(workers: Workers, gang: int, work: Assignment) -> AsyncIterator[Report]:
        await world.leases.notices.send(("n1", 30.0))
        await workers.told.wait()
        yield ok(work)

    world = World(script)
    assert await world.run() == "succeeded"
    ((node, left_s),) = world.workers.drained
    assert node == "n1"
    assert left_s is not None
    assert 25.0 < left_s <= 30.0


def broken(work: Assignment, error: Exception, phase: str, seen_by: SeenBy) -> Report:
    """Return the report of the gang's first node that its rank has failed."""
    outcome = Outcome(
        rank=work.ranks[0].start,
        ok=False,
        error=CaughtError(
            type_names=tuple(f"{c.__module__}.{c.__qualname__}" for c in type(error).__mro__),
            message=str(error),
        ),
        node="n1",
        phase=phase,
        seen_by=seen_by,
    )
    return Report(outcomes=(outcome,))


async def fault_after_notice(
    nodes: int, error: Exception, phase: str, seen_by: SeenBy, node: str
) -> FaultKind:
    """Return what becomes of an error that is reported after a notice for `node`."""

    async def script(workers: Workers, gang: int, work: Assignment) -> AsyncIterator[Report]:
        if not world.watch.faults:
            await world.leases.notices.send((node, 30.0))
            await workers.told.wait()
            yield broken(work, error, phase, seen_by)
        else:
            yield ok(work)

    world = World(script, stage=Stage("a", work, nodes=nodes, retries=2))
    assert await world.run() == "succeeded"
    return world.watch.faults[0].kind


@pytest.mark.parametrize(
    ("error", "phase", "seen_by"),
    [
        (ConnectionResetError(104, "reset by peer"), "run", SeenBy.RANK),
        (RuntimeError("a collective failed"), "run", SeenBy.RANK),
        (TimeoutError("silent for 30 s"), "run", SeenBy.PROCESS),
        (RuntimeError("the process died"), "run", SeenBy.PROCESS),
        (RuntimeError("no peer"), "setup", SeenBy.RANK),
    ],
)
async def test_fault_of_sibling_of_draining_node_is_preemption(
    error: Exception, phase: str, seen_by: SeenBy
) -> None:
    assert await fault_after_notice(2, error, phase, seen_by, "n2") is FaultKind.PREEMPTION


@pytest.mark.parametrize(
    ("nodes", "node", "kind"),
    [
        (1, "n1", FaultKind.APPLICATION),
        (2, "n3", FaultKind.APPLICATION),
        (2, "n1", FaultKind.PREEMPTION),
    ],
)
async def test_fault_of_user_code_in_a_drain_depends_on_the_gang(
    nodes: int, node: str, kind: FaultKind
) -> None:
    found = await fault_after_notice(nodes, ValueError("bug"), "run", SeenBy.RANK, node)
    assert found is kind


@attrs.define
class HandClock(SystemClock):
    """A clock that the test sets."""

    now: float = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.mark.parametrize(("left_s", "lasts_s"), [(30.0, 30.0 + GRACE_S), (None, NO_DEADLINE_S)])
async def test_drain_expired_long_ago_node_still_there_is_forgotten(
    left_s: float | None, lasts_s: float
) -> None:
    async def script(workers: Workers, gang: int, work: Assignment) -> AsyncIterator[Report]:
        yield ok(work)

    clock = HandClock()
    drains = DrainTeller(Workers(script), clock, 1.0)
    async with anyio.create_task_group() as group:
        drains.draining("n2", left_s, group)
    clock.now = lasts_s
    assert drains.knows(("n1", "n2"))
    assert not drains.knows(("n1",))
    clock.now = lasts_s + 1.0
    assert not drains.knows(("n1", "n2"))


async def test_gang_ready_after_the_notice_expired_is_not_told() -> None:
    async def script(workers: Workers, gang: int, work: Assignment) -> AsyncIterator[Report]:
        yield ok(work)

    clock, workers = HandClock(), Workers(script)
    drains = DrainTeller(workers, clock, 1.0)
    async with anyio.create_task_group() as group:
        drains.draining("n2", 30.0, group)
    clock.now = 30.0 + GRACE_S + 1.0
    async with anyio.create_task_group() as group:
        drains.gang_ready(("n2",), group)
    assert workers.drained == [("n2", 30.0)]


async def test_gang_lost_after_the_notice_expired_is_no_preemption() -> None:
    async def script(workers: Workers, gang: int, work: Assignment) -> AsyncIterator[Report]:
        if not world.watch.faults:
            await world.leases.notices.send(("n1", -GRACE_S - 1.0))
            await workers.told.wait()
            error = CaughtError(type_names=("thornback.pool.WorkerDied",), message="gone")
            raise GangLostError(error, "n1", "run", {"node_draining": True})  # as the pool says it
        yield ok(work)

    world = World(script)
    assert await world.run() == "succeeded"
    assert world.watch.faults[0].kind is FaultKind.WORKER_CRASH


async def test_report_right_behind_the_notice_counts_as_after_it() -> None:
    async def script(workers: Workers, gang: int, work: Assignment) -> AsyncIterator[Report]:
        if not world.watch.faults:
            report = broken(work, RuntimeError("no peer"), "run", SeenBy.RANK)
            # At once behind the notice: the driver has not read its inbox yet.
            world.leases.noticed = lambda: world.driver._reported(work.assignment, report)
            await world.leases.notices.send(("n2", 30.0))
            await workers.told.wait()
        else:
            yield ok(work)

    world = World(script, stage=Stage("a", work, nodes=2))
    assert await world.run() == "succeeded"
    assert world.watch.faults[0].kind is FaultKind.PREEMPTION


async def test_a_gang_that_was_opening_when_the_notice_came_is_told() -> None:
    async def lead() -> None:
        await world.workers.opening.wait()
        await world.leases.notices.send(("n1", None))
        await world.workers.told.wait()  # the gang that opens has not heard that
        world.workers.told = anyio.Event()
        world.workers.may_open.set()
        await world.workers.told.wait()
        assert [node for node, _ in world.workers.drained] == ["n1", "n1"]
        told.set()

    async def script(workers: Workers, gang: int, work: Assignment) -> AsyncIterator[Report]:
        await told.wait()
        yield ok(work)

    told = anyio.Event()
    world = World(script, open_at_once=False)
    async with anyio.create_task_group() as group:
        group.start_soon(lead)
        assert await world.run() == "succeeded"


async def test_the_newest_notice_is_told_last() -> None:
    async def script(workers: Workers, gang: int, work: Assignment) -> AsyncIterator[Report]:
        for left_s in (100.0, 50.0, None):
            await world.leases.notices.send(("n1", left_s))
        while not workers.drained or workers.drained[-1] != ("n1", None):
            await workers.told.wait()
            workers.told = anyio.Event()
        yield ok(work)

    world = World(script)
    assert await world.run() == "succeeded"
    told = [math.inf if left_s is None else left_s for _, left_s in world.workers.drained]
    assert told[-1] == math.inf
    assert told[:-1] == sorted(told[:-1], reverse=True)


async def test_workers_that_cannot_be_told_do_not_fail_the_run(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def refuse() -> None:
        raise RuntimeError("promised not to")

    async def script(workers: Workers, gang: int, work: Assignment) -> AsyncIterator[Report]:
        workers.on_drain = refuse
        await world.leases.notices.send(("n1", 1.0))
        await workers.told.wait()
        yield ok(work)

    world = World(script)
    assert await world.run() == "succeeded"
    assert "promised not to" in caplog.text


async def test_workers_that_do_not_answer_do_not_keep_the_next_notice() -> None:
    class Deaf(Workers):
        async def drain(self, node: str, left_s: float | None, /) -> None:
            await super().drain(node, left_s)
            if len(self.drained) == 1:
                await anyio.sleep_forever()

    async def script(workers: Workers, gang: int, work: Assignment) -> AsyncIterator[Report]:
        await world.leases.notices.send(("n1", 1.0))
        await workers.told.wait()
        workers.told = anyio.Event()
        await world.leases.notices.send(("n1", 0.5))
        await workers.told.wait()
        yield ok(work)

    world = World(script, drain_s=0.05)
    world.workers = Deaf(script)
    world.workers.may_open.set()
    assert await world.run() == "succeeded"
    assert len(world.workers.drained) == 2


# -- progress


def seen(work: Assignment, rank: int, progress: tuple[float, float | None] | None) -> Beat:
    running = RunningRank(
        assignment=work.assignment, rank=rank, attempt=1, pid=7, ran_s=1.0, progress=progress
    )
    return Beat(host="h", pid=1, rss_bytes=1, running=(running,), node="n1")


async def test_running_ranks_count_in_part_until_they_end() -> None:
    async def script(workers: Workers, gang: int, work: Assignment) -> AsyncIterator[Report]:
        rank = work.ranks[0].start
        if rank == 0:
            news.beat(gang, seen(work, 0, (1, 4)))
            await world.watch.until(0.25)
            for nothing in (None, (1, None), (1, 0), (math.nan, 2), (1, math.nan)):
                news.beat(gang, seen(work, 0, nothing))
            news.beat(gang + 1, seen(work, 0, (3, 4)))  # another gang does not run it
            news.beat(gang, seen(work, 5, (3, 4)))  # nor does this one run that
            news.beat(gang, seen(work, 0, (9, 4)))
            await world.watch.until(1.0)
        yield ok(work)
        news.beat(gang, seen(work, rank, (3, 5)))  # late

    world = World(script, Stage("a", work, ranks=2, max_gangs=1))
    news = WorkerNews(lambda chunks: None)
    news.aim(lambda gang, beat: world.driver.saw(gang, beat))
    assert await world.run() == "succeeded"
    assert set(world.watch.partials) == {0.0, 0.25, 1.0}
    assert world.watch.partials[-1] == 0.0


async def test_what_a_lost_gang_had_done_does_not_count() -> None:
    class CloseLate(Workers):
        async def close(self, gang: int, /, *, kill: bool, timeout_s: float) -> bool:
            if gang == world.gang:
                await world.watch.until(0.125)
            return True

    async def script(workers: Workers, gang: int, work: Assignment) -> AsyncIterator[Report]:
        if len(workers.dispatched) == 1:
            world.gang = gang
            world.driver.saw(gang, seen(work, work.ranks[0].start, (1, 2)))
            await world.watch.until(0.5)
            raise GangLostError(ConnectionResetError("gone"), "n1")
        rank, first = work.ranks[0].start, workers.dispatched[0]
        if rank == first.ranks[0].start:  # the lost gang is not closed yet, and is heard of again
            world.driver.saw(world.gang, seen(first, rank, (2, 2)))
            world.driver.saw(gang, seen(work, rank, (1, 8)))
            await world.watch.until(0.125)
        yield ok(work)

    world = World(script, Stage("a", work, ranks=2, max_gangs=2))
    world.workers = CloseLate(script)
    world.workers.may_open.set()
    assert await world.run() == "succeeded"
    assert set(world.watch.partials) == {0.0, 0.5, 0.125}


async def test_of_several_nodes_the_furthest_counts() -> None:
    async def script(workers: Workers, gang: int, work: Assignment) -> AsyncIterator[Report]:
        world.driver.saw(gang, seen(work, 0, (3, 4)))
        world.driver.saw(gang, attrs.evolve(seen(work, 0, (1, 4)), node="n2"))
        assert world.driver.progress()[0].partial == 0.75
        yield ok(work)

    world = World(script, Stage("a", work, nodes=2))
    assert await world.run() == "succeeded"
