"""Whether the demo showed what it promises: pure checks of a run's report."""

from __future__ import annotations

from collections.abc import Sequence

import attrs

from thornback.executor import AttemptReport
from thornback.executor.testing import Kill
from thornback.faults import Origin

PLANNED_KILLS = ("rank", "worker")


@attrs.frozen(kw_only=True, slots=True)
class ChaosVerdict:
    """What became of the kills."""

    notes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()


def judge_chaos(
    kills: Sequence[Kill], attempts: Sequence[AttemptReport], *, recorded_before: int
) -> ChaosVerdict:
    """Return whether each planned kill happened, and was seen and retried as one fault of its own.

    A run that took up an earlier one may end before there is anything to kill: that is a note.
    """
    notes: list[str] = []
    problems: list[str] = []
    for what in PLANNED_KILLS:
        if any(kill.what == what for kill in kills):
            continue
        if recorded_before:
            notes.append(f"no {what} was killed: {recorded_before} ranks were recorded earlier")
        else:
            problems.append(f"no {what} was killed")
    unclaimed = list(attempts)
    for kill in kills:
        found = next((attempt for attempt in unclaimed if _shows(attempt, kill)), None)
        if found is None:
            problems.append(f"{_title(kill)}: no retried fault tells of it")
            continue
        unclaimed.remove(found)
        notes.append(f"{_title(kill)}: {found.fault.kind.value}, retried")
    return ChaosVerdict(notes=tuple(notes), problems=tuple(problems))


def _shows(attempt: AttemptReport, kill: Kill) -> bool:
    """Whether a fault tells of a kill.

    A killed rank process is known by its process id. A killed worker is known by its gang: each
    assignment it had leaves a certificate, seen from the worker's side, and none of a process.
    """
    if not attempt.retried:
        return False
    if kill.what == "worker":
        return attempt.fault.origin is Origin.WORKER and attempt.gang == kill.gang
    return attempt.rank is not None and attempt.pid == kill.pid


def _title(kill: Kill) -> str:
    where = f"gang {kill.gang}"
    if kill.what == "rank":
        where = f"{kill.stage} rank {kill.rank}, {where}"
    return f"killed a {kill.what} process (pid {kill.pid}, {where})"
