"""Why work is given up, as a word: in the report, for observers, and in the record of the state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from thornback.executor import AttemptReport, Executor, Job, RankContext, Stage, read_run
from thornback.faults import Standing, StopReason


class Told:
    """An observer that keeps what it is told of failures."""

    def __init__(self) -> None:
        self.attempts: list[AttemptReport] = []

    def started(self, info: object, /) -> None: ...

    def progressed(self, stages: object, /) -> None: ...

    def failed(self, attempt: AttemptReport, /) -> None:
        self.attempts.append(attempt)

    def finished(self, report: object, /) -> None: ...


def bug(ctx: RankContext) -> None:
    raise KeyError("url")


def hopeless(ctx: RankContext) -> None:
    error: Any = ValueError("the file is broken")
    error.non_retryable = True
    raise error


def dies(ctx: RankContext) -> None:
    import os

    os._exit(7)


def slow(ctx: RankContext) -> None:
    import time

    time.sleep(60)


STAGES = {
    StopReason.NO_RETRIES: Stage("a", bug),
    StopReason.FINAL: Stage("a", hopeless, retries=5),
    StopReason.UNDECIDED: Stage("a", dies),
    StopReason.BUDGET: Stage("a", slow, timeout_s=0.5),
    StopReason.UNSCHEDULABLE: Stage("a", bug, cpus=99),
}


@pytest.mark.parametrize("stop", STAGES, ids=[stop.value for stop in STAGES])
def test_report_observers_and_record_agree_on_why_a_rank_was_given_up(
    tmp_path: Path, stop: StopReason
) -> None:
    told = Told()
    url = str(tmp_path / "state")
    executor = Executor.on_local(state=url, cpus=2, observers=[told])
    report = executor.run(Job("j", [STAGES[stop]]), check=False)
    (ended,) = report.given_up
    assert ended.stop is stop, ended.reason
    assert told.attempts[-1].stop is stop
    assert ended.last == told.attempts[-1]
    assert all(each.stop is None for each in told.attempts[:-1])
    (paper,) = read_run(url).certificates["a"]
    assert paper.why["stop"] == stop.value
    assert paper.why["evidence"] == [each.as_json() for each in ended.evidence]
    assert len(ended.evidence) == len(told.attempts)
    weighed = Standing.UNDECIDED if stop is StopReason.UNDECIDED else None
    assert {fault.standing for fault in ended.evidence} == {weighed}
    assert {fault.kind for fault in ended.evidence} == {told.attempts[-1].fault.kind}
    assert paper.why["reason"] == ended.reason
