"""Every value becomes JSON and comes back, and pickles; what is wrong in JSON is named."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thornback.faults import (
    CUDA_RULES,
    DEFAULT_RULES,
    NETWORK_RULES,
    THROTTLED_RULES,
    Classifier,
    ErrorRecord,
    Explanation,
    Fault,
    FaultBudget,
    FaultKind,
    Origin,
    RetryPolicy,
    RetryVerdict,
    Rule,
    StopReason,
    Trial,
    explain,
)
from thornback.faults.budgets import DEFAULT_BUDGETS
from thornback.faults.kinds import plain_facts
from thornback.faults.memory import MemoryNeed
from thornback.faults.reading import read_failure
from thornback.faults.testing import fault, lookalike, lookalike_task_error
from thornback.faults.text import safe
from thornback.faults.values import Value

words = st.text(max_size=12)
plain = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.floats(allow_nan=False, allow_infinity=False)
    | words
)
attributes = st.dictionaries(words, plain, max_size=4).map(plain_facts)
kinds, origins, flags = st.sampled_from(FaultKind), st.sampled_from(Origin), st.booleans()
counts = st.integers(0, 10**6)
seconds = st.floats(0, 10**6)
encodable = words.map(lambda text: safe(text, 50))
names = st.lists(encodable, max_size=3).map(tuple)

faults = st.builds(
    Fault,
    kind=kinds,
    origin=origins,
    rule=words,
    error_type=encodable,
    message=encodable,
    phase=words,
    facts=attributes,
    traceback=encodable,
)
leaves = st.builds(ErrorRecord, type_names=names, message=encodable, attributes=attributes)
records = st.builds(
    ErrorRecord,
    type_names=names,
    message=encodable,
    traceback=encodable,
    attributes=attributes,
    causes=st.lists(leaves, max_size=2).map(tuple),
    members=st.lists(leaves, max_size=2).map(tuple),
)
budgets = st.builds(
    FaultBudget,
    retries=st.none() | counts,
    remedy=words,
    charged=flags,
    in_total=flags,
    at_once=flags,
    blames_node=flags,
    machine_fault=flags,
    blames_rank=flags,
)
policies = st.builds(
    RetryPolicy,
    retries=counts,
    max_retries=st.none() | counts | st.just("unbounded"),
    memory_bytes=st.none() | st.integers(1, 2**50),
    budgets=st.dictionaries(kinds, budgets, max_size=3),
    max_charged=counts,
    max_free=counts,
    base_delay_s=st.floats(0, 60),
    backoff_factor=st.floats(1, 1000),
    max_retry_after_s=seconds,
    timeout_factor=st.integers(1, 9) | st.floats(1, 1000),
    breaker_after=st.none() | st.integers(1, 99),
)
verdicts = st.builds(
    RetryVerdict,
    retry=flags,
    delay_s=seconds,
    charged=flags,
    blames_rank=flags,
    blames_node=flags,
    machine_fault=flags,
    memory_bytes=st.none() | counts,
    timeout_factor=seconds,
    reason=words,
    signature=words,
    stop=st.none() | st.sampled_from(StopReason),
)
rules = st.builds(
    Rule,
    name=words,
    kind=kinds,
    origins=st.lists(origins, max_size=2).map(tuple),
    types=names,
    facts=st.dictionaries(words, plain | st.lists(plain, max_size=3).map(tuple), max_size=3),
    texts=names,
    nested=st.none() | flags,
    phase=words,
    last_resort=flags,
    why=words,
)
trials = st.builds(Trial, rule=words, error_type=words, mismatch=words)
explanations = st.builds(
    Explanation,
    fault=faults,
    why=words,
    trials=st.lists(trials, max_size=2).map(tuple),
    notes=names,
)
needs = st.builds(MemoryNeed, memory_bytes=st.none() | counts, exhausted=flags)
VALUES = [faults, records, budgets, policies, verdicts, rules, trials, explanations, needs]


def through_json(value: Value) -> Value:
    return type(value).from_json(json.loads(json.dumps(value.as_json(), allow_nan=False)))


@given(st.one_of(VALUES), st.sampled_from([2, pickle.HIGHEST_PROTOCOL]))
def test_every_value_comes_back_from_json_and_from_pickle(value: Value, protocol: int) -> None:
    assert through_json(value) == value
    assert pickle.loads(pickle.dumps(value, protocol)) == value


def test_the_tables_come_back() -> None:
    sets = (*DEFAULT_RULES, *THROTTLED_RULES, *NETWORK_RULES, *CUDA_RULES)
    for value in (*(rule for rule in sets if rule.when is None), *DEFAULT_BUDGETS.values()):
        assert through_json(value) == value
    for rule in sets:
        assert pickle.loads(pickle.dumps(rule)) == rule


ERRORS: list[Callable[[], BaseException]] = [
    lambda: ValueError("password=hunter2x " + "long " * 9000 + "\ud800"),
    lambda: lookalike_task_error(lookalike("NodeDiedError", "x" * 99999)),
    lambda: ExceptionGroup("g", [OSError(28, "full"), KeyError("x")]),
    lambda: lookalike("my.E", retry_after=float("inf"), n=1 << 99, token="s3cr3t"),
]


@pytest.mark.parametrize("make", ERRORS)
def test_what_is_made_of_an_exception_comes_back_as_it_is(
    make: Callable[[], BaseException],
) -> None:
    record = ErrorRecord.of(make())
    told = explain(record, {"origin": "worker", "node": "a", "api_key": "s3cr3t"})
    for value in (record, told, told.fault):
        text = json.dumps(value.as_json(), allow_nan=False)
        assert through_json(value) == value
        assert "hunter2x" not in text
        assert "s3cr3t" not in text
    again = ErrorRecord.from_json(record.as_json())
    classify = Classifier().classify
    assert classify(again, {"origin": "worker"}) == classify(make(), {"origin": "worker"})


def test_an_explanation_says_in_json_what_it_says_to_people() -> None:
    told = explain(lookalike("NodeDiedError", "gone"), {"origin": "worker"}).as_json()
    assert told["why"] == "the node died"
    assert told["fault"]["kind"] == "node_lost"  # type: ignore[index]  # JSON
    assert told["trials"][-1] == {  # type: ignore[index]  # JSON
        "rule": "ray.node_died",
        "error_type": "ray.exceptions.NodeDiedError",
        "mismatch": "",
    }


def test_code_is_no_json() -> None:
    rule = Rule(name="r", kind=FaultKind.OOM, when=lambda error, known: True)
    with pytest.raises(TypeError, match="is code, which cannot become JSON"):
        rule.as_json()


BUDGET = {"retries": 1}
VERDICT = {"retry": True, "reason": "x"}
WRONG: list[tuple[type[Value], object, str]] = [
    (FaultBudget, {}, "a FaultBudget needs 'retries'"),
    (FaultBudget, {**BUDGET, "retires": 2}, "a FaultBudget has no 'retires'; .*: retries, remedy"),
    (FaultBudget, [], r"a FaultBudget is made of a JSON object, not of \[\]"),
    (FaultBudget, {"retries": "1"}, "FaultBudget.retries cannot be '1'"),
    (FaultBudget, {"retries": True}, "FaultBudget.retries cannot be True"),
    (FaultBudget, {**BUDGET, "charged": 1}, "FaultBudget.charged cannot be 1"),
    (FaultBudget, {"retries": -1}, "retries must be an int >= 0"),
    (RetryPolicy, {"max_delay_s": "9"}, "RetryPolicy.max_delay_s cannot be '9'"),
    (RetryPolicy, {"max_retries": "endless"}, "RetryPolicy.max_retries cannot be 'endless'"),
    (RetryPolicy, {"budgets": {"ooom": BUDGET}}, "RetryPolicy.budgets is one of 'preemption', "),
    (RetryPolicy, {"budgets": {"oom": {}}}, "a FaultBudget needs 'retries'"),
    (RetryPolicy, {"budgets": []}, r"RetryPolicy.budgets cannot be \[\]"),
    (Trial, {"rule": 1, "error_type": "", "mismatch": ""}, "Trial.rule cannot be 1"),
    (Rule, {"name": "r", "kind": "oom", "types": "a.B"}, "Rule.types cannot be 'a.B'"),
    (RetryVerdict, {**VERDICT, "avoid_node": True}, "a RetryVerdict has no 'avoid_node'"),
    (RetryVerdict, {**VERDICT, "infrastructure": True}, "a RetryVerdict has no 'infrastructure'"),
    (RetryVerdict, {**VERDICT, "stop": "unlikely"}, "RetryVerdict.stop cannot be 'unlikely'"),
    (Rule, {"name": "r", "kind": "oom", "when": "exec"}, "Rule.when cannot be 'exec'"),
]


@pytest.mark.parametrize(("cls", "data", "message"), WRONG)
def test_what_is_wrong_is_named(cls: type[Value], data: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cls.from_json(data)  # type: ignore[arg-type]  # the test


def test_what_is_left_out_has_its_default_and_an_int_is_a_number() -> None:
    policy = RetryPolicy.from_json({"base_delay_s": 2, "budgets": {"oom": BUDGET}})
    assert policy == RetryPolicy(base_delay_s=2.0, budgets={FaultKind.OOM: FaultBudget(retries=1)})


def test_verdict_of_an_earlier_release_without_signature_is_read() -> None:
    """As long as it has no field that is gone: those are refused by name, like any unknown one."""
    old = {**VERDICT, "charged": False, "blames_node": True, "stop": None}
    expected = RetryVerdict(retry=True, reason="x", charged=False, blames_node=True)
    assert RetryVerdict.from_json(old) == expected
    assert (expected.signature, expected.machine_fault) == ("", False)


def test_certificate_with_a_verdict_of_an_earlier_release_is_read() -> None:
    """`explain` looks at the failure alone: what was decided then may have fields that are gone."""
    failure = fault(FaultKind.OOM, Origin.WORKER, signal=9)
    verdict = {**VERDICT, "avoid_node": True, "infrastructure": True}
    written = {"fault": failure.as_json(), "verdict": verdict, "retried": True}
    read = read_failure(json.dumps(written).encode())
    assert read.facts["origin"] == "worker"
    assert read.facts["signal"] == 9
    assert read.error.message == failure.message
