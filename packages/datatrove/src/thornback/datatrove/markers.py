"""The files in a logging_dir that say which ranks are complete, and what they have counted.

    completions/00007   empty: rank 7 is complete
    stats/00007.json    what its steps have counted; written before the marker
    stats.json          all of them, added up in order of rank

datatrove's tools read these folders whole, so nothing else may ever be in them, not even for a
moment: what is not written yet lies under thornback/tmp. All of it blocks.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial

import attrs

from datatrove.io import DataFolder
from datatrove.utils.stats import PipelineStats
from thornback.executor.apart import in_order
from thornback.executor.folders import sync_folder
from thornback.executor.journal.ledger import contains, normalise
from thornback.executor.ports import Ranks

AT_ONCE = 32
"""Files that are read or written at the same time."""
OWN = "thornback"
"""The folder in a logging_dir in which we keep what is ours."""
COMPLETIONS, STATS = "completions", "stats"
_TEMPORARY = f"{OWN}/tmp"
_DELETED_AT_ONCE = 1000


@attrs.frozen(kw_only=True, slots=True)
class Merged:
    """The stats of all ranks, added up."""

    stats: PipelineStats
    missing: tuple[int, ...]
    """Ranks whose file is not there, is torn, or is of other steps than those of the ranks before:
    not counted."""


def marker_name(rank: int) -> str:
    """Return the name of a rank's marker, in the folder."""
    return f"{COMPLETIONS}/{rank:05d}"


def stats_name(rank: int) -> str:
    """Return the name of a rank's stats, in the folder."""
    return f"{STATS}/{rank:05d}.json"


def completed_ranks(folder: DataFolder, world_size: int | None = None) -> Ranks:
    """Return the ranks below `world_size` (None: all) that have a marker, by a listing that is not
    cached.

    Raises:
        Exception: whatever the file system raises. A folder that is not there has no markers.
    """
    names = _names(folder, COMPLETIONS)
    return normalise(range(rank, rank + 1) for rank in _ranks(names, "", world_size))


def promote(folder: DataFolder, stats: Mapping[int, str | None]) -> None:
    """Write the stats of ranks, then their markers, up to 32 at once; all is durable on return.

    Idempotent: a rank that has been promoted gets its files again. Files appear whole on a local
    file system, and on object stores.

    Args:
        folder: the logging_dir.
        stats: by rank: the text of its stats file; None: it has none, and gets a marker alone.

    Raises:
        Exception: whatever the file system raises. No rank has its marker without its stats.
    """
    texts = [(stats_name(rank), text.encode()) for rank, text in stats.items() if text is not None]
    _write_all(folder, STATS, texts)
    _write_all(folder, COMPLETIONS, [(marker_name(rank), b"") for rank in stats])


def forget(folder: DataFolder, ranks: Ranks | None = None) -> None:
    """Remove markers, then stats, of ranks that are to be run again. Idempotent.

    Args:
        folder: the logging_dir.
        ranks: normalised. None: all, also those that a smaller world no longer has: tools count
            and add up whatever is there.

    Raises:
        Exception: whatever the file system raises. No rank has its marker without its stats.
    """
    for kind, ending, name in ((COMPLETIONS, "", marker_name), (STATS, ".json", stats_name)):
        there = _ranks(_names(folder, kind), ending)
        found = [name(rank) for rank in there if ranks is None or contains(ranks, rank)]
        for start in range(0, len(found), _DELETED_AT_ONCE):
            _remove(folder, found[start : start + _DELETED_AT_ONCE])


def sweep(folder: DataFolder) -> None:
    """Remove what writers that died have left half-written, and long stats of ranks from where they
    were promoted. Only for who holds the journal, has promoted all, and runs no rank yet."""
    if folder.is_local():
        path = _path(folder, _TEMPORARY)
        with contextlib.suppress(FileNotFoundError):
            for name in os.listdir(path):
                _unlink(os.path.join(path, name))
    with contextlib.suppress(FileNotFoundError):
        folder.rm(f"{OWN}/{STATS}", recursive=True)


