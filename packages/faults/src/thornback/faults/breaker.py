"""When nothing gets through any more: one stop for all pieces of work. Pure."""

from __future__ import annotations

from thornback.faults.kinds import Fault
from thornback.faults.policy import RetryPolicy
from thornback.faults.verdicts import RetryVerdict


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

    def failed(self, fault: Fault, verdict: RetryVerdict) -> str:
        """Count a fault of any piece of work if it is a `machine_fault`; return `reason`."""
        if verdict.machine_fault:
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
