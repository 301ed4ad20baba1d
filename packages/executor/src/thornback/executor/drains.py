"""Passes on to the workers of a node that it will go away. Decides nothing."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable

import anyio
from anyio.abc import TaskGroup

from thornback.executor.ports import Clock, Workers

logger = logging.getLogger(__name__)
GRACE_S = 300.0
"""So long after its deadline a node still counts as draining: it takes minutes until the last
time-out of a sibling has noticed that it is gone. Then the drain was cancelled, or has expired."""
NO_DEADLINE_S = 3600.0
"""As long after a notice without a deadline."""


class DrainTeller:
    """Tells workers of drains, in tasks that are bounded and never fail; what is told last is the
    newest notice."""

    def __init__(self, workers: Workers, clock: Clock, timeout_s: float) -> None:
        self._workers = workers
        self._clock = clock
        self._timeout_s = timeout_s
        self._ends: dict[str, float | None] = {}
        """By node that drains: when it goes away, where that is known."""
        self._until: dict[str, float] = {}
        """By node that drains: when its notice is void."""
        self._busy: set[str] = set()
        self._again: set[str] = set()

    def draining(self, node: str, left_s: float | None, tasks: TaskGroup) -> None:
        """Note a notice, and tell the workers that are there."""
        now = self._clock.monotonic()
        self._ends[node] = None if left_s is None else now + left_s
        self._until[node] = now + (NO_DEADLINE_S if left_s is None else left_s + GRACE_S)
        self._start(node, tasks)

    def knows(self, nodes: Iterable[str]) -> bool:
        """Whether one of the nodes is going away: there was a notice, and not too long ago. Nobody
        tells when a drain is cancelled, so a notice must not last for the rest of the run."""
        now = self._clock.monotonic()
        return any(now <= self._until.get(node, -math.inf) for node in nodes)

    def gang_ready(self, nodes: tuple[str, ...], tasks: TaskGroup) -> None:
        """Tell a gang that was opened, perhaps while the notice came."""
        for node in dict.fromkeys(nodes):
            if self.knows((node,)):
                self._start(node, tasks)

    def _start(self, node: str, tasks: TaskGroup) -> None:
        if node in self._busy:
            self._again.add(node)
        else:
            self._busy.add(node)
            tasks.start_soon(self._tell, node)

    async def _tell(self, node: str) -> None:
        """One task at a time per node, so that an older notice cannot overtake a newer one."""
        try:
            while True:
                self._again.discard(node)
                await self._tell_once(node)
                if node not in self._again:
                    return
        finally:
            self._busy.discard(node)

    async def _tell_once(self, node: str) -> None:
        end = self._ends[node]
        left_s = None if end is None else max(0.0, end - self._clock.monotonic())
        try:
            with anyio.move_on_after(self._timeout_s) as scope:
                await self._workers.drain(node, left_s)
        except Exception:  # it is a courtesy: a rank that was not told is killed with the node
            logger.warning("could not tell the workers on %s that it drains", node, exc_info=True)
            return
        if scope.cancelled_caught:
            logger.warning("the workers on %s were not told in time that it drains", node)
