"""Whole runs of pipelines that depend on each other, with worker processes of this machine."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from datatrove.executor.local import LocalPipelineExecutor
from datatrove.executor.ray import RayPipelineExecutor as StockRayPipelineExecutor

from tests.integration.pipelines import Touch, files, listening, make, runs
from thornback.datatrove import DependencyFailed
from thornback.executor import RunFailed, blobs
from thornback.executor.on_local import LocalPlatform


@pytest.fixture
def told() -> Iterator[list[str]]:
    with listening() as lines:
        yield lines


def test_the_statistics_of_a_pipeline_are_not_handed_to_the_workers_of_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of a hundred thousand ranks are more than may be handed on."""
    monkeypatch.setattr(blobs, "MAX_INPUT_BYTES", 10)
    parent = make(tmp_path, "parent")
    make(tmp_path, "child", depends=parent).run()
    assert runs(tmp_path, "child") == {0: 1, 1: 1}


def test_defect_20_a_complete_dependency_gets_its_stats_json_too(tmp_path: Path) -> None:
    make(tmp_path, "parent").run()
    written = (tmp_path / "parent/stats.json").read_bytes()
    (tmp_path / "parent/stats.json").unlink()
    make(tmp_path, "child", depends=make(tmp_path, "parent")).run()
    assert (tmp_path / "parent/stats.json").read_bytes() == written
    assert runs(tmp_path, "parent") == {0: 1, 1: 1}


def test_defect_37_a_diamond_runs_each_pipeline_once_and_in_order(tmp_path: Path) -> None:
    top = make(tmp_path, "top")
    sides = [
        make(tmp_path, name, depends=top, pipeline=[step])
        for name in ("left", "right")
        for step in [Touch(tmp_path / f"{name}-out", needs=tmp_path / "top-out")]
    ]
    last = Touch(tmp_path / "end-out", needs=tmp_path / "right-out")
    end = make(tmp_path, "end", depends=sides, pipeline=[last])
    end.run()
    for name in ("top", "left", "right", "end"):
        assert runs(tmp_path, name) == {0: 1, 1: 1}
        assert "stats.json" in files(tmp_path, name)
        assert "executor.json" in files(tmp_path, name)
    assert all(member._launched for member in (top, *sides, end))
    assert [path.name for path in (tmp_path / "end/thornback/logs").iterdir()]


def test_two_children_of_one_parent_run_it_once(tmp_path: Path) -> None:
    parent = make(tmp_path, "parent")
    for name in ("a", "b"):
        make(tmp_path, name, depends=parent).run()
        assert runs(tmp_path, name) == {0: 1, 1: 1}
    assert runs(tmp_path, "parent") == {0: 1, 1: 1}


def test_a_failed_parent_in_the_same_job_is_the_cause_and_its_children_are_not_run(
    tmp_path: Path,
) -> None:
    parent = make(tmp_path, "parent", failing=(0,))
    child = make(tmp_path, "child", depends=parent)
    with pytest.raises(RunFailed) as caught:
        child.run()
    assert "1 of 2 tasks of stage 'parent' failed" in str(caught.value)
    assert "stage 'child': 0 of 2 done, 2 not run" in caught.value.text
    assert runs(tmp_path, "child") == {}
    parent.pipeline = [Touch(tmp_path / "parent-out")]
    child.run()
    assert runs(tmp_path, "child") == {0: 1, 1: 1}, "the same run, again, runs its parent again"


def test_defect_6_a_dependency_that_has_failed_fails_its_dependents_at_once(
    tmp_path: Path,
) -> None:
    parent = make(tmp_path, "parent", failing=(0,))
    with pytest.raises(RunFailed):
        parent.run()
    child = make(tmp_path, "child", depends=parent)
    with pytest.raises(DependencyFailed) as caught:
        child.run()
    assert (caught.value.name, caught.value.incomplete) == ("parent", 1)
    assert str(tmp_path / "parent/logs") in str(caught.value)
    assert runs(tmp_path, "child") == {}
    assert not child._launched
    assert not (tmp_path / "child/executor.json").exists()


def test_defect_6_run_on_dependency_fail_goes_on(tmp_path: Path, told: list[str]) -> None:
    parent = make(tmp_path, "parent", failing=(0,))
    child = make(tmp_path, "child", depends=parent, run_on_dependency_fail=True)
    stats = child.run()
    assert runs(tmp_path, "child") == {0: 1, 1: 1}
    assert stats.stats[0]["ranks"].total == 2
    assert any("Dependencies failed, and that was allowed" in line for line in told)
    other = make(tmp_path, "other", depends=parent, run_on_dependency_fail=True)
    other.run()
    assert runs(tmp_path, "other") == {0: 1, 1: 1}
    assert any(
        "other runs though: dependency 'parent'" in line.replace("'other'", "other")
        for line in told
    )


