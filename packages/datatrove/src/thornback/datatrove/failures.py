"""What is said of a run in which ranks have failed. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from thornback.executor import RunFailed, RunReport
from thornback.executor.causes import Cause, run_failed
from thornback.faults import FaultKind

_CLOSING = ("what is complete stays so; run again to go on from there",)


def failure_of(report: RunReport, logs: Mapping[str, str], nodes: Mapping[str, int]) -> RunFailed:
    """Return what `run()` raises: as the executor would, with the log files of datatrove.

    Args:
        report: of a run that failed.
        logs: by name of stage: the folder of its task logs.
        nodes: by name of stage: nodes for each task.
    """

    def where(cause: Cause) -> list[str]:
        last, folder = cause.example.last, logs.get(cause.stage)
        if last is None:
            return []
        lines = []
        if folder is not None and last.rank is not None:
            lines.append(f"  log: {folder}/task_{cause.rank:05d}.log")
        mend = _mend(last.fault.kind, nodes.get(cause.stage, 1))
        return [*lines, f"  {mend}"] if mend else lines

    return run_failed(report, noun="task", where=where, closing=_CLOSING)


def _mend(kind: FaultKind, nodes: int) -> str:
    """Return what to do about it where datatrove's words are others than the executor's."""
    if kind is FaultKind.UNSCHEDULABLE and nodes > 1:
        return (
            f"each of the {nodes} nodes of a task is another node of the cluster; "
            'give strategy="PACK" if several may be on one'
        )
    if kind is FaultKind.TIMEOUT:
        return "give time= (or timeout_s=) more seconds if a task may take longer"
    return ""
