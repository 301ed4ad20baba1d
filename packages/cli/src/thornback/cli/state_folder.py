"""The local folder a run keeps its state in: what may be used, and what may be removed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from pathlib import Path

CONTROL = "control"
"""The journal's folder inside a state: what tells a state from any other folder."""
LOCK = "lock"
"""The file in it that the driver of a run holds an flock on."""


class NotAState(ValueError):
    """The folder cannot be a state: it holds something else, or is in use. Nothing was touched."""


def check_usable(state: Path) -> None:
    """Return if `state` is new, empty, or the state of an earlier run.

    A folder with other things in it is refused: a state is removed whole by `--fresh`.

    Raises:
        NotAState: with what to do.
    """
    if state.is_symlink() or (state.exists() and not state.is_dir()):
        raise NotAState(f"{state} is not a folder: give another --state")
    if state.exists() and not _looks_like_state(state) and any(state.iterdir()):
        raise NotAState(
            f"{state} is not empty and has no {CONTROL}/ folder, so it is no state of an earlier "
            "run: give --state a new or an empty folder"
        )


def remove(state: Path) -> bool:
    """Remove the state of an earlier run. Returns False when there is none.

    Raises:
        NotAState: it holds something else, or a run uses it at this moment.
        OSError: it cannot be removed; parts may be gone.
    """
    check_usable(state)
    if not state.exists():
        return False
    with contextlib.ExitStack() as held:
        lock = state / CONTROL / LOCK
        if lock.exists():
            _hold(lock, state, held)
        shutil.rmtree(state)
    return True


def _looks_like_state(state: Path) -> bool:
    control = state / CONTROL
    return control.is_dir() and not control.is_symlink()


def _hold(lock: Path, state: Path, held: contextlib.ExitStack) -> None:
    """Take the journal's lock: the state of a run that goes on is not pulled from under it."""
    descriptor = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
    held.callback(os.close, descriptor)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise NotAState(
            f"{state} is in use by another run: wait for its end, or give another --state"
        ) from error
