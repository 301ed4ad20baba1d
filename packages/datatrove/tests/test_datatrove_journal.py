"""The journal of a chain: what is recorded, what is marked, and what of both counts.

Long, since all of it stands on the same stage in virtual time, and on the table of what counts.
"""

from __future__ import annotations

import contextlib
import json
import logging
import pickle
import threading
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import attrs
import fsspec
import pytest
from datatrove.io import DataFolder, get_datafolder
from fsspec.implementations.memory import MemoryFileSystem

from thornback.datatrove.errors import LoggingDirInUse, PipelineMismatch
from thornback.datatrove.journal import (
    PipelineJournals,
    PipelineState,
    state_url,
    storage_options,
)
from thornback.datatrove.markers import completed_ranks, promote
from thornback.executor import HeldByAnother, IdentityMismatch, JournalError, UsageError, read_run
from thornback.executor.journal.filejournal import JournalParams
from thornback.executor.journal.holder import Heartbeat, Holder
from thornback.executor.journal.segments import encode_record
from thornback.executor.journal.steps import run_blocking
from thornback.executor.journal.store import open_store
from thornback.executor.journal.terms import LOOKS, beat_name, claim_name, flush
from thornback.executor.journal.testing import done, failed
from thornback.executor.ports import Completion, Identity, Opened, StageIdentity

pytestmark = pytest.mark.anyio
QUICK = JournalParams(min_interval_s=0)


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def decode(result: str) -> str:
    """Stand in for what our ranks' results are."""
    return f"[{result}]"


@pytest.fixture(params=["path", "memory", "path and options"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], DataFolder]:
    """Return what gives a logging_dir by name."""
    at: dict[str, Callable[[str], object]] = {
        "path": lambda name: str(tmp_path / name),
        "memory": lambda name: f"memory://{tmp_path}/{name}",
        "path and options": lambda name: (str(tmp_path / name), {"skip_instance_cache": True}),
    }
    return lambda name: get_datafolder(at[request.param](name))


@pytest.fixture
def folder(tmp_path: Path) -> DataFolder:
    return get_datafolder(str(tmp_path / "logs"))


def state_of(
    folder: DataFolder, stage: str = "a", world_size: int = 10, version: str = "v1", **options: Any
) -> PipelineState:
    identity = StageIdentity(
        name=stage, world_size=world_size, function="datatrove", version=version
    )
    return PipelineState(stage=stage, folder=folder, identity=identity, **options)


def journals(*states: PipelineState, **options: Any) -> PipelineJournals:
    chosen: dict[str, Any] = {"root": states[0].stage, "decode": decode, "params": QUICK}
    return PipelineJournals(states, **{**chosen, **options})


async def opened(journal: PipelineJournals, *stages: str) -> Opened:
    identities = tuple(StageIdentity(name=s, world_size=1, function="f") for s in stages or ("a",))
    return await journal.open(Identity(job="chain", stages=identities), on_mismatch="refuse")


async def run(*records: Completion, state: PipelineState, **options: Any) -> Opened:
    """Open a stage, commit records to it one by one, and close it."""
    async with journals(state, **options) as journal:
        found = await opened(journal, state.stage)
        for record in records:
            await journal.commit([record])
        return found


def files(folder: DataFolder) -> list[str]:
    """Return what is in a logging_dir beside our own folder."""
    return [name for name in folder.list_files() if not name.startswith("thornback/")]


def ranks_of(found: Opened, stage: str = "a") -> list[int]:
    return [rank for piece in found.done.get(stage, ()) for rank in piece]


def put_without_promotion(folder: DataFolder, n: int, promoted: int, *records: Completion) -> None:
    """Do what a driver of term 1 has done that dies between a put and its promotion."""
    store = open_store(state_url(folder), storage_options(folder))
    lines = [encode_record(attrs.evolve(record, stage="pipeline")) for record in records]
    run_blocking(store, flush(store.url, 1, n, promoted, lines))


# -- what is recorded and marked -------------------------------------------------------------------


async def test_what_is_committed_has_stats_and_marker_and_is_done_next_time(
    root: Callable[[str], DataFolder],
) -> None:
    folder = root("logs")
    assert ranks_of(await run(done("a", 1, 7), state=state_of(folder))) == []
    assert files(folder) == [
        "completions/00001",
        "completions/00007",
        "stats/00001.json",
        "stats/00007.json",
    ]
    assert folder.cat_file("stats/00007.json") == b'[{"rank": 7}]'
    found = await run(state=state_of(folder))
    assert (ranks_of(found), found.term) == ([1, 7], 2)


