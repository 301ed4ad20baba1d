"""Feeds the ranks of one assignment to one rank process, and enters in the books what it says.

While ranks are fast, a few tickets lie ahead in the process's queue (`pace`). They change nothing
of what can be relied on: a ticket that the process has not taken is taken back before anything is
handed back or killed, so what has not started never counts as started, and no kill that is meant
for one rank hits the next.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import attrs

from thornback.pool.ports import CaughtError, SeenBy
from thornback.pool.worker import outcomes
from thornback.pool.worker.assignments import Books, Item
from thornback.pool.worker.deaths import Death, KillReason
from thornback.pool.worker.health import SlotHealth
from thornback.pool.worker.news import Done, Progressed, Saved, Started
from thornback.pool.worker.params import SupervisorParams
from thornback.pool.worker.proctree import rss_bytes
from thornback.pool.worker.rankprocess import MAX_TICKET_BYTES, RankProcess, Unexpected

_TRIES_TO_START = 3
"""A process that dies before it begins with the rank (something an earlier rank left behind killed
it) is not the rank's fault; up to a point."""
_AGAIN_S = 0.05


@attrs.frozen(kw_only=True, slots=True)
class FeedContext:
    """What a feed needs of its worker."""

    node: str
    params: SupervisorParams
    health: SlotHealth
    """Record of the slot, which is told how ranks end."""
    oom_risen: Callable[[], bool]
    saved: Callable[[Callable[[], None]], None]
    """Called when a rank has saved a checkpoint, with what lets the rank go on."""


