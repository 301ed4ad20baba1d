"""Used as a stranger would. Never executed: mypy reads it, against the sources and against the
installed wheel."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import assert_type

from thornback.faults import (
    CUDA_RULES,
    DEFAULT_RULES,
    NETWORK_RULES,
    RAY_RULES,
    RAY_VERSIONS,
    THROTTLED_RULES,
    Breaker,
    Classifier,
    ErrorData,
    ErrorRecord,
    Explanation,
    Fault,
    FaultBudget,
    FaultHistory,
    FaultKind,
    Origin,
    RetryPolicy,
    RetryVerdict,
    Rule,
    Standing,
    StopReason,
    Trial,
    backoff_s,
    explain,
    is_retriable,
    root_cause,
)
from thornback.faults.testing import (
    RAY_BASES,
    ClassifierSubject,
    Hostile,
    PolicySubject,
    VerdictSubject,
    check_classifier,
    check_retry_policy,
    fault,
    lookalike,
    lookalike_class,
    lookalike_task_error,
)

Plain = str | int | float | bool | None


def one_line(error: Exception) -> None:
    assert_type(is_retriable(error), bool)
    assert_type(is_retriable(error, rules=NETWORK_RULES), bool)
    assert_type(backoff_s(error, attempt=1), float)
    assert_type(backoff_s(error, 1, draw=0.5), float)
    assert_type(backoff_s(error, 1, rules=[*NETWORK_RULES]), float)
    assert_type(explain(error), Explanation)
    hook: Callable[[BaseException], bool] = is_retriable
    hook(error)


def a_loop(errors: Sequence[BaseException]) -> Sequence[Fault]:
    history = FaultHistory(RetryPolicy(retries=2), Classifier(user_rules=NETWORK_RULES))
    for error in errors:
        verdict = history.failed(error, {"node": "a", "only_node": True}, draw=0.5)
        assert_type(verdict, RetryVerdict)
    assert_type(history.verdicts, tuple[RetryVerdict, ...])
    assert_type(history.faults, tuple[Fault, ...])
    assert_type(root_cause(history.faults), Fault)
    breaker = Breaker(RetryPolicy(breaker_after=5))
    assert_type(breaker.failed(history.faults[0], history.verdicts[0]), str)
    assert_type(breaker.reason, str)
    breaker.succeeded()
    FaultHistory(breaker=breaker).succeeded()
    return FaultHistory().faults


def classify(error: BaseException) -> Fault:
    assert_type(DEFAULT_RULES, tuple[Rule, ...])
    mine = Rule(
        name="mine.busy",
        kind=FaultKind.THROTTLED,
        origins=(Origin.RANK,),
        types=("my.Busy", TimeoutError),
        facts={"code": (7, 8), "signal": None},
        texts=("busy",),
        nested=False,
        when=lambda error, known: known.get("errno") == 5 and "disk" in error.message,
        phase="rank",
        last_resort=False,
        why="the pump is busy",
    )
    classifier = Classifier(rules=[*RAY_RULES, mine], user_rules=(*THROTTLED_RULES, *CUDA_RULES))
    assert_type(RAY_VERSIONS, tuple[str, ...])
    assert_type(classifier.rules, tuple[Rule, ...])
    explanation = classifier.explain(ErrorRecord.of(error), {"origin": "rank", "exit_code": 3})
    assert_type(explanation.trials, tuple[Trial, ...])
    for trial in explanation.trials:
        assert_type((trial.rule, trial.error_type, trial.mismatch), tuple[str, str, str])
    assert_type((explanation.fault, explanation.why), tuple[Fault, str])
    assert_type(explanation.notes, tuple[str, ...])
    return classifier.classify(error)


def look_at(what: Fault) -> str:
    assert_type((what.kind, what.origin), tuple[FaultKind, Origin])
    assert_type((what.rule, what.error_type, what.message), tuple[str, str, str])
    assert_type((what.phase, what.traceback), tuple[str, str])
    assert_type(what.facts, Mapping[str, Plain])
    assert_type(what.as_json(), dict[str, str | dict[str, Plain]])
    assert_type(Fault.from_json(what.as_json()), Fault)
    assert_type(RetryPolicy.from_json(json.loads("{}")), RetryPolicy)
    assert_type(explain(ValueError("x")).as_json(), Mapping[str, object])
    return json.dumps(what.as_json())


def decide(what: Fault) -> float:
    policy = RetryPolicy(
        retries=1,
        max_retries=None,
        memory_bytes=2**30,
        budgets={
            FaultKind.NETWORK: FaultBudget(
                retries=None,
                remedy="after a pause",
                charged=True,
                in_total=False,
                at_once=False,
                blames_node=False,
                machine_fault=False,
                blames_rank=False,
            )
        },
        max_charged=10,
        max_free=10,
        base_delay_s=1,
        backoff_factor=2,
        max_delay_s=60,
        max_retry_after_s=900,
        timeout_factor=1.5,
        breaker_after=None,
    )
    RetryPolicy(max_retries="unbounded")
    assert_type(policy.budget(FaultKind.OOM).retries, int | None)
    assert_type(policy.delay_s(what, 0, 0.5), float)
    verdict = policy.decide(what, [(what, "node-a", Standing.OPEN)], Standing.RANK, 0.5)
    assert_type((verdict.retry, verdict.charged, verdict.machine_fault), tuple[bool, bool, bool])
    assert_type((verdict.blames_rank, verdict.blames_node), tuple[bool, bool])
    assert_type((verdict.memory_bytes, verdict.reason), tuple[int | None, str])
    assert_type((verdict.stop, verdict.signature), tuple[StopReason | None, str])
    return verdict.delay_s * verdict.timeout_factor


class MyError:
    """An exception that came over a wire."""

    type_names = ("my.Error", "builtins.Exception", "builtins.BaseException")
    message = "broken"
    traceback = ""
    attributes: Mapping[str, Plain] = {"errno": 5}
    causes: Sequence[ErrorData] = ()
    members: Sequence[ErrorData] = ()


class MyClassifier:
    def classify(self, error: BaseException | ErrorData, facts: Mapping[str, Plain], /) -> Fault:
        return fault(FaultKind.UNKNOWN, Origin.RANK, exit_code=3)


class MyVerdict:
    retry = False
    delay_s = 0.0
    charged = True
    machine_fault = True
    blames_rank = False
    blames_node = False
    memory_bytes: int | None = None
    timeout_factor = 1.0
    reason = "never"
    signature = ""


class MyPolicy:
    def decide(
        self,
        fault: Fault,
        history: Sequence[tuple[Fault, str, Standing]],
        standing: Standing,
        draw: float,
        /,
    ) -> MyVerdict:
        return MyVerdict()


def protocols() -> None:
    data: ErrorData = MyError()
    record = ErrorRecord(
        type_names=("my.Error",),
        message="broken",
        traceback="",
        attributes={"errno": 5},
        causes=(ErrorRecord(type_names=("builtins.OSError",)),),
        members=(),
    )
    classifiers: list[ClassifierSubject] = [MyClassifier(), Classifier()]
    policies: list[PolicySubject] = [MyPolicy(), RetryPolicy()]
    verdicts: list[VerdictSubject] = [MyVerdict(), RetryVerdict(retry=False, reason="never")]
    for each in (data, record):
        assert_type(is_retriable(each), bool)
    copied = ErrorRecord.of(data)
    assert_type((copied.message, copied.traceback), tuple[str, str])
    assert_type((copied.type_names, copied.attributes), tuple[tuple[str, ...], Mapping[str, Plain]])
    assert_type((*copied.causes, *copied.members), tuple[ErrorRecord, ...])
    for classifier in classifiers:
        check_classifier(classifier)
    for policy in policies:
        check_retry_policy(policy, most_retries=100)
    assert_type([verdict.reason for verdict in verdicts], list[str])


def lookalikes() -> None:
    assert_type(lookalike("ActorDiedError", "gone", preempted=True), BaseException)
    assert_type(lookalike_class("my.Error"), type[BaseException])
    assert_type(lookalike_task_error(ValueError("x")), BaseException)
    assert_type(RAY_BASES, Mapping[str, tuple[str, ...]])
    raise Hostile("cannot be printed")
