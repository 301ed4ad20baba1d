"""What workers may ask the driver for, by key: the program of a stage, and the results of a stage
before it."""

from __future__ import annotations

from thornback.executor.plan import RunPlan
from thornback.executor.ports import Journal


class RunBlobs:
    """Fulfils `thornback.pool.Blobs`. A blob is immutable: a stage's results are asked for only
    after it has ended."""

    def __init__(self, plan: RunPlan, journal: Journal) -> None:
        self._plan = plan
        self._journal = journal

    async def __call__(self, key: str) -> bytes:
        """Return the bytes of `program:<stage>` or `results:<stage>` (a JSON list in order of
        rank)."""
        kind, _, number = key.partition(":")
        if kind == "program":
            return self._plan.programs[key]
        recorded = await self._journal.results(self._plan.stages[int(number)].name)
        return f"[{','.join(recorded[rank] for rank in sorted(recorded))}]".encode()
