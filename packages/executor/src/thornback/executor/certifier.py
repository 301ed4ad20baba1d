"""Writes the certificate of every failed attempt and lost gang, and tells it. Decides nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import anyio
import attrs

from thornback.executor.chronicle import Chronicle
from thornback.executor.plan import RunPlan
from thornback.executor.ports import Attribute, Classifier, Json, Ranks
from thornback.executor.report import LOG_END, AttemptReport, GivenUp
from thornback.executor.tracing import RunTracer
from thornback.executor.watching import Watchers
from thornback.faults import ErrorData, Fault, RetryVerdict, WeighedFault
from thornback.pool import Outcome, RunningRank
from thornback.scheduler import commands as cmd
from thornback.scheduler import events as ev

Reason: TypeAlias = Callable[[int, int], str]
"""Says why a rank (stage, rank) was given up: `Scheduler.reason`."""


@attrs.define(slots=True, eq=False)
class LiveAssignment:
    """An assignment that was handed over, while it owes anything."""

    command: cmd.Dispatch
    epoch: str
    outcomes: dict[int, Outcome] = attrs.field(factory=dict)
    """Reported, and not yet handled by the scheduler."""
    targets: dict[int, tuple[int, ...]] = attrs.field(factory=dict)
    """By rank: hashes of the final names that a reported outcome has published."""
    preparing: anyio.CancelScope | None = None
    """Around what may have to be waited for before that."""
    handed: anyio.Event = attrs.field(factory=anyio.Event)
    """The workers have it: from now on it can be recalled."""
    ended: anyio.Event = attrs.field(factory=anyio.Event)
    """Its last report is in the inbox, or will never come."""
    seen: dict[str, RunningRank] = attrs.field(factory=dict)
    """By node: what the last sign of life said of it."""
    killed: bool = False
    """We have recalled it with a kill: what goes wrong from then on is our own doing."""


def no_logs(gang: int, log_path: str, /) -> str:
    """Say that a log was not shipped."""
    return ""


def fault_of(
    classifier: Classifier,
    outcome: Outcome,
    *,
    only_node: bool,
    killed: bool = False,
    drain: Mapping[str, Attribute] | None = None,
) -> Fault:
    """Classify a failed outcome.

    Args:
        classifier: that knows the rules.
        outcome: what the workers reported.
        only_node: there is no other node to try it on.
        killed: we had recalled its assignment with a kill.
        drain: facts about a drain of the gang's nodes; None: there is none.
    """
    error: BaseException | ErrorData = outcome.error or RuntimeError("failed without an error")
    facts: dict[str, Attribute] = {
        "origin": outcome.seen_by.value,
        "phase": outcome.phase,
        "peak_rss_bytes": outcome.peak_rss_bytes,
        "node": outcome.node,
        "only_node": only_node,
        **(drain or {}),
    }
    if killed:
        facts["cancelled_by_us"] = True
    if outcome.healthy_before:
        facts["healthy_before"] = True
    if outcome.error is not None:
        told = ("signal", "exit_code", "oom_kill", "memory_limit_exceeded", "user_frame")
        facts |= {k: v for k, v in outcome.error.attributes.items() if k in told}
    return classifier.classify(error, facts)


class Certifier:
    """Keeps the chronicle of a run.

    `log_url` says where the log of a gang with that path on its node is kept; empty: nowhere.
    """

    def __init__(
        self,
        plan: RunPlan,
        tracer: RunTracer,
        watchers: Watchers,
        log_url: Callable[[int, str], str],
    ) -> None:
        self.chronicle = Chronicle()
        self._plan = plan
        self._tracer = tracer
        self._watchers = watchers
        self._log_url = log_url
        self._wanted_by: dict[int, str] = {}

    def gang_asked(self, command: cmd.OpenGang) -> None:
        """Note for which stage a gang was asked: it may be lost before it is given work."""
        self._wanted_by[command.gang] = self._plan.stage_of_shape(command.shape)

    def rank_failed(
        self,
        event: ev.RankFailed[Fault],
        verdict: RetryVerdict,
        commands: Sequence[cmd.Command],
        live: LiveAssignment,
        reason: Reason,
    ) -> None:
        """Certify the failed attempt of a rank; `reason` as for `gang_lost`."""
        outcome = live.outcomes[event.rank]
        stage = live.command.stage
        given_up = _end_of(commands, stage, event.rank)
        why = verdict.reason if given_up is None else reason(stage, event.rank)
        self._tell(
            AttemptReport(
                stage=self._plan.stages[stage].name,
                rank=event.rank,
                attempt=live.command.attempt,
                epoch=live.epoch,
                gang=live.command.gang,
                node=event.node,
                fault=event.fault,
                verdict=why,
                retried=verdict.retry and given_up is None,
                stop=verdict.stop if given_up is None else given_up.stop,
                ran_s=event.ran_s,
                pid=outcome.pid,
                peak_rss_bytes=outcome.peak_rss_bytes,
                log_tail=outcome.log_tail,
                log_path=outcome.log_path,
                log_url=self._log_url(live.command.gang, outcome.log_path),
                log_slice=outcome.log_slice,
            )
        )

    def gang_lost(
        self,
        event: ev.GangLost[Fault],
        verdicts: Sequence[RetryVerdict],
        commands: Sequence[cmd.Command],
        lost: Sequence[tuple[LiveAssignment, Ranks]],
        reason: Reason,
    ) -> None:
        """Certify each assignment that was lost with the gang; the gang itself if it had none.

        Args:
            event: the loss.
            verdicts: on the gang, then on the ranks that pay for it.
            commands: what the scheduler did about it.
            lost: the assignments of the gang with the ranks that they owed.
            reason: why a rank (stage, rank) was given up.
        """
        self._tracer.gang_lost(event.gang, event.fault)
        report = AttemptReport(
            stage=self._wanted_by[event.gang],
            rank=None,
            attempt=1,
            epoch="",
            gang=event.gang,
            node=event.node or "",
            fault=event.fault,
            verdict=verdicts[0].reason,
            retried=verdicts[0].retry,
            stop=verdicts[0].stop,
        )
        again = next((v.reason for v in verdicts[1:] if v.retry), verdicts[0].reason)
        for live, ranks in lost:
            stage = live.command.stage
            alone = ranks[0].start if sum(map(len, ranks)) == 1 else None
            # Of several all are given up, with their stage, or none.
            gone = _end_of(commands, stage, ranks[0].start) if ranks else None
            why = again if gone is None else reason(stage, ranks[0].start)
            told = attrs.evolve(
                report,
                stage=self._plan.stages[stage].name,
                rank=alone,
                attempt=live.command.attempt,
                epoch=live.epoch,
                verdict=why,
                retried=gone is None,
                stop=None if gone is None else gone.stop,
                lost_ranks=ranks,
            )
            self._tell(self._with_log(told, live, event.node))
            self._tracer.assignment_ended(live.command.assignment, ranks, event.fault)
        if not lost:
            self._tell(_opening(report, commands, reason))

    def _with_log(
        self, report: AttemptReport, live: LiveAssignment, node: str | None
    ) -> AttemptReport:
        """Add where the process wrote that ran one of the lost ranks on the lost node."""
        seen = live.seen.get(node or "")
        if seen is None or not any(seen.rank in piece for piece in report.lost_ranks):
            return report
        return attrs.evolve(
            report,
            pid=seen.pid,
            log_path=seen.log_path,
            log_url=self._log_url(report.gang, seen.log_path),
            log_slice=(seen.log_start, LOG_END) if seen.log_path else (0, 0),
        )

    def given_up(
        self, command: cmd.Record, reason: str, evidence: Sequence[WeighedFault]
    ) -> dict[str, Json]:
        """Note that ranks are recorded as failed or skipped; return the certificate to record.

        Args:
            command: which ranks.
            reason: why, for people.
            evidence: all faults of the rank, and whom each counts against.
        """
        stop = command.stop
        stage = self._plan.stages[command.stage].name
        last = self.chronicle.take_last(stage, command.ranks[0].start)
        if command.state is cmd.RecordState.FAILED:
            last = last or _loss_behind(reason, self.chronicle.last_of(stage))
            self.chronicle.give_up(
                GivenUp(
                    stage=stage,
                    ranks=command.ranks,
                    reason=reason,
                    stop=stop,
                    last=last,
                    evidence=tuple(evidence),
                )
            )
            last = last or self.chronicle.last_of(stage)
        elif stop is not None:
            self.chronicle.stopped[stage] = stop
        return {
            "reason": reason,
            "stop": None if stop is None else stop.value,
            "last": None if last is None else last.as_json(),
            "evidence": [
                {"kind": e.kind.value, "node": e.node, "standing": e.standing and e.standing.value}
                for e in evidence
            ],
        }

    def _tell(self, attempt: AttemptReport) -> None:
        self.chronicle.add(attempt)
        self._watchers.tell(lambda observer: observer.failed(attempt))


def _opening(
    report: AttemptReport, commands: Sequence[cmd.Command], reason: Reason
) -> AttemptReport:
    """Return the certificate of a gang that held nothing. Its loss may end what waits for it though
    the policy would ask again."""
    for command in commands if report.retried else ():
        if isinstance(command, cmd.Record) and command.state is cmd.RecordState.FAILED:
            why = reason(command.stage, command.ranks[0].start)
            return attrs.evolve(report, verdict=why, retried=False, stop=command.stop)
    return report


def _loss_behind(reason: str, last: AttemptReport | None) -> AttemptReport | None:
    """Return the last failure of a stage if it is the loss of a gang which ended ranks for this
    reason: those that had not begun have no failed attempt of their own."""
    if last is None or last.rank is not None or last.retried or last.verdict != reason:
        return None
    return last


def _end_of(commands: Sequence[cmd.Command], stage: int, rank: int) -> cmd.Record | None:
    """Return the command that ends a rank without a result; None: it is tried again."""
    for command in commands:
        if isinstance(command, cmd.Record) and command.stage == stage:
            is_end = command.state is not cmd.RecordState.DONE
            if is_end and any(rank in piece for piece in command.ranks):
                return command
    return None
