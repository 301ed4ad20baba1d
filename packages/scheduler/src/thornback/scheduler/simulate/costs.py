"""Who pays for a fault, worked out a second time from the rules alone: for checks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import attrs

from thornback.scheduler.commands import Dispatch, OpenGang, Record, RecordState
from thornback.scheduler.events import Event, GangLost, RankFailed
from thornback.scheduler.params import StagePlan
from thornback.scheduler.ports import Verdict
from thornback.scheduler.states import InvariantBroken
from thornback.scheduler.testing import Referee

F = TypeVar("F")


@attrs.define(slots=True)
class _Cost(Generic[F]):
    """What a rank has had."""

    history: list[tuple[F, str]] = attrs.field(factory=list)
    charged: int = 0
    memory_bytes: int | None = None


class Costs(Generic[F]):
    """The bill of every rank that something happened to, and the batch limits of those that were
    lost in company."""

    def __init__(self, stages: Sequence[StagePlan[F]], referee: Referee[F]) -> None:
        self._stages = stages
        self._referee = referee
        self._bills: dict[tuple[int, int], _Cost[F]] = {}
        self._limits: dict[tuple[int, int], int] = {}
        self._shapes: dict[int, OpenGang] = {}
        self._given_up: dict[tuple[int, int], str] = {}
        """Ranks that this event must end as failed, and why."""
        self._kept: dict[tuple[int, int], None] = {}
        """Ranks that it must not end."""

    def opened(self, command: OpenGang) -> None:
        """Note the shape of a gang."""
        self._shapes[command.gang] = command

    def before(self, event: Event[F]) -> bool:
        """Work out what an event costs; return whether that is progress."""
        self._given_up.clear()
        self._kept.clear()
        match event:
            case RankFailed():
                _, stage, held = self._referee.outstanding[event.assignment]
                return event.rank in held and self._judge(
                    stage, event.rank, event.fault, event.node
                )
            case GangLost() if self._referee.gangs[event.gang].state == "ready":
                return self._lost(event)
        return False

    def _lost(self, event: GangLost[F]) -> bool:
        progress = False
        for position, number in enumerate(self._referee.gangs[event.gang].live):
            _, stage, held = self._referee.outstanding[number]
            plan = self._stages[stage]
            slots = 1 if self._shapes[event.gang].shape.memory_bytes is not None else plan.slots
            if len(held) == 1 and position < slots:
                progress |= self._judge(stage, next(iter(held)), event.fault, event.node or "")
            elif plan.policy.decide(event.fault, (), 0.5).blames_rank:
                progress |= len(held) > 1
                for rank in held:
                    least = min(self._limits.get((stage, rank), len(held)), len(held))
                    self._limits[stage, rank] = max(1, least // 2)
            for rank in held:
                self._kept.setdefault((stage, rank))
        for key in self._given_up:
            self._kept.pop(key, None)
        return progress

    def _judge(self, stage: int, rank: int, fault: F, node: str) -> bool:
        bill = self._bills.setdefault((stage, rank), _Cost())
        verdict: Verdict = self._stages[stage].policy.decide(fault, tuple(bill.history), 0.5)
        bill.history.append((fault, node))
        if not verdict.retry:
            self._given_up[stage, rank] = verdict.reason
            return True
        self._kept[stage, rank] = None
        bill.charged += verdict.charged
        if verdict.memory_bytes is not None:
            bill.memory_bytes = verdict.memory_bytes
        return verdict.charged

    def recorded(self, command: Record, reason: Callable[[int, int], str]) -> None:
        """Check that a rank is given up only where the policy says so, or its stage stops."""
        if command.state is not RecordState.FAILED:
            return
        for rank in (rank for piece in command.ranks for rank in piece):
            self._given_up.pop((command.stage, rank), None)
            why = reason(command.stage, rank)
            if (command.stage, rank) in self._kept and "no progress" not in why:
                raise InvariantBroken(f"{command}: rank {rank} shall be tried again ({why})")

    def after(self) -> None:
        """Check that what had to be given up was."""
        if self._given_up:
            raise InvariantBroken(f"(stage, rank) that are not given up: {self._given_up}")

    def dispatched(self, command: Dispatch) -> None:
        """Check in what company, with what number and with how much memory ranks travel."""
        ranks = [rank for piece in command.ranks for rank in piece]
        memory = self._shapes[command.gang].shape.memory_bytes
        charged, needed = 0, None
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
            charged, needed = bill.charged, bill.memory_bytes
        if command.attempt != 1 + charged:
            raise InvariantBroken(f"{command}: {charged} faults were charged to {ranks}")
        if memory != needed:
            raise InvariantBroken(f"{command}: it has {memory} bytes, and shall have {needed}")
