"""The demo's driver is killed while it runs on a Ray that is not its own: nothing of it is left."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.acceptance.conftest import DemoProcess
    from tests.conftest import RayTestCluster


@pytest.mark.ray
def test_after_a_killed_driver_ray_is_clean_and_only_what_is_missing_is_run(
    ray_cluster: RayTestCluster, start_demo: Callable[..., DemoProcess], tmp_path: Path
) -> None:
    environment = {**ray_cluster.environment, "RAY_ADDRESS": ray_cluster.address}
    command = ("--state", str(tmp_path / "state"))
    first = start_demo(*command, environment=environment)
    announced = int(first.wait_for(r"index ([6-9]|[12]\d)/32 done", timeout_s=150)[1])
    assert ray_cluster.leftovers(), "there is something to clean up"
    first.send(signal.SIGKILL)
    assert first.finish(timeout_s=10) == -signal.SIGKILL
    ray_cluster.assert_nothing_left(timeout_s=10)

    second = start_demo(*command, environment=environment)
    assert second.finish(timeout_s=150) == 0, second.output
    header = re.search(r"stage +index: 32 ranks, (\d+) recorded earlier", second.output)
    assert header, second.output
    assert announced <= int(header[1]) < 32
    assert f"{33 - int(header[1])} ranks recorded now" in second.output
    assert "result verified" in second.output
    ray_cluster.assert_nothing_left(timeout_s=10)
