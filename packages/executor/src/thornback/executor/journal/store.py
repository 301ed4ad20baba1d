"""The few blocking calls that the journal needs of a store: put, get, list, delete, under
`<url>/control`.

What must hold: a put is atomic (an object is there whole, or not) and durable at return, and a list
shows every put that has returned. Local folders do so by fsync and rename (fsspec's own `pipe_file`
does neither); object stores by themselves; of other remote file systems it is believed, and
checksums tell where it was wrong.

Limits: on NFS a list can be stale on another client, and only the lock (where the server keeps
locks) protects. Hugging Face repositories make a commit per put: `FileJournal` waits 60 s between
puts there.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Iterable, Mapping
from typing import Any, Protocol, TypeAlias

import attrs
import fsspec
from fsspec.implementations.local import LocalFileSystem

from thornback.executor.folders import make_folders, sync_folder
from thornback.executor.journal.errors import JournalError
from thornback.executor.paths import CONTROL, STAGING, is_url, located_state

LOCK = "lock"
_TEMPORARY = ".tmp-"
FLAT = {"abfs", "az", "gcs", "gs", "hf", "memory", "s3", "s3a"}
"""Protocols without folders of their own: nothing to make, and `makedirs` might create a bucket."""


StorageOptions: TypeAlias = Mapping[str, object]
"""What fsspec takes to make a file system: end points, keys."""


class Store(Protocol):
    """The objects of one state. Any method may raise anything while the store is out of order."""

    @property
    def url(self) -> str: ...

    def put(self, name: str, data: bytes, /) -> None:
        """Write the object; a second put of the same bytes changes nothing."""
        ...

    def get(self, name: str, /) -> bytes | None:
        """Return the object, None if it is not there."""
        ...

    def list(self) -> tuple[str, ...]:
        """Return the names of all objects, ascending; none if there is no such state."""
        ...

    def delete(self, names: Iterable[str], /) -> None:
        """Remove the objects; those not there are passed over."""
        ...


class JournalStore(Store, Protocol):
    """A store as `open_store` makes it: a driver can lock it, and it has a folder of staged
    outputs.
    """

    @property
    def protocol(self) -> str:
        """`file`, `s3`, `gs`, `hf`, ..."""
        ...

    def lock(self) -> bool | None:
        """Take the lock of the state: True, False (another one has it), None (there are no locks
        here).
        """
        ...

    def unlock(self) -> None:
        """Give it back. Idempotent."""
        ...

    def sweep_staging(self, term: int, /) -> None:
        """Remove what attempts up to this term have staged
        (`staging/<stage>/<term>.<assignment>/...`).
        """
        ...


def open_store(url: str, storage_options: StorageOptions | None = None) -> JournalStore:
    """Return the store of a state (blocking). Nothing is written.

    Args:
        url: of the state.
        storage_options: of its file system, as fsspec takes them. They may be secrets: they go
            nowhere else, and into no message of ours.

    Raises:
        JournalError: the URL is of no kind that is known or installed, or does not take these
            options.
    """
    # Own instance without a cache of listings: nobody else's listing may answer for ours.
    own = {"skip_instance_cache": True, "use_listings_cache": False}
    try:
        place = located_state(url, os.getcwd(), protocols())
        if not is_url(place):
            return LocalStore(url=url, root=os.path.abspath(place))
        fs, path = file_system(place, {**(storage_options or {}), **own})
    except (ImportError, ValueError, TypeError) as error:
        raise JournalError(
            f"state {url!r} cannot be opened: {error}. Expected a path, or a URL of a protocol "
            "that fsspec knows and "
            "whose package is installed (s3fs for s3://, gcsfs for gs://, adlfs for abfs://), and "
            "the storage_options of that package"
        ) from error
    protocol = fs.protocol if isinstance(fs.protocol, str) else fs.protocol[0]
    return RemoteStore(url=url, fs=fs, root=path.rstrip("/"), protocol=protocol)


def protocols() -> frozenset[str]:
    """Return the protocols that fsspec knows here, also those that were registered by hand."""
    return frozenset((*fsspec.available_protocols(), *fsspec.registry))


def file_system(place: str, options: StorageOptions | None = None) -> tuple[Any, str]:
    """Return the file system of a located place, and the place as the file system names it.

    As `fsspec.core.url_to_fs`, but nothing is a chain: `::` in a name is part of the name.

    Raises:
        ImportError, ValueError, TypeError: there is no such file system, or not with these options.
    """
    if not is_url(place):
        return LocalFileSystem(), place
    protocol = place.partition("://")[0]
    kind = fsspec.get_filesystem_class(protocol)
    given = dict(options or {})
    own = given.pop(protocol, {})  # fsspec's way of giving options to one protocol
    in_url = kind._get_kwargs_from_urls(place)  # user and host, for some
    return kind(**{**in_url, **given, **(own if isinstance(own, Mapping) else {})}), str(
        kind._strip_protocol(place)
    )


@attrs.define(kw_only=True, slots=True, eq=False)
class LocalStore:
    """A folder on this machine (or mounted on it)."""

    url: str
    root: str
    protocol: str = "file"
    _lock_fd: int | None = None

    def put(self, name: str, data: bytes, /) -> None:
        """Temporary file, fsync, rename, fsync of the folder."""
        folder = self._folder()
        temporary = os.path.join(folder, f"{_TEMPORARY}{secrets.token_hex(8)}")
        try:
            self._write(temporary, data)
        except FileNotFoundError:
            make_folders(folder)
            self._write(temporary, data)
        try:
            os.replace(temporary, os.path.join(folder, name))
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        sync_folder(folder)

    def get(self, name: str, /) -> bytes | None:
        try:
            with open(os.path.join(self._folder(), name), "rb") as file:
                return file.read()
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.filename is None:  # a read that failed, after the file was opened
                error.filename = os.path.join(self._folder(), name)
            raise

    def list(self) -> tuple[str, ...]:
        try:
            names = os.listdir(self._folder())
        except FileNotFoundError:
            return ()
        return tuple(sorted(name for name in names if not name.startswith(_TEMPORARY)))

    def delete(self, names: Iterable[str], /) -> None:
        for name in names:
            with contextlib.suppress(FileNotFoundError, IsADirectoryError):  # a folder is not ours
                os.unlink(os.path.join(self._folder(), name))

    def lock(self) -> bool | None:
        """Take the flock; it ends with this process, however that ends. Sweeps what a dead driver
        left half-written.
        """
        try:
            import fcntl
        except ImportError:  # not a POSIX system: the beat alone has to do
            return None
        make_folders(self._folder())
        fd = os.open(
            os.path.join(self._folder(), LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644
        )
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(fd)
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                return False
            if error.errno in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL):
                return None
            raise
        self._lock_fd = fd
        for name in os.listdir(self._folder()):
            if name.startswith(_TEMPORARY):
                self.delete([name])
        return True

    def unlock(self) -> None:
        if self._lock_fd is not None:
            fd, self._lock_fd = self._lock_fd, None
            os.close(fd)

    def sweep_staging(self, term: int, /) -> None:
        for stage in _folders(os.path.join(self.root, STAGING)):
            for epoch in _folders(stage):
                if _term_of(epoch) <= term:
                    shutil.rmtree(epoch, ignore_errors=True)
            with contextlib.suppress(OSError):
                os.rmdir(stage)  # unless something is left in it

    def _folder(self) -> str:
        return os.path.join(self.root, CONTROL)

    @staticmethod
    def _write(path: str, data: bytes) -> None:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            with open(fd, "wb", closefd=True) as file:
                file.write(data)
                file.flush()
                os.fsync(fd)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(path)
            raise


@attrs.define(kw_only=True, slots=True, eq=False)
class RemoteStore:
    """Any other file system of fsspec. Has no lock."""

    url: str
    fs: Any  # fsspec ships no types
    root: str
    protocol: str

    def put(self, name: str, data: bytes, /) -> None:
        try:
            self.fs.pipe_file(self._path(name), data)
        except FileNotFoundError:
            if self.protocol in FLAT:
                raise
            self.fs.makedirs(f"{self.root}/{CONTROL}", exist_ok=True)
            self.fs.pipe_file(self._path(name), data)

    def get(self, name: str, /) -> bytes | None:
        try:
            data: bytes = self.fs.cat_file(self._path(name))
        except FileNotFoundError:
            return None
        return data

    def list(self) -> tuple[str, ...]:
        self.fs.invalidate_cache()
        try:
            paths: list[str] = self.fs.ls(f"{self.root}/{CONTROL}", detail=False)
        except FileNotFoundError:
            return ()
        names = (path.rstrip("/").rpartition("/")[2] for path in paths)
        return tuple(sorted(name for name in names if name != CONTROL))

    def delete(self, names: Iterable[str], /) -> None:
        paths = [self._path(name) for name in names]
        if not paths:
            return
        try:
            self.fs.rm(paths)  # one request for many, where the store can
        except FileNotFoundError:
            for path in paths:
                with contextlib.suppress(FileNotFoundError):
                    self.fs.rm_file(path)

    def lock(self) -> bool | None:
        return None

    def unlock(self) -> None:
        pass

    def sweep_staging(self, term: int, /) -> None:
        self.fs.invalidate_cache()
        with contextlib.suppress(FileNotFoundError):
            for stage in self.fs.ls(f"{self.root}/{STAGING}", detail=False):
                for epoch in self.fs.ls(stage, detail=False):
                    if _term_of(epoch) <= term:
                        self.fs.rm(epoch, recursive=True)

    def _path(self, name: str) -> str:
        return f"{self.root}/{CONTROL}/{name}"


def _folders(path: str) -> list[str]:
    """Return the folders in a folder, none if there is no such folder. Links are not followed."""
    try:
        with os.scandir(path) as found:
            return sorted(entry.path for entry in found if entry.is_dir(follow_symlinks=False))
    except (FileNotFoundError, NotADirectoryError):
        return []


def _term_of(epoch: str) -> float:
    """Return the term in the name of an epoch's folder; infinity for a name that is none."""
    text = epoch.rstrip("/").rpartition("/")[2].partition(".")[0]
    return int(text) if text.isdecimal() else float("inf")
