"""From an error to a `Fault`: which rule decides, and why.

Theory of operation. Everything is first made a record (`ErrorRecord`), so that live exceptions and
data that crossed a process border are judged by the same code. Then:

1. *Unwrap*: a `RayTaskError` or `GangLostError` gives way to what it carries. What was under a
   `RayTaskError` is *nested*: the death of an actor in there is not the death of a worker of ours.
2. *Origin*: who saw it (`facts["origin"]`); every rule may ask for it, and does so before any name.
3. *Rules*: for the exception, then for each of its causes, nearest first, the first matching rule
   wins; user rules come first. Rules of last resort come after all that, on the exception itself.
4. An *exception group* is classified leaf by leaf; then one leaf decides (`_decisive`). So does one
   of the faults of a gang (`root_cause`).
5. What an outer exception says about trying again (`non_retryable`, `retry_after`) holds also where
   a cause of it decided: who raised it knew of the cause.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

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
from thornback.faults.on_python import PYTHON_RULES
from thornback.faults.on_ray import RAY_RULES, RAY_TASK_ERROR
from thornback.faults.records import WRAPPED, ErrorRecord, public_name
from thornback.faults.rules import WRONG_ORIGIN, Evidence, Rule, mismatch
from thornback.faults.tables import (
    EXECUTOR_RULES,
    FACT_RULES,
    LAST_RULES,
    PLACEMENT_RULES,
    POOL_RULES,
)
from thornback.faults.text import safe
from thornback.faults.values import Value

DEFAULT_RULES: tuple[Rule, ...] = (
    *FACT_RULES,
    *RAY_RULES,
    *POOL_RULES,
    *PLACEMENT_RULES,
    *EXECUTOR_RULES,
    *PYTHON_RULES,
    *LAST_RULES,
)
"""Every rule, in the order in which they are tried: facts that are known, then what Ray, this
project and Python raise, then the last resorts. Add your own by `Classifier(user_rules=...)`."""

# These attributes go into the fault. No others: user exceptions may carry anything.
KEPT_ATTRIBUTES = (
    "actor_id",
    "actor_init_failed",
    "code",
    "errno",
    "error_code",
    "exit_code",
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
SAID = ("non_retryable", "retry_after", "retry_after_s")
"""What an exception can say about trying again."""


class Trial(Value):
    """One rule, tried on one exception of the chain."""

    rule: str
    """Its name."""
    error_type: str
    """`module.qualname` of the exception."""
    mismatch: str
    """Why it did not match; empty: it did, and decided."""


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
        """Return the fault. Never raises an `Exception`: what cannot be judged is UNKNOWN.

        Args:
            error: the exception, or its data.
            facts: what is known besides. `origin` (a value of `Origin`) says who saw it. Without
                it, an exception of Ray or of this project counts as seen by the part that raises
                it, everything else, and what a `RayTaskError` carries, as raised by the rank's own
                code. Others that rules ask for: `phase`, `exit_code`, `signal`, `oom_kill`,
                `memory_limit_exceeded`, `preempted`, `death_cause`, `exit_type`,
                `node_death_reason`, `node_draining`, `cancelled_by_us`. All are kept in the fault.
                The last one is said by who has asked for the end of what failed: so does this
                project's executor of what fails after it had to be killed.
        """
        try:
            return self._explain(error, dict(facts or {}), brief=True).fault
        except Exception as broken:  # noqa: BLE001 - a failure must never be lost while it is described
            return Fault(
                kind=FaultKind.UNKNOWN,
                origin=_origin_of(facts) or Origin.DRIVER,
                rule="classifier.failed",
                error_type=type(error).__qualname__,
                message=f"it could not be classified: {type(broken).__qualname__}",
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
            self._judge(links, origin, facts, record.traceback, brief=brief)
            for links in leaves or [chain]
        ]
        at = _decisive([one.fault.kind for one in found], origin)
        if leaves:
            notes.append(f"a group of {len(leaves)}: exception {at + 1} decides")
        return found[at].__replace__(notes=tuple(notes))

    def _judge(
        self,
        links: Sequence[tuple[ErrorData, bool]],
        origin: Origin,
        facts: Mapping[str, Attribute],
        traceback: str,
        *,
        brief: bool,
    ) -> Explanation:
        """Try the rules on the links of one chain; only those of the origin when `brief`."""
        rules = self._by_origin[origin] if brief else self._rules
        evidence = [
            Evidence.of(error, origin, {**_said(links[:at]), **facts}, nested)
            for at, (error, nested) in enumerate(links)
        ]
        tries = [(one, rule) for one in evidence for rule in rules if not rule.last_resort]
        tries += [(evidence[0], rule) for rule in rules if rule.last_resort]
        trials: list[Trial] = []
        for one, rule in tries:
            why_not = mismatch(rule, one)
            if not brief or not why_not:
                trials.append(Trial(rule=rule.name, error_type=_name(one.error), mismatch=why_not))
            if not why_not:
                fault = _fault(rule, one, facts, traceback)
                return Explanation(fault=fault, why=rule.why, trials=tuple(trials))
        # Only with rules of one's own that have no last resort.
        nothing = Rule(name="unknown", kind=FaultKind.UNKNOWN, why="no rule knows it")
        fault = _fault(nothing, evidence[0], facts, traceback)
        return Explanation(fault=fault, why=nothing.why, trials=tuple(trials))

    def _assumed_origin(self, error: ErrorData, nested: bool) -> Origin:
        if nested:
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


def _fault(rule: Rule, evidence: Evidence, facts: Mapping[str, Attribute], traceback: str) -> Fault:
    known = evidence.known
    kept: dict[str, Attribute] = {
        name: value for name, value in facts.items() if name not in ("origin", "phase")
    }
    for name in KEPT_ATTRIBUTES:
        if name in known:
            kept.setdefault(name, known[name])
    after = _seconds(known.get("retry_after_s", known.get("retry_after")))
    if after is not None:
        kept["retry_after_s"] = after
    phase = rule.phase or known.get("phase") or ""
    return Fault(
        kind=rule.kind,
        origin=evidence.origin,
        rule=rule.name,
        error_type=_name(evidence.error),
        message=safe(evidence.error.message, MESSAGE_CHARS),
        phase=phase if isinstance(phase, str) else "",
        facts=plain_facts(kept),
        traceback=safe(traceback, TRACEBACK_CHARS),
    )


def _seconds(value: Attribute) -> float | None:
    """Return a `Retry-After` given in seconds; None for a date, which would need a clock."""
    try:
        seconds = float(value) if value is not None else -1.0
    except ValueError:
        return None
    return seconds if 0.0 <= seconds < float("inf") else None


def _name(error: ErrorData) -> str:
    return public_name(error.type_names[0]) if error.type_names else "unknown"
