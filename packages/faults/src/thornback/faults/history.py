"""The history of one piece of work, for retry loops that keep none of their own. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from thornback.faults.breaker import Breaker
from thornback.faults.classifier import Classifier
from thornback.faults.kinds import Attribute, ErrorData, Fault
from thornback.faults.policy import RetryPolicy
from thornback.faults.verdicts import RetryVerdict, Standing, StopReason


class FaultHistory:
    """What one call, or task, has been through: its faults, and the verdict on each.

    A retry loop makes one for each call and tells it of every failure; policy, classifier and
    breaker may be shared by any number of histories. One call collects no evidence about machines,
    so the ordinary budget of each kind decides. Not for several threads at once.
    """

    def __init__(
        self,
        policy: RetryPolicy | None = None,
        classifier: Classifier | None = None,
        breaker: Breaker | None = None,
    ) -> None:
        """Start with no failure. None stands for `RetryPolicy()`, `Classifier()`, no breaker."""
        self._policy = RetryPolicy() if policy is None else policy
        self._classifier = Classifier() if classifier is None else classifier
        self._breaker = breaker
        self._past: list[tuple[Fault, str, Standing]] = []
        self._verdicts: list[RetryVerdict] = []

    def failed(
        self,
        error: BaseException | ErrorData,
        facts: Mapping[str, Attribute] | None = None,
        /,
        *,
        draw: float = 1.0,
    ) -> RetryVerdict:
        """Return what shall be done about a failure, and remember it. Never raises an `Exception`.

        Args:
            error: what was raised, or its data.
            facts: what is known besides: see `Classifier.classify`. `node` says where it happened.
            draw: give `random.random()` for full jitter; 1: the longest pause.
        """
        fault = self._classifier.classify(error, facts)
        verdict = self._policy.decide(fault, self._past, Standing.UNDECIDED, draw)
        stop = "" if self._breaker is None else self._breaker.failed(fault, verdict)
        if stop and verdict.retry:
            reason = f"{fault.kind.value}: given up: {stop}"
            verdict = verdict.__replace__(retry=False, stop=StopReason.NO_PROGRESS, reason=reason)
        node = fault.facts.get("node")
        self._past.append((fault, node if isinstance(node, str) else "", Standing.UNDECIDED))
        self._verdicts.append(verdict)
        return verdict

    def succeeded(self) -> None:
        """Tell the breaker, if there is one, that something gets through."""
        if self._breaker is not None:
            self._breaker.succeeded()

    @property
    def faults(self) -> tuple[Fault, ...]:
        """Every failure it was told of, classified, oldest first."""
        return tuple(fault for fault, _, _ in self._past)

    @property
    def verdicts(self) -> tuple[RetryVerdict, ...]:
        """What was decided about each of `faults`."""
        return tuple(self._verdicts)
