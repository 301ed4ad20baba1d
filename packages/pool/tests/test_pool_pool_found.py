"""Faults of the pool that a review found, each kept as a test."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial

import anyio
import pytest

from thornback.pool import PoolParams, Report, WorkerPool, WorkerSpec
from thornback.pool.testing import (
    FakeBackend,
    ManualClock,
    assignment,
    fake_blobs,
)

pytestmark = pytest.mark.anyio
SPEC = WorkerSpec(slots=1)


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def read(reports: AsyncIterator[Report], seen: list[str]) -> None:
    try:
        async for _ in reports:
            seen.append("report")
        seen.append("end")
    except Exception as error:  # noqa: BLE001  # whatever it is, it is what the test looks at
        seen.append(type(error).__name__)


async def test_close_kills_although_a_blob_is_being_read_and_cannot_be_cancelled() -> None:
    backend, started, gate = FakeBackend(), anyio.Event(), anyio.Event()

    async def stuck(key: str) -> bytes:
        started.set()
        with anyio.CancelScope(shield=True):
            await gate.wait()
        return key.encode()

    with anyio.fail_after(20):
        async with WorkerPool(backend, stuck) as pool:
            await pool.open(1, ["a"], None, SPEC, timeout_s=5)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(read, pool.run(1, assignment(1, 0)), [])
                await started.wait()
                await pool.close(1, kill=True, timeout_s=0.4)
                assert backend.workers[0].kills
                gate.set()


async def test_run_while_a_close_is_under_way_is_refused_and_does_not_hang() -> None:
    seen: list[str] = []
    async with WorkerPool(FakeBackend(), fake_blobs) as pool:
        await pool.open(1, ["a"], None, SPEC, timeout_s=5)
        with anyio.fail_after(10):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(partial(pool.close, 1, kill=True, timeout_s=5))
                await anyio.lowlevel.checkpoint()
                await read(pool.run(1, assignment(7, 0)), seen)
    assert seen == ["GangLostError"]


@pytest.mark.parametrize("turns", range(6))
async def test_work_that_comes_while_a_cancelled_pool_ends_is_answered(turns: int) -> None:
    seen: list[str] = []
    for _ in range(10):  # trio wakes tasks of one turn in any order
        with anyio.CancelScope() as scope:
            async with WorkerPool(FakeBackend(), fake_blobs, clock=ManualClock()) as pool:
                await pool.open(1, ["a"], None, SPEC, timeout_s=5)
                scope.cancel()
                with anyio.CancelScope(shield=True):
                    for _ in range(turns):
                        await anyio.lowlevel.checkpoint()
                    reports = pool.run(1, assignment(1, 0))
        await read(reports, seen)
    assert seen == ["GangLostError"] * 10


async def test_short_cuts_far_apart_do_not_add_up() -> None:
    backend, clock = FakeBackend(), ManualClock()
    params = PoolParams()
    async with WorkerPool(backend, fake_blobs, params, clock=clock) as pool:
        await pool.open(1, ["a"], None, SPEC, timeout_s=5)
        (worker,) = backend.workers
        for _ in range(params.regains_per_call + 2):
            await clock.advance(30)
            worker.cut()
            await clock.advance(0.1)
            worker.cut(False)
            await clock.advance(600)
            assert worker.kills == 0
