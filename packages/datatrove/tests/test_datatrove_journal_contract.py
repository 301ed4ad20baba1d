"""The journal of a chain keeps the contract of every journal, as far as it applies.

The suite is taken apart here, since one check does not apply: `_check_identity` opens a state as
other jobs, of another name or with other stages. A logging_dir belongs to a pipeline, whatever job
runs it as which stage, and is compared with the identity in `PipelineState`; what follows from a
difference is tested in test_datatrove_journal.py.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import anyio
import pytest
from datatrove.io import get_datafolder

from thornback.datatrove.journal import PipelineJournals, PipelineState
from thornback.executor.journal import testing
from thornback.executor.journal.filejournal import JournalParams
from thornback.executor.ports import Journal

pytestmark = pytest.mark.anyio
PARAMS = JournalParams(min_interval_s=0)
CHECKS = sorted(name for name in vars(testing) if name.startswith("_check_"))


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class BeatsAtEveryLook:
    """Virtual time: holders sleep until somebody looks whether they are alive; then they beat
    first. Who sleeps for a third of the ttl beats, who sleeps for a tenth of it looks.
    """

    def __init__(self) -> None:
        self._sleeping: dict[anyio.Event, None] = {}
        self._asleep = anyio.Event()

    async def __call__(self, delay_s: float) -> None:
        if delay_s != PARAMS.ttl_s / 3:
            holders = list(self._sleeping)
            self._sleeping.clear()
            for holder in holders:
                holder.set()
            while len(self._sleeping) < len(holders):
                self._asleep = anyio.Event()
                await self._asleep.wait()
            return
        event = anyio.Event()
        self._sleeping[event] = None
        self._asleep.set()
        try:
            await event.wait()
        finally:
            self._sleeping.pop(event, None)


def making(root: str) -> Callable[[str], AbstractAsyncContextManager[Journal]]:
    sleep = BeatsAtEveryLook()

    def make(name: str) -> AbstractAsyncContextManager[Journal]:
        states = [
            PipelineState(
                stage=stage.name,
                folder=get_datafolder(f"{root}/{name}/{stage.name}"),
                identity=stage,
            )
            for stage in testing.job().stages
        ]
        return PipelineJournals(
            states,
            root="a",
            decode=lambda result: f"[{result}]",
            keep_results=True,
            params=PARAMS,
            sleep=sleep,
        )

    return make


@pytest.mark.parametrize("kind", ["path", "memory"])
@pytest.mark.parametrize("name", [name for name in CHECKS if name != "_check_identity"])
async def test_it_passes(tmp_path: Path, name: str, kind: str) -> None:
    check: Callable[..., Awaitable[None]] = getattr(testing, name)
    root = tmp_path / "states"
    arguments: list[Any] = [making(str(root) if kind == "path" else f"memory://{root}")]
    if name == "_check_outputs":
        (tmp_path / "outputs").mkdir()
        arguments.append(str(tmp_path / "outputs"))
    with anyio.fail_after(60):
        await check(*arguments)


async def test_nothing_of_the_suite_is_forgotten() -> None:
    assert len(CHECKS) == 9
    assert set(CHECKS) <= set(testing.check_journal.__code__.co_names)
