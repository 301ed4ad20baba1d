"""How many ranks to put into one assignment: guided self-scheduling by measured seconds per rank.

Source: Polychronopoulos & Kuck 1987 (guided self-scheduling) for the share of what is left.
"""

from __future__ import annotations

import math

from thornback.scheduler.params import SchedulerParams

INFINITE = math.inf


class Pace:
    """Seconds per rank of a stage, and the size of its next assignment.

    k = clamp(target_s / mean, 1, ceil(ready / (2 x open slots))), from 1, at most twice what a
    whole assignment has shown to work.
    """

    def __init__(self, params: SchedulerParams) -> None:
        self._weight = params.pace_weight
        self._target_s = params.target_s
        self._max_batch = params.max_batch
        self.mean_s: float | None = None
        """Moving average over successful ranks; None: none has succeeded."""
        self.is_slow = True
        """No assignment shall have more than one rank."""
        self._wanted = 1
        """Ranks that take `target_s`."""
        self._trusted = 1

    def learn(self, busy_s: float, ranks: int, whole: int) -> None:
        """Learn from a report of so many ranks. With it an assignment of `whole` ranks has ended,
        so that twice as many may be tried; 0: none has. Seconds that are not finite teach nothing:
        one such report would stay in the average for good."""
        if -INFINITE < busy_s < INFINITE:
            mean_s, before_s = (busy_s / ranks if busy_s > 0 else 0.0), self.mean_s
            if before_s is not None:
                mean_s = before_s + self._weight * (mean_s - before_s)
            self.mean_s = mean_s
            self.is_slow = mean_s > self._target_s
            if self.is_slow:
                self._wanted = 1
            elif mean_s * self._max_batch <= self._target_s:
                self._wanted = self._max_batch
            else:
                self._wanted = int(self._target_s / mean_s)
        if whole:
            twice, most = 2 * whole, 2 * self._wanted
            self._trusted = twice if self.is_slow else max(twice, min(self._trusted, most))

    def size(self, ready: int, open_slots: int) -> int:
        """Return how many ranks the next assignment shall have, at least 1."""
        most = min(self._wanted, self._trusted)
        return max(1, min(most, math.ceil(ready / (2 * max(1, open_slots)))))
