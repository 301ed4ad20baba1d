"""The results of ranks for the stages after theirs: for the rank of the same number, and how much
there is for whole stages."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import TypeAlias

import anyio
import anyio.lowlevel

from thornback.executor.blobs import RunBlobs
from thornback.executor.doneranks import mark
from thornback.executor.plan import RunPlan
from thornback.executor.ports import Completion, Journal, Opened, Ranks
from thornback.executor.waiting import TIMEOUT_S, WaitingTexts

logger = logging.getLogger(__name__)
_READ_AT_ONCE = 1_000
Texts: TypeAlias = Mapping[str, str]
"""By name of the stage before: the JSON text of its rank; left out where that has no result, since
it failed or was skipped."""


class Handover:
    """Keeps what is recorded until the rank that wants it is settled: it may be tried again.

    What earlier runs recorded is read from the journal, once per stage, when it is first asked for.

    Args:
        plan: of the run.
        journal: to read from.
        opened: what it knew when it was opened.
        waiting: keeps the texts; None: one with the usual bounds.
        disk_s: for that one, how long its disk may take.
    """

    def __init__(
        self,
        plan: RunPlan,
        journal: Journal,
        opened: Opened,
        waiting: WaitingTexts | None = None,
        *,
        disk_s: float = TIMEOUT_S,
    ) -> None:
        self._plan = plan
        self._journal = journal
        self._opened = opened
        self._earlier = [name for name, ranks in opened.done.items() if ranks]
        self._waiting = waiting or WaitingTexts(timeout_s=disk_s)
        edges = [(child, own) for child, parents in plan.own_parents.items() for own in parents]
        self._queues = {edge: number for number, edge in enumerate(edges)}
        """By (stage, stage before)."""
        self._nones = {parent: bytearray(plan.world_sizes[parent]) for _, parent in edges}
        """By stage before and rank, not 0: it returned None. That is not worth a text for each."""
        self._settled = {child: self._settled_before(child) for child in plan.own_parents}
        """By stage and rank, not 0: it wants nothing any more. Its results may still come: of a
        rank that was skipped for another one before it, or has seen this one fail."""
        self._whole = {name: 0 for parents in plan.whole_parents.values() for name in parents}
        """Characters that this run has recorded of the results that are read as a whole."""
        self._reading = anyio.Lock()

    async def note(self, records: Iterable[Completion]) -> None:
        """Keep the results of ranks that are durable now. Waits only for a disk that is slower than
        they come; never raises.

        Cancellation: none of them is kept.
        """
        await self._waiting.room()
        for record in records:
            if record.stage in self._nones and record.state == "done":
                _mark_nones(self._nones[record.stage], record.ranks, record.results)
            for (child, parent), queue in self._queues.items():
                if parent == record.stage:
                    self._put(queue, child, record.results)
            if record.stage in self._whole:
                self._count(record.stage, sum(map(len, record.results.values())))

    def _count(self, stage: str, more: int) -> None:
        before = self._whole[stage]
        self._whole[stage] = before + more
        refusal = RunBlobs.refusal(stage, before + more)
        if refusal is not None and RunBlobs.refusal(stage, before) is None:
            readers = [n for n, parents in self._plan.whole_parents.items() if stage in parents]
            logger.warning("stage %s will be refused: %s", ", ".join(map(repr, readers)), refusal)

    def check(self, number: int) -> None:
        """Return unless a stage reads more than may be handed to it.

        Raises:
            InputTooLarge: what this run has recorded alone is too much.
        """
        for parent in self._plan.whole_parents.get(self._plan.stages[number].name, ()):
            refusal = RunBlobs.refusal(parent, self._whole[parent])
            if refusal is not None:
                raise refusal

    async def of(self, number: int, ranks: Ranks) -> Sequence[Texts]:
        """Return what each of these ranks is handed, in order; nothing at all for a stage that
        comes one to one after none.

        Raises:
            NotKept: there was no room to keep it.
            JournalError: what an earlier run recorded cannot be read.
        """
        child = self._plan.stages[number].name
        parents = self._plan.own_parents.get(child, ())
        if not parents:
            return ()
        for parent in parents:
            if parent in self._earlier:
                await self._read(parent)
        found = {
            each: await self._waiting.get(self._queues[child, each], ranks) for each in parents
        }
        return [
            {
                parent: texts.get(rank, "null")
                for parent, texts in found.items()
                if rank in texts or self._nones[parent][rank]
            }
            for piece in ranks
            for rank in piece
        ]

    def drop(self, number: int, ranks: Ranks) -> None:
        """Forget what was for ranks that are settled, and what will come for them."""
        child = self._plan.stages[number].name
        for parent in self._plan.own_parents.get(child, ()):
            mark(self._settled[child], ranks)
            self._waiting.drop(self._queues[child, parent], ranks)

    def close(self) -> None:
        """Give back what is kept; waits for nothing."""
        self._waiting.close()

    async def _read(self, parent: str) -> None:
        async with self._reading:
            if parent not in self._earlier:
                return
            recorded = await self._journal.results(parent)
            earlier = bytearray(self._plan.stages[self._plan.index[parent]].world_size)
            mark(earlier, self._opened.done[parent])  # what this run records is noted as it comes
            _mark_nones(self._nones[parent], self._opened.done[parent], recorded)
            texts = iter([(rank, text) for rank, text in recorded.items() if earlier[rank]])
            while some := dict(islice(texts, _READ_AT_ONCE)):
                await self._waiting.room()
                for (child, before), queue in self._queues.items():
                    if before == parent:
                        self._put(queue, child, some)
                await anyio.lowlevel.checkpoint()  # there may be a million of them
            self._earlier.remove(parent)

    def _put(self, queue: int, child: str, texts: Mapping[int, str]) -> None:
        settled = self._settled[child]
        self._waiting.put(queue, {rank: text for rank, text in texts.items() if not settled[rank]})

    def _settled_before(self, stage: str) -> bytearray:
        """Return the ranks of a stage that this run does not run."""
        settled = bytearray(self._plan.stages[self._plan.index[stage]].world_size)
        mark(settled, self._opened.done.get(stage, ()))
        if not self._plan.settings.retry_failed:
            mark(settled, self._opened.failed.get(stage, ()))
        return settled


def _mark_nones(flags: bytearray, done: Ranks, texts: Mapping[int, str]) -> None:
    mark(flags, done)
    for piece in done:
        for rank in piece:
            if rank in texts:
                flags[rank] = 0
