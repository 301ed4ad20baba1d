"""What the end of a driver becomes: a report, or an exception that carries it."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TypeAlias

from thornback.executor.causes import run_failed
from thornback.executor.confidential import shown_url
from thornback.executor.driver import Driver
from thornback.executor.errors import RunCancelled, RunFailed, RunInterrupted
from thornback.executor.journal.errors import JournalError
from thornback.executor.journal.recorded import read_run
from thornback.executor.logs import LogStore
from thornback.executor.plaintext import counted
from thornback.executor.plan import RunPlan
from thornback.executor.ports import JournalFactory, Opened, Ranks, ReadsResults
from thornback.executor.report import RunInfo, RunReport
from thornback.executor.results import Results, packed

ReadResults: TypeAlias = Callable[[str], Mapping[int, str]]


def make_report(
    plan: RunPlan,
    driver: Driver,
    opened: Opened,
    info: RunInfo,
    seconds: float,
    logs: LogStore | None,
    results: Callable[[str], Results],
    warnings: tuple[str, ...] = (),
) -> RunReport:
    """Return the report of a driver that has ended by itself."""
    end = driver.end
    assert end is not None  # Driver.run returns only then
    names = [stage.name for stage in plan.stages]  # the scheduler knows stages by number
    return RunReport(
        job=plan.job.name,
        state=end.state.value,
        reason=re.sub(r"\bstage (\d+)", partial(_named, names), end.reason),
        state_url=info.state_url,
        term=opened.term,
        backend=info.backend,
        stages={stage.name: stage for stage in driver.progress()},
        attempts=tuple(driver.certifier.chronicle.attempts),
        given_up=driver.certifier.chronicle.all_given_up(),
        stopped=dict(driver.certifier.chronicle.stopped),
        seconds=seconds,
        unconfirmed_gangs=tuple(driver.unconfirmed),
        logs_url="" if logs is None else shown_url(logs.url),
        logs_lost_bytes=0 if logs is None else logs.lost,
        warnings=warnings,
        read_results=results,
    )


def beginning(info: RunInfo, *, where: bool) -> str:
    """Return one line about a run that begins; `where`: name the backend, too."""
    total = sum(stage.total for stage in info.stages)
    before = sum(stage.recorded_before for stage in info.stages)
    stages = f" in {len(info.stages)} stages" if len(info.stages) > 1 else ""
    recorded = f"; {before:,} are recorded already" if before else ""
    place = f" on {info.backend}" if where else ""
    who = f"job {info.job!r}: {counted(total, 'rank')}{stages}{place}{recorded}"
    return f"{who}; state: {info.state_url} (term {info.term})"


def _named(names: Sequence[str], match: re.Match[str]) -> str:
    number = int(match[1])
    return f"stage {names[number]!r}" if number < len(names) else match[0]


def results_of(
    journal: JournalFactory | None, url: str, storage_options: Mapping[str, object]
) -> ReadResults:
    """Return what reads the recorded results of a stage after the run: from where its journal is.

    Args:
        journal: the user's own; None: the files under `url`.
        url: of the state.
        storage_options: of its file system.
    """
    if journal is None:
        return partial(_recorded, url, storage_options)
    if isinstance(journal, ReadsResults) and not isinstance(journal, type):
        return journal.read_results
    return partial(_not_here, repr(journal))  # not itself: the report has to pickle


def _recorded(url: str, storage_options: Mapping[str, object], stage: str) -> Mapping[int, str]:
    return read_run(url, storage_options=storage_options).results(stage)


def _not_here(made_by: str, stage: str) -> Mapping[int, str]:
    raise JournalError(
        f"the results of stage {stage!r} are in a journal of your own, and {made_by}, which made "
        "it, has no method read_results(stage) that returns JSON text by rank: add it (see "
        "thornback.executor.ports.ReadsResults), or read them where that journal keeps them"
    )


def read_results(
    read: ReadResults, done: Mapping[str, Ranks], sizes: Mapping[str, int], stage: str
) -> Results:
    """Return the recorded results of a stage.

    Args:
        read: gives the JSON text by rank.
        done: ranks that are done, by stage.
        sizes: world size, by stage.
        stage: its name.
    """
    return Results(packed(read(stage), done[stage], sizes[stage]))


def bad_end(report: RunReport, *, signal: int | None) -> RunFailed | RunCancelled | None:
    """Return what `Executor.run` raises for this report; None: the run succeeded.

    Args:
        report: of a run.
        signal: that cancelled the run, if one did.
    """
    if report.state == "succeeded":
        return None
    if report.state == "cancelled":
        # Where someone types, an uncaught SystemExit would end the session.
        if signal is None or hasattr(sys, "ps1"):
            return RunCancelled(report)
        return RunInterrupted(report, 128 + signal)
    return run_failed(report)
