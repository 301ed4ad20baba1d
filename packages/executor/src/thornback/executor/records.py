"""What outcomes become when the scheduler says `Record`: completions for the journal. Decides
nothing."""

from __future__ import annotations

from thornback.executor.certifier import Certifier, LiveAssignment
from thornback.executor.plan import RunPlan
from thornback.executor.ports import Completion
from thornback.pool import Outcome
from thornback.scheduler import commands as cmd


class RecordDesk:
    """Holds the outcomes of ranks between `Record` and the commit."""

    def __init__(self, plan: RunPlan, certifier: Certifier, term: int) -> None:
        self._plan = plan
        self._certifier = certifier
        self._term = term
        self._payloads: dict[int, dict[int, Outcome]] = {}

    def keep(self, command: cmd.Record, live: LiveAssignment | None) -> None:
        """Move the outcomes that are to be recorded out of their assignment; the fence has let them
        pass."""
        if live is None or command.state is not cmd.RecordState.DONE:
            return
        kept = self._payloads.setdefault(live.command.assignment, {})
        for rank in (rank for piece in command.ranks for rank in piece):
            kept[rank] = live.outcomes.pop(rank)

    def completion(self, command: cmd.Record, reason: str) -> Completion:
        """Return what to commit; `reason` says why ranks failed or were skipped."""
        stage = self._plan.stages[command.stage].name
        if command.state is not cmd.RecordState.DONE:
            certificate = self._certifier.given_up(command, reason)
            return Completion(
                stage=stage,
                ranks=command.ranks,
                state=command.state.value,
                certificate=certificate,
            )
        assignment = command.assignment or 0
        kept = self._payloads[assignment]
        outcomes = [kept.pop(rank) for piece in command.ranks for rank in piece]
        if not kept:
            del self._payloads[assignment]
        return Completion(
            stage=stage,
            ranks=command.ranks,
            state="done",
            epoch=f"{self._term:06d}.{assignment:09d}",
            results={o.rank: o.result for o in outcomes if o.result is not None},
            outputs=[pair for outcome in outcomes for pair in outcome.outputs],
        )
