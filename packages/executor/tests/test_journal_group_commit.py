"""Commits share flushes, one at a time; nobody is left waiting."""

from __future__ import annotations

from collections.abc import Sequence

import anyio
import anyio.lowlevel
import pytest

from thornback.executor.journal.errors import JournalError, Superseded
from thornback.executor.journal.group_commit import Entry, GroupCommit

pytestmark = pytest.mark.anyio


class Disk:
    """Takes flushes; each goes on when it is let."""

    def __init__(self) -> None:
        self.flushed: list[list[bytes]] = []
        self.let = anyio.Semaphore(0)
        self.error: Exception | None = None
        self.settled = 0
        self.busy = False

    async def flush(self, batch: Sequence[Entry]) -> None:
        assert not self.busy
        self.busy = True
        await self.let.acquire()
        if self.error is not None:
            raise self.error
        self.flushed.append([line for entry in batch for line in entry.lines])
        self.busy = False

    async def settle(self) -> None:
        await anyio.lowlevel.checkpoint()
        self.settled += 1

    def group(self, *, min_interval_s: float = 0, max_bytes: int = 100) -> GroupCommit:
        return GroupCommit(
            self.flush, self.settle, min_interval_s=min_interval_s, max_bytes=max_bytes
        )


async def let_all_run() -> None:
    """Give every task its turns: none of them waits for anything outside."""
    for _ in range(20):
        await anyio.lowlevel.checkpoint()


def entry(name: str, size_bytes: int = 1) -> Entry:
    return Entry(lines=[name.encode()], size_bytes=size_bytes)


async def test_what_comes_during_a_flush_goes_into_the_next() -> None:
    disk = Disk()
    group = disk.group()
    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(group.run)
            for name in "abcd":
                tasks.start_soon(group.commit, entry(name))
                await let_all_run()
            disk.let.release()
            disk.let.release()
            group.close()
    assert [sorted(lines) for lines in disk.flushed] == [[b"a"], [b"b", b"c", b"d"]]
    assert disk.settled == 2


async def test_a_flush_has_a_size() -> None:
    disk = Disk()
    group = disk.group(max_bytes=10)
    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            for name, size in (("a", 4), ("b", 6), ("c", 1), ("d", 99), ("e", 1)):
                tasks.start_soon(group.commit, entry(name, size))
                await let_all_run()
                disk.let.release()
            tasks.start_soon(group.run)
            await let_all_run()
            group.close()
    assert disk.flushed == [[b"a", b"b"], [b"c"], [b"d"], [b"e"]]


async def test_closing_ends_the_pause_between_flushes() -> None:
    disk = Disk()
    group = disk.group(min_interval_s=3600)
    disk.let.release()
    disk.let.release()
    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(group.run)
            await group.commit(entry("a"))
            tasks.start_soon(group.commit, entry("b"))
            await let_all_run()
            assert disk.flushed == [[b"a"]]
            group.close()
    assert disk.flushed == [[b"a"], [b"b"]]
    assert group.finished.is_set()
    with pytest.raises(JournalError, match="closed"):
        await group.commit(entry("c"))


async def test_an_error_reaches_all_that_wait_and_all_that_come() -> None:
    disk = Disk()
    group = disk.group()
    disk.error = Superseded("u", 1, 2)
    caught: list[Superseded] = []

    async def commit(name: str) -> None:
        try:
            await group.commit(entry(name))
        except Superseded as error:
            caught.append(error)

    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(group.run)
            for name in "abc":
                tasks.start_soon(commit, name)
            await let_all_run()
            disk.let.release()
    await commit("late")
    assert len(caught) == 4
    assert len({id(error) for error in caught}) == 4  # tracebacks do not pile up on one
    assert disk.flushed == []


async def test_cancelled_it_leaves_nobody_waiting() -> None:
    disk = Disk()
    group = disk.group()
    caught: list[JournalError] = []

    async def commit(name: str) -> None:
        try:
            await group.commit(entry(name))
        except JournalError as error:
            caught.append(error)

    with anyio.fail_after(20):
        async with anyio.create_task_group() as waiters, anyio.create_task_group() as tasks:
            tasks.start_soon(group.run)
            waiters.start_soon(commit, "a")
            await let_all_run()
            waiters.start_soon(commit, "b")
            await let_all_run()
            tasks.cancel_scope.cancel()
    await commit("late")
    assert len(caught) == 3


async def test_a_bug_is_not_taken_for_a_store_error() -> None:
    disk = Disk()
    group = disk.group()
    disk.error = KeyError("bug")
    disk.let.release()

    async def commit() -> None:
        with pytest.raises(JournalError):
            await group.commit(entry("a"))

    async def both() -> None:
        async with anyio.create_task_group() as waiters:
            waiters.start_soon(commit)
            await group.run()

    with anyio.fail_after(20), pytest.raises(ExceptionGroup) as caught:
        await both()
    assert caught.group_contains(KeyError)
