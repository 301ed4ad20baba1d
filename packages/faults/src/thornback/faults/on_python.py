"""What the standard library (and anyio, trio) raise where no code of the rank runs: by origin.

The same exception means something else in each place: a closed pipe is the death of the process at
its other end for the supervisor, and a service that does not answer for the driver. Errors of the
rank's own code are its own (`LAST_RULES`, or the opt-in sets), with two exceptions. A broken disk
or mount, and a node without free files, threads or kernel memory, are the node's fault wherever
they are seen. A child process of the rank that was killed counts as a crash.
"""

from __future__ import annotations

import errno

from thornback.faults.kinds import FaultKind, Origin
from thornback.faults.rules import Rule
from thornback.faults.tables import NOT_RANK, PROCESSES

UNREACHABLE = (errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN)

PYTHON_RULES = (
    Rule(
        name="python.disk_full",
        kind=FaultKind.RESOURCE,
        types=("builtins.OSError",),
        facts={"errno": (errno.ENOSPC, errno.EDQUOT)},
        why="the disk, or the quota, is full",
    ),
    Rule(
        name="python.stale_mount",
        kind=FaultKind.RESOURCE,
        types=("builtins.OSError",),
        facts={"errno": errno.ESTALE},
        why="the node's mount of a network file system is stale",
    ),
    Rule(
        name="python.disk_broken",
        kind=FaultKind.RESOURCE,
        types=("builtins.OSError",),
        facts={
            "errno": (
                errno.EIO,
                errno.EROFS,
                errno.ENXIO,
                errno.ENODEV,
                errno.EREMOTEIO,
                # "Transport endpoint is not connected": the process behind a FUSE mount has died.
                errno.ENOTCONN,
            )
        },
        why="a disk or mount of the node is broken, gone, or read-only",
    ),
    Rule(
        name="python.too_many",
        kind=FaultKind.RESOURCE,
        types=("builtins.OSError",),
        facts={"errno": (errno.EMFILE, errno.ENFILE, errno.ENOMEM)},
        why="the node has no more files or kernel memory to give",
    ),
    Rule(
        name="python.too_many_processes",
        kind=FaultKind.RESOURCE,
        types=("builtins.OSError",),
        facts={"errno": errno.EAGAIN, "of_fork": True},
        why="the node has no more processes to give",
    ),
    # In a rank, EAGAIN is what a socket or lock that does not block answers: no fault of the node.
    Rule(
        name="python.try_again",
        kind=FaultKind.RESOURCE,
        types=("builtins.OSError",),
        origins=NOT_RANK,
        facts={"errno": (errno.EAGAIN, errno.ENOBUFS)},
        why="the node has no more processes or buffers to give",
    ),
    Rule(
        name="python.no_thread",
        kind=FaultKind.RESOURCE,
        types=("builtins.RuntimeError",),
        texts=("can't start new thread",),
        why="the node has no more threads to give",
    ),
    Rule(
        name="python.out_of_memory",
        kind=FaultKind.OOM,
        types=("builtins.MemoryError",),
        origins=NOT_RANK,
        why="no memory was left",
    ),
    Rule(
        name="python.interrupted",
        kind=FaultKind.INTERRUPTED,
        types=(
            "asyncio.exceptions.CancelledError",
            "concurrent.futures._base.CancelledError",
            "trio.Cancelled",
            "builtins.KeyboardInterrupt",
        ),
        origins=NOT_RANK,
        why="cancelled, and nobody here had asked for it",
    ),
    Rule(
        name="python.refused",
        kind=FaultKind.UNAVAILABLE,
        types=("builtins.ConnectionRefusedError", "socket.gaierror"),
        origins=NOT_RANK,
        why="nobody answers there",
    ),
    Rule(
        name="python.unreachable",
        kind=FaultKind.UNAVAILABLE,
        types=("builtins.OSError",),
        origins=NOT_RANK,
        facts={"errno": UNREACHABLE},
        why="there is no way there",
    ),
    Rule(
        name="python.pipe_closed",
        kind=FaultKind.WORKER_CRASH,
        types=(
            "builtins.EOFError",
            "builtins.ConnectionError",
            "anyio.BrokenResourceError",
            "anyio.EndOfStream",
            "trio.BrokenResourceError",
        ),
        origins=PROCESSES,
        why="the other end of its pipe is gone",
    ),
    Rule(
        name="python.connection",
        kind=FaultKind.UNAVAILABLE,
        types=("builtins.ConnectionError",),
        origins=(Origin.PLACEMENT, Origin.DRIVER),
        why="the connection to a service failed",
    ),
    Rule(
        name="python.executor_broken",
        kind=FaultKind.WORKER_CRASH,
        types=(
            "concurrent.futures._base.BrokenExecutor",
            "anyio.BrokenWorkerProcess",
        ),
        origins=PROCESSES,
        why="a child process died",
    ),
    # Not every BrokenExecutor: a thread pool breaks when its initializer raises, which is a bug.
    Rule(
        name="python.process_pool_broken",
        kind=FaultKind.WORKER_CRASH,
        types=("concurrent.futures.process.BrokenProcessPool", "anyio.BrokenWorkerProcess"),
        origins=(Origin.RANK,),
        why="a child process of the rank died",
    ),
    Rule(
        name="python.child_killed",
        kind=FaultKind.WORKER_CRASH,
        types=("subprocess.CalledProcessError",),
        origins=(Origin.RANK,),
        facts={"returncode": (-9, 137)},
        why="a program that the rank ran was killed, most often for its memory",
    ),
    Rule(
        name="python.child_timed_out",
        kind=FaultKind.TIMEOUT,
        types=("subprocess.TimeoutExpired",),
        origins=(Origin.RANK,),
        why="a program that the rank ran took too long",
    ),
    Rule(
        name="python.timed_out",
        kind=FaultKind.TIMEOUT,
        types=(
            "builtins.TimeoutError",
            "multiprocessing.context.TimeoutError",
            "subprocess.TimeoutExpired",
            "trio.TooSlowError",
        ),
        origins=NOT_RANK,
        why="it took too long",
    ),
    Rule(
        name="python.import",
        kind=FaultKind.SETUP,
        types=("builtins.ImportError",),
        origins=PROCESSES,
        phase="setup",
        why="a module is missing on that node",
    ),
    Rule(
        name="python.file_missing",
        kind=FaultKind.SETUP,
        types=("builtins.FileNotFoundError", "builtins.PermissionError"),
        origins=PROCESSES,
        phase="setup",
        why="a file or program that the worker needs is missing on that node, or closed to it",
    ),
    Rule(
        name="python.installation",
        kind=FaultKind.SYSTEM,
        types=("builtins.ImportError",),
        origins=(Origin.PLACEMENT, Origin.DRIVER),
        why="a broken installation",
    ),
    Rule(
        name="python.pickle",
        kind=FaultKind.SYSTEM,
        types=("_pickle.PickleError", "pickle.PickleError"),
        origins=NOT_RANK,
        why="driver and worker do not have the same code",
    ),
    Rule(
        name="placement.refused",
        kind=FaultKind.UNSCHEDULABLE,
        types=("builtins.ValueError", "builtins.TypeError"),
        origins=(Origin.PLACEMENT,),
        why="the request itself was refused",
    ),
)
