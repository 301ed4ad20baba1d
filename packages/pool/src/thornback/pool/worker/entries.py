"""The assignments that a worker has accepted, and those that it remembers to be over."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence

import attrs

from thornback.pool.ports import Assignment
from thornback.pool.worker.assignments import Books
from thornback.pool.worker.slots import Slot

_KEPT_REPORTS = 64
_REMEMBERED = 4096


@attrs.frozen(slots=True, eq=False)
class Unconfirmed:
    """A checkpoint whose rank waits until the pool has it."""

    version: int
    go_on: Callable[[], None]
    timer: asyncio.TimerHandle


@attrs.define(slots=True, eq=False)
class Entry:
    """An assignment that this worker has accepted."""

    books: Books
    first_made: asyncio.Event = attrs.field(factory=asyncio.Event)
    news: asyncio.Event = attrs.field(factory=asyncio.Event)
    """Replaced when set: a checkpoint, or the last part."""
    slot: Slot | None = None
    sent: bool = False
    """The final report was sent at least once."""
    timer: asyncio.TimerHandle | None = None
    unconfirmed: Unconfirmed | None = None

    def tell(self) -> None:
        """Wake those who wait for news."""
        self.news.set()
        self.news = asyncio.Event()

    def hold(self, go_on: Callable[[], None], limit_s: float) -> None:
        """Let a rank go on when its newest checkpoint has been seen, or after `limit_s`."""
        self.confirm()
        if (saved := self.books.checkpoint) is None:
            go_on()
            return
        timer = asyncio.get_running_loop().call_later(limit_s, self.confirm)
        self.unconfirmed = Unconfirmed(saved.version, go_on, timer)

    def confirm(self, seen: int | None = None) -> None:
        """The pool has the checkpoints up to version `seen`; None: it is not waited for."""
        held = self.unconfirmed
        if held is None or (seen is not None and seen < held.version):
            return
        self.unconfirmed = None
        held.timer.cancel()
        held.go_on()


class Entries:
    """By number. A report is kept until it was acknowledged, so that it can be asked for again."""

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self._entries: dict[int, Entry] = {}
        self._forgotten: dict[int, None] = {}
        self._early: dict[int, None] = {}

    def get(self, number: int) -> Entry | None:
        """Return an assignment that is not forgotten."""
        return self._entries.get(number)

    def all(self) -> Iterable[Entry]:
        """Return all that are not forgotten."""
        return tuple(self._entries.values())

    def refusal(self, work: Assignment, *, loaded: bool) -> str:
        """Return why this assignment cannot be accepted; empty: it can."""
        limit, size = 2 * self._slots, sum(map(len, work.ranks))
        live = sum(not entry.books.over for entry in self._entries.values())
        if work.assignment in self._forgotten:
            return "it is over and was acknowledged"
        if live >= limit:
            return f"this worker has {live} already, at most {limit} (2 per slot) are expected"
        if not loaded:
            return f"its program {work.program!r} is not loaded: call load first"
        if size == 0:
            return "it has no ranks"
        for what, parts in (("args", work.args), ("restored", work.restored)):
            if parts and len(parts) != size:
                return f"expected {what} for all of its {size} ranks or none, got {len(parts)}"
        return ""

    def add(self, work: Assignment) -> Entry:
        """Accept an assignment."""
        entry = self._entries[work.assignment] = Entry(books=Books(work=work))
        return entry

    def recalled_early(self, number: int) -> None:
        """Remember a recall that has overtaken its assignment."""
        if number not in self._forgotten:
            self._early[number] = None
            while len(self._early) > _REMEMBERED:
                del self._early[next(iter(self._early))]

    def was_recalled(self, number: int) -> bool:
        """Tell, once, whether a recall has overtaken this assignment."""
        return self._early.pop(number, number) is None

    def acknowledge(self, ack: Sequence[int]) -> None:
        """Drop reports that have arrived, and the oldest of too many that nobody acknowledges."""
        over = [number for number, entry in self._entries.items() if entry.books.last is not None]
        spare = len(over) - max(_KEPT_REPORTS, 4 * self._slots)
        for position, number in enumerate(over):
            if number in ack or position < spare:
                del self._entries[number]
                self._forgotten[number] = None
        while len(self._forgotten) > _REMEMBERED:
            del self._forgotten[next(iter(self._forgotten))]
