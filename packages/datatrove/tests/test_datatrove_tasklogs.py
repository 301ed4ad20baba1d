"""What a killed rank leaves becomes its log, and never replaces that of a later attempt."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import fsspec
import pytest
from datatrove.io import DataFolder

from thornback.datatrove.backlog import Backlog
from thornback.datatrove.ranklog import NOT_WRITTEN
from thornback.datatrove.slices import MAX_BYTES, read_slice
from thornback.datatrove.tasklogs import TaskLogs, last_line, left_no_log
from thornback.executor import AttemptReport, GivenUp, Observer, RunReport
from thornback.executor.results import Results, packed
from thornback.faults import Fault, FaultKind, Origin


def fault(**more: Any) -> Fault:
    fields: dict[str, Any] = {
        "kind": FaultKind.WORKER_CRASH,
        "origin": Origin.PROCESS,
        "rule": "r",
        "error_type": "thornback.pool.RankProcessDied",
        "message": "rank process 5 was killed by SIGKILL (signal 9)\nmore",
        "facts": {"signal": 9},
    }
    return Fault(**{**fields, **more})


RAISED = fault(kind=FaultKind.APPLICATION, origin=Origin.RANK, facts={})


def death(rank: int | None = 3, **more: Any) -> AttemptReport:
    fields: dict[str, Any] = {
        "stage": "s",
        "rank": rank,
        "attempt": 1,
        "epoch": "000001.000000004",
        "gang": 0,
        "node": "n1",
        "fault": fault(),
        "verdict": "retry 1 of 3",
        "retried": True,
        "ran_s": 2.04,
        "log_tail": "one\ntwo",
    }
    return AttemptReport(**{**fields, **more})


def report(*given_up: GivenUp) -> RunReport:
    return RunReport(
        job="j",
        state="failed",
        reason="",
        state_url="",
        term=1,
        backend="",
        stages={},
        attempts=(),
        seconds=1.0,
        given_up=given_up,
        read_results=lambda stage: Results(packed({}, (), 0)),
    )


class Watched:
    """A watcher of one stage whose logging directory is here."""

    def __init__(self, folder: DataFolder) -> None:
        self.folder = folder
        self.logs = TaskLogs({"s": folder})

    def failed(self, attempt: AttemptReport) -> None:
        """Tell it, and wait until all is written."""
        self.logs.failed(attempt)
        self.settle()

    def settle(self) -> None:
        done = threading.Event()
        self.logs._backlog.put("settle", done.set)
        assert done.wait(10)
        deadline = threading.Event()
        while self.logs._backlog._busy or self.logs._backlog._waiting:
            deadline.wait(0.001)

    def log(self, rank: int = 3) -> str | None:
        name = f"logs/task_{rank:05d}.log"
        text: str | None = self.folder.read_text(name) if self.folder.exists(name) else None
        return text


@pytest.fixture(params=["file", "memory"])
def watched(request: pytest.FixtureRequest, tmp_path: Path) -> Watched:
    if request.param == "file":
        return Watched(DataFolder(str(tmp_path)))
    return Watched(DataFolder(f"memory://{tmp_path.name}"))


def test_it_is_an_observer() -> None:
    watcher: Observer = TaskLogs({})
    watcher.failed(death())
    watcher.finished(report())


def test_the_last_lines_are_written_at_once_with_what_happened(watched: Watched) -> None:
    watched.failed(death())
    assert watched.log() == "one\ntwo\n" + last_line(death())
    assert last_line(death()) == (
        "thornback: attempt 1 of rank 3 (epoch 000001.000000004, node n1) ended after 2.0 s: "
        "WORKER_CRASH, signal 9, rank process 5 was killed by SIGKILL (signal 9); it is tried "
        "again: retry 1 of 3\n"
    )
    assert "it is not tried again" in last_line(death(retried=False))


def test_the_log_of_a_later_attempt_is_not_replaced_by_a_late_thread(watched: Watched) -> None:
    with watched.folder.open("logs/task_00003.log", "w") as file:
        file.write("of attempt 2")
    watched.failed(death())
    assert watched.log() == "of attempt 2"


def test_a_rank_that_is_complete_gets_no_log_of_an_attempt_that_failed(watched: Watched) -> None:
    watched.folder.open("completions/00003", "w").close()
    watched.failed(death())
    assert watched.log() is None


def test_of_several_deaths_the_last_is_told_unless_an_attempt_wrote_between(
    watched: Watched,
) -> None:
    watched.failed(death())
    again = death(attempt=2, epoch="000001.000000009", log_tail="three\n")
    watched.failed(again)
    assert watched.log() == "three\n" + last_line(again)
    with watched.folder.open("logs/task_00003.log", "w") as file:
        file.write("of attempt 3")
    watched.failed(attrs.evolve(again, attempt=3))
    assert watched.log() == "of attempt 3"


def test_the_last_attempt_of_a_rank_replaces_whatever_is_there(watched: Watched) -> None:
    with watched.folder.open("logs/task_00003.log", "w") as file:
        file.write("of an earlier run")
    last = death(retried=False)
    watched.failed(last)
    assert watched.log() == "one\ntwo\n" + last_line(last)


def test_in_the_end_ranks_that_were_given_up_get_all_that_the_state_has(
    watched: Watched, tmp_path: Path
) -> None:
    shipped = tmp_path / "0-slot0.log"
    shipped.write_bytes(b"before\nzero\n\0\0\0one\ntwo\nafter\n")
    start, end = len("before\n"), len("before\nzero\n\0\0\0one\ntwo\n")
    kept = {"log_url": str(shipped), "log_slice": (start, end)}
    given_up, succeeds = death(3, **kept), death(4, **kept)
    at_once = death(5, retried=False, log_url=str(tmp_path / "none"))
    for attempt in (given_up, succeeds, at_once):
        watched.failed(attempt)
    stage = GivenUp(stage="s", ranks=(range(0, 4), range(7, 10**9)), reason="stopped")
    watched.logs.finished(report(stage, attrs.evolve(stage, stage="other", ranks=(range(9),))))
    watched.logs.close()
    assert watched.log(3) == "zero\none\ntwo\n" + last_line(given_up)
    assert watched.log(4) == "one\ntwo\n" + last_line(succeeds)
    assert watched.log(5) == "one\ntwo\n" + last_line(at_once)  # the state has nothing


def test_a_rank_that_wrote_its_log_itself_is_left_alone(watched: Watched) -> None:
    watched.failed(death())
    with watched.folder.open("logs/task_00003.log", "w") as file:
        file.write("of attempt 2, which raised")
    watched.failed(death(fault=RAISED, retried=False))
    watched.failed(death(rank=None))
    watched.failed(death(stage="other"))
    watched.logs.finished(report(GivenUp(stage="s", ranks=(range(3, 4),), reason="raised")))
    watched.logs.close()
    assert watched.log() == "of attempt 2, which raised"


def test_who_left_no_log() -> None:
    assert left_no_log(death())
    assert not left_no_log(death(fault=RAISED))
    assert left_no_log(death(fault=fault(origin=Origin.RANK, phase="setup")))
    assert left_no_log(
        death(fault=RAISED, log_tail=f"x\n{NOT_WRITTEN} to logs/task_00003.log: ...")
    )


def test_a_store_that_fails_is_told_once_and_fails_nobody(
    watched: Watched, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken:
        def __getattr__(self, name: str) -> Any:
            raise OSError("out of order")

    logs = TaskLogs({"s": Broken()})
    for rank in range(5):
        logs.failed(death(rank))
    logs.close()
    assert len(caplog.records) == 1
    assert "out of order" in caplog.text


# -- slices ----------------------------------------------------------------------------------------


def test_a_slice_of_a_folder_of_pieces(tmp_path: Path) -> None:
    fs = fsspec.filesystem("memory")
    folder = f"/{tmp_path.name}/0-slot0.log"
    for offset, data in ((0, b"01234"), (5, b"56789"), (10, b"abcde"), (20, b"klmno")):
        fs.pipe_file(f"{folder}/{offset:012d}.log", data)
    url = f"memory:/{folder}/"
    assert read_slice(url, (0, 25)) == b"0123456789abcdeklmno"
    assert read_slice(url, (3, 12)) == b"3456789ab"
    assert read_slice(url, (6, 7)) == b"6"
    assert read_slice(url, (12, 22)) == b"cdekl"
    assert read_slice(url, (16, 18)) == b""
    assert read_slice(url, (12, 2**53 - 1)) == read_slice(url, (12, 25)), "to the end"
    with pytest.raises(FileNotFoundError):
        read_slice("memory://none/", (0, 5))


def test_of_a_slice_that_is_long_the_end_is_read(tmp_path: Path) -> None:
    file = tmp_path / "log"
    file.write_bytes(b"x" * 10 + b"y" * MAX_BYTES)
    assert read_slice(str(file), (0, 10 + MAX_BYTES)) == b"y" * MAX_BYTES
    assert read_slice(str(file), (10 + MAX_BYTES - 2, 2**53 - 1)) == b"yy", "to the end"
    assert read_slice(str(file), (10 + MAX_BYTES + 5, 2**53 - 1)) == b"", "nothing came"


# -- the backlog -----------------------------------------------------------------------------------


def blocking() -> tuple[threading.Event, threading.Event, Callable[[], object]]:
    began, gate = threading.Event(), threading.Event()

    def job() -> None:
        began.set()
        assert gate.wait(10)

    return began, gate, job


def test_jobs_of_one_key_run_one_at_a_time_and_the_newest_replaces_those_that_wait() -> None:
    backlog, ran = Backlog("x", threads=3), list[str]()
    began, gate, job = blocking()
    backlog.put("k", job)
    assert began.wait(10)
    backlog.put("k", lambda: ran.append("old"))
    backlog.put("k", lambda: ran.append("new"))
    other = threading.Event()
    backlog.put("other", other.set)
    assert other.wait(10)
    assert ran == []
    gate.set()
    assert backlog.close(timeout_s=10)
    assert ran == ["new"]


def test_what_hangs_holds_nobody_up_at_the_end_and_what_waits_is_dropped() -> None:
    backlog, ran = Backlog("x", threads=1, most=2), list[str]()
    began, gate, job = blocking()
    backlog.put("k", job)
    assert began.wait(10)
    for key in ("a", "b", "too many"):
        backlog.put(key, lambda: ran.append("never"))
    assert backlog.dropped == 1
    assert not backlog.close(timeout_s=0.01)
    assert backlog.dropped == 3
    backlog.put("after", lambda: ran.append("never"))
    gate.set()
    assert backlog.close(timeout_s=10)
    assert (backlog.dropped, ran) == (4, [])
