"""Which kind, by which rule: a table for every origin, wrappers, groups, chains, and bad input.

Long, since most of it is tables.
"""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thornback.faults import (
    DEFAULT_RULES,
    NETWORK_RULES,
    RAY_RULES,
    THROTTLED_RULES,
    Classifier,
    ErrorRecord,
    FaultKind,
    Origin,
    RetryPolicy,
    Rule,
    Standing,
    backoff_s,
    explain,
    is_retriable,
    root_cause,
)
from thornback.faults.kinds import Attribute
from thornback.faults.on_ray import unruled
from thornback.faults.testing import (
    RAY_BASES,
    Hostile,
    check_classifier,
    fault,
    lookalike,
    lookalike_task_error,
)

WORKER: dict[str, Attribute] = {"origin": "worker"}
PROCESS: dict[str, Attribute] = {"origin": "process", "phase": "rank"}
RANK: dict[str, Attribute] = {"origin": "rank", "phase": "rank"}
PLACEMENT: dict[str, Attribute] = {"origin": "placement", "phase": "place"}
DRIVER: dict[str, Attribute] = {"origin": "driver"}
K = FaultKind

classifier = Classifier()


def test_conformance() -> None:
    check_classifier(Classifier())
    check_classifier(Classifier(user_rules=(*THROTTLED_RULES, *NETWORK_RULES)))


RAY_TABLE = [
    ("CrossLanguageError", K.APPLICATION, "ray.user_code"),
    ("TaskCancelledError", K.INTERRUPTED, "ray.cancelled"),
    ("RayTaskError", K.SYSTEM, "ray.task"),
    ("LocalRayletDiedError", K.NODE_LOST, "ray.raylet_died"),
    ("WorkerCrashedError", K.WORKER_CRASH, "ray.worker_crashed"),
    ("RayActorError", K.WORKER_CRASH, "ray.actor"),
    ("ActorDiedError", K.WORKER_CRASH, "ray.actor_died"),
    ("ActorUnavailableError", K.UNAVAILABLE, "ray.actor_unavailable"),
    ("RaySystemError", K.SYSTEM, "ray.system"),
    ("AuthenticationError", K.SYSTEM, "ray.authentication"),
    ("UserCodeException", K.APPLICATION, "ray.user_code"),
    ("ray.data.exceptions.RayDataUserCodeException", K.APPLICATION, "ray.user_code"),
    ("ObjectStoreFullError", K.RESOURCE, "ray.store_full"),
    ("OutOfDiskError", K.RESOURCE, "ray.disk_full"),
    ("OutOfMemoryError", K.OOM, "ray.out_of_memory"),
    ("NodeDiedError", K.NODE_LOST, "ray.node_died"),
    ("ObjectLostError", K.OBJECT_LOST, "ray.object_lost"),
    ("ObjectFetchTimedOutError", K.OBJECT_LOST, "ray.object_lost"),
    ("OwnerDiedError", K.OBJECT_LOST, "ray.object_lost"),
    ("ObjectReconstructionFailedError", K.OBJECT_LOST, "ray.object_lost"),
    ("ObjectFreedError", K.SYSTEM, "ray.object_freed"),
    ("ReferenceCountingAssertionError", K.SYSTEM, "ray.reference_count"),
    ("RpcError", K.UNAVAILABLE, "ray.rpc"),
    ("GetTimeoutError", K.TIMEOUT, "ray.get_timed_out"),
    ("PlasmaObjectNotAvailable", K.OBJECT_LOST, "ray.object_lost"),
    ("AsyncioActorExit", K.WORKER_CRASH, "ray.worker_exit"),
    ("RuntimeEnvSetupError", K.SETUP, "ray.runtime_env"),
    ("TaskPlacementGroupRemoved", K.PLACEMENT_REMOVED, "ray.placement_removed"),
    ("ActorPlacementGroupRemoved", K.PLACEMENT_REMOVED, "ray.placement_removed"),
    ("PendingCallsLimitExceeded", K.SYSTEM, "ray.our_misuse"),
    ("TaskUnschedulableError", K.UNSCHEDULABLE, "ray.unschedulable"),
    ("ActorUnschedulableError", K.UNSCHEDULABLE, "ray.unschedulable"),
    ("ObjectRefStreamEndOfStreamError", K.SYSTEM, "ray.our_misuse"),
    ("StreamingGeneratorReplayInconsistentError", K.APPLICATION, "ray.user_code"),
    ("OufOfBandObjectRefSerializationException", K.SYSTEM, "ray.our_misuse"),
    ("RayChannelError", K.SYSTEM, "ray.channel"),
    ("RayChannelTimeoutError", K.SYSTEM, "ray.channel"),
    ("RayCgraphCapacityExceeded", K.SYSTEM, "ray.channel"),
    ("RayDirectTransportError", K.SYSTEM, "ray.channel"),
    ("UnserializableException", K.APPLICATION, "ray.user_code"),
    ("ActorAlreadyExistsError", K.SYSTEM, "ray.our_misuse"),
    ("ActorHandleNotFoundError", K.SYSTEM, "ray.our_misuse"),
    ("RayError", K.SYSTEM, "ray.other"),
]


