"""Which ranks may run: examples, and a state machine against a slow model that keeps every rank."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from thornback.graph import Condition, Dag, Edge, GraphError, Node
from thornback.graph.testing import Answer, check_dependencies, ranks_of


def test_conformance() -> None:
    check_dependencies(Dag)


def test_misuse_is_refused_and_changes_nothing() -> None:
    dag = Dag([Node(2), Node(2, (0,))])
    with pytest.raises(GraphError, match="before start"):
        dag.finished(0, [range(1)], True)
    dag.start()
    with pytest.raises(GraphError, match="called twice"):
        dag.start()
    for stage, ranks, message in [
        (2, range(1), "no stage 2"),
        (-1, range(1), "no stage -1"),
        (0, range(1, 3), "beyond the ranks"),
        (0, range(-1, 1), "beyond the ranks"),
        (0, range(0, 2, 2), "step 1"),
    ]:
        with pytest.raises(GraphError, match=message):
            dag.finished(stage, [range(2), ranks], True)
    dag.check_invariants()
    assert dag.finished(0, [range(5, 2), range(2)], True).ready == ((1, range(2)),)


def test_one_range_alone_is_refused_as_well_and_changes_nothing() -> None:
    """In the middle of a stage, where the ordinary call takes a shorter way."""
    dag = Dag([Node(10), Node(1, (0,))])
    dag.start()
    assert dag.finished(0, [range(2, 4)], True).ready == ()
    for ranks, message in [
        (range(-3, -1), "beyond the ranks"),
        (range(9, 11), "beyond the ranks"),
        (range(0, 4, 2), "step 1"),  # as many ranks as two of these have not ended
    ]:
        with pytest.raises(GraphError, match=message):
            dag.finished(0, [ranks], True)
        dag.check_invariants()
    assert dag.finished(0, [range(2, 4)], True).ready == (), "told again"
    dag.check_invariants()
    assert dag.finished(0, [range(0, 2)], True).ready == ()
    dag.check_invariants()
    assert dag.finished(0, [range(4, 10)], True).ready == ((1, range(1)),)


def test_a_skipped_rank_cannot_end() -> None:
    dag = Dag([Node(1), Node(3, (0,))])
    dag.start()
    dag.finished(1, [range(1)], True)
    assert dag.finished(0, [range(1)], False).skipped == ((1, range(1, 3), (0, 0)),)
    assert dag.finished(1, [range(1)], True).ready == ()
    with pytest.raises(GraphError, match="were skipped"):
        dag.finished(1, [range(1, 2)], True)


def test_a_stage_that_ended_before_its_parent_failed_keeps_its_children() -> None:
    dag = Dag([Node(1), Node(1, (0,)), Node(1, (1,))])
    dag.start()
    assert dag.finished(1, [range(1)], True).ready == ((2, range(1)),)
    assert dag.finished(0, [range(1)], False).skipped == ()


def test_the_rest_of_a_stage_that_failed_early_still_runs() -> None:
    dag = Dag([Node(1), Node(3, (0,)), Node(1, (1,))])
    dag.start()
    assert dag.finished(1, [range(1, 2)], False).skipped == ((2, range(1), (1, 1)),)
    assert dag.finished(0, [range(1)], True).ready == ((1, range(1)), (1, range(2, 3)))


def test_the_rest_of_a_stage_that_failed_early_is_skipped_with_its_parent() -> None:
    dag = Dag([Node(1), Node(3, (0,)), Node(1, (1,))])
    dag.start()
    assert dag.finished(1, [range(1, 2)], False).skipped == ((2, range(1), (1, 1)),)
    assert dag.finished(0, [range(1)], False).skipped == (
        (1, range(1), (0, 0)),
        (1, range(2, 3), (0, 0)),
    )
    dag.check_invariants()


def test_the_failure_that_was_one_too_many_is_found_across_ranges() -> None:
    failed = [range(2), range(4, 6), range(7, 9)]
    for tolerated, rank in ((0, 0), (1, 1), (2, 4), (3, 5), (4, 7), (5, 8)):
        dag = Dag([Node(9, (), tolerated), Node(1, (0,))])
        dag.start()
        assert dag.finished(0, failed, False).skipped == ((1, range(1), (0, rank)),), tolerated


def test_a_million_ranks_keep_one_byte_each() -> None:
    dag = Dag([Node(1_000_000, (), 10), Node(1, (0,))])
    dag.start()
    for start in range(0, 1_000_000, 10_000):
        assert not dag.finished(0, [range(start, start + 9_999)], True).ready
    dag.finished(0, [range(9_999, 10_000)], False)
    for start in range(10_000, 1_000_000, 10_000):
        last = dag.finished(0, [range(start + 9_999, start + 10_000)], True)
    assert last.ready == ((1, range(1)),)


def test_a_million_ranks_go_through_a_chain_in_ranges() -> None:
    size, own = 1_000_000, (Edge(0, one_to_one=True),)
    dag = Dag([Node(size), Node(size, own), Node(1, (1,))])
    dag.start()
    for start in range(0, size, 10_000):
        piece = range(start, start + 10_000)
        assert dag.finished(0, [piece], True).ready == ((1, piece),)
        last = dag.finished(1, [piece], True)
    assert last.ready == ((2, range(1)),)


def test_a_stage_that_fails_as_a_whole_skips_its_ranks_in_one_piece() -> None:
    dag = Dag([Node(1_000_000), Node(1_000_000, (Edge(0, one_to_one=True),))])
    dag.start()
    assert dag.finished(0, [range(7)], False).skipped == ((1, range(7), (0, -1)),)
    assert dag.finished(0, [range(7, 8)], False).skipped == ((1, range(7, 8), (0, 7)),)
    assert dag.finished(0, [range(1_000_000)], False).skipped == (
        (1, range(8, 1_000_000), (0, -1)),
    )


def test_edges_that_cannot_be_are_refused() -> None:
    with pytest.raises(GraphError, match="Stage 1 has 3 ranks and comes one to one after stage 0"):
        Dag([Node(2), Node(3, (Edge(0, one_to_one=True),))])
    with pytest.raises(GraphError, match="more than 250 one-to-one parents"):
        Dag([*[Node(1)] * 251, Node(1, tuple(Edge(n, one_to_one=True) for n in range(251)))])
    with pytest.raises(GraphError, match="max_failed must be an int >= 0, not -1"):
        Condition.within(-1)
    assert Node(1, (0, Edge(0), Edge(0, one_to_one=True))).edges == (
        Edge(0),
        Edge(0, one_to_one=True),
    )


def test_so_many_one_to_one_parents_as_fit_are_counted() -> None:
    many = tuple(Edge(n, one_to_one=True) for n in range(250))
    dag = Dag([*[Node(2)] * 250, Node(2, many)])
    dag.start()
    for stage in range(249):
        assert dag.finished(stage, [range(2)], True).ready == ()
    assert dag.finished(249, [range(1, 2)], True).ready == ((250, range(1, 2)),)


conditions = st.none() | st.sampled_from(
    [Condition.all_success(), Condition.all_done(), Condition.within(1)]
)


@st.composite
def graphs(draw: st.DrawFn) -> list[Node]:
    """Draw stages numbered in a random order, so that parents may come after their children."""
    size = draw(st.integers(1, 6))
    name = draw(st.permutations(range(size)))
    nodes: dict[int, Node] = {}
    for place in range(size):
        before = draw(st.lists(st.sampled_from(range(place)), max_size=3)) if place else []
        world_size = draw(st.integers(1, 5))
        edges: list[int | Edge] = []
        for parent in (name[each] for each in before):
            own = nodes[parent].world_size == world_size or draw(st.booleans())
            if own and not edges:
                world_size = nodes[parent].world_size
            one_to_one = own and nodes[parent].world_size == world_size
            edges.append(Edge(parent, one_to_one=one_to_one, condition=draw(conditions)))
        nodes[name[place]] = Node(world_size, tuple(edges), draw(st.integers(0, 2)))
    return [nodes[stage] for stage in range(size)]


class Run(RuleBasedStateMachine):
    """Ends ranks in any order and compares with what the definition says, rank by rank."""

    @initialize(nodes=graphs())
    def begin(self, nodes: list[Node]) -> None:
        self.nodes = nodes
        self.dag = Dag(nodes)
        self.ok: dict[tuple[int, int], bool] = {}
        self.ready: set[tuple[int, int]] = set()
        self.skipped: dict[tuple[int, int], tuple[int, int]] = {}
        self.early: set[tuple[int, int]] = set()
        self.take(self.dag.start())

    def take(self, answer: Answer) -> None:
        """Note what is handed out; check it once all of it is noted: one thing follows another."""
        ready, skipped = ranks_of(answer)
        for key in ready:
            assert key not in self.ready, f"{key} ready twice"
            assert key not in self.skipped, f"{key} ready after it was skipped"
            assert key not in self.ok, f"{key} ready after it ended"
            self.ready.add(key)
        for stage, rank, *root in skipped:
            key = (stage, rank)
            assert key not in self.ready, f"{key} skipped after it was ready"
            assert key not in self.skipped, f"{key} skipped twice"
            assert key not in self.ok, f"{key} skipped after it ended"
            self.skipped[key] = (root[0], root[1])
        for key in ready:
            assert self.may_run(*key), f"{key} ready too early"
        for stage, rank, *_ in skipped:
            assert self.may_never_run(stage, rank), f"{(stage, rank)} skipped for nothing"

    def is_missing(self, stage: int, rank: int) -> bool:
        return (stage, rank) in self.skipped or self.ok.get((stage, rank)) is False

    def has_ended(self, stage: int, rank: int) -> bool:
        return (stage, rank) in self.skipped or (stage, rank) in self.ok

    def missing(self, stage: int) -> int:
        return sum(self.is_missing(stage, r) for r in range(self.nodes[stage].world_size))

    def tolerated(self, edge: Edge) -> float:
        if edge.condition is None:
            return float("inf") if edge.one_to_one else self.nodes[edge.parent].max_failed
        if edge.condition.max_failed is None or (
            edge.one_to_one and edge.condition.max_failed == 0
        ):
            return float("inf")
        return edge.condition.max_failed

    def passes(self, edge: Edge, rank: int) -> bool:
        if edge.one_to_one:
            always = edge.condition == Condition.all_done()
            return self.has_ended(edge.parent, rank) and (
                always or not self.is_missing(edge.parent, rank)
            )
        size = self.nodes[edge.parent].world_size
        is_whole = all(self.has_ended(edge.parent, r) for r in range(size))
        return is_whole and self.missing(edge.parent) <= self.tolerated(edge)

    def never_passes(self, edge: Edge, rank: int) -> bool:
        if self.missing(edge.parent) > self.tolerated(edge):
            return True
        own = edge.one_to_one and edge.condition != Condition.all_done()
        return own and self.is_missing(edge.parent, rank)

    def may_run(self, stage: int, rank: int) -> bool:
        return all(self.passes(edge, rank) for edge in self.nodes[stage].edges)

    def may_never_run(self, stage: int, rank: int) -> bool:
        return any(self.never_passes(edge, rank) for edge in self.nodes[stage].edges)

    def end(self, stage: int, ranks: range, ok: bool) -> None:
        for rank in ranks:
            self.ok.setdefault((stage, rank), ok)
        self.take(self.dag.finished(stage, [ranks], ok))

    @precondition(lambda self: any(key not in self.ok for key in self.ready))
    @rule(data=st.data(), ok=st.sampled_from([True, True, True, False]), more=st.integers(0, 3))
    def end_running(self, data: st.DataObject, ok: bool, more: int) -> None:
        stage, rank = data.draw(st.sampled_from(sorted(self.ready - set(self.ok))))
        stop = rank + 1
        while stop <= rank + more and (stage, stop) in self.ready:
            stop += 1
        self.end(stage, range(rank, stop), ok)

    @precondition(lambda self: bool(self.ok))
    @rule(data=st.data(), ok=st.booleans())
    def end_again(self, data: st.DataObject, ok: bool) -> None:
        stage, rank = data.draw(st.sampled_from(sorted(self.ok)))
        before = len(self.ready), len(self.skipped)
        self.end(stage, range(rank, rank + 1), ok)
        assert (len(self.ready), len(self.skipped)) == before

    @rule(data=st.data(), ok=st.sampled_from([True, True, False]))
    def end_early(self, data: st.DataObject, ok: bool) -> None:
        blocked = [
            (stage, rank)
            for stage, node in enumerate(self.nodes)
            for rank in range(node.world_size)
            if (stage, rank) not in {*self.ready, *self.skipped, *self.ok}
        ]
        if blocked:
            stage, rank = data.draw(st.sampled_from(blocked))
            self.early.add((stage, rank))
            self.end(stage, range(rank, rank + 1), ok)

    @invariant()
    def what_waits_can_still_go_either_way(self) -> None:
        self.dag.check_invariants()
        for stage, node in enumerate(self.nodes):
            for rank in range(node.world_size):
                key = (stage, rank)
                if key not in self.ready and not self.has_ended(*key):
                    assert not self.may_run(*key), f"{key} is not handed out"
                    assert not self.may_never_run(*key), f"{key} is not skipped"

    @invariant()
    def roots_are_failures_above(self) -> None:
        for (stage, rank), root in self.skipped.items():
            assert self.ok.get(root) is False
            assert self.leads_to(root, stage, rank), (stage, rank, root)

    def leads_to(self, root: tuple[int, int], stage: int, rank: int) -> bool:
        """Whether a path of edges that are not passed leads from the root to this rank."""
        for edge in self.nodes[stage].edges:
            if not self.never_passes(edge, rank):
                continue
            as_whole = self.missing(edge.parent) > self.tolerated(edge)
            ranks = range(self.nodes[edge.parent].world_size) if as_whole else [rank]
            for above in ranks:
                if root == (edge.parent, above):
                    return True
                if self.skipped.get((edge.parent, above)) == root:
                    return True
        return False

    def teardown(self) -> None:
        """End all that still may run: then every rank has ended or is skipped."""
        if not hasattr(self, "nodes"):
            return
        while waiting := sorted(self.ready - set(self.ok)):
            self.end(waiting[0][0], range(waiting[0][1], waiting[0][1] + 1), True)
        for stage, node in enumerate(self.nodes):
            for rank in range(node.world_size):
                assert ((stage, rank) in self.ok) != ((stage, rank) in self.skipped)


TestRun = Run.TestCase
TestRun.settings = settings(max_examples=settings().max_examples * 5 // 2, stateful_step_count=25)
"""More than others: it is quick, and what is wrong here is wrong in every run."""
