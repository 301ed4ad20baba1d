"""Whole runs in any order: Hypothesis plays the cluster, the journal and the clock.

The referee checks the contract from outside, `check_invariants` the books from inside, after every
step; in teardown the world turns fair, and the run must end with everything settled.
"""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, Phase, note, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from thornback.scheduler import Scheduler, SchedulerParams, StagePlan
from thornback.scheduler.commands import OpenGang, RecordState, RunState
from thornback.scheduler.events import (
    CancelRequested,
    Event,
    GangClosed,
    GangLost,
    GangPlaced,
    GangReady,
    JournalFailed,
    NodeDraining,
    RankFailed,
    RanksReturned,
    RanksSucceeded,
    Recorded,
    RunStarted,
    Ticked,
)
from thornback.scheduler.gangs import Assignment
from thornback.scheduler.testing import FakeDependencies, FakeVerdict, Referee, ScriptedPolicy

VERDICTS = {
    "code": FakeVerdict(retry=False, blames_rank=True),
    "crash": FakeVerdict(blames_rank=True),
    "later": FakeVerdict(delay_s=3.0),
    "node": FakeVerdict(blames_node=True, delay_s=0.5),
    "died": FakeVerdict(blames_node=True, machine_fault=True),
    "alike": FakeVerdict(retry=False, signature="ValueError at job.py:3"),
    "oom": FakeVerdict(memory_bytes=3),
    "oom2": FakeVerdict(memory_bytes=5, delay_s=1.0),
    "preempted": FakeVerdict(charged=False),
    "impossible": FakeVerdict(retry=False),
}
NODES = ("a", "b", "c")
CAPACITY = 3
"""Gangs that the fair world has room for."""
# Small, so that the rules come into play within a few steps.
PARAMS = SchedulerParams(
    no_progress_losses=4, no_progress_faults=5, max_opening=3, yield_after_s=20.0, max_unrecorded=6
)
plans: st.SearchStrategy[list[dict[str, int | None]]] = st.lists(
    st.builds(
        dict,
        world_size=st.integers(1, 40),
        slots=st.integers(1, 3),
        nodes=st.integers(1, 2),
        own_shape=st.booleans(),
        max_gangs=st.none() | st.integers(1, 3),
        priority=st.integers(0, 1),
        after=st.booleans(),
        fail_fast=st.none() | st.integers(1, 4),
    ),
    min_size=1,
    max_size=3,
)


