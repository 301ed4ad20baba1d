"""What the end of a driver becomes: a report, or an exception that carries it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from functools import partial

from thornback.executor.driver import Driver
from thornback.executor.errors import RankFailure, RunCancelled, RunFailed
from thornback.executor.journal.filejournal import read_run
from thornback.executor.logs import LogStore
from thornback.executor.plan import RunPlan
from thornback.executor.ports import Json, Opened
from thornback.executor.report import GivenUp, RunInfo, RunReport


def make_report(
    plan: RunPlan,
    driver: Driver,
    opened: Opened,
    info: RunInfo,
    seconds: float,
    logs: LogStore | None,
) -> RunReport:
    """Return the report of a driver that has ended by itself."""
    end = driver.end
    assert end is not None  # Driver.run returns only then
    url = plan.settings.state_url
    names = [stage.name for stage in plan.stages]  # the scheduler knows stages by number
    return RunReport(
        job=plan.job.name,
        state=end.state.value,
        reason=re.sub(r"\bstage (\d+)", partial(_named, names), end.reason),
        state_url=url,
        term=opened.term,
        backend=info.backend,
        stages={stage.name: stage for stage in driver.progress()},
        attempts=tuple(driver.certifier.chronicle.attempts),
        given_up=driver.certifier.chronicle.all_given_up(),
        seconds=seconds,
        unconfirmed_gangs=tuple(driver.unconfirmed),
        logs_url="" if logs is None else logs.url,
        logs_lost_bytes=0 if logs is None else logs.lost,
        read_results=partial(_read_results, url),
    )


def _named(names: Sequence[str], match: re.Match[str]) -> str:
    number = int(match[1])
    return f"stage {names[number]!r}" if number < len(names) else match[0]


def _read_results(url: str, stage: str) -> Mapping[int, Json]:
    return {rank: json.loads(text) for rank, text in read_run(url).results(stage).items()}


def checked(report: RunReport, *, check: bool) -> RunReport:
    """Return the report; with `check` only of a run that succeeded.

    Raises:
        RunFailed, RunCancelled: as `Executor.run`.
    """
    if not check or report.state == "succeeded":
        return report
    if report.state == "cancelled":
        raise RunCancelled(report)
    failed = RunFailed(f"job {report.job!r} failed: {report.reason}", _failures(report))
    failed.report = report
    raise failed


def _failures(report: RunReport) -> list[RankFailure]:
    """Return one failure per stage and cause."""
    causes: dict[tuple[str, str], list[GivenUp]] = {}
    for ended in report.given_up:
        cause = ended.reason if ended.last is None else str(ended.last.fault)
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
