"""`Results`: a mapping by rank, aligned with the ranks, decoded when it is read."""

from __future__ import annotations

import copy
import json
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thornback.executor.doneranks import DoneRanks
from thornback.executor.ports import Completion
from thornback.executor.results import MISSING, Results, packed


def results(texts: dict[int, str], done: tuple[range, ...], size: int) -> Results:
    return Results(packed(texts, done, size))


def test_results_are_aligned_and_tell_none_from_missing() -> None:
    found = results({0: '"x"', 3: "[1]"}, (range(0, 2), range(3, 4)), 5)
    assert [*found.values()] == ["x", None, MISSING, [1], MISSING]
    assert [*found] == [0, 1, 2, 3, 4]
    assert len(found) == 5
    assert found == {0: "x", 1: None, 2: MISSING, 3: [1], 4: MISSING}
    assert found.get(7, "no such rank") == "no such rank"
    assert repr(found) == "Results({0: 'x', 1: None, 2: MISSING, 3: [1], 4: MISSING})"
    many = results({0: json.dumps("x" * 1000)}, (), 1_000_000)
    assert len(repr(many)) < 300
    assert repr(many).endswith("9: MISSING, ... 999990 more})")


@pytest.mark.parametrize("rank", [-1, 2, "0", None, 0.0, [0]])
def test_results_of_no_rank_raise_key_error(rank: object) -> None:
    found = results({0: "1"}, (), 2)
    assert rank not in found
    with pytest.raises(KeyError):
        found[rank]  # type: ignore[index]


def test_results_give_a_new_value_at_each_reading() -> None:
    found = results({0: "[1]"}, (), 1)
    found[0].append(2)
    assert found[0] == [1]


@pytest.mark.parametrize("again", [lambda x: pickle.loads(pickle.dumps(x)), copy.deepcopy])
def test_results_and_missing_can_be_sent(again: object) -> None:
    found = results({0: "1"}, (), 2)
    assert callable(again)
    assert again(found) == found
    assert again(found)[1] is MISSING
    assert again(MISSING) is MISSING
    assert (bool(MISSING), repr(MISSING)) == (False, "MISSING")


def test_results_beyond_the_world_size_are_left_out() -> None:
    assert results({0: "1", 5: "2"}, (range(0, 9),), 2) == {0: 1, 1: None}


@given(st.dictionaries(st.integers(0, 40), st.text()), st.sets(st.integers(0, 40)))
def test_packed_is_read_as_it_was(values: dict[int, str], done: set[int]) -> None:
    texts = {rank: json.dumps(value, ensure_ascii=False) for rank, value in values.items()}
    found = results(texts, tuple(range(rank, rank + 1) for rank in sorted(done)), 41)
    for rank in range(41):
        assert found[rank] == values.get(rank, None if rank in done else MISSING)


def test_done_ranks_are_those_of_earlier_runs_and_of_this_one() -> None:
    done = DoneRanks({"a": 9, "b": 2}, {"a": (range(0, 2),), "gone": (range(5),)})
    done.note(
        [
            Completion(stage="a", ranks=(range(1, 4), range(7, 12)), state="done"),
            Completion(stage="a", ranks=(range(5, 6),), state="failed"),
            Completion(stage="gone", ranks=(range(1),), state="done"),
        ]
    )
    assert done.of("a") == (range(0, 4), range(7, 9))
    assert done.of("b") == ()
