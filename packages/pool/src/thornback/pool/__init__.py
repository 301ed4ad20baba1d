"""Keep workers alive and hand them ranks.

Public besides this module, and imported by their own names: `thornback.pool.on_local`,
`thornback.pool.on_ray` (needs ray), `thornback.pool.processes` (for a backend of your own) and
`thornback.pool.testing`.
"""

from thornback.pool.pool import WorkerPool
from thornback.pool.poolparams import PoolParams
from thornback.pool.ports import (
    Assignment,
    Attribute,
    Beat,
    Blobs,
    CaughtError,
    Checkpoint,
    Clock,
    FinishedWhen,
    GangLostError,
    LogChunk,
    Outcome,
    PoolObserver,
    Program,
    ProgramResult,
    RankCall,
    Report,
    RunningRank,
    SeenBy,
    SpanData,
    Worker,
    WorkerBackend,
    WorkerSpec,
)

__all__ = [
    "Assignment",
    "Attribute",
    "Beat",
    "Blobs",
    "CaughtError",
    "Checkpoint",
    "Clock",
    "FinishedWhen",
    "GangLostError",
    "LogChunk",
    "Outcome",
    "PoolObserver",
    "PoolParams",
    "Program",
    "ProgramResult",
    "RankCall",
    "Report",
    "RunningRank",
    "SeenBy",
    "SpanData",
    "Worker",
    "WorkerBackend",
    "WorkerPool",
    "WorkerSpec",
]
