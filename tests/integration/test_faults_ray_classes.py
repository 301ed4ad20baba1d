"""The names in the rules are those of what is installed: Ray, our own packages, HTTP clients.

Imports ray, starts nothing.
"""

from __future__ import annotations

import importlib
import inspect
import pickle
import sys
from pathlib import Path

import pytest
import ray

from thornback.faults import (
    CUDA_RULES,
    DEFAULT_RULES,
    NETWORK_RULES,
    RAY_RULES,
    RAY_VERSIONS,
    THROTTLED_RULES,
    Classifier,
    ErrorRecord,
    FaultKind,
    Origin,
    root_cause,
)
from thornback.faults.__main__ import MODULES, main, ray_classes
from thornback.faults.on_ray import unruled
from thornback.faults.records import public_name
from thornback.faults.testing import CASES, RAY_BASES, lookalike_class, lookalike_task_error
from thornback.pool.ports import CaughtError, SeenBy
from thornback.pool.severity import Severity, severity_of

exceptions = pytest.importorskip("ray.exceptions")

ALL = (*THROTTLED_RULES, *NETWORK_RULES, *CUDA_RULES, *DEFAULT_RULES)
NAMED = sorted({str(name) for rule in ALL for name in rule.types})
GONE = {
    "ray.exceptions.ObjectReconstructionFailedMaxAttemptsExceededError",
    "ray.exceptions.ObjectReconstructionFailedLineageEvictedError",
}
"""Of older releases of Ray."""


def test_every_class_is_named_by_a_rule() -> None:
    """A new class of Ray makes this fail: give it a rule, then add the release to RAY_VERSIONS."""
    loaded = [name for name in MODULES if name in sys.modules]
    classes = ray_classes(exceptions.RayError, loaded)
    assert len(classes) >= 42
    assert unruled(tuple(classes), RAY_RULES) == ()


def test_the_rules_were_checked_against_this_release() -> None:
    assert ray.__version__ in RAY_VERSIONS
    numbers = [tuple(map(int, version.split("."))) for version in RAY_VERSIONS]
    assert numbers == sorted(numbers)


def test_a_class_that_no_rule_names_is_found() -> None:
    new = type("NewError", (exceptions.RayError,), {"__module__": "ray.exceptions"})
    assert unruled(tuple(ray_classes(new)), RAY_RULES) == ("ray.exceptions.NewError",)


def test_the_audit_lists_each_class_with_the_rule_that_catches_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["audit"]) == 0
    printed = capsys.readouterr().out
    assert "0 without a rule" in printed
    assert f"checked against: {', '.join(RAY_VERSIONS)}" in printed
    rules = {line.split()[0]: line.split()[-1] for line in printed.splitlines()}
    names = {rule.name for rule in RAY_RULES}
    for name in ray_classes(exceptions.RayError):
        assert rules[name] in names, name


@pytest.mark.parametrize("name", [name for name in NAMED if name not in GONE])
def test_a_class_that_a_rule_names_is_there(name: str) -> None:
    """Where its package is installed; a rule for a class that nobody has would never be used."""
    module, _, short = name.rpartition(".")
    package = ".".join(name.split(".")[:2]) if name.startswith("thornback.") else module
    try:
        loaded = importlib.import_module(package)
    except ImportError:
        top = name.partition(".")[0]
        assert top not in {"thornback", "asyncio", "builtins", "requests", "huggingface_hub"}
        pytest.skip(f"{package} is not installed")
    found = getattr(loaded, short, None)
    if name.startswith("thornback.") and found is None:
        # Errors of the pool are data: only their names are ever made. Classes of private modules
        # go by the name that they would be exported under.
        folder = Path(inspect.getfile(loaded)).parent
        sources = [path.read_text(encoding="utf-8") for path in folder.rglob("*.py")]
        made = (f'"{short}"', f"pool.{short}", f"class {short}(")
        assert any(each in text for text in sources for each in made)
    elif name != "pickle.PickleError":  # In `_pickle`, where that can be imported.
        assert isinstance(found, type)
        assert issubclass(found, BaseException)
        assert name in {public_name(f"{c.__module__}.{c.__qualname__}") for c in found.__mro__}


def test_the_roster_and_the_classifier_agree_on_the_root_cause() -> None:
    """Of two failures of a gang, the one that the pool reports is the one that we would choose."""
    seen = []
    for make, facts, _ in CASES:
        origin = str(facts["origin"])
        # That a node drains is for the driver to know, which looks at the pool's choice.
        if origin not in ("process", "worker") or "node_draining" in facts:
            continue
        error = make()
        if isinstance(error, BaseExceptionGroup) or error.__cause__ is not None:
            continue
        record = ErrorRecord.of(error)
        caught = CaughtError(
            type_names=record.type_names, message=record.message, attributes=record.attributes
        )
        fault = Classifier().classify(caught, facts)
        seen.append((fault, severity_of(caught, facts, SeenBy(origin))))
    assert len(seen) > 8
    for one, one_rank in seen:
        for other, other_rank in seen:
            if one_rank > max(other_rank, Severity.WORKER_CRASH):
                assert root_cause([other, one]) is one


def test_lookalikes_have_the_names_of_the_real_classes() -> None:
    for name in RAY_BASES:
        cls = getattr(exceptions, name)
        # Its own arguments do not matter here.
        real = ErrorRecord.of(cls.__new__(cls))
        assert ErrorRecord.of(lookalike_class(name)("x")).type_names == real.type_names
    real_names = {name for name in ray_classes(exceptions.RayError) if "ray.exceptions." in name}
    assert real_names == {f"ray.exceptions.{name}" for name in RAY_BASES}


def test_live_exceptions_of_ray() -> None:
    classifier = Classifier()
    preempted = exceptions.RayActorError("id", "gone", preempted=True)
    fault = classifier.classify(preempted, {"origin": "worker"})
    assert (fault.kind, fault.message) == (FaultKind.PREEMPTION, "gone")
    init = exceptions.RayActorError("id", "ImportError: x", actor_init_failed=True)
    assert classifier.classify(init).kind is FaultKind.SETUP
    assert classifier.classify(exceptions.OutOfMemoryError("x")).kind is FaultKind.OOM
    timeout = exceptions.GetTimeoutError("x")
    assert classifier.classify(timeout).kind is FaultKind.TIMEOUT


@pytest.mark.parametrize("cause", [ValueError("x"), KeyError("x"), exceptions.RayError("x")])
def test_the_real_task_error_is_unwrapped(cause: Exception) -> None:
    wrapped = exceptions.RayTaskError("f", "Traceback\n", cause, "title", 1, "ip")
    for error in (wrapped, wrapped.as_instanceof_cause()):
        record = pickle.loads(pickle.dumps(ErrorRecord.of(error)))
        fault = Classifier().classify(record)
        assert (fault.kind, fault.origin) == (FaultKind.APPLICATION, Origin.RANK)
        assert fault.error_type == f"{type(cause).__module__}.{type(cause).__qualname__}"
    if not isinstance(cause, exceptions.RayError):
        dual = ErrorRecord.of(wrapped.as_instanceof_cause()).type_names
        assert ErrorRecord.of(lookalike_task_error(cause)).type_names == dual
