"""The pool on fake workers and a clock by hand: silence, cuts and deaths."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import attrs
import pytest

from thornback.pool import (
    CaughtError,
    GangLostError,
    Outcome,
    PoolParams,
    Report,
    WorkerPool,
    WorkerSpec,
)
from thornback.pool.testing import (
    FakeBackend,
    FakeDeathError,
    FakeUnavailableError,
    FakeWorker,
    ManualClock,
    assignment,
    fake_blobs,
    fake_script,
    reported,
    settle,
)

pytestmark = pytest.mark.anyio

RESET = CaughtError(type_names=("builtins.ConnectionResetError",), message="by peer")


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Reading:
    """Reads the reports of one assignment, and waits for the loss of the gang."""

    def __init__(self) -> None:
        self.reports: list[Report] = []
        self.loss: GangLostError | None = None
        self.lost: GangLostError | None = None
        self.ended = False

    async def read(self, pool: WorkerPool, *ranks: int, program: str) -> None:
        try:
            async for report in pool.run(1, assignment(1, *ranks, program=program)):
                self.reports.append(report)
        except GangLostError as error:
            self.loss = error
        self.ended = True

    async def wait(self, pool: WorkerPool) -> None:
        self.lost = await pool.lost(1)

    def lost_by(self) -> str:
        assert self.loss is not None, "the gang should be lost"
        assert self.lost is not None, "lost() should have returned"
        assert self.loss.error == self.lost.error
        error = self.loss.error
        return error.type_names[0] if isinstance(error, CaughtError) else type(error).__name__


@attrs.define(slots=True, eq=False)
class Running:
    """A gang with one rank that runs until somebody ends it."""

    pool: WorkerPool
    clock: ManualClock
    workers: list[FakeWorker]
    reading: Reading


@asynccontextmanager
async def running(
    *nodes: str, params: PoolParams | None = None, backend: FakeBackend | None = None
) -> AsyncIterator[Running]:
    backend, clock, reading = backend or FakeBackend(), ManualClock(), Reading()
    with anyio.fail_after(10):
        async with (
            anyio.create_task_group() as group,
            WorkerPool(backend, fake_blobs, params, clock=clock) as pool,
        ):
            await pool.open(1, nodes, None, WorkerSpec(), timeout_s=180.0)

            async def read() -> None:
                await reading.read(pool, 0, program="blocks")

            group.start_soon(read)
            group.start_soon(reading.wait, pool)
            await settle()
            yield Running(pool, clock, [backend.of(node) for node in nodes], reading)
            group.cancel_scope.cancel()


async def test_workers_are_asked_for_a_beat_every_5_s_one_at_a_time() -> None:
    async with running("a") as it:
        (worker,) = it.workers
        pings = worker.count("beat")
        await it.clock.advance(35.0)
        assert worker.count("beat") == pings + 7
        worker.fall_silent()
        await it.clock.advance(25.0)
        assert worker.count("beat") == pings + 8, "a beat that is pending is not asked for again"


async def test_a_worker_silent_for_60_s_is_killed_and_its_gang_lost() -> None:
    async with running("a") as it:
        (worker,) = it.workers
        await it.clock.advance(31.0)
        worker.fall_silent()
        await it.clock.advance(58.0)
        assert worker.kills == 0
        await it.clock.advance(11.0)
        assert it.reading.lost_by() == "thornback.pool.WorkerSilent"
        assert it.reading.loss is not None
        assert (it.reading.loss.phase, it.reading.loss.node) == ("heartbeat", "a")
        assert worker.kills == 1


async def test_a_worker_that_answers_again_in_time_is_kept() -> None:
    async with running("a") as it:
        (worker,) = it.workers
        for _ in range(4):
            worker.fall_silent()
            await it.clock.advance(45.0)
            worker.fall_silent(False)
            await it.clock.advance(15.0)
        worker.finish(1, Outcome(rank=0, ok=True))
        await settle()
        assert it.reading.ended
        assert it.reading.loss is None


async def test_a_short_cut_costs_nothing_and_repeats_the_call() -> None:
    async with running("a") as it:
        (worker,) = it.workers
        waits, watches = worker.count("wait"), worker.count("watch")
        worker.cut()
        await it.clock.advance(9.0)
        worker.finish(1, Outcome(rank=0, ok=True))
        worker.cut(False)
        await it.clock.advance(5.0)
        assert worker.count("wait") == waits + 1
        assert worker.count("watch") == watches + 1
        assert reported(it.reading.reports)[0][0].ok
        assert it.reading.loss is None
        await it.clock.advance(200.0)
        assert it.reading.lost is None


async def test_a_cut_that_outlasts_the_grace_window_kills_the_worker() -> None:
    async with running("a") as it:
        (worker,) = it.workers
        worker.cut()
        await it.clock.advance(14.0)
        assert worker.kills == 0
        probes = worker.count("beat")
        assert probes <= 8, "probes back off"
        await it.clock.advance(2.0)
        assert it.reading.lost_by() == FakeUnavailableError.__name__
        assert worker.kills == 1


async def test_a_call_that_is_cut_again_and_again_fails_in_the_end() -> None:
    async with running("a", params=PoolParams(regains_per_call=2)) as it:
        (worker,) = it.workers
        for _ in range(3):
            assert it.reading.loss is None
            worker.cut()
            await settle()
            worker.cut(False)
            await it.clock.advance(1.0)
        assert it.reading.lost_by() == FakeUnavailableError.__name__


async def test_a_death_found_by_the_probe_is_the_cause() -> None:
    async with running("a") as it:
        (worker,) = it.workers
        worker.cut()
        await it.clock.advance(3.0)
        worker.die(FakeDeathError("its node is gone"), {"death_cause": "NODE_DIED"})
        await it.clock.advance(5.0)
        assert it.reading.lost_by() == FakeDeathError.__name__
        assert it.reading.loss is not None
        assert it.reading.loss.facts == {"death_cause": "NODE_DIED"}


async def test_a_death_is_noticed_without_waiting_and_ends_the_gang() -> None:
    async with running("a") as it:
        it.workers[0].die(facts={"signal": 9})
        await settle()
        assert it.reading.lost_by() == FakeDeathError.__name__
        assert it.reading.loss is not None
        assert (it.reading.loss.node, it.reading.loss.phase) == ("a", "run")
        assert it.reading.loss.facts == {"signal": 9}
        with pytest.raises(GangLostError):
            await anext(it.pool.run(1, assignment(2, 0)))


async def test_the_death_of_one_node_ends_the_others_and_the_worst_is_the_cause() -> None:
    async with running("a", "b", "c") as it:
        first, second, third = it.workers
        for worker in (first, second):
            worker.overrides["recall"] = lambda payload: None
        third.die(facts={"signal": 9})
        await settle()
        assert it.reading.loss is None, "the others have not answered yet"
        assert third.kills == 1, "what is declared dead is killed first: it may be alive"
        second.die(facts={"preempted": True})
        await settle()
        assert it.reading.loss is None
        first.finish(1, None)
        await settle()
        assert it.reading.loss is not None
        assert (it.reading.loss.node, it.reading.loss.facts) == ("b", {"preempted": True})
        assert first.kills == 1, "what is left of a lost gang is ended"


async def test_a_sibling_that_does_not_answer_the_recall_does_not_stall_the_verdict() -> None:
    async with running("a", "b") as it:
        first, second = it.workers
        first.overrides["recall"] = lambda payload: None
        second.die(facts={"preempted": True})
        await it.clock.advance(16.0)
        assert it.reading.lost_by() == FakeDeathError.__name__
        assert it.reading.loss is not None
        assert it.reading.loss.facts == {"preempted": True}
        assert first.kills == 1


async def test_beats_leave_out_who_does_not_answer() -> None:
    async with running("a", "b") as it:
        it.workers[0].fall_silent()
        found: list[list[str]] = []

        async def ask() -> None:
            found.append([beat.node for beat in await it.pool.beat(1)])

        async with anyio.create_task_group() as group:
            group.start_soon(ask)
            await it.clock.advance(6.0)
        assert found == [["b"]]
        it.workers[0].fall_silent(False)
        beats = await it.pool.beat(1)
        assert [(beat.node, beat.running[0].rank) for beat in beats] == [("a", 0), ("b", 0)]


def get_stuck(worker: FakeWorker) -> None:
    worker.stuck_in_end = True


async def test_a_backend_that_hangs_holds_up_neither_the_verdict_nor_the_close() -> None:
    backend, clock = FakeBackend(on_start=get_stuck), ManualClock()
    answers: list[object] = []

    async def close_later(pool: WorkerPool) -> None:
        answers.append(await pool.lost(1))
        answers.append(await pool.close(1, kill=True, timeout_s=15.0))

    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            pool = WorkerPool(backend, fake_blobs, clock=clock)
            async with pool:
                await pool.open(1, ["a"], None, WorkerSpec(), timeout_s=5.0)
                group.start_soon(close_later, pool)
                await settle()
                backend.of("a").die()
                await clock.advance(21.0)
                assert isinstance(answers[0], GangLostError)
                await clock.advance(16.0)
                assert answers[1:] == [False]
                group.start_soon(clock.advance, 60.0)


async def test_a_peer_that_had_ended_its_part_and_is_dead_is_the_cause_of_a_failure() -> None:
    async with running("a", "b") as it:
        first, second = it.workers
        first.finish(1, Outcome(rank=0, ok=True))
        await settle()
        first.fall_silent()  # its node is gone, and nobody knows that yet
        second.finish(1, Outcome(rank=0, ok=False, error=RESET))
        await settle()
        assert not it.reading.ended
        first.die(FakeDeathError("gone"), {"death_cause": "NODE_DIED"})
        await settle()
        assert it.reading.lost_by() == "FakeDeathError"
        assert it.reading.loss is not None
        assert it.reading.loss.node == "a"


async def test_a_peer_that_had_ended_its_part_and_answers_is_not_the_cause() -> None:
    async with running("a", "b") as it:
        first, second = it.workers
        first.finish(1, Outcome(rank=0, ok=True))
        await settle()
        recalls = first.count("recall")
        second.finish(1, Outcome(rank=0, ok=False, error=RESET))
        await settle()
        assert first.count("recall") == recalls + 1, "it is asked anew"
        outcomes, _ = reported(it.reading.reports)
        assert (outcomes[0].node, outcomes[0].error) == ("b", RESET)
        assert it.reading.ended
        assert it.reading.loss is None
        await it.clock.advance(120.0)
        assert it.reading.lost is None, "and its gang lives on"


async def test_a_peer_that_says_nothing_more_after_its_part_is_waited_for_until_it_is_silent() -> (
    None
):
    async with running("a", "b") as it:
        first, second = it.workers
        first.finish(1, Outcome(rank=0, ok=True))
        await settle()
        first.fall_silent()
        second.finish(1, Outcome(rank=0, ok=False, error=RESET))
        await it.clock.advance(58.0)
        assert not it.reading.ended
        await it.clock.advance(15.0)
        assert it.reading.lost_by() == "thornback.pool.WorkerSilent"
        assert it.reading.loss is not None
        assert it.reading.loss.node == "a"


@attrs.define(slots=True, eq=False)
class DeafToRecalls(FakeWorker):
    """Answers everything, but no recall."""

    async def call(self, method: str, payload: object, /) -> object:
        if method == "recall":
            self.calls.append((method, payload))
            await anyio.sleep_forever()
        return await super().call(method, payload)


class DeafBackend(FakeBackend):
    async def start(
        self, node: str, index: int, nodes: int, handle: object, spec: WorkerSpec, /
    ) -> FakeWorker:
        """Make a worker."""
        pid = 1000 + len(self.workers)
        made = DeafToRecalls(node, index, nodes, handle, spec, pid, fake_script)
        self.workers.append(made)
        return made


@pytest.mark.parametrize("has_ended", [True, False])
async def test_a_peer_that_gives_signs_of_life_and_answers_no_recall_is_waited_for_in_bounds(
    has_ended: bool,
) -> None:
    async with running("a", "b", backend=DeafBackend()) as it:
        first, second = it.workers
        if has_ended:
            first.finish(1, Outcome(rank=0, ok=True))
            await settle()
        second.finish(1, Outcome(rank=0, ok=False, error=RESET))
        await it.clock.advance(74.0)
        assert not it.reading.ended, "a cut, or silence, would have been noticed by now"
        await it.clock.advance(2.0)
        assert it.reading.lost_by() == "thornback.pool.RecallTimedOut"
        assert it.reading.loss is not None
        assert it.reading.loss.node == "a"
        assert first.kills == 1
