"""The default table, who pays, backoff, poison, the memory ladder, and what always holds."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thornback.faults import (
    NETWORK_RULES,
    THROTTLED_RULES,
    Fault,
    FaultBudget,
    FaultKind,
    Origin,
    RetryPolicy,
    RetryVerdict,
    Standing,
    StopReason,
    backoff_s,
    is_retriable,
)
from thornback.faults.budgets import DEFAULT_BUDGETS
from thornback.faults.kinds import Attribute
from thornback.faults.memory import MIB, memory_need, rung
from thornback.faults.testing import check_retry_policy, fault, lookalike, lookalike_task_error

K = FaultKind
GIB = 2**30
U = Standing.UNDECIDED
OPEN, RANK, NODE = Standing.OPEN, Standing.RANK, Standing.NODE
Entry = tuple[Fault, str, Standing]
BUSY = fault(K.TIMEOUT, Origin.PLACEMENT).__replace__(phase="place")


def test_conformance() -> None:
    check_retry_policy(RetryPolicy())
    check_retry_policy(RetryPolicy(retries=5, memory_bytes=3 * GIB, timeout_factor=1.5))
    check_retry_policy(RetryPolicy(max_retries=2), most_retries=2 * len(FaultKind))


def retries(
    policy: RetryPolicy, what: Fault, node: str = "a", standing: Standing = U, most: int = 300
) -> int:
    history: list[Entry] = []
    while len(history) < most and policy.decide(what, history, standing, 0.5).retry:
        history.append((what, node, standing))
    return len(history)


ENDLESS = 300
TABLE = {
    K.PREEMPTION: ENDLESS,
    K.NODE_LOST: 20,
    K.WORKER_CRASH: 3,
    K.OOM: 4,
    K.OBJECT_LOST: 3,
    K.UNAVAILABLE: 5,
    K.RESOURCE: 3,
    K.SETUP: 10,
    K.TIMEOUT: 1,
    K.PLACEMENT_REMOVED: 5,
    K.INTERRUPTED: 3,
    K.CANCELLED: 0,
    K.UNSCHEDULABLE: 0,
    K.THROTTLED: 10,
    K.NETWORK: 10,
    K.APPLICATION: 0,
    K.SYSTEM: 1,
    K.UNKNOWN: 0,
}


@pytest.mark.parametrize("kind", FaultKind)
def test_the_default_table(kind: FaultKind) -> None:
    assert retries(RetryPolicy(), fault(kind)) == TABLE[kind]
    for most in (0, 2):
        policy = RetryPolicy(max_retries=most)
        assert retries(policy, fault(kind)) == min(most, TABLE[kind])


def test_the_table_is_complete() -> None:
    assert set(DEFAULT_BUDGETS) == set(FaultKind) == set(TABLE)


def test_what_is_apart_from_the_total() -> None:
    apart = {kind for kind, budget in DEFAULT_BUDGETS.items() if not budget.in_total}
    assert apart == {K.PREEMPTION, K.NODE_LOST, K.SETUP, K.CANCELLED}
    assert {k for k, budget in DEFAULT_BUDGETS.items() if budget.at_once} == {
        K.PREEMPTION,
        K.WORKER_CRASH,
    }


def test_retries_are_for_the_ranks_own_errors() -> None:
    assert retries(RetryPolicy(retries=2), fault(K.APPLICATION, Origin.RANK)) == 2
    assert retries(RetryPolicy(retries=30), fault(K.APPLICATION, Origin.RANK)) == 30
    assert retries(RetryPolicy(retries=30, max_retries=4), fault(K.APPLICATION)) == 4


def test_a_budget_of_ones_own() -> None:
    policy = RetryPolicy(budgets={K.NETWORK: FaultBudget(retries=2)})
    assert retries(policy, fault(K.NETWORK)) == 2
    assert retries(policy, fault(K.THROTTLED)) == 10
    endless = RetryPolicy(budgets={K.NETWORK: FaultBudget(retries=None, in_total=False)})
    assert endless.decide(fault(K.NETWORK), [(fault(K.NETWORK), "a", U)] * 250, U, 0.5).retry
    verdict = endless.decide(fault(K.NETWORK), (), U, 0.5)
    assert verdict.reason == "network: retry 1, after a pause"


def test_all_kinds_together() -> None:
    past = [(fault(kind), "a", U) for kind in (K.WORKER_CRASH, K.OBJECT_LOST, K.INTERRUPTED)] * 3
    policy = RetryPolicy()
    assert policy.decide(fault(K.UNAVAILABLE), past, U, 0.5).retry
    past.append((fault(K.UNAVAILABLE), "a", U))
    stopped = policy.decide(fault(K.UNAVAILABLE), past, U, 0.5)
    assert (stopped.retry, stopped.stop) == (False, StopReason.TOTAL)
    assert "retry limit for all kinds (10) reached: RuntimeError: a unav" in stopped.reason
    for kind in (K.NODE_LOST, K.PREEMPTION):
        assert policy.decide(fault(kind), past, U, 0.5).retry
    apart = [(fault(K.NODE_LOST), "a", U), (fault(K.PREEMPTION), "a", U)] * 10
    assert policy.decide(fault(K.UNAVAILABLE), apart, U, 0.5).retry


@pytest.mark.parametrize("kind", FaultKind)
def test_without_bounds_on_request(kind: FaultKind) -> None:
    policy = RetryPolicy(retries=1, max_retries="unbounded")
    past = [(fault(kind), "a", U)] * 250
    verdict = policy.decide(fault(kind), past, U, 0.5)
    never = (K.CANCELLED, K.UNSCHEDULABLE, K.UNKNOWN)
    assert verdict.retry is (kind not in never)
    assert verdict.delay_s <= 60.0
    if verdict.retry:
        free = "free " if kind is K.SETUP else ""
        assert verdict.reason.startswith(f"{kind.value}: {free}retry 251, ")


def test_poison_and_memory_end_also_what_has_no_bounds() -> None:
    policy = RetryPolicy(max_retries="unbounded")
    died = fault(K.WORKER_CRASH, Origin.PROCESS, node="b")
    assert policy.decide(died, [(died, "a", RANK)], RANK, 0.5).stop is StopReason.POISON
    full = fault(K.OOM, Origin.PROCESS, peak_rss_bytes=8 * GIB, largest_memory_bytes=4 * GIB)
    assert policy.decide(full, [(full, "a", U)], U, 0.5).stop is StopReason.OUT_OF_MEMORY


STOPS: list[tuple[RetryPolicy, Fault, StopReason | None]] = [
    (RetryPolicy(), fault(K.CANCELLED), StopReason.CANCELLED),
    (RetryPolicy(retries=1), fault(K.APPLICATION, non_retryable=True), StopReason.FINAL),
    (RetryPolicy(retries=1), fault(K.APPLICATION, non_retryable="yes"), None),
    (RetryPolicy(), BUSY, None),
    (RetryPolicy(max_retries=0), BUSY, None),
    (RetryPolicy(), fault(K.TIMEOUT).__replace__(phase="rank"), None),
    (RetryPolicy(), fault(K.UNSCHEDULABLE), StopReason.UNSCHEDULABLE),
    (RetryPolicy(), fault(K.APPLICATION), StopReason.NO_RETRIES),
    (RetryPolicy(max_retries=0), fault(K.NODE_LOST), StopReason.NO_RETRIES),
    (RetryPolicy(max_retries=0), fault(K.PREEMPTION), StopReason.NO_RETRIES),
    (RetryPolicy(max_retries=0), fault(K.SETUP), StopReason.NO_RETRIES),
    (RetryPolicy(max_retries=1), fault(K.NODE_LOST), None),
]


@pytest.mark.parametrize(("policy", "what", "stop"), STOPS)
def test_why_it_stops(policy: RetryPolicy, what: Fault, stop: StopReason | None) -> None:
    verdict = policy.decide(what, (), U, 0.5)
    assert (verdict.stop, verdict.retry) == (stop, stop is None)


def test_the_budget_of_a_kind_is_told_from_having_none() -> None:
    past = [(fault(K.TIMEOUT), "a", U)]
    verdict = RetryPolicy().decide(fault(K.TIMEOUT), past, U, 0.5)
    assert verdict.stop is StopReason.BUDGET
    assert verdict.reason.startswith(
        "timeout: given up: retry limit (1) reached: RuntimeError: a timeou"
    )


REMEDIES = [
    (fault(K.WORKER_CRASH), U, 0, "worker_crash: retry 1 of 3, in a fresh process"),
    (fault(K.WORKER_CRASH), RANK, 1, "worker_crash: retry 2 of 3, in a fresh process"),
    (fault(K.WORKER_CRASH), OPEN, 1, "worker_crash: free retry 2 of 10, in a fresh process"),
    (fault(K.SETUP), U, 2, "setup: free retry 3 of 10, on another node"),
    (fault(K.PREEMPTION), U, 70, "preemption: retry 71, on another node"),
    (fault(K.UNAVAILABLE), U, 1, "unavailable: retry 2 of 5, after a pause"),
    (fault(K.NODE_LOST), NODE, 1, "node_lost: retry 2 of 20, on another node"),
    (fault(K.TIMEOUT).__replace__(phase="start"), U, 0, "timeout: retry 1 of 5, after a pause"),
    (BUSY, U, 5, "timeout: the resources are busy: asked again, free of charge"),
]


@pytest.mark.parametrize(("what", "standing", "earlier", "reason"), REMEDIES)
def test_the_remedy_is_told(what: Fault, standing: Standing, earlier: int, reason: str) -> None:
    past = [(what, "a", standing)] * earlier
    assert RetryPolicy().decide(what, past, standing, 0.5).reason == reason


def test_a_kind_has_a_budget_of_its_own() -> None:
    past = [(fault(K.NODE_LOST), "a", U)] * 20
    assert not RetryPolicy().decide(fault(K.NODE_LOST), past, U, 0.5).retry
    assert RetryPolicy().decide(fault(K.PREEMPTION), past, U, 0.5).retry


def test_the_driver_is_the_same_everywhere() -> None:
    assert not RetryPolicy().decide(fault(K.SYSTEM, Origin.DRIVER), (), U, 0.5).retry
    assert RetryPolicy().decide(fault(K.SYSTEM, Origin.WORKER), (), U, 0.5).retry


def test_an_error_may_say_that_it_is_final() -> None:
    what = fault(K.APPLICATION, Origin.RANK, non_retryable=True)
    verdict = RetryPolicy(retries=3).decide(what, (), U, 0.5)
    assert not verdict.retry
    assert "non_retryable" in verdict.reason


FLAGS = [  # charged, blames_rank, blames_node
    (fault(K.PREEMPTION), (False, False, False)),
    (fault(K.NODE_LOST), (True, False, True)),
    (fault(K.WORKER_CRASH), (True, True, True)),
    (fault(K.WORKER_CRASH, Origin.PROCESS, node="a"), (True, True, True)),
    (fault(K.OOM), (True, True, False)),
    (fault(K.UNAVAILABLE), (True, False, True)),
    (fault(K.UNAVAILABLE, Origin.PLACEMENT), (True, False, False)),
    (fault(K.SETUP), (False, False, True)),
    (fault(K.SETUP, Origin.RANK), (False, False, True)),
    (fault(K.RESOURCE, Origin.RANK), (True, False, True)),
    (fault(K.TIMEOUT, Origin.PROCESS), (True, False, False)),
    (fault(K.TIMEOUT).__replace__(phase="start"), (True, False, True)),
    (fault(K.TIMEOUT).__replace__(phase="heartbeat"), (True, True, True)),
    (BUSY, (False, False, False)),
    (fault(K.APPLICATION, Origin.RANK), (True, False, False)),
    (fault(K.CANCELLED), (False, False, False)),
    (fault(K.SYSTEM), (True, False, False)),
    (fault(K.PLACEMENT_REMOVED), (True, False, False)),
    (fault(K.INTERRUPTED), (True, False, False)),
    (fault(K.THROTTLED), (True, False, False)),
    (fault(K.UNSCHEDULABLE, Origin.PLACEMENT), (True, False, False)),
]


@pytest.mark.parametrize(("what", "flags"), FLAGS)
def test_who_is_to_blame(what: Fault, flags: tuple[bool, ...]) -> None:
    got = RetryPolicy().decide(what, (), U, 0.5)
    assert (got.charged, got.blames_rank, got.blames_node) == flags


UNCHARGED = (K.PREEMPTION, K.SETUP, K.CANCELLED)
"""Kinds that no standing charges."""
ON_EVIDENCE = (K.WORKER_CRASH, K.RESOURCE, K.UNAVAILABLE)
"""Kinds that the rank pays for unless evidence is open or against the node (from a worker)."""


class TestEvidence:
    @pytest.mark.parametrize("standing", Standing)
    @pytest.mark.parametrize("kind", FaultKind)
    def test_fault_by_standing_is_charged_or_free(
        self, kind: FaultKind, standing: Standing
    ) -> None:
        verdict = RetryPolicy().decide(fault(kind), (), standing, 0.5)
        free = kind in UNCHARGED or (kind in ON_EVIDENCE and standing in (OPEN, NODE))
        assert verdict.charged is not free

    @pytest.mark.parametrize("phase", ["start", "ping", "heartbeat", "recall", "close"])
    def test_silence_of_a_worker_is_charged_by_standing(self, phase: str) -> None:
        silent = fault(K.TIMEOUT).__replace__(phase=phase)
        charged = [RetryPolicy().decide(silent, (), each, 0.5).charged for each in Standing]
        assert charged == [each in (RANK, U) for each in Standing]

    def test_evidence_against_the_rank_ends_the_search(self) -> None:
        died = fault(K.WORKER_CRASH, Origin.PROCESS, node="a")
        blamed = [RetryPolicy().decide(died, (), each, 0.5).blames_node for each in Standing]
        assert blamed == [each is not RANK for each in Standing]

    @pytest.mark.parametrize("standing", [OPEN, NODE])
    @pytest.mark.parametrize("kind", ON_EVIDENCE)
    def test_free_retries_end_at_ten_as_unlucky(self, kind: FaultKind, standing: Standing) -> None:
        what, policy = fault(kind), RetryPolicy()
        assert retries(policy, what, standing=standing) == 10
        past = [(what, node, standing) for node in "abcab" * 2]
        verdict = policy.decide(what, past, standing, 0.5)
        assert verdict.stop is StopReason.UNLUCKY
        assert verdict.reason.startswith(
            f"{kind.value}: given up: limit of free retries (10) reached, on 3 nodes: RuntimeError"
        )
        one = [(what, "a", standing)] * 10
        assert "reached, on 1 node: R" in policy.decide(what, one, standing, 0.5).reason
        unknown = [(what, "", standing)] * 10
        assert "(10) reached: R" in policy.decide(what, unknown, standing, 0.5).reason

    def test_free_retries_of_all_kinds_share_one_limit(self) -> None:
        kinds = (K.SETUP, K.WORKER_CRASH, K.RESOURCE, K.UNAVAILABLE, K.SETUP)
        past = [(fault(kind), "a", OPEN) for kind in kinds * 2]
        for kind in kinds:
            assert RetryPolicy().decide(fault(kind), past, OPEN, 0.5).stop is StopReason.UNLUCKY
            assert RetryPolicy().decide(fault(kind), past[:9], OPEN, 0.5).retry

    def test_free_retries_do_not_count_as_charged_ones(self) -> None:
        past = [(fault(kind), "a", NODE) for kind in ON_EVIDENCE * 3]
        for kind in (*ON_EVIDENCE, K.OBJECT_LOST):
            verdict = RetryPolicy().decide(fault(kind), past, U, 0.5)
            assert " retry 1 of " in verdict.reason

    def test_charged_retries_do_not_count_as_free_ones(self) -> None:
        past = [(fault(K.WORKER_CRASH), "a", U)] * 3 + [(fault(K.UNAVAILABLE), "a", U)] * 5
        verdict = RetryPolicy().decide(fault(K.WORKER_CRASH), past, OPEN, 0.5)
        assert verdict.reason == "worker_crash: free retry 1 of 10, in a fresh process"

    def test_retry_that_was_free_stays_counted_once_settled(self) -> None:
        what = fault(K.RESOURCE)
        past = [(what, "a", OPEN)] * 8 + [(what, "a", RANK)] * 2
        assert RetryPolicy().decide(what, past, OPEN, 0.5).stop is StopReason.UNLUCKY

    @pytest.mark.parametrize("standing", Standing)
    def test_set_up_never_charges_and_ends_as_unlucky(self, standing: Standing) -> None:
        what, policy = fault(K.SETUP), RetryPolicy()
        past = [(what, "a", standing)] * 10
        assert not any(policy.decide(what, past[:n], standing, 0.5).charged for n in range(11))
        assert policy.decide(what, past[:9], standing, 0.5).retry
        assert policy.decide(what, past, standing, 0.5).stop is StopReason.UNLUCKY

    def test_set_up_obeys_a_budget_of_ones_own(self) -> None:
        policy = RetryPolicy(budgets={K.SETUP: FaultBudget(retries=2)})
        assert retries(policy, fault(K.SETUP), standing=OPEN) == 2
        never = RetryPolicy(budgets={K.WORKER_CRASH: FaultBudget(retries=0, blames_node=True)})
        verdict = never.decide(fault(K.WORKER_CRASH), (), OPEN, 0.5)
        assert verdict.stop is StopReason.NO_RETRIES

    @pytest.mark.parametrize(("kind", "limit"), [(K.WORKER_CRASH, 3), (K.RESOURCE, 3)])
    def test_lack_of_evidence_is_the_reason_to_end(self, kind: FaultKind, limit: int) -> None:
        what, policy = fault(kind), RetryPolicy()
        assert retries(policy, what) == limit
        past = [(what, "a", U)] * limit
        verdict = policy.decide(what, past, U, 0.5)
        assert verdict.stop is StopReason.UNDECIDED
        assert verdict.reason.startswith(
            f"{kind.value}: given up: undecided: rank or machine; retry limit ({limit}) reached: R"
        )
        guilty = policy.decide(what, [(what, "a", RANK)] * limit, RANK, 0.5)
        assert guilty.stop is StopReason.BUDGET
        assert "undecided" not in guilty.reason

    @pytest.mark.parametrize("kind", [K.OBJECT_LOST, K.OOM, K.TIMEOUT, K.NODE_LOST])
    def test_kind_without_evidence_never_ends_undecided(self, kind: FaultKind) -> None:
        past = [(fault(kind), "a", U)] * TABLE[kind]
        assert RetryPolicy().decide(fault(kind), past, U, 0.5).stop is StopReason.BUDGET

    def test_list_of_evidence_names_a_standing_only_where_it_counts(self) -> None:
        past = [(fault(K.WORKER_CRASH), "a", RANK), (fault(K.NODE_LOST), "b", OPEN)]
        verdict = RetryPolicy().decide(fault(K.APPLICATION, node="c"), past, OPEN, 0.5)
        assert [(each.kind, each.node, each.standing) for each in verdict.evidence] == [
            (K.WORKER_CRASH, "a", RANK),
            (K.NODE_LOST, "b", None),
            (K.APPLICATION, "c", None),
        ]

    @pytest.mark.parametrize("standing", Standing)
    def test_lost_node_has_a_budget_of_its_own(self, standing: Standing) -> None:
        assert retries(RetryPolicy(), fault(K.NODE_LOST), standing=standing) == 20
        past = [(fault(K.NODE_LOST), "a", standing)] * 20
        assert RetryPolicy().decide(fault(K.WORKER_CRASH), past, OPEN, 0.5).retry

    def test_preemptions_have_no_end_and_cost_nothing(self) -> None:
        what, policy = fault(K.PREEMPTION), RetryPolicy()
        past = [(what, "a", U)] * 10_000
        verdict = policy.decide(what, past, U, 0.5)
        assert (verdict.retry, verdict.charged) == (True, False)
        for kind in (K.WORKER_CRASH, K.SETUP, K.NODE_LOST, K.OBJECT_LOST):
            for standing in (OPEN, U):
                assert " retry 1 of " in policy.decide(fault(kind), past, standing, 0.5).reason

    @pytest.mark.parametrize("most", [0, 1, 2, 30])
    @pytest.mark.parametrize("kind", [*ON_EVIDENCE, K.SETUP])
    def test_max_retries_caps_free_retries(self, kind: FaultKind, most: int) -> None:
        for standing in (OPEN, NODE):
            policy = RetryPolicy(max_retries=most)
            assert retries(policy, fault(kind), standing=standing) == min(most, 10)
            verdict = policy.decide(fault(kind), (), standing, 0.5)
            assert verdict.retry is (most > 0)

    def test_max_retries_caps_preemptions(self) -> None:
        assert retries(RetryPolicy(max_retries=70), fault(K.PREEMPTION)) == 70

    def test_max_retries_unbounded_lifts_the_limit_of_free_ones(self) -> None:
        policy = RetryPolicy(max_retries="unbounded")
        past = [(fault(K.WORKER_CRASH), "a", OPEN)] * 250
        verdict = policy.decide(fault(K.WORKER_CRASH), past, OPEN, 0.5)
        assert verdict.reason == "worker_crash: free retry 251, in a fresh process"

    def test_max_free_is_ones_own_choice(self) -> None:
        what = fault(K.WORKER_CRASH)
        assert retries(RetryPolicy(max_free=25), what, standing=NODE) == 25
        assert retries(RetryPolicy(max_free=0), what, standing=NODE) == 0
        assert retries(RetryPolicy(max_free=0), what, standing=U) == 3


MACHINE_FAULTS = [  # whether it counts for the breaker
    (fault(K.WORKER_CRASH), True),
    (fault(K.WORKER_CRASH, Origin.PROCESS), True),
    (fault(K.UNAVAILABLE), True),
    (fault(K.TIMEOUT).__replace__(phase="start"), True),
    (fault(K.TIMEOUT).__replace__(phase="heartbeat"), True),
    (fault(K.SETUP), True),
    (fault(K.SETUP, Origin.RANK), True),
    (fault(K.RESOURCE, Origin.RANK), True),
    (fault(K.SYSTEM), True),
    (fault(K.PREEMPTION), False),
    (fault(K.NODE_LOST), False),
    (fault(K.THROTTLED, Origin.RANK), False),
    (fault(K.NETWORK, Origin.RANK), False),
    (fault(K.APPLICATION, Origin.RANK), False),
    (fault(K.TIMEOUT, Origin.PROCESS).__replace__(phase="rank"), False),
    (fault(K.UNAVAILABLE, Origin.PLACEMENT), False),
    (BUSY, False),
    (fault(K.OBJECT_LOST), False),
    (fault(K.PLACEMENT_REMOVED), False),
    (fault(K.INTERRUPTED), False),
    (fault(K.CANCELLED), False),
    (fault(K.UNSCHEDULABLE, Origin.PLACEMENT), False),
    (fault(K.UNKNOWN), False),
    (fault(K.OOM), False),
    (fault(K.OOM, peak_rss_bytes=GIB, largest_memory_bytes=4 * GIB), False),
    (fault(K.OOM, peak_rss_bytes=8 * GIB, largest_memory_bytes=4 * GIB), True),
]


@pytest.mark.parametrize("standing", Standing)
@pytest.mark.parametrize(("what", "counts"), MACHINE_FAULTS)
def test_machine_fault_is_what_speaks_against_machines(
    what: Fault, counts: bool, standing: Standing
) -> None:
    assert RetryPolicy().decide(what, (), standing, 0.5).machine_fault is counts


def test_machine_fault_counts_when_given_up_too() -> None:
    what = fault(K.WORKER_CRASH)
    verdict = RetryPolicy().decide(what, [(what, "a", U)] * 3, U, 0.5)
    assert (verdict.retry, verdict.machine_fault) == (False, True)


def test_every_kind_is_listed_as_machine_fault_or_not() -> None:
    assert {what.kind for what, _ in MACHINE_FAULTS} == set(FaultKind)


class TestSignature:
    def test_errors_of_user_code_are_alike_by_type_and_frame(self) -> None:
        def signature(frame: str | int | None, error_type: str = "my.Error") -> str:
            what = fault(K.APPLICATION, Origin.RANK, user_frame=frame, node="a")
            what = what.__replace__(error_type=error_type, message=f"row {id(what)}")
            return RetryPolicy().decide(what, (), U, 0.5).signature

        assert signature("job.py:7 in work") == "my.Error at job.py:7 in work"
        assert signature(None) == signature(7) == "my.Error"
        assert signature("job.py:7 in work", "my.Other") == "my.Other at job.py:7 in work"

    @pytest.mark.parametrize("kind", [kind for kind in FaultKind if kind is not K.APPLICATION])
    def test_other_kinds_have_none(self, kind: FaultKind) -> None:
        what = fault(kind, Origin.RANK, user_frame="job.py:7 in work")
        assert RetryPolicy().decide(what, (), U, 0.5).signature == ""


KINDS = [kind for kind in FaultKind if kind is not K.PREEMPTION]
phases = st.sampled_from(["", "rank", "start", "heartbeat"])
faults = st.builds(
    lambda kind, origin, phase, node, only: fault(
        kind, origin, node=node, only_node=only
    ).__replace__(phase=phase),
    st.sampled_from(KINDS),
    st.sampled_from(Origin),
    phases,
    st.sampled_from(["a", "b", "c"]),
    st.booleans(),
)
standings = st.sampled_from(Standing)
entries = st.tuples(faults, st.sampled_from(["a", "b", ""]), standings)
doubtful = st.builds(fault, st.sampled_from([*ON_EVIDENCE, K.SETUP]), node=st.just("a"))
settled = st.tuples(doubtful, st.just("a"), st.sampled_from([OPEN, NODE, RANK]))
policies = st.builds(
    RetryPolicy,
    retries=st.integers(0, 3),
    max_retries=st.none() | st.integers(0, 12),
    max_free=st.sampled_from([1, 3, 12]),
    max_charged=st.sampled_from([0, 3, 12]),
)


class TestWhatAlwaysHolds:
    @given(policies, st.lists(st.tuples(faults, standings), min_size=60, max_size=60))
    def test_no_sequence_of_faults_is_retried_without_end(
        self, policy: RetryPolicy, coming: list[tuple[Fault, Standing]]
    ) -> None:
        """At most 12 free ones, 12 charged ones, 20 lost nodes; preemptions are left out."""
        history: list[Entry] = []
        for what, standing in coming:
            if policy.decide(what, history, standing, 0.5).retry:
                history.append((what, "a", standing))
        assert len(history) <= 12 + 12 + 20

    @given(policies, faults, st.lists(entries, max_size=15))
    def test_standing_against_the_node_never_costs_a_charge(
        self, policy: RetryPolicy, what: Fault, past: list[Entry]
    ) -> None:
        verdict = policy.decide(what, past, NODE, 0.5)
        if verdict.blames_node and what.kind is not K.NODE_LOST:  # which has its own 20
            assert not verdict.charged

    @given(
        policies,
        faults | doubtful,
        standings,
        st.lists(settled, min_size=1, max_size=4) | st.lists(entries, min_size=1, max_size=15),
        st.data(),
    )
    def test_settling_against_the_rank_is_never_more_lenient(
        self,
        policy: RetryPolicy,
        what: Fault,
        standing: Standing,
        past: list[Entry],
        data: st.DataObject,
    ) -> None:
        at = data.draw(st.integers(0, len(past) - 1))
        before, after = list(past), list(past)
        before[at], after[at] = (*past[at][:2], OPEN), (*past[at][:2], RANK)
        first = policy.decide(what, before, standing, 0.5)
        then = policy.decide(what, after, standing, 0.5)
        assert first.retry or not then.retry
        assert then.charged or not first.charged
        assert then.delay_s == first.delay_s

    @given(policies, faults, standings, st.lists(entries, max_size=15), st.integers(1, 9))
    def test_waits_for_busy_resources_change_nothing(
        self, policy: RetryPolicy, what: Fault, standing: Standing, past: list[Entry], waits: int
    ) -> None:
        waited = [*past, *[(BUSY, "", U)] * waits]
        expected = policy.decide(what, past, standing, 0.5)
        assert policy.decide(what, waited, standing, 0.5) == expected
        again = policy.decide(BUSY, waited, standing, 0.5)
        assert (again.retry, again.charged, again.machine_fault) == (True, False, False)


class TestTimeouts:
    def test_a_workers_time_out_is_not_the_ranks(self) -> None:
        silent = fault(K.TIMEOUT).__replace__(phase="heartbeat")
        own = fault(K.TIMEOUT, Origin.PROCESS).__replace__(phase="rank")
        assert RetryPolicy().decide(own, [(silent, "a", U)] * 3, U, 0.5).retry
        assert not RetryPolicy().decide(own, [(own, "a", U)], U, 0.5).retry
        assert retries(RetryPolicy(), silent) == 5

    def test_busy_placement_is_asked_again_without_end_and_free(self) -> None:
        for policy in (RetryPolicy(), RetryPolicy(max_retries=0, max_free=0, max_charged=0)):
            verdict = policy.decide(BUSY, [(BUSY, "", U)] * 1000, U, 0.5)
            assert (verdict.retry, verdict.charged, verdict.stop) == (True, False, None)
            assert verdict.delay_s > 0
            assert not verdict.blames_rank
            assert not verdict.blames_node

    def test_a_longer_limit_the_next_time_on_request(self) -> None:
        own = fault(K.TIMEOUT, Origin.PROCESS).__replace__(phase="rank")
        policy = RetryPolicy(timeout_factor=2.0)
        assert policy.decide(own, (), U, 0.5).timeout_factor == 2.0
        assert policy.decide(fault(K.NODE_LOST), [(own, "a", U)], U, 0.5).timeout_factor == 2.0
        assert RetryPolicy().decide(own, (), U, 0.5).timeout_factor == 1.0
        steep = RetryPolicy(timeout_factor=1000.0)
        assert steep.decide(own, [(own, "a", U)] * 500, U, 0.5).timeout_factor == 1e90


class TestDelay:
    def test_full_jitter_below_a_growing_ceiling(self) -> None:
        policy = RetryPolicy()
        what = fault(K.THROTTLED)
        ceilings = [policy.decide(what, [(what, "a", U)] * n, U, 1.0).delay_s for n in range(9)]
        assert ceilings == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0]
        assert policy.decide(what, (), U, 0.25).delay_s == 0.25
        assert policy.decide(what, (), U, 0.0).delay_s == 0.0

    def test_only_faults_of_its_kind_make_it_grow(self) -> None:
        past = [(fault(K.NETWORK), "a", U)] * 3
        assert RetryPolicy().decide(fault(K.THROTTLED), past, U, 1.0).delay_s == 1.0

    @pytest.mark.parametrize("kind", [K.WORKER_CRASH, K.PREEMPTION])
    def test_the_first_retry_at_once(self, kind: FaultKind) -> None:
        what = fault(kind)
        assert RetryPolicy().decide(what, (), U, 1.0).delay_s == 0.0
        assert RetryPolicy().decide(what, [(what, "a", U)], U, 1.0).delay_s == 2.0

    def test_what_the_other_side_asked_for(self) -> None:
        policy = RetryPolicy()
        assert policy.decide(fault(K.THROTTLED, retry_after_s=17.0), (), U, 0.5).delay_s == 17.5
        assert policy.decide(fault(K.THROTTLED, retry_after_s=10**9), (), U, 0.0).delay_s == 900.0
        assert policy.decide(fault(K.APPLICATION, retry_after_s=17.0), (), U, 0.5).delay_s == 17.5
        assert policy.decide(fault(K.OBJECT_LOST, retry_after_s=17.0), (), U, 0.5).delay_s == 0.5
        assert policy.decide(fault(K.NETWORK, retry_after_s=10**400), (), U, 0.0).delay_s == 900.0

    def test_who_asks_for_no_patience_gets_the_usual_pause(self) -> None:
        assert RetryPolicy().delay_s(fault(K.THROTTLED, retry_after_s=0), 3, 1.0) == 8.0

    @pytest.mark.parametrize("draw", [1.0, 1.5, -0.5, float("nan")])
    def test_a_draw_that_is_none_waits_longest(self, draw: float) -> None:
        assert RetryPolicy().delay_s(fault(K.OBJECT_LOST), 1, draw) == 2.0

    @given(
        kind=st.sampled_from(FaultKind),
        earlier=st.integers(0, 10**6),
        draw=st.floats(),
        asked=st.none() | st.floats() | st.integers(),
    )
    def test_any_delay_is_bounded(
        self, kind: FaultKind, earlier: int, draw: float, asked: float | None
    ) -> None:
        pause = RetryPolicy().delay_s(fault(kind, retry_after_s=asked), earlier, draw)
        assert 0.0 <= pause <= 901.0


class TestPoison:
    def death(self, node: str | None = None, **facts: bool) -> Fault:
        return fault(K.WORKER_CRASH, Origin.PROCESS, node=node, **facts)

    def test_one_death_is_retried_at_once_in_the_same_place(self) -> None:
        for standing in Standing:
            verdict = RetryPolicy().decide(self.death("a", only_node=True), (), standing, 0.5)
            assert verdict.retry
            assert verdict.delay_s == 0.0
        verdict = RetryPolicy().decide(self.death("a", only_node=True), (), U, 0.5)
        assert verdict == RetryVerdict(
            retry=True,
            machine_fault=True,
            blames_rank=True,
            blames_node=True,
            reason="worker_crash: retry 1 of 3, in a fresh process",
        )

    def test_death_twice_on_one_of_many_nodes_is_retried(self) -> None:
        for first in Standing:
            for second in Standing:
                past = [(self.death("a"), "a", first)]
                assert RetryPolicy().decide(self.death("a"), past, second, 0.5).retry

    def test_deaths_on_two_nodes_are_poison_if_both_are_the_ranks(self) -> None:
        for first in Standing:
            for second in Standing:
                past = [(self.death("a"), "a", first)]
                verdict = RetryPolicy().decide(self.death("b"), past, second, 0.5)
                guilty = first is second is RANK
                assert verdict.stop is (StopReason.POISON if guilty else None)

    def test_poison_tells_where_and_blames_no_node(self) -> None:
        past = [(self.death("a"), "a", RANK)]
        verdict = RetryPolicy().decide(self.death("b"), past, RANK, 0.5)
        assert not verdict.blames_node
        assert verdict.reason == (
            "worker_crash: given up: poison: its own process died on 2 nodes that run others (a, b)"
        )

    def test_known_killer_is_given_up_at_its_next_death(self) -> None:
        past = [(self.death("a"), "a", RANK), (self.death("b"), "b", RANK)]
        for standing in Standing:
            verdict = RetryPolicy().decide(self.death("c"), past, standing, 0.5)
            assert verdict.stop is StopReason.POISON
            assert not verdict.blames_node

    def test_second_question_with_the_rank_guilty_can_be_the_end(self) -> None:
        """The fault was retried while it was open; a later one is in the history by then."""
        first, later = self.death("a"), self.death("b")
        policy = RetryPolicy()
        assert policy.decide(first, (), OPEN, 0.5).retry
        assert policy.decide(later, [(first, "a", OPEN)], OPEN, 0.5).retry
        assert policy.decide(later, [(first, "a", OPEN)], RANK, 0.5).retry
        assert policy.decide(first, [(later, "b", RANK)], RANK, 0.5).stop is StopReason.POISON

    def test_twice_on_the_only_node(self) -> None:
        only = self.death("a", only_node=True)
        for first in Standing:
            for second in Standing:
                verdict = RetryPolicy().decide(only, [(only, "a", first)], second, 0.5)
                guilty = first is second is RANK
                assert verdict.stop is (StopReason.POISON if guilty else None)
        verdict = RetryPolicy().decide(only, [(only, "a", RANK)], RANK, 0.5)
        assert "died 2 times on the only node, which runs others" in verdict.reason
        assert RetryPolicy().decide(only, [(only, "a", RANK)] * 2, OPEN, 0.5).stop is (
            StopReason.POISON
        )

    def test_where_the_node_is_not_known_the_history_convicts(self) -> None:
        one = [(self.death(), "a", RANK)]
        assert RetryPolicy().decide(self.death(), one, RANK, 0.5).retry
        two = [*one, (self.death(), "b", RANK)]
        assert RetryPolicy().decide(self.death(), two, RANK, 0.5).stop is StopReason.POISON

    def test_lost_workers_do_not_count(self) -> None:
        past = [(fault(K.WORKER_CRASH), "a", RANK), (fault(K.NODE_LOST), "c", RANK)]
        assert RetryPolicy().decide(self.death("b"), past, RANK, 0.5).retry
        past = [(self.death("a"), "a", RANK)]
        lost = fault(K.WORKER_CRASH, node="b")
        assert RetryPolicy().decide(lost, past, RANK, 0.5).retry


class TestMemory:
    def oom(self, peak: int = 0, largest: int | None = None) -> Fault:
        return fault(K.OOM, Origin.PROCESS, peak_rss_bytes=peak, largest_memory_bytes=largest)

    def test_the_ladder_from_what_was_asked_for(self) -> None:
        policy = RetryPolicy(memory_bytes=2 * GIB)
        levels: list[int | None] = []
        history: list[tuple[Fault, str, Standing]] = []
        for _ in range(4):
            levels.append(policy.decide(self.oom(), history, U, 0.5).memory_bytes)
            history.append((self.oom(), "a", U))
        assert levels == [3 * GIB, 4608 * MIB, 6912 * MIB, 10368 * MIB]
        reason = policy.decide(self.oom(), history[:1], U, 0.5).reason
        assert reason == "oom: retry 2 of 4, with 4.50 GiB"

    def test_it_is_kept_for_other_faults(self) -> None:
        policy = RetryPolicy(memory_bytes=2 * GIB)
        verdict = policy.decide(fault(K.NODE_LOST), [(self.oom(), "a", U)], U, 0.5)
        assert verdict.memory_bytes == 3 * GIB
        assert verdict.reason == "node_lost: retry 1 of 20, on another node, with 3.00 GiB"

    def test_it_starts_above_the_peak_that_was_seen(self) -> None:
        policy = RetryPolicy(memory_bytes=GIB)
        assert policy.decide(self.oom(peak=3 * GIB), (), U, 0.5).memory_bytes == 3456 * MIB

    def test_without_a_request_peaks_share_the_rungs_of_a_grid(self) -> None:
        near = [
            RetryPolicy().decide(self.oom(peak), (), U, 0.5).memory_bytes
            for peak in (1_000_000_000, 1_100_000_000, 1_200_000_000)
        ]
        # The grid: 256 MiB x 1.5^n. All of them are below 1296 MiB; one further is 1944 MiB.
        assert near == [1944 * MIB] * 3
        assert RetryPolicy().decide(self.oom(1296 * MIB), (), U, 0.5).memory_bytes == 1944 * MIB
        assert RetryPolicy().decide(self.oom(1296 * MIB + 1), (), U, 0.5).memory_bytes == 2916 * MIB

    def test_nothing_is_known(self) -> None:
        verdict = RetryPolicy().decide(self.oom(), (), U, 0.5)
        assert verdict.retry
        assert verdict.memory_bytes is None
        assert "not known" in verdict.reason

    def test_up_to_the_largest_node_and_no_further(self) -> None:
        policy = RetryPolicy(memory_bytes=2 * GIB)
        at_most = self.oom(largest=4 * GIB)
        history: list[tuple[Fault, str, Standing]] = [(self.oom(), "a", U)]
        verdict = policy.decide(at_most, history, U, 0.5)
        assert verdict.retry
        assert verdict.memory_bytes == 4 * GIB
        history.append((at_most, "a", U))
        verdict = policy.decide(self.oom(), history, U, 0.5)
        assert not verdict.retry
        assert "with the most there is" in verdict.reason

    def test_a_rung_that_no_node_has(self) -> None:
        policy = RetryPolicy(memory_bytes=2 * GIB)
        refused = fault(K.UNSCHEDULABLE, Origin.PLACEMENT, largest_memory_bytes=2500 * MIB)
        history = [(self.oom(), "a", U)]
        verdict = policy.decide(refused, history, U, 0.5)
        assert verdict.retry
        assert verdict.memory_bytes == 2500 * MIB
        assert not policy.decide(refused, [*history, (refused, "", U)], U, 0.5).retry
        small = fault(K.UNSCHEDULABLE, Origin.PLACEMENT, largest_memory_bytes=2 * GIB)
        assert not policy.decide(small, history, U, 0.5).retry
        assert verdict.reason == "unschedulable: retry 1, with 2.44 GiB"
        none = RetryPolicy(memory_bytes=2 * GIB, max_retries=0).decide(refused, history, U, 0.5)
        assert none.stop is StopReason.NO_RETRIES
        assert none.reason == "unschedulable: given up: max_retries=0"

    @given(st.integers(1, 2**45), st.integers(0, 2**45))
    def test_a_rung_is_the_lowest_above(self, base: int, above: int) -> None:
        level = rung(base, above=above)
        assert level > above
        assert level == base or level % MIB == 0
        assert level == base or level <= 1.5 * max(above, base) + 2 * MIB

    @given(
        base=st.none() | st.integers(1, 64 * GIB),
        facts=st.lists(
            st.tuples(
                st.sampled_from([K.OOM, K.UNSCHEDULABLE, K.NODE_LOST]),
                st.integers(-1, 64 * GIB),
                st.none() | st.integers(1, 64 * GIB),
            ),
            max_size=12,
        ),
    )
    def test_any_history(
        self, base: int | None, facts: list[tuple[FaultKind, int, int | None]]
    ) -> None:
        faults = [
            fault(kind, peak_rss_bytes=peak, largest_memory_bytes=largest)
            for kind, peak, largest in facts
        ]
        need = memory_need(base, faults)
        assert need.memory_bytes is None or need.memory_bytes > 0
        said = [largest for kind, _, largest in facts if kind is not K.NODE_LOST and largest]
        if need.memory_bytes is not None and said:
            assert need.memory_bytes <= said[-1]
        assert need == memory_need(base, [f for f in faults if f.kind is not K.NODE_LOST])


class TestOneLiners:
    def test_is_retriable(self) -> None:
        assert is_retriable(lookalike("ActorDiedError"))
        assert is_retriable(lookalike("NodeDiedError"))
        assert not is_retriable(ValueError("x"))
        assert is_retriable(lookalike_task_error(lookalike("ActorDiedError")))
        assert not is_retriable(lookalike_task_error(ValueError("x")))
        assert not is_retriable(lookalike("ActorUnschedulableError"))

    def test_backoff(self) -> None:
        assert [backoff_s(lookalike("RpcError"), n) for n in (1, 2, 3, 99)] == [1.0, 2.0, 4.0, 60.0]
        assert backoff_s(lookalike("RpcError"), 3, 0.5) == 2.0
        assert backoff_s(lookalike("ActorDiedError"), 1) == 0.0
        with pytest.raises(ValueError, match="attempts count from 1"):
            backoff_s(lookalike("RpcError"), 0)

    def test_rules_given_come_before_the_default_ones(self) -> None:
        busy = lookalike("my.HttpError", status_code=503, retry_after=7)
        rules = (*THROTTLED_RULES, *NETWORK_RULES)
        assert not is_retriable(busy)
        assert is_retriable(busy, rules=rules)
        assert backoff_s(busy, 1, 0.0, rules=rules) == 7.0
        assert backoff_s(ConnectionResetError("x"), 3, rules=rules) == 4.0
        assert not is_retriable(lookalike("ssl.SSLCertVerificationError"), rules=rules)


class TestSecondhand:
    """What a `RayTaskError` carries befell another task: neither node nor memory is to blame."""

    @pytest.mark.parametrize("kind", list(FaultKind))
    def test_secondhand_fault_blames_nobody(self, kind: FaultKind) -> None:
        what = fault(kind, Origin.WORKER, node="a", secondhand=True)
        earlier = [(what, "a", OPEN), (what, "b", OPEN)]
        for history in ([], earlier[:1], earlier):
            verdict = RetryPolicy(memory_bytes=2**30).decide(what, history, OPEN, 0.5)
            assert not verdict.blames_node
            assert not verdict.blames_rank
            assert verdict.memory_bytes is None

    def test_secondhand_oom_is_no_rung_of_the_memory_ladder(self) -> None:
        facts: dict[str, Attribute] = {"peak_rss_bytes": 2**30, "largest_memory_bytes": 2**30}
        own = fault(FaultKind.OOM, Origin.PROCESS, **facts)
        other = fault(FaultKind.OOM, Origin.PROCESS, **facts, secondhand=True)
        policy = RetryPolicy(memory_bytes=2**29)
        assert policy.decide(own, [(other, "a", OPEN)] * 2, OPEN, 0.5).memory_bytes == 2**30
        verdict = policy.decide(other, [(own, "a", OPEN)] * 2, OPEN, 0.5)
        assert verdict.retry, verdict.reason
        assert "it befell another task" in verdict.reason


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"retries": -1}, "retries must be an int >= 0, not -1"),
        ({"retries": None}, "retries must be an int"),
        ({"max_retries": True}, "max_retries must be an int"),
        ({"memory_bytes": 0}, "memory_bytes must be an int >= 1"),
        ({"base_delay_s": 61.0}, "base_delay_s <= max_delay_s"),
        ({"max_delay_s": float("nan")}, "base_delay_s <= max_delay_s"),
        ({"timeout_factor": 0.5}, "must be >= 1"),
        ({"max_charged": -1}, "max_charged must be an int >= 0"),
        ({"max_charged": None}, "max_charged must be an int >= 0"),
        ({"max_free": -1}, "max_free must be an int >= 0"),
        ({"max_free": "unbounded"}, "max_free must be an int >= 0"),
        ({"timeout_factor": float("inf")}, "<= 1000"),
        ({"backoff_factor": float("nan")}, "must be >= 1"),
        ({"max_retry_after_s": float("inf")}, "finite"),
        ({"max_retry_after_s": -1.0}, "finite"),
        ({"max_retries": "endless"}, "max_retries must be an int"),
        ({"retries": "unbounded"}, "retries must be an int"),
        ({"breaker_after": 0}, "breaker_after must be an int >= 1"),
    ],
)
def test_arguments_that_make_no_sense(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RetryPolicy(**arguments)  # type: ignore[arg-type]  # the test


def test_the_least_and_the_most_that_make_sense() -> None:
    least = RetryPolicy(
        retries=0,
        max_retries=0,
        memory_bytes=1,
        max_charged=0,
        max_free=0,
        base_delay_s=0.0,
        backoff_factor=1.0,
        max_delay_s=0.0,
        max_retry_after_s=0.0,
        timeout_factor=1.0,
        breaker_after=1,
    )
    assert not least.decide(fault(K.NODE_LOST), (), U, 0.5).retry
    most = RetryPolicy(backoff_factor=1000.0, timeout_factor=1000.0, base_delay_s=60.0)
    assert most.decide(fault(K.OBJECT_LOST), (), U, 1.0).delay_s == 60.0
    assert not RetryPolicy(max_charged=0).decide(fault(K.OBJECT_LOST), (), U, 0.5).retry


def test_a_budget_that_makes_no_sense() -> None:
    with pytest.raises(ValueError, match="retries must be an int >= 0"):
        FaultBudget(retries=-1)


def test_a_verdict_blames_nobody_and_asks_for_nothing_unless_it_says_so() -> None:
    verdict = RetryVerdict(retry=True, reason="x")
    assert verdict.as_json() == {
        "retry": True,
        "delay_s": 0.0,
        "charged": True,
        "machine_fault": False,
        "blames_rank": False,
        "blames_node": False,
        "memory_bytes": None,
        "timeout_factor": 1.0,
        "reason": "x",
        "stop": None,
        "signature": "",
        "evidence": [],
    }


def test_values_pickle() -> None:
    policy = RetryPolicy(retries=3, budgets={K.NETWORK: FaultBudget(retries=1)})
    verdict = policy.decide(fault(K.OOM), (), U, 0.5)
    assert pickle.loads(pickle.dumps((policy, verdict))) == (policy, verdict)
