"""The drivers in packages/scheduler/examples: as they stand, and under loads that are meant to
break them. And what the scheduler's README says of the executor."""

from __future__ import annotations

import asyncio
import importlib.util
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from thornback.executor.journal.tenure import JournalParams
from thornback.executor.params import ExecutorParams
from thornback.faults import Fault, RetryPolicy
from thornback.graph import Dag
from thornback.pool.poolparams import PoolParams
from thornback.pool.worker.params import SupervisorParams
from thornback.scheduler import Scheduler, SchedulerParams, StagePlan, commands, events
from thornback.scheduler.testing import Referee

PACKAGE = Path(__file__).parents[2] / "packages" / "scheduler"
EXAMPLES = PACKAGE / "examples"
SLOTS = 4
Work = Callable[[int, int, int], None]
both = pytest.mark.parametrize("how", ["threads", "asyncio"])


def load(how: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(how, EXAMPLES / f"embed_in_{how}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Watched:
    """A scheduler as a driver sees it, with a referee beside it."""

    def __init__(self, scheduler: Scheduler[Fault]) -> None:
        self.scheduler = scheduler
        self.referee: Referee[Fault] = Referee()
        self.handled: Counter[str] = Counter()
        self.handed_back = 0
        """Ranks that were returned without having been started."""
        self.longest_s = 0.0
        """Of what was reported as busy."""
        self.most_running = 0
        self._running = 0
        self._lock = threading.Lock()
        self.after: Callable[[Sequence[commands.Command]], events.Event[Fault] | None] = lambda _: (
            None
        )
        """Sees the commands; may return an event that shall come next."""
        self.carried_out: Callable[[], None] = lambda: None
        """Called when the driver has carried out the commands of one event."""

    @property
    def wake_at(self) -> float | None:
        return self.scheduler.wake_at

    @property
    def finished(self) -> bool:
        return self.scheduler.finished

    def wait_s(self, now: float) -> float | None:
        return self.scheduler.wait_s(now)

    def handle(self, event: events.Event[Fault], now: float) -> Iterator[commands.Command]:
        if isinstance(event, events.Ticked):
            due = self.scheduler.wake_at
            assert due is not None, "it polls"
            assert now >= due - 0.001, "it polls"
        if isinstance(event, events.RanksSucceeded):
            self.longest_s = max(self.longest_s, event.busy_s)
        if isinstance(event, events.RanksReturned):
            before = self.scheduler.counts(0).running
        given = self._handle(event, now)
        if isinstance(event, events.RanksReturned):
            self.handed_back += before - self.scheduler.counts(0).running
        then = self.after(given)
        if then is not None:
            given += self._handle(then, now)
        yield from given
        self.carried_out()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count what runs side by side."""
        with self._lock:
            self._running += 1
            self.most_running = max(self.most_running, self._running)
        try:
            yield
        finally:
            with self._lock:
                self._running -= 1

    def _handle(self, event: events.Event[Fault], now: float) -> list[commands.Command]:
        self.handled[type(event).__name__] += 1
        self.referee.tell(event)
        given = list(self.scheduler.handle(event, now))
        self.referee.heard(given)
        if sum(self.handled.values()) % 100 == 0:
            self.scheduler.check_invariants()
        return given


def drive(how: str, module: ModuleType, watched: Watched, work: Work, slots: int = SLOTS) -> None:
    """Run to the end; fail where it does not come."""

    def in_thread(stage: int, rank: int, attempt: int) -> None:
        with watched.running():
            work(stage, rank, attempt)

    async def in_loop(stage: int, rank: int, attempt: int) -> None:
        with watched.running():
            await asyncio.sleep(0)
            work(stage, rank, attempt)

    if how == "threads":
        with ThreadPoolExecutor(slots) as pool:
            module.run(watched, in_thread, pool)
    else:
        asyncio.run(module.run(watched, in_loop, slots))


def job(
    sizes: Sequence[int],
    tolerated: Sequence[int],
    *,
    slots: int = SLOTS,
    base_delay_s: float = 0.002,
) -> Watched:
    """Return a chain of stages."""
    policy = RetryPolicy(base_delay_s=base_delay_s, max_delay_s=10 * base_delay_s)
    plans = [
        StagePlan(world_size=size, max_failed=most, slots=slots, max_gangs=1, policy=policy)
        for size, most in zip(sizes, tolerated, strict=True)
    ]
    names = [(f"s{n}", (f"s{n - 1}",) if n else ()) for n in range(len(sizes))]
    dag = Dag.from_names(names, sizes, tolerated)
    return Watched(Scheduler(plans, dag))


# -- as they stand ---------------------------------------------------------------------------------


def test_the_threads_retry_tolerate_and_end(run_examples: Callable[[Path], str]) -> None:
    assert run_examples(EXAMPLES / "embed_in_threads.py") == (
        "SUCCEEDED and nothing to complain of\n"
        "clean: 7 of 8 done, total: 1 of 1\n"
        "rank 5 of clean: application: given up: no retries for this: ValueError: "
        "no retry would mend it; one such is tolerated\n"
    )


def test_the_loop_retries_skips_and_ends(run_examples: Callable[[Path], str]) -> None:
    assert run_examples(EXAMPLES / "embed_in_asyncio.py") == (
        "FAILED stage 0: 1 ranks failed; stage 1: 1 ranks skipped\n"
        "clean: 7 of 8 done, total: 0 of 1\n"
        "rank 5 of clean: application: given up: no retries for this: ValueError: "
        "no retry would mend it: what comes after is skipped\n"
        "rank 0 of total: skipped: rank 5 of stage 0 failed\n"
    )


def test_the_bounds_in_the_readme_are_those_of_the_executor() -> None:
    text = (PACKAGE / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \|.*\| (.*) \|$", text, re.MULTILINE)
    said = {command: re.findall(r"([\d.]+) s\b", bound) for command, bound in rows}
    executor, pool = ExecutorParams(), PoolParams()
    facts = {
        "OpenGang": [executor.place_s, executor.start_s, pool.silence_s],
        "CloseGang": [executor.close_s, executor.release_s],
        "Dispatch": [SupervisorParams().reclaim_s],
        "Recall": [pool.recall_s],
        "Record": [JournalParams().record_timeout_s],
        "FinishRun": [],
    }
    assert {command: [*map(float, bounds)] for command, bounds in said.items()} == facts
    assert SupervisorParams().reclaim_s == SchedulerParams().reclaim_s


# -- harder ----------------------------------------------------------------------------------------

FOR_GOOD: tuple[type[BaseException], ...] = (
    ValueError,
    SystemExit,
    KeyboardInterrupt,
    asyncio.CancelledError,
    GeneratorExit,
)


@both
@pytest.mark.parametrize("seed", range(3))
def test_a_thousand_ranks_with_every_kind_of_failure(how: str, seed: int) -> None:
    dice = random.Random(seed)
    sizes = [1000, 50, 1]
    fates: dict[tuple[int, int], list[type[BaseException]]] = {}
    for rank in range(sizes[0]):
        hiccups: list[type[BaseException]] = [ConnectionResetError] * dice.choice([0] * 8 + [1, 2])
        last = [dice.choice(FOR_GOOD)] if dice.random() < 0.05 else []
        fates[0, rank] = hiccups + last
    given_up = sum(bool(fate) and fate[-1] is not ConnectionResetError for fate in fates.values())
    assert given_up > 20
    watched = job(sizes, [given_up, 0, 0])
    lock = threading.Lock()
    attempts: Counter[tuple[int, int]] = Counter()

    def work(stage: int, rank: int, attempt: int) -> None:
        with lock:
            attempts[stage, rank] += 1
        fate = fates.get((stage, rank), [])
        assert attempt == attempts[stage, rank]
        if attempt <= len(fate):
            raise fate[attempt - 1]

    drive(how, load(how), watched, work)
    end = watched.referee.finish
    assert end == commands.FinishRun(state=commands.RunState.SUCCEEDED)
    counts = [watched.scheduler.counts(stage) for stage in range(3)]
    assert [each.done for each in counts] == [1000 - given_up, 50, 1]
    assert counts[0].failed == given_up
    for (stage, rank), fate in fates.items():
        is_given_up = bool(fate) and fate[-1] is not ConnectionResetError
        assert attempts[stage, rank] == len(fate) + (not is_given_up), (stage, rank, fate)
    assert watched.most_running <= SLOTS


@both
def test_all_slots_run_side_by_side(how: str) -> None:
    watched = job([SLOTS], [0])
    threads = threading.Barrier(SLOTS)

    def work(stage: int, rank: int, attempt: int) -> None:
        if how == "threads":
            threads.wait(30)

    drive(how, load(how), watched, work)
    assert watched.most_running == SLOTS


@both
def test_the_wait_for_a_retry_is_one_wait(how: str) -> None:
    watched = job([1], [0], base_delay_s=0.2)

    def work(stage: int, rank: int, attempt: int) -> None:
        if attempt < 3:
            raise ConnectionResetError

    drive(how, load(how), watched, work)
    assert watched.scheduler.counts(0).done == 1
    assert watched.handled["Ticked"] <= 4


@both
def test_one_failure_too_many_skips_all_that_comes_after(how: str) -> None:
    watched = job([1000, 50, 1], [1, 0, 0])

    def work(stage: int, rank: int, attempt: int) -> None:
        assert stage == 0
        if rank in (300, 700):
            raise SystemExit(3)

    drive(how, load(how), watched, work)
    assert watched.referee.finish is not None
    assert watched.referee.finish.state is commands.RunState.FAILED
    assert [watched.scheduler.counts(stage).skipped for stage in range(3)] == [0, 50, 1]
    assert watched.scheduler.counts(0).done == 998


@both
def test_a_recalled_assignment_starts_nothing_more(how: str) -> None:
    watched = job([1000], [0], slots=1)
    recalled: list[commands.Dispatch] = []
    carried_out = threading.Event()
    started: Counter[int] = Counter()

    def cancel_at_a_batch(given: Sequence[commands.Command]) -> events.Event[Fault] | None:
        for command in given:
            if isinstance(command, commands.Dispatch) and len(command.ranks[0]) > 3:
                recalled.append(command)
                return events.CancelRequested(reason="enough")
        return None

    def work(stage: int, rank: int, attempt: int) -> None:
        started[rank] += 1
        if recalled and rank in recalled[0].ranks[0]:
            assert carried_out.wait(30), "the recall came too late"

    watched.after = cancel_at_a_batch
    watched.carried_out = lambda: carried_out.set() if recalled else None
    drive(how, load(how), watched, work, slots=1)
    end = watched.referee.finish
    assert end == commands.FinishRun(state=commands.RunState.CANCELLED, reason="enough")
    assert sum(started[rank] for rank in recalled[0].ranks[0]) <= 1
    assert watched.scheduler.counts(0).ready > 900


@both
def test_a_slow_rank_does_not_keep_those_behind_it(how: str) -> None:
    module = load(how)
    watched = job([200], [0], slots=1)
    ahead_s, slow = 0.0, 0
    real: Any = time.monotonic

    def work(stage: int, rank: int, attempt: int) -> None:
        nonlocal ahead_s, slow
        if rank == 100:  # long after batches have grown
            ahead_s += 60.0
            slow = watched.scheduler.counts(0).running

    def clock() -> float:
        return float(real()) + ahead_s

    if how == "threads":
        module.time = SimpleNamespace(monotonic=clock)  # type: ignore[attr-defined]
        drive(how, module, watched, work, slots=1)
    else:

        async def async_work(stage: int, rank: int, attempt: int) -> None:
            asyncio.get_running_loop().time = clock  # type: ignore[method-assign]
            work(stage, rank, attempt)

        asyncio.run(module.run(watched, async_work, 1))
    assert watched.scheduler.counts(0).done == 200
    assert slow > 2
    assert watched.handed_back > 0
    assert watched.longest_s >= 60.0


def test_the_loop_can_be_cancelled() -> None:
    module = load("asyncio")
    watched = job([1000], [0], slots=1)
    batches: list[commands.Dispatch] = []
    watched.after = lambda given: batches.extend(
        each for each in given if isinstance(each, commands.Dispatch) and len(each.ranks[0]) > 3
    )
    started: list[int] = []

    async def cancel() -> None:
        in_batch = asyncio.Event()

        async def work(stage: int, rank: int, attempt: int) -> None:
            started.append(rank)
            if batches and rank in batches[0].ranks[0]:
                in_batch.set()
                await asyncio.Event().wait()

        running = asyncio.create_task(module.run(watched, work, 1))
        await in_batch.wait()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    asyncio.run(cancel())
    assert started[-1] == batches[0].ranks[0][0]
    assert watched.referee.finish is None
