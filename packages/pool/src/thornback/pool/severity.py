"""Which of several failures of one gang is its root cause. Pure.

It decides only *which* failure of a gang is reported; what that one means is classified later, from
the same data, by who knows all the rules. So these are those rules of a classifier, in its words
and order, that tell the four grave kinds from the rest: this package must not import it, and a test
that may import both holds that they agree.
"""

from __future__ import annotations

import enum
import errno
from collections.abc import Iterator, Mapping

import attrs

from thornback.pool.caught import catch
from thornback.pool.ports import Attribute, CaughtError, SeenBy


class Severity(enum.IntEnum):
    """Which of several failures of one gang is the root cause: the highest, and the earliest among
    equals."""

    OTHER = 0
    WORKER_CRASH = 1
    OOM = 2
    NODE_LOST = 3
    PREEMPTION = 4


@attrs.frozen(kw_only=True, slots=True)
class Loss:
    """The death of a member, or the reason why a gang is lost."""

    error: CaughtError | BaseException
    node: str | None = None
    phase: str = "run"
    facts: Mapping[str, Attribute] = attrs.field(factory=dict)


_S = Severity
_PREEMPTED = (3, "AUTOSCALER_DRAIN_PREEMPTED")
_SIGKILL = 9
_ACTOR = "ray.exceptions.RayActorError"
_TASK = "ray.exceptions.RayTaskError"
"""The worker's own code raised what is in it. It lives, whatever that says of other workers."""

_BEFORE_DEATHS = {
    "ray.exceptions.OutOfMemoryError": _S.OOM,
    "ray.exceptions.TaskCancelledError": _S.OTHER,
    "ray.serve.exceptions.RequestCancelledError": _S.OTHER,
    "ray.exceptions.TaskPlacementGroupRemoved": _S.OTHER,
    "ray.exceptions.ActorPlacementGroupRemoved": _S.OTHER,
    "ray.exceptions.TaskUnschedulableError": _S.OTHER,
    "ray.exceptions.ActorUnschedulableError": _S.OTHER,
    "ray.exceptions.RuntimeEnvSetupError": _S.OTHER,
}
"""Classes that say more than the cause of death does."""
_DEATHS = {
    "CREATION_TASK_FAILED": _S.OTHER,
    "RUNTIME_ENV_FAILED": _S.OTHER,
    "ACTOR_UNSCHEDULABLE": _S.OTHER,
    "RAY_KILL": _S.OTHER,
    "OUT_OF_SCOPE": _S.OTHER,
    "WORKER_DIED": _S.WORKER_CRASH,
}
"""By `death_cause`, without those that are facts about the node or the memory."""
_TEXTS = (
    ("the actor's node was preempted:", _S.PREEMPTION),
    ("because its node has died", _S.NODE_LOST),
)
"""Of an actor's death, where nothing else is known of it."""
_REMOVED = ("intended_system_exit", "placement group")
_LATE_TEXTS = (
    ("exit type: node_out_of_memory", _S.OOM),
    ("exit type: intended_user_exit", _S.OTHER),
    ("killed by `ray.kill`", _S.OTHER),
)
"""Likewise, and only where there is no cause of death."""
_OUTSIDE = {
    "ray.exceptions.ActorUnavailableError": _S.OTHER,
    _ACTOR: _S.WORKER_CRASH,
    "ray.exceptions.NodeDiedError": _S.NODE_LOST,
    "ray.exceptions.LocalRayletDiedError": _S.NODE_LOST,
    "ray.exceptions.WorkerCrashedError": _S.WORKER_CRASH,
    "ray.exceptions.AsyncioActorExit": _S.WORKER_CRASH,
    "ray.exceptions.RayError": _S.OTHER,
    "thornback.pool.WorkerDied": _S.WORKER_CRASH,
    **dict.fromkeys(
        (
            "thornback.pool.WorkerSilent",
            "thornback.pool.WorkerStartTimedOut",
            "thornback.pool.RecallTimedOut",
            "thornback.pool.GangClosed",
            "thornback.pool.WorkerMisbehaved",
            "thornback.pool.GangNotOpen",
            "thornback.placement.PlacementRemoved",
            "ray.data.exceptions.RayDataUserCodeException",
            "ray.data.exceptions.ExecutionTimeoutError",
            "ray.data.exceptions.SystemException",
            "ray.serve.exceptions.BackPressureError",
            "ray.serve.exceptions.DeploymentUnavailableError",
            "ray.serve.exceptions.ReplicaUnavailableError",
            "ray.serve.exceptions.RayServeException",
            "ray.serve.exceptions.gRPCStatusError",
        ),
        _S.OTHER,
    ),
}
"""Classes, seen by the pool. Those that are OTHER stand for themselves: their causes do not
count."""
_ANYWHERE = {
    "thornback.pool.RankProcessDied": _S.WORKER_CRASH,
    "builtins.MemoryError": _S.OOM,
    "builtins.ConnectionRefusedError": _S.OTHER,
    "builtins.EOFError": _S.WORKER_CRASH,
    "builtins.ConnectionError": _S.WORKER_CRASH,
    "anyio.BrokenResourceError": _S.WORKER_CRASH,
    "anyio.EndOfStream": _S.WORKER_CRASH,
    "trio.BrokenResourceError": _S.WORKER_CRASH,
    "concurrent.futures._base.BrokenExecutor": _S.WORKER_CRASH,
    "anyio.BrokenWorkerProcess": _S.WORKER_CRASH,
    **dict.fromkeys(
        (
            "thornback.pool.RankTimedOut",
            "asyncio.exceptions.CancelledError",
            "concurrent.futures._base.CancelledError",
            "trio.Cancelled",
            "builtins.KeyboardInterrupt",
            "socket.gaierror",
            "builtins.TimeoutError",
            "multiprocessing.context.TimeoutError",
            "subprocess.TimeoutExpired",
            "trio.TooSlowError",
            "builtins.ImportError",
            "builtins.FileNotFoundError",
            "builtins.PermissionError",
            "_pickle.PickleError",
            "pickle.PickleError",
        ),
        _S.OTHER,
    ),
}
"""Classes, seen by the pool or the supervisor; as above."""
_OF_THE_NODE = (
    *(errno.ENOSPC, errno.EDQUOT, errno.ESTALE, errno.EIO, errno.EROFS, errno.ENXIO, errno.ENODEV),
    *(errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOMEM, errno.ENOBUFS),
    *(errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ENETDOWN),
)
"""What an `OSError` says of its node, whatever else it was caused by."""