async def test_the_record_comes_first_and_the_files_before_the_announcement(
    folder: DataFolder,
) -> None:
    seen: list[object] = []

    def look(result: str) -> str:
        seen.append(read_run(state_url(folder)).done)
        seen.append(files(folder))
        return decode(result)

    async with journals(state_of(folder), decode=look) as journal:
        await opened(journal)
        await journal.commit([done("a", 1)])
        seen.append(files(folder))
    assert seen == [{"pipeline": (range(1, 2),)}, [], ["completions/00001", "stats/00001.json"]]


async def test_ranks_that_failed_or_were_skipped_have_neither(folder: DataFolder) -> None:
    skipped = Completion(stage="a", ranks=(range(3, 5),), state="skipped", certificate={})
    await run(failed("a", 2), skipped, done("a", 1), state=state_of(folder))
    assert files(folder) == ["completions/00001", "stats/00001.json"]
    found = await run(state=state_of(folder))
    assert found.failed == {"a": (range(2, 3),)}


async def test_a_done_rank_without_a_result_is_marked(folder: DataFolder) -> None:
    await run(done("a", 2, results=False), state=state_of(folder))
    assert files(folder) == ["completions/00002"]


async def test_ranks_that_another_executor_has_marked_are_done(folder: DataFolder) -> None:
    await run(failed("a", 5), done("a", 1), state=state_of(folder))
    folder.open("completions/00005", "w").close()
    folder.open("completions/00010", "w").close()
    found = await run(state=state_of(folder))
    assert (ranks_of(found), found.failed) == ([1, 5], {})


async def test_a_rank_whose_marker_was_removed_runs_again_and_leaves_its_new_stats(
    folder: DataFolder,
) -> None:
    await run(done("a", 1, 2), state=state_of(folder))
    folder.rm_file("completions/00001")
    assert ranks_of(await run(state=state_of(folder))) == [2]
    again = attrs.evolve(done("a", 1), results={1: '"again"'})
    await run(again, state=state_of(folder))
    assert folder.cat_file("stats/00001.json") == b'["again"]'
    assert ranks_of(await run(state=state_of(folder))) == [1, 2]


async def test_what_ranks_returned_is_not_kept_where_stats_have_it(folder: DataFolder) -> None:
    await run(done("a", 1), state=state_of(folder))
    put_without_promotion(folder, 2, 1, done("a", 2))
    params = JournalParams(min_interval_s=0, compact_segments=1, compact_segments_max=1)
    async with journals(state_of(folder), params=params) as journal:
        assert ranks_of(await opened(journal)) == [1, 2]
        for rank in (3, 4):
            await journal.commit([done("a", rank)])
        with pytest.raises(JournalError, match="not kept"):
            await journal.results("a")
    for rank in range(1, 5):
        assert folder.cat_file(f"stats/{rank:05d}.json").decode() == f'[{{"rank": {rank}}}]'
    held = b"".join(folder.cat_file(name) for name in folder.list_files("thornback/control"))
    assert b'"done"' in held
    assert b"results" not in held


async def test_what_a_dead_driver_has_recorded_is_promoted_before_open_returns(
    root: Callable[[str], DataFolder],
) -> None:
    folder = root("logs")
    await run(done("a", 1), state=state_of(folder))
    put_without_promotion(folder, 2, 1, done("a", 2), failed("a", 3))
    folder.rm_file("completions/00001")  # promoted before: removed on purpose
    async with journals(state_of(folder)) as journal:
        found = await opened(journal)
        assert (ranks_of(found), found.failed) == ([2], {"a": (range(3, 4),)})
        assert files(folder) == ["completions/00002", "stats/00001.json", "stats/00002.json"]
    folder.rm_file("completions/00002")
    assert ranks_of(await run(state=state_of(folder))) == []


async def test_what_was_just_promoted_is_done_whatever_the_listing_says(tmp_path: Path) -> None:
    class Stale(MemoryFileSystem):  # type: ignore[misc]  # fsspec ships no types
        cachable = False

        def ls(self, path: str, detail: bool = True, **options: Any) -> Any:
            if path.endswith("/completions"):
                return []
            return super().ls(path, detail, **options)

    folder = get_datafolder((f"/{uuid.uuid4().hex}", Stale()))
    await run(done("a", 1), state=state_of(folder))
    put_without_promotion(folder, 2, 1, done("a", 2))
    assert ranks_of(await run(state=state_of(folder))) == [2]


