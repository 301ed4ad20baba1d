"""Tells those who watch a run, without ever waiting for them or failing because of them."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Sequence

import anyio

from thornback.executor.ports import Clock, Dispatched, ExplainsWaits, Leases
from thornback.executor.report import Observer, StageProgress, Waiting, WaitObserver
from thornback.placement import Explanation
from thornback.pool import Beat, LogChunk

logger = logging.getLogger(__name__)
FEED_BUFFER = 1000


class Watchers:
    """Calls observers; one that raises is logged and not called again: watching never fails a
    run."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = list(observers)

    def __bool__(self) -> bool:
        """Whether there is anyone to tell."""
        return bool(self._observers)

    def tell(self, call: Callable[[Observer], None]) -> None:
        """Call each observer."""
        for observer in list(self._observers):
            try:
                call(observer)
            except Exception:  # foreign code: whatever it raises ends its watching, not the run
                logger.exception("an observer raised and is not called again: %r", observer)
                self._observers.remove(observer)


def tell_waits(leases: Leases, watchers: Watchers) -> None:
    """Have those observers told why gangs wait that want to hear it."""

    def tell(explanation: Explanation) -> None:
        waiting = Waiting(text=explanation.text, busy=explanation.busy)

        def call(observer: Observer) -> None:
            if isinstance(observer, WaitObserver):
                observer.waiting(waiting)

        watchers.tell(call)

    if isinstance(leases, ExplainsWaits):
        leases.explain_to(tell)


class WorkerNews:
    """Hands on what workers send beside their reports (fulfils `thornback.pool.PoolObserver`)."""

    def __init__(self, *logs: Callable[[Sequence[LogChunk]], None]) -> None:
        self._logs = logs
        self._beat: Callable[[int, Beat], None] = lambda gang, beat: None

    def aim(self, beat: Callable[[int, Beat], None]) -> None:
        """Say who is told of signs of life: the driver, which is made after the workers."""
        self._beat = beat

    def beat(self, gang: int, beat: Beat, /) -> None:
        """Tell the driver."""
        self._beat(gang, beat)

    def logs(self, chunks: Sequence[LogChunk], /) -> None:
        """Tell what keeps and what shows logs."""
        for take in self._logs:
            take(chunks)


class Teller:
    """Tells observers the progress: on change, at most every `every_s` seconds, and at the end."""

    def __init__(self, clock: Clock, watchers: Watchers, every_s: float) -> None:
        self._clock = clock
        self._watchers = watchers
        self._every_s = every_s
        self._told = float("-inf")
        self._last: tuple[StageProgress, ...] = ()
        self.due: float | None = None
        """When progress that came too soon after the last telling is to be told."""

    def tell(self, count: Callable[[], tuple[StageProgress, ...]], *, last: bool = False) -> None:
        """Have the progress counted and tell it, or note when that is due."""
        if not self._watchers:
            self.due = None
            return
        now = self._clock.monotonic()
        if not last and now < self._told + self._every_s:
            self.due = self._told + self._every_s
            return
        self._told, self.due = now, None
        progress = count()  # O(stages): only when an update is due
        if last or progress != self._last:
            self._last = progress
            self._watchers.tell(lambda observer: observer.progressed(progress))


class DispatchFeed:
    """Hands every `Dispatched` to whoever follows. A slow reader misses what exceeds 1,000."""

    def __init__(self) -> None:
        self._offers: list[Callable[[Dispatched], None]] = []

    def offer(self, seen: Dispatched) -> None:
        """Hand it to all."""
        for offer in self._offers:
            offer(seen)

    async def follow(self) -> AsyncIterator[Dispatched]:
        """Yield what is offered from the first step on, for ever."""
        sender, receiver = anyio.create_memory_object_stream[Dispatched](FEED_BUFFER)

        def offer(seen: Dispatched) -> None:
            try:
                sender.send_nowait(seen)
            except anyio.WouldBlock:
                logger.debug("a companion is slow; it misses assignment %d", seen.assignment)

        self._offers.append(offer)
        try:
            with sender, receiver:
                async for seen in receiver:
                    yield seen
        finally:
            self._offers.remove(offer)
