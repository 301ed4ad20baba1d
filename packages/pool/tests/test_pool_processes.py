"""Workers behind a command that is not the worker."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import suppress

import anyio
import attrs
import pytest

from thornback.pool import Beat, CaughtError, GangLostError, WorkerSpec
from thornback.pool.processes import WorkerCallError, WorkerGoneError, WorkerProcess, worker_command

pytestmark = pytest.mark.anyio

ELSEWHERE = [
    sys.executable,
    "-c",
    "import subprocess, sys; sys.exit(subprocess.call(sys.argv[1:], start_new_session=True) and 3)",
]
"""Runs a command out of reach of who kills its process group."""


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@attrs.frozen(slots=True)
class Elsewhere:
    """A worker in another session than the command that runs it."""

    process: WorkerProcess
    pid: int
    pidfd: int

    async def gone(self) -> None:
        with anyio.fail_after(10):
            await anyio.wait_readable(self.pidfd)


@pytest.fixture
async def elsewhere() -> AsyncIterator[Elsewhere]:
    command = [*ELSEWHERE, *worker_command()]
    process = await WorkerProcess.start(command, "here", 0, 1, WorkerSpec())
    beat = await process.call("beat", ((), None))
    assert isinstance(beat, Beat)
    assert os.getpgid(beat.pid) == beat.pid != process.pid
    pidfd = os.pidfd_open(beat.pid)
    try:
        yield Elsewhere(process, beat.pid, pidfd)
    finally:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        assert await process.kill(timeout_s=10.0)
        os.close(pidfd)


async def test_a_kill_reaches_the_worker_not_only_its_command(elsewhere: Elsewhere) -> None:
    assert await elsewhere.process.kill(timeout_s=10.0)
    await elsewhere.gone()
    with pytest.raises(WorkerGoneError):
        await elsewhere.process.call("beat", ((), None))


async def test_a_kill_is_not_confirmed_while_the_worker_lives(elsewhere: Elsewhere) -> None:
    # It is not in our group, and now it does not see the end of its stream either.
    signal.pidfd_send_signal(elsewhere.pidfd, signal.SIGSTOP)
    assert not await elsewhere.process.kill(timeout_s=0.05)
    signal.pidfd_send_signal(elsewhere.pidfd, signal.SIGCONT)
    assert await elsewhere.process.kill(timeout_s=10.0)
    await elsewhere.gone()


async def test_a_kill_ends_the_calls_under_way(elsewhere: Elsewhere) -> None:
    async def watch() -> None:
        with suppress(WorkerGoneError):
            await elsewhere.process.call("watch", None)

    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch)
            await anyio.wait_all_tasks_blocked()
            assert await elsewhere.process.kill(timeout_s=10.0)


async def test_a_death_is_told_as_the_command_tells_it(elsewhere: Elsewhere) -> None:
    signal.pidfd_send_signal(elsewhere.pidfd, signal.SIGKILL)
    with pytest.raises(WorkerGoneError) as caught:
        await elsewhere.process.call("watch", None)
    error, facts = await elsewhere.process.death(caught.value)
    assert isinstance(error, CaughtError)
    assert error.message == f"the worker process {elsewhere.process.pid} exited with code 3"
    assert facts == {"pid": elsewhere.process.pid, "exit_code": 3}


async def test_a_worker_outlives_its_command_but_no_kill(elsewhere: Elsewhere) -> None:
    command = os.pidfd_open(elsewhere.process.pid)
    os.kill(elsewhere.process.pid, signal.SIGKILL)
    with anyio.fail_after(10):
        await anyio.wait_readable(command)
    os.close(command)
    assert isinstance(await elsewhere.process.call("beat", ((), None)), Beat)
    assert await elsewhere.process.kill(timeout_s=10.0)
    await elsewhere.gone()


async def test_a_call_that_the_supervisor_refuses_is_no_death() -> None:
    worker = await WorkerProcess.start(worker_command(), "here", 0, 1, WorkerSpec())
    try:
        with pytest.raises(WorkerCallError, match="no method 'dance'") as caught:
            await worker.call("dance", None)
        error, facts = await worker.death(caught.value)
        assert error is caught.value.error
        assert facts == {}
        assert isinstance(await worker.call("beat", ((), None)), Beat)
    finally:
        assert await worker.kill(timeout_s=10.0)


async def test_a_supervisor_that_cannot_start_says_why_as_data() -> None:
    spec = WorkerSpec(slots=0)
    with pytest.raises(GangLostError, match="at least 1 slot") as caught:
        await WorkerProcess.start(worker_command(), "here", 0, 1, spec)
    assert caught.value.phase == "start"
    assert isinstance(caught.value.error, CaughtError)
