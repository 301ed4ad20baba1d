"""Tells an observer, whatever it does. Internal to the pool."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from thornback.pool.ports import Beat, LogChunk, PoolObserver

_LOG = logging.getLogger(__name__)


class Telling:
    """Passes news on to an observer, or to nobody; what the observer raises is logged, in full once
    and then in a line."""

    def __init__(self, observer: PoolObserver | None) -> None:
        self.wanted = observer is not None
        """There is somebody to be told, so logs are to be fetched."""
        self._observer = observer
        self._failed = False

    def beat(self, gang: int, beat: Beat) -> None:
        """A worker gave a sign of life."""
        if self._observer is None:
            return
        try:
            self._observer.beat(gang, beat)
        except Exception as error:  # noqa: BLE001  # it is told, and decides nothing
            self._complain(error)

    def logs(self, chunks: Sequence[LogChunk]) -> None:
        """Rank processes have written something; nothing: not told."""
        if self._observer is None or not chunks:
            return
        try:
            self._observer.logs(chunks)
        except Exception as error:  # noqa: BLE001  # it is told, and decides nothing
            self._complain(error)

    def _complain(self, error: Exception) -> None:
        trace = None if self._failed else error
        self._failed = True
        _LOG.warning("the observer of the pool failed: %r", error, exc_info=trace)
