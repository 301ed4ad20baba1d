"""Holds a backend to the rows of `usercode`: the suite behind `check_user_code`."""

from __future__ import annotations

import json
import pickle
from types import TracebackType

import anyio
import attrs

from thornback.pool.bench import Bench, MakeBench
from thornback.pool.pool import WorkerPool
from thornback.pool.ports import Assignment, GangLostError, Outcome, SeenBy
from thornback.pool.usercode import (
    GOOD,
    LOG_CAP_BYTES,
    MISCHIEF,
    USER_CODE,
    UserCodeRow,
    UserProgram,
)

ROW_S = 30.0
"""For both ranks of a row: what they do takes less than 2 s, on a quiet machine."""
_LOG_SLACK_BYTES = 1 << 20


async def _blobs(key: str) -> bytes:
    """Give the program of a row by the name of the row (fulfils `Blobs`)."""
    return pickle.dumps(UserProgram(key))


class UserCodeTrial:
    """Runs rows of the table, one after the other, through a `WorkerPool` on a backend.

    An async context manager. All rows share one gang with one slot, which is replaced only when a
    row needs another limit of memory.

    Args:
        bench: its programs are not used.
    """

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self._pool = WorkerPool(bench.backend, _blobs)
        self._gang = 0
        self._limit: int | None = None
        self._assignments = 0

    async def __aenter__(self) -> UserCodeTrial:
        """Enter the pool."""
        await self._pool.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Leave the pool, which kills the gang."""
        await self._pool.__aexit__(kind, error, traceback)

    async def check(self, row: UserCodeRow) -> Outcome:
        """Run the rank of the row, and a good one after it in the same slot; return the outcome of
        the first, which is as the row says.

        Raises:
            AssertionError: something else came back, the next rank did not succeed, or something
                was left behind.
            GangLostError: the worker did not survive it.
            TimeoutError: something hung.
        """
        await self._ready(row.rank_memory_bytes)
        try:
            with anyio.fail_after(ROW_S):
                outcome = await self._run(row, MISCHIEF)
                _compare(row, outcome)
                good = await self._run(row, GOOD)
        except (GangLostError, TimeoutError):
            await self._close()  # the next row has a chance
            raise
        _look(row, outcome, good)
        return outcome

    async def _ready(self, limit: int | None) -> None:
        if self._gang and self._limit != limit:
            await self._close()
        if not self._gang:
            bench = self._bench
            spec = attrs.evolve(
                bench.spec,
                slots=1,
                rank_memory_bytes=limit,
                preload=("thornback.pool.usercode",),
            )
            self._assignments += 1
            self._gang, self._limit = self._assignments, limit
            await self._pool.open(
                self._gang, [bench.node], bench.handle, spec, timeout_s=bench.bound_s
            )

    async def _close(self) -> None:
        gang, self._gang = self._gang, 0
        assert await self._pool.close(gang, kill=True, timeout_s=15.0), "close: not confirmed"

    async def _run(self, row: UserCodeRow, rank: int) -> Outcome:
        self._assignments += 1
        work = Assignment(
            assignment=self._assignments,
            epoch=f"000001.{self._assignments:09}",
            stage=0,
            ranks=(range(rank, rank + 1),),
            program=row.name,
            timeout_s=row.timeout_s if rank == MISCHIEF else None,
        )
        if row.setup_timeout_s is not None and rank == MISCHIEF:
            work = attrs.evolve(work, setup_timeout_s=row.setup_timeout_s)
        reports = [report async for report in self._pool.run(self._gang, work)]
        outcomes = [outcome for report in reports for outcome in report.outcomes]
        assert [outcome.rank for outcome in outcomes] == [rank], f"{row.name}: got {reports!r}"
        assert reports[-1].final
        return outcomes[0]


def _compare(row: UserCodeRow, outcome: Outcome) -> None:
    """Compare what came back with the row."""
    told = f"{row.name}: got {outcome!r}"
    assert outcome.ok == row.ok, told
    if row.ok:
        assert len(json.loads(outcome.result or "")) == row.processes, told
        return
    error = outcome.error
    assert error is not None, told
    assert error.type_names[0] == row.error_type, told
    assert outcome.seen_by is row.seen_by, told
    assert outcome.phase == ("setup" if row.in_setup else "rank"), told
    assert row.attributes.items() <= error.attributes.items(), told
    assert row.words in error.message, told
    assert row.log in outcome.log_tail, told
    assert outcome.seen_by is not SeenBy.RANK or error.traceback, told


def _look(row: UserCodeRow, outcome: Outcome, good: Outcome) -> None:
    """See that nothing is left behind, as the next rank tells."""
    assert good.ok, f"{row.name}: the next rank failed: {good.error!r}"
    found = json.loads(good.result or "")
    assert found["strangers"] == [], f"{row.name}: left behind: {found!r}"
    assert found["changed"] == [], f"{row.name}: not as after the set-up: {found!r}"
    assert found["log_bytes"] <= LOG_CAP_BYTES + _LOG_SLACK_BYTES, f"{row.name}: {found!r}"
    same = outcome.pid == good.pid == found["pid"]
    assert same or not row.same_process, f"{row.name}: its process was replaced needlessly"
    assert not same or row.same_process, f"{row.name}: its process was to be replaced"


async def check_user_code(make: MakeBench) -> None:
    """Check that everything that user code can do in its process comes back as `USER_CODE` says,
    hangs nothing and leaves nothing behind: all rows, on one bench.

    Raises:
        AssertionError: it does not.
        GangLostError: a worker did not survive it.
        TimeoutError: something hung.
    """
    async with make() as bench, UserCodeTrial(bench) as trial:
        for row in USER_CODE:
            await trial.check(row)
