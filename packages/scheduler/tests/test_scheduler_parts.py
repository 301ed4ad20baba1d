"""The small parts: tables, ranges, pace, suspicion, and the helpers for tests."""

from __future__ import annotations

import math
import pickle
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thornback.scheduler import (
    GangState,
    InvalidTransition,
    InvariantBroken,
    RankState,
    SchedulerParams,
    UsageError,
)
from thornback.scheduler.commands import (
    CloseGang,
    Dispatch,
    FinishRun,
    OpenGang,
    Recall,
    Record,
    RecordState,
    RunState,
    ShapeKey,
)
from thornback.scheduler.events import (
    CancelRequested,
    GangClosed,
    GangLost,
    GangReady,
    JournalFailed,
    NodeDraining,
    RankFailed,
    RanksReturned,
    RanksSucceeded,
    Recorded,
    RunStarted,
    Ticked,
)
from thornback.scheduler.pace import Pace
from thornback.scheduler.ranges import NO_LIMIT, ReadyRanges, normalised, split
from thornback.scheduler.simulate import RunStats, Unfinished
from thornback.scheduler.stages import Stage
from thornback.scheduler.states import (
    GANG_MOVES,
    RANK_MOVES,
    GangMove,
    RankMove,
    after_gang_move,
    after_rank_move,
)
from thornback.scheduler.testing import (
    FakeVerdict,
    Referee,
    ScriptedPolicy,
    check_retry_policy,
    plan,
)

pieces = st.lists(st.builds(lambda a, n: range(a, a + n), st.integers(0, 40), st.integers(0, 8)))


def members(ranks: Iterable[range]) -> set[int]:
    return {rank for piece in ranks for rank in piece}


# -- tables ---------------------------------------------------------------------------------------


def test_a_move_is_in_the_table_or_refused_with_its_story() -> None:
    for state in RankState:
        for move in RankMove:
            if move in RANK_MOVES[state]:
                assert after_rank_move(state, move, "") is RANK_MOVES[state][move]
            else:
                with pytest.raises(InvalidTransition, match=f"{state.name}: rank 7"):
                    after_rank_move(state, move, "rank 7")
    with pytest.raises(InvalidTransition, match="gang 3"):
        after_gang_move(GangState.READY, GangMove.CLOSED, "gang 3")


def test_ends_are_ends_and_every_state_can_be_reached() -> None:
    for state in (RankState.DONE, RankState.FAILED, RankState.SKIPPED):
        assert not RANK_MOVES[state]
    reached = {target for moves in RANK_MOVES.values() for target in moves.values()}
    assert reached == set(RankState) - {RankState.BLOCKED}
    assert list(RANK_MOVES[RankState.RECORDING]) == [RankMove.RECORDED]
    assert set(GANG_MOVES) == set(GangState)


@pytest.mark.parametrize(
    "value",
    [
        InvalidTransition("READY", "closed", "gang 1"),
        InvariantBroken("story"),
        UsageError("what, and what to do"),
        Unfinished("story", RunStats(events=3)),
        ShapeKey(1, 2),
        OpenGang(gang=1, shape=ShapeKey(1), avoid=("a",)),
        CloseGang(gang=1),
        Dispatch(gang=1, assignment=2, stage=0, ranks=(range(3),)),
        Recall(assignment=1, kill=True),
        Record(stage=0, ranks=(range(3),), assignment=None, state=RecordState.SKIPPED),
        FinishRun(state=RunState.CANCELLED, reason="r"),
        RunStarted(done={0: (range(2),)}),
        GangReady(gang=1, nodes=("a",)),
        GangLost(gang=1, fault="f"),
        GangClosed(gang=1),
        RanksSucceeded(assignment=1, ranks=(range(2),)),
        RankFailed(assignment=1, rank=2, fault="f", node="a"),
        RanksReturned(assignment=1, ranks=(range(2),)),
        Recorded(stage=0, ranks=(range(2),)),
        JournalFailed(fault="f"),
        NodeDraining(node="a"),
        CancelRequested(reason="r"),
        Ticked(),
    ],
    ids=lambda value: type(value).__name__,
)
def test_events_commands_and_errors_pickle(value: object) -> None:
    again = pickle.loads(pickle.dumps(value))
    assert type(again) is type(value)
    assert str(again) == str(value)
    assert vars(again) == vars(value) if isinstance(value, Exception) else again == value


