"""Values, fit and explanations."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thornback.placement import Bundle, GangRequest, NodeView, Strategy, explain_unplaceable
from thornback.placement.bundles import resources_of, strategy_of, without
from thornback.placement.explain import describe, largest_memory_bytes
from thornback.placement.fit import copies, fit

GIB = 2**30


def node(name: str, *, draining: bool = False, **resources: float) -> NodeView:
    return NodeView(name=name, resources=resources, draining=draining)


def gang(count: int, strategy: Strategy | None = None, **resources: float) -> GangRequest:
    bundle = Bundle(
        cpus=resources.pop("cpus", 0.0),
        gpus=resources.pop("gpus", 0.0),
        memory_bytes=int(resources.pop("memory", 0)),
        resources=resources,
    )
    return GangRequest(bundle=bundle, nodes=count, strategy=strategy)


def test_the_default_strategy_spreads_several_nodes_strictly() -> None:
    assert strategy_of(gang(1)) is Strategy.PACK
    assert strategy_of(gang(2)) is Strategy.STRICT_SPREAD
    assert strategy_of(gang(2, Strategy.PACK)) is Strategy.PACK


def test_resources_leave_out_zeros() -> None:
    assert resources_of(Bundle(cpus=0, memory_bytes=5, resources={"slot": 1})) == {
        "memory": 5,
        "slot": 1,
    }
    assert resources_of(Bundle(cpus=0)) == {}


def test_an_accelerator_is_a_trace_of_rays_resource() -> None:
    needs = resources_of(Bundle(cpus=0, gpus=8, accelerator="A100"))
    assert needs == {"GPU": 8, "accelerator_type:A100": 0.001}
    assert copies(needs, {"GPU": 64, "accelerator_type:A100": 1}) == 8
    assert copies(needs, {"GPU": 64, "accelerator_type:T4": 1}) == 0


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Bundle(cpus=-1), "cpus=-1"),
        (lambda: Bundle(gpus=float("nan")), "finite"),
        (lambda: Bundle(memory_bytes=-5), "memory_bytes=-5"),
        (lambda: Bundle(resources={"CPU": 1}), "use cpus="),
        (lambda: Bundle(resources={"slot": -1}), "'slot': -1"),
        (lambda: GangRequest(bundle=Bundle(), nodes=0), "expected >= 1"),
        (lambda: Bundle(accelerator="accelerator_type:A100"), "bare name of a type"),
    ],
)
def test_bad_amounts_are_refused(make: object, says: str) -> None:
    assert callable(make)
    with pytest.raises(ValueError, match=says.replace("(", r"\(")):
        make()


def test_tenths_add_up() -> None:
    assert copies({"CPU": 0.1}, {"CPU": 1.0}) == 10


@pytest.mark.parametrize(
    ("request_", "nodes", "text"),
    [
        (
            gang(2, gpus=8),
            [node("a", CPU=64, GPU=4), node("b", CPU=64), node("c", GPU=8, draining=True)],
            "needs 2 x {GPU: 8} on different nodes; largest node has {GPU: 4}; 1 node draining",
        ),
        (gang(1, cpus=1), [], "needs 1 x {CPU: 1}; there is no node"),
        (
            gang(1, cpus=1, memory=64 * GIB),
            [node("a", CPU=8, memory=3.5 * GIB), node("b", CPU=1, memory=16 * GIB)],
            "needs 1 x {CPU: 1, memory: 64 GiB}; largest node has {CPU: 1, memory: 16 GiB}",
        ),
        (
            gang(3, cpus=1),
            [node("a", CPU=4), node("b", CPU=4)],
            "needs 3 x {CPU: 1} on different nodes; 2 of 2 nodes can hold one; "
            "with strategy=Strategy.PACK it would fit",
        ),
        (
            gang(3, Strategy.STRICT_PACK, cpus=2),
            [node("a", CPU=4), node("b", CPU=4)],
            "needs 3 x {CPU: 2} on one node; the largest of 2 nodes has room for 2; "
            "with strategy=Strategy.PACK it would fit",
        ),
        (
            gang(5, Strategy.SPREAD, cpus=2),
            [node("a", CPU=4), node("b", CPU=4)],
            "needs 5 x {CPU: 2}; 2 nodes can hold 4 together",
        ),
        (
            gang(1, licence=1),
            [node("a", CPU=4)],
            "needs 1 x {licence: 1}; largest node has {licence: 0}",
        ),
        (
            GangRequest(bundle=Bundle(cpus=0, gpus=1, accelerator="A100")),
            [NodeView(name="a", resources={"GPU": 4, "accelerator_type:T4": 1}), node("b", GPU=0)],
            "needs 1 x {GPU: 1, accelerator: A100}; largest node has {GPU: 4, accelerator: T4}",
        ),
        (
            GangRequest(bundle=Bundle(cpus=0, accelerator="A100")),
            [node("b", CPU=4)],
            "needs 1 x {accelerator: A100}; largest node has {accelerator: none}",
        ),
    ],
)
def test_explanations_have_numbers(request_: GangRequest, nodes: list[NodeView], text: str) -> None:
    assert explain_unplaceable(request_, nodes) == text


def test_what_fits_is_not_explained() -> None:
    nodes = [node("a", CPU=4), node("b", CPU=4)]
    assert explain_unplaceable(gang(2, cpus=4), nodes) is None
    assert explain_unplaceable(gang(3, cpus=0), nodes) is not None, "three different nodes of two"
    assert explain_unplaceable(gang(1, cpus=0), nodes) is None


def test_description_counts_and_places() -> None:
    assert describe(gang(2, gpus=8)) == "2 x {GPU: 8} on different nodes"
    assert describe(gang(1, cpus=0.5)) == "1 x {CPU: 0.5}"


def test_largest_memory_is_that_of_nodes_which_hold_the_rest() -> None:
    nodes = [
        node("a", CPU=1, memory=4 * GIB),
        node("b", CPU=8, memory=2 * GIB),
        node("c", CPU=8, memory=64 * GIB, draining=True),
        node("d", CPU=8, memory=3 * GIB),
    ]
    assert largest_memory_bytes(gang(1, cpus=1, memory=99 * GIB), nodes) == 4 * GIB
    assert largest_memory_bytes(gang(1, cpus=2, memory=99 * GIB), nodes) == 3 * GIB
    assert largest_memory_bytes(gang(2, cpus=2, memory=99 * GIB), nodes) == 2 * GIB
    assert largest_memory_bytes(gang(1, cpus=9), nodes) is None
    assert largest_memory_bytes(gang(1, cpus=1), [node("a", CPU=1)]) is None


def test_largest_memory_is_found_in_few_looks() -> None:
    """Each node of a large cluster has a memory of its own; the event loop waits meanwhile."""

    class Counted(dict[str, float]):
        def get(self, name: str, default: Any = None) -> Any:
            looks.append(name)
            return super().get(name, default)

    looks: list[str] = []
    nodes = [
        NodeView(name=f"n{n}", resources=Counted(CPU=1.0, memory=float(n + 1))) for n in range(300)
    ]
    assert largest_memory_bytes(gang(200, cpus=1, memory=99 * GIB), nodes) == 101
    assert len(looks) < 300 * 50


def test_without_leaves_out_by_name() -> None:
    nodes = [node("a"), node("b")]
    assert [n.name for n in without(nodes, ["a", "z"])] == ["b"]


capacities = st.lists(st.integers(0, 4), max_size=4)


@given(capacities, st.integers(1, 6), st.integers(1, 3), st.sampled_from(Strategy))
def test_fit_agrees_with_trying_everything(
    cpus: list[int], count: int, each: int, strategy: Strategy
) -> None:
    free = [node(f"n{i}", CPU=cpu) for i, cpu in enumerate(cpus)]
    chosen = fit(gang(count, strategy, cpus=each), free)
    possible = any(
        _allowed(tried, cpus, each, strategy)
        for tried in itertools.combinations_with_replacement(range(len(cpus)), count)
    )
    assert (chosen is not None) == possible
    if chosen is not None:
        assert len(chosen) == count
        assert _allowed(tuple(int(name[1:]) for name in chosen), cpus, each, strategy)


def _allowed(tried: tuple[int, ...], cpus: list[int], each: int, strategy: Strategy) -> bool:
    if any(tried.count(i) * each > cpu for i, cpu in enumerate(cpus)):
        return False
    if strategy is Strategy.STRICT_PACK:
        return len(set(tried)) == 1
    return strategy is not Strategy.STRICT_SPREAD or len(set(tried)) == len(tried)


def test_pack_uses_few_nodes_and_spread_many() -> None:
    free = [node("a", CPU=2), node("b", CPU=4), node("c", CPU=1)]
    assert fit(gang(3, Strategy.PACK, cpus=1), free) == ("b", "b", "b")
    assert fit(gang(5, Strategy.PACK, cpus=1), free) == ("b", "b", "b", "b", "a")
    assert fit(gang(3, Strategy.SPREAD, cpus=1), free) == ("a", "b", "c")
    assert fit(gang(6, Strategy.SPREAD, cpus=1), free) == ("a", "b", "c", "a", "b", "b")
