"""The one observer of a cluster's nodes: looks only while somebody listens.

Theory of operation: `Watcher.run` is one task per allocator. Without listeners it is parked on an
event and knows nothing (`snapshot` is None). With listeners it looks, wakes them all, and waits for
`Cluster.changed`; Ray has no notices, so there (and only there) that is a sleep of 1-2 s.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import anyio
import attrs

from thornback.placement.bundles import NodeView
from thornback.placement.ports import Cluster, Snapshot

_log = logging.getLogger(__name__)
FLOOR_S = 0.05
"""Least time between looks, on average."""
BURST_S = 1.0
"""So much of that may be saved up: news that come together are seen at once."""


class Listener:
    """Wakes one waiting task, again and again, and loses no wake-up."""

    def __init__(self) -> None:
        self._event = anyio.Event()

    def renew(self) -> anyio.Event:
        """Return the event to wait for. Call it *before* looking at what it announces."""
        if self._event.is_set():
            self._event = anyio.Event()
        return self._event

    def poke(self) -> None:
        self._event.set()


class Watcher:
    """Keeps the newest snapshot of a cluster while somebody listens."""

    def __init__(self, cluster: Cluster, *, look_s: float, look_again_s: float) -> None:
        self._cluster = cluster
        self._look_s = look_s
        self._look_again_s = look_again_s
        self._listeners: dict[int, Listener] = {}
        self._count = 0
        self._wanted = Listener()
        self._trouble = ""
        self._due = -math.inf
        self.snapshot: Snapshot | None = None
        """None: nobody listened, or the cluster could not be looked at."""
        self.looks = 0
        """How many looks were finished, also those that failed."""

    @contextmanager
    def listen(self) -> Iterator[Listener]:
        """Be woken after every look, as long as the context lasts."""
        self._count += 1
        key, listener = self._count, Listener()
        self._listeners[key] = listener
        self._wanted.poke()
        try:
            yield listener
        finally:
            del self._listeners[key]

    def wake_all(self) -> None:
        """Wake every listener, without a look."""
        for listener in list(self._listeners.values()):
            listener.poke()

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            wanted = self._wanted.renew()
            if not self._listeners:
                self.snapshot = None
                await wanted.wait()
                continue
            await self._once()
            await self._breathe()

    async def _breathe(self) -> None:
        """Keep a cluster whose `changed` returns at once from taking the whole event loop."""
        now = anyio.current_time()
        self._due = max(self._due, now - BURST_S) + FLOOR_S
        if self._due > now:
            await anyio.sleep(self._due - now)

    async def _once(self) -> None:
        try:
            with anyio.fail_after(self._look_s):
                self.snapshot = await self._cluster.look()
            self._trouble = ""
            self._told()
            await self._cluster.changed(self.snapshot)
        except Exception as error:  # noqa: BLE001 - any backend's failure to look is data here: the
            # watcher must outlive it, since leases can be had without a look
            self.snapshot = None
            self._complain(f"{type(error).__name__}: {error}")
            self._told()
            await anyio.sleep(self._look_again_s)

    def _told(self) -> None:
        self.looks += 1
        self.wake_all()

    def _complain(self, trouble: str) -> None:
        if trouble != self._trouble:
            _log.warning("cannot look at the nodes of the cluster, will try again: %s", trouble)
        self._trouble = trouble


@attrs.frozen(kw_only=True, slots=True)
class DrainNotices:
    """What is new about nodes that go away, and what is known now."""

    fresh: tuple[tuple[str, float | None], ...]
    """(node, seconds left or None)."""
    known: Mapping[str, float | None]
    """Deadline by node, on the clock of `now`."""


def drain_notices(
    known: Mapping[str, float | None], nodes: Sequence[NodeView], now: float, slack_s: float
) -> DrainNotices:
    """Return the notices that were not given yet. Pure.

    The same drain is told once; again when its deadline moved by more than `slack_s`, or when it
    was taken back in between.
    """
    current: dict[str, float | None] = {}
    fresh: list[tuple[str, float | None]] = []
    for node in nodes:
        if not node.draining:
            continue
        until = None if node.left_s is None else now + node.left_s
        if node.name in known and _same(known[node.name], until, now, slack_s):
            current[node.name] = known[node.name]
        else:
            current[node.name] = until
            fresh.append((node.name, node.left_s))
    return DrainNotices(fresh=tuple(fresh), known=current)


def _same(old: float | None, new: float | None, now: float, slack_s: float) -> bool:
    if old is None or new is None:
        return old is new
    # After the deadline a backend goes on to say "0 s left": that is no new deadline.
    return abs(max(old, now) - new) <= slack_s
