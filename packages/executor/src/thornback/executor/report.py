"""What a run says of itself: to its observers while it goes on, and to its caller at the end. Plain
values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import attrs

from thornback.executor.ports import Json, Ranks
from thornback.faults import Fault


@attrs.frozen(kw_only=True, slots=True)
class StageProgress:
    """Counts of one stage; `done + failed + skipped == total` when it has ended."""

    name: str
    total: int
    done: int = 0
    """Recorded as done, by this run or an earlier one."""
    failed: int = 0
    skipped: int = 0
    running: int = 0
    """Handed to a worker and not settled yet."""
    gangs: int = 0
    recorded_before: int = 0
    """Of `done`: recorded by earlier runs."""


@attrs.frozen(kw_only=True, slots=True)
class AttemptReport:
    """The death certificate of one failed attempt of a rank, or of a lost gang (`rank` is None)."""

    stage: str
    rank: int | None
    attempt: int
    epoch: str
    gang: int
    node: str
    fault: Fault
    verdict: str
    """Why it is, or is not, tried again."""
    retried: bool
    ran_s: float = 0.0
    pid: int = 0
    peak_rss_bytes: int = 0
    log_tail: str = ""
    log_path: str = ""
    lost_ranks: Ranks = ()
    """For a lost gang: the ranks it had not reported."""

    def as_json(self) -> dict[str, Json]:
        """Return the certificate as JSON, as the journal keeps it."""
        fault = self.fault
        return {
            "stage": self.stage,
            "rank": self.rank,
            "attempt": self.attempt,
            "epoch": self.epoch,
            "node": self.node,
            "kind": fault.kind.value,
            "origin": fault.origin.value,
            "rule": fault.rule,
            "error_type": fault.error_type,
            "message": fault.message[:2000],
            "phase": fault.phase,
            "verdict": self.verdict,
            "ran_s": round(self.ran_s, 3),
            "peak_rss_bytes": self.peak_rss_bytes,
            "traceback": fault.traceback[-4000:],
            "log_tail": self.log_tail[-4000:],
        }


@attrs.frozen(kw_only=True, slots=True)
class GivenUp:
    """Ranks that ended FAILED together."""

    stage: str
    ranks: Ranks
    reason: str
    last: AttemptReport | None = None
    """The last failed attempt of the first of them; None: they were given up without one."""


@attrs.frozen(kw_only=True, slots=True)
class RunInfo:
    """What is known when a run starts."""

    job: str
    state_url: str
    term: int
    backend: str
    """Which cluster: for people."""
    stages: tuple[StageProgress, ...]


@attrs.frozen(kw_only=True, slots=True)
class RunReport:
    """The end of a run."""

    job: str
    state: str
    """`succeeded`, `failed` or `cancelled`."""
    reason: str
    state_url: str
    term: int
    backend: str
    stages: Mapping[str, StageProgress]
    attempts: tuple[AttemptReport, ...]
    """Every failed attempt and lost gang, oldest first (the first 10,000)."""
    seconds: float
    given_up: tuple[GivenUp, ...] = ()
    """The ranks that failed in this run, with the reason."""
    unconfirmed_gangs: tuple[int, ...] = ()
    """Gangs whose end could not be confirmed in time."""
    _read_results: Callable[[str], Mapping[int, Any]] = attrs.field(eq=False, repr=False)

    def results(self, stage: str) -> Mapping[int, Json]:
        """Return the recorded results of a stage by rank, read from the journal (blocking)."""
        if stage not in self.stages:
            raise KeyError(f"no stage {stage!r} in job {self.job!r}: {', '.join(self.stages)}")
        return self._read_results(stage)


class Observer(Protocol):
    """Watches a run from the driver. Called on the loop: must be quick. An error is logged, and
    ends the watching."""

    def started(self, info: RunInfo, /) -> None: ...

    def progressed(self, stages: tuple[StageProgress, ...], /) -> None: ...

    def failed(self, attempt: AttemptReport, /) -> None: ...

    def finished(self, report: RunReport, /) -> None: ...
