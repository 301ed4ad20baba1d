"""Who holds what of some nodes, and who is next: the accounting of `on_local` and of the fake.

Theory of operation. Requests wait in the order of asking; whenever something may have become free,
all that fit are granted, first come first served, but a small request may overtake a large one that
has to wait. It may do so only `patience` times: then nobody overtakes that one any more, so what
becomes free collects until it fits. A request that the nodes could not hold even when free blocks
nobody. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import attrs

from thornback.placement.bundles import GangRequest, fit, resources_of, units


@attrs.define(kw_only=True)
class _Waiting:
    ticket: int
    request: GangRequest
    avoid: tuple[str, ...]
    overtaken: int = 0


@attrs.define(kw_only=True)
class _Node:
    total: dict[str, int]
    """In units of 1/10,000, like all amounts here: sums of floats would drift."""
    free: dict[str, int]
    open: bool = True


class Ledger:
    """Accounts for the resources of nodes. Tickets are the caller's; each is asked for once."""

    def __init__(self, *, patience: int = 8) -> None:
        self._nodes: dict[str, _Node] = {}
        self._waiting: dict[int, _Waiting] = {}
        self._held: dict[int, tuple[dict[str, int], tuple[str, ...]]] = {}
        self._patience = patience

    def add_node(self, name: str, resources: Mapping[str, float]) -> None:
        """A node has come."""
        total = {key: units(amount) for key, amount in resources.items()}
        self._nodes[name] = _Node(total=total, free=dict(total))

    def close_node(self, name: str) -> None:
        """It takes nothing new any more; what is on it stays."""
        self._nodes[name].open = False

    def remove_node(self, name: str) -> None:
        """It is gone, with what was on it. Grants keep its name; other bundles of them stay."""
        del self._nodes[name]

    def ask(self, ticket: int, request: GangRequest, avoid: Sequence[str] = ()) -> None:
        """Put a request at the end of the queue."""
        self._waiting[ticket] = _Waiting(ticket=ticket, request=request, avoid=tuple(avoid))

    def drop(self, ticket: int) -> bool:
        """Forget a request, waiting or granted. Returns False when there is none."""
        if self._waiting.pop(ticket, None) is not None:
            return True
        if ticket not in self._held:
            return False
        need, nodes = self._held.pop(ticket)
        for name in nodes:
            if name in self._nodes:
                _add(self._nodes[name].free, need, 1)
        return True

    def serve(self) -> list[tuple[int, tuple[str, ...]]]:
        """Grant all that fit now. Returns (ticket, a node per bundle), in the order of asking."""
        granted: list[tuple[int, tuple[str, ...]]] = []
        passed: list[_Waiting] = []
        for waiting in list(self._waiting.values()):
            nodes = fit(waiting.request, self._amounts(waiting, total=False))
            if nodes is not None:
                self._grant(waiting, nodes)
                granted.append((waiting.ticket, nodes))
                for earlier in passed:
                    earlier.overtaken += 1
            elif fit(waiting.request, self._amounts(waiting, total=True)) is not None:
                passed.append(waiting)
            if any(earlier.overtaken >= self._patience for earlier in passed):
                break
        return granted

    @property
    def waiting(self) -> tuple[int, ...]:
        """Tickets that wait, in the order of asking."""
        return tuple(self._waiting)

    @property
    def held(self) -> tuple[int, ...]:
        """Tickets that are granted."""
        return tuple(self._held)

    def check_invariants(self) -> None:
        """Raise `AssertionError` if the books are wrong: for tests."""
        for name, node in self._nodes.items():
            used = dict.fromkeys(node.total, 0)
            for need, nodes in self._held.values():
                _add(used, need, nodes.count(name))
            assert all(0 <= used[key] <= node.total.get(key, 0) for key in used), (name, used)
            assert all(node.free[key] == node.total[key] - used[key] for key in node.total), name
        assert not set(self._waiting) & set(self._held)

    def _amounts(self, waiting: _Waiting, *, total: bool) -> list[tuple[str, dict[str, float]]]:
        return [
            (name, {key: n / 10_000 for key, n in (node.total if total else node.free).items()})
            for name, node in self._nodes.items()
            if node.open and name not in waiting.avoid
        ]

    def _grant(self, waiting: _Waiting, nodes: tuple[str, ...]) -> None:
        need = {key: units(amount) for key, amount in resources_of(waiting.request.bundle).items()}
        for name in nodes:
            _add(self._nodes[name].free, need, -1)
        self._held[waiting.ticket] = (need, nodes)
        del self._waiting[waiting.ticket]


def _add(amounts: dict[str, int], need: Mapping[str, int], times: int) -> None:
    for key, amount in need.items():
        amounts[key] = amounts.get(key, 0) + amount * times
