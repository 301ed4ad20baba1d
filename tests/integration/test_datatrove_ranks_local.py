"""Pipelines of datatrove in rank processes: what a rank does, in runs with real processes.

Each test says which defect of datatrove's own executor on Ray it shows gone, where it is one. Long,
since each is a whole run with steps of its own, which share how they are started and read.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
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
def _quiet() -> None:
    """The constructor of datatrove warns of a local logging directory."""
    from loguru import logger

    logger.remove()


def reader(count: int = 3) -> list[Document]:
    return [Document(text=f"text {n}", id=str(n)) for n in range(count)]


def stats_of(report: RunReport) -> dict[int, Any]:
    results = report.results("p")
    return {rank: json.loads(decode(json.dumps(value))) for rank, value in results.items() if value}


def counting_step() -> PipelineStep:
    class Count(PipelineStep):  # type: ignore[misc]  # datatrove has no types
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


# -- defect 1: processes that die, and steps that end theirs ---------------------------------------


def killed(data: Any, rank: int, world_size: int) -> Any:
    import signal

    from loguru import logger

    logger.info("about to die")
    print("printed by the step")
    os.kill(os.getpid(), signal.SIGKILL)


def exits(data: Any, rank: int, world_size: int) -> Any:
    import sys

    sys.exit(3)


def exits_at_once(data: Any, rank: int, world_size: int) -> Any:
    os._exit(4)


def test_defect_1_a_rank_that_is_killed_ends_the_run_and_leaves_its_log(
    pipelines: Pipelines,
) -> None:
    report = pipelines.run(pipelines.executor(reader(), killed, tasks=1), max_retries=0)
    attempt = died(report)
    assert (attempt.fault.kind, attempt.fault.facts["signal"]) == (FaultKind.WORKER_CRASH, 9)
    first, *_, last = pipelines.log().splitlines()
    assert "Launching pipeline for rank=0" in first
    assert "about to die" in pipelines.log()
    assert "printed by the step" in pipelines.log()
    assert last.startswith("thornback: attempt 1 of rank 0 (epoch 000001.")
    assert "WORKER_CRASH, signal 9" in last
    assert "it is not tried again" in last


def test_defect_1_exits_of_a_step_fail_the_rank_with_its_code(pipelines: Pipelines) -> None:
    attempt = died(pipelines.run(pipelines.executor(exits)))
    assert (attempt.fault.kind, attempt.fault.error_type) == (
        FaultKind.APPLICATION,
        "builtins.SystemExit",
    )
    assert "SystemExit: 3" in pipelines.log()
    attempt = died(pipelines.run(pipelines.executor(exits_at_once), max_retries=0))
    assert (attempt.fault.kind, attempt.fault.facts["exit_code"]) == (FaultKind.WORKER_CRASH, 4)
    assert "exit_code 4" in pipelines.log()


def test_defect_22_a_killed_rank_that_is_tried_again_leaves_the_log_of_the_attempt_that_succeeds(
    pipelines: Pipelines,
) -> None:
    mark = pipelines.folder / "mark"

    def dies_once(data: Any, rank: int, world_size: int) -> Any:
        if not mark.exists():
            mark.touch()
            killed(data, rank, world_size)
        return data

    report = pipelines.run(pipelines.executor(reader(), dies_once))
    assert report.state == "succeeded", report.reason
    assert died(report).retried
    lines = pipelines.log().splitlines()
    assert lines[0].startswith("thornback: attempt 2 of rank 0 (epoch 000001.")
    assert "Launching pipeline for rank=0" in lines[1]
    assert "Processing done" in pipelines.log()
    assert "about to die" not in pipelines.log()


# -- defect 2: exceptions that do not travel -------------------------------------------------------


class TwoArguments(Exception):
    def __init__(self, code: int, body: str) -> None:
        super().__init__(f"{code}: {body}")


class HoldsALock(Exception):
    def __init__(self) -> None:
        import threading

        super().__init__("holds a lock")
        self.lock = threading.Lock()


class NoText(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text for you")


def raises(make: Callable[[], Exception]) -> Callable[[Any, int, int], Any]:
    def step(data: Any, rank: int, world_size: int) -> Any:
        yield from data
        raise make()

    return step


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: TwoArguments(429, "slow down"), "TwoArguments"),
        (HoldsALock, "HoldsALock"),
        (NoText, "NoText"),
    ],
)
def test_defect_2_an_exception_that_does_not_travel_fails_its_rank_with_its_name(
    pipelines: Pipelines, make: Callable[[], Exception], name: str
) -> None:
    attempt = died(pipelines.run(pipelines.executor(reader(), raises(make))))
    assert attempt.fault.kind is FaultKind.APPLICATION
    assert attempt.fault.error_type.endswith(name)
    assert "Traceback" in pipelines.log()
    assert name in pipelines.log()
    assert "ended after" not in pipelines.log()  # the rank's own log, not one that was put there


# -- defect 34: time -------------------------------------------------------------------------------


def test_defect_34_a_generator_that_never_ends_is_killed_and_tried_again(
    pipelines: Pipelines,
) -> None:
    mark = pipelines.folder / "mark"

    def endless_once(data: Any, rank: int, world_size: int) -> Any:
        import time

        from loguru import logger

        logger.debug("in the loop")
        while not mark.exists():
            if rank == 0:
                mark.touch()
                while True:
                    time.sleep(0.1)
            yield from data

    report = pipelines.run(pipelines.executor(reader(), endless_once), timeout_s=1.0)
    assert report.state == "succeeded", report.reason
    attempt = died(report)
    assert (attempt.fault.kind, attempt.retried) == (FaultKind.TIMEOUT, True)
    assert "in the loop" in attempt.log_tail  # a line that datatrove would not show on stderr
    assert "Processing done" in pipelines.log()


# -- defect 33 and 36: processes of the steps ------------------------------------------------------


class Upper(PipelineStep):  # type: ignore[misc]  # datatrove has no types
    """What datatrove's extractors do: a process of `multiprocessing` for the documents."""

    name = "upper"
    type = "test"

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Any:
        from datatrove.pipeline.extractors.base import ExtractorSandbox

        with ExtractorSandbox(timeout=10, warmup_text="") as sandbox:
            for document in data:
                document.text = sandbox.process_document(document.text, str.upper)
                self.stat_update(document.text)
                yield document


