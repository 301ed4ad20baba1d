"""Results that wait for the ranks which want them: in memory, and beyond a bound in a file of this
machine. Decides nothing."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING

from thornback.executor.ports import Ranks

if TYPE_CHECKING:
    import sqlite3

logger = logging.getLogger(__name__)
MAX_KEPT_BYTES = 256 << 20
MAX_FILE_BYTES = 16 << 30
_OVERHEAD_BYTES = 256
"""What an entry costs besides its text: many small ones are bounded, too."""
_CACHE_KIB = 16 << 10


class NotKept(Exception):
    """There was no room for what a rank is to be handed. It is recorded all the same."""


class WaitingTexts:
    """Texts by queue and rank, each until it is dropped.

    Beyond `max_bytes` in all, new ones go into a temporary file (an unnamed SQLite database where
    TMPDIR says) of at most `max_file_bytes`, which grows only as far as what waits at the same
    time, and is gone with the process. It is written in the event loop: a local disk, in a few
    microseconds per text. Not made for several threads.
    """

    def __init__(
        self, max_bytes: int = MAX_KEPT_BYTES, max_file_bytes: int = MAX_FILE_BYTES
    ) -> None:
        self._max_bytes = max_bytes
        self._max_file_bytes = max_file_bytes
        self._kept: dict[int, dict[int, str]] = {}
        self._bytes = 0
        self._file: sqlite3.Connection | None = None
        self._broken = ""
        """Why there is no file any more: what was in it cannot be told from what never was."""
        self._spilled: dict[int, None] = {}
        """Queues that have had texts in the file."""

    def put(self, queue: int, texts: Mapping[int, str]) -> None:
        """Keep these; a rank's later text replaces its earlier one. Never raises: what finds no
        room is missed by `get`."""
        kept = self._kept.setdefault(queue, {})
        exceeding: list[tuple[int, int, str]] = []
        for rank, text in texts.items():
            self._forget(kept, rank)
            if self._bytes + _cost(text) > self._max_bytes:
                exceeding.append((queue, rank, text))
            else:
                kept[rank] = text
                self._bytes += _cost(text)
        if exceeding:
            self._spilled[queue] = None
            self._write(exceeding)

    def get(self, queue: int, ranks: Ranks) -> dict[int, str]:
        """Return the texts of these ranks; a rank that has none is left out.

        Raises:
            NotKept: the file failed, and some of them may have been in it.
        """
        kept = self._kept.get(queue, {})
        found = {rank: kept[rank] for piece in ranks for rank in piece if rank in kept}
        if queue in self._spilled and len(found) < sum(map(len, ranks)):
            for piece in ranks:  # what came later is in memory
                found = self._read(queue, piece) | found
        return found

    def drop(self, queue: int, ranks: Ranks) -> None:
        """Forget those of these ranks. Never raises."""
        kept = self._kept.get(queue, {})
        for piece in ranks:
            for rank in piece:
                if kept:
                    self._forget(kept, rank)
            if queue in self._spilled:
                self._delete(queue, piece)

    def close(self) -> None:
        """Give memory and file back. Idempotent; `get` finds nothing any more."""
        self._kept.clear()
        self._spilled.clear()
        self._bytes = 0
        if self._file is not None:
            self._file.close()
            self._file = None

    def _forget(self, kept: dict[int, str], rank: int) -> None:
        text = kept.pop(rank, None)
        if text is not None:
            self._bytes -= _cost(text)

    def _write(self, rows: list[tuple[int, int, str]]) -> None:
        if self._broken:
            return
        try:
            if self._file is None:
                self._file = _open_file(self._max_file_bytes)
                logger.warning(
                    "results that wait for the stages after theirs are more than %d MiB: what "
                    "exceeds that goes into a temporary file (see TMPDIR)",
                    self._max_bytes >> 20,
                )
            with self._file:
                self._file.executemany("INSERT OR REPLACE INTO texts VALUES (?, ?, ?)", rows)
        except _failures() as error:
            self._give_up(error)

    def _read(self, queue: int, piece: range) -> dict[int, str]:
        if self._file is not None:
            wanted = "SELECT rank, text FROM texts WHERE queue = ? AND rank >= ? AND rank < ?"
            try:
                return dict(self._file.execute(wanted, (queue, piece.start, piece.stop)).fetchall())
            except _failures() as error:
                self._give_up(error)
        # The mend first: texts for people show some 200 characters of it.
        raise NotKept(
            f"no room for results that wait: give TMPDIR up to {self._max_file_bytes >> 30} GiB, "
            "or After(..., results=False), and run again to go on: what is recorded stays. They "
            f"are more than {self._max_bytes >> 20} MiB, and the temporary file for the rest "
            f"failed: {self._broken}"
        )

    def _delete(self, queue: int, piece: range) -> None:
        if self._file is None:
            return
        gone = "DELETE FROM texts WHERE queue = ? AND rank >= ? AND rank < ?"
        try:
            with self._file:
                self._file.execute(gone, (queue, piece.start, piece.stop))
        except _failures() as error:
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._broken = f"{type(error).__name__}: {error}"
        logger.warning("no temporary file for results that wait: %s", self._broken)
        if self._file is not None:
            self._file.close()
            self._file = None


def _cost(text: str) -> int:
    return len(text) + _OVERHEAD_BYTES


def _open_file(max_bytes: int) -> sqlite3.Connection:
    import sqlite3  # only where it is needed: some builds of Python lack it

    with ExitStack() as undo:
        file = undo.enter_context(closing(sqlite3.connect("")))  # unnamed: SQLite removes it itself
        # Nothing of it has to survive a crash. What does not fit into the cache goes to the disk.
        for setting in ("journal_mode=OFF", "synchronous=OFF", f"cache_size=-{_CACHE_KIB}"):
            file.execute(f"PRAGMA {setting}")
        (page_bytes,) = file.execute("PRAGMA page_size").fetchone()
        file.execute(f"PRAGMA max_page_count={max(2, max_bytes // page_bytes)}")
        file.execute(
            "CREATE TABLE texts (queue INTEGER, rank INTEGER, text TEXT, PRIMARY KEY (queue, rank))"
        )
        undo.pop_all()
    return file


def _failures() -> tuple[type[Exception], ...]:
    """Return what says that there is no file, or no room in it."""
    try:
        import sqlite3
    except ImportError:
        return (ImportError,)
    return (sqlite3.Error,)