def in_file(folder: DataFolder, rank: int) -> Completion:
    """Do what a rank does whose stats are long."""
    name = f"thornback/stats/{rank}.json"
    with folder.open(name, "w") as file:
        file.write(f"[{rank}]")
    return attrs.evolve(done("a", rank), results={rank: json.dumps({"file": name})})


async def test_long_stats_that_were_promoted_or_never_recorded_are_swept(
    root: Callable[[str], DataFolder],
) -> None:
    folder = root("logs")
    async with journals(state_of(folder), decode=None) as journal:
        await opened(journal)
        in_file(folder, 3)
        await journal.commit([in_file(folder, 1)])
        assert folder.exists("thornback/stats/1.json"), "it may be promoted again"
    put_without_promotion(folder, 2, 1, in_file(folder, 2))
    for _ in range(2):
        assert ranks_of(await run(state=state_of(folder), decode=None)) == [1, 2]
        assert [folder.cat_file(f"stats/{rank:05d}.json") for rank in (1, 2)] == [b"[1]", b"[2]"]
        assert not [name for name in folder.list_files("thornback") if "/stats/" in name]


async def test_a_store_that_fails_while_long_stats_are_read_is_asked_again() -> None:
    down = [2]

    class Failing(MemoryFileSystem):  # type: ignore[misc]  # fsspec ships no types
        cachable = False

        def _open(self, path: str, mode: str = "rb", *args: Any, **options: Any) -> Any:
            if "/thornback/stats/" in path and mode == "rb" and down[0]:
                down[0] -= 1
                raise ConnectionResetError("gone")
            return super()._open(path, mode, *args, **options)

    async def sleep(delay_s: float) -> None:
        if delay_s == QUICK.ttl_s / 3:
            await anyio.sleep_forever()
        await anyio.lowlevel.checkpoint()

    folder = get_datafolder((f"/{uuid.uuid4().hex}", Failing()))
    async with journals(state_of(folder), decode=None, sleep=sleep) as journal:
        await opened(journal)
        await journal.commit([in_file(folder, 1)])
    assert (down, folder.cat_file("stats/00001.json")) == ([0], b"[1]")


async def test_what_dead_writers_have_left_is_swept(folder: DataFolder) -> None:
    with folder.open("thornback/tmp/dead", "w") as file:
        file.write("half")
    await run(state=state_of(folder))
    assert not folder.exists("thornback/tmp/dead")


# -- skip_completed=False --------------------------------------------------------------------------


async def test_without_skip_completed_nothing_of_before_is_left_and_only_this_run_counts(
    root: Callable[[str], DataFolder],
) -> None:
    folder = root("logs")
    await run(done("a", 1, 2), failed("a", 3), state=state_of(folder))
    put_without_promotion(folder, 3, 2, done("a", 4))
    promote(folder, {5: "[]", 12: "[]"})
    async with journals(state_of(folder, skip_completed=False)) as journal:
        found = await opened(journal)
        assert (found.done, found.failed, found.term) == ({}, {}, 2)
        assert files(folder) == []  # also of ranks beyond the world: tools would count them
        await journal.commit([done("a", 2)])
    assert ranks_of(await run(state=state_of(folder))) == [2]


@pytest.mark.parametrize("on_mismatch", ["refuse", "warn", "adopt"])
async def test_without_skip_completed_another_pipeline_is_no_matter(
    folder: DataFolder, caplog: pytest.LogCaptureFixture, on_mismatch: str
) -> None:
    await run(done("a", 1), state=state_of(folder))
    other = state_of(folder, version="v2", skip_completed=False, on_mismatch=on_mismatch)
    assert ranks_of(await run(state=other)) == []
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert files(folder) == []


# -- whose is it -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"world_size": 4}, "number of tasks was 10, is 4"),
        ({"version": "v2"}, "step 0 was v1, is v2"),
    ],
)
async def test_another_pipeline_is_refused_adopted_or_adopted_with_a_warning(
    folder: DataFolder, caplog: pytest.LogCaptureFixture, changed: dict[str, Any], said: str
) -> None:
    await run(done("a", 1, 7), state=state_of(folder))
    with pytest.raises(PipelineMismatch) as caught:
        await run(state=state_of(folder, **changed))
    for part in (said, "another logging_dir", "skip_completed=False", "on_mismatch='adopt'"):
        assert part in str(caught.value)
    assert caught.value.url == folder.path
    assert not caplog.records
    kept = [rank for rank in (1, 7) if rank < changed.get("world_size", 10)]
    assert ranks_of(await run(state=state_of(folder, on_mismatch="warn", **changed))) == kept
    assert said in caplog.text
    caplog.clear()
    # Now it is that pipeline's.
    assert ranks_of(await run(state=state_of(folder, on_mismatch="adopt", **changed))) == kept
    assert ranks_of(await run(state=state_of(folder, **changed))) == kept
    with pytest.raises(PipelineMismatch):
        await run(state=state_of(folder))
    assert not caplog.records


