"""What shall be done about a fault: again or not, when, where, with what; who is to blame. Pure.

A decision rests on the fault and on the history that the caller keeps of the rank: its charged
faults, and its preemptions, if they are to be limited too. Budgets count retries: a kind with
`retries=3` may occur three times; the fourth time the rank is given up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

from thornback.faults.budgets import DEFAULT_BUDGETS, FaultBudget
from thornback.faults.classifier import Classifier
from thornback.faults.kinds import ErrorData, Fault, FaultKind, Origin
from thornback.faults.memory import MemoryNeed, memory_need
from thornback.faults.values import Value
from thornback.faults.verdicts import RetryVerdict, StopReason

History = Sequence[tuple[Fault, str]]
Stop: TypeAlias = tuple[StopReason, str]

GANG_PHASES = ("start", "ping", "heartbeat", "recall", "close")
"""Time-outs that are not the rank's own: they count as UNAVAILABLE."""
PATIENT = (
    FaultKind.THROTTLED,
    FaultKind.NETWORK,
    FaultKind.UNAVAILABLE,
    FaultKind.APPLICATION,
)
"""Kinds that wait for as long as the other side, or the exception of the user's code, asked."""
UNBOUNDED = "unbounded"
MAX_EXPONENT = 30
MAX_FACTOR = 1000.0
"""Powers of factors stay finite by these."""


