"""The newest checkpoint of each unsettled rank is kept, within bounds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thornback.executor.checkpoints import CheckpointKeeper
from thornback.pool import Checkpoint


def saved(rank: int, version: int, data: bytes = b"x") -> Checkpoint:
    return Checkpoint(rank=rank, version=version, data=data)


def only(rank: int) -> tuple[range]:
    return (range(rank, rank + 1),)


def test_the_newest_is_handed_out_in_order_of_rank() -> None:
    keeper = CheckpointKeeper()
    keeper.keep(0, 7, saved(3, 1, b"old"))
    keeper.keep(0, 7, saved(3, 2, b"new"))
    keeper.keep(1, 8, saved(3, 1, b"other stage"))
    assert keeper.of(0, (range(2, 5), range(9, 10))) == (None, b"new", None, None)
    assert keeper.of(0, (range(4, 9),)) == ()


def test_what_comes_late_or_twice_replaces_nothing() -> None:
    keeper = CheckpointKeeper()
    keeper.keep(0, 8, saved(3, 2, b"new"))
    keeper.keep(0, 8, saved(3, 2, b"again"))
    keeper.keep(0, 8, saved(3, 1, b"late"))
    keeper.keep(0, 7, saved(3, 9, b"of the attempt before"))
    assert keeper.of(0, only(3)) == (b"new",)
    keeper.keep(0, 9, saved(3, 1, b"of the next"))
    assert keeper.of(0, only(3)) == (b"of the next",)


def test_settled_ranks_are_forgotten() -> None:
    keeper = CheckpointKeeper()
    keeper.keep(0, 7, saved(3, 1))
    keeper.keep(1, 7, saved(3, 1))
    keeper.drop(0, (range(1_000_000),))
    assert keeper.of(0, only(3)) == ()
    assert keeper.of(1, only(3)) == (b"x",)


def test_beyond_the_bound_the_oldest_go_with_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    keeper = CheckpointKeeper(max_bytes=3000)
    for rank in range(4):
        keeper.keep(0, rank, saved(rank, 1, b"x" * 500))
    keeper.keep(0, 1, saved(1, 2, b"y" * 500))  # saved again: it is among the newest now
    keeper.keep(0, 4, saved(4, 1, b"x" * 500))
    held = [rank for rank in range(5) if keeper.of(0, only(rank))]
    assert held == [1, 3, 4]
    assert keeper.dropped == 2
    assert caplog.text.count("the oldest are dropped") == 1


def test_one_that_is_larger_than_all_room_is_not_kept() -> None:
    keeper = CheckpointKeeper(max_bytes=1000)
    keeper.keep(0, 1, saved(0, 1, b"x" * 2000))
    assert keeper.of(0, only(0)) == ()
    keeper.keep(0, 2, saved(1, 1))
    assert keeper.of(0, only(1)) == (b"x",)


_STEPS = st.lists(
    st.tuples(
        st.sampled_from(["keep", "keep", "keep", "drop"]),
        st.integers(0, 1),  # stage
        st.integers(0, 4),  # rank
        st.integers(1, 4),  # assignment
        st.integers(1, 4),  # version
        st.binary(max_size=40),
    ),
    max_size=40,
)


@given(steps=_STEPS, room=st.sampled_from([600, 1500, 1 << 20]))
def test_any_history_leaves_the_newest_or_within_bounds_nothing(
    steps: list[tuple[str, int, int, int, int, bytes]], room: int
) -> None:
    keeper = CheckpointKeeper(max_bytes=room)
    model: dict[tuple[int, int], tuple[int, int, bytes]] = {}
    for what, stage, rank, assignment, version, data in steps:
        held = keeper.of(stage, only(rank))
        if what == "drop":
            keeper.drop(stage, only(rank))
            model.pop((stage, rank), None)
            continue
        keeper.keep(stage, assignment, saved(rank, version, data))
        key = stage, rank
        if not held:  # it may have been dropped for want of room: the model forgets it, too
            model.pop(key, None)
        if key not in model or (assignment, version) > model[key][:2]:
            model[key] = assignment, version, data
        assert keeper.of(stage, only(rank)) == (model[key][2],)
    total = 0
    for (stage, rank), (_, _, data) in model.items():
        held = keeper.of(stage, only(rank))
        assert held in ((), (data,))
        assert held or keeper.dropped
        total += len(data) if held else 0
    assert total <= room
    if room == 1 << 20:
        assert not keeper.dropped
