"""The pool's side of a gang: what its members report, folded into one answer per rank, or one loss.

A simulation asks it through `GangSide`, so that a real pool's bookkeeping can be put in its place.
`SimpleGang` is a small model of one: the reference of what the protocol means.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeAlias

import attrs

from thornback.scheduler.events import Ranks
from thornback.scheduler.ranges import normalised
from thornback.scheduler.simulate.values import Mishap, MishapKind


@attrs.frozen(kw_only=True, slots=True)
class News:
    """What a member says of an assignment: all that was not acknowledged yet."""

    done: tuple[tuple[int, float], ...] = ()
    """(rank, seconds it ran) of those that have ended well."""
    failed: tuple[tuple[int, Mishap, float], ...] = ()
    """(rank, what went wrong, seconds it ran)."""
    returned: Ranks = ()
    """Never started, or killed by a recall."""
    final: bool = False
    """Nothing more will come: what is left out counts as returned."""


@attrs.frozen(kw_only=True, slots=True)
class Deliver:
    """This is to be passed on to the scheduler."""

    assignment: int
    news: News


@attrs.frozen(kw_only=True, slots=True)
class KillRank:
    """Recall an assignment from a member, with a kill."""

    member: int
    assignment: int
    vouch: bool = False
    """Say `vouched` when the member has answered."""


@attrs.frozen(kw_only=True, slots=True)
class Grace:
    """Node 0 has decided: say `grace_over` after the grace of the others."""

    assignment: int


@attrs.frozen(kw_only=True, slots=True)
class GangGone:
    """The gang is lost, with all that it still owes. Comes once, last."""

    mishap: Mishap


Instruction: TypeAlias = Deliver | KillRank | Grace | GangGone


class GangSide(Protocol):
    """The books of one gang. Members go by their position among its nodes."""

    def answered(self, member: int, /) -> None:
        """A member gave a sign of life."""
        ...

    def ticked(self, now: float, /) -> Sequence[int]:
        """Time has passed: return the members that have been silent for too long."""
        ...

    def assigned(self, assignment: int, ranks: Ranks, led: bool, /) -> bool:
        """Open the books of an assignment; `led`: node 0 decides. False: it is not handed out, the
        gang is about to be lost."""
        ...

    def owes(self, member: int, assignment: int, /) -> bool:
        """Whether a member has something of an assignment to report."""
        ...

    def reported(self, member: int, assignment: int, news: News, /) -> Sequence[Instruction]:
        """A member has news. Repeated, late or unknown: nothing follows."""
        ...

    def died(self, member: int, mishap: Mishap, /) -> Sequence[Instruction]:
        """A member is gone for good. Repeated: nothing follows."""
        ...

    def vouched(self, member: int, assignment: int, /) -> Sequence[Instruction]:
        """A member has answered a recall that was to `vouch`. Late or unknown: nothing follows."""
        ...

    def grace_over(self, assignment: int, /) -> Sequence[Instruction]:
        """The time is over that the others had after node 0's success."""
        ...


_WORST = (MishapKind.WORKER, MishapKind.OOM, MishapKind.NODE, MishapKind.PREEMPTED)


def severity(mishap: Mishap) -> int:
    """Rank mishaps of one gang: the highest is the root cause."""
    kind = MishapKind.WORKER if mishap.kind is MishapKind.PROCESS else mishap.kind
    return _WORST.index(kind) if kind in _WORST else -1


@attrs.define(slots=True, eq=False)
class _Call:
    ranks: tuple[int, ...]
    pages: list[dict[int, None]]
    """By member: what it still owes."""
    led: bool
    good: dict[int, tuple[int, float]] = attrs.field(factory=dict)
    """By member, for several nodes: its success."""
    bad: list[tuple[int, Mishap, float]] = attrs.field(factory=list)
    recalled: bool = False
    asked: bool = False
    doubted: dict[int, None] = attrs.field(factory=dict)
    """Members that may have died before a sibling failed: they have not vouched yet."""
    decided: bool = False
    """Node 0 has succeeded where it decides."""

    @property
    def open(self) -> bool:
        return any(self.pages) or bool(self.doubted)


