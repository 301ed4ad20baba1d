"""What a rank changes in its process is undone for the next one: environment, folder, children.

Not undone is what Python cannot give back: signal handlers, state of imported modules, what was set
with `loguru.logger.configure`. A stage that changes these needs a process per rank (`fresh=True`).
"""

from __future__ import annotations

import gc
import os
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_FLAVOURS = ("multiprocessing", "multiprocess")
"""The second is datatrove's, with dill."""
_PATIENCE_S = 1.0


@contextmanager
def undone() -> Iterator[None]:
    """Undo at the end what the body has changed. In a forked copy of this process that comes out of
    the body, nothing is done."""
    pid, environ, folder = os.getpid(), dict(os.environ), _folder()
    before = {child.pid for child in _children()}
    error: BaseException | None = None
    try:
        yield
    except BaseException as raised:
        error = raised
        raise
    finally:
        if os.getpid() == pid:
            _end_children(before, error)
            _restore(environ, folder)


def _folder() -> str | None:
    try:
        return os.getcwd()
    except OSError:  # it was removed
        return None


def _restore(environ: dict[str, str], folder: str | None) -> None:
    # Only what differs: a thread that is left may read the environment at this moment.
    for name in [name for name in os.environ if name not in environ]:
        del os.environ[name]
    for name, value in environ.items():
        if os.environ.get(name) != value:
            os.environ[name] = value
    if folder is not None and _folder() != folder:
        try:
            os.chdir(folder)
        except OSError as error:
            print(f"thornback: cannot go back to {folder!r}: {error}", file=sys.stderr)


def _children() -> list[Any]:
    """Return the live children that `multiprocessing` and `multiprocess` know of."""
    modules = [sys.modules[name] for name in _FLAVOURS if name in sys.modules]
    return [child for module in modules for child in module.active_children()]


def _end_children(before: set[int | None], error: BaseException | None) -> None:
    """End the children that are left.

    The worker would kill them all in a moment, but behind the back of these modules: a `Pool` whose
    idle process dies holding the lock of its queue hangs for ever when it is collected, perhaps in
    a later rank. So what holds pools is let go of first, and they end in order.
    """
    if not [child for child in _children() if child.pid not in before]:
        return
    if error is not None:
        traceback.clear_frames(error.__traceback__)
    gc.collect()
    deadline = time.monotonic() + _PATIENCE_S
    for end in ("terminate", "kill"):
        left = [child for child in _children() if child.pid not in before]
        for child in left:
            getattr(child, end)()
        for child in left:
            child.join(max(0.0, deadline - time.monotonic()) / 2)
