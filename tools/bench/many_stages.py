"""What many stages cost the driver: 1,000 stages of one rank on the local backend, independent and
in a chain.

    python tools/bench/many_stages.py [--stages 1000] [--job independent] [--profile FILE]

Prints the CPU seconds (user and system) of this process over `run`, without its children, its wall
time, and the events that the scheduler handled. Targets for 1,000 stages: 4 s of CPU if they are
independent, 6 s in a chain. `--profile` writes what cProfile saw to FILE.independent and
FILE.chain, for `python -m pstats`; the figures are larger then.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from thornback.executor import Executor, Job, RankContext, Stage
from thornback.scheduler import Scheduler
from thornback.scheduler.commands import Command
from thornback.scheduler.events import Event

F = TypeVar("F")


def nothing(ctx: RankContext) -> None:
    """Do nothing."""


def independent(stages: int) -> Job:
    """Return a job of stages that wait for nothing."""
    return Job("independent", [Stage(f"s{n:04d}", nothing) for n in range(stages)])


def chain(stages: int) -> Job:
    """Return a job in which each stage waits for the one before it."""
    made: list[Stage] = []
    for n in range(stages):
        after = [made[-1].name] if made else []
        made.append(Stage(f"s{n:04d}", nothing, after=after))
    return Job("chain", made)


@contextmanager
def counted() -> Iterator[list[int]]:
    """Count the events that schedulers handle within the block."""
    handle, events = Scheduler.handle, [0]

    def counting(self: Scheduler[F], event: Event[F], now: float) -> Sequence[Command]:
        events[0] += 1
        return handle(self, event, now)

    Scheduler.handle = counting  # type: ignore[method-assign]
    try:
        yield events
    finally:
        Scheduler.handle = handle  # type: ignore[method-assign]


JOBS: dict[str, Callable[[int], Job]] = {"independent": independent, "chain": chain}


def measure(job: Job, profile: cProfile.Profile | None) -> dict[str, object]:
    """Return the figures of one run."""
    with tempfile.TemporaryDirectory() as state:
        executor = Executor.on_local(state=state, cpus=4)
        before, started = os.times(), time.monotonic()
        if profile is not None:
            profile.enable()
        with counted() as events:
            executor.run(job)
        if profile is not None:
            profile.disable()
        after, wall_s = os.times(), time.monotonic() - started
    return {
        "job": job.name,
        "stages": len(job.stages),
        "driver_cpu_s": round(after.user + after.system - before.user - before.system, 2),
        "wall_s": round(wall_s, 2),
        "events": events[0],
    }


def main() -> None:
    """Measure, and print one line of JSON per job."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stages", type=int, default=1000)
    parser.add_argument("--job", choices=JOBS, action="append")
    parser.add_argument("--profile")
    options = parser.parse_args()
    for name in options.job or JOBS:
        profile = cProfile.Profile() if options.profile else None
        print(json.dumps(measure(JOBS[name](options.stages), profile)), flush=True)
        if profile is not None:
            profile.dump_stats(f"{options.profile}.{name}")


if __name__ == "__main__":
    main()
