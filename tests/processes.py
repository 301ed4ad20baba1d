"""Finds the descendants of a process by a mark in their environment, also those that outlive it."""

from __future__ import annotations

import os
import select
import time
from pathlib import Path

MARK = "THORNBACK_TEST_MARK"
"""The variable of the environment that holds the mark."""


def marked(mark: str) -> dict[int, str]:
    """Return the live processes started with the mark, with their commands."""
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                if f"{MARK}={mark}".encode() in (folder / "environ").read_bytes():
                    command = (folder / "cmdline").read_bytes().replace(b"\0", b" ")
                    found[int(folder.name)] = command.decode(errors="replace")
            except OSError:  # it ended while we looked, or is another user's
                continue
    return found


def ended(pid: int, timeout_s: float) -> bool:
    """Wait for the end of a process that need not be our child; False when it is late."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], max(0.0, timeout_s))[0])
    finally:
        os.close(descriptor)


def assert_none_left(mark: str, *, timeout_s: float) -> None:
    """Return when no process with the mark lives any more, whoever its parent is."""
    deadline = time.monotonic() + timeout_s
    while left := marked(mark):
        for pid, command in left.items():
            if not ended(pid, deadline - time.monotonic()):
                raise AssertionError(f"left behind: {pid} {command}\nof {left}")
