"""What the pool, and a run, cost on Ray beside the least that one would write by hand.

    python tools/bench/pool.py [--only NAME ...] [--repeat 7]

All on one Ray of four logical CPUs, in one process. The sides of a comparison take turns, medians
are compared. Figures of one process on a busy machine move by a fifth: compare within one run, and
keep the machine quiet.

    noop    ranks that do nothing, one per call: the pool against a `ray.wait` loop
    run     Executor.on_ray as it comes against that loop, seconds per rank, start-up apart
    open    a gang (lease and workers) against a bare placement group, actor and ping
    kill    from the SIGKILL of a rank's process to its next attempt
    fresh   a fresh process for each rank against one that is kept
    many    100,000 ranks of 1 ms on four workers
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any

import anyio
import cloudpickle
import ray
from opentelemetry.sdk.trace import TracerProvider
from ray.util import ActorPool
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from thornback.executor import Executor, Job, RankContext, Stage
from thornback.executor.ports import LiveRun
from thornback.executor.testing import sighted
from thornback.placement import Allocator, Bundle, GangRequest
from thornback.placement.on_ray import RayCluster
from thornback.pool import Assignment, ProgramResult, RankCall, WorkerPool, WorkerSpec
from thornback.pool.on_ray import RayBackend

WORKERS = 4
CALLS = 2000
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

REQUESTS = (
    "async_wait_placement_group_ready",
    "create_actor",
    "create_placement_group",
    "kill_actor",
    "remove_placement_group",
    "submit_actor_task",
    "submit_task",
    "wait_placement_group_ready",
)
"""Methods of Ray's core worker."""

Figures = dict[str, Any]
Side = Callable[[], float]


def ms(seconds: Sequence[float]) -> float:
    """Return the median, in milliseconds."""
    return round(statistics.median(seconds) * 1e3, 3)


def in_turns(sides: dict[str, Side], repeat: int) -> dict[str, list[float]]:
    """Take each side `repeat` times, in turns."""
    times: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeat):
        for name, side in sides.items():
            times[name].append(side())
    return times


# -- by hand


class Plain:
    """The actor that one would write."""

    def rank(self, number: int) -> int:
        """Do nothing."""
        return number

    def sleep(self, number: int) -> int:
        """Take a millisecond."""
        time.sleep(0.001)
        return number


@contextmanager
def actors() -> Iterator[list[Any]]:
    """Give four of them, alive."""
    plain: Any = ray.remote(Plain)
    made = [plain.options(num_cpus=0).remote() for _ in range(WORKERS)]
    ray.get([actor.rank.remote(0) for actor in made])
    try:
        yield made
    finally:
        for actor in made:
            ray.kill(actor)


def wait_loop(made: Sequence[Any], calls: int, deep: int, method: str = "rank") -> float:
    """Return seconds per call of a loop over `ray.wait`, with so many calls in flight per actor."""
    started = time.perf_counter()
    flying: dict[Any, Any] = {}
    sent = 0
    for _ in range(deep):
        for actor in made:
            flying[getattr(actor, method).remote(sent)] = actor
            sent += 1
    results: dict[int, None] = {}
    while flying:
        (ready,), _ = ray.wait(list(flying), num_returns=1)
        actor = flying.pop(ready)
        results[ray.get(ready)] = None
        if sent < calls:
            flying[getattr(actor, method).remote(sent)] = actor
            sent += 1
    assert len(results) == calls
    return (time.perf_counter() - started) / calls


def _send(actor: Any, number: int) -> Any:
    return actor.rank.remote(number)


def actor_pool(made: Sequence[Any], calls: int) -> float:
    """Return seconds per call of `ray.util.ActorPool`."""
    started = time.perf_counter()
    pool = ActorPool(list(made))
    found = list(pool.map_unordered(_send, list(range(calls))))
    assert len(found) == calls
    return (time.perf_counter() - started) / calls


# -- the pool


class Noop:
    """A program that does nothing."""

    def setup(self, call: RankCall) -> None:
        """Do nothing."""

    def run(self, call: RankCall) -> ProgramResult:
        """Do nothing."""
        return ProgramResult(result=str(call.rank))


