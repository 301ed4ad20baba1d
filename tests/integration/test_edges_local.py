"""Stages joined rank by rank, and on each condition: whole jobs with real processes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from thornback.executor import After, Executor, Job, RankContext, RunReport, Stage, Within


def fails_at(*ranks: int) -> Callable[[RankContext], int]:
    def fn(ctx: RankContext) -> int:
        if ctx.rank in ranks:
            raise ValueError("bad")
        return 10 + ctx.rank

    return fn


def count() -> Callable[[RankContext], int]:
    def fn(ctx: RankContext) -> int:
        return len(ctx.results("a"))

    return fn


def run(folder: Path, stages: list[Stage]) -> RunReport:
    executor = Executor.on_local(state=str(folder / "state"), cpus=4, max_gangs=2)
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
        return ctx.result("a")

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
    assert report.results("each") == {0: 10, 2: 12, 3: 13}
    assert report.results("some") == {0: 3}
    again = run(tmp_path, stages())
    assert again.state == "succeeded", again.reason
    assert again.results("each")[1] == 11
    assert again.results("strict") == {0: 4}
