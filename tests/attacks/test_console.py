"""What a user's terminal shows of a script whose ranks print, fail, flood, or attack it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

BOUND_S = 60
JOB = """
import os
import sys
from thornback.executor import Executor, Job, Stage

def rank(ctx):
    {body}

if __name__ == "__main__":
    executor = Executor.on_local(state="state", cpus=2, {options})
    executor.run(Job("words", [Stage("clean", rank, ranks={ranks})]))
    print("the end")
"""


def script(folder: Path, body: str, *, ranks: int = 2, options: str = "") -> list[str]:
    lines = body.strip().replace("\n", "\n    ")
    (folder / "job.py").write_text(JOB.format(body=lines, ranks=ranks, options=options))
    return [sys.executable, "job.py"]


def run(folder: Path, command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=BOUND_S, check=False
    )


def test_script_whose_ranks_print_shows_their_lines_on_stderr(tmp_path: Path) -> None:
    body = """
print("hello from", ctx.rank, "\\x1b[2J\\x1b[31mred\\x1b[0m")
print("to stderr, password=hunter2", file=sys.stderr)
sys.stdout.write("without end")
"""
    done = run(tmp_path, script(tmp_path, body))
    assert (done.stdout, done.returncode) == ("the end\n", 0)
    first, *lines = done.stderr.splitlines()
    assert first == (
        f"thornback: job 'words': 2 ranks on this machine; state: {tmp_path}/state (term 1)"
    )
    assert sorted(lines) == sorted(
        f"[clean:{rank}] {text}"
        for rank in range(2)
        for text in (
            f"hello from {rank} \\x1b[2Jred",
            "to stderr, password=***",
            "without end",
        )
    )


def test_script_that_asks_for_quiet_shows_nothing(tmp_path: Path) -> None:
    done = run(tmp_path, script(tmp_path, "print('hello')", options="quiet=True"))
    assert (done.stdout, done.stderr, done.returncode) == ("the end\n", "", 0)


def test_script_with_a_bug_in_all_ranks_prints_it_once_and_the_summary_last(
    tmp_path: Path,
) -> None:
    body = "return undefined + ctx.rank  # a bug"
    done = run(tmp_path, script(tmp_path, body, ranks=2000))
    lines = done.stderr.splitlines()
    assert done.returncode == 1
    assert len(lines) <= 30
    told = "\n".join(lines)
    assert re.search(
        r"RunFailed: Job 'words' failed: \d+ of 2,000 ranks of stage 'clean' failed: "
        r"NameError: name 'undefined' is not defined\n",
        told,
    )
    assert told.count(f'File "{tmp_path}/job.py", line 7, in rank') == 1
    assert "return undefined + ctx.rank  # a bug" in told
    assert "(stopped: all ranks failed with the same error)" in lines[-4]
    assert lines[-2].endswith(
        f"state: {tmp_path}/state (run the same job again to go on from there)"
    )


def test_script_whose_stderr_is_closed_runs_to_its_end(tmp_path: Path) -> None:
    command = script(tmp_path, "print('x' * 100_000)")
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=writer, timeout=BOUND_S, check=False
    )
    os.close(writer)
    assert (done.stdout, done.returncode) == (b"the end\n", 0)


def test_script_whose_stderr_nobody_reads_runs_to_its_end(tmp_path: Path) -> None:
    body = "for number in range(3000): print('x' * 500)"
    command = script(tmp_path, body, ranks=20)
    reader, writer = os.pipe()
    done = subprocess.run(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=writer, timeout=BOUND_S, check=False
    )
    os.close(writer)
    os.close(reader)
    assert (done.stdout, done.returncode) == (b"the end\n", 0)
