"""Stages joined rank by rank, and on each condition: whole jobs with real processes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from thornback.executor import (
    MISSING,
    After,
    Executor,
    Job,
    RankContext,
    RunReport,
    Stage,
    Within,
    blobs,
    handover,
)
from thornback.executor.waiting import WaitingTexts


def fails_at(*ranks: int) -> Callable[[RankContext], int]:
    def fn(ctx: RankContext) -> int:
        if ctx.rank in ranks:
            raise ValueError("bad")
        return 10 + ctx.rank

    return fn


def count() -> Callable[[RankContext], int]:
    def fn(ctx: RankContext) -> int:
        return sum(result is not MISSING for result in ctx.results("a").values())

    return fn


def run(folder: Path, stages: list[Stage]) -> RunReport:
    """Run them, also where an earlier run had other parameters."""
    state = str(folder / "state")
    executor = Executor.on_local(state=state, cpus=4, max_gangs=2, on_mismatch="adopt")
    return executor.run(Job("j", stages), check=False)


def test_ranks_follow_ranks_and_get_what_the_one_of_their_number_returned(tmp_path: Path) -> None:
    gate = tmp_path / "gate"

    def first(ctx: RankContext) -> int:
        import os
        import time

        while ctx.rank == 3 and not os.path.exists(gate):  # opened by rank 0 of the next stage
            time.sleep(0.01)
        return 10 + ctx.rank

    def second(ctx: RankContext, item: str) -> list[object]:
        if ctx.rank == 0:
            gate.touch()
        return [item, ctx.result("a")]

    own = After("a", kind="one_to_one")
    stages = [
        Stage("a", first, ranks=4),
        Stage("b", second, items=["w", "x", "y", "z"], after=own),
    ]
    report = run(tmp_path, stages)
    assert report.state == "succeeded", report.reason
    assert report.results("b") == {0: ["w", 10], 1: ["x", 11], 2: ["y", 12], 3: ["z", 13]}


def test_each_condition_does_what_it_says_and_a_second_run_mends_the_rest(tmp_path: Path) -> None:
    def always(ctx: RankContext) -> object:
        own = ctx.result("a")
        return "missing" if own is MISSING else own

    def stages(*bad: int) -> list[Stage]:
        return [
            Stage("a", fails_at(*bad), ranks=4),
            Stage("each", always, ranks=4, after=After("a", kind="one_to_one")),
            Stage(
                "whatever",
                always,
                ranks=4,
                after=After("a", kind="one_to_one", condition="all_done"),
            ),
            Stage("strict", count(), after=After("a", condition="all_success")),
            Stage("some", count(), after=After("a", condition=Within(0.25))),
            Stage("last", count(), after=["some", After("a", condition="all_done")]),
        ]

    report = run(tmp_path, stages(1))
    assert report.state == "failed"
    assert {name: (s.done, s.failed, s.skipped) for name, s in report.stages.items()} == {
        "a": (3, 1, 0),
        "each": (3, 0, 1),
        "whatever": (4, 0, 0),
        "strict": (0, 0, 1),
        "some": (1, 0, 0),
        "last": (1, 0, 0),
    }
    assert report.results("each") == {0: 10, 1: MISSING, 2: 12, 3: 13}
    assert report.results("whatever") == {0: 10, 1: "missing", 2: 12, 3: 13}
    assert report.results("some") == {0: 3}
    again = run(tmp_path, stages())
    assert again.state == "succeeded", again.reason
    assert again.results("each")[1] == 11
    assert again.results("strict") == {0: 4}


def test_results_that_are_too_many_fail_what_reads_them_and_a_run_that_does_not_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blobs, "MAX_INPUT_BYTES", 10)

    def first(ctx: RankContext) -> str:
        (tmp_path / f"ran-{ctx.rank}").touch(exist_ok=False)
        return "x" * 10

    def second(ctx: RankContext) -> int:
        return ctx.rank

    def stages(*, results: bool = True) -> list[Stage]:
        after = After("a", results=results)
        return [Stage("a", first, ranks=3), Stage("b", second, ranks=9, after=after)]

    for _ in range(2):  # the second run finds them in the journal, and no rank has to ask for them
        report = run(tmp_path, stages())
        assert (report.stages["a"].done, report.stages["b"].failed) == (3, 9)
        assert {each.fault.error_type.rpartition(".")[2] for each in report.attempts} == {
            "InputTooLarge"
        }
        assert all(each.rank is not None for each in report.attempts), "no gang was lost"
        assert "After('a', results=False)" in report.attempts[0].fault.message
        assert MISSING not in report.results("a").values()
    assert run(tmp_path, stages(results=False)).state == "succeeded", "rank 0 of 'a' ran once"


def test_results_that_memory_has_no_room_for_are_handed_rank_by_rank(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handover, "WaitingTexts", partial(WaitingTexts, 0))

    def second(ctx: RankContext) -> object:
        return ctx.result("a")

    own = After("a", kind="one_to_one")
    report = run(
        tmp_path, [Stage("a", fails_at(), ranks=9), Stage("b", second, ranks=9, after=own)]
    )
    assert report.results("b") == {rank: 10 + rank for rank in range(9)}


def test_without_room_anywhere_the_ranks_that_want_them_fail_and_a_run_with_room_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def second(ctx: RankContext) -> object:
        return len(ctx.result("a"))

    def first(ctx: RankContext) -> str:
        return "x" * 20_000

    def stages() -> list[Stage]:
        own = After("a", kind="one_to_one")
        return [Stage("a", first, ranks=2), Stage("b", second, ranks=2, after=own)]

    with monkeypatch.context() as tight:
        tight.setattr(handover, "WaitingTexts", partial(WaitingTexts, 0, 0))
        report = run(tmp_path, stages())
        assert (report.stages["a"].done, report.stages["b"].failed) == (2, 2)
        assert "TMPDIR" in report.attempts[0].fault.message
    assert run(tmp_path, stages()).results("b") == {0: 20_000, 1: 20_000}
