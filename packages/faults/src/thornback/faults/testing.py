"""For tests of what uses this package: look-alikes of foreign exceptions, and conformance suites.

Needs no test framework: each check is a plain `assert` with a message. Imports no ray: a look-alike
has the names and the attributes of the real thing, and a classifier looks at nothing else.
"""

from __future__ import annotations

import builtins
import json
import math
import pickle
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, TypeAlias

from thornback.faults.hostile import HOSTILE_ERRORS
from thornback.faults.kinds import Attribute, ErrorData, Fault, FaultKind, Origin
from thornback.faults.ray_bases import RAY_BASES
from thornback.faults.verdicts import Standing

__all__ = [
    "HOSTILE_ERRORS",
    "RAY_BASES",
    "ClassifierSubject",
    "Hostile",
    "PolicySubject",
    "VerdictSubject",
    "check_classifier",
    "check_retry_policy",
    "fault",
    "lookalike",
    "lookalike_class",
    "lookalike_task_error",
]


def lookalike(name: str, message: str = "", **attributes: object) -> BaseException:
    """Return an exception that looks like `name` (`ActorDiedError`, or `any_module.AnyClass`).

    Args:
        name: without a module, a class of `ray.exceptions` or of Python itself.
        message: its text.
        attributes: set on the instance.
    """
    error = lookalike_class(name)(message)
    for key, value in attributes.items():
        setattr(error, key, value)
    return error


def lookalike_class(name: str) -> type[BaseException]:
    """Return the class of `lookalike`. Every call makes new ones: compare them by name."""
    made: dict[str, type[BaseException]] = {}

    def make(short: str) -> type[BaseException]:
        if short not in RAY_BASES:
            found: type[BaseException] = getattr(builtins, short)
            return found
        if short not in made:
            bases = tuple(make(base) for base in RAY_BASES[short])
            made[short] = type(short, bases, {"__module__": "ray.exceptions"})
        return made[short]

    module, _, short = name.rpartition(".")
    if not module or module in ("ray.exceptions", "builtins"):
        return make(short)
    return type(short, (Exception,), {"__module__": module})


def lookalike_task_error(cause: BaseException) -> BaseException:
    """Return what `ray.get` raises when user code raised `cause`: of both classes, if possible."""
    base = lookalike_class("RayTaskError")
    bases = (base,) if isinstance(cause, BaseExceptionGroup) else (base, type(cause))
    name = f"RayTaskError({type(cause).__name__})"
    dual = type(name, bases, {"__module__": "ray.exceptions", "__init__": _no_init})
    error: BaseException = dual(str(cause))
    error.cause = cause  # type: ignore[attr-defined]  # as ray does
    return error


def _no_init(self: BaseException, *args: object) -> None: ...


class ClassifierSubject(Protocol):
    """What `check_classifier` checks."""

    def classify(
        self, error: BaseException | ErrorData, facts: Mapping[str, Attribute], /
    ) -> Fault:
        """Return the fault: see `Classifier.classify`."""
        ...


class VerdictSubject(Protocol):
    """What a policy under check returns: see `RetryVerdict`."""

    @property
    def retry(self) -> bool:
        """Try again."""
        ...

    @property
    def delay_s(self) -> float:
        """The pause before that: finite, and growing with the draw."""
        ...

    @property
    def charged(self) -> bool:
        """It counts as an attempt."""
        ...

    @property
    def machine_fault(self) -> bool:
        """It speaks against the machines."""
        ...

    @property
    def blames_rank(self) -> bool:
        """The rank's code may be to blame."""
        ...

    @property
    def blames_node(self) -> bool:
        """The node may be to blame."""
        ...

    @property
    def memory_bytes(self) -> int | None:
        """How much to ask for; None: as before anything had failed."""
        ...

    @property
    def timeout_factor(self) -> float:
        """At least 1."""
        ...

    @property
    def reason(self) -> str:
        """One line for people."""
        ...

    @property
    def signature(self) -> str:
        """Equal for errors of user code with the same cause; empty for other faults."""
        ...


class PolicySubject(Protocol):
    """What `check_retry_policy` checks."""

    def decide(
        self,
        fault: Fault,
        history: Sequence[tuple[Fault, str, Standing]],
        standing: Standing,
        draw: float,
        /,
    ) -> VerdictSubject:
        """Return the verdict: see `RetryPolicy.decide`."""
        ...


Case: TypeAlias = tuple[Callable[[], BaseException], Mapping[str, Attribute], FaultKind]


def _raised(error: BaseException, cause: BaseException) -> BaseException:
    error.__cause__ = cause
    return error


