"""An executor with a journal of one's own, and with a state whose file system wants options."""

from __future__ import annotations

import pickle
import uuid
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from thornback.executor import Executor, Job, JournalError, RankContext, Stage
from thornback.executor.journal.testing import FakeJournal, FakeState
from thornback.executor.ports import Journal


def numbers() -> Callable[[RankContext], int]:
    def number(ctx: RankContext) -> int:
        print("rank", ctx.rank)
        return ctx.rank * ctx.rank

    return number


JOB = Job("j", [Stage("a", numbers(), ranks=3)])


class InMemory:
    """A factory whose results can be read after the run."""

    def __init__(self) -> None:
        self.state = FakeState()

    def __call__(self) -> AbstractAsyncContextManager[Journal]:
        return FakeJournal(self.state)

    def read_results(self, stage: str, /) -> Mapping[int, str]:
        found = [r.results for r in self.state.records if r.stage == stage]
        return {rank: results[rank] for results in found for rank in results}


def test_a_run_with_a_journal_of_one_s_own_records_and_resumes_there(tmp_path: Path) -> None:
    journal = InMemory()
    executor = Executor.on_local(state=str(tmp_path), cpus=2, journal=journal)
    first = executor.run(JOB)
    assert first.results("a") == {0: 0, 1: 1, 2: 4}
    assert (first.term, executor.run(JOB).term) == (1, 2)
    assert journal.state.holder is None  # closed
    assert not (tmp_path / "control").exists()
    assert (tmp_path / "logs" / "000001").is_dir()
    assert not (tmp_path / "logs" / "000002").exists()  # everything was done


def test_results_in_a_journal_that_cannot_be_read_later_are_said_to_be_there(
    tmp_path: Path,
) -> None:
    state = FakeState()
    executor = Executor.on_local(state=str(tmp_path), cpus=2, journal=lambda: FakeJournal(state))
    report = pickle.loads(pickle.dumps(executor.run(JOB)))
    with pytest.raises(JournalError, match=r"journal of your own.*read_results\(stage\)"):
        report.results("a")
    with pytest.raises(KeyError):
        report.results("b")


class Locked(MemoryFileSystem):  # type: ignore[misc]  # fsspec ships no types
    """A memory file system that wants a key."""

    protocol = "wantskey"

    def __init__(self, *args: Any, key: str = "", **options: Any) -> None:
        super().__init__(*args, **options)
        if key != "k":
            raise ValueError("who are you?")


def test_a_state_that_wants_options_gets_them_everywhere() -> None:
    fsspec.register_implementation("wantskey", Locked, clobber=True)
    url, options = f"wantskey://{uuid.uuid4().hex}", {"key": "k"}
    with pytest.raises(JournalError, match="who are you"):
        Executor.on_local(state=url, cpus=2).run(JOB)
    report = Executor.on_local(state=url, cpus=2, storage_options=options).run(JOB)
    assert report.results("a") == {0: 0, 1: 1, 2: 4}
    assert report.logs_lost_bytes == 0
    fs, path = fsspec.url_to_fs(report.logs_url, **options)
    logs = b"".join(fs.cat_file(name) for name in fs.find(path))
    assert sorted(logs.split()) == [b"0", b"1", b"2", b"rank", b"rank", b"rank"]
