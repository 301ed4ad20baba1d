"""The pool on fake workers: what an observer is told."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress

import anyio
import attrs
import pytest

from thornback.pool import (
    Beat,
    GangLostError,
    LogChunk,
    Outcome,
    PoolParams,
    WorkerPool,
    WorkerSpec,
)
from thornback.pool.testing import (
    FakeBackend,
    FakeWorker,
    ManualClock,
    assignment,
    fake_blobs,
    settle,
)

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@attrs.define(slots=True, eq=False)
class Audience:
    """Fulfils `PoolObserver`."""

    beats: list[tuple[int, Beat]] = attrs.field(factory=list)
    chunks: list[LogChunk] = attrs.field(factory=list)
    broken: bool = False

    def beat(self, gang: int, beat: Beat, /) -> None:
        self.beats.append((gang, beat))
        if self.broken:
            raise KeyError("beat")

    def logs(self, chunks: Sequence[LogChunk], /) -> None:
        assert chunks, "told of nothing"
        self.chunks += chunks
        if self.broken:
            raise KeyError("logs")

    def text(self, log: str) -> bytes:
        """Return what was told of a log, which must join."""
        found = b""
        for chunk in self.chunks:
            if chunk.log == log:
                assert chunk.offset == len(found) + chunk.skipped
                found += chunk.data
        return found


@attrs.define(slots=True, eq=False)
class Bed:
    """A gang on a fake, whose observer is the test's."""

    pool: WorkerPool
    clock: ManualClock
    worker: FakeWorker
    audience: Audience
    group: anyio.abc.TaskGroup

    async def run(self, *ranks: int, number: int = 1, program: str = "blocks") -> None:
        async def read() -> None:
            with suppress(GangLostError):
                async for _ in self.pool.run(1, assignment(number, *ranks, program=program)):
                    pass

        self.group.start_soon(read)
        await settle()


@asynccontextmanager
async def gang(
    *,
    observed: bool = True,
    params: PoolParams | None = None,
    logs_every_s: float = 5.0,
    spec: WorkerSpec | None = None,
    on_start: Callable[[FakeWorker], None] | None = None,
) -> AsyncIterator[Bed]:
    backend, clock, audience = FakeBackend(on_start=on_start), ManualClock(), Audience()
    with anyio.fail_after(10):
        async with (
            anyio.create_task_group() as group,
            WorkerPool(
                backend,
                fake_blobs,
                attrs.evolve(params or PoolParams(), logs_every_s=logs_every_s),
                observer=audience if observed else None,
                clock=clock,
            ) as pool,
        ):
            await pool.open(1, ["a"], None, spec or WorkerSpec(slots=2), timeout_s=180.0)
            yield Bed(pool, clock, backend.of("a"), audience, group)
            group.cancel_scope.cancel()


def offsets_asked(worker: FakeWorker) -> list[object]:
    return [call[1][1] for call in worker.calls if call[0] == "beat"]  # type: ignore[index]  # a fake keeps objects


async def test_beats_are_told_with_their_node_and_progress() -> None:
    async with gang() as it:
        await it.run(0)
        it.worker.progress(1, 3.0, 10.0)
        await it.clock.advance(6.0)
        number, beat = it.audience.beats[-1]
        assert (number, beat.node, beat.running[0].progress) == (1, "a", (3.0, 10.0))
        assert beat.logs == (), "logs are told as such"
        assert len(it.audience.beats) == 2, "the first at the opening, then one every 5 s"


async def test_new_bytes_come_with_the_next_beat_each_once() -> None:
    async with gang() as it:
        it.worker.write("l1", b"one ")
        await it.clock.advance(6.0)
        (chunk,) = it.audience.chunks
        assert (chunk.log, chunk.data, chunk.gang, chunk.node) == ("l1", b"one ", 1, "a")
        it.worker.write("l1", b"two", closed=True)
        it.worker.write("l2", b"other")
        await it.clock.advance(15.0)
        assert (it.audience.text("l1"), it.audience.text("l2")) == (b"one two", b"other")
        assert [chunk.closed for chunk in it.audience.chunks if chunk.log == "l1"] == [False, True]
        assert offsets_asked(it.worker)[-1] == {"l2": 5}, "what is over is forgotten"


