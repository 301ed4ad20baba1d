"""The verdict of a retry policy, why work is given up, and where evidence points. Pure."""

from __future__ import annotations

import enum

import attrs

from thornback.faults.kinds import FaultKind
from thornback.faults.values import Value


class Standing(enum.Enum):
    """Says whether the evidence about one failed attempt points to the rank or to the machine.

    A fault that a machine may have caused (`RetryVerdict.blames_node`) starts as OPEN. What happens
    to other ranks on that node afterwards settles it.
    """

    OPEN = "open"
    """Nothing has settled it yet."""
    RANK = "rank"
    """A different rank, started later on that node, finished or ran longer: the node is fine."""
    NODE = "node"
    """A second, different rank failed there first, or the node was suspected already."""
    UNDECIDED = "undecided"
    """Nothing else can run there, so no evidence will come: the ordinary budget decides."""


class StopReason(enum.Enum):
    """Why something is not tried again."""

    CANCELLED = "cancelled"
    """We, or our user, asked for it."""
    FINAL = "final"
    """The error itself says that trying again is useless (`non_retryable`)."""
    NOT_PLACED = "not_placed"
    """The resources were not free for as long as the user wanted to wait."""
    UNSCHEDULABLE = "unschedulable"
    """It fits nowhere."""
    POISON = "poison"
    """Its own process died on two nodes, or twice on the only one, where other ranks ran well."""
    OUT_OF_MEMORY = "out_of_memory"
    """It ran out of the largest memory there is."""
    NO_RETRIES = "no_retries"
    """Faults of this kind are not retried."""
    BUDGET = "budget"
    """The retries for faults of this kind are used up."""
    TOTAL = "total"
    """The retries for faults of all kinds together are used up."""
    UNDECIDED = "undecided"
    """Its retries are used up, and no evidence says whether the rank or the machine is to blame."""
    UNLUCKY = "unlucky"
    """It met bad machines too often: its retries that are charged to nobody are used up."""
    NO_PROGRESS = "no_progress"
    """Nothing gets through any more: every machine fails (`Breaker`)."""
    ALL_ALIKE = "all_alike"
    """The first ranks of its stage all failed with the same error of the user's code."""


@attrs.frozen(kw_only=True)
class WeighedFault(Value):
    """One fault of a rank that is given up, and what the evidence says about it."""

    kind: FaultKind
    node: str
    """Name of the node on which it happened; empty if not known."""
    standing: Standing | None
    """None for kinds of faults about which no evidence is collected."""


@attrs.frozen(kw_only=True)
class RetryVerdict(Value):
    """What shall be done about a failure."""

    retry: bool
    """Try again."""
    delay_s: float = 0.0
    """The pause before that. Given without `retry` too, for who goes on with other things."""
    charged: bool = True
    """It counts as an attempt of the rank. A preemption does not, nor does a fault that is the
    machine's as far as is known."""
    machine_fault: bool = False
    """It speaks against the machines: a dead process or worker, a failed set-up, a broken disk.
    Many of these without a success between them stop everything (`Breaker`)."""
    blames_rank: bool = False
    """The rank's code may be what took its worker down: run it alone the next time."""
    blames_node: bool = False
    """The node may be what failed it: evidence from other ranks there is wanted."""
    memory_bytes: int | None = None
    """Per rank; None: what the stage asks for. Once raised, it is named in every later verdict."""
    timeout_factor: float = 1.0
    """Multiply the time limit of the rank by this the next time."""
    reason: str
    """One line for people: `network: retry 1 of 10, after a pause`."""
    stop: StopReason | None = None
    """Why not, without `retry`."""
    signature: str = ""
    """Type and innermost frame of an error of the user's own code; empty for everything else."""
    evidence: tuple[WeighedFault, ...] = ()
    """The last 50 faults of the work, oldest first, where it is given up (`stop`)."""
