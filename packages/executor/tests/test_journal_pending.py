"""Outputs that an earlier driver has recorded and not promoted: promoted, or made again."""

from __future__ import annotations

import errno
import os
import uuid
from pathlib import Path
from typing import Any, ClassVar

import attrs
import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from packages.executor.tests.journals import (
    EPOCH,
    QUICK,
    VirtualTime,
    flush_unpromoted,
    publishing,
    run_once,
)
from thornback.executor.journal.filejournal import FileJournal, read_run
from thornback.executor.journal.pending import Allowed
from thornback.executor.journal.promote import temporary_name
from thornback.executor.journal.testing import done, job
from thornback.executor.ports import Completion, Opened, Places

pytestmark = pytest.mark.anyio


async def resumed(state: str, *declared: str, folder: str = "/nowhere", **options: Any) -> Opened:
    """Open the state as the next driver does, with these declared places."""
    clock = VirtualTime()
    journal = FileJournal(
        state, params=QUICK, sleep=clock.sleep, monotonic=clock.monotonic, **options
    )
    async with journal:
        journal.place_outputs(Places(state=state, folder=folder, declared=declared))
        return await journal.open(job(), on_mismatch="refuse")


async def crashed(state: str, *records: Completion) -> None:
    """Leave a state in which rank 1 is done and these records are not promoted."""
    staged = {Path(name): content(name) for record in records for name, _ in record.outputs}
    await run_once(state, done("a", 1))  # which sweeps what is staged
    for path, text in staged.items():
        stage_file(path, text)
    flush_unpromoted(state, *records)


def content(path: str) -> str:
    return Path(path).read_text()


