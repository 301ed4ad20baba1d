"""Every exception class of the installed Ray has a rule of its own. Imports ray, starts nothing."""

from __future__ import annotations

import pickle

import pytest

from thornback.faults import RAY_RULES, Classifier, ErrorRecord, FaultKind, Origin
from thornback.faults.__main__ import main, ray_classes
from thornback.faults.on_ray import unruled
from thornback.faults.testing import RAY_BASES, lookalike_class, lookalike_task_error

exceptions = pytest.importorskip("ray.exceptions")


def test_every_class_is_named_by_a_rule() -> None:
    classes = ray_classes(exceptions.RayError)
    assert len(classes) >= 42
    assert unruled(tuple(classes), RAY_RULES) == ()


def test_the_audit_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit"]) == 0
    assert "0 without a rule" in capsys.readouterr().out


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


@pytest.mark.parametrize("cause", [ValueError("x"), KeyError("x"), exceptions.NodeDiedError("x")])
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
