"""Helpers for tests of runs: chaos done from the driver's side, on seeing an event. No code in the
rank knows of it."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Sequence
from typing import Literal

import anyio
import attrs

from thornback.executor.ports import Dispatched, LiveRun
from thornback.pool import Beat, RunningRank

__all__ = ["Chaos", "Kill", "Sighting", "sighted"]

LOOK_S = 5.0
"""How long one assignment is looked at before the next is tried. Without a sleep: each look is an
answered call."""


@attrs.frozen(kw_only=True, slots=True)
class Kill:
    """A process that was killed while it ran a first attempt."""

    what: Literal["rank", "worker"]
    """Which process: the rank's, or the worker's that supervises it."""
    pid: int
    stage: str
    """Its name."""
    rank: int
    """The rank that ran then."""
    gang: int


@attrs.frozen(kw_only=True, slots=True)
class Sighting:
    """A rank that was seen running."""

    dispatched: Dispatched
    """Its assignment."""
    beat: Beat
    """What its worker said."""
    running: RunningRank


async def sighted(
    run: LiveRun, *, where: Callable[[Beat], bool] | None = None, stage: str | None = None
) -> Sighting:
    """Wait, in a companion, until a rank that is handed over from now on is seen running.

    Args:
        run: that the companion goes along with.
        where: which workers are looked at; None: all.
        stage: name of the only stage that counts; None: any.

    Raises:
        LookupError: the run ended before.
    """
    async for seen in run.dispatches():
        if stage not in (None, seen.stage):
            continue
        while True:
            beats = [b for b in await run.beat(seen.gang) if where is None or where(b)]
            if (found := _running(beats, seen.assignment)) is not None:
                return Sighting(dispatched=seen, beat=found[0], running=found[1])
            if not beats or run.outstanding(seen.assignment) == ():
                break
            await anyio.lowlevel.checkpoint()
    raise LookupError("the run ended before such a rank was seen running")


@attrs.define(slots=True, eq=False)
class Chaos:
    """Kills worker processes and rank processes of this machine with SIGKILL, each in the first
    attempt of a rank.

    Use it as a companion: `Executor.on_local(..., companions=[Chaos(kill_ranks=1,
    kill_workers=1)])`. Workers on other hosts are left alone. Afterwards `kills` tells what was
    killed."""

    kill_ranks: int = 1
    """How many rank processes."""
    kill_workers: int = 1
    """How many workers, after those."""
    stage: str | None = None
    """Only ranks of this stage; None: of any."""
    kills: tuple[Kill, ...] = attrs.field(default=(), init=False)
    """What was killed, oldest first."""
    _hit: set[int] = attrs.field(factory=set, init=False)

    async def __call__(self, run: LiveRun) -> None:
        """Watch the run until everything is killed (fulfils `Companion`). A gang is hit once."""
        async for seen in run.dispatches():
            if (
                seen.attempt == 1
                and self.stage in (None, seen.stage)
                and seen.gang not in self._hit
            ):
                await self._strike(run, seen)
            if not self._next():
                return

    def _next(self) -> Literal["rank", "worker"] | None:
        done = [kill.what for kill in self.kills]
        if done.count("rank") < self.kill_ranks:
            return "rank"
        return "worker" if done.count("worker") < self.kill_workers else None

    async def _strike(self, run: LiveRun, seen: Dispatched) -> None:
        """Look at the gang until the assignment is seen running, then kill. Gives up when it has
        ended meanwhile."""
        what = self._next()
        end = anyio.current_time() + LOOK_S
        while anyio.current_time() < end:
            beats = [b for b in await run.beat(seen.gang) if b.host == socket.gethostname()]
            found = _running(beats, seen.assignment)
            if found is not None:
                beat, running = found
                if what == "worker":
                    os.kill(beat.pid, signal.SIGKILL)
                    self._note(seen, what, beat.pid, running.rank)
                    return
                if await self._kill_rank(run, seen, running):
                    self._note(seen, "rank", running.pid, running.rank)
                    return
            if not beats or run.outstanding(seen.assignment) == ():
                return
            await anyio.lowlevel.checkpoint()

    async def _kill_rank(self, run: LiveRun, seen: Dispatched, running: RunningRank) -> bool:
        """Stop the process first, and kill it only if it is still in that rank: else the blow would
        hit nobody."""
        try:
            os.kill(running.pid, signal.SIGSTOP)
        except ProcessLookupError:
            return False
        still = False
        try:
            for _ in range(2):  # what it had sent before it stopped is read by the first answer
                found = _running(await run.beat(seen.gang), seen.assignment)
                still = found is not None and found[1].rank == running.rank
        finally:
            os.kill(running.pid, signal.SIGKILL if still else signal.SIGCONT)
        return still

    def _note(self, seen: Dispatched, what: Literal["rank", "worker"], pid: int, rank: int) -> None:
        self._hit.add(seen.gang)
        self.kills += (Kill(what=what, pid=pid, stage=seen.stage, rank=rank, gang=seen.gang),)


def _running(beats: Sequence[Beat], assignment: int) -> tuple[Beat, RunningRank] | None:
    for beat in beats:
        for running in beat.running:
            # 0 and below would name a whole process group, ours among them.
            if running.assignment == assignment and running.pid > 0 and beat.pid > 0:
                return beat, running
    return None
