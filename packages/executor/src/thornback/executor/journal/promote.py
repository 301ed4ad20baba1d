"""Moves published outputs from where they were staged to where they belong: only after their record
is durable.

Idempotent: a file that is no longer staged and exists under its final name has been promoted. Two
drivers that promote the same record do no harm. Files, not folders.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Iterable, Sequence
from typing import Any

import anyio
import fsspec.core
from fsspec.implementations.local import LocalFileSystem

from thornback.executor.journal.errors import JournalError
from thornback.executor.journal.steps import AsyncSteps, RetryParams, call
from thornback.executor.journal.store import sync_folder

AT_ONCE = 8
"""Requests to stores in flight."""


def promote_all(outputs: Iterable[tuple[str, str]]) -> None:
    """Promote (staged, final) pairs; then make renames durable, with one fsync per folder.

    Raises:
        JournalError: neither of a pair exists.
        Exception: whatever the file system raises: the call may be repeated.
    """
    folders: dict[str, None] = {}
    for staged, final in outputs:
        folder = promote(staged, final)
        if folder is not None:
            folders[folder] = None
    for folder in folders:
        sync_folder(folder)


def promote(staged: str, final: str) -> str | None:
    """Promote one pair; return the local folder that is to be synced, if it is one."""
    from_fs, from_path = _resolve(staged)
    to_fs, to_path = _resolve(final)
    if isinstance(from_fs, LocalFileSystem) and isinstance(to_fs, LocalFileSystem):
        _promote_local(from_path, to_path)
        return os.path.dirname(to_path)
    if not from_fs.exists(from_path):
        to_fs.invalidate_cache()
        if not to_fs.exists(to_path):
            raise _missing(staged, final)
        return None
    if isinstance(to_fs, LocalFileSystem):
        _fetch(from_fs, from_path, to_path)
    elif isinstance(from_fs, LocalFileSystem):
        to_fs.put_file(from_path, to_path)
    elif from_fs is to_fs:
        to_fs.copy(from_path, to_path)
    else:
        with from_fs.open(from_path, "rb") as source, to_fs.open(to_path, "wb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
    with contextlib.suppress(FileNotFoundError):
        from_fs.rm_file(from_path)
    return os.path.dirname(to_path) if isinstance(to_fs, LocalFileSystem) else None


async def promote_outputs(
    steps: AsyncSteps, outputs: Sequence[tuple[str, str]], retry: RetryParams
) -> None:
    """Promote in worker threads, with retries: local renames in one go, requests to stores eight at
    a time.

    Raises:
        JournalError: an output is lost, or the store failed for `retry.timeout_s`.
    """
    local = [pair for pair in outputs if _is_local(pair[0]) and _is_local(pair[1])]
    remote = [pair for pair in outputs if not (_is_local(pair[0]) and _is_local(pair[1]))]
    if local:
        await steps.run(call("promote outputs", lambda: promote_all(local)), retry)
    errors: list[JournalError] = []

    async def one(pair: tuple[str, str]) -> None:
        try:
            what = f"promote {pair[0]} to {pair[1]}"
            await steps.run(call(what, lambda: promote_all([pair])), retry)
        except JournalError as error:
            errors.append(error)  # the others go on: what is promoted need not be promoted again

    for start in range(0, len(remote), AT_ONCE):
        async with anyio.create_task_group() as group:
            for pair in remote[start : start + AT_ONCE]:
                group.start_soon(one, pair)
    if errors:
        raise errors[0]


def _resolve(url: str) -> tuple[Any, str]:  # fsspec ships no types
    fs, path = fsspec.core.url_to_fs(url)
    return fs, str(path)


def _is_local(url: str) -> bool:
    return "://" not in url or url.startswith(("file://", "local://"))


def _promote_local(staged: str, final: str) -> None:
    try:
        if os.path.lexists(staged):
            os.makedirs(os.path.dirname(final), exist_ok=True)
            _move(staged, final)
            return
    except FileNotFoundError:
        if os.path.lexists(staged):
            raise
    if not os.path.lexists(final):  # else promoted before, or by another driver just now
        raise _missing(staged, final)


def _move(staged: str, final: str) -> None:
    try:
        os.replace(staged, final)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        _copy_local(staged, final)


def _copy_local(staged: str, final: str) -> None:
    """Across file systems: a copy appears whole, by a rename, and durable."""
    temporary = f"{final}.{secrets.token_hex(4)}.tmp"
    try:
        with open(staged, "rb") as source, open(temporary, "xb") as target:
            shutil.copyfileobj(source, target, 1 << 20)
            target.flush()
            os.fsync(target.fileno())
        shutil.copystat(staged, temporary)
        os.replace(temporary, final)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    with contextlib.suppress(FileNotFoundError):
        os.unlink(staged)


def _fetch(fs: Any, path: str, final: str) -> None:
    os.makedirs(os.path.dirname(final), exist_ok=True)
    temporary = f"{final}.{secrets.token_hex(4)}.tmp"
    try:
        fs.get_file(path, temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, final)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def _missing(staged: str, final: str) -> JournalError:
    return JournalError(
        f"a published output is lost: it is recorded, but neither {staged!r} (staged) nor "
        f"{final!r} (final) exists. "
        "Was state= a folder that only one machine sees, or was the file moved away? Put it back "
        "under its final name, "
        "or start anew with on_mismatch='fresh'"
    )
