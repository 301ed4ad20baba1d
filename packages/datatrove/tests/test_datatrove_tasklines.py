"""Which lines of tasks are printed where the driver runs: as datatrove's own console would."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import pytest
from datatrove.utils.logging import logger

from thornback.datatrove.ranklog import LogDesk, RankLog
from thornback.datatrove.tasklines import TaskLines


def logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a task leaves on stderr."""
    stderr = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)
    desk, log = LogDesk(), RankLog()
    desk.begin(log, 0, -1)
    logger.info("of a step\nsecond line\n\nfourth line")
    stderr.write("printed\n")
    logger.error("wrong\nsecond of error")
    logger.debug("detail\nsecond of detail")
    stderr.write("printed again\n")
    desk.end()
    logger.remove()
    assert os.pread(log.descriptor, 1 << 16, 0).count(b"\n  |") == 0, "only stderr is marked"
    log.close()
    return stderr.getvalue().splitlines()


@pytest.mark.parametrize(
    ("first", "rank", "expected"),
    [
        ({}, 0, ["printed", "wrong", "second of error", "printed again"]),
        ({"other": 1}, 0, ["printed", "wrong", "second of error", "printed again"]),
        ({"a": 2}, 3, ["printed", "wrong", "second of error", "printed again"]),
        (
            {"a": 2},
            4,
            [
                "Launching pipeline for rank=0",
                "of a step",
                "second line",
                "",
                "fourth line",
                "printed",
                "wrong",
                "second of error",
                "printed again",
            ],
        ),
    ],
)
def test_tasklines_print_errors_and_with_log_first_the_first_task(
    first: dict[str, int],
    rank: int,
    expected: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    left_out = TaskLines(first)
    lines = logged(tmp_path, monkeypatch)
    kept = [line.rstrip() for line in lines if not left_out("a", rank, line.rstrip())]
    assert [line.split(" - ")[-1].removeprefix("  |").strip() for line in kept] == expected


def test_tasklines_leave_out_the_error_with_which_a_task_fails() -> None:
    """The driver tells it, once for all tasks."""
    left_out = TaskLines({})
    head = "2026-12-01 05:22:16.978 | ERROR    | {}:_logged:140 - bad"
    assert left_out("a", 1, head.format("thornback.datatrove.rank"))
    assert left_out("a", 1, "  | Traceback (most recent call last):")
    assert not left_out("a", 1, head.format("my.step"))
    assert not left_out("a", 1, "  | Traceback (most recent call last):")
