"""The history that a retry loop keeps of one piece of work."""

from __future__ import annotations

from thornback.faults import (
    NETWORK_RULES,
    Classifier,
    Fault,
    FaultHistory,
    FaultKind,
    Origin,
    RetryPolicy,
)
from thornback.faults.testing import Hostile, lookalike


def test_verdicts_are_those_of_the_policy_with_all_that_was_before() -> None:
    policy, classifier = RetryPolicy(retries=1), Classifier(user_rules=NETWORK_RULES)
    history = FaultHistory(policy, classifier)
    errors = [ConnectionResetError("gone"), ValueError("x"), ConnectionResetError("gone")]
    past: list[tuple[Fault, str]] = []
    for error, draw in zip(errors, (0.0, 0.5, 1.0), strict=True):
        what = classifier.classify(error)
        assert history.failed(error, draw=draw) == policy.decide(what, past, draw)
        past.append((what, ""))
    assert history.faults == tuple(what for what, _ in past)
    assert [verdict.delay_s for verdict in history.verdicts] == [0.0, 0.5, 2.0]
    assert not history.failed(ValueError("x")).retry


def test_histories_know_nothing_of_one_another() -> None:
    policy, classifier = RetryPolicy(retries=1), Classifier()
    first, second = (FaultHistory(policy, classifier) for _ in range(2))
    assert first.failed(ValueError("x")).retry
    assert second.failed(ValueError("x")).retry
    assert not first.failed(ValueError("x")).retry


def test_without_arguments_it_goes_by_the_default_policy_and_rules() -> None:
    history = FaultHistory()
    assert (history.faults, history.verdicts) == ((), ())
    assert history.failed(lookalike("RpcError")).delay_s == 1.0
    assert not history.failed(ConnectionResetError("gone")).retry
    assert history.failed(lookalike("RpcError")).delay_s == 2.0
    assert [each.kind for each in history.faults] == [
        FaultKind.UNAVAILABLE,
        FaultKind.APPLICATION,
        FaultKind.UNAVAILABLE,
    ]


def test_nodes_among_the_facts_convict_what_dies_everywhere() -> None:
    died = lookalike("thornback.pool.RankProcessDied", signal=9)
    history = FaultHistory()
    assert history.failed(died, {"origin": "process", "node": "a"}).retry
    assert history.failed(died, {"origin": "process", "node": "a"}).avoid_node
    verdict = history.failed(died, {"origin": "process", "node": "b"})
    assert not verdict.retry
    assert "on 2 nodes (a, b)" in verdict.reason


def test_preemptions_end_too() -> None:
    history = FaultHistory(RetryPolicy(max_retries=3))
    taken = lookalike("ActorDiedError", preempted=True)
    assert [history.failed(taken).retry for _ in range(4)] == [True, True, True, False]


def test_anything_may_be_told() -> None:
    history = FaultHistory()
    assert not history.failed(Hostile()).retry
    assert not history.failed(lookalike("RayError"), {"node": 7, "origin": "rank"}).retry
    assert history.faults[1].origin is Origin.RANK
