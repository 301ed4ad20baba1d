"""How fast a gang is placed on Ray, alone and among gangs that can never be placed.

    python tools/bench/placement.py [--waiting 200] [--samples 20]

Starts a Ray of its own with two logical CPUs, takes and gives back one CPU again and again, alone
and then while others wait in vain, and prints one line of JSON: medians and maxima in milliseconds
(`behind_ms`: the one that is asked for right after all the others), and the threads of this
process."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time

import anyio
import anyio.to_thread
import ray

from thornback.placement import Allocator, Bundle, GangRequest
from thornback.placement.on_ray import RayCluster

CPUS = 2
ONE = GangRequest(bundle=Bundle(cpus=1))
NEVER = GangRequest(bundle=Bundle(cpus=0, gpus=8), nodes=2)


async def took_ms(leases: Allocator, samples: int) -> list[float]:
    """Return how long each `acquire` of one CPU took."""
    result = []
    for _ in range(samples):
        # Ray counts what a group gives back only after a while, and tries less and less often.
        while (await anyio.to_thread.run_sync(ray.available_resources)).get("CPU") != CPUS:
            pass
        start = time.perf_counter()
        lease = await leases.acquire(ONE)
        result.append((time.perf_counter() - start) * 1000)
        await leases.release(lease, timeout_s=30)
    return result


def threads() -> int:
    """Return how many threads this process has, those of Ray's own core too."""
    return len(os.listdir("/proc/self/task"))


async def measure(waiting: int, samples: int) -> dict[str, float]:
    """Return the figures."""
    async with (
        Allocator(RayCluster(), observe=lambda _: None) as leases,
        anyio.create_task_group() as tasks,
    ):
        alone, before = await took_ms(leases, samples), threads()
        for _ in range(waiting):
            tasks.start_soon(leases.acquire, NEVER)
        await anyio.wait_all_tasks_blocked()
        first = await took_ms(leases, 1)
        among, after = await took_ms(leases, samples), threads()
        tasks.cancel_scope.cancel()
    return {
        "waiting": waiting,
        "alone_ms": round(statistics.median(alone), 1),
        "alone_max_ms": round(max(alone), 1),
        "behind_ms": round(first[0], 1),
        "among_ms": round(statistics.median(among), 1),
        "among_max_ms": round(max(among), 1),
        "threads_before": before,
        "threads_after": after,
    }


def main() -> None:
    """Measure, and print one line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--waiting", type=int, default=200)
    parser.add_argument("--samples", type=int, default=20)
    options = parser.parse_args()
    ray.init(address="local", num_cpus=CPUS, include_dashboard=False, log_to_driver=False)
    try:
        print(json.dumps(anyio.run(measure, options.waiting, options.samples)))
    finally:
        ray.shutdown()


if __name__ == "__main__":
    main()
