"""Who holds what of some nodes, and who is next: for clusters that nobody else accounts for.

Theory of operation. Requests wait in the order of asking; whenever something may have changed, all
that fit are granted, first come first served, but a small request may overtake a large one that has
to wait. It may do so only `patience` times: then nobody overtakes that one any more, so what
becomes free collects until it fits. A request that the nodes could not hold even when free blocks
nobody. Pure, but for the function that is told of grants.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Generic, TypeVar

import attrs

from thornback.placement.bundles import GangRequest, NodeView, resources_of
from thornback.placement.fit import fit, units

Ticket = TypeVar("Ticket", bound=Hashable)


@attrs.define(kw_only=True)
class _Waiting(Generic[Ticket]):
    ticket: Ticket
    request: GangRequest
    avoid: tuple[str, ...]
    overtaken: int = 0


@attrs.define(kw_only=True)
class _Node:
    total: dict[str, int]
    """In units of 1/10,000, like all amounts here: sums of floats would drift."""
    free: dict[str, int]
    labels: Mapping[str, str]
    open: bool = True


class Ledger(Generic[Ticket]):
    """Accounts for the resources of nodes, for a `Cluster` whose nodes nobody else gives away.

    First come first served, but a small request may overtake a large one that has to wait. Does no
    input or output and waits for nothing. Tickets name requests: numbers, or the reservations
    themselves; each is asked for once.

    Args:
        granted: called with (ticket, a node per bundle) for each grant, in the order of asking, at
            the end of the call that made it possible, which is often the `ask` itself. Must not
            raise.
        nodes: what each node has, by name, as in `NodeView.resources`.
        patience: so many times a request may be overtaken; then what becomes free collects for it.
        labels: of the nodes, by name, as in `NodeView.labels`; those of a node may be left out.
    """

    def __init__(
        self,
        granted: Callable[[Ticket, tuple[str, ...]], object],
        nodes: Mapping[str, Mapping[str, float]] | None = None,
        *,
        patience: int = 8,
        labels: Mapping[str, Mapping[str, str]] | None = None,
    ) -> None:
        self._granted = granted
        self._nodes: dict[str, _Node] = {}
        self._waiting: dict[Ticket, _Waiting[Ticket]] = {}
        self._held: dict[Ticket, tuple[dict[str, int], tuple[str, ...]]] = {}
        """What is taken, once from each of the nodes that there still are."""
        self._patience = patience
        for name, resources in (nodes or {}).items():
            self.add_node(name, resources, (labels or {}).get(name))

    def add_node(
        self,
        name: str,
        resources: Mapping[str, float],
        labels: Mapping[str, str] | None = None,
    ) -> None:
        """A node has come, with these resources and labels."""
        total = {key: units(amount) for key, amount in resources.items()}
        self._nodes[name] = _Node(total=total, free=dict(total), labels=dict(labels or {}))
        self._serve()

    def close_node(self, name: str) -> None:
        """It takes nothing new any more; what is on it stays.

        Raises:
            KeyError: there is no such node.
        """
        self._nodes[name].open = False
        self._serve()  # who could not be overtaken may now be one that never fits

    def remove_node(self, name: str) -> None:
        """It is gone, with what was on it; other bundles of the same grants stay. A node of this
        name may come again.

        Raises:
            KeyError: there is no such node.
        """
        del self._nodes[name]
        for ticket, (need, nodes) in self._held.items():
            self._held[ticket] = (need, tuple(node for node in nodes if node != name))
        self._serve()

    def ask(self, ticket: Ticket, request: GangRequest, avoid: Sequence[str] = ()) -> None:
        """Put a request at the end of the queue.

        Args:
            ticket: names it from now on.
            request: what to place.
            avoid: nodes that it must not be given.
        """
        self._waiting[ticket] = _Waiting(ticket=ticket, request=request, avoid=tuple(avoid))
        self._serve()

    def drop(self, ticket: Ticket) -> bool:
        """Forget a request, waiting or granted; False: there is none."""
        if ticket in self._held:
            need, nodes = self._held.pop(ticket)
            for name in nodes:
                _add(self._nodes[name].free, need, 1)
        elif self._waiting.pop(ticket, None) is None:
            return False
        self._serve()
        return True

    def _serve(self) -> None:
        """Grant all that fit now."""
        granted: list[tuple[Ticket, tuple[str, ...]]] = []
        passed: list[_Waiting[Ticket]] = []
        for waiting in list(self._waiting.values()):
            nodes = fit(waiting.request, self._views(waiting, total=False))
            if nodes is not None:
                self._grant(waiting, nodes)
                granted.append((waiting.ticket, nodes))
                for earlier in passed:
                    earlier.overtaken += 1
            elif fit(waiting.request, self._views(waiting, total=True)) is not None:
                passed.append(waiting)
            if any(earlier.overtaken >= self._patience for earlier in passed):
                break
        for ticket, nodes in granted:
            self._granted(ticket, nodes)

    @property
    def waiting(self) -> tuple[Ticket, ...]:
        """Tickets that wait, in the order of asking."""
        return tuple(self._waiting)

    @property
    def held(self) -> tuple[Ticket, ...]:
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

    def _views(self, waiting: _Waiting[Ticket], *, total: bool) -> list[NodeView]:
        return [
            NodeView(
                name=name,
                resources={
                    key: n / 10_000 for key, n in (node.total if total else node.free).items()
                },
                labels=node.labels,
            )
            for name, node in self._nodes.items()
            if node.open and name not in waiting.avoid
        ]

    def _grant(self, waiting: _Waiting[Ticket], nodes: tuple[str, ...]) -> None:
        need = {key: units(amount) for key, amount in resources_of(waiting.request.bundle).items()}
        for name in nodes:
            _add(self._nodes[name].free, need, -1)
        self._held[waiting.ticket] = (need, nodes)
        del self._waiting[waiting.ticket]


def _add(amounts: dict[str, int], need: Mapping[str, int], times: int) -> None:
    for key, amount in need.items():
        amounts[key] = amounts.get(key, 0) + amount * times
