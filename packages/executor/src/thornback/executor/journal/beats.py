"""The sign of life of a holder: an object whose content changes."""

from __future__ import annotations

import logging
from collections.abc import Callable

import anyio

from thornback.executor.journal.errors import JournalError
from thornback.executor.journal.holder import Heartbeat
from thornback.executor.journal.steps import AsyncSteps, RetryParams, put
from thornback.executor.journal.terms import beat_name

logger = logging.getLogger(__name__)


class Beats:
    """Rewrites `beat-<term>` every `ttl_s / 3` until stopped.

    Args:
        steps: that write it.
        holder_id: in the claim of this driver.
        term: that it holds.
        ttl_s: within which a living driver shows it.
        flushed: returns the number of the newest base or segment that is written; -1: none.
    """

    def __init__(
        self,
        steps: AsyncSteps,
        holder_id: str,
        term: int,
        ttl_s: float,
        flushed: Callable[[], int],
    ) -> None:
        self._steps = steps
        self._id = holder_id
        self._term = term
        self._ttl_s = ttl_s
        self._flushed = flushed
        self._count = 0
        self._lock = anyio.Lock()
        self._scope = anyio.CancelScope()
        self._stopped = anyio.Event()
        self._started = False

    async def first(self) -> None:
        """Write the first beat. Raises `JournalError`."""
        await self._put(closed=False, promoted=0, patient=False)

    async def run(self) -> None:
        """Beat until stopped. A beat that cannot be written is told and left out: the next one may
        do.
        """
        self._started = True
        try:
            with self._scope:
                while True:
                    await self._steps.sleep(self._ttl_s / 3)
                    await self.now()
        finally:
            self._stopped.set()

    async def now(self) -> None:
        """Beat once. Never raises."""
        try:
            await self._put(closed=False, promoted=0, patient=True)
        except JournalError as error:
            logger.warning("cannot show that this driver is alive: %s", error)

    async def close(self, promoted: int) -> None:
        """Stop, and say that the state is given back. Failing that, the next driver has to watch
        for `ttl_s`.
        """
        self._scope.cancel()
        if self._started:
            await self._stopped.wait()  # or a late beat would open it again
        try:
            await self._put(closed=True, promoted=promoted, patient=False)
        except JournalError as error:
            logger.warning("cannot mark the state as closed: %s", error)

    async def _put(self, *, closed: bool, promoted: int, patient: bool) -> None:
        async with self._lock:  # or an older beat would replace a newer one
            await self._put_next(closed=closed, promoted=promoted, patient=patient)

    async def _put_next(self, *, closed: bool, promoted: int, patient: bool) -> None:
        self._count += 1
        beat = Heartbeat(
            id=self._id,
            count=self._count,
            closed=closed,
            promoted=promoted,
            flushed=self._flushed(),
        )
        retry = RetryParams(timeout_s=self._ttl_s / 3, patient=patient)
        await self._steps.run(put(beat_name(self._term), beat.encode()), retry)
