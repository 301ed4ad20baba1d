"""What the tables of rules promise, written down a second time: by example.

A row has the name of a rule, what it makes of a failure, who must have seen it, and failures that
it decides, as they are met outside. Rule names and kinds stand in journals and dashboards, and a
name or a text that is lost from a table is a failure that is no longer tried again: so both are
here by hand, and not taken from the tables. Longer than other files: it is one table.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import pytest

from thornback.faults import (
    CUDA_RULES,
    DEFAULT_RULES,
    NETWORK_RULES,
    THROTTLED_RULES,
    Classifier,
    FaultKind,
    Origin,
)
from thornback.faults.kinds import Attribute
from thornback.faults.testing import lookalike, lookalike_task_error

K = FaultKind
SEEN_BY = {
    "R": Origin.RANK,
    "P": Origin.PROCESS,
    "W": Origin.WORKER,
    "L": Origin.PLACEMENT,
    "D": Origin.DRIVER,
}

lenient = Classifier(user_rules=(*THROTTLED_RULES, *NETWORK_RULES, *CUDA_RULES))


class Row(NamedTuple):
    """A rule, and failures that it decides."""

    rule: str
    kind: FaultKind
    origins: str
    """Letters of `SEEN_BY`: for all of these, and for no others, the rule decides."""
    errors: Sequence[BaseException]
    facts: Mapping[str, Attribute] = {}
    phase: str = ""


def named(module: str, *classes: str) -> list[BaseException]:
    return [lookalike(f"{module}.{name}", "x") for name in classes]


def said(name: str, *texts: str) -> list[BaseException]:
    return [lookalike(name, f"it failed: {text} (x)") for text in texts]


def numbered(*numbers: int) -> list[BaseException]:
    return [OSError(number, "x") for number in numbers]


def dead(text: str = "", **attributes: Attribute) -> list[BaseException]:
    return [lookalike("ActorDiedError", text, **attributes)]


ANY = [LookupError("x")]
DIED = [lookalike("thornback.pool.RankProcessDied")]

FACTS = [
    Row("facts.cancelled_by_us", K.CANCELLED, "PWLD", [*ANY, *dead()], {"cancelled_by_us": True}),
    Row("facts.preempted", K.PREEMPTION, "PWLD", [*ANY, *dead()], {"preempted": True}),
    Row("facts.preempted", K.PREEMPTION, "PWLD", dead(preempted=True)),
    Row("facts.node_preempted", K.PREEMPTION, "PWLD", ANY, {"node_death_reason": 3}),
    Row(
        "facts.node_preempted",
        K.PREEMPTION,
        "PWLD",
        ANY,
        {"node_death_reason": "AUTOSCALER_DRAIN_PREEMPTED", "death_cause": "NODE_DIED"},
    ),
    Row("facts.node_died", K.NODE_LOST, "PWLD", ANY, {"death_cause": "NODE_DIED"}),
    Row("facts.memory_limit", K.OOM, "PW", [*ANY, *DIED], {"memory_limit_exceeded": True}),
    Row("facts.kernel_oom", K.OOM, "PW", [*ANY, *DIED], {"oom_kill": True, "signal": 9}),
    Row("facts.kernel_oom", K.OOM, "PW", DIED, {"oom_kill": True, "exit_code": -9}),
    Row("facts.oom", K.OOM, "WLD", ANY, {"death_cause": "OOM"}),
    Row("facts.node_out_of_memory", K.OOM, "WLD", ANY, {"exit_type": "NODE_OUT_OF_MEMORY"}),
]

OURS = [
    Row(
        "pool.setup_timed_out",
        K.SETUP,
        "PW",
        named("thornback.pool", "RankTimedOut"),
        {"phase": "setup"},
        "setup",
    ),
    Row(
        "pool.rank_timed_out",
        K.TIMEOUT,
        "PW",
        named("thornback.pool", "RankTimedOut"),
        {"phase": "?"},
        "rank",
    ),
    Row("pool.rank_process_died", K.WORKER_CRASH, "PW", DIED),
    Row(
        "pool.worker_silent",
        K.TIMEOUT,
        "W",
        named("thornback.pool", "WorkerSilent"),
        phase="heartbeat",
    ),
    Row(
        "pool.worker_start_timed_out",
        K.TIMEOUT,
        "W",
        named("thornback.pool", "WorkerStartTimedOut"),
        phase="start",
    ),
    Row("pool.worker_died", K.WORKER_CRASH, "W", named("thornback.pool", "WorkerDied")),
    Row("pool.no_slot_left", K.RESOURCE, "W", named("thornback.pool", "NoSlotLeft")),
    Row(
        "pool.recall_timed_out",
        K.TIMEOUT,
        "W",
        named("thornback.pool", "RecallTimedOut"),
        phase="recall",
    ),
    Row("pool.closed", K.CANCELLED, "W", named("thornback.pool", "GangClosed")),
    Row("pool.misuse", K.SYSTEM, "W", named("thornback.pool", "WorkerMisbehaved", "GangNotOpen")),
    Row(
        "placement.timed_out",
        K.TIMEOUT,
        "L",
        named("thornback.placement", "PlacementTimedOut"),
        phase="place",
    ),
    Row(
        "placement.unschedulable",
        K.UNSCHEDULABLE,
        "L",
        named("thornback.placement", "Unschedulable"),
    ),
    Row(
        "placement.removed",
        K.PLACEMENT_REMOVED,
        "LW",
        named("thornback.placement", "PlacementRemoved"),
    ),
    Row("placement.misuse", K.SYSTEM, "L", named("thornback.placement", "PlacementError")),
    Row("placement.refused", K.UNSCHEDULABLE, "L", [ValueError("x"), TypeError("x")]),
    Row(
        "executor.journal",
        K.SYSTEM,
        "D",
        named(
            "thornback.executor", "JournalError", "Superseded", "HeldByAnother", "IdentityMismatch"
        ),
    ),
    Row("executor.cancelled", K.CANCELLED, "D", named("thornback.executor", "RunCancelled")),
    Row("executor.given_up", K.APPLICATION, "D", named("thornback.executor", "RankFailure")),
    Row(
        "executor.not_loaded",
        K.SYSTEM,
        "R",
        named("thornback.executor", "NotLoaded"),
        {"phase": "setup"},
    ),
    Row(
        "executor.misuse",
        K.SYSTEM,
        "D",
        [
            *named("thornback.executor", "UsageError"),
            *named("thornback.graph", "GraphError"),
            *named("thornback.scheduler", "SchedulerError"),
        ],
    ),
]

PYTHON = [
    Row("python.disk_full", K.RESOURCE, "RPWLD", numbered(errno.ENOSPC, errno.EDQUOT)),
    Row("python.stale_mount", K.RESOURCE, "RPWLD", numbered(errno.ESTALE)),
    Row(
        "python.disk_broken",
        K.RESOURCE,
        "RPWLD",
        numbered(
            errno.EIO, errno.EROFS, errno.ENXIO, errno.ENODEV, errno.ENOTCONN, errno.EREMOTEIO
        ),
    ),
    Row(
        "python.too_many",
        K.RESOURCE,
        "RPWLD",
        numbered(errno.EMFILE, errno.ENFILE, errno.ENOMEM),
    ),
    Row(
        "python.too_many_processes",
        K.RESOURCE,
        "RPWLD",
        numbered(errno.EAGAIN),
        {"of_fork": True},
    ),
    Row("python.try_again", K.RESOURCE, "PWLD", numbered(errno.EAGAIN, errno.ENOBUFS)),
    Row("python.no_thread", K.RESOURCE, "RPWLD", [RuntimeError("can't start new thread")]),
    Row("python.out_of_memory", K.OOM, "PWLD", [MemoryError()]),
    Row(
        "python.interrupted",
        K.INTERRUPTED,
        "PWLD",
        [
            KeyboardInterrupt(),
            *named("asyncio.exceptions", "CancelledError"),
            *named("concurrent.futures._base", "CancelledError"),
            *named("trio", "Cancelled"),
        ],
    ),
    Row(
        "python.refused",
        K.UNAVAILABLE,
        "PWLD",
        [ConnectionRefusedError(), *named("socket", "gaierror")],
    ),
    Row(
        "python.unreachable",
        K.UNAVAILABLE,
        "PWLD",
        numbered(errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN),
    ),
    Row(
        "python.pipe_closed",
        K.WORKER_CRASH,
        "PW",
        [
            EOFError(),
            BrokenPipeError(),
            ConnectionResetError(),
            *named("anyio", "BrokenResourceError", "EndOfStream"),
            *named("trio", "BrokenResourceError"),
        ],
    ),
    Row("python.connection", K.UNAVAILABLE, "LD", [ConnectionResetError(), BrokenPipeError()]),
    Row(
        "python.executor_broken",
        K.WORKER_CRASH,
        "PW",
        [
            *named("concurrent.futures._base", "BrokenExecutor"),
            *named("anyio", "BrokenWorkerProcess"),
        ],
    ),
    Row(
        "python.process_pool_broken",
        K.WORKER_CRASH,
        "R",
        [
            *named("concurrent.futures.process", "BrokenProcessPool"),
            *named("anyio", "BrokenWorkerProcess"),
        ],
    ),
    Row(
        "python.child_killed",
        K.WORKER_CRASH,
        "R",
        [
            lookalike("subprocess.CalledProcessError", returncode=-9),
            lookalike("subprocess.CalledProcessError", returncode=137),
        ],
    ),
    Row("python.child_timed_out", K.TIMEOUT, "R", named("subprocess", "TimeoutExpired")),
    Row(
        "python.timed_out",
        K.TIMEOUT,
        "PWLD",
        [
            TimeoutError(),
            *named("multiprocessing.context", "TimeoutError"),
            *named("subprocess", "TimeoutExpired"),
            *named("trio", "TooSlowError"),
        ],
    ),
    Row("python.import", K.SETUP, "PW", [ImportError("x"), ModuleNotFoundError("x")], {}, "setup"),
    Row(
        "python.file_missing",
        K.SETUP,
        "PW",
        [FileNotFoundError(2, "x"), PermissionError(13, "x")],
        phase="setup",
    ),
    Row("python.installation", K.SYSTEM, "LD", [ImportError("x"), ModuleNotFoundError("x")]),
    Row(
        "python.pickle",
        K.SYSTEM,
        "PWLD",
        [*named("_pickle", "PickleError"), *named("pickle", "PickleError")],
    ),
]

NOT_LOADED = ("ModuleNotFoundError", "ImportError", "AttributeError", "PicklingError")
RAY = [
    Row("ray.out_of_memory", K.OOM, "WLD", named("ray.exceptions", "OutOfMemoryError")),
    Row(
        "ray.cancelled",
        K.INTERRUPTED,
        "WLD",
        [
            *named("ray.exceptions", "TaskCancelledError"),
            *named("ray.serve.exceptions", "RequestCancelledError"),
        ],
    ),
    Row(
        "ray.placement_removed",
        K.PLACEMENT_REMOVED,
        "WLD",
        named("ray.exceptions", "TaskPlacementGroupRemoved", "ActorPlacementGroupRemoved"),
    ),
    Row(
        "ray.unschedulable_removed",
        K.PLACEMENT_REMOVED,
        "WLD",
        [
            *said("TaskUnschedulableError", "because its placement group was removed."),
            *said("ActorUnschedulableError", "because its placement group was removed."),
        ],
    ),
    Row(
        "ray.runtime_env_final",
        K.SETUP,
        "WLD",
        said(
            "RuntimeEnvSetupError",
            "No matching distribution found for no-such",
            "Please install virtualenv",
        ),
        phase="setup",
    ),
    Row(
        "ray.runtime_env",
        K.SETUP,
        "WLD",
        [
            *named("ray.exceptions", "RuntimeEnvSetupError"),
            *said(
                "RuntimeEnvSetupError",
                "after connection broken by 'x': ERROR: No matching distribution found for x",
                "Could not fetch URL x: certificate; ERROR: No matching distribution found for x",
            ),
        ],
        phase="setup",
    ),
    Row(
        "ray.unschedulable",
        K.UNSCHEDULABLE,
        "WLD",
        named("ray.exceptions", "TaskUnschedulableError", "ActorUnschedulableError"),
    ),
    Row(
        "ray.actor_node_preempted",
        K.PREEMPTION,
        "WLD",
        dead("The actor died: the actor's node was preempted: spot"),
    ),
    Row("ray.actor_node_died", K.NODE_LOST, "WLD", dead("It died because its node has died.")),
    Row(
        "ray.actor_placement_removed",
        K.PLACEMENT_REMOVED,
        "WLD",
        dead("Worker exit type: INTENDED_SYSTEM_EXIT. Its placement group was removed"),
    ),
    Row(
        "ray.actor_placement_exit",
        K.PLACEMENT_REMOVED,
        "WLD",
        [*dead("its placement group is gone"), *said("RpcError", "placement group")],
        {"exit_type": "INTENDED_SYSTEM_EXIT"},
    ),
    Row(
        "ray.actor_import",
        K.SETUP,
        "WLD",
        dead("ModuleNotFoundError: No module named 'x'", actor_init_failed=True),
        phase="setup",
    ),
    Row(
        "ray.actor_import_name",
        K.SETUP,
        "WLD",
        dead("ImportError: cannot import name 'x'", actor_init_failed=True),
        phase="setup",
    ),
    Row("ray.actor_init", K.APPLICATION, "WLD", dead("ValueError: x", actor_init_failed=True)),
    Row(
        "ray.actor_creation",
        K.APPLICATION,
        "WLD",
        [*dead(), *ANY],
        {"death_cause": "CREATION_TASK_FAILED"},
    ),
    Row(
        "ray.actor_runtime_env",
        K.SETUP,
        "WLD",
        [*dead(), *ANY],
        {"death_cause": "RUNTIME_ENV_FAILED"},
        "setup",
    ),
    Row(
        "ray.actor_setup_hook",
        K.SETUP,
        "WLD",
        [
            *dead("Failed to execute the setup hook method."),
            *dead("Failed to import setup hook within 60 seconds."),
        ],
        {"death_cause": "WORKER_DIED"},
        "setup",
    ),
    Row(
        "ray.actor_bundle_removed",
        K.PLACEMENT_REMOVED,
        "WLD",
        dead("because its associated placement group was removed."),
        {"death_cause": "ACTOR_UNSCHEDULABLE"},
    ),
    Row(
        "ray.actor_unschedulable",
        K.UNSCHEDULABLE,
        "WLD",
        [*dead(), *ANY],
        {"death_cause": "ACTOR_UNSCHEDULABLE"},
    ),
    Row("ray.actor_killed", K.INTERRUPTED, "WLD", [*dead(), *ANY], {"death_cause": "RAY_KILL"}),
    Row(
        "ray.actor_out_of_scope", K.SYSTEM, "WLD", [*dead(), *ANY], {"death_cause": "OUT_OF_SCOPE"}
    ),
    Row(
        "ray.actor_exited",
        K.APPLICATION,
        "WLD",
        [*dead(), *ANY],
        {"exit_type": "INTENDED_USER_EXIT", "death_cause": "WORKER_DIED"},
    ),
    Row("ray.actor_crashed", K.WORKER_CRASH, "WLD", dead(), {"death_cause": "WORKER_DIED"}),
    Row("ray.actor_oom_text", K.OOM, "WLD", dead("Worker exit type: NODE_OUT_OF_MEMORY")),
    Row(
        "ray.actor_exited_text",
        K.APPLICATION,
        "WLD",
        dead("Worker exit type: INTENDED_USER_EXIT Worker exit detail: x"),
    ),
    Row(
        "ray.actor_killed_text",
        K.INTERRUPTED,
        "WLD",
        dead("The actor is dead because it was killed by `ray.kill`."),
    ),
    Row(
        "ray.actor_unavailable",
        K.UNAVAILABLE,
        "WLD",
        named("ray.exceptions", "ActorUnavailableError"),
    ),
    Row("ray.actor_died", K.WORKER_CRASH, "WLD", dead("x")),
    Row("ray.actor", K.WORKER_CRASH, "WLD", named("ray.exceptions", "RayActorError")),
    Row("ray.data_system", K.SYSTEM, "WLD", named("ray.data.exceptions", "SystemException")),
    Row(
        "ray.data_timed_out",
        K.TIMEOUT,
        "WLD",
        named("ray.data.exceptions", "ExecutionTimeoutError"),
    ),
    Row("ray.serve_busy", K.THROTTLED, "WLD", named("ray.serve.exceptions", "BackPressureError")),
    Row(
        "ray.serve_unavailable",
        K.UNAVAILABLE,
        "WLD",
        named("ray.serve.exceptions", "DeploymentUnavailableError", "ReplicaUnavailableError"),
    ),
    Row(
        "ray.serve",
        K.SYSTEM,
        "WLD",
        named("ray.serve.exceptions", "RayServeException", "gRPCStatusError"),
    ),
    Row(
        "ray.group_gone",
        K.PLACEMENT_REMOVED,
        "WLD",
        [Exception("Placement group 12 does not exist.")],
    ),
    Row("ray.after_shutdown", K.SYSTEM, "WLD", [Exception("Failed to submit task to actor x")]),
    *(
        Row(
            f"ray.unloadable_{name.lower()}",
            K.APPLICATION,
            "WLD",
            said("RaySystemError", f"System error: {name}: x"),
        )
        for name in NOT_LOADED
    ),
    Row(
        "ray.object_lost",
        K.OBJECT_LOST,
        "WLD",
        named(
            "ray.exceptions",
            "ObjectLostError",
            "PlasmaObjectNotAvailable",
            "OwnerDiedError",
            "ObjectFetchTimedOutError",
            "ObjectReconstructionFailedError",
        ),
    ),
]

LAST = [
    Row("rank.setup", K.SETUP, "RP", ANY, {"phase": "setup"}, "setup"),
    Row("rank.exited", K.APPLICATION, "R", [SystemExit(0), SystemExit("x")]),
    Row(
        "rank.interrupted",
        K.APPLICATION,
        "R",
        [KeyboardInterrupt(), *named("asyncio.exceptions", "CancelledError")],
    ),
    Row("rank.raised", K.APPLICATION, "R", [*ANY, MemoryError(), *dead(preempted=True)]),
    Row("worker.raised", K.SYSTEM, "WLD", [lookalike_task_error(LookupError("x"))]),
    Row("unknown", K.UNKNOWN, "PWLD", ANY),
]

GPU = [
    *(
        Row(f"gpu.{name}", K.RESOURCE, "R", [RuntimeError(f"CUDA error: {text} (x)")])
        for name, text in (
            ("uncorrectable_ecc_error", "uncorrectable ECC error encountered"),
            ("ecc_uncorrectable", "CUDA_ERROR_ECC_UNCORRECTABLE"),
            ("eccuncorrectable", "cudaErrorECCUncorrectable"),
            ("uncorrectable_nvlink_error", "uncorrectable NVLink error detected"),
            ("fallen_off_the_bus", "GPU 0000:01:00.0: GPU has fallen off the bus."),
            ("gpu_is_lost", "Unable to determine the device handle: GPU is lost."),
            ("gpu_requires_reset", "GPU requires reset"),
            ("hardware_stack_error", "hardware stack error"),
        )
    ),
    Row(
        "gpu.engine_dead",
        K.WORKER_CRASH,
        "R",
        [
            *named("vllm.v1.engine.exceptions", "EngineDeadError"),
            *named("vllm.engine.async_llm_engine", "AsyncEngineDeadError"),
            *named("vllm.engine.multiprocessing", "MQEngineDeadError"),
        ],
    ),
    Row(
        "gpu.engine_unborn",
        K.SETUP,
        "R",
        [RuntimeError("Engine core initialization failed. See root cause above.")],
    ),
]

ROWS = [*FACTS, *OURS, *PYTHON, *RAY, *GPU, *LAST]


@pytest.mark.parametrize("row", ROWS, ids=[row.rule for row in ROWS])
def test_a_rule_decides_what_it_is_for_and_only_for_who_saw_it(row: Row) -> None:
    for error in row.errors:
        deciding = ""
        for letter, origin in SEEN_BY.items():
            fault = lenient.classify(error, {**row.facts, "origin": origin.value})
            if fault.rule == row.rule:
                deciding += letter
                assert (fault.kind, fault.phase) == (row.kind, row.phase or fault.phase), error
        assert sorted(deciding) == sorted(row.origins), f"{type(error)} {error}"


@pytest.mark.parametrize(
    ("error", "rule"),
    [
        (dead("Worker exit type: INTENDED_SYSTEM_EXIT"), "ray.actor_died"),
        (dead("It was in a placement group."), "ray.actor_died"),
        (dead("ModuleNotFoundError, raised by a method"), "ray.actor_died"),
        ([Exception("Placement group 12 was full")], "unknown"),
        ([Exception("File 12 does not exist.")], "unknown"),
        ([KeyError("Placement group 12 does not exist.")], "unknown"),
        ([RuntimeError("can't start a car")], "unknown"),
        (said("RuntimeEnvSetupError", "ERROR: Could not install x"), "ray.runtime_env"),
        ([LookupError("can't start new thread")], "unknown"),
        (said("RaySystemError", "System error: x"), "ray.system"),
    ],
)
def test_what_only_sounds_like_it(error: list[BaseException], rule: str) -> None:
    assert lenient.classify(error[0], {"origin": "worker"}).rule == rule


def test_every_rule_has_a_row() -> None:
    """But for the rules on one exception of Ray each: `test_every_ray_exception` has those."""
    others = {rule.name for rule in DEFAULT_RULES} - {row.rule for row in ROWS}
    assert others == {
        "ray.authentication",
        "ray.channel",
        "ray.disk_full",
        "ray.get_timed_out",
        "ray.node_died",
        "ray.object_freed",
        "ray.other",
        "ray.our_misuse",
        "ray.raylet_died",
        "ray.reference_count",
        "ray.rpc",
        "ray.store_full",
        "ray.system",
        "ray.task",
        "ray.user_code",
        "ray.worker_crashed",
        "ray.worker_exit",
    }


OF_ACTORS = [row for row in RAY if row.rule.startswith("ray.actor") and not row.facts]


@pytest.mark.parametrize("row", OF_ACTORS, ids=[row.rule for row in OF_ACTORS])
def test_death_of_another_actor_is_the_same_fault_secondhand(row: Row) -> None:
    for error in row.errors:
        inside = lookalike_task_error(error)
        for facts in ({}, {"origin": "worker"}, {"origin": "rank"}):
            told = lenient.classify(inside, facts)
            assert (told.kind, told.rule) == (row.kind, row.rule)
            assert told.facts["secondhand"] is True


LOST: dict[str, Attribute] = {"gpu_context_lost": True}
BROKEN: dict[str, Attribute] = {"gpu_context_lost": True, "gpu_fault": True}


@pytest.mark.parametrize(
    ("text", "facts", "expected"),
    [
        ("uncorrectable ECC error encountered", {}, BROKEN),
        ("uncorrectable ECC error on cuda:3", {}, {**BROKEN, "gpu_device": 3}),
        ("GPU 0000:01:00.0: GPU has fallen off the bus", {}, BROKEN),
        ("all CUDA-capable devices are busy or unavailable", {}, BROKEN),
        ("an illegal memory access was encountered", {}, LOST),
        ("an illegal memory access was encountered", {"healthy_before": False}, LOST),
        ("an illegal memory access was encountered", {"healthy_before": True}, BROKEN),
        ("unspecified launch failure", {}, LOST),
        (
            "unspecified launch failure on GPU 1",
            {"healthy_before": True},
            {**BROKEN, "gpu_device": 1},
        ),
        ("device-side assert triggered", {"healthy_before": True}, LOST),
        ("out of memory on GPU 1", {"healthy_before": True}, {}),
    ],
)
def test_gpu_facts_of_cuda_errors(
    text: str, facts: dict[str, Attribute], expected: dict[str, Attribute]
) -> None:
    for outer in (RuntimeError(f"CUDA error: {text}"), KeyError("x")):
        if isinstance(outer, KeyError):
            outer.__cause__ = RuntimeError(f"CUDA error: {text}")
        fault = Classifier().classify(outer, {"origin": "rank", **facts})
        found = {name: value for name, value in fault.facts.items() if name.startswith("gpu_")}
        assert found == expected
    elsewhere = lookalike_task_error(RuntimeError(f"CUDA error: {text}"))
    assert "gpu_fault" not in Classifier().classify(elsewhere).facts


KEPT: dict[str, Attribute] = {
    "actor_id": "a1",
    "actor_init_failed": False,
    "code": 1,
    "errno": 2,
    "error_code": "E",
    "exit_code": 3,
    "grpc_status": "OK",
    "largest_memory_bytes": 4,
    "non_retryable": False,
    "peak_rss_bytes": 5,
    "preempted": False,
    "returncode": 6,
    "rpc_code": 7,
    "signal": 8,
    "status": 9,
    "status_code": 10,
    "timeout_s": 11.0,
}


def test_what_a_fault_keeps_of_an_exception() -> None:
    error = lookalike("my.Error", "x", **KEPT, path="/home/someone", user="someone")
    assert lenient.classify(error, {"origin": "worker"}).facts == KEPT
    assert lenient.classify(error, {"origin": "worker", "signal": 9, "node": "n"}).facts == {
        **KEPT,
        "signal": 9,
        "node": "n",
    }
    after = lookalike("my.Error", "x", retry_after=3)
    assert lenient.classify(after, {"origin": "worker"}).facts == {"retry_after_s": 3.0}
