"""Who runs a pipeline of this process now, so that nobody runs it twice, and whoever needs it
waits.

All that a run is about is claimed at once, and only after it has waited for what others run: one
that waits holds nothing, so that two runs never wait for each other.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, TypeGuard

if TYPE_CHECKING:
    from datatrove.executor.base import PipelineExecutor
    from thornback.datatrove.executor import RayPipelineExecutor


class Launch:
    """The state of one executor that threads share. Never pickled."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._ended: threading.Event | None = None
        self._root: object | None = None

    @property
    def active(self) -> bool:
        """Whether a run has claimed it and has not settled it."""
        return self._ended is not None and not self._ended.is_set()

    def was_claimed_by(self, root: object) -> bool:
        """Whether the last run that claimed it was a run of `root`."""
        return self._root is root

    def settle(self) -> None:
        """Say that its ranks have ended, and wake who waits. Idempotent."""
        if self._ended is not None:
            self._ended.set()

    def wait(self, every_s: float, tell: Callable[[], None]) -> None:
        """Return when nobody runs it. Blocks for as long as its ranks take, as its own `run()`
        does; calls `tell` every so many seconds."""
        ended = self._ended
        while ended is not None and not ended.wait(every_s):
            tell()

    def _claim(self, root: object) -> None:
        self._ended, self._root = threading.Event(), root


def is_ours(member: PipelineExecutor) -> TypeGuard[RayPipelineExecutor]:
    """Whether it is a `RayPipelineExecutor` of this package, which has a `Launch`, and not one that
    datatrove or somebody else runs. By that, and not by its class, so that what runs the executors
    need not import them: they import it."""
    return isinstance(getattr(member, "_launch", None), Launch)


def claim(wanted: Callable[[], Sequence[Launch]], known: Sequence[Launch], root: object) -> bool:
    """Claim what is wanted, all or nothing, and return True; False: someone runs one of `known`.

    Args:
        wanted: says what, when nobody else can claim.
        known: all that could be wanted, each once.
        root: whose run it is.
    """
    with ExitStack() as stack:
        for launch in sorted(known, key=id):  # the same order in all threads
            stack.enter_context(launch._lock)
        if any(launch.active for launch in known):
            return False
        for launch in wanted():
            launch._claim(root)
        return True