async def test_ranks_beyond_the_world_are_not_promoted_for_another_pipeline(
    folder: DataFolder,
) -> None:
    await run(done("a", 1), state=state_of(folder))
    put_without_promotion(folder, 2, 1, done("a", 2, 7))
    smaller = state_of(folder, world_size=4, on_mismatch="adopt")
    assert ranks_of(await run(state=smaller)) == [1, 2]
    assert not folder.exists("completions/00007")


async def test_the_place_of_a_pipeline_in_a_job_is_no_part_of_it(folder: DataFolder) -> None:
    await run(done("a", 1), state=state_of(folder))
    renamed = state_of(folder, stage="second")
    child = attrs.evolve(renamed, identity=attrs.evolve(renamed.identity, parents=("first",)))
    assert ranks_of(await run(state=child), "second") == [1]


async def test_markers_of_a_stock_executor_are_taken_over(folder: DataFolder) -> None:
    promote(folder, {1: "[]"})
    assert ranks_of(await run(state=state_of(folder))) == [1]


# -- several stages --------------------------------------------------------------------------------


async def test_records_go_to_the_logging_dir_of_their_stage(
    root: Callable[[str], DataFolder],
) -> None:
    a, b = root("a"), root("b")
    await run(state=state_of(b, stage="b"))
    states = [state_of(a), state_of(b, stage="b")]
    async with journals(*states, root="b", keep_results=True) as journal:
        found = await opened(journal, "b", "a")
        assert (found.term, found.done) == (2, {})
        await journal.commit([done("a", 1), done("b", 2), failed("a", 3)])
        assert list(await journal.results("b")) == [2]
    async with journals(*states) as journal:
        found = await opened(journal, "a", "b")
        assert found.term == 2
        assert found.done == {"a": (range(1, 2),), "b": (range(2, 3),)}
        assert found.failed == {"a": (range(3, 4),)}
    assert files(a) == ["completions/00001", "stats/00001.json"]


async def test_records_of_several_stages_are_written_at_the_same_time(tmp_path: Path) -> None:
    together = threading.Barrier(2)

    def meet(result: str) -> str:
        together.wait(20)
        return decode(result)

    states = [state_of(get_datafolder(str(tmp_path / stage)), stage=stage) for stage in "ab"]
    async with journals(*states, decode=meet) as journal:
        await opened(journal, "a", "b")
        await journal.commit([done("a", 1), done("b", 2)])


async def test_a_malformed_record_keeps_the_others_from_being_written(tmp_path: Path) -> None:
    folders = {stage: get_datafolder(str(tmp_path / stage)) for stage in "ab"}
    async with journals(*(state_of(folders[s], stage=s) for s in "ab")) as journal:
        await opened(journal, "a", "b")
        bad = Completion(stage="b", ranks=(range(0, 4, 2),), state="done")
        for records in ([done("a", 1), bad], [bad], [done("a", 1), done("c", 1)]):
            with pytest.raises(ValueError, match=r"ranks of 'b'|'pipeline'|no stage 'c'"):
                await journal.commit(records)
        await journal.commit([done("b", 1)])
    assert (files(folders["a"]), len(files(folders["b"]))) == ([], 2)


async def test_if_one_stage_cannot_be_opened_the_others_are_given_back(tmp_path: Path) -> None:
    a, b = (get_datafolder(str(tmp_path / stage)) for stage in "ab")
    await run(done("b", 1), state=state_of(b, stage="b"))
    async with journals(state_of(a), state_of(b, stage="b", version="v2")) as journal:
        with pytest.raises(PipelineMismatch):
            await opened(journal, "a", "b")
        assert (await run(state=state_of(a))).term == 2
        with pytest.raises(JournalError, match="closed"):
            await journal.commit([done("a", 1)])


