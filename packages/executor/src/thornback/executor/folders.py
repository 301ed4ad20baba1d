"""Makes local folders that survive a power loss. Standard library only: rank processes use it."""

from __future__ import annotations

import errno
import os
import stat


def make_folders(folder: str) -> None:
    """Make a folder and those above it that are missing; each is synced into its parent.

    Raises:
        OSError: it cannot be made, or something else has its name.
    """
    missing = []
    while not os.path.exists(folder):
        missing.append(folder)
        above = os.path.dirname(folder.rstrip("/"))
        if above in ("", folder):
            break
        folder = above
    for each in reversed(missing):
        try:
            os.mkdir(each)
        except FileExistsError:
            if not os.path.isdir(each):
                raise
        sync_folder(os.path.dirname(each.rstrip("/")) or os.curdir)


def is_special(path: str) -> bool:
    """Return whether a path leads to a device, pipe or socket, also through a link.

    A rename would replace it. It can belong to the whole machine, as /dev/null does.
    """
    try:
        mode = os.stat(path).st_mode
    except OSError:  # nothing is there, or a link leads nowhere
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def sync_folder(folder: str | int) -> None:
    """Make renames in a folder, given by its path or an open descriptor, durable."""
    fd = folder
    if isinstance(fd, str):
        try:
            fd = os.open(fd, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except PermissionError:  # one may be allowed to make files there, and not to list it
            return
    try:
        os.fsync(fd)
    except OSError as error:
        # Some file systems cannot do that: there is nothing to be done about it.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        if fd is not folder:
            os.close(fd)
