"""Writes `stats.json` of each pipeline as soon as its last rank is recorded, not at the end of the
whole chain (fulfils `thornback.executor.Observer`)."""

from __future__ import annotations

import json
import math
import queue
import threading
import time
from collections.abc import Callable, Mapping

from datatrove.executor.base import PipelineExecutor
from datatrove.utils.logging import logger
from datatrove.utils.stats import MetricStats, PipelineStats
from thornback.datatrove import markers
from thornback.executor import AttemptReport, RunInfo, RunReport, StageProgress

WAIT_S = 600.0
"""For the next file of statistics that are being merged when the run has ended; as long as the
record may take."""


class StatsKeeper:
    """Merges in one thread of its own, that no process waits for at its exit."""

    def __init__(
        self,
        stages: Mapping[str, PipelineExecutor],
        settled: Callable[[str], None],
        wait_s: float = WAIT_S,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`settled` is told the name of each stage that has ended, whatever it came to, when its
        statistics are written."""
        self._stages = stages
        self._settled = settled
        self._wait_s = wait_s
        self._monotonic = monotonic
        self._alive_at = monotonic()
        """When the store has last answered."""
        self._seen: set[str] = set()
        self._asked: queue.SimpleQueue[tuple[str, bool] | None] = queue.SimpleQueue()
        self._merged: dict[str, PipelineStats] = {}
        self._thread: threading.Thread | None = None

    def started(self, info: RunInfo, /) -> None:
        """Look at what earlier runs recorded."""
        self.progressed(info.stages)

    def progressed(self, stages: tuple[StageProgress, ...], /) -> None:
        """Have the statistics of stages merged that have ended."""
        for stage in stages:
            ended = stage.done + stage.failed + stage.skipped == stage.total
            if ended and stage.name in self._stages and stage.name not in self._seen:
                self._seen.add(stage.name)
                self._asked.put((stage.name, stage.done == stage.total))
                self._start()

    def failed(self, attempt: AttemptReport, /) -> None:
        """Not of interest."""

    def finished(self, report: RunReport, /) -> None:
        """Look at the last counts."""
        self.progressed(tuple(report.stages.values()))

    def close(self, *, in_all_s: float = math.inf) -> None:
        """Wait until what was asked for is done, the store has not answered for `wait_s` seconds,
        or `in_all_s` seconds are over."""
        self._asked.put(None)
        if self._thread is None:
            return
        self._tell_alive()
        end = self._alive_at + in_all_s
        while (left_s := min(self._alive_at + self._wait_s, end) - self._monotonic()) > 0:
            self._thread.join(left_s)
            if not self._thread.is_alive():
                return
        logger.warning(
            "stats.json could not be written in time: the store does not answer, or the run was "
            "ended. Run the pipeline again, or datatrove's merge_stats, to have it"
        )

    def _tell_alive(self) -> None:
        self._alive_at = self._monotonic()

    def merged(self, name: str) -> PipelineStats | None:
        """Return the statistics of a stage that is complete; None: they could not be merged."""
        return self._merged.get(name)

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="thornback-stats", daemon=True)
            self._thread.start()

    def _work(self) -> None:
        while (asked := self._asked.get()) is not None:
            name, complete = asked
            try:
                if complete:
                    self._merged[name] = merge(name, self._stages[name], self._tell_alive)
            except Exception:  # noqa: BLE001  # the store's; that all is recorded is what counts
                logger.exception(f"{name}: stats.json could not be written; merge_stats can do it")
            finally:
                self._settled(name)


def merge(
    name: str, executor: PipelineExecutor, read_one: Callable[[], None] = lambda: None
) -> PipelineStats:
    """Return the statistics of all ranks, and write `stats.json` unless some are missing, which are
    then named in a warning. `read_one`: see `markers.merge_stats`."""
    folder, size = executor.logging_dir, executor.world_size
    merged = markers.merge_stats(folder, size, read_one)
    if merged.missing:
        shown = ", ".join(f"stats/{rank:05d}.json" for rank in merged.missing[:8])
        more = f" and {len(merged.missing) - 8} more" if len(merged.missing) > 8 else ""
        logger.warning(f"{name}: stats.json is not written, since {shown}{more} cannot be read")
    else:
        markers.save_merged(folder, merged)
    return merged.stats


def of_complete(name: str, executor: PipelineExecutor) -> PipelineStats:
    """Return the statistics of a pipeline that was complete before, and write `stats.json` where a
    driver died before it did."""
    try:
        with executor.logging_dir.open("stats.json", "r") as file:
            return PipelineStats.from_json(json.load(file))
    except (FileNotFoundError, ValueError):  # never written, or torn
        return merge(name, executor)


def readable(stats: PipelineStats) -> PipelineStats:
    """Return the statistics with metrics to be read in one way, wherever they came from. Of one
    that is read from a file, datatrove makes a `MetricStats` only when another is added."""
    for step in stats.stats:
        for name, value in step.stats.items():
            if not isinstance(value, MetricStats):
                step.stats[name] = MetricStats.from_dict(value)
    return stats