def stage_file(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def lose(*records: Completion) -> None:
    """Remove what they have staged."""
    for record in records:
        for staged, _ in record.outputs:
            Path(staged).unlink()


@pytest.mark.parametrize("place", ["beside the state", "driver's folder", "declared"])
async def test_pending_output_to_a_known_place_is_promoted(tmp_path: Path, place: str) -> None:
    state, other = tmp_path / "runs" / "state", tmp_path / "other"
    final = (tmp_path / "runs" if place == "beside the state" else other) / "deep" / "x::y"
    await crashed(str(state), publishing(str(state), final))
    folder = str(other) if place == "driver's folder" else "/nowhere"
    opened = await resumed(
        str(state), *([str(other)] if place == "declared" else []), folder=folder
    )
    assert opened.warnings == ()
    assert opened.done == {"a": (range(1, 3),)}
    assert final.read_text() == "x"


async def test_pending_output_to_another_place_is_voided_and_named(tmp_path: Path) -> None:
    state, final = tmp_path / "runs" / "state", tmp_path / "elsewhere"
    await crashed(str(state), publishing(str(state), final))
    opened = await resumed(str(state))
    assert opened.done == {"a": (range(1, 2),)}
    assert not final.exists()
    (warning,) = opened.warnings
    assert "stage 'a', rank 2" in warning
    assert "Job(outputs=[...])" in warning
    assert sorted(read_run(str(state)).results("a")) == [1]


async def test_pending_output_that_was_promoted_counts_wherever_it_is(tmp_path: Path) -> None:
    state, final = tmp_path / "runs" / "state", tmp_path / "elsewhere"
    record = publishing(str(state), final)
    await crashed(str(state), record)
    lose(record)
    final.write_text("x")
    opened = await resumed(str(state))
    assert (opened.done, opened.warnings) == ({"a": (range(1, 3),)}, ())


@pytest.mark.parametrize("where", ["control", "staging"])
async def test_pending_output_into_the_state_s_own_folders_is_voided(
    tmp_path: Path, where: str
) -> None:
    state = tmp_path / "state"
    final = state / where / "base-000009-000000"
    await crashed(str(state), publishing(str(state), final))
    assert (await resumed(str(state))).done == {"a": (range(1, 2),)}
    assert not final.exists()


async def test_pending_output_that_is_gone_is_made_again(tmp_path: Path) -> None:
    state, final = str(tmp_path / "state"), tmp_path / "final"
    record = publishing(state, final)
    await crashed(state, record)
    lose(record)
    opened = await resumed(state)
    assert opened.done == {"a": (range(1, 2),)}
    assert "is gone, staged and final" in opened.warnings[0]
    assert (await resumed(state)).warnings == ()


@pytest.mark.parametrize("all_done", [True, False])
async def test_gone_output_is_consumed_only_if_all_dependents_are_done(
    tmp_path: Path, all_done: bool
) -> None:
    state, final = str(tmp_path / "state"), tmp_path / "final"
    record = publishing(state, final)
    after = done("b", *range(100 if all_done else 99), results=False)
    await crashed(state, record, after)
    lose(record)
    opened = await resumed(state)
    assert opened.done["b"] == after.ranks, "what is done stays"
    assert opened.done["a"] == (range(1, 3 if all_done else 2),)
    assert ("count as consumed" in opened.warnings[0]) is all_done


async def test_gone_output_whose_consumer_runs_again_is_made_again(tmp_path: Path) -> None:
    """Rank 0 of `b` is not done any more: what it read must be there again."""
    state = str(tmp_path / "state")
    first = publishing(state, tmp_path / "first")
    second = publishing(state, tmp_path / "second", rank=0, stage="b")
    others = done("b", *range(1, 100), results=False)
    await crashed(state, first, second, others)
    lose(first, second)
    opened = await resumed(state)
    assert opened.done == {"a": (range(1, 2),), "b": (range(1, 100),)}


async def test_state_that_was_moved_promotes_its_staged_files(tmp_path: Path) -> None:
    old, new = tmp_path / "old" / "state", tmp_path / "new" / "state"
    await crashed(str(old), publishing(str(old), tmp_path / "new" / "final"))
    new.parent.mkdir()
    old.rename(new)
    assert (await resumed(str(new))).done == {"a": (range(1, 3),)}
    assert (tmp_path / "new" / "final").read_text() == "x"


async def test_output_that_can_never_be_promoted_is_voided_at_once(tmp_path: Path) -> None:
    state, final = str(tmp_path / "state"), tmp_path / "final"
    final.mkdir()
    await crashed(state, publishing(state, final))
    opened = await resumed(state)
    assert opened.done == {"a": (range(1, 2),)}
    assert os.strerror(errno.EISDIR) in opened.warnings[0]


async def test_half_made_copies_of_pending_outputs_are_removed(tmp_path: Path) -> None:
    """Nothing else is: not those of outputs that nobody has recorded, nor other files."""
    state, final = str(tmp_path / "state"), tmp_path / "out" / "final"
    record = publishing(state, final)
    await crashed(state, record)
    final.parent.mkdir()
    half = final.parent / temporary_name(*record.outputs[0], 1)
    others = [final.parent / "final.tmp", final.parent / temporary_name("a", "b", 1)]
    for path in (half, *others):
        path.write_text("half")
    await resumed(state)
    assert final.read_text() == "x"
    assert sorted(final.parent.iterdir()) == sorted([final, *others])


async def test_record_of_an_older_attempt_of_a_rank_is_passed_over(tmp_path: Path) -> None:
    state = str(tmp_path / "state")
    older = publishing(state, tmp_path / "older")
    epoch = "000001.000000008"
    staged = Path(older.outputs[0][0].replace(EPOCH, epoch))
    stage_file(staged, "new")
    newer = attrs.evolve(older, epoch=epoch, outputs=[(str(staged), str(tmp_path / "newer"))])
    await crashed(state, older, Completion(stage="a", ranks=older.ranks, state="void"), newer)
    assert (await resumed(state)).done == {"a": (range(1, 3),)}
    assert not (tmp_path / "older").exists()
    assert (tmp_path / "newer").read_text() == "new"


async def test_hashes_of_final_names_survive_compaction_and_not_a_void(tmp_path: Path) -> None:
    state = str(tmp_path / "state")
    hashes = [(1, 7), (2, 8), (2, 2**64 - 1)]
    await run_once(state, attrs.evolve(done("a", 1, 2), targets=hashes))
    for _ in range(2):  # what a resumed driver writes into its base, the next one reads there
        opened = await resumed(state)
        assert {name: sorted(pairs) for name, pairs in opened.targets.items()} == {
            "a": [(1, 7), (2, 8), (2, 2**64 - 1)]
        }
    await run_once(state, Completion(stage="a", ranks=(range(2, 3),), state="void"))
    assert list((await resumed(state)).targets["a"]) == [(1, 7)]


class Keyed(MemoryFileSystem):  # type: ignore[misc]  # fsspec ships no types
    """A memory file system of buckets, which wants a key."""

    protocol = "keyed"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]

    def __init__(self, *args: Any, key: str = "", **options: Any) -> None:
        super().__init__(*args, **options)
        self._key = key

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        stripped: str = super()._strip_protocol(path.replace("keyed://", "memory://"))
        return stripped

    def _check(self) -> None:
        if self._key != "k":
            raise PermissionError("no credentials")

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        self._check()
        return super()._open(path, mode, **options)

    def info(self, path: str, **options: Any) -> Any:
        self._check()
        return super().info(path, **options)

    def cp_file(self, path1: str, path2: str, **options: Any) -> None:
        self._check()
        super().cp_file(path1, path2, **options)


