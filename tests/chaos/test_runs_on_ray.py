"""Whole runs on a real Ray while its processes and nodes are killed from the driver's side."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import pytest

from thornback.executor import Executor, Job, RankContext, RunFailed, Stage
from thornback.executor.ports import LiveRun
from thornback.executor.testing import Chaos

if TYPE_CHECKING:
    from tests.conftest import RayTestCluster

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]


def spinner(marks: Path, spin_s: float) -> Callable[[RankContext], int]:
    """Return a rank function that computes for a while and leaves a mark of its start."""
    folder = str(marks)

    def spin(ctx: RankContext) -> int:
        import os
        import time

        name = f"{ctx.rank}.{ctx.attempt}.{ctx.epoch}.{os.getpid()}"
        open(os.path.join(folder, name), "w").close()
        end = time.monotonic() + spin_s
        while time.monotonic() < end:
            pass
        return ctx.rank

    return spin


@pytest.fixture
def clean(ray_cluster: RayTestCluster) -> Iterator[None]:
    """Assert that a run leaves no group but REMOVED, no actor but DEAD, none of its processes."""
    yield
    ray_cluster.assert_nothing_left(timeout_s=10)


@pytest.mark.usefixtures("clean")
def test_killed_rank_and_killed_worker_are_retried(tmp_path: Path) -> None:
    released = tmp_path / "released"

    def wait(ctx: RankContext) -> int:
        import os
        import time

        end = time.monotonic() + 120
        while not os.path.exists(released) and time.monotonic() < end:
            time.sleep(0.02)
        return ctx.rank

    chaos = Chaos(kill_ranks=2, kill_workers=2)

    async def kill_then_release(driver: LiveRun) -> None:
        await chaos(driver)  # no rank ends before: each blow finds first attempts running
        released.touch()

    job = Job("chaos", [Stage("wait", wait, ranks=40)])
    executor = Executor.on_ray(state=str(tmp_path / "state"), companions=[kill_then_release])
    report = executor.run(job)

    assert report.results("wait") == {rank: rank for rank in range(40)}
    assert Counter(kill.what for kill in chaos.kills) == {"rank": 2, "worker": 2}
    kinds = Counter((a.fault.origin.value, a.fault.kind.value) for a in report.attempts)
    assert kinds["process", "worker_crash"] == 2
    assert kinds["worker", "worker_crash"] >= 2
    assert all(attempt.retried for attempt in report.attempts)


@pytest.mark.usefixtures("clean")
def test_ranks_of_a_lost_node_run_elsewhere(ray_cluster: RayTestCluster, tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()
    victim = ray_cluster.add_node(num_cpus=2)
    lost: list[int] = []

    async def kill_node(driver: LiveRun) -> None:
        async for seen in driver.dispatches():
            beats = await driver.beat(seen.gang)
            if any(beat.node == victim.node_id and beat.running for beat in beats):
                lost.append(seen.gang)
                await anyio.to_thread.run_sync(ray_cluster.remove_node, victim)
                return

    job = Job("node", [Stage("spin", spinner(marks, 0.3), ranks=60)])
    executor = Executor.on_ray(state=str(tmp_path / "state"), companions=[kill_node])
    report = executor.run(job)

    assert lost, "a rank was seen running on the victim"
    assert report.results("spin") == {rank: rank for rank in range(60)}
    assert any(attempt.lost_ranks for attempt in report.attempts)
    assert all(attempt.retried for attempt in report.attempts)


@pytest.mark.usefixtures("clean")
def test_rank_that_exceeds_its_time_is_killed_and_tried_again(tmp_path: Path) -> None:
    flag = tmp_path / "tried"

    def slow_once(ctx: RankContext) -> str:
        import os
        import time

        if ctx.rank == 1 and not os.path.exists(flag):
            open(flag, "w").close()
            time.sleep(3600)
        return "done"

    job = Job("slow", [Stage("slow", slow_once, ranks=4, timeout_s=5)])
    report = Executor.on_ray(state=str(tmp_path / "state")).run(job)
    assert report.results("slow") == dict.fromkeys(range(4), "done")
    (attempt,) = report.attempts
    assert (attempt.rank, attempt.fault.kind.value, attempt.fault.phase) == (1, "timeout", "rank")


@pytest.mark.usefixtures("clean")
def test_failed_rank_raises_with_its_cause_and_skips_what_follows(tmp_path: Path) -> None:
    def bad(ctx: RankContext) -> None:
        if ctx.rank == 2:
            raise ValueError("the third is bad")

    def after(ctx: RankContext) -> None: ...

    job = Job("bad", [Stage("bad", bad, ranks=4), Stage("after", after, after="bad")])
    with pytest.raises(RunFailed) as caught:
        Executor.on_ray(state=str(tmp_path / "state")).run(job)
    (failure,) = caught.value.exceptions
    assert "the third is bad" in str(failure)
    progress = caught.value.report.stages
    assert (progress["bad"].done, progress["bad"].failed, progress["after"].skipped) == (3, 1, 1)


@pytest.mark.parametrize("how", ["exit", "segv", "unpicklable", "system_exit"])
@pytest.mark.usefixtures("clean")
def test_whatever_user_code_does_comes_back_and_hangs_nothing(tmp_path: Path, how: str) -> None:
    number = int(signal.SIGSEGV)

    def rank(ctx: RankContext) -> None:
        import os

        class Picky(Exception):
            def __init__(self, a: int, b: int) -> None:
                super().__init__("two arguments")

        if how == "exit":
            os._exit(7)
        elif how == "segv":
            os.kill(os.getpid(), number)
        elif how == "system_exit":
            raise SystemExit(3)
        raise Picky(1, 2)

    job = Job("end", [Stage("end", rank, max_retries=1)])
    with pytest.raises(RunFailed) as caught:
        Executor.on_ray(state=str(tmp_path / "state")).run(job)
    kinds = {a.fault.kind.value for a in caught.value.report.attempts}
    assert kinds == ({"worker_crash"} if how in ("exit", "segv") else {"application"})
