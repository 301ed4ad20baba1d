"""How grave a failure of a gang is: by the kind that the classifier gives it."""

from __future__ import annotations

import pytest

from thornback.faults.kinds import Attribute
from thornback.faults.testing import CASES, lookalike, lookalike_task_error
from thornback.pool import SeenBy
from thornback.pool.caught import catch
from thornback.pool.severity import Severity, severity_of


@pytest.mark.parametrize("seen_by", [SeenBy.PROCESS, SeenBy.WORKER])
def test_severity_follows_the_kind_of_the_classifier(seen_by: SeenBy) -> None:
    looked_at = 0
    for make, facts, kind in CASES:
        if facts["origin"] != seen_by.value:
            continue
        known = {name: value for name, value in facts.items() if name not in ("origin", "phase")}
        grave = kind.name if kind.name in Severity.__members__ else "OTHER"
        for form in (make(), catch(make())):
            assert severity_of(form, known, seen_by).name == grave
        looked_at += 1
    assert looked_at >= 3


def test_severity_of_what_rank_code_raised_is_other() -> None:
    facts: dict[str, Attribute] = {"signal": 9, "oom_kill": True}
    died = lookalike("concurrent.futures.process.BrokenProcessPool")
    assert severity_of(died, facts, SeenBy.RANK) is Severity.OTHER


def test_severity_of_a_fault_of_another_task_is_other() -> None:
    error = lookalike_task_error(lookalike("NodeDiedError"))
    assert severity_of(error, {}, SeenBy.WORKER) is Severity.OTHER
    assert severity_of(lookalike("NodeDiedError"), {}, SeenBy.WORKER) is Severity.NODE_LOST