class RetryPolicy(Value):
    """Decides by a table of budgets. Immutable; ValueError for arguments that make no sense."""

    retries: int = 0
    """For errors of the rank's own code (APPLICATION)."""
    max_retries: int | Literal["unbounded"] | None = None
    """Caps the budget of every kind, also of preemptions; None: as in the table. "unbounded": what
    is retried at all is retried for ever, but for poison and for what runs out of all memory."""
    memory_bytes: int | None = None
    """What the stage asks for, per rank: the foot of the ladder after OOM."""
    budgets: Mapping[FaultKind, FaultBudget] = {}
    """Instead of those of the default table."""
    max_charged: int = 10
    """Retries after charged faults of all kinds together (lost nodes apart); `retries` if that is
    more."""
    base_delay_s: float = 1.0
    """The longest pause before the first retry; the jitter makes it shorter."""
    backoff_factor: float = 2.0
    """Each further retry after a fault of the same kind may wait this many times longer."""
    max_delay_s: float = 60.0
    """No pause is longer, but for what the other side asks for."""
    max_retry_after_s: float = 900.0
    """No more patience than this for what the other side asks for."""
    timeout_factor: float = 1.0
    """Each time-out of a rank multiplies its next time limit by this."""
    breaker_after: int | None = 20
    """A `Breaker` stops everything after so many faults of machines in a row; None: never."""

    def __post_init__(self) -> None:
        least_of = {"retries": 0, "max_retries": 0, "memory_bytes": 1, "breaker_after": 1}
        for name, least in least_of.items():
            value: object = getattr(self, name)
            if (value is None and name != "retries") or (name, value) == ("max_retries", UNBOUNDED):
                continue
            if type(value) is not int or value < least:
                raise ValueError(f"{name} must be an int >= {least}, not {value!r}.")
        if not 0.0 <= self.base_delay_s <= self.max_delay_s < float("inf"):
            raise ValueError(
                "0 <= base_delay_s <= max_delay_s < infinity must hold, not "
                f"{self.base_delay_s!r} and {self.max_delay_s!r}."
            )
        for factor in (self.backoff_factor, self.timeout_factor):
            if not 1.0 <= factor <= MAX_FACTOR:
                raise ValueError("backoff_factor and timeout_factor must be >= 1, and <= 1000.")
        if self.max_charged < 0 or not 0.0 <= self.max_retry_after_s < float("inf"):
            raise ValueError("max_charged and max_retry_after_s must be >= 0, and finite.")

    def decide(self, fault: Fault, history: History, draw: float, /) -> RetryVerdict:
        """Return the verdict. Never raises; the same arguments give the same verdict.

        Args:
            fault: what has happened. Facts that are looked at, where given: `node` (where) and
                `only_node` (True: there is no other), for poison; `peak_rss_bytes` and
                `largest_memory_bytes`, for OOM; `retry_after_s`; `non_retryable`.
            history: the earlier faults of this rank with their nodes, oldest first; empty for a
                gang's fault.
            draw: in [0, 1): the jitter.
        """
        counted = counted_as(fault)
        budget = self.budget(counted)
        earlier = sum(1 for past, _ in history if counted_as(past) is counted)
        need = memory_need(self.memory_bytes, [*(past for past, _ in history), fault])
        stop = self._stop(fault, history, earlier, need)
        limit = self._limit(fault)
        again = f"retry {earlier + 1}" + ("" if limit is None else f" of {limit}")
        avoid = _avoids_node(fault, earlier, budget)
        remedy = _remedy(fault, budget, need, avoid=avoid)
        timeouts = sum(1 for past in (*(p for p, _ in history), fault) if _is_rank_timeout(past))
        return RetryVerdict(
            retry=stop is None,
            delay_s=self.delay_s(fault, earlier, draw),
            charged=budget.charged,
            infrastructure=counted is not FaultKind.APPLICATION,
            blames_rank=budget.blames_rank or fault.phase == "heartbeat",
            blames_node=self._blames_node(fault, history, budget),
            avoid_node=avoid,
            memory_bytes=need.memory_bytes,
            timeout_factor=self.timeout_factor ** min(timeouts, MAX_EXPONENT),
            reason=f"{fault.kind.value}: "
            + (f"given up: {stop[1]}" if stop else f"{again}, {remedy}"),
            stop=stop[0] if stop else None,
        )

    def budget(self, kind: FaultKind) -> FaultBudget:
        """Return the budget of a kind, as this policy has it (before `max_retries` caps it)."""
        found = self.budgets.get(kind)
        if found is not None:
            return found
        table = DEFAULT_BUDGETS[kind]
        if kind is FaultKind.APPLICATION:
            return table.__replace__(retries=self.retries)
        return table

    def delay_s(self, fault: Fault, earlier: int, draw: float) -> float:
        """Return the pause: exponential with full jitter, or what the other side asked for.

        Args:
            fault: what has happened.
            earlier: how many faults of its kind there were before.
            draw: in [0, 1]: the jitter; what is outside counts as 1.

        Source of full jitter: AWS Architecture Blog, "Exponential Backoff And Jitter" (2015).
        """
        draw = draw if 0.0 <= draw <= 1.0 else 1.0
        asked = fault.facts.get("retry_after_s")
        if fault.kind in PATIENT and isinstance(asked, int | float) and asked > 0:
            # Not all at the very moment that was named.
            return float(min(asked, self.max_retry_after_s)) + draw * self.base_delay_s
        if earlier == 0 and self.budget(counted_as(fault)).at_once:
            return 0.0
        grown = self.base_delay_s * self.backoff_factor ** min(earlier, MAX_EXPONENT)
        return draw * min(grown, self.max_delay_s)

    def _limit(self, fault: Fault) -> int | None:
        """Return how many retries a fault like this has; None: no end."""
        retries = self.budget(counted_as(fault)).retries
        if fault.kind is FaultKind.SYSTEM and fault.origin is Origin.DRIVER:
            retries = 0  # Another node would have the same driver.
        if isinstance(self.max_retries, str):
            return 0 if retries == 0 else None
        if self.max_retries is None:
            return retries
        return self.max_retries if retries is None else min(retries, self.max_retries)

    def _stop(self, fault: Fault, history: History, earlier: int, need: MemoryNeed) -> Stop | None:
        """Return why the rank (or the gang) is given up; None: it is not."""
        if fault.kind is FaultKind.CANCELLED:
            return StopReason.CANCELLED, "it was cancelled"
        if fault.facts.get("non_retryable") is True:
            why = "the error itself says that trying again is useless (non_retryable)"
            return StopReason.FINAL, why
        if fault.kind is FaultKind.TIMEOUT and fault.phase == "place":
            why = f"the resources were not free in time: {_line(fault)}"
            return StopReason.NOT_PLACED, why
        if fault.kind is FaultKind.UNSCHEDULABLE:
            # A rung that no node has: once more with what the largest has.
            known = fault.facts.get("largest_memory_bytes") is not None
            if earlier == 0 and known and need.memory_bytes and not need.exhausted:
                none = (StopReason.NO_RETRIES, "max_retries=0")
                return none if self.max_retries == 0 else None
            return StopReason.UNSCHEDULABLE, f"it can never run: {_line(fault)}"
        poison = _poison(fault, history)
        if poison:
            return StopReason.POISON, poison
        if fault.kind is FaultKind.OOM and need.exhausted:
            why = f"it ran out of memory with the most there is, {need.memory_bytes} bytes"
            return StopReason.OUT_OF_MEMORY, why
        return self._spent(fault, history, earlier)

    def _spent(self, fault: Fault, history: History, earlier: int) -> Stop | None:
        limit = self._limit(fault)
        if limit == 0:
            return StopReason.NO_RETRIES, f"no retries for this: {_line(fault)}"
        if limit is not None and earlier >= limit:
            return StopReason.BUDGET, f"{limit} retries used up: {_line(fault)}"
        if not self.budget(counted_as(fault)).in_total or self.max_retries == UNBOUNDED:
            return None
        total = sum(1 for past, _ in history if self.budget(counted_as(past)).in_total)
        most = max(self.max_charged, self.retries)
        if total < most:
            return None
        return StopReason.TOTAL, f"{most} retries of all kinds used up: {_line(fault)}"

    def _blames_node(self, fault: Fault, history: History, budget: FaultBudget) -> bool:
        if _is_own_death(fault):
            # Who dies everywhere is to blame himself.
            here = fault.facts.get("node")
            elsewhere = any(_is_own_death(past) and node != here for past, node in history)
            return budget.blames_node and not elsewhere
        if fault.kind is FaultKind.UNAVAILABLE or counted_as(fault) is not fault.kind:
            return fault.origin is Origin.WORKER
        return budget.blames_node


