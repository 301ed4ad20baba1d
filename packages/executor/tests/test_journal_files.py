"""What `FileJournal` does with files, time, failures and others, beyond the contract of every
journal.
"""

from __future__ import annotations

import os
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import anyio.lowlevel
import attrs
import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from thornback.executor.journal.filejournal import (
    FileJournal,
    HeldByAnother,
    IdentityMismatch,
    JournalError,
    JournalParams,
    Superseded,
    read_run,
)
from thornback.executor.journal.holder import Heartbeat, Holder
from thornback.executor.journal.segments import Header, decode, encode, encode_record
from thornback.executor.journal.steps import call, run_blocking
from thornback.executor.journal.store import open_store
from thornback.executor.journal.terms import LOOKS, beat_name, claim_name, flush, seg_name
from thornback.executor.journal.testing import done, failed, job
from thornback.executor.ports import Completion

pytestmark = pytest.mark.anyio
QUICK = JournalParams(min_interval_s=0)


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def memory() -> str:
    return f"memory://{uuid.uuid4().hex}"


class VirtualTime:
    """Sleeping takes no time, but for beats, which are never due."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.now_s

    async def sleep(self, delay_s: float) -> None:
        if delay_s == QUICK.ttl_s / 3:
            await anyio.sleep_forever()
        await anyio.lowlevel.checkpoint()
        self.slept.append(delay_s)
        self.now_s += delay_s


def journal_at(url: str, time: VirtualTime, params: JournalParams = QUICK) -> FileJournal:
    return FileJournal(url, params=params, sleep=time.sleep, monotonic=time.monotonic)


def control(url: str | Path) -> dict[str, bytes]:
    """Return everything under `control/`, without the lock."""
    store = open_store(str(url))
    return {name: store.get(name) or b"" for name in store.list() if name != "lock"}


def kinds(url: str | Path) -> list[str]:
    return sorted(name.partition("-")[0] for name in control(url))


async def run_once(url: str, *records: Completion) -> None:
    async with FileJournal(url, params=QUICK) as journal:
        await journal.open(job(), on_mismatch="refuse")
        await journal.commit(records)


async def reopened(url: str) -> list[range]:
    async with FileJournal(url, params=QUICK) as journal:
        opened = await journal.open(job(), on_mismatch="refuse")
        return list(opened.done.get("a", ()))


# -- terms -----------------------------------------------------------------------------------------


async def test_after_a_clean_close_nobody_waits(memory: str) -> None:
    time = VirtualTime()
    for term in (1, 2, 3):
        async with journal_at(memory, time) as journal:
            assert (await journal.open(job(), on_mismatch="refuse")).term == term
    assert time.slept == []
    assert kinds(memory) == ["base", "beat", "claim"]  # what older terms have left is removed


async def test_a_refused_job_leaves_the_state_closed(memory: str) -> None:
    time = VirtualTime()
    await run_once(memory, done("a", 1))
    async with journal_at(memory, time) as journal:
        with pytest.raises(IdentityMismatch):
            await journal.open(job(name="other"), on_mismatch="refuse")
    assert await reopened(memory) == [range(1, 2)]
    assert time.slept == []


async def test_a_silent_holder_elsewhere_is_watched_and_then_superseded(memory: str) -> None:
    time = VirtualTime()
    async with journal_at(memory, time) as old:
        await old.open(job(), on_mismatch="refuse")
        await old.commit([done("a", 1)])
        self_made = Holder.decode(control(memory)[name_of(memory, "claim")])
        elsewhere = attrs.evolve(self_made, host="elsewhere", boot="other")
        open_store(memory).put(name_of(memory, "claim"), elsewhere.encode())
        async with journal_at(memory, time) as new:
            opened = await new.open(job(), on_mismatch="refuse")
            assert opened.done == {"a": (range(1, 2),)}
            assert sum(time.slept) == pytest.approx(QUICK.ttl_s)
            assert len(time.slept) == LOOKS
            for _ in range(2):
                with pytest.raises(Superseded, match="its term is 2, ours was 1"):
                    await old.commit([done("a", 2)])
            with pytest.raises(Superseded):
                await old.results("a")
            await new.commit([done("a", 3)])
    assert await reopened(memory) == [range(1, 2), range(3, 4)]


def name_of(url: str, kind: str) -> str:
    return next(name for name in sorted(control(url), reverse=True) if name.startswith(kind))


async def test_an_idle_superseded_holder_learns_it_from_reading(memory: str) -> None:
    time = VirtualTime()
    async with journal_at(memory, time) as old, journal_at(memory, time) as new:
        await old.open(job(), on_mismatch="refuse")
        await new.open(job(), on_mismatch="refuse")
        with pytest.raises(Superseded):
            await old.results("a")


async def test_what_a_superseded_flush_has_put_is_neither_announced_nor_promoted(
    tmp_path: Path,
) -> None:
    state, staged, final = tmp_path / "state", tmp_path / "staged", tmp_path / "final"
    staged.write_text("x")
    async with FileJournal(str(state)) as journal:
        await journal.open(job(), on_mismatch="refuse")
        open_store(str(state)).put(claim_name(2, "other"), Holder(id="other").encode())
        with pytest.raises(Superseded):
            await journal.commit([attrs.evolve(done("a", 1), outputs=[(str(staged), str(final))])])
    assert staged.exists()
    assert not final.exists()


async def test_a_claim_of_the_same_moment_makes_both_give_way(memory: str) -> None:
    class Rival(VirtualTime):
        async def sleep(self, delay_s: float) -> None:
            open_store(memory).put(claim_name(2, "rival"), Holder(id="rival", host="h").encode())
            await super().sleep(delay_s)

    open_store(memory).put(claim_name(1, "dead"), Holder(id="dead").encode())
    async with journal_at(memory, Rival()) as journal:
        with pytest.raises(HeldByAnother, match="host h"):
            await journal.open(job(), on_mismatch="refuse")
    assert sorted(control(memory)) == [claim_name(1, "dead"), claim_name(2, "rival")]


async def test_a_holder_that_closes_while_it_is_watched_is_waited_for_no_longer(
    memory: str,
) -> None:
    class Closing(VirtualTime):
        async def sleep(self, delay_s: float) -> None:
            await super().sleep(delay_s)
            closed = Heartbeat(id="old", count=9, closed=True)
            open_store(memory).put(beat_name(1), closed.encode())

    time = Closing()
    open_store(memory).put(claim_name(1, "old"), Holder(id="old").encode())
    async with journal_at(memory, time) as journal:
        assert (await journal.open(job(), on_mismatch="refuse")).term == 2
    assert len(time.slept) == 1


async def test_cancelled_while_watching_nothing_is_claimed(memory: str) -> None:
    open_store(memory).put(claim_name(1, "dead"), Holder(id="dead").encode())

    async def cancel(delay_s: float) -> None:
        scope.cancel()
        await anyio.lowlevel.checkpoint()

    with anyio.CancelScope() as scope:
        async with FileJournal(memory, params=QUICK, sleep=cancel) as journal:
            await journal.open(job(), on_mismatch="refuse")
    assert scope.cancelled_caught
    assert list(control(memory)) == [claim_name(1, "dead")]


# -- what is read ----------------------------------------------------------------------------------


async def test_a_damaged_segment_is_named_and_not_counted(tmp_path: Path) -> None:
    state = str(tmp_path)
    async with FileJournal(state) as journal:
        await journal.open(job(), on_mismatch="refuse")
        for rank in (1, 2, 3):
            await journal.commit([done("a", rank)])
    torn = tmp_path / "control" / seg_name(1, 2)
    torn.write_bytes(torn.read_bytes()[:-1])
    (tmp_path / "control" / "notes.txt").write_text("mine")
    assert read_run(state).damaged == (f"{seg_name(1, 2)}: it does not end with a whole line",)
    async with FileJournal(state) as journal:
        opened = await journal.open(job(), on_mismatch="refuse")
        assert opened.done == {"a": (range(1, 2), range(3, 4))}
        assert [text.partition(":")[0] for text in journal.damaged] == [seg_name(1, 2)]
    assert torn.exists()  # evidence, and no longer read
    assert (tmp_path / "control" / "notes.txt").exists()
    assert read_run(state).damaged == ()


async def test_a_base_that_was_whole_once_must_not_be_lost_silently(tmp_path: Path) -> None:
    state = str(tmp_path)
    await run_once(state, done("a", 1))
    base = tmp_path / "control" / name_of(state, "base")
    base.write_bytes(base.read_bytes()[:-1])
    with pytest.raises(JournalError, match=f"is damaged.*{base.name}.*on_mismatch='fresh'"):
        read_run(state)
    async with FileJournal(state) as journal:
        with pytest.raises(JournalError, match="is damaged"):
            await journal.open(job(), on_mismatch="refuse")
    async with FileJournal(state) as journal:
        assert (await journal.open(job(), on_mismatch="fresh")).done == {}
    assert await reopened(state) == []


async def test_a_base_whose_writer_died_is_passed_over(memory: str) -> None:
    await run_once(memory, done("a", 1))
    open_store(memory).put("base-000002-000000", b'{"format"')
    assert await reopened(memory) == [range(1, 2)]


async def test_read_run(tmp_path: Path) -> None:
    state = str(tmp_path)
    async with FileJournal(state) as journal:
        await journal.open(job(), on_mismatch="refuse")
        skipped = Completion(stage="b", ranks=(range(5, 9),), state="skipped", certificate={"x": 1})
        await journal.commit([done("a", 0, 1), failed("a", 7), skipped])
        run = read_run(state)  # while it goes on
        assert (run.term, run.identity) == (1, job())
        assert run.done == {"a": (range(0, 2),)}
        assert run.failed == {"a": (range(7, 8),)}
        assert run.skipped == {"b": (range(5, 9),)}
        [paper] = run.certificates["b"]
        assert (paper.ranks, paper.why) == ((range(5, 9),), {"x": 1})
        assert run.certificates["a"][0].why == failed("a", 7).certificate
        assert run.results("a") == {0: '{"rank": 0}', 1: '{"rank": 1}'}
        assert run.results("b") == {}
    assert read_run(state).done == run.done


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("memory://nothing-here", "no run is recorded"),
        ("wrong://x", "cannot be opened"),
    ],
)
async def test_a_url_without_a_state(url: str, said: str) -> None:
    with pytest.raises(JournalError, match=said):
        read_run(url)


async def test_a_folder_that_cannot_be_made_is_said_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    async with FileJournal(str(tmp_path / "file" / "state")) as journal:
        with pytest.raises(JournalError, match="cannot lock the state: NotADirectoryError"):
            await journal.open(job(), on_mismatch="refuse")


# -- commits ---------------------------------------------------------------------------------------


async def test_compaction_keeps_everything_and_few_objects(memory: str) -> None:
    params = JournalParams(min_interval_s=0, compact_segments=3, compact_segments_max=6)
    async with journal_at(memory, VirtualTime(), params) as journal:
        await journal.open(job(), on_mismatch="refuse")
        await journal.commit([failed("a", 99)])
        for rank in range(50):
            await journal.commit([done("a", rank)])
            assert len(control(memory)) <= 2 + 1 + 7
        assert len(await journal.results("a")) == 50
        run = read_run(memory)
        assert (run.done, run.failed) == ({"a": (range(0, 50),)}, {"a": (range(99, 100),)})
        assert run.certificates["a"][0].why == failed("a", 99).certificate
    assert await reopened(memory) == [range(0, 50)]


async def test_a_million_ranks_in_order_are_a_few_kilobytes(memory: str) -> None:
    a = attrs.evolve(job().stages[0], world_size=1_000_000)
    async with journal_at(memory, VirtualTime()) as journal:
        await journal.open(job(a), on_mismatch="refuse")
        for start in range(0, 1_000_000, 5_000):
            record = Completion(stage="a", ranks=(range(start, start + 5_000),), state="done")
            await journal.commit([record])
        assert sum(map(len, control(memory).values())) < 64 * 400
    assert read_run(memory).done == {"a": (range(0, 1_000_000),)}


async def test_a_cancelled_commit_is_recorded_or_not_but_never_half(tmp_path: Path) -> None:
    state = str(tmp_path)
    async with FileJournal(state) as journal:
        await journal.open(job(), on_mismatch="refuse")
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:
                for rank in range(10):
                    tasks.start_soon(journal.commit, [done("a", rank)])
                await anyio.lowlevel.checkpoint()
                scope.cancel()
        await journal.commit([done("a", 50)])
    assert await reopened(state) == [range(0, 10), range(50, 51)]
    assert not [name for name in os.listdir(tmp_path / "control") if "tmp" in name]


async def test_the_error_of_the_body_comes_out_as_it_is(tmp_path: Path) -> None:
    error = RuntimeError("mine")

    async def body() -> None:
        async with FileJournal(str(tmp_path)) as journal:
            await journal.open(job(), on_mismatch="refuse")
            await journal.commit([done("a", 1)])
            raise error

    with pytest.raises(RuntimeError) as caught:
        await body()
    assert caught.value is error
    assert_closed(str(tmp_path))


async def test_a_cancelled_body_closes_the_state(tmp_path: Path) -> None:
    with anyio.CancelScope() as scope:
        async with FileJournal(str(tmp_path)) as journal:
            await journal.open(job(), on_mismatch="refuse")
            scope.cancel()
            await journal.commit([done("a", 1)])
    assert scope.cancelled_caught
    assert_closed(str(tmp_path))


def assert_closed(url: str) -> None:
    beat = Heartbeat.decode(control(url)[beat_name(1)])
    assert beat is not None
    assert beat.closed


async def test_it_wants_its_context(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match="async with"):
        await FileJournal(str(tmp_path)).open(job(), on_mismatch="refuse")


# -- outputs ---------------------------------------------------------------------------------------


async def test_recorded_but_still_staged_is_promoted_at_open(tmp_path: Path) -> None:
    """As after a kill between the record and its promotion."""
    state, staged, final = str(tmp_path / "state"), tmp_path / "staged", tmp_path / "final"
    await run_once(state, done("a", 1))
    staged.write_text("x")
    record = attrs.evolve(done("a", 2), outputs=[(str(staged), str(final))])
    run_blocking(open_store(state), flush(state, 1, 2, 1, [encode_record(record)]))
    assert await reopened(state) == [range(1, 3)]
    assert final.read_text() == "x"
    final.unlink()  # now it is the user's
    assert await reopened(state) == [range(1, 3)]


async def test_a_promoted_output_may_be_taken_away(tmp_path: Path) -> None:
    state, staged, final = str(tmp_path / "state"), tmp_path / "staged", tmp_path / "final"
    staged.write_text("x")
    await run_once(state, attrs.evolve(done("a", 2), outputs=[(str(staged), str(final))]))
    final.unlink()
    assert await reopened(state) == [range(2, 3)]


async def test_a_recorded_output_that_is_lost_is_said(tmp_path: Path) -> None:
    state, staged = str(tmp_path / "state"), tmp_path / "staged"
    await run_once(state, done("a", 1))
    record = attrs.evolve(done("a", 2), outputs=[(str(staged), str(tmp_path / "final"))])
    run_blocking(open_store(state), flush(state, 1, 2, 1, [encode_record(record)]))
    with pytest.raises(JournalError, match="published output is lost"):
        await reopened(state)


@pytest.mark.parametrize("kind", ["path", "memory"])
async def test_staged_litter_is_swept_at_the_end(tmp_path: Path, memory: str, kind: str) -> None:
    state = str(tmp_path) if kind == "path" else memory
    mine, others, foreign = "000001.000000004", "000002.000000001", "notes"
    for folder in (mine, others, foreign):
        with fsspec.open(f"{state}/staging/a/{folder}/7/x", "wb", auto_mkdir=True) as file:
            file.write(b"x")
    await run_once(state, done("a", 1))
    fs, path = fsspec.core.url_to_fs(state)
    left = [folder for folder in (mine, others, foreign) if fs.exists(f"{path}/staging/a/{folder}")]
    assert left == [others, foreign]


# -- stores that fail ------------------------------------------------------------------------------


class Faulty(MemoryFileSystem):  # type: ignore[misc]  # fsspec ships no types
    """A memory file system under orders."""

    protocol = "faulty"
    before: Callable[[str, str], None] = staticmethod(lambda what, path: None)

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: object) -> None:
        type(self).before("put", path)
        super().pipe_file(path, value, mode, **kwargs)

    def ls(self, path: str, detail: bool = True, **kwargs: object) -> object:
        type(self).before("list", path)
        return super().ls(path, detail, **kwargs)


@pytest.fixture
def faulty() -> Iterator[type[Faulty]]:
    fsspec.register_implementation("faulty", Faulty, clobber=True)
    yield Faulty
    Faulty.before = staticmethod(lambda what, path: None)


async def test_failures_of_the_store_are_retried(faulty: type[Faulty]) -> None:
    url, time, left = f"faulty://{uuid.uuid4().hex}", VirtualTime(), [3]

    def before(what: str, path: str) -> None:
        if "seg-" in path and left[0] > 0:
            left[0] -= 1
            raise PermissionError("token has expired")

    faulty.before = staticmethod(before)
    async with journal_at(url, time) as journal:
        await journal.open(job(), on_mismatch="refuse")
        await journal.commit([done("a", 1)])
    assert time.slept == [0.1, 0.2, 0.4]
    assert read_run(url).done == {"a": (range(1, 2),)}


@pytest.mark.parametrize("failing", ["put", "list"])
async def test_a_store_that_stays_down_breaks_the_journal_for_good(
    faulty: type[Faulty], failing: str
) -> None:
    url, time, down = f"faulty://{uuid.uuid4().hex}", VirtualTime(), [False]

    def before(what: str, path: str) -> None:
        if down[0] and what == failing and "beat-" not in path:
            raise ConnectionResetError("gone")

    faulty.before = staticmethod(before)
    errors: list[JournalError] = []

    async def commit(rank: int) -> None:
        try:
            await journal.commit([done("a", rank)])
        except JournalError as error:
            errors.append(error)

    async with journal_at(url, time) as journal:
        await journal.open(job(), on_mismatch="refuse")
        down[0] = True
        async with anyio.create_task_group() as tasks:
            for rank in range(3):
                tasks.start_soon(commit, rank)
        assert 500 < sum(time.slept) <= QUICK.record_timeout_s
        down[0] = False
        await commit(9)
    assert len(errors) == 4
    assert all("ConnectionResetError: gone" in str(error) for error in errors)
    assert_closed(url)
    if failing == "put":
        assert read_run(url).done == {}


async def test_at_open_a_refusal_of_the_store_is_not_retried(faulty: type[Faulty]) -> None:
    time = VirtualTime()

    def before(what: str, path: str) -> None:
        raise PermissionError("no key")

    faulty.before = staticmethod(before)
    async with journal_at("faulty://x", time) as journal:
        with pytest.raises(JournalError, match="cannot list control/: PermissionError: no key"):
            await journal.open(job(), on_mismatch="refuse")
    assert time.slept == []


async def test_a_store_that_hangs_holds_neither_commit_nor_close(faulty: type[Faulty]) -> None:
    url, back = f"faulty://{uuid.uuid4().hex}", threading.Event()

    def before(what: str, path: str) -> None:
        if "seg-" in path:
            back.wait(60)

    faulty.before = staticmethod(before)
    params = JournalParams(min_interval_s=0, record_timeout_s=0.05)
    try:
        async with journal_at(url, VirtualTime(), params) as journal:
            await journal.open(job(), on_mismatch="refuse")
            with pytest.raises(JournalError, match="has not answered"):
                await journal.commit([done("a", 1)])
        assert_closed(url)
    finally:
        back.set()


async def test_a_cancelled_driver_does_not_leave_a_put_half_way(faulty: type[Faulty]) -> None:
    url, started, let = f"faulty://{uuid.uuid4().hex}", threading.Event(), threading.Event()
    order: list[str] = []

    def before(what: str, path: str) -> None:
        if "seg-" in path:
            started.set()
            let.wait(60)
            order.append("put")

    faulty.before = staticmethod(before)

    async def drive() -> None:
        with scope:
            async with journal_at(url, VirtualTime()) as journal:
                await journal.open(job(), on_mismatch="refuse")
                await journal.commit([done("a", 1)])
        order.append("left")

    scope = anyio.CancelScope()
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(drive)
            await anyio.to_thread.run_sync(started.wait, 60)
            scope.cancel()
            for _ in range(50):
                await anyio.lowlevel.checkpoint()
            let.set()
    finally:
        let.set()
    assert order == ["put", "left"]
    assert_closed(url)


async def test_closing_does_not_wait_for_a_store_that_hangs(faulty: type[Faulty]) -> None:
    url, back = f"faulty://{uuid.uuid4().hex}", threading.Event()

    def before(what: str, path: str) -> None:
        if "seg-" in path:
            back.wait(60)

    faulty.before = staticmethod(before)
    params = JournalParams(min_interval_s=0, close_timeout_s=0.05)
    said: list[JournalError] = []

    async def commit(journal: FileJournal) -> None:
        try:
            await journal.commit([done("a", 1)])
        except JournalError as error:
            said.append(error)

    async def body() -> None:
        async with journal_at(url, VirtualTime(), params) as journal:
            await journal.open(job(), on_mismatch="refuse")
            tasks.start_soon(commit, journal)
            await anyio.lowlevel.checkpoint()
            raise RuntimeError("enough")

    try:
        with anyio.fail_after(20):
            async with anyio.create_task_group() as tasks:
                with pytest.raises(RuntimeError, match="enough"):
                    await body()
        assert len(said) == 1
    finally:
        back.set()


async def test_a_call_that_may_not_be_repeated_is_not(tmp_path: Path) -> None:
    def fail() -> None:
        raise JournalError("final")

    with pytest.raises(JournalError, match="final"):
        run_blocking(open_store(str(tmp_path)), call("x", fail))


async def test_a_segment_says_what_is_promoted(memory: str) -> None:
    async with journal_at(memory, VirtualTime()) as journal:
        await journal.open(job(), on_mismatch="refuse")
        for rank in range(3):
            await journal.commit([done("a", rank)])
        objects = control(memory)
        headers = [
            decode(objects[seg_name(1, n)], Header(kind="seg", term=1, n=n))[0] for n in (1, 2, 3)
        ]
        assert [header.promoted for header in headers] == [0, 1, 2]
    assert encode(headers[0], [])
