"""Marginal time per no-op rank, beside datatrove's RayPipelineExecutor, in one run on the same Ray.

    python tools/bench/noop_ranks.py [--repeat 3]

Slopes, so that start-up does not count: thornback (T(220) - T(20)) / 200 with 4 workers, datatrove
(T(16) - T(8)) / 8 with 4 workers. The two take turns; medians are printed, and the ratio of the
medians."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time

import ray
from datatrove.data import DocumentsPipeline
from datatrove.executor.ray import RayPipelineExecutor

from thornback.executor import Executor, Job, RankContext, Stage

WORKERS = 4


def noop(ctx: RankContext) -> None:
    """Do nothing."""


def noop_step(data: DocumentsPipeline, rank: int = 0, world_size: int = 1) -> DocumentsPipeline:
    """Do nothing, as a datatrove step."""
    yield from data or ()


def time_thornback(ranks: int, folder: str) -> float:
    """Return the seconds of one run."""
    state = os.path.join(folder, f"thornback-{ranks}")
    shutil.rmtree(state, ignore_errors=True)
    job = Job("noop", [Stage("noop", noop, ranks=ranks, max_gangs=WORKERS)])
    started = time.perf_counter()
    report = Executor.on_ray(state=state).run(job)
    took = time.perf_counter() - started
    assert report.stages["noop"].done == ranks
    return took


def time_datatrove(tasks: int, folder: str) -> float:
    """Return the seconds of one run."""
    logs = os.path.join(folder, f"datatrove-{tasks}")
    shutil.rmtree(logs, ignore_errors=True)
    executor = RayPipelineExecutor(
        [noop_step], tasks=tasks, workers=WORKERS, logging_dir=logs, mem_per_cpu_gb=0.1
    )
    started = time.perf_counter()
    executor.run()
    took = time.perf_counter() - started
    assert len(os.listdir(os.path.join(logs, "completions"))) == tasks
    return took


def main() -> None:
    """Measure, and print one line of JSON at the end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    ray.init(address="local", num_cpus=WORKERS, include_dashboard=False, log_to_driver=False)
    times: dict[tuple[str, int], list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        time_thornback(20, folder)  # warms Ray's worker processes for both
        for _ in range(options.repeat):
            for ranks in (20, 220):
                times.setdefault(("thornback", ranks), []).append(time_thornback(ranks, folder))
            for tasks in (8, 16):
                times.setdefault(("datatrove", tasks), []).append(time_datatrove(tasks, folder))
    few, many = times["thornback", 20], times["thornback", 220]
    median = statistics.median
    theirs = (median(times["datatrove", 16]) - median(times["datatrove", 8])) / 8
    # A no-op rank costs less than the noise of a run's start: the worst pair is the honest bound.
    at_most = (max(many) - min(few)) / 200
    figures = {
        "thornback_ms_per_rank": round((median(many) - median(few)) / 200 * 1e3, 3),
        "thornback_ms_per_rank_at_most": round(at_most * 1e3, 3),
        "datatrove_ms_per_rank": round(theirs * 1e3, 1),
        "datatrove_over_thornback_at_least": round(theirs / at_most, 1),
        "seconds": {f"{who}({n})": [round(t, 2) for t in ts] for (who, n), ts in times.items()},
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
