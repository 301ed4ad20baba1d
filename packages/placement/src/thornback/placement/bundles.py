"""What a gang asks for, as values: bundles, requests, leases. Pure."""

from __future__ import annotations

import enum
from collections.abc import Mapping

import attrs


class Strategy(enum.Enum):
    """How the bundles of a gang are spread over nodes (the words are Ray's)."""

    PACK = "PACK"
    SPREAD = "SPREAD"
    STRICT_PACK = "STRICT_PACK"
    STRICT_SPREAD = "STRICT_SPREAD"


@attrs.frozen(kw_only=True, slots=True)
class Bundle:
    """Resources on one node."""

    cpus: float = 1.0
    gpus: float = 0.0
    memory_bytes: int = 0
    """0: memory is not reserved."""
    resources: Mapping[str, float] = attrs.field(factory=dict)
    """Custom resources by name."""


@attrs.frozen(kw_only=True, slots=True)
class GangRequest:
    """`nodes` bundles, all or nothing."""

    bundle: Bundle
    nodes: int = 1
    strategy: Strategy | None = None
    """None: STRICT_SPREAD for several nodes, PACK for one."""
    name: str = ""
    """For people: shows in the backend's own tools."""


@attrs.frozen(kw_only=True, slots=True)
class Lease:
    """A gang's resources, held until released."""

    lease_id: int
    nodes: tuple[str, ...]
    """One node per bundle, in the order of the bundles."""
    handle: object = attrs.field(eq=False, repr=False, default=None)
    """Opaque: made by the cluster, understood by the worker backend of the same family (on Ray: the placement group)."""
