"""The conformance suites against the fake and the local backend."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from thornback.pool import WorkerSpec
from thornback.pool.testing import Bench, FakeBackend, check_worker_backend, check_workers

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@asynccontextmanager
async def fake_bench() -> AsyncIterator[Bench]:
    backend = FakeBackend()
    yield Bench(
        backend=backend,
        node="n0",
        handle=None,
        spec=WorkerSpec(slots=2),
        ok=b"ok",
        fails=b"fails",
        blocks=b"blocks",
        crash=backend.crash,
        bound_s=5.0,
    )


async def test_fake_backend_fulfils_the_port() -> None:
    await check_worker_backend(fake_bench)


async def test_pool_on_the_fake_backend_keeps_its_promises() -> None:
    await check_workers(fake_bench)
