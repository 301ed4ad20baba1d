"""What is said of a run while it goes on and at its end, and when statistics are merged."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from datatrove.utils.logging import logger
from datatrove.utils.stats import PipelineStats

from thornback.datatrove import RayPipelineExecutor, stagestats
from thornback.datatrove.announcer import Announcer
from thornback.datatrove.directory import JournalAfterOpen, warn_of_memory
from thornback.datatrove.failures import failure_of
from thornback.datatrove.stagestats import StatsKeeper
from thornback.executor import (
    AttemptReport,
    GivenUp,
    JournalError,
    RunReport,
    StageProgress,
)
from thornback.executor.journal.testing import FakeJournal
from thornback.executor.ports import Identity
from thornback.executor.results import Results, packed
from thornback.faults import Fault, FaultKind, Origin, StopReason


@pytest.fixture
def told() -> Iterator[list[str]]:
    lines: list[str] = []
    sink = logger.add(lambda message: lines.append(str(message).rstrip()), format="{message}")
    yield lines
    logger.remove(sink)


class Clock:
    now = 0.0

    def monotonic(self) -> float:
        return self.now


def progress(done: int, **counts: Any) -> tuple[StageProgress, ...]:
    return (StageProgress(name="a", total=10, done=done, **counts),)


def test_progress_is_said_now_and_then_and_at_the_end(told: list[str]) -> None:
    clock = Clock()
    announcer = Announcer(10.0, clock.monotonic)
    announcer.progressed(progress(0))
    announcer.progressed(progress(1))
    clock.now = 5.0
    announcer.progressed(progress(2))
    assert told == []
    clock.now = 10.0
    announcer.progressed(progress(3, running=2))
    announcer.progressed(progress(4))
    announcer.progressed(progress(8, failed=1, skipped=1))
    announcer.progressed(progress(8, failed=1, skipped=1))
    assert told == [
        "a: 3/10 tasks completed, 2 running.",
        "a: 8/10 tasks completed, 1 failed, 1 not run.",
    ]


def test_what_earlier_runs_did_is_no_news(told: list[str]) -> None:
    announcer = Announcer(0.0, Clock().monotonic)
    announcer.progressed(progress(10, recorded_before=10))
    assert told == []


def fault(kind: FaultKind = FaultKind.APPLICATION) -> Fault:
    return Fault(
        kind=kind, origin=Origin.RANK, rule="r", error_type="ValueError", message="it is bad"
    )


def attempt(rank: int | None = 3, kind: FaultKind = FaultKind.APPLICATION, **more: Any) -> Any:
    fields = {
        "stage": "a",
        "rank": rank,
        "attempt": 2,
        "epoch": "",
        "gang": 1,
        "node": "n1",
        "fault": fault(kind),
        "verdict": "its budget is used up",
        "retried": False,
    }
    return AttemptReport(**{**fields, **more})


def test_every_failed_attempt_is_said_with_its_fault_and_what_follows(told: list[str]) -> None:
    announcer = Announcer()
    announcer.failed(attempt())
    announcer.failed(attempt(retried=True))
    announcer.failed(attempt(rank=None))
    assert told[0].startswith("a: rank=3 (attempt 2) failed and is given up on node n1: ")
    assert "it is bad" in told[0]
    assert "(its budget is used up)" in told[0]
    assert "failed and will be tried again" in told[1]
    assert told[2].startswith("a: workers lost on node n1: ")


def test_of_many_failed_attempts_at_a_time_the_first_are_said_and_the_others_counted(
    told: list[str],
) -> None:
    clock = Clock()
    announcer = Announcer(10.0, clock.monotonic)
    for rank in range(30):
        announcer.failed(attempt(rank))
    assert len(told) == 20
    clock.now = 10.0
    for rank in range(21):
        announcer.failed(attempt(rank))
    assert told[20] == "10 more attempts failed; logs/ has what they wrote"
    announcer.finished(failed(FaultKind.APPLICATION))
    assert told[41] == "1 more attempts failed; logs/ has what they wrote"


def failed(kind: FaultKind, ranks: tuple[int, ...] = (3,)) -> RunReport:
    stages = {
        "a": StageProgress(name="a", total=20, done=7, failed=len(ranks)),
        "b": StageProgress(name="b", total=4, skipped=4),
    }
    return RunReport(
        job="j",
        state="failed",
        reason="ranks failed",
        state_url="/s",
        term=1,
        backend="here",
        stages=stages,
        attempts=(),
        seconds=1.0,
        given_up=tuple(
            GivenUp(
                stage="a",
                ranks=(range(rank, rank + 1),),
                reason="r",
                stop=StopReason.NO_RETRIES,
                last=attempt(rank, kind=kind),
            )
            for rank in ranks
        ),
        read_results=lambda stage: Results(packed({}, (), 0)),
    )


def test_defect_14_a_failure_names_ranks_cause_log_and_what_was_not_run() -> None:
    report = failed(FaultKind.APPLICATION, tuple(range(3, 14)))
    error = failure_of(report, {"a": "/dir/logs"}, {"a": 1})
    assert error.report is report
    assert error.text.splitlines() == [
        "Job 'j' failed: 11 of 20 tasks of stage 'a' failed: ValueError: it is bad",
        "  11 tasks of stage 'a' (3-13): ValueError: it is bad",
        "    log: /dir/logs/task_00003.log",
        "stage 'a': 7 of 20 done, 11 failed, 2 open",
        "stage 'b': 0 of 4 done, 4 not run",
        "what is complete stays so; run again to go on from there",
    ]


@pytest.mark.parametrize(
    ("kind", "nodes", "says"),
    [
        (FaultKind.UNSCHEDULABLE, 2, 'strategy="PACK"'),
        (FaultKind.UNSCHEDULABLE, 1, ""),
        (FaultKind.TIMEOUT, 1, "give time= (or timeout_s=) more"),
    ],
)
def test_the_mend_is_named_in_datatroves_words(kind: FaultKind, nodes: int, says: str) -> None:
    text = failure_of(failed(kind), {"a": "/dir/logs"}, {"a": nodes}).text
    assert says in text
    assert bool(says) == (text.count("\n") == 6)


class Merges:
    """Stands in for the merging of statistics."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.gate = threading.Event()
        self.names: list[str] = []

    def __call__(self, name: str, executor: object, read_one: object) -> PipelineStats:
        assert self.gate.wait(10)
        self.names.append(name)
        if self.error is not None:
            raise self.error
        return PipelineStats()


