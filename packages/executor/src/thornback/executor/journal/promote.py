"""Moves published outputs from where they were staged to where they belong: only after their record
is durable.

Idempotent: a file that is no longer staged and exists under its final name has been promoted. Two
drivers that promote the same record do no harm. Files, not folders.

Nothing is trusted: a record is data that others could have written, and a staged path was named by
a rank. What is moved is a regular file below the state's own `staging/`, reached without following
a link. Where it may go is decided elsewhere: by the driver in a run, by `pending.py` at open.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import mimetypes
import os
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import anyio
import attrs

from thornback.executor.folders import is_special, make_folders, sync_folder
from thornback.executor.journal.errors import JournalError
from thornback.executor.journal.steps import PERMANENT, AsyncSteps, RetryParams, call
from thornback.executor.journal.store import FLAT, StorageOptions, file_system
from thornback.executor.paths import STAGING, is_url, normalised, staged_parts
from thornback.faults import redact

AT_ONCE = 8
"""Requests to stores in flight."""
_FINAL_ERRNOS = frozenset(
    (
        errno.EACCES,
        errno.EFBIG,
        errno.EINVAL,
        errno.EISDIR,
        errno.ELOOP,
        errno.ENAMETOOLONG,
        errno.ENOTDIR,
        errno.EPERM,
        errno.EROFS,
    )
)
_FINAL_NAMES = frozenset(
    (
        "ClientAuthenticationError",
        "DefaultCredentialsError",
        "NoCredentialsError",
        "NoSuchBucket",
        "PartialCredentialsError",
        "RefreshError",
    )
)
"""Of the libraries under s3fs, gcsfs and adlfs: no retry finds credentials."""
_FINAL_STATUS = (400, 401, 403, 404, 405)


class Missing(JournalError):
    """An output is neither staged nor final."""


class Unpromotable(JournalError):
    """An output that can never be promoted; trying again is useless."""


@attrs.define(kw_only=True, slots=True, eq=False)
class Mover:
    """Promotes outputs of one state. Blocking; may be used by several threads.

    Args:
        state: absolute path or URL of the state whose `staging/` files come from; None: whatever
            state their paths name.
        storage_options: of the state's file system; used for what has the same endpoint.
        term: of the driver that promotes.
    """

    state: str | None = None
    storage_options: StorageOptions | None = attrs.field(default=None, repr=False)
    term: int = 0
    _systems: dict[str, Any] = attrs.field(factory=dict, init=False, repr=False)

    def promote_all(self, outputs: Iterable[tuple[str, str]]) -> None:
        """Promote (staged, final) pairs; then make renames durable, with one fsync per folder.

        Raises:
            JournalError: one of them cannot be promoted.
            Exception: whatever the file system raises: the call may be repeated.
        """
        folders: dict[str, None] = {}
        for staged, final in outputs:
            if (folder := self.promote(staged, final)) is not None:
                folders[folder] = None
        for folder in folders:
            sync_folder(folder)

    def promote(self, staged: str, final: str) -> str | None:
        """Promote one pair; return the local folder that is to be synced, if it is one.

        Raises:
            Missing: neither of them exists.
            Unpromotable: the staged file is not what a rank can have published, or the target can
                never be written.
            Exception: see `promote_all`.
        """
        try:
            return self._promote(staged, final)
        except JournalError:
            raise
        except Exception as error:
            if not is_final(error):
                raise
            said = f"{staged!r} to {final!r}: {type(error).__name__}: {error}"
            raise Unpromotable(
                f"cannot promote {redact(said)}. The record of the rank stands; correct what the "
                "error names and run the job again"
            ) from error

    def is_staged(self, staged: str) -> bool:
        """Return whether the staged file, of the right kind, is there; raises as `promote`."""
        source = self._staged(staged)
        if is_url(source):
            return _exists(*self._system(source))
        with _opened_folder(source) as folder:
            return folder is not None and _is_regular(folder, source)

    def is_there(self, final: str) -> bool:
        """Return whether there is something under a final name."""
        return _exists(*self._system(final)) if is_url(final) else os.path.lexists(final)

    def clean(self, staged: str, final: str, terms: Iterable[int]) -> None:
        """Remove what drivers of these terms have left of copies of this output that they did not
        finish. Nothing else can have these names.
        """
        if is_url(final):
            return
        for term in terms:
            name = temporary_name(staged, final, term)
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                os.unlink(os.path.join(os.path.dirname(final), name))

    def _staged(self, staged: str) -> str:
        """Return the place of a staged file in our own state, which may have been moved since."""
        parts = staged_parts(staged)
        if parts is None:
            raise Unpromotable(
                f"{staged!r} cannot be promoted: expected a file that a rank has staged, "
                "<state>/staging/<stage>/<assignment id>/<rank>/<name>"
            )
        state, *below = parts
        root = state if self.state is None else self.state.rstrip("/")
        return "/".join((root, STAGING, *map(str, below)))

    def _promote(self, staged: str, final: str) -> str | None:
        source = self._staged(staged)
        if not is_url(final) and is_special(final):
            raise Unpromotable(
                f"cannot replace {final!r}: it is not a regular file, but a device, pipe or socket"
            )
        if not is_url(source) and not is_url(final):
            self._promote_local(source, staged, final)
            return os.path.dirname(final)
        if not self._transfer(source, staged, final) and not self.is_there(final):
            raise _missing(source, final)
        return None if is_url(final) else os.path.dirname(final)

    def _promote_local(self, source: str, staged: str, final: str) -> None:
        with _opened_folder(source) as folder:
            if folder is not None and _is_regular(folder, source):
                make_folders(os.path.dirname(final))
                try:
                    self._move(folder, source, staged, final)
                    return
                except FileNotFoundError:
                    if _is_regular(folder, source):
                        raise
        if not os.path.lexists(final):  # else promoted before, or by another driver just now
            raise _missing(source, final)

    def _move(self, folder: int, source: str, staged: str, final: str) -> None:
        try:
            os.replace(os.path.basename(source), final, src_dir_fd=folder)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            with _opened_file(folder, source) as file:
                self._write(file, staged, final)
            _unlink(os.path.basename(source), folder)
        _refuse_link(final)

    def _write(self, source: int, staged: str, final: str) -> None:
        """Copy across file systems: the copy appears whole, by a rename, and durable."""
        facts = os.fstat(source)
        with self._temporary(staged, final) as target:
            with (
                open(source, "rb", closefd=False) as reader,
                open(target, "wb", closefd=False) as writer,
            ):
                shutil.copyfileobj(reader, writer, 1 << 20)
            os.fchmod(target, stat.S_IMODE(facts.st_mode) & 0o777)
            os.utime(target, ns=(facts.st_atime_ns, facts.st_mtime_ns))

    @contextlib.contextmanager
    def _temporary(self, staged: str, final: str) -> Iterator[int]:
        """Give a file beside `final` that takes its name if the block succeeds.

        A driver that was paused may still write to the one of its own term, and the next driver
        must not continue that: hence the term in the name.
        """
        name = temporary_name(staged, final, self.term)
        folder = os.open(os.path.dirname(final), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _unlink(name, folder)  # of an attempt before this one
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            target = os.open(name, flags, 0o644, dir_fd=folder)
            try:
                yield target
                os.fsync(target)
                os.replace(name, os.path.basename(final), src_dir_fd=folder, dst_dir_fd=folder)
            except BaseException:
                with contextlib.suppress(OSError):
                    os.unlink(name, dir_fd=folder)
                raise
            finally:
                os.close(target)
        finally:
            os.close(folder)

    def _transfer(self, source: str, staged: str, final: str) -> bool:
        """Promote where at least one side is a store; False: it is not staged any more."""
        if not is_url(source):
            with _opened_folder(source) as folder:
                if folder is None or not _is_regular(folder, source):
                    return False
                with _opened_file(folder, source) as file:
                    self._upload(file, final)
                _unlink(os.path.basename(source), folder)
            return True
        fs, path = self._system(source)
        if not _exists(fs, path):
            return False
        if is_url(final):
            self._copy(fs, path, final)
        else:
            make_folders(os.path.dirname(final))
            with (
                self._temporary(staged, final) as target,
                fs.open(path, "rb") as reader,
                open(target, "wb", closefd=False) as writer,
            ):
                shutil.copyfileobj(reader, writer, 1 << 20)
        with contextlib.suppress(FileNotFoundError):
            fs.rm_file(path)
        return True

    def _upload(self, source: int, final: str) -> None:
        fs, path = self._system(final)
        kind = mimetypes.guess_type(final)[0]
        more = {"ContentType": kind} if kind and _protocol(final) in ("s3", "s3a") else {}
        # By its descriptor, so that it is the file that was checked, whatever its path names now.
        _with_parents(fs, path, lambda: fs.put_file(f"/dev/fd/{source}", path, **more))

    def _copy(self, fs: Any, path: str, final: str) -> None:
        other, target = self._system(final)
        if fs is other:
            _with_parents(fs, target, lambda: fs.cp_file(path, target))
            return

        def stream() -> None:
            with fs.open(path, "rb") as reader, other.open(target, "wb") as writer:
                shutil.copyfileobj(reader, writer, 1 << 20)

        _with_parents(other, target, stream)

    def _system(self, url: str) -> tuple[Any, str]:  # fsspec ships no types
        """Return the file system of a URL, with the state's options at the state's endpoint only:
        they may be secrets, which are nobody else's business.
        """
        endpoint = _endpoint(url)
        own = self.state is not None and is_url(self.state) and endpoint == _endpoint(self.state)
        if (fs := self._systems.get(endpoint)) is None:
            fresh = {"skip_instance_cache": True, "use_listings_cache": False}
            options = {**(self.storage_options or {}), **fresh} if own else None
            fs, path = file_system(url, options)
            self._systems[endpoint] = fs
            return fs, path
        return fs, str(fs._strip_protocol(url))


def temporary_name(staged: str, final: str, term: int) -> str:
    """Return how an unfinished copy is called beside its final name: it says which, and whose.

    Its length does not depend on the final name, so that it is possible wherever that is.
    """
    pair = f"{staged}\0{final}".encode("utf-8", "surrogatepass")
    return f".thornback-{hashlib.blake2b(pair, digest_size=8).hexdigest()}-{term}.tmp"


def is_final(error: Exception) -> bool:
    """Return whether trying again is useless."""
    if isinstance(error, OSError) and error.errno in _FINAL_ERRNOS:
        return True
    if isinstance(error, PERMANENT) or _FINAL_NAMES & {c.__name__ for c in type(error).__mro__}:
        return True
    said = (getattr(error, name, None) for name in ("code", "status", "status_code"))
    return any(type(code) is int and code in _FINAL_STATUS for code in said)


async def promote_outputs(
    steps: AsyncSteps, mover: Mover, outputs: Sequence[tuple[str, str]], retry: RetryParams
) -> None:
    """Promote in worker threads, with retries: local renames in one go, requests to stores eight at
    a time.

    Raises:
        JournalError: an output is lost or can never be promoted, or the store failed for
            `retry.timeout_s`.
    """
    local = [pair for pair in outputs if not is_url(pair[0]) and not is_url(pair[1])]
    remote = [pair for pair in outputs if is_url(pair[0]) or is_url(pair[1])]
    if local:
        await steps.run(call("promote outputs", lambda: mover.promote_all(local)), retry)
    errors: list[JournalError] = []

    async def one(pair: tuple[str, str]) -> None:
        try:
            what = f"promote {pair[0]} to {pair[1]}"
            await steps.run(call(what, lambda: mover.promote_all([pair])), retry)
        except JournalError as error:
            errors.append(error)  # the others go on: what is promoted need not be promoted again

    for start in range(0, len(remote), AT_ONCE):
        async with anyio.create_task_group() as group:
            for pair in remote[start : start + AT_ONCE]:
                group.start_soon(one, pair)
        if errors:
            raise errors[0]


@contextlib.contextmanager
def _opened_folder(source: str) -> Iterator[int | None]:
    """Give a descriptor of a staged file's folder, reached without following a link below the
    state; None: there is no such folder.
    """
    state, below = _split(source)
    opened: list[int] = []
    try:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
        try:
            opened.append(os.open(state, flags))
            for part in below[:-1]:
                opened.append(os.open(part, flags | os.O_NOFOLLOW, dir_fd=opened[-1]))
        except FileNotFoundError:
            yield None
            return
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.ENOTDIR):
                raise
            raise _unsafe(
                source, "a link or a file is in the place of a folder on its path"
            ) from None
        yield opened[-1]
    finally:
        for fd in opened:
            os.close(fd)


@contextlib.contextmanager
def _opened_file(folder: int, source: str) -> Iterator[int]:
    # Not blocking: it could have become a FIFO since it was looked at.
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        file = os.open(os.path.basename(source), flags, dir_fd=folder)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise _unsafe(source, "it is a link") from None
    try:
        if not stat.S_ISREG(os.fstat(file).st_mode):
            raise _unsafe(source, "it is not a regular file")
        yield file
    finally:
        os.close(file)


def _is_regular(folder: int, source: str) -> bool:
    """Return whether the staged file is there; raises if it is something else."""
    try:
        facts = os.stat(os.path.basename(source), dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    if not stat.S_ISREG(facts.st_mode):
        link = stat.S_ISLNK(facts.st_mode)
        raise _unsafe(source, "it is a link" if link else "it is not a regular file")
    return True


def _refuse_link(final: str) -> None:
    """Take away what was moved if it has become a link between the look at it and the move."""
    try:
        moved_link = stat.S_ISLNK(os.lstat(final).st_mode)
    except FileNotFoundError:
        return
    if moved_link:
        os.unlink(final)
        raise _unsafe(final, "it became a link while it was promoted")


def _unlink(name: str, folder: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(name, dir_fd=folder)


def _split(source: str) -> tuple[str, list[str]]:
    state, *below = source.rsplit("/", 5)
    return state or "/", below


def _exists(fs: Any, path: str) -> bool:
    """As `fs.exists`, which takes every failure of the store for an absence."""
    fs.invalidate_cache()
    try:
        fs.info(path)
    except FileNotFoundError:
        return False
    return True


def _with_parents(fs: Any, path: str, write: Callable[[], object]) -> None:
    """Call `write`; where folders have to be made first, do that and call it again."""
    protocols = (fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol
    try:
        write()
    except FileNotFoundError:
        if not FLAT.isdisjoint(protocols):
            raise
        fs.makedirs(fs._parent(path), exist_ok=True)
        write()


def _protocol(url: str) -> str:
    return url.partition("://")[0]


def _endpoint(url: str) -> str:
    """Return protocol and host (or bucket), as far as the state's options are good there."""
    scheme, _, rest = normalised(url).partition("://")
    return f"{scheme}://{rest.partition('/')[0].rpartition('@')[2]}"


def _unsafe(path: str, why: str) -> Unpromotable:
    return Unpromotable(
        f"{path!r} cannot be promoted: {why}. Expected a regular file in the folder that "
        "ctx.publish() gave"
    )


def _missing(staged: str, final: str) -> Missing:
    return Missing(
        f"a published output is lost: it is recorded, but neither {staged!r} (staged) nor "
        f"{final!r} (final) exists. "
        "Was state= a folder that only one machine sees, or was the file moved away? Run the job "
        "again: the rank that published it runs again"
    )
