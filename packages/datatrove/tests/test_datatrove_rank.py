"""A rank of a pipeline in this process: what goes into it, and what is told when it cannot run."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
from datatrove.executor.ray import RayPipelineExecutor
from datatrove.io import get_datafolder
from datatrove.pipeline.writers.jsonl import JsonlWriter
from loguru import logger

from thornback.datatrove.rank import PipelineRank, drain, rank_function
from thornback.datatrove.rankresult import decode
from thornback.executor import RankContext, UsageError


@attrs.frozen(kw_only=True)
class Context:
    """What a pipeline reads of a `RankContext`."""

    rank: int = 0
    attempt: int = 1
    epoch: str = "000001.000000002"
    node: str = "n"
    address: str = "10.0.0.3"
    node_index: int = 0
    nodes: int = 1


def run(pipeline: PipelineRank, **context: Any) -> Any:
    return pipeline(Context(**context))  # type: ignore[arg-type]  # it has the fields that are read


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logger.remove()
    yield
    logger.remove()


def executor(folder: Path, *steps: Any, **options: Any) -> RayPipelineExecutor:
    return RayPipelineExecutor(list(steps), logging_dir=str(folder), **options)


def test_a_rank_process_imports_neither_the_driver_nor_ray() -> None:
    code = """
import sys, thornback.datatrove.rank
names = ("thornback.executor", "thornback.scheduler", "thornback.faults", "anyio", "ray.")
print(*sorted(name for name in sys.modules if name.startswith(names)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_the_driver_s_own_does_not_reach_the_ranks(tmp_path: Path) -> None:
    made = executor(tmp_path, [], tasks=7, depends=executor(tmp_path / "before", []))
    made.platform = threading.Lock()
    made.mine = threading.Lock()
    made.driver_only = ("mine",)
    sent = pickle.loads(rank_function(made).executor)
    assert (sent.depends, sent.world_size, sent.logging_dir.path) == (None, 7, str(tmp_path))
    assert not hasattr(sent, "platform")
    assert not hasattr(sent, "mine")
    assert made.depends is not None
    assert hasattr(made, "platform")


def test_rank_processes_start_with_what_every_rank_unpickles_and_with_nothing_of_steps() -> None:
    made = executor(Path("/never"), json.dumps)
    made.logging_dir = get_datafolder("simplecache::memory://preload")
    assert {*rank_function(made).__thornback_preload__} == {
        "datatrove.executor.base",
        "datatrove.executor.ray",
        "fsspec.implementations.cached",
        "fsspec.implementations.memory",
    }


def test_a_log_that_takes_long_to_write_leaves_a_rank_its_time(tmp_path: Path) -> None:
    made = rank_function(executor(tmp_path, [], time=9, randomize_start_duration=0), time_s=9)
    assert made.upload_limit_s(0.0) == 8
    assert made.upload_limit_s(5.5) == 2.5
    assert made.upload_limit_s(8.9) == 1
    assert rank_function(executor(tmp_path, [])).upload_limit_s(1e6) == 60
    assert attrs.evolve(made, time_s=900).upload_limit_s(5.0) == 60


def test_a_step_that_does_not_pickle_is_named_with_the_mend(tmp_path: Path) -> None:
    class Locked:
        def __init__(self) -> None:
            self.lock = threading.Lock()

        def __call__(self, data: Any, rank: int, world_size: int) -> Any: ...

    with pytest.raises(
        UsageError, match=r"step 1 of the pipeline \(.*Locked\).*when the step runs"
    ):
        rank_function(executor(tmp_path, [], Locked()))
    made = executor(tmp_path, [])
    made.mine = threading.Lock()
    with pytest.raises(UsageError, match="the attribute 'mine' of the executor"):
        rank_function(made)


def test_a_pipeline_that_does_not_unpickle_leaves_a_log_and_its_own_error(tmp_path: Path) -> None:
    broken = attrs.evolve(rank_function(executor(tmp_path, [])), executor=b"cnowhere\nthing\n.")
    with pytest.raises(ModuleNotFoundError):
        run(broken)
    log = (tmp_path / "logs/task_00000.log").read_text()
    assert "No module named 'nowhere'" in log
    assert "does not unpickle on node 'n'" in log


def test_the_first_line_of_a_later_attempt_says_so_and_where_the_others_are(tmp_path: Path) -> None:
    rank = rank_function(executor(tmp_path, []), logs="s3://b/thornback/logs")
    run(rank, attempt=3, rank=4)
    first, second, *_ = (tmp_path / "logs/task_00004.log").read_text().splitlines()
    assert first == (
        "thornback: attempt 3 of rank 4 (epoch 000001.000000002); what earlier attempts wrote is "
        "in s3://b/thornback/logs"
    )
    assert "Launching pipeline for rank=4" in second


shelf: list[Any] = []


def from_shelf() -> Any:
    return shelf[-1]


class FromShelf:
    """A step that unpickles to one of this process, which can reach into its test."""

    def __call__(self, data: Any, rank: int, world_size: int) -> Any: ...
    def __reduce__(self) -> Any:
        return from_shelf, ()


def unmarked(stderr: str) -> str:
    """What was logged, without the marks of further lines."""
    return stderr.replace("\n  | ", "\n")


def test_what_is_logged_is_on_stderr_once_and_while_the_rank_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[str] = []

    def look(data: Any, rank: int, world_size: int) -> Any:
        logger.debug("fine")
        logger.error("serious")
        seen.append(capsys.readouterr().err)

    shelf.append(look)
    run(rank_function(executor(tmp_path, FromShelf())))
    assert seen[0].count("fine") == seen[0].count("serious") == 1
    assert "Launching pipeline" in seen[0]
    log = (tmp_path / "logs/task_00000.log").read_text()
    assert log.startswith(unmarked(seen[0]))


def test_each_rank_of_a_process_has_what_it_logged_also_by_a_logger_that_was_sent_by_value(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def step(data: Any, rank: int, world_size: int) -> Any:
        logger.debug(f"this is {rank}")
        if rank == 1:
            logger.remove()

    pipeline = rank_function(executor(tmp_path, step))
    for rank in range(4):
        run(pipeline, rank=rank)
        logger.info(f"between {rank}")
    told = unmarked(capsys.readouterr().err)
    for rank in range(4):
        log = (tmp_path / f"logs/task_{rank:05d}.log").read_text()
        found = [line.rpartition(" - ")[2] for line in log.splitlines() if " - " in line]
        expected = [f"Launching pipeline for rank={rank}", "", f"this is {rank}"]
        if rank != 1:
            expected += [f"Processing done for rank={rank}", ""]
        assert found == expected
        assert log in told
    assert [each for each in range(4) if f"between {each}" in told] == [0, 2, 3]


def test_defect_21_a_store_that_hangs_neither_holds_the_rank_nor_those_after_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pipe = tmp_path / "logs" / "task_00000.log"
    pipe.parent.mkdir()
    os.mkfifo(pipe)  # opened for writing, it blocks until somebody reads
    rank = attrs.evolve(rank_function(executor(tmp_path, [])), upload_s=0.05)
    assert decode(json.dumps(run(rank))) == "[]"
    assert "was not written to logs/task_00000.log: TimeoutError" in capsys.readouterr().err
    assert decode(json.dumps(run(rank, rank=1))) == "[]"
    assert "an earlier call has still not returned" in capsys.readouterr().err
    with open(pipe, "rb"):  # let the thread go
        rank._apart._stuck.join(10)  # type: ignore[union-attr]  # it hangs, as just seen
    run(rank, rank=2)
    assert (tmp_path / "logs/task_00002.log").exists()


def test_a_forked_copy_that_comes_back_writes_no_log_of_its_own(tmp_path: Path) -> None:
    def forks(data: Any, rank: int, world_size: int) -> Any:
        if os.fork() == 0:
            raise SystemExit(7)
        _, status = os.wait()
        raise ValueError(f"the copy ended with {os.waitstatus_to_exitcode(status)}")

    code = f"""
import os, sys
from test_datatrove_rank import Context, PipelineRank
import pickle
rank = pickle.loads({pickle.dumps(rank_function(executor(tmp_path, forks)))!r})
mine = os.getpid()
try:
    rank(Context())
except SystemExit as error:
    assert os.getpid() != mine
    assert not os.path.exists({str(tmp_path / "logs/task_00000.log")!r})
    os._exit(error.code)
except ValueError as error:
    print(error)
"""
    folder = str(Path(__file__).parent)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([folder, *sys.path])}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env
    )
    assert done.stdout == "the copy ended with 7\n"


def test_the_stats_of_a_gang_are_those_of_its_first_node(tmp_path: Path) -> None:
    pipeline = rank_function(executor(tmp_path, [], nodes_per_task=2))
    assert run(pipeline, nodes=2, node_index=1) is None
    assert decode(json.dumps(run(pipeline, nodes=2, node_index=0))) == "[]"
    assert "Stats: Task 0" in (tmp_path / "logs/task_00000.log").read_text()


def test_the_steps_are_piped_as_datatrove_does() -> None:
    calls: list[object] = []

    def step(data: Any, rank: int, world_size: int) -> Any:
        calls.append((data, rank, world_size))
        yield from data
        calls.append("drained")

    drain([["a"], step], 2, 5)
    assert calls == [(["a"], 2, 5), "drained"]
    drain([lambda data, rank, world_size: None], 0, 1)
    drain([], 0, 1)
    for wrong in ("text", 3, None):
        with pytest.raises(ValueError, match=f"step 1 of the pipeline is a {type(wrong).__name__}"):
            drain([[], wrong], 0, 1)


def test_the_context_that_is_read_is_that_of_the_executor() -> None:
    fields = {each.name for each in attrs.fields(Context)}
    assert fields <= {each.name for each in attrs.fields(RankContext)}


def test_pickled_local_folders_stay_where_the_driver_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fsspec would count a relative path from the folder of the rank process. In a process of its
    own: in this one fsspec would give the same objects again."""
    (tmp_path / "driver").mkdir()
    (tmp_path / "worker").mkdir()
    monkeypatch.chdir(tmp_path / "driver")
    made = rank_function(RayPipelineExecutor([JsonlWriter("out")], logging_dir="logs"))
    code = """
import pickle, sys
executor, folder = map(pickle.loads, pickle.load(sys.stdin.buffer))
with folder.open("logs/x", "w") as file:
    file.write("made with its folder")
print(executor.logging_dir.path, executor.pipeline[0].output_folder.path)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        input=pickle.dumps((made.executor, made.folder)),
        cwd=tmp_path / "worker",
        capture_output=True,
        check=True,
    )
    folder = tmp_path / "driver"
    assert done.stdout.decode().split() == [f"{folder}/logs", f"{folder}/out"]
    assert (folder / "logs/logs/x").exists()
