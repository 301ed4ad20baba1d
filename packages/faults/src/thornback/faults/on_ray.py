"""Ray's exceptions, by name: this module imports no ray.

Every class of `ray.exceptions` is named by a rule; `python -m thornback.faults audit` says so for
the installed version. The order matters: the first rule that matches decides. Source: ray's
`exceptions.py` (of `RAY_VERSIONS`), and what processes of 2.60 were seen to raise (texts: its C++
`gcs_server`).
"""

from __future__ import annotations

from collections.abc import Mapping

from thornback.faults.kinds import Attribute, ErrorData, FaultKind
from thornback.faults.rules import Rule
from thornback.faults.setup_text import is_final
from thornback.faults.tables import OUTSIDE

RAY_VERSIONS: tuple[str, ...] = ("2.49.0", "2.49.2", "2.52.0", "2.53.0", "2.56.0", "2.60.0")
"""Releases of Ray whose exception classes were held against `RAY_RULES`, oldest first."""

RAY_TASK_ERROR = "ray.exceptions.RayTaskError"
K = FaultKind


def _names(*classes: str) -> tuple[str, ...]:
    return tuple(name if "." in name else f"ray.exceptions.{name}" for name in classes)


def _rule(
    name: str,
    kind: FaultKind,
    types: tuple[str, ...],
    why: str,
    *texts: str,
    final: bool = False,
    phase: str = "",
) -> Rule:
    return Rule(
        name=f"ray.{name}",
        kind=kind,
        types=types,
        origins=OUTSIDE,
        texts=texts,
        final=final,
        phase=phase,
        why=why,
    )


def _dead(
    name: str, kind: FaultKind, why: str, *texts: str, phase: str = "", **facts: str | int | bool
) -> Rule:
    """Return a rule for the death of an actor.

    A structured death cause counts whatever the exception is called that brought the news.
    """
    known = "death_cause" in facts or "exit_type" in facts
    return Rule(
        name=f"ray.actor_{name}",
        kind=kind,
        types=() if known else _names("RayActorError"),
        origins=OUTSIDE,
        facts=facts,
        texts=texts,
        # Who reported what its code raised was alive.
        nested=False if known else None,
        phase=phase,
        why=why,
    )


# Every one of these deaths is the same `ActorDiedError`: facts tell them apart, or the texts of ray
# 2.60. `preempted`, NODE_DIED and OOM as facts are FACT_RULES, before all of this.
ACTOR_RULES = (
    _dead(
        "node_preempted", K.PREEMPTION, "its node was preempted", "the actor's node was preempted:"
    ),
    _dead("node_died", K.NODE_LOST, "its node died", "because its node has died"),
    _dead(
        "placement_removed",
        K.PLACEMENT_REMOVED,
        "its placement group was removed",
        "INTENDED_SYSTEM_EXIT",
        "placement group",
    ),
    _dead(
        "placement_exit",
        K.PLACEMENT_REMOVED,
        "its placement group was removed",
        "placement group",
        exit_type="INTENDED_SYSTEM_EXIT",
    ),
    _dead(
        "import",
        K.SETUP,
        "its constructor could not import a module",
        "ModuleNotFoundError",
        phase="setup",
        actor_init_failed=True,
    ),
    _dead(
        "import_name",
        K.SETUP,
        "its constructor could not import a name",
        "ImportError",
        phase="setup",
        actor_init_failed=True,
    ),
    _dead("init", K.APPLICATION, "its constructor raised", actor_init_failed=True),
    _dead("creation", K.APPLICATION, "its constructor raised", death_cause="CREATION_TASK_FAILED"),
    _dead(
        "runtime_env",
        K.SETUP,
        "its runtime_env could not be made",
        phase="setup",
        death_cause="RUNTIME_ENV_FAILED",
    ),
    _dead(
        "bundle_removed",
        K.PLACEMENT_REMOVED,
        "its placement group was removed",
        "placement group was removed",
        death_cause="ACTOR_UNSCHEDULABLE",
    ),
    _dead("unschedulable", K.UNSCHEDULABLE, "it fits nowhere", death_cause="ACTOR_UNSCHEDULABLE"),
    _dead("killed", K.INTERRUPTED, "ray.kill, and not by us", death_cause="RAY_KILL"),
    _dead(
        "out_of_scope", K.SYSTEM, "its last handle was dropped: our bug", death_cause="OUT_OF_SCOPE"
    ),
    _dead("exited", K.APPLICATION, "its code left the process", exit_type="INTENDED_USER_EXIT"),
    _dead(
        "setup_hook",
        K.SETUP,
        "its worker_process_setup_hook raised",
        "setup hook",
        phase="setup",
        death_cause="WORKER_DIED",
    ),
    _dead("crashed", K.WORKER_CRASH, "its process ended", death_cause="WORKER_DIED"),
    _dead("oom_text", K.OOM, "the memory monitor killed it", "exit type: NODE_OUT_OF_MEMORY"),
    _dead(
        "exited_text", K.APPLICATION, "its code left the process", "exit type: INTENDED_USER_EXIT"
    ),
    _dead("killed_text", K.INTERRUPTED, "ray.kill, and not by us", "killed by `ray.kill`"),
    Rule(
        name="ray.actor_unavailable",
        kind=K.UNAVAILABLE,
        types=_names("ActorUnavailableError"),
        origins=OUTSIDE,
        why="it does not answer; whether the call was executed is not known",
    ),
    Rule(
        name="ray.actor_died",
        kind=K.WORKER_CRASH,
        types=_names("ActorDiedError"),
        origins=OUTSIDE,
        why="its process ended",
    ),
    Rule(
        name="ray.actor",
        kind=K.WORKER_CRASH,
        types=_names("RayActorError"),
        origins=OUTSIDE,
        why="the actor failed, and no more is known",
    ),
)


