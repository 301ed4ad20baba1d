"""The decisions of a fault-tolerant run: events in, commands out, no I/O."""

from thornback.scheduler import commands, events
from thornback.scheduler.machine import Scheduler
from thornback.scheduler.params import SchedulerParams, StageCounts, StagePlan
from thornback.scheduler.states import (
    GangState,
    InvalidTransition,
    InvariantBroken,
    RankState,
    SchedulerError,
    UsageError,
)

__all__ = [
    "GangState",
    "InvalidTransition",
    "InvariantBroken",
    "RankState",
    "Scheduler",
    "SchedulerError",
    "SchedulerParams",
    "StageCounts",
    "StagePlan",
    "UsageError",
    "commands",
    "events",
]
