"""The reader's end of an assignment: what `WorkerPool.run` returns. Internal to the pool."""

from __future__ import annotations

from collections import deque

import anyio

from thornback.pool.ports import GangLostError, Report


class Reports:
    """Yields the reports of one assignment as they come, for one reader; ends after the final one.

    What came in before a failure is delivered before the failure is raised. Not a generator:
    nothing runs in it, so it can be dropped, or its reader cancelled, at any time.
    """

    def __init__(self) -> None:
        self._queue: deque[Report] = deque()
        self._final = False
        self._failure: BaseException | None = None
        self._news: anyio.Event | None = None

    def push(self, report: Report) -> None:
        """Hand over a report. After the final one, or a failure: a no-op."""
        if not self._final and self._failure is None:
            self._queue.append(report)
            self._final = report.final
            self._wake()

    def fail(self, failure: BaseException) -> None:
        """End the iteration with a failure. After the final report, or another failure: a no-op."""
        if not self._final and self._failure is None:
            self._failure = failure
            self._wake()

    def _wake(self) -> None:
        if self._news is not None:
            self._news.set()

    def __aiter__(self) -> Reports:
        return self

    async def __anext__(self) -> Report:
        """Return the next report.

        Raises:
            GangLostError: the gang is lost, or was closed, before every rank was reported.
            Exception: what `Blobs` raised; nothing was started then.
        """
        while True:
            if self._queue:
                return self._queue.popleft()
            if self._final:
                raise StopAsyncIteration
            if isinstance(self._failure, GangLostError):
                raise copy_of(self._failure)
            if self._failure is not None:
                raise self._failure
            self._news = anyio.Event()
            await self._news.wait()


def copy_of(error: GangLostError) -> GangLostError:
    """Return the same error anew: one raised by several readers would collect the tracebacks of
    all."""
    return GangLostError(error.error, error.node, error.phase, error.facts)
