"""What a rule is: conditions as data, and why one did not hold. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import attrs

from thornback.faults.kinds import Attribute, ErrorData, FaultKind, Origin
from thornback.faults.records import public_name
from thornback.faults.values import Value

Predicate: TypeAlias = Callable[[ErrorData, Mapping[str, Attribute]], bool]
"""Given one exception of the chain and all that is known (facts over attributes)."""

WRONG_ORIGIN = "seen by"
"""How the mismatch of a rule begins that is not for who saw the failure."""


def class_name(cls: str | type[BaseException]) -> str:
    """Return the name by which a rule knows a class; what is no exception class is given back."""
    if isinstance(cls, type) and issubclass(cls, BaseException):
        return public_name(f"{cls.__module__}.{cls.__qualname__}")
    return cls


def _names(types: tuple[str | type[BaseException], ...]) -> tuple[str | type[BaseException], ...]:
    # What is no tuple is refused by the rule, which can say more.
    return tuple(map(class_name, types)) if isinstance(types, tuple) else types


def _copied(
    facts: Mapping[str, Attribute | tuple[Attribute, ...]],
) -> dict[str, Attribute | tuple[Attribute, ...]]:
    return dict(facts)


@attrs.frozen(kw_only=True)
class Rule(Value):
    """One line of a classifier: if every condition holds, the failure is of this kind.

    An empty condition always holds. Raises TypeError where a tuple of strings is something else.
    A rule with a predicate (`when`) is no JSON, and it pickles where the predicate does.
    """

    name: str
    """Unlike any other's in the classifier; a fault tells which one decided."""
    kind: FaultKind
    """What the failure is if all the conditions hold."""
    origins: tuple[Origin, ...] = ()
    """Who must have seen it."""
    types: tuple[str | type[BaseException], ...] = attrs.field(default=(), converter=_names)
    """One of these classes must be on the MRO: `module.qualname`, or the class itself, of which
    only that name is kept. `thornback` classes go by the name they are exported under."""
    facts: Mapping[str, Attribute | tuple[Attribute, ...]] = attrs.field(
        factory=dict, converter=_copied
    )
    """Each attribute of the exception, or fact, must have this value, or one of these."""
    texts: tuple[str, ...] = ()
    """All of these must be in the message, in any case of letters. For where nothing else tells."""
    nested: bool | None = None
    """Whether it came out of a `RayTaskError`: the code of a task or actor raised it."""
    when: Predicate | None = None
    """Any further condition. If it raises, it does not hold."""
    phase: str = ""
    """Phase of the fault, where the name of the exception tells it."""
    last_resort: bool = False
    """Tried only after all other rules, and on the exception itself: not on its causes."""
    final: bool = False
    """Trying again is useless: the fault gets the fact `non_retryable`, unless the exception says
    otherwise."""
    why: str = ""
    """One line for people."""

    def __attrs_post_init__(self) -> None:
        for name in ("types", "texts"):
            value: object = getattr(self, name)
            if not isinstance(value, tuple) or not all(isinstance(item, str) for item in value):
                raise TypeError(
                    f"Rule.{name} must be a tuple of str, not {value!r}: "
                    "write ('module.Class',) for a single one."
                )


@attrs.frozen(kw_only=True)
class Evidence(Value):
    """What rules look at: one exception of the chain, and what is known about the failure."""

    error: ErrorData
    origin: Origin
    known: Mapping[str, Attribute]
    """The facts, over the attributes of the exception."""
    nested: bool
    names: frozenset[str]
    message: str
    """In small letters."""

    @classmethod
    def of(
        cls, error: ErrorData, origin: Origin, facts: Mapping[str, Attribute], nested: bool
    ) -> Evidence:
        known = {**error.attributes, **facts}
        number = signal_number(known)
        # A rank that says sys.exit(-9) was not killed.
        if number is not None and origin is not Origin.RANK:
            known["signal"] = number
        names = (name for full in error.type_names for name in (full, public_name(full)))
        return cls(
            error=error,
            origin=origin,
            known=known,
            nested=nested,
            names=frozenset(names),
            message=error.message.lower(),
        )


def mismatch(rule: Rule, evidence: Evidence) -> str:
    """Return the first condition that does not hold; empty: the rule matches."""
    if rule.origins and evidence.origin not in rule.origins:
        wanted = ", ".join(origin.value for origin in rule.origins)
        return f"{WRONG_ORIGIN} {evidence.origin.value}, the rule is for {wanted}"
    if rule.types and not any(name in evidence.names for name in rule.types):
        shown = ", ".join(class_name(name).rpartition(".")[2] for name in rule.types[:3])
        return f"no {shown}{', ...' if len(rule.types) > 3 else ''} on the MRO"
    for name, wanted_value in rule.facts.items():
        allowed = wanted_value if isinstance(wanted_value, tuple) else (wanted_value,)
        value = evidence.known.get(name)
        if value not in allowed:
            return f"{name} is {value!r}, wanted {' or '.join(map(repr, allowed))}"
    if rule.nested is not None and rule.nested is not evidence.nested:
        return f"{'came' if evidence.nested else 'did not come'} out of a RayTaskError"
    for text in rule.texts:
        if text.lower() not in evidence.message:
            return f"the message lacks {text!r}"
    return _unpredicted(rule, evidence)


def _unpredicted(rule: Rule, evidence: Evidence) -> str:
    if rule.when is None:
        return ""
    try:
        return "" if rule.when(evidence.error, evidence.known) else "its predicate said no"
    except BaseException as error:  # noqa: BLE001 - user code; a broken rule must not hide the failure
        return f"its predicate raised {type(error).__qualname__}"


def signal_number(known: Mapping[str, Attribute]) -> int | None:
    """Return the signal that ended a process, also where only its exit code is known (-9)."""
    number, code = known.get("signal"), known.get("exit_code")
    if number == "SIGKILL":
        return 9
    if isinstance(number, int) and not isinstance(number, bool):
        return number
    return -code if isinstance(code, int) and code < 0 else None
