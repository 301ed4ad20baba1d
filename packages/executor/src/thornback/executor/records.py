"""What outcomes become when the scheduler says `Record`: completions for the journal. Decides
nothing."""

from __future__ import annotations

from collections.abc import Sequence

from thornback.executor.certifier import Certifier, LiveAssignment
from thornback.executor.plan import RunPlan
from thornback.executor.ports import Completion
from thornback.faults import RetryVerdict
from thornback.scheduler import commands as cmd


class RecordDesk:
    """Makes them of what the fence of the scheduler has let pass."""

    def __init__(self, plan: RunPlan, certifier: Certifier, term: int) -> None:
        self._plan = plan
        self._certifier = certifier
        self._term = term

    def done(self, command: cmd.Record, live: LiveAssignment) -> Completion:
        """Return what to commit of ranks that are done; their outcomes leave the assignment."""
        outcomes = [live.outcomes.pop(rank) for piece in command.ranks for rank in piece]
        return Completion(
            stage=self._plan.stages[command.stage].name,
            ranks=command.ranks,
            state="done",
            epoch=f"{self._term:06d}.{live.command.assignment:09d}",
            results={o.rank: o.result for o in outcomes if o.result is not None},
            outputs=[pair for outcome in outcomes for pair in outcome.outputs],
            targets=[
                (outcome.rank, target)
                for outcome in outcomes
                for target in live.targets.pop(outcome.rank, ())
            ],
        )

    def ended(
        self, command: cmd.Record, reason: str, verdicts: Sequence[RetryVerdict]
    ) -> Completion:
        """Return what to commit of ranks that failed or were skipped.

        Args:
            command: which ranks.
            reason: why, as the scheduler says it.
            verdicts: those that were given on the event that ended them.
        """
        found = (each.evidence for each in verdicts if each.stop is command.stop)
        evidence = next(found, ()) if command.state is cmd.RecordState.FAILED else ()
        return Completion(
            stage=self._plan.stages[command.stage].name,
            ranks=command.ranks,
            state="failed" if command.state is cmd.RecordState.FAILED else "skipped",
            certificate=self._certifier.given_up(command, reason, evidence),
        )
