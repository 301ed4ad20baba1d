"""What is said of a run in which ranks have failed. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from thornback.executor import AttemptReport, RankFailure, RunFailed, RunReport
from thornback.faults import FaultKind

_SHOWN = 8
"""Ranks of a cause, and causes."""


def described(failed: RunFailed, logs: Mapping[str, str], nodes: Mapping[str, int]) -> RunFailed:
    """Return the failure again, with a message that names the ranks, the causes and the log files.

    Args:
        failed: as the executor raised it.
        logs: by name of stage: the folder of its task logs.
        nodes: by name of stage: nodes for each task.
    """
    again = RunFailed(failure_text(failed, logs, nodes), _leaves(failed))
    again.report = failed.report
    return again


def failure_text(failed: RunFailed, logs: Mapping[str, str], nodes: Mapping[str, int]) -> str:
    """Return the text: a few lines for each of the causes with the most ranks. Messages that name
    files make a cause of every rank, and nobody reads ten thousand."""
    report = failed.report
    lines = [_head(report)]
    leaves = sorted(_leaves(failed), key=lambda leaf: -len(leaf.ranks))
    attempts = _last_attempts(report)
    for failure in leaves[:_SHOWN]:
        own = [
            attempts[key] for rank in failure.ranks if (key := (failure.stage, rank)) in attempts
        ]
        lost = [each for each in report.attempts if each.rank is None] if not own else []
        last = own or [each for each in lost if each.stage == failure.stage][-1:]
        lines.append(f"  {_one(failure)}: {failure.cause}")
        if failure.stage in logs and any(each.rank is not None for each in last):
            lines.append(f"    log: {logs[failure.stage]}/task_{failure.ranks[0]:05d}.log")
        if mend := _mend(last, nodes.get(failure.stage, 1)):
            lines.append(f"    {mend}")
    if more := leaves[_SHOWN:]:
        ranks = sum(len(leaf.ranks) for leaf in more)
        lines.append(f"  and {len(more)} more causes, of {ranks} ranks: see `exceptions`")
    for name, stage in report.stages.items():
        if stage.skipped:
            lines.append(
                f"  {stage.skipped}/{stage.total} tasks of {name!r} were not run, since they "
                "depend on these"
            )
    return "\n".join(lines)


def _head(report: RunReport) -> str:
    told = [
        f"{stage.failed}/{stage.total} tasks of {name!r} failed"
        for name, stage in report.stages.items()
        if stage.failed
    ]
    return f"{'; '.join(told) or report.reason}. What is complete stays so; run again to go on:"


def _leaves(failed: RunFailed) -> list[RankFailure]:
    return [each for each in failed.exceptions if isinstance(each, RankFailure)]


def _one(failure: RankFailure) -> str:
    shown = ", ".join(str(rank) for rank in failure.ranks[:_SHOWN])
    more = len(failure.ranks) - _SHOWN
    noun = "rank" if len(failure.ranks) == 1 else "ranks"
    return f"{failure.stage!r}, {noun} {shown}{f' and {more} more' if more > 0 else ''}"


def _mend(last: Sequence[AttemptReport], nodes: int) -> str:
    """Return what to do about it where datatrove's words are others than the executor's."""
    kinds = {each.fault.kind for each in last}
    if FaultKind.UNSCHEDULABLE in kinds and nodes > 1:
        return (
            f"each of the {nodes} nodes of a task is another node of the cluster; "
            'give strategy="PACK" if several may be on one'
        )
    if FaultKind.TIMEOUT in kinds:
        return "give time= (or timeout_s=) more seconds if a task may take longer"
    return ""


def _last_of(
    failure: RankFailure, report: RunReport, attempts: Mapping[tuple[str, int], AttemptReport]
) -> list[AttemptReport]:
    """Return the last attempts of these ranks; of ranks that could never be run: what was lost."""
    keys = [(failure.stage, rank) for rank in failure.ranks]
    if own := [attempts[key] for key in keys if key in attempts]:
        return own
    lost = [each for each in report.attempts if each.rank is None and each.stage == failure.stage]
    return lost[-1:]


def _last_attempts(report: RunReport) -> dict[tuple[str, int], AttemptReport]:
    """Return the last attempts of what was given up, by stage and the first of the ranks."""
    return {
        (each.stage, each.ranks[0].start): each.last
        for each in report.given_up
        if each.last is not None
    }
