"""The history that a retry loop keeps of one piece of work."""

from __future__ import annotations

from thornback.faults import (
    NETWORK_RULES,
    Breaker,
    Classifier,
    Fault,
    FaultHistory,
    FaultKind,
    Origin,
    RetryPolicy,
    StopReason,
)
from thornback.faults.testing import Hostile, fault, lookalike


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


class TestBreaker:
    def test_faults_of_machines_in_a_row_stop_all_who_share_it(self) -> None:
        policy = RetryPolicy(breaker_after=3)
        breaker = Breaker(policy)
        histories = [FaultHistory(policy, breaker=breaker) for _ in range(4)]
        verdicts = [each.failed(lookalike("ActorDiedError", "gone")) for each in histories]
        assert [verdict.retry for verdict in verdicts] == [True, True, False, False]
        assert verdicts[3].stop is StopReason.NO_PROGRESS
        assert verdicts[2].reason.startswith(
            "worker_crash: given up: no progress: 3 faults of machines, and no success between;"
            " the last: WORKER_CRASH by rule 'ray.actor_died'"
        )
        assert histories[3].verdicts == (verdicts[3],)

    def test_a_success_between_them_begins_anew(self) -> None:
        breaker = Breaker(RetryPolicy(breaker_after=2))
        history = FaultHistory(breaker=breaker)
        for _ in range(3):
            assert breaker.failed(fault(FaultKind.NODE_LOST)) == ""
            history.succeeded()
        assert breaker.failed(fault(FaultKind.NODE_LOST)) == ""
        reason = breaker.failed(fault(FaultKind.OOM))
        assert "no progress: 2 faults" in reason

    def test_it_is_terminal_and_keeps_its_reason(self) -> None:
        breaker = Breaker(RetryPolicy(breaker_after=1))
        reason = breaker.failed(fault(FaultKind.NODE_LOST))
        breaker.succeeded()
        assert breaker.failed(fault(FaultKind.APPLICATION)) == breaker.reason == reason != ""

    def test_what_says_nothing_about_machines_is_not_counted(self) -> None:
        breaker = Breaker(RetryPolicy(breaker_after=1))
        for kind in (
            FaultKind.APPLICATION,
            FaultKind.CANCELLED,
            FaultKind.NETWORK,
            FaultKind.PREEMPTION,
            FaultKind.THROTTLED,
            FaultKind.UNSCHEDULABLE,
        ):
            assert breaker.failed(fault(kind)) == ""
        assert breaker.reason == ""

    def test_twenty_by_default_and_never_on_request(self) -> None:
        default, never = Breaker(), Breaker(RetryPolicy(breaker_after=None))
        for _ in range(19):
            assert default.failed(fault(FaultKind.OOM)) == never.failed(fault(FaultKind.OOM)) == ""
        assert default.failed(fault(FaultKind.OOM)) != ""
        assert never.failed(fault(FaultKind.OOM)) == ""

    def test_without_one_a_success_is_nobodys_affair(self) -> None:
        history = FaultHistory()
        history.succeeded()
        assert history.failed(lookalike("RpcError")).retry

    def test_what_is_given_up_anyway_keeps_its_own_reason(self) -> None:
        breaker = Breaker(RetryPolicy(breaker_after=1))
        assert breaker.failed(fault(FaultKind.NODE_LOST)) != ""
        verdict = FaultHistory(breaker=breaker).failed(ValueError("x"))
        assert verdict.stop is StopReason.NO_RETRIES