class Runs(RuleBasedStateMachine):
    """One run per example."""

    make: type[Scheduler[str]] = Scheduler

    def __init__(self) -> None:
        super().__init__()
        self.now = 100.0
        self.referee: Referee[str] = Referee()
        self.past: list[Event[str]] = []
        self.shapes: dict[int, OpenGang] = {}
        self.nodes: dict[int, str] = {}
        self.sizes: list[int] = []
        self.end = "none"
        self.disturbed = False
        """Cancelled, or the journal failed."""
        self.scheduler: Scheduler[str] | None = None

    @initialize(
        drawn=plans,
        done=st.sets(st.integers(0, 39)),
        failed=st.sets(st.integers(0, 39), max_size=3),
        end=st.sampled_from(["none", "none", "none", "cancel", "journal"]),
        head_start=st.integers(0, 15),
    )
    def start(
        self,
        drawn: list[dict[str, int | None]],
        done: set[int],
        failed: set[int],
        end: str,
        head_start: int,
    ) -> None:
        self.end = end
        self.sizes = [int(plan["world_size"] or 1) for plan in drawn]
        self.policy = ScriptedPolicy(VERDICTS, budget=3)
        stages = []
        parents: list[list[int]] = []
        for number, plan in enumerate(drawn):
            several = plan["nodes"] == 2
            slots = 1 if several else int(plan["slots"] or 1)
            stages.append(
                StagePlan(
                    world_size=self.sizes[number],
                    shape=number if plan["own_shape"] else 100 + 10 * slots + int(several),
                    slots=slots,
                    nodes=2 if several else 1,
                    max_gangs=plan["max_gangs"],
                    policy=self.policy,
                    priority=int(plan["priority"] or 0),
                    fail_fast=plan["fail_fast"],
                )
            )
            parents.append([number - 1] if plan["after"] and number else [])
        self.parents = parents
        self.scheduler = self.make(stages, FakeDependencies(self.sizes, parents), PARAMS, seed=1)
        self.referee = Referee()
        at_first = sorted(rank for rank in done if rank < self.sizes[0])
        at_last = sorted(r for r in failed - done if r < self.sizes[-1]) if len(drawn) > 1 else []
        self.earlier = {(0, rank) for rank in at_first}
        self.earlier |= {(len(drawn) - 1, rank) for rank in at_last}
        self.send(
            RunStarted(
                done={0: tuple(range(r, r + 1) for r in at_first)} if at_first else {},
                failed={len(drawn) - 1: tuple(range(r, r + 1) for r in at_last)} if at_last else {},
            )
        )
        # Trouble shall not only come before the first success: there are no batches then.
        for _ in range(head_start):
            if not self.scheduler.finished:
                self.be_fair()

    def send(self, event: Event[str]) -> None:
        assert self.scheduler is not None
        note(f"{self.now:.1f} {event}")
        self.past.append(event)
        self.referee.tell(event)
        commands = self.scheduler.handle(event, self.now)
        for command in commands:
            note(f"    {command}")
            if isinstance(command, OpenGang):
                self.shapes[command.gang] = command
        before = len(self.referee.outstanding)
        self.referee.heard(commands)
        for _, stage, ranks in list(self.referee.outstanding.values())[before:]:
            for parent in self.parents[stage]:
                for rank in range(self.sizes[parent]):
                    key = parent, rank
                    assert key in self.referee.done or key in self.earlier, (stage, ranks, key)

    def gangs(self, *states: str) -> list[int]:
        return [n for n, gang in self.referee.gangs.items() if gang.state in states]

    def held(self) -> list[int]:
        return [number for number, (_, _, ranks) in self.referee.outstanding.items() if ranks]

    # -- the cluster -------------------------------------------------------------------------------

    @precondition(lambda self: self.gangs("opening"))
    @rule(
        data=st.data(),
        nodes=st.sampled_from([*((node,) for node in NODES), ("a", "b"), ("b", "c")]),
        fitting=st.sampled_from([None, 1, 3, 8]),
    )
    def gang_is_ready(
        self, data: st.DataObject, nodes: tuple[str, ...], fitting: int | None
    ) -> None:
        gang = data.draw(st.sampled_from(self.gangs("opening")))
        self.nodes[gang] = nodes[0] if len(nodes) == 1 else ""
        self.send(GangPlaced(gang=gang, nodes=nodes))
        self.send(GangReady(gang=gang, nodes=nodes, fitting=fitting))

    @precondition(lambda self: self.gangs("opening", "ready"))
    @rule(data=st.data(), fault=st.sampled_from(sorted(VERDICTS)), named=st.booleans())
    def gang_is_lost(self, data: st.DataObject, fault: str, named: bool) -> None:
        gang = data.draw(st.sampled_from(self.gangs("opening", "ready")))
        self.send(
            GangLost(gang=gang, fault=fault, node=(self.nodes.get(gang) or None) if named else None)
        )

    @precondition(lambda self: self.gangs("closing"))
    @rule(data=st.data(), confirmed=st.booleans())
    def gang_is_closed(self, data: st.DataObject, confirmed: bool) -> None:
        gang = data.draw(st.sampled_from(self.gangs("closing")))
        self.send(GangClosed(gang=gang, confirmed=confirmed))

    @precondition(lambda self: self.held())
    @rule(data=st.data(), busy_s=st.sampled_from([0.01, 0.0, 0.4, 30.0]))
    def ranks_succeed(self, data: st.DataObject, busy_s: float) -> None:
        number = data.draw(st.sampled_from(self.held()))
        ranks = sorted(self.referee.outstanding[number][2])
        some = sorted(data.draw(st.sets(st.sampled_from(ranks), min_size=1)))
        pieces = tuple(range(rank, rank + 1) for rank in some)
        self.send(RanksSucceeded(assignment=number, ranks=pieces, busy_s=busy_s))

    @precondition(lambda self: self.held())
    @rule(data=st.data(), fault=st.sampled_from(sorted(VERDICTS)))
    def rank_fails(self, data: st.DataObject, fault: str) -> None:
        number = data.draw(st.sampled_from(self.held()))
        gang, _, ranks = self.referee.outstanding[number]
        rank = data.draw(st.sampled_from(sorted(ranks)))
        self.send(
            RankFailed(assignment=number, rank=rank, fault=fault, node=self.nodes.get(gang, ""))
        )

    @precondition(lambda self: self.held())
    @rule(data=st.data())
    def ranks_come_back(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(self.held()))
        ranks = sorted(self.referee.outstanding[number][2])
        keep = data.draw(st.integers(0, 1))
        if ranks[keep:]:
            pieces = tuple(range(rank, rank + 1) for rank in ranks[keep:])
            self.send(RanksReturned(assignment=number, ranks=pieces))

    @precondition(lambda self: self.gangs("ready"))
    @rule(node=st.sampled_from(NODES), left_s=st.none() | st.floats(0.0, 200.0))
    def node_drains(self, node: str, left_s: float | None) -> None:
        self.send(NodeDraining(node=node, left_s=left_s))

    # -- the journal, time, the user, and what comes twice -----------------------------------------

    @precondition(lambda self: self.referee.records)
    @rule(data=st.data())
    def journal_answers(self, data: st.DataObject) -> None:
        at = data.draw(st.integers(0, len(self.referee.records) - 1))
        record = self.referee.records.pop(at)
        self.send(Recorded(stage=record.stage, ranks=record.ranks))

    @precondition(lambda self: self.scheduler.wake_at is not None)
    @rule()
    def time_comes(self) -> None:
        assert self.scheduler is not None
        assert self.scheduler.wake_at is not None
        self.now = max(self.now, self.scheduler.wake_at)
        self.send(Ticked())

    @rule(passed_s=st.sampled_from([0.0, 0.3, 2.5, 70.0]))
    def time_passes(self, passed_s: float) -> None:
        self.now += passed_s
        self.send(Ticked())

    @precondition(lambda self: len(self.past) > 1)
    @rule(data=st.data())
    def something_comes_again(self, data: st.DataObject) -> None:
        at = data.draw(st.integers(0, len(self.past) - 1))
        if not isinstance(self.past[at], CancelRequested | JournalFailed):
            self.send(self.past[at])

    @precondition(lambda self: self.end == "cancel")
    @rule(kill=st.booleans())
    def user_cancels(self, kill: bool) -> None:
        self.disturbed = True
        self.send(CancelRequested(reason="enough", kill=kill))

    @precondition(lambda self: self.end == "journal" and self.referee.records)
    @rule()
    def journal_fails(self) -> None:
        self.disturbed = True
        self.referee.records.clear()
        self.send(JournalFailed(fault="code"))

    # -- what must hold ----------------------------------------------------------------------------

    @invariant()
    def books_are_whole(self) -> None:
        if self.scheduler is not None:
            self.scheduler.check_invariants()

    def teardown(self) -> None:
        if self.scheduler is None:
            return
        for _ in range(3000):
            if self.scheduler.finished:
                break
            self.be_fair()
            self.scheduler.check_invariants()
        self.check_end()

    def be_fair(self) -> None:
        """Answer one thing that is owed; without one, let time pass."""
        assert self.scheduler is not None
        opening, closing = self.gangs("opening"), self.gangs("closing")
        if self.referee.records:
            record = self.referee.records.pop(0)
            self.send(Recorded(stage=record.stage, ranks=record.ranks))
        elif self.held():
            number = self.held()[0]
            ranks = tuple(range(r, r + 1) for r in sorted(self.referee.outstanding[number][2]))
            self.now += 0.1
            self.send(RanksSucceeded(assignment=number, ranks=ranks, busy_s=0.1))
        elif closing:
            self.send(GangClosed(gang=closing[0]))
        elif opening and len(self.gangs("ready")) < CAPACITY:
            self.nodes[opening[0]] = "a"
            self.send(GangReady(gang=opening[0], nodes=("a",)))
        elif self.scheduler.wake_at is not None:
            self.now = max(self.now, self.scheduler.wake_at)
            self.send(Ticked())
        else:
            assert opening, "nothing is owed, and no timer is set"
            self.now += 600.0
            self.send(GangLost(gang=opening[0], fault="preempted"))

    def check_end(self) -> None:
        assert self.scheduler is not None
        finish = self.referee.finish
        assert self.scheduler.finished, "the run did not end in a fair world"
        assert finish is not None
        assert all(self.scheduler.counts(s).gangs == 0 for s in range(len(self.sizes)))
        if self.disturbed:
            return
        assert finish.state is not RunState.CANCELLED
        good = True
        for stage, size in enumerate(self.sizes):
            counts = self.scheduler.counts(stage)
            assert counts.done + counts.failed + counts.skipped == size, counts
            good = good and not counts.failed and not counts.skipped
            for rank in range(size):
                assert (stage, rank) in self.referee.ended or (stage, rank) in self.earlier
        assert (finish.state is RunState.SUCCEEDED) == good, finish
        done = [key for key, state in self.referee.ended.items() if state is RecordState.DONE]
        assert all(key in self.referee.done for key in done)


TestRuns = Runs.TestCase
TestRuns.settings = settings(
    max_examples=100,
    deadline=None,
    stateful_step_count=50,
    suppress_health_check=[HealthCheck.too_slow],
)


# -- planted bugs: the machine must find each ------------------------------------------------------


class ForgetsToRequeue(Scheduler[str]):
    """A lost gang takes its ranks with it."""

    def _give_back(self, assignment: Assignment[str], halve: bool) -> None:
        pass


def _finds(planted: type[Scheduler[str]]) -> None:
    class Planted(Runs):
        make = planted

    run_state_machine_as_test(
        Planted,
        settings=settings(
            max_examples=200,
            stateful_step_count=30,
            database=None,
            deadline=None,
            derandomize=True,
            report_multiple_bugs=False,
            phases=[Phase.generate],  # to be found is enough
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_the_machine_finds_ranks_that_are_forgotten_when_a_gang_is_lost() -> None:
    with pytest.raises(AssertionError, match="RUNNING"):
        _finds(ForgetsToRequeue)
