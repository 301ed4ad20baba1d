"""Lease gangs of resources, and never leak them.

Public besides this module, and imported by their own names: `thornback.placement.on_local`,
`thornback.placement.on_ray` (needs ray) and `thornback.placement.testing`.
"""

from thornback.placement.allocator import Allocator, LeaseView
from thornback.placement.attempt import LeaseState
from thornback.placement.bundles import (
    Bundle,
    GangRequest,
    Lease,
    NodeType,
    NodeView,
    Strategy,
    Supply,
)
from thornback.placement.errors import (
    AllocatorClosed,
    PlacementError,
    PlacementRemoved,
    PlacementTimedOut,
    Unschedulable,
)
from thornback.placement.explain import explain_unplaceable
from thornback.placement.labels import matches
from thornback.placement.ledger import Ledger
from thornback.placement.params import AllocatorParams, Explanation, RemovalParams
from thornback.placement.ports import Cluster, Grant, Reservation, Snapshot

__all__ = [
    "Allocator",
    "AllocatorClosed",
    "AllocatorParams",
    "Bundle",
    "Cluster",
    "Explanation",
    "GangRequest",
    "Grant",
    "Lease",
    "LeaseState",
    "LeaseView",
    "Ledger",
    "NodeType",
    "NodeView",
    "PlacementError",
    "PlacementRemoved",
    "PlacementTimedOut",
    "RemovalParams",
    "Reservation",
    "Snapshot",
    "Strategy",
    "Supply",
    "Unschedulable",
    "explain_unplaceable",
    "matches",
]
