"""A run whose calls are cut off by Ray itself: the call may have been executed, and the worker
lives on."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.chaos.arena import records

if TYPE_CHECKING:
    from tests.conftest import RayTestCluster

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

FAILURES = 30
RANKS = 60
PROGRAM = """
import json, os, sys, time
from thornback.executor import Executor, Job, Stage

address, folder = sys.argv[1:]


def rank(ctx):
    # Fails if the same try of a rank is executed twice.
    open(os.path.join(folder, f"{ctx.rank} {ctx.attempt} {ctx.epoch}"), "x").close()
    time.sleep(0.02)
    return ctx.rank


if __name__ == "__main__":
    executor = Executor.on_ray(address=address, state=os.path.join(folder, "state"))
    report = executor.run(Job("cut", [Stage("cut", rank, ranks=%d)]), check=False)
    print(json.dumps({
        "state": report.state,
        "results": dict(report.results("cut")),
        "failures": [(a.rank, a.fault.kind.value, a.fault.phase) for a in report.attempts],
    }))
"""


def run_with_failures(cluster: RayTestCluster, folder: Path, failing: Mapping[str, Any]) -> Any:
    """Run the job in a driver of its own: Ray reads the variable when it starts."""
    import ray

    if tuple(map(int, ray.__version__.split(".")[:2])) < (2, 54):
        pytest.skip("ray reads this as JSON since PR 58886; a call cut as 2.49 reads it crashes it")
    program = folder / "program.py"
    program.write_text(PROGRAM % RANKS)
    done = subprocess.run(
        [sys.executable, str(program), cluster.address, str(folder)],
        env={
            **os.environ,
            **cluster.environment,
            "RAY_testing_rpc_failure": json.dumps(failing),
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("lost", ["req_failure_prob", "resp_failure_prob"])
def test_cut_calls_are_repeated_and_charged_to_nobody(
    ray_cluster: RayTestCluster, tmp_path: Path, lost: str
) -> None:
    other = {"req_failure_prob": 0, "resp_failure_prob": 0}
    push = {**other, "num_failures": FAILURES, lost: 20}
    found = run_with_failures(
        ray_cluster, tmp_path, {"CoreWorkerService.grpc_client.PushTask": push}
    )
    assert found["state"] == "succeeded", found
    assert found["results"] == {str(rank): rank for rank in range(RANKS)}
    assert records(tmp_path / "state", "cut") == dict.fromkeys(range(RANKS), 1)
    # A gang whose opening is cut off is lost, and opened again; no rank pays for any of it.
    assert all(failure[:2] == [None, "unavailable"] for failure in found["failures"]), found
    tries = [mark.name.split() for mark in tmp_path.glob("* * *")]
    assert {attempt for _, attempt, _ in tries} == {"1"}
    ray_cluster.assert_nothing_left(timeout_s=10)
