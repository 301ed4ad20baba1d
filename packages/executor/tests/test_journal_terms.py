"""Who holds a state of `FileJournal`: claims, beats, and what a superseded holder may still do."""

from __future__ import annotations

from pathlib import Path

import anyio
import anyio.lowlevel
import attrs
import pytest

from packages.executor.tests.journals import (
    QUICK,
    VirtualTime,
    control,
    journal_at,
    kinds,
    name_of,
    publishing,
    reopened,
    run_once,
)
from thornback.executor.journal.filejournal import (
    FileJournal,
    HeldByAnother,
    IdentityMismatch,
    Superseded,
)
from thornback.executor.journal.holder import Heartbeat, Holder
from thornback.executor.journal.store import open_store
from thornback.executor.journal.terms import LOOKS, beat_name, claim_name
from thornback.executor.journal.testing import done, job

pytestmark = pytest.mark.anyio


async def test_after_a_clean_close_nobody_waits(memory: str) -> None:
    time = VirtualTime()
    for term in (1, 2, 3):
        async with journal_at(memory, time) as journal:
            assert (await journal.open(job(), on_mismatch="refuse")).term == term
    assert time.slept == []
    assert kinds(memory) == ["base", "beat", "claim"]  # what older terms have left is removed


async def test_a_refused_job_leaves_the_state_closed(memory: str) -> None:
    time = VirtualTime()
    await run_once(memory, done("a", 1))
    async with journal_at(memory, time) as journal:
        with pytest.raises(IdentityMismatch):
            await journal.open(job(name="other"), on_mismatch="refuse")
    assert await reopened(memory) == [range(1, 2)]
    assert time.slept == []


async def test_a_silent_holder_elsewhere_is_watched_and_then_superseded(memory: str) -> None:
    time = VirtualTime()
    async with journal_at(memory, time) as old:
        await old.open(job(), on_mismatch="refuse")
        await old.commit([done("a", 1)])
        self_made = Holder.decode(control(memory)[name_of(memory, "claim")])
        elsewhere = attrs.evolve(self_made, host="elsewhere", boot="other")
        open_store(memory).put(name_of(memory, "claim"), elsewhere.encode())
        async with journal_at(memory, time) as new:
            opened = await new.open(job(), on_mismatch="refuse")
            assert opened.done == {"a": (range(1, 2),)}
            assert sum(time.slept) == pytest.approx(QUICK.ttl_s)
            assert len(time.slept) == LOOKS
            for _ in range(2):
                with pytest.raises(Superseded, match="its term is 2, ours was 1"):
                    await old.commit([done("a", 2)])
            with pytest.raises(Superseded):
                await old.results("a")
            await new.commit([done("a", 3)])
    assert await reopened(memory) == [range(1, 2), range(3, 4)]


async def test_an_idle_superseded_holder_learns_it_from_reading(memory: str) -> None:
    time = VirtualTime()
    async with journal_at(memory, time) as old, journal_at(memory, time) as new:
        await old.open(job(), on_mismatch="refuse")
        await new.open(job(), on_mismatch="refuse")
        with pytest.raises(Superseded):
            await old.results("a")


async def test_what_a_superseded_flush_has_put_is_neither_announced_nor_promoted(
    tmp_path: Path,
) -> None:
    state, final = tmp_path / "state", tmp_path / "final"
    record = publishing(str(state), final)
    async with FileJournal(str(state)) as journal:
        await journal.open(job(), on_mismatch="refuse")
        open_store(str(state)).put(claim_name(2, "other"), Holder(id="other").encode())
        with pytest.raises(Superseded):
            await journal.commit([record])
    assert await anyio.Path(record.outputs[0][0]).exists()
    assert not final.exists()


async def test_a_claim_of_the_same_moment_makes_both_give_way(memory: str) -> None:
    class Rival(VirtualTime):
        async def sleep(self, delay_s: float) -> None:
            open_store(memory).put(claim_name(2, "rival"), Holder(id="rival", host="h").encode())
            await super().sleep(delay_s)

    open_store(memory).put(claim_name(1, "dead"), Holder(id="dead").encode())
    async with journal_at(memory, Rival()) as journal:
        with pytest.raises(HeldByAnother, match="host h"):
            await journal.open(job(), on_mismatch="refuse")
    assert sorted(control(memory)) == [claim_name(1, "dead"), claim_name(2, "rival")]


async def test_a_holder_that_closes_while_it_is_watched_is_waited_for_no_longer(
    memory: str,
) -> None:
    class Closing(VirtualTime):
        async def sleep(self, delay_s: float) -> None:
            await super().sleep(delay_s)
            closed = Heartbeat(id="old", count=9, closed=True)
            open_store(memory).put(beat_name(1), closed.encode())

    time = Closing()
    open_store(memory).put(claim_name(1, "old"), Holder(id="old").encode())
    async with journal_at(memory, time) as journal:
        assert (await journal.open(job(), on_mismatch="refuse")).term == 2
    assert len(time.slept) == 1


async def test_cancelled_while_watching_nothing_is_claimed(memory: str) -> None:
    open_store(memory).put(claim_name(1, "dead"), Holder(id="dead").encode())

    async def cancel(delay_s: float) -> None:
        scope.cancel()
        await anyio.lowlevel.checkpoint()

    with anyio.CancelScope() as scope:
        async with FileJournal(memory, params=QUICK, sleep=cancel) as journal:
            await journal.open(job(), on_mismatch="refuse")
    assert scope.cancelled_caught
    assert list(control(memory)) == [claim_name(1, "dead")]
