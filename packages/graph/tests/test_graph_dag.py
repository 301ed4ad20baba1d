"""Which ranks may run: examples, and a state machine against a slow model that keeps every rank."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from thornback.graph import Dag, GraphError, Node
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


def test_a_skipped_rank_cannot_end() -> None:
    dag = Dag([Node(1), Node(3, (0,))])
    dag.start()
    dag.finished(1, [range(1)], True)
    assert dag.finished(0, [range(1)], False).skipped == ((1, range(1, 3), (0, 0)),)
    assert dag.finished(1, [range(1)], True).ready == ()
    with pytest.raises(GraphError, match="were skipped because of"):
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


def test_a_million_ranks_keep_one_byte_each() -> None:
    dag = Dag([Node(1_000_000, (), 10), Node(1, (0,))])
    dag.start()
    for start in range(0, 1_000_000, 10_000):
        assert not dag.finished(0, [range(start, start + 9_999)], True).ready
    dag.finished(0, [range(9_999, 10_000)], False)
    for start in range(10_000, 1_000_000, 10_000):
        last = dag.finished(0, [range(start + 9_999, start + 10_000)], True)
    assert last.ready == ((1, range(1)),)


@st.composite
def graphs(draw: st.DrawFn) -> list[Node]:
    """Draw stages numbered in a random order, so that parents may come after their children."""
    size = draw(st.integers(1, 6))
    name = draw(st.permutations(range(size)))
    nodes: dict[int, Node] = {}
    for place in range(size):
        before = draw(st.lists(st.sampled_from(range(place)), max_size=3)) if place else []
        nodes[name[place]] = Node(
            draw(st.integers(1, 5)),
            tuple(name[parent] for parent in before),
            draw(st.integers(0, 2)),
        )
    return [nodes[stage] for stage in range(size)]


class Run(RuleBasedStateMachine):
    """Ends ranks in any order and compares with what the definition says, rank by rank."""

    @initialize(nodes=graphs())
    def begin(self, nodes: list[Node]) -> None:
        self.nodes = nodes
        self.dag = Dag(nodes)
        self.ok: dict[tuple[int, int], bool] = {}
        self.failures: list[tuple[int, int]] = []
        self.ready: set[tuple[int, int]] = set()
        self.skipped: dict[tuple[int, int], tuple[int, int]] = {}
        self.early: set[tuple[int, int]] = set()
        self.take(self.dag.start())

    def take(self, answer: Answer) -> None:
        ready, skipped = ranks_of(answer)
        for key in ready:
            assert key not in self.ready, f"{key} ready twice"
            assert key not in self.skipped, f"{key} ready after it was skipped"
            assert key not in self.ok, f"{key} ready after it ended"
            assert self.may_run(key[0]), f"{key} ready too early"
            self.ready.add(key)
        for stage, rank, *root in skipped:
            key = (stage, rank)
            assert key not in self.ready, f"{key} skipped after it was ready"
            assert key not in self.skipped, f"{key} skipped twice"
            assert key not in self.ok, f"{key} skipped after it ended"
            self.skipped[key] = (root[0], root[1])

    def failed(self, stage: int) -> list[tuple[int, int]]:
        return [key for key in self.failures if key[0] == stage]

    def broken(self, stage: int) -> bool:
        return len(self.failed(stage)) > self.nodes[stage].max_failed

    def ended(self, stage: int) -> bool:
        return all((stage, rank) in self.ok for rank in range(self.nodes[stage].world_size))

    def may_run(self, stage: int) -> bool:
        return all(self.ended(p) and not self.broken(p) for p in self.nodes[stage].parents)

    def ancestors(self, stage: int) -> set[int]:
        found: set[int] = set()
        todo = [stage]
        while todo:
            for parent in self.nodes[todo.pop()].parents:
                if parent not in found:
                    found.add(parent)
                    todo.append(parent)
        return found

    def end(self, stage: int, ranks: range, ok: bool) -> None:
        for rank in ranks:
            if (stage, rank) not in self.ok:
                self.ok[stage, rank] = ok
                if not ok:
                    self.failures.append((stage, rank))
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
    def every_rank_is_where_the_definition_says(self) -> None:
        self.dag.check_invariants()
        for stage, node in enumerate(self.nodes):
            stopped = self.is_stopped(stage)
            for rank in range(node.world_size):
                key = (stage, rank)
                if key in self.early:
                    assert key not in self.ready
                    assert key not in self.skipped
                elif stopped:
                    assert (key in self.skipped) != (key in self.ready)
                else:
                    assert (key in self.ready) == self.may_run(stage), key
                    assert key not in self.skipped, key

    def is_stopped(self, stage: int) -> bool:
        """Return whether a parent is broken, or was stopped before all of its ranks had ended."""
        return any(
            self.broken(p) or (self.is_stopped(p) and not self.ended(p))
            for p in self.nodes[stage].parents
        )

    @invariant()
    def roots_are_real(self) -> None:
        for (stage, _), root in self.skipped.items():
            assert root in self.failures
            assert self.broken(root[0])
            assert root == self.failed(root[0])[self.nodes[root[0]].max_failed]
            assert root[0] in self.ancestors(stage)

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
TestRun.settings = settings(max_examples=150, stateful_step_count=25)