@pytest.mark.parametrize(("name", "kind", "rule"), RAY_TABLE)
def test_every_ray_exception(name: str, kind: FaultKind, rule: str) -> None:
    alone = name != "RayTaskError" and "." not in name
    for facts in ({}, WORKER) if alone else (WORKER,):
        fault = classifier.classify(lookalike(name, "text"), facts)
        assert (fault.kind, fault.rule, fault.origin) == (kind, rule, Origin.WORKER)
    assert classifier.classify(lookalike(name, "text"), RANK).kind is K.APPLICATION


def test_the_table_is_complete() -> None:
    assert {name for name, _, _ in RAY_TABLE} >= set(RAY_BASES)
    names = tuple(f"ray.exceptions.{name}" for name in RAY_BASES)
    assert unruled(names, RAY_RULES) == ()
    assert unruled(("ray.exceptions.New",), RAY_RULES) == ("ray.exceptions.New",)


REMOVED = "Could not create the actor because its associated placement group was removed."
DEATHS: list[tuple[str, dict[str, Attribute], dict[str, Attribute], FaultKind]] = [
    ("", {"preempted": True}, {}, K.PREEMPTION),
    ("", {}, {"preempted": True}, K.PREEMPTION),
    ("", {"preempted": False}, {"preempted": True}, K.PREEMPTION),
    ("", {"preempted": True}, {"preempted": False}, K.WORKER_CRASH),
    ("", {}, {"death_cause": "NODE_DIED", "node_death_reason": 3}, K.PREEMPTION),
    ("", {}, {"node_death_reason": "AUTOSCALER_DRAIN_PREEMPTED"}, K.PREEMPTION),
    ("\tthe actor's node was preempted: spot", {}, {}, K.PREEMPTION),
    ("", {}, {"death_cause": "NODE_DIED", "node_death_reason": 2}, K.NODE_LOST),
    ("", {}, {"death_cause": "NODE_DIED", "node_draining": True}, K.PREEMPTION),
    ("", {}, {"death_cause": "WORKER_DIED", "node_draining": True}, K.PREEMPTION),
    ("", {}, {"death_cause": "NODE_DIED", "node_death_reason": 1}, K.NODE_LOST),
    ("The actor died because its node has died. Node Id: 1", {}, {}, K.NODE_LOST),
    ("", {}, {"death_cause": "OOM"}, K.OOM),
    ("", {}, {"exit_type": "NODE_OUT_OF_MEMORY"}, K.OOM),
    ("Worker exit type: NODE_OUT_OF_MEMORY", {}, {}, K.OOM),
    ("", {}, {"signal": 9, "oom_kill": True}, K.OOM),
    ("", {}, {"death_cause": "RAY_KILL", "cancelled_by_us": True}, K.CANCELLED),
    ("", {}, {"death_cause": "RAY_KILL"}, K.INTERRUPTED),
    ("The actor is dead because it was killed by `ray.kill`.", {}, {}, K.INTERRUPTED),
    ("", {}, {"death_cause": "OUT_OF_SCOPE"}, K.SYSTEM),
    ("", {}, {"death_cause": "WORKER_DIED", "exit_type": "INTENDED_USER_EXIT"}, K.APPLICATION),
    ("Worker exit type: INTENDED_USER_EXIT", {}, {}, K.APPLICATION),
    ("type: INTENDED_SYSTEM_EXIT, its Placement Group", {}, {}, K.PLACEMENT_REMOVED),
    ("placement group", {}, {"exit_type": "INTENDED_SYSTEM_EXIT"}, K.PLACEMENT_REMOVED),
    ("", {}, {"death_cause": "WORKER_DIED", "exit_type": "INTENDED_SYSTEM_EXIT"}, K.WORKER_CRASH),
    ("", {}, {"death_cause": "WORKER_DIED", "exit_type": "SYSTEM_ERROR"}, K.WORKER_CRASH),
    ("", {}, {"death_cause": "CREATION_TASK_FAILED"}, K.APPLICATION),
    ("ValueError: x", {"actor_init_failed": True}, {}, K.APPLICATION),
    ("ModuleNotFoundError: x", {"actor_init_failed": True}, {}, K.SETUP),
    ("ImportError: x", {"actor_init_failed": True}, {}, K.SETUP),
    ("", {}, {"death_cause": "RUNTIME_ENV_FAILED"}, K.SETUP),
    ("", {}, {"death_cause": "ACTOR_UNSCHEDULABLE"}, K.UNSCHEDULABLE),
    (REMOVED, {}, {"death_cause": "ACTOR_UNSCHEDULABLE"}, K.PLACEMENT_REMOVED),
]


@pytest.mark.parametrize(("message", "attributes", "facts", "kind"), DEATHS)
def test_deaths_of_an_actor(
    message: str, attributes: dict[str, Attribute], facts: dict[str, Attribute], kind: FaultKind
) -> None:
    error = lookalike("ActorDiedError", message, **attributes)
    assert classifier.classify(error, {**WORKER, **facts}).kind is kind


@pytest.mark.parametrize(
    ("message", "kind"), [("", K.UNSCHEDULABLE), (REMOVED, K.PLACEMENT_REMOVED)]
)
def test_unschedulable_because_its_group_is_gone(message: str, kind: FaultKind) -> None:
    assert classifier.classify(lookalike("ActorUnschedulableError", message), WORKER).kind is kind


