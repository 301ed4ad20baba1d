"""The words for what goes wrong: kinds, origins, and the classified failure itself. Attempts count from 1, ranks from 0."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from typing import Protocol, TypeAlias

import attrs

Attribute: TypeAlias = str | int | float | bool | None
"""A plain value taken off an exception, or a fact that the observer of a failure knows."""


class ErrorData(Protocol):
    """An exception as data: what crosses a process border. Any object with these attributes can be classified."""

    @property
    def type_names(self) -> Sequence[str]:
        """`module.qualname` of every class along the MRO, most derived first; `object` is left out."""
        ...

    @property
    def message(self) -> str: ...

    @property
    def traceback(self) -> str: ...

    @property
    def attributes(self) -> Mapping[str, Attribute]:
        """Plain attributes of the exception: `errno`, `exit_code`, `signal`, `preempted`, `retry_after`, ..."""
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
    """Who saw the failure. Tested before any name: the same exception means different things from different places."""

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
    NODE_LOST = "node_lost"
    WORKER_CRASH = "worker_crash"
    OOM = "oom"
    OBJECT_LOST = "object_lost"
    UNAVAILABLE = "unavailable"
    RESOURCE = "resource"
    SETUP = "setup"
    TIMEOUT = "timeout"
    PLACEMENT_REMOVED = "placement_removed"
    INTERRUPTED = "interrupted"
    CANCELLED = "cancelled"
    UNSCHEDULABLE = "unschedulable"
    THROTTLED = "throttled"
    NETWORK = "network"
    APPLICATION = "application"
    SYSTEM = "system"
    UNKNOWN = "unknown"


@attrs.frozen(kw_only=True, slots=True)
class Fault:
    """A classified failure: data, safe to keep, print, compare and send."""

    kind: FaultKind
    origin: Origin
    rule: str
    """Name of the rule that decided."""
    error_type: str
    """`module.qualname` of the exception that the rule matched (after unwrapping)."""
    message: str
    phase: str = ""
    """For time-outs and set-up: place, start, setup, rank, heartbeat, recall."""
    facts: Mapping[str, Attribute] = attrs.field(factory=dict)
    """What was known besides: exit_code, signal, peak_rss_bytes, largest_memory_bytes, retry_after_s, ..."""
    traceback: str = ""
