"""What has arrived of one worker's logs. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import attrs

from thornback.pool.ports import LogChunk

_MANY_BYTES = 128 << 10
"""Of one log, in one answer. This and what follows are half of what a worker sends at most: one
that sends as much has more, or nearly."""
_MANY_BYTES_IN_ALL = 512 << 10
_MANY_CHUNKS = 128


class LogBook:
    """Offsets up to which the logs of one worker have arrived.

    The reader's offsets drive everything, so an answer that is lost, late or there twice costs
    nothing: only what follows what is here counts.

    Args:
        kept: the logs stay in their folder when they are over, so their ends are remembered.
    """

    def __init__(self, *, kept: bool = False) -> None:
        self._kept = kept
        self._arrived: dict[str, int] = {}
        self._closed: dict[str, None] = {}
        self._over: dict[str, int] = {}

    def offsets(self) -> dict[str, int]:
        """Return what to ask with: by name of the log, how much of it is here."""
        return dict(self._arrived)

    def for_salvage(self) -> dict[str, int]:
        """Return how much is here of all that may still be in the folder."""
        return {**self._over, **self._arrived}

    def entered(
        self,
        chunks: Iterable[LogChunk],
        *,
        gang: int,
        node: str,
        asked: Mapping[str, int] | None = None,
    ) -> tuple[LogChunk, ...]:
        """Enter what a worker sent; return what is new of it, with its gang and node.

        `asked`: the offsets that this is the answer to. Of a log among them that was forgotten
        meanwhile everything is here: two calls were under way, and this is the late answer.
        """
        found = []
        for chunk in chunks:
            if asked is not None and chunk.log in asked and chunk.log not in self._arrived:
                continue
            here = self._arrived.get(chunk.log, 0)
            known = min(max(here - chunk.offset, 0), len(chunk.data))
            ending = chunk.closed and chunk.log not in self._closed
            if known == len(chunk.data) and not ending:
                continue
            start = max(chunk.offset + known, here)
            found.append(
                attrs.evolve(
                    chunk,
                    offset=start,
                    data=chunk.data[known:],
                    skipped=start - here,
                    gang=gang,
                    node=node,
                )
            )
            self._arrived[chunk.log] = start + len(chunk.data) - known
            if chunk.closed:
                self._closed[chunk.log] = None
        return tuple(found)

    def acknowledged(self, offsets: Mapping[str, int]) -> None:
        """Forget the closed logs of which the worker has been told, by an answered call, that all
        has arrived: it has forgotten them, too."""
        for log, offset in offsets.items():
            if log in self._closed and self._arrived[log] == offset:
                del self._closed[log], self._arrived[log]
                if self._kept:
                    self._over[log] = offset


def has_more(chunks: Iterable[LogChunk]) -> bool:
    """Whether a worker that answered with these is likely to have more at once."""
    sizes: dict[str, int] = {}
    count = 0
    for chunk in chunks:
        sizes[chunk.log] = sizes.get(chunk.log, 0) + len(chunk.data)
        count += 1
    most, total = max(sizes.values(), default=0), sum(sizes.values())
    return count >= _MANY_CHUNKS or most >= _MANY_BYTES or total >= _MANY_BYTES_IN_ALL
