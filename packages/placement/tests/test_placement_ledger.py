"""The accounting: nothing is given twice, everything comes back, nobody starves."""

from __future__ import annotations

from collections.abc import Callable

import attrs
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from thornback.placement import Bundle, GangRequest, Ledger, NodeView, Strategy, matches
from thornback.placement.bundles import selectors_of
from thornback.placement.fit import fit


def cpus(amount: float, nodes: int = 1, strategy: Strategy = Strategy.PACK) -> GangRequest:
    return GangRequest(bundle=Bundle(cpus=amount), nodes=nodes, strategy=strategy)


class Books(Ledger[int]):
    """Nodes `n0`, `n1`, ... with so many CPUs; keeps what is granted until it is asked for it."""

    def __init__(self, *sizes: float, patience: int = 8) -> None:
        self._grants: list[tuple[int, tuple[str, ...]]] = []
        nodes = {f"n{number}": {"CPU": size} for number, size in enumerate(sizes)}
        super().__init__(
            lambda ticket, nodes: self._grants.append((ticket, nodes)), nodes, patience=patience
        )

    def grants(self) -> list[tuple[int, tuple[str, ...]]]:
        """Return what was granted since the last call."""
        new, self._grants = self._grants, []
        return new


def test_grants_in_the_order_of_asking() -> None:
    books = Books(2)
    for ticket in (1, 2, 3):
        books.ask(ticket, cpus(1))
    assert books.grants() == [(1, ("n0",)), (2, ("n0",))]
    assert books.waiting == (3,)
    assert books.drop(1)
    assert books.grants() == [(3, ("n0",))]
    assert not books.drop(1)


def test_what_was_waited_for_is_granted_in_the_order_of_asking() -> None:
    books = Books(2)
    books.ask(1, cpus(2))
    for ticket in (2, 3, 4):
        books.ask(ticket, cpus(1))
    assert books.grants() == [(1, ("n0",))]
    books.drop(1)
    assert books.grants() == [(2, ("n0",)), (3, ("n0",))]
    books.add_node("n1", {"CPU": 1})
    assert books.grants() == [(4, ("n1",))]


def test_a_large_request_is_overtaken_only_so_often() -> None:
    books = Books(4, patience=3)
    books.ask(0, cpus(1))
    books.ask(1, cpus(4))
    for ticket in range(2, 10):
        books.ask(ticket, cpus(1))
    assert books.held == (0, 2, 3, 4)
    books.grants()
    for ticket in (0, 2, 3):
        books.drop(ticket)
        assert books.grants() == []
    books.drop(4)
    assert books.grants() == [(1, ("n0",))], "what became free was kept for it"


def test_what_never_fits_holds_nobody_up() -> None:
    books = Books(2, patience=1)
    for ticket in range(20):
        books.ask(ticket, cpus(3))
    for ticket in range(20, 24):
        books.ask(ticket, cpus(1))
    assert [ticket for ticket, _ in books.grants()] == [20, 21]
    books.drop(20)
    assert [ticket for ticket, _ in books.grants()] == [22]


@pytest.mark.parametrize("go", [Ledger.close_node, Ledger.remove_node])
def test_who_can_no_longer_be_placed_holds_nobody_up(go: Callable[[Books, str], None]) -> None:
    books = Books(2, 4, patience=0)
    books.ask(1, cpus(1))
    books.ask(2, cpus(4))
    books.ask(3, cpus(4))
    books.ask(4, cpus(1))
    assert [ticket for ticket, _ in books.grants()] == [1, 2]
    go(books, "n1")
    assert books.grants() == [(4, ("n0",))]


def test_avoided_and_closed_nodes_are_not_used() -> None:
    books = Books(1, 1)
    books.ask(1, cpus(1), avoid=["n0"])
    assert books.grants() == [(1, ("n1",))]
    books.close_node("n0")
    books.ask(2, cpus(1))
    assert books.grants() == []


def test_a_node_takes_its_share_with_it() -> None:
    books = Books(1, 1)
    books.ask(1, cpus(1, 2, Strategy.STRICT_SPREAD))
    assert books.grants() == [(1, ("n0", "n1"))]
    books.remove_node("n0")
    books.check_invariants()
    books.drop(1)
    books.ask(2, cpus(1))
    assert books.grants() == [(2, ("n1",))]
    books.check_invariants()


def test_a_node_that_comes_again_is_free() -> None:
    books = Books(1)
    books.ask(1, cpus(1))
    books.remove_node("n0")
    books.add_node("n0", {"CPU": 1})
    books.ask(2, cpus(1))
    books.drop(1)
    books.ask(3, cpus(1))
    assert books.grants() == [(1, ("n0",)), (2, ("n0",))]
    assert books.waiting == (3,)
    books.check_invariants()


SIZES = {"n0": {"CPU": 3.0}, "n1": {"CPU": 2.0}, "n2": {"CPU": 1.0}}
LABELS: dict[str, dict[str, str]] = {"n0": {"zone": "a"}, "n1": {"zone": "b"}, "n2": {}}


class LedgerMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.books = Books(patience=2)
        for name in LABELS:
            self.books.add_node(name, SIZES[name], LABELS[name])
        self.count = 0
        self.requests: dict[int, GangRequest] = {}

    @rule(
        amount=st.sampled_from([0.0, 0.1, 0.5, 1.0, 2.0, 3.0, 9.0]),
        nodes=st.integers(1, 4),
        strategy=st.sampled_from(Strategy),
        zones=st.lists(st.sampled_from(["a", "!a", "in(a,b)", "c"]), min_size=4, max_size=4),
        alike=st.integers(0, 2),
    )
    def ask(
        self, amount: float, nodes: int, strategy: Strategy, zones: list[str], alike: int
    ) -> None:
        self.count += 1
        labels = [{"zone": zone} for zone in zones[: (0, 1, nodes)[alike]]]
        self.requests[self.count] = attrs.evolve(cpus(amount, nodes, strategy), labels=labels)
        self.books.ask(self.count, self.requests[self.count])
        self.look_at_grants()

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        ticket = data.draw(st.sampled_from(sorted(self.requests)))
        del self.requests[ticket]
        assert self.books.drop(ticket)
        self.look_at_grants()

    def look_at_grants(self) -> None:
        for ticket, nodes in self.books.grants():
            request = self.requests[ticket]
            assert len(nodes) == request.nodes
            for selectors, name in zip(selectors_of(request), nodes, strict=True):
                assert matches(selectors, LABELS[name])
            if request.strategy is Strategy.STRICT_SPREAD:
                assert len(set(nodes)) == len(nodes)
            if request.strategy is Strategy.STRICT_PACK:
                assert len(set(nodes)) == 1

    @invariant()
    def books_are_right(self) -> None:
        self.books.check_invariants()
        assert sorted((*self.books.waiting, *self.books.held)) == sorted(self.requests)

    @invariant()
    def nobody_waits_in_an_empty_cluster(self) -> None:
        if not self.books.held:
            free = [
                NodeView(name=name, resources=SIZES[name], labels=LABELS[name]) for name in LABELS
            ]
            for ticket in self.books.waiting:
                assert fit(self.requests[ticket], free) is None


TestLedgerMachine = LedgerMachine.TestCase