def test_ranks_move_together_or_not_at_all() -> None:
    stage = Stage(0, plan(4), SchedulerParams())
    stage.move(range(4), RankState.BLOCKED, RankMove.RELEASED)
    stage.move(range(2), RankState.READY, RankMove.DISPATCHED)
    before = bytes(stage.states), list(stage.in_state)
    with pytest.raises(InvalidTransition, match="READY: ranks range"):
        stage.move(range(2, 4), RankState.READY, RankMove.SUCCEEDED)
    with pytest.raises(InvalidTransition, match="succeeded is not possible in state READY"):
        stage.move(range(4), RankState.RUNNING, RankMove.SUCCEEDED)
    with pytest.raises(UsageError, match=r"given up: range\(0, 4\) of stage 0 is not all in RUN"):
        stage.move(range(4), RankState.RUNNING, RankMove.GIVEN_UP)
    assert (bytes(stage.states), list(stage.in_state)) == before


def test_what_is_asked_of_a_stage_looks_into_ranges_that_are_mixed() -> None:
    stage = Stage(0, plan(10), SchedulerParams())
    stage.move(range(2, 6), RankState.BLOCKED, RankMove.RELEASED)
    stage.move(range(6, 9), RankState.BLOCKED, RankMove.ROOT_FAILED)
    whole = (range(3, 5), range(5, 6))
    assert stage.those_in(RankState.READY, whole) is whole
    assert stage.those_in(RankState.READY, (range(10),)) == (range(2, 6),)
    assert stage.those_in(RankState.SKIPPED, (range(5), range(5, 8))) == (range(6, 8),)
    assert stage.any_in(RankState.READY, (range(2), range(5, 9)))
    assert not stage.any_in(RankState.READY, (range(2), range(6, 9)))
    stage.receipt((range(3), range(5, 8)))
    assert stage.owed == 1, "rank 8 is still owed one"
    stage.receipt((range(7, 10),))
    assert stage.owed == 0
    assert list(stage.runs(range(10))) == [
        (RankState.BLOCKED, range(2)),
        (RankState.READY, range(2, 6)),
        (RankState.SKIPPED, range(6, 9)),
        (RankState.BLOCKED, range(9, 10)),
    ]


# -- ranges ---------------------------------------------------------------------------------------


@given(pieces, pieces)
def test_split_is_set_intersection_and_difference(held: list[range], given: list[range]) -> None:
    taken, left = split(normalised(held), normalised(given))
    assert members(taken) == members(held) & members(given)
    assert members(left) == members(held) - members(given)
    for ranks in (taken, left):
        assert sum(map(len, ranks)) == len(members(ranks))
        assert list(ranks) == sorted(ranks, key=lambda piece: piece.start)


@given(st.lists(st.tuples(st.integers(1, 9), st.sampled_from([1, 2, 5, NO_LIMIT]))), st.data())
def test_the_queue_gives_each_rank_once_and_respects_limits(
    sizes: list[tuple[int, int]], data: st.DataObject
) -> None:
    queue, at = ReadyRanges(), 0
    limits: dict[int, int] = {}
    for size, limit in sizes:
        piece = range(at, at + size)
        limits.update(dict.fromkeys(piece, limit))
        if data.draw(st.booleans()):
            queue.append(piece, limit)
        else:
            queue.give_back([piece], limit)
        at += size + data.draw(st.integers(0, 1))
    taken: list[int] = []
    while queue.count:
        most = data.draw(st.integers(1, 7))
        ranks, least = queue.take(most)
        batch = sorted(members(ranks))
        assert ranks == normalised(ranks), "as an assignment has it"
        assert 0 < len(batch) <= min([most, *(limits[rank] for rank in batch)])
        assert least == min(limits[rank] for rank in batch)
        taken += batch
    assert sorted(taken) == sorted(limits)
    assert queue.take(3) == ((), NO_LIMIT)


def test_what_is_given_back_joins_only_ranks_with_its_own_limit() -> None:
    queue = ReadyRanges()
    queue.append(range(6, 9))
    queue.give_back([range(2, 4), range(4, 6)], 2)
    assert queue.pieces() == [(2, 6, 2), (6, 9, NO_LIMIT)]
    queue.give_back([range(1, 2)], NO_LIMIT)
    assert queue.pieces() == [(1, 2, NO_LIMIT), (2, 6, 2), (6, 9, NO_LIMIT)]


