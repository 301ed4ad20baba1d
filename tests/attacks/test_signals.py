"""Signals to a driver, and how a script ends that lets the errors of `run` pass: exit code and
standard error, as a shell and a user see them."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from thornback.executor import Executor, Job, JournalError, Stage
from thornback.executor.ports import Journal

BOUND_S = 60
JOB = """
import os, time
from thornback.executor import Executor, Job, Stage

def rank(ctx):
    {rank}

if __name__ == "__main__":
    job = Job("job", [Stage("stage", rank, ranks=2)])
    Executor.on_local(state=os.environ["STATE"], cpus=1).run(job)
"""
HANGS = "open(os.environ['BEGUN'], 'w').write('x'); time.sleep(600)"
DEAF = """
import anyio
from thornback.executor.executor import _RemoteCancel

class Driver:
    def cancel(self, reason, *, kill):
        print("asked", flush=True)

async def main():
    async with anyio.create_task_group() as group:
        group.start_soon(_RemoteCancel().watch_signals, Driver())
        await anyio.wait_all_tasks_blocked()
        print("listening", flush=True)

anyio.run(main)
"""
"""A driver that takes long to end in order."""


@contextmanager
def started(folder: Path, rank: str) -> Iterator[subprocess.Popen[str]]:
    """A job in a process group of its own, whose first rank has begun."""
    (folder / "job.py").write_text(JOB.format(rank=rank))
    begun = folder / "begun"
    os.mkfifo(begun)
    descriptor = os.open(begun, os.O_RDWR | os.O_NONBLOCK)
    process = subprocess.Popen(
        [sys.executable, str(folder / "job.py")],
        env={**os.environ, "STATE": str(folder / "state"), "BEGUN": str(begun)},
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    )
    try:
        assert select.select([descriptor], [], [], BOUND_S)[0], "the rank has not begun"
        yield process
    finally:
        os.close(descriptor)
        process.kill()
        process.communicate()


def frames_of_ours(stderr: str) -> Sequence[str]:
    return [line for line in stderr.splitlines() if "File " in line and "/thornback/" in line]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_script_ended_by_a_signal_exits_with_its_code_and_no_traceback(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    with started(tmp_path, HANGS) as process:
        process.send_signal(number)
        stderr = process.communicate(timeout=BOUND_S)[1]
    assert process.returncode == code, stderr
    assert f"thornback: {number.name}: ending the run" in stderr
    assert "Traceback" not in stderr


def test_script_that_gets_two_sigterms_at_once_ends_in_order(tmp_path: Path) -> None:
    """As from GNU `timeout`: one to the process, one to its group."""
    with started(tmp_path, HANGS) as process:
        process.send_signal(signal.SIGTERM)
        os.killpg(process.pid, signal.SIGTERM)
        stderr = process.communicate(timeout=BOUND_S)[1]
    assert process.returncode == 143, stderr
    assert "ended at once" not in stderr


@pytest.mark.parametrize(("number", "pause_s"), [(signal.SIGINT, 0.2), (signal.SIGTERM, 1.2)])
def test_second_signal_on_purpose_ends_the_script_at_once(
    number: signal.Signals, pause_s: float
) -> None:
    command = [sys.executable, "-c", DEAF]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            assert process.stdout.readline() == "listening\n"
            process.send_signal(number)
            assert process.stdout.readline() == "asked\n"
            time.sleep(pause_s)  # the subject of the test: how long a person takes
            process.send_signal(number)
            stderr = process.communicate(timeout=BOUND_S)[1]
        finally:
            process.kill()
    assert process.returncode == 128 + number
    assert stderr.endswith("thornback: ended at once\n")


def run_to_the_end(folder: Path, rank: str, state: str) -> subprocess.CompletedProcess[str]:
    (folder / "job.py").write_text(JOB.format(rank=rank))
    return subprocess.run(
        [sys.executable, str(folder / "job.py")],
        env={**os.environ, "STATE": state},
        capture_output=True,
        text=True,
        timeout=BOUND_S,
        check=False,
    )


def test_script_that_fails_exits_with_1_and_one_frame_of_ours(tmp_path: Path) -> None:
    ended = run_to_the_end(tmp_path, "raise ValueError('bad rank')", str(tmp_path / "state"))
    assert ended.returncode == 1
    assert "ValueError: bad rank" in ended.stderr
    assert "During handling of the above exception" not in ended.stderr
    assert len(frames_of_ours(ended.stderr.partition("+-+---")[0])) == 1, ended.stderr


class Refuses:
    """A journal that cannot be opened."""

    async def __aenter__(self) -> Journal:
        raise JournalError("the state is out of order")

    async def __aexit__(self, *_: object) -> None:
        raise AssertionError("it was not entered")


def test_error_raised_by_run_is_not_printed_below_an_unrelated_one(tmp_path: Path) -> None:
    executor = Executor.on_local(state=str(tmp_path / "state"), journal=Refuses)
    with pytest.raises(JournalError) as caught:
        executor.run(Job("job", [Stage("stage", print, ranks=1)]))
    printed = "".join(traceback.format_exception(caught.value))
    assert "During handling of the above exception" not in printed
