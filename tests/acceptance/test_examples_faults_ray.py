"""The example of the retry classifier on plain Ray: another driver of the tests' cluster."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import RayTestCluster

EXAMPLES = Path(__file__).parents[2] / "packages" / "faults" / "examples"

pytestmark = pytest.mark.ray


def test_a_killed_task_is_tried_again_and_a_bug_is_not(
    ray_cluster: RayTestCluster,
    run_examples: Callable[[Path], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {**ray_cluster.environment, "RAY_ADDRESS": ray_cluster.address}.items():
        monkeypatch.setenv(name, value)
    printed = run_examples(EXAMPLES / "retry_on_plain_ray.py").splitlines()
    assert [line for line in printed if "(raylet)" not in line] == [
        "results: {0: 0, 1: 1, 3: 9}",
        "number 1, attempt 1: worker_crash: retry 1 of 3, in a fresh process",
        "number 2, attempt 1: application: given up: no retries for this: ValueError: bad row",
    ]
    ray_cluster.assert_nothing_left(timeout_s=10)
