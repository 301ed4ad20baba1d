"""The adapter beside datatrove's own executors, in one run on the same machine and the same Ray.

    python tools/bench/datatrove_executors.py [noop] [minhash] [corpus] [--repeat 3] [--copies 8]

- noop: marginal time of a task that does nothing. Slopes, so that start-up does not count: the
  adapter (T(220) - T(20)) / 200, datatrove's RayPipelineExecutor (T(16) - T(8)) / 8, both with 4
  workers; and what a run of no task at all costs.
- minhash: the four-stage chain of deduplication, 31 tasks: the adapter, datatrove on Ray, and
  datatrove's LocalPipelineExecutor with as many workers. All give the same documents.
- corpus: quality filters over a corpus and over one `--copies` times as large. The difference of
  the two is work alone, without start-up: the adapter beside LocalPipelineExecutor(workers=2).

Who is compared takes turns; medians are printed, and their ratios as one line of JSON."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import ray
from datatrove.data import DocumentsPipeline
from datatrove.executor.base import PipelineExecutor
from datatrove.executor.ray import RayPipelineExecutor as Theirs

from thornback.datatrove import RayPipelineExecutor as Ours

WORKERS = 2
NOOP_WORKERS = 4
MEMORY_GB = 0.1
MODULES = 220
"""Sources of the standard library whose docstrings are read."""
Make = Callable[..., PipelineExecutor]
Times = dict[str, list[float]]


def noop_step(data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
    """Do nothing, as a datatrove step."""
    yield from data or ()


def ours(**arguments: Any) -> PipelineExecutor:
    """Make the adapter."""
    return Ours(mem_per_cpu_gb=MEMORY_GB, **({"workers": WORKERS} | arguments))


def theirs(**arguments: Any) -> PipelineExecutor:
    """Make datatrove's executor on Ray."""
    return Theirs(mem_per_cpu_gb=MEMORY_GB, **({"workers": WORKERS} | arguments))


