"""What the command line shows of a run: progress lines, faults, results. Lines only, so that the
output reads the same in a terminal, a file and a CI log; a terminal adds colour."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from thornback.cli.demo.index import Index
from thornback.executor import AttemptReport, RunInfo, RunReport, StageProgress, Waiting

PROGRESS_EVERY_S = 0.5
"""Progress lines in between are left out: more than two a second cannot be read."""
_MESSAGE_CHARS = 160


class LineConsole(Console):
    """A console that falls silent when its reader is gone.

    `thornback demo | head` must not end a run in the middle: the run is worth more than its display
    (Rich itself would raise `SystemExit` inside the driver's loop).
    """

    def on_broken_pipe(self) -> None:
        """Drop what is left to print, here and at interpreter exit."""
        self.quiet = True
        with contextlib.suppress(OSError, ValueError):  # not a file of the system: nothing to do
            descriptor = self.file.fileno()
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, descriptor)
            os.close(null)


def standard_console() -> LineConsole:
    """Return a console on standard output."""
    return LineConsole(file=sys.stdout, highlight=False)


class Display:
    """Shows a run (fulfils `thornback.executor.Observer`). Only prints; keeps nothing of the run.

    Args:
        console: where to.
        clock: monotonic seconds, to thin out progress lines.
    """

    def __init__(self, console: Console, clock: Callable[[], float]) -> None:
        self._console = console
        self._clock = clock
        self._started_at = clock()
        self.has_started = False
        """Whether the run began: it may be refused before."""
        self._next_at = 0.0
        self._last = ""
        self._ended: dict[str, bool] = {}

    def line(self, text: str, style: str = "") -> None:
        """Print one line, as it is: no wrapping, no markup."""
        self._console.print(Text(text, style=style), soft_wrap=True)

    def started(self, info: RunInfo) -> None:
        """Print the header."""
        self.has_started = True
        self._started_at = self._clock()
        self.line(f"job      {info.job}", "bold")
        self.line(f"backend  {info.backend}")
        self.line(f"state    {info.state_url} (term {info.term})")
        for stage in info.stages:
            before = f", {stage.recorded_before} recorded earlier" if stage.recorded_before else ""
            self.line(f"stage    {stage.name}: {_count(stage.total, 'rank')}{before}")
            self._ended[stage.name] = has_ended(stage)

    def progressed(self, stages: Sequence[StageProgress]) -> None:
        """Print a line when a stage has ended, and at most two a second in between."""
        for stage in stages:
            if has_ended(stage) and not self._ended.get(stage.name):
                self._ended[stage.name] = True
                self._stamped(f"{stage.name} has ended: {stage_counts(stage)}", "bold")
        going = "; ".join(
            f"{stage.name} {stage_counts(stage)}" for stage in stages if not has_ended(stage)
        )
        if going and going != self._last and self._clock() >= self._next_at:
            self._last, self._next_at = going, self._clock() + PROGRESS_EVERY_S
            self._stamped(going)

    def failed(self, attempt: AttemptReport) -> None:
        """Print a fault: kind, rule, what happened, what is done about it; where the log is of a
        rank that is given up."""
        self._stamped(fault_text(attempt), "yellow" if attempt.retried else "red")
        if attempt.log_url and not attempt.retried:
            self.line(f"           its log: {attempt.log_url}, {attempt.log_part}", "red")

    def waiting(self, waiting: Waiting) -> None:
        """Print why a gang waits (fulfils `thornback.executor.WaitObserver`)."""
        what = "busy" if waiting.busy else "no node fits"
        self._stamped(f"waiting: {what}: {_one_line(waiting.text)}", "yellow")

    def finished(self, report: RunReport) -> None:
        """Print how the run ended."""
        before = sum(stage.recorded_before for stage in report.stages.values())
        total = sum(stage.total for stage in report.stages.values())
        if before == total:
            self.line(f"nothing left to run: all {total} ranks were recorded earlier")
            return
        now = sum(stage.done for stage in report.stages.values()) - before
        earlier = f", {before} recorded earlier" if before else ""
        reason = f" ({report.reason})" if report.reason else ""
        self.line(
            f"run {report.state}{reason} in {report.seconds:.1f} s: "
            f"{_count(now, 'rank')} recorded now{earlier}, {_count(len(report.attempts), 'fault')}",
            "bold" if report.state == "succeeded" else "bold red",
        )
        if report.logs_url and report.state != "succeeded":
            self.line(f"logs     {report.logs_url}")

    def _stamped(self, text: str, style: str = "") -> None:
        self.line(f"[{self._clock() - self._started_at:6.1f} s] {text}", style)


def has_ended(stage: StageProgress) -> bool:
    """Return whether every rank of a stage is settled."""
    return stage.done + stage.failed + stage.skipped == stage.total


def stage_counts(stage: StageProgress) -> str:
    """Return `12/32 done, 4 running (37%), 4 gangs`, without what is zero; the share is of what the
    running ranks told."""
    parts = [f"{stage.done}/{stage.total} done"]
    for number, word in ((stage.failed, "failed"), (stage.skipped, "skipped")):
        parts += [f"{number} {word}"] if number else []
    if not has_ended(stage):
        if stage.running:
            share = min(1.0, stage.partial / stage.running)
            parts += [f"{stage.running} running" + (f" ({share:.0%})" if share > 0 else "")]
        parts += [_count(stage.gangs, "gang")] if stage.gangs else []
    return ", ".join(parts)


def fault_text(attempt: AttemptReport) -> str:
    """Return one line about a failed attempt or a lost gang."""
    fault = attempt.fault
    if attempt.rank is None:
        lost = ", ".join(_span(piece) for piece in attempt.lost_ranks[:8])
        who = f"{attempt.stage}, gang {attempt.gang}" + (f" with ranks {lost}" if lost else "")
    else:
        who = f"{attempt.stage} rank {attempt.rank}, attempt {attempt.attempt}"
    where = f" on {attempt.node[:12]}" if attempt.node else ""
    message = _one_line(fault.message) or fault.error_type
    decided = "retried" if attempt.retried else "given up"
    return (
        f"fault: {who}{where}: {fault.kind.value} (rule {fault.rule}): {message} "
        f"-> {decided}: {_one_line(attempt.verdict)}"
    )


def result_tables(result: Index, *, rows: int = 5) -> list[Table]:
    """Return the demo's result as tables: totals, most frequent words, largest files."""
    totals = _table("total", "")
    counts: Mapping[str, int] = {**result["counts"], "distinct words": result["distinct_words"]}
    for name, number in counts.items():
        totals.add_row(name, f"{number:,}")
    tables = [totals]
    for title, unit, pairs in (
        ("word", "times", result["top_words"]),
        ("largest file", "bytes", result["largest"]),
    ):
        table = _table(title, unit)
        for word, times in pairs[:rows]:
            table.add_row(str(word), f"{times:,}")
        tables.append(table)
    return tables


def _table(title: str, unit: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(title, no_wrap=True)
    table.add_column(unit, justify="right")
    return table


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _span(ranks: range) -> str:
    return f"{ranks[0]}" if len(ranks) == 1 else f"{ranks[0]}-{ranks[-1]}"


def _one_line(text: str) -> str:
    """Return the first line, shortened, and without what could drive a terminal."""
    line = next((part.strip() for part in text.splitlines() if part.strip()), "")
    plain = "".join(char for char in line if char.isprintable())
    return plain if len(plain) <= _MESSAGE_CHARS else plain[: _MESSAGE_CHARS - 3] + "..."