OTHERS: list[tuple[BaseException, dict[str, Attribute], FaultKind, str]] = [
    (lookalike("thornback.pool.RankTimedOut"), PROCESS, K.TIMEOUT, "rank"),
    (lookalike("thornback.pool.RankTimedOut"), {**PROCESS, "phase": "setup"}, K.SETUP, "setup"),
    (lookalike("thornback.pool.RankProcessDied"), PROCESS, K.WORKER_CRASH, "rank"),
    (lookalike("thornback.pool.deep.down.RankProcessDied"), PROCESS, K.WORKER_CRASH, "rank"),
    (
        lookalike("thornback.pool.RankProcessDied", exit_code=-9, oom_kill=True),
        PROCESS,
        K.OOM,
        "rank",
    ),
    (
        lookalike("thornback.pool.RankProcessDied", signal="SIGKILL"),
        {**PROCESS, "memory_limit_exceeded": True},
        K.OOM,
        "rank",
    ),
    (
        lookalike("thornback.pool.RankProcessDied", signal=11),
        {**PROCESS, "oom_kill": True},
        K.WORKER_CRASH,
        "rank",
    ),
    (lookalike("thornback.pool.WorkerSilent"), {**WORKER, "phase": "run"}, K.TIMEOUT, "heartbeat"),
    (lookalike("thornback.pool.WorkerStartTimedOut"), WORKER, K.TIMEOUT, "start"),
    (lookalike("thornback.pool.RecallTimedOut"), WORKER, K.TIMEOUT, "recall"),
    (lookalike("thornback.pool.WorkerDied", signal=9), WORKER, K.WORKER_CRASH, ""),
    (
        lookalike("thornback.pool.WorkerDied"),
        {**WORKER, "death_cause": "RAY_KILL"},
        K.INTERRUPTED,
        "",
    ),
    (lookalike("thornback.pool.GangClosed"), {**WORKER, "phase": "close"}, K.CANCELLED, "close"),
    (lookalike("thornback.pool.WorkerMisbehaved"), WORKER, K.SYSTEM, ""),
    (lookalike("thornback.placement.PlacementTimedOut"), PLACEMENT, K.TIMEOUT, "place"),
    (lookalike("thornback.placement.PlacementRemoved"), PLACEMENT, K.PLACEMENT_REMOVED, "place"),
    (lookalike("thornback.placement.Unschedulable"), PLACEMENT, K.UNSCHEDULABLE, "place"),
    (ValueError("bundle cannot be empty"), PLACEMENT, K.UNSCHEDULABLE, "place"),
    (Exception("Placement group 12 does not exist."), PLACEMENT, K.PLACEMENT_REMOVED, "place"),
    (TimeoutError(), PLACEMENT, K.TIMEOUT, "place"),
    (lookalike("thornback.executor.JournalError"), DRIVER, K.SYSTEM, ""),
    (EOFError(), WORKER, K.WORKER_CRASH, ""),
    (BrokenPipeError(), WORKER, K.WORKER_CRASH, ""),
    (ConnectionRefusedError(), WORKER, K.UNAVAILABLE, ""),
    (EOFError(), PROCESS, K.WORKER_CRASH, "rank"),
    (EOFError(), DRIVER, K.UNKNOWN, ""),
    (ConnectionResetError(), DRIVER, K.UNAVAILABLE, ""),
    (ConnectionResetError(), PROCESS, K.WORKER_CRASH, "rank"),
    (OSError(113, "no route"), DRIVER, K.UNAVAILABLE, ""),
    (OSError(24, "too many open files"), PROCESS, K.RESOURCE, "rank"),
    (OSError(24, "too many open files"), RANK, K.RESOURCE, "rank"),
    (OSError(11, "try again"), PROCESS, K.RESOURCE, "rank"),
    (OSError(11, "try again"), RANK, K.APPLICATION, "rank"),
    (OSError(13, "permission denied"), RANK, K.APPLICATION, "rank"),
    (OSError(5, "io"), WORKER, K.RESOURCE, ""),
    (OSError(5, "io"), RANK, K.RESOURCE, "rank"),
    (OSError(116, "stale file handle"), RANK, K.RESOURCE, "rank"),
    (RuntimeError("can't start new thread"), PROCESS, K.RESOURCE, "rank"),
    (RuntimeError("another"), PROCESS, K.UNKNOWN, "rank"),
    (FileNotFoundError(2, "python"), PROCESS, K.SETUP, "setup"),
    (FileNotFoundError(2, "x"), DRIVER, K.UNKNOWN, ""),
    (ModuleNotFoundError("x"), DRIVER, K.SYSTEM, ""),
    (pickle.UnpicklingError("x"), DRIVER, K.SYSTEM, ""),
    (lookalike("subprocess.TimeoutExpired"), PROCESS, K.TIMEOUT, "rank"),
    (lookalike("thornback.executor.RunCancelled"), DRIVER, K.CANCELLED, ""),
    (lookalike("thornback.executor.RankFailure"), {}, K.APPLICATION, ""),
    (lookalike("thornback.scheduler.InvariantBroken"), DRIVER, K.UNKNOWN, ""),
    (lookalike("ray.serve.exceptions.BackPressureError"), {}, K.THROTTLED, ""),
    (lookalike("ray.data.exceptions.SystemException"), {}, K.SYSTEM, ""),
    (MemoryError(), PROCESS, K.OOM, "rank"),
    (ModuleNotFoundError("x"), WORKER, K.SETUP, "setup"),
    (asyncio.CancelledError(), DRIVER, K.INTERRUPTED, ""),
    (asyncio.CancelledError(), {**DRIVER, "cancelled_by_us": True}, K.CANCELLED, ""),
    (LookupError("x"), PROCESS, K.UNKNOWN, "rank"),
    (LookupError("x"), {**PROCESS, "phase": "setup"}, K.SETUP, "setup"),
    (OSError(122, "quota"), DRIVER, K.RESOURCE, ""),
    (Exception("Failed to submit task to actor x"), DRIVER, K.SYSTEM, ""),
    (lookalike("RaySystemError", "System error: ModuleNotFoundError"), WORKER, K.APPLICATION, ""),
]