def test_defect_33_a_sandbox_of_datatrove_s_extractors_works(pipelines: Pipelines) -> None:
    report = pipelines.run(pipelines.executor(reader(2), Upper(), tasks=2))
    assert report.state == "succeeded", report.reason
    assert [each[0]["stats"] for each in stats_of(report).values()] == [
        {"TEXT 0": 1, "TEXT 1": 1}
    ] * 2


@pytest.mark.parametrize("flavour", ["multiprocessing", "multiprocess"])
def test_defect_33_pools_work_also_such_as_a_failing_step_leaves_open(
    pipelines: Pipelines, flavour: str
) -> None:
    def pooled(data: Any, rank: int, world_size: int) -> Any:
        import importlib
        import multiprocessing as one

        import multiprocess as other  # type: ignore[import-untyped]  # it has none
        from loguru import logger

        # Before this rank's own pool: a thread of that may end it a little later than it is left.
        logger.info(f"left: {len(one.active_children()) + len(other.active_children())}")
        pool = importlib.import_module(flavour).Pool(2)
        lengths = pool.map(len, ["a", "bb"])
        if rank == 0:
            raise ValueError(f"with an open pool: {lengths}")
        return [Document(text=str(lengths), id="0")]

    report = pipelines.run(pipelines.executor(pooled, tasks=4))
    (failure,) = report.given_up
    assert failure.ranks == (range(1),)
    assert "with an open pool: [1, 2]" in pipelines.log(0)
    assert report.stages["p"].done == 3
    assert len({attempt.pid for attempt in report.attempts}) == 1
    assert "left: 0" in pipelines.log(3)  # the pools of ranks 1 and 2 are gone with them


def test_defect_36_what_a_dead_rank_has_started_writes_no_more(pipelines: Pipelines) -> None:
    pid_file = pipelines.folder / "pid"

    def leaves_a_process_behind(data: Any, rank: int, world_size: int) -> Any:
        import subprocess

        child = subprocess.Popen(["sleep", "60"], start_new_session=True)
        pid_file.write_text(str(child.pid))
        killed(data, rank, world_size)

    report = pipelines.run(pipelines.executor(leaves_a_process_behind), max_retries=0)
    assert report.state == "failed"
    assert not os.path.exists(f"/proc/{pid_file.read_text()}")
    assert not (pipelines.logging_dir / "completions").exists()


# -- one process, several ranks --------------------------------------------------------------------


@pytest.mark.parametrize("fresh", [False, True])
def test_stats_of_three_ranks_in_one_process_equal_those_of_three_processes(
    pipelines: Pipelines, fresh: bool
) -> None:
    def pid(data: Any, rank: int, world_size: int) -> Any:
        from loguru import logger

        logger.info(f"pid {os.getpid()}")
        yield from data

    steps = (reader(), counting_step(), pid)
    report = pipelines.run(pipelines.executor(*steps, tasks=3), fresh=fresh)
    assert [each[0]["stats"] for each in stats_of(report).values()] == [{"seen": 3}] * 3
    pids = {pipelines.log(rank).partition("- pid ")[2].split()[0] for rank in range(3)}
    assert len(pids) == (3 if fresh else 1)