def is_system_error(error: ErrorData) -> bool:
    """Return whether Ray itself failed: not what a task raised and Ray only carries.

    Ray raises a plain `RayError` in a `RayTaskError` in place of user errors that do not pickle.
    """
    names = [name for name in error.type_names if name.startswith("ray.")]
    carriers = (RAY_TASK_ERROR, "ray.exceptions.RayError")
    return carriers[1] in names and not all(
        name in carriers or name.startswith(f"{RAY_TASK_ERROR}(") for name in names
    )


REMOVED = "placement group was removed"
GONE = ("placement group", "does not exist")
UNSENT = ("failed to submit task to actor",)
CANNOT_LOAD = "what the worker sent cannot be unpickled here"


def _is_final(error: ErrorData, known: Mapping[str, Attribute]) -> bool:
    """Return whether a runtime_env can be built nowhere, as what its installer wrote says."""
    return is_final(error.message)


def _is_plain(error: ErrorData, known: Mapping[str, Attribute]) -> bool:
    """Return whether it is an `Exception` of no class of its own."""
    return tuple(error.type_names[:1]) == ("builtins.Exception",)


RAY_RULES = (
    _rule("out_of_memory", K.OOM, _names("OutOfMemoryError"), "the memory monitor killed it"),
    # That *we* cancelled is tested by FACT_RULES.
    _rule(
        "cancelled",
        K.INTERRUPTED,
        _names("TaskCancelledError", "ray.serve.exceptions.RequestCancelledError"),
        "cancelled, and nobody here had asked for it",
    ),
    _rule(
        "placement_removed",
        K.PLACEMENT_REMOVED,
        _names("TaskPlacementGroupRemoved", "ActorPlacementGroupRemoved"),
        "the placement group was removed",
    ),
    _rule(
        "unschedulable_removed",
        K.PLACEMENT_REMOVED,
        _names("TaskUnschedulableError", "ActorUnschedulableError"),
        "the placement group was removed while it waited there",
        REMOVED,
    ),
    Rule(
        name="ray.runtime_env_final",
        kind=K.SETUP,
        types=_names("RuntimeEnvSetupError"),
        origins=OUTSIDE,
        phase="setup",
        when=_is_final,
        final=True,
        why="the runtime_env can be built nowhere: what it requires does not exist or fit together",
    ),
    _rule(
        "runtime_env",
        K.SETUP,
        _names("RuntimeEnvSetupError"),
        "the runtime_env could not be made",
        phase="setup",
    ),
    _rule(
        "unschedulable",
        K.UNSCHEDULABLE,
        _names("TaskUnschedulableError", "ActorUnschedulableError"),
        "it fits nowhere",
    ),
    *ACTOR_RULES,
    _rule("rpc", K.UNAVAILABLE, _names("RpcError"), "a call to Ray's own services failed"),
    _rule("node_died", K.NODE_LOST, _names("NodeDiedError"), "the node died"),
    _rule("raylet_died", K.NODE_LOST, _names("LocalRayletDiedError"), "the node's raylet died"),
    _rule("worker_crashed", K.WORKER_CRASH, _names("WorkerCrashedError"), "the process ended"),
    _rule("worker_exit", K.WORKER_CRASH, _names("AsyncioActorExit"), "the actor left its process"),
    _rule(
        "object_freed",
        K.SYSTEM,
        _names("ObjectFreedError"),
        "the object was freed explicitly: it is gone for good",
        final=True,
    ),
    _rule(
        "reference_count",
        K.SYSTEM,
        _names("ReferenceCountingAssertionError"),
        "deleted although there are references: Ray's bug",
    ),
    _rule(
        "object_lost",
        K.OBJECT_LOST,
        _names(
            "ObjectFetchTimedOutError",
            "OwnerDiedError",
            "ObjectReconstructionFailedError",
            "ObjectReconstructionFailedMaxAttemptsExceededError",  # until ray 2.53
            "ObjectReconstructionFailedLineageEvictedError",  # until ray 2.53
            "ObjectLostError",
            "PlasmaObjectNotAvailable",
        ),
        "the object, or its owner, is gone",
    ),
    _rule("store_full", K.RESOURCE, _names("ObjectStoreFullError"), "the object store is full"),
    _rule("disk_full", K.RESOURCE, _names("OutOfDiskError"), "the node's disk is full"),
    _rule("get_timed_out", K.TIMEOUT, _names("GetTimeoutError"), "our own ray.get timed out"),
    _rule(
        "user_code",
        K.APPLICATION,
        _names(
            "UserCodeException",
            "ray.data.exceptions.RayDataUserCodeException",
            "CrossLanguageError",
            "UnserializableException",
            "StreamingGeneratorReplayInconsistentError",
        ),
        "user code raised it, or something that cannot be pickled",
    ),
    *(
        _rule(
            f"unloadable_{text.lower()}", K.APPLICATION, _names("RaySystemError"), CANNOT_LOAD, text
        )
        for text in ("ModuleNotFoundError", "ImportError", "AttributeError", "PicklingError")
    ),
    _rule(
        "our_misuse",
        K.SYSTEM,
        _names(
            "PendingCallsLimitExceeded",
            "OufOfBandObjectRefSerializationException",
            "ActorAlreadyExistsError",
            "ActorHandleNotFoundError",
            "ObjectRefStreamEndOfStreamError",
        ),
        "Ray was used wrongly: our bug",
    ),
    _rule("authentication", K.SYSTEM, _names("AuthenticationError"), "no valid token", final=True),
    _rule(
        "channel",
        K.SYSTEM,
        _names(
            "RayChannelTimeoutError",
            "RayChannelError",
            "RayCgraphCapacityExceeded",
            "RayDirectTransportError",
        ),
        "a compiled graph failed; this project uses none",
    ),
    _rule("system", K.SYSTEM, _names("RaySystemError"), "Ray itself failed"),
    _rule("task", K.SYSTEM, _names("RayTaskError"), "the worker's own code raised"),
    # Libraries on Ray: not all of their exceptions are RayErrors.
    _rule(
        "data_timed_out",
        K.TIMEOUT,
        ("ray.data.exceptions.ExecutionTimeoutError",),
        "the data set took longer than it may",
    ),
    _rule("data_system", K.SYSTEM, ("ray.data.exceptions.SystemException",), "Ray Data failed"),
    _rule(
        "serve_busy",
        K.THROTTLED,
        ("ray.serve.exceptions.BackPressureError",),
        "the deployment's queue is full",
    ),
    _rule(
        "serve_unavailable",
        K.UNAVAILABLE,
        (
            "ray.serve.exceptions.DeploymentUnavailableError",
            "ray.serve.exceptions.ReplicaUnavailableError",
        ),
        "the deployment does not answer",
    ),
    _rule(
        "serve",
        K.SYSTEM,
        ("ray.serve.exceptions.RayServeException", "ray.serve.exceptions.gRPCStatusError"),
        "Ray Serve failed",
    ),
    # Plain exceptions that Ray raises. Source: ray 2.60, seen.
    *(
        Rule(
            name=f"ray.{name}",
            kind=kind,
            types=("builtins.Exception",),
            origins=OUTSIDE,
            texts=texts,
            when=_is_plain,
            why=why,
        )
        for name, kind, why, texts in (
            ("group_gone", K.PLACEMENT_REMOVED, "the placement group is gone", GONE),
            ("after_shutdown", K.SYSTEM, "called after ray.shutdown", UNSENT),
        )
    ),
    _rule("other", K.SYSTEM, _names("RayError"), "an exception of Ray that no rule names"),
)
"""In the order in which they are tried."""


def unruled(type_names: tuple[str, ...], rules: tuple[Rule, ...]) -> tuple[str, ...]:
    """Return the classes that no rule names: they are classified by a base class, or by chance."""
    named = frozenset(name for rule in rules for name in rule.types)
    return tuple(name for name in type_names if name not in named)
