"""The history of one piece of work, for retry loops that keep none of their own. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from thornback.faults.classifier import Classifier
from thornback.faults.kinds import Attribute, ErrorData, Fault
from thornback.faults.policy import RetryPolicy, RetryVerdict


class FaultHistory:
    """What one call, or task, has been through: its faults, and the verdict on each.

    A retry loop makes one for each call and tells it of every failure; policy and classifier may be
    shared by any number of histories. A history is not made for several threads at once.
    """

    def __init__(
        self, policy: RetryPolicy | None = None, classifier: Classifier | None = None
    ) -> None:
        """Start with no failure. None stands for `RetryPolicy()` and for `Classifier()`."""
        self._policy = RetryPolicy() if policy is None else policy
        self._classifier = Classifier() if classifier is None else classifier
        self._past: list[tuple[Fault, str]] = []
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
        verdict = self._policy.decide(fault, self._past, draw)
        node = fault.facts.get("node")
        self._past.append((fault, node if isinstance(node, str) else ""))
        self._verdicts.append(verdict)
        return verdict

    @property
    def faults(self) -> tuple[Fault, ...]:
        """Every failure it was told of, classified, oldest first."""
        return tuple(fault for fault, _ in self._past)

    @property
    def verdicts(self) -> tuple[RetryVerdict, ...]:
        """What was decided about each of `faults`."""
        return tuple(self._verdicts)
