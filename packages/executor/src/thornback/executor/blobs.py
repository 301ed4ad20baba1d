"""What workers may ask the driver for, by key: the program of a stage, and the results of a stage
before it."""

from __future__ import annotations

import anyio

from thornback.executor.plan import RunPlan
from thornback.executor.ports import Journal

MAX_INPUT_BYTES = 64 << 20


class InputTooLarge(ValueError):
    """The results of a stage are more than a worker should be sent."""


class RunBlobs:
    """Fulfils `thornback.pool.Blobs`. A blob is immutable: results are asked for only after their
    stage has ended, and are read from the journal once."""

    def __init__(self, plan: RunPlan, journal: Journal) -> None:
        self._plan = plan
        self._journal = journal
        self._results: dict[str, bytes] = {}
        self._reading = anyio.Lock()

    async def __call__(self, key: str) -> bytes:
        """Return the bytes of `program:<stage>` or `results:<stage>` (a JSON list in order of
        rank)."""
        kind, _, number = key.partition(":")
        if kind == "program":
            return self._plan.programs[key]
        async with self._reading:
            if key not in self._results:
                self._results[key] = await self._read(self._plan.stages[int(number)].name)
        return self._results[key]

    async def _read(self, stage: str) -> bytes:
        recorded = await self._journal.results(stage)
        blob = f"[{','.join(recorded[rank] for rank in sorted(recorded))}]".encode()
        if len(blob) > MAX_INPUT_BYTES:
            raise InputTooLarge(
                f"the results of stage {stage!r} are {len(blob)} bytes, at most {MAX_INPUT_BYTES} "
                "are handed to a later stage: publish files and return their paths"
            )
        return blob