async def test_folders_that_a_dead_driver_left_are_watched_together_but_for_the_first() -> None:
    looks, inside, together = 0, 0, anyio.Event()

    async def sleep(delay_s: float) -> None:
        nonlocal looks, inside
        if delay_s == QUICK.ttl_s / 3:
            await anyio.sleep_forever()
        looks, inside = looks + 1, inside + 1
        if inside == 2:
            together.set()
        await anyio.lowlevel.checkpoint()
        if looks > LOOKS:  # the first has been watched alone
            with anyio.fail_after(10):
                await together.wait()
        inside -= 1

    states = []
    for stage in "abc":
        folder = get_datafolder(f"memory://{uuid.uuid4().hex}/{stage}")
        store = open_store(state_url(folder), {})
        other = Holder(id="other", host="elsewhere", boot="other")
        store.put(claim_name(1, other.id), other.encode())
        store.put(beat_name(1), Heartbeat(id=other.id, count=1).encode())
        states.append(state_of(folder, stage=stage))
    async with journals(*states, sleep=sleep) as journal:
        assert (await opened(journal, "a", "b", "c")).term == 2
    assert looks == 3 * LOOKS


async def test_what_breaks_one_stage_breaks_the_journal(tmp_path: Path) -> None:
    def refuse(result: str) -> str:
        raise KeyError("schema")

    states = [state_of(get_datafolder(str(tmp_path / stage)), stage=stage) for stage in "ab"]
    async with journals(*states, decode=refuse) as journal:
        await opened(journal, "a", "b")
        with pytest.raises(JournalError, match=r"result of rank 1.*KeyError\('schema'\)"):
            await journal.commit([done("a", 1)])
        with pytest.raises(JournalError, match="result of rank 1"):
            await journal.commit([failed("b", 1)])
        with pytest.raises(JournalError, match="result of rank 1"):
            await journal.results("b")


# -- failures, ends and misuse ---------------------------------------------------------------------


async def test_failures_of_the_file_system_are_retried_and_then_final() -> None:
    down, slept = [0], []

    class Failing(MemoryFileSystem):  # type: ignore[misc]  # fsspec ships no types
        cachable = False

        def _open(self, path: str, *args: Any, **options: Any) -> Any:
            if "/completions/" in path and down[0]:
                down[0] -= 1
                raise ConnectionResetError("gone")
            return super()._open(path, *args, **options)

    now_s = [0.0]

    async def sleep(delay_s: float) -> None:
        if delay_s == QUICK.ttl_s / 3:
            await anyio.sleep_forever()
        await anyio.lowlevel.checkpoint()
        slept.append(delay_s)
        now_s[0] += delay_s

    clock = {"sleep": sleep, "monotonic": lambda: now_s[0]}
    folder = get_datafolder((f"/{uuid.uuid4().hex}", Failing()))
    async with journals(state_of(folder), **clock) as journal:
        await opened(journal)
        down[0] = 2
        await journal.commit([done("a", 1)])
        assert slept == [0.1, 0.2]
        down[0] = 10**6
        with pytest.raises(JournalError, match=r"cannot promote.*ConnectionResetError"):
            await journal.commit([done("a", 2)])
    down[0] = 0
    assert ranks_of(await run(state=state_of(folder))) == [1, 2]


async def test_a_logging_dir_that_another_driver_has_is_refused_in_words_of_datatrove(
    folder: DataFolder,
) -> None:
    async with journals(state_of(folder)) as journal:
        await opened(journal)
        async with journals(state_of(folder)) as other:
            with pytest.raises(LoggingDirInUse, match=r"logging_dir .* is in use") as caught:
                await opened(other)
        await journal.commit([done("a", 1)])
    assert isinstance(caught.value, HeldByAnother)
    assert caught.value.url == folder.path


async def test_the_error_of_the_body_comes_out_as_it_is_and_everything_is_closed(
    tmp_path: Path,
) -> None:
    states = [state_of(get_datafolder(str(tmp_path / stage)), stage=stage) for stage in "ab"]
    error = RuntimeError("mine")

    async def body() -> None:
        async with journals(*states) as journal:
            await opened(journal, "a", "b")
            raise error

    with pytest.raises(RuntimeError) as caught:
        await body()
    assert caught.value is error
    async with journals(*states) as journal:
        assert (await opened(journal, "a", "b")).term == 2


async def test_a_cancelled_body_gives_everything_back(tmp_path: Path) -> None:
    states = [state_of(get_datafolder(str(tmp_path / stage)), stage=stage) for stage in "ab"]
    with anyio.fail_after(20):
        with anyio.CancelScope() as scope:
            async with journals(*states) as journal:
                await opened(journal, "a", "b")
                scope.cancel()
                await journal.commit([done("a", 1), done("b", 1)])
        assert scope.cancelled_caught
        async with journals(*states) as journal:
            assert (await opened(journal, "a", "b")).term == 2


