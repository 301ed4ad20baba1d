"""Run the ranks of a job: executed at least once, recorded exactly once.

    job = Job("squares", [Stage("square", square, ranks=100)])
    report = Executor.on_local(state="runs/squares").run(job)

Public besides this module: `ports` (protocols, for an executor of your own), `on_local` and
`on_ray` (platforms), `testing` (chaos), `journal.testing` (a journal in memory, and the checks that
every journal passes). Everything else is private.
"""

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
)
from thornback.executor.journal.ledger import Certificate
from thornback.executor.journal.recorded import RecordedRun, read_run
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
    "Certificate",
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
    "RecordedRun",
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
