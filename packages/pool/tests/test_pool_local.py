"""Real worker processes on this machine."""

from __future__ import annotations

import gc
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import cloudpickle
import pytest

from thornback.pool import Beat, CaughtError, GangLostError, RankCall, WorkerPool, WorkerSpec
from thornback.pool.on_local import LocalBackend
from thornback.pool.testing import (
    Bench,
    assignment,
    check_worker_backend,
    check_workers,
    reported,
)

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def programs() -> tuple[bytes, bytes, bytes]:
    """Return ok, fails, blocks. The classes are local, so that cloudpickle takes them by value."""
    from thornback.pool import ProgramResult

    class Ok:
        def setup(self, context: RankCall) -> None:
            pass

        def run(self, context: RankCall) -> ProgramResult:
            return ProgramResult(result=str(context.rank))

    class Fails(Ok):
        def run(self, context: RankCall) -> ProgramResult:
            raise ValueError(f"bad rank {context.rank}")

    class Blocks(Ok):
        def run(self, context: RankCall) -> ProgramResult:
            import threading

            threading.Event().wait()
            return ProgramResult()

    return cloudpickle.dumps(Ok()), cloudpickle.dumps(Fails()), cloudpickle.dumps(Blocks())


@asynccontextmanager
async def local_bench() -> AsyncIterator[Bench]:
    ok, fails, blocks = programs()
    yield Bench(
        backend=LocalBackend(),
        node="here",
        handle=None,
        spec=WorkerSpec(slots=2),
        ok=ok,
        fails=fails,
        blocks=blocks,
        crash=lambda pid: os.kill(pid, signal.SIGKILL),
    )


async def test_local_backend_fulfils_the_port_and_the_pool_keeps_its_promises_on_it() -> None:
    # Beside each other: both wait for the first report on a long rank, which takes 2 s.
    async with anyio.create_task_group() as group:
        group.start_soon(check_worker_backend, local_bench)
        group.start_soon(check_workers, local_bench)


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


async def test_a_killed_worker_is_explained_and_leaves_no_process_and_no_file() -> None:
    backend = LocalBackend()
    before = open_files()
    worker = await backend.start("here", 0, 1, None, WorkerSpec())
    beat = await worker.call("beat", ((), None))
    assert isinstance(beat, Beat)
    assert os.getpgid(beat.pid) != os.getpgid(0), "Ctrl-C in a terminal must not reach it"
    os.kill(beat.pid, signal.SIGKILL)
    with pytest.raises(Exception, match="has ended") as caught:
        await worker.call("watch", None)
    error, facts = await worker.death(caught.value)
    assert isinstance(error, CaughtError)
    assert error.type_names == ("thornback.pool.WorkerDied",)
    assert "was killed by SIGKILL" in error.message
    assert (facts["signal"], facts["exit_code"], facts["pid"]) == (9, -9, beat.pid)
    assert await worker.kill(timeout_s=5.0)
    with pytest.raises(ProcessLookupError):
        os.kill(beat.pid, 0)
    gc.collect()
    assert open_files() == before


async def test_a_silent_worker_is_not_called_dead() -> None:
    backend = LocalBackend()
    worker = await backend.start("here", 0, 1, None, WorkerSpec())
    try:
        silent = GangLostError(CaughtError(type_names=("a.Silent",), message="silent"))
        assert await worker.death(silent) == (silent, {})
        assert isinstance(await worker.call("beat", ((), None)), Beat)
    finally:
        assert await worker.kill(timeout_s=5.0)


async def test_a_stopped_worker_can_be_killed_also_with_a_call_half_sent() -> None:
    backend = LocalBackend()
    worker = await backend.start("here", 0, 1, None, WorkerSpec())
    beat = await worker.call("beat", ((), None))
    assert isinstance(beat, Beat)
    os.kill(beat.pid, signal.SIGSTOP)
    with anyio.move_on_after(0.05) as scope:
        await worker.call("load", ("big", bytes(8 << 20)))
    assert scope.cancelled_caught
    assert await worker.kill(timeout_s=5.0)


async def test_a_cancelled_half_sent_frame_does_not_spoil_the_next() -> None:
    backend = LocalBackend()
    worker = await backend.start("here", 0, 1, None, WorkerSpec())
    try:
        beat = await worker.call("beat", ((), None))
        assert isinstance(beat, Beat)
        os.kill(beat.pid, signal.SIGSTOP)
        with anyio.move_on_after(0.05):
            await worker.call("load", ("big", bytes(8 << 20)))
        os.kill(beat.pid, signal.SIGCONT)
        assert isinstance(await worker.call("beat", ((), None)), Beat)
    finally:
        assert await worker.kill(timeout_s=5.0)


async def test_a_cancelled_start_leaves_no_process() -> None:
    backend = LocalBackend()
    before = open_files()
    with anyio.move_on_after(0.01) as scope:
        await backend.start("here", 0, 1, None, WorkerSpec())
    assert scope.cancelled_caught
    gc.collect()
    assert open_files() == before


async def test_a_worker_that_cannot_start_says_why() -> None:
    backend = LocalBackend(python="/bin/false")
    async with WorkerPool(backend, _no_blobs) as pool:
        with pytest.raises(GangLostError, match="exited with code 1") as caught:
            await pool.open(1, ["here"], None, WorkerSpec(), timeout_s=30.0)
        assert caught.value.phase == "start"
        assert await pool.close(1, kill=True, timeout_s=5.0)
        with pytest.raises(GangLostError, match="runtime_env") as refused:
            await pool.open(2, ["here"], None, _with_runtime_env(), timeout_s=30.0)
        assert isinstance(refused.value.error, ValueError)
        spec = WorkerSpec(log_dir="/dev/null")
        with pytest.raises(GangLostError) as no_log:
            await pool.open(3, ["here"], None, spec, timeout_s=30.0)
        assert isinstance(no_log.value.error, OSError)


async def _no_blobs(key: str) -> bytes:
    raise LookupError(key)


def _with_runtime_env() -> WorkerSpec:
    return WorkerSpec(runtime_env={"pip": ["numpy"]})


async def test_two_workers_of_a_gang_run_a_rank_together(tmp_path: Path) -> None:
    ok, _, _ = programs()

    async def blobs(key: str) -> bytes:
        return ok

    async with WorkerPool(LocalBackend(), blobs) as pool:
        spec = WorkerSpec(log_dir=str(tmp_path))
        await pool.open(1, ["a", "b"], None, spec, timeout_s=60.0)
        outcomes, _ = reported([report async for report in pool.run(1, assignment(1, 7))])
        assert (outcomes[7].result, outcomes[7].node) == ("7", "a")
        assert [beat.node for beat in await pool.beat(1)] == ["a", "b"]
        assert await pool.close(1, kill=False, timeout_s=15.0)
    logs = sorted(name for name in os.listdir(tmp_path) if name.startswith("worker-"))
    assert [name.split("-")[1] for name in logs] == ["0", "1"]
