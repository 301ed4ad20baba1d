"""Keep workers alive and hand them ranks.

Public besides this module, and imported by their own names: `thornback.pool.on_local`,
`thornback.pool.on_ray` (needs ray), `thornback.pool.processes` (for a backend of your own) and
`thornback.pool.testing`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

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
    ParkedSlot,
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

if TYPE_CHECKING:
    from thornback.pool.pool import WorkerPool
    from thornback.pool.poolparams import PoolParams

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
    "ParkedSlot",
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

_DRIVER_SIDE = {"WorkerPool": "pool", "PoolParams": "poolparams"}
"""What is imported when it is first asked for, and from where: workers, their fork servers and rank
processes import this package, and need none of it to start."""


def __getattr__(name: str) -> object:
    if name not in _DRIVER_SIDE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(importlib.import_module(f"{__name__}.{_DRIVER_SIDE[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
