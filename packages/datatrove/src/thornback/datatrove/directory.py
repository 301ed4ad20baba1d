"""What the facade reads and writes in a `logging_dir`, besides markers and statistics."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Literal

import anyio

from datatrove.executor.base import PipelineExecutor
from datatrove.io import DataFolder
from datatrove.utils.logging import logger
from thornback.datatrove import identity, markers
from thornback.datatrove.errors import PipelineMismatch
from thornback.executor import JournalError
from thornback.executor.apart import apart
from thornback.executor.ports import Completion, Identity, Journal, Opened, StageIdentity

if TYPE_CHECKING:
    from thornback.datatrove.executor import RayPipelineExecutor

PIPELINE = f"{markers.OWN}/pipeline.json"
"""Tells which pipeline it was. Another file anywhere else would break datatrove's tools."""
SAVE_S = 600.0
"""For executor.json to be written; as long as a record may take."""


def url_of(folder: DataFolder) -> str:
    """Return the URL of a folder, for people."""
    return str(folder.resolve_paths("")).rstrip("/") or "/"


def logs_of(member: PipelineExecutor) -> str:
    """Return the URL of the folder with the logs of a pipeline's tasks."""
    return str(member.logging_dir.resolve_paths("logs"))


def warn_of_memory(member: PipelineExecutor) -> None:
    """Warn if the logs of tasks cannot be kept."""
    protocol = member.logging_dir.fs.protocol
    if "memory" in ((protocol,) if isinstance(protocol, str) else protocol):
        logger.warning(
            f"logging_dir={url_of(member.logging_dir)!r} is in the memory of this process: the "
            "logs of tasks cannot be kept, since each task has a memory of its own. Give a folder "
            "or a URL that all of them reach"
        )


def differences(folder: DataFolder, wanted: StageIdentity) -> tuple[str, ...]:
    """Return how the pipeline that has used a directory differs from the one that is to use it; one
    sentence each. Nothing: it does not, as far as is known."""
    return identity.differences(
        wanted, own=_read(folder, PIPELINE), executor_json=_read(folder, "executor.json")
    )


def warn_of_params(member: RayPipelineExecutor, wanted: StageIdentity) -> None:
    """Warn of steps whose parameters have changed since ranks were completed: these stay as they
    are."""
    for changed in identity.changed_params(wanted, _read(member.logging_dir, PIPELINE)):
        logger.warning(
            f"logging_dir {url_of(member.logging_dir)!r}: parameters have changed since tasks "
            f"were completed there, which are not run again: {changed}"
        )


def check_marks(member: RayPipelineExecutor, found: Sequence[str]) -> None:
    """Do what `on_mismatch` says about completions of a pipeline that differs. The journal looks as
    well, but only at pipelines that are to be run, and it cannot name steps.

    Raises:
        PipelineMismatch: it differs, and `on_mismatch` is 'refuse'.
    """
    if not found or member.on_mismatch == "adopt":
        return
    folder = member.logging_dir
    mismatch = PipelineMismatch(url_of(folder), found)
    if member.on_mismatch == "refuse":
        raise mismatch
    logger.warning(f"{mismatch}. They are taken as they are, since on_mismatch='warn'")


def _read(folder: DataFolder, path: str) -> str | None:
    try:
        with folder.open(path, "r") as file:
            return str(file.read())
    except FileNotFoundError:
        return None


def save_executors(members: Mapping[str, RayPipelineExecutor]) -> None:
    """Write executor.json of each pipeline, and what tells the next run which pipeline it was."""
    for name, member in members.items():
        member.save_executor_as_json()
        with suppress(FileNotFoundError):  # it tells of all ranks, which are not complete now
            member.logging_dir.rm_file("stats.json")
        own = identity.stage_identity(
            name=name, pipeline=member.pipeline, world_size=member.world_size
        )
        with member.logging_dir.open(PIPELINE, "w") as file:
            file.write(identity.as_text(own))


class JournalAfterOpen:
    """A journal (fulfils `thornback.executor.ports.Journal`) that does something when the state is
    claimed and nothing has run: a run that is refused changes no file of the one that it meets."""

    def __init__(self, inner: Journal, then: Callable[[], None], save_s: float = SAVE_S) -> None:
        self._inner = inner
        self._then = then
        self._save_s = save_s

    async def open(
        self, identity: Identity, /, *, on_mismatch: Literal["refuse", "adopt", "fresh"]
    ) -> Opened:
        """Open the journal, then do it, in a thread.

        Raises:
            JournalError: as the journal; or it took too long.
            Exception: whatever it raised.

        Cancellation: as the journal; it may be done or not.
        """
        opened = await self._inner.open(identity, on_mismatch=on_mismatch)
        try:
            with anyio.fail_after(self._save_s):
                await apart(self._then, anyio.CapacityLimiter(1))
        except TimeoutError as error:
            raise JournalError(
                f"executor.json could not be written within {self._save_s:.0f} s: the store of a "
                "logging_dir does not answer. Nothing was run"
            ) from error
        return opened

    async def commit(self, records: Sequence[Completion], /) -> None:
        """As the journal."""
        await self._inner.commit(records)

    async def results(self, stage: str, /) -> Mapping[int, str]:
        """As the journal."""
        return await self._inner.results(stage)

    async def close(self) -> None:
        """As the journal."""
        await self._inner.close()
