"""The roster under any order of news: every rank once, one verdict, nobody waits for nothing."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from thornback.pool import CaughtError, Outcome, Report, SeenBy
from thornback.pool.roster import (
    Deliver,
    GangGone,
    Instruction,
    KillRank,
    MemberState,
    Roster,
)
from thornback.pool.severity import Loss, Severity, severity_of

NAMES = st.sampled_from(["a.Error", "thornback.pool.RankProcessDied"])
FACTS = st.sampled_from(
    [{}, {"preempted": True}, {"death_cause": "NODE_DIED"}, {"death_cause": "OOM"}]
)
MEMBER = st.integers(0, 2)
RANKS = st.integers(0, 5)


class RosterMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.nodes = 1
        self.asked: dict[int, list[int]] = {}
        self.delivered: dict[int, list[int]] = {}
        self.final: dict[int, Report] = {}
        self.losses: list[Loss] = []
        self.gone: list[Loss] = []

    @initialize(nodes=st.integers(1, 3))
    def start(self, nodes: int) -> None:
        self.nodes = nodes
        self.roster = Roster([f"n{index}" for index in range(nodes)])
        for member in range(nodes):
            self.roster.answered(member)

    def take(self, instructions: Sequence[Instruction]) -> None:
        for instruction in instructions:
            assert not self.gone, "an instruction after the end"
            match instruction:
                case Deliver(assignment=number, report=report):
                    assert number not in self.final
                    got = [outcome.rank for outcome in report.outcomes]
                    self.delivered[number] += [*got, *chain.from_iterable(report.returned)]
                    if report.final:
                        self.final[number] = report
                case KillRank(member=member, assignment=number):
                    assert self.roster.state(member) is not MemberState.DEAD
                    assert number not in self.final
                case GangGone(loss=loss):
                    self.gone.append(loss)

    @rule(count=st.integers(1, 5))
    def assign(self, count: int) -> None:
        ranks = list(range(1 if self.nodes > 1 else count))
        number = len(self.asked) + 1
        if self.roster.assigned(number, [range(len(ranks))]):
            self.asked[number] = ranks
            self.delivered[number] = []

    @precondition(lambda self: self.asked)
    @rule(
        data=st.data(),
        member=MEMBER,
        good=st.lists(RANKS, max_size=3),
        bad=st.lists(RANKS, max_size=1),
        back=st.lists(RANKS, max_size=3),
        name=NAMES,
        final=st.booleans(),
    )
    def report(
        self,
        data: st.DataObject,
        member: int,
        good: list[int],
        bad: list[int],
        back: list[int],
        name: str,
        final: bool,
    ) -> None:
        number = data.draw(st.sampled_from(sorted(self.asked)))
        error = CaughtError(type_names=(name,), message="")
        outcomes = [Outcome(rank=rank, ok=True) for rank in good]
        outcomes += [
            Outcome(rank=rank, ok=False, error=error, seen_by=SeenBy.PROCESS) for rank in bad
        ]
        returned = tuple(range(rank, rank + 1) for rank in back)
        report = Report(outcomes=tuple(outcomes), returned=returned, final=final)
        self.take(self.roster.reported(member % self.nodes, number, report))

    @rule(member=MEMBER, name=NAMES, facts=FACTS)
    def die(
        self, member: int, name: str, facts: dict[str, str | int | float | bool | None]
    ) -> None:
        member %= self.nodes
        loss = Loss(error=CaughtError(type_names=(name,), message=""), facts=facts)
        if not self.gone and self.roster.state(member) is not MemberState.DEAD:
            self.losses.append(loss)
        self.take(self.roster.died(member, loss))

    @rule(member=MEMBER)
    def cut(self, member: int) -> None:
        self.roster.unavailable(member % self.nodes)

    @rule(member=MEMBER)
    def answer(self, member: int) -> None:
        self.roster.answered(member % self.nodes)

    @invariant()
    def every_rank_once(self) -> None:
        for number, asked in self.asked.items():
            got = self.delivered[number]
            assert len(got) == len(dict.fromkeys(got)), f"twice: {got}"
            assert all(rank in asked for rank in got), f"foreign: {got}"
            if number in self.final:
                assert sorted(got) == asked

    @invariant()
    def one_verdict_by_the_worst_loss(self) -> None:
        assert len(self.gone) <= 1
        if self.gone:
            worst = max(severity(loss) for loss in self.losses)
            assert severity(self.gone[0]) == worst
            assert not self.roster.assignments

    @invariant()
    def nobody_waits_for_nothing(self) -> None:
        alive = [m for m in range(self.nodes) if self.roster.state(m) is not MemberState.DEAD]
        for number in self.roster.assignments:
            assert any(self.roster.owes(m, number) for m in alive) or self.roster.doomed
        owed = any(self.roster.owes(m, n) for m in alive for n in self.roster.assignments)
        if self.roster.doomed and not owed:
            assert self.gone, "all have answered or are dead, and still no verdict"


def severity(loss: Loss) -> Severity:
    return severity_of(loss.error, loss.facts, SeenBy.WORKER)


RosterMachine.TestCase.settings = settings(max_examples=80, stateful_step_count=25, deadline=None)
TestRoster = RosterMachine.TestCase
