"""The default table, backoff, poison, the memory ladder."""

from __future__ import annotations

import pickle
from collections.abc import Sequence

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
    StopReason,
    backoff_s,
    is_retriable,
)
from thornback.faults.budgets import DEFAULT_BUDGETS
from thornback.faults.kinds import Attribute
from thornback.faults.memory import MIB, memory_need, rung
from thornback.faults.testing import check_retry_policy, fault, lookalike, lookalike_task_error
from thornback.faults.verdicts import Standing

K = FaultKind
GIB = 2**30
OPEN = Standing.OPEN
History = Sequence[tuple[Fault, str]]


def test_conformance() -> None:
    check_retry_policy(RetryPolicy())
    check_retry_policy(RetryPolicy(retries=5, memory_bytes=3 * GIB, timeout_factor=1.5))
    check_retry_policy(RetryPolicy(max_retries=2), most_retries=2 * len(FaultKind))


def retries(policy: RetryPolicy, what: Fault, node: str = "a") -> int:
    history: list[tuple[Fault, str]] = []
    while policy.decide(what, history, 0.5).retry:
        history.append((what, node))
        assert len(history) < 300
    return len(history)


TABLE = {
    K.PREEMPTION: 50,
    K.NODE_LOST: 20,
    K.WORKER_CRASH: 3,
    K.OOM: 4,
    K.OBJECT_LOST: 3,
    K.UNAVAILABLE: 5,
    K.RESOURCE: 3,
    K.SETUP: 3,
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
    assert apart == {K.PREEMPTION, K.NODE_LOST, K.CANCELLED}
    assert {k for k, budget in DEFAULT_BUDGETS.items() if budget.at_once} == {
        K.PREEMPTION,
        K.WORKER_CRASH,
    }


def test_only_the_ranks_own_code_is_no_infrastructure() -> None:
    policy = RetryPolicy(retries=1)
    own = [kind for kind in K if not policy.decide(fault(kind), (), 0.5).infrastructure]
    assert own == [K.APPLICATION]


def test_retries_are_for_the_ranks_own_errors() -> None:
    assert retries(RetryPolicy(retries=2), fault(K.APPLICATION, Origin.RANK)) == 2
    assert retries(RetryPolicy(retries=30), fault(K.APPLICATION, Origin.RANK)) == 30
    assert retries(RetryPolicy(retries=30, max_retries=4), fault(K.APPLICATION)) == 4


def test_a_budget_of_ones_own() -> None:
    policy = RetryPolicy(budgets={K.NETWORK: FaultBudget(retries=2)})
    assert retries(policy, fault(K.NETWORK)) == 2
    assert retries(policy, fault(K.THROTTLED)) == 10
    endless = RetryPolicy(budgets={K.NETWORK: FaultBudget(retries=None, in_total=False)})
    assert endless.decide(fault(K.NETWORK), [(fault(K.NETWORK), "a")] * 250, 0.5).retry
    verdict = endless.decide(fault(K.NETWORK), (), 0.5)
    assert verdict.reason == "network: retry 1, after a pause"


def test_all_kinds_together() -> None:
    past = [(fault(kind), "a") for kind in (K.WORKER_CRASH, K.OBJECT_LOST, K.INTERRUPTED)] * 3
    policy = RetryPolicy()
    assert policy.decide(fault(K.UNAVAILABLE), past, 0.5).retry
    past.append((fault(K.UNAVAILABLE), "a"))
    stopped = policy.decide(fault(K.UNAVAILABLE), past, 0.5)
    assert (stopped.retry, stopped.stop) == (False, StopReason.TOTAL)
    assert "10 retries of all kinds used up" in stopped.reason
    for kind in (K.NODE_LOST, K.PREEMPTION):
        assert policy.decide(fault(kind), past, 0.5).retry
    apart = [(fault(K.NODE_LOST), "a"), (fault(K.PREEMPTION), "a")] * 10
    assert policy.decide(fault(K.UNAVAILABLE), apart, 0.5).retry


@pytest.mark.parametrize("kind", FaultKind)
def test_without_bounds_on_request(kind: FaultKind) -> None:
    policy = RetryPolicy(retries=1, max_retries="unbounded")
    past = [(fault(kind), "a")] * 250
    verdict = policy.decide(fault(kind), past, 0.5)
    never = (K.CANCELLED, K.UNSCHEDULABLE, K.UNKNOWN)
    assert verdict.retry is (kind not in never)
    assert verdict.delay_s <= 60.0
    if verdict.retry:
        assert verdict.reason.startswith(f"{kind.value}: retry 251, ")


def test_poison_and_memory_end_also_what_has_no_bounds() -> None:
    policy = RetryPolicy(max_retries="unbounded")
    died = fault(K.WORKER_CRASH, Origin.PROCESS, node="b")
    assert policy.decide(died, [(died, "a")], 0.5).stop is StopReason.POISON
    full = fault(K.OOM, Origin.PROCESS, peak_rss_bytes=8 * GIB, largest_memory_bytes=4 * GIB)
    assert policy.decide(full, [(full, "a")], 0.5).stop is StopReason.OUT_OF_MEMORY


STOPS: list[tuple[RetryPolicy, Fault, StopReason | None]] = [
    (RetryPolicy(), fault(K.CANCELLED), StopReason.CANCELLED),
    (RetryPolicy(retries=1), fault(K.APPLICATION, non_retryable=True), StopReason.FINAL),
    (RetryPolicy(retries=1), fault(K.APPLICATION, non_retryable="yes"), None),
    (RetryPolicy(), fault(K.TIMEOUT).__replace__(phase="place"), StopReason.NOT_PLACED),
    (RetryPolicy(), fault(K.TIMEOUT).__replace__(phase="rank"), None),
    (RetryPolicy(), fault(K.UNSCHEDULABLE), StopReason.UNSCHEDULABLE),
    (RetryPolicy(), fault(K.APPLICATION), StopReason.NO_RETRIES),
    (RetryPolicy(max_retries=0), fault(K.NODE_LOST), StopReason.NO_RETRIES),
    (RetryPolicy(max_retries=1), fault(K.NODE_LOST), None),
]


@pytest.mark.parametrize(("policy", "what", "stop"), STOPS)
def test_why_it_stops(policy: RetryPolicy, what: Fault, stop: StopReason | None) -> None:
    verdict = policy.decide(what, (), 0.5)
    assert (verdict.stop, verdict.retry) == (stop, stop is None)


def test_the_budget_of_a_kind_is_told_from_having_none() -> None:
    past = [(fault(K.TIMEOUT), "a")]
    verdict = RetryPolicy().decide(fault(K.TIMEOUT), past, 0.5)
    assert verdict.stop is StopReason.BUDGET
    assert verdict.reason.startswith("timeout: given up: 1 retries used up: RuntimeError: a timeou")


REMEDIES = [
    (fault(K.WORKER_CRASH), 0, "worker_crash: retry 1 of 3, in a fresh process"),
    (fault(K.WORKER_CRASH), 1, "worker_crash: retry 2 of 3, in a fresh process, on another node"),
    (fault(K.UNAVAILABLE), 1, "unavailable: retry 2 of 5, after a pause, on another node"),
    (fault(K.NODE_LOST), 1, "node_lost: retry 2 of 20, on another node"),
    (
        fault(K.TIMEOUT).__replace__(phase="start"),
        0,
        "timeout: retry 1 of 5, after a pause, on another node",
    ),
]


@pytest.mark.parametrize(("what", "earlier", "reason"), REMEDIES)
def test_the_remedy_is_told(what: Fault, earlier: int, reason: str) -> None:
    assert RetryPolicy().decide(what, [(what, "a")] * earlier, 0.5).reason == reason


def test_a_kind_has_a_budget_of_its_own() -> None:
    past = [(fault(K.NODE_LOST), "a")] * 20
    assert not RetryPolicy().decide(fault(K.NODE_LOST), past, 0.5).retry
    assert RetryPolicy().decide(fault(K.PREEMPTION), past, 0.5).retry


def test_the_driver_is_the_same_everywhere() -> None:
    assert not RetryPolicy().decide(fault(K.SYSTEM, Origin.DRIVER), (), 0.5).retry
    assert RetryPolicy().decide(fault(K.SYSTEM, Origin.WORKER), (), 0.5).retry


def test_an_error_may_say_that_it_is_final() -> None:
    what = fault(K.APPLICATION, Origin.RANK, non_retryable=True)
    verdict = RetryPolicy(retries=3).decide(what, (), 0.5)
    assert not verdict.retry
    assert "non_retryable" in verdict.reason


FLAGS = [  # charged, blames_rank, blames_node, avoid_node
    (fault(K.PREEMPTION), (False, False, False, True)),
    (fault(K.NODE_LOST), (True, False, True, True)),
    (fault(K.WORKER_CRASH), (True, True, True, False)),
    (fault(K.WORKER_CRASH, Origin.PROCESS, node="a"), (True, True, True, False)),
    (fault(K.OOM), (True, True, False, False)),
    (fault(K.UNAVAILABLE), (True, False, True, False)),
    (fault(K.UNAVAILABLE, Origin.PLACEMENT), (True, False, False, False)),
    (fault(K.SETUP), (True, False, True, True)),
    (fault(K.SETUP, Origin.RANK), (True, False, True, True)),
    (fault(K.RESOURCE, Origin.RANK), (True, False, True, True)),
    (fault(K.TIMEOUT, Origin.PROCESS), (True, False, False, False)),
    (fault(K.TIMEOUT).__replace__(phase="start"), (True, False, True, True)),
    (fault(K.TIMEOUT).__replace__(phase="heartbeat"), (True, True, True, True)),
    (fault(K.APPLICATION, Origin.RANK), (True, False, False, False)),
    (fault(K.CANCELLED), (False, False, False, False)),
    (fault(K.SYSTEM), (True, False, False, True)),
    (fault(K.PLACEMENT_REMOVED), (True, False, False, False)),
    (fault(K.INTERRUPTED), (True, False, False, False)),
    (fault(K.THROTTLED), (True, False, False, False)),
    (fault(K.UNSCHEDULABLE, Origin.PLACEMENT), (True, False, False, False)),
]


@pytest.mark.parametrize(("what", "flags"), FLAGS)
def test_who_is_to_blame(what: Fault, flags: tuple[bool, ...]) -> None:
    got = RetryPolicy().decide(what, (), 0.5)
    assert (got.charged, got.blames_rank, got.blames_node, got.avoid_node) == flags


class TestTimeouts:
    def test_a_workers_time_out_is_not_the_ranks(self) -> None:
        silent = fault(K.TIMEOUT).__replace__(phase="heartbeat")
        own = fault(K.TIMEOUT, Origin.PROCESS).__replace__(phase="rank")
        assert RetryPolicy().decide(own, [(silent, "a")] * 3, 0.5).retry
        assert not RetryPolicy().decide(own, [(own, "a")], 0.5).retry
        assert retries(RetryPolicy(), silent) == 5

    def test_a_pending_gang(self) -> None:
        verdict = RetryPolicy().decide(fault(K.TIMEOUT).__replace__(phase="place"), (), 0.5)
        assert not verdict.retry
        assert verdict.delay_s > 0
        assert "not free in time" in verdict.reason

    def test_a_longer_limit_the_next_time_on_request(self) -> None:
        own = fault(K.TIMEOUT, Origin.PROCESS).__replace__(phase="rank")
        policy = RetryPolicy(timeout_factor=2.0)
        assert policy.decide(own, (), 0.5).timeout_factor == 2.0
        assert policy.decide(fault(K.NODE_LOST), [(own, "a")], 0.5).timeout_factor == 2.0
        assert RetryPolicy().decide(own, (), 0.5).timeout_factor == 1.0
        steep = RetryPolicy(timeout_factor=1000.0)
        assert steep.decide(own, [(own, "a")] * 500, 0.5).timeout_factor == 1e90


class TestDelay:
    def test_full_jitter_below_a_growing_ceiling(self) -> None:
        policy = RetryPolicy()
        what = fault(K.THROTTLED)
        ceilings = [policy.decide(what, [(what, "a")] * n, 1.0).delay_s for n in range(9)]
        assert ceilings == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0, 60.0]
        assert policy.decide(what, (), 0.25).delay_s == 0.25
        assert policy.decide(what, (), 0.0).delay_s == 0.0

    def test_only_faults_of_its_kind_make_it_grow(self) -> None:
        past = [(fault(K.NETWORK), "a")] * 3
        assert RetryPolicy().decide(fault(K.THROTTLED), past, 1.0).delay_s == 1.0

    @pytest.mark.parametrize("kind", [K.WORKER_CRASH, K.PREEMPTION])
    def test_the_first_retry_at_once(self, kind: FaultKind) -> None:
        what = fault(kind)
        assert RetryPolicy().decide(what, (), 1.0).delay_s == 0.0
        assert RetryPolicy().decide(what, [(what, "a")], 1.0).delay_s == 2.0

    def test_what_the_other_side_asked_for(self) -> None:
        policy = RetryPolicy()
        assert policy.decide(fault(K.THROTTLED, retry_after_s=17.0), (), 0.5).delay_s == 17.5
        assert policy.decide(fault(K.THROTTLED, retry_after_s=10**9), (), 0.0).delay_s == 900.0
        assert policy.decide(fault(K.APPLICATION, retry_after_s=17.0), (), 0.5).delay_s == 17.5
        assert policy.decide(fault(K.OBJECT_LOST, retry_after_s=17.0), (), 0.5).delay_s == 0.5
        assert policy.decide(fault(K.NETWORK, retry_after_s=10**400), (), 0.0).delay_s == 900.0

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
        verdict = RetryPolicy().decide(self.death("a", only_node=True), (), 0.5)
        assert verdict == RetryVerdict(
            retry=True,
            blames_rank=True,
            blames_node=True,
            reason="worker_crash: retry 1 of 3, in a fresh process",
        )

    def test_a_second_one_there_sends_it_elsewhere(self) -> None:
        verdict = RetryPolicy().decide(self.death("a"), [(self.death("a"), "a")], 0.5)
        assert verdict.retry
        assert verdict.avoid_node
        assert verdict.blames_node

    def test_on_two_nodes_it_is_the_rank(self) -> None:
        verdict = RetryPolicy().decide(self.death("b"), [(self.death("a"), "a")], 0.5)
        assert not verdict.retry
        assert not verdict.blames_node
        assert "poison: its own process died on 2 nodes (a, b)" in verdict.reason

    def test_twice_on_the_only_node(self) -> None:
        verdict = RetryPolicy().decide(
            self.death("a", only_node=True), [(self.death("a"), "a")], 0.5
        )
        assert not verdict.retry
        assert "2 times on the only node" in verdict.reason

    def test_where_the_node_is_not_known_the_history_convicts(self) -> None:
        one = [(self.death(), "a")]
        assert RetryPolicy().decide(self.death(), one, 0.5).retry
        assert not RetryPolicy().decide(self.death(), [*one, (self.death(), "b")], 0.5).retry

    def test_lost_workers_do_not_count(self) -> None:
        past = [(fault(K.WORKER_CRASH), "a"), (fault(K.NODE_LOST), "c")]
        assert RetryPolicy().decide(self.death("b"), past, 0.5).retry
        past = [(self.death("a"), "a")]
        assert RetryPolicy().decide(fault(K.WORKER_CRASH, node="b"), past, 0.5).retry


