"""What ranks have saved for their next attempt, while they are not settled. Pure but for one
warning."""

from __future__ import annotations

import logging

import attrs

from thornback.executor.ports import Ranks
from thornback.pool import Checkpoint

logger = logging.getLogger(__name__)
MAX_KEPT_BYTES = 256 << 20
_OVERHEAD_BYTES = 256
"""What an entry costs besides its data: many small ones are bounded, too."""


@attrs.frozen(slots=True)
class _Kept:
    assignment: int
    version: int
    data: bytes

    @property
    def cost(self) -> int:
        return len(self.data) + _OVERHEAD_BYTES

    @property
    def age(self) -> tuple[int, int]:
        """Orders the checkpoints of a rank: numbers of assignments grow."""
        return self.assignment, self.version


class CheckpointKeeper:
    """The newest checkpoint of each rank. Bounded: beyond `max_bytes` in all, those that were saved
    the longest time ago are dropped; their ranks start from the beginning."""

    def __init__(self, max_bytes: int = MAX_KEPT_BYTES) -> None:
        self._max_bytes = max_bytes
        self._kept: dict[tuple[int, int], _Kept] = {}
        """By (stage, rank), the one that was saved last at the end."""
        self._bytes = 0
        self.dropped = 0
        """How many were dropped for want of room."""

    def keep(self, stage: int, assignment: int, checkpoint: Checkpoint) -> None:
        """Keep what an assignment, which must hold the rank, has sent; older, or sent again: a
        no-op."""
        key = stage, checkpoint.rank
        new = _Kept(assignment, checkpoint.version, checkpoint.data)
        old = self._kept.get(key)
        if old is not None and old.age >= new.age:
            return
        self._forget(key)
        self._kept[key] = new
        self._bytes += new.cost
        while self._bytes > self._max_bytes:
            self._forget(next(iter(self._kept)))
            self.dropped += 1
            if self.dropped == 1:
                logger.warning(
                    "checkpoints of running ranks are more than %d MiB: the oldest are dropped",
                    self._max_bytes >> 20,
                )

    def of(self, stage: int, ranks: Ranks) -> tuple[bytes | None, ...]:
        """Return what each rank has saved, in order; nothing at all if none has."""
        if not self._kept:
            return ()
        found = [self._kept.get((stage, rank)) for piece in ranks for rank in piece]
        if not any(found):
            return ()
        return tuple(None if kept is None else kept.data for kept in found)

    def drop(self, stage: int, ranks: Ranks) -> None:
        """Forget what ranks that are settled have saved."""
        for rank in (rank for piece in ranks for rank in piece):
            if not self._kept:
                return
            self._forget((stage, rank))

    def _forget(self, key: tuple[int, int]) -> None:
        if kept := self._kept.pop(key, None):
            self._bytes -= kept.cost
