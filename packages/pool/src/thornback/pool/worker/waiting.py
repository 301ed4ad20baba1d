"""Matches assignments that wait for a slot with slots that wait for an assignment.

Both queues are first in, first out, with two exceptions. An assignment prefers an idle slot whose
process is already set up for it. And a rank that failed in the process of a slot goes to another
slot: if the others are busy it waits for one of them, and later assignments overtake it, until its
time to wait is over (`hurry`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from thornback.pool.worker.entries import Entry
from thornback.pool.worker.slots import Slot


class WaitingRoom:
    """The two queues of one worker. Belongs to the event loop's thread."""

    def __init__(self, slots: Sequence[Slot]) -> None:
        self._slots = slots
        self._waiting: dict[Entry, None] = {}
        self._idle: dict[Slot, asyncio.Future[Entry]] = {}

    def put(self, entry: Entry) -> None:
        """Queue an assignment."""
        self._waiting[entry] = None
        self.match()

    async def take(self, slot: Slot) -> Entry:
        """Wait for an assignment. It can be over already, if it was handed back meanwhile."""
        mine: asyncio.Future[Entry] = asyncio.get_running_loop().create_future()
        self._idle[slot] = mine
        self.match()
        try:
            return await mine
        finally:
            self._idle.pop(slot, None)

    def drop(self, entry: Entry) -> None:
        """Remove an assignment from the queue. Not queued: a no-op."""
        self._waiting.pop(entry, None)

    def hurry(self, entry: Entry) -> bool:
        """Give a queued assignment to any idle slot. False: it is not queued, or no slot is
        idle."""
        if entry not in self._waiting or not self._idle:
            return False
        self._give(entry, next(iter(self._idle)))
        return True

    def match(self) -> None:
        """Give queued assignments to idle slots. Call it also after a slot was parked."""
        for entry in tuple(self._waiting):
            if not self._idle:
                return
            if (slot := self._slot_for(entry)) is not None:
                self._give(entry, slot)

    def _slot_for(self, entry: Entry) -> Slot | None:
        work = entry.books.work
        able = [slot for slot in self._idle if not slot.has_failed(work)]
        if not able and not self._is_there_another(entry):
            able = list(self._idle)
        ready = (slot for slot in able if slot.is_set_up_for(work))
        return next(ready, able[0] if able else None)

    def _is_there_another(self, entry: Entry) -> bool:
        """Return whether some slot that is in use has not failed this assignment."""
        work = entry.books.work
        return any(slot.parked is None and not slot.has_failed(work) for slot in self._slots)

    def _give(self, entry: Entry, slot: Slot) -> None:
        del self._waiting[entry]
        idle = self._idle.pop(slot)
        if not idle.done():  # done: the slot was cancelled, because the worker is being closed
            idle.set_result(entry)
