"""Which rank has published under which final name: as hashes, since there may be millions. Pure."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Callable, Iterable, Iterator
from typing import Any

HASH_DIGITS = 16
_BUCKETS = 0xFFFF


class Targets:
    """Pairs of a rank and the hash (64 bits) of a final name, in 16 bytes each. A rank may have
    several.
    """

    def __init__(self, pairs: Iterable[tuple[int, int]] = ()) -> None:
        self._ranks = array("Q")
        self._hashes = array("Q")
        self.add(pairs)

    def add(self, pairs: Iterable[tuple[int, int]]) -> None:
        """Add some.

        Raises:
            OverflowError, TypeError: one is not a pair of whole numbers below 2**64.
        """
        if isinstance(pairs, Targets):
            self._ranks += pairs._ranks
            self._hashes += pairs._hashes
            return
        for rank, number in pairs:
            self._ranks.append(rank)
            self._hashes.append(number)

    def joined(self, other: Targets) -> Targets:
        """Return both as one."""
        both = Targets(self)
        both.add(other)
        return both

    def of(self, keep: Callable[[int], bool]) -> Targets:
        """Return those of the ranks for which `keep` is true."""
        return Targets(pair for pair in self if keep(pair[0]))

    def below(self, world_size: int) -> Targets:
        """Return those of the ranks below `world_size`."""
        if self.top < world_size:
            return self
        return self.of(lambda rank: rank < world_size)

    @property
    def top(self) -> int:
        """The highest rank; -1: there is none."""
        return max(self._ranks, default=-1)

    def batched(self, size: int) -> Iterator[Targets]:
        """Yield parts of so many pairs."""
        for start in range(0, len(self), size):
            part = Targets()
            part._ranks = self._ranks[start : start + size]
            part._hashes = self._hashes[start : start + size]
            yield part

    def as_json(self) -> list[object]:
        """Return `[[rank, ...], "<16 hexadecimal digits for each>"]`."""
        return [self._ranks.tolist(), _swapped(self._hashes).tobytes().hex()]

    @staticmethod
    def from_json(found: Any) -> Targets:
        """Return what `as_json` has returned.

        Raises:
            ValueError: it is something else.
        """
        match found:
            case [[*ranks], str(digits)] if len(digits) == HASH_DIGITS * len(ranks):
                targets = Targets()
                try:
                    targets._ranks = array("Q", ranks)
                    targets._hashes = _swapped(array("Q", bytes.fromhex(digits)))
                except (TypeError, OverflowError) as error:
                    raise ValueError(f"not a rank: {error}") from error
                if len(targets._hashes) == len(ranks):  # blanks may be among the digits
                    return targets
        raise ValueError("not a list of ranks and as many hashes")

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(self._ranks, self._hashes, strict=True)

    def __len__(self) -> int:
        return len(self._ranks)

    def __eq__(self, other: object) -> bool:
        """Compare as sets: the order in which they were recorded does not count."""
        if not isinstance(other, Targets):
            return NotImplemented
        return set(self) == set(other)

    __hash__ = None  # type: ignore[assignment]  # it can be filled

    def __repr__(self) -> str:
        return f"<Targets of {len(self)} final names>"


class Holders:
    """A number for each hash, in 50 bytes; a dict would take 150."""

    def __init__(self) -> None:
        self._hashes: dict[int, array[int]] = {}
        self._numbers: dict[int, array[int]] = {}

    def get(self, key: int) -> int | None:
        """Return the number of a hash; None: it has none."""
        found = self._hashes.get(key & _BUCKETS)
        if found is None or key not in found:
            return None
        return self._numbers[key & _BUCKETS][found.index(key)]

    def set(self, key: int, number: int) -> None:
        """Give a hash a number, if it has none."""
        if self.get(key) is None:
            self._hashes.setdefault(key & _BUCKETS, array("Q")).append(key)
            self._numbers.setdefault(key & _BUCKETS, array("Q")).append(number)


def _swapped(hashes: array[int]) -> array[int]:
    """Return them in network order, or back."""
    if sys.byteorder == "big":
        return hashes
    swapped = hashes[:]
    swapped.byteswap()
    return swapped
