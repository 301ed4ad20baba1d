"""The pool's choice of a root cause goes by the same kinds as the classifier, which it must not
import: what one calls a preemption, the other does not take for a lost node."""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping

import pytest

from thornback.faults import Classifier, FaultKind
from thornback.faults.classifier import DEFAULT_RULES
from thornback.faults.kinds import Attribute
from thornback.faults.testing import CASES, RAY_BASES, lookalike, lookalike_task_error
from thornback.pool import SeenBy
from thornback.pool.caught import catch
from thornback.pool.severity import Severity, severity_of

Facts = Mapping[str, Attribute]
Make = Callable[[], BaseException]

CLASSIFIER = Classifier()
GRAVE = {
    FaultKind.PREEMPTION: Severity.PREEMPTION,
    FaultKind.NODE_LOST: Severity.NODE_LOST,
    FaultKind.OOM: Severity.OOM,
    FaultKind.WORKER_CRASH: Severity.WORKER_CRASH,
}
OF_OLD_RAY = ("ExceededError", "EvictedError")
"""How the classes end of which `lookalike` does not know the bases."""
NAMES = tuple(
    dict.fromkeys(
        name
        for name in (*RAY_BASES, *(name for rule in DEFAULT_RULES for name in rule.types))
        if isinstance(name, str) and not name.endswith(OF_OLD_RAY)
    )
)
DEATHS = (
    "RAY_KILL",
    "WORKER_DIED",
    "NODE_DIED",
    "OUT_OF_SCOPE",
    "OOM",
    "RUNTIME_ENV_FAILED",
    "CREATION_TASK_FAILED",
    "ACTOR_UNSCHEDULABLE",
)
FACTS: tuple[Facts, ...] = (
    {},
    *({"death_cause": cause} for cause in DEATHS),
    *(dict[str, Attribute](death_cause=cause, node_draining=True) for cause in DEATHS),
    {"death_cause": "NODE_DIED", "node_draining": False},
    {"node_draining": True},
    {"preempted": True},
    {"preempted": False},
    {"node_death_reason": 3},
    {"node_death_reason": "AUTOSCALER_DRAIN_PREEMPTED", "death_cause": "NODE_DIED"},
    {"node_death_reason": "UNEXPECTED_TERMINATION", "death_cause": "NODE_DIED"},
    {"signal": 9},
    {"signal": 9, "oom_kill": True},
    {"signal": "SIGKILL", "oom_kill": True},
    {"exit_code": -9, "oom_kill": True},
    {"signal": 11, "oom_kill": True},
    {"memory_limit_exceeded": True},
    {"exit_type": "NODE_OUT_OF_MEMORY"},
    {"exit_type": "NODE_OUT_OF_MEMORY", "death_cause": "WORKER_DIED"},
    {"exit_type": "INTENDED_USER_EXIT", "death_cause": "WORKER_DIED"},
    {"exit_type": "INTENDED_SYSTEM_EXIT", "death_cause": "WORKER_DIED"},
    {"exit_type": "SYSTEM_ERROR", "death_cause": "WORKER_DIED"},
    {"actor_init_failed": True, "death_cause": "WORKER_DIED"},
    {"cancelled_by_us": True},
    {"cancelled_by_us": True, "death_cause": "NODE_DIED"},
    {"cancelled_by_us": True, "signal": 9, "oom_kill": True},
)
TEXTS = (
    "",
    "The actor is dead because its node has died. Node Id: 12",
    "The actor died because the actor's node was preempted: a drain",
    "Worker exits with an exit code 1, exit type: INTENDED_USER_EXIT",
    "Worker exit type: INTENDED_SYSTEM_EXIT; the placement group was removed",
    "the actor's placement group was removed",
    "exit type: NODE_OUT_OF_MEMORY: killed by the memory monitor",
    "It was killed by `ray.kill`",
    "the actor failed in its constructor: ModuleNotFoundError",
)


def _caused(error: BaseException, *causes: BaseException) -> BaseException:
    for outer, inner in zip((error, *causes), causes, strict=False):
        outer.__cause__ = inner
    return error


