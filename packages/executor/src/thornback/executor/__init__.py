"""Run the ranks of a job: executed at least once, recorded exactly once."""

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
    Superseded,
    read_run,
)
from thornback.executor.params import ExecutorParams
from thornback.executor.program import RankContext
from thornback.executor.report import (
    AttemptReport,
    GivenUp,
    Observer,
    RunInfo,
    RunReport,
    StageProgress,
)

__all__ = [
    "AttemptReport",
    "BackendUnavailable",
    "Executor",
    "ExecutorParams",
    "GivenUp",
    "HeldByAnother",
    "IdentityMismatch",
    "Job",
    "JournalError",
    "Observer",
    "RankContext",
    "RankFailure",
    "RunCancelled",
    "RunFailed",
    "RunInfo",
    "RunReport",
    "Stage",
    "StageProgress",
    "Superseded",
    "UsageError",
    "read_run",
]
