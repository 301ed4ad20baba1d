"""Says on datatrove's log how a run goes (fulfils `thornback.executor.Observer`)."""

from __future__ import annotations

import time
from collections.abc import Callable

from datatrove.utils.logging import logger
from thornback.executor import AttemptReport, RunInfo, RunReport, StageProgress
from thornback.executor.causes import fault_text
from thornback.executor.plaintext import printable
from thornback.faults import StopReason

EVERY_S = 10.0
MOST = 20
"""Failed attempts that are said one by one, in `EVERY_S`: with a mistake in a step, all fail."""


class Announcer:
    """One line per event: failed attempts, and now and then how far it is."""

    def __init__(
        self, every_s: float = EVERY_S, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._every_s = every_s
        self._monotonic = monotonic
        self._told: dict[str, float] = {}
        self._ended: dict[str, int] = {}
        self._since = monotonic()
        self._said = 0
        self._untold = 0

    def started(self, info: RunInfo, /) -> None:
        """Nothing to say: the executor does."""

    def progressed(self, stages: tuple[StageProgress, ...], /) -> None:
        """Say how many tasks are completed, of each pipeline at most every `every_s` seconds, and
        when the last one has ended."""
        now = self._monotonic()
        for stage in stages:
            ended = stage.done + stage.failed + stage.skipped
            if ended == self._ended.get(stage.name, stage.recorded_before):
                continue
            if ended < stage.total and now < self._told.get(stage.name, now) + self._every_s:
                self._told.setdefault(stage.name, now)
                continue
            self._told[stage.name], self._ended[stage.name] = now, ended
            logger.info(
                f"{stage.name}: {stage.done}/{stage.total} tasks completed{_others(stage)}."
            )

    def failed(self, attempt: AttemptReport, /) -> None:
        """Say what went wrong, and what follows; of many at a time, how many more."""
        if (now := self._monotonic()) >= self._since + self._every_s:
            self._tell_untold()
            self._since, self._said = now, 0
        if self._said == MOST:
            self._untold += 1
            return
        self._said += 1
        logger.warning(attempt_line(attempt))

    def finished(self, report: RunReport, /) -> None:
        """Say what could not be confirmed; how it ended is the caller's."""
        self._tell_untold()
        if report.unconfirmed_gangs:
            logger.warning(
                f"The end of {len(report.unconfirmed_gangs)} gang(s) of workers could not be "
                "confirmed in time: they may go on for a while."
            )

    def _tell_untold(self) -> None:
        if self._untold:
            logger.warning(f"{self._untold} more attempts failed; logs/ has what they wrote")
            self._untold = 0


def attempt_line(attempt: AttemptReport) -> str:
    """Return one line on a failed attempt."""
    who = "workers" if attempt.rank is None else f"rank={attempt.rank} (attempt {attempt.attempt})"
    where = f" on node {attempt.node}" if attempt.node else ""
    again = "will be tried again" if attempt.retried else "is given up"
    what = "lost" if attempt.rank is None else f"failed and {again}"
    # That an error of the user's code is not tried again needs no reason.
    no_retries = attempt.stop is StopReason.NO_RETRIES
    why = "" if no_retries else f" ({printable(attempt.verdict)})"
    return f"{attempt.stage}: {who} {what}{where}: {fault_text(attempt.fault)}{why}"


def _others(stage: StageProgress) -> str:
    told = [(stage.failed, "failed"), (stage.skipped, "not run"), (stage.running, "running")]
    return "".join(f", {count} {word}" for count, word in told if count)
