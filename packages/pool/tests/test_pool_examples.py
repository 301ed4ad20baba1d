"""The example backend runs as it stands, and keeps what the pool expects of a backend."""

from __future__ import annotations

import importlib.util
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import cloudpickle
import pytest

from thornback.pool import ProgramResult, RankCall, WorkerBackend, WorkerSpec
from thornback.pool.testing import Bench, MakeBench, check_worker_backend, check_workers

OWN_BACKEND = Path(__file__).parent.parent / "examples" / "own_backend.py"


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def programs() -> tuple[bytes, bytes, bytes]:
    """Return ok, fails, blocks. The classes are local, so that cloudpickle takes them by value."""

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


@pytest.fixture
def make_bench() -> MakeBench:
    spec = importlib.util.spec_from_file_location("own_backend", OWN_BACKEND)
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    backend: WorkerBackend = example.PrefixBackend()

    @asynccontextmanager
    async def make() -> AsyncIterator[Bench]:
        ok, fails, blocks = programs()
        yield Bench(
            backend=backend,
            node="here",
            handle=None,
            spec=WorkerSpec(slots=2, memory_bytes=2 << 30),
            ok=ok,
            fails=fails,
            blocks=blocks,
            crash=lambda pid: os.kill(pid, signal.SIGKILL),
        )

    return make


def test_it_runs_ranks(run_examples: Callable[[Path], str]) -> None:
    assert run_examples(OWN_BACKEND) == "".join(
        f"rank {rank} on here had at most 2048 MiB\n" for rank in range(3)
    )


@pytest.mark.anyio
async def test_it_fulfils_the_port_and_the_pool_keeps_its_promises_on_it(
    make_bench: MakeBench,
) -> None:
    # Beside each other: both wait for the first report on a long rank, which takes 2 s.
    async with anyio.create_task_group() as group:
        group.start_soon(check_worker_backend, make_bench)
        group.start_soon(check_workers, make_bench)
