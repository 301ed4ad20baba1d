"""The words for what goes wrong: kinds, origins, and the classified failure itself.

Attempts count from 1, ranks from 0.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from typing import Protocol, TypeAlias

import attrs

from thornback.faults.redaction import HIDDEN, looks_secret
from thornback.faults.text import clip, safe
from thornback.faults.untrusted import is_a, text
from thornback.faults.values import Value

Attribute: TypeAlias = str | int | float | bool | None
"""A plain value taken off an exception, or a fact that the observer of a failure knows."""

MESSAGE_CHARS = 4_000
TRACEBACK_CHARS = 16_000
VALUE_CHARS = 500
MAX_FACTS = 48


class ErrorData(Protocol):
    """An exception as data: what crosses a process border. Any such object can be classified."""

    @property
    def type_names(self) -> Sequence[str]:
        """`module.qualname` of every class along the MRO, most derived first, without `object`."""
        ...

    @property
    def message(self) -> str:
        """What `str(exc)` says."""
        ...

    @property
    def traceback(self) -> str:
        """What Python would print; empty where it is not known."""
        ...

    @property
    def attributes(self) -> Mapping[str, Attribute]:
        """Plain attributes: `errno`, `exit_code`, `signal`, `preempted`, `retry_after`, ..."""
        ...

    @property
    def causes(self) -> Sequence[ErrorData]:
        """The chain of `__cause__` / `__context__`, nearest first, flat."""
        ...

    @property
    def members(self) -> Sequence[ErrorData]:
        """The leaves, when it is an exception group."""
        ...


class Origin(enum.Enum):
    """Who saw the failure. Tested before any name: what one means depends on the place."""

    RANK = "rank"
    """The rank's own code raised it, in its process."""
    PROCESS = "process"
    """The supervisor saw it happen to the rank's process: died, timed out, over its memory."""
    WORKER = "worker"
    """The pool saw it happen to a worker: died, silent, could not start."""
    PLACEMENT = "placement"
    """The allocator could not lease, or lost the lease."""
    DRIVER = "driver"
    """The driver itself: its journal, its own code, the user's cancellation."""


class FaultKind(enum.Enum):
    """What kind of failure it is: this decides about budget and remedy."""

    PREEMPTION = "preemption"
    """Its node was taken away while it drained: a spot machine."""
    NODE_LOST = "node_lost"
    """Its node, or the node's daemon, is dead."""
    WORKER_CRASH = "worker_crash"
    """Its process ended without an answer: a signal, `os._exit`."""
    OOM = "oom"
    """It was killed for the memory it took: by Ray, by the kernel, or at a limit of ours."""
    OBJECT_LOST = "object_lost"
    """An object that it needs, or the object's owner, is gone."""
    UNAVAILABLE = "unavailable"
    """An actor or service does not answer; whether the call was executed is not known."""
    RESOURCE = "resource"
    """Something of the node is full or broken: a disk, a quota, the object store, a GPU."""
    SETUP = "setup"
    """What it needs could not be made there: a `runtime_env`, a module, `setup()`."""
    TIMEOUT = "timeout"
    """It took too long; `Fault.phase` says what."""
    PLACEMENT_REMOVED = "placement_removed"
    """Its placement group was removed under it."""
    INTERRUPTED = "interrupted"
    """It was cancelled, and nobody here had asked for it."""
    CANCELLED = "cancelled"
    """It was cancelled, as we or our user asked."""
    UNSCHEDULABLE = "unschedulable"
    """It fits nowhere."""
    THROTTLED = "throttled"
    """A server asks for patience; only by `THROTTLED_RULES`, which one asks for."""
    NETWORK = "network"
    """A connection failed; only by `NETWORK_RULES`, which one asks for."""
    APPLICATION = "application"
    """The user's own code raised it."""
    SYSTEM = "system"
    """A broken installation, or a bug of Ray or of this project."""
    UNKNOWN = "unknown"
    """No rule knows it."""


def copied(facts: Mapping[str, Attribute]) -> dict[str, Attribute]:
    """Return a copy: that of a value must not change with what it was made of."""
    return dict(facts)


@attrs.frozen(kw_only=True)
class Fault(Value):
    """A classified failure: data, safe to keep, print, compare and send."""

    kind: FaultKind
    """What kind of failure it is."""
    origin: Origin
    """Who saw it."""
    rule: str
    """Name of the rule that decided."""
    error_type: str
    """`module.qualname` of the exception that the rule matched (after unwrapping)."""
    message: str
    """Its text: bounded, without what looks like a secret."""
    phase: str = ""
    """For time-outs and set-up: place, start, setup, rank, heartbeat, recall."""
    facts: Mapping[str, Attribute] = attrs.field(factory=dict, converter=copied)
    """What was known besides: exit_code, signal, peak_rss_bytes, largest_memory_bytes, ..."""
    traceback: str = ""
    """What Python would have printed: bounded, without what looks like a secret."""

    def __str__(self) -> str:
        """Return one line for people."""
        line = self.message.strip().partition("\n")[0]
        return f"{self.kind.name} by rule {self.rule!r}: {self.error_type}: {line}"

    def as_json(self) -> dict[str, str | dict[str, Attribute]]:
        """Return what `json.dumps` takes: bounded (about 20 KB), without what looks secret."""
        return {
            "kind": self.kind.value,
            "origin": self.origin.value,
            "rule": self.rule,
            "error_type": clip(self.error_type, VALUE_CHARS),
            "message": safe(self.message, MESSAGE_CHARS),
            "phase": self.phase,
            "facts": plain_facts(self.facts),
            "traceback": safe(self.traceback, TRACEBACK_CHARS),
        }


def plain_facts(facts: Mapping[str, object]) -> dict[str, Attribute]:
    """Return the facts that can be kept: plain, finite, bounded; secrets are hidden."""
    kept: dict[str, Attribute] = {}
    for key, value in facts.items():
        if len(kept) == MAX_FACTS:
            break
        plain = plain_value(value)
        if isinstance(key, str) and (plain is not None or value is None):
            hide = looks_secret(key) and not isinstance(plain, bool | None)
            kept[clip(key, 64)] = HIDDEN if hide else plain
    return kept


def plain_value(value: object) -> Attribute:
    """Return a value that survives JSON and pickle anywhere; None for what is not plain.

    Subclasses (an `IntEnum`, a numpy float) become what they are based on, without asking them.
    """
    if value is None or type(value) is bool:
        return value
    if is_a(value, int):
        number = int.__int__(value)  # type: ignore[arg-type]  # it is one
        return number if number.bit_length() < 64 else None
    if is_a(value, float):
        real = float.__float__(value)  # type: ignore[arg-type]  # it is one
        return real if real - real == 0.0 else str(real)
    said = text(value)
    return None if said is None else safe(said, VALUE_CHARS)
