"""The books of one assignment on a worker. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import attrs

from thornback.pool.ports import Assignment, Checkpoint, Outcome, Ranks, Report

MAX_LEFT_BYTES = 16 << 20
"""Of checkpoints in one part of a report."""


@attrs.frozen(slots=True)
class Item:
    """A rank, with what belongs to it alone."""

    at: int
    """Position in the assignment."""
    rank: int
    args: bytes | None = None
    restored: bytes | None = None


@attrs.frozen(slots=True)
class Part:
    """A part of the report: made once, sent as often as it is asked for."""

    ended: tuple[tuple[Mapping[str, Any], float], ...]
    """Fields of the `Outcome` of each rank, and when it ended."""
    returned: Ranks
    running: int | None
    final: bool
    left: tuple[Checkpoint, ...] = ()

    def report(self, now: float, checkpoint: Checkpoint | None = None) -> Report:
        """Return it as it is to be sent now: `ago_s` counts to the sending."""
        return Report(
            outcomes=tuple(Outcome(**each, ago_s=max(0.0, now - at)) for each, at in self.ended),
            returned=self.returned,
            running=self.running,
            final=self.final,
            checkpoint=checkpoint,
            left=self.left,
        )


@attrs.define(slots=True, eq=False)
class Books:
    """What has become of the ranks of an assignment, and what of it has been reported.

    It is reported in at most two parts: the first when it is over or has handed back what had not
    started, the last when what ran then is over. A part, once made, stays the same, so that it can
    be asked for again.
    """

    work: Assignment
    out: deque[Item] = attrs.field(factory=deque)
    """Begun and not over, in order: the first one runs, or is about to."""
    first: Part | None = None
    last: Part | None = None
    """Holds `final`."""
    checkpoint: Checkpoint | None = None
    """The newest, unless its rank has succeeded."""
    _left_behind: deque[Checkpoint] = attrs.field(factory=deque)
    """Older ones, of ranks that have ended without success, that no part holds yet."""
    _left_bytes: int = 0
    _position: int = 0
    _size: int = 0
    _versions: int = 0
    _handed_back: bool = False
    _again: list[Item] = attrs.field(factory=list)
    """Taken back, to be begun again; the next one last."""
    _returned: list[range] = attrs.field(factory=list)
    _ended: list[tuple[Mapping[str, Any], float]] = attrs.field(factory=list)
    _ranks: Iterator[int] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._size = sum(map(len, self.work.ranks))
        self._ranks = (rank for each in self.work.ranks for rank in each)

    @property
    def over(self) -> bool:
        """Whether nothing runs and nothing is left to run."""
        return not self.out and not self._left

    @property
    def _left(self) -> int:
        return self._size - self._position + len(self._again)

    @property
    def running(self) -> int | None:
        """The rank that was begun last, of those that are not over."""
        return self.out[-1].rank if self.out else None

    def begin(self) -> Item | None:
        """Take the next rank; None: there is none."""
        if self._again:
            item = self._again.pop()
        elif self._position < self._size:
            work, at = self.work, self._position
            item = Item(
                at,
                next(self._ranks),
                work.args[at] if work.args else None,
                work.restored[at] if work.restored else None,
            )
            self._position += 1
        else:
            return None
        self.out.append(item)
        return item

    def unbegin(self, items: Sequence[Item]) -> None:
        """Take back some that were begun: none of them has started."""
        if not items:
            return
        for item in items:
            self.out.remove(item)
        if self._handed_back:
            self._returned += _coalesced([range(each.rank, each.rank + 1) for each in items])
        else:
            self._again += items
            self._again.sort(key=lambda item: -item.at)

    def end(self, outcome: Mapping[str, Any] | None, now: float) -> None:
        """Enter the fields of the outcome of the first that is not over; None: it was recalled, and
        is returned."""
        rank = self.out.popleft().rank
        if outcome is None:
            self._returned.append(range(rank, rank + 1))
            return
        self._ended.append((outcome, now))
        if self.checkpoint is not None and self.checkpoint.rank == rank and outcome["ok"]:
            self.checkpoint = None

    def save(self, data: bytes) -> None:
        """Enter a checkpoint of the first that is not over."""
        rank, last = self.out[0].rank, self.checkpoint
        if last is not None and last.rank != rank:
            self._leave(last)
        self._versions += 1
        self.checkpoint = Checkpoint(rank=rank, version=self._versions, data=data)

    def _leave(self, checkpoint: Checkpoint) -> None:
        """Keep what a rank had saved that has failed, until it is reported."""
        self._left_behind.append(checkpoint)
        self._left_bytes += len(checkpoint.data)
        while self._left_bytes > MAX_LEFT_BYTES:
            self._left_bytes -= len(self._left_behind.popleft().data)

    def newer(self, seen: int) -> Checkpoint | None:
        """Return the checkpoint, if it is newer than version `seen`."""
        found = self.checkpoint
        return found if found is not None and found.version > seen else None

    def hand_back(self) -> None:
        """Return all ranks that have not begun."""
        again = [range(item.rank, item.rank + 1) for item in reversed(self._again)]
        self._returned += _coalesced([*again, *_without_first(self.work.ranks, self._position)])
        self._position = self._size
        self._handed_back = True
        self._again.clear()

    def report(self) -> None:
        """Make the next part of the report, if it is time."""
        if self.last is not None or self._left:
            return
        if self.first is not None and not self.over:
            return
        part = Part(
            ended=tuple(self._ended),
            returned=tuple(sorted(self._returned, key=lambda each: each.start)),
            running=self.running,
            final=self.over,
            left=tuple(self._left_behind),
        )
        self._ended, self._returned = [], []
        self._left_behind.clear()
        self._left_bytes = 0
        if self.first is None:
            self.first = part
        if self.over:
            self.last = part


def _without_first(ranks: Ranks, count: int) -> Iterator[range]:
    for each in ranks:
        rest = each[count:]
        count = max(0, count - len(each))
        if rest:
            yield rest


def _coalesced(ranges: Sequence[range]) -> list[range]:
    """Join what follows directly upon another."""
    found: list[range] = []
    for each in ranges:
        if found and found[-1].stop == each.start:
            found[-1] = range(found[-1].start, each.stop)
        else:
            found.append(each)
    return found
