"""The pool on fake workers: what lives between two reports. Checkpoints, drains, several nodes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio
import attrs
import pytest

from thornback.pool import (
    Assignment,
    CaughtError,
    FinishedWhen,
    GangLostError,
    Outcome,
    PoolParams,
    Report,
    WorkerPool,
    WorkerSpec,
)
from thornback.pool.testing import (
    FakeBackend,
    FakeWorker,
    ManualClock,
    assignment,
    fake_blobs,
    reported,
    settle,
)

pytestmark = pytest.mark.anyio

BLOCKS = assignment(1, 0, program="blocks")
LEADER = attrs.evolve(BLOCKS, finished_when=FinishedWhen.LEADER, grace_s=30.0)


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@attrs.define(slots=True, eq=False)
class Reading:
    """Reads the reports of an assignment, beside the test."""

    reports: list[Report] = attrs.field(factory=list)
    loss: GangLostError | None = None
    ended: bool = False

    async def read(self, reports: AsyncIterator[Report]) -> None:
        try:
            async for report in reports:
                self.reports.append(report)
        except GangLostError as error:
            self.loss = error
        self.ended = True

    def saved(self) -> list[bytes]:
        return [each.checkpoint.data for each in self.reports if each.checkpoint is not None]


@attrs.define(slots=True, eq=False)
class Bed:
    """A gang on fakes."""

    pool: WorkerPool
    clock: ManualClock
    workers: list[FakeWorker]
    group: anyio.abc.TaskGroup

    async def run(self, work: Assignment) -> Reading:
        reading = Reading()
        self.group.start_soon(reading.read, self.pool.run(1, work))
        await settle()
        return reading


@asynccontextmanager
async def gang(
    *nodes: str,
    params: PoolParams | None = None,
    spec: WorkerSpec | None = None,
    on_start: Callable[[FakeWorker], None] | None = None,
) -> AsyncIterator[Bed]:
    backend, clock = FakeBackend(on_start=on_start), ManualClock()
    with anyio.fail_after(10):
        async with (
            anyio.create_task_group() as group,
            WorkerPool(backend, fake_blobs, params, clock=clock) as pool,
        ):
            await pool.open(1, nodes, None, spec or WorkerSpec(), timeout_s=180.0)
            by_index = sorted(backend.workers, key=lambda worker: worker.index)
            yield Bed(pool, clock, by_index, group)
            group.cancel_scope.cancel()


def ok(rank: int, *outputs: tuple[str, str]) -> Outcome:
    return Outcome(rank=rank, ok=True, outputs=outputs)


def failed(rank: int) -> Outcome:
    error = CaughtError(type_names=("builtins.ValueError",), message="no")
    return Outcome(rank=rank, ok=False, error=error)


# Checkpoints


async def test_checkpoints_reach_the_reader_at_once_and_the_rank_goes_on() -> None:
    async with gang("a") as it:
        (worker,) = it.workers
        reading = await it.run(BLOCKS)
        for data in (b"1", b"2"):
            worker.checkpoint(1, data)
            await settle()
            assert reading.saved()[-1] == data
            assert reading.reports[-1].running == 0
        assert worker.count("wait") == 3
        worker.checkpoint(1, b"3")
        worker.finish(1, failed(0))
        await settle()
        assert reading.saved() == [b"1", b"2", b"3"], "the last one comes with the failure"
        assert reading.reports[-1].final
        assert not reading.reports[-1].outcomes[0].ok


async def test_a_wait_that_is_cut_off_brings_a_checkpoint_once() -> None:
    async with gang("a") as it:
        (worker,) = it.workers
        reading = await it.run(BLOCKS)
        worker.checkpoint(1, b"1")
        worker.cut()
        await settle()
        worker.cut(False)
        await it.clock.advance(1.0)
        assert reading.saved() == [b"1"]
        assert [call[1][2] for call in worker.calls if call[0] == "wait"] == [0, 0, 1]  # type: ignore[index]  # a fake keeps objects


async def test_what_was_saved_before_a_death_is_delivered_before_the_loss() -> None:
    async with gang("a") as it:
        (worker,) = it.workers
        reading = await it.run(BLOCKS)
        worker.checkpoint(1, b"1")
        await settle()
        worker.die()
        await settle()
        assert reading.saved() == [b"1"]
        assert reading.loss is not None


async def test_a_worker_that_repeats_itself_is_killed_and_does_not_spin() -> None:
    async with gang("a") as it:
        (worker,) = it.workers
        reading = await it.run(BLOCKS)
        worker.checkpoint(1, b"1")
        await settle()
        again = reading.reports[-1]
        worker.overrides["wait"] = lambda payload: again
        worker.checkpoint(1, b"2")
        await settle()
        assert reading.loss is not None
        assert isinstance(reading.loss.error, CaughtError)
        assert reading.loss.error.type_names == ("thornback.pool.WorkerMisbehaved",)


# Drains


async def test_a_drain_is_told_to_the_workers_on_that_node() -> None:
    async with gang("a", "b") as it:
        await it.pool.open(2, ["b"], None, WorkerSpec(), timeout_s=5.0)
        await it.pool.drain("b", 30.0)
        await it.pool.drain("b", None)
        await it.pool.drain("elsewhere", 1.0)
        assert [worker.drains for worker in it.workers] == [[], [30.0, None]]


async def test_a_node_that_dies_while_it_drains_outranks_one_that_just_dies() -> None:
    async with gang("a", "b") as it:
        first, second = it.workers
        reading = await it.run(BLOCKS)
        await it.pool.drain("b", 30.0)
        first.die(facts={"death_cause": "NODE_DIED"})
        second.die(facts={"death_cause": "NODE_DIED"})
        await settle()
        assert reading.loss is not None
        assert reading.loss.node == "b"
        assert reading.loss.facts["node_draining"] is True


async def test_a_drain_waits_for_nobody_and_raises_nothing() -> None:
    def stuck(worker: FakeWorker) -> None:
        if worker.index == 1:
            worker.overrides["drain"] = lambda payload: 1 / 0

    async with gang("a", "a", "a", on_start=stuck) as it:
        silent, _, third = it.workers
        silent.fall_silent()
        done: list[bool] = []

        async def drain() -> None:
            await it.pool.drain("a", 5.0)
            done.append(True)

        it.group.start_soon(drain)
        await it.clock.advance(4.0)
        assert third.drains == [5.0]
        assert not done
        await it.clock.advance(2.0)
        assert done


async def test_a_drain_of_a_gang_that_is_closed_or_lost_is_a_no_op() -> None:
    async with gang("a") as it:
        (worker,) = it.workers
        worker.die()
        await settle()
        await it.pool.drain("a", 5.0)
        assert await it.pool.close(1, kill=True, timeout_s=5.0)
        await it.pool.drain("a", 5.0)
        assert worker.drains == []


# Several nodes


async def test_the_nodes_are_told_how_to_meet() -> None:
    async with gang("a", "b", spec=WorkerSpec(env={"MASTER_PORT": "7"})) as it:
        first, second = it.workers
        work = attrs.evolve(assignment(1, 4), rendezvous="torch", env={"X": "1"})
        reading = await it.run(work)
        assert reported(reading.reports)[0][4].ok
        assert (first.ports, second.ports) == (1, 0)
        envs = [sent_env(worker) for worker in it.workers]
        assert [env["RANK"] for env in envs] == ["0", "1"]
        assert envs[0]["THORNBACK_ADDRESSES"] == envs[1]["THORNBACK_ADDRESSES"]
        assert envs[0]["THORNBACK_ADDRESSES"] == "10.0.0.1,10.0.0.2"
        assert envs[1]["MASTER_ADDR"] == "10.0.0.1"
        assert envs[1]["THORNBACK_MASTER_PORT"] == "20001"
        assert "MASTER_PORT" not in envs[0], "the user has chosen one"
        assert envs[0]["X"] == "1"


def sent_env(worker: FakeWorker) -> dict[str, str]:
    (payload,) = [payload for method, payload in worker.calls if method == "run"]
    assert isinstance(payload, tuple)
    work = payload[0]
    assert isinstance(work, Assignment)
    return dict(work.env)


async def test_one_node_is_asked_for_a_port_only_where_it_is_to_meet() -> None:
    async with gang("a") as it:
        (worker,) = it.workers
        await it.run(assignment(1, 0))
        assert worker.ports == 0
        await it.run(attrs.evolve(assignment(2, 0), rendezvous="torch"))
        assert worker.ports == 1


async def test_an_unknown_rendezvous_is_refused_at_once() -> None:
    async with gang("a") as it:
        for number in (1, 99):
            with pytest.raises(ValueError, match="expected 'torch'"):
                it.pool.run(number, attrs.evolve(assignment(1, 0), rendezvous="mpi"))
        assert reported((await it.run(assignment(1, 0))).reports)[0][0].ok


async def test_a_worker_without_a_port_is_killed() -> None:
    async with gang("a", "b") as it:
        it.workers[0].overrides["port"] = lambda payload: "none"
        reading = await it.run(assignment(1, 0))
        assert reading.loss is not None
        assert isinstance(reading.loss.error, CaughtError)
        assert "number of a free port" in reading.loss.error.message
        assert [worker.count("run") for worker in it.workers] == [0, 0]


async def test_the_others_have_a_grace_after_the_leader_and_are_then_recalled() -> None:
    async with gang("a", "b", "c") as it:
        first, second, third = it.workers
        reading = await it.run(LEADER)
        first.finish(1, ok(0, ("s0", "f0")))
        await it.clock.advance(20.0)
        second.finish(1, ok(0, ("s1", "f1")))
        await it.clock.advance(9.0)
        assert not reading.ended
        assert third.count("recall") == 0
        await it.clock.advance(2.0)
        assert ("recall", (1, True)) in third.calls
        assert (first.count("recall"), second.count("recall")) == (0, 0)
        (outcome,) = reading.reports[-1].outcomes
        assert outcome.ok
        assert outcome.node == "a"
        assert outcome.outputs == (("s1", "f1"), ("s0", "f0"))
        assert reported((await it.run(assignment(2, 5))).reports)[0][5].ok, "the gang lives on"


async def test_a_follower_that_ignores_its_recall_costs_the_gang_and_not_the_rank() -> None:
    async with gang("a", "b") as it:
        first, second = it.workers
        second.overrides["recall"] = lambda payload: None
        reading = await it.run(LEADER)
        first.finish(1, ok(0))
        await it.clock.advance(31.0)
        assert not reading.ended
        await it.clock.advance(16.0)
        assert reading.reports[-1].outcomes[0].ok
        assert (await it.pool.lost(1)).phase == "recall"


async def test_a_follower_that_dies_after_the_leader_costs_the_gang_and_not_the_rank() -> None:
    async with gang("a", "b", "c") as it:
        first, second, third = it.workers
        reading = await it.run(LEADER)
        first.finish(1, ok(0))
        await settle()
        second.die()
        await settle()
        assert ("recall", (1, True)) in third.calls
        assert reading.reports[-1].outcomes[0].ok
        assert (await it.pool.lost(1)).node == "b"


async def test_a_follower_that_fails_before_the_leader_fails_the_rank() -> None:
    async with gang("a", "b") as it:
        first, second = it.workers
        reading = await it.run(LEADER)
        second.finish(1, failed(0))
        await settle()
        assert ("recall", (1, True)) in first.calls
        assert [outcome.node for outcome in reading.reports[-1].outcomes] == ["b"]
        assert not reading.reports[-1].outcomes[0].ok
