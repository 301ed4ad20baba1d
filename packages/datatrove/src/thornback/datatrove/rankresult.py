"""What a rank returns, which the journal keeps, and the text of its `stats/{rank:05d}.json`: one
from the other, byte for byte. Pure.

A journal that keeps the text as it is would hold gigabytes for a million ranks, and refuses what is
longer than 64 KiB. So only short text is kept readable, more is compressed, and what is too long
even so lies in a file that the result names.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Callable
from typing import TypeAlias

Result: TypeAlias = dict[str, object]
READABLE_BYTES = 1024
"""Longer text is compressed."""
KEPT_BYTES = 60 * 1024
"""Of compressed text; below the executor's own limit of 64 KiB for all of a result."""
_STATS, _ZLIB, _FILE = "stats", "zlib", "file"


def encode(stats_json: str) -> Result | None:
    """Return the result that stands for this text; None: it is too long, put it in a file
    (`in_file`)."""
    if len(stats_json) <= READABLE_BYTES and (plain := _plain(stats_json)) is not None:
        return {_STATS: plain}
    packed = base64.b64encode(zlib.compress(stats_json.encode("utf-8", "surrogatepass")))
    return {_ZLIB: packed.decode("ascii")} if len(packed) <= KEPT_BYTES else None


def in_file(name: str) -> Result:
    """Return the result that stands for the text in this file of the logging directory."""
    return {_FILE: name}


def decode(result: str, read: Callable[[str], str] | None = None) -> str:
    """Return the text of `stats/{rank:05d}.json`, as `PipelineStats.save_to_disk` writes it.

    Args:
        result: JSON text, as the journal keeps it.
        read: returns the text of a file of the logging directory; `DataFolder.read_text`.

    Raises:
        ValueError: it is no result of a pipeline's rank; or it names a file, and there is no
            `read`.
        Exception: whatever `read` raises.
    """
    match json.loads(result):
        case {"stats": list() as plain}:
            return json.dumps(plain, indent=4)
        case {"zlib": str() as packed}:
            try:
                data = zlib.decompress(base64.b64decode(packed))
            except zlib.error as error:
                raise ValueError(f"stats that are no zlib: {error}") from error
            return data.decode("utf-8", "surrogatepass")
        case {"file": str() as name}:
            if read is None:
                raise ValueError(f"the stats are in the file {name!r}: say how to read it")
            return read(name)
    raise ValueError(
        f"no result of a pipeline's rank: {result[:80]!r}; expected an object with one of "
        f"{_STATS!r}, {_ZLIB!r} or {_FILE!r}"
    )


def _plain(stats_json: str) -> list[object] | None:
    """Return the value, if its text can be made from it again, and any reader of JSON takes it (NaN
    and Infinity are Python's own)."""
    try:
        value = json.loads(stats_json)
        again = json.dumps(value, indent=4, allow_nan=False)
    except ValueError:
        return None
    return value if isinstance(value, list) and again == stats_json else None
