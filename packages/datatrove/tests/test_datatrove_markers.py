"""The files in a logging_dir, on every kind of folder that datatrove knows, and as its tools read
them."""

from __future__ import annotations

import json
import random
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from datatrove.io import DataFolder, get_datafolder
from datatrove.tools import merge_stats as merge_tool
from datatrove.utils.stats import PipelineStats, Stats
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from thornback.datatrove import markers
from thornback.datatrove.markers import (
    Merged,
    completed_ranks,
    forget,
    merge_stats,
    promote,
    save_merged,
    sweep,
)

KINDS = ["path", "url", "path and file system", "path and options", "memory", "memory file system"]


@pytest.fixture(params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> DataFolder:
    path, key = str(tmp_path / "logs"), uuid.uuid4().hex
    kinds: dict[str, Callable[[], object]] = {
        "path": lambda: path,
        "url": lambda: f"file://{path}",
        "path and file system": lambda: (path, LocalFileSystem()),
        "path and options": lambda: (path, {"skip_instance_cache": True}),
        "memory": lambda: f"memory://{key}",
        "memory file system": lambda: (f"/{key}/logs", MemoryFileSystem()),
    }
    return get_datafolder(kinds[request.param]())


@pytest.fixture
def local(tmp_path: Path) -> DataFolder:
    return get_datafolder(str(tmp_path))


def files(folder: DataFolder) -> dict[str, bytes]:
    return {name: folder.cat_file(name) for name in folder.list_files()}


def stats_of(rank: int, steps: int = 3) -> PipelineStats:
    """Return stats with timings, counts and floats that do not add up exactly."""
    number = random.Random(rank)
    found = []
    for step in range(steps):
        stats = Stats(f"step {step}")
        for _ in range(number.randrange(4)):
            stats.time_stats.update(number.random())
        for _ in range(number.randrange(5)):
            stats["doc_len"].update(number.random() * 1e3, "token")
            stats["documents"].update(1)
        stats[f"only in {rank % 2}"].update(0)
        found.append(stats)
    return PipelineStats(found)


def text_of(stats: PipelineStats) -> str:
    text: str = stats.to_json()
    return text


def write(folder: DataFolder, name: str, content: str | bytes) -> None:
    with folder.open(name, "wb") as file:
        file.write(content if isinstance(content, bytes) else content.encode())


# -- completions and stats -------------------------------------------------------------------------


def test_a_rank_gets_its_stats_and_an_empty_marker(folder: DataFolder) -> None:
    promote(folder, {7: '[{"é": 1}]', 123456: "[]"})
    assert files(folder) == {
        "completions/00007": b"",
        "completions/123456": b"",
        "stats/00007.json": '[{"é": 1}]'.encode(),
        "stats/123456.json": b"[]",
    }


def test_a_rank_without_a_text_gets_a_marker_alone(folder: DataFolder) -> None:
    promote(folder, {7: None})
    assert files(folder) == {"completions/00007": b""}


def test_promotion_again_replaces_what_is_there(folder: DataFolder) -> None:
    promote(folder, dict.fromkeys(range(3), "old"))
    promote(folder, dict.fromkeys(range(3), "n"))
    assert completed_ranks(folder, 9) == (range(0, 3),)
    assert [folder.cat_file(f"stats/0000{rank}.json") for rank in range(3)] == [b"n"] * 3


def test_ranks_are_ascending_ranges_below_the_world_size(folder: DataFolder) -> None:
    assert completed_ranks(folder, 9) == ()
    promote(folder, dict.fromkeys((9, 0, 3, 2, 100000, 1, 8), "[]"))
    assert completed_ranks(folder, 9) == (range(0, 4), range(8, 9))
    assert completed_ranks(folder, 2) == (range(0, 2),)
    assert completed_ranks(folder, 0) == ()
    assert completed_ranks(folder, 10**6) == (
        range(0, 4),
        range(8, 10),
        range(100_000, 100_001),
    )


def test_what_datatrove_would_not_name_so_is_no_marker(folder: DataFolder) -> None:
    for name in ("7", "00007.json", "000007", "x0007", "00008 ", "٠٠٠٠٩", "a/00005"):
        write(folder, f"completions/{name}", "x")
    assert completed_ranks(folder, 10**6) == ()


def test_what_another_program_has_written_is_seen_at_once(folder: DataFolder) -> None:
    assert completed_ranks(folder, 9) == ()
    other = get_datafolder(folder.resolve_paths(""))
    other.open("completions/00004", "w").close()
    assert completed_ranks(folder, 9) == (range(4, 5),)


def test_a_listing_that_is_cached_is_not_believed(tmp_path: Path) -> None:
    class Caching(LocalFileSystem):  # type: ignore[misc]  # fsspec ships no types
        """Answers from memory until it is told to forget everything."""

        cachable = False
        known: dict[str, Any] | None = None

        def ls(self, path: str, detail: bool = False, **options: Any) -> Any:
            self.known = {} if self.known is None else self.known
            if path not in self.known:
                self.known[path] = super().ls(path, detail, **options)
            return self.known[path]

        def invalidate_cache(self, path: str | None = None) -> None:
            if path is None:
                self.known = None

    folder = get_datafolder((str(tmp_path), Caching()))
    promote(folder, {1: "[]"})
    assert completed_ranks(folder, 9) == (range(1, 2),)
    promote(folder, {2: "[]"})
    assert completed_ranks(folder, 9) == (range(1, 3),)


def test_a_failure_leaves_no_marker_without_its_stats(tmp_path: Path) -> None:
    class Failing(MemoryFileSystem):  # type: ignore[misc]  # fsspec ships no types
        cachable = False

        def _open(self, path: str, *args: Any, **options: Any) -> Any:
            if path.endswith("stats/00040.json"):
                raise ConnectionResetError("gone")
            return super()._open(path, *args, **options)

    folder = get_datafolder((f"/{uuid.uuid4().hex}", Failing()))
    with pytest.raises(ConnectionResetError):
        promote(folder, dict.fromkeys(range(100), "[]"))
    names = set(folder.list_files())
    marked = {name[-5:] for name in names if name.startswith("completions/")}
    assert marked <= {name[-10:-5] for name in names if name.startswith("stats/")}
    assert "00040" not in marked


def test_many_are_written_at_the_same_time() -> None:
    together = threading.Barrier(32)

    class Meeting(MemoryFileSystem):  # type: ignore[misc]  # fsspec ships no types
        cachable = False

        def _open(self, path: str, *args: Any, **options: Any) -> Any:
            if "/stats/" in path:
                together.wait(20)
            return super()._open(path, *args, **options)

    folder = get_datafolder((f"/{uuid.uuid4().hex}", Meeting()))
    promote(folder, dict.fromkeys(range(markers.AT_ONCE), "[]"))


def test_on_this_machine_files_appear_whole_and_leave_nothing_behind(
    local: DataFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def disk_is_full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    promote(local, {1: "old"})
    with monkeypatch.context() as broken:
        broken.setattr("os.fsync", disk_is_full)
        with pytest.raises(OSError, match="No space"):
            promote(local, {1: "new", 2: "new"})
    assert files(local) == {"completions/00001": b"", "stats/00001.json": b"old"}


def test_a_stats_folder_on_another_file_system_is_written_all_the_same(
    local: DataFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def across(source: str, target: str) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr("os.replace", across)
    promote(local, {1: "[]"})
    assert files(local) == {"completions/00001": b"", "stats/00001.json": b"[]"}


def test_what_a_dead_writer_has_left_is_swept(local: DataFolder) -> None:
    sweep(local)
    write(local, "thornback/tmp/dead", "half")
    write(local, "thornback/control/seg", "x")
    sweep(local)
    assert local.list_files() == ["thornback/control/seg"]


# -- forgetting ------------------------------------------------------------------------------------


def test_forgotten_ranks_have_neither_marker_nor_stats_and_what_is_no_rank_stays(
    folder: DataFolder,
) -> None:
    forget(folder)
    promote(folder, dict.fromkeys((0, 3, 7), "[]"))
    write(folder, "stats/00004.json", "[]")
    write(folder, "logs/task_00000.log", "text")
    write(folder, "stats/notes.json", "[]")
    forget(folder)
    forget(folder)
    assert sorted(files(folder)) == ["logs/task_00000.log", "stats/notes.json"]


# -- merging ---------------------------------------------------------------------------------------


def as_datatrove_merges(folder: DataFolder, world_size: int) -> str:
    """Do what datatrove's RayPipelineExecutor does at its end."""
    total = PipelineStats()
    for rank in range(world_size):
        with folder.open(f"stats/{rank:05d}.json", "r") as file:
            total += PipelineStats.from_json(json.load(file))
    return text_of(total)


@pytest.mark.parametrize("world_size", [1, 2, 100])
def test_merged_stats_are_datatrove_s_to_the_byte(folder: DataFolder, world_size: int) -> None:
    promote(folder, {rank: text_of(stats_of(rank)) for rank in range(world_size)})
    merged = merge_stats(folder, world_size)
    assert merged.missing == ()
    save_merged(folder, merged)
    assert folder.cat_file("stats.json").decode() == as_datatrove_merges(folder, world_size)


def test_merged_stats_are_those_of_datatrove_s_tool(
    local: DataFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    promote(local, {rank: text_of(stats_of(rank)) for rank in range(40)})
    save_merged(local, merge_stats(local, 40))
    output = tmp_path / "by the tool.json"
    arguments = ["merge_stats", str(tmp_path / "stats"), "-o", str(output)]
    monkeypatch.setattr(sys, "argv", arguments)
    monkeypatch.setattr(merge_tool, "tqdm", lambda things: things)
    parsed = merge_tool.parser.parse_args(arguments[1:])
    monkeypatch.setattr(merge_tool.parser, "parse_args", lambda: parsed)
    merge_tool.main()
    assert (tmp_path / "stats.json").read_bytes() == output.read_bytes()


def test_what_is_missing_or_torn_is_named_and_left_out(folder: DataFolder) -> None:
    promote(folder, {rank: text_of(stats_of(rank)) for rank in (0, 2, 4)})
    whole = text_of(stats_of(5))
    contents: dict[int, str | bytes] = {
        5: whole[: len(whole) // 2],
        6: "",
        7: '{"name": 1}',
        8: b"\xff\xfe",
        9: "null",
        10: text_of(stats_of(10, steps=2)),
        11: whole.replace("step 1", "step X"),
        12: whole.replace('"total": ', '"total": "x').replace(",\n", '",\n'),
    }
    for rank, content in contents.items():
        write(folder, f"stats/{rank:05d}.json", content)
    merged = merge_stats(folder, 14)
    assert merged.missing == (1, 3, 5, 6, 7, 8, 9, 10, 11, 12, 13)
    total = PipelineStats()
    for rank in (0, 2, 4):
        total += PipelineStats.from_json(json.loads(text_of(stats_of(rank))))
    assert text_of(merged.stats) == text_of(total)


def test_nothing_at_all_merges_to_nothing(folder: DataFolder) -> None:
    merged = merge_stats(folder, 3)
    assert merged.missing == (0, 1, 2)
    save_merged(folder, Merged(stats=merged.stats, missing=()))
    assert folder.cat_file("stats.json") == b"[]"


def test_a_store_that_fails_is_not_taken_for_a_missing_file() -> None:
    class Failing(MemoryFileSystem):  # type: ignore[misc]  # fsspec ships no types
        cachable = False

        def _open(self, path: str, *args: Any, **options: Any) -> Any:
            raise PermissionError("token has expired")

    with pytest.raises(PermissionError):
        merge_stats(get_datafolder(("/x", Failing())), 3)


def test_few_files_are_held_while_many_are_merged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts what was read and not yet added, with a total that is slow."""
    read, added, most = [0], [0], [0]
    original = markers._add

    def reads(folder: DataFolder, rank: int) -> PipelineStats:
        read[0] += 1
        return stats_of(rank, steps=1)

    def adds(total: PipelineStats, stats: PipelineStats) -> PipelineStats | None:
        added[0] += 1
        most[0] = max(most[0], read[0] - added[0])
        return original(total, stats)

    monkeypatch.setattr(markers, "_read_stats", reads)
    monkeypatch.setattr(markers, "_add", adds)
    assert merge_stats(get_datafolder("memory://x"), 2000).missing == ()
    assert 1 < most[0] <= 2 * 32


@pytest.fixture(autouse=True)
def _clean_memory() -> Iterator[None]:
    yield
    fsspec.filesystem("memory").store.clear()
