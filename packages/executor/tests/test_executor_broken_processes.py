"""Whole runs on this machine in which rank processes break without dying, and GPUs do."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from thornback.executor import (
    MISSING,
    Executor,
    Job,
    RankContext,
    RunReport,
    Stage,
)
from thornback.faults import FaultKind


def breaks_once(marker: Path) -> Callable[[RankContext], Any]:
    """Return a set-up whose value, in one process of all, is of no use after two ranks."""

    def setup(ctx: RankContext) -> dict[str, int]:
        try:
            os.close(os.open(marker, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return {"left": 1_000_000}
        return {"left": 2}

    return setup


def uses() -> Callable[[RankContext], int]:
    """Return a function that pickles by value: workers cannot import this module."""

    def use(ctx: RankContext) -> int:
        engine = ctx.setup_value
        engine["left"] -= 1
        if engine["left"] < 0:
            raise RuntimeError("the engine is dead")
        return os.getpid()

    return use


def run(folder: Path, stage: Stage, **options: Any) -> RunReport:
    executor = Executor.on_local(state=str(folder / "state"), cpus=2, **options)
    return executor.run(Job("j", [stage]), check=False)


@pytest.mark.parametrize("processes", [1, 2])
def test_run_with_a_process_that_breaks_and_retries_completes(
    tmp_path: Path, processes: int
) -> None:
    stage = Stage(
        "a",
        uses(),
        ranks=40,
        retries=2,
        processes=processes,
        setup=breaks_once(tmp_path / "once"),
    )
    report = run(tmp_path, stage)
    assert report.state == "succeeded", report.reason
    assert MISSING not in report.results("a").values()
    assert len(report.attempts) <= 3


@pytest.mark.parametrize("processes", [1, 2])
def test_run_with_a_process_that_breaks_loses_three_ranks_at_most(
    tmp_path: Path, processes: int
) -> None:
    stage = Stage(
        "a",
        uses(),
        ranks=40,
        max_failed=0.5,
        processes=processes,
        setup=breaks_once(tmp_path / "once"),
    )
    report = run(tmp_path, stage)
    assert 2 <= len(report.attempts) <= 3
    missing = [value for value in report.results("a").values() if value is MISSING]
    assert len(missing) == len(report.attempts)


def test_run_with_a_slot_whose_gpu_breaks_goes_on_with_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")

    def fn(ctx: RankContext) -> str:
        if os.environ["CUDA_VISIBLE_DEVICES"] == "5":
            raise RuntimeError("CUDA error: uncorrectable ECC error encountered")
        return os.environ["CUDA_VISIBLE_DEVICES"]

    report = run(tmp_path, Stage("a", fn, ranks=40, retries=1, processes=2, max_gangs=1))
    assert report.state == "succeeded", report.reason
    assert set(report.results("a").values()) == {"4"}
    assert len(report.attempts) <= 1


def test_run_whose_worker_has_no_gpu_left_goes_on_with_another_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")

    def fn(ctx: RankContext) -> int:
        if ctx.setup_value["left"] == 2:
            raise RuntimeError("CUDA error: GPU is lost")
        return os.getpid()

    setup = breaks_once(tmp_path / "once")
    stage = Stage("a", fn, ranks=20, retries=2, max_gangs=1, setup=setup)
    report = run(tmp_path, stage)
    assert report.state == "succeeded", report.reason
    lost = [each.fault for each in report.attempts if each.fault.rule == "pool.no_slot_left"]
    assert {fault.kind for fault in lost} == {FaultKind.RESOURCE}
    assert "slot 0 (GPU 4, 5)" in lost[0].message
    assert len(report.attempts) <= 3
