"""The decisions of a fault-tolerant run: events in, commands out, no I/O.

A driver tells a `Scheduler` every event, carries out every command that it returns, and answers it;
`commands` says with which event, and makes that event. One thread at a time may call a scheduler.

Public: this module, and in it `events`, `commands`, `ports` (what the scheduler needs from others),
`simulate` (whole runs in simulated time), `recorder` (what happened in a run, and why) and
`testing` (fakes, and checks for what you put in their place). Everything else is private.
"""

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
