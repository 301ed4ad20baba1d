"""The history that a retry loop keeps of one piece of work."""

from __future__ import annotations

import pytest

from thornback.faults import (
    NETWORK_RULES,
    Breaker,
    Classifier,
    Fault,
    FaultHistory,
    FaultKind,
    Origin,
    RetryPolicy,
    RetryVerdict,
    Standing,
    StopReason,
)
from thornback.faults.testing import Hostile, fault, lookalike

U = Standing.UNDECIDED
MACHINE = RetryVerdict(retry=True, machine_fault=True, reason="x")
"""What `Breaker` counts, whatever the fault."""
OTHER = RetryVerdict(retry=True, machine_fault=False, reason="x")


def test_verdicts_are_those_of_the_policy_with_all_that_was_before() -> None:
    policy, classifier = RetryPolicy(retries=1), Classifier(user_rules=NETWORK_RULES)
    history = FaultHistory(policy, classifier)
    errors = [ConnectionResetError("gone"), ValueError("x"), ConnectionResetError("gone")]
    past: list[tuple[Fault, str, Standing]] = []
    for error, draw in zip(errors, (0.0, 0.5, 1.0), strict=True):
        what = classifier.classify(error)
        assert history.failed(error, draw=draw) == policy.decide(what, past, U, draw)
        past.append((what, "", U))
    assert history.faults == tuple(what for what, _, _ in past)
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


def test_deaths_everywhere_without_evidence_end_undecided() -> None:
    """One call collects no evidence about nodes, so the budget of the kind is the end."""
    died = lookalike("thornback.pool.RankProcessDied", signal=9)
    history = FaultHistory()
    for node in "abc":
        assert history.failed(died, {"origin": "process", "node": node}).retry
    verdict = history.failed(died, {"origin": "process", "node": "a"})
    assert verdict.stop is StopReason.UNDECIDED
    assert "undecided: rank or machine; retry limit (3) reached" in verdict.reason


def test_wait_for_busy_resources_uses_up_no_retry() -> None:
    history = FaultHistory()
    busy = lookalike("GetTimeoutError")
    facts = {"origin": "placement", "phase": "place"}
    waits = [history.failed(busy, facts) for _ in range(50)]
    assert all(verdict.retry and not verdict.charged for verdict in waits)
    late = lookalike("thornback.pool.RankTimedOut")
    assert [history.failed(late, {"origin": "process"}).retry for _ in range(2)] == [True, False]


def test_preemptions_end_on_request_only() -> None:
    history = FaultHistory(RetryPolicy(max_retries=3))
    taken = lookalike("ActorDiedError", preempted=True)
    assert [history.failed(taken).retry for _ in range(4)] == [True, True, True, False]
    endless = FaultHistory()
    assert all(endless.failed(taken).retry for _ in range(100))


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
            assert breaker.failed(fault(FaultKind.RESOURCE), MACHINE) == ""
            history.succeeded()
        assert breaker.failed(fault(FaultKind.RESOURCE), MACHINE) == ""
        reason = breaker.failed(fault(FaultKind.OOM), MACHINE)
        assert "no progress: 2 faults" in reason

    def test_it_is_terminal_and_keeps_its_reason(self) -> None:
        breaker = Breaker(RetryPolicy(breaker_after=1))
        reason = breaker.failed(fault(FaultKind.RESOURCE), MACHINE)
        breaker.succeeded()
        assert breaker.failed(fault(FaultKind.APPLICATION), OTHER) == breaker.reason == reason != ""

    @pytest.mark.parametrize("kind", FaultKind)
    def test_only_the_verdict_says_what_is_counted(self, kind: FaultKind) -> None:
        breaker = Breaker(RetryPolicy(breaker_after=2))
        for _ in range(3):
            assert breaker.failed(fault(kind), OTHER) == ""
        assert breaker.failed(fault(kind), MACHINE) == ""
        assert breaker.failed(fault(kind), OTHER) == ""  # neither counted nor a success
        assert breaker.failed(fault(kind), MACHINE) == breaker.reason != ""

    def test_kinds_that_say_nothing_about_machines_never_open_it(self) -> None:
        policy = RetryPolicy(breaker_after=1)
        breaker = Breaker(policy)
        for kind in (
            FaultKind.APPLICATION,
            FaultKind.CANCELLED,
            FaultKind.NETWORK,
            FaultKind.NODE_LOST,
            FaultKind.OOM,
            FaultKind.PREEMPTION,
            FaultKind.THROTTLED,
            FaultKind.UNSCHEDULABLE,
        ):
            what = fault(kind)
            assert breaker.failed(what, policy.decide(what, (), U, 0.5)) == ""
        assert breaker.reason == ""

    def test_attempt_that_was_given_up_is_counted_too(self) -> None:
        breaker = Breaker(RetryPolicy(breaker_after=1))
        gone = MACHINE.__replace__(retry=False, stop=StopReason.POISON)
        assert breaker.failed(fault(FaultKind.WORKER_CRASH), gone) != ""

    def test_twenty_by_default_and_never_on_request(self) -> None:
        default, never = Breaker(), Breaker(RetryPolicy(breaker_after=None))
        what = fault(FaultKind.OOM)
        for _ in range(19):
            assert default.failed(what, MACHINE) == never.failed(what, MACHINE) == ""
        assert default.failed(what, MACHINE) != ""
        assert never.failed(what, MACHINE) == ""

    def test_without_one_a_success_is_nobodys_affair(self) -> None:
        history = FaultHistory()
        history.succeeded()
        assert history.failed(lookalike("RpcError")).retry

    def test_what_is_given_up_anyway_keeps_its_own_reason(self) -> None:
        breaker = Breaker(RetryPolicy(breaker_after=1))
        assert breaker.failed(fault(FaultKind.RESOURCE), MACHINE) != ""
        verdict = FaultHistory(breaker=breaker).failed(ValueError("x"))
        assert verdict.stop is StopReason.NO_RETRIES
