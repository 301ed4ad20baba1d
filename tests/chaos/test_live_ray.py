"""On a real Ray: what a rank is told and tells while it runs, where nodes and workers go away."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
import pytest

from tests.chaos.arena import drain, told
from thornback.executor import Executor, Job, RankContext, RunReport, Stage
from thornback.executor.ports import LiveRun
from thornback.executor.testing import sighted

if TYPE_CHECKING:
    from ray._private.node import Node

    from tests.conftest import RayTestCluster

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]


@pytest.fixture
def victim(ray_cluster: RayTestCluster) -> Iterator[Node]:
    """A node of its own kind, besides the two that stay."""
    node = ray_cluster.add_node(num_cpus=2, num_gpus=4, resources={"victim": 1})
    yield node
    ray_cluster.retire_node(node)
    ray_cluster.assert_nothing_left(timeout_s=10)


def run(folder: Path, stage: Stage, **options: Any) -> RunReport:
    """Run one stage on the cluster."""
    executor = Executor.on_ray(state=str(folder / "state"), **options)
    return executor.run(Job("live", [stage]), check=False)


async def appeared(path: Path, timeout_s: float = 60.0) -> None:
    """Return when a rank has made a file; each look is a call in a thread."""
    with anyio.fail_after(timeout_s):
        while not await anyio.Path(path).exists():
            pass


def test_a_rank_is_told_of_the_drain_and_its_next_attempt_goes_on(
    ray_cluster: RayTestCluster, victim: Node, tmp_path: Path
) -> None:
    saved, told_after_s = tmp_path / "saved", []
    mine = victim.node_id

    def work(ctx: RankContext) -> dict[str, Any]:
        import time

        if ctx.node != mine:
            # The victim's gang may be the last one to open: until then no other node is free.
            while not saved.exists():
                time.sleep(0.005)
            return {"restored": ctx.restored, "attempt": ctx.attempt}
        while (left_s := ctx.draining) is None:
            time.sleep(0.005)
        ctx.checkpoint({"left_s": left_s, "at": 7})
        saved.touch()
        while True:
            time.sleep(1)

    async def preempt(driver: LiveRun) -> None:
        await sighted(driver, where=lambda beat: beat.node == mine)
        start = time.monotonic()
        await anyio.to_thread.run_sync(drain, victim, 60.0)
        await appeared(saved)
        told_after_s.append(time.monotonic() - start)
        # Long before the deadline: Ray calls it the unexpected end of a node.
        await anyio.to_thread.run_sync(ray_cluster.remove_node, victim)

    report = run(tmp_path, Stage("work", work, ranks=3, cpus=2), companions=[preempt])
    assert report.state == "succeeded", told(report)
    assert told_after_s, "no rank was on the victim"
    assert {a.fault.kind.value for a in report.attempts} == {"preemption"}, told(report)
    results: Any = report.results("work")
    (again,) = [result for result in results.values() if result["restored"] is not None]
    assert again["attempt"] == 1, "a preemption is charged to nobody"
    assert again["restored"]["at"] == 7
    assert 0 < again["restored"]["left_s"] <= 60
    print(f"the rank was told of the drain after {told_after_s[0]:.2f} s")


def test_what_the_ranks_of_a_killed_worker_wrote_is_kept(tmp_path: Path) -> None:
    written = tmp_path / "written"

    def talk(ctx: RankContext) -> int:
        import os
        import time

        os.write(1, f"attempt {ctx.attempt} was here\n".encode())
        written.touch()
        while ctx.attempt == 1:
            time.sleep(0.05)
        return ctx.attempt

    async def kill_worker(driver: LiveRun) -> None:
        at = await sighted(driver)
        await appeared(written)
        os.kill(at.beat.pid, signal.SIGKILL)

    report = run(tmp_path, Stage("talk", talk), companions=[kill_worker])
    assert report.results("talk") == {0: 2}, told(report)
    files = [path for path in Path(report.logs_url).rglob("*") if path.is_file()]
    text = "".join(path.read_text() for path in files)
    assert "attempt 1 was here\n" in text
    assert "attempt 2 was here\n" in text


def test_the_processes_of_a_worker_share_its_gpus(victim: Node, tmp_path: Path) -> None:
    meeting = str(tmp_path)

    def look(ctx: RankContext) -> list[str]:
        import os
        import time

        open(os.path.join(meeting, f"here-{ctx.rank}"), "w").close()
        while not all(os.path.exists(os.path.join(meeting, f"here-{n}")) for n in (0, 1)):
            time.sleep(0.01)  # so that both run at the same time, in two processes
        return os.environ["CUDA_VISIBLE_DEVICES"].split(",")

    stage = Stage("look", look, ranks=2, gpus=2, processes=2, max_gangs=1)
    report = run(tmp_path, stage)
    results: Any = report.results("look")
    assert len(results) == 2, told(report)
    assert [len(own) for own in results.values()] == [2, 2]
    assert sorted(results[0] + results[1]) == ["0", "1", "2", "3"]


@pytest.mark.parametrize("finished_when", ["all", "leader"])
def test_the_two_nodes_of_a_gang_meet(finished_when: Any, tmp_path: Path) -> None:
    stage = Stage(
        "meet",
        meeting(forever=finished_when == "leader"),
        ranks=2,
        nodes=2,
        rendezvous="torch",
        finished_when=finished_when,
        grace_s=0.2,
        max_gangs=1,
    )
    report = run(tmp_path, stage)
    assert report.results("meet") == dict.fromkeys(range(2), "rank 1 of 2"), told(report)
    assert report.attempts == ()


def meeting(*, forever: bool) -> Callable[[RankContext], str]:
    """Return a rank function whose nodes exchange a message at the master's address; with
    `forever`, all but the first then run on."""

    def meet(ctx: RankContext) -> str:
        import os
        import socket
        import time

        address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        if rank == 0:
            with socket.create_server(address) as server:
                server.settimeout(60)
                peer, _ = server.accept()
                with peer:
                    return peer.recv(100).decode()
        end = time.monotonic() + 60
        while time.monotonic() < end:
            try:
                peer = socket.create_connection(address, timeout=60)
                break
            except ConnectionRefusedError:  # node 0 is not there yet
                time.sleep(0.01)
        with peer:
            peer.sendall(f"rank {rank} of {world}".encode())
        while forever:
            time.sleep(1)
        return "follower"

    return meet
