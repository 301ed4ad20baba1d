"""Reads what one attempt of a rank has written from the logs that a run keeps with its state."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Mapping

from thornback.executor.journal.store import file_system

MAX_BYTES = 8 << 20
"""The end of more is taken."""


def read_slice(
    url: str, bounds: tuple[int, int], storage_options: Mapping[str, object] | None = None
) -> bytes:
    """Return the part of a log, or its last 8 MiB.

    Args:
        url: `AttemptReport.log_url`: a file, or a folder of pieces `<offset>.log` (with a slash at
            its end). In a piece from which something was left out, the bounds are not exact.
        bounds: `AttemptReport.log_slice`; an end behind that of the log stands for the latter.
        storage_options: of the file system.

    Raises:
        FileNotFoundError: nothing of that log was stored.
        Exception: whatever the store raises.
    """
    start, end = bounds
    fs, path = file_system(url, storage_options)
    if not url.endswith("/"):
        with fs.open(path, "rb") as file:
            end = min(end, file.seek(0, os.SEEK_END))
            start = max(start, end - MAX_BYTES)
            file.seek(start)
            data: bytes = file.read(max(0, end - start))
        return data.replace(b"\0", b"")  # holes
    fs.invalidate_cache()
    listed = fs.ls(path.rstrip("/"), detail=True)
    pieces = sorted((_offset(each["name"]), each["name"]) for each in listed)
    end = min(end, max((_offset(each["name"]) + each["size"] for each in listed), default=0))
    start = max(start, end - MAX_BYTES)
    found = []
    for position, (offset, name) in enumerate(pieces):
        following = pieces[position + 1][0] if position + 1 < len(pieces) else end
        if offset < end and following > start:
            found.append(fs.cat_file(name)[max(0, start - offset) : end - offset])
    return b"".join(found)


def _offset(name: str) -> int:
    return int(posixpath.basename(name).partition(".")[0])
