"""For tests: fakes, and the conformance suites that the fake, the local and the Ray backend have to
pass alike.

`check_worker_backend` checks what `WorkerPool` relies on; `check_workers` checks what the pool
promises its users; `check_user_code` does to workers whatever user code can do (`USER_CODE`; by
`UserCodeTrial` row by row). They need no test framework: they raise `AssertionError`, or
`TimeoutError` when something hangs.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from itertools import chain

import anyio
import attrs

from thornback.pool.bench import Bench, MakeBench
from thornback.pool.fakes import (
    FakeBackend,
    FakeDeathError,
    FakeUnavailableError,
    FakeWorker,
    fake_blobs,
    fake_script,
)
from thornback.pool.manualclock import ManualClock, settle
from thornback.pool.pool import WorkerPool
from thornback.pool.ports import (
    Assignment,
    Beat,
    CaughtError,
    GangLostError,
    LogChunk,
    Outcome,
    Report,
    Worker,
)
from thornback.pool.usercode import USER_CODE, UserCodeRow
from thornback.pool.usercodetrial import UserCodeTrial, check_user_code


def assignment(
    number: int, *ranks: int, program: str = "ok", timeout_s: float | None = None
) -> Assignment:
    """Make an assignment of these ranks for tests; its program is the blob `ok`, `fails` or
    `blocks` of a `Bench`."""
    return Assignment(
        assignment=number,
        epoch=f"000001.{number:09}",
        stage=0,
        ranks=tuple(range(rank, rank + 1) for rank in ranks),
        program=program,
        timeout_s=timeout_s,
    )


def reported(reports: list[Report]) -> tuple[dict[int, Outcome], list[int]]:
    """Return the outcomes by rank, and the returned ranks; a rank that is there twice fails."""
    outcomes: dict[int, Outcome] = {}
    returned: list[int] = []
    for report in reports:
        for outcome in report.outcomes:
            assert outcome.rank not in outcomes, f"rank {outcome.rank} is reported twice"
            outcomes[outcome.rank] = outcome
        returned += chain.from_iterable(report.returned)
    assert len({*outcomes, *returned}) == len(outcomes) + len(returned), "a rank is there twice"
    return outcomes, returned


def timeless(report: Report) -> Report:
    """Return a report without what changes from sending to sending."""
    outcomes = tuple(attrs.evolve(outcome, ago_s=0.0) for outcome in report.outcomes)
    return attrs.evolve(report, outcomes=outcomes)


async def check_worker_backend(make: MakeBench) -> None:
    """Check that a backend does what `WorkerBackend` and `Worker` say.

    Raises:
        AssertionError: it does not.
        TimeoutError: something hung for `Bench.bound_s`.
    """

    async def run(check: Callable[[Bench, Worker], Awaitable[None]]) -> None:
        async with make() as bench:
            with anyio.fail_after(bench.bound_s):
                async with _started(bench) as worker:
                    await check(bench, worker)

    checks = (_check_calls, _check_blocked_rank, _check_cancelled_call, _check_death)
    await _all_at_once(*(partial(run, check) for check in checks))


async def _all_at_once(*calls: Callable[[], Awaitable[None]]) -> None:
    """Do all beside each other; raise the first failure as it is."""
    failures: list[Exception] = []
    async with anyio.create_task_group() as group:

        async def attempt(call: Callable[[], Awaitable[None]]) -> None:
            try:
                await call()
            except Exception as error:  # noqa: BLE001  # raised below, outside of the group
                failures.append(error)
                group.cancel_scope.cancel()

        for call in calls:
            group.start_soon(attempt, call)
    if failures:
        raise failures[0]


@asynccontextmanager
async def _started(bench: Bench) -> AsyncIterator[Worker]:
    worker = await bench.backend.start(bench.node, 0, 1, bench.handle, bench.spec)
    try:
        beat = await worker.call("beat", ((), None))
        assert isinstance(beat, Beat), f"expected a Beat, got {beat!r}"
        for name in ("ok", "fails", "blocks"):
            await worker.call("load", (name, await bench.blob(name)))
        yield worker
    finally:
        with anyio.CancelScope(shield=True):
            killed = await worker.kill(timeout_s=10.0)
    assert killed, "the kill was not confirmed"
    assert await worker.kill(timeout_s=10.0), "a second kill was not confirmed"
    failure = await _failure(worker, "beat", ((), None))
    assert not worker.is_unavailable(failure), f"after a kill, gone for good: {failure!r}"


async def _report(worker: Worker, method: str, payload: object) -> Report:
    report = await worker.call(method, payload)
    assert isinstance(report, Report), f"{method}: expected a Report, got {report!r}"
    return report


async def _failure(worker: Worker, method: str, payload: object) -> Exception:
    try:
        answer = await worker.call(method, payload)
    except Exception as error:  # noqa: BLE001  # backends raise what they like
        return error
    raise AssertionError(f"{method} of a dead worker answered {answer!r}")


async def _check_calls(bench: Bench, worker: Worker) -> None:
    """Ranks come back as outcomes, failures are data, a repeated `run` returns the same again;
    ports are told, and drains are taken."""
    ports = [await worker.call("port", None) for _ in range(2)]
    assert all(isinstance(port, int) and 0 < port < 1 << 16 for port in ports), f"got {ports!r}"
    assert ports[0] != ports[1], "a port is not given twice in a short time"
    for left_s in (30.0, None):
        assert await worker.call("drain", left_s) is None
    work = assignment(1, 0, 1, 5)
    first = await _report(worker, "run", (work, ()))
    again = await _report(worker, "run", (work, ()))
    assert timeless(first) == timeless(again), "a repeated run must return the same report"
    reports = [first]
    if not first.final:
        reports.append(await _report(worker, "wait", (1, (), 0)))
    outcomes, returned = reported(reports)
    assert {rank: outcome.result for rank, outcome in outcomes.items()} == {
        rank: str(rank) for rank in (0, 1, 5) if rank not in returned
    }, f"expected the ranks as results, got {outcomes!r}"
    failed = await _report(worker, "run", (assignment(2, 7, program="fails"), (1,)))
    (outcome,) = failed.outcomes
    assert not outcome.ok
    assert outcome.error is not None
    assert "builtins.ValueError" in outcome.error.type_names, f"got {outcome.error!r}"


async def _check_blocked_rank(bench: Bench, worker: Worker) -> None:
    """A long rank goes on while the others are handed back, and ends by a recall with a kill."""
    work = assignment(1, 3, 4, program="blocks")
    first = await _report(worker, "run", (work, ()))
    assert (first.running, first.final) == (3, False), f"expected rank 3 to run, got {first!r}"
    assert list(chain.from_iterable(first.returned)) == [4], f"expected rank 4 back: {first!r}"
    other = await _report(worker, "run", (assignment(2, 9), ()))
    assert [outcome.rank for outcome in other.outcomes] == [9], "the other slot must be free"
    await worker.call("recall", (1, True))
    last = await _report(worker, "wait", (1, (), 0))
    assert last.final
    outcomes, returned = reported([first, last])
    assert outcomes == {}, f"a rank killed by a recall has no outcome, got {outcomes!r}"
    assert sorted(returned) == [3, 4], f"expected ranks 3 and 4 back, got {returned!r}"


async def _check_cancelled_call(bench: Bench, worker: Worker) -> None:
    """A call that is cancelled leaves the worker and the other calls alone."""
    async with anyio.create_task_group() as group:
        group.start_soon(worker.call, "watch", None)
        group.start_soon(worker.call, "beat", ((), None))
        await _report(worker, "run", (assignment(1, 0), ()))
        group.cancel_scope.cancel()
    assert isinstance(await worker.call("beat", ((), None)), Beat)


async def _check_death(bench: Bench, worker: Worker) -> None:
    """At a crash every pending call fails, for good; the death is explained, and what is left of
    the logs can be read, once."""
    beat = await worker.call("beat", ((), {}))
    assert isinstance(beat, Beat)
    await _report(worker, "run", (assignment(1, 0, program="blocks"), ()))
    failures: list[Exception] = []

    async def pending(method: str, payload: object) -> None:
        failures.append(await _failure(worker, method, payload))

    async with anyio.create_task_group() as group:
        group.start_soon(pending, "watch", None)
        group.start_soon(pending, "wait", (1, (), 0))
        # Answered after the two above have been sent.
        await worker.call("beat", ((), None))
        bench.crash(beat.pid)
    assert len(failures) == 2
    for failure in failures:
        assert not worker.is_unavailable(failure), f"expected a death, got {failure!r}"
        error, facts = await worker.death(failure)
        assert isinstance(error, BaseException | CaughtError)
        assert isinstance(dict(facts), dict)
    assert await worker.kill(timeout_s=10.0)
    chunks = await worker.salvage(beat.log_dir, beat.log_prefix, {})
    assert all(isinstance(chunk, LogChunk) for chunk in chunks), f"got {chunks!r}"
    assert list(await worker.salvage(beat.log_dir, beat.log_prefix, {})) == [], (
        "what is read is removed"
    )


async def check_workers(make: MakeBench) -> None:
    """Check that a `WorkerPool` on a backend does what it promises to its users.

    Raises:
        AssertionError: it does not.
        TimeoutError: something hung for `Bench.bound_s`.
    """

    async def run(check: Callable[[Bench, WorkerPool], Awaitable[None]]) -> None:
        async with make() as bench, WorkerPool(bench.backend, bench.blob) as pool:
            with anyio.fail_after(bench.bound_s):
                await _check_unknown(pool)
                await pool.open(1, [bench.node], bench.handle, bench.spec, timeout_s=bench.bound_s)
                await check(bench, pool)
                assert await pool.close(1, kill=True, timeout_s=15.0), "close: not confirmed"
                assert await pool.close(1, kill=True, timeout_s=15.0), "a close can be repeated"
                await _check_unknown(pool)

    checks = (_check_ranks, _check_recall, _check_closing, _check_loss)
    await _all_at_once(*(partial(run, check) for check in checks))


async def _check_unknown(pool: WorkerPool) -> None:
    await pool.recall(1, 1, kill=True)
    assert list(await pool.beat(1)) == []
    assert await pool.close(1, kill=False, timeout_s=1.0)
    try:
        await anext(pool.run(1, assignment(1, 0)))
    except GangLostError:
        return
    raise AssertionError("run on a gang that is not open must raise GangLostError")


async def _check_ranks(bench: Bench, pool: WorkerPool) -> None:
    """Every rank is reported once, with its node; two assignments run beside each other."""
    found: dict[int, list[Report]] = {}

    async def run(number: int, program: str, *ranks: int) -> None:
        work = assignment(number, *ranks, program=program)
        found[number] = [report async for report in pool.run(1, work)]

    async with anyio.create_task_group() as group:
        group.start_soon(run, 1, "ok", 0, 1, 2)
        group.start_soon(run, 2, "fails", 8)
    outcomes, returned = reported(found[1])
    assert sorted([*outcomes, *returned]) == [0, 1, 2]
    assert all(outcome.ok and outcome.node == bench.node for outcome in outcomes.values())
    assert found[1][-1].final
    failed, _ = reported(found[2])
    assert not failed[8].ok
    (beat,) = await pool.beat(1)
    assert beat.node == bench.node


async def _check_recall(bench: Bench, pool: WorkerPool) -> None:
    """A recall with a kill gives the running rank back, uncharged; the gang lives on."""
    reports = pool.run(1, assignment(1, 0, 1, program="blocks"))
    first = await anext(reports)
    await pool.recall(1, 1, kill=True)
    outcomes, returned = reported([first, *[report async for report in reports]])
    assert (outcomes, sorted(returned)) == ({}, [0, 1])
    outcomes, _ = reported([report async for report in pool.run(1, assignment(2, 5))])
    assert outcomes[5].ok


async def _check_closing(bench: Bench, pool: WorkerPool) -> None:
    """A close ends what is under way."""
    reports = pool.run(1, assignment(1, 0, program="blocks"))
    await anext(reports)
    assert await pool.close(1, kill=False, timeout_s=15.0)
    try:
        rest = [report async for report in reports]
    except GangLostError:
        return
    raise AssertionError(f"the close must end the iteration with GangLostError, got {rest!r}")


async def _check_loss(bench: Bench, pool: WorkerPool) -> None:
    """The death of a worker is told to `lost` and to every `run`, and stays told."""
    reports = pool.run(1, assignment(1, 0, program="blocks"))
    await anext(reports)
    (beat,) = await pool.beat(1)
    bench.crash(beat.pid)
    loss = await pool.lost(1)
    assert loss.node == bench.node
    for stale in (reports, pool.run(1, assignment(2, 0))):
        try:
            await anext(stale)
        except GangLostError:
            continue
        raise AssertionError("the loss of the gang must end every run")
    assert list(await pool.beat(1)) == []


__all__ = [
    "USER_CODE",
    "Bench",
    "FakeBackend",
    "FakeDeathError",
    "FakeUnavailableError",
    "FakeWorker",
    "MakeBench",
    "ManualClock",
    "UserCodeRow",
    "UserCodeTrial",
    "assignment",
    "check_user_code",
    "check_worker_backend",
    "check_workers",
    "fake_blobs",
    "fake_script",
    "reported",
    "settle",
]