@pytest.mark.parametrize(("error", "facts", "kind", "phase"), OTHERS)
def test_others(
    error: BaseException, facts: dict[str, Attribute], kind: FaultKind, phase: str
) -> None:
    fault = classifier.classify(error, facts)
    assert (fault.kind, fault.phase) == (kind, phase)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("x"),
        TimeoutError("x"),
        ConnectionResetError("x"),
        MemoryError("x"),
        lookalike("ActorDiedError", preempted=True),
        lookalike("thornback.pool.RankProcessDied", signal=9, oom_kill=True),
        lookalike_task_error(lookalike("RayError")),
    ],
)
def test_what_the_rank_raised_is_its_own_whatever_its_name(error: BaseException) -> None:
    fault = classifier.classify(error, RANK)
    assert (fault.kind, fault.rule) == (K.APPLICATION, "rank.raised")
    assert fault.facts.get("signal", 9) == 9


@pytest.mark.parametrize(
    ("error", "rule"),
    [
        (SystemExit(-9), "rank.exited"),
        (SystemExit(0), "rank.exited"),
        (KeyboardInterrupt(), "rank.interrupted"),
        (asyncio.CancelledError(), "rank.interrupted"),
    ],
)
def test_ways_out_of_user_code_have_rules_of_their_own(error: BaseException, rule: str) -> None:
    fault = classifier.classify(error, RANK)
    assert (fault.kind, fault.rule) == (K.APPLICATION, rule)
    setup = classifier.classify(error, {**RANK, "phase": "setup"})
    assert (setup.kind, setup.rule) == (K.SETUP, "rank.setup")


def test_an_exit_code_of_user_code_is_no_signal() -> None:
    facts = classifier.classify(SystemExit(-9), {**RANK, "exit_code": -9}).facts
    assert facts == {"code": -9, "exit_code": -9}


def test_a_full_disk_is_seen_through_the_wrapper_of_user_code() -> None:
    try:
        try:
            raise OSError(28, "No space left on device", "/out/part")
        except OSError as error:
            raise RuntimeError("writing failed") from error
    except RuntimeError as error:
        fault = classifier.classify(error, RANK)
    assert (fault.kind, fault.error_type) == (K.RESOURCE, "builtins.OSError")
    assert "writing failed" in fault.traceback


@pytest.mark.parametrize(
    ("error", "facts", "rule"),
    [
        (RuntimeError("x"), {**RANK, "phase": "setup"}, "rank.setup"),
        (SystemExit(1), RANK, "rank.exited"),
        (KeyboardInterrupt(), RANK, "rank.interrupted"),
        (RuntimeError("x"), RANK, "rank.raised"),
        (lookalike_task_error(RuntimeError("x")), WORKER, "worker.raised"),
        (RuntimeError("x"), DRIVER, "unknown"),
    ],
)
def test_a_last_resort_gives_way_to_what_is_known_of_a_cause(
    error: BaseException, facts: dict[str, Attribute], rule: str
) -> None:
    assert classifier.classify(error, facts).rule == rule
    raised: BaseException = getattr(error, "cause", error)
    raised.__cause__ = OSError(28, "No space left on device")
    assert classifier.classify(error, facts).kind is K.RESOURCE


