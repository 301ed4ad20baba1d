"""Which of several failures of one gang is its root cause. Pure."""

from __future__ import annotations

import enum
from collections.abc import Mapping

import attrs

from thornback.faults import Classifier, FaultKind
from thornback.pool.ports import Attribute, CaughtError, SeenBy


class Severity(enum.IntEnum):
    """Which of several failures of one gang is the root cause: the highest, and the earliest among
    equals."""

    OTHER = 0
    WORKER_CRASH = 1
    OOM = 2
    NODE_LOST = 3
    PREEMPTION = 4


@attrs.frozen(kw_only=True, slots=True)
class Loss:
    """The death of a member, or the reason why a gang is lost."""

    error: CaughtError | BaseException
    node: str | None = None
    phase: str = "run"
    facts: Mapping[str, Attribute] = attrs.field(factory=dict)


_CLASSIFIER = Classifier()
_GRAVE = {
    FaultKind.WORKER_CRASH: Severity.WORKER_CRASH,
    FaultKind.OOM: Severity.OOM,
    FaultKind.NODE_LOST: Severity.NODE_LOST,
    FaultKind.PREEMPTION: Severity.PREEMPTION,
}


def severity_of(
    error: CaughtError | BaseException, facts: Mapping[str, Attribute], seen_by: SeenBy
) -> Severity:
    """Rank a failure by its kind.

    Args:
        error: what happened.
        facts: what is known besides, as for `thornback.faults.Classifier.classify`.
        seen_by: what the rank's own code raised is OTHER: it says nothing about the gang. Neither
            does what befell another task, and was only met here.
    """
    if seen_by is SeenBy.RANK:
        return Severity.OTHER
    fault = _CLASSIFIER.classify(error, {**facts, "origin": seen_by.value})
    if fault.facts.get("secondhand") is True:
        return Severity.OTHER
    return _GRAVE.get(fault.kind, Severity.OTHER)
