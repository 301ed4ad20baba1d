"""Each journal keeps the contract: the fake, files on a local folder, objects in a (pretended)
remote store.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path

import anyio
import pytest

from thornback.executor.journal.filejournal import FileJournal, JournalParams
from thornback.executor.journal.testing import FakeJournal, FakeState, check_journal
from thornback.executor.ports import Journal

pytestmark = pytest.mark.anyio
PARAMS = JournalParams(min_interval_s=0)


class BeatsAtEveryLook:
    """Virtual time: a holder sleeps until somebody looks whether it is alive; then it beats first.

    Who sleeps for a third of the ttl beats, who sleeps for a tenth of it looks.
    """

    def __init__(self) -> None:
        self._sleeping: dict[anyio.Event, None] = {}
        self._asleep = anyio.Event()

    async def __call__(self, delay_s: float) -> None:
        if delay_s == PARAMS.ttl_s / 3:
            await self._until_somebody_looks()
            return
        holders = list(self._sleeping)
        self._sleeping.clear()
        for holder in holders:
            holder.set()
        while len(self._sleeping) < len(holders):
            self._asleep = anyio.Event()
            await self._asleep.wait()

    async def _until_somebody_looks(self) -> None:
        event = anyio.Event()
        self._sleeping[event] = None
        self._asleep.set()
        try:
            await event.wait()
        finally:
            self._sleeping.pop(event, None)


async def test_fake(tmp_path: Path) -> None:
    states: dict[str, FakeState] = {}

    def make(name: str) -> AbstractAsyncContextManager[Journal]:
        return FakeJournal(states.setdefault(name, FakeState()))

    await check_journal(make, str(tmp_path))


def _urls(tmp_path: Path, kind: str) -> Callable[[str], str]:
    if kind == "memory":
        root = f"memory://{uuid.uuid4().hex}"
        return lambda name: f"{root}/{name}"
    return lambda name: f"{'file://' if kind == 'url' else ''}{tmp_path}/states/{name}"


@pytest.mark.parametrize("kind", ["path", "url", "memory"])
async def test_files(tmp_path: Path, kind: str) -> None:
    url = _urls(tmp_path, kind)
    sleep = BeatsAtEveryLook()

    def make(name: str) -> AbstractAsyncContextManager[Journal]:
        return FileJournal(url(name), params=PARAMS, sleep=sleep)

    folder = tmp_path / "outputs"
    folder.mkdir()
    await check_journal(make, str(folder))
