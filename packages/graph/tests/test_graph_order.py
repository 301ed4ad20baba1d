"""Names, cycles, order and depth."""

from __future__ import annotations

import graphlib
import itertools
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thornback.graph import (
    CycleError,
    Dag,
    DuplicateStageError,
    Edge,
    GraphError,
    Node,
    UnknownStageError,
    depths,
    resolve,
    topological_order,
)

# Edges in any direction, repeats and loops included: what a careless caller may give.
any_graphs = st.integers(1, 7).flatmap(
    lambda size: st.lists(
        st.lists(st.integers(0, size - 1), max_size=4), min_size=size, max_size=size
    )
)


@given(any_graphs)
def test_agrees_with_graphlib(parents: list[list[int]]) -> None:
    sorter = graphlib.TopologicalSorter(dict(enumerate(parents)))
    try:
        list(sorter.static_order())
    except graphlib.CycleError:
        with pytest.raises(CycleError) as caught:
            topological_order(parents)
        cycle = [int(name) for name in caught.value.cycle]
        assert cycle[0] == cycle[-1] == min(cycle)
        assert len(set(cycle)) == len(cycle) - 1 >= 1
        for before, after in itertools.pairwise(cycle):
            assert before in parents[after]
        return
    order = topological_order(parents)
    assert sorted(order) == list(range(len(parents)))
    at = {stage: position for position, stage in enumerate(order)}
    assert all(at[parent] < at[stage] for stage in order for parent in parents[stage])


@given(any_graphs, st.data())
def test_hands_out_what_graphlib_would(parents: list[list[int]], data: st.DataObject) -> None:
    """Stages of two ranks, joined by barriers and from rank to rank; graphlib knows ranks only."""
    nodes, waits = [], {}
    for stage, mine in enumerate(parents):
        edges = [Edge(p, one_to_one=data.draw(st.booleans())) for p in mine if p < stage]
        nodes.append(Node(2, tuple(edges)))
        for rank in range(2):
            waits[stage, rank] = [
                (edge.parent, above)
                for edge in edges
                for above in ([rank] if edge.one_to_one else range(2))
            ]
    sorter = graphlib.TopologicalSorter(waits)
    sorter.prepare()
    dag = Dag(nodes)
    answer, running = dag.start(), set(sorter.get_ready())
    assert {(stage, rank) for stage, ranks in answer.ready for rank in ranks} == running
    while running:
        stage, rank = data.draw(st.sampled_from(sorted(running)))
        running.remove((stage, rank))
        sorter.done((stage, rank))
        more = set(sorter.get_ready())
        answer = dag.finished(stage, [range(rank, rank + 1)], True)
        assert {(stage, rank) for stage, ranks in answer.ready for rank in ranks} == more
        running |= more
    assert not sorter.is_active()


@given(any_graphs)
def test_depth_is_the_longest_path_to_a_leaf(parents: list[list[int]]) -> None:
    try:
        depth = depths(parents)
    except CycleError:
        return
    for stage in range(len(parents)):
        below = [depth[child] for child in range(len(parents)) if stage in parents[child]]
        assert depth[stage] == (1 + max(below) if below else 0)


def test_names_become_positions() -> None:
    stages = [("total", ("clean", "index", "clean")), ("clean", ()), ("index", ("clean",))]
    assert resolve(stages) == ((1, 2), (), (1,))


def test_unknown_parent_names_the_nearest_stage() -> None:
    with pytest.raises(UnknownStageError) as caught:
        resolve([("clean", ()), ("total", ("claen",))], "clean")
    assert str(caught.value) == (
        "Stage 'total' comes after 'claen', which is not in job 'clean': did you mean 'clean'?"
    )


def test_unknown_parent_unlike_any_lists_the_stages() -> None:
    with pytest.raises(UnknownStageError, match=r"not in this job: its stages are 'a', 'b'\.$"):
        resolve([("a", ()), ("b", ("something else",))])


def test_a_stage_is_not_proposed_as_its_own_parent() -> None:
    with pytest.raises(UnknownStageError, match="its stages are"):
        resolve([("clean", ("claen",))])


@pytest.mark.parametrize("names", [("a", "a"), ("a", "b", "a")])
def test_duplicate_names(names: tuple[str, ...]) -> None:
    with pytest.raises(DuplicateStageError, match="two stages named 'a'"):
        resolve([(name, ()) for name in names])


def test_cycle_is_shown_in_running_order() -> None:
    stages = [("x", ()), ("a", ("c", "x")), ("b", ("a",)), ("c", ("b",)), ("d", ("c",))]
    with pytest.raises(
        CycleError, match="job 'j' wait for each other: a -> b -> c -> a "
    ) as caught:
        resolve(stages, "j")
    assert caught.value.cycle == ("a", "b", "c", "a")


def test_self_loop() -> None:
    with pytest.raises(CycleError, match=r"'a' comes after itself \(a -> a\)"):
        resolve([("a", ("a",))])


@pytest.mark.parametrize(
    "error",
    [
        CycleError(("a", "b", "a"), "j"),
        DuplicateStageError("a", "j"),
        UnknownStageError("a", "b", ("c",), "j"),
        GraphError("text"),
    ],
)
def test_errors_survive_pickling(error: GraphError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert str(again) == str(error)


@pytest.mark.parametrize("size", [0, -1, True, 2.0, "3"])
def test_world_size_must_be_a_positive_int(size: int) -> None:
    with pytest.raises(GraphError, match="world_size must be an int >= 1"):
        Node(size)


def test_negative_tolerance() -> None:
    with pytest.raises(GraphError, match="max_failed must be an int >= 0"):
        Node(1, (), -1)


@pytest.mark.parametrize("parent", [-1, 1])
def test_parent_out_of_range(parent: int) -> None:
    with pytest.raises(GraphError, match="there are only the stages"):
        Dag([Node(1, (parent,))])


def test_dag_from_names() -> None:
    dag = Dag.from_names([("b", ("a",)), ("a", ())], [2, 3], [0, 1])
    assert dag.order() == (1, 0)
    assert dag.depths() == (0, 1)
    assert dag.start().ready == ((1, range(3)),)
    with pytest.raises(GraphError, match="2 stages need 2 world sizes"):
        Dag.from_names([("b", ("a",)), ("a", ())], [2])


def test_dag_without_stages() -> None:
    assert Dag([]).start().ready == ()
