"""The pool and real workers: what lives between two reports, end to end."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import attrs
import cloudpickle
import pytest

from thornback.pool import (
    Assignment,
    Beat,
    FinishedWhen,
    GangLostError,
    LogChunk,
    ProgramResult,
    RankCall,
    WorkerPool,
    WorkerSpec,
)
from thornback.pool.on_local import LocalBackend
from thornback.pool.testing import assignment, reported

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@attrs.define(slots=True, eq=False)
class Audience:
    """Fulfils `PoolObserver`."""

    beats: list[Beat] = attrs.field(factory=list)
    told: dict[str, bytes] = attrs.field(factory=dict)

    def beat(self, gang: int, beat: Beat, /) -> None:
        self.beats.append(beat)

    def logs(self, chunks: Sequence[LogChunk], /) -> None:
        for chunk in chunks:
            before = self.told.get(chunk.log, b"")
            assert (chunk.offset, chunk.skipped) == (len(before), 0)
            self.told[chunk.log] = before + chunk.data

    def text(self) -> str:
        return b"".join(self.told.values()).decode()


async def blobs(key: str) -> bytes:
    class Program:
        def setup(self, call: RankCall) -> None:
            pass

        def run(self, call: RankCall) -> ProgramResult:
            import json
            import os
            import threading

            def wait_for_ever() -> None:
                threading.Event().wait()

            match key:
                case "saves":
                    print(f"rank {call.rank} has {call.restored!r}", flush=True)
                    call.progress(1, 2)
                    call.checkpoint(b"half")
                    wait_for_ever()
                case "drains":
                    while call.draining() is None:
                        threading.Event().wait(0.01)
                    return ProgramResult(result=json.dumps(call.draining()))
                case "prints":
                    print("last words", flush=True)
                case "meets":
                    names = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
                    told = [os.environ[name] for name in names]
                    return ProgramResult(result=json.dumps(told))
                case "leads":
                    if call.node_index > 0:
                        wait_for_ever()
            return ProgramResult(result=json.dumps(call.rank))

        def teardown(self) -> None:
            print("torn down", flush=True)

    blob: bytes = cloudpickle.dumps(Program())
    return blob


@attrs.define(slots=True, eq=False)
class Live:
    """A gang of worker processes."""

    pool: WorkerPool
    audience: Audience

    async def result(self, work: Assignment) -> object:
        outcomes, _ = reported([report async for report in self.pool.run(1, work)])
        (outcome,) = outcomes.values()
        assert outcome.ok, f"{outcome.error}"
        return json.loads(outcome.result or "null")

    def log_dir(self) -> Path:
        return Path(self.audience.beats[0].log_dir)


@asynccontextmanager
async def live(
    *nodes: str, spec: WorkerSpec | None = None, python: str | None = None
) -> AsyncIterator[Live]:
    audience = Audience()
    with anyio.fail_after(60):
        async with WorkerPool(LocalBackend(python), blobs, observer=audience) as pool:
            await pool.open(1, nodes, None, spec or WorkerSpec(), timeout_s=60.0)
            yield Live(pool, audience)


async def test_a_checkpoint_outlives_its_worker_and_comes_back_with_the_next_attempt(
    hasty_python: str,
) -> None:
    async with live("here", python=hasty_python) as it:
        reports = it.pool.run(1, assignment(1, 3, program="saves"))
        saved = None
        while saved is None:
            saved = (await anext(reports)).checkpoint
        assert (saved.rank, saved.data) == (3, b"half")
        (beat,) = await it.pool.beat(1)
        assert beat.running[0].progress == (1, 2)
        os.kill(beat.pid, signal.SIGKILL)
        with pytest.raises(GangLostError):
            await anext(reports)
        assert await it.pool.close(1, kill=True, timeout_s=15.0)
        assert it.audience.text() == "rank 3 has None\n", "what it had not sent is salvaged"
        assert not it.log_dir().exists()
        await it.pool.open(2, ["here"], None, WorkerSpec(), timeout_s=60.0)
        again = attrs.evolve(assignment(2, 3, program="saves"), restored=(saved.data,))
        reports = it.pool.run(2, again)
        while (await anext(reports)).checkpoint is None:
            pass
        assert await it.pool.close(2, kill=True, timeout_s=15.0)
        assert "rank 3 has b'half'\n" in it.audience.text()


async def test_a_drain_reaches_the_rank_that_runs() -> None:
    async with live("here") as it:
        found: list[object] = []

        async def run() -> None:
            found.append(await it.result(assignment(1, 0, program="drains")))

        async with anyio.create_task_group() as group:
            group.start_soon(run)
            while not (await it.pool.beat(1))[0].running:
                await anyio.lowlevel.checkpoint()
            await it.pool.drain("here", 100.0)
        assert isinstance(found[0], float)
        assert 0.0 < found[0] <= 100.0


async def test_a_close_in_order_tears_down_and_fetches_the_last_line() -> None:
    async with live("here") as it:
        await it.result(assignment(1, 0, program="prints"))
        assert await it.pool.close(1, kill=False, timeout_s=15.0)
        assert it.audience.text() == "last words\ntorn down\n"
        assert not it.log_dir().exists()


async def test_logs_in_a_folder_of_the_user_are_told_and_stay(tmp_path: Path) -> None:
    async with live("here", spec=WorkerSpec(log_dir=str(tmp_path))) as it:
        await it.result(assignment(1, 0, program="prints"))
        assert await it.pool.close(1, kill=True, timeout_s=15.0)
        assert it.audience.text() == "last words\n"
        (name,) = it.audience.told
        assert (tmp_path / name).read_text() == "last words\n"


async def test_two_nodes_are_told_how_to_meet() -> None:
    async with live("a", "b") as it:
        work = attrs.evolve(assignment(1, 0, program="meets"), rendezvous="torch")
        rank, size, address, port = await _strings(it, work)
        assert (rank, size, address) == ("0", "2", "127.0.0.1")
        assert 0 < int(port) < 1 << 16


async def _strings(it: Live, work: Assignment) -> list[str]:
    found = await it.result(work)
    assert isinstance(found, list)
    return [str(each) for each in found]


async def test_the_leader_decides_and_the_others_are_ended() -> None:
    async with live("a", "b") as it:
        work = attrs.evolve(
            assignment(1, 7, program="leads"), finished_when=FinishedWhen.LEADER, grace_s=0.2
        )
        assert await it.result(work) == 7
        assert await it.result(assignment(2, 8)) == 8, "the gang lives on"
