"""The pool on a real Ray: what deaths are explained with, and what is left behind."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import attrs
import cloudpickle
import pytest

from thornback.faults import Classifier, FaultKind
from thornback.pool import (
    GangLostError,
    ProgramResult,
    RankCall,
    Worker,
    WorkerBackend,
    WorkerPool,
    WorkerSpec,
)
from thornback.pool.testing import assignment, reported

pytestmark = [pytest.mark.ray, pytest.mark.anyio]

CPUS = 0.5


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@attrs.define(slots=True)
class Placed:
    """A placement group, held."""

    group: Any
    nodes: list[str]


@asynccontextmanager
async def placed(*bundles: dict[str, float]) -> AsyncIterator[Placed]:
    import ray
    from ray.util.placement_group import (
        placement_group,
        placement_group_table,
        remove_placement_group,
    )

    def place() -> Placed:
        group = placement_group(list(bundles), strategy="PACK")
        ray.get(group.ready(), timeout=60)
        nodes = placement_group_table(group)["bundles_to_node_id"]
        return Placed(group, [nodes[index] for index in range(len(bundles))])

    held = await anyio.to_thread.run_sync(place)
    try:
        yield held
    finally:
        remove_placement_group(held.group)


def test_whatever_a_call_carries_counts_for_how_it_is_sent() -> None:
    from thornback.pool.on_ray import _size

    work = attrs.evolve(assignment(1, 0, 1), args=(b"a", b"bc"), restored=(None, b"x" * 60_000))
    assert _size((work, (1, 2))) == 60_003


async def blobs(key: str) -> bytes:
    class Tell:
        def setup(self, context: RankCall) -> None:
            pass

        def run(self, context: RankCall) -> ProgramResult:
            import json
            import os
            import threading

            if key == "loses":
                raise RuntimeError("CUDA error: GPU is lost")
            if key == "waits":  # for a file whose name is the argument
                while not os.path.exists(context.args or b""):
                    threading.Event().wait(0.01)
            return ProgramResult(result=json.dumps([context.node, os.environ.get("COLOUR")]))

    blob: bytes = cloudpickle.dumps(Tell())
    return blob


@asynccontextmanager
async def pool_on_ray(backend: WorkerBackend | None = None) -> AsyncIterator[WorkerPool]:
    from thornback.pool.on_ray import RayBackend

    with anyio.fail_after(120):
        async with WorkerPool(backend or RayBackend(), blobs) as pool:
            yield pool


@attrs.define(slots=True)
class Kept:
    """A backend that keeps the workers it has started."""

    backend: Any
    workers: list[Any] = attrs.field(factory=list)

    async def start(
        self, node: str, index: int, nodes: int, handle: object, spec: WorkerSpec, /
    ) -> Worker:
        worker: Worker = await self.backend.start(node, index, nodes, handle, spec)
        self.workers.append(worker)
        return worker


def actor_state(pid: int) -> str:
    import ray

    states = [a["State"] for a in ray._private.state.actors().values() if a["Pid"] == pid]
    return states[0] if states else "UNKNOWN"


def kind(loss: GangLostError) -> FaultKind:
    facts: Mapping[str, Any] = {**loss.facts, "origin": "worker", "phase": loss.phase}
    return Classifier().classify(loss.error, facts).kind


@pytest.mark.usefixtures("ray_cluster")
async def test_a_gang_on_one_bundle_each_with_its_runtime_env() -> None:
    async with placed({"CPU": CPUS}, {"CPU": CPUS}) as at, pool_on_ray() as pool:
        spec = WorkerSpec(cpus=CPUS, runtime_env={"env_vars": {"COLOUR": "green"}})
        await pool.open(1, at.nodes, at.group, spec, timeout_s=90.0)
        outcomes, _ = reported([report async for report in pool.run(1, assignment(1, 0))])
        assert outcomes[0].result == f'["{at.nodes[0]}", "green"]'
        beats = await pool.beat(1)
        assert [beat.node for beat in beats] == at.nodes
        assert await pool.close(1, kill=False, timeout_s=15.0)
        assert [actor_state(beat.pid) for beat in beats] == ["DEAD", "DEAD"]


@pytest.mark.usefixtures("ray_cluster")
async def test_a_straight_line_that_breaks_under_way_costs_nothing(tmp_path: Path) -> None:
    from thornback.pool.on_ray import RayBackend

    kept = Kept(RayBackend())
    async with placed({"CPU": CPUS}) as at, pool_on_ray(kept) as pool:
        await pool.open(1, at.nodes, at.group, WorkerSpec(cpus=CPUS), timeout_s=90.0)
        (worker,) = kept.workers
        assert worker._line is not None, "calls should not go by Ray"
        gate = tmp_path / "gate"
        waits = attrs.evolve(assignment(1, 0, program="waits"), args=(bytes(gate),))
        reports = pool.run(1, waits)
        assert (await anext(reports)).running == 0
        worker._line.abort()
        gate.touch()
        outcomes, _ = reported([report async for report in reports])
        assert outcomes[0].ok
        assert worker._line is None
        outcomes, _ = reported([report async for report in pool.run(1, assignment(2, 7))])
        assert outcomes[7].ok, "from now on calls go by Ray"
        assert await pool.close(1, kill=False, timeout_s=15.0)


@pytest.mark.usefixtures("ray_cluster")
async def test_worker_whose_only_gpu_failed_is_lost_with_its_node_to_blame() -> None:
    # Without the second variable, older Ray hides the GPUs of a worker that asks for none.
    variables = {"CUDA_VISIBLE_DEVICES": "3", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    spec = WorkerSpec(cpus=CPUS, runtime_env={"env_vars": variables})
    async with placed({"CPU": CPUS}) as at, pool_on_ray() as pool:
        await pool.open(1, at.nodes, at.group, spec, timeout_s=90.0)
        (report,) = [each async for each in pool.run(1, assignment(1, 0, 1, program="loses"))]
        assert [(each.rank, each.ok) for each in report.outcomes] == [(0, False)]
        assert report.returned == (range(1, 2),)
        loss = await pool.lost(1)
        assert "the GPUs of its only slot failed: slot 0 (GPU 3)" in str(loss)
        assert (kind(loss), loss.node) == (FaultKind.RESOURCE, at.nodes[0])
        assert await pool.close(1, kill=False, timeout_s=15.0)


@pytest.mark.usefixtures("ray_cluster")
async def test_without_straight_lines_calls_go_by_ray_and_logs_are_salvaged_by_a_task(
    tmp_path: Path,
) -> None:
    import ray.util

    from thornback.pool.on_ray import RayBackend

    kept = Kept(RayBackend(straight=False))
    async with placed({"CPU": CPUS}) as at, pool_on_ray(kept) as pool:
        await pool.open(1, at.nodes, at.group, WorkerSpec(cpus=CPUS), timeout_s=90.0)
        (worker,) = kept.workers
        assert worker._line is None
        outcomes, _ = reported([report async for report in pool.run(1, assignment(1, 7))])
        assert outcomes[7].ok
        (beat,) = await pool.beat(1)
        assert beat.address == ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]  # ray has no types there
        logs = tmp_path / "logs"
        logs.mkdir()
        (logs / ".thornback-own").touch()
        (logs / "w-slot0-1.log").write_bytes(b"one two")
        assert await pool.close(1, kill=True, timeout_s=15.0)
        rest = await worker.salvage(str(logs), "w-", {"w-slot0-1.log": 4})
        assert [(c.offset, c.data) for c in rest if c.log == "w-slot0-1.log"] == [(4, b"two")]
        assert list(await worker.salvage(str(logs), "w-", {})) == [], "removed"


@pytest.mark.usefixtures("ray_cluster")
async def test_each_way_to_die_is_explained_by_the_gcs() -> None:
    from ray.util.placement_group import remove_placement_group

    async with (
        placed({"CPU": CPUS}) as crashed,
        placed({"CPU": CPUS}) as removed,
        pool_on_ray() as pool,
    ):
        gangs = {1: crashed, 2: removed}

        async def open_gang(gang: int, at: Placed) -> None:
            await pool.open(gang, at.nodes, at.group, WorkerSpec(cpus=CPUS), timeout_s=90.0)

        async with anyio.create_task_group() as group:
            for gang, at in gangs.items():
                group.start_soon(open_gang, gang, at)
        pids = {gang: (await pool.beat(gang))[0].pid for gang in gangs}
        os.kill(pids[1], signal.SIGKILL)
        loss = await pool.lost(1)
        assert (loss.facts["death_cause"], loss.facts["pid"]) == ("WORKER_DIED", pids[1])
        assert loss.facts["exit_type"] == "SYSTEM_ERROR"
        assert loss.facts["preempted"] is False
        assert kind(loss) is FaultKind.WORKER_CRASH

        remove_placement_group(removed.group)
        loss = await pool.lost(2)
        assert loss.facts["exit_type"] == "INTENDED_SYSTEM_EXIT", f"{loss!r}"
        assert kind(loss) is FaultKind.PLACEMENT_REMOVED
        assert await pool.close(2, kill=True, timeout_s=15.0)


@pytest.mark.usefixtures("ray_cluster")
async def test_an_open_that_cannot_be_placed_times_out_and_leaves_no_actor() -> None:
    import ray
    from ray.util.placement_group import remove_placement_group

    async with placed({"CPU": CPUS}) as at, pool_on_ray() as pool:
        remove_placement_group(at.group)  # Ray lets an actor for it wait for ever
        with pytest.raises(GangLostError) as caught:
            await pool.open(1, at.nodes, at.group, WorkerSpec(cpus=CPUS), timeout_s=3.0)
        assert caught.value.phase == "start"
        assert await pool.close(1, kill=True, timeout_s=15.0)
    alive = [a for a in ray._private.state.actors().values() if a["State"] != "DEAD"]
    assert alive == []


async def test_a_lost_node_is_told_apart(ray_cluster: Any) -> None:
    # Blocks this loop, but Ray insists on the main thread for it.
    node = ray_cluster.add_node(num_cpus=1, resources={"victim": 1.0})
    gone = False
    try:
        async with placed({"CPU": CPUS, "victim": 1.0}) as at, pool_on_ray() as pool:
            assert at.nodes == [node.node_id]
            spec = WorkerSpec(cpus=CPUS, resources={"victim": 1.0})
            await pool.open(1, at.nodes, at.group, spec, timeout_s=90.0)
            gone = True
            ray_cluster.remove_node(node)
            loss = await pool.lost(1)
            assert loss.node == node.node_id
            assert loss.facts["death_cause"] == "NODE_DIED", f"{loss!r}"
            assert kind(loss) is FaultKind.NODE_LOST
            assert await pool.close(1, kill=True, timeout_s=15.0)
    finally:
        if not gone:
            ray_cluster.retire_node(node)
