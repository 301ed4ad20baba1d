"""What the executor raises. `UsageError`: the call was wrong, and the message names the mend. The
rest: the run ended badly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from thornback.executor.report import RunReport


class UsageError(ValueError):
    """The job or the call is wrong; nothing was run. Not to be confused with `RunFailed`: the job
    ran and failed."""


class BackendUnavailable(UsageError):
    """The backend asked for cannot be used here (Ray is not installed, or its address is of a kind
    we refuse)."""


class RankFailure(Exception):
    """Ranks of one stage that ended FAILED for the same cause: a leaf of `RunFailed`.

    Attributes:
        stage: name of the stage.
        ranks: the ranks, ascending.
        cause: one line: kind, rule, error type and message.
        detail: traceback or last log lines of one of them; may be empty.
    """

    def __init__(self, stage: str, ranks: Sequence[int], cause: str, detail: str = "") -> None:
        super().__init__(stage, tuple(ranks), cause, detail)
        self.stage = stage
        self.ranks = tuple(ranks)
        self.cause = cause
        self.detail = detail

    def __str__(self) -> str:
        shown = ", ".join(str(rank) for rank in self.ranks[:8])
        more = f" and {len(self.ranks) - 8} more" if len(self.ranks) > 8 else ""
        noun = "rank" if len(self.ranks) == 1 else "ranks"
        text = f"stage {self.stage!r}, {noun} {shown}{more}: {self.cause}"
        return f"{text}\n{self.detail}" if self.detail else text


class RunFailed(ExceptionGroup[RankFailure]):
    """The run ended with failed ranks, more than `max_failed` of their stage: one `RankFailure` per
    cause."""

    report: RunReport
    """The end of the run, whole."""

    def derive(self, excs: Sequence[RankFailure]) -> RunFailed:  # type: ignore[override]  # narrower on purpose
        """Return a group of some of the failures, with the same report: for `except*`."""
        group = RunFailed(self.message, excs)
        group.report = self.report
        return group

    def __reduce__(self) -> tuple[object, ...]:
        return RunFailed, (self.message, self.exceptions), {"report": self.report}


class RunCancelled(Exception):
    """The run was cancelled before it ended. What is recorded stays; `.report` says what that
    is."""

    def __init__(self, report: RunReport) -> None:
        super().__init__(report)
        self.report = report

    def __str__(self) -> str:
        return (
            f"the run was cancelled ({self.report.reason}); "
            f"what is recorded stays in {self.report.state_url}"
        )


class RunInterrupted(RunCancelled, SystemExit):
    """A signal cancelled the run. A script that does not catch this ends silently, with the exit
    code that stands for the signal: 130 (SIGINT) or 143 (SIGTERM). `run` has printed why when the
    signal came.
    """

    def __init__(self, report: RunReport, code: int) -> None:
        super().__init__(report)
        self.code = code

    def __reduce__(self) -> tuple[object, ...]:
        return RunInterrupted, (self.report, self.code)
