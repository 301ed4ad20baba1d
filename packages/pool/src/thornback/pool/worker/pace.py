"""How many ranks a process is given ahead of the one that runs, and how often it is listened to.
Pure.

A rank of a few microseconds costs more to hand out than to run. So while ranks are fast, some wait
in the process's queue already, and what the process says is read in lots.
"""

from __future__ import annotations

import math

import attrs

_WORTH_S = 0.02
"""As much work lies ahead at most."""
_MOST = 64
_OVERHEAD_S = 30e-6
"""What a rank costs its process besides its own time."""
_WEIGHT = 0.2
_NAP_FROM = 8
_NAP_S = 0.005


@attrs.define(slots=True)
class Pace:
    """Of one rank process."""

    each_s: float = math.inf
    """Moving average of what a rank takes."""

    def ran(self, ran_s: float) -> None:
        """Take note of a rank."""
        each_s = ran_s + _OVERHEAD_S
        known = math.isfinite(self.each_s)
        self.each_s = (1 - _WEIGHT) * self.each_s + _WEIGHT * each_s if known else each_s

    @property
    def most(self) -> int:
        """How many ranks may be with the process, with the one that runs."""
        return min(_MOST, max(1, int(_WORTH_S / self.each_s)))

    def nap_s(self, ahead: int) -> float:
        """How long the process may be left alone with `ahead` more to do: not so long that it
        could run out of work."""
        return min(_NAP_S, ahead * self.each_s / 2) if ahead >= _NAP_FROM else 0.0
