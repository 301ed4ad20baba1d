"""Checks from outside who pays for a fault, and that evidence was there for what the policy heard.

The policy of each stage is wrapped (`WatchedPolicy`), so it is known what it was asked and what it
answered. `Costs` keeps books of its own: the faults of every rank, and who ran well or failed on
which node. What the scheduler says to the policy, and what it does with the answer, must agree with
them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, TypeVar

import attrs

from thornback.faults import Standing, StopReason
from thornback.scheduler.commands import Dispatch, OpenGang, Record, RecordState
from thornback.scheduler.events import Event, GangLost, GangReady, RankFailed, RanksSucceeded
from thornback.scheduler.params import StagePlan
from thornback.scheduler.ports import RetryPolicy, Verdict
from thornback.scheduler.states import InvariantBroken
from thornback.scheduler.testing import Referee

F = TypeVar("F")
STAGE_STOPS = (StopReason.NO_PROGRESS, StopReason.ALL_ALIKE)


@attrs.frozen(slots=True)
class Asked(Generic[F]):
    """What a policy was asked, and what it said."""

    stage: int
    fault: F
    history: tuple[tuple[F, str, Standing], ...]
    standing: Standing
    verdict: Verdict


class WatchedPolicy(Generic[F]):
    """Asks the policy of a stage, and notes each answer (fulfils `RetryPolicy`)."""

    def __init__(self, policy: RetryPolicy[F], stage: int, asked: list[Asked[F]]) -> None:
        self._policy = policy
        self._stage = stage
        self._asked = asked

    def decide(
        self,
        fault: F,
        history: Sequence[tuple[F, str, Standing]],
        standing: Standing,
        draw: float,
        /,
    ) -> Verdict:
        """See `RetryPolicy`."""
        verdict = self._policy.decide(fault, history, standing, draw)
        self._asked.append(Asked(self._stage, fault, tuple(history), standing, verdict))
        return verdict


@attrs.define(slots=True)
class _Past(Generic[F]):
    """A fault of a rank."""

    fault: F
    node: str
    standing: Standing
    last_assignment: int
    """Assignments up to this one were dispatched before the fault was known."""


@attrs.define(slots=True)
class _Bill(Generic[F]):
    """What a rank has had."""

    history: list[_Past[F]] = attrs.field(factory=list)
    tries: int = 0
    memory_bytes: int | None = None


class _Witnesses:
    """What is known about one node: who ran there, and who failed."""

    def __init__(self) -> None:
        self._fine: dict[tuple[int, int], int] = {}
        self._failed: dict[tuple[int, int], None] = {}
        self.lost_gang = False

    def fine(self, stage: int, rank: int, assignment: int) -> None:
        """A rank ran well: kept are the two latest, of which one is another rank's."""
        self._fine.pop((stage, rank), None)
        self._fine[stage, rank] = assignment
        if len(self._fine) > 2:
            del self._fine[min(self._fine, key=lambda key: self._fine[key])]

    def failed(self, stage: int, rank: int) -> None:
        """A rank failed."""
        if len(self._failed) < 2:
            self._failed[stage, rank] = None

    def clears(self, stage: int, rank: int, last_assignment: int) -> bool:
        """Whether another rank, dispatched later, was fine there."""
        return any(
            key != (stage, rank) and assignment > last_assignment
            for key, assignment in self._fine.items()
        )

    def accuses(self, stage: int, rank: int) -> bool:
        """Whether anything but this rank has failed there."""
        return self.lost_gang or any(key != (stage, rank) for key in self._failed)


