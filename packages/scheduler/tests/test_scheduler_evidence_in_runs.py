"""Whose fault was it, as a policy and the ranks see it: `evidence.py` in whole schedulers."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from thornback.faults import Standing, StopReason
from thornback.scheduler.commands import OpenGang, Record, RecordState
from thornback.scheduler.events import GangReady, RankFailed
from thornback.scheduler.stages import one
from thornback.scheduler.states import RankState
from thornback.scheduler.testing import (
    VERDICTS,
    FakeVerdict,
    Play,
    ScriptedPolicy,
    dispatches,
    plan,
    play,
)

OPEN, RANK, NODE, UNDECIDED = Standing.OPEN, Standing.RANK, Standing.NODE, Standing.UNDECIDED
SCRIPT = {
    **VERDICTS,
    "bug": FakeVerdict(retry=False, signature="ValueError at job.py:3", reason="its code failed"),
    "died later": FakeVerdict(blames_node=True, machine_fault=True, delay_s=50.0),
}


class Judge(ScriptedPolicy):
    """Gives a rank up when so many of its deaths are settled against it."""

    def __init__(self, most: int = 1) -> None:
        super().__init__(SCRIPT)
        self._most = most

    def decide(
        self,
        fault: str,
        history: Sequence[tuple[str, str, Standing]],
        standing: Standing,
        draw: float,
        /,
    ) -> FakeVerdict:
        verdict = super().decide(fault, history, standing, draw)
        guilty = [then for _, _, then in history].count(RANK) + (standing is RANK)
        if guilty < self._most or not verdict.retry:
            return verdict
        return FakeVerdict(retry=False, reason="poison", stop=StopReason.POISON)


def on_nodes(
    *nodes: str, ranks: int = 40, slots: int = 2, policy: ScriptedPolicy | None = None
) -> Play[str]:
    """A run with one gang on each of these nodes, of eight that fit."""
    policy = policy or ScriptedPolicy(SCRIPT)
    game = play(plan(ranks, slots=slots, max_gangs=len(nodes), policy=policy))
    game.start()
    for gang, node in enumerate(nodes):
        game.send(GangReady(gang=gang, nodes=(node,), fitting=8))
    return game


def asked(game: Play[str]) -> list[tuple[str, Standing]]:
    """Return what the policy was asked, by fault and standing."""
    policy = game.scheduler._board.stages[0].plan.policy
    assert isinstance(policy, ScriptedPolicy)
    return [(fault, standing) for fault, _, standing, _ in policy.asked]


def suspected(game: Play[str]) -> list[str]:
    board = game.scheduler._board
    names = dict.fromkeys(name for shape in board.shapes.values() for name in shape.nodes)
    return sorted(board.evidence.suspects(names, 99, board.now))


def last_history(game: Play[str]) -> list[tuple[str, str, Standing]]:
    policy = game.scheduler._board.stages[0].plan.policy
    assert isinstance(policy, ScriptedPolicy)
    return list(policy.asked[-1][1])


def given_up(commands: Sequence[object]) -> list[tuple[object, StopReason | None]]:
    records = [c for c in commands if isinstance(c, Record) and c.state is RecordState.FAILED]
    return [(record.ranks, record.stop) for record in records]


# -- against the rank ------------------------------------------------------------------------------


def test_evidence_later_rank_finishes_there_settles_against_the_rank() -> None:
    game = on_nodes("a", "b")
    ((_, later, ranks),) = dispatches(game.fail(0, 0, "died", "a"))
    assert ranks == one(4), "in trouble fresh ranks go first"
    game.succeed(later)
    assert asked(game) == [("died", OPEN), ("died", RANK)]


def test_evidence_rank_dispatched_before_the_death_settles_nothing() -> None:
    game = on_nodes("a", "b")
    game.fail(0, 0, "died", "a")
    game.succeed(1)
    assert asked(game) == [("died", OPEN)]


def test_evidence_rank_that_finishes_on_another_node_settles_nothing() -> None:
    game = on_nodes("a", "b")
    game.fail(0, 0, "died", "a")
    ((gang, later, _), *_) = dispatches(game.succeed(2))
    assert gang == 1
    game.succeed(later)
    assert asked(game) == [("died", OPEN)]


def test_evidence_rank_of_another_stage_settles_against_the_rank() -> None:
    """Nodes are nodes: the ranks of all stages are evidence. Rank 0 of one is not that of the
    other."""
    policy = ScriptedPolicy(SCRIPT)
    game = play(plan(9, max_gangs=1, policy=policy), plan(9, shape=1, max_gangs=1))
    game.start()
    game.ready(0, "a")
    game.fail(0, 0, "died", "a")
    ((_, number, ranks),) = dispatches(game.ready(1, "a"))
    assert ranks == one(0)
    game.succeed(number)
    assert asked(game) == [("died", OPEN), ("died", RANK)]


@pytest.mark.parametrize(("ran_s", "settled"), [(6.0, True), (5.0, False)])
def test_evidence_code_error_settles_only_if_it_ran_longer(ran_s: float, settled: bool) -> None:
    game = on_nodes("a", "b")
    game.tick(5.0)
    ((_, later, _),) = dispatches(game.fail(0, 0, "died", "a"))
    game.tick(ran_s)
    game.send(RankFailed(assignment=later, rank=4, fault="bug", node="a", ran_s=ran_s))
    assert (("died", RANK) in asked(game)) is settled


def test_evidence_fault_without_a_signature_settles_nothing() -> None:
    """A time-out or a lost connection says nothing about the node, however long the rank ran."""
    game = on_nodes("a", "b")
    ((_, later, _),) = dispatches(game.fail(0, 0, "died", "a"))
    game.send(RankFailed(assignment=later, rank=4, fault="again", node="a", ran_s=99.0))
    assert ("died", RANK) not in asked(game)


def test_evidence_convicted_rank_that_is_ready_is_given_up_at_once() -> None:
    game = on_nodes("a", "b", policy=Judge())
    ((_, later, _),) = dispatches(game.fail(0, 0, "died", "a"))
    assert game.scheduler.state(0, 0) is RankState.READY
    assert given_up(game.succeed(later)) == [(one(0), StopReason.POISON)]
    assert game.scheduler.reason(0, 0) == "poison"


def test_evidence_convicted_rank_that_waits_for_a_timer_is_given_up_at_once() -> None:
    game = on_nodes("a", "b", policy=Judge())
    ((_, later, _),) = dispatches(game.fail(0, 0, "died later", "a"))
    assert game.scheduler.state(0, 0) is RankState.BACKOFF
    assert given_up(game.succeed(later)) == [(one(0), StopReason.POISON)]
    game.tick(60.0)
    assert game.scheduler.state(0, 0) is RankState.FAILED, "its timer changes nothing"


def test_evidence_convicted_rank_that_runs_is_judged_when_it_fails() -> None:
    game = on_nodes("a", "b", ranks=5, policy=Judge(2))
    game.tick(1.0)
    ((_, later, _),) = dispatches(game.fail(0, 0, "died", "a"))
    ((gang, retried, ranks),) = dispatches(game.succeed(2))
    assert (gang, ranks) == (1, one(0))
    assert given_up(game.succeed(later)) == []
    assert game.scheduler.state(0, 0) is RankState.RUNNING
    assert asked(game) == [("died", OPEN)], "it may succeed"
    game.fail(retried, 0, "died", "b")
    assert last_history(game) == [("died", "a", RANK)]


def test_evidence_convicted_rank_that_has_finished_stays_done() -> None:
    game = on_nodes("a", "b", ranks=5, policy=Judge())
    ((_, later, _),) = dispatches(game.fail(0, 0, "died", "a"))
    ((_, retried, _),) = dispatches(game.succeed(2))
    game.succeed(retried)
    assert given_up(game.succeed(later)) == []
    assert asked(game) == [("died", OPEN)]


# -- against the node ------------------------------------------------------------------------------


def test_evidence_second_rank_that_dies_there_settles_both_against_the_node() -> None:
    game = on_nodes("a", "b", ranks=5, policy=Judge(2))
    game.fail(0, 0, "died", "a")
    game.fail(1, 1, "died", "a")
    assert asked(game) == [("died", OPEN), ("died", NODE)]
    ((_, retried, ranks),) = dispatches(game.succeed(2))
    game.fail(retried, ranks[0].start, "again", "b")
    assert last_history(game)[0][1:] == ("a", NODE)


def test_evidence_third_rank_that_dies_there_is_settled_against_the_node() -> None:
    game = on_nodes("a", "b", slots=3)
    for rank in range(3):
        game.fail(rank, rank, "died", "a")
    assert asked(game) == [("died", OPEN), ("died", NODE), ("died", NODE)]


def test_evidence_known_killer_does_not_convict_another_node() -> None:
    """What a convicted rank does elsewhere says nothing of the machine there."""
    game = on_nodes("a", "b", policy=Judge(3))
    ((_, later, _),) = dispatches(game.fail(0, 0, "died", "a"))
    game.succeed(later)
    given = dispatches(game.succeed(2))
    (retried,) = [number for gang, number, ranks in given if (gang, ranks) == (1, one(0))]
    game.fail(retried, 0, "died", "b")
    game.fail(3, 3, "died", "b")
    assert asked(game)[-2:] == [("died", OPEN), ("died", OPEN)], "each the first on this node"
    assert suspected(game) == []


def test_evidence_fault_of_a_lone_rank_is_undecided() -> None:
    game = on_nodes("a", ranks=1)
    game.fail(0, 0, "died", "a")
    assert asked(game) == [("died", UNDECIDED)]


def test_evidence_gang_of_several_nodes_without_root_cause_books_all() -> None:
    """A second such gang convicts only the node that both had."""
    policy = ScriptedPolicy(SCRIPT)
    game = play(plan(40, nodes=2, max_gangs=2, policy=policy))
    game.start()
    game.send(GangReady(gang=0, nodes=("a", "b"), fitting=8))
    game.send(GangReady(gang=1, nodes=("b", "c"), fitting=8))
    game.fail(0, 0, "died", "")
    game.fail(1, 1, "died", "")
    assert asked(game) == [("died", OPEN), ("died", NODE)]
    assert list(suspected(game)) == ["b", "c"]


def test_evidence_gang_of_several_nodes_with_root_cause_books_that_node() -> None:
    policy = ScriptedPolicy(SCRIPT)
    game = play(plan(40, nodes=2, max_gangs=2, policy=policy))
    game.start()
    game.send(GangReady(gang=0, nodes=("a", "b"), fitting=8))
    game.send(GangReady(gang=1, nodes=("b", "c"), fitting=8))
    game.fail(0, 0, "died", "a")
    game.fail(1, 1, "died", "b")
    assert asked(game) == [("died", OPEN), ("died", OPEN)]
    assert suspected(game) == []


def test_evidence_lost_worker_of_one_rank_is_a_case_like_a_death() -> None:
    game = on_nodes("a", "b", slots=1)
    game.lost(0, "died", "a")
    assert asked(game) == [("died", UNDECIDED), ("died", OPEN)], "of the gang, and of the rank"
    assert suspected(game) == []


def test_evidence_lost_worker_of_several_ranks_suspects_the_node() -> None:
    """Which of them was to blame is not known: it is no case against a rank."""
    game = on_nodes("a", "b", slots=2)
    game.lost(0, "died", "a")
    assert suspected(game) == ["a"]


def test_evidence_node_that_is_gone_is_suspected_at_once() -> None:
    game = on_nodes("a", "b", slots=1)
    commands = game.lost(0, "gone", "a")
    assert suspected(game) == ["a"]
    assert [c.avoid for c in commands if isinstance(c, OpenGang)] == [("a",)]