class TestWrappers:
    def test_without_an_origin_user_code_is_to_blame_for_a_task_error(self) -> None:
        for cause in (ValueError("x"), lookalike("RayError")):
            fault = classifier.classify(lookalike_task_error(cause))
            assert (fault.kind, fault.origin) == (K.APPLICATION, Origin.RANK)
            assert not fault.error_type.startswith("ray.exceptions.RayTaskError")
            assert "secondhand" not in fault.facts

    @pytest.mark.parametrize("origin", [None, *Origin])
    def test_ray_error_in_task_error_is_judged_as_ray_error(self, origin: Origin | None) -> None:
        """Whoever saw it, and whatever is known of the process or node that reported it."""
        error = lookalike_task_error(lookalike("ActorDiedError", preempted=True))
        facts: dict[str, Attribute] = {"phase": "setup", "signal": 9, "oom_kill": True}
        facts |= {"death_cause": "NODE_DIED", "exit_type": "NODE_OUT_OF_MEMORY"}
        if origin is not None:
            facts["origin"] = origin.value
        fault = classifier.classify(error, facts)
        assert (fault.kind, fault.rule) == (K.PREEMPTION, "facts.preempted")
        assert fault.origin is (origin or Origin.WORKER)
        assert fault.facts["secondhand"] is True

    def test_ray_error_raised_by_rank_stays_application(self) -> None:
        assert classifier.classify(lookalike("NodeDiedError"), RANK).kind is K.APPLICATION

    def test_task_error_of_error_raised_from_ray_error_is_ray_error(self) -> None:
        cause = ValueError("lost its input")
        cause.__cause__ = lookalike("OwnerDiedError")
        fault = classifier.classify(lookalike_task_error(cause))
        assert (fault.kind, fault.facts["secondhand"]) == (K.OBJECT_LOST, True)

    def test_cancelled_by_us_holds_for_ray_error_in_task_error(self) -> None:
        error = lookalike_task_error(lookalike("TaskCancelledError"))
        known: dict[str, Attribute] = {"cancelled_by_us": True}
        assert classifier.classify(error, {**WORKER, **known}).kind is K.CANCELLED
        assert classifier.classify(error, {**RANK, **known}).kind is K.CANCELLED

    def test_a_lost_argument_is_an_object_lost(self) -> None:
        error = lookalike_task_error(lookalike("OwnerDiedError"))
        assert classifier.classify(error, WORKER).kind is K.OBJECT_LOST

    def test_what_our_own_worker_raised_is_our_bug(self) -> None:
        fault = classifier.classify(lookalike_task_error(KeyError("x")), WORKER)
        assert (fault.kind, fault.rule) == (K.SYSTEM, "worker.raised")

    def test_task_errors_in_one_another(self) -> None:
        error = lookalike_task_error(lookalike_task_error(KeyError("x")))
        assert classifier.classify(error).error_type == "builtins.KeyError"

    def test_a_group_inside(self) -> None:
        error = lookalike_task_error(ExceptionGroup("g", [OSError(28, "full"), KeyError("x")]))
        assert classifier.classify(error).error_type == "builtins.KeyError"

    def test_gang_lost_error_gives_way_to_its_error(self) -> None:
        inner = ErrorRecord.of(lookalike("NodeDiedError", "gone"))
        for error in (inner, lookalike("NodeDiedError", "gone")):
            lost = lookalike("thornback.pool.GangLostError", error=error)
            fault = classifier.classify(lost, WORKER)
            assert (fault.kind, fault.message) == (K.NODE_LOST, "gone")

    def test_a_dual_record_without_its_cause_is_nested_all_the_same(self) -> None:
        record = ErrorRecord.of(lookalike_task_error(lookalike("ActorDiedError")))
        lone = record.__replace__(causes=())
        for facts in (WORKER, {}):
            fault = classifier.classify(lone, facts)
            assert (fault.kind, fault.facts["secondhand"]) == (K.WORKER_CRASH, True)


class TestGroups:
    def group(self, *names: str) -> BaseExceptionGroup[BaseException]:
        return BaseExceptionGroup("g", [lookalike(name) for name in names])

    @pytest.mark.parametrize(
        ("names", "kind"),
        [
            (("ActorDiedError", "NodeDiedError"), K.NODE_LOST),
            (("WorkerCrashedError", "OutOfMemoryError"), K.OOM),
            (("TaskCancelledError", "RpcError"), K.UNAVAILABLE),
            (("LookupError", "RpcError"), K.UNAVAILABLE),
            (("RpcError", "WorkerCrashedError"), K.WORKER_CRASH),
            (("TaskCancelledError", "LookupError"), K.INTERRUPTED),
        ],
    )
    def test_the_cause_comes_before_its_consequences(
        self, names: tuple[str, ...], kind: FaultKind
    ) -> None:
        assert classifier.classify(self.group(*names), WORKER).kind is kind

    def test_in_user_code_a_bug_decides(self) -> None:
        lenient = Classifier(user_rules=NETWORK_RULES)
        both = ExceptionGroup("g", [ConnectionResetError(), KeyError("x")])
        alike = ExceptionGroup("g", [ConnectionResetError(), ExceptionGroup("h", [EOFError()])])
        assert lenient.classify(both, RANK).kind is K.APPLICATION
        assert lenient.classify(alike, RANK).kind is K.APPLICATION
        alike = ExceptionGroup("g", [ConnectionResetError(), ConnectionAbortedError()])
        assert lenient.classify(alike, RANK).kind is K.NETWORK

    def test_which_of_them_decides_is_told(self) -> None:
        told = classifier.explain(self.group("RpcError", "ActorDiedError", "NodeDiedError"), WORKER)
        assert "a group of 3: exception 3 decides" in told.notes

    def test_leaves_are_judged_with_their_causes(self) -> None:
        leaf = RuntimeError("x")
        leaf.__cause__ = lookalike("NodeDiedError")
        assert classifier.classify(ExceptionGroup("g", [leaf]), WORKER).kind is K.NODE_LOST


