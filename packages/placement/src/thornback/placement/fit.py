"""Whether a gang fits nodes, and on which. Pure.

Theory of operation. The bundles of a gang are equal in what they need, so a node has room for so
many of them, whichever; only their selectors can differ. Where these are equal, counting is enough.
Else it is a matching of kinds of bundles (equal selectors) to nodes with room: bundle after bundle
is put on a node that has room, or takes the place of a bundle of another kind that finds another
one (augmenting paths), so that what can be placed is placed. Amounts are compared in units of
1/10,000, as Ray does, so that ten times 0.1 is 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from thornback.placement.bundles import (
    GangRequest,
    NodeView,
    Strategy,
    kinds_of,
    resources_of,
    strategy_of,
)
from thornback.placement.labels import Selectors, conditions_of, could_hold, holds

_PLENTY = 1_000_000_000


def units(amount: float) -> int:
    """Return the amount in units of 1/10,000. Source: ray `fixed_point.h`."""
    return round(amount * 10_000)


def copies(need: Mapping[str, float], free: Mapping[str, float]) -> int:
    """Return how many times `need` fits into `free`."""
    return min(
        (units(free.get(name, 0.0)) // max(1, units(need[name])) for name in need), default=_PLENTY
    )


def fit(
    request: GangRequest, nodes: Sequence[NodeView], coming: Sequence[NodeView] = ()
) -> tuple[str, ...] | None:
    """Return a node for each bundle, or None when they do not fit.

    Exact: None only if there is no way. With equal selectors PACK uses as few nodes as possible;
    with different ones it prefers few. SPREAD uses as many as possible.

    Args:
        request: what to place.
        nodes: with what they have free as `resources`, in order of preference.
        coming: others, of whose labels only some are known: the rest may be anything.
    """
    need, everything = resources_of(request.bundle), [*nodes, *coming]
    room = [min(copies(need, node.resources), request.nodes) for node in everything]
    may = [_allowed(selectors, nodes, coming) for selectors, _ in kinds_of(request)]
    if len(may) > 1:
        chosen = Matching(request, may, room).place(strategy_of(request))
    else:
        rooms = [(node, copy) for node, copy in enumerate(room) if copy and may[0][node]]
        chosen = _counted(rooms, request.nodes, strategy_of(request))
    return None if chosen is None else tuple(everything[node].name for node in chosen)


def most_together(request: GangRequest, nodes: Sequence[NodeView]) -> int:
    """Return how many bundles of the request the nodes can hold at the same time."""
    need = resources_of(request.bundle)
    room = [min(copies(need, node.resources), request.nodes) for node in nodes]
    may = [_allowed(selectors, nodes, ()) for selectors, _ in kinds_of(request)]
    return Matching(request, may, room).most(strategy_of(request))


def fitting(request: GangRequest, nodes: Sequence[NodeView]) -> int:
    """Return how many of the nodes could hold a bundle of the request if they were free."""
    need = resources_of(request.bundle)
    may = [_allowed(selectors, nodes, ()) for selectors, _ in kinds_of(request)]
    return sum(
        not node.draining and copies(need, node.resources) > 0 and any(kind[at] for kind in may)
        for at, node in enumerate(nodes)
    )


def _allowed(
    selectors: Selectors, nodes: Sequence[NodeView], coming: Sequence[NodeView]
) -> list[bool]:
    conditions = conditions_of(selectors)
    return [holds(conditions, node.labels) for node in nodes] + [
        could_hold(conditions, node.labels) for node in coming
    ]


def _counted(
    room: Sequence[tuple[int, int]], count: int, strategy: Strategy
) -> Sequence[int] | None:
    """Place bundles that are alike. `room` is (node, how many it can hold)."""
    if strategy is Strategy.STRICT_PACK:
        return next(([node] * count for node, copy in room if copy >= count), None)
    if strategy is Strategy.STRICT_SPREAD:
        return [node for node, _ in room[:count]] if len(room) >= count else None
    if sum(copy for _, copy in room) < count:
        return None
    return _packed(room, count) if strategy is Strategy.PACK else _spread(room, count)


def _packed(room: Sequence[tuple[int, int]], count: int) -> list[int]:
    """As few nodes as possible: the first that takes all, else the roomiest first."""
    for node, copy in room:
        if copy >= count:
            return [node] * count
    chosen: list[int] = []
    for node, copy in sorted(room, key=lambda item: -item[1]):
        chosen.extend([node] * min(copy, count - len(chosen)))
    return chosen


def _spread(room: Sequence[tuple[int, int]], count: int) -> list[int]:
    """Round after round, one bundle on each node that has room."""
    chosen: list[int] = []
    taken = 0
    while len(chosen) < count:
        chosen.extend(node for node, copy in room if copy > taken)
        taken += 1
    return chosen[:count]


class Matching:
    """Bundles with different selectors on nodes, as many as possible.

    Args:
        request: whose bundles.
        may: for each kind of them, which nodes it may go to.
        room: how many bundles each node can hold.
    """

    def __init__(
        self, request: GangRequest, may: Sequence[Sequence[bool]], room: Sequence[int]
    ) -> None:
        self._count = request.nodes
        self._bundles = [indexes for _, indexes in kinds_of(request)]
        self._may = may
        self._room = list(room)
        self._placed = [[0] * len(room) for _ in may]
        self._used = [0] * len(room)
        # Nodes that can hold more of these bundles first.
        self._order = sorted(range(len(room)), key=lambda node: -self._reach(node))

    def place(self, strategy: Strategy) -> Sequence[int] | None:
        """Return a node (its index) for each bundle; None: there is no way."""
        if strategy in {Strategy.PACK, Strategy.STRICT_PACK}:
            for node in range(len(self._room)):
                if self._reach(node) == self._count:
                    return [node] * self._count
        if strategy is Strategy.STRICT_PACK or self.most(strategy) < self._count:
            return None
        return self._chosen()

    def most(self, strategy: Strategy) -> int:
        """Place as many bundles as possible, not all on one node; return how many they are."""
        left = [kind for kind, bundles in enumerate(self._bundles) for _ in bundles]
        if strategy is not Strategy.PACK:
            # At first one on each node: a node that is used stays used when others are added.
            room, self._room = self._room, [min(1, room) for room in self._room]
            left = [kind for kind in left if not self._add(kind, self._order)]
            self._room = room
        for kind in left if strategy is not Strategy.STRICT_SPREAD else ():
            used_first = sorted(self._order, key=lambda node: self._used[node] == 0)
            self._add(kind, used_first if strategy is Strategy.PACK else self._order)
        return sum(self._used)

    def _reach(self, node: int) -> int:
        """How many of the bundles the node can hold, if it holds nothing else."""
        wanted = sum(
            len(bundles) for bundles, may in zip(self._bundles, self._may, strict=True) if may[node]
        )
        return min(self._room[node], wanted)

    def _add(self, start: int, order: Sequence[int]) -> bool:
        """Place one more bundle of this kind, moving others if need be. False: there is no way."""
        pushed_by: dict[int, tuple[int, int]] = {start: (start, -1)}
        queue = [start]
        for kind in queue:  # which grows
            for node in order:
                if not self._may[kind][node]:
                    continue
                if self._used[node] < self._room[node]:
                    self._shift(kind, node, pushed_by)
                    return True
                for other, placed in enumerate(self._placed):
                    if placed[node] and other not in pushed_by:
                        pushed_by[other] = (kind, node)
                        queue.append(other)
        return False

    def _shift(self, kind: int, node: int, pushed_by: Mapping[int, tuple[int, int]]) -> None:
        self._used[node] += 1
        self._placed[kind][node] += 1
        pusher, place = pushed_by[kind]
        while place >= 0:
            self._placed[kind][place] -= 1
            self._placed[pusher][place] += 1
            kind = pusher
            pusher, place = pushed_by[kind]

    def _chosen(self) -> list[int]:
        chosen = [0] * self._count
        for bundles, placed in zip(self._bundles, self._placed, strict=True):
            nodes = [node for node, count in enumerate(placed) for _ in range(count)]
            for bundle, node in zip(bundles, nodes, strict=True):
                chosen[bundle] = node
        return chosen