def test_what_a_rank_changes_in_its_process_is_undone_for_the_next(pipelines: Pipelines) -> None:
    elsewhere = pipelines.folder / "elsewhere"
    elsewhere.mkdir()

    def disorder(data: Any, rank: int, world_size: int) -> Any:
        from loguru import logger

        before = ["MINE" in os.environ, "PATH" in os.environ, os.getcwd() == str(elsewhere)]
        logger.info(f"found {before}")
        os.environ["MINE"] = "1"
        del os.environ["PATH"]
        os.chdir(elsewhere)
        logger.remove()
        logger.add("own.log")
        if rank == 1:
            raise ValueError("also where it fails")

    report = pipelines.run(pipelines.executor(disorder, tasks=3))
    assert report.stages["p"].done == 2
    for rank in range(3):
        assert "found [False, True, False]" in pipelines.log(rank)


def test_lambdas_and_closures_are_steps(pipelines: Pipelines) -> None:
    least = 2
    report = pipelines.run(
        pipelines.executor(
            reader(5),
            lambda data, rank, world_size: (each for each in data if int(each.id) >= least),
            counting_step(),
        )
    )
    assert stats_of(report)[0][0]["stats"] == {"seen": 3}


def test_what_is_no_step_is_named(pipelines: Pipelines) -> None:
    attempt = died(pipelines.run(pipelines.executor(reader(), "no step")))
    assert "step 1 of the pipeline is a str" in attempt.fault.message
    assert "step 1 of the pipeline is a str" in pipelines.log()


def test_a_pipeline_that_does_not_unpickle_says_so_in_its_log(pipelines: Pipelines) -> None:
    def gone() -> object:
        raise ModuleNotFoundError("No module named 'mine'")

    class Unloadable:
        def __call__(self, data: Any, rank: int, world_size: int) -> Any: ...
        def __reduce__(self) -> Any:
            return gone, ()

    attempt = died(pipelines.run(pipelines.executor(Unloadable())))
    assert attempt.fault.error_type == "builtins.ModuleNotFoundError"
    assert "The pipeline does not unpickle on node" in pipelines.log()


# -- the environment -------------------------------------------------------------------------------


def tell_environment(data: Any, rank: int, world_size: int) -> Any:
    from loguru import logger

    names = sorted(name for name in os.environ if name.startswith(("DATATROVE_", "RAY_NODE")))
    logger.info("env " + json.dumps({name: os.environ[name] for name in names}))


def environment(log: str) -> dict[str, str]:
    line = next(line for line in log.splitlines() if "- env {" in line)
    found: dict[str, str] = json.loads(line.partition("- env ")[2])
    return found


@pytest.mark.parametrize(("memory", "told"), [(1.5, "1.5"), (2, "2")])
def test_defect_24_the_environment_of_a_rank_is_that_of_datatrove_s_executor(
    pipelines: Pipelines, memory: float, told: str
) -> None:
    executor = pipelines.executor(
        tell_environment, cpus_per_task=2, gpus_per_task=1, mem_per_cpu_gb=memory
    )
    assert pipelines.run(executor).state == "succeeded"
    assert environment(pipelines.log()) == {
        "DATATROVE_CPUS_PER_TASK": "2",
        "DATATROVE_EXECUTOR": "RAY",
        "DATATROVE_GPUS_ON_NODE": "1",
        "DATATROVE_MEM_PER_CPU": told,
        "DATATROVE_NODE_IPS": "127.0.0.1",
        "DATATROVE_NODE_RANK": "-1",
        "RAY_NODEID": "0",
        "RAY_NODELIST": "127.0.0.1",
    }


def test_defect_22_each_node_of_a_gang_has_a_log_of_its_own(pipelines: Pipelines) -> None:
    executor = pipelines.executor(reader(), counting_step(), tell_environment, nodes_per_task=2)
    report = pipelines.run(executor, nodes=2, strategy="PACK", finished_when="leader")
    assert report.state == "succeeded", report.reason
    assert stats_of(report)[0][0]["name"] == "test: counter"
    other = pipelines.logging_dir / "thornback/logs-of-nodes/task_00000.node1.log"
    for index, log in enumerate((pipelines.log(), other.read_text())):
        assert log.startswith(f"[NODE {index}] ")
        told = environment(log)
        assert (told["DATATROVE_NODE_RANK"], told["RAY_NODEID"]) == (str(index), str(index))
        assert told["RAY_NODELIST"] == told["DATATROVE_NODE_IPS"] == "127.0.0.1,127.0.0.1"
    assert os.listdir(pipelines.logging_dir / "logs") == ["task_00000.log"]