@pytest.mark.parametrize(("workers", "beats_in_10_s"), [(1, 10), (50, 10), (100, 5), (500, 2)])
async def test_pool_with_few_workers_fetches_logs_every_second(
    workers: int, beats_in_10_s: int
) -> None:
    """All workers together are asked at most 50 times a second, and each every 5 s."""
    backend, clock, audience = FakeBackend(), ManualClock(), Audience()
    with anyio.fail_after(20):
        async with WorkerPool(backend, fake_blobs, observer=audience, clock=clock) as pool:
            for gang in range(workers):
                await pool.open(gang, [f"n{gang}"], None, WorkerSpec(), timeout_s=180.0)
            await clock.advance(5.1)  # the pause before was of fewer workers
            first = backend.of("n0")
            before = len(offsets_asked(first))
            await clock.advance(10.0)
            assert len(offsets_asked(first)) - before == beats_in_10_s


async def test_without_an_observer_nobody_asks_for_logs() -> None:
    async with gang(observed=False) as it:
        it.worker.write("l1", b"one")
        await it.run(0)
        it.worker.finish(1, Outcome(rank=0, ok=False))
        await it.clock.advance(12.0)
        assert await it.pool.close(1, kill=False, timeout_s=10.0)
        assert offsets_asked(it.worker) == [None] * 3
        assert it.worker.salvages == []


async def test_a_flood_is_fetched_at_once_but_not_without_end() -> None:
    async with gang(params=PoolParams(beats_in_a_row=3)) as it:
        it.worker.write("l1", bytes(1 << 20))
        await it.clock.advance(5.0)
        assert len(it.audience.text("l1")) == 3 * (256 << 10)
        await it.clock.advance(5.0)
        assert len(it.audience.text("l1")) == 1 << 20


async def test_the_log_of_a_rank_that_failed_is_there_at_once() -> None:
    async with gang() as it:
        await it.run(0)
        it.worker.write("l1", b"Traceback")
        it.worker.finish(1, Outcome(rank=0, ok=False))
        await settle()
        assert it.audience.text("l1") == b"Traceback"


async def test_a_failure_while_a_beat_is_under_way_asks_once_more() -> None:
    beats: list[str] = []

    def answer(payload: object) -> Beat:
        """Fail a rank while a beat is answered with what was there before."""
        beats.append("beat")
        if len(beats) == 1:
            it.worker.finish(1, Outcome(rank=0, ok=False))
        return Beat(host="fake", pid=1, rss_bytes=1)

    async with gang() as it:
        await it.run(0)
        it.worker.overrides["beat"] = answer
        await it.clock.advance(5.0)
        assert len(beats) == 2


async def test_after_a_graceful_close_the_rest_is_fetched_and_nothing_salvaged() -> None:
    async with gang() as it:
        it.worker.write("l1", bytes(600 << 10), closed=True)
        it.worker.write("l2", b"last words", closed=True)
        assert await it.pool.close(1, kill=False, timeout_s=10.0)
        assert len(it.audience.text("l1")) == 600 << 10
        assert it.audience.text("l2") == b"last words"
        assert offsets_asked(it.worker)[-1] == {}, "a last beat says that all has arrived"
        assert it.worker.salvages == []


async def test_what_a_killed_worker_had_not_sent_is_salvaged() -> None:
    async with gang() as it:
        it.worker.write("l1", b"one ")
        await it.clock.advance(6.0)
        it.worker.write("l1", b"two")
        assert await it.pool.close(1, kill=True, timeout_s=10.0)
        assert it.worker.salvages == [("/logs", {"l1": 4})]
        assert it.audience.text("l1") == b"one two"
        assert it.audience.chunks[-1].closed
        assert (it.audience.chunks[-1].gang, it.audience.chunks[-1].node) == (1, "a")


