"""Results that wait for the ranks after theirs: none is lost, whatever the room; and what cannot be
kept is never taken for nothing."""

from __future__ import annotations

import resource
import sqlite3
import sys
import threading
from collections.abc import Sequence

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from packages.executor.tests.disks import GatedRows
from thornback.executor.textfile import Row
from thornback.executor.waiting import NotKept, WaitingTexts

RANKS = range(12)
steps = st.lists(
    st.tuples(
        st.sampled_from(["put", "drop"]),
        st.integers(0, 2),
        st.lists(st.sampled_from(RANKS), max_size=5, unique=True),
    ),
    max_size=15,
)


def one(rank: int) -> tuple[range, ...]:
    return (range(rank, rank + 1),)


@given(steps, st.sampled_from([0, 600, 2000, 1 << 30]))
def test_whatever_fits_into_memory_everything_is_kept_until_it_is_dropped(
    steps: list[tuple[str, int, list[int]]], max_bytes: int
) -> None:
    async def main() -> None:
        waiting, model = WaitingTexts(max_bytes), dict[tuple[int, int], str]()
        for number, (what, queue, ranks) in enumerate(steps):
            if what == "put":
                texts = {rank: f'"{number}é{rank}"' for rank in ranks}
                waiting.put(queue, texts)
                model |= {(queue, rank): text for rank, text in texts.items()}
            else:
                for rank in ranks:
                    waiting.drop(queue, one(rank))
                    model.pop((queue, rank), None)
            for each in range(3):
                found = await waiting.get(each, (range(0, 5), range(5, 12)))
                assert found == {rank: text for (of, rank), text in model.items() if of == each}
        waiting.close()
        assert await waiting.get(0, (RANKS,)) == {}

    anyio.run(main)


@pytest.mark.anyio
async def test_memory_stays_within_its_bound_and_room_is_used_again() -> None:
    waiting = WaitingTexts(1 << 20, max_on_way_bytes=4 << 20)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    text = "x" * 10_000
    for turn in range(3):
        for start in range(0, 10_000, 100):
            await waiting.room()
            waiting.put(0, dict.fromkeys(range(start, start + 100), f"{turn}{text}"))
        assert await waiting.get(0, one(9_999)) == {9_999: f"{turn}{text}"}
        waiting.drop(0, (range(10_000),))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 60_000, "KiB; the texts are 100 MB"
    waiting.close()


@pytest.mark.anyio
async def test_what_finds_no_room_is_refused_with_the_mend_and_the_rest_is_given() -> None:
    waiting = WaitingTexts(1_000, max_file_bytes=20_000)
    waiting.put(1, {0: "first"})
    waiting.put(1, dict.fromkeys(range(1, 9), "x" * 5000))
    assert await waiting.get(1, one(0)) == {0: "first"}
    with pytest.raises(NotKept, match=r"TMPDIR.*results=False.*run again to go on.*full"):
        await waiting.get(1, one(3))
    waiting.drop(1, (range(0, 9),))
    assert await waiting.get(2, one(3)) == {}, "another queue never had anything there"
    waiting.close()


@pytest.mark.anyio
async def test_a_python_without_sqlite_refuses_only_what_memory_has_no_room_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "sqlite3", None)
    waiting = WaitingTexts(300)
    waiting.put(0, {0: "first", 1: "second"})
    assert await waiting.get(0, one(0)) == {0: "first"}
    with pytest.raises(NotKept, match="sqlite3"):
        await waiting.get(0, (range(2),))
    waiting.close()


