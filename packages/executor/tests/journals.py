"""What tests of `FileJournal` share: time that takes no time, and ways to look at a state."""

from __future__ import annotations

from pathlib import Path

import anyio
import anyio.lowlevel
import attrs

from thornback.executor.journal.filejournal import FileJournal, JournalParams
from thornback.executor.journal.holder import Heartbeat
from thornback.executor.journal.promoter import Promoter
from thornback.executor.journal.segments import encode_record
from thornback.executor.journal.steps import run_blocking
from thornback.executor.journal.store import open_store
from thornback.executor.journal.terms import beat_name, flush
from thornback.executor.journal.testing import done, job
from thornback.executor.paths import STAGING
from thornback.executor.ports import Completion

QUICK = JournalParams(min_interval_s=0)


class VirtualTime:
    """Sleeping takes no time, but for beats, which are never due."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.now_s

    async def sleep(self, delay_s: float) -> None:
        if delay_s == QUICK.ttl_s / 3:
            await anyio.sleep_forever()
        await anyio.lowlevel.checkpoint()
        self.slept.append(delay_s)
        self.now_s += delay_s


def journal_at(
    url: str,
    time: VirtualTime | None = None,
    params: JournalParams = QUICK,
    *,
    promoter: Promoter | None = None,
    anew: bool = False,
) -> FileJournal:
    """Return a journal that lives in virtual time."""
    clock = time or VirtualTime()
    return FileJournal(
        url,
        promoter=promoter,
        params=params,
        anew=anew,
        sleep=clock.sleep,
        monotonic=clock.monotonic,
    )


def control(url: str | Path) -> dict[str, bytes]:
    """Return everything under `control/`, without the lock."""
    store = open_store(str(url))
    return {name: store.get(name) or b"" for name in store.list() if name != "lock"}


def kinds(url: str | Path) -> list[str]:
    return sorted(name.partition("-")[0] for name in control(url))


async def run_once(url: str, *records: Completion) -> None:
    async with FileJournal(url, params=QUICK) as journal:
        await journal.open(job(), on_mismatch="refuse")
        await journal.commit(records)


async def reopened(url: str) -> list[range]:
    async with FileJournal(url, params=QUICK) as journal:
        opened = await journal.open(job(), on_mismatch="refuse")
        return list(opened.done.get("a", ()))


def name_of(url: str, kind: str) -> str:
    return next(name for name in sorted(control(url), reverse=True) if name.startswith(kind))


def assert_closed(url: str) -> None:
    beat = Heartbeat.decode(control(url)[beat_name(1)])
    assert beat is not None
    assert beat.closed


EPOCH = "000001.000000007"


def publishing(state: str, final: str | Path, rank: int = 2, stage: str = "a") -> Completion:
    """Stage a file with the text `x` as a rank does; return the record that it is published."""
    staged = Path(state, STAGING, stage, EPOCH, str(rank), "0")
    staged.parent.mkdir(parents=True, exist_ok=True)
    staged.write_text("x")
    return attrs.evolve(done(stage, rank), epoch=EPOCH, outputs=[(str(staged), str(final))])


def flush_unpromoted(state: str, *records: Completion) -> None:
    """Record what the driver of term 1 has not promoted before it was killed."""
    lines = [encode_record(record) for record in records]
    run_blocking(open_store(state), flush(state, 1, 2, 1, lines))
