"""The rules about facts, our own packages, and user code.

Classes are named by strings: this package imports none of those it classifies.
"""

from __future__ import annotations

from thornback.faults.kinds import FaultKind, Origin
from thornback.faults.rules import Rule

OUTSIDE = (Origin.WORKER, Origin.PLACEMENT, Origin.DRIVER)
PROCESSES = (Origin.PROCESS, Origin.WORKER)
NOT_RANK = (Origin.PROCESS, *OUTSIDE)
SIGKILL = 9

FACT_RULES = (
    Rule(
        name="facts.cancelled_by_us",
        kind=FaultKind.CANCELLED,
        origins=NOT_RANK,
        facts={"cancelled_by_us": True},
        why="we, or our user, asked for it",
    ),
    Rule(
        name="facts.preempted",
        kind=FaultKind.PREEMPTION,
        origins=NOT_RANK,
        facts={"preempted": True},
        why="the node was taken away while it drained",
    ),
    Rule(
        name="facts.node_preempted",
        kind=FaultKind.PREEMPTION,
        origins=NOT_RANK,
        facts={"node_death_reason": (3, "AUTOSCALER_DRAIN_PREEMPTED")},
        why="the node was taken away while it drained",
    ),
    Rule(
        name="facts.node_died",
        kind=FaultKind.NODE_LOST,
        origins=NOT_RANK,
        facts={"death_cause": "NODE_DIED"},
        why="the node died",
    ),
    Rule(
        name="facts.memory_limit",
        kind=FaultKind.OOM,
        origins=PROCESSES,
        facts={"memory_limit_exceeded": True},
        why="it held more memory than it had asked for, and was killed for it",
    ),
    Rule(
        name="facts.kernel_oom",
        kind=FaultKind.OOM,
        origins=PROCESSES,
        facts={"oom_kill": True, "signal": SIGKILL},
        why="SIGKILL, and the kernel counted an OOM kill",
    ),
    Rule(
        name="facts.oom",
        kind=FaultKind.OOM,
        origins=OUTSIDE,
        facts={"death_cause": "OOM"},
        why="the memory monitor killed it",
    ),
    Rule(
        name="facts.node_out_of_memory",
        kind=FaultKind.OOM,
        origins=OUTSIDE,
        facts={"exit_type": "NODE_OUT_OF_MEMORY"},
        why="the memory monitor killed it",
    ),
)
"""Structured facts, before any name: they come from who knows, not from a text."""

POOL_RULES = (
    Rule(
        name="pool.setup_timed_out",
        kind=FaultKind.SETUP,
        types=("thornback.pool.RankTimedOut",),
        origins=PROCESSES,
        facts={"phase": "setup"},
        phase="setup",
        why="setup() took longer than it may",
    ),
    Rule(
        name="pool.rank_timed_out",
        kind=FaultKind.TIMEOUT,
        types=("thornback.pool.RankTimedOut",),
        origins=PROCESSES,
        phase="rank",
        why="the rank took longer than its timeout_s",
    ),
    Rule(
        name="pool.rank_process_died",
        kind=FaultKind.WORKER_CRASH,
        types=("thornback.pool.RankProcessDied",),
        origins=PROCESSES,
        why="the rank's process ended without an answer: a signal, or os._exit",
    ),
    Rule(
        name="pool.worker_silent",
        kind=FaultKind.TIMEOUT,
        types=("thornback.pool.WorkerSilent",),
        origins=(Origin.WORKER,),
        phase="heartbeat",
        why="the worker gave no sign of life",
    ),
    Rule(
        name="pool.worker_start_timed_out",
        kind=FaultKind.TIMEOUT,
        types=("thornback.pool.WorkerStartTimedOut",),
        origins=(Origin.WORKER,),
        phase="start",
        why="the worker did not start in time",
    ),
    Rule(
        name="pool.worker_died",
        kind=FaultKind.WORKER_CRASH,
        types=("thornback.pool.WorkerDied", "thornback.pool.ForkServerLost"),
        origins=(Origin.WORKER,),
        why="the worker's process ended",
    ),
    Rule(
        name="pool.no_slot_left",
        kind=FaultKind.RESOURCE,
        types=("thornback.pool.NoSlotLeft",),
        origins=(Origin.WORKER,),
        why="the GPUs of all slots of the worker failed",
    ),
    Rule(
        name="pool.recall_timed_out",
        kind=FaultKind.TIMEOUT,
        types=("thornback.pool.RecallTimedOut",),
        origins=(Origin.WORKER,),
        phase="recall",
        why="the worker did not hand back in time what it was asked for",
    ),
    Rule(
        name="pool.closed",
        kind=FaultKind.CANCELLED,
        types=("thornback.pool.GangClosed",),
        origins=(Origin.WORKER,),
        why="we closed the gang ourselves",
    ),
    Rule(
        name="pool.misuse",
        kind=FaultKind.SYSTEM,
        types=("thornback.pool.WorkerMisbehaved", "thornback.pool.GangNotOpen"),
        origins=(Origin.WORKER,),
        why="driver and worker do not agree: our bug",
    ),
)