def test_empty_ranges_are_left_out() -> None:
    assert normalised([range(3, 3), range(7, 9), range(1, 2)]) == (range(1, 2), range(7, 9))
    assert normalised((range(3, 3),)) == ()


@pytest.mark.parametrize("ranks", [(range(0, 9, 2),), (range(1), range(4, 2, -1))])
def test_ranges_with_gaps_are_refused(ranks: tuple[range, ...]) -> None:
    """They would count for the ranks between, of which nobody has said anything."""
    with pytest.raises(UsageError, match="step 1"):
        normalised(ranks)


def test_neighbours_merge_so_that_trickling_work_costs_no_memory() -> None:
    queue = ReadyRanges()
    for rank in range(1000):
        queue.append(range(rank, rank + 1))
    assert queue.pieces() == [(0, 1000, NO_LIMIT)]


# -- pace and suspicion ---------------------------------------------------------------------------


def test_pace_grows_by_doubling_and_falls_at_once() -> None:
    pace = Pace(SchedulerParams())
    assert pace.size(1000, 1) == 1
    sizes = []
    for _ in range(5):
        size = pace.size(10_000, 1)
        sizes.append(size)
        pace.learn(size * 0.001, size, size)
    assert sizes == [1, 2, 4, 8, 16]
    assert pace.size(10, 1) == 5
    assert pace.size(10, 10) == 1
    pace.learn(3600.0, 1, 0)
    assert pace.size(10_000, 1) == 1


@pytest.mark.parametrize("busy_s", [math.inf, -math.inf, math.nan])
def test_seconds_that_are_no_number_teach_nothing(busy_s: float) -> None:
    pace = Pace(SchedulerParams())
    pace.learn(busy_s, 1, 1)
    assert pace.size(1000, 1) == 1
    pace.learn(0.25, 1, 1)
    pace.learn(busy_s, 1, 1)
    assert pace.size(1000, 1) == 2
    pace.learn(0.25, 1, 1)
    assert pace.mean_s == 0.25


def test_a_small_last_share_does_not_make_the_next_batches_small() -> None:
    pace = Pace(SchedulerParams())
    for size in (1, 2, 4, 8):
        pace.learn(size * 0.01, size, size)
    assert pace.size(10_000, 1) == 16
    pace.learn(0.02, 2, 2)
    assert pace.size(10_000, 1) == 16, "two were all there were, not all that may be tried"
    pace.learn(0.01, 1, 0)
    assert pace.size(10_000, 1) == 16, "that assignment has not ended"


# -- helpers --------------------------------------------------------------------------------------


def test_the_referee_sees_breaches() -> None:
    referee: Referee[str] = Referee()
    referee.heard([OpenGang(gang=0, shape=ShapeKey(0))])
    dispatch = Dispatch(gang=0, assignment=0, stage=0, ranks=(range(2),))
    with pytest.raises(AssertionError, match="the gang is opening"):
        referee.heard([dispatch])
    referee.tell(GangReady(gang=0, nodes=("a",)))
    referee.heard([dispatch])
    with pytest.raises(AssertionError, match="outstanding"):
        referee.heard([Dispatch(gang=0, assignment=1, stage=0, ranks=(range(1, 2),))])
    with pytest.raises(AssertionError, match="it holds"):
        referee.heard([CloseGang(gang=0)])
    with pytest.raises(AssertionError, match="with gangs"):
        referee.heard([FinishRun(state=RunState.SUCCEEDED)])


def test_check_retry_policy_passes_a_pure_policy_and_not_a_moody_one() -> None:
    check_retry_policy(ScriptedPolicy({"f": FakeVerdict()}, budget=2), ["f"])

    class Moody:
        def __init__(self) -> None:
            self.calls = 0

        def decide(
            self, fault: str, history: object, standing: object, draw: float, /
        ) -> FakeVerdict:
            self.calls += 1
            return FakeVerdict(delay_s=self.calls)

    with pytest.raises(AssertionError, match="delay_s varies"):
        check_retry_policy(Moody(), ["f"])
