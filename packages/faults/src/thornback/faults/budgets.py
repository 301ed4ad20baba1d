"""How often a failure of each kind may be met with another try: the default table. Pure."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from thornback.faults.kinds import FaultKind
from thornback.faults.values import Value


@attrs.frozen(kw_only=True)
class FaultBudget(Value):
    """What one kind of fault may cost, and who is to blame. ValueError for a bad `retries`."""

    retries: int | None
    """How often a rank is tried again after faults of this kind. None: without end."""
    remedy: str = "after a pause"
    """What is different the next time: for people."""
    charged: bool = True
    """It counts for the rank's attempts."""
    in_total: bool = True
    """It counts for the limit on all kinds together."""
    at_once: bool = False
    """The first retry does not wait."""
    blames_node: bool = False
    """The node may be what failed it: evidence decides whether the rank pays."""
    machine_fault: bool = False
    """It speaks against the machines: it counts for the rule that stops a stage where all fail."""
    blames_rank: bool = False
    """The rank's code may be what took its worker down."""

    def __attrs_post_init__(self) -> None:
        retries: object = self.retries
        if retries is not None and (type(retries) is not int or retries < 0):
            raise ValueError(
                f"retries must be an int >= 0 (0: no retry), or None, not {retries!r}."
            )


DEFAULT_BUDGETS: Mapping[FaultKind, FaultBudget] = {
    # Without end: on spot machines a job of days is preempted hundreds of times and loses nothing
    # by it, so any number would end real work.
    FaultKind.PREEMPTION: FaultBudget(
        retries=None, remedy="on another node", charged=False, in_total=False, at_once=True
    ),
    # A machine that is gone may still be offered for a while (ray: until its health check fails).
    FaultKind.NODE_LOST: FaultBudget(
        retries=20, remedy="on another node", in_total=False, blames_node=True
    ),
    FaultKind.WORKER_CRASH: FaultBudget(
        retries=3,
        remedy="in a fresh process",
        at_once=True,
        blames_node=True,
        machine_fault=True,
        blames_rank=True,
    ),
    FaultKind.OOM: FaultBudget(retries=4, remedy="with more memory", blames_rank=True),
    FaultKind.OBJECT_LOST: FaultBudget(retries=3),
    FaultKind.UNAVAILABLE: FaultBudget(retries=5),
    FaultKind.RESOURCE: FaultBudget(
        retries=3, remedy="on another node", blames_node=True, machine_fault=True
    ),
    # Set-up is the same for every rank of a stage, so it says nothing about the one that met it.
    FaultKind.SETUP: FaultBudget(
        retries=None,
        remedy="on another node",
        charged=False,
        in_total=False,
        blames_node=True,
        machine_fault=True,
    ),
    FaultKind.TIMEOUT: FaultBudget(retries=1, remedy="in a fresh process"),
    FaultKind.PLACEMENT_REMOVED: FaultBudget(retries=5, remedy="in a new gang"),
    FaultKind.INTERRUPTED: FaultBudget(retries=3),
    FaultKind.CANCELLED: FaultBudget(retries=0, charged=False, in_total=False),
    FaultKind.UNSCHEDULABLE: FaultBudget(retries=0),
    FaultKind.THROTTLED: FaultBudget(retries=10),
    FaultKind.NETWORK: FaultBudget(retries=10),
    FaultKind.APPLICATION: FaultBudget(retries=0),
    FaultKind.SYSTEM: FaultBudget(retries=1, remedy="on another node", machine_fault=True),
    FaultKind.UNKNOWN: FaultBudget(retries=0),
}
"""`RetryPolicy(retries=...)` sets the one of APPLICATION."""
