"""What the end of a driver becomes: a report, or an exception that carries it."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TypeAlias

from thornback.executor.driver import Driver
from thornback.executor.errors import RankFailure, RunCancelled, RunFailed, RunInterrupted
from thornback.executor.journal.errors import JournalError
from thornback.executor.journal.recorded import read_run
from thornback.executor.logs import LogStore
from thornback.executor.plan import RunPlan
from thornback.executor.ports import JournalFactory, Json, Opened, ReadsResults
from thornback.executor.report import GivenUp, RunInfo, RunReport

ReadResults: TypeAlias = Callable[[str], Mapping[int, str]]


def make_report(
    plan: RunPlan,
    driver: Driver,
    opened: Opened,
    info: RunInfo,
    seconds: float,
    logs: LogStore | None,
    read_results: ReadResults,
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
        state_url=plan.settings.state_url,
        term=opened.term,
        backend=info.backend,
        stages={stage.name: stage for stage in driver.progress()},
        attempts=tuple(driver.certifier.chronicle.attempts),
        given_up=driver.certifier.chronicle.all_given_up(),
        seconds=seconds,
        unconfirmed_gangs=tuple(driver.unconfirmed),
        logs_url="" if logs is None else logs.url,
        logs_lost_bytes=0 if logs is None else logs.lost,
        warnings=warnings,
        read_results=partial(_parsed_results, read_results),
    )


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


def _parsed_results(read_results: ReadResults, stage: str) -> Mapping[int, Json]:
    return {rank: json.loads(text) for rank, text in read_results(stage).items()}


def failure_of(report: RunReport, *, signal: int | None) -> RunFailed | RunCancelled | None:
    """Return what `Executor.run` raises for the report of a run that did not succeed.

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
    failed = RunFailed(f"job {report.job!r} failed: {report.reason}", _failures(report))
    failed.report = report
    return failed


def _failures(report: RunReport) -> list[RankFailure]:
    """Return one failure per stage and cause."""
    causes: dict[tuple[str, str], list[GivenUp]] = {}
    for ended in report.given_up:
        last = ended.last
        cause = ended.reason if last is None or last.rank is None else str(last.fault)
        if last is not None and last.rank is None:  # of a gang: say also what it was lost for
            said = last.fault.message.strip().partition("\n")[0]
            cause = cause if said in cause else f"{cause}: {said}"
        causes.setdefault((ended.stage, cause), []).append(ended)
    return [
        RankFailure(
            stage,
            sorted(rank for each in ended for piece in each.ranks for rank in piece),
            cause,
            ended[0].last.fault.traceback or ended[0].last.log_tail if ended[0].last else "",
        )
        for (stage, cause), ended in causes.items()
    ] or [RankFailure(next(iter(report.stages)), (), report.reason)]
