"""Keep workers alive and hand them ranks."""

from thornback.pool.pool import WorkerPool
from thornback.pool.poolparams import PoolParams
from thornback.pool.ports import (
    Assignment,
    Attribute,
    Beat,
    Blobs,
    CaughtError,
    Clock,
    GangLostError,
    Outcome,
    Program,
    ProgramResult,
    RankCall,
    Report,
    RunningRank,
    SeenBy,
    WorkerBackend,
    WorkerSpec,
)

__all__ = [
    "Assignment",
    "Attribute",
    "Beat",
    "Blobs",
    "CaughtError",
    "Clock",
    "GangLostError",
    "Outcome",
    "PoolParams",
    "Program",
    "ProgramResult",
    "RankCall",
    "Report",
    "RunningRank",
    "SeenBy",
    "WorkerBackend",
    "WorkerPool",
    "WorkerSpec",
]
