"""What the driver remembers for people: certificates of failed attempts and the verdicts on them.
Decides nothing."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from thornback.executor.plan import merge_ranks
from thornback.executor.report import AttemptReport, GivenUp
from thornback.faults import Fault, RetryPolicy, RetryVerdict, Standing, StopReason

MAX_ATTEMPTS_KEPT = 10_000


class Witness:
    """Notes the verdicts that a policy gives, so that they can be told; gives them on unchanged."""

    def __init__(self, policy: RetryPolicy, verdicts: list[RetryVerdict]) -> None:
        self._policy = policy
        self._verdicts = verdicts

    def decide(
        self,
        fault: Fault,
        history: Sequence[tuple[Fault, str, Standing]],
        standing: Standing,
        draw: float,
        /,
    ) -> RetryVerdict:
        """Return what the policy decides (fulfils `thornback.scheduler.ports.RetryPolicy`)."""
        verdict = self._policy.decide(fault, history, standing, draw)
        self._verdicts.append(verdict)
        return verdict


@attrs.define(slots=True)
class Chronicle:
    """The failed attempts of a run, oldest first, and the last one of each rank that failed."""

    attempts: list[AttemptReport] = attrs.field(factory=list)
    given_up: list[GivenUp] = attrs.field(factory=list)
    stopped: dict[str, StopReason] = attrs.field(factory=dict)
    """Stages that were stopped, by name."""
    _more: dict[str, list[range]] = attrs.field(factory=dict)
    """Ranks that were given up beyond the first 10,000 records, by stage."""
    _last: dict[tuple[str, int], AttemptReport] = attrs.field(factory=dict)
    _last_of_stage: dict[str, AttemptReport] = attrs.field(factory=dict)

    def add(self, attempt: AttemptReport) -> None:
        """Keep a certificate: the first 10,000 whole, of later ones the last of a rank, short."""
        if len(self.attempts) < MAX_ATTEMPTS_KEPT:
            self.attempts.append(attempt)
        else:
            attempt = _short(attempt)
        if attempt.rank is not None:
            self._last[attempt.stage, attempt.rank] = attempt
        self._last_of_stage[attempt.stage] = attempt

    def take_last(self, stage: str, rank: int) -> AttemptReport | None:
        """Return the last failed attempt of a rank, and forget it: the rank is settled."""
        return self._last.pop((stage, rank), None)

    def last_of(self, stage: str) -> AttemptReport | None:
        """Return the last failed attempt of a stage, or the last gang it lost."""
        return self._last_of_stage.get(stage)

    def give_up(self, ended: GivenUp) -> None:
        """Keep which ranks were given up: with their certificate up to 10,000, then bare."""
        if len(self.given_up) < MAX_ATTEMPTS_KEPT:
            self.given_up.append(ended)
        else:
            self._more.setdefault(ended.stage, []).extend(ended.ranks)

    def all_given_up(self) -> tuple[GivenUp, ...]:
        """Return all of them; what exceeds 10,000 as one per stage."""
        return (
            *self.given_up,
            *(
                GivenUp(
                    stage=stage,
                    ranks=merge_ranks([rank for piece in pieces for rank in piece]),
                    reason="more ranks were given up: their certificates are in the journal",
                )
                for stage, pieces in self._more.items()
            ),
        )


def _short(attempt: AttemptReport) -> AttemptReport:
    fault = Fault(
        kind=attempt.fault.kind,
        origin=attempt.fault.origin,
        rule=attempt.fault.rule,
        error_type=attempt.fault.error_type,
        message=attempt.fault.message[:200],
        phase=attempt.fault.phase,
        facts=attempt.fault.facts,
    )
    return attrs.evolve(attempt, log_tail="", fault=fault)
