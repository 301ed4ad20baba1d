"""The durable record of one stage: a journal of files in its logging_dir, and datatrove's markers.

The journal is what counts; markers and stats are promoted from it, so a marker never stands for
what is not recorded, and dies with no driver. Markers are also read: other executors write there.

    recorded   marker   at open
    yes        yes      done
    no         yes      done: by another executor, or by hand
    yes        no       if it is not known to be promoted: promoted now, and done. Else to be run
                        again, since the user has removed the marker for that (a habit of
                        datatrove's). The ledger, where DONE is final, ignores the second result of
                        such a rank: its stats file is written from the new completion.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Literal, TypeAlias, TypeVar

import anyio
import attrs
from fsspec.implementations.cached import CachingFileSystem

from datatrove.io import DataFolder
from thornback.datatrove import markers, rankresult
from thornback.datatrove.errors import LoggingDirInUse, PipelineMismatch
from thornback.datatrove.identity import pipeline_differences
from thornback.executor import HeldByAnother, IdentityMismatch, JournalError, UsageError
from thornback.executor.apart import apart
from thornback.executor.journal.filejournal import FileJournal, JournalParams
from thornback.executor.journal.ledger import contains, normalise, subtract
from thornback.executor.journal.promoter import patiently
from thornback.executor.journal.steps import RetryParams
from thornback.executor.ports import Completion, Identity, Opened, Ranks, StageIdentity

T = TypeVar("T")
logger = logging.getLogger(__name__)
OnMismatch: TypeAlias = Literal["refuse", "warn", "adopt"]
Decode: TypeAlias = Callable[[str], str]
"""From the result of a rank, as the journal has it, to the text of its stats file."""
PIPELINE = "pipeline"
"""Job and stage in the journal of a logging_dir, whatever their names in the job that runs it: the
place of a pipeline in a chain is no part of what it is."""


@attrs.frozen(kw_only=True, slots=True)
class PipelineState:
    """One stage's durable state."""

    stage: str
    """Its name in the job."""
    folder: DataFolder
    """The executor's logging_dir."""
    identity: StageIdentity
    """World size and signature (`version`) of the pipeline. Its name and parents do not count."""
    skip_completed: bool = True
    """False: what is recorded or marked is forgotten at open; only what this run records counts."""
    on_mismatch: OnMismatch = "refuse"
    """If the folder holds the record of another pipeline, or of another number of tasks: raise, log
    a warning and count it, or count it. What other executors have left there is for the caller to
    compare (`directory`)."""


def state_url(folder: DataFolder) -> str:
    """Return the path or URL of the folder in a logging_dir in which the journal is kept.

    To be opened with `storage_options(folder)`.
    """
    url: str = folder.resolve_paths(markers.OWN)
    return url


def storage_options(folder: DataFolder) -> dict[str, object]:
    """Return what makes the file system of the folder anew. It may hold secrets.

    Raises:
        UsageError: nothing does.
    """
    fs = folder.fs
    while isinstance(fs, CachingFileSystem):
        fs = fs.fs  # its URLs are those of what it caches, which the journal must see itself
    if fs.storage_args:
        raise UsageError(
            f"the file system of logging_dir {folder.path!r} was made with positional arguments, "
            "with which it cannot be opened again: give logging_dir=(path, {option: value}), or "
            "make the file system with keyword arguments only"
        )
    return dict(fs.storage_options)


