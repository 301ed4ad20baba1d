"""The log of one rank as datatrove writes it, in the rank process."""

from __future__ import annotations

import io
import os
import shutil
import sys
import tempfile
from contextlib import redirect_stderr, suppress
from typing import Any, TextIO

from datatrove.utils.logging import add_task_logger, close_task_logger

NOT_WRITTEN = "thornback: the log of this rank was not written"
"""Begins the line that a rank leaves on its stderr where that is so."""


def again_line(rank: int, attempt: int, epoch: str, logs: str) -> str:
    """Return the first line of the log of an attempt that is not the first.

    Args:
        rank: from 0.
        attempt: from 2.
        epoch: of the attempt.
        logs: where the logs of earlier ones are kept; empty: not known.
    """
    where = logs or "the folder logs/ of the run's state"
    return (
        f"thornback: attempt {attempt} of rank {rank} (epoch {epoch}); what earlier attempts wrote "
        f"is in {where}\n"
    )


def log_name(rank: int, node_rank: int) -> str:
    """Return where the log of a rank belongs, in the logging directory.

    That of the first node is where datatrove's tools look. They take nothing else there, so that
    the others have a folder of ours.
    """
    if node_rank <= 0:
        return f"logs/task_{rank:05d}.log"
    return f"thornback/logs-of-nodes/task_{rank:05d}.node{node_rank}.log"


class RankLog:
    """Receives what is logged with loguru from `begin` to `end`.

    Every line goes to stderr, too: that is sent to the driver while the rank runs, and is all that
    is left of one that is killed. The file itself has no name, so that no other rank or user of the
    machine can be in its way, and nothing of it is left behind by a kill.
    """

    def __init__(self, first_line: str = "") -> None:
        self._file: Any = tempfile.TemporaryFile()  # noqa: SIM115  # closed in `close`
        self._first_line = first_line
        self._echo: TextIO = sys.stderr
        self._tee: _Tee | None = None

    def begin(self, rank: int, node_rank: int) -> None:
        """Log to this, and to nothing else, from now on."""
        self._echo = sys.stderr
        # datatrove's other handler, for the console, would write some of the lines twice.
        with redirect_stderr(_Nowhere()):
            add_task_logger(self, rank, local_rank=1, node_rank=node_rank)

    def open(self, path: str, mode: str) -> _Tee:
        """Return the file to log to (asked for by datatrove, as of a `DataFolder`)."""
        self._tee = _Tee(self._file.fileno(), self._echo)
        self._tee.write(self._first_line)
        return self._tee

    def end(self) -> None:
        """Log to stderr again. Idempotent."""
        if self._tee is not None:
            close_task_logger(self._tee)
            self._tee = None

    def write_to(self, folder: Any, name: str) -> None:
        """Write all of it to a file of a `DataFolder`. Raises whatever the store does."""
        self._file.seek(0)
        with folder.open(name, "wb") as target:
            shutil.copyfileobj(self._file, target)

    def close(self) -> None:
        """Let go of the file; what writes or reads it still fails."""
        self._file.close()


class _Tee(io.TextIOBase):
    """Writes to a descriptor, and to another stream, unless that is closed."""

    def __init__(self, descriptor: int, echo: TextIO) -> None:
        self._descriptor = descriptor
        self._echo = echo

    def write(self, text: str, /) -> int:
        data = memoryview(text.encode("utf-8", "backslashreplace"))
        try:
            while data:
                data = data[os.write(self._descriptor, data) :]
        finally:  # also when the disk is full
            with suppress(OSError, ValueError):  # user code has closed it
                self._echo.write(text)
        return len(text)


class _Nowhere(io.TextIOBase):
    def write(self, text: str, /) -> int:
        return len(text)
