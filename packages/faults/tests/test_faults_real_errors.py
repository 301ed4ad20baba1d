"""What the classifier makes of real errors of real libraries, recorded as data.

`tests/integration/real_errors.py` raises and records them, and says what is expected of each.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from thornback.faults import (
    CUDA_RULES,
    NETWORK_RULES,
    THROTTLED_RULES,
    Classifier,
    ErrorRecord,
    FaultKind,
    RetryPolicy,
    Standing,
    StopReason,
)

ROWS = json.loads((Path(__file__).parent / "real_errors.json").read_text(encoding="utf-8"))
SETS = {"throttled": THROTTLED_RULES, "network": NETWORK_RULES, "cuda": CUDA_RULES}


@pytest.mark.parametrize("row", ROWS, ids=[row["name"] for row in ROWS])
def test_real_error_gets_expected_verdict(row: dict[str, Any]) -> None:
    rules = [rule for name in row["sets"] for rule in SETS[name]]
    fault = Classifier(user_rules=rules).classify(ErrorRecord.from_json(row["record"]))
    assert fault.kind is FaultKind(row["kind"]), fault
    final = fault.facts.get("non_retryable") is True
    assert final is row["final"], fault.facts
    assert fault.facts == {**fault.facts, **row["facts"]}
    # The same facts on an error that nobody expects them of would be as wrong.
    for name in ("secondhand", "gpu_fault", "gpu_context_lost"):
        assert (name in fault.facts) is (name in row["facts"]), name
    verdict = RetryPolicy(retries=5).decide(fault, (), Standing.UNDECIDED, 0.5)
    assert (verdict.stop is StopReason.FINAL) is row["final"]
    if row["facts"].get("secondhand"):
        assert not verdict.blames_node
        assert not verdict.blames_rank
        assert verdict.memory_bytes is None


def test_table_names_every_error_once() -> None:
    names = [row["name"] for row in ROWS]
    assert len(set(names)) == len(names) > 100
    told = [(row["library"], row["error"], *row["sets"]) for row in ROWS]
    assert len(set(told)) == len(told)
