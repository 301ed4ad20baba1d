"""Why a gang does not fit, for people, with numbers; and whether nodes that may come help. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Protocol

import attrs

from thornback.placement.bundles import (
    ACCELERATOR,
    GangRequest,
    NodeType,
    NodeView,
    Strategy,
    Supply,
    kinds_of,
    resources_of,
    selectors_of,
    strategy_of,
    without,
)
from thornback.placement.fit import copies, fit, most_together
from thornback.placement.labels import (
    Selectors,
    conditions_of,
    holds,
    show_selectors,
)
from thornback.placement.ports import Grant, Snapshot


@attrs.frozen(kw_only=True, slots=True)
class Diagnosis:
    """A request does not fit the nodes, not even when all is free."""

    text: str
    hopeless: bool
    """The node types that may come are known, and do not help either."""


def explain_unplaceable(
    request: GangRequest, nodes: Sequence[NodeView], node_types: Sequence[NodeType] = ()
) -> str | None:
    """Return why the request fits the nodes not even when all is free; None: it does fit.

    Nodes that drain do not count. The text has numbers: `needs 2 x {GPU: 8} on different nodes;
    largest node has {GPU: 4}; 1 node draining`. With the node types of an autoscaler it says
    whether they could help: `would fit on 2 more nodes of type 'gpu'; waiting for the autoscaler`.
    """
    found = diagnose(request, nodes, node_types)
    return None if found is None else found.text


def diagnose(
    request: GangRequest, nodes: Sequence[NodeView], node_types: Sequence[NodeType] = ()
) -> Diagnosis | None:
    """As `explain_unplaceable`, as data."""
    staying = [node for node in nodes if not node.draining]
    if fit(request, staying) is not None:
        return None
    parts = [f"needs {describe(request)}", _shortage(request, staying)]
    if len(staying) < len(nodes):
        parts.append(f"{_nodes(len(nodes) - len(staying))} draining")
    packed = attrs.evolve(request, strategy=Strategy.PACK)
    if strategy_of(request) is not Strategy.PACK and fit(packed, staying) is not None:
        parts.append("with strategy=Strategy.PACK it would fit")
    help_ = _help(request, staying, node_types) if node_types else ""
    if help_:
        parts.append(help_)
    elif node_types:
        parts.append(_no_help(request, node_types))
    # A node that drains still counts against the autoscaler's limit; its successor may help.
    hopeless = bool(node_types) and not help_ and len(staying) == len(nodes)
    return Diagnosis(text="; ".join(parts), hopeless=hopeless)


def explain_busy(
    request: GangRequest, nodes: Sequence[NodeView], held: Sequence[tuple[str, Mapping[str, float]]]
) -> str | None:
    """Return why a request waits that fits the nodes; None: because of what we hold ourselves.

    Args:
        request: what was asked for.
        nodes: with all they have, free or not.
        held: (node, amounts) that this run has reserved already.
    """
    ours: dict[str, dict[str, float]] = {}
    for node, amounts in held:
        mine = ours.setdefault(node, {})
        for name, amount in amounts.items():
            mine[name] = mine.get(name, 0.0) + amount
    staying = [node for node in nodes if not node.draining]
    left = [
        attrs.evolve(
            node,
            resources={
                name: amount - ours.get(node.name, {}).get(name, 0.0)
                for name, amount in node.resources.items()
            },
        )
        for node in staying
    ]
    if fit(request, left) is None:
        return None
    names = [name for name in resources_of(request.bundle) if not name.startswith(ACCELERATOR)]
    total = {name: sum(each.resources.get(name, 0.0) for each in staying) for name in names}
    own = {name: sum(amounts.get(name, 0.0) for _, amounts in held) for name in names}
    has = "has" if len(staying) == 1 else "have"
    return (
        f"needs {describe(request)}; {_nodes(len(staying))} {has} {show_resources(total)}, "
        f"this run holds {show_resources(own)}; others use what it needs of the rest"
    )


class Holder(Protocol):
    """A lease that we hold: what `Attempt` is here."""

    @property
    def lease_id(self) -> int: ...
    @property
    def request(self) -> GangRequest: ...
    @property
    def grant(self) -> Grant | None: ...


class Diagnoses:
    """What is wrong with requests in one snapshot: found once for all that ask for the same.

    Hundreds of gangs may wait in vain for many nodes, and each look wakes them all.
    """

    def __init__(self) -> None:
        self._snapshot: Snapshot | None = None
        self._found: dict[tuple[object, ...], Diagnosis | None] = {}
        self._busy: dict[tuple[object, ...], str | None] = {}

    def of(
        self, request: GangRequest, snapshot: Snapshot, avoid: Sequence[str] = ()
    ) -> Diagnosis | None:
        """As `diagnose`, with the node types of the snapshot where they may come, and without the
        nodes to avoid: nothing that comes is waited for where these could be used."""
        self._renew(snapshot)
        key = (*_key(request), tuple(avoid))
        if key not in self._found:
            types = () if avoid else may_come(snapshot)
            self._found[key] = diagnose(request, without(snapshot.nodes, avoid), types)
        return self._found[key]

    def busy(
        self,
        request: GangRequest,
        snapshot: Snapshot,
        avoid: Sequence[str],
        holders: Sequence[Holder],
    ) -> str | None:
        """As `explain_busy`, without the nodes to avoid; `holders` are the leases that we hold."""
        self._renew(snapshot)
        key = (*_key(request), tuple(avoid), tuple(each.lease_id for each in holders))
        if key not in self._busy:
            held = [
                (node, resources_of(each.request.bundle))
                for each in holders
                if each.grant is not None
                for node in each.grant.nodes
            ]
            self._busy[key] = explain_busy(request, without(snapshot.nodes, avoid), held)
        return self._busy[key]

    def _renew(self, snapshot: Snapshot) -> None:
        if snapshot is not self._snapshot:
            self._snapshot, self._found, self._busy = snapshot, {}, {}


def may_come(snapshot: Snapshot) -> tuple[NodeType, ...]:
    """Return the node types that an autoscaler may add; empty: none, or not known."""
    return snapshot.node_types if snapshot.supply is Supply.ELASTIC else ()


def _key(request: GangRequest) -> tuple[object, ...]:
    """Equal for requests that are placed alike, whatever they are called."""
    labels = tuple(tuple(sorted(selectors.items())) for selectors in selectors_of(request))
    needs = tuple(resources_of(request.bundle).items())
    return needs, request.nodes, strategy_of(request), labels


def _help(request: GangRequest, nodes: Sequence[NodeView], types: Sequence[NodeType]) -> str:
    """Say with which nodes it would fit; empty: with none."""
    for each in types:
        fewest = _fewest(request, nodes, _coming(request, each))
        if fewest is not None:
            return _would_fit(f"{_nodes(fewest, 'more ')} of type {each.name!r}")
    if fit(request, nodes, [node for each in types for node in _coming(request, each)]) is None:
        return ""
    return _would_fit(f"more nodes of types {', '.join(repr(each.name) for each in types)}")


def _fewest(
    request: GangRequest, nodes: Sequence[NodeView], coming: Sequence[NodeView]
) -> int | None:
    """Return with how many of those that come the request would fit; None: not with all."""

    def fits(count: int) -> bool:
        return fit(request, nodes, coming[:count]) is not None

    fewest = bisect_left(range(len(coming) + 1), True, key=fits)
    return fewest if fewest <= len(coming) else None


def _would_fit(on: str) -> str:
    return f"would fit on {on}; waiting for the autoscaler"


def _no_help(request: GangRequest, types: Sequence[NodeType]) -> str:
    coming = [_coming(request, each, at_least=1) for each in types]
    need = resources_of(request.bundle)
    if all(copies(need, nodes[0].resources) == 0 for nodes in coming):
        largest = _largest(need, [nodes[0] for nodes in coming])
        return f"no node type of the autoscaler can hold it: largest has {largest}"
    more = [
        f"{each.name!r}: {'any number' if each.more is None else max(0, each.more)}"
        for each in types
    ]
    return f"not even on all nodes that the autoscaler may add ({', '.join(more)})"


def _coming(request: GangRequest, node_type: NodeType, at_least: int = 0) -> list[NodeView]:
    """Return as many nodes of the type as may come and could be of use."""
    count = request.nodes if node_type.more is None else min(request.nodes, node_type.more)
    resources, labels = node_type.resources, node_type.labels
    return [
        NodeView(name=f"{node_type.name} {number}", resources=resources, labels=labels)
        for number in range(max(count, at_least))
    ]


def _shortage(request: GangRequest, nodes: Sequence[NodeView]) -> str:
    if not nodes:
        return "there is no node"
    kinds = kinds_of(request)
    if len(kinds) == 1:
        return _shortage_of(request, kinds[0][0], nodes)
    for selectors, bundles in kinds:
        alone = attrs.evolve(request, nodes=len(bundles), labels=selectors)
        if fit(alone, nodes) is None:
            where = f"of these {len(bundles)} with {_with(selectors)}: "
            return where + _shortage_of(alone, selectors, nodes)
    if strategy_of(request) is Strategy.STRICT_PACK:
        return f"none of {_nodes(len(nodes))} can hold all of them"
    most = most_together(request, nodes)
    return f"{_nodes(len(nodes))} can hold {most} of the {request.nodes} together"


def _with(selectors: Selectors) -> str:
    return show_selectors(selectors) or "any labels"


def _shortage_of(request: GangRequest, selectors: Selectors, nodes: Sequence[NodeView]) -> str:
    """Say what is short for bundles that are alike."""
    need, conditions = resources_of(request.bundle), conditions_of(selectors)
    fitting = [node for node in nodes if holds(conditions, node.labels)]
    if not fitting:
        return _no_label(selectors, nodes)
    rooms = [copies(need, node.resources) for node in fitting]
    count, of = len(fitting), _nodes(len(nodes))
    if selectors:
        which = "those labels" if len(selectors) > 1 else "that label"
        prefix = f"{count} of {of} {'has' if count == 1 else 'have'} {which}; "
        of = "that one" if count == 1 else f"these {count}"
    else:
        prefix = ""
    if max(rooms) == 0:
        largest = _largest(need, fitting)
        return f"{prefix}largest of them has {largest}" if prefix else f"largest node has {largest}"
    if strategy_of(request) is Strategy.STRICT_PACK:
        return f"{prefix}the largest of {of} has room for {max(rooms)}"
    if strategy_of(request) is Strategy.STRICT_SPREAD:
        return f"{prefix}{sum(room > 0 for room in rooms)} of {of} can hold one"
    return f"{prefix}{of} can hold {sum(rooms)} together"


def _no_label(selectors: Selectors, nodes: Sequence[NodeView]) -> str:
    """Say which labels there are instead, of the first selector that no node matches."""
    of = f"none of {_nodes(len(nodes))}"
    for label in selectors:
        conditions = conditions_of({label: selectors[label]})
        if not any(holds(conditions, node.labels) for node in nodes):
            there = sorted({node.labels[label] for node in nodes if label in node.labels})
            shown = ", ".join(there[:5]) + (", ..." if len(there) > 5 else "")
            return f"{of} has {_with({label: selectors[label]})} ({label}: {shown or 'nowhere'})"
    return f"{of} has those labels together"


def _largest(need: Mapping[str, float], nodes: Sequence[NodeView]) -> str:
    """Show what the node that comes closest has of what is needed."""
    closest = max(nodes, key=lambda node: _closeness(need, node.resources)).resources
    has = {name: closest.get(name, 0.0) for name in need if not name.startswith(ACCELERATOR)}
    if len(has) < len(need):
        types = [name for name in closest if name.startswith(ACCELERATOR)]
        has.update(dict.fromkeys(types or [ACCELERATOR + "none"], 1.0))
    return show_resources(has)


def _closeness(need: Mapping[str, float], has: Mapping[str, float]) -> tuple[float, float]:
    """Order nodes by how much of what is needed they have: the scarcest resource first, then
    all."""
    shares = [min(1.0, has.get(name, 0.0) / need[name]) for name in need]
    return (min(shares, default=1.0), sum(shares))


def _nodes(count: int, more: str = "") -> str:
    return f"{count} {more}node" if count == 1 else f"{count} {more}nodes"


def describe(request: GangRequest) -> str:
    """Return the request for people: `2 x {GPU: 8} with zone=a on different nodes`."""
    where = {Strategy.STRICT_SPREAD: " on different nodes", Strategy.STRICT_PACK: " on one node"}
    each, kinds = show_resources(resources_of(request.bundle)), kinds_of(request)
    parts = [f"{len(bundles)} x {each}" + _suffix(selectors) for selectors, bundles in kinds]
    text = " and ".join(parts)
    return text + (where.get(strategy_of(request), "") if request.nodes > 1 else "")


def _suffix(selectors: Selectors) -> str:
    return f" with {show_selectors(selectors)}" if selectors else ""


def show_resources(amounts: Mapping[str, float]) -> str:
    """Return amounts for people: `{CPU: 2, memory: 3 GiB, accelerator: A100}`."""
    return "{" + ", ".join(_show(name, amounts[name]) for name in amounts) + "}"


def _show(name: str, amount: float) -> str:
    if name.startswith(ACCELERATOR):
        return f"accelerator: {name.removeprefix(ACCELERATOR)}"
    if name == "memory":
        for size, unit in ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
            if amount >= size:
                return f"{name}: {round(amount / size, 2):g} {unit}"
    return f"{name}: {amount:.10g}"


def largest_memory_bytes(
    request: GangRequest, nodes: Sequence[NodeView], node_types: Sequence[NodeType] = ()
) -> int | None:
    """Return the most memory that a bundle of this request could have on the nodes that there are,
    or may come.

    Only nodes that stay and that hold the bundle apart from its memory count; for a gang on
    different nodes it is what the smallest of the `nodes` largest ones has. None: there is no such
    level.
    """
    bare = attrs.evolve(request, bundle=attrs.evolve(request.bundle, memory_bytes=0))
    staying = [node for node in nodes if not node.draining]
    coming = [node for each in node_types for node in _coming(request, each)]
    levels = sorted({_memory(node) for node in (*staying, *coming)} - {0}, reverse=True)

    def fits(level: int) -> bool:
        there, more = ([n for n in each if _memory(n) >= level] for each in (staying, coming))
        return fit(bare, there, more) is not None

    # What fits the nodes of a level fits those of a lower one, too, which are more.
    first = bisect_left(levels, True, key=fits)
    return levels[first] if first < len(levels) else None


def _memory(node: NodeView) -> int:
    return int(node.resources.get("memory", 0.0))
