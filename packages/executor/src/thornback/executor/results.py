"""The results of a stage, by rank: what a later stage and the report read.

Nothing here may import the driver side: rank processes import this module.
"""

from __future__ import annotations

import json
import operator
import reprlib
import sys
from array import array
from collections.abc import Iterator, Mapping
from typing import Any, Final

_NULL = b"null"
_OFFSET_BYTES = 8
_SHOWN = 10


class Missing:
    """The class of `MISSING`, its only instance."""

    __slots__ = ()

    def __bool__(self) -> bool:
        return False

    def __repr__(self) -> str:
        return "MISSING"

    def __reduce__(self) -> str:
        return "MISSING"  # pickle finds it under this name: it is the same object everywhere


MISSING: Final = Missing()
"""Stands for the result of a rank that has none: it failed, was skipped, or was not run. A rank
that returned None has the result None."""


class Results(Mapping[int, Any]):
    """The results of all ranks of a stage, by rank, in order: `results[rank]`.

    Every rank is there: `len(results)` is the world size, and `results.values()` is aligned with
    the stage's items. A rank without a result has the value `MISSING`. A value is decoded each time
    that it is read, so keep it if you need it twice; changing it changes nothing here.
    """

    __slots__ = ("_data", "_size")

    def __init__(self, data: bytes) -> None:
        """Take what `packed` has made."""
        self._data = data
        self._size = int.from_bytes(data[:_OFFSET_BYTES], "little")

    def __getitem__(self, rank: int) -> Any:
        text = self._text(self._position(rank))
        return json.loads(text) if text else MISSING

    def __iter__(self) -> Iterator[int]:
        return iter(range(self._size))

    def __len__(self) -> int:
        return self._size

    def __contains__(self, rank: object) -> bool:
        try:
            self._position(rank)
        except KeyError:
            return False
        return True

    def __repr__(self) -> str:
        shown = [f"{rank}: {reprlib.repr(self[rank])}" for rank in range(min(self._size, _SHOWN))]
        if self._size > _SHOWN:
            shown.append(f"... {self._size - _SHOWN} more")
        return f"Results({{{', '.join(shown)}}})"

    def _position(self, rank: Any) -> int:
        try:
            position = operator.index(rank)
        except TypeError:
            raise KeyError(rank) from None
        if not 0 <= position < self._size:
            raise KeyError(rank)
        return position

    def _text(self, rank: int) -> bytes:
        base = _OFFSET_BYTES * (self._size + 1)
        start = self._end(rank - 1) if rank else 0
        return self._data[base + start : base + self._end(rank)]

    def _end(self, rank: int) -> int:
        at = _OFFSET_BYTES * (rank + 1)
        return int.from_bytes(self._data[at : at + _OFFSET_BYTES], "little")


def packed(texts: Mapping[int, str], done: tuple[range, ...], size: int) -> bytes:
    """Return the results of a stage as `Results` takes them: the world size, where the text of each
    rank ends, and the texts. No object per rank is needed to read them.

    Args:
        texts: JSON by rank; a rank that is done and has none returned None.
        done: ranks that are done, in ascending order.
        size: world size.
    """
    pieces: list[bytes] = []
    ends, at = array("Q"), 0
    is_done = bytearray(size)
    for piece in done:
        is_done[piece.start : piece.stop] = b"\1" * len(range(size)[piece.start : piece.stop])
    for rank in range(size):
        text = texts.get(rank)
        if text is not None:
            pieces.append(text.encode("utf-8", "surrogatepass"))
            at += len(pieces[-1])
        elif is_done[rank]:
            pieces.append(_NULL)
            at += len(_NULL)
        ends.append(at)
    if sys.byteorder == "big":
        ends.byteswap()
    return b"".join((size.to_bytes(_OFFSET_BYTES, "little"), ends.tobytes(), *pieces))
