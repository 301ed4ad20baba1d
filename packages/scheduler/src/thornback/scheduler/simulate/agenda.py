"""Simulated time, and the chances of a world: the same seed gives the same chances."""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from hashlib import blake2b


class Agenda:
    """What will happen, in order; what is planned for the same moment, in the order of planning."""

    def __init__(self) -> None:
        self.now = 0.0
        """Simulated seconds."""
        self._planned: list[tuple[float, int, Callable[[], None]]] = []
        self._made = 0

    def at(self, delay_s: float, happen: Callable[[], None]) -> None:
        """Plan something."""
        self._made += 1
        heapq.heappush(self._planned, (self.now + delay_s, self._made, happen))

    @property
    def next_at(self) -> float:
        """When the next thing happens; infinite: nothing is planned."""
        return self._planned[0][0] if self._planned else math.inf

    def step(self) -> None:
        """Let the next thing happen. Raises IndexError where nothing is planned."""
        self.now, _, happen = heapq.heappop(self._planned)
        happen()


class Chances:
    """Draws by what they are for, not in turn: so a rank takes as long, and a node lives as long,
    under another policy too, and two policies can be compared on the same world."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def draw(self, *key: str | int) -> float:
        """Return the number in (0, 1) for this key."""
        text = f"{self._seed}/{key}".encode()
        return (int.from_bytes(blake2b(text, digest_size=6).digest()) + 0.5) / (1 << 48)

    def happens(self, share: float, *key: str | int) -> bool:
        """Return whether something with this probability happens."""
        return share > 0.0 and self.draw(*key) < share

    def exponential(self, mean_s: float, *key: str | int) -> float:
        """Return a time with this mean."""
        return -mean_s * math.log(self.draw(*key))

    def log_normal(self, median: float, sigma: float, *key: str | int) -> float:
        """Return an amount with this median. Source: Box and Muller 1958."""
        if sigma <= 0.0:
            return median
        radius = math.sqrt(-2 * math.log(self.draw("radius", *key)))
        return median * math.exp(sigma * radius * math.cos(2 * math.pi * self.draw("angle", *key)))
