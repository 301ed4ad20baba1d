"""Results that wait for the ranks after theirs: none is lost, whatever the room; and what cannot be
kept is never taken for nothing."""

from __future__ import annotations

import resource
import sqlite3
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
            found = waiting.get(each, (range(0, 5), range(5, 12)))
            assert found == {rank: text for (of, rank), text in model.items() if of == each}
    waiting.close()
    assert waiting.get(0, (RANKS,)) == {}


def test_memory_stays_within_its_bound_and_room_is_used_again() -> None:
    waiting = WaitingTexts(1 << 20)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    text = "x" * 10_000
    for turn in range(3):
        for start in range(0, 10_000, 100):
            waiting.put(0, dict.fromkeys(range(start, start + 100), f"{turn}{text}"))
        assert waiting.get(0, one(9_999)) == {9_999: f"{turn}{text}"}
        waiting.drop(0, (range(10_000),))
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 60_000, "KiB; the texts are 100 MB"
    waiting.close()


def test_what_finds_no_room_is_refused_with_the_mend_and_the_rest_is_given() -> None:
    waiting = WaitingTexts(1_000, max_file_bytes=20_000)
    waiting.put(1, {0: "first"})
    waiting.put(1, dict.fromkeys(range(1, 9), "x" * 5000))
    assert waiting.get(1, one(0)) == {0: "first"}
    with pytest.raises(NotKept, match=r"TMPDIR.*results=False.*run again to go on.*full"):
        waiting.get(1, one(3))
    waiting.drop(1, (range(0, 9),))
    assert waiting.get(2, one(3)) == {}, "another queue never had anything there"
    waiting.close()


def test_a_python_without_sqlite_refuses_only_what_memory_has_no_room_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "sqlite3", None)
    waiting = WaitingTexts(300)
    waiting.put(0, {0: "first", 1: "second"})
    assert waiting.get(0, one(0)) == {0: "first"}
    with pytest.raises(NotKept, match="sqlite3"):
        waiting.get(0, (range(2),))
    waiting.close()


def test_a_file_that_cannot_be_made_is_let_go_of(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[sqlite3.Connection] = []
    connect = sqlite3.connect

    def noted(name: str) -> sqlite3.Connection:
        made.append(connect(name))
        return made[-1]

    monkeypatch.setattr(sqlite3, "connect", noted)
    waiting = WaitingTexts(0, max_file_bytes=0)
    waiting.put(0, {0: "first"})
    with pytest.raises(NotKept, match="full"):
        waiting.get(0, one(0))
    (file,) = made
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        file.execute("SELECT 1")