@pytest.mark.anyio
async def test_a_file_that_cannot_be_made_is_let_go_of(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[sqlite3.Connection] = []
    connect = sqlite3.connect

    def noted(name: str) -> sqlite3.Connection:
        made.append(connect(name, check_same_thread=False))
        return made[-1]

    monkeypatch.setattr(sqlite3, "connect", noted)
    waiting = WaitingTexts(0, max_file_bytes=0)
    waiting.put(0, {0: "first"})
    with pytest.raises(NotKept, match="full"):
        await waiting.get(0, one(0))
    (file,) = made
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        file.execute("SELECT 1")
    waiting.close()


# -- a disk that hangs -----------------------------------------------------------------------------

TEXT = "x" * 1000


def hanging(disk: GatedRows, *, timeout_s: float = 20.0) -> WaitingTexts:
    """Return one that has room for one text in memory, and for one on its way."""
    return WaitingTexts(1_500, max_on_way_bytes=1_500, timeout_s=timeout_s, open_rows=lambda: disk)


@pytest.mark.anyio
async def test_while_a_write_hangs_memory_answers_and_what_comes_after_it_has_its_order() -> None:
    disk = GatedRows()
    waiting = hanging(disk)
    waiting.put(0, {0: TEXT, 1: TEXT, 2: "first"})
    waiting.drop(0, one(2))
    waiting.put(0, {1: "second", 3: TEXT})
    waiting.put(0, {3: TEXT[:-1]})
    waiting.drop(0, one(4))
    assert await waiting.get(0, one(0)) == {0: TEXT}
    assert disk.calls == []
    found: dict[int, str] = {}

    async def get() -> None:
        found.update(await waiting.get(0, (range(1, 5),)))

    async with anyio.create_task_group() as group:
        group.start_soon(get)
        await anyio.wait_all_tasks_blocked()
        waiting.drop(0, one(3))  # asked for before
        disk.let.set()
    assert found == {1: "second", 3: TEXT[:-1]}
    assert await waiting.get(0, (range(5),)) == {0: TEXT, 1: "second"}
    waiting.close()


@pytest.mark.anyio
async def test_what_hangs_for_too_long_is_missed_and_its_memory_is_given_back() -> None:
    disk = GatedRows()
    waiting = hanging(disk, timeout_s=0.05)
    waiting.put(0, {0: TEXT, 1: TEXT})
    assert disk.hangs.wait(20)
    with pytest.raises(NotKept, match=r"TMPDIR.*no answer for 0.05 s"):
        await waiting.get(0, (range(3),))
    waiting.put(0, {2: TEXT})
    for ranks in (one(1), one(2)):
        with pytest.raises(NotKept):
            await waiting.get(0, ranks)
    assert await waiting.get(0, (range(1), range(3, 9))) == {0: TEXT}, "nothing else is missed"
    await waiting.room()
    assert not disk.closed.is_set()
    disk.let.set()
    assert disk.closed.wait(20)
    assert disk.calls == ["write", "close"]
    waiting.close()


@pytest.mark.anyio
async def test_what_came_later_and_found_room_is_not_missed_when_the_disk_hangs() -> None:
    disk = GatedRows()
    waiting = hanging(disk)
    waiting.put(0, {0: TEXT, 1: TEXT})
    waiting.drop(0, one(0))
    waiting.put(0, {1: "second"})
    assert await waiting.get(0, (range(2),)) == {1: "second"}
    disk.let.set()
    waiting.close()


class Full(GatedRows):
    """A disk that has no room."""

    def write(self, rows: Sequence[Row], /) -> None:
        raise OSError("no space left")


@pytest.mark.anyio
async def test_a_file_that_fails_is_given_back_at_once() -> None:
    disk = Full()
    waiting = hanging(disk)
    waiting.put(0, {0: TEXT, 1: TEXT})
    with pytest.raises(NotKept, match="OSError: no space left"):
        await waiting.get(0, one(1))
    assert disk.closed.is_set()
    waiting.put(0, {2: TEXT})
    waiting.close()
    assert disk.calls == ["close"]


@pytest.mark.anyio
async def test_more_is_put_only_when_little_enough_is_on_its_way() -> None:
    disk = GatedRows()
    waiting = hanging(disk)
    put: list[int] = []

    async def put_one(rank: int) -> None:
        await waiting.room()
        waiting.put(0, {rank: TEXT})
        put.append(rank)

    for rank in range(3):
        await put_one(rank)  # one is kept, one on its way, one too many
    async with anyio.create_task_group() as group:
        for rank in range(3, 9):
            group.start_soon(put_one, rank)
        await anyio.wait_all_tasks_blocked()
        assert put == [0, 1, 2]
        disk.let.set()
    assert sorted(put) == list(range(9))
    assert sorted(await waiting.get(0, (RANKS,))) == list(range(9))
    waiting.close()


@pytest.mark.anyio
async def test_a_disk_that_hangs_ends_the_wait_for_room() -> None:
    disk = GatedRows()
    waiting = hanging(disk, timeout_s=0.05)
    waiting.put(0, dict.fromkeys(range(9), TEXT))
    assert disk.hangs.wait(20)
    with anyio.fail_after(20):
        await waiting.room()
    with pytest.raises(NotKept, match="no answer"):
        await waiting.get(0, one(1))
    disk.let.set()
    assert disk.closed.wait(20)


@pytest.mark.anyio
async def test_it_is_closed_while_a_write_hangs_and_nothing_more_is_written() -> None:
    disk = GatedRows()
    waiting = hanging(disk)
    waiting.put(0, {0: TEXT, 1: TEXT})
    waiting.put(0, {2: TEXT, 3: TEXT})

    async def get() -> None:
        with pytest.raises(NotKept, match="it is closed"):
            await waiting.get(0, one(1))

    with anyio.fail_after(20):
        async with anyio.create_task_group() as group:
            group.start_soon(get)
            group.start_soon(waiting.room)
            await anyio.wait_all_tasks_blocked()
            assert disk.hangs.wait(20)
            waiting.close()
            waiting.close()
    assert await waiting.get(0, (RANKS,)) == {}
    waiting.put(0, {7: TEXT})  # late: a no-op at last
    disk.let.set()
    assert disk.closed.wait(20)
    assert disk.calls == ["write", "close"]


@pytest.mark.anyio
async def test_who_stops_waiting_for_the_disk_leaves_it_to_the_others() -> None:
    disk = GatedRows()
    waiting = hanging(disk)
    waiting.put(0, {0: TEXT, 1: TEXT})
    with anyio.move_on_after(0.01) as scope:
        await waiting.get(0, one(1))
    assert scope.cancelled_caught
    disk.let.set()
    assert await waiting.get(0, one(1)) == {1: TEXT}
    waiting.close()
    assert disk.closed.wait(20)


@pytest.mark.anyio
async def test_no_more_threads_is_no_more_room(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    waiting = hanging(GatedRows())
    with monkeypatch.context() as full:
        full.setattr(threading.Thread, "start", refuse)
        waiting.put(0, {0: TEXT, 1: TEXT})
    assert await waiting.get(0, one(0)) == {0: TEXT}
    with pytest.raises(NotKept, match="can't start new thread"):
        await waiting.get(0, one(1))
    waiting.close()
