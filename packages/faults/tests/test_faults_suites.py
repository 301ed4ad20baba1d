"""The suites that others run must find what is wrong; the audit; and what is imported."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pytest

import thornback.faults
from thornback.faults import (
    Classifier,
    ErrorData,
    Fault,
    FaultKind,
    Origin,
    RetryPolicy,
    RetryVerdict,
    Standing,
)
from thornback.faults.kinds import Attribute
from thornback.faults.testing import check_classifier, check_retry_policy
from thornback.faults.values import Value


class Forgetful:
    """Ignores who saw the failure."""

    def classify(
        self, error: BaseException | ErrorData, facts: Mapping[str, Attribute], /
    ) -> Fault:
        return Classifier().classify(error, {**facts, "origin": "worker"})


class Leaky:
    """Keeps secrets."""

    def classify(
        self, error: BaseException | ErrorData, facts: Mapping[str, Attribute], /
    ) -> Fault:
        fault = Classifier().classify(error, facts)
        key = facts.get("api_key")
        return fault if key is None else fault.__replace__(message=str(key))


@pytest.mark.parametrize("wrong", [Forgetful(), Leaky(), Classifier(rules=())])
def test_wrong_classifiers_are_found(wrong: Classifier) -> None:
    with pytest.raises(AssertionError):
        check_classifier(wrong)


@dataclass(frozen=True)
class Changed:
    """The default policy with one field of its verdicts changed."""

    field: str
    value: object
    kind: FaultKind | None = None

    def decide(
        self,
        fault: Fault,
        history: Sequence[tuple[Fault, str, Standing]],
        standing: Standing,
        draw: float,
        /,
    ) -> RetryVerdict:
        verdict = RetryPolicy().decide(fault, history, standing, draw)
        if self.kind not in (None, fault.kind):
            return verdict
        changes: dict[str, object] = {self.field: self.value}
        return Value.__replace__(verdict, **changes)


@pytest.mark.parametrize(
    "wrong",
    [
        Changed("retry", True, FaultKind.CANCELLED),
        Changed("retry", True, FaultKind.APPLICATION),
        Changed("charged", True, FaultKind.PREEMPTION),
        Changed("charged", True, FaultKind.SETUP),
        Changed("retry", True, FaultKind.SETUP),
        Changed("delay_s", -1.0),
        Changed("delay_s", float("inf")),
        Changed("reason", ""),
        Changed("reason", "a\nb"),
        Changed("memory_bytes", None, FaultKind.NODE_LOST),
        Changed("memory_bytes", 2**30, FaultKind.OOM),
        Changed("blames_node", 1),
        Changed("machine_fault", None),
        Changed("timeout_factor", 0.5),
    ],
)
def test_wrong_policies_are_found(wrong: Changed) -> None:
    with pytest.raises(AssertionError):
        check_retry_policy(wrong)


def test_nothing_heavy_is_imported() -> None:
    """What attrs and `re` bring is all that the import costs, besides the package itself."""
    code = (
        "import attrs, re, sys; before = set(sys.modules); import thornback.faults;"
        "print(*sorted(set(sys.modules) - before))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    new = {name for name in run.stdout.split() if not name.startswith("thornback")}
    assert new <= {"__future__", "errno"}


def test_exports() -> None:
    assert all(hasattr(thornback.faults, name) for name in thornback.faults.__all__)
    assert [origin.value for origin in Origin] == [
        "rank",
        "process",
        "worker",
        "placement",
        "driver",
    ]
