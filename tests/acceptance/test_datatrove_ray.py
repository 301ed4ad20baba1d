"""datatrove's pipelines on a real Ray by the adapter, beside datatrove's own executors: the same
documents, the same folders, the same answers of its tools; also while ranks and workers are
killed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.acceptance.pipelines import SMALL, kept, minhash, quality, simple, write_corpus
from thornback.datatrove import RayPipelineExecutor
from thornback.executor.testing import Chaos

if TYPE_CHECKING:
    from tests.conftest import RayTestCluster

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]
ROOT = Path(__file__).resolve().parents[2]
TOOL_S = 120.0


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Text, as JSONL in shards."""
    folder = tmp_path_factory.mktemp("datatrove") / "source"
    assert write_corpus(folder) > 500
    return folder


@pytest.fixture(scope="module")
def reference(source: Path) -> Path:
    """What datatrove's LocalPipelineExecutor makes of the text: `quality` and `minhash`."""
    folder = source.parent / "reference"
    for name in ("quality", "minhash"):
        by_datatrove("local", name, source, folder / name)
    return folder


def by_datatrove(who: str, name: str, source: Path, work: Path, **variables: str) -> None:
    """Run a pipeline by an executor of datatrove's, which has a process of its own: not all that it
    does is free of warnings, and some of what it runs into it never tells."""
    command = [sys.executable, "-m", "tests.acceptance.pipelines", who, name]
    command += [str(source), str(work)]
    environment = os.environ | variables
    done = subprocess.run(
        command, cwd=ROOT, timeout=300, check=False, capture_output=True, env=environment
    )
    assert done.returncode == 0, done.stderr.decode()


def ours(**arguments: Any) -> RayPipelineExecutor:
    """Make the adapter, for machines that have little memory."""
    return RayPipelineExecutor(**(SMALL | arguments))


def test_filters_of_web_text_give_what_they_give_locally(
    ray_cluster: RayTestCluster, source: Path, reference: Path, tmp_path: Path
) -> None:
    stats = quality(ours, source, tmp_path).run()
    assert kept(tmp_path) == kept(reference / "quality")
    logs = tmp_path / "logs/quality"
    assert counts_by_rank(logs) == counts_by_rank(reference / "quality/logs/quality")
    assert stats.to_json() == (logs / "stats.json").read_text()
    ray_cluster.assert_nothing_left(timeout_s=30)


def test_deduplication_gives_what_it_gives_locally_while_ranks_and_workers_are_killed(
    ray_cluster: RayTestCluster, source: Path, reference: Path, tmp_path: Path
) -> None:
    chaos = [Chaos(kill_ranks=1, kill_workers=1, stage=None)]
    chain = minhash(lambda **a: ours(companions=chaos, **a), source, tmp_path)
    chain.run()
    assert [kill.what for kill in chaos[0].kills] == ["rank", "worker"]
    assert kept(tmp_path) == kept(reference / "minhash")
    for logs in sorted((tmp_path / "logs").iterdir()):
        theirs = reference / "minhash/logs" / logs.name
        assert names(logs) == names(theirs)
        assert counts_by_rank(logs) == counts_by_rank(theirs)
    ray_cluster.assert_nothing_left(timeout_s=30)


def test_a_folder_differs_from_one_of_the_stock_executor_in_times_only(
    ray_cluster: RayTestCluster, source: Path, tmp_path: Path
) -> None:
    logs = tmp_path / "logs"
    folders = {}
    for who in ("stock", "ours"):
        if who == "stock":
            environment = ray_cluster.environment | {"RAY_ADDRESS": ray_cluster.address}
            by_datatrove("stock", "simple", source, tmp_path, **environment)
        else:
            simple(ours, source, tmp_path).run()
        folders[who] = masked(logs)
        (tmp_path / who).mkdir()
        logs.rename(tmp_path / who / "logs")
    assert folders["ours"] == folders["stock"]
    told = {who: tools(tmp_path / who / "logs") for who in folders}
    assert told["ours"] == told["stock"]
    assert "2/2 (100%) completed tasks" in told["ours"]["jobs_status"]
    assert "Found 0/2 incomplete tasks" in told["ours"]["failed_logs"]
    assert "2/2" in told["ours"]["track_jobs"]


