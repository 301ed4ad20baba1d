"""What a rank can ask for while it runs, and how its processes and its gang are, on the local
backend with real processes."""

from __future__ import annotations

import os
import re
import signal
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import attrs
from opentelemetry.trace import TracerProvider

from thornback.executor import Executor, Job, RankContext, RunReport, Stage
from thornback.executor.driver import Driver
from thornback.executor.on_local import LocalPlatform
from thornback.executor.ports import Connection, Leases, LiveRun
from thornback.executor.testing import sighted
from thornback.placement import GangRequest, Lease
from thornback.pool import Blobs, PoolObserver


def local(folder: Path, **options: Any) -> Executor:
    return Executor.on_local(state=str(folder / "state"), cpus=4, **options)


def run(folder: Path, stage: Stage, **options: Any) -> RunReport:
    return local(folder, **options).run(Job("j", [stage]))


def logs(report: RunReport) -> str:
    """Everything that the ranks of a run have written."""
    files = sorted(path for path in Path(report.logs_url).rglob("*") if path.is_file())
    return "".join(path.read_text() for path in files)


# -- checkpoints


def test_the_next_attempt_goes_on_from_what_the_last_one_saved(tmp_path: Path) -> None:
    def count(ctx: RankContext) -> list[Any]:
        import os

        before = ctx.restored
        for number in range(3):
            ctx.checkpoint({"rank": ctx.rank, "at": number})
        if ctx.attempt == 1 and ctx.rank % 2:
            os.kill(os.getpid(), 9)
        return [ctx.attempt, before]

    results = run(tmp_path, Stage("a", count, ranks=4)).results("a")
    assert results == {
        0: [1, None],
        1: [2, {"rank": 1, "at": 2}],
        2: [1, None],
        3: [2, {"rank": 3, "at": 2}],
    }


def test_a_checkpoint_survives_the_worker(tmp_path: Path) -> None:
    def wait(ctx: RankContext) -> str | None:
        import time

        restored = ctx.restored
        if ctx.attempt == 1:
            ctx.checkpoint(b"half")
            while True:
                time.sleep(1)
        return restored if restored is None else str(restored.decode())

    async def kill_when_saved(live: LiveRun) -> None:
        assert isinstance(live, Driver)
        async for seen in live.dispatches():
            while not live._checkpoints.of(0, seen.ranks):
                beats = await live.beat(seen.gang)  # each look is an answered call
            os.kill(beats[0].pid, signal.SIGKILL)
            return

    report = run(tmp_path, Stage("a", wait), companions=[kill_when_saved])
    assert report.results("a") == {0: "half"}
    assert [attempt.rank for attempt in report.attempts] == [0]


# -- processes


def setup_and_note(folder: Path) -> tuple[Callable[[RankContext], int], Callable[[int], None]]:
    def prepare(ctx: RankContext) -> int:
        import os

        (folder / f"setup-{os.getpid()}").touch()
        return os.getpid()

    def end(pid: int) -> None:
        import os

        assert pid == os.getpid()
        (folder / f"teardown-{pid}").touch()

    return prepare, end


def processes(**fields: Any) -> Callable[[Path], Counter[Any]]:
    """Return what counts the ranks of each process."""

    def counted(folder: Path) -> Counter[Any]:
        mine = pid_function()
        return Counter(run(folder, Stage("a", mine, ranks=6, **fields)).results("a").values())

    return counted


def pid_function() -> Callable[[RankContext], int]:
    def mine(ctx: RankContext) -> int:
        import os

        return os.getpid()

    return mine


def test_fresh_ranks_have_a_process_each(tmp_path: Path) -> None:
    assert set(processes(fresh=True)(tmp_path).values()) == {1}


def test_a_process_is_replaced_after_so_many_ranks(tmp_path: Path) -> None:
    assert set(processes(max_ranks_per_child=2, max_gangs=1)(tmp_path).values()) == {2}