async def blobs(key: str) -> bytes:
    """Give the program, by value."""
    blob: bytes = cloudpickle.dumps(Noop())
    return blob


@asynccontextmanager
async def pool_of(
    gangs: int, tracers: TracerProvider | None = None
) -> AsyncIterator[tuple[WorkerPool, Allocator]]:
    """Give a pool with so many gangs of one slot open."""
    async with (
        Allocator(RayCluster()) as leases,
        WorkerPool(RayBackend(), blobs, tracer_provider=tracers) as pool,
    ):

        async def open_gang(number: int) -> None:
            lease = await leases.acquire(GangRequest(bundle=Bundle(cpus=1)))
            spec = WorkerSpec(cpus=1)
            await pool.open(number, lease.nodes, lease.handle, spec, timeout_s=120)

        async with anyio.create_task_group() as group:
            for number in range(1, gangs + 1):
                group.start_soon(open_gang, number)
        yield pool, leases


class Calls:
    """One rank per call on the gangs of a pool."""

    def __init__(self, pool: WorkerPool, gangs: int) -> None:
        self.pool = pool
        self.gangs = gangs
        self.number = 0

    def assignment(self, **fields: Any) -> Assignment:
        """Make the next."""
        self.number += 1
        return Assignment(
            assignment=self.number,
            epoch=f"000001.{self.number:09}",
            stage=0,
            ranks=(range(self.number, self.number + 1),),
            program="noop",
            **fields,
        )

    async def run(self, calls: int, deep: int, **fields: Any) -> float:
        """Return seconds per rank, with so many assignments in flight per gang."""
        left = calls

        async def lane(gang: int) -> None:
            nonlocal left
            while left > 0:
                left -= 1
                work = self.assignment(**fields)
                done = [o async for r in self.pool.run(gang, work) for o in r.outcomes]
                assert done[0].ok, done

        started = time.perf_counter()
        async with anyio.create_task_group() as group:
            for gang in range(1, self.gangs + 1):
                for _ in range(deep):
                    group.start_soon(lane, gang)
        return (time.perf_counter() - started) / calls


async def bench_noop(repeat: int) -> Figures:
    """Compare the pool with the loops."""
    tracers = TracerProvider()
    times: dict[str, list[float]] = {}
    cpu: dict[str, list[float]] = {}
    async with pool_of(WORKERS, tracers) as (pool, _):
        calls = Calls(pool, WORKERS)
        with actors() as made:
            await calls.run(200, 1)
            wait_loop(made, 200, 1)
            for _ in range(repeat):
                for name, side in {
                    "pool": partial(calls.run, CALLS, 1),
                    "pool, two in flight": partial(calls.run, CALLS, 2),
                    "pool, spans": partial(calls.run, CALLS, 1, traceparent=TRACEPARENT),
                }.items():
                    busy = time.process_time()
                    times.setdefault(name, []).append(await side())
                    cpu.setdefault(name, []).append((time.process_time() - busy) / CALLS)
                for name, by_hand in {
                    "ray.wait": partial(wait_loop, made, CALLS, 1),
                    "ray.wait, two in flight": partial(wait_loop, made, CALLS, 2),
                    "ActorPool": partial(actor_pool, made, CALLS),
                }.items():
                    busy = time.process_time()
                    times.setdefault(name, []).append(by_hand())
                    cpu.setdefault(name, []).append((time.process_time() - busy) / CALLS)
                    await anyio.lowlevel.checkpoint()
    figures: Figures = {f"{name} ms": ms(each) for name, each in times.items()}
    figures |= {f"{name}: cpu of the driver ms": ms(each) for name, each in cpu.items()}
    better = min(ms(times["ray.wait"]), ms(times["ray.wait, two in flight"]))
    fastest = min(ms(times["pool"]), ms(times["pool, two in flight"]))
    return figures | {
        "pool / loop, speed (0.9)": round(ms(times["ray.wait"]) / ms(times["pool"]), 2),
        "best pool / best loop, speed": round(better / fastest, 2),
        "pool with spans / loop, speed (0.85)": round(
            ms(times["ray.wait"]) / ms(times["pool, spans"]), 2
        ),
    }


