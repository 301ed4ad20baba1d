"""Whole runs of one pipeline through the facade, with worker processes of this machine."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from datatrove.pipeline.base import PipelineStep
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from tests.integration.pipelines import Touch, files, listening, make, runs
from thornback.datatrove import PipelineMismatch
from thornback.executor import RunCancelled, RunFailed, UsageError


@pytest.fixture
def told() -> Iterator[list[str]]:
    with listening() as lines:
        yield lines


@pytest.mark.parametrize(("tasks", "workers"), [(3, 1), (3, 3), (3, -1)])
def test_all_files_are_there_as_datatrove_writes_them(
    tmp_path: Path, tasks: int, workers: int
) -> None:
    executor = make(tmp_path, "a", tasks=tasks, workers=workers)
    stats = executor.run()
    assert runs(tmp_path, "a") == {0: 1, 1: 1, 2: 1}
    ranks = [f"{rank:05d}" for rank in range(3)]
    assert files(tmp_path, "a") == {
        "executor.json",
        "stats.json",
        *(f"completions/{rank}" for rank in ranks),
        *(f"stats/{rank}.json" for rank in ranks),
        *(f"logs/task_{rank}.log" for rank in ranks),
    }
    assert stats.stats[0]["ranks"].total == 3
    assert json.loads((tmp_path / "a/stats.json").read_text()) == json.loads(stats.to_json())
    assert executor.get_incomplete_ranks() == []


def test_defect_14_failed_ranks_raise_with_ranks_cause_and_log(
    tmp_path: Path, told: list[str]
) -> None:
    executor = make(tmp_path, "a", tasks=3, failing=(1,))
    with pytest.raises(RunFailed) as caught:
        executor.run()
    text = caught.value.text
    assert "1 of 3 tasks of stage 'a' failed" in text
    assert "1 task of stage 'a' (1)" in text
    assert "ValueError" in text
    assert "rank 1 is to fail" in text
    log = tmp_path / "a/logs/task_00001.log"
    assert str(log) in text
    assert "rank 1 is to fail" in log.read_text()
    assert not (tmp_path / "a/stats.json").exists()
    assert executor.get_incomplete_ranks() == [1]
    assert any("rank=1 (attempt 1) failed and is given up" in line for line in told)


def test_defect_14_on_failure_return_warns_and_gives_the_statistics_of_what_is_complete(
    tmp_path: Path, told: list[str]
) -> None:
    stats = make(tmp_path, "a", tasks=3, failing=(1,), on_failure="return").run()
    assert stats.stats[0]["ranks"].total == 2
    assert any(line.startswith("WARNING Job 'a' failed: 1 of 3 tasks") for line in told)


def test_failed_ranks_alone_run_again(tmp_path: Path) -> None:
    with pytest.raises(RunFailed):
        make(tmp_path, "a", tasks=3, failing=(1,)).run()
    stats = make(tmp_path, "a", tasks=3).run()
    assert runs(tmp_path, "a") == {0: 1, 1: 1, 2: 1}
    assert stats.stats[0]["ranks"].total == 3


def test_defect_20_a_complete_pipeline_runs_nothing_and_gets_the_stats_json_that_is_missing(
    tmp_path: Path, told: list[str]
) -> None:
    make(tmp_path, "a").run()
    written = (tmp_path / "a/stats.json").read_bytes()
    (tmp_path / "a/stats.json").unlink()
    stats = make(tmp_path, "a").run()
    assert runs(tmp_path, "a") == {0: 1, 1: 1}
    assert (tmp_path / "a/stats.json").read_bytes() == written
    assert stats.stats[0]["ranks"].total == 2
    assert any("All 2 tasks appear to be completed already" in line for line in told)


def test_what_run_returns_is_read_in_one_way_also_of_one_task_and_of_what_is_complete(
    tmp_path: Path,
) -> None:
    for name, tasks in (("a", 1), ("b", 2)):
        for _ in range(2):
            assert make(tmp_path, name, tasks=tasks).run().stats[0]["ranks"].total == tasks
    assert '"ranks": 1' in (tmp_path / "a/stats.json").read_text(), "as datatrove writes it"


def test_a_stale_stats_json_does_not_outlive_the_beginning_of_another_run(tmp_path: Path) -> None:
    make(tmp_path, "a").run()
    (tmp_path / "a/completions/00001").unlink()
    with pytest.raises(RunFailed):
        make(tmp_path, "a", failing=(1,)).run()
    assert not (tmp_path / "a/stats.json").exists()
    make(tmp_path, "a").run()
    assert (tmp_path / "a/stats.json").exists()
    assert runs(tmp_path, "a") == {0: 1, 1: 2}


def test_statistics_that_are_too_long_for_a_record_are_there_as_well(tmp_path: Path) -> None:
    class Counts(PipelineStep):  # type: ignore[misc]  # datatrove has no types
        name = "counts"
        type = "test"

        def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Any:
            import random

            random.seed(rank)
            for _ in range(6000):
                self.stat_update(f"{random.getrandbits(128):x}")
            yield from ()

    make(tmp_path, "a", pipeline=[Counts()]).run()
    written = json.loads((tmp_path / "a/stats/00001.json").read_text())
    assert len(written[0]["stats"]) == 6000
    assert len(json.loads((tmp_path / "a/stats.json").read_text())[0]["stats"]) == 12000


def test_defect_27_a_missing_stats_file_is_named_and_nothing_is_raised(
    tmp_path: Path, told: list[str]
) -> None:
    make(tmp_path, "a", tasks=3).run()
    (tmp_path / "a/stats.json").unlink()
    (tmp_path / "a/stats/00001.json").unlink()
    stats = make(tmp_path, "a", tasks=3).run()
    assert stats.stats[0]["ranks"].total == 2
    assert not (tmp_path / "a/stats.json").exists()
    assert any("stats/00001.json" in line for line in told)


def test_defect_27_statistics_that_cannot_be_written_fail_no_run_that_is_complete(
    tmp_path: Path, told: list[str]
) -> None:
    def is_in_the_way(data: Any, rank: int, world_size: int) -> None:
        (tmp_path / "a/stats.json").mkdir(exist_ok=True)

    executor = make(tmp_path, "a", pipeline=[is_in_the_way])
    assert executor.run().stats == []
    assert executor.get_incomplete_ranks() == []
    assert any("stats.json could not be written" in line for line in told)


def test_defect_18_the_marks_of_another_pipeline_are_refused_or_taken_on_request(
    tmp_path: Path, told: list[str]
) -> None:
    make(tmp_path, "a", tasks=3).run()
    before = (tmp_path / "a/executor.json").read_bytes()
    with pytest.raises(PipelineMismatch, match="was 3, is 2"):
        make(tmp_path, "a", tasks=2).run()
    with pytest.raises(PipelineMismatch, match="number of steps was 1, is 2"):
        make(tmp_path, "a", tasks=3, pipeline=[[], Touch(tmp_path / "a-out")]).run()
    assert (tmp_path / "a/executor.json").read_bytes() == before
    make(tmp_path, "a", tasks=2, on_mismatch="warn").run()
    assert any("holds the completions of a different pipeline" in line for line in told)
    make(tmp_path, "a", tasks=2, on_mismatch="adopt").run()
    assert runs(tmp_path, "a") == {0: 1, 1: 1, 2: 1}


def test_defect_18_steps_that_differ_are_named_also_if_only_some_ranks_are_complete(
    tmp_path: Path,
) -> None:
    with pytest.raises(RunFailed):
        make(tmp_path, "a", failing=(0,)).run()
    again = [[], Touch(tmp_path / "a-out")]
    with pytest.raises(PipelineMismatch, match=r"step 0 was .*\.Touch, is Iterable"):
        make(tmp_path, "a", pipeline=again).run()
    assert runs(tmp_path, "a") == {1: 1}
    make(tmp_path, "a", pipeline=again, on_mismatch="warn").run()
    assert runs(tmp_path, "a") == {0: 1, 1: 1}


@pytest.mark.parametrize("on_mismatch", ["refuse", "adopt"])
def test_resume_with_other_parameters_of_a_step_warns_and_names_them(
    on_mismatch: str, tmp_path: Path, told: list[str]
) -> None:
    with pytest.raises(RunFailed):
        make(tmp_path, "a", failing=(0,)).run()
    make(tmp_path, "a", failing=(), on_mismatch=on_mismatch).run()
    assert runs(tmp_path, "a") == {0: 1, 1: 1}
    (line,) = [line for line in told if "parameters have changed since" in line]
    assert "step 0 (" in line
    assert "Touch): failing" in line
    make(tmp_path, "a", failing=(), on_mismatch=on_mismatch).run()
    assert len([line for line in told if "parameters have changed since" in line]) == 1


def test_a_pipeline_of_which_nothing_is_complete_may_be_changed(tmp_path: Path) -> None:
    with pytest.raises(RunFailed):
        make(tmp_path, "a", failing=(0, 1)).run()
    make(tmp_path, "a", tasks=3, pipeline=[[], Touch(tmp_path / "a-out")]).run()
    assert runs(tmp_path, "a") == {0: 1, 1: 1, 2: 1}


def test_defect_18_completions_of_ranks_that_a_smaller_world_lacks_are_not_thrown_away(
    tmp_path: Path,
) -> None:
    with pytest.raises(RunFailed):
        make(tmp_path, "a", tasks=4, failing=(0, 1)).run()
    with pytest.raises(PipelineMismatch, match="was 4, is 2"):
        make(tmp_path, "a", tasks=2).run()
    make(tmp_path, "a", tasks=4).run()
    assert runs(tmp_path, "a") == dict.fromkeys(range(4), 1)


def test_skip_completed_false_runs_all_again(tmp_path: Path) -> None:
    make(tmp_path, "a").run()
    make(tmp_path, "a", skip_completed=False).run()
    assert runs(tmp_path, "a") == {0: 2, 1: 2}


def test_skip_completed_false_with_fewer_tasks_leaves_nothing_of_the_others_that_tools_count(
    tmp_path: Path,
) -> None:
    make(tmp_path, "a", tasks=4).run()
    make(tmp_path, "a", tasks=2, skip_completed=False).run()
    assert {
        name for name in files(tmp_path, "a") if name.startswith(("completions", "stats/"))
    } == {
        "completions/00000",
        "completions/00001",
        "stats/00000.json",
        "stats/00001.json",
    }


def test_what_does_not_pickle_is_refused_and_nothing_is_launched(tmp_path: Path) -> None:
    step = Touch(tmp_path / "a-out")
    step.lock = threading.Lock()
    executor = make(tmp_path, "a", pipeline=[step])
    with pytest.raises(UsageError, match="does not pickle"):
        executor.run()
    assert not executor._launched
    assert not executor._launch.active


def test_defect_13_a_cancelled_run_is_not_tried_again(tmp_path: Path) -> None:
    gate = tmp_path / "never"

    def wait_at_gate(data: Any, rank: int, world_size: int) -> None:
        import os
        import time

        (tmp_path / f"began-{rank}").open("a").write("x")
        while not os.path.exists(gate):
            time.sleep(0.05)

    async def cancel(run: Any) -> None:
        async for _ in run.dispatches():
            run.cancel("enough", kill=True)

    parent = make(tmp_path, "parent", tasks=1, pipeline=[wait_at_gate])
    child = make(tmp_path, "child", depends=parent, companions=[cancel])
    with pytest.raises(RunCancelled, match="enough"):
        child.run()
    began = tmp_path / "began-0"
    assert not began.exists() or began.read_text() == "x"
    assert runs(tmp_path, "child") == {}
    assert not parent._launch.active
    assert not child._launch.active


def test_defect_16_a_straggler_holds_nothing_up(tmp_path: Path) -> None:
    """Rank 0 ends when all others have: those have to go by on the one worker that is left."""
    out = tmp_path / "a-out"

    def last(data: Any, rank: int, world_size: int) -> None:
        import os
        import time

        deadline = time.monotonic() + 60
        while rank == 0 and len(os.listdir(out) if out.exists() else ()) < world_size - 1:
            assert time.monotonic() < deadline
            time.sleep(0.02)

    make(tmp_path, "a", tasks=12, workers=2, pipeline=[last, Touch(out)]).run()
    assert runs(tmp_path, "a") == dict.fromkeys(range(12), 1)


def test_defect_19_a_retry_runs_only_what_failed_also_with_skip_completed_false(
    tmp_path: Path,
) -> None:
    def once(data: Any, rank: int, world_size: int) -> None:
        seen = tmp_path / f"seen-{rank}"
        if rank == 1 and not seen.exists():
            seen.touch()
            raise ValueError("the first time")

    make(tmp_path, "a", tasks=3).run()
    again = [once, Touch(tmp_path / "a-out")]
    make(
        tmp_path,
        "a",
        tasks=3,
        pipeline=again,
        skip_completed=False,
        retries=1,
        on_mismatch="adopt",
    ).run()
    assert runs(tmp_path, "a") == {0: 2, 1: 2, 2: 2}


def test_defect_24_inference_steps_read_their_share_of_the_machine(tmp_path: Path) -> None:
    def reads(data: Any, rank: int, world_size: int) -> None:
        from datatrove.pipeline.inference.distributed import utils

        found = (
            utils.get_available_cpus_per_node(),
            utils.get_available_memory_per_node(),
            utils.get_available_gpus_per_node(),
            utils.get_distributed_environment(),
        )
        (tmp_path / "found").write_text(str(found))

    make(tmp_path, "a", tasks=1, mem_per_cpu_gb=1.5, pipeline=[reads]).run()
    assert (tmp_path / "found").read_text() == "(1, 1024, 0, 'RAY')"


def test_defect_28_workers_are_used_again_for_ranks_and_stages(tmp_path: Path) -> None:
    def notes(data: Any, rank: int, world_size: int) -> None:
        import os

        supervisor = os.path.basename(os.environ.get("TMPDIR", "")) or str(os.getppid())
        with open(tmp_path / "pids", "a") as file:
            file.write(f"{os.getpid()} {supervisor}\n")

    parent = make(tmp_path, "parent", tasks=20, workers=1, pipeline=[notes])
    make(tmp_path, "child", depends=parent, tasks=20, workers=1, pipeline=[notes]).run()
    lines = (tmp_path / "pids").read_text().split()
    assert len(lines) == 80
    assert len({*lines[::2]}) <= 2, "one process for each stage, not for each rank"
    assert len({*lines[1::2]}) == 1, "one worker for both stages"


def test_defect_31_two_nodes_on_one_are_refused_with_the_mend_and_packed_on_request(
    tmp_path: Path,
) -> None:
    with pytest.raises(RunFailed) as caught:
        make(tmp_path, "a", tasks=1, nodes_per_task=2).run()
    assert 'give strategy="PACK"' in caught.value.text
    assert "task_00000.log" not in caught.value.text, "it was never run"
    make(tmp_path, "b", tasks=1, nodes_per_task=2, strategy="PACK").run()
    assert files(tmp_path, "b") >= {"completions/00000", "stats/00000.json", "stats.json"}


def test_defect_10_a_rank_over_its_time_is_killed_and_tried_again(tmp_path: Path) -> None:
    def hangs_once(data: Any, rank: int, world_size: int) -> None:
        import time

        seen = tmp_path / "seen"
        if not seen.exists():
            seen.touch()
            time.sleep(600)

    make(tmp_path, "a", tasks=1, time=1, pipeline=[hangs_once, Touch(tmp_path / "a-out")]).run()
    assert runs(tmp_path, "a") == {0: 1}
    log = (tmp_path / "a/logs/task_00000.log").read_text()
    assert f"what earlier attempts wrote is in {tmp_path / 'a/thornback/logs'}\n" in log
    assert any((tmp_path / "a/thornback/logs").rglob("*.log"))


def test_run_works_where_an_event_loop_runs(tmp_path: Path) -> None:
    async def notebook() -> Any:
        return make(tmp_path, "a").run()

    stats = anyio.run(notebook)
    assert stats.stats[0]["ranks"].total == 2


def test_spans_go_to_the_provider_that_is_given(tmp_path: Path) -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    parent = make(tmp_path, "parent")
    make(tmp_path, "child", depends=parent, trace=provider).run()
    spans = exporter.get_finished_spans()
    assert [span.name for span in spans].count("thornback.run") == 1
    assert "child" in str([dict(span.attributes or {}) for span in spans])


def test_a_step_of_no_kind_and_no_tasks_at_all(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="step 0 is 3"):
        make(tmp_path, "a", pipeline=[3])
    assert make(tmp_path, "b", tasks=0).run().stats == []
    assert files(tmp_path, "b") == set()


def test_what_else_runs_is_not_disturbed_by_a_run_that_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a/completions").mkdir(parents=True)
    (tmp_path / "a/completions/00000").touch()
    stock = json.dumps({"world_size": 7})
    (tmp_path / "a/executor.json").write_text(stock)
    with pytest.raises(PipelineMismatch, match="was 7, is 2"):
        make(tmp_path, "a").run()
    assert (tmp_path / "a/executor.json").read_text() == stock
    (tmp_path / "a/completions/00000").rename(tmp_path / "a/completions/00006")
    with pytest.raises(PipelineMismatch, match="was 7, is 2"):
        make(tmp_path, "a").run()
    assert (tmp_path / "a/completions/00006").exists()
    assert not (tmp_path / "a/thornback").exists()
