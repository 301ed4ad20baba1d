"""The promoter of a journal: called once records are durable, before they are announced, and again
wherever it is not known that it was.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import anyio
import anyio.lowlevel
import attrs
import pytest

from packages.executor.tests.journals import QUICK, VirtualTime, journal_at, publishing
from thornback.executor.journal.filejournal import (
    FileJournal,
    HeldByAnother,
    JournalError,
    JournalParams,
    Superseded,
    read_run,
)
from thornback.executor.journal.holder import Heartbeat, Holder
from thornback.executor.journal.promoter import Promoter, owed
from thornback.executor.journal.segments import encode_record
from thornback.executor.journal.steps import run_blocking
from thornback.executor.journal.store import open_store
from thornback.executor.journal.terms import beat_name, claim_name, flush
from thornback.executor.journal.testing import done, failed, job
from thornback.executor.ports import Completion

pytestmark = pytest.mark.anyio


class Markers:
    """A promoter that notes what it is given, and does what the test says first."""

    def __init__(self, before: Callable[[], None] = lambda: None) -> None:
        self.given: list[tuple[str, tuple[int, ...]]] = []
        """(state, ranks) of every record, oldest first."""
        self.calls = 0
        self.before = before

    async def __call__(self, records: Sequence[Completion]) -> None:
        await anyio.lowlevel.checkpoint()
        self.calls += 1
        self.before()
        self.given += [(r.state, tuple(x for piece in r.ranks for x in piece)) for r in records]


def promoted_at(
    url: str,
    promoter: Promoter,
    time: VirtualTime | None = None,
    params: JournalParams = QUICK,
    anew: bool = False,
) -> FileJournal:
    return journal_at(url, time, params, promoter=promoter, anew=anew)


async def run_once(url: str, promoter: Markers, *records: Completion) -> None:
    async with promoted_at(url, promoter) as journal:
        await journal.open(job(), on_mismatch="refuse")
        for record in records:
            await journal.commit([record])


async def reopened(url: str, promoter: Markers) -> list[range]:
    async with promoted_at(url, promoter) as journal:
        return list((await journal.open(job(), on_mismatch="refuse")).done.get("a", ()))


def put_without_promotion(url: str, n: int, promoted: int, *records: Completion) -> None:
    """Do what a driver of term 1 has done that dies between a put and its promotion."""
    lines = [encode_record(record) for record in records]
    run_blocking(open_store(url), flush(url, 1, n, promoted, lines))


def make_killed(url: str, term: int) -> None:
    """Let the last driver have been killed, as far as one can see: it has not closed the state."""
    beat = Heartbeat(id="killed", count=3)
    open_store(url).put(beat_name(term), beat.encode())


# -- in order --------------------------------------------------------------------------------------


async def test_it_is_called_when_records_are_durable_and_before_they_are_announced(
    tmp_path: Path,
) -> None:
    state, final = str(tmp_path / "state"), tmp_path / "final"
    record = publishing(state, final)
    order: list[str] = []

    def look() -> None:
        assert read_run(state).done == {"a": (range(2, 3),)}
        assert final.read_text() == "x"
        order.append("promoted")

    markers = Markers(look)
    async with promoted_at(state, markers) as journal:
        await journal.open(job(), on_mismatch="refuse")
        await journal.commit([record])
        order.append("announced")
    assert order == ["promoted", "announced"]
    assert markers.given == [("done", (2,))]


async def test_it_gets_the_records_of_a_flush_together_and_in_order(memory: str) -> None:
    markers = Markers()
    async with promoted_at(memory, markers) as journal:
        await journal.open(job(), on_mismatch="refuse")
        await journal.commit([failed("a", 5), done("a", 1, 2), done("a", 9)])
    assert markers.given == [("failed", (5,)), ("done", (1, 2)), ("done", (9,))]
    assert markers.calls == 1


async def test_after_a_clean_close_nothing_is_given_again(memory: str) -> None:
    markers = Markers()
    await run_once(memory, markers, done("a", 1), failed("a", 2), done("a", 3))
    again = Markers()
    assert await reopened(memory, again) == [range(1, 2), range(3, 4)]
    assert again.given == []


async def test_it_is_not_called_for_nothing(memory: str) -> None:
    markers = Markers()
    async with promoted_at(memory, markers) as journal:
        await journal.open(job(), on_mismatch="refuse")
        await journal.commit([])
    assert markers.calls == 0


# -- dying -----------------------------------------------------------------------------------------


async def test_records_of_a_driver_that_died_before_their_promotion_are_given_at_open(
    memory: str,
) -> None:
    await run_once(memory, Markers(), done("a", 1))
    put_without_promotion(memory, 2, 1, done("a", 2), failed("a", 7))
    put_without_promotion(memory, 3, 1, done("a", 3))
    markers = Markers()
    async with promoted_at(memory, markers) as journal:
        opened = await journal.open(job(), on_mismatch="refuse")
        assert markers.given == [("done", (2,)), ("failed", (7,)), ("done", (3,))]
        assert opened.done == {"a": (range(1, 4),)}
    again = Markers()
    assert await reopened(memory, again) == [range(1, 4)]
    assert again.given == []


async def test_only_what_may_be_unpromoted_is_given_again_after_a_kill(memory: str) -> None:
    """As after a kill between the promotion and the watermark: nobody knows of the last flush."""
    await run_once(memory, Markers(), *(done("a", rank) for rank in range(5)))
    make_killed(memory, 1)
    markers = Markers()
    assert await reopened(memory, markers) == [range(0, 5)]
    assert markers.given == [("done", (4,))]


async def test_what_was_compacted_is_not_given_again_after_a_kill(memory: str) -> None:
    params = JournalParams(min_interval_s=0, compact_segments=2, compact_segments_max=2)
    async with promoted_at(memory, Markers(), params=params) as journal:
        await journal.open(job(), on_mismatch="refuse")
        for rank in range(3):
            await journal.commit([done("a", rank)])
        while not any("base-000001-000004" in name for name in open_store(memory).list()):
            await anyio.lowlevel.checkpoint()
    make_killed(memory, 1)
    markers = Markers()
    assert await reopened(memory, markers) == [range(0, 3)]
    assert markers.given == []


async def test_a_cancelled_driver_leaves_what_it_did_not_promote_to_the_next(memory: str) -> None:
    with anyio.CancelScope() as scope:
        markers = Markers(scope.cancel)
        params = JournalParams(min_interval_s=0, close_timeout_s=0.05)

        async def hang(records: Sequence[Completion]) -> None:
            await markers(records)
            await anyio.sleep_forever()

        async with FileJournal(memory, promoter=hang, params=params) as journal:
            await journal.open(job(), on_mismatch="refuse")
            await journal.commit([done("a", 1)])
    assert scope.cancelled_caught
    again = Markers()
    with anyio.fail_after(20):
        assert await reopened(memory, again) == [range(1, 2)]
    assert again.given == [("done", (1,))]


# -- failing ---------------------------------------------------------------------------------------


async def test_a_failure_is_retried_and_given_the_same_records(memory: str) -> None:
    time, left = VirtualTime(), [3]

    def fail() -> None:
        left[0] -= 1
        if left[0] >= 0:
            raise PermissionError("token has expired")

    markers = Markers(fail)
    async with promoted_at(memory, markers, time) as journal:
        await journal.open(job(), on_mismatch="refuse")
        await journal.commit([done("a", 1)])
    assert time.slept == [0.1, 0.2, 0.4]
    assert (markers.calls, markers.given) == (4, [("done", (1,))])


async def test_one_that_fails_for_too_long_breaks_the_journal_and_the_next_driver_goes_on(
    memory: str,
) -> None:
    time = VirtualTime()

    def fail() -> None:
        raise ConnectionResetError("gone")

    async with promoted_at(memory, Markers(fail), time) as journal:
        await journal.open(job(), on_mismatch="refuse")
        for _ in range(2):
            with pytest.raises(JournalError, match=r"cannot promote.*ConnectionResetError: gone"):
                await journal.commit([done("a", 1)])
        assert 500 < sum(time.slept) <= QUICK.record_timeout_s
    async with promoted_at(memory, Markers(fail)) as journal:
        with pytest.raises(JournalError, match="cannot promote"):
            await journal.open(job(), on_mismatch="refuse")
    markers = Markers()
    assert await reopened(memory, markers) == [range(1, 2)]
    assert markers.given == [("done", (1,))]


async def test_an_error_of_the_journal_s_own_kind_is_final(memory: str) -> None:
    time = VirtualTime()

    def refuse() -> None:
        raise JournalError("the result of rank 1 is not ours")

    async with promoted_at(memory, Markers(refuse), time) as journal:
        await journal.open(job(), on_mismatch="refuse")
        with pytest.raises(JournalError, match="not ours"):
            await journal.commit([done("a", 1)])
    assert time.slept == []


async def test_one_that_hangs_holds_neither_commit_nor_close(memory: str) -> None:
    async def hang(records: Sequence[Completion]) -> None:
        await anyio.sleep_forever()

    params = JournalParams(min_interval_s=0, record_timeout_s=0.05)
    with anyio.fail_after(20):
        async with FileJournal(memory, promoter=hang, params=params) as journal:
            await journal.open(job(), on_mismatch="refuse")
            with pytest.raises(JournalError, match="it has not returned for"):
                await journal.commit([done("a", 1)])


# -- two drivers -----------------------------------------------------------------------------------


async def test_a_superseded_flush_is_not_promoted(memory: str) -> None:
    markers = Markers()
    async with promoted_at(memory, markers) as journal:
        await journal.open(job(), on_mismatch="refuse")
        open_store(memory).put(claim_name(2, "other"), Holder(id="other").encode())
        with pytest.raises(Superseded):
            await journal.commit([done("a", 1)])
    assert markers.calls == 0


async def test_a_late_promoter_announces_only_what_the_next_driver_has_promoted_too(
    memory: str,
) -> None:
    started, let = anyio.Event(), anyio.Event()
    late: list[int] = []

    async def paused(records: Sequence[Completion]) -> None:
        started.set()
        await let.wait()
        late.append(len(records))

    async def commit() -> None:
        await old.commit([done("a", 1)])

    time, markers = VirtualTime(), Markers()
    with anyio.fail_after(20):
        async with promoted_at(memory, paused, time) as old:
            await old.open(job(), on_mismatch="refuse")
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(commit)
                await started.wait()
                async with promoted_at(memory, markers, time) as new:
                    opened = await new.open(job(), on_mismatch="refuse")
                    assert markers.given == [("done", (1,))]
                    assert opened.done == {"a": (range(1, 2),)}
                    let.set()  # the old one wakes up, and announces what the new one counts
                    while not late:
                        await anyio.lowlevel.checkpoint()
            assert late == [1]
            with pytest.raises(Superseded):
                await old.commit([done("a", 2)])


async def test_while_one_driver_promotes_no_other_gets_in(tmp_path: Path) -> None:
    refused: list[str] = []

    class Nosy(Markers):
        async def __call__(self, records: Sequence[Completion]) -> None:
            async with FileJournal(str(tmp_path)) as other:
                with pytest.raises(HeldByAnother) as caught:
                    await other.open(job(), on_mismatch="refuse")
            refused.append(str(caught.value))

    await run_once(str(tmp_path), Nosy(), done("a", 1))
    assert len(refused) == 1


# -- which records ---------------------------------------------------------------------------------


async def test_ranks_that_the_job_no_longer_has_are_not_given_again(memory: str) -> None:
    await run_once(memory, Markers(), done("a", 1))
    put_without_promotion(memory, 2, 1, done("a", 2, 3, 4, 60), done("a", 70), done("b", 4))
    a, b = job().stages
    smaller, markers = job(attrs.evolve(a, world_size=4), b, name="j"), Markers()
    async with promoted_at(memory, markers) as journal:
        opened = await journal.open(smaller, on_mismatch="adopt")
        assert opened.done == {"a": (range(1, 4),), "b": (range(4, 5),)}
        assert markers.given == [("done", (2, 3)), ("done", (4,))]
        assert journal.differences == (
            "Job: was 'job', is 'j'",
            "Stage 'a': world size was 100, is 4",
            "Stage 'b': comes after 'a', which has changed",
        )


async def test_of_another_job_that_is_forgotten_nothing_is_given(memory: str) -> None:
    await run_once(memory, Markers(), done("a", 1))
    put_without_promotion(memory, 2, 1, done("a", 2))
    markers = Markers()
    async with promoted_at(memory, markers) as journal:
        opened = await journal.open(job(name="other"), on_mismatch="fresh")
    assert (opened.done, markers.given) == ({}, [])


async def test_anew_forgets_the_records_of_the_same_job(memory: str) -> None:
    await run_once(memory, Markers(), done("a", 1), failed("a", 2))
    put_without_promotion(memory, 3, 2, done("a", 3))
    markers = Markers()
    async with promoted_at(memory, markers, anew=True) as journal:
        opened = await journal.open(job(), on_mismatch="refuse")
        assert (opened.term, opened.done, opened.failed, markers.given) == (2, {}, {}, [])
        await journal.commit([done("a", 1)])
    assert read_run(memory).done == {"a": (range(1, 2),)}


def test_owed_cuts_ranks_and_results_and_leaves_out_what_is_empty() -> None:
    record = attrs.evolve(done("a", 1, 2, 8, 9), ranks=(range(8, 10), range(1, 3)))
    (cut,) = owed([record, done("a", 9), done("gone", 1)], {"a": 9})
    assert cut.ranks == (range(1, 3), range(8, 9))
    assert sorted(cut.results) == [1, 2, 8]
    assert owed([record], {"a": 0}) == ()