class TestGangs:
    ORDER = (K.PREEMPTION, K.NODE_LOST, K.OOM, K.WORKER_CRASH, K.APPLICATION, K.NETWORK)

    @given(st.permutations(range(len(ORDER))), st.integers(1, len(ORDER)))
    def test_the_cause_comes_before_its_consequences(self, order: list[int], n: int) -> None:
        faults = [fault(self.ORDER[at]) for at in order[:n]]
        assert root_cause(faults).kind is self.ORDER[min(order[:n])]

    def test_the_earliest_of_equals(self) -> None:
        faults = [
            fault(K.NETWORK, node="a"),
            fault(K.TIMEOUT, node="b"),
            fault(K.APPLICATION, node="c"),
        ]
        assert root_cause(faults).facts["node"] == "b"
        consequences = [fault(kind) for kind in (K.UNKNOWN, K.NETWORK, K.CANCELLED, K.INTERRUPTED)]
        assert root_cause(consequences) is consequences[0]

    def test_nothing_has_failed(self) -> None:
        with pytest.raises(ValueError, match="at least one fault"):
            root_cause([])


class TestWhatAnExceptionSays:
    lenient = Classifier(user_rules=NETWORK_RULES)

    def test_the_outer_one_knew_of_its_cause(self) -> None:
        outer = lookalike("my.Final", non_retryable=True, retry_after=7)
        outer.__cause__ = ConnectionResetError("gone")
        what = self.lenient.classify(outer, RANK)
        assert (what.kind, what.facts["non_retryable"]) == (K.NETWORK, True)
        assert what.facts["retry_after_s"] == 7.0
        assert not RetryPolicy(retries=5).decide(what, (), Standing.UNDECIDED, 0.5).retry

    def test_the_outermost_counts(self) -> None:
        first = lookalike("my.Outer", retry_after=1)
        first.__cause__ = lookalike("my.Inner", retry_after=2)
        first.__cause__.__cause__ = lookalike("requests.exceptions.Timeout", retry_after=3)
        what = self.lenient.classify(first, RANK)
        assert (what.rule, what.facts["retry_after_s"]) == ("network.names", 1.0)

    def test_what_is_known_for_certain_goes_before_it(self) -> None:
        outer = lookalike("my.Final", non_retryable=True)
        outer.__cause__ = ConnectionResetError("gone")
        what = self.lenient.classify(outer, {**RANK, "non_retryable": False})
        assert what.facts["non_retryable"] is False

    def test_a_class_may_say_it_for_all_its_instances(self) -> None:
        class Final(Exception):
            non_retryable = True
            flavour = "sour"
            _hidden = 1

            def method(self) -> None: ...

        rule = Rule(name="mine", kind=K.RESOURCE, types=(Final,), facts={"flavour": "sour"})
        what = Classifier(user_rules=[rule]).classify(Final("x"), RANK)
        assert (what.rule, what.facts) == ("mine", {"non_retryable": True})
        assert ErrorRecord.of(Final()).attributes == {"non_retryable": True, "flavour": "sour"}


class TestRulesOfOnesOwn:
    def test_a_class_goes_by_its_name(self) -> None:
        rule = Rule(name="mine", kind=K.RESOURCE, types=(KeyError, "my.Error"))
        assert rule.types == ("builtins.KeyError", "my.Error")
        assert rule == pickle.loads(pickle.dumps(rule))
        mine = Classifier(user_rules=[rule])
        assert mine.classify(KeyError("x"), RANK).rule == "mine"
        assert mine.classify(LookupError("x"), RANK).kind is K.APPLICATION
        with pytest.raises(TypeError, match=r"Rule.types must be a tuple of str.*int"):
            Rule(name="x", kind=K.OOM, types=(int,))  # type: ignore[arg-type]  # the test

    def test_they_come_first_and_may_ask_anything(self) -> None:
        rule = Rule(
            name="mine",
            kind=K.RESOURCE,
            types=("builtins.OSError",),
            when=lambda error, known: known.get("errno") == 1 and "disk" in error.message,
        )
        mine = Classifier(user_rules=[rule])
        assert mine.classify(OSError(1, "disk"), RANK).rule == "mine"
        assert mine.classify(OSError(1, "net"), RANK).kind is K.APPLICATION

    def test_one_that_raises_does_not_hold(self) -> None:
        broken = Rule(name="mine", kind=K.RESOURCE, when=lambda error, known: 1 / 0 > 0)
        mine = Classifier(user_rules=[broken])
        assert mine.classify(ValueError("x"), RANK).kind is K.APPLICATION
        assert "raised ZeroDivisionError" in str(mine.explain(ValueError("x"), RANK))

    def test_final_rule_makes_fault_non_retryable(self) -> None:
        rule = Rule(name="mine", kind=K.RESOURCE, types=(KeyError,), final=True)
        mine = Classifier(user_rules=[rule])
        assert Rule.from_json(rule.as_json()) == rule
        what = mine.classify(KeyError("x"), RANK)
        assert what.facts == {"non_retryable": True}
        assert not RetryPolicy().decide(what, (), Standing.UNDECIDED, 0.5).retry
        says = lookalike("my.Error", non_retryable=False)
        says.__cause__ = KeyError("x")
        assert mine.classify(says, RANK).facts["non_retryable"] is False

    def test_rules_without_a_last_resort(self) -> None:
        fault = Classifier(rules=()).classify(ValueError("x"), RANK)
        assert (fault.kind, fault.rule) == (K.UNKNOWN, "unknown")

    def test_bad_rules_are_refused(self) -> None:
        with pytest.raises(TypeError, match=r"Rule.types must be a tuple of str.*module.Class"):
            Rule(name="x", kind=K.OOM, types="builtins.ValueError")  # type: ignore[arg-type]  # the test
        with pytest.raises(ValueError, match=r"names of their own; repeated: ray\.task"):
            Classifier(user_rules=[r for r in RAY_RULES if r.name == "ray.task"])
        with pytest.raises(TypeError, match="Rules are made with"):
            Classifier(user_rules=["x"])  # type: ignore[list-item]  # the test

    def test_default_rules_have_names_and_reasons(self) -> None:
        names = [rule.name for rule in DEFAULT_RULES]
        assert len(set(names)) == len(names)
        assert all(rule.why for rule in (*DEFAULT_RULES, *NETWORK_RULES, *THROTTLED_RULES))