CHAINS: tuple[Make, ...] = (
    lambda: _caused(RuntimeError("lost"), lookalike("NodeDiedError")),
    lambda: _caused(RuntimeError("lost"), RuntimeError("why"), lookalike("ActorDiedError")),
    lambda: _caused(lookalike("ActorDiedError"), lookalike("NodeDiedError")),
    lambda: _caused(lookalike("thornback.pool.WorkerDied"), EOFError()),
    lambda: BaseExceptionGroup("two", [lookalike("ActorDiedError"), lookalike("NodeDiedError")]),
    lambda: BaseExceptionGroup("two", [ValueError(), _caused(LookupError(), EOFError())]),
    lambda: BaseExceptionGroup("none", [ValueError(), lookalike("ActorUnavailableError")]),
    lambda: lookalike_task_error(ValueError("no")),
    lambda: lookalike_task_error(MemoryError()),
    lambda: lookalike_task_error(ConnectionResetError(104, "by peer")),
    lambda: lookalike_task_error(lookalike("ActorDiedError")),
    lambda: _caused(lookalike_task_error(ValueError("no")), EOFError()),
    lambda: _caused(TimeoutError("no answer"), EOFError()),
    lambda: _caused(OSError(errno.EMFILE, "too many files"), EOFError()),
    lambda: _caused(OSError(errno.EHOSTUNREACH, "no route"), ConnectionResetError(104, "")),
    lambda: _caused(OSError(errno.EBADF, "bad file"), EOFError()),
    lambda: OSError(28, "no space"),
    lambda: ConnectionResetError(104, "by peer"),
    lambda: ConnectionRefusedError(111, "by peer"),
)


def assert_agreement(make: Make, facts: Facts, seen_by: SeenBy) -> None:
    error = make()
    fault = CLASSIFIER.classify(error, {**facts, "origin": seen_by.value})
    expected = GRAVE.get(fault.kind, Severity.OTHER)
    for form in (error, catch(error)):
        said = severity_of(form, facts, seen_by)
        assert said is expected, (
            f"{error!r} as {type(form).__name__}, seen by {seen_by.value}, with {dict(facts)}: "
            f"{fault.kind.value} by rule {fault.rule!r}, but {said.name}"
        )


def test_they_agree_on_every_example_that_the_classifier_ships() -> None:
    looked_at = 0
    for make, facts, kind in CASES:
        origin = facts["origin"]
        if origin in ("placement", "driver"):
            continue  # nothing that a pool sees
        known = {name: value for name, value in facts.items() if name not in ("origin", "phase")}
        assert_agreement(make, known, SeenBy(origin))
        said = severity_of(make(), known, SeenBy(origin))
        assert said is GRAVE.get(kind, Severity.OTHER)
        looked_at += 1
    assert looked_at > 20


@pytest.mark.parametrize("facts", FACTS, ids=str)
def test_they_agree_on_every_class_that_a_rule_names(facts: Facts) -> None:
    for name in NAMES:
        error = lookalike(name)
        for seen_by in SeenBy:
            assert_agreement(lambda error=error: error, facts, seen_by)  # type: ignore[misc]  # mypy has no type for a lambda with a default


def test_what_a_rule_knows_stands_for_itself_whatever_it_was_caused_by() -> None:
    for name in NAMES:
        if name.endswith("RayTaskError"):
            continue  # Ray raises it only together with the class of what it carries
        for cause in (EOFError(), MemoryError(), lookalike("NodeDiedError")):
            error = _caused(lookalike(name), cause)
            for seen_by in SeenBy:
                assert_agreement(lambda error=error: error, {}, seen_by)  # type: ignore[misc]  # as above


@pytest.mark.parametrize("text", TEXTS)
def test_they_agree_on_the_texts_of_dead_actors(text: str) -> None:
    for name in ("ActorDiedError", "ActorUnavailableError", "RayActorError", "RaySystemError"):
        for cause in (None, *DEATHS):
            known = {} if cause is None else {"death_cause": cause}
            assert_agreement(
                lambda name=name: lookalike(name, text),  # type: ignore[misc]  # as above
                known,
                SeenBy.WORKER,
            )


@pytest.mark.parametrize("make", CHAINS)
def test_they_agree_on_chains_and_groups(make: Make) -> None:
    for seen_by in SeenBy:
        for facts in ({}, {"death_cause": "NODE_DIED"}):
            assert_agreement(make, facts, seen_by)