def keeper(settled: list[str], wait_s: float = 10.0) -> StatsKeeper:
    executor = RayPipelineExecutor([], logging_dir="memory://telling")
    return StatsKeeper({"a": executor}, settled.append, wait_s)


def test_statistics_are_merged_once_when_the_last_rank_is_recorded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    merges, settled = Merges(), list[str]()
    monkeypatch.setattr(stagestats, "merge", merges)
    keeps = keeper(settled)
    keeps.progressed(progress(9))
    for _ in range(3):
        keeps.progressed(progress(10))
    assert settled == [], "merging is not waited for"
    merges.gate.set()
    keeps.close()
    assert (merges.names, settled) == (["a"], ["a"])
    assert keeps.merged("a") is not None


def test_a_stage_that_failed_is_settled_and_has_no_statistics(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    merges, settled = Merges(), list[str]()
    monkeypatch.setattr(stagestats, "merge", merges)
    keeps = keeper(settled)
    keeps.progressed(progress(8, failed=1, skipped=1))
    keeps.close()
    assert (merges.names, settled, keeps.merged("a")) == ([], ["a"], None)


def test_a_store_that_refuses_statistics_fails_nothing(
    monkeypatch: pytest.MonkeyPatch, told: list[str]
) -> None:
    merges, settled = Merges(OSError("no room")), list[str]()
    merges.gate.set()
    monkeypatch.setattr(stagestats, "merge", merges)
    keeps = keeper(settled)
    keeps.progressed(progress(10))
    keeps.close()
    assert settled == ["a"]
    assert keeps.merged("a") is None
    assert "a: stats.json could not be written" in "\n".join(told)


def test_a_store_that_hangs_is_not_waited_for_for_ever(
    monkeypatch: pytest.MonkeyPatch, told: list[str]
) -> None:
    merges = Merges()
    monkeypatch.setattr(stagestats, "merge", merges)
    keeps = keeper([], wait_s=0.01)
    keeps.progressed(progress(10))
    keeps.close()
    merges.gate.set()
    assert "stats.json could not be written in time" in told[0]
    merges.gate.clear()
    keeps = keeper([])
    keeps.progressed(progress(10))
    keeps.close(in_all_s=0.01)
    merges.gate.set()
    assert "stats.json could not be written in time" in told[1]


def test_a_store_that_is_slow_but_answers_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, told: list[str]
) -> None:
    """Each look at the clock is two thirds of what a store may take later, and it has answered."""
    rounds, looks, answers = 5, threading.Semaphore(0), threading.Semaphore(0)
    now_s, left, main = 0.0, 0, threading.current_thread()

    def monotonic() -> float:
        nonlocal now_s, left
        if left and threading.current_thread() is main:
            left -= 1
            now_s += 0.02
            looks.release()
            assert answers.acquire(timeout=10)
        return now_s

    def merge(name: str, executor: object, read_one: Callable[[], None]) -> PipelineStats:
        for _ in range(rounds):
            assert looks.acquire(timeout=10)
            read_one()
            answers.release()
        return PipelineStats()

    monkeypatch.setattr(stagestats, "merge", merge)
    executor = RayPipelineExecutor([], logging_dir="memory://telling")
    keeps = StatsKeeper({"a": executor}, lambda name: None, 0.03, monotonic)
    keeps.progressed(progress(10))
    left = rounds
    keeps.close()
    assert keeps.merged("a") is not None
    assert told == []


async def opened(journal: JournalAfterOpen) -> None:
    await journal.open(Identity(job="j", stages=()), on_mismatch="refuse")


def test_executor_json_is_written_when_the_state_is_claimed_and_not_before() -> None:
    done: list[str] = []

    class Refusing(FakeJournal):
        async def open(self, *args: Any, **kwargs: Any) -> Any:
            assert done == []
            raise JournalError("held")

    with pytest.raises(JournalError, match="held"):
        anyio.run(opened, JournalAfterOpen(Refusing(), lambda: done.append("saved")))
    assert done == []
    anyio.run(opened, JournalAfterOpen(FakeJournal(), lambda: done.append("saved")))
    assert done == ["saved"]


def test_a_store_that_takes_no_executor_json_ends_the_run_before_it_begins() -> None:
    gate = threading.Event()

    def hang() -> None:
        gate.wait(10)

    hanging = JournalAfterOpen(FakeJournal(), hang, save_s=0.05)
    with pytest.raises(JournalError, match=r"executor.json could not be written within"):
        anyio.run(opened, hanging)
    gate.set()

    def refused() -> None:
        raise PermissionError("read only")

    with pytest.raises(PermissionError, match="read only"):
        anyio.run(opened, JournalAfterOpen(FakeJournal(), refused))


@pytest.mark.parametrize(("folder", "warns"), [("memory://telling/logs", True), ("logs", False)])
def test_logs_in_memory_are_warned_of(
    folder: str, warns: bool, told: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    warn_of_memory(RayPipelineExecutor([], logging_dir=folder))
    assert any("the logs of tasks cannot be kept" in line for line in told) is warns