class TestExplain:
    def test_every_rule_tried_in_order_and_why_one_won(self) -> None:
        explanation = explain(lookalike("NodeDiedError", "gone"), WORKER)
        tried = [trial.rule for trial in explanation.trials]
        assert tried == [rule.name for rule in DEFAULT_RULES][: len(tried)]
        assert [trial.mismatch for trial in explanation.trials].count("") == 1
        assert explanation.trials[-1].rule == explanation.fault.rule == "ray.node_died"
        text = str(explanation)
        assert "=> node_lost, by rule 'ray.node_died': the node died" in text
        assert "death_cause is None, wanted 'NODE_DIED'" in text
        assert "ray.node_died: MATCHES" in text

    def test_assumptions_are_told(self) -> None:
        text = str(explain(lookalike_task_error(ValueError("x")), {"origin": "moon"}))
        assert "there is no origin 'moon'" in text
        assert "nobody said who saw it: taken as rank" in text
        assert "unwrapped ray.exceptions.RayTaskError(ValueError) -> builtins.ValueError" in text
        assert "left out: not for what rank saw" in text

    def test_all_of_it(self) -> None:
        last = Rule(name="last", kind=K.UNKNOWN, last_resort=True, why="nothing is known")
        asked = Rule(name="asked", kind=K.OOM, types=("a.B",))
        foreign = Rule(name="foreign", kind=K.OOM, origins=(Origin.WORKER,))
        error = ValueError("one\ntwo")
        error.__cause__ = KeyError("k")
        told = Classifier(rules=(asked, foreign, last)).explain(error, RANK)
        assert str(told).splitlines() == [
            "builtins.ValueError: one",
            "=> unknown, by rule 'last': nothing is known",
            "rules tried, in order:",
            "  on builtins.ValueError",
            "    1. asked: no B on the MRO",
            "  on builtins.KeyError",
            "    3. asked: no B on the MRO",
            "  on builtins.ValueError",
            "    5. last: MATCHES",
            "  2 left out: not for what rank saw",
        ]


