"""Rule sets that a user switches on, in whole runs with worker processes: what user code raises
counts as the set says, with it; and is the code's own error without it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.integration.pipelines import make
from thornback.executor import Executor, Job, RankContext, RunFailed, RunReport, Stage
from thornback.faults import NETWORK_RULES, THROTTLED_RULES, Classifier, FaultKind, StopReason

PATIENT = Classifier(user_rules=(*THROTTLED_RULES, *NETWORK_RULES))
SOON = 9979
"""A seed by which rank 0 waits 0.2 s before each of its first retries: else up to 1, 2 and 4 s."""


def cut(times: int) -> Callable[[RankContext], int]:
    def fn(ctx: RankContext) -> int:
        import requests

        if ctx.attempt <= times:
            raise requests.ConnectionError("Connection aborted.")
        return ctx.attempt

    return fn


def throttled(retry_after: str) -> Callable[[RankContext], int]:
    def fn(ctx: RankContext) -> int:
        import requests

        if ctx.attempt == 1:
            response = requests.Response()
            response.status_code = 429
            response.headers["Retry-After"] = retry_after
            response.raise_for_status()
        return ctx.attempt

    return fn


def run(folder: Path, stage: Stage, **options: Any) -> RunReport:
    executor = Executor.on_local(state=str(folder / "state"), cpus=2, seed=SOON, **options)
    return executor.run(Job("j", [stage]), check=False)


def test_a_connection_that_fails_is_tried_again_with_the_set_and_charged(tmp_path: Path) -> None:
    report = run(tmp_path, Stage("a", cut(2)), classifier=PATIENT)
    assert report.state == "succeeded", report.reason
    assert report.results("a") == {0: 3}, "each of the two failures is an attempt"
    assert [(a.fault.kind, a.fault.rule, a.retried) for a in report.attempts] == [
        (FaultKind.NETWORK, "network.names", True)
    ] * 2
    assert "retry 2 of 10" in report.attempts[1].verdict


def test_a_server_that_asks_for_patience_gets_it(tmp_path: Path) -> None:
    report = run(tmp_path, Stage("a", throttled("2")), classifier=PATIENT)
    assert report.results("a") == {0: 2}
    (attempt,) = report.attempts
    assert attempt.fault.kind is FaultKind.THROTTLED
    assert attempt.fault.facts["retry_after_s"] == 2.0
    assert report.seconds >= 2.0, "by itself it would have waited 0.2 s"


def test_the_cap_of_a_stage_holds_for_the_sets_too(tmp_path: Path) -> None:
    report = run(tmp_path, Stage("a", cut(9), max_retries=1), classifier=PATIENT)
    assert [a.retried for a in report.attempts] == [True, False]
    assert {a.fault.kind for a in report.attempts} == {FaultKind.NETWORK}


def test_without_bounds_what_is_retried_at_all_is_retried_for_ever(tmp_path: Path) -> None:
    def fn(ctx: RankContext) -> int:
        if ctx.attempt <= 3:
            error: Any = ValueError("not yet")
            error.retry_after_s = 0.01
            raise error
        return ctx.attempt

    def report(name: str, most: Any) -> RunReport:
        return run(tmp_path / name, Stage("a", fn, retries=1, max_retries=most))

    assert report("unbounded", "unbounded").results("a") == {0: 4}
    assert report("bounded", None).given_up[0].stop is StopReason.BUDGET


def test_a_bug_is_not_tried_again_whatever_the_set(tmp_path: Path) -> None:
    def bug(ctx: RankContext) -> None:
        raise KeyError("url")

    (attempt,) = run(tmp_path, Stage("a", bug), classifier=PATIENT).attempts
    assert (attempt.fault.kind, attempt.retried) == (FaultKind.APPLICATION, False)


def test_a_bug_in_a_handler_of_connection_errors_is_not_retried(tmp_path: Path) -> None:
    def bug(ctx: RankContext) -> None:
        urls: dict[str, str] = {}
        try:
            raise ConnectionResetError("gone")
        except ConnectionResetError:
            urls["mirror"].strip()

    (attempt,) = run(tmp_path, Stage("a", bug), classifier=PATIENT).attempts
    assert (attempt.fault.kind, attempt.retried) == (FaultKind.APPLICATION, False)


def test_a_broken_disk_is_retried_without_a_set(tmp_path: Path) -> None:
    def read(ctx: RankContext) -> int:
        if ctx.attempt == 1:
            raise OSError(5, "Input/output error", "/data/part")
        return ctx.attempt

    report = run(tmp_path, Stage("a", read))
    assert report.results("a"), report.reason
    assert report.attempts[0].fault.kind is FaultKind.RESOURCE


@pytest.mark.parametrize("fn", [cut(1), throttled("0.1")], ids=["cut", "throttled"])
def test_without_the_sets_these_are_errors_of_the_code(
    tmp_path: Path, fn: Callable[[RankContext], int]
) -> None:
    (attempt,) = run(tmp_path, Stage("a", fn)).attempts
    assert (attempt.fault.kind, attempt.retried) == (FaultKind.APPLICATION, False)


def asks_once(folder: Path) -> Callable[..., Any]:
    def fetch(data: Any, rank: int = 0, world_size: int = 1) -> Any:
        import requests

        if not (folder / "asked").exists():
            (folder / "asked").touch()
            raise requests.ConnectionError("Connection aborted.")
        yield from ()

    return fetch


def test_a_step_of_a_pipeline_is_tried_again_with_the_set(tmp_path: Path) -> None:
    executor = make(tmp_path, "a", pipeline=[asks_once(tmp_path)], tasks=1, classifier=PATIENT)
    executor.run()
    assert executor.get_incomplete_ranks() == []


def test_a_step_of_a_pipeline_fails_its_rank_without_the_set(tmp_path: Path) -> None:
    executor = make(tmp_path, "a", pipeline=[asks_once(tmp_path)], tasks=1)
    with pytest.raises(RunFailed, match="ConnectionError: Connection aborted") as raised:
        executor.run()
    (attempt,) = raised.value.report.attempts
    assert attempt.fault.kind is FaultKind.APPLICATION
    assert executor.get_incomplete_ranks() == [0]
