"""The books of one assignment on a worker. Pure."""

from __future__ import annotations

from collections.abc import Iterator

import attrs

from thornback.pool.ports import Assignment, Outcome, Ranks, Report


@attrs.define(slots=True, eq=False)
class Books:
    """What has become of the ranks of an assignment, and what of it has been reported.

    It is reported in at most two parts: the first when it is over or has handed back what had not
    started, the last when the rank that ran then is over. A part, once made, stays the same, so
    that it can be asked for again.
    """

    work: Assignment
    running: int | None = None
    first: tuple[Report, float] | None = None
    """With the time at which it was made."""
    last: tuple[Report, float] | None = None
    """Holds `final`."""
    _position: int = 0
    _size: int = 0
    _returned: list[range] = attrs.field(factory=list)
    _ended: list[tuple[Outcome, float]] = attrs.field(factory=list)
    _ranks: Iterator[int] = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._size = sum(map(len, self.work.ranks))
        self._ranks = (rank for each in self.work.ranks for rank in each)

    @property
    def over(self) -> bool:
        """Whether nothing runs and nothing is left to run."""
        return self.running is None and self._position == self._size

    def begin(self) -> tuple[int, bytes | None] | None:
        """Take the next rank and its arguments; None: there is none."""
        if self._position == self._size:
            return None
        self.running = next(self._ranks)
        args = self.work.args[self._position] if self.work.args else None
        self._position += 1
        return self.running, args

    def end(self, outcome: Outcome | None, now: float) -> None:
        """Enter the outcome of the running rank; None: it was recalled, and is returned."""
        if outcome is not None:
            self._ended.append((outcome, now))
        elif self.running is not None:
            self._returned.append(range(self.running, self.running + 1))
        self.running = None

    def hand_back(self) -> None:
        """Return all ranks that have not started."""
        self._returned.extend(_without_first(self.work.ranks, self._position))
        self._position = self._size

    def report(self, now: float) -> None:
        """Make the next part of the report, if it is time."""
        if self.last is not None or self._position < self._size:
            return
        if self.first is not None and not self.over:
            return
        part = Report(
            outcomes=tuple(attrs.evolve(each, ago_s=now - ended) for each, ended in self._ended),
            returned=tuple(sorted(self._returned, key=lambda each: each.start)),
            running=self.running,
            final=self.over,
        )
        self._ended, self._returned = [], []
        if self.first is None:
            self.first = (part, now)
        if self.over:
            self.last = (part, now)


def _without_first(ranks: Ranks, count: int) -> Iterator[range]:
    for each in ranks:
        rest = each[count:]
        count = max(0, count - len(each))
        if rest:
            yield rest


def aged(part: tuple[Report, float], now: float) -> Report:
    """Return the report as it is to be sent now: `ago_s` counts to the sending."""
    report, made = part
    age_s = now - made
    if age_s <= 0.0 or not report.outcomes:
        return report
    outcomes = tuple(attrs.evolve(each, ago_s=each.ago_s + age_s) for each in report.outcomes)
    return attrs.evolve(report, outcomes=outcomes)