class Feed:
    """Fulfils `Listener`. Belongs to the event loop's thread."""

    def __init__(self, process: RankProcess, books: Books, context: FeedContext) -> None:
        """Make it, not started."""
        self.progress: tuple[float, float | None] | None = None
        """Of the rank that runs."""
        self.began: float | None = None
        """When the rank that runs started; None: it has not."""
        self._process = process
        self._books = books
        self._context = context
        self._work = 0
        self._sent: deque[tuple[int, Item]] = deque()
        """Whose tickets were sent, with the serials of these; in the order of `books.out`."""
        self._loop = asyncio.get_running_loop()
        self._over: asyncio.Future[int] = self._loop.create_future()
        self._tries = 0
        self._due: tuple[float, KillReason, str] | None = None
        self._alarm: asyncio.TimerHandle | None = None
        self._again: asyncio.TimerHandle | None = None

    async def run(self, fields: Mapping[str, object], tries: int) -> int:
        """Run the first rank of the books that is not over, and more, until there are no more, or
        the process is of no use any more.

        Args:
            fields: what the ranks have in common.
            tries: how often that first rank has not been started by another process.

        Returns:
            `tries` for the next process.

        Cancellation: the process is killed.
        """
        process = self._process
        self._tries = tries
        if process.death is not None:
            self.died(process.death)
            return self._tries
        process.listener = self
        try:
            self._work = process.tell_work(fields)
            self._fill()
            return await self._over
        except asyncio.CancelledError:
            process.kill(KillReason.CLOSED)  # it is not idle: its end is not to be waited for
            raise
        finally:
            process.listener = None
            for timer in (self._alarm, self._again):
                if timer is not None:
                    timer.cancel()

    def hand_back(self) -> None:
        """Return all ranks that have not started."""
        self._take_back()
        unsent = list(self._books.out)[len(self._sent) :]
        self._books.unbegin(unsent)
        self._books.hand_back()
        self._settle()

    def kill(self, reason: KillReason, detail: str = "") -> bool:
        """Kill the process for what its rank did. False: it is not certain that this rank is what
        runs; ask again."""
        if not self._alone():
            return False
        self._process.kill(reason, detail)
        return True

    # -- tickets -----------------------------------------------------------------------------------

    def _fill(self) -> None:
        """Send tickets, as many as may lie ahead."""
        process, books, work = self._process, self._books, self._books.work
        if not process.accepts or process.worn or self._over.done():
            return
        most = process.pace.most if work.max_growth_bytes is None else 1
        if work.max_ranks_per_child is not None:
            most = min(most, work.max_ranks_per_child - process.ranks)
        while len(self._sent) < max(1, most):
            begun = len(self._sent) < len(books.out)  # only the first can be begun and not sent
            item = books.out[0] if begun else books.begin()
            if item is None:
                break
            if not self._send(item):
                if len(books.out) > 1:
                    books.unbegin([item])
                elif self._again is None:
                    self._again = self._loop.call_later(_AGAIN_S, self._send_again)
                break
        if self.began is None and self._due is None and self._sent:
            self._await_start()
        if nap_s := process.pace.nap_s(len(self._sent) - 1):
            process.nap(nap_s)

    def _send_again(self) -> None:
        self._again = None
        self._fill()

    @property
    def _serial(self) -> int:
        """Of the first ticket whose rank is not over; 0: there is none."""
        return self._sent[0][0] if self._sent else 0

    def _send(self, item: Item) -> bool:
        process = self._process
        serial = process.next_serial()
        if len(item.args or b"") + len(item.restored or b"") > MAX_TICKET_BYTES:
            sent = not self._sent and process.send_large(
                serial, self._work, item.rank, item.args, item.restored
            )
        else:
            ticket = ("rank", serial, self._work, item.rank, item.args, item.restored)
            sent = process.send(ticket)
        if sent:
            self._sent.append((serial, item))
        return sent

    def _take_back(self) -> None:
        """Take tickets back: their ranks have not started. If it was all of them, the first stays
        begun, to be sent again, if this process is still to be used."""
        if back := self._process.take_back():
            taken = [(serial, item) for serial, item in self._sent if serial not in back]
            ahead = [item for serial, item in self._sent if serial in back]
            if not taken and not self._process.worn:
                self._due = None
                self._books.unbegin(ahead[1:])
            else:
                self._books.unbegin(ahead)
            self._sent = deque(taken)

    def withdraw(self) -> None:
        """See `Listener`."""
        self._take_back()

    def _alone(self) -> bool:
        """Make sure that nothing but the rank that runs can be hit by a kill.

        With no ticket left, the process cannot go on to another. If it has taken two, it is done
        with the first. Before a rank has begun nothing is taken back: sent again, it would have all
        its time to begin again.
        """
        if self.began is None:
            self._process.pull()
            return False
        front = self._serial
        self._take_back()
        self._process.hear()
        if len(self._sent) == 1 and self._serial == front:
            return True
        self._settle()
        return False

    # -- news --------------------------------------------------------------------------------------

    def heard(self, news: Started | Done | Saved | Progressed, /) -> None:
        """See `Listener`."""
        starts = isinstance(news, Started)
        asked = self._sent and news.serial == self._serial
        if not asked or starts is (self.began is not None):
            raise Unexpected("it answered what it was not asked")
        if isinstance(news, Done):
            self._done(news)
            if news.next:
                if news.error is not None or news.next != self._serial:
                    raise Unexpected("it answered what it was not asked")
                self._started()
        elif isinstance(news, Started):
            self._started()
        elif isinstance(news, Saved):
            self._books.save(news.data)
            self._context.saved(partial(self._process.kept, news.number))
        else:
            self.progress = (news.done, news.total)

    def _started(self) -> None:
        self.began = now = self._loop.time()
        self._tries = 0
        self._process.peak_tree_rss_bytes = 0
        self._process.log.mark(
            self._process.log_end, self._books.work.stage, self._books.out[0].rank
        )
        timeout_s = self._books.work.timeout_s
        self._due = None
        if timeout_s is not None:
            self._set_due(now + timeout_s, KillReason.TIMED_OUT)

    def _done(self, news: Done) -> None:
        process, books = self._process, self._books
        log_end = news.log_size if news.log_size >= process.log_end else process.log.size()
        log_slice = (process.log_end, log_end)
        process.log.trim(log_end)
        process.log_end = log_end
        fields = outcomes.done(
            books.out[0].rank,
            self._context.node,
            process.pid,
            process.log,
            news,
            log_slice,
            healthy_before=self._context.health.healthy,
            peak=max(news.peak_rss_bytes, process.peak_tree_rss_bytes),
        )
        books.end(fields, self._loop.time())
        process.ranks += 1
        process.pace.ran(news.ran_s)
        broken = self._is_broken(news.error)
        process.worn = broken or self._is_worn()
        serial, _ = self._sent.popleft()
        self.began = self.progress = self._due = None
        if news.error is not None:
            if process.worn:  # the next process runs what lies ahead
                self._take_back()
            process.go_on(serial)

    def _is_broken(self, error: CaughtError | None) -> bool:
        """Record how the first rank ended; return whether the process is to be replaced."""
        health = self._context.health
        if error is None:
            health.succeeded()
            return False
        return health.failed(self._sent[0][1].rank, error)

    def _is_worn(self) -> bool:
        work, process = self._books.work, self._process
        if work.max_ranks_per_child is not None and process.ranks >= work.max_ranks_per_child:
            return True
        if work.max_growth_bytes is None:
            return False
        return rss_bytes(process.pid) - process.first_rss_bytes > work.max_growth_bytes

    def settled(self) -> None:
        """See `Listener`."""
        self._settle()

    def _settle(self) -> None:
        self._fill()
        nothing_out = not self._books.out
        if nothing_out and self._process.accepts and not self._over.done():
            self._over.set_result(0)

    def died(self, death: Death, /) -> None:
        """See `Listener`: the first rank has died with the process, if it had started; the others
        have not."""
        if self._over.done() or not self._books.out:
            self._finish()
            return
        self._process.take_back()
        self._books.unbegin(list(self._books.out)[1:])
        self._sent.clear()
        now = self._loop.time()
        if death.killed_for is KillReason.RECALLED:
            self._books.end(None, now)
        elif self.began is not None or self._tries + 1 >= _TRIES_TO_START:
            self._books.end(self._death_of_rank(death, now), now)
            self._tries = 0
        else:
            self._tries += 1
        # A heartbeat may ask what runs before the slot goes on.
        self.began = self.progress = self._due = None
        self._finish()

    def _finish(self) -> None:
        if not self._over.done():
            self._over.set_result(self._tries)

    def _death_of_rank(self, death: Death, now: float) -> dict[str, Any]:
        process, work = self._process, self._books.work
        return outcomes.failed(
            self._books.out[0].rank,
            self._context.node,
            outcomes.why_dead(death, work, "rank", oom_risen=self._context.oom_risen()),
            seen_by=SeenBy.PROCESS,
            phase="rank",
            pid=process.pid,
            ran_s=0.0 if self.began is None else max(0.0, now - self.began),
            log=process.log,
            log_start=process.log_end,
            peak_rss_bytes=death.max_rss_bytes,
        )

    # -- bounds ------------------------------------------------------------------------------------

    def _await_start(self) -> None:
        limit_s = self._context.params.start_limit_s
        detail = f"it did not begin with the rank within {limit_s:g} s"
        self._set_due(self._loop.time() + limit_s, KillReason.NOT_STARTED, detail)

    def _set_due(self, at: float, reason: KillReason, detail: str = "") -> None:
        """Kill at this time, unless something else is set by then. One timer serves many ranks."""
        self._due = (at, reason, detail)
        if self._alarm is not None and self._alarm.when() > at:
            self._alarm.cancel()
            self._alarm = None
        if self._alarm is None:
            self._alarm = self._loop.call_at(at, self._rang)

    def _rang(self) -> None:
        self._alarm = None
        if self._due is None or self._over.done():
            return
        at, reason, detail = self._due
        if at > self._loop.time():
            self._alarm = self._loop.call_at(at, self._rang)
        elif reason is KillReason.NOT_STARTED:
            self._process.hear()  # it may have said so
            if self._due == (at, reason, detail):
                self._process.kill(reason, detail)
            else:
                self._settle()
        elif not self.kill(reason, detail) and self._due == (at, reason, detail):
            # It is done with this rank already, and says so soon.
            self._alarm = self._loop.call_later(_AGAIN_S, self._rang)
