"""Whole runs on a real Ray while its processes and nodes are killed from the driver's side."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import pytest

from tests.chaos.arena import Arena, death_reason, drain, gone, kinds, told
from thornback.executor import Executor, Job, RankContext, RunFailed, Stage
from thornback.executor.on_ray import RayPlatform
from thornback.executor.ports import LiveRun
from thornback.executor.testing import Chaos, sighted
from thornback.placement import AllocatorParams
from thornback.pool import PoolParams

if TYPE_CHECKING:
    from ray._private.node import Node

    from tests.conftest import RayTestCluster

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]


@pytest.fixture
def arena(ray_cluster: RayTestCluster, tmp_path: Path) -> Iterator[Arena]:
    """A run leaves no group but REMOVED, no actor but DEAD, none of its processes."""
    yield Arena(folder=tmp_path, cluster=ray_cluster)
    ray_cluster.assert_nothing_left(timeout_s=10)


@pytest.fixture
def victim(ray_cluster: RayTestCluster, arena: Arena) -> Iterator[Node]:
    """A node of two CPUs, besides the two that stay."""
    node = ray_cluster.add_node(num_cpus=2)
    yield node
    ray_cluster.retire_node(node)


# -- processes


def test_killed_rank_and_killed_worker_are_retried(arena: Arena) -> None:
    chaos = Chaos(kill_ranks=2, kill_workers=1)  # a gang is hit once: there are four
    report = arena.run(chaos, ranks=8, cpus=1)

    arena.assert_recorded_once(report)
    assert Counter(kill.what for kill in chaos.kills) == {"rank": 2, "worker": 1}
    found = Counter((a.fault.origin.value, a.fault.kind.value) for a in report.attempts)
    assert found["process", "worker_crash"] == 2
    assert set(found) == {("process", "worker_crash"), ("worker", "worker_crash")}
    assert all(attempt.retried for attempt in report.attempts)


def test_stopped_worker_is_found_by_its_silence_and_its_late_report_counts_for_nothing(
    arena: Arena,
) -> None:
    stopped: list[tuple[int, int]] = []

    async def stop(driver: LiveRun) -> None:
        at = await sighted(driver)
        stopped.append((at.beat.pid, at.running.rank))
        os.kill(at.beat.pid, signal.SIGSTOP)
        await arena.failed.wait()

    pool = PoolParams(beat_every_s=0.5, silence_s=4.0, ask_s=1.0, kill_s=2.0)
    try:
        report = arena.run(stop, platform=RayPlatform(pool=pool), ranks=4)
    finally:
        for pid, _ in stopped:  # ray.kill does not reach a process that is stopped
            with_suppress_kill(pid, signal.SIGCONT)
    arena.assert_recorded_once(report)
    ((_, rank),) = stopped
    assert len(arena.starts()[rank]) == 2
    assert kinds(report) == {"timeout"}, told(report)
    assert report.attempts[0].fault.phase == "heartbeat"


def with_suppress_kill(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def test_killed_member_of_a_gang_of_two_nodes_fails_the_rank_once(arena: Arena) -> None:
    async def kill(driver: LiveRun) -> None:
        at = await sighted(driver)
        beats = await driver.beat(at.dispatched.gang)
        (second,) = [beat for beat in beats if beat.node != at.beat.node]
        os.kill(second.pid, signal.SIGKILL)

    report = arena.run(kill, ranks=2, nodes=2, cpus=1, max_gangs=1)
    assert report.state == "succeeded", told(report)
    assert kinds(report) == {"worker_crash"}, told(report)
    assert list(report.results("hold")) == [0, 1]


# -- nodes


def test_ranks_of_a_lost_node_run_elsewhere(arena: Arena, victim: Node) -> None:
    async def kill_node(driver: LiveRun) -> None:
        at = await sighted(driver, where=lambda beat: beat.node == victim.node_id)
        await anyio.to_thread.run_sync(arena.cluster.remove_node, victim)
        await gone(at)

    report = arena.run(kill_node)
    arena.assert_recorded_once(report)
    assert kinds(report) == {"node_lost"}, told(report)
    assert death_reason(victim) == 2


def test_node_whose_raylet_is_killed_is_lost(arena: Arena, victim: Node) -> None:
    async def kill_raylet(driver: LiveRun) -> None:
        at = await sighted(driver, where=lambda beat: beat.node == victim.node_id)
        raylet = victim.all_processes["raylet"][0].process
        raylet.kill()
        raylet.wait()  # its workers look for it, and take a zombie for alive
        await gone(at)

    report = arena.run(kill_raylet)
    arena.assert_recorded_once(report)
    assert kinds(report) == {"node_lost"}, told(report)
    assert death_reason(victim) == 2


def test_node_that_leaves_in_order_is_lost_too(arena: Arena, victim: Node) -> None:
    async def remove(driver: LiveRun) -> None:
        at = await sighted(driver, where=lambda beat: beat.node == victim.node_id)
        call = partial(arena.cluster.remove_node, victim, graceful=True)
        await anyio.to_thread.run_sync(call)
        await gone(at)

    report = arena.run(remove)
    arena.assert_recorded_once(report)
    assert kinds(report) == {"node_lost"}, told(report)
    assert death_reason(victim) == 1


def test_preemption_is_charged_to_nobody(arena: Arena, victim: Node) -> None:
    async def preempt(driver: LiveRun) -> None:
        at = await sighted(driver, where=lambda beat: beat.node == victim.node_id)
        # Ray calls it a preemption only if it finds the node dead after the deadline: 2.5 s here.
        await anyio.to_thread.run_sync(drain, victim, 1.0)
        await anyio.to_thread.run_sync(arena.cluster.remove_node, victim)
        await gone(at)

    report = arena.run(preempt)
    arena.assert_recorded_once(report)
    assert kinds(report) == {"preemption"}, told(report)
    arena.assert_charged_to_nobody()
    assert death_reason(victim) == 3


# -- placement


def test_removed_placement_group_is_replaced(arena: Arena) -> None:
    async def remove(driver: LiveRun) -> None:
        at = await sighted(driver)
        await anyio.to_thread.run_sync(remove_group_on, at.beat.node)
        await gone(at)

    report = arena.run(remove, ranks=4)
    arena.assert_recorded_once(report)
    assert kinds(report) == {"placement_removed"}, told(report)


def remove_group_on(node: str) -> None:
    """Remove the one group that holds a node."""
    from ray.util.placement_group import (
        get_placement_group,
        placement_group_table,
        remove_placement_group,
    )

    (name,) = [
        row["name"]
        for row in placement_group_table().values()
        if row["state"] == "CREATED" and node in row["bundles_to_node_id"].values()
    ]
    remove_placement_group(get_placement_group(name))


def test_request_that_never_fits_is_refused_within_seconds_with_numbers(arena: Arena) -> None:
    def never(ctx: RankContext) -> None: ...

    platform = RayPlatform(placement=AllocatorParams(wait_for_nodes_s=1.0))
    executor = Executor(platform=platform, state=str(arena.folder / "state"))
    started = time.monotonic()
    with pytest.raises(RunFailed) as caught:
        executor.run(Job("never", [Stage("never", never, cpus=64)]))
    assert time.monotonic() - started < 15
    (attempt,) = caught.value.report.attempts
    assert attempt.fault.kind.value == "unschedulable"
    assert "64" in attempt.fault.message
    assert "largest node has" in attempt.fault.message


# -- limits


def test_rank_over_its_memory_gets_more(arena: Arena) -> None:
    def greedy(ctx: RankContext) -> int:
        import os
        import threading

        held = bytearray(os.urandom(1 << 20)) * 150
        if ctx.attempt == 1:
            threading.Event().wait()  # until the limit is found to be exceeded
        return len(held) >> 20

    job = Job("oom", [Stage("greedy", greedy, memory="140MiB")])
    report = Executor.on_ray(state=str(arena.folder / "state")).run(job)
    assert report.results("greedy") == {0: 150}
    (attempt,) = report.attempts
    assert (attempt.fault.kind.value, attempt.fault.origin.value) == ("oom", "process")
    assert attempt.peak_rss_bytes > 140 << 20


def test_rank_that_exceeds_its_time_is_killed_and_tried_again(arena: Arena) -> None:
    flag = arena.folder / "tried"

    def slow_once(ctx: RankContext) -> str:
        import os
        import time

        if ctx.rank == 1 and not os.path.exists(flag):
            open(flag, "w").close()
            time.sleep(3600)
        return "done"

    job = Job("slow", [Stage("slow", slow_once, ranks=4, timeout_s=2)])
    report = Executor.on_ray(state=str(arena.folder / "state")).run(job)
    assert report.results("slow") == dict.fromkeys(range(4), "done")
    (attempt,) = report.attempts
    assert (attempt.rank, attempt.fault.kind.value, attempt.fault.phase) == (1, "timeout", "rank")


# -- user code (row by row in tests/contracts; here that a run ends as it should)


def test_failed_rank_raises_with_its_cause_and_skips_what_follows(arena: Arena) -> None:
    def bad(ctx: RankContext) -> None:
        if ctx.rank == 2:
            raise ValueError("the third is bad")

    def after(ctx: RankContext) -> None: ...

    job = Job("bad", [Stage("bad", bad, ranks=4), Stage("after", after, after="bad")])
    with pytest.raises(RunFailed) as caught:
        Executor.on_ray(state=str(arena.folder / "state")).run(job)
    (failure,) = caught.value.exceptions
    assert "the third is bad" in str(failure)
    progress = caught.value.report.stages
    assert (progress["bad"].done, progress["bad"].failed, progress["after"].skipped) == (3, 1, 1)


def ends(how: str) -> Callable[[RankContext], None]:
    """Return a rank function that ends badly."""

    def rank(ctx: RankContext) -> None:
        import os
        import signal

        class Picky(Exception):
            def __init__(self, a: int, b: int) -> None:
                super().__init__("two arguments")

        if how == "exit":
            os._exit(7)
        elif how == "segv":
            os.kill(os.getpid(), signal.SIGSEGV)
        elif how == "system_exit":
            raise SystemExit(3)
        raise Picky(1, 2)

    return rank


def test_whatever_user_code_does_ends_its_stage_and_hangs_nothing(arena: Arena) -> None:
    ways = ("exit", "segv", "unpicklable", "system_exit")
    job = Job("end", [Stage(way, ends(way), max_retries=1) for way in ways])
    with pytest.raises(RunFailed) as caught:
        Executor.on_ray(state=str(arena.folder / "state")).run(job)
    found = {(a.stage, a.fault.kind.value) for a in caught.value.report.attempts}
    assert found == {
        ("exit", "worker_crash"),
        ("segv", "worker_crash"),
        ("unpicklable", "application"),
        ("system_exit", "application"),
    }
