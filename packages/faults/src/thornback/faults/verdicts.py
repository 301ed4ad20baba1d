"""What a retry policy says: the verdict, and why work is given up. Pure."""

from __future__ import annotations

import enum

from thornback.faults.values import Value


class StopReason(enum.Enum):
    """Why something is not tried again."""

    CANCELLED = "cancelled"
    """We, or our user, asked for it."""
    FINAL = "final"
    """The error itself says that trying again is useless (`non_retryable`)."""
    NOT_PLACED = "not_placed"
    """The resources were not free in time."""
    UNSCHEDULABLE = "unschedulable"
    """It fits nowhere."""
    POISON = "poison"
    """Its own process died on two nodes, or twice on the only one: it must be the work itself."""
    OUT_OF_MEMORY = "out_of_memory"
    """It ran out of the largest memory there is."""
    NO_RETRIES = "no_retries"
    """Faults of this kind are not retried."""
    BUDGET = "budget"
    """The retries for faults of this kind are used up."""
    TOTAL = "total"
    """The retries for faults of all kinds together are used up."""
    NO_PROGRESS = "no_progress"
    """Nothing gets through any more (`Breaker`)."""


class RetryVerdict(Value):
    """What shall be done about a failure."""

    retry: bool
    """Try again."""
    delay_s: float = 0.0
    """The pause before that. Given without `retry` too, for who goes on with other things."""
    charged: bool = True
    """It counts as an attempt of the rank: a preemption does not."""
    infrastructure: bool = True
    """It is not the rank's own code that failed: many of these in a row speak of the cluster."""
    blames_rank: bool = False
    """The rank's code may be what took its worker down: run it alone the next time."""
    blames_node: bool = False
    """The node may be what failed it: a reason to suspect the node."""
    avoid_node: bool = False
    """Try on another node, if there is one."""
    memory_bytes: int | None = None
    """Per rank; None: what the stage asks for. Once raised, it is named in every later verdict."""
    timeout_factor: float = 1.0
    """Multiply the time limit of the rank by this the next time."""
    reason: str
    """One line for people: `network: retry 1 of 10, after a pause`."""
    stop: StopReason | None = None
    """Why not, without `retry`."""
