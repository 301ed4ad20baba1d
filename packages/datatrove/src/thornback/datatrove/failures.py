"""What is said of a run in which ranks have failed. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from thornback.executor import AttemptReport, RankFailure, RunFailed, RunReport
from thornback.faults import FaultKind

_SHOWN = 8


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
    """Return the text, a line for each cause."""
    report = failed.report
    lines = [_head(report)]
    for failure in _leaves(failed):
        lines.append(f"  {_one(failure)}: {failure.cause}")
        tried = any(each.rank is not None for each in _attempts(report, failure))
        if tried and failure.stage in logs:
            lines.append(f"    log: {logs[failure.stage]}/task_{failure.ranks[0]:05d}.log")
        if mend := _mend(report, failure, nodes):
            lines.append(f"    {mend}")
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


def _mend(report: RunReport, failure: RankFailure, nodes: Mapping[str, int]) -> str:
    """Return what to do about it where datatrove's words are others than the executor's."""
    kinds = {each.fault.kind for each in _attempts(report, failure)}
    if FaultKind.UNSCHEDULABLE in kinds and nodes.get(failure.stage, 1) > 1:
        return (
            f"each of the {nodes[failure.stage]} nodes of a task is another node of the cluster; "
            'give strategy="PACK" if several may be on one'
        )
    if FaultKind.TIMEOUT in kinds:
        return "give time= (or timeout_s=) more seconds if a task may take longer"
    return ""


def _attempts(report: RunReport, failure: RankFailure) -> list[AttemptReport]:
    """Return the last attempts of these ranks; of ranks that could never be run: what was lost."""
    ended = [
        each
        for each in report.given_up
        if each.stage == failure.stage and each.ranks[0].start in failure.ranks
    ]
    own = [each.last for each in ended if each.last is not None]
    lost = [each for each in report.attempts if each.rank is None and each.stage == failure.stage]
    return own or lost[-1:]