def _lost(name: str, message: str = "", **attributes: object) -> Callable[[], BaseException]:
    return lambda: lookalike(name, message, **attributes)


_RANK = {"origin": "rank", "phase": "rank"}
_PROCESS = {"origin": "process", "phase": "rank"}
_WORKER = {"origin": "worker"}

CASES: tuple[Case, ...] = (
    (lambda: ValueError("bad row"), _RANK, FaultKind.APPLICATION),
    (lambda: SystemExit(0), _RANK, FaultKind.APPLICATION),
    (lambda: KeyboardInterrupt(), _RANK, FaultKind.APPLICATION),
    (_lost("ActorDiedError", preempted=True), _RANK, FaultKind.APPLICATION),
    (lambda: OSError(28, "No space left on device"), _RANK, FaultKind.RESOURCE),
    (lambda: ValueError("no model"), {**_RANK, "phase": "setup"}, FaultKind.SETUP),
    (_lost("thornback.pool.RankProcessDied", signal=9), _PROCESS, FaultKind.WORKER_CRASH),
    (
        _lost("thornback.pool.RankProcessDied", signal=9),
        {**_PROCESS, "oom_kill": True},
        FaultKind.OOM,
    ),
    (_lost("thornback.pool.RankTimedOut"), _PROCESS, FaultKind.TIMEOUT),
    (_lost("thornback.pool.WorkerSilent"), _WORKER, FaultKind.TIMEOUT),
    (lambda: ConnectionResetError(), _WORKER, FaultKind.WORKER_CRASH),
    (_lost("ActorDiedError"), _WORKER, FaultKind.WORKER_CRASH),
    (_lost("ActorDiedError", preempted=True), _WORKER, FaultKind.PREEMPTION),
    (_lost("ActorDiedError"), {**_WORKER, "death_cause": "NODE_DIED"}, FaultKind.NODE_LOST),
    (
        _lost("ActorDiedError"),
        {**_WORKER, "death_cause": "NODE_DIED", "node_draining": True},
        FaultKind.PREEMPTION,
    ),
    (_lost("ActorUnavailableError"), _WORKER, FaultKind.UNAVAILABLE),
    (_lost("OutOfMemoryError"), _WORKER, FaultKind.OOM),
    (_lost("GetTimeoutError"), _WORKER, FaultKind.TIMEOUT),
    (_lost("TaskCancelledError"), {**_WORKER, "cancelled_by_us": True}, FaultKind.CANCELLED),
    (_lost("TaskCancelledError"), _WORKER, FaultKind.INTERRUPTED),
    (_lost("TaskPlacementGroupRemoved"), {"origin": "placement"}, FaultKind.PLACEMENT_REMOVED),
    (
        _lost("thornback.placement.Unschedulable"),
        {"origin": "placement"},
        FaultKind.UNSCHEDULABLE,
    ),
    (
        lambda: _raised(RuntimeError("lost"), lookalike("NodeDiedError")),
        _WORKER,
        FaultKind.NODE_LOST,
    ),
    (
        lambda: BaseExceptionGroup(
            "two", [lookalike("ActorDiedError"), lookalike("NodeDiedError")]
        ),
        _WORKER,
        FaultKind.NODE_LOST,
    ),
    (lambda: LookupError("?"), {"origin": "driver"}, FaultKind.UNKNOWN),
)
"""(error, facts, kind): what a classifier must say, whatever rules it adds."""


def check_classifier(classifier: ClassifierSubject) -> None:
    """Check a classifier. Raises AssertionError naming what is wrong."""
    for make, facts, kind in CASES:
        error = make()
        fault = classifier.classify(error, facts)
        label = f"{type(error).__name__} with {dict(facts)}"
        assert fault.kind is kind, f"{label}: {fault.kind} by {fault.rule!r}, expected {kind}"
        assert fault.origin.value == facts["origin"], f"{label}: origin {fault.origin}"
        assert fault.rule, f"{label}: no rule is named"
        assert pickle.loads(pickle.dumps(fault)) == fault, f"{label}: does not survive pickling"
        assert len(json.dumps(fault.as_json(), allow_nan=False)) < 100_000, f"{label}: too large"
        assert classifier.classify(error, facts) == fault, f"{label}: another answer the next time"
    for origin in Origin:
        fault = classifier.classify(Hostile(), {"origin": origin.value})
        assert fault.origin is origin, f"an exception whose str() raises: {fault.origin}"
    secret = classifier.classify(ValueError("x"), {"origin": "rank", "api_key": "s3cr3t"})
    assert "s3cr3t" not in json.dumps(secret.as_json()), "a secret fact was kept"


