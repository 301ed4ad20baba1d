"""The pool on fake workers whose slots are parked."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import attrs
import pytest

from thornback.pool import (
    CaughtError,
    GangLostError,
    ParkedSlot,
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
    settle,
)

pytestmark = pytest.mark.anyio

PARKED = ParkedSlot(slot=1, gpus=("5",), reason="RuntimeError: ECC")
LOSS = CaughtError(type_names=("thornback.pool.NoSlotLeft",), message="all are parked")


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@attrs.define(slots=True, eq=False)
class Bed:
    """A pool with one gang, and its worker."""

    pool: WorkerPool
    worker: FakeWorker
    clock: ManualClock
    group: anyio.abc.TaskGroup


@asynccontextmanager
async def bed() -> AsyncIterator[Bed]:
    backend, clock = FakeBackend(), ManualClock()
    with anyio.fail_after(10):
        async with (
            anyio.create_task_group() as group,
            WorkerPool(backend, fake_blobs, clock=clock) as pool,
        ):
            await pool.open(1, ["n1"], None, WorkerSpec(slots=2), timeout_s=60)
            yield Bed(pool, backend.of("n1"), clock, group)
            group.cancel_scope.cancel()


async def test_pool_beat_with_a_parked_slot_is_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING)
    async with bed() as it:
        it.worker.parked = (PARKED,)
        for _ in range(2):
            await it.clock.advance(PoolParams().beat_every_s)
            await settle()
        (beat,) = await it.pool.beat(1)
    assert beat.parked == (PARKED,)
    assert [record.getMessage() for record in caplog.records] == [
        "slot 1 of the worker on n1 (gang 1) gets no more work, since its GPU (5) failed: "
        "RuntimeError: ECC"
    ]


async def test_pool_worker_of_no_more_use_is_killed_and_its_gang_lost_for_that() -> None:
    async with bed() as it:
        reports: list[Report] = []
        losses: list[GangLostError] = []

        async def read() -> None:
            try:
                async for report in it.pool.run(1, assignment(1, 4, program="blocks")):
                    reports.append(report)
            except GangLostError as loss:
                losses.append(loss)

        it.group.start_soon(read)
        await settle()
        it.worker.use_up(LOSS)
        loss = await it.pool.lost(1)
        await settle()
        assert (loss.error, loss.node, loss.phase, loss.facts) == (LOSS, "n1", "run", {})
        assert [each.error for each in losses] == [LOSS]
        assert it.worker.kills == 1
        assert await it.pool.close(1, kill=True, timeout_s=10)
