"""The local folder in which the demo keeps its state: which folders it may use, and what it may
remove.

A marker file says that a folder is the demo's. The name of a subfolder is no evidence: any project
may have a folder called `control` or `parts`.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from pathlib import Path

CONTROL = "control"
"""The journal's folder inside a state."""
LOCK = "lock"
"""The file in it that the driver of a run holds an flock on."""
MARKER = ".thornback-demo"
"""The file that says that a folder is a state of the demo. Written before anything else."""
_OWN = ("parts", "traces", "staging", "logs", "checkpoints", "requests", CONTROL)
"""All folders that a run of the demo makes in its state, the record last."""
_HEADER_BYTES = 1 << 20
_NOTE = "A state of `thornback demo`, which removes it when it is given --fresh.\n"


class NotAState(ValueError):
    """The folder cannot be used: it holds something else, or is in use. Nothing was removed."""


def check_usable(state: Path) -> None:
    """Return if `state` is new, empty, or the state of an earlier demo.

    Raises:
        NotAState: it is anything else; the message says what to do.
    """
    if state.is_symlink() or (state.exists() and not state.is_dir()):
        raise NotAState(f"{state} is not a folder: give another --state")
    if state.exists() and not _is_demo_state(state) and any(state.iterdir()):
        raise NotAState(
            f"{state} is not empty and is not the state of an earlier demo (it has no {MARKER} "
            "file): give --state a new or an empty folder"
        )


def mark(state: Path) -> None:
    """Make the folder, and mark it as a state of the demo. Idempotent.

    Raises:
        NotAState: it cannot be written to.
    """
    try:
        state.mkdir(parents=True, exist_ok=True)
        (state / MARKER).write_text(_NOTE, encoding="utf-8")
    except OSError as error:
        raise NotAState(f"{state} cannot be used ({error}): give another --state") from error


def remove(state: Path) -> bool:
    """Remove the state of an earlier demo. Returns False when there is none.

    Only the folders that the demo itself makes are removed. Links are not followed. The folder
    itself stays if it holds anything else.

    Raises:
        NotAState: it is not a state of the demo, or a run is using it.
        OSError: it cannot be removed; parts may be gone, and the same call removes the rest.
    """
    check_usable(state)
    if not state.exists():
        return False
    for name in _OWN:
        if (state / name).is_symlink():
            raise NotAState(
                f"{state / name} is a link, expected a folder: remove the link, or give another "
                "--state"
            )
    with contextlib.ExitStack() as held:
        lock = state / CONTROL / LOCK
        if lock.exists():
            _hold(lock, state, held)
        mark(state)  # a demo that dies in the middle of this leaves a folder that is still known
        for name in _OWN:
            if (state / name).is_dir():
                shutil.rmtree(state / name)
        (state / MARKER).unlink()
        with contextlib.suppress(OSError):  # it holds something else
            state.rmdir()
    return True


def _is_demo_state(state: Path) -> bool:
    marker = state / MARKER
    if marker.is_file() and not marker.is_symlink():
        return True
    # Earlier versions wrote no marker: their record says whose it is.
    control = state / CONTROL
    if control.is_symlink() or not control.is_dir():
        return False
    return any(_is_demo_base(path) for path in control.glob("base-*"))


def _is_demo_base(path: Path) -> bool:
    """Return whether the file is a base of the journal that names the demo as its job."""
    if path.is_symlink() or not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            header = json.loads(file.readline(_HEADER_BYTES))
    except (OSError, ValueError, RecursionError):
        return False
    match header:
        case {"format": "thornback-journal", "identity": {"job": "demo"}}:
            return True
    return False


def _hold(lock: Path, state: Path, held: contextlib.ExitStack) -> None:
    """Take the journal's lock: the state of a running driver is never removed."""
    descriptor = os.open(lock, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    held.callback(os.close, descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise NotAState(
            f"{state} is in use by another run: wait for its end, or give another --state"
        ) from error
