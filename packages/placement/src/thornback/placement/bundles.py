"""What a gang asks for and what a cluster has, as values. Pure."""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from thornback.placement.labels import Selectors, normal

ACCELERATOR = "accelerator_type:"
"""Begins the name of the resource that nodes with an accelerator of a type have."""
TRACE = 0.001
"""How much of it a bundle takes, so that it is only a mark. Source: ray 2.60 `_common/utils.py`."""
_RESERVED = ("CPU", "GPU", "memory")


class Strategy(enum.Enum):
    """How the bundles of a gang are spread over nodes (the words are Ray's)."""

    PACK = "PACK"
    """On as few nodes as possible."""
    SPREAD = "SPREAD"
    """On as many nodes as possible."""
    STRICT_PACK = "STRICT_PACK"
    """On one node."""
    STRICT_SPREAD = "STRICT_SPREAD"
    """Each on a node of its own."""


class Supply(enum.Enum):
    """Whether nodes that are not there now may come: decides how long an unplaceable request
    waits."""

    FIXED = "fixed"
    """Never: it is refused at once."""
    CHANGING = "changing"
    """Nodes come and go by other hands: it is refused after a while."""
    ELASTIC = "elastic"
    """An autoscaler adds nodes on demand: it waits until the placement deadline."""


def _amount(_: object, attribute: attrs.Attribute[Any], value: float) -> None:
    if not (value >= 0 and math.isfinite(value)):
        raise ValueError(
            f"{attribute.name}={value!r}: expected a finite number >= 0; "
            "leave it out where nothing of it is needed"
        )


def _custom(_: object, __: attrs.Attribute[Any], value: Mapping[str, float]) -> None:
    for name, amount in value.items():
        if name in _RESERVED:
            raise ValueError(
                f"resources={{{name!r}: ...}}: {', '.join(_RESERVED)} have arguments of their own: "
                "use cpus=, gpus=, memory_bytes="
            )
        if not (amount >= 0 and math.isfinite(amount)):
            raise ValueError(f"resources={{{name!r}: {amount!r}}}: expected a finite number >= 0")


def _count(_: object, attribute: attrs.Attribute[Any], value: int) -> None:
    if value < 1:
        raise ValueError(f"{attribute.name}={value!r}: a gang has at least one node; expected >= 1")


def _accelerator(_: object, __: attrs.Attribute[Any], value: str) -> None:
    if value != value.strip() or value.startswith(ACCELERATOR):
        raise ValueError(f"accelerator={value!r}: expected the bare name of a type, like 'A100'")


def _selectors(
    labels: Selectors | Sequence[Selectors],
) -> tuple[Selectors, ...]:
    each = (labels,) if isinstance(labels, Mapping) else tuple(labels)
    for selectors in each:
        if not isinstance(selectors, Mapping):
            raise ValueError(
                f"labels={labels!r}: expected selectors by label, like {{'zone': 'a'}}, once for "
                "all bundles or once per bundle"
            )
    return tuple(normal(selectors) for selectors in each)


def _one_or_each(request: GangRequest, _: object, value: tuple[Selectors, ...]) -> None:
    if len(value) not in {0, 1, request.nodes}:
        raise ValueError(
            f"labels=...: {len(value)} mappings for {request.nodes} bundles; expected one for "
            "all of them, or one per bundle"
        )


@attrs.frozen(kw_only=True, slots=True)
class Bundle:
    """Resources on one node.

    Raises:
        ValueError: an amount is negative or not finite, or `resources` names what has a field of
            its own.
    """

    cpus: float = attrs.field(default=1.0, validator=_amount)
    """Logical ones; parts of one, too."""
    gpus: float = attrs.field(default=0.0, validator=_amount)
    """Parts of one, too."""
    memory_bytes: int = attrs.field(default=0, validator=_amount)
    """0: memory is not reserved."""
    resources: Mapping[str, float] = attrs.field(factory=dict, validator=_custom)
    """Custom resources by name."""
    accelerator: str = attrs.field(default="", validator=_accelerator)
    """The type that the node's accelerators must have, by Ray's name (`A100`); empty: any, or none.
    Says nothing of how many: `gpus` does."""


