"""The results of ranks for the rank of the same number in the stage that comes one to one after."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

import anyio

from thornback.executor.plan import RunPlan
from thornback.executor.ports import Completion, Journal, Opened, Ranks

Texts: TypeAlias = Mapping[str, str]
"""By name of the stage before: the JSON text of its rank; left out where that has no result."""


class Handover:
    """Keeps what is recorded until the rank that wants it is settled: it may be tried again.

    What earlier runs recorded is read from the journal, once per stage, when it is first asked for.
    """

    def __init__(self, plan: RunPlan, journal: Journal, opened: Opened) -> None:
        self._plan = plan
        self._journal = journal
        self._opened = opened
        self._earlier = [name for name, ranks in opened.done.items() if ranks]
        self._kept: dict[tuple[str, str], dict[int, str]] = {}
        """By (stage, stage before)."""
        for child, parents in plan.own_parents.items():
            self._kept |= {(child, parent): {} for parent in parents}
        self._reading = anyio.Lock()

    def note(self, records: Iterable[Completion]) -> None:
        """Keep the results of ranks that are durable now."""
        for record in records:
            for (_, parent), kept in self._kept.items():
                if parent == record.stage:
                    kept.update(record.results)

    async def of(self, number: int, ranks: Ranks) -> Sequence[Texts]:
        """Return what each of these ranks is handed, in order; nothing at all for a stage that
        comes one to one after none.

        Raises:
            JournalError: what an earlier run recorded cannot be read.
        """
        child = self._plan.stages[number].name
        parents = self._plan.own_parents.get(child, ())
        if not parents:
            return ()
        for parent in parents:
            if parent in self._earlier:
                await self._read(parent)
        kept = {parent: self._kept[child, parent] for parent in parents}
        return [
            {parent: texts[rank] for parent, texts in kept.items() if rank in texts}
            for piece in ranks
            for rank in piece
        ]

    def drop(self, number: int, ranks: Ranks) -> None:
        """Forget what was for ranks that are settled."""
        child = self._plan.stages[number].name
        for parent in self._plan.own_parents.get(child, ()):
            kept = self._kept[child, parent]
            for rank in (rank for piece in ranks for rank in piece):
                kept.pop(rank, None)

    async def _read(self, parent: str) -> None:
        async with self._reading:
            if parent not in self._earlier:
                return
            recorded = await self._journal.results(parent)
            for (child, before), kept in self._kept.items():
                if before != parent:
                    continue
                settled = self._opened.done.get(child, ())
                kept.update(
                    (rank, text)
                    for rank, text in recorded.items()
                    if not any(rank in piece for piece in settled)
                )
            self._earlier.remove(parent)