def counted_as(fault: Fault) -> FaultKind:
    """Return the kind whose budget pays: a worker's time-out is not the rank's."""
    if fault.kind is FaultKind.TIMEOUT and fault.phase in GANG_PHASES:
        return FaultKind.UNAVAILABLE
    return fault.kind


def is_retriable(error: BaseException | ErrorData) -> bool:
    """Return whether the default policy tries again when this error happens for the first time.

    Never raises an `Exception`. Fits `tenacity.retry_if_exception(is_retriable)` and
    `stamina.retry(on=is_retriable)`; a `FaultHistory` knows more: budgets, pauses, your own rules.
    """
    return RetryPolicy().decide(Classifier().classify(error), (), 1.0).retry


def backoff_s(error: BaseException | ErrorData, attempt: int, draw: float = 1.0) -> float:
    """Return how long to wait, in seconds, before trying again after this error.

    Args:
        error: what the attempt raised.
        attempt: its number, from 1.
        draw: give `random.random()` for full jitter; 1: the longest pause.

    Raises:
        ValueError: `attempt` is less than 1.
    """
    if attempt < 1:
        raise ValueError(f"attempt must be >= 1 (attempts count from 1), not {attempt!r}.")
    return RetryPolicy().delay_s(Classifier().classify(error), attempt - 1, draw)


def _poison(fault: Fault, history: History) -> str:
    """Return why the rank itself must be what kills its processes; empty: it need not be.

    Only deaths of its *own* process count: a worker may go down for the sake of others. Where
    neither `node` nor `only_node` is among the facts, the nodes of the history must convict it.
    """
    if not _is_own_death(fault):
        return ""
    where = [node for past, node in history if _is_own_death(past)]
    here = fault.facts.get("node")
    nodes = dict.fromkeys([*where, here if isinstance(here, str) else ""])
    nodes.pop("", None)
    if len(nodes) >= 2:
        return f"poison: its own process died on {len(nodes)} nodes ({', '.join(nodes)})"
    if where and fault.facts.get("only_node") is True:
        return f"poison: its own process died {len(where) + 1} times on the only node there is"
    return ""


def _avoids_node(fault: Fault, earlier: int, budget: FaultBudget) -> bool:
    again = earlier > 0 and fault.kind in (FaultKind.WORKER_CRASH, FaultKind.UNAVAILABLE)
    return budget.avoid_node or again or counted_as(fault) is not fault.kind


def _remedy(fault: Fault, budget: FaultBudget, need: MemoryNeed, *, avoid: bool) -> str:
    """Return what is different the next time: for people."""
    elsewhere = ", on another node" if avoid and "node" not in budget.remedy else ""
    if need.memory_bytes is None:
        unknown = "as it is: how much memory it needs is not known"
        return unknown if fault.kind is FaultKind.OOM else budget.remedy + elsewhere
    memory = f"with {need.memory_bytes / 2**30:.2f} GiB"
    if fault.kind in (FaultKind.OOM, FaultKind.UNSCHEDULABLE):
        return memory + elsewhere
    return f"{budget.remedy}{elsewhere}, {memory}"


def _is_own_death(fault: Fault) -> bool:
    return fault.kind is FaultKind.WORKER_CRASH and fault.origin is Origin.PROCESS


def _is_rank_timeout(fault: Fault) -> bool:
    return fault.kind is FaultKind.TIMEOUT and fault.origin is Origin.PROCESS


def _line(fault: Fault) -> str:
    line = fault.message.strip().partition("\n")[0]
    name = fault.error_type.rpartition(".")[2]
    return f"{name}: {line}"[:200] if line else name
