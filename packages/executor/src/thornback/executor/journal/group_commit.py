"""Many commits, few puts: whatever comes while one flush is in flight goes into the next."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable, Sequence

import anyio
import attrs

from thornback.executor.journal.errors import JournalError
from thornback.executor.ports import Completion


@attrs.define(kw_only=True, slots=True, eq=False)
class Entry:
    """One commit."""

    lines: Sequence[bytes]
    records: Sequence[Completion] = ()
    outputs: Sequence[tuple[str, str]] = ()
    size_bytes: int = 0
    done: anyio.Event = attrs.field(factory=anyio.Event)
    error: JournalError | None = None


Flush = Callable[[Sequence[Entry]], Awaitable[None]]


class GroupCommit:
    """A queue of commits and the one task (`run`) that flushes them, one flush at a time.

    Args:
        flush: makes entries durable and promotes them. A `JournalError` is final.
        settle: called after the waiters of a flush were told: compaction. A `JournalError` is
            final.
        min_interval_s: between the starts of two flushes.
        max_bytes: of one flush, unless one entry alone is larger.
    """

    def __init__(
        self,
        flush: Flush,
        settle: Callable[[], Awaitable[None]],
        *,
        min_interval_s: float,
        max_bytes: int,
    ) -> None:
        self._flush = flush
        self._settle = settle
        self._min_interval_s = min_interval_s
        self._max_bytes = max_bytes
        self._pending: deque[Entry] = deque()
        self._closing = anyio.Event()
        self._news = anyio.Event()
        self.finished = anyio.Event()
        """`run` has ended: every entry is answered."""
        self.broken: JournalError | None = None

    async def commit(self, entry: Entry) -> None:
        """Return when the entry is durable and promoted. Cancelled: it is recorded all the same, or
        not.

        Raises:
            JournalError: it is not, and nothing will be any more.
        """
        if self.broken is None and self._closing.is_set():
            raise JournalError("the journal is closed")
        if self.broken is not None:
            raise again(self.broken)
        self._pending.append(entry)
        self._news.set()
        await entry.done.wait()
        if entry.error is not None:
            raise again(entry.error)

    def close(self) -> None:
        """Take no more; `run` ends when what is pending is flushed. Idempotent."""
        self._closing.set()
        self._news.set()

    async def run(self) -> None:
        """Flush until closed or broken. Cancelled: what is pending is refused."""
        error: JournalError | None = JournalError(
            "the journal was ended while commits were pending"
        )
        try:
            await self._run()
            error = None
        except JournalError as raised:
            error = raised
        finally:
            if error is not None:
                self._break(error)
            self.finished.set()

    async def _run(self) -> None:
        while True:
            while not self._pending:
                if self._closing.is_set():
                    return
                self._news = anyio.Event()
                await self._news.wait()
            started_s = anyio.current_time()
            batch = self._take()
            try:
                await self._flush(batch)
            except BaseException:
                self._pending.extendleft(reversed(batch))  # `run` answers them
                raise
            for entry in batch:
                entry.done.set()
            await self._settle()
            rest_s = started_s + self._min_interval_s - anyio.current_time()
            if rest_s > 0:
                with anyio.move_on_after(rest_s):
                    await self._closing.wait()

    def _take(self) -> list[Entry]:
        batch = [self._pending.popleft()]
        size = batch[0].size_bytes
        while self._pending and size + self._pending[0].size_bytes <= self._max_bytes:
            batch.append(self._pending.popleft())
            size += batch[-1].size_bytes
        return batch

    def _break(self, error: JournalError) -> None:
        self.broken = error
        for entry in self._pending:
            entry.error = error
            entry.done.set()
        self._pending.clear()


def again(error: JournalError) -> JournalError:
    """Return a fresh exception like `error`: one object raised at many places collects their
    tracebacks.
    """
    fresh = type(error)(*error.args)
    fresh.__cause__ = error.__cause__
    return fresh
