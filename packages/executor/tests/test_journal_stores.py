"""What `FileJournal` does when its store fails, refuses, or does not answer."""

from __future__ import annotations

import errno
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import anyio
import anyio.lowlevel
import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from packages.executor.tests.journals import (
    QUICK,
    VirtualTime,
    assert_closed,
    journal_at,
)
from thornback.executor.journal.filejournal import (
    FileJournal,
    JournalError,
    JournalParams,
    read_run,
)
from thornback.executor.journal.steps import call, run_blocking
from thornback.executor.journal.store import open_store
from thornback.executor.journal.testing import done, job

pytestmark = pytest.mark.anyio


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


@pytest.mark.parametrize(
    ("error", "tries"),
    [
        (PermissionError(errno.EACCES, "not yours"), 1),
        (NotADirectoryError(errno.ENOTDIR, "a file"), 1),
        (OSError(errno.EROFS, "read-only", "/mnt/control/base"), 1),
        (OSError(errno.EIO, "bad block", "/mnt/control/base"), 1),
        (OSError(errno.EIO, "503 slow down"), 3),  # as s3fs puts it
        (OSError(errno.ENOSPC, "full", "/mnt/control/base"), 3),
        (ConnectionResetError("gone"), 3),
    ],
    ids=repr,
)
async def test_open_retries_a_failed_put_only_where_that_may_help(
    faulty: type[Faulty], error: Exception, tries: int
) -> None:
    url, time, tried = f"faulty://{uuid.uuid4().hex}", VirtualTime(), []

    def before(what: str, path: str) -> None:
        if what == "put" and "base-" in path:
            tried.append(path)
            if len(tried) < 3:
                raise error

    faulty.before = staticmethod(before)
    async with journal_at(url, time) as journal:
        if tries == 1:
            with pytest.raises(JournalError, match="cannot write control/base-000001-000000"):
                await journal.open(job(), on_mismatch="refuse")
        else:
            await journal.open(job(), on_mismatch="refuse")
    assert len(tried) == tries


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
