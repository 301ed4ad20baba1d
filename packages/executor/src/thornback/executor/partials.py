"""How far the running ranks are, as they told with `ctx.progress`. Pure."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from thornback.executor.ports import Ranks
from thornback.pool import RunningRank


@attrs.define(slots=True)
class _Seen:
    stage: int
    gang: int
    rank: int
    by_node: dict[str, float]


class Partials:
    """The share of each running rank that is done. The caller tells what it holds, and what ends;
    the numbers are for people only."""

    def __init__(self) -> None:
        self._seen: dict[int, _Seen] = {}
        """By assignment: it runs one rank at a time."""
        self._sums: dict[int, float] | None = {}

    def saw(self, stage: int, gang: int, node: str, running: RunningRank) -> None:
        """Note what a worker told of a rank."""
        share = share_of(running.progress)
        if share is None:
            return
        seen = self._seen.get(running.assignment)
        if seen is None or seen.rank != running.rank:
            seen = self._seen[running.assignment] = _Seen(stage, gang, running.rank, {})
        seen.by_node[node] = share
        self._sums = None

    def ended(self, assignment: int, ranks: Ranks) -> None:
        """Forget ranks of an assignment: they are reported."""
        seen = self._seen.get(assignment)
        if seen is not None and any(seen.rank in piece for piece in ranks):
            del self._seen[assignment]
            self._sums = None

    def gang_ended(self, gang: int) -> None:
        """Forget what ran in a gang that is gone."""
        for assignment in [number for number, seen in self._seen.items() if seen.gang == gang]:
            del self._seen[assignment]
            self._sums = None

    def sums(self) -> Mapping[int, float]:
        """Return the shares added up by stage, rounded; of several nodes that run a rank together,
        the furthest counts."""
        if self._sums is None:
            sums: dict[int, float] = {}
            for seen in self._seen.values():
                sums[seen.stage] = sums.get(seen.stage, 0.0) + max(seen.by_node.values())
            self._sums = {stage: round(total, 3) for stage, total in sums.items()}
        return self._sums


def share_of(progress: tuple[float, float | None] | None) -> float | None:
    """Return done / total within 0 and 1; None where that says nothing."""
    if progress is None or progress[1] is None or not progress[1] > 0:
        return None
    share = progress[0] / progress[1]
    return min(max(0.0, share), 1.0) if share == share else None  # not for a NaN