@attrs.frozen(kw_only=True, slots=True)
class GangRequest:
    """Bundles that are reserved together, all or nothing.

    Raises:
        ValueError: `nodes` is less than 1; or `labels` are not written as expected, or neither one
            for all bundles nor one per bundle.
    """

    bundle: Bundle
    """What is needed on each node."""
    nodes: int = attrs.field(default=1, validator=_count)
    """How many bundles."""
    strategy: Strategy | None = None
    """None: STRICT_SPREAD for several nodes, PACK for one."""
    name: str = ""
    """For people: shows in the backend's own tools."""
    labels: tuple[Selectors, ...] = attrs.field(
        default=(), converter=_selectors, validator=_one_or_each
    )
    """Selectors by label that the node must match: one mapping for all bundles, or a sequence with
    one per bundle. `"v"`, `"!v"` (also where the label is missing), `"in(a,b)"`, `"!in(a,b)"`."""


@attrs.frozen(kw_only=True, slots=True)
class Lease:
    """A gang's resources, held until released."""

    lease_id: int
    """Unique within its allocator."""
    nodes: tuple[str, ...]
    """One node per bundle, in the order of the bundles."""
    fitting: int | None = None
    """Live nodes that could hold one of its bundles, free or not, when it was granted; None: not
    known."""
    handle: object = attrs.field(eq=False, repr=False, default=None)
    """Opaque: made by the cluster, understood by the worker backend of the same family (on Ray: the
    placement group)."""


@attrs.frozen(kw_only=True, slots=True)
class NodeView:
    """One live node, as far as placement is concerned."""

    name: str
    """Unique in its cluster."""
    resources: Mapping[str, float]
    """All it has, free or not, by resource: `CPU`, `GPU`, `memory` (bytes), and custom names."""
    labels: Mapping[str, str] = attrs.field(factory=dict)
    """What `GangRequest.labels` select by."""
    draining: bool = False
    """It will go away and takes nothing new."""
    left_s: float | None = None
    """Seconds until then, when draining; None: no deadline was given."""


@attrs.frozen(kw_only=True, slots=True)
class NodeType:
    """Nodes of one kind that an autoscaler may add."""

    name: str
    """For people."""
    resources: Mapping[str, float]
    """What each of them has, as in `NodeView.resources`."""
    labels: Mapping[str, str] = attrs.field(factory=dict)
    """Those that are known before it comes; one that is missing here may be anything."""
    more: int | None = None
    """How many may come besides those that are there; None: no limit is known."""


def strategy_of(request: GangRequest) -> Strategy:
    """Return the strategy of the request, or the default: STRICT_SPREAD for several nodes."""
    if request.strategy is not None:
        return request.strategy
    return Strategy.STRICT_SPREAD if request.nodes > 1 else Strategy.PACK


def resources_of(bundle: Bundle) -> dict[str, float]:
    """Return what the bundle needs by resource, without zeros; empty for a bundle of nothing."""
    amounts: dict[str, float] = {
        "CPU": bundle.cpus,
        "GPU": bundle.gpus,
        "memory": bundle.memory_bytes,
        **bundle.resources,
    }
    if bundle.accelerator:
        amounts[ACCELERATOR + bundle.accelerator] = TRACE
    return {name: amount for name, amount in amounts.items() if amount > 0}


def selectors_of(request: GangRequest) -> tuple[Selectors, ...]:
    """Return the selectors of each bundle, in the order of the bundles."""
    if len(request.labels) == request.nodes:
        return request.labels
    return (request.labels or ({},)) * request.nodes


def kinds_of(request: GangRequest) -> tuple[tuple[Selectors, tuple[int, ...]], ...]:
    """Return the bundles by selectors: (selectors, which bundles), in the order of the bundles."""
    kinds: dict[tuple[tuple[str, str], ...], list[int]] = {}
    each = selectors_of(request)
    for index, selectors in enumerate(each):
        kinds.setdefault(tuple(sorted(selectors.items())), []).append(index)
    return tuple((each[indexes[0]], tuple(indexes)) for indexes in kinds.values())


def without(nodes: Sequence[NodeView], avoid: Sequence[str]) -> tuple[NodeView, ...]:
    """Return the nodes that are not to be avoided."""
    return tuple(node for node in nodes if node.name not in avoid)