# -- runs


def noop(ctx: RankContext) -> None:
    """Do nothing."""


def a_millisecond(ctx: RankContext) -> None:
    """Take a millisecond."""
    time.sleep(0.001)


def run_of(function: Callable[[RankContext], None], ranks: int) -> float:
    """Return the seconds of one run on four gangs, from its first dispatch to its end."""
    first: list[float] = []

    async def look(driver: LiveRun) -> None:
        async for _ in driver.dispatches():
            first.append(time.perf_counter())
            return

    folder = tempfile.mkdtemp()
    try:
        job = Job("bench", [Stage("bench", function, ranks=ranks, max_gangs=WORKERS)])
        executor = Executor.on_ray(state=os.path.join(folder, "state"), companions=[look])
        report = executor.run(job)
        took = time.perf_counter() - first[0]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    assert report.stages["bench"].done == ranks
    return took


async def bench_run(repeat: int) -> Figures:
    """Compare a run's time per rank, by the slope of two sizes, with the loop."""
    few, many = 2_000, 42_000
    with actors() as made:
        sides: dict[str, Side] = {
            "few": lambda: run_of(noop, few),
            "many": lambda: run_of(noop, many),
            "loop": lambda: wait_loop(made, CALLS, 1),
        }
        # Runs start a loop of their own.
        times = await anyio.to_thread.run_sync(in_turns, sides, min(repeat, 3))
    slope = (statistics.median(times["many"]) - statistics.median(times["few"])) / (many - few)
    loop = statistics.median(times["loop"])
    return {
        "run us per rank": round(slope * 1e6, 1),
        "loop us per rank": round(loop * 1e6, 1),
        "loop / run (6, aim 20)": round(loop / slope, 1),
        "seconds": {name: [round(t, 2) for t in each] for name, each in times.items()},
    }


async def bench_many(repeat: int) -> Figures:
    """Run 100,000 ranks of a millisecond."""
    cpu = time.process_time()
    took = await anyio.to_thread.run_sync(run_of, a_millisecond, 100_000)
    return {
        "seconds": round(took, 1),
        "ideal seconds": 25.0,
        "driver cpu s": round(time.process_time() - cpu, 1),
        "driver peak rss MiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
    }


# -- gangs


def bare() -> float:
    """Return the seconds of a placement group, an actor on it, and a ping."""
    started = time.perf_counter()
    group = placement_group([{"CPU": 1}])
    ray.get(group.ready())
    strategy = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=0)
    plain: Any = ray.remote(Plain)
    actor = plain.options(num_cpus=1, scheduling_strategy=strategy).remote()
    ray.get(actor.rank.remote(0))
    took = time.perf_counter() - started
    ray.kill(actor)
    remove_placement_group(group)
    return took


class Counted:
    """Stands for an object of Ray's, and counts the requests that are made with it."""

    def __init__(self, real: object, made: Counter[str]) -> None:
        self._real = real
        self._made = made

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._real, name)
        if not (name in REQUESTS or name.endswith("_info")):
            return found

        def request(*args: object, **kwargs: object) -> object:
            self._made[name] += 1
            return found(*args, **kwargs)

        return request


@contextmanager
def counted() -> Iterator[Counter[str]]:
    """Count what this process asks of actors, tasks and the GCS, as `REQUESTS` and `get_*_info`."""
    made: Counter[str] = Counter()
    worker: Any = ray._private.worker.global_worker
    state: Any = ray._private.state.state
    core, accessor = worker.core_worker, state._global_state_accessor
    worker.core_worker = Counted(core, made)
    state._global_state_accessor = Counted(accessor, made)
    try:
        yield made
    finally:
        worker.core_worker, state._global_state_accessor = core, accessor


