"""Decides what to do about a fault: try again or not, when, with what, and who is to blame. Pure.

A decision rests on the fault, on its standing (what the evidence says about it so far), and on the
history that the caller keeps of the rank. Budgets count retries: a kind with `retries=3` may occur
three times; the fourth time the rank is given up.

Theory of evidence. A dead process, a broken disk or a lost worker may be the rank's doing or the
machine's, and one event cannot tell. Such a fault is therefore free of charge while it is OPEN and
for good once it is settled against the NODE. It is charged once it is settled against the RANK, or
where nothing else can run on that node (UNDECIDED). Free retries are bounded too, by `max_free`.
A failed set-up is always free: it is the same for every rank. So is a wait for busy resources,
which has no limit here, because it is not a failure. A lost node has its own budget.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, TypeAlias

import attrs

from thornback.faults.budgets import DEFAULT_BUDGETS, FaultBudget
from thornback.faults.classifier import Classifier
from thornback.faults.kinds import ErrorData, Fault, FaultKind, Origin
from thornback.faults.memory import MemoryNeed, memory_need
from thornback.faults.rules import Rule
from thornback.faults.values import Value
from thornback.faults.verdicts import RetryVerdict, Standing, StopReason, WeighedFault

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
MAX_EVIDENCE = 50
"""Faults that a verdict lists: a rank may have been preempted thousands of times."""
MAX_EXPONENT = 30
MAX_FACTOR = 1000.0
"""Powers of factors stay finite by these."""


def _copied(budgets: Mapping[FaultKind, FaultBudget]) -> dict[FaultKind, FaultBudget]:
    return dict(budgets)


@attrs.frozen(kw_only=True)
class RetryPolicy(Value):
    """Decides by a table of budgets. Immutable; ValueError for arguments that make no sense."""

    retries: int = 0
    """For errors of the rank's own code (APPLICATION)."""
    max_retries: int | Literal["unbounded"] | None = None
    """Caps the budget of every kind, also of preemptions, and `max_free`; None: as in the table.
    "unbounded": what is retried at all has no limit, except poison and what runs out of all
    memory."""
    memory_bytes: int | None = None
    """What the stage asks for, per rank: the foot of the ladder after OOM."""
    budgets: Mapping[FaultKind, FaultBudget] = attrs.field(factory=dict, converter=_copied)
    """Instead of those of the default table."""
    max_charged: int = 10
    """Retries after charged faults of all kinds together (lost nodes apart); `retries` if that is
    more."""
    max_free: int = 10
    """Retries that are free of charge when they are granted, after faults of all kinds together: a
    rank that meets so many bad machines is given up, because it may be what breaks them. A fault
    that is settled against the rank later still counts here."""
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

    def __attrs_post_init__(self) -> None:
        required = {"retries": 0, "max_charged": 0, "max_free": 0}
        optional = {"max_retries": 0, "memory_bytes": 1, "breaker_after": 1}
        for name, least in (required | optional).items():
            value: object = getattr(self, name)
            if (value is None and name in optional) or (name, value) == ("max_retries", UNBOUNDED):
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
        if not 0.0 <= self.max_retry_after_s < float("inf"):
            raise ValueError("max_retry_after_s must be >= 0, and finite.")

    def decide(
        self, fault: Fault, history: History, standing: Standing, draw: float, /
    ) -> RetryVerdict:
        """Return the verdict. Never raises; the same arguments give the same verdict.

        Args:
            fault: what has happened. These facts are used if present: `node` and `only_node` (the
                cluster has no other node), for poison; `peak_rss_bytes` and `largest_memory_bytes`,
                for OOM; `retry_after_s`; `non_retryable`; `user_frame`, for the signature.
            history: the earlier faults of this rank with their nodes and their standing by now,
                oldest first; empty for a gang's fault.
            standing: what the evidence says about `fault`. UNDECIDED where nobody collects any. Ask
                again with RANK when it is settled so later: the verdict may be to give up.
            draw: in [0, 1): the jitter.
        """
        history = [entry for entry in history if not _is_busy(entry[0])]  # no failures of the rank
        counted = counted_as(fault)
        budget = self.budget(counted)
        same = [(past, then) for past, _, then in history if counted_as(past) is counted]
        paid = [then for past, then in same if self._uses_budget(past, then)]
        need = memory_need(self.memory_bytes, [*(past for past, _, _ in history), fault])
        stop = self._stop(fault, history, standing, paid, need)
        timeouts = sum(_is_rank_timeout(past) for past in (*(p for p, _, _ in history), fault))
        # Once the rank is known to be guilty, no more evidence about its node is wanted.
        poison = stop is not None and stop[0] is StopReason.POISON
        if stop:
            reason = f"given up: {stop[1]}"
        elif _is_busy(fault):
            reason = "the resources are busy: asked again, free of charge"
        else:
            number = self._retry_number(fault, history, standing, len(paid))
            reason = f"{number}, {_remedy(fault, budget, need)}"
        return RetryVerdict(
            retry=stop is None,
            delay_s=self.delay_s(fault, len(same), draw),
            charged=budget.charged and not self._is_free(fault, standing),
            machine_fault=(
                need.exhausted and not _is_secondhand(fault)
                if fault.kind is FaultKind.OOM
                else budget.machine_fault or _is_worker_loss(fault)
            ),
            blames_rank=(budget.blames_rank and not _is_secondhand(fault))
            or fault.phase == "heartbeat",
            blames_node=self._blames_node(fault) and not (poison or standing is Standing.RANK),
            memory_bytes=need.memory_bytes,
            timeout_factor=self.timeout_factor ** min(timeouts, MAX_EXPONENT),
            reason=f"{fault.kind.value}: {reason}",
            stop=stop[0] if stop else None,
            signature=_signature(fault),
            evidence=self._evidence(fault, history, standing) if stop else (),
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

    def _free_limit(self) -> int | None:
        """Return how many free retries a rank has, after faults of all kinds; None: no end."""
        if isinstance(self.max_retries, str):
            return None
        return self.max_free if self.max_retries is None else min(self.max_free, self.max_retries)

    def _retry_number(self, fault: Fault, history: History, standing: Standing, paid: int) -> str:
        if self._is_free(fault, standing):
            what, number, limit = "free retry", len(self._free_in(history)), self._free_limit()
        else:
            what, number, limit = "retry", paid, self._limit(fault)
        # The one retry of UNSCHEDULABLE, with less memory, is beyond its limit of 0.
        return f"{what} {number + 1}" + (f" of {limit}" if limit else "")

    def _stop(
        self,
        fault: Fault,
        history: History,
        standing: Standing,
        paid: Sequence[Standing],
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
            if not paid and known and need.memory_bytes and not need.exhausted:
                none = (StopReason.NO_RETRIES, "max_retries=0")
                return none if self.max_retries == 0 else None
            return StopReason.UNSCHEDULABLE, f"it can never run: {_line(fault)}"
        poison = _poison(fault, history, standing)
        if poison:
            return StopReason.POISON, poison
        if fault.kind is FaultKind.OOM and need.exhausted and not _is_secondhand(fault):
            why = f"it ran out of memory with the most there is, {need.memory_bytes} bytes"
            return StopReason.OUT_OF_MEMORY, why
        return self._spent(fault, history, standing, paid)

    def _spent(
        self, fault: Fault, history: History, standing: Standing, paid: Sequence[Standing]
    ) -> Stop | None:
        """Return which limit is reached; None: none is."""
        limit, line = self._limit(fault), _line(fault)
        if limit == 0:
            return StopReason.NO_RETRIES, f"no retries for this: {line}"
        free, free_limit = self._is_free(fault, standing), self._free_limit()
        if free and free_limit is not None:
            granted = self._free_in(history)
            if len(granted) >= free_limit:
                nodes = len({node for node in granted if node})
                where = f", on {nodes} node{'' if nodes == 1 else 's'}" if nodes else ""
                why = f"limit of free retries ({free_limit}) reached{where}: {line}"
                return StopReason.UNLUCKY, why
        if self._uses_budget(fault, standing) and limit is not None and len(paid) >= limit:
            spent = f"retry limit ({limit}) reached: {line}"
            if self._has_evidence(fault) and Standing.UNDECIDED in (*paid, standing):
                return StopReason.UNDECIDED, f"undecided: rank or machine; {spent}"
            return StopReason.BUDGET, spent
        apart = free or not self.budget(counted_as(fault)).in_total
        if apart or self.max_retries == UNBOUNDED:
            return None
        total = sum(
            1
            for past, _, then in history
            if self.budget(counted_as(past)).in_total and not self._is_free(past, then)
        )
        most = max(self.max_charged, self.retries)
        if total < most:
            return None
        return StopReason.TOTAL, f"retry limit for all kinds ({most}) reached: {line}"

    def _has_evidence(self, fault: Fault) -> bool:
        """Return whether evidence about its node decides who pays for this fault."""
        # No rank causes the loss of a node, and set-up is the same for all ranks.
        settled = (FaultKind.NODE_LOST, FaultKind.SETUP)
        return fault.kind not in settled and self._blames_node(fault)

    def _is_free(self, fault: Fault, standing: Standing) -> bool:
        """Return whether the rank does not pay for this fault."""
        if fault.kind is FaultKind.SETUP or _is_busy(fault):
            return True
        return self._has_evidence(fault) and standing in (Standing.OPEN, Standing.NODE)

    def _uses_budget(self, fault: Fault, standing: Standing) -> bool:
        """Return whether a fault counts for the limit of its kind."""
        # Free or not, `budgets` and `max_retries` may limit set-up on its own.
        return fault.kind is FaultKind.SETUP or not self._is_free(fault, standing)

    def _free_in(self, history: History) -> list[str]:
        """Return the nodes of the faults after which a free retry was granted."""
        # One that is settled against the rank by now was OPEN then. Giving that retry back would
        # let a guilty rank run more often than one about which nothing is known.
        return [
            node
            for past, node, then in history
            if self._is_free(past, then) or (then is Standing.RANK and self._has_evidence(past))
        ]

    def _evidence(
        self, fault: Fault, history: History, standing: Standing
    ) -> tuple[WeighedFault, ...]:
        here = fault.facts.get("node")
        last = (fault, here if isinstance(here, str) else "", standing)
        return tuple(
            WeighedFault(
                kind=past.kind, node=node, standing=then if self._has_evidence(past) else None
            )
            for past, node, then in (*history, last)[-MAX_EVIDENCE:]
        )

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
