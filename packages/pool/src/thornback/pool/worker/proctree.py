"""Processes and their trees, as the kernel tells them.

Linux: complete. Elsewhere there is neither `/proc` nor `prctl`: then no children are found, nothing
is adopted, and what a rank started in a process group of its own outlives it. Importing this works
everywhere.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Iterator

from thornback.pool.worker.unpatched import open, os, signal

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_OOM_SCORE = 500
_WAIT_ALL = 0x40000000
"""`__WALL` of wait(2): also children that do not signal their end."""


def _prctl(option: int, value: int) -> bool:
    if not sys.platform.startswith("linux"):
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    return bool(libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) == 0)


def adopt_orphans() -> bool:
    """Become the parent of every descendant whose parent dies ("child subreaper"); False: not
    possible here."""
    return _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent() -> bool:
    """Ask the kernel for SIGKILL when the thread that forked this process ends; False: not possible
    here.

    The caller must then check that its parent has not died before.
    """
    return _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def outlive_parent() -> bool:
    """Take `die_with_parent` back."""
    return _prctl(_PR_SET_PDEATHSIG, 0)


def be_killed_first() -> None:
    """Have the kernel, out of memory, rather kill this process than one that supervises it."""
    with contextlib.suppress(OSError, ValueError), open("/proc/self/oom_score_adj", "r+") as file:
        if int(file.read()) < _OOM_SCORE:
            file.write(str(_OOM_SCORE))


def thread_count() -> int:
    """Return the number of threads of this process that the kernel knows (also those not made by
    Python)."""
    try:
        return len(os.listdir("/proc/self/task"))
    except OSError:
        return 1


def has_children() -> bool:
    """Tell whether this process has any children, zombies included; in a hundredth of the time of
    `children_of`."""
    if not sys.platform.startswith("linux"):
        return True
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT | _WAIT_ALL)
    except ChildProcessError:
        return False
    return True


def children_of(pid: int) -> list[int]:
    """Return the direct children of a process, zombies included; none if it is gone."""
    found: list[int] = []
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return found
    for thread in threads:
        try:
            with open(f"/proc/{pid}/task/{thread}/children", "rb", buffering=0) as file:
                found.extend(map(int, file.read().split()))
        except FileNotFoundError:
            if os.path.exists(f"/proc/{pid}/task/{thread}"):
                return _children_by_scan(pid)  # a kernel without CONFIG_PROC_CHILDREN
        except OSError:
            continue
    return found


def _children_by_scan(pid: int) -> list[int]:
    return [each for each in all_pids() if _parent_of(each) == pid]


def all_pids() -> Iterator[int]:
    """Yield the ids of all processes that can be seen."""
    with contextlib.suppress(OSError):
        yield from (int(name) for name in os.listdir("/proc") if name.isdigit())


def _stat(pid: int) -> list[bytes]:
    """Return the fields of `/proc/pid/stat` from the third on (the second may contain blanks); none
    if it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
            return file.read().rpartition(b")")[2].split()
    except OSError:
        return []


def _parent_of(pid: int) -> int:
    fields = _stat(pid)
    return int(fields[1]) if fields else 0


def is_alive(pid: int) -> bool:
    """Tell whether the process exists and is not a zombie."""
    fields = _stat(pid)
    return bool(fields) and fields[0] not in (b"Z", b"X")


def descendants_of(pid: int) -> list[int]:
    """Return all processes below `pid`, parents before children."""
    found: dict[int, None] = {}
    queue = children_of(pid)
    while queue:
        each = queue.pop()
        if each not in found:
            found[each] = None
            queue.extend(children_of(each))
    return list(found)


def start_time(pid: int) -> int:
    """Return when the process started, in ticks since the boot: with its id, it names a process for
    good; 0 if it is gone or a zombie."""
    fields = _stat(pid)
    return int(fields[19]) if fields and fields[0] not in (b"Z", b"X") else 0


def kill(pid: int) -> None:
    """SIGKILL, whether or not it still exists. Only for pids that cannot have been given to another
    process."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGKILL)


def kill_group(pgid: int) -> None:
    """SIGKILL to a process group, whether or not it still exists."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pgid, signal.SIGKILL)


def rss_bytes(pid: int) -> int:
    """Return the resident memory of one process; 0 if it is gone."""
    try:
        with open(f"/proc/{pid}/statm", "rb", buffering=0) as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def tree_rss_bytes(pid: int) -> int:
    """Return the resident memory of a process and all below it; pages that they share count for
    each."""
    return sum(map(rss_bytes, (pid, *descendants_of(pid))))


def pids_with_environment(entry: bytes) -> list[int]:
    """Return the processes that were started with this `NAME=value` in their environment, or forked
    from such."""
    found = []
    for pid in all_pids():
        with contextlib.suppress(OSError), open(f"/proc/{pid}/environ", "rb") as file:
            if entry in file.read().split(b"\0"):
                found.append(pid)
    return found