async def bench_open(repeat: int) -> Figures:
    """Compare the opening of a gang with the bare thing."""
    times: dict[str, list[float]] = {"gang": [], "bare": []}
    asked: dict[str, Counter[str]] = {}
    async with (
        Allocator(RayCluster()) as leases,
        WorkerPool(RayBackend(), blobs) as pool,
    ):
        for number in range(1, repeat + 2):
            with counted() as asked["gang"]:
                started = time.perf_counter()
                lease = await leases.acquire(GangRequest(bundle=Bundle(cpus=1)))
                spec = WorkerSpec(cpus=1)
                await pool.open(number, lease.nodes, lease.handle, spec, timeout_s=120)
                times["gang"].append(time.perf_counter() - started)
            assert await pool.close(number, kill=True, timeout_s=15)
            assert await leases.release(lease, timeout_s=15)
            with counted() as asked["bare"]:
                times["bare"].append(await anyio.to_thread.run_sync(bare))
    gang, plain = times["gang"][1:], times["bare"][1:]  # the first of each warms Ray up
    ratio = statistics.median(gang) / statistics.median(plain)
    asked["bare"] -= Counter(dict.fromkeys(("kill_actor", "remove_placement_group"), 1))
    more = asked["gang"].total() - asked["bare"].total()
    return {
        "gang ms": ms(gang),
        "bare ms": ms(plain),
        "gang / bare (1.3)": round(ratio, 2),
        "requests of a gang": dict(asked["gang"]),
        "requests of the bare thing": dict(asked["bare"]),
        "more requests (2)": more,
    }


def stubborn(ctx: RankContext) -> float:
    """Wait to be killed, then tell when the next attempt began."""
    if ctx.attempt == 1:
        time.sleep(300)
    return time.time()


async def bench_kill(repeat: int) -> Figures:
    """Measure from the SIGKILL of a rank's process to its next attempt."""
    gaps: list[float] = []

    def once() -> float:
        killed: list[float] = []

        async def kill(driver: LiveRun) -> None:
            at = await sighted(driver)
            killed.append(time.time())
            os.kill(at.running.pid, signal.SIGKILL)

        with tempfile.TemporaryDirectory() as folder:
            state = os.path.join(folder, "state")
            executor = Executor.on_ray(state=state, companions=[kill])
            report = executor.run(Job("kill", [Stage("kill", stubborn)]))
            again = report.results("kill")[0]
        assert isinstance(again, float)
        return again - killed[0]

    for _ in range(repeat):
        gaps.append(await anyio.to_thread.run_sync(once))
    return {"kill to next attempt ms (50)": ms(gaps), "worst ms": round(max(gaps) * 1e3, 1)}


async def bench_fresh(repeat: int) -> Figures:
    """Compare a fresh process per rank with one that is kept."""
    times: dict[str, list[float]] = {"kept": [], "fresh": []}
    async with pool_of(1) as (pool, _):
        calls = Calls(pool, 1)
        await calls.run(20, 1)
        for _ in range(repeat):
            times["kept"].append(await calls.run(100, 1))
            times["fresh"].append(await calls.run(100, 1, max_ranks_per_child=1))
    extra = statistics.median(times["fresh"]) - statistics.median(times["kept"])
    return {
        "kept ms": ms(times["kept"]),
        "fresh ms": ms(times["fresh"]),
        "a process costs ms": round(extra * 1e3, 2),
    }


BENCHES: dict[str, Callable[[int], Awaitable[Figures]]] = {
    "noop": bench_noop,
    "run": bench_run,
    "open": bench_open,
    "kill": bench_kill,
    "fresh": bench_fresh,
    "many": bench_many,
}


def main() -> None:
    """Measure; print a table, and one line of JSON at the end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=BENCHES, nargs="+", default=list(BENCHES))
    parser.add_argument("--repeat", type=int, default=7)
    options = parser.parse_args()
    ray.init(address="local", num_cpus=WORKERS, include_dashboard=False, log_to_driver=False)
    figures: dict[str, Figures] = {}
    for name in options.only:
        found = figures[name] = anyio.run(BENCHES[name], options.repeat)
        for what, value in found.items():
            print(f"{name:6} {what:40} {value}", flush=True)
    sys.stdout.flush()
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
