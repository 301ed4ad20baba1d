"""The facade on the local backend, with real processes: what a user of `Executor` relies on."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from thornback.executor import (
    MISSING,
    Executor,
    HeldByAnother,
    IdentityMismatch,
    Job,
    RankContext,
    RankFailure,
    RunFailed,
    RunReport,
    Stage,
)
from thornback.executor.ports import LiveRun


def numbers() -> Callable[[RankContext], int]:
    def number(ctx: RankContext) -> int:
        return ctx.rank * ctx.rank

    return number


def local(folder: Path, **options: Any) -> Executor:
    return Executor.on_local(state=str(folder / "state"), cpus=4, **options)


def test_run_works_inside_a_running_loop_in_a_thread_of_its_own(tmp_path: Path) -> None:
    async def notebook() -> RunReport:
        return local(tmp_path).run(Job("j", [Stage("a", numbers(), ranks=3)]))

    assert asyncio.run(notebook()).results("a") == {0: 0, 1: 1, 2: 4}


def test_run_works_in_a_worker_thread_of_anyio(tmp_path: Path) -> None:
    job = Job("j", [Stage("a", numbers(), ranks=2)])

    async def main() -> RunReport:
        return await anyio.to_thread.run_sync(local(tmp_path).run, job)

    assert anyio.run(main).state == "succeeded"


def test_a_failed_run_pickles_with_its_report_and_keeps_the_user_s_words(tmp_path: Path) -> None:
    async def stop(driver: LiveRun) -> None:
        driver.cancel("stage 7 of my plan looks wrong", kill=True)

    job = Job("j", [Stage("a", numbers(), ranks=2)])
    report = local(tmp_path, companions=[stop]).run(job, check=False)
    assert (report.state, report.reason) == ("cancelled", "stage 7 of my plan looks wrong")

    def bad(ctx: RankContext) -> None:
        raise ValueError("bad")

    with pytest.raises(RunFailed) as caught:
        Executor.on_local(state=str(tmp_path / "bad"), cpus=2).run(Job("b", [Stage("a", bad)]))
    again = pickle.loads(pickle.dumps(caught.value))
    assert again.report.given_up[0].ranks == (range(1),)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_arun_works_on_both_loops(tmp_path: Path, backend: str) -> None:
    job = Job("j", [Stage("a", numbers(), ranks=5, processes=2)])

    async def main() -> RunReport:
        with anyio.fail_after(60):
            return await local(tmp_path).arun(job)

    assert anyio.run(main, backend=backend).stages["a"].done == 5


def test_cancelled_arun_ends_its_processes_and_the_next_one_goes_on(tmp_path: Path) -> None:
    gate = tmp_path / "gate"

    def wait_at_gate(ctx: RankContext) -> int:
        import os
        import time

        while ctx.rank > 1 and not os.path.exists(gate):
            time.sleep(0.05)
        return ctx.rank

    job = Job("j", [Stage("a", wait_at_gate, ranks=6)])

    class Stop:
        scope: anyio.CancelScope

        def started(self, info: object) -> None: ...
        def failed(self, attempt: object) -> None: ...
        def finished(self, report: object) -> None: ...
        def progressed(self, stages: Any) -> None:
            if stages[0].done >= 2:
                self.scope.cancel()

    async def main() -> None:
        stop = Stop()
        with anyio.fail_after(60), anyio.CancelScope() as stop.scope:
            await local(tmp_path, observers=[stop]).arun(job)
        assert stop.scope.cancelled_caught

    anyio.run(main)
    gate.touch()
    report = local(tmp_path).run(job)
    assert report.stages["a"].recorded_before == 2
    assert report.results("a") == {rank: rank for rank in range(6)}


def test_only_the_recorded_attempt_publishes(tmp_path: Path) -> None:
    out = tmp_path / "out"

    def write(ctx: RankContext) -> None:
        import os

        with ctx.publish(f"{out}/{ctx.rank}.txt") as staged:
            with open(staged, "w") as file:
                file.write(f"{ctx.rank} by attempt {ctx.attempt}")
            if ctx.rank == 1 and ctx.attempt == 1:
                os.kill(os.getpid(), 9)

    report = local(tmp_path).run(Job("j", [Stage("a", write, ranks=3)]))
    assert [attempt.rank for attempt in report.attempts] == [1]
    written = {path.name: path.read_text() for path in out.iterdir()}
    assert written == {
        "0.txt": "0 by attempt 1",
        "1.txt": "1 by attempt 2",
        "2.txt": "2 by attempt 1",
    }
    assert not list((tmp_path / "state" / "staging").rglob("*.txt"))


def test_set_up_is_called_once_per_process_and_its_failure_ends_the_stage(tmp_path: Path) -> None:
    def prepare(ctx: RankContext) -> list[int]:
        import os

        return [os.getpid(), 0]

    def use(ctx: RankContext) -> list[int]:
        ctx.setup_value[1] += 1
        return list(ctx.setup_value)

    stage = Stage("a", use, ranks=6, setup=prepare, max_gangs=1)
    results: Any = local(tmp_path).run(Job("j", [stage])).results("a")
    assert len({process for process, _ in results.values()}) == 1
    assert sorted(calls for _, calls in results.values()) == [1, 2, 3, 4, 5, 6]

    def broken(ctx: RankContext) -> None:
        raise RuntimeError("no model here")

    bad = Job("bad", [Stage("a", use, ranks=6, setup=broken)])
    with pytest.raises(RunFailed, match=r"failed") as caught:
        # By this seed no rank waits 2 s in all for its next attempts: else up to 1, 2 and 4 s each.
        Executor.on_local(state=str(tmp_path / "bad"), cpus=4, seed=4565).run(bad)
    kinds = {attempt.fault.kind.value for attempt in caught.value.report.attempts}
    assert kinds == {"setup"}
    assert "no model here" in str(caught.value.exceptions[0])


def test_results_of_failed_ranks_are_missing_and_the_others_aligned(tmp_path: Path) -> None:
    def odd(ctx: RankContext) -> int | None:
        if ctx.rank == 2:
            raise ValueError("two is bad")
        return ctx.rank or None

    def gather(ctx: RankContext) -> list[object]:
        values = ctx.results("a").values()
        return ["missing" if value is MISSING else value for value in values]

    stages = [Stage("a", odd, ranks=5, max_failed=1), Stage("b", gather, after="a")]
    report = local(tmp_path).run(Job("j", stages))
    assert report.state == "succeeded"
    assert report.results("b") == {0: [None, 1, "missing", 3, 4]}
    assert report.results("a") == {0: None, 1: 1, 2: MISSING, 3: 3, 4: 4}
    again = pickle.loads(pickle.dumps(report))
    assert again.results("a")[2] is MISSING
    assert report.stages["a"].failed == 1


def test_state_of_another_job_is_refused_with_the_difference(tmp_path: Path) -> None:
    local(tmp_path).run(Job("j", [Stage("a", numbers(), ranks=1)]))
    with pytest.raises(IdentityMismatch, match="world size"):
        local(tmp_path).run(Job("j", [Stage("a", numbers(), ranks=2)]))
    fresh = local(tmp_path, on_mismatch="fresh").run(Job("j", [Stage("a", numbers(), ranks=2)]))
    assert fresh.stages["a"].recorded_before == 0


def test_state_that_a_live_driver_holds_is_refused(tmp_path: Path) -> None:
    refused: list[BaseException] = []

    async def second_driver(driver: object) -> None:
        try:
            await local(tmp_path).arun(job)
        except HeldByAnother as error:
            refused.append(error)

    job = Job("j", [Stage("a", numbers(), ranks=2)])
    local(tmp_path, companions=[second_driver]).run(job)
    assert len(refused) == 1


def test_request_that_never_fits_fails_in_seconds_with_the_numbers(tmp_path: Path) -> None:
    with pytest.raises(RunFailed) as caught:
        local(tmp_path).run(Job("j", [Stage("a", numbers(), ranks=2, cpus=64)]))
    (failure,) = caught.value.exceptions
    assert isinstance(failure, RankFailure)
    assert failure.ranks == (0, 1)
    assert "needs 1 x {CPU: 64}; largest node has {CPU: 4}" in str(failure)
    assert caught.value.report.reason == "stage 'a': 2 ranks failed"


def test_rank_over_its_memory_is_tried_with_more(tmp_path: Path) -> None:
    def hungry(ctx: RankContext) -> int:
        block = bytearray(300 << 20)
        for at in range(0, len(block), 4096):
            block[at] = 1
        import time

        end = time.monotonic() + 1.0  # the limit is polled
        while time.monotonic() < end:
            pass
        return len(block)

    report = local(tmp_path).run(Job("j", [Stage("a", hungry, memory="256MiB")]))
    kinds = [attempt.fault.kind.value for attempt in report.attempts]
    assert kinds
    assert set(kinds) == {"oom"}
    assert report.results("a") == {0: 300 << 20}


def test_results_are_shipped_to_the_next_stage_in_order_of_rank(tmp_path: Path) -> None:
    def after(ctx: RankContext) -> object:
        return ctx.results("a")  # as a list of its values

    stages = [Stage("a", numbers(), ranks=50), Stage("b", after, ranks=2, after="a")]
    report = local(tmp_path).run(Job("j", stages))
    assert report.results("b") == {rank: [n * n for n in range(50)] for rank in range(2)}