async def test_what_a_dead_worker_had_not_sent_is_salvaged_once_after_it_is_killed() -> None:
    async with gang() as it:
        it.worker.write("l1", b"last words")
        it.worker.die(facts={"signal": 9})
        await settle()
        assert (await it.pool.lost(1)).facts == {"signal": 9}
        assert it.worker.kills == 1
        assert it.audience.text("l1") == b"last words"
        assert await it.pool.close(1, kill=True, timeout_s=10.0)
        assert len(it.worker.salvages) == 1


async def test_a_worker_that_may_be_alive_is_not_salvaged_yet() -> None:
    async with gang() as it:
        it.worker.write("l1", b"last words")
        it.worker.unkillable = True
        assert not await it.pool.close(1, kill=True, timeout_s=5.0)
        assert it.worker.salvages == []
        it.worker.unkillable = False
        assert await it.pool.close(1, kill=True, timeout_s=5.0)
        assert it.audience.text("l1") == b"last words"


async def test_a_salvage_that_hangs_holds_up_nobody_for_long() -> None:
    async with gang() as it:
        it.worker.write("l1", b"lost")
        confirmed: list[bool] = []

        async def close() -> None:
            confirmed.append(await it.pool.close(1, kill=True, timeout_s=60.0))

        it.worker.stuck_in_salvage = True
        it.group.start_soon(close)
        await it.clock.advance(9.0)
        assert confirmed == []
        await it.clock.advance(2.0)
        assert confirmed == [True], "the death is confirmed all the same"
        assert it.audience.chunks == []


async def test_of_a_folder_of_the_user_no_log_is_read_twice() -> None:
    async with gang(spec=WorkerSpec(log_dir="/mine")) as it:
        it.worker.write("l1", b"one", closed=True)
        it.worker.write("l2", b"two")
        await it.clock.advance(11.0)
        assert offsets_asked(it.worker)[-1] == {"l1": 3, "l2": 3}
        await it.clock.advance(5.0)
        assert offsets_asked(it.worker)[-1] == {"l2": 3}
        assert await it.pool.close(1, kill=True, timeout_s=5.0)
        assert it.worker.salvages == [("/logs", {"l1": 3, "l2": 3})], "they are still there"


async def test_an_observer_that_raises_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    async with gang() as it:
        it.audience.broken = True
        await it.run(0)
        it.worker.write("l1", b"one")
        with caplog.at_level(logging.WARNING):
            await it.clock.advance(11.0)
        assert len(it.audience.beats) == 3
        it.worker.finish(1, Outcome(rank=0, ok=True))
        assert await it.pool.close(1, kill=False, timeout_s=5.0)
    failures = [record for record in caplog.records if "the observer" in record.message]
    assert len(failures) >= 2
    assert [bool(record.exc_info) for record in failures][:2] == [True, False]


async def test_an_open_that_fails_leaves_no_logs_behind() -> None:
    def one_of_two(worker: FakeWorker) -> None:
        worker.write(f"l{worker.index}", bytes(600 << 10))
        if worker.index == 1:
            worker.fall_silent()

    backend, clock, audience = FakeBackend(on_start=one_of_two), ManualClock(), Audience()
    with anyio.fail_after(10):
        async with (
            anyio.create_task_group() as group,
            WorkerPool(backend, fake_blobs, observer=audience, clock=clock) as pool,
        ):

            async def fail() -> None:
                with pytest.raises(GangLostError):
                    await pool.open(1, ["a", "b"], None, WorkerSpec(), timeout_s=5.0)

            group.start_soon(fail)
            await clock.advance(6.0)
            assert len(backend.of("a").salvages) == 1
            assert audience.text("l0")[: 512 << 10] == bytes(512 << 10)
            assert backend.of("b").salvages == [], "nobody had asked it for its logs"