def merge_stats(
    folder: DataFolder, world_size: int, read_one: Callable[[], None] = lambda: None
) -> Merged:
    """Return the sum of all ranks' stats, to the byte as datatrove's own executor adds them up.

    Reads 32 files at once, and holds no more than twice as many. Calls `read_one` for each: of a
    million it takes as long as a store needs, but one that answers must not be given up.

    Raises:
        Exception: whatever the file system raises, but for a file that is not there.
    """
    total, missing = PipelineStats(), []
    read = partial(_read_stats, folder)
    for rank, stats in enumerate(in_order(read, range(world_size), AT_ONCE)):
        read_one()
        added = None if stats is None else _add(total, stats)
        if added is None:
            missing.append(rank)
        else:
            total = added
    return Merged(stats=total, missing=tuple(missing))


def save_merged(folder: DataFolder, merged: Merged) -> None:
    """Write stats.json, replacing what is there. Raises whatever the file system raises."""
    _write(folder, "stats.json", merged.stats.to_json().encode())


def _names(folder: DataFolder, kind: str) -> Iterator[str]:
    folder.fs.invalidate_cache()  # of everything: some forget nothing below the path they are given
    try:
        paths: Sequence[str] = folder.ls(kind, detail=False)
    except (FileNotFoundError, NotADirectoryError):
        return
    for path in paths:
        yield path.rstrip("/").rpartition("/")[2]


def _ranks(names: Iterable[str], ending: str, world_size: int | None = None) -> list[int]:
    """Return the ranks whose files these are; what is not named by us or by datatrove is none."""
    pattern = re.compile(r"([0-9]{5}|[1-9][0-9]{5,})" + re.escape(ending))
    found = (pattern.fullmatch(name) for name in names)
    ranks = (int(match[1]) for match in found if match is not None)
    return sorted(rank for rank in ranks if world_size is None or rank < world_size)


def _read_stats(folder: DataFolder, rank: int) -> PipelineStats | None:
    try:
        with folder.open(stats_name(rank), "rb") as file:
            return PipelineStats.from_json(json.loads(file.read()))
    except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
        return None  # not there, or not whole


def _add(total: PipelineStats, stats: PipelineStats) -> PipelineStats | None:
    if total.stats and len(total.stats) != len(stats.stats):
        return None  # datatrove would cut the sum short
    try:
        return total + stats
    except (AssertionError, ValueError, KeyError, TypeError, AttributeError):
        return None  # other steps, or values that are no numbers


def _write_all(folder: DataFolder, kind: str, files: Sequence[tuple[str, bytes]]) -> None:
    if not files:
        return
    for _ in in_order(lambda file: _write(folder, *file), files, AT_ONCE):
        pass
    if folder.is_local():
        sync_folder(_path(folder, kind))


def _write(folder: DataFolder, name: str, data: bytes) -> None:
    if folder.is_local():
        _write_local(folder, name, data)
        return
    with folder.open(name, "wb") as file:
        file.write(data)


def _write_local(folder: DataFolder, name: str, data: bytes) -> None:
    """Let a file appear whole, with durable content: a rename, from a folder that is ours."""
    final = _path(folder, name)
    if not data:  # whole in any case
        _create(final)
        return
    temporary = _path(folder, f"{_TEMPORARY}/{secrets.token_hex(8)}")
    try:
        _save(temporary, data)
        os.makedirs(os.path.dirname(final), exist_ok=True)
        os.replace(temporary, final)
    except OSError as error:
        _unlink(temporary)
        if error.errno != errno.EXDEV:
            raise
        _save(final, data)  # a folder that is mounted from elsewhere: not at once, but in the end


def _save(path: str, data: bytes) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _create(path: str) -> None:
    try:
        open(path, "wb").close()
    except FileNotFoundError:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        open(path, "wb").close()


def _remove(folder: DataFolder, names: list[str]) -> None:
    if folder.is_local():
        for name in names:
            _unlink(_path(folder, name))
        return
    try:
        folder.rm(names)  # one request for many, where the store can
    except FileNotFoundError:
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                folder.rm_file(name)


def _unlink(path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def _path(folder: DataFolder, name: str) -> str:
    path: str = folder.resolve_paths(name)
    return path
