"""What tunes a pool, and what the gangs of one pool share."""

from __future__ import annotations

import attrs

from thornback.pool.ports import Blobs, Clock, WorkerBackend
from thornback.pool.telling import Telling


@attrs.frozen(kw_only=True, slots=True)
class PoolParams:
    """Bounds and rhythms of a pool."""

    beat_every_s: float = 5.0
    """Between two heartbeats of a worker; with each comes what its ranks have written since."""
    logs_every_s: float = 1.0
    """The same where an observer wants what ranks write and there are few workers: with more than
    50 of them heartbeats are rarer, up to `beat_every_s`."""
    beats_in_a_row: int = 8
    """While a worker has more of its logs than an answer may hold, it is asked again at once, so
    often per heartbeat."""
    silence_s: float = 60.0
    """A worker that has answered nothing for so long is killed, and its gang lost."""
    grace_s: float = 15.0
    """How long an unreachable worker may take to answer again: the horizon of Ray's health checks.
    """
    probe_first_s: float = 0.5
    """Delay before the first probe of an unreachable worker; doubles up to `probe_most_s`."""
    probe_most_s: float = 4.0
    """The longest delay between two probes."""
    regains_per_call: int = 3
    """A call that is cut off more often than this, though probes were answered, counts as failed.
    """
    recall_s: float = 15.0
    """After a recall with a kill, for which the supervisor may take 10 s: a worker that still has
    not reported is killed. So is one that gives signs of life, but has not answered the recall
    itself for so long after `silence_s`."""
    ask_s: float = 5.0
    """For the answers to `WorkerPool.beat` and `WorkerPool.drain`."""
    death_s: float = 10.0
    """For the backend to explain a death."""
    kill_s: float = 10.0
    """For the kill of workers that are out of reach or silent, and of gangs lost or not opened."""
    salvage_s: float = 10.0
    """For reading what a dead worker had not sent of its logs."""
    close_s: float = 15.0
    """For each gang that is still open when the pool is left."""


@attrs.frozen(kw_only=True, slots=True)
class Surroundings:
    """What the gangs of one pool share."""

    backend: WorkerBackend
    blobs: Blobs
    params: PoolParams
    clock: Clock
    telling: Telling
