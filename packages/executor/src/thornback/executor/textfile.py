"""A temporary file of texts, which a thread of its own writes and reads: a disk that hangs holds
nobody up. Decides nothing."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing, suppress
from functools import partial
from typing import TYPE_CHECKING, Protocol, TypeAlias, TypeVar

from thornback.executor.onebyone import Ended, OneByOne
from thornback.executor.ports import Ranks

if TYPE_CHECKING:
    import sqlite3

T = TypeVar("T")
logger = logging.getLogger(__name__)
Row: TypeAlias = tuple[int, int, str]
"""Queue, rank and text."""
_CACHE_KIB = 16 << 10


class FileGone(Exception):
    """There is no file any more; the text says why."""


class Rows(Protocol):
    """The file itself: blocking, used by one thread. Any method may raise anything: then it is used
    no more, but for `close`."""

    def write(self, rows: Sequence[Row], /) -> None:
        """Keep these; a later one of the same queue and rank replaces the earlier one."""
        ...

    def read(self, queue: int, ranks: range, /) -> dict[int, str]:
        """Return the texts of those of these ranks that have one."""
        ...

    def delete(self, queue: int, ranks: range, /) -> None:
        """Forget those of these ranks."""
        ...

    def close(self) -> None:
        """Give the file back."""
        ...


class TextFile:
    """Texts by queue and rank. Each call finds what those before it have left, in the order of the
    calls. Once something has failed, or has not returned for `timeout_s`, the file is gone for
    ever.

    Args:
        open_rows: opens it (blocking); called once, with the first text.
        max_on_way_bytes: what may wait to be written before `room` waits.
        timeout_s: how long the disk may take for one call.
    """

    def __init__(
        self, open_rows: Callable[[], Rows], *, max_on_way_bytes: int, timeout_s: float
    ) -> None:
        self._open_rows = open_rows
        self._max_on_way_bytes = max_on_way_bytes
        self._timeout_s = timeout_s
        self._calls = OneByOne()
        self._rows: Rows | None = None
        """Only the thread touches it."""
        self._given_bytes = 0
        self._written_bytes = 0
        """Written by the thread only, as the number before it by the loop only: neither needs a
        lock."""
        self.failure = ""
        """Why it is gone."""

    @property
    def on_way_bytes(self) -> int:
        """What waits in memory to be written."""
        return 0 if self.failure else self._given_bytes - self._written_bytes

    def write(self, rows: Sequence[Row], size_bytes: int) -> None:
        """Have these written; together they take so much memory until then. Never raises, never
        waits."""
        self._given_bytes += size_bytes
        self._give(partial(self._write, rows, size_bytes))

    def delete(self, queue: int, ranks: Ranks) -> None:
        """Have the texts of these forgotten. Never raises, never waits."""
        self._give(partial(self._delete, queue, ranks))

    async def read(self, queue: int, ranks: Ranks) -> dict[int, str]:
        """Return the texts of those of these ranks that have one.

        Raises:
            FileGone: there is no file.
        """
        return await self._ask(partial(self._read, queue, ranks))

    async def room(self) -> None:
        """Return when little enough is on its way, or the file is gone. Never raises."""
        while self.on_way_bytes > self._max_on_way_bytes:
            with suppress(FileGone):
                await self._ask(lambda: None)

    def close(self) -> None:
        """Give the file back, and what is on its way, without waiting. Idempotent."""
        self._end("it is closed")

    # -- in the loop

    def _give(self, call: Callable[[], None]) -> None:
        if self.failure:
            return
        try:
            self._calls.give(call)
        except RuntimeError as error:
            self._give_up(error)

    async def _ask(self, call: Callable[[], T]) -> T:
        if self.failure:
            raise FileGone(self.failure)
        try:
            return await self._calls.ask(call, timeout_s=self._timeout_s)
        except Ended:
            pass
        except (TimeoutError, RuntimeError) as error:
            self._give_up(error)
        raise FileGone(self.failure)

    def _give_up(self, error: Exception) -> None:
        if not self.failure:
            self._end(_failed(error))

    def _end(self, failure: str) -> None:
        self.failure = self.failure or failure
        self._calls.end(self._close)

    # -- in the thread

    def _write(self, rows: Sequence[Row], size_bytes: int) -> None:
        with suppress(FileGone):
            self._use(lambda file: file.write(rows))
        self._written_bytes += size_bytes

    def _read(self, queue: int, ranks: Ranks) -> dict[int, str]:
        found: dict[int, str] = {}
        for piece in ranks:
            found |= self._use(partial(_read_piece, queue, piece))
        return found

    def _delete(self, queue: int, ranks: Ranks) -> None:
        with suppress(FileGone):
            for piece in ranks:
                self._use(partial(_delete_piece, queue, piece))

    def _use(self, what: Callable[[Rows], T]) -> T:
        if self.failure:
            raise FileGone(self.failure)
        try:
            if self._rows is None:
                self._rows = self._open_rows()
            return what(self._rows)
        except Exception as error:  # whatever it is: what should be in the file is not
            self.failure = self.failure or _failed(error)
            self._close()
            raise FileGone(self.failure) from error

    def _close(self) -> None:
        file, self._rows = self._rows, None
        if file is None:
            return
        try:
            file.close()
        except Exception:  # nothing depends on it, and it is gone with the process
            logger.warning("could not close the file of results that wait", exc_info=True)


def _failed(error: Exception) -> str:
    failure = f"{type(error).__name__}: {error}"
    logger.warning("no temporary file for results that wait: %s", failure)
    return failure


def _read_piece(queue: int, piece: range, file: Rows) -> dict[int, str]:
    return file.read(queue, piece)


def _delete_piece(queue: int, piece: range, file: Rows) -> None:
    file.delete(queue, piece)


class SqliteRows:
    """An unnamed database where TMPDIR says, which is gone with the process."""

    def __init__(self, max_bytes: int) -> None:
        import sqlite3  # only where it is needed: some builds of Python lack it

        with ExitStack() as undo:
            self._file: sqlite3.Connection = undo.enter_context(closing(sqlite3.connect("")))
            # Nothing of it has to survive a crash. What does not fit into the cache goes to disk.
            for setting in ("journal_mode=OFF", "synchronous=OFF", f"cache_size=-{_CACHE_KIB}"):
                self._file.execute(f"PRAGMA {setting}")
            (page_bytes,) = self._file.execute("PRAGMA page_size").fetchone()
            self._file.execute(f"PRAGMA max_page_count={max(2, max_bytes // page_bytes)}")
            self._file.execute(
                "CREATE TABLE texts "
                "(queue INTEGER, rank INTEGER, text TEXT, PRIMARY KEY (queue, rank))"
            )
            undo.pop_all()

    def write(self, rows: Sequence[Row], /) -> None:
        """Keep these."""
        with self._file:
            self._file.executemany("INSERT OR REPLACE INTO texts VALUES (?, ?, ?)", rows)

    def read(self, queue: int, ranks: range, /) -> dict[int, str]:
        """Return those of these ranks."""
        wanted = "SELECT rank, text FROM texts WHERE queue = ? AND rank >= ? AND rank < ?"
        return dict(self._file.execute(wanted, (queue, ranks.start, ranks.stop)).fetchall())

    def delete(self, queue: int, ranks: range, /) -> None:
        """Forget those of these ranks."""
        gone = "DELETE FROM texts WHERE queue = ? AND rank >= ? AND rank < ?"
        with self._file:
            self._file.execute(gone, (queue, ranks.start, ranks.stop))

    def close(self) -> None:
        """Give the file back."""
        self._file.close()