def names(logs: Path) -> set[str]:
    """Return the files of a logging folder, without what the adapter keeps for itself."""
    files = {str(path.relative_to(logs)) for path in logs.rglob("*") if path.is_file()}
    return {name for name in files if not name.startswith("thornback/")}


def counts(value: Any) -> Any:
    """Return statistics without what depends on the speed of the machine."""
    return [{"name": step["name"], "stats": step["stats"]} for step in value]


def counts_by_rank(logs: Path) -> dict[str, Any]:
    """Return the statistics of each rank without times. The merged ones of an executor that merges
    what it has in memory, in the order in which ranks end, differ in the last digit."""
    return {path.name: counts(json.loads(path.read_text())) for path in (logs / "stats").iterdir()}


def masked(logs: Path) -> dict[str, str]:
    """Return the files of a logging folder by name, their times and numbers of lines masked."""
    return {name: without_times(name, (logs / name).read_text()) for name in sorted(names(logs))}


def without_times(name: str, text: str) -> str:
    if name.startswith("stats"):
        return json.dumps(counts(json.loads(text)))
    text = re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}", "<when>", text)
    text = re.sub(r"\| [\w.]+:[\w.]+:\d+ - ", "| <where> - ", text)
    text = re.sub(
        r"\d+(\.\d+)? (milli)?seconds?|\d+ minutes?( and)?|\d+(\.\d+)?%|[±]\S*", "<took>", text
    )
    text = re.sub(r"0x[0-9a-f]+", "<address>", text)
    return re.sub(r"\[?(min|max)=[^\]]*\]?", "<span>", text)


def tools(logs: Path) -> dict[str, str]:
    """Return what datatrove's tools say of a logging folder, times masked."""
    told = {}
    merged = logs.parent / "merged.json"
    for tool, arguments in {
        "jobs_status": [str(logs.parent), "-p", logs.name],
        "failed_logs": [str(logs)],
        "track_jobs": [str(logs.parent / "lo*")],
        "merge_stats": [str(logs / "stats"), "-o", str(merged)],
    }.items():
        done = subprocess.run(
            [sys.executable, "-m", f"datatrove.tools.{tool}", *arguments],
            capture_output=True,
            text=True,
            timeout=TOOL_S,
            check=False,
            env=os.environ | {"COLUMNS": "200", "NO_COLOR": "1"},
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == 0, f"{tool}: {done.stdout}{done.stderr}"
        # The console handler shows a time only where it differs from the line before, and pads with
        # as many blanks where it does not.
        told[tool] = " ".join(re.sub(r"\[?\d\d:\d\d:\d\d\]?", "", done.stdout).split())
    told["merged"] = without_times("stats", merged.read_text())
    assert merged.read_text() == (logs / "stats.json").read_text()
    return told


@pytest.mark.parametrize(("tasks", "workers"), [(3, 1), (3, 3), (3, -1)])
def test_every_file_is_there(
    ray_cluster: RayTestCluster, source: Path, tmp_path: Path, tasks: int, workers: int
) -> None:
    logs = tmp_path / "logs"
    executor = simple(lambda **rest: ours(tasks=tasks, workers=workers, **rest), source, tmp_path)
    executor.run()
    assert executor.world_size == 3
    ranks = [f"{rank:05d}" for rank in range(tasks)]
    assert names(logs) == {
        "executor.json",
        "stats.json",
        *(f"completions/{rank}" for rank in ranks),
        *(f"stats/{rank}.json" for rank in ranks),
        *(f"logs/task_{rank}.log" for rank in ranks),
    }


def test_two_children_of_one_parent_run_it_once(
    ray_cluster: RayTestCluster, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    runs.mkdir()

    def note(who: str) -> Any:
        def step(data: Any, rank: int = 0, world_size: int = 1) -> Any:
            with (runs / f"{who}-{rank}").open("a") as file:
                file.write("ran\n")
            yield from data or ()

        return step

    def executor(who: str, **arguments: Any) -> RayPipelineExecutor:
        return ours(pipeline=[note(who)], tasks=2, logging_dir=str(tmp_path / who), **arguments)

    parent = executor("parent")
    for child in ("first", "second"):
        executor(child, depends=parent).run()
    assert {path.name: path.read_text() for path in runs.iterdir()} == {
        f"{who}-{rank}": "ran\n" for who in ("parent", "first", "second") for rank in range(2)
    }
