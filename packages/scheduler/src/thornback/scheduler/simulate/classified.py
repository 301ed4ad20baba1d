"""Classifies what goes wrong in a simulated world, as a driver does on a real cluster."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import attrs

from thornback.faults import CUDA_RULES, Classifier, ErrorRecord, Fault
from thornback.scheduler.simulate.values import Mishap, MishapKind

CLASSIFIER = Classifier(user_rules=CUDA_RULES)
ACTOR_DIED = ("ray.exceptions.ActorDiedError", "ray.exceptions.RayActorError")
OS_ERROR = ("builtins.OSError", "builtins.Exception")


@attrs.frozen
class Seen:
    """How a mishap looks to those who see it on a real cluster."""

    types: tuple[str, ...]
    origin: str
    facts: Mapping[str, str | int | float | bool | None] = attrs.field(factory=dict)
    phase: str = "rank"
    message: str = ""


SEEN: Mapping[MishapKind, Seen] = {
    MishapKind.CODE: Seen(
        ("builtins.ValueError", "builtins.Exception"), "rank", {"user_frame": "job.py:12 in work"}
    ),
    MishapKind.COLLATERAL: Seen(("builtins.ConnectionResetError", *OS_ERROR), "rank"),
    MishapKind.PROCESS: Seen(("thornback.pool.RankProcessDied",), "process", {"signal": 11}),
    MishapKind.TIMEOUT: Seen(("thornback.pool.RankTimedOut",), "process"),
    MishapKind.OOM: Seen(
        ("thornback.pool.RankProcessDied",),
        "process",
        {"signal": 9, "memory_limit_exceeded": True},
    ),
    MishapKind.WORKER: Seen(ACTOR_DIED, "worker", {"death_cause": "WORKER_DIED"}, "run"),
    MishapKind.SILENT: Seen(("thornback.pool.WorkerSilent",), "worker", phase="heartbeat"),
    MishapKind.PREEMPTED: Seen(ACTOR_DIED, "worker", {"preempted": True}, "run"),
    MishapKind.NODE: Seen(ACTOR_DIED, "worker", {"death_cause": "NODE_DIED"}, "run"),
    MishapKind.START: Seen(("thornback.pool.WorkerStartTimedOut",), "worker", phase="start"),
    MishapKind.SETUP: Seen(("builtins.ImportError",), "worker", phase="setup"),
    MishapKind.PLACE: Seen(("thornback.placement.PlacementTimedOut",), "placement", phase="place"),
    MishapKind.IMPOSSIBLE: Seen(("thornback.placement.Unschedulable",), "placement", phase="place"),
    MishapKind.JOURNAL: Seen(("thornback.executor.JournalError",), "driver", phase="record"),
    MishapKind.EIO: Seen(OS_ERROR, "rank", {"errno": 5}),
    MishapKind.ENOSPC: Seen(OS_ERROR, "rank", {"errno": 28}),
    MishapKind.LOAD: Seen(OS_ERROR, "rank", phase="setup"),
    MishapKind.GPU: Seen(
        ("torch.AcceleratorError", "builtins.RuntimeError"),
        "rank",
        {"gpu_fault": True},
        message="CUDA error: uncorrectable ECC error encountered",
    ),
}


@lru_cache(maxsize=10_000)
def classified(mishap: Mishap) -> Fault:
    """Return the fault that a driver makes of a mishap: what a retry policy decides about."""
    seen = SEEN[mishap.kind]
    error = ErrorRecord(
        type_names=seen.types, message=seen.message or mishap.kind.value, attributes=seen.facts
    )
    facts = {**seen.facts, "origin": seen.origin, "phase": seen.phase}
    facts |= {"node": mishap.node, "only_node": mishap.only_node}
    if mishap.memory_bytes is not None:
        facts["peak_rss_bytes"] = mishap.memory_bytes
    if mishap.largest_bytes is not None:
        facts["largest_memory_bytes"] = mishap.largest_bytes
    return CLASSIFIER.classify(error, facts)
