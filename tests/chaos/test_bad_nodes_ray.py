"""A node that is bad and stays bad: its ranks run elsewhere, and it gets hardly any more."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from thornback.executor import (
    MISSING,
    Executor,
    Job,
    RankContext,
    Stage,
)

if TYPE_CHECKING:
    from ray._private.node import Node

    from tests.conftest import RayTestCluster

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]
RANKS = 200
MOST_FAULTS = 10


@pytest.fixture
def bad_node(ray_cluster: RayTestCluster) -> Iterator[Node]:
    """A third node of two CPUs."""
    node = ray_cluster.add_node(num_cpus=2)
    yield node
    ray_cluster.retire_node(node)
    ray_cluster.assert_nothing_left(timeout_s=10)


def exits(bad: str) -> Stage:
    def work(ctx: RankContext) -> str:
        import os
        import time

        if ctx.node == bad:
            os._exit(9)
        time.sleep(0.05)
        return ctx.node

    return Stage("work", work, ranks=RANKS)


def has_a_broken_disk(bad: str) -> Stage:
    def work(ctx: RankContext) -> str:
        import errno
        import time

        if ctx.node == bad:
            raise OSError(errno.EIO, "Input/output error")
        time.sleep(0.05)
        return ctx.node

    return Stage("work", work, ranks=RANKS)


def cannot_set_up(bad: str) -> Stage:
    def setup(ctx: RankContext) -> None:
        if ctx.node == bad:
            raise RuntimeError("libcuda.so.1: cannot open shared object file")

    def work(ctx: RankContext) -> str:
        import time

        time.sleep(0.05)
        return ctx.node

    return Stage("work", work, ranks=RANKS, setup=setup)


@pytest.mark.parametrize("kind", [exits, has_a_broken_disk, cannot_set_up])
def test_node_that_stays_bad_costs_few_faults_and_no_rank(
    ray_cluster: RayTestCluster, bad_node: Node, tmp_path: Path, kind: Callable[[str], Stage]
) -> None:
    executor = Executor.on_ray(state=str(tmp_path / "state"))
    report = executor.run(Job("bad", [kind(bad_node.node_id)]), check=False)

    assert report.state == "succeeded", report.reason
    assert MISSING not in report.results("work").values()
    assert bad_node.node_id not in report.results("work").values()
    faults = Counter(attempt.node for attempt in report.attempts)
    assert 0 < faults[bad_node.node_id] <= MOST_FAULTS
    assert set(faults) == {bad_node.node_id}