def test_a_stock_executor_is_run_first_as_it_runs_itself(tmp_path: Path) -> None:
    stock = LocalPipelineExecutor(
        [Touch(tmp_path / "stock-out")], tasks=2, workers=1, logging_dir=str(tmp_path / "stock")
    )
    make(tmp_path, "child", depends=stock).run()
    assert runs(tmp_path, "stock") == {0: 1, 1: 1}
    assert runs(tmp_path, "child") == {0: 1, 1: 1}


@pytest.mark.parametrize("tolerant", [False, True])
def test_a_stock_executor_that_fails_is_a_failed_dependency(tmp_path: Path, tolerant: bool) -> None:
    stock = LocalPipelineExecutor(
        [Touch(tmp_path / "stock-out", failing=(1,))],
        tasks=2,
        workers=1,
        logging_dir=str(tmp_path / "stock"),
    )
    child = make(tmp_path, "child", depends=[stock], run_on_dependency_fail=tolerant)
    if tolerant:
        child.run()
        assert runs(tmp_path, "child") == {0: 1, 1: 1}
    else:
        with pytest.raises(DependencyFailed, match="'stock' has ended with 1/2 ranks incomplete"):
            child.run()
        assert runs(tmp_path, "child") == {}


class Prepared:
    """The local platform, and whether it was prepared (fulfils `Platform`)."""

    def __init__(self) -> None:
        self.inner = LocalPlatform(cpus=2)
        self.prepared = 0

    def prepare(self) -> None:
        self.prepared += 1

    def connect(self, *args: Any) -> Any:
        return self.inner.connect(*args)


def test_a_stock_ray_executor_is_run_on_a_ray_that_is_initialised(tmp_path: Path) -> None:
    platform = Prepared()

    class Stock(StockRayPipelineExecutor):  # type: ignore[misc]  # datatrove has no types
        def run(self) -> None:
            assert platform.prepared == 1
            self._launched = True
            self.mark_rank_as_completed(0)

    stock = Stock([], tasks=1, logging_dir=str(tmp_path / "stock"))
    make(tmp_path, "child", depends=stock, platform=platform).run()
    assert runs(tmp_path, "child") == {0: 1, 1: 1}


def test_a_stock_ray_executor_takes_ours_as_its_dependency(tmp_path: Path) -> None:
    parent = make(tmp_path, "parent")
    parent.run()
    child = StockRayPipelineExecutor(
        [], tasks=1, logging_dir=str(tmp_path / "child"), depends=parent
    )
    child.mark_rank_as_completed(0)  # so that it needs no Ray
    child.run()
    assert child._launched


def test_a_dependency_that_another_thread_runs_is_waited_for(tmp_path: Path) -> None:
    gate = tmp_path / "gate"

    def wait_at_gate(data: Any, rank: int, world_size: int) -> None:
        import os
        import time

        while not os.path.exists(gate):
            time.sleep(0.05)

    parent = make(tmp_path, "parent", pipeline=[wait_at_gate, Touch(tmp_path / "parent-out")])
    started = threading.Event()

    class Started:
        def started(self, info: object) -> None:
            started.set()

        def progressed(self, stages: object) -> None: ...
        def failed(self, attempt: object) -> None: ...
        def finished(self, report: object) -> None: ...

    parent.observers = (Started(),)
    other = threading.Thread(target=parent.run)
    other.start()
    try:
        assert started.wait(60)
        child = make(tmp_path, "child", depends=parent)
        mine = threading.Thread(target=child.run)
        mine.start()
        mine.join(0.3)
        assert mine.is_alive()
        assert runs(tmp_path, "child") == {}
    finally:
        gate.touch()
    mine.join(60)
    other.join(60)
    assert not mine.is_alive()
    assert runs(tmp_path, "parent") == {0: 1, 1: 1}
    assert runs(tmp_path, "child") == {0: 1, 1: 1}


def test_stats_json_of_a_stage_is_there_before_the_chain_has_ended(tmp_path: Path) -> None:
    written = str(tmp_path / "parent/stats.json")

    def sees_it(data: Any, rank: int, world_size: int) -> None:
        import os
        import time

        deadline = time.monotonic() + 60
        while not os.path.exists(written):
            assert time.monotonic() < deadline
            time.sleep(0.05)

    parent = make(tmp_path, "parent")
    make(tmp_path, "child", depends=parent, pipeline=[sees_it]).run()


def test_defect_19_old_marks_of_a_parent_that_runs_again_do_not_let_its_children_go(
    tmp_path: Path,
) -> None:
    make(tmp_path, "parent").run()
    failing = make(tmp_path, "parent", skip_completed=False, failing=(0,))
    child = make(tmp_path, "child", depends=failing)
    with pytest.raises(RunFailed):
        child.run()
    assert runs(tmp_path, "child") == {}