# -- logs ------------------------------------------------------------------------------------------


def test_defect_22_two_pipelines_at_once_on_one_machine_do_not_share_logs(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    here, there = Pipelines(tmp_path / "here"), Pipelines(tmp_path / "there")
    marks = {"here": tmp_path / "mark-here", "there": tmp_path / "mark-there"}

    def meet(own: str, other: str) -> Callable[[Any, int, int], Any]:
        mine, theirs = marks[own], marks[other]

        def step(data: Any, rank: int, world_size: int) -> Any:
            import time

            from loguru import logger

            logger.info(f"this is {own}")
            mine.touch()
            while not theirs.exists():
                time.sleep(0.01)

        return step

    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(here.run, here.executor(meet("here", "there")))
        second = threads.submit(there.run, there.executor(meet("there", "here")))
        assert (first.result().state, second.result().state) == ("succeeded", "succeeded")
    assert "this is here" in here.log()
    assert "this is there" not in here.log()
    assert "this is there" in there.log()
    assert "this is here" not in there.log()


def test_defect_21_a_log_that_cannot_be_written_neither_fails_the_rank_nor_hides_its_error(
    pipelines: Pipelines,
) -> None:
    def fails_at_1(data: Any, rank: int, world_size: int) -> Any:
        if rank == 1:
            raise ValueError("the rank's own")
        return data

    pipelines.logging_dir.mkdir()
    (pipelines.logging_dir / "logs").write_text("a file where the folder should be")
    report = pipelines.run(pipelines.executor(reader(), fails_at_1, counting_step(), tasks=2))
    assert list(stats_of(report)) == [0]
    attempt = died(report)
    assert (attempt.rank, attempt.fault.message) == (1, "the rank's own")
    assert "thornback: the log of this rank was not written to logs/task_00001.log" in (
        attempt.log_tail
    )


def test_the_log_that_a_rank_could_not_write_is_made_of_what_it_left_on_stderr(
    pipelines: Pipelines,
) -> None:
    target = pipelines.logging_dir / "logs"

    def spoils(data: Any, rank: int, world_size: int) -> Any:
        (target / "task_00000.log").mkdir(parents=True)
        raise ValueError("the rank's own")

    class Mender:
        def started(self, info: object) -> None: ...
        def progressed(self, stages: object) -> None: ...
        def failed(self, attempt: AttemptReport) -> None:
            (target / "task_00000.log").rmdir()

        def finished(self, report: object) -> None: ...

    executor = pipelines.executor(spoils)
    watcher = TaskLogs({"p": executor.logging_dir})
    runs = Executor.on_local(
        state=str(pipelines.folder / "state"), cpus=1, observers=[Mender(), watcher]
    )
    runs.run(Job("j", [Stage("p", rank_function(executor))]), check=False)
    watcher.close()
    assert "ValueError: the rank's own" in pipelines.log()
    assert "Launching pipeline for rank=0" in pipelines.log()
    assert "it is not tried again" in pipelines.log().splitlines()[-1]


def test_large_stats_reach_the_driver_by_a_file_of_the_logging_directory(
    pipelines: Pipelines,
) -> None:
    class Talkative(PipelineStep):  # type: ignore[misc]  # datatrove has no types
        name = "talkative"
        type = "test"

        def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Any:
            import random

            for _ in range(4000):
                self.stat_update(f"{random.getrandbits(200)}", value=3)
            return []

    executor = pipelines.executor(Talkative())
    report = pipelines.run(executor)
    result = json.dumps(report.results("p")[0])
    assert "thornback/stats/000001." in result
    text = decode(result, executor.logging_dir.read_text)
    assert len(json.loads(text)[0]["stats"]) == 4000


def test_the_tool_of_datatrove_shows_the_logs_of_killed_ranks(
    pipelines: Pipelines, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import sys

    from datatrove.tools import failed_logs

    def dies_at_1(data: Any, rank: int, world_size: int) -> Any:
        if rank == 1:
            killed(data, rank, world_size)

    executor = pipelines.executor(dies_at_1, tasks=2)
    executor.save_executor_as_json()
    pipelines.run(executor, max_retries=0)
    executor.mark_rank_as_completed(0)
    monkeypatch.setattr(sys, "argv", ["failed_logs", str(pipelines.logging_dir)])
    failed_logs.main()
    shown = capsys.readouterr().out
    assert "Found 1/2 incomplete tasks" in shown
    assert "about to die" in shown
    assert "WORKER_CRASH" in shown