PLACEMENT_RULES = (
    Rule(
        name="placement.timed_out",
        kind=FaultKind.TIMEOUT,
        types=("thornback.placement.PlacementTimedOut",),
        origins=(Origin.PLACEMENT,),
        phase="place",
        why="the resources were not free in time",
    ),
    Rule(
        name="placement.unschedulable",
        kind=FaultKind.UNSCHEDULABLE,
        types=("thornback.placement.Unschedulable",),
        origins=(Origin.PLACEMENT,),
        why="no node is large enough",
    ),
    Rule(
        name="placement.removed",
        kind=FaultKind.PLACEMENT_REMOVED,
        types=("thornback.placement.PlacementRemoved",),
        origins=(Origin.PLACEMENT, Origin.WORKER),
        why="the reservation was removed under us",
    ),
    Rule(
        name="placement.misuse",
        kind=FaultKind.SYSTEM,
        types=("thornback.placement.PlacementError",),
        origins=(Origin.PLACEMENT,),
        why="the allocator was used wrongly: our bug",
    ),
)

DRIVER = (Origin.DRIVER,)

EXECUTOR_RULES = (
    Rule(
        name="executor.journal",
        kind=FaultKind.SYSTEM,
        types=(
            "thornback.executor.JournalError",
            "thornback.executor.Superseded",
            "thornback.executor.HeldByAnother",
            "thornback.executor.IdentityMismatch",
            "thornback.executor.NewerFormat",
        ),
        origins=DRIVER,
        why="the journal cannot go on",
    ),
    Rule(
        name="executor.cancelled",
        kind=FaultKind.CANCELLED,
        types=("thornback.executor.RunCancelled",),
        origins=DRIVER,
        why="our user cancelled the run",
    ),
    Rule(
        name="executor.given_up",
        kind=FaultKind.APPLICATION,
        types=("thornback.executor.RankFailure",),
        origins=DRIVER,
        why="a run gave it up, and had tried it again before",
    ),
    Rule(
        name="executor.not_loaded",
        kind=FaultKind.SYSTEM,
        types=("thornback.executor.NotLoaded",),
        origins=(Origin.RANK,),
        facts={"phase": "setup"},
        final=True,
        why="the stage's function cannot be loaded: its module is missing, or another version",
    ),
    Rule(
        name="executor.misuse",
        kind=FaultKind.SYSTEM,
        types=(
            "thornback.executor.UsageError",
            "thornback.graph.GraphError",
            "thornback.scheduler.SchedulerError",
        ),
        origins=DRIVER,
        why="it was called wrongly, or is broken: the same call would fail again",
    ),
)

LAST_RULES = (
    Rule(
        name="rank.setup",
        kind=FaultKind.SETUP,
        origins=(Origin.RANK, Origin.PROCESS),
        facts={"phase": "setup"},
        last_resort=True,
        why="setup() raised",
    ),
    Rule(
        name="rank.exited",
        kind=FaultKind.APPLICATION,
        types=("builtins.SystemExit",),
        origins=(Origin.RANK,),
        last_resort=True,
        why="the rank's code called sys.exit before it returned",
    ),
    Rule(
        name="rank.interrupted",
        kind=FaultKind.APPLICATION,
        types=("builtins.KeyboardInterrupt", "asyncio.exceptions.CancelledError"),
        origins=(Origin.RANK,),
        last_resort=True,
        why="interrupted, or cancelled, in the rank's own process",
    ),
    Rule(
        name="rank.raised",
        kind=FaultKind.APPLICATION,
        origins=(Origin.RANK,),
        last_resort=True,
        why="the rank's own code raised it, whatever its name",
    ),
    Rule(
        name="worker.raised",
        kind=FaultKind.SYSTEM,
        origins=OUTSIDE,
        nested=True,
        last_resort=True,
        why="the worker's own code raised it: our bug, or a broken installation",
    ),
    Rule(name="unknown", kind=FaultKind.UNKNOWN, last_resort=True, why="no rule knows it"),
)
"""Only when nothing more exact is known of any exception of the chain."""
