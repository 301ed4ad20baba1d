"""Hashes of final names, kept in few bytes."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thornback.executor.journal.targets import Holders, Targets

WORDS = st.integers(0, 2**64 - 1)
PAIRS = st.lists(st.tuples(st.integers(0, 2**62 - 1), WORDS))


@given(PAIRS)
def test_targets_come_back_from_json(pairs: list[tuple[int, int]]) -> None:
    targets = Targets(pairs)
    assert list(Targets.from_json(json.loads(json.dumps(targets.as_json())))) == pairs
    assert [pair for part in targets.batched(2) for pair in part] == pairs


@given(PAIRS, PAIRS, st.integers(0, 2**62))
def test_targets_are_joined_and_cut(
    pairs: list[tuple[int, int]], more: list[tuple[int, int]], size: int
) -> None:
    both = Targets(pairs).joined(Targets(more))
    assert list(both) == pairs + more
    assert list(both.below(size)) == [pair for pair in pairs + more if pair[0] < size]


@pytest.mark.parametrize(
    "found",
    [
        None,
        [],
        [[1], ""],
        [[1], "0" * 15],
        [[1], "z" * 16],
        [[1], " " * 16],
        [[-1], "0" * 16],
        [["1"], "0" * 16],
        [[1.5], "0" * 16],
        [[2**64], "0" * 16],
        [[1], "0" * 32],
        {"1": "0" * 16},
    ],
)
def test_targets_of_hostile_json_are_refused(found: object) -> None:
    with pytest.raises(ValueError, match=r"hash|hexadecimal|rank"):
        Targets.from_json(found)


@given(st.lists(st.tuples(st.integers(0, 2**64 - 1) | st.integers(0, 3), WORDS)))
def test_holders_keep_the_first_number_of_each_hash(pairs: list[tuple[int, int]]) -> None:
    holders, plain = Holders(), dict[int, int]()
    for key, number in pairs:
        holders.set(key, number)
        plain.setdefault(key, number)
    assert {key: holders.get(key) for key in plain} == plain
    assert holders.get(2**64 - 59) == plain.get(2**64 - 59)
