"""Which of several failures of one gang is its root cause. Pure."""

from __future__ import annotations

import enum
from collections.abc import Mapping

import attrs

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


_PREEMPTED = (3, "AUTOSCALER_DRAIN_PREEMPTED")


def severity_of(
    error: CaughtError | BaseException, facts: Mapping[str, Attribute], seen_by: SeenBy
) -> Severity:
    """Rank a failure by plain facts, in the words of the classifier, which this package must not
    import.

    It decides only *which* failure of a gang is reported; what that one means is classified later,
    from the same data.
    """
    if isinstance(error, CaughtError):
        names = [name.rpartition(".")[2] for name in error.type_names]
        known = {**error.attributes, **facts}
    else:
        names = [c.__name__ for c in type(error).__mro__]
        known = {"preempted": getattr(error, "preempted", None) is True, **facts}
    if seen_by is SeenBy.RANK:
        return Severity.OTHER
    cause = known.get("death_cause")
    if known.get("preempted") is True or known.get("node_death_reason") in _PREEMPTED:
        return Severity.PREEMPTION
    if cause == "NODE_DIED":
        return Severity.NODE_LOST
    kernel = known.get("oom_kill") is True and known.get("signal") == 9
    limit = known.get("memory_limit_exceeded") is True
    monitor = cause == "OOM" or known.get("exit_type") == "NODE_OUT_OF_MEMORY"
    if kernel or limit or monitor or "OutOfMemoryError" in names:
        return Severity.OOM
    if seen_by is SeenBy.WORKER or "RankProcessDied" in names:
        return Severity.WORKER_CRASH
    return Severity.OTHER