class Costs(Generic[F]):
    """The bill of every rank that something happened to, and the batch limits of those that were
    lost in company."""

    def __init__(
        self, stages: Sequence[StagePlan[F]], referee: Referee[F], asked: list[Asked[F]]
    ) -> None:
        self._stages = stages
        self._referee = referee
        self._asked = asked
        self._bills: dict[tuple[int, int], _Bill[F]] = {}
        self._limits: dict[tuple[int, int], int] = {}
        self._shapes: dict[int, OpenGang] = {}
        self._where: dict[int, tuple[str, ...]] = {}
        self._nodes: dict[str, _Witnesses] = {}
        self._judged: list[tuple[int, int]] = []
        """(stage, rank) that this event is to be judged about, in this order."""
        self._lost: list[tuple[int, frozenset[int]]] = []
        """(stage, ranks) that this event has lost in company."""
        self._last_assignment = -1

    def opened(self, command: OpenGang) -> None:
        """Note the shape of a gang."""
        self._shapes[command.gang] = command

    def before(self, event: Event[F]) -> None:
        """Work out whom the policy will be asked about."""
        self._asked.clear()
        self._judged.clear()
        self._lost.clear()
        match event:
            case GangReady():
                self._where[event.gang] = event.nodes
            case RanksSucceeded():
                gang, stage, held = self._referee.outstanding[event.assignment]
                for piece in event.ranks:
                    for rank in (rank for rank in piece if rank in held):
                        self._ran_well(self._where[gang], stage, rank, event.assignment)
            case RankFailed():
                _, stage, held = self._referee.outstanding[event.assignment]
                if event.rank in held:
                    self._judged.append((stage, event.rank))
            case GangLost() if self._referee.gangs[event.gang].state == "ready":
                self._gang_lost(event)

    def _gang_lost(self, event: GangLost[F]) -> None:
        memory = self._shapes[event.gang].shape.memory_bytes
        for position, number in enumerate(self._referee.gangs[event.gang].live):
            _, stage, held = self._referee.outstanding[number]
            slots = 1 if memory is not None else self._stages[stage].slots
            if len(held) == 1 and position < slots:
                self._judged.insert(0, (stage, next(iter(held))))
            else:
                self._lost.append((stage, frozenset(held)))

    def _ran_well(self, nodes: Sequence[str], stage: int, rank: int, assignment: int) -> None:
        for node in nodes:
            self._nodes.setdefault(node, _Witnesses()).fine(stage, rank, assignment)

    def after(self, event: Event[F], records: Sequence[Record]) -> bool:
        """Hold what was asked and done against the books; return whether there was progress."""
        asked = list(self._asked)
        gang = asked.pop(0) if isinstance(event, GangLost) and asked else None
        if gang is not None and gang.verdict.blames_node:
            for node in self._nodes_of(event):
                self._witnesses(node).lost_gang = True
        progress = False
        kept: dict[tuple[int, int], None] = {}
        given_up: dict[tuple[int, int], None] = {}
        for stage, rank in self._judged:
            verdict = self._check_asked(event, asked.pop(0), stage, rank)
            progress |= verdict.charged or verdict.blames_node or not verdict.retry
            (kept if verdict.retry else given_up)[stage, rank] = None
        for stage, ranks in self._lost:
            kept |= dict.fromkeys((stage, rank) for rank in ranks)
            if gang is not None and gang.verdict.blames_rank:
                progress |= len(ranks) > 1
                self._halve(stage, ranks)
        convicted = sum(self._is_final_conviction(event, said) for said in asked)
        self._check_given_up(records, kept, given_up, convicted)
        return progress

    def _halve(self, stage: int, ranks: frozenset[int]) -> None:
        for rank in ranks:
            least = min(self._limits.get((stage, rank), len(ranks)), len(ranks))
            self._limits[stage, rank] = max(1, least // 2)

    def _nodes_of(self, event: Event[F]) -> tuple[str, ...]:
        """Return where a fault happened: more than one node if the root cause is not known."""
        if isinstance(event, RankFailed):
            gang = self._referee.outstanding[event.assignment][0]
            return (event.node,) if event.node else self._where[gang]
        assert isinstance(event, GangLost)
        return (event.node,) if event.node else self._where.get(event.gang, ())

    def _witnesses(self, node: str) -> _Witnesses:
        return self._nodes.setdefault(node, _Witnesses())

    def _check_asked(self, event: Event[F], said: Asked[F], stage: int, rank: int) -> Verdict:
        """Check what the policy was asked about a rank, and enter it into the books."""
        bill = self._bills.setdefault((stage, rank), _Bill())
        faults = [(fault, node) for fault, node, _ in said.history]
        if faults != [(past.fault, past.node) for past in bill.history]:
            raise InvariantBroken(f"rank {rank} of stage {stage} has another history than {said}")
        for past, (_, _, standing) in zip(bill.history, said.history, strict=True):
            self._check_settled(past, standing, stage, rank)
        nodes = self._nodes_of(event)
        if said.standing is Standing.NODE and not self._accused(nodes, stage, rank):
            raise InvariantBroken(f"nothing else has failed on {nodes}: {said}")
        if said.standing is Standing.RANK:
            raise InvariantBroken(f"nobody can have run there since: {said}")
        node = nodes[0] if len(nodes) == 1 else ""
        bill.history.append(_Past(said.fault, node, said.standing, self._last_assignment))
        verdict = said.verdict
        bill.tries += verdict.charged or verdict.machine_fault
        if verdict.memory_bytes is not None:
            bill.memory_bytes = verdict.memory_bytes
        if verdict.blames_node:
            for name in nodes:
                self._witnesses(name).failed(stage, rank)
        elif verdict.signature and isinstance(event, RankFailed):
            self._ran_well(nodes, stage, rank, event.assignment)
        return verdict

    def _accused(self, nodes: Sequence[str], stage: int, rank: int) -> bool:
        return any(self._witnesses(node).accuses(stage, rank) for node in nodes)

    def _check_settled(self, past: _Past[F], standing: Standing, stage: int, rank: int) -> None:
        """Check that an earlier fault was settled by evidence, once."""
        if standing is past.standing:
            return
        if past.standing not in (Standing.OPEN, Standing.UNDECIDED):
            raise InvariantBroken(f"{past} of rank {rank} was settled, and is {standing} now")
        if past.node:
            node = self._witnesses(past.node)
            proven = (standing is Standing.NODE and node.accuses(stage, rank)) or (
                standing is Standing.RANK and node.clears(stage, rank, past.last_assignment)
            )
            if not proven:
                raise InvariantBroken(f"no evidence that {past} of rank {rank} is {standing}")
        past.standing = standing

    def _is_final_conviction(self, event: Event[F], said: Asked[F]) -> bool:
        """Whether a fault of a rank that waits was settled, and the rank is given up for it."""
        if isinstance(event, GangLost) and said.fault == event.fault:
            return False  # ranks that wait for memory which is refused
        if said.standing is not Standing.RANK:
            raise InvariantBroken(f"{event} is no reason to ask {said}")
        return not said.verdict.retry

    def _check_given_up(
        self,
        records: Sequence[Record],
        kept: dict[tuple[int, int], None],
        given_up: dict[tuple[int, int], None],
        convicted: int,
    ) -> None:
        """Check that exactly those are given up which the policy gives up, or whose stage stops."""
        for record in records:
            if record.state is not RecordState.FAILED:
                continue
            for rank in (rank for piece in record.ranks for rank in piece):
                key = record.stage, rank
                if key in given_up:
                    del given_up[key]
                elif key in kept and record.stop not in STAGE_STOPS:
                    raise InvariantBroken(f"{record}: rank {rank} shall be tried again")
                else:
                    convicted -= 1
        if given_up or convicted > 0:
            raise InvariantBroken(
                f"(stage, rank) that are not given up: {list(given_up)}, and {convicted} whose "
                "earlier faults were settled against them"
            )

    def dispatched(self, command: Dispatch) -> None:
        """Check in what company, with what number and with how much memory ranks travel."""
        self._last_assignment = command.assignment
        ranks = [rank for piece in command.ranks for rank in piece]
        memory = self._shapes[command.gang].shape.memory_bytes
        tries, needed = 0, None
        for rank in ranks:
            key = command.stage, rank
            limit = self._limits.get(key)
            if limit is not None and len(ranks) > limit:
                raise InvariantBroken(f"{command}: rank {rank} may travel with {limit - 1} others")
            bill = self._bills.get(key)
            if bill is None:
                continue
            if len(ranks) > 1:
                raise InvariantBroken(f"{command}: rank {rank} has failed before: it goes alone")
            tries, needed = bill.tries, bill.memory_bytes
        if command.attempt != 1 + tries:
            raise InvariantBroken(f"{command}: {tries} tries of {ranks} have failed")
        if memory != needed:
            raise InvariantBroken(f"{command}: it has {memory} bytes, and shall have {needed}")
