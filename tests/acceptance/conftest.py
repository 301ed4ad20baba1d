"""The demo as a process of its own, read line by line, with a mark by which its descendants are
found: also those that outlive it."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from tests.processes import MARK, assert_none_left


class DemoProcess:
    """`python -m thornback.cli demo ...` in a folder. Standard error goes to the output."""

    def __init__(self, arguments: tuple[str, ...], cwd: Path, environment: Mapping[str, str]):
        self.mark = uuid.uuid4().hex
        self.output = ""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "thornback.cli", "demo", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            cwd=cwd,
            env={**os.environ, **environment, MARK: self.mark},
            start_new_session=True,
        )

    def wait_for(self, pattern: str, *, timeout_s: float) -> re.Match[str]:
        """Return the first match of a line that is printed from now on."""
        deadline = time.monotonic() + timeout_s
        start = len(self.output)
        while self._read(deadline):
            lines = self.output[start : self.output.rfind("\n") + 1]
            if found := re.search(pattern, lines, re.MULTILINE):
                return found
        raise AssertionError(f"no line like {pattern!r} in time:\n{self.output}")

    def finish(self, *, timeout_s: float) -> int:
        """Return the exit code; `output` is complete then."""
        deadline = time.monotonic() + timeout_s
        while self._read(deadline):
            pass
        return self._process.wait(max(0.0, deadline - time.monotonic()))

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the driver alone."""
        self._process.send_signal(number)

    def assert_nothing_left(self, *, timeout_s: float) -> None:
        """Return when no process of the demo lives any more, whoever its parent is."""
        assert_none_left(self.mark, timeout_s=timeout_s)

    def close(self) -> None:
        """End the process if it still runs, so that a failing test leaves nothing."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait(10)
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _read(self, deadline: float) -> bool:
        """Read what there is, waiting for it; False at the end of the output. Fails when late."""
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            raise AssertionError(f"the demo printed nothing more in time:\n{self.output}")
        data = os.read(descriptor, 65536)
        self.output += data.decode(errors="replace")
        return bool(data)


@pytest.fixture
def start_demo(tmp_path: Path) -> Iterator[Callable[..., DemoProcess]]:
    """Give a function that starts a demo: its arguments, and `environment=`."""
    started: list[DemoProcess] = []

    def start(*arguments: str, environment: Mapping[str, str] | None = None) -> DemoProcess:
        started.append(DemoProcess(arguments, tmp_path, environment or {}))
        return started[-1]

    yield start
    for process in started:
        process.close()