class Hostile(Exception):
    """An exception that can neither be printed nor looked into."""

    def __str__(self) -> str:
        raise RuntimeError("no text")

    def __getattribute__(self, name: str) -> object:
        if name.startswith("__"):
            return super().__getattribute__(name)
        raise RuntimeError("no attributes")


def fault(kind: FaultKind, origin: Origin = Origin.WORKER, **facts: Attribute) -> Fault:
    """Return a fault of this kind, for tests of policies."""
    return Fault(
        kind=kind,
        origin=origin,
        rule="test",
        error_type="builtins.RuntimeError",
        message=f"a {kind.value} for a test",
        facts=facts,
    )


def check_retry_policy(policy: PolicySubject, *, most_retries: int = 200) -> None:
    """Check a policy without unbounded budgets. Raises AssertionError naming what is wrong.

    Args:
        policy: what is checked.
        most_retries: no kind, and no mixture of kinds, may be retried more often.
    """
    for kind in FaultKind:
        for origin in Origin:
            for standing in Standing:
                _check_verdicts(policy, fault(kind, origin, node="a"), standing)
                if kind is not FaultKind.PREEMPTION:  # retried for as long as machines go away
                    _check_end(policy, [fault(kind, origin, node="a")], standing, most_retries)
    for kind in (FaultKind.CANCELLED, FaultKind.UNSCHEDULABLE):
        assert not policy.decide(fault(kind), (), Standing.OPEN, 0.5).retry, f"{kind} is retried"
    for kind in (FaultKind.PREEMPTION, FaultKind.SETUP):
        for standing in Standing:
            free = not policy.decide(fault(kind), (), standing, 0.5).charged
            assert free, f"{kind} is charged with standing {standing}"
    mixed = [fault(kind) for kind in FaultKind if kind is not FaultKind.PREEMPTION]
    for standing in Standing:
        _check_end(policy, mixed, standing, most_retries)
    _check_memory(policy)


def _check_verdicts(policy: PolicySubject, what: Fault, standing: Standing) -> None:
    history: list[tuple[Fault, str, Standing]] = []
    for times in range(4):
        verdict = policy.decide(what, history, standing, 0.5)
        label = f"{what.kind} from {what.origin} ({standing.value}) after {times}"
        assert verdict == policy.decide(what, tuple(history), standing, 0.5), (
            f"{label}: two answers"
        )
        flags = [verdict.retry, verdict.charged, verdict.blames_rank, verdict.blames_node]
        flags += [verdict.machine_fault]
        assert all(type(flag) is bool for flag in flags), f"{label}: {flags}"
        assert verdict.reason, f"{label}: no reason"
        assert "\n" not in verdict.reason, f"{label}: a reason of more than one line"
        assert verdict.timeout_factor >= 1.0, f"{label}: a shorter time-out"
        pauses = [
            policy.decide(what, history, standing, draw).delay_s for draw in (0.0, 0.5, 0.999)
        ]
        assert pauses == sorted(pauses), f"{label}: {pauses} do not grow with the draw"
        assert all(0.0 <= pause < math.inf for pause in pauses), f"{label}: pauses {pauses}"
        history.append((what, "a", standing))


def _check_end(
    policy: PolicySubject, faults: Sequence[Fault], standing: Standing, most_retries: int
) -> None:
    """Check that a rank that only ever meets these faults, in turn, is given up in the end."""
    history: list[tuple[Fault, str, Standing]] = []
    live = list(faults)
    while live:
        assert len(history) <= most_retries, f"still retried after {len(history)} faults"
        what = live[len(history) % len(live)]
        if policy.decide(what, history, standing, 0.5).retry:
            history.append((what, "a", standing))
        else:
            live.remove(what)


def _check_memory(policy: PolicySubject) -> None:
    largest = 64 * 2**30
    history: list[tuple[Fault, str, Standing]] = []
    asked = 0
    for _ in range(50):
        facts: dict[str, Attribute] = {
            "peak_rss_bytes": max(asked, 2**30),
            "largest_memory_bytes": largest,
        }
        what = fault(FaultKind.OOM, Origin.PROCESS, **facts)
        verdict = policy.decide(what, history, Standing.UNDECIDED, 0.5)
        if not verdict.retry:
            return
        got = verdict.memory_bytes or 0
        assert asked < got <= largest, f"after {asked} bytes were not enough: {got}"
        asked = got
        history.append((what, "a", Standing.UNDECIDED))
        lost = policy.decide(fault(FaultKind.NODE_LOST), history, Standing.UNDECIDED, 0.5)
        assert lost.memory_bytes == asked, "another fault forgets how much memory is needed"
    raise AssertionError("a rank that runs out of any memory is never given up")
