"""The standard streams of a rank process, and a safe place for its descriptors."""

from __future__ import annotations

import sys

from thornback.pool.worker.unpatched import fcntl, io, open, os, resource

_ROOM = 32


def out_of_the_way(fd: int) -> int:
    """Return a copy of the descriptor with a high number: code that closes "all" descriptors rarely
    goes that far.

    Raises:
        OSError: there is none.
    """
    highest = min(resource.getrlimit(resource.RLIMIT_NOFILE)[0], 1024)
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, max(3, highest - _ROOM))


class StandardStreams:
    """Descriptors 0, 1, 2 and their Python objects: nothing to read, and all output to the log
    file."""

    def __init__(self, log_path: str) -> None:
        self._log_path = log_path or os.devnull
        self._log_fd = -1
        self._stdout: io.TextIOWrapper | None = None
        self._stderr: io.TextIOWrapper | None = None

    def restore(self) -> None:
        """Make them as they should be, whatever user code did to them."""
        try:
            os.dup2(self._log_fd, 1)
            os.dup2(self._log_fd, 2)
        except OSError:
            self._reopen()
        if self._stdout is None or self._stdout.closed:
            self._stdout = _text(1, line_buffering=True)
        if self._stderr is None or self._stderr.closed:
            self._stderr = _text(2, line_buffering=True)
        sys.stdout = self._stdout
        sys.stderr = self._stderr

    def _reopen(self) -> None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        try:
            opened = os.open(self._log_path, flags, 0o644)
        except OSError:  # a full disk must not end the rank
            opened = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        os.dup2(opened, 1)
        os.dup2(opened, 2)
        self._log_fd = out_of_the_way(2)
        if opened > 2:
            os.close(opened)
        with open(os.devnull, "rb", buffering=0) as nothing:
            os.dup2(nothing.fileno(), 0)

    def log_size(self) -> int:
        """Return the size of the log, where the next byte will be written; -1: user code closed
        it."""
        try:
            return os.fstat(self._log_fd).st_size
        except OSError:
            return -1

    def flush(self) -> None:
        """Write out what Python still holds, also in objects that user code put in their place."""
        for stream in (sys.stdout, sys.stderr, self._stdout):
            try:
                if stream is not None:
                    stream.flush()
            except Exception:  # noqa: BLE001  # closed, broken, or of a class of the user's
                continue


def _text(fd: int, *, line_buffering: bool) -> io.TextIOWrapper:
    raw = open(fd, "wb", closefd=False)  # lives as long as the process
    return io.TextIOWrapper(
        raw, encoding="utf-8", errors="backslashreplace", line_buffering=line_buffering
    )
