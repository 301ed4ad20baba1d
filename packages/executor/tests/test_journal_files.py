"""What `FileJournal` does with files: what is read, committed and promoted, beyond the contract of
every journal."""

from __future__ import annotations

import os
from pathlib import Path

import anyio
import anyio.lowlevel
import attrs
import fsspec
import pytest

from packages.executor.tests.journals import (
    VirtualTime,
    assert_closed,
    control,
    flush_unpromoted,
    journal_at,
    publishing,
    reopened,
    run_once,
)
from thornback.executor.journal.filejournal import (
    FileJournal,
    JournalError,
    JournalParams,
    read_run,
)
from thornback.executor.journal.segments import Header, decode, encode
from thornback.executor.journal.store import open_store
from thornback.executor.journal.terms import seg_name
from thornback.executor.journal.testing import done, failed, job
from thornback.executor.ports import Completion

pytestmark = pytest.mark.anyio


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


async def test_it_wants_its_context(tmp_path: Path) -> None:
    with pytest.raises(JournalError, match="async with"):
        await FileJournal(str(tmp_path)).open(job(), on_mismatch="refuse")


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


# -- outputs ---------------------------------------------------------------------------------------


async def test_recorded_but_still_staged_is_promoted_at_open(tmp_path: Path) -> None:
    """As after a kill between the record and its promotion."""
    state, final = str(tmp_path / "state"), tmp_path / "final"
    await run_once(state, done("a", 1))
    flush_unpromoted(state, publishing(state, final))
    assert await reopened(state) == [range(1, 3)]
    assert final.read_text() == "x"
    final.unlink()  # now it is the user's
    assert await reopened(state) == [range(1, 3)]


async def test_a_promoted_output_may_be_taken_away(tmp_path: Path) -> None:
    state, final = str(tmp_path / "state"), tmp_path / "final"
    await run_once(state, publishing(state, final))
    final.unlink()
    assert await reopened(state) == [range(2, 3)]


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
