"""The conformance suites of the pool against Ray."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio.to_thread
import cloudpickle
import pytest

from thornback.pool import ProgramResult, RankCall, WorkerSpec
from thornback.pool.testing import Bench, check_worker_backend, check_workers

pytestmark = [pytest.mark.ray, pytest.mark.anyio]

CPUS = 0.5


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


@asynccontextmanager
async def ray_bench() -> AsyncIterator[Bench]:
    import ray
    from ray.util.placement_group import (
        placement_group,
        placement_group_table,
        remove_placement_group,
    )

    from thornback.pool.on_ray import RayBackend

    def place() -> tuple[Any, str]:
        group = placement_group([{"CPU": CPUS}])
        ray.get(group.ready(), timeout=60)
        return group, placement_group_table(group)["bundles_to_node_id"][0]

    group, node = await anyio.to_thread.run_sync(place)
    ok, fails, blocks = programs()
    try:
        yield Bench(
            backend=RayBackend(),
            node=node,
            handle=group,
            spec=WorkerSpec(slots=2, cpus=CPUS),
            ok=ok,
            fails=fails,
            blocks=blocks,
            crash=lambda pid: os.kill(pid, signal.SIGKILL),
            bound_s=90.0,
        )
    finally:
        remove_placement_group(group)


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_ray_backend_fulfils_the_port() -> None:
    await check_worker_backend(ray_bench)


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("anyio_backend", ["trio"])
async def test_pool_on_ray_keeps_its_promises() -> None:
    await check_workers(ray_bench)