def test_a_process_that_grows_is_replaced(tmp_path: Path) -> None:
    def leak(ctx: RankContext) -> int:
        import os
        import sys

        sys.__dict__.setdefault("_leaked", []).append(b"x" * (64 << 20))
        return os.getpid()

    stage = Stage("a", leak, ranks=3, max_gangs=1, max_growth="32MiB")
    assert len(set(run(tmp_path, stage).results("a").values())) == 3


def test_processes_that_end_in_order_tear_down(tmp_path: Path) -> None:
    noted = tmp_path / "noted"
    noted.mkdir()
    prepare, end = setup_and_note(noted)
    stage = Stage("a", pid_function(), ranks=5, setup=prepare, teardown=end, max_ranks_per_child=2)
    run(tmp_path, stage, max_gangs=2)
    names = [path.name for path in noted.iterdir()]
    set_up = sorted(name.removeprefix("setup-") for name in names if name.startswith("setup"))
    torn = sorted(name.removeprefix("teardown-") for name in names if name.startswith("tear"))
    assert set_up
    assert torn == set_up


# -- logs


def test_what_ranks_write_is_kept_whole(tmp_path: Path) -> None:
    def talk(ctx: RankContext) -> None:
        import os

        print(f"rank {ctx.rank} says hello")
        os.write(2, f"rank {ctx.rank} says bye\n".encode())

    report = run(tmp_path, Stage("a", talk, ranks=20, processes=2))
    assert report.logs_url == str(tmp_path / "state" / "logs" / "000001")
    for word in ("hello", "bye"):
        found = sorted(int(n) for n in re.findall(rf"rank (\d+) says {word}\n", logs(report)))
        assert found == list(range(20))
    assert report.logs_lost_bytes == 0


def test_the_last_words_of_a_killed_rank_are_where_its_certificate_says(tmp_path: Path) -> None:
    def die(ctx: RankContext) -> None:
        import os

        print(f"attempt {ctx.attempt} of rank {ctx.rank}", flush=True)
        if ctx.attempt == 1 and ctx.rank == 1:
            os.write(1, b"last words")
            os.kill(os.getpid(), 9)

    report = run(tmp_path, Stage("a", die, ranks=3, max_gangs=1))
    (attempt,) = report.attempts
    start, end = attempt.log_slice
    text = Path(attempt.log_url).read_bytes()[start:end].decode()
    assert text == "attempt 1 of rank 1\nlast words"
    assert "attempt 2 of rank 1\n" in logs(report)


def test_what_the_ranks_of_a_killed_worker_wrote_is_kept(tmp_path: Path) -> None:
    written = tmp_path / "written"

    def talk(ctx: RankContext) -> int:
        import os
        import time

        os.write(1, f"attempt {ctx.attempt} was here\n".encode())
        written.touch()
        while ctx.attempt == 1:
            time.sleep(1)
        return ctx.attempt

    async def kill_when_written(live: LiveRun) -> None:
        at = await sighted(live)  # running, but it may not have come to its first line
        while not written.exists():
            await live.beat(at.dispatched.gang)
        os.kill(at.beat.pid, signal.SIGKILL)

    report = run(tmp_path, Stage("a", talk), companions=[kill_when_written])
    assert report.results("a") == {0: 2}
    assert "attempt 1 was here\n" in logs(report)
    assert "attempt 2 was here\n" in logs(report)


def test_without_logs_nothing_is_kept(tmp_path: Path) -> None:
    def talk(ctx: RankContext) -> None:
        print("hello")

    report = run(tmp_path, Stage("a", talk), logs=False)
    assert report.logs_url == ""
    assert not (tmp_path / "state" / "logs").exists()


# -- progress and drains


