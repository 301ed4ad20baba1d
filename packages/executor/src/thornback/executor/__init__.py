"""Run the ranks of a job: executed at least once, recorded exactly once.

    job = Job("squares", [Stage("square", square, ranks=100)])
    report = Executor.on_local(state="runs/squares").run(job)

Public besides this module: `ports` (protocols, for an executor of your own), `on_local` and
`on_ray` (platforms), `testing` (chaos), `journal.testing` (a journal in memory, and the checks that
every journal passes). Everything else is private.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from thornback.executor.edges import After, Within
    from thornback.executor.errors import (
        BackendUnavailable,
        RankFailure,
        RunCancelled,
        RunFailed,
        UsageError,
    )
    from thornback.executor.executor import Executor
    from thornback.executor.job import Job, Stage
    from thornback.executor.journal.filejournal import (
        HeldByAnother,
        IdentityMismatch,
        JournalError,
        NewerFormat,
        Superseded,
    )
    from thornback.executor.journal.ledger import Certificate
    from thornback.executor.journal.recorded import RecordedRun, read_run
    from thornback.executor.params import ExecutorParams
    from thornback.executor.program import NotLoaded, RankContext
    from thornback.executor.report import (
        AttemptReport,
        GivenUp,
        Observer,
        RunInfo,
        RunReport,
        StageProgress,
        Waiting,
        WaitObserver,
    )
    from thornback.executor.results import MISSING, Results

__all__ = [
    "MISSING",
    "After",
    "AttemptReport",
    "BackendUnavailable",
    "Certificate",
    "Executor",
    "ExecutorParams",
    "GivenUp",
    "HeldByAnother",
    "IdentityMismatch",
    "Job",
    "JournalError",
    "NewerFormat",
    "NotLoaded",
    "Observer",
    "RankContext",
    "RankFailure",
    "RecordedRun",
    "Results",
    "RunCancelled",
    "RunFailed",
    "RunInfo",
    "RunReport",
    "Stage",
    "StageProgress",
    "Superseded",
    "UsageError",
    "WaitObserver",
    "Waiting",
    "Within",
    "read_run",
]

_NAMES: dict[str, tuple[str, ...]] = {
    "edges": ("After", "Within"),
    "errors": ("BackendUnavailable", "RankFailure", "RunCancelled", "RunFailed", "UsageError"),
    "executor": ("Executor",),
    "job": ("Job", "Stage"),
    "journal.filejournal": (
        "HeldByAnother",
        "IdentityMismatch",
        "JournalError",
        "NewerFormat",
        "Superseded",
    ),
    "journal.ledger": ("Certificate",),
    "journal.recorded": ("RecordedRun", "read_run"),
    "params": ("ExecutorParams",),
    "program": ("NotLoaded", "RankContext"),
    "report": (
        "AttemptReport",
        "GivenUp",
        "Observer",
        "RunInfo",
        "RunReport",
        "StageProgress",
        "WaitObserver",
        "Waiting",
    ),
    "results": ("MISSING", "Results"),
}
"""What is imported when it is first asked for, by module. A rank process imports `program` from
this package: without the driver's side it starts in less than half the time."""


def __getattr__(name: str) -> object:
    for module, names in _NAMES.items():
        if name in names:
            found = getattr(importlib.import_module(f"{__name__}.{module}"), name)
            globals()[name] = found
            return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
