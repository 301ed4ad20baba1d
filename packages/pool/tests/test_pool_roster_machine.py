"""The roster under any order of news: every rank once, one verdict, node 0's word where it counts,
no checkpoint twice, nobody waits for nothing."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from thornback.pool import CaughtError, Checkpoint, FinishedWhen, Outcome, Report, SeenBy
from thornback.pool.members import MemberState
from thornback.pool.roster import (
    Deliver,
    GangGone,
    Grace,
    Instruction,
    KillRank,
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
        self.by_leader: dict[int, bool] = {}
        self.undecided: dict[int, bool] = {}
        """By assignment of several nodes, while nothing but successes of others has been seen."""
        self.led: dict[int, bool] = {}
        self.graces: dict[int, int] = {}
        self.versions: dict[int, int] = {}
        self.doubts: dict[tuple[int, int], None] = {}
        """(member, assignment): has to vouch."""
        self.failed: dict[int, None] = {}
        """Assignments of several nodes whose first failure was seen."""

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
                    if (saved := report.checkpoint) is not None:
                        assert saved.version > self.versions.get(number, 0), "an older checkpoint"
                        assert saved.data == b"0", "only node 0's count"
                        assert saved.rank in self.asked[number]
                        assert saved.rank not in self.delivered[number]
                        self.versions[number] = saved.version
                    got = [outcome.rank for outcome in report.outcomes]
                    self.delivered[number] += [*got, *chain.from_iterable(report.returned)]
                    if report.final:
                        self.final[number] = report
                case Grace(assignment=number):
                    assert self.led[number], "no grace before node 0 has succeeded"
                    assert number not in self.final
                    self.graces[number] = self.graces.get(number, 0) + 1
                case KillRank(member=member, assignment=number, vouch=vouch):
                    assert self.roster.state(member) is not MemberState.DEAD
                    assert number not in self.final
                    if vouch:
                        assert (member, number) not in self.doubts, "asked twice"
                        self.doubts[member, number] = None
                case GangGone(loss=loss):
                    self.gone.append(loss)

    @rule(count=st.integers(1, 5), finished_when=st.sampled_from(FinishedWhen))
    def assign(self, count: int, finished_when: FinishedWhen) -> None:
        ranks = list(range(1 if self.nodes > 1 else count))
        number = len(self.asked) + 1
        if self.roster.assigned(number, [range(len(ranks))], finished_when=finished_when):
            self.asked[number] = ranks
            by_leader = self.nodes > 1 and finished_when is FinishedWhen.LEADER
            self.by_leader[number] = self.undecided[number] = by_leader
            self.led[number] = False
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
        version=st.integers(0, 4),
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
        version: int,
    ) -> None:
        number = data.draw(st.sampled_from(sorted(self.asked)))
        error = CaughtError(type_names=(name,), message="")
        outcomes = [Outcome(rank=rank, ok=True) for rank in good]
        outcomes += [
            Outcome(rank=rank, ok=False, error=error, seen_by=SeenBy.PROCESS) for rank in bad
        ]
        returned = tuple(range(rank, rank + 1) for rank in back)
        member %= self.nodes
        saved = Checkpoint(rank=number % 2, version=version, data=str(member).encode())
        report = Report(
            outcomes=tuple(outcomes),
            returned=returned,
            final=final,
            checkpoint=saved if version else None,
        )
        self.foresee(member, number, report)
        before = dict(self.doubts)
        first = self.fails_first(member, number, report)
        self.take(self.roster.reported(member, number, report))
        asked = {m for m, n in self.doubts if n == number and (m, n) not in before}
        others = {m for m in self.living() if m != member}
        assert asked == (others if first else set()), "who lives is asked, at the first failure"

    def living(self) -> list[int]:
        return [m for m in range(self.nodes) if self.roster.state(m) is not MemberState.DEAD]

    def fails_first(self, member: int, number: int, report: Report) -> bool:
        """Note, and return, whether this is the first failure that counts of several nodes."""
        owes = member in self.living() and self.roster.owes(member, number)
        ends = [outcome.ok for outcome in report.outcomes if outcome.rank == 0][:1]
        if self.nodes == 1 or not owes or ends != [False] or self.led[number]:
            return False
        first = number not in self.failed
        self.failed[number] = None
        return first

    @precondition(lambda self: self.doubts)
    @rule(data=st.data())
    def vouch(self, data: st.DataObject) -> None:
        member, number = data.draw(st.sampled_from(sorted(self.doubts)))
        del self.doubts[member, number]
        self.take(self.roster.vouched(member, number))

    @rule(member=MEMBER, number=st.integers(1, 3))
    def vouch_unasked(self, member: int, number: int) -> None:
        if (member % self.nodes, number) not in self.doubts:
            assert self.roster.vouched(member % self.nodes, number) == ()

    def foresee(self, member: int, number: int, report: Report) -> None:
        """Follow, by the words of the theory, which ranks are a success by node 0's word."""
        dead = self.roster.state(member) is MemberState.DEAD
        if not self.undecided[number] or dead or not self.roster.owes(member, number):
            return
        ends = [outcome.ok for outcome in report.outcomes if outcome.rank == 0][:1]
        handed_back = report.final or any(0 in each for each in report.returned)
        if ends == [True] and member == 0:
            self.led[number] = True
        if (ends == [True] and member == 0) or ends == [False] or (not ends and handed_back):
            self.undecided[number] = False

    @precondition(lambda self: self.asked)
    @rule(data=st.data())
    def end_the_grace(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.asked)))
        kills = self.roster.grace_over(number)
        assert not kills or (self.led[number] and number not in self.final)
        self.take(kills)

    @rule(member=MEMBER, name=NAMES, facts=FACTS)
    def die(
        self, member: int, name: str, facts: dict[str, str | int | float | bool | None]
    ) -> None:
        member %= self.nodes
        loss = Loss(error=CaughtError(type_names=(name,), message=""), facts=facts)
        if not self.gone and self.roster.state(member) is not MemberState.DEAD:
            self.losses.append(loss)
            self.undecided = dict.fromkeys(self.undecided, False)
        self.doubts = {each: None for each in self.doubts if each[0] != member}
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
    def node_0_decides_where_it_is_to(self) -> None:
        for number, led in self.led.items():
            assert self.graces.get(number, 0) <= led
            if led and number in self.final:
                (outcome,) = self.final[number].outcomes
                assert outcome.ok
                assert outcome.node == "n0"
            if led and self.gone:
                assert number in self.final, "the success is delivered before the loss"
            if led and number in self.roster.assignments:
                assert any(self.roster.owes(m, number) for m in range(1, self.nodes))

    @invariant()
    def one_verdict_by_the_worst_loss(self) -> None:
        assert len(self.gone) <= 1
        if self.gone:
            worst = max(severity(loss) for loss in self.losses)
            assert severity(self.gone[0]) == worst
            assert not self.roster.assignments

    @invariant()
    def no_failure_is_concluded_before_all_have_vouched(self) -> None:
        for _, number in self.doubts:
            assert number not in self.final
            assert number in self.roster.assignments

    @invariant()
    def nobody_waits_for_nothing(self) -> None:
        owing = {(m, n) for m in self.living() for n in self.roster.assignments}
        owing = {each for each in owing if self.roster.owes(*each) or each in self.doubts}
        for number in self.roster.assignments:
            assert any(n == number for _, n in owing) or self.roster.doomed
        owed = bool(owing)
        if self.roster.doomed and not owed:
            assert self.gone, "all have answered or are dead, and still no verdict"


def severity(loss: Loss) -> Severity:
    return severity_of(loss.error, loss.facts, SeenBy.WORKER)


RosterMachine.TestCase.settings = settings(max_examples=80, stateful_step_count=25, deadline=None)
TestRoster = RosterMachine.TestCase