@pytest.fixture
def keyed() -> str:
    """Return the URL of a bucket that wants the option key=k."""
    fsspec.register_implementation("keyed", Keyed, clobber=True)
    return f"keyed://{uuid.uuid4().hex}"


def staged_at(state: str, final: str) -> Completion:
    staged = f"{state}/staging/a/{EPOCH}/2/0"
    fs = Keyed(key="k")
    fs.pipe_file(staged, b"x")
    return attrs.evolve(done("a", 2), epoch=EPOCH, outputs=[(staged, final)])


async def test_options_of_the_state_reach_promotion_at_its_own_endpoint(keyed: str) -> None:
    state, final, options = f"{keyed}/runs/state", f"{keyed}/runs/out/x::y", {"key": "k"}
    record = staged_at(state, final)
    async with FileJournal(state, storage_options=options, params=QUICK) as journal:
        await journal.open(job(), on_mismatch="refuse")
        await journal.commit([record])
    fs = Keyed(key="k")
    assert fs.cat_file(final) == b"x"
    assert not fs.exists(record.outputs[0][0])


async def test_options_of_the_state_go_to_no_other_endpoint(keyed: str) -> None:
    state, options = f"{keyed}/runs/state", {"key": "k"}
    record = staged_at(state, f"keyed://{uuid.uuid4().hex}/x")
    clock = VirtualTime()
    journal = FileJournal(
        state, storage_options=options, params=QUICK, sleep=clock.sleep, monotonic=clock.monotonic
    )
    async with journal:
        await journal.open(job(), on_mismatch="refuse")
        with pytest.raises(Exception, match="PermissionError: no credentials"):
            await journal.commit([record])
    assert clock.slept == [], "a promotion that cannot succeed is said at once"
    opened = await resumed(state, storage_options=options)
    assert opened.done == {}, "the next run is not blocked"


def test_allowed_never_takes_the_root_folder_for_a_place() -> None:
    may = Allowed(Places(state="/state", folder="/", declared=["/data"]))
    assert not may("/etc/passwd")
    assert may("/data/x")
    assert may("/state/out/x")
    assert not may("/state/control/x")


def test_allowed_follows_links_and_compares_components(tmp_path: Path) -> None:
    (tmp_path / "outputs").mkdir()
    (tmp_path / "secret").mkdir()
    (tmp_path / "outputs" / "link").symlink_to(tmp_path / "secret")
    may = Allowed(Places(state="/nowhere/state", folder=str(tmp_path / "outputs")))
    assert may(f"{tmp_path}/outputs/x")
    assert not may(f"{tmp_path}/outputs/link/x")
    assert not may(f"{tmp_path}/outputs/../secret/x")
    assert not may(f"{tmp_path}/workers/x")


@pytest.mark.parametrize(
    ("final", "expected"),
    [
        ("s3://bucket/runs/x", True),
        ("s3a://bucket/runs/x", True),
        ("s3://bucket/x", False),
        ("s3://other/runs/x", False),
        ("s3://bucket/runs/../x", False),
        ("s3://bucket/runs/state/control/x", False),
        ("gs://data/y/x", True),
        ("/etc/passwd", False),
    ],
)
def test_allowed_of_remote_states_goes_by_url_prefix(final: str, expected: bool) -> None:
    may = Allowed(Places(state="s3://bucket/runs/state", folder="/home", declared=["gs://data/y"]))
    assert may(final) is expected
