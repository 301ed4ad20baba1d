"""A temporary file that hangs for as long as a test wants."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from thornback.executor.textfile import Row


class GatedRows:
    """Texts in memory (fulfils `Rows`); each write waits until it is let."""

    def __init__(self) -> None:
        self.let = threading.Event()
        self.hangs = threading.Event()
        """A write is there."""
        self.closed = threading.Event()
        self.calls: list[str] = []
        """What was done, as far as it has ended."""
        self._texts: dict[tuple[int, int], str] = {}

    def write(self, rows: Sequence[Row], /) -> None:
        self.hangs.set()
        self.let.wait(60)
        self.calls.append("write")
        self._texts |= {(queue, rank): text for queue, rank, text in rows}

    def read(self, queue: int, ranks: range, /) -> dict[int, str]:
        self.calls.append("read")
        return {r: self._texts[queue, r] for r in ranks if (queue, r) in self._texts}

    def delete(self, queue: int, ranks: range, /) -> None:
        self.calls.append("delete")
        for rank in ranks:
            self._texts.pop((queue, rank), None)

    def close(self) -> None:
        self.calls.append("close")
        self.closed.set()
