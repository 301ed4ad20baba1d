"""A term that is ours: its segments are numbered, flushed, promoted and compacted here."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import attrs

from thornback.executor.journal.group_commit import Entry
from thornback.executor.journal.promote import Mover, promote_outputs
from thornback.executor.journal.steps import AsyncSteps, RetryParams
from thornback.executor.journal.terms import base_name, compact, flush, seg_name
from thornback.executor.ports import Completion


@attrs.frozen(kw_only=True, slots=True)
class JournalParams:
    """Time-outs and sizes of the journal."""

    ttl_s: float = 30.0
    """How long a holder that shows no life is watched before its state is taken over; it shows life
    every third.
    """
    open_timeout_s: float = 60.0
    """For the store to answer at `open`; what looks permanent (permission denied) is not retried
    there.
    """
    record_timeout_s: float = 600.0
    """For a store that fails or hangs, before the journal gives up for good."""
    close_timeout_s: float = 15.0
    """For the end after a failure, and for giving the state back."""
    min_interval_s: float | None = None
    """Between the starts of two flushes. None: 0 on local folders, 1 elsewhere, 60 on Hugging Face.
    """
    max_segment_bytes: int = 64 * 2**20
    """Of one flush, unless one commit alone is larger."""
    compact_segments: int = 64
    """Compact when there are more and they hold more than a quarter of the base: amortised, bytes
    are written twice.
    """
    compact_segments_max: int = 1024
    """Compact when there are more in any case: a list must stay cheap."""


@attrs.define(kw_only=True, slots=True, eq=False)
class Tenure:
    """What is known while a term is ours. Called by `GroupCommit`: one method at a time."""

    url: str
    term: int
    steps: AsyncSteps
    params: JournalParams
    identity_sha256: str
    """Digest of the job."""
    mover: Mover
    promote: Callable[[tuple[Completion, ...]], Awaitable[None]]
    """Does with durable records what is to be done beyond their outputs. Raises `JournalError`."""
    base_bytes: int
    keep_results: bool = True
    """Whether compaction keeps them."""
    promoted: int = 0
    """Segments up to this number are promoted, outputs and all."""
    flushed: int = 0
    """Number of the newest base or segment that is written."""
    _n: int = 0
    _newest: str = attrs.field(init=False)
    _segments: int = 0
    _segment_bytes: int = 0

    def __attrs_post_init__(self) -> None:
        self._newest = base_name(self.term, 0)

    async def flush(self, batch: Sequence[Entry]) -> None:
        """Make commits durable, then promote them: nothing of what a later driver may not count.

        Raises `Superseded`, `JournalError`.
        """
        self._n += 1
        lines = [line for entry in batch for line in entry.lines]
        steps = flush(
            *(self.url, self.term, self._n, self.promoted, lines),
            after=self._newest,
            identity_sha256=self.identity_sha256,
        )
        size = await self.steps.run(steps, self._patience)
        self.flushed, self._newest = self._n, seg_name(self.term, self._n)
        outputs = [pair for entry in batch for pair in entry.outputs]
        await promote_outputs(self.steps, self.mover, outputs, self._patience)
        await self.promote(tuple(record for entry in batch for record in entry.records))
        self.promoted = self._n
        self._segments += 1
        self._segment_bytes += size

    async def compact_if_due(self) -> None:
        """Compact when there are many segments. Raises `Superseded`, `JournalError`."""
        heavy = self._segment_bytes > self.base_bytes / 4
        params = self.params
        allowed = params.compact_segments if heavy else params.compact_segments_max
        if self._segments <= allowed:
            return
        self._n += 1
        steps = compact(self.url, self.term, self._n, lambda stage: self.keep_results)
        self.base_bytes = await self.steps.run(steps, self._patience)
        self.promoted = self.flushed = self._n
        self._newest = base_name(self.term, self._n)
        self._segments, self._segment_bytes = 0, 0

    @property
    def _patience(self) -> RetryParams:
        return RetryParams(timeout_s=self.params.record_timeout_s)