class TestAnything:
    def test_hostile_exceptions(self) -> None:
        assert classifier.classify(Hostile(), RANK).kind is K.APPLICATION
        assert "raised RuntimeError" in classifier.classify(Hostile(), RANK).message

    @pytest.mark.parametrize("what", [SystemExit(1), KeyboardInterrupt(), GeneratorExit()])
    def test_exceptions_that_end_the_program_are_data(self, what: BaseException) -> None:
        """A property, `str()`, the method `code()`, a header, or a user's rule may raise it."""

        def end(*args: object) -> str:
            raise what

        class Headers:
            get = end

        class Ending(Exception):
            __str__ = end
            __repr__ = end
            status_code = property(end)
            response = None
            headers = Headers()

            def __getattribute__(self, name: str) -> object:
                if name in ("__cause__", "__context__", "__suppress_context__", "__dict__"):
                    raise what
                return super().__getattribute__(name)

        type.__setattr__(Ending, "code", end)
        rpc = type("RpcError", (Ending,), {"__module__": "grpc"})
        asks = Rule(name="asks", kind=K.RESOURCE, when=lambda error, known: bool(end()))
        lenient = Classifier(user_rules=[asks, *THROTTLED_RULES, *NETWORK_RULES])
        for error in (Ending(), rpc(), ExceptionGroup("g", [Ending(), rpc()])):
            for facts in ({}, RANK):
                fault = lenient.classify(error, facts)
                assert (fault.kind, fault.rule) == (K.APPLICATION, "rank.raised")
        assert f"raised {type(what).__name__}" in lenient.classify(Ending()).message
        assert not is_retriable(Ending())
        assert backoff_s(Ending(), 1, rules=[asks]) == 1.0

    def test_data_that_ends_the_program_is_unknown(self) -> None:
        class Ending:
            @property
            def type_names(self) -> object:
                raise SystemExit(1)

        fault = classifier.classify(Ending(), WORKER)  # type: ignore[arg-type]  # the test
        assert (fault.kind, fault.rule) == (K.UNKNOWN, "classifier.failed")

    def test_interrupt_while_data_is_read_is_not_swallowed(self) -> None:
        class Interrupted:
            @property
            def type_names(self) -> object:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            classifier.classify(Interrupted(), WORKER)  # type: ignore[arg-type]  # the test

    def test_what_is_no_error_at_all_is_unknown_and_not_lost(self) -> None:
        fault = classifier.classify(42, WORKER)  # type: ignore[arg-type]  # the test
        assert (fault.kind, fault.origin, fault.rule) == (
            K.UNKNOWN,
            Origin.WORKER,
            "classifier.failed",
        )

    def test_data_and_exception_are_judged_alike(self) -> None:
        for error, facts, _, _ in OTHERS:
            record = pickle.loads(pickle.dumps(ErrorRecord.of(error)))
            assert classifier.classify(record, facts) == classifier.classify(error, facts)

    @given(
        names=st.lists(
            st.sampled_from([name for rule in DEFAULT_RULES for name in rule.types] + ["a.B", ""]),
            max_size=4,
        ),
        message=st.text(max_size=20),
        facts=st.dictionaries(
            st.sampled_from(["origin", "phase", "signal", "exit_code", "preempted", "death_cause"]),
            st.sampled_from(
                [*(o.value for o in Origin), "setup", "NODE_DIED", 9, -9, True, None, 1.5, "?"]
            ),
        ),
        cause=st.sampled_from(["builtins.ValueError", "ray.exceptions.ActorDiedError"]),
    )
    def test_any_data_gives_a_fault_and_the_same_one_when_explained(
        self, names: list[str], message: str, facts: Mapping[str, Attribute], cause: str
    ) -> None:
        record = ErrorRecord(
            type_names=tuple(names),
            message=message,
            causes=(ErrorRecord(type_names=(cause,)),),
        )
        fault = classifier.classify(record, facts)
        assert fault.rule != "classifier.failed"
        assert fault == classifier.explain(record, facts).fault
        if facts.get("origin") in {origin.value for origin in Origin}:
            assert fault.origin.value == facts["origin"]
            if fault.origin is Origin.RANK:
                # What a rank may raise besides: a pool that broke, a program that took too long,
                # an engine that died, and an error of Ray that a RayTaskError carries.
                others = ("python.", "gpu.", "ray.actor", "facts.cancelled")
                assert fault.kind in (K.APPLICATION, K.SETUP) or fault.rule.startswith(others)


def test_a_fault_reads_as_one_line() -> None:
    text = str(Classifier().classify(ValueError("first line\nsecond"), {"origin": "rank"}))
    assert text.startswith("APPLICATION by rule ")
    assert text.endswith("builtins.ValueError: first line")


@pytest.mark.parametrize("nodes", [1, 2])
@pytest.mark.parametrize(
    ("error", "facts", "kinds"),
    [
        (ConnectionResetError("reset"), {"origin": "rank"}, (K.APPLICATION, K.PREEMPTION)),
        (ValueError("bug"), {"origin": "rank", "phase": "run"}, (K.APPLICATION, K.PREEMPTION)),
        (TimeoutError("silent"), {"origin": "worker"}, (K.PREEMPTION, K.PREEMPTION)),
        (
            RuntimeError("killed"),
            {"origin": "process", "cancelled_by_us": True},
            (K.CANCELLED, K.CANCELLED),
        ),
    ],
)
def test_classify_node_draining_depends_on_gang_size(
    error: Exception, facts: dict[str, Attribute], kinds: tuple[FaultKind, FaultKind], nodes: int
) -> None:
    told = {**facts, "node_draining": True, "gang_nodes": nodes}
    assert Classifier().classify(error, told).kind is kinds[nodes - 1]


def test_classify_preemption_by_drain_drops_what_the_error_said() -> None:
    error = RuntimeError("a sibling is gone")
    error.non_retryable = True  # type: ignore[attr-defined]
    facts: dict[str, Attribute] = {"origin": "rank", "node_draining": True, "gang_nodes": 2}
    assert "non_retryable" not in Classifier().classify(error, facts).facts
    assert Classifier().classify(error, {"origin": "rank"}).facts["non_retryable"] is True


def test_classify_node_draining_names_the_drain_and_the_kind_without_it() -> None:
    facts: dict[str, Attribute] = {"origin": "rank", "node_draining": True, "gang_nodes": 2}
    told = Classifier().explain(ValueError("bug"), facts)
    assert (told.fault.rule, told.fault.kind) == ("facts.node_draining", K.PREEMPTION)
    assert "about to go away" in told.why
    assert "without the drain: application, by rule 'rank.raised'" in str(told)


def test_classify_user_exception_cannot_claim_that_its_node_drains() -> None:
    error = RuntimeError("bug")
    error.node_draining, error.gang_nodes = True, 2  # type: ignore[attr-defined]
    assert Classifier().classify(error, {"origin": "rank"}).kind is K.APPLICATION
    alone: dict[str, Attribute] = {"origin": "rank", "node_draining": True}
    assert Classifier().classify(error, alone).kind is K.APPLICATION


def test_classify_other_tasks_failure_while_draining_is_preemption() -> None:
    facts: dict[str, Attribute] = {"origin": "rank", "node_draining": True}
    inside = lookalike_task_error(lookalike("NodeDiedError", "gone"))
    assert Classifier().classify(inside, facts).kind is K.PREEMPTION
