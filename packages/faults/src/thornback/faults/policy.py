"""Decides what to do about a fault: try again or not, when, with what, and who is to blame. Pure.

A decision rests on the fault, on its standing (what the evidence says about it so far), and on the
history that the caller keeps of the rank. Budgets count retries: a kind with `retries=3` may occur
three times; the fourth time the rank is given up.

Theory of evidence. A dead process, a broken disk or a failed set-up may be the rank's doing or the
machine's, and one event cannot tell. Such a fault is therefore free of charge while it is OPEN and
for good once it is settled against the NODE. It is charged once it is settled against the RANK, or
where nothing else can run on that node (UNDECIDED). Free retries are bounded too, by `max_free`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, TypeAlias

from thornback.faults.budgets import DEFAULT_BUDGETS, FaultBudget
from thornback.faults.classifier import Classifier
from thornback.faults.kinds import ErrorData, Fault, FaultKind, Origin
from thornback.faults.memory import MemoryNeed, memory_need
from thornback.faults.rules import Rule
from thornback.faults.values import Value
from thornback.faults.verdicts import RetryVerdict, Standing, StopReason

History: TypeAlias = Sequence[tuple[Fault, str, Standing]]
"""The earlier faults of a rank, oldest first: each with its node and its standing by now."""
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
    max_free: int = 10
    """Retries after faults that evidence does not hold against the rank: a rank that meets so many
    bad machines is given up, because it may be what breaks them."""
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
        if min(self.max_charged, self.max_free) < 0 or not 0.0 <= self.max_retry_after_s < float(
            "inf"
        ):
            raise ValueError(
                "max_charged, max_free and max_retry_after_s must be >= 0, and finite."
            )

    def decide(
        self, fault: Fault, history: History, standing: Standing, draw: float, /
    ) -> RetryVerdict:
        """Return the verdict. Never raises; the same arguments give the same verdict.

        Args:
            fault: what has happened. Facts that are looked at, where given: `node` and `only_node`
                (True: there is no other), for poison; `peak_rss_bytes` and `largest_memory_bytes`,
                for OOM; `retry_after_s`; `non_retryable`; `user_frame`, for the signature.
            history: the earlier faults of this rank with their nodes and their standing by now,
                oldest first; empty for a gang's fault.
            standing: what the evidence says about `fault`. UNDECIDED where nobody collects any. Ask
                again with RANK when it is settled so later: the verdict may be to give up.
            draw: in [0, 1): the jitter.
        """
        counted = counted_as(fault)
        budget = self.budget(counted)
        earlier = sum(1 for past, _, _ in history if counted_as(past) is counted)
        charged_before = sum(
            1
            for past, _, then in history
            if counted_as(past) is counted and not self._is_free(past, then)
        )
        need = memory_need(self.memory_bytes, [*(past for past, _, _ in history), fault])
        free = self._is_free(fault, standing)
        stop = self._stop(fault, history, standing, charged_before, need)
        limit = self.max_free if free else self._limit(fault)
        number = self._free_before(history) if free else charged_before
        again = f"retry {number + 1}" + ("" if limit is None else f" of {limit}")
        timeouts = sum(_is_rank_timeout(past) for past in (*(p for p, _, _ in history), fault))
        return RetryVerdict(
            retry=stop is None,
            delay_s=self.delay_s(fault, earlier, draw),
            charged=budget.charged and not free and not _is_busy(fault),
            machine_fault=(
                need.exhausted and not _is_secondhand(fault)
                if fault.kind is FaultKind.OOM
                else budget.machine_fault or _is_worker_loss(fault)
            ),
            blames_rank=(budget.blames_rank and not _is_secondhand(fault))
            or fault.phase == "heartbeat",
            blames_node=self._blames_node(fault),
            memory_bytes=need.memory_bytes,
            timeout_factor=self.timeout_factor ** min(timeouts, MAX_EXPONENT),
            reason=f"{fault.kind.value}: "
            + (f"given up: {stop[1]}" if stop else f"{again}, {_remedy(fault, budget, need)}"),
            stop=stop[0] if stop else None,
            signature=_signature(fault),
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

    def _stop(
        self,
        fault: Fault,
        history: History,
        standing: Standing,
        earlier: int,
        need: MemoryNeed,
    ) -> Stop | None:
        """Return why the rank (or the gang) is given up; None: it is not."""
        if fault.kind is FaultKind.CANCELLED:
            return StopReason.CANCELLED, "it was cancelled"
        if fault.facts.get("non_retryable") is True:
            why = "the error itself says that trying again is useless (non_retryable)"
            return StopReason.FINAL, why
        if _is_busy(fault):
            return None  # The nodes can hold it and will be free some day: its user waits for that.
        if fault.kind is FaultKind.UNSCHEDULABLE:
            # A rung that no node has: once more with what the largest has.
            known = fault.facts.get("largest_memory_bytes") is not None
            if earlier == 0 and known and need.memory_bytes and not need.exhausted:
                none = (StopReason.NO_RETRIES, "max_retries=0")
                return none if self.max_retries == 0 else None
            return StopReason.UNSCHEDULABLE, f"it can never run: {_line(fault)}"
        poison = _poison(fault, history, standing)
        if poison:
            return StopReason.POISON, poison
        if fault.kind is FaultKind.OOM and need.exhausted and not _is_secondhand(fault):
            why = f"it ran out of memory with the most there is, {need.memory_bytes} bytes"
            return StopReason.OUT_OF_MEMORY, why
        if self._is_free(fault, standing):
            return self._unlucky(fault, history)
        return self._spent(fault, history, standing, earlier)

    def _unlucky(self, fault: Fault, history: History) -> Stop | None:
        if self.max_retries == 0:
            return StopReason.NO_RETRIES, f"max_retries=0: {_line(fault)}"
        if self.max_retries == UNBOUNDED or self._free_before(history) < self.max_free:
            return None
        nodes = len({node for _, node, _ in history if node})
        why = f"{self.max_free} retries free of charge are used up, on {nodes} node"
        return StopReason.UNLUCKY, f"{why}{'' if nodes == 1 else 's'}: {_line(fault)}"

    def _spent(
        self, fault: Fault, history: History, standing: Standing, earlier: int
    ) -> Stop | None:
        limit = self._limit(fault)
        if limit == 0:
            return StopReason.NO_RETRIES, f"no retries for this: {_line(fault)}"
        if limit is not None and earlier >= limit:
            spent = f"retry limit ({limit}) reached: {_line(fault)}"
            if self._is_undecided(fault, history, standing):
                return StopReason.UNDECIDED, f"undecided: rank or machine; {spent}"
            return StopReason.BUDGET, spent
        if not self.budget(counted_as(fault)).in_total or self.max_retries == UNBOUNDED:
            return None
        total = sum(
            1
            for past, _, then in history
            if self.budget(counted_as(past)).in_total and not self._is_free(past, then)
        )
        most = max(self.max_charged, self.retries)
        if total < most:
            return None
        return StopReason.TOTAL, f"retry limit for all kinds ({most}) reached: {_line(fault)}"

    def _is_undecided(self, fault: Fault, history: History, standing: Standing) -> bool:
        """Return whether the charges rest on lack of evidence, not on evidence against the rank."""
        counted = counted_as(fault)
        same = [then for past, _, then in history if counted_as(past) is counted]
        return self._blames_node(fault) and Standing.UNDECIDED in (*same, standing)

    def _is_free(self, fault: Fault, standing: Standing) -> bool:
        """Return whether the rank does not pay for this fault; `max_free` bounds these."""
        if fault.kind is FaultKind.SETUP:
            return True
        if fault.kind is FaultKind.NODE_LOST or not self._blames_node(fault):
            return False
        return standing in (Standing.OPEN, Standing.NODE)

    def _free_before(self, history: History) -> int:
        return sum(1 for past, _, then in history if self._is_free(past, then))

    def _blames_node(self, fault: Fault) -> bool:
        if _is_secondhand(fault):
            return False
        return self.budget(counted_as(fault)).blames_node or _is_worker_loss(fault)


def counted_as(fault: Fault) -> FaultKind:
    """Return the kind whose budget pays: a worker's time-out is not the rank's."""
    if fault.kind is FaultKind.TIMEOUT and fault.phase in GANG_PHASES:
        return FaultKind.UNAVAILABLE
    return fault.kind


def is_retriable(error: BaseException | ErrorData, *, rules: Iterable[Rule] = ()) -> bool:
    """Return whether the default policy tries again when this error happens for the first time.

    No exception makes it raise. Fits `tenacity.retry_if_exception(is_retriable)` and
    `stamina.retry(on=is_retriable)`; with rules, by `functools.partial(is_retriable, rules=...)`.
    A `FaultHistory` keeps to budgets, too.

    Args:
        error: what the attempt raised.
        rules: before the default rules: opt-in sets such as
            `(*THROTTLED_RULES, *NETWORK_RULES)`, or your own.
    """
    fault = Classifier(user_rules=rules).classify(error)
    return RetryPolicy().decide(fault, (), Standing.UNDECIDED, 1.0).retry


def backoff_s(
    error: BaseException | ErrorData,
    attempt: int,
    draw: float = 1.0,
    *,
    rules: Iterable[Rule] = (),
) -> float:
    """Return how long to wait, in seconds, before trying again after this error.

    Args:
        error: what the attempt raised.
        attempt: its number, from 1.
        draw: give `random.random()` for full jitter; 1: the longest pause.
        rules: the same as for `is_retriable`.

    Raises:
        ValueError: `attempt` is less than 1.
    """
    if attempt < 1:
        raise ValueError(f"attempt must be >= 1 (attempts count from 1), not {attempt!r}.")
    fault = Classifier(user_rules=rules).classify(error)
    return RetryPolicy().delay_s(fault, attempt - 1, draw)


def _poison(fault: Fault, history: History, standing: Standing) -> str:
    """Return why the rank itself must be what kills its processes; empty: it need not be.

    Only deaths of its *own* process count, and only those that are settled against it: other ranks
    ran well afterwards on the same node.
    """
    if not _is_own_death(fault):
        return ""
    here = fault.facts.get("node")
    deaths = [node for past, node, then in history if _is_own_death(past) and then is Standing.RANK]
    if standing is Standing.RANK:
        deaths.append(here if isinstance(here, str) else "")
    nodes = [node for node in dict.fromkeys(deaths) if node]
    if len(nodes) >= 2:
        where = ", ".join(nodes)
        return f"poison: its own process died on {len(nodes)} nodes that run others ({where})"
    if len(deaths) >= 2 and fault.facts.get("only_node") is True:
        return (
            f"poison: its own process died {len(deaths)} times on the only node, which runs others"
        )
    return ""


def _remedy(fault: Fault, budget: FaultBudget, need: MemoryNeed) -> str:
    """Return what is different the next time: for people."""
    if _is_secondhand(fault):
        return "as it is: it befell another task, which this one needs"
    if need.memory_bytes is None:
        unknown = "as it is: how much memory it needs is not known"
        return unknown if fault.kind is FaultKind.OOM else budget.remedy
    memory = f"with {need.memory_bytes / 2**30:.2f} GiB"
    if fault.kind in (FaultKind.OOM, FaultKind.UNSCHEDULABLE):
        return memory
    return f"{budget.remedy}, {memory}"


def _signature(fault: Fault) -> str:
    """Return what errors of user code with one cause have in common: their type and their frame."""
    if fault.kind is not FaultKind.APPLICATION:
        return ""
    frame = fault.facts.get("user_frame")
    return f"{fault.error_type} at {frame}" if isinstance(frame, str) else fault.error_type


def _is_busy(fault: Fault) -> bool:
    """Return whether the resources were merely not free in time."""
    return fault.kind is FaultKind.TIMEOUT and fault.phase == "place"


def _is_worker_loss(fault: Fault) -> bool:
    """Return whether a worker is gone or silent though its own kind says nothing about its node."""
    if fault.kind is FaultKind.UNAVAILABLE or counted_as(fault) is not fault.kind:
        return fault.origin is Origin.WORKER
    return False


def _is_secondhand(fault: Fault) -> bool:
    """Return whether it befell another task, perhaps on another node: this one only met it."""
    return fault.facts.get("secondhand") is True


def _is_own_death(fault: Fault) -> bool:
    return fault.kind is FaultKind.WORKER_CRASH and fault.origin is Origin.PROCESS


def _is_rank_timeout(fault: Fault) -> bool:
    return fault.kind is FaultKind.TIMEOUT and fault.origin is Origin.PROCESS


def _line(fault: Fault) -> str:
    line = fault.message.strip().partition("\n")[0]
    name = fault.error_type.rpartition(".")[2]
    return f"{name}: {line}"[:200] if line else name
