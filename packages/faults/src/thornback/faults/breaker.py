"""When nothing gets through any more: one stop for all pieces of work. Pure."""

from __future__ import annotations

from thornback.faults.kinds import Fault, FaultKind
from thornback.faults.policy import RetryPolicy

NOT_MACHINES = (
    FaultKind.APPLICATION,
    FaultKind.CANCELLED,
    FaultKind.NETWORK,
    FaultKind.PREEMPTION,
    FaultKind.THROTTLED,
    FaultKind.UNSCHEDULABLE,
)
"""Kinds that say nothing about the machines, or that may befall all pieces of work at once."""


class Breaker:
    """Counts the faults of machines over all pieces of work, until one of them succeeds.

    After `RetryPolicy.breaker_after` in a row it is open, with the reason: what everything dies of
    is not worth a retry of each. It is terminal: a success does not close it again, so that all
    who share it come to an end. Not made for several threads at once.
    """

    def __init__(self, policy: RetryPolicy | None = None) -> None:
        """Start closed. None stands for `RetryPolicy()`."""
        self._limit = (RetryPolicy() if policy is None else policy).breaker_after
        self._in_a_row = 0
        self._reason = ""

    @property
    def reason(self) -> str:
        """Why everything is to stop: one line for people; empty: it is not."""
        return self._reason

    def failed(self, fault: Fault) -> str:
        """Count a fault of any piece of work; return `reason`."""
        if fault.kind not in NOT_MACHINES:
            self._in_a_row += 1
        if not self._reason and self._limit is not None and self._in_a_row >= self._limit:
            self._reason = (
                f"no progress: {self._in_a_row} faults of machines, and no success between;"
                f" the last: {str(fault)[:200]}"
            )
        return self._reason

    def succeeded(self) -> None:
        """Note that a piece of work is done: the machines are not what fails the others."""
        self._in_a_row = 0
