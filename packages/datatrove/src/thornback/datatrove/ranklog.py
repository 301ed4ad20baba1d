"""The log of one rank as datatrove writes it, in the rank process."""

from __future__ import annotations

import io
import os
import shutil
import sys
import tempfile
from contextlib import redirect_stderr, suppress
from typing import Any, TextIO

from datatrove.utils.logging import add_task_logger, logger

MORE = "  |"
"""Begins the further lines of a message on stderr, so that they can be told from what steps
print."""
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


def this_logger() -> object:
    """Return the logger that all of datatrove uses, in the process that loads a pickle."""
    return logger


class RankLog:
    """The log of one rank: a file of this process that receives what is logged with loguru, from
    `LogDesk.begin` to `end`.

    It has no name, so that no other rank or user of the machine can be in its way, and nothing of
    it is left behind by a kill.
    """

    def __init__(self) -> None:
        self._file: Any = tempfile.TemporaryFile()  # noqa: SIM115  # closed in `close`

    @property
    def descriptor(self) -> int:
        """To write to."""
        return int(self._file.fileno())

    def write_to(self, folder: Any, name: str) -> None:
        """Write all of it to a file of a `DataFolder`. Raises whatever the store does."""
        self._file.seek(0)
        with folder.open(name, "wb") as target:
            shutil.copyfileobj(self._file, target)

    def close(self) -> None:
        """Let go of the file; what reads it still fails."""
        self._file.close()


class LogDesk:
    """Sends what is logged with loguru in this process to the log of the rank that runs.

    Every line goes to stderr, too: that is sent to the driver while the rank runs, and is all that
    is left of one that is killed.

    The handlers are made by datatrove, so that lines look like its own. To make one takes loguru
    some 10 ms, so they stay from rank to rank, unless user code has changed them: their list, as
    `repr(logger)` shows it, tells.
    """

    def __init__(self) -> None:
        self._tee: _Tee | None = None
        self._handlers = ""

    def begin(self, log: RankLog, rank: int, node_rank: int, *, first_line: str = "") -> None:
        """Log to this, and to nothing else, from now on."""
        stderr = sys.stderr
        if self._tee is not None and repr(logger) == self._handlers:
            self._tee.aim(log.descriptor, stderr)
            self._tee.write(first_line)
            logger.info(f"Launching pipeline for {rank=}")
            return
        self._tee = _Tee(log.descriptor, stderr)
        self._tee.write(first_line)
        # datatrove's other handler, for the console, would write some of the lines twice.
        with redirect_stderr(_Nowhere()):
            add_task_logger(self, rank, local_rank=1, node_rank=node_rank)
        self._handlers = repr(logger)

    def open(self, path: str, mode: str) -> _Tee:
        """Return what to log to (asked for by datatrove, as of a `DataFolder`)."""
        assert self._tee is not None
        return self._tee

    def end(self) -> None:
        """Log to stderr alone. Idempotent."""
        if self._tee is not None:
            logger.complete()
            self._tee.aim(None, sys.stderr)


class _Tee(io.TextIOBase):
    """Writes to a descriptor, and to another stream, unless that is closed."""

    def __init__(self, descriptor: int, echo: TextIO) -> None:
        self.aim(descriptor, echo)

    def aim(self, descriptor: int | None, echo: TextIO) -> None:
        """Say where to write from now on."""
        self._descriptor = descriptor
        self._echo = echo

    def write(self, text: str, /) -> int:
        data = memoryview(text.encode("utf-8", "backslashreplace"))
        try:
            while data and self._descriptor is not None:
                data = data[os.write(self._descriptor, data) :]
        finally:  # also when the disk is full
            with suppress(OSError, ValueError):  # user code has closed it
                self._echo.write(_echoed(text))
        return len(text)


def _echoed(text: str) -> str:
    return text[:-1].replace("\n", f"\n{MORE} ") + text[-1:]


class _Nowhere(io.TextIOBase):
    def write(self, text: str, /) -> int:
        return len(text)
