"""`thornback demo` on a Ray that runs already: the same as on the local backend, by default."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from thornback.cli.trace_file import check_trace

if TYPE_CHECKING:
    from tests.acceptance.conftest import DemoProcess
    from tests.conftest import RayTestCluster


@pytest.mark.ray
def test_the_demo_survives_its_kills_on_ray(
    ray_cluster: RayTestCluster, start_demo: Callable[..., DemoProcess], tmp_path: Path
) -> None:
    environment = {**ray_cluster.environment, "RAY_ADDRESS": ray_cluster.address}
    demo = start_demo("--state", str(tmp_path / "state"), environment=environment)
    assert demo.finish(timeout_s=150) == 0, demo.output
    for text in (
        ray_cluster.address,
        "index has ended: 32/32 done",
        "chaos: killed a rank process",
        "chaos: killed a worker process",
        "result verified",
    ):
        assert text in demo.output, demo.output
    faults = [line for line in demo.output.splitlines() if "fault: index" in line]
    assert len(faults) >= 2, demo.output
    assert all("-> retried" in line for line in faults)
    (trace,) = (tmp_path / "state" / "traces").iterdir()
    check = check_trace(trace)
    assert check.ok, check.problems
    assert check.retried >= 1