class TestMemory:
    def oom(self, peak: int = 0, largest: int | None = None) -> Fault:
        return fault(K.OOM, Origin.PROCESS, peak_rss_bytes=peak, largest_memory_bytes=largest)

    def test_the_ladder_from_what_was_asked_for(self) -> None:
        policy = RetryPolicy(memory_bytes=2 * GIB)
        levels: list[int | None] = []
        history: list[tuple[Fault, str]] = []
        for _ in range(4):
            levels.append(policy.decide(self.oom(), history, 0.5).memory_bytes)
            history.append((self.oom(), "a"))
        assert levels == [3 * GIB, 4608 * MIB, 6912 * MIB, 10368 * MIB]
        reason = policy.decide(self.oom(), history[:1], 0.5).reason
        assert reason == "oom: retry 2 of 4, with 4.50 GiB"

    def test_it_is_kept_for_other_faults(self) -> None:
        policy = RetryPolicy(memory_bytes=2 * GIB)
        verdict = policy.decide(fault(K.NODE_LOST), [(self.oom(), "a")], 0.5)
        assert verdict.memory_bytes == 3 * GIB
        assert verdict.reason == "node_lost: retry 1 of 20, on another node, with 3.00 GiB"

    def test_it_starts_above_the_peak_that_was_seen(self) -> None:
        policy = RetryPolicy(memory_bytes=GIB)
        assert policy.decide(self.oom(peak=3 * GIB), (), 0.5).memory_bytes == 3456 * MIB

    def test_without_a_request_peaks_share_the_rungs_of_a_grid(self) -> None:
        near = [
            RetryPolicy().decide(self.oom(peak), (), 0.5).memory_bytes
            for peak in (1_000_000_000, 1_100_000_000, 1_200_000_000)
        ]
        # The grid: 256 MiB x 1.5^n. All of them are below 1296 MiB; one further is 1944 MiB.
        assert near == [1944 * MIB] * 3
        assert RetryPolicy().decide(self.oom(1296 * MIB), (), 0.5).memory_bytes == 1944 * MIB
        assert RetryPolicy().decide(self.oom(1296 * MIB + 1), (), 0.5).memory_bytes == 2916 * MIB

    def test_nothing_is_known(self) -> None:
        verdict = RetryPolicy().decide(self.oom(), (), 0.5)
        assert verdict.retry
        assert verdict.memory_bytes is None
        assert "not known" in verdict.reason

    def test_up_to_the_largest_node_and_no_further(self) -> None:
        policy = RetryPolicy(memory_bytes=2 * GIB)
        at_most = self.oom(largest=4 * GIB)
        history: list[tuple[Fault, str]] = [(self.oom(), "a")]
        verdict = policy.decide(at_most, history, 0.5)
        assert verdict.retry
        assert verdict.memory_bytes == 4 * GIB
        history.append((at_most, "a"))
        verdict = policy.decide(self.oom(), history, 0.5)
        assert not verdict.retry
        assert "with the most there is" in verdict.reason

    def test_a_rung_that_no_node_has(self) -> None:
        policy = RetryPolicy(memory_bytes=2 * GIB)
        refused = fault(K.UNSCHEDULABLE, Origin.PLACEMENT, largest_memory_bytes=2500 * MIB)
        history = [(self.oom(), "a")]
        verdict = policy.decide(refused, history, 0.5)
        assert verdict.retry
        assert verdict.memory_bytes == 2500 * MIB
        assert not policy.decide(refused, [*history, (refused, "")], 0.5).retry
        small = fault(K.UNSCHEDULABLE, Origin.PLACEMENT, largest_memory_bytes=2 * GIB)
        assert not policy.decide(small, history, 0.5).retry
        assert "with 2.44 GiB" in verdict.reason
        none = RetryPolicy(memory_bytes=2 * GIB, max_retries=0).decide(refused, history, 0.5)
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
        ({"max_charged": -1}, "must be >= 0"),
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
        base_delay_s=0.0,
        backoff_factor=1.0,
        max_delay_s=0.0,
        max_retry_after_s=0.0,
        timeout_factor=1.0,
        breaker_after=1,
    )
    assert not least.decide(fault(K.NODE_LOST), (), 0.5).retry
    most = RetryPolicy(backoff_factor=1000.0, timeout_factor=1000.0, base_delay_s=60.0)
    assert most.decide(fault(K.OBJECT_LOST), (), 1.0).delay_s == 60.0
    assert not RetryPolicy(max_charged=0).decide(fault(K.OBJECT_LOST), (), 0.5).retry


def test_a_budget_that_makes_no_sense() -> None:
    with pytest.raises(ValueError, match="retries must be an int >= 0"):
        FaultBudget(retries=-1)


def test_a_verdict_blames_nobody_and_asks_for_nothing_unless_it_says_so() -> None:
    verdict = RetryVerdict(retry=True, reason="x")
    assert verdict.as_json() == {
        "retry": True,
        "delay_s": 0.0,
        "charged": True,
        "infrastructure": True,
        "blames_rank": False,
        "blames_node": False,
        "avoid_node": False,
        "memory_bytes": None,
        "timeout_factor": 1.0,
        "reason": "x",
        "stop": None,
    }


def test_values_pickle() -> None:
    policy = RetryPolicy(retries=3, budgets={K.NETWORK: FaultBudget(retries=1)})
    verdict = policy.decide(fault(K.OOM), (), 0.5)
    assert pickle.loads(pickle.dumps((policy, verdict))) == (policy, verdict)