def pipelines() -> ModuleType:
    """Return the pipelines of the acceptance tests."""
    path = Path(__file__).resolve().parents[2] / "tests" / "acceptance" / "pipelines.py"
    spec = importlib.util.spec_from_file_location("thornback_bench_pipelines", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def timed(executor: PipelineExecutor, logs: Path, tasks: int) -> float:
    """Return the seconds of a run, of which every task was completed."""
    started = time.perf_counter()
    executor.run()
    took = time.perf_counter() - started
    assert len(os.listdir(logs / "completions")) == tasks, f"not all tasks of {logs} are complete"
    return took


def noop(folder: Path, repeat: int) -> dict[str, Any]:
    """Compare the cost of one more task."""

    def once(make: Make, tasks: int) -> float:
        logs = folder / f"noop-{make.__name__}-{tasks}"
        shutil.rmtree(logs, ignore_errors=True)
        arguments = {"tasks": tasks, "workers": NOOP_WORKERS, "logging_dir": str(logs)}
        return timed(make(pipeline=[noop_step], **arguments), logs, tasks)

    once(ours, 20)  # warms Ray's worker processes for both
    times: Times = {}
    for _ in range(repeat):
        for make, sizes in ((ours, (20, 220)), (theirs, (8, 16))):
            for tasks in sizes:
                times.setdefault(f"{make.__name__} {tasks}", []).append(once(make, tasks))
    median = {name: statistics.median(each) for name, each in times.items()}
    our_slope = (median["ours 220"] - median["ours 20"]) / 200
    # A task costs less than the noise of a run's start: the worst pair is the honest bound.
    at_most = (max(times["ours 220"]) - min(times["ours 20"])) / 200
    their_slope = (median["theirs 16"] - median["theirs 8"]) / 8
    return {
        "ms_per_task": {"ours": 1e3 * our_slope, "theirs": 1e3 * their_slope},
        "ours_ms_per_task_at_most": 1e3 * at_most,
        "theirs_over_ours": their_slope / our_slope,
        "theirs_over_ours_at_least": their_slope / at_most,
        "start_up_s": {
            "ours": median["ours 20"] - 20 * our_slope,
            "theirs": median["theirs 8"] - 8 * their_slope,
        },
        "seconds": times,
    }


def minhash(folder: Path, repeat: int) -> dict[str, Any]:
    """Compare the chain of deduplication."""
    texts = pipelines()
    source = folder / "source"
    texts.write_corpus(source, modules=MODULES)
    times: Times = {}
    kept: dict[str, object] = {}
    for _ in range(repeat):
        for make in (ours, theirs, texts.local):
            work = folder / f"minhash-{make.__name__}"
            shutil.rmtree(work, ignore_errors=True)
            chain = texts.minhash(make, source, work)
            took = timed(chain, work / "logs" / "filter", texts.SHARDS)
            times.setdefault(make.__name__, []).append(took)
            kept[make.__name__] = texts.kept(work)
    assert kept["ours"] == kept["theirs"] == kept["local"], "not the same documents are left"
    median = {name: statistics.median(each) for name, each in times.items()}
    return {
        "theirs_over_ours": median["theirs"] / median["ours"],
        "local_over_ours": median["local"] / median["ours"],
        "seconds": times,
    }


def corpus(folder: Path, repeat: int, copies: int) -> dict[str, Any]:
    """Compare the work alone: what a larger corpus takes longer than a small one."""
    texts = pipelines()
    sources = {1: folder / "corpus-1", copies: folder / f"corpus-{copies}"}
    sizes = {
        each: texts.write_corpus(source, copies=each, modules=MODULES)
        for each, source in sources.items()
    }
    times: Times = {}
    kept: dict[str, object] = {}
    for _ in range(repeat):
        for make in (ours, texts.local):
            for each, source in sources.items():
                work = folder / f"quality-{make.__name__}-{each}"
                shutil.rmtree(work, ignore_errors=True)
                executor = texts.quality(make, source, work)
                took = timed(executor, work / "logs" / "quality", texts.SHARDS)
                times.setdefault(f"{make.__name__} {each}", []).append(took)
                kept[f"{make.__name__} {each}"] = texts.kept(work)
    assert kept[f"ours {copies}"] == kept[f"local {copies}"], "not the same documents are left"
    median = {name: statistics.median(each) for name, each in times.items()}
    work_s = {name: median[f"{name} {copies}"] - median[f"{name} 1"] for name in ("ours", "local")}
    share = copies - 1
    return {
        "documents": sizes,
        "work_s": work_s,
        "ours_over_local": work_s["ours"] / work_s["local"],
        "start_up_s": {n: median[f"{n} 1"] - work_s[n] / share for n in ("ours", "local")},
        "seconds": times,
    }


def main() -> None:
    """Measure, and print one line of JSON at the end."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parts = ("noop", "minhash", "corpus")
    parser.add_argument("part", nargs="*", metavar="PART", help=f"of {', '.join(parts)}; all")
    parser.add_argument("--repeat", type=int, default=3, help="of each measurement")
    parser.add_argument("--copies", type=int, default=8, help="size of the larger corpus")
    options = parser.parse_args()
    if unknown := [each for each in options.part if each not in parts]:
        parser.error(f"unknown: {', '.join(unknown)}; expected {', '.join(parts)}")
    wanted = options.part or parts
    ray.init(address="local", num_cpus=NOOP_WORKERS, include_dashboard=False, log_to_driver=False)
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if "noop" in wanted:
            figures["noop"] = noop(folder, options.repeat)
        if "minhash" in wanted:
            figures["minhash"] = minhash(folder, options.repeat)
        if "corpus" in wanted:
            figures["corpus"] = corpus(folder, options.repeat, options.copies)
    print(json.dumps(rounded(figures)))


def rounded(value: Any) -> Any:
    """Return the figures with three decimals."""
    if isinstance(value, dict):
        return {str(name): rounded(each) for name, each in value.items()}
    if isinstance(value, list):
        return [rounded(each) for each in value]
    return round(value, 3) if isinstance(value, float) else value


if __name__ == "__main__":
    main()
