"""What the executor raises. `UsageError`: the call was wrong, and the message names the mend. The
rest: the run ended badly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

from thornback.executor.plaintext import counted, ranges, spans

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
        stage: name of the stage; empty: of several stages, causes that are only counted.
        ranks: the ranks, ascending.
        cause: one line: error type and message.
        detail: the innermost frames or last log lines of one of them, and where its log is; may be
            empty. A note of the exception, so that a traceback shows it.
    """

    def __init__(
        self,
        stage: str,
        ranks: Sequence[int],
        cause: str,
        detail: str = "",
        *,
        example: int | None = None,
        noun: str = "rank",
    ) -> None:
        super().__init__(stage, tuple(ranks), cause, detail)
        self.stage = stage
        self.ranks = tuple(ranks)
        self.cause = cause
        self.detail = detail
        self._example = example
        self._noun = noun
        if detail:
            self.add_note(detail)

    def __str__(self) -> str:
        if not self.ranks:
            return f"stage {self.stage!r}: {self.cause}" if self.stage else self.cause
        which = spans(ranges(self.ranks))
        who = counted(len(self.ranks), self._noun)
        such = "" if self._example is None else f", such as {self._noun} {self._example}"
        return f"{who} of stage {self.stage!r} ({which}){such}: {self.cause}"


class RunFailed(ExceptionGroup[RankFailure]):
    """The run ended with failed ranks, more than `max_failed` of their stage: one `RankFailure` for
    each of the most frequent causes, and one for all others.

    Printed as a traceback it has at most about 60 lines, with the summary last.

    Attributes:
        summary: counts of the stages, where the logs are, and how to go on; may be empty. A note of
            the last failure, so that it comes last.
    """

    report: RunReport
    """The end of the run, whole."""

    def __new__(
        cls,
        message: str,
        failures: Sequence[RankFailure],
        report: RunReport | None = None,
        summary: str = "",
    ) -> Self:
        """Make a group: `ExceptionGroup` takes two arguments."""
        return super().__new__(cls, message, failures)

    def __init__(
        self,
        message: str,
        failures: Sequence[RankFailure],
        report: RunReport | None = None,
        summary: str = "",
    ) -> None:
        super().__init__(message, failures)
        self.summary = summary
        if report is not None:
            self.report = report
        if summary:
            failures[-1].add_note(f"\n{summary}")

    def __str__(self) -> str:
        return self.message  # without the number of sub-exceptions

    @property
    def text(self) -> str:
        """All that a traceback shows of it, as plain text: for logs and messages."""
        lines = [self.message]
        for failure in self.exceptions:
            detail = getattr(failure, "detail", "")
            lines += [f"  {failure}", *(f"  {line}" for line in detail.splitlines())]
        return "\n".join([*lines, self.summary] if self.summary else lines)

    def derive(self, excs: Sequence[RankFailure]) -> RunFailed:  # type: ignore[override]  # narrower on purpose
        """Return a group of some of the failures, with the same report: for `except*`."""
        group = RunFailed(self.message, excs, self.report)
        group.summary = self.summary
        return group

    def __reduce__(self) -> tuple[object, ...]:
        return RunFailed, (self.message, self.exceptions), self.__dict__


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
