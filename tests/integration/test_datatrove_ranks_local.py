"""Pipelines of datatrove in rank processes: what a rank does, in runs with real processes.

Each test says which defect of datatrove's own executor on Ray it shows gone, where it is one.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from datatrove.data import Document
from datatrove.executor.ray import RayPipelineExecutor
from datatrove.pipeline.base import PipelineStep

from thornback.datatrove.rank import rank_function
from thornback.datatrove.rankresult import decode
from thornback.datatrove.tasklogs import TaskLogs
from thornback.executor import AttemptReport, Executor, Job, RunReport, Stage
from thornback.faults import FaultKind


class Pipelines:
    """Makes executors and runs their ranks, as one stage each, on this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.logging_dir = folder / "logging"

    def executor(self, *steps: Any, tasks: int = 1, **options: Any) -> RayPipelineExecutor:
        folder = str(self.logging_dir)
        return RayPipelineExecutor(list(steps), tasks=tasks, logging_dir=folder, **options)

    def run(self, executor: RayPipelineExecutor, **options: Any) -> RunReport:
        watcher = TaskLogs({"p": executor.logging_dir})
        stage = Stage("p", rank_function(executor), ranks=executor.world_size, **options)
        runs = Executor.on_local(
            state=str(self.logging_dir / "thornback"), cpus=4, max_gangs=1, observers=[watcher]
        )
        try:
            return runs.run(Job("j", [stage]), check=False)
        finally:
            watcher.close()

    def log(self, rank: int = 0) -> str:
        return (self.logging_dir / f"logs/task_{rank:05d}.log").read_text()


@pytest.fixture
def pipelines(tmp_path: Path) -> Pipelines:
    return Pipelines(tmp_path)


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """The constructor of datatrove warns of a local logging directory."""
    from loguru import logger

    logger.remove()
    yield


def reader(count: int = 3) -> list[Document]:
    return [Document(text=f"text {n}", id=str(n)) for n in range(count)]


def stats_of(report: RunReport) -> dict[int, Any]:
    results = report.results("p")
    return {rank: json.loads(decode(json.dumps(value))) for rank, value in results.items()}


def counting_step() -> PipelineStep:
    class Count(PipelineStep):
        name = "counter"
        type = "test"

        def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Any:
            for document in data:
                self.stat_update("seen")
                yield document

    return Count()


def died(report: RunReport) -> AttemptReport:
    (attempt,) = report.attempts
    return attempt


def test_a_pipeline_runs_and_its_log_is_where_datatrove_s_tools_look(pipelines: Pipelines) -> None:
    report = pipelines.run(pipelines.executor(reader(), counting_step(), tasks=2))
    assert report.state == "succeeded", report.reason
    assert [stats[0]["stats"] for stats in stats_of(report).values()] == [{"seen": 3}] * 2
    lines = pipelines.log(1).splitlines()
    assert "Launching pipeline for rank=1" in lines[0]
    assert "Processing done for rank=1" in pipelines.log(1)
    assert "Stats: Task 1" in pipelines.log(1)
    assert sorted(os.listdir(pipelines.logging_dir)) == ["logs", "thornback"]  # the rest: driver
    assert sorted(os.listdir(pipelines.logging_dir / "logs")) == [
        "task_00000.log",
        "task_00001.log",
    ]
