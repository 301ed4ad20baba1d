"""The books that a roster keeps of one assignment. Pure."""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from thornback.pool.ports import Outcome, Ranks


@attrs.define(slots=True, eq=False)
class Call:
    """The books of one assignment: a page per member."""

    rank: int
    """The first, which is the only one on several nodes."""
    outstanding: list[dict[int, None]]
    """By member: the ranks not reported yet, in order (a dict, since order counts)."""
    finished: list[Outcome | None]
    """By member, for several nodes: the outcome of its rank."""
    failures: list[Outcome] = attrs.field(factory=list)
    """For several nodes: in the order they came in."""
    by_leader: bool = False
    """Node 0 decides."""
    led: bool = False
    """Node 0 has decided: the rank is a success."""
    recalled: bool = False
    """From all that had not answered."""
    asked: bool = False
    """A rank has failed, and all siblings were asked to vouch."""
    doubted: dict[int, None] = attrs.field(factory=dict)
    """Members that have not vouched yet: each may have died before a sibling failed."""
    version: int = 0
    """Of the newest checkpoint that was passed on."""

    @property
    def open(self) -> bool:
        """Whether a member owes a report, or has to vouch."""
        return any(self.outstanding) or bool(self.doubted)

    def settled(self, member: int) -> bool:
        """Whether a member has reported all its ranks."""
        return not self.outstanding[member]


def ranges_of(ranks: Iterable[int]) -> Ranks:
    """Fold ascending or not: neighbours join, order stays."""
    found: list[range] = []
    for rank in ranks:
        if found and found[-1].stop == rank:
            found[-1] = range(found[-1].start, rank + 1)
        else:
            found.append(range(rank, rank + 1))
    return tuple(found)
