"""What becomes of each try of a rank: how long it takes, how it ends."""

from __future__ import annotations

from collections.abc import Sequence

from thornback.scheduler.simulate.agenda import Chances
from thornback.scheduler.simulate.values import MishapKind, SimulatedCluster, SimulatedFaults
from thornback.scheduler.simulate.worker import Fate

SKEW = 0.05
"""The parts of a rank on several nodes differ in length by up to so much."""


class Fates:
    """Decides by chances that depend on the rank and its try only: not on when, where or under
    which policy."""

    def __init__(
        self,
        cluster: SimulatedCluster,
        faults: SimulatedFaults,
        chances: Chances,
        sizes: Sequence[int],
    ) -> None:
        self._cluster = cluster
        self._chances = chances
        self._tries = [bytearray(size) for size in sizes]
        self._kinds = [
            (faults.worker_deaths, MishapKind.WORKER),
            (faults.process_deaths, MishapKind.PROCESS),
            (faults.rank_failures, MishapKind.CODE),
            (faults.hangs, MishapKind.TIMEOUT),
            (faults.worker_silences, MishapKind.SILENT),
        ]
        self._always = (
            ("culprit", faults.culprits, MishapKind.WORKER),
            ("poison", faults.poison, MishapKind.PROCESS),
            ("bug", faults.bugs, MishapKind.CODE),
        )
        self.longest_s = 0.0
        """What the longest try would have taken."""

    def next_try(self, stage: int, rank: int) -> int:
        """Count a try, and return its number (the last one that is told apart is the 255th)."""
        tries = self._tries[stage]
        tries[rank] = min(255, tries[rank] + 1)
        return tries[rank]

    def needs_bytes(self, stage: int, rank: int) -> int:
        """Return the memory that a rank needs."""
        cluster = self._cluster
        return int(
            self._chances.log_normal(cluster.rank_bytes, cluster.memory_sigma, "bytes", stage, rank)
        )

    def always(self, stage: int, rank: int) -> MishapKind | None:
        """Return how every attempt of a rank ends, whatever its node; None: it can succeed."""
        for name, share, kind in self._always:
            if self._chances.happens(share, name, stage, rank):
                return kind
        return None

    def of(
        self,
        stage: int,
        rank: int,
        key: tuple[int, ...],
        *,
        member: int,
        members: int,
        memory_bytes: int,
        slowness: float,
        timeout_factor: float,
        fair: bool,
    ) -> Fate:
        """Return the fate of one try, told apart by `key`, on one member of its gang."""
        cluster, chances = self._cluster, self._chances
        takes_s = slowness * chances.log_normal(
            cluster.rank_s, cluster.rank_sigma, "takes", stage, rank
        )
        if members > 1:
            takes_s *= 1 + SKEW * chances.draw("skew", stage, rank, member)
        self.longest_s = max(self.longest_s, takes_s)
        limit_s = None if cluster.timeout_s is None else cluster.timeout_s * timeout_factor
        kind = None
        if members == 1 or member == int(members * chances.draw("victim", stage, rank, *key)):
            kind = self._kind(stage, rank, key, memory_bytes, fair)
        if kind is MishapKind.TIMEOUT:
            return Fate(limit_s, kind)
        if kind is not None:
            takes_s *= chances.draw("part", stage, rank, *key)
        if limit_s is not None and takes_s > limit_s:
            return Fate(limit_s, MishapKind.TIMEOUT)
        return Fate(takes_s, kind)

    def _kind(
        self, stage: int, rank: int, key: tuple[int, ...], memory_bytes: int, fair: bool
    ) -> MishapKind | None:
        chances = self._chances
        always = self.always(stage, rank)
        if always is not None:
            return always
        if self.needs_bytes(stage, rank) > memory_bytes:
            return MishapKind.OOM
        draw = chances.draw("fate", stage, rank, *key)
        for share, kind in self._kinds:
            if draw < share:
                return None if fair and kind is MishapKind.SILENT else kind
            draw -= share
        return None
