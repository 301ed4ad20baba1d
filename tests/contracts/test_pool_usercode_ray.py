"""What user code can do in its process, row by row, on Ray, and what kind of fault it is taken
for."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import anyio.to_thread
import pytest

from thornback.executor.ports import Attribute
from thornback.faults import Classifier, Fault
from thornback.pool import Outcome, WorkerSpec
from thornback.pool.testing import USER_CODE, Bench, UserCodeRow, UserCodeTrial

if TYPE_CHECKING:
    from tests.conftest import RayTestCluster

pytestmark = [pytest.mark.ray, pytest.mark.anyio]

CPUS = 0.5


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def trial(ray_cluster: RayTestCluster) -> AsyncIterator[UserCodeTrial]:
    """One gang for all rows: it is a finding if a row ends it."""
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
    bench = Bench(
        backend=RayBackend(),
        node=node,
        handle=group,
        spec=WorkerSpec(cpus=CPUS),
        ok=b"",
        fails=b"",
        blocks=b"",
        crash=lambda pid: os.kill(pid, signal.SIGKILL),
        bound_s=90.0,
    )
    try:
        async with UserCodeTrial(bench) as trial:
            yield trial
    finally:
        remove_placement_group(group)


def fault_of(outcome: Outcome) -> Fault:
    """Classify it with the facts that a driver gives."""
    assert outcome.error is not None
    facts: dict[str, Attribute] = {
        "origin": outcome.seen_by.value,
        "phase": outcome.phase,
        "peak_rss_bytes": outcome.peak_rss_bytes,
        "node": outcome.node,
        "only_node": True,
    }
    told = ("signal", "exit_code", "oom_kill", "memory_limit_exceeded")
    facts |= {k: v for k, v in outcome.error.attributes.items() if k in told}
    return Classifier().classify(outcome.error, facts)


@pytest.mark.parametrize("row", USER_CODE, ids=lambda row: row.name)
async def test_it_comes_back_as_the_table_says(trial: UserCodeTrial, row: UserCodeRow) -> None:
    outcome = await trial.check(row)
    kind = "" if outcome.ok else fault_of(outcome).kind.value
    assert kind == row.kind, f"{fault_of(outcome)}" if kind else "it succeeded"
