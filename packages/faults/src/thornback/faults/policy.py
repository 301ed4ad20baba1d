"""What shall be done about a fault: again or not, when, where, with what; and who is to blame. Pure.

Only charged faults (and, if the caller keeps them, preemptions) are in the history: it is all that a
decision rests on, besides the fault itself. Budgets count retries: a kind with `retries=3` may occur
three times, the fourth time the rank is given up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import attrs

from thornback.faults.budgets import DEFAULT_BUDGETS, FaultBudget
from thornback.faults.classifier import Classifier
from thornback.faults.kinds import Fault, FaultKind, Origin
from thornback.faults.memory import memory_need

History = Sequence[tuple[Fault, str]]
GANG_PHASES = ("start", "ping", "heartbeat", "recall", "close")
PATIENT = (FaultKind.THROTTLED, FaultKind.NETWORK, FaultKind.UNAVAILABLE)


@attrs.frozen(kw_only=True, slots=True)
class RetryVerdict:
    """What shall be done. Fulfils the `Verdict` of a scheduler; the meaning of each field is there."""

    retry: bool
    delay_s: float = 0.0
    charged: bool = True
    blames_rank: bool = False
    blames_node: bool = False
    avoid_node: bool = False
    memory_bytes: int | None = None
    """Per rank; None: what the stage asks for. Kept for all further retries of the rank."""
    timeout_factor: float = 1.0
    reason: str


def _at_least(least: float, what: str) -> object:
    def check(instance: object, attribute: attrs.Attribute[float], value: object) -> None:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if value is not None and not (number and value >= least):  # type: ignore[operator]  # number
            raise ValueError(f"{attribute.name} must be {what} >= {least:g}, not {value!r}.")

    return check
