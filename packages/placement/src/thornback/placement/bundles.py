"""What a gang asks for and what a cluster has, as values, and whether the one fits the other. Pure.

Amounts are compared in units of 1/10,000, as Ray does, so that ten times 0.1 is 1.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

_RESERVED = ("CPU", "GPU", "memory")
_PLENTY = 1_000_000_000


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


@attrs.frozen(kw_only=True, slots=True)
class GangRequest:
    """Bundles that are reserved together, all or nothing.

    Raises:
        ValueError: `nodes` is less than 1.
    """

    bundle: Bundle
    """What is needed on each node."""
    nodes: int = attrs.field(default=1, validator=_count)
    """How many bundles."""
    strategy: Strategy | None = None
    """None: STRICT_SPREAD for several nodes, PACK for one."""
    name: str = ""
    """For people: shows in the backend's own tools."""


@attrs.frozen(kw_only=True, slots=True)
class Lease:
    """A gang's resources, held until released."""

    lease_id: int
    """Unique within its allocator."""
    nodes: tuple[str, ...]
    """One node per bundle, in the order of the bundles."""
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
    draining: bool = False
    """It will go away and takes nothing new."""
    left_s: float | None = None
    """Seconds until then, when draining; None: no deadline was given."""


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
    return {name: amount for name, amount in amounts.items() if amount > 0}


def units(amount: float) -> int:
    """Return the amount in units of 1/10,000. Source: ray `fixed_point.h`."""
    return round(amount * 10_000)


def copies(need: Mapping[str, float], free: Mapping[str, float]) -> int:
    """Return how many times `need` fits into `free`."""
    return min(
        (units(free.get(name, 0.0)) // max(1, units(need[name])) for name in need), default=_PLENTY
    )


def fit(
    request: GangRequest, free: Sequence[tuple[str, Mapping[str, float]]]
) -> tuple[str, ...] | None:
    """Return a node for each bundle, or None when they do not fit. Exact, since bundles are equal.

    Args:
        request: what to place.
        free: (node, what it has free), in order of preference.
    """
    need, count, strategy = resources_of(request.bundle), request.nodes, strategy_of(request)
    room = [(node, copies(need, amounts)) for node, amounts in free]
    if strategy is Strategy.STRICT_PACK:
        return next(((node,) * count for node, copy in room if copy >= count), None)
    if strategy is Strategy.STRICT_SPREAD:
        chosen = tuple(node for node, copy in room if copy >= 1)[:count]
        return chosen if len(chosen) == count else None
    if sum(copy for _, copy in room) < count:
        return None
    if strategy is Strategy.PACK:
        return _packed(room, count)
    return _spread(room, count)


def _packed(room: Sequence[tuple[str, int]], count: int) -> tuple[str, ...]:
    """As few nodes as possible: the first that takes all, else the roomiest first."""
    for node, copy in room:
        if copy >= count:
            return (node,) * count
    chosen: list[str] = []
    for node, copy in sorted(room, key=lambda item: -item[1]):
        chosen.extend([node] * min(copy, count - len(chosen)))
    return tuple(chosen)


def _spread(room: Sequence[tuple[str, int]], count: int) -> tuple[str, ...]:
    """Round after round, one bundle on each node that has room."""
    chosen: list[str] = []
    taken = 0
    while len(chosen) < count:
        chosen.extend(node for node, copy in room if copy > taken)
        taken += 1
    return tuple(chosen[:count])


def describe(request: GangRequest) -> str:
    """Return the request for people: `2 x {GPU: 8} on different nodes`."""
    where = {Strategy.STRICT_SPREAD: " on different nodes", Strategy.STRICT_PACK: " on one node"}
    text = f"{request.nodes} x {show_resources(resources_of(request.bundle))}"
    return text + (where.get(strategy_of(request), "") if request.nodes > 1 else "")


def show_resources(amounts: Mapping[str, float]) -> str:
    """Return amounts for people: `{CPU: 2, memory: 3 GiB}`."""
    return "{" + ", ".join(f"{name}: {_show(name, amounts[name])}" for name in amounts) + "}"


def _show(name: str, amount: float) -> str:
    if name == "memory":
        for size, unit in ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
            if amount >= size:
                return f"{round(amount / size, 2):g} {unit}"
    return f"{amount:.10g}"


def explain_unplaceable(request: GangRequest, nodes: Sequence[NodeView]) -> str | None:
    """Return why the request fits the nodes not even when all is free; None: it does fit.

    Nodes that drain do not count. The text has numbers: `needs 2 x {GPU: 8} on different nodes;
    largest node has {GPU: 4}; 1 node draining`.
    """
    staying = [node for node in nodes if not node.draining]
    everything = [(node.name, node.resources) for node in staying]
    if fit(request, everything) is not None:
        return None
    parts = [f"needs {describe(request)}", _shortage(request, staying)]
    if len(staying) < len(nodes):
        parts.append(f"{_nodes(len(nodes) - len(staying))} draining")
    packed = attrs.evolve(request, strategy=Strategy.PACK)
    if strategy_of(request) is not Strategy.PACK and fit(packed, everything) is not None:
        parts.append("with strategy=Strategy.PACK it would fit")
    return "; ".join(parts)


def _shortage(request: GangRequest, nodes: Sequence[NodeView]) -> str:
    if not nodes:
        return "there is no node"
    need = resources_of(request.bundle)
    rooms = [copies(need, node.resources) for node in nodes]
    if max(rooms) == 0:
        closest = max(nodes, key=lambda node: _closeness(need, node.resources))
        has = {name: closest.resources.get(name, 0.0) for name in need}
        return f"largest node has {show_resources(has)}"
    if strategy_of(request) is Strategy.STRICT_PACK:
        return f"the largest of {_nodes(len(nodes))} has room for {max(rooms)}"
    if strategy_of(request) is Strategy.STRICT_SPREAD:
        return f"{sum(room > 0 for room in rooms)} of {_nodes(len(nodes))} can hold one"
    return f"{_nodes(len(nodes))} can hold {sum(rooms)} together"


def _closeness(need: Mapping[str, float], has: Mapping[str, float]) -> tuple[float, float]:
    """Order nodes by how much of what is needed they have: the scarcest resource first, then
    all."""
    shares = [min(1.0, has.get(name, 0.0) / need[name]) for name in need]
    return (min(shares, default=1.0), sum(shares))


def _nodes(count: int) -> str:
    return f"{count} node" if count == 1 else f"{count} nodes"


def largest_memory_bytes(request: GangRequest, nodes: Sequence[NodeView]) -> int | None:
    """Return the most memory that a bundle of this request could have on the present nodes.

    Only nodes that stay and that hold the bundle apart from its memory count; for a gang on
    different nodes it is what the smallest of the `nodes` largest ones has. None: there is no such
    level.
    """
    bare = attrs.evolve(request, bundle=attrs.evolve(request.bundle, memory_bytes=0))
    staying = [node for node in nodes if not node.draining]
    levels = sorted({int(node.resources.get("memory", 0.0)) for node in staying}, reverse=True)
    for level in levels:
        room = [(n.name, n.resources) for n in staying if n.resources.get("memory", 0.0) >= level]
        if level > 0 and fit(bare, room) is not None:
            return level
    return None


def without(nodes: Sequence[NodeView], avoid: Sequence[str]) -> tuple[NodeView, ...]:
    """Return the nodes that are not to be avoided."""
    return tuple(node for node in nodes if node.name not in avoid)
