"""The simulated journal: commits in groups, one at a time; what is durable outlives a driver."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence

from thornback.scheduler.commands import Record, RecordState
from thornback.scheduler.events import Ranks
from thornback.scheduler.simulate.agenda import Agenda, Chances
from thornback.scheduler.simulate.values import RunStats, SimulatedCluster, SimulatedFaults
from thornback.scheduler.states import InvariantBroken

_CODES = {RecordState.DONE: 1, RecordState.FAILED: 2, RecordState.SKIPPED: 3}


class Durable:
    """What is recorded, by stage: a byte per rank."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self._states = [bytearray(size) for size in sizes]

    def put(self, record: Record) -> None:
        """Record. Raises `InvariantBroken` where a rank is recorded that has a result already."""
        states, code = self._states[record.stage], _CODES[record.state]
        for piece in record.ranks:
            if states.count(1, piece.start, piece.stop):
                raise InvariantBroken(f"{record}: some of its ranks have a durable result already")
            states[piece.start : piece.stop] = bytes((code,)) * len(piece)

    def count(self, state: RecordState) -> int:
        """Return how many ranks ended so."""
        return sum(states.count(_CODES[state]) for states in self._states)

    def ranks(self, state: RecordState) -> dict[int, Ranks]:
        """Return the ranks that ended so, by stage; stages without one are left out."""
        code = _CODES[state]
        found: dict[int, Ranks] = {}
        for stage, states in enumerate(self._states):
            pieces, start = [], states.find(code)
            while start >= 0:
                stop = start
                while stop < len(states) and states[stop] == code:
                    stop += 1
                pieces.append(range(start, stop))
                start = states.find(code, stop)
            if pieces:
                found[stage] = tuple(pieces)
        return found

    def is_done(self, stage: int, piece: range) -> bool:
        """Whether all of these ranks have a durable result."""
        return self._states[stage].count(1, piece.start, piece.stop) == len(piece)


class Journal:
    """Carries out the `Record`s of one driver."""

    def __init__(
        self,
        durable: Durable,
        cluster: SimulatedCluster,
        faults: SimulatedFaults,
        agenda: Agenda,
        chances: Chances,
        stats: RunStats,
        recorded: Callable[[Record], None],
        failed: Callable[[], None],
    ) -> None:
        self.outage_until = 0.0
        """Every commit that would end before that fails."""
        self.writing: list[Record] = []
        """The commit under way."""
        self._durable = durable
        self._cluster = cluster
        self._faults = faults
        self._agenda = agenda
        self._chances = chances
        self._stats = stats
        self._recorded = recorded
        self._failed = failed
        self._waiting: list[Record] = []
        self._landed: deque[Record] = deque()
        self._failing_since: float | None = None
        self._tries = 0
        self.over = False
        """It has failed for good, or its driver is dead."""

    @property
    def owes(self) -> bool:
        """An answer is under way."""
        return bool(self.writing or self._landed) and not self.over

    def record(self, command: Record) -> None:
        """Take a record; it is part of the next commit."""
        if self.over:
            return
        idle = not self.writing
        self._waiting.append(command)
        if idle:
            # What the same moment asks for is one commit: until `_write` both are one list.
            self.writing = self._waiting
            self._agenda.at(0.0, self._write)

    def crash(self) -> None:
        """The driver dies. What is being written may have become durable, without a word."""
        if not self.over and self.writing and self._chances.draw("crash", self._tries) < 0.5:
            self._land()
        self.over = True

    def _write(self) -> None:
        self._waiting = []
        self._agenda.at(self._cluster.record_s, self._end)

    def _end(self) -> None:
        if self.over:
            return
        self._tries += 1
        now, faults = self._agenda.now, self._faults
        fair = faults.fair_after_s is not None and now >= faults.fair_after_s
        unlucky = self._chances.happens(faults.journal_errors, "commit", self._tries) and not fair
        if not unlucky and now >= self.outage_until:
            self._failing_since = None
            self._landed = deque(self._land())
            self.writing = self._waiting
            if self.writing:
                self._write()
            while self._landed:
                self._recorded(self._landed.popleft())
            return
        if self._failing_since is None:
            self._failing_since = now
        if now - self._failing_since >= faults.journal_timeout_s:
            self.over = True
            self._failed()
        else:
            self._agenda.at(faults.journal_retry_s, self._end)

    def _land(self) -> list[Record]:
        for command in self.writing:
            self._durable.put(command)
        self._stats.commits += 1
        return self.writing
