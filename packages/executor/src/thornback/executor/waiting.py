"""Results that wait for the ranks which want them: in memory, and beyond a bound in a file of this
machine. Decides nothing."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial

from thornback.executor.ports import Ranks
from thornback.executor.textfile import FileGone, Row, Rows, SqliteRows, TextFile

logger = logging.getLogger(__name__)
MAX_KEPT_BYTES = 256 << 20
MAX_FILE_BYTES = 16 << 30
MAX_ON_WAY_BYTES = 64 << 20
"""More than a second of what a disk writes, so that a burst does not wait for it."""
TIMEOUT_S = 60.0
"""A network disk that fails over takes tens of seconds."""
_OVERHEAD_BYTES = 256
"""What an entry costs besides its text: many small ones are bounded, too."""


class NotKept(Exception):
    """There was no room for what a rank is to be handed. It is recorded all the same."""


class WaitingTexts:
    """Texts by queue and rank, each until it is dropped. For one event loop.

    Beyond `max_bytes` in all, new ones go into a temporary file (an unnamed SQLite database where
    TMPDIR says) of at most `max_file_bytes`, which grows only as far as what waits at the same
    time, and is gone with the process. A thread writes and reads it, in the order of the calls. A
    byte more is kept in each queue that has had texts there for each rank up to its last one.

    Args:
        max_bytes: of memory.
        max_file_bytes: of the file.
        max_on_way_bytes: of memory besides, for what is still to be written.
        timeout_s: how long the disk may take for one call; then the file is given up.
        open_rows: opens the file; None: as above.
    """

    def __init__(
        self,
        max_bytes: int = MAX_KEPT_BYTES,
        max_file_bytes: int = MAX_FILE_BYTES,
        *,
        max_on_way_bytes: int = MAX_ON_WAY_BYTES,
        timeout_s: float = TIMEOUT_S,
        open_rows: Callable[[], Rows] | None = None,
    ) -> None:
        self._max_bytes = max_bytes
        self._max_file_bytes = max_file_bytes
        self._kept: dict[int, dict[int, str]] = {}
        self._bytes = 0
        self._file = TextFile(
            open_rows or partial(SqliteRows, max_file_bytes),
            max_on_way_bytes=max_on_way_bytes,
            timeout_s=timeout_s,
        )
        self._filed: dict[int, bytearray] = {}
        """By queue and rank, not 0: a text of it was given to the file."""

    async def room(self) -> None:
        """Wait while more than `max_on_way_bytes` is still to be written, before more is put.
        Never raises: when the disk takes too long, it ends with the file."""
        await self._file.room()

    def put(self, queue: int, texts: Mapping[int, str]) -> None:
        """Keep these; a rank's later text replaces its earlier one. Never raises: what finds no
        room is missed by `get`."""
        kept = self._kept.setdefault(queue, {})
        exceeding: list[Row] = []
        for rank, text in texts.items():
            self._forget(kept, rank)
            if self._bytes + _cost(text) > self._max_bytes:
                exceeding.append((queue, rank, text))
            else:
                kept[rank] = text
                self._bytes += _cost(text)
        if exceeding:
            self._write(queue, exceeding)

    async def get(self, queue: int, ranks: Ranks) -> dict[int, str]:
        """Return the texts of these ranks; a rank that has none is left out.

        Raises:
            NotKept: the file failed, and some of them should be in it.
        """
        kept = self._kept.get(queue, {})
        found = {rank: kept[rank] for piece in ranks for rank in piece if rank in kept}
        filed = self._filed.get(queue)
        if filed is not None:
            wanted = tuple(piece for piece in ranks if _misses(found, filed, piece))
            if wanted:  # what came later is in memory
                return await self._read(queue, wanted) | found
        return found

    def drop(self, queue: int, ranks: Ranks) -> None:
        """Forget those of these ranks. Never raises."""
        kept = self._kept.get(queue, {})
        for piece in ranks:
            for rank in piece:
                if kept:
                    self._forget(kept, rank)
        filed = self._filed.get(queue)
        if filed is not None:
            gone = tuple(p for p in ranks if filed.find(1, p.start, p.stop) != -1)
            for piece in gone:
                stop = min(piece.stop, len(filed))
                filed[piece.start : stop] = bytes(stop - piece.start)
            if gone:
                self._file.delete(queue, gone)

    def close(self) -> None:
        """Give memory and file back, also while the disk hangs. Idempotent; `get` finds nothing any
        more."""
        self._kept.clear()
        self._filed.clear()
        self._bytes = 0
        self._file.close()

    def _forget(self, kept: dict[int, str], rank: int) -> None:
        text = kept.pop(rank, None)
        if text is not None:
            self._bytes -= _cost(text)

    def _write(self, queue: int, rows: list[Row]) -> None:
        if not self._filed:
            logger.warning(
                "results that wait for the stages after theirs are more than %d MiB: what exceeds "
                "that goes into a temporary file (see TMPDIR)",
                self._max_bytes >> 20,
            )
        filed = self._filed.setdefault(queue, bytearray())
        last = max(rank for _, rank, _ in rows)
        filed.extend(bytes(max(0, last + 1 - len(filed))))
        for _, rank, _ in rows:
            filed[rank] = 1
        self._file.write(rows, sum(_cost(text) for _, _, text in rows))

    async def _read(self, queue: int, ranks: Ranks) -> dict[int, str]:
        try:
            return await self._file.read(queue, ranks)
        except FileGone as error:
            # The mend first: texts for people show some 200 characters of it.
            raise NotKept(
                f"no room for results that wait: give TMPDIR up to {self._max_file_bytes >> 30} "
                "GiB, or After(..., results=False), and run again to go on: what is recorded "
                f"stays. They are more than {self._max_bytes >> 20} MiB, and the temporary file "
                f"for the rest failed: {error}"
            ) from error


def _cost(text: str) -> int:
    return len(text) + _OVERHEAD_BYTES


def _misses(found: Mapping[int, str], filed: bytearray, ranks: range) -> bool:
    """Return whether one of these ranks was given to the file, and was not found elsewhere."""
    rank = filed.find(1, ranks.start, ranks.stop)
    while rank != -1 and rank in found:
        rank = filed.find(1, rank + 1, ranks.stop)
    return rank != -1
