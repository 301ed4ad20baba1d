"""The failures that the pool itself finds, as data. No classes of these names exist."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from thornback.pool.ports import Attribute, CaughtError, GangLostError, ParkedSlot

_MESSAGE_CHARS = 4096


def _caught(name: str, message: str, **attributes: Attribute) -> CaughtError:
    return CaughtError(
        type_names=(f"thornback.pool.{name}",), message=message, attributes=attributes
    )


def start_timed_out(
    slow: Sequence[str], workers: int, timeout_s: float, runtime_env: Mapping[str, object]
) -> CaughtError:
    """Some of a gang's workers, on these nodes, have given no sign of life."""
    message = (
        f"no sign of life from {len(slow)} of {workers} workers (on {', '.join(slow)}) "
        f"within {timeout_s:g} s"
    )
    if runtime_env:
        message += (
            f"; perhaps their runtime_env ({', '.join(runtime_env)}) is still being built, or its "
            "Python does not start: see runtime_env_setup-*.log in Ray's folder of logs there"
        )
    return _caught("WorkerStartTimedOut", message, timeout_s=timeout_s)


def silent(limit_s: float) -> CaughtError:
    """A worker has answered nothing for too long."""
    message = f"the worker has not answered anything for {limit_s:g} s"
    return _caught("WorkerSilent", message, timeout_s=limit_s)


def recall_timed_out(assignment: int, limit_s: float) -> CaughtError:
    """A worker ignored a recall with a kill."""
    message = f"the worker did not give up assignment {assignment} within {limit_s:g} s"
    return _caught("RecallTimedOut", message, timeout_s=limit_s)


def misbehaved(assignment: int, answer: object) -> CaughtError:
    """A worker answered what it must not answer."""
    message = f"expected the final report of assignment {assignment}, got {answer!r:.200}"
    return _caught("WorkerMisbehaved", message)


def no_port(answer: object) -> CaughtError:
    """A worker did not name a port."""
    return _caught("WorkerMisbehaved", f"expected the number of a free port, got {answer!r:.200}")


def ended() -> CaughtError:
    """A worker said that it is closed, though nobody had asked for that."""
    return _caught("WorkerDied", "the worker ended by itself, without being asked to")


def no_slot_left(parked: Sequence[ParkedSlot]) -> CaughtError:
    """All slots of a worker are parked."""
    each = "; ".join(f"slot {p.slot} (GPU {', '.join(p.gpus)}): {p.reason}" for p in parked)
    slots = "its only slot" if len(parked) == 1 else f"all {len(parked)} slots"
    message = f"the worker has no slot left, since the GPUs of {slots} failed: {each}"
    return _caught("NoSlotLeft", message[:_MESSAGE_CHARS])


def closed(gang: int) -> GangLostError:
    """The gang was closed while this was under way."""
    return GangLostError(_caught("GangClosed", f"gang {gang} was closed"), phase="close")


def not_open(gang: int) -> GangLostError:
    """There is no such gang (any more)."""
    message = f"gang {gang} is not open: open it first, and send nothing after its close"
    return GangLostError(_caught("GangNotOpen", message))
