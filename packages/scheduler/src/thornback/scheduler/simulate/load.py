"""What a driver has to carry: messages and bytes per simulated second, and where that would end.

The sizes are generous estimates. Measured as thornback's pool pickles them: a call 510 bytes and 12
for each further range, a report of one rank 470 and of fifty 4,980. A call that goes by Ray has a
task specification besides (ids, the owner's address, resources), for which 1.5 KB are allowed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import attrs

from thornback.scheduler.simulate.gangside import News

CALL_BYTES = 2_000
ANSWER_BYTES = 1_000
PIECE_BYTES = 30
"""Of a range of ranks."""
OUTCOME_BYTES = 250
"""Of what one rank came to, with a small result."""
RECORD_BYTES = 120
"""Of one rank in the journal, with a small result."""


@attrs.define(slots=True)
class _Second:
    events: int = 0
    sent: int = 0
    received: int = 0
    sent_bytes: int = 0
    received_bytes: int = 0
    journal_bytes: int = 0


@attrs.frozen(kw_only=True, slots=True)
class LoadStats:
    """What the driver of a simulated run had to carry: in all, and in its busiest second."""

    events: int
    """Events that the scheduler was told."""
    messages: int
    """Sent to workers and received from them; signs of life, `workers / beat_s` a second, not
    counted."""
    bytes: int
    """Of those."""
    journal_bytes: int
    """Written to the journal."""
    peak_events: int
    """In the busiest second; likewise below."""
    peak_messages: int
    peak_bytes: int
    peak_journal_bytes: int
    mean_messages: float
    """Per second, from the first event to the last."""
    mean_bytes: float


class LoadMeter:
    """Counts by the second."""

    def __init__(self) -> None:
        self._seconds: dict[int, _Second] = {}
        self._at = -1
        self._second = _Second()

    def _now(self, now: float) -> _Second:
        second = math.floor(now)
        if second != self._at:
            self._at = second
            self._second = self._seconds.setdefault(second, _Second())
        return self._second

    def event(self, now: float) -> None:
        """The scheduler is told something."""
        self._now(now).events += 1

    def dispatched(self, now: float, workers: int, ranks: Sequence[range]) -> None:
        """An assignment is sent to each worker of a gang."""
        second = self._now(now)
        second.sent += workers
        second.sent_bytes += workers * (CALL_BYTES + PIECE_BYTES * len(ranks))

    def recalled(self, now: float, workers: int) -> None:
        """A recall is sent to each worker of a gang, and answered."""
        second = self._now(now)
        second.sent += workers
        second.received += workers
        second.sent_bytes += workers * CALL_BYTES
        second.received_bytes += workers * ANSWER_BYTES

    def reported(self, now: float, workers: int, news: News) -> None:
        """Each worker of a gang has reported; what is not final is followed by another call."""
        second = self._now(now)
        ended = len(news.done) + len(news.failed)
        second.received += workers
        second.received_bytes += workers * (
            ANSWER_BYTES + OUTCOME_BYTES * ended + PIECE_BYTES * len(news.returned)
        )
        if not news.final:
            second.sent += workers
            second.sent_bytes += workers * CALL_BYTES

    def recorded(self, now: float, ranks: Sequence[range]) -> None:
        """Ranks are to be recorded."""
        self._now(now).journal_bytes += RECORD_BYTES * sum(map(len, ranks))

    def stats(self) -> LoadStats:
        """Return the figures so far."""
        seconds = list(self._seconds.values()) or [_Second()]
        lasted = max(self._seconds, default=0) - min(self._seconds, default=0) + 1
        messages = [each.sent + each.received for each in seconds]
        octets = [each.sent_bytes + each.received_bytes for each in seconds]
        return LoadStats(
            events=sum(each.events for each in seconds),
            messages=sum(messages),
            bytes=sum(octets),
            journal_bytes=sum(each.journal_bytes for each in seconds),
            peak_events=max(each.events for each in seconds),
            peak_messages=max(messages),
            peak_bytes=max(octets),
            peak_journal_bytes=max(each.journal_bytes for each in seconds),
            mean_messages=sum(messages) / lasted,
            mean_bytes=sum(octets) / lasted,
        )