class SimpleGang:
    """A small model of a pool's books (fulfils `GangSide`)."""

    def __init__(self, nodes: Sequence[str], silence_s: float = 60.0) -> None:
        """Take the nodes of the gang, and how long a member may be silent."""
        self._silence_s = silence_s
        self._alive = [True] * len(nodes)
        self._heard: list[float | None] = [None] * len(nodes)
        self._now = 0.0
        self._calls: dict[int, _Call] = {}
        self._losses: list[Mishap] = []
        self._gone = False

    def answered(self, member: int, /) -> None:
        """See `GangSide`."""
        self._heard[member] = None

    def ticked(self, now: float, /) -> Sequence[int]:
        """See `GangSide`."""
        silent = []
        for member, alive in enumerate(self._alive):
            since = self._heard[member]
            if since is None:
                self._heard[member] = now
            elif alive and now - since >= self._silence_s:
                silent.append(member)
        return silent

    def assigned(self, assignment: int, ranks: Ranks, led: bool, /) -> bool:
        """See `GangSide`."""
        if self._losses:
            return False
        listed = tuple(rank for piece in ranks for rank in piece)
        pages = [dict.fromkeys(listed) for _ in self._alive]
        self._calls[assignment] = _Call(listed, pages, led and len(pages) > 1)
        return True

    def owes(self, member: int, assignment: int, /) -> bool:
        """See `GangSide`."""
        call = self._calls.get(assignment)
        return call is not None and bool(call.pages[member])

    def reported(self, member: int, assignment: int, news: News, /) -> Sequence[Instruction]:
        """See `GangSide`."""
        call = self._calls.get(assignment)
        if call is None or not self._alive[member]:
            return ()
        page = call.pages[member]
        done = tuple(each for each in news.done if each[0] in page)
        failed = tuple(each for each in news.failed if each[0] in page)
        for rank in [*(each[0] for each in done), *(each[0] for each in failed)]:
            del page[rank]
        back = [rank for piece in news.returned for rank in piece if rank in page]
        back = list(page) if news.final else back
        for rank in back:
            del page[rank]
        if len(self._alive) > 1:
            return self._merged(member, assignment, call, done, failed)
        if not page:
            del self._calls[assignment]
        if not (done or failed or back):
            return ()
        returned = tuple(normalised(range(rank, rank + 1) for rank in back))
        folded = News(done=done, failed=failed, returned=returned, final=not page)
        return (Deliver(assignment=assignment, news=folded),)

    def _merged(
        self,
        member: int,
        assignment: int,
        call: _Call,
        done: tuple[tuple[int, float], ...],
        failed: tuple[tuple[int, Mishap, float], ...],
    ) -> Sequence[Instruction]:
        out: list[Instruction] = []
        if done:
            call.good[member] = done[0]
            if call.led and member == 0 and not call.recalled:
                call.decided = True
                out.append(Grace(assignment=assignment))
        if failed and not call.decided:
            call.bad += failed
        lacks = not call.pages[member] and member not in call.good
        if not call.decided and call.bad:
            out += self._ask(member, assignment, call)
        elif not call.decided and lacks:
            out += self._recall(assignment, call)
        return (*out, *self._concluded())

    def _recall(self, assignment: int, call: _Call) -> list[Instruction]:
        if call.recalled:
            return []
        call.recalled = True
        return [
            KillRank(member=member, assignment=assignment)
            for member, page in enumerate(call.pages)
            if page and self._alive[member]
        ]

    def _ask(self, failed: int, assignment: int, call: _Call) -> list[Instruction]:
        if call.asked:
            return []
        call.asked = call.recalled = True
        living = [member for member, alive in enumerate(self._alive) if alive]
        call.doubted = {member: None for member in living if member != failed}
        return [
            KillRank(member=member, assignment=assignment, vouch=True) for member in call.doubted
        ]

    def _concluded(self) -> list[Instruction]:
        """End what every member has answered; then the gang, if one is dead."""
        out: list[Instruction] = []
        for assignment, call in list(self._calls.items()):
            if call.open or (self._losses and not call.decided):
                continue
            del self._calls[assignment]
            out.append(Deliver(assignment=assignment, news=self._conclusion(call)))
        if self._losses and not self._gone and not any(c.open for c in self._calls.values()):
            self._gone = True
            cause = max(self._losses, key=severity)
            for assignment, call in self._calls.items():
                worse = [each for each in call.bad if severity(each[1]) > severity(cause)]
                if worse:
                    worst = max(worse, key=lambda each: severity(each[1]))
                    news = News(failed=(worst,), final=True)
                    out.append(Deliver(assignment=assignment, news=news))
            self._calls.clear()
            out.append(GangGone(mishap=cause))
        return out

    def _conclusion(self, call: _Call) -> News:
        if call.bad and not call.decided:
            return News(failed=(max(call.bad, key=lambda each: severity(each[1])),), final=True)
        if len(call.good) == len(call.pages) or call.decided:
            return News(done=(call.good[0],), final=True)
        rank = call.ranks[0]
        return News(returned=(range(rank, rank + 1),), final=True)

    def died(self, member: int, mishap: Mishap, /) -> Sequence[Instruction]:
        """See `GangSide`."""
        if not self._alive[member]:
            return ()
        self._alive[member] = False
        self._losses.append(mishap)
        out: list[Instruction] = []
        for assignment, call in self._calls.items():
            call.pages[member].clear()
            call.doubted.pop(member, None)
            if len(self._alive) > 1:
                out += self._recall(assignment, call)
        if len(self._alive) == 1:
            self._calls.clear()
        return (*out, *self._concluded())

    def vouched(self, member: int, assignment: int, /) -> Sequence[Instruction]:
        """See `GangSide`."""
        call = self._calls.get(assignment)
        if call is None or member not in call.doubted:
            return ()
        del call.doubted[member]
        return self._concluded()

    def grace_over(self, assignment: int, /) -> Sequence[Instruction]:
        """See `GangSide`."""
        call = self._calls.get(assignment)
        return () if call is None or not call.decided else self._recall(assignment, call)
