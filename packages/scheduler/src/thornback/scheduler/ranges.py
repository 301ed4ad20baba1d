"""Ranges of ranks, and the queue of those that are ready. Nothing here grows with the number of
ranks."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

from thornback.scheduler.events import Ranks
from thornback.scheduler.states import UsageError

NO_LIMIT = 1 << 62
"""Batch limit of ranks that nobody suspects."""


def normalised(ranks: Iterable[range]) -> Ranks:
    """Return the same ranks as ascending, disjoint, non-empty ranges that do not touch. Raises
    `UsageError` for a range of another step than 1: it would stand for ranks that it has not."""
    if isinstance(ranks, tuple) and len(ranks) == 1 and ranks[0] and ranks[0].step == 1:
        return ranks  # the ordinary case
    merged: list[range] = []
    for piece in sorted(ranks, key=lambda piece: piece.start):
        if piece.step != 1:
            raise UsageError(f"{piece!r} of ranks; expected ranges of step 1.")
        if not piece:
            continue
        if merged and piece.start <= merged[-1].stop:
            last = merged[-1]
            merged[-1] = range(last.start, max(last.stop, piece.stop))
        else:
            merged.append(piece)
    return tuple(merged)


def total(ranks: Iterable[range]) -> int:
    """Return how many ranks that is."""
    return sum(map(len, ranks))


def split(held: Sequence[range], given: Sequence[range]) -> tuple[Ranks, Ranks]:
    """Return what of `held` is in `given`, and the rest. Both normalised. O(pieces)."""
    taken: list[range] = []
    left: list[range] = []
    at_given = 0
    for piece in held:
        start = piece.start
        while at_given < len(given) and given[at_given].start < piece.stop:
            other = given[at_given]
            if other.stop > start:
                low, high = max(start, other.start), min(piece.stop, other.stop)
                if low > start:
                    left.append(range(start, low))
                taken.append(range(low, high))
                start = high
            if other.stop > piece.stop:
                break
            at_given += 1
        if start < piece.stop:
            left.append(range(start, piece.stop))
    return tuple(taken), tuple(left)


class ReadyRanges:
    """Ranks that wait for a slot, as (start, stop, batch limit), first come first served.

    The batch limit isolates a culprit: ranks that were lost together come back with half of it,
    until one is alone. It sits on the range, so it costs no object per rank.
    """

    def __init__(self) -> None:
        self._pieces: deque[tuple[int, int, int]] = deque()
        self.count = 0

    def append(self, piece: range, limit: int = NO_LIMIT) -> None:
        """Put ranks last."""
        self.count += len(piece)
        if self._pieces:
            start, stop, own = self._pieces[-1]
            if stop == piece.start and own == limit:
                self._pieces[-1] = (start, piece.stop, limit)
                return
        self._pieces.append((piece.start, piece.stop, limit))

    def give_back(self, ranks: Sequence[range], limit: int) -> None:
        """Put ranks first, in their order: they have waited once."""
        for piece in reversed(ranks):
            self.count += len(piece)
            if self._pieces:
                start, stop, own = self._pieces[0]
                if piece.stop == start and own == limit:
                    self._pieces[0] = (piece.start, stop, limit)
                    continue
            self._pieces.appendleft((piece.start, piece.stop, limit))

    def take_plain(self, size: int) -> Ranks:
        """Take so many ranks of the first piece, if it is unlimited and has more than these; else
        take nothing."""
        if self._pieces:
            start, stop, limit = self._pieces[0]
            end = start + size
            if end < stop and limit == NO_LIMIT:
                self._pieces[0] = (end, stop, limit)
                self.count -= size
                return (range(start, end),)
        return ()

    def take(self, most: int) -> tuple[Ranks, int]:
        """Take up to `most` ranks, never more than a limit among them; return them and the least
        limit."""
        plain = self.take_plain(most)
        if plain:
            return plain, NO_LIMIT
        taken: list[range] = []
        size, limit = 0, NO_LIMIT
        while self._pieces:
            start, stop, own = self._pieces[0]
            room = min(most, limit, own) - size
            if room <= 0:
                break
            limit = min(limit, own)
            cut = min(stop, start + room)
            taken.append(range(start, cut))
            size += cut - start
            if cut == stop:
                self._pieces.popleft()
            else:
                self._pieces[0] = (cut, stop, own)
        self.count -= size
        return normalised(taken), limit

    @property
    def first_limit(self) -> int:
        """The batch limit of what would be taken next."""
        return self._pieces[0][2] if self._pieces else NO_LIMIT

    def clear(self) -> None:
        """Forget all."""
        self._pieces.clear()
        self.count = 0

    def pieces(self) -> list[tuple[int, int, int]]:
        """Return (start, stop, batch limit), first to last: for checks."""
        return list(self._pieces)
