"""How many ranks to put into one assignment: guided self-scheduling by measured seconds per rank.

Source: Polychronopoulos & Kuck 1987 (guided self-scheduling) for the share of what is left.
"""

from __future__ import annotations

import math

from thornback.scheduler.params import SchedulerParams


class Pace:
    """Seconds per rank of a stage, and the size of its next assignment.

    k = clamp(target_s / mean, 1, ceil(ready / (2 x open slots))), from 1, at most twice what a
    whole assignment has shown to work.
    """

    def __init__(self, params: SchedulerParams) -> None:
        self._params = params
        self.mean_s: float | None = None
        """Moving average over successful ranks; None: none has succeeded."""
        self._trusted = 1

    def succeeded(self, busy_s: float, ranks: int) -> None:
        """Learn from a report."""
        sample = max(0.0, busy_s) / ranks
        weight = self._params.pace_weight
        self.mean_s = (
            sample if self.mean_s is None else self.mean_s + weight * (sample - self.mean_s)
        )

    def completed(self, size: int) -> None:
        """Learn that an assignment of this size has ended with a success: twice as much may be
        tried."""
        self._trusted = max(2 * size, min(self._trusted, 2 * self._wanted()))

    def size(self, ready: int, open_slots: int) -> int:
        """Return how many ranks the next assignment shall have, at least 1."""
        if self._trusted == 1:
            return 1
        share = math.ceil(ready / (2 * max(1, open_slots)))
        return max(1, min(self._wanted(), self._trusted, share))

    def _wanted(self) -> int:
        if self.mean_s is None:
            return 1
        most = self._params.max_batch
        if self.mean_s * most <= self._params.target_s:
            return most
        return max(1, int(self._params.target_s / self.mean_s))