def severity_of(
    error: CaughtError | BaseException, facts: Mapping[str, Attribute], seen_by: SeenBy
) -> Severity:
    """Rank a failure as a classifier's kind would rank it.

    Args:
        error: what happened; of a group the worst counts, and its causes where it says nothing
            itself.
        facts: what is known besides; of the same words as a classifier's.
        seen_by: the rank's own code can raise whatever it likes, so what it raises is OTHER.
    """
    if seen_by is SeenBy.RANK:
        return Severity.OTHER
    data = error if isinstance(error, CaughtError) else catch(error)
    return max(_of_chain(leaf, facts, seen_by) for leaf in data.members or (data,))


def _of_chain(error: CaughtError, facts: Mapping[str, Attribute], seen_by: SeenBy) -> Severity:
    for link in (error, *error.causes):
        known = {**link.attributes, **facts}
        for found in _opinions(link, known, seen_by):
            if found is not None:
                return found
    return Severity.OTHER


def _opinions(
    error: CaughtError, known: Mapping[str, Attribute], seen_by: SeenBy
) -> Iterator[Severity | None]:
    """Give what each rule says, in their order; None: nothing."""
    nested = _TASK in error.type_names
    yield _by_facts(known, nested=nested)
    if seen_by is SeenBy.WORKER:
        yield _by_monitor(known)
    if seen_by is SeenBy.WORKER and not nested:
        yield _by_name(error, _BEFORE_DEATHS)
        yield _by_death(error, known)
        yield _by_name(error, _OUTSIDE)
    if "builtins.OSError" in error.type_names and known.get("errno") in _OF_THE_NODE:
        yield Severity.OTHER
    yield _by_name(error, _ANYWHERE)
    if nested:
        yield Severity.OTHER


def _by_facts(known: Mapping[str, Attribute], *, nested: bool) -> Severity | None:
    if known.get("cancelled_by_us") is True:
        return Severity.OTHER
    if known.get("preempted") is True and not nested:
        return Severity.PREEMPTION
    if known.get("node_death_reason") in _PREEMPTED:
        return Severity.PREEMPTION
    if known.get("death_cause") == "NODE_DIED":
        draining = known.get("node_draining") is True
        return Severity.PREEMPTION if draining else Severity.NODE_LOST
    kernel = known.get("oom_kill") is True and _signal(known) == _SIGKILL
    limit = known.get("memory_limit_exceeded") is True
    return Severity.OOM if kernel or limit else None


def _by_monitor(known: Mapping[str, Attribute]) -> Severity | None:
    killed = known.get("death_cause") == "OOM" or known.get("exit_type") == "NODE_OUT_OF_MEMORY"
    return Severity.OOM if killed else None


def _by_death(error: CaughtError, known: Mapping[str, Attribute]) -> Severity | None:
    """Go by how an actor died, whatever the exception is called that brought the news."""
    is_actor, message = _ACTOR in error.type_names, error.message.lower()
    if is_actor and (found := _by_text(message, _TEXTS)) is not None:
        return found
    if is_actor and (known.get("actor_init_failed") is True or all(t in message for t in _REMOVED)):
        return Severity.OTHER
    exit_type = known.get("exit_type")
    if exit_type == "INTENDED_USER_EXIT":
        return Severity.OTHER
    if exit_type == "INTENDED_SYSTEM_EXIT" and "placement group" in message:
        return Severity.OTHER
    found = _DEATHS.get(str(known.get("death_cause")))
    return _by_text(message, _LATE_TEXTS) if found is None and is_actor else found


def _by_text(message: str, table: tuple[tuple[str, Severity], ...]) -> Severity | None:
    return next((severity for text, severity in table if text in message), None)


def _by_name(error: CaughtError, table: Mapping[str, Severity]) -> Severity | None:
    return next((table[name] for name in error.type_names if name in table), None)


def _signal(known: Mapping[str, Attribute]) -> int | None:
    """Return the signal that ended a process, also where only its exit code is known (-9)."""
    number, code = known.get("signal"), known.get("exit_code")
    if number == "SIGKILL":
        return _SIGKILL
    if isinstance(number, int) and not isinstance(number, bool):
        return number
    return -code if isinstance(code, int) and code < 0 else None
