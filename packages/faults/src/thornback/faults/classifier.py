"""From an error to a `Fault`: which rule decides, and why.

Theory of operation. Everything is first made a record (`ErrorRecord`), so that live exceptions and
data that crossed a process border are judged by the same code. Then:

1. *Unwrap*: a `RayTaskError` or `GangLostError` gives way to what it carries. What was under a
   `RayTaskError` is *nested*. If that is an error of Ray itself, it is judged as such (Ray wraps so
   if the task of an argument failed), and the fact `secondhand` says that it befell another task:
   neither the node that reported it nor the memory of the rank is to blame.
2. *Origin*: who saw it (`facts["origin"]`); every rule may ask for it, and does so before any name.
3. *Rules*: for the exception, then for each of its causes, nearest first, the first matching rule
   wins; user rules come first. Rules of last resort come after all that, on the exception itself.
4. An *exception group* is classified leaf by leaf; then one leaf decides (`_decisive`). So does one
   of the faults of a gang (`root_cause`).
5. What an outer exception says about trying again (`non_retryable`, `retry_after`) holds also where
   a cause of it decided: who raised it knew of the cause.
6. *Drains*: if a node of the gang was known to go away (`node_draining`), the fault is PREEMPTION,
   whatever the rules found (`_is_preempted` has the exceptions).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import attrs

from thornback.faults.kinds import (
    MESSAGE_CHARS,
    TRACEBACK_CHARS,
    Attribute,
    ErrorData,
    Fault,
    FaultKind,
    Origin,
    plain_facts,
)
from thornback.faults.on_gpu import GPU_RULES, gpu_facts
from thornback.faults.on_python import PYTHON_RULES
from thornback.faults.on_ray import RAY_RULES, RAY_TASK_ERROR, is_system_error
from thornback.faults.records import WRAPPED, ErrorRecord, public_name, seconds_until
from thornback.faults.rules import WRONG_ORIGIN, Evidence, Rule, mismatch
from thornback.faults.tables import (
    EXECUTOR_RULES,
    FACT_RULES,
    LAST_RULES,
    PLACEMENT_RULES,
    POOL_RULES,
)
from thornback.faults.text import safe
from thornback.faults.untrusted import attempt, class_name
from thornback.faults.values import Value

DEFAULT_RULES: tuple[Rule, ...] = (
    *FACT_RULES,
    *RAY_RULES,
    *POOL_RULES,
    *PLACEMENT_RULES,
    *EXECUTOR_RULES,
    *PYTHON_RULES,
    *GPU_RULES,
    *LAST_RULES,
)
"""Every rule, in the order in which they are tried: facts that are known, then what Ray, this
project, Python and GPUs raise, then the last resorts. `Classifier(user_rules=...)` adds to them."""

# These attributes go into the fault. No others: user exceptions may carry anything.
KEPT_ATTRIBUTES = (
    "actor_id",
    "actor_init_failed",
    "code",
    "errno",
    "error_code",
    "exit_code",
    "grpc_status",
    "largest_memory_bytes",
    "non_retryable",
    "peak_rss_bytes",
    "preempted",
    "returncode",
    "rpc_code",
    "signal",
    "status",
    "status_code",
    "timeout_s",
)

ROOT_FIRST = (FaultKind.PREEMPTION, FaultKind.NODE_LOST, FaultKind.OOM, FaultKind.WORKER_CRASH)
"""The cause before its consequences: a lost node before the crashes that follow from it."""
COLLATERAL = (
    FaultKind.INTERRUPTED,
    FaultKind.CANCELLED,
    FaultKind.NETWORK,
    FaultKind.UNKNOWN,
)
"""What happens to the others when one fails: they decide only among themselves."""
NOT_KEPT = ("observed_at", "origin", "phase")
"""Facts that are fields of the fault, or only needed to find out others."""
OF_THE_OBSERVED = frozenset(
    (
        "death_cause",
        "exit_code",
        "exit_type",
        "memory_limit_exceeded",
        "node_death_reason",
        "oom_kill",
        "preempted",
        "signal",
    )
)
"""Facts about the process or node that reported: not about the error of Ray in its report."""
DRAIN_RULE = "facts.node_draining"
DRAIN_WHY = "a node of its gang was about to go away"
SAID = ("non_retryable", "retry_after", "retry_after_s")
"""What an exception can say about trying again."""


@attrs.frozen(kw_only=True)
class Trial(Value):
    """One rule, tried on one exception of the chain."""

    rule: str
    """Its name."""
    error_type: str
    """`module.qualname` of the exception."""
    mismatch: str
    """Why it did not match; empty: it did, and decided."""


@attrs.frozen(kw_only=True)
class Explanation(Value):
    """How a fault was found. `str()` is for people."""

    fault: Fault
    """The same that `classify` returns."""
    why: str
    """What the rule that decided says."""
    trials: tuple[Trial, ...]
    """Every rule that was tried, in order; the last one decided."""
    notes: tuple[str, ...] = ()
    """What was unwrapped, assumed, or chosen among several."""

    def __str__(self) -> str:
        fault = self.fault
        first_line = fault.message.partition("\n")[0]
        lines = [
            f"{fault.error_type}: {first_line}",
            f"=> {fault.kind.value}, by rule {fault.rule!r}: {self.why or 'a rule of the user'}",
            *(f"   {note}" for note in self.notes),
            "rules tried, in order:",
        ]
        shown, others = "", 0
        for number, trial in enumerate(self.trials, 1):
            if trial.error_type != shown:
                shown = trial.error_type
                lines.append(f"  on {shown}")
            if trial.mismatch.startswith(WRONG_ORIGIN):
                others += 1
            else:
                lines.append(f"{number:5}. {trial.rule}: {trial.mismatch or 'MATCHES'}")
        if others:
            lines.append(f"  {others} left out: not for what {fault.origin.value} saw")
        return "\n".join(lines)


class Classifier:
    """Turns errors into faults. Pure and without state: one may serve any number of callers."""

    def __init__(
        self, rules: Iterable[Rule] | None = None, user_rules: Iterable[Rule] = ()
    ) -> None:
        """Take the rules; `user_rules` come first (`NETWORK_RULES`, `THROTTLED_RULES`, your own).

        Args:
            rules: instead of `DEFAULT_RULES`.
            user_rules: before those.

        Raises:
            TypeError: something among them is not a `Rule`.
            ValueError: two rules have one name, so that a fault could not tell which one decided.
        """
        self._rules = (*user_rules, *(DEFAULT_RULES if rules is None else rules))
        for rule in self._rules:
            if not isinstance(rule, Rule):
                raise TypeError(f"Rules are made with thornback.faults.Rule(...), not {rule!r}.")
        names = [rule.name for rule in self._rules]
        if len(set(names)) != len(names):
            repeated = sorted(name for name in dict.fromkeys(names) if names.count(name) > 1)
            raise ValueError(f"Rules need names of their own; repeated: {', '.join(repeated)}.")
        self._by_origin = {
            origin: tuple(r for r in self._rules if not r.origins or origin in r.origins)
            for origin in Origin
        }

    @property
    def rules(self) -> tuple[Rule, ...]:
        """In the order in which they are tried (last resorts after the others)."""
        return self._rules

    def classify(
        self, error: BaseException | ErrorData, facts: Mapping[str, Attribute] | None = None, /
    ) -> Fault:
        """Return the fault. Raises only `KeyboardInterrupt`; what cannot be judged is UNKNOWN.

        Args:
            error: the exception, or its data.
            facts: what else is known. All but `observed_at` is kept in the fault. Rules use:

                - `origin` (a value of `Origin`): who saw it. Without it, an exception of Ray or of
                  this project counts as seen by the part that raises it. Everything else, and what
                  a `RayTaskError` carries, counts as raised by the rank's own code.
                - `phase`, `exit_code`, `signal`, `oom_kill`, `memory_limit_exceeded`, `preempted`,
                  `death_cause`, `exit_type`, `node_death_reason`.
                - `cancelled_by_us`: you ended the work yourself. This project's executor sets it
                  for what it had to kill.
                - `node_draining`: a node of the gang was known to go away, so the fault is
                  PREEMPTION. An APPLICATION error stays one unless `gang_nodes` (default 1) is more
                  than 1.
                - `observed_at`, in seconds since 1970: when. A `Retry-After` that is a date is
                  relative to it if the response has no `Date`.
                - `healthy_before`: the same process had finished other work (for GPU errors).
                - `secondhand`: another task failed, and this one only received the error.
        """
        try:
            return self._explain(error, dict(facts or {}), brief=True).fault
        except KeyboardInterrupt:
            raise
        except BaseException as broken:  # noqa: BLE001 - a failure must never be lost while it is described
            return Fault(
                kind=FaultKind.UNKNOWN,
                origin=_origin_of(facts) or Origin.DRIVER,
                rule="classifier.failed",
                error_type=attempt("?", class_name, type(error)),
                message=f"it could not be classified: {attempt('?', class_name, type(broken))}",
            )

    def explain(
        self, error: BaseException | ErrorData, facts: Mapping[str, Attribute] | None = None, /
    ) -> Explanation:
        """Return every rule tried, in order, and why the winner won. Same fault as `classify`.

        Takes what `classify` takes. Unlike it, it raises what a broken `ErrorData` raises.
        """
        return self._explain(error, dict(facts or {}), brief=False)

    def _explain(
        self, error: BaseException | ErrorData, facts: dict[str, Attribute], *, brief: bool
    ) -> Explanation:
        record = ErrorRecord.of(error)
        chain, notes = _unwrap(record)
        origin = _origin_of(facts)
        if origin is None:
            if facts.get("origin") is not None:
                notes.append(f"there is no origin {facts['origin']!r}")
            origin = self._assumed_origin(*chain[0])
            notes.append(f"nobody said who saw it: taken as {origin.value}")
        leaves = [
            [(one, chain[0][1]) for one in (leaf, *leaf.causes)] for leaf in chain[0][0].members
        ]
        found = [
            self._judge(links, origin, facts, record, brief=brief) for links in leaves or [chain]
        ]
        at = _decisive([one.fault.kind for one in found], origin)
        decided = found[at]
        if leaves:
            notes.append(f"a group of {len(leaves)}: exception {at + 1} decides")
        if _is_preempted(decided.fault):
            notes.append(
                f"without the drain: {decided.fault.kind.value}, by rule {decided.fault.rule!r}"
            )
            decided = decided.__replace__(fault=_preempted(decided.fault), why=DRAIN_WHY)
        return decided.__replace__(notes=tuple(notes))

    def _judge(
        self,
        links: Sequence[tuple[ErrorData, bool]],
        origin: Origin,
        facts: Mapping[str, Attribute],
        whole: ErrorRecord,
        *,
        brief: bool,
    ) -> Explanation:
        """Try the rules on the links of one chain; only those of the origin when `brief`."""
        evidence = [
            _evidence(error, origin, {**_said(links[:at]), **facts}, nested)
            for at, (error, nested) in enumerate(links)
        ]
        rules = [self._by_origin[one.origin] if brief else self._rules for one in evidence]
        tries = [
            (one, rule)
            for one, its in zip(evidence, rules, strict=True)
            for rule in its
            if not rule.last_resort
        ]
        tries += [(evidence[0], rule) for rule in rules[0] if rule.last_resort]
        # What a task raised elsewhere says nothing about the GPU here.
        here = not any(nested for _, nested in links)
        known = {**(gpu_facts(whole, facts) if here else {}), **facts}
        trials: list[Trial] = []
        for one, rule in tries:
            why_not = mismatch(rule, one)
            if not brief or not why_not:
                trials.append(Trial(rule=rule.name, error_type=_name(one.error), mismatch=why_not))
            if not why_not:
                fault = _fault(rule, one, origin, known, whole.traceback)
                return Explanation(fault=fault, why=rule.why, trials=tuple(trials))
        # Only with rules of one's own that have no last resort.
        nothing = Rule(name="unknown", kind=FaultKind.UNKNOWN, why="no rule knows it")
        fault = _fault(nothing, evidence[0], origin, known, whole.traceback)
        return Explanation(fault=fault, why=nothing.why, trials=tuple(trials))

    def _assumed_origin(self, error: ErrorData, nested: bool) -> Origin:
        if nested and not is_system_error(error):
            return Origin.RANK
        for full in error.type_names:
            name = public_name(full)
            if not name.startswith(("ray.", "thornback.")):
                continue
            for rule in self._rules:
                if name in rule.types and rule.origins:
                    return rule.origins[0]
        return Origin.RANK


def explain(
    error: BaseException | ErrorData, facts: Mapping[str, Attribute] | None = None
) -> Explanation:
    """Return how the default classifier judges an error; `print` it.

    Args:
        error: the exception, or its data.
        facts: what is known besides: see `Classifier.classify`.
    """
    return Classifier().explain(error, facts)


def root_cause(faults: Sequence[Fault]) -> Fault:
    """Return which fault of a gang decides about it, of those of its members in order of arrival.

    PREEMPTION > NODE_LOST > OOM > WORKER_CRASH > the earliest of the others; last come those that
    are consequences: an interruption, a connection to the member that failed, what nobody knows.

    Raises:
        ValueError: there is none.
    """
    if not faults:
        raise ValueError("nothing has failed: root_cause needs at least one fault.")
    return faults[_decisive([fault.kind for fault in faults], Origin.WORKER)]


def _evidence(
    error: ErrorData, origin: Origin, facts: Mapping[str, Attribute], nested: bool
) -> Evidence:
    """Return what rules look at. An error of Ray itself in a `RayTaskError` counts as seen by Ray,
    even if the code of a rank met it; what is known of the process that met it does not explain it.
    """
    if nested and is_system_error(error):
        facts = {name: value for name, value in facts.items() if name not in OF_THE_OBSERVED}
        if origin in (Origin.RANK, Origin.PROCESS):
            origin = Origin.WORKER
    return Evidence.of(error, origin, facts, nested)


def _said(outer: Sequence[tuple[ErrorData, bool]]) -> dict[str, Attribute]:
    """Return what the exceptions around a cause say about trying again; the outermost counts."""
    said: dict[str, Attribute] = {}
    for error, _ in reversed(outer):
        said |= {name: error.attributes[name] for name in SAID if name in error.attributes}
    return said


def _origin_of(facts: Mapping[str, Attribute] | None) -> Origin | None:
    said = (facts or {}).get("origin")
    return next((origin for origin in Origin if said == origin.value), None)


def _unwrap(record: ErrorRecord) -> tuple[list[tuple[ErrorData, bool]], list[str]]:
    """Return (exception, nested) for the chain without its wrappers, and what was unwrapped."""
    chain: list[tuple[ErrorData, bool]] = []
    notes: list[str] = []
    links = (record, *record.causes)
    nested = False
    for at, link in enumerate(links):
        names = [public_name(name) for name in link.type_names]
        nested = nested or RAY_TASK_ERROR in names
        if any(name in WRAPPED for name in names) and at + 1 < len(links):
            notes.append(f"unwrapped {_name(link)} -> {_name(links[at + 1])}")
        else:
            chain.append((link, nested))
    return chain, notes


def _decisive(kinds: Sequence[FaultKind], origin: Origin) -> int:
    """Return which of several failures decides.

    In user code a bug among them decides: trying again would meet it again. Elsewhere the cause
    comes before its consequences.
    """
    first = (FaultKind.APPLICATION, FaultKind.SETUP) if origin is Origin.RANK else ()
    for kind in (*first, *ROOT_FIRST):
        if kind in kinds:
            return kinds.index(kind)
    return next((at for at, kind in enumerate(kinds) if kind not in COLLATERAL), 0)


def _fault(
    rule: Rule,
    evidence: Evidence,
    origin: Origin,
    facts: Mapping[str, Attribute],
    traceback: str,
) -> Fault:
    known = evidence.known
    kept: dict[str, Attribute] = {
        name: value for name, value in facts.items() if name not in NOT_KEPT
    }
    for name in KEPT_ATTRIBUTES:
        if name in known:
            kept.setdefault(name, known[name])
    if rule.final:
        kept.setdefault("non_retryable", True)
    if evidence.nested and is_system_error(evidence.error):
        kept["secondhand"] = True
    said = known.get("retry_after_s", known.get("retry_after"))
    after = _seconds(said, known.get("observed_at"))
    if after is not None:
        kept["retry_after_s"] = after
    phase = rule.phase or known.get("phase") or ""
    return Fault(
        kind=rule.kind,
        origin=origin,
        rule=rule.name,
        error_type=_name(evidence.error),
        message=safe(evidence.error.message, MESSAGE_CHARS),
        phase=phase if isinstance(phase, str) else "",
        facts=plain_facts(kept),
        traceback=safe(traceback, TRACEBACK_CHARS),
    )


def _is_preempted(fault: Fault) -> bool:
    """Return whether a fault is PREEMPTION because a node of its gang was known to drain."""
    facts = fault.facts
    if facts.get("node_draining") is not True or facts.get("cancelled_by_us") is True:
        return False
    if fault.kind in (FaultKind.CANCELLED, FaultKind.PREEMPTION):
        return False
    # A rank whose sibling loses its node raises whatever a broken peer makes it raise; one without
    # siblings raises an error of its own.
    return fault.kind is not FaultKind.APPLICATION or facts.get("gang_nodes", 1) != 1


def _preempted(fault: Fault) -> Fault:
    # Another node may do what this error calls useless.
    facts = {name: value for name, value in fault.facts.items() if name != "non_retryable"}
    return fault.__replace__(kind=FaultKind.PREEMPTION, rule=DRAIN_RULE, facts=facts)


def _seconds(value: Attribute, now: Attribute) -> float | None:
    """Return a `Retry-After` in seconds; None for a date, unless somebody says what time it is."""
    try:
        if isinstance(value, str) and isinstance(now, int | float) and "GMT" in value.upper():
            return seconds_until(value, now)
        seconds = float(value) if value is not None else -1.0
    except ValueError:
        return None
    return seconds if 0.0 <= seconds < float("inf") else None


def _name(error: ErrorData) -> str:
    return public_name(error.type_names[0]) if error.type_names else "unknown"
