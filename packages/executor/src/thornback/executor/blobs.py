"""What workers may ask the driver for, by key: the program of a stage, and the results of a stage
before it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import anyio

from thornback.executor.doneranks import DoneRanks
from thornback.executor.plan import RunPlan
from thornback.executor.ports import Completion, Journal, Ranks
from thornback.executor.results import packed

MAX_INPUT_BYTES = 64 << 20
MAX_KEPT_BYTES = 4 * MAX_INPUT_BYTES
"""Of all stages together; what exceeds that is read again if it is asked for."""


class InputTooLarge(ValueError):
    """The results of a stage are more than a worker should be sent."""


class RunBlobs:
    """Fulfils `thornback.pool.Blobs`. A blob is immutable: results are asked for only after their
    stage has ended. Those of this run are kept as they are recorded; those of earlier runs are
    read from the journal once; and so are all if there are too many of them.

    Args:
        plan: of the run.
        journal: which keeps the results.
        before: ranks that earlier runs have recorded as done, by name of stage.
    """

    def __init__(
        self, plan: RunPlan, journal: Journal, before: Mapping[str, Ranks] | None = None
    ) -> None:
        earlier = before or {}
        read = (name for parents in plan.whole_parents.values() for name in parents)
        self._wanted = set(read) - {name for name, ranks in earlier.items() if ranks}
        self.done = DoneRanks(plan.world_sizes, earlier)
        """Of all stages: a rank that is done and has no result returned None."""
        self._recorded: dict[str, dict[int, str]] = {}
        self._recorded_bytes = 0
        self._plan = plan
        self._journal = journal
        self._results: dict[str, bytes] = {}
        self._results_bytes = 0
        self._refused: dict[str, InputTooLarge] = {}
        self._reading = anyio.Lock()

    def recorded(self, completions: Sequence[Completion]) -> None:
        """Keep results that were just recorded. Without this each stage would read the whole state
        to get those of the stages before it."""
        self.done.note(completions)
        for completion in completions:
            stage = completion.stage
            if stage not in self._wanted:
                continue
            self._recorded.setdefault(stage, {}).update(completion.results)
            self._recorded_bytes += sum(map(len, completion.results.values()))
        while self._recorded_bytes > MAX_KEPT_BYTES:
            stage, dropped = next(iter(self._recorded.items()))
            del self._recorded[stage]
            self._wanted.discard(stage)  # the rest of them would not be all of them
            self._recorded_bytes -= sum(map(len, dropped.values()))

    async def __call__(self, key: str) -> bytes:
        """Return the bytes of `program:<stage>`, or of `results:<stage>` as `Results` takes
        them."""
        kind, _, number = key.partition(":")
        if kind == "program":
            return self._plan.programs[key]
        async with self._reading:
            if (refused := self._refused.get(key)) is not None:
                raise refused.with_traceback(None)
            if (known := self._results.get(key)) is not None:
                return known
            blob = await self._read(key, int(number))
            self._results[key] = blob
            self._results_bytes += len(blob)
            while self._results_bytes > MAX_KEPT_BYTES:
                self._results_bytes -= len(self._results.pop(next(iter(self._results))))
            return blob

    async def _read(self, key: str, number: int) -> bytes:
        stage = self._plan.stages[number].name
        kept = self._recorded.get(stage)
        recorded = await self._journal.results(stage) if kept is None else kept
        refused = self.refusal(stage, sum(map(len, recorded.values())))
        if refused is not None:
            self._refused[key] = refused  # each rank would read them again
            raise refused
        return packed(recorded, self.done.of(stage), self._plan.stages[number].world_size)

    @staticmethod
    def refusal(stage: str, size: int) -> InputTooLarge | None:
        """Return why so many bytes of results are not handed to a later stage; None: they are."""
        if size <= MAX_INPUT_BYTES:
            return None
        return InputTooLarge(
            f"the results of stage {stage!r} are {size} bytes or more, at most {MAX_INPUT_BYTES} "
            f"are handed on: return paths of files, or give After({stage!r}, results=False) where "
            "they are not read. What is recorded stays"
        )