@pytest.mark.parametrize("error", [None, RuntimeError("mine")])
async def test_logging_dirs_are_given_back_at_the_same_time(error: Exception | None) -> None:
    together, met = threading.Barrier(2), []

    class Meeting(MemoryFileSystem):  # type: ignore[misc]  # fsspec ships no types
        protocol = "meeting"

        def pipe_file(self, path: str, value: bytes, *args: Any, **options: Any) -> None:
            if b'"closed": true' in value:
                together.wait(20)  # passes only if the other one is closed meanwhile
                met.append(path)
            super().pipe_file(path, value, *args, **options)

    fsspec.register_implementation("meeting", Meeting, clobber=True)
    root = f"meeting://{uuid.uuid4().hex}"
    states = [state_of(get_datafolder(f"{root}/{stage}"), stage=stage) for stage in "ab"]

    async def body() -> None:
        async with journals(*states) as journal:
            await opened(journal, "a", "b")
            if error is not None:
                raise error

    with contextlib.suppress(RuntimeError):
        await body()
    assert len(met) == 2


async def test_it_is_entered_then_opened_once_then_closed(folder: DataFolder) -> None:
    with pytest.raises(JournalError, match="async with"):
        await opened(journals(state_of(folder)))
    async with journals(state_of(folder)) as journal:
        with pytest.raises(JournalError, match="not open"):
            await journal.commit([])
        with pytest.raises(ValueError, match="stages of the job are"):
            await opened(journal, "a", "b")
        await opened(journal)
        with pytest.raises(JournalError, match="opened once"):
            await opened(journal)
        with pytest.raises(JournalError, match="no stage 'b'"):
            await journal.results("b")
        await journal.close()
        await journal.close()
        with pytest.raises(JournalError, match="closed"):
            await journal.commit([done("a", 1)])


async def test_states_that_cannot_be_told_apart_are_refused(folder: DataFolder) -> None:
    same = [state_of(folder), state_of(get_datafolder(folder.path + "/"), stage="b")]
    with pytest.raises(UsageError, match="'a' and 'b' have the same logging_dir"):
        journals(*same)
    with pytest.raises(ValueError, match="different names"):
        journals(state_of(folder), state_of(folder))
    with pytest.raises(ValueError, match="'x' in them"):
        journals(state_of(folder), root="x")


async def test_a_file_system_that_cannot_be_opened_again_is_refused() -> None:
    class Positional(MemoryFileSystem):  # type: ignore[misc]  # fsspec ships no types
        def __init__(self, name: str) -> None:
            super().__init__()

    with pytest.raises(UsageError, match="keyword arguments"):
        journals(state_of(get_datafolder(("/x", Positional("n")))))


async def test_options_of_the_file_system_are_those_it_was_made_with() -> None:
    assert storage_options(get_datafolder(("memory://x", {"a": 1, "b": "2"}))) == {"a": 1, "b": "2"}
    assert state_url(get_datafolder("memory://x/y")) == "memory:///x/y/thornback"


async def test_through_a_cache_the_journal_sees_the_store_itself(tmp_path: Path) -> None:
    url, options = f"simplecache::memory://{tmp_path}", {"memory": {"key": "k"}}
    folder = get_datafolder((url, options))
    assert storage_options(folder) == {"key": "k"}
    await run(done("a", 1), state=state_of(folder))
    assert get_datafolder(f"memory://{tmp_path}").exists("thornback/control")
    assert ranks_of(await run(state=state_of(folder))) == [1]


@pytest.mark.parametrize(
    "error",
    [
        PipelineMismatch("s3://b/logs", ["number of tasks was 3, is 4"]),
        LoggingDirInUse("s3://b/logs", "host", 7, "2026", "it has the lock"),
    ],
)
async def test_errors_pickle(error: Exception) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))
    assert not isinstance(error, PipelineMismatch) or isinstance(error, IdentityMismatch)


async def test_many_ranks_are_one_flush_and_their_files(folder: DataFolder) -> None:
    state = state_of(folder, world_size=500)
    await run(done("a", *range(500)), state=state)
    assert completed_ranks(folder, 500) == (range(0, 500),)
    assert len(folder.list_files("stats")) == 500


@pytest.fixture(autouse=True)
def _clean_memory() -> Any:
    yield
    fsspec.filesystem("memory").store.clear()