@attrs.define
class Noticed:
    """Leases whose nodes drain when a rank runs."""

    leases: Leases
    may_drain: anyio.Event

    async def acquire(
        self,
        request: GangRequest,
        /,
        *,
        avoid: Sequence[str],
        timeout_s: float,
        wait_for_nodes_s: float | None,
    ) -> Lease:
        return await self.leases.acquire(
            request, avoid=avoid, timeout_s=timeout_s, wait_for_nodes_s=wait_for_nodes_s
        )

    async def release(self, lease: Lease, /, *, timeout_s: float) -> bool:
        return await self.leases.release(lease, timeout_s=timeout_s)

    async def drains(self) -> AsyncIterator[tuple[str, float | None]]:
        await self.may_drain.wait()
        yield "local", 600.0


@attrs.define
class DrainingPlatform:
    """This machine, with notices of a drain."""

    may_drain: anyio.Event = attrs.field(init=False)

    def prepare(self) -> None: ...

    @asynccontextmanager
    async def connect(
        self, blobs: Blobs, tracers: TracerProvider, observer: PoolObserver | None, /
    ) -> AsyncIterator[Connection]:
        self.may_drain = anyio.Event()
        async with LocalPlatform(cpus=2).connect(blobs, tracers, observer) as inner:
            yield attrs.evolve(inner, leases=Noticed(inner.leases, self.may_drain))


def test_a_running_rank_sees_that_its_node_drains(tmp_path: Path) -> None:
    platform = DrainingPlatform()
    gate = tmp_path / "gate"

    def wait(ctx: RankContext) -> list[float | None]:
        import time

        first = ctx.draining
        gate.touch()
        while (left_s := ctx.draining) is None:
            time.sleep(0.01)
        return [first, left_s]

    async def drain_when_running(live: LiveRun) -> None:
        async for seen in live.dispatches():
            while not gate.exists():
                await live.beat(seen.gang)
            platform.may_drain.set()
            return

    executor = Executor(
        platform=platform, state=str(tmp_path / "state"), companions=[drain_when_running]
    )
    results: Any = executor.run(Job("j", [Stage("a", wait)])).results("a")
    first, left_s = results[0]
    assert first is None
    assert 0 < left_s <= 600.0


# -- several nodes


def meet() -> Callable[[RankContext], list[Any]]:
    def meeting(ctx: RankContext) -> list[Any]:
        import os
        import socket
        import time

        address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        assert os.environ["THORNBACK_MASTER_PORT"] == os.environ["MASTER_PORT"]
        assert len(os.environ["THORNBACK_ADDRESSES"].split(",")) == ctx.nodes
        rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        assert (rank, world) == (ctx.node_index, ctx.nodes)
        if rank == 0:
            with socket.create_server(address) as server:
                server.settimeout(60)
                peer, _ = server.accept()
                with peer:
                    heard = peer.recv(100).decode()
                    peer.sendall(b"welcome")
            return ["leader", heard, world]
        while True:
            try:
                peer = socket.create_connection(address, timeout=60)
                break
            except ConnectionRefusedError:  # node 0 is not there yet
                time.sleep(0.01)
        with peer:
            peer.sendall(f"rank {rank} of {world}".encode())
            assert peer.recv(100) == b"welcome"
        while ctx.attempt == 1 and ctx.stage == "leader":
            time.sleep(1)  # a server that never ends by itself
        return ["follower"]

    return meeting


def test_two_nodes_meet_and_the_rank_ends_when_both_have(tmp_path: Path) -> None:
    stage = Stage("all", meet(), ranks=2, nodes=2, strategy="PACK", rendezvous="torch")
    results = run(tmp_path, stage).results("all")
    assert results == {rank: ["leader", "rank 1 of 2", 2] for rank in range(2)}


def test_the_leader_ends_the_rank_and_what_runs_on_is_ended(tmp_path: Path) -> None:
    stage = Stage(
        "leader",
        meet(),
        ranks=2,
        nodes=2,
        strategy="PACK",
        rendezvous="torch",
        finished_when="leader",
        grace_s=0.2,
    )
    report = run(tmp_path, stage)
    assert report.results("leader") == {rank: ["leader", "rank 1 of 2", 2] for rank in range(2)}
    assert report.attempts == ()