class StageJournal:
    """Opens, fills and closes the record of one stage. `native`'s context must be entered first."""

    def __init__(
        self,
        state: PipelineState,
        *,
        decode: Decode | None,
        keep_results: bool,
        params: JournalParams,
        monotonic: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]],
    ) -> None:
        self.state = state
        self.url = state_url(state.folder)
        self.native = FileJournal(
            self.url,
            storage_options=storage_options(state.folder),
            promoter=self._promote,
            keep_results=keep_results,
            anew=not state.skip_completed,
            compare=pipeline_differences,
            params=params,
            monotonic=monotonic,
            sleep=sleep,
        )
        # Long stats are in a file of the logging_dir, which the result names.
        read = state.folder.read_text
        self._decode: Decode = decode or partial(rankresult.decode, read=read)
        self._retry = RetryParams(timeout_s=params.record_timeout_s, patient=False)
        self._monotonic = monotonic
        self._sleep = sleep
        self._limiter = anyio.CapacityLimiter(1)
        self._promoted_at_open: list[range] | None = []

    async def open(self) -> tuple[int, Ranks, Ranks]:
        """Claim the folder; return the term, the ranks that are done, and those that failed.

        Raises:
            PipelineMismatch: the folder is another pipeline's, and that is refused.
            LoggingDirInUse: another driver has it.
            JournalError: it cannot be read or claimed.
        """
        folder, size = self.state.folder, self.state.identity.world_size
        opened = await self._open_native()
        failed = opened.failed.get(PIPELINE, ())
        promoted, self._promoted_at_open = self._promoted_at_open or [], None
        await self._blocking("sweep thornback/", partial(markers.sweep, folder))
        if not self.state.skip_completed:
            # Before any rank runs: a stale marker would show ranks as complete that are still to
            # be run, to whoever looks (tools, dependents elsewhere, a resumed run).
            await self._blocking("remove markers", partial(markers.forget, folder))
            return opened.term, (), ()
        marked = await self._blocking(
            "list completions/", partial(markers.completed_ranks, folder, size)
        )
        # A stale listing must not undo what was just promoted.
        done = normalise((*marked, *promoted))
        return opened.term, done, subtract(failed, done)

    async def _open_native(self) -> Opened:
        stage = attrs.evolve(self.state.identity, name=PIPELINE, parents=())
        identity = Identity(job=PIPELINE, stages=(stage,))
        on_mismatch: Literal["refuse", "adopt", "fresh"] = "adopt"
        if not self.state.skip_completed:
            on_mismatch = "fresh"
        elif self.state.on_mismatch == "refuse":
            on_mismatch = "refuse"
        try:
            opened = await self.native.open(identity, on_mismatch=on_mismatch)
        except IdentityMismatch as error:
            raise self._mismatch(_without_prefix(error.differences)) from error
        except HeldByAnother as error:
            url = self._folder_url
            raise LoggingDirInUse(url, error.host, error.pid, error.since, error.seen) from error
        for warning in opened.warnings:
            logger.warning("%s", warning)
        if self.native.differences:
            self._differs(_without_prefix(self.native.differences))
        return opened

    def _differs(self, differences: Sequence[str]) -> None:
        if self.state.on_mismatch == "refuse":
            raise self._mismatch(differences)
        if self.state.on_mismatch == "warn":
            logger.warning(
                "logging_dir %r holds the completions of a different pipeline, which are counted "
                "as this one's: %s",
                *(self._folder_url, "; ".join(differences)),
            )

    def _mismatch(self, differences: Sequence[str]) -> PipelineMismatch:
        return PipelineMismatch(self._folder_url, differences)

    @property
    def _folder_url(self) -> str:
        return self.url.removesuffix(f"/{markers.OWN}")

    async def _promote(self, records: Sequence[Completion]) -> None:
        """Write stats and markers of ranks that are done; those that failed or were skipped get
        neither, and those that are void lose them. What is written for a rank depends on its
        records alone, so once more does no harm.
        """
        results: dict[int, str | None] = {}
        void: Ranks = ()
        at_open = self._promoted_at_open
        for record in records:
            if record.state == "done":
                ranks = [rank for piece in record.ranks for rank in piece]
                results |= {rank: record.results.get(rank) for rank in ranks}
                if at_open is not None:
                    at_open += record.ranks
            elif record.state == "void":
                void = normalise((*void, *record.ranks))
                gone = normalise(record.ranks)
                results = {r: text for r, text in results.items() if not contains(gone, r)}
                if at_open is not None:
                    at_open[:] = subtract(normalise(at_open), gone)
        if void:
            await apart(partial(markers.forget, self.state.folder, void), self._limiter)
        if results:
            write = partial(_write, self.state.folder, self._decode, results)
            await apart(write, self._limiter)

    async def _blocking(self, what: str, do: Callable[[], T]) -> T:
        return await patiently(
            f"{self._folder_url}: cannot {what}",
            lambda: apart(do, self._limiter),
            self._retry,
            monotonic=self._monotonic,
            sleep=self._sleep,
        )


def _write(folder: DataFolder, decode: Decode, results: dict[int, str | None]) -> None:
    texts: dict[int, str | None] = {}
    for rank, result in results.items():
        try:
            texts[rank] = None if result is None else decode(result)
        except (ValueError, KeyError, TypeError, FileNotFoundError) as error:
            # It would fail again each time, so it must not be retried. Anything else comes from the
            # store, where the stats are in a file.
            raise JournalError(
                f"the recorded result of rank {rank} is not one of this version: {error!r}. Run "
                "it again with skip_completed=False, or with the version that has recorded it"
            ) from error
    markers.promote(folder, texts)


def _without_prefix(differences: Sequence[str]) -> list[str]:
    return [text.removeprefix(f"Stage {PIPELINE!r}: ") for text in differences]
