"""Selectors: grammar, matching, placement by them, and what is said when none fits."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from thornback.placement import (
    Bundle,
    GangRequest,
    Ledger,
    NodeView,
    Strategy,
    explain_unplaceable,
    matches,
)
from thornback.placement.bundles import resources_of, selectors_of
from thornback.placement.fit import copies, fit
from thornback.placement.labels import leaving_out


def node(name: str, cpus: float = 4, **labels: str) -> NodeView:
    return NodeView(name=name, resources={"CPU": cpus}, labels=labels)


@pytest.mark.parametrize(
    ("selector", "on", "elsewhere", "without"),
    [
        ("a", True, False, False),
        ("!a", False, True, True),
        ("in(a,c)", True, False, False),
        ("in(c,a)", True, False, False),
        ("!in(a,c)", False, True, True),
        ("in(a)", True, False, False),
        ("in(c, a)", True, False, False),
        ("in", False, False, False),
    ],
)
def test_selectors_match_as_rays_do(
    selector: str, on: bool, elsewhere: bool, without: bool
) -> None:
    selectors = {"zone": selector}
    assert matches(selectors, {"zone": "a", "disk": "ssd"}) is on
    assert matches(selectors, {"zone": "b"}) is elsewhere
    assert matches(selectors, {"disk": "a"}) is without


def test_all_selectors_must_hold() -> None:
    both = {"zone": "a", "market": "!spot"}
    assert matches(both, {"zone": "a", "market": "on-demand"})
    assert not matches(both, {"zone": "a", "market": "spot"})
    assert not matches(both, {"zone": "b", "market": "on-demand"})
    assert matches({}, {})


@pytest.mark.parametrize(
    "selector",
    ["", "!", "!!a", "in()", "in(a,)", "in(a", "(a,b)", "-a", "a-", "a b", "x" * 64, "in(a,!b)"],
)
def test_bad_grammar_says_what_was_expected(selector: str) -> None:
    with pytest.raises(ValueError, match=r"expected 'v', '!v', 'in\(a,b\)' or '!in\(a,b\)'"):
        GangRequest(bundle=Bundle(), labels={"zone": selector})


@pytest.mark.parametrize("label", ["", "-a", "a/", "/a", "a/b/c", "x" * 64, "a b", "a..b/c"])
def test_bad_names_of_labels_are_refused(label: str) -> None:
    with pytest.raises(ValueError, match="expected the name of a label"):
        GangRequest(bundle=Bundle(), labels={label: "v"})


@pytest.mark.timeout(10)
def test_a_long_prefix_is_judged_at_once() -> None:
    good = ".".join(["a"] * 127)
    assert matches({f"{good}/zone": "v"}, {f"{good}/zone": "v"})
    with pytest.raises(ValueError, match="expected the name of a label"):
        matches({f"{good[:-1]}_/zone": "v"}, {})
    with pytest.raises(ValueError, match="expected the name of a label"):
        matches({f"{good}.a/zone": "v"}, {})


def test_selectors_are_kept_in_one_way_to_write_them() -> None:
    """Ray takes a space after the comma, and then matches nothing."""
    request = GangRequest(bundle=Bundle(), labels={"a.b/zone": "in(a, b,  a)", "x": "!in(c)"})
    assert request.labels == ({"a.b/zone": "in(a,b)", "x": "!c"},)


def test_labels_are_given_once_or_once_per_bundle() -> None:
    one, other = {"zone": "a"}, {"zone": "b"}
    all_alike = GangRequest(bundle=Bundle(), nodes=2, labels=one)
    assert selectors_of(all_alike) == (one, one)
    each = GangRequest(bundle=Bundle(), nodes=2, labels=[one, other])
    assert selectors_of(each) == (one, other)
    assert selectors_of(GangRequest(bundle=Bundle(), nodes=2)) == ({}, {})
    with pytest.raises(ValueError, match="2 mappings for 3 bundles"):
        GangRequest(bundle=Bundle(), nodes=3, labels=[one, other])
    with pytest.raises(ValueError, match="expected selectors by label"):
        GangRequest(bundle=Bundle(), labels=["zone"])  # type: ignore[list-item]  # a mistake


@pytest.mark.parametrize(
    ("selector", "narrowed"),
    [
        (None, "!in(a,b)"),
        ("c", "c"),
        ("in(a,c,d)", "in(c,d)"),
        ("!c", "!in(c,a,b)"),
        ("!in(a,c)", "!in(a,c,b)"),
    ],
)
def test_values_can_be_left_out_of_a_selector(selector: str | None, narrowed: str) -> None:
    assert leaving_out(selector, ["a", "b"]) == narrowed
    nothing = leaving_out("in(a,b)", ["a", "b"])
    assert not any(matches({"id": nothing}, {"id": value}) for value in "abc")


zones = st.sampled_from(["a", "b", "c", ""])
wishes = st.sampled_from(["", "a", "!a", "in(a,b)", "c"])


@st.composite
def gangs(draw: st.DrawFn) -> GangRequest:
    wanted = draw(st.lists(wishes, min_size=1, max_size=5))
    return GangRequest(
        bundle=Bundle(cpus=draw(st.integers(1, 3))),
        nodes=len(wanted),
        strategy=draw(st.sampled_from(Strategy)),
        labels=[{"zone": wish} if wish else {} for wish in wanted],
    )


nodes_of_zones = st.lists(st.tuples(st.integers(0, 5), zones), max_size=4)


def allowed(request: GangRequest, tried: Sequence[NodeView]) -> bool:
    """Whether these nodes, one per bundle, are a placement: the definition, not the algorithm."""
    need = resources_of(request.bundle)
    if any(
        not matches(selectors, place.labels)
        for selectors, place in zip(selectors_of(request), tried, strict=True)
    ):
        return False
    if any(tried.count(place) > copies(need, place.resources) for place in tried):
        return False
    used = len({place.name for place in tried})
    if request.strategy is Strategy.STRICT_PACK:
        return used == 1
    return request.strategy is not Strategy.STRICT_SPREAD or used == request.nodes


@given(gangs(), nodes_of_zones)
def test_fit_by_labels_agrees_with_trying_everything(
    request_: GangRequest, made: list[tuple[int, str]]
) -> None:
    nodes = [node(f"n{i}", cpus, **({"zone": z} if z else {})) for i, (cpus, z) in enumerate(made)]
    by_name = {each.name: each for each in nodes}
    ways = [
        tried
        for tried in itertools.product(nodes, repeat=request_.nodes)
        if allowed(request_, tried)
    ]
    chosen = fit(request_, nodes)
    assert (chosen is not None) == bool(ways)
    assert (explain_unplaceable(request_, nodes) is None) == bool(ways)
    if chosen is None:
        return
    assert allowed(request_, [by_name[name] for name in chosen])
    used = [len({place.name for place in tried}) for tried in ways]
    if request_.strategy is Strategy.SPREAD:
        assert len(set(chosen)) == max(used), "on as many nodes as possible"
    if request_.strategy is Strategy.PACK and (
        1 in used or len(set(map(str, request_.labels))) == 1
    ):
        assert len(set(chosen)) == min(used), "on as few nodes as possible"


def test_a_bundle_makes_room_for_one_that_is_more_particular() -> None:
    """Greedy placement would put the first bundle on the only node for the second."""
    nodes = [node("a", 1, zone="a"), node("b", 1, zone="b")]
    request = GangRequest(bundle=Bundle(cpus=1), nodes=2, labels=[{}, {"zone": "a"}])
    assert fit(request, nodes) == ("b", "a")


def test_a_chain_of_moves_is_found() -> None:
    nodes = [node(name, 1, zone=name) for name in "abcd"]
    wishes = ["in(a,b)", "in(b,c)", "in(c,d)", "a"]
    request = GangRequest(
        bundle=Bundle(cpus=1), nodes=4, labels=[{"zone": wish} for wish in wishes]
    )
    assert fit(request, nodes) == ("b", "c", "d", "a")


TEN = [node(f"n{i}", 4, zone="a" if i < 3 else "b") for i in range(10)]


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        (
            GangRequest(bundle=Bundle(cpus=8), nodes=2, labels={"zone": "a"}),
            "needs 2 x {CPU: 8} with zone=a on different nodes; 3 of 10 nodes have that label; "
            "largest of them has {CPU: 4}",
        ),
        (
            GangRequest(bundle=Bundle(cpus=4), nodes=4, labels={"zone": "a"}),
            "needs 4 x {CPU: 4} with zone=a on different nodes; 3 of 10 nodes have that label; "
            "3 of these 3 can hold one",
        ),
        (
            GangRequest(
                bundle=Bundle(cpus=1), nodes=30, strategy=Strategy.PACK, labels={"zone": "a"}
            ),
            "needs 30 x {CPU: 1} with zone=a; 3 of 10 nodes have that label; "
            "these 3 can hold 12 together",
        ),
        (
            GangRequest(bundle=Bundle(cpus=1), labels={"zone": "in(c,d)"}),
            "needs 1 x {CPU: 1} with zone in (c, d); "
            "none of 10 nodes has zone in (c, d) (zone: a, b)",
        ),
        (
            GangRequest(bundle=Bundle(cpus=1), labels={"disk": "ssd", "zone": "!a"}),
            "needs 1 x {CPU: 1} with disk=ssd, zone!=a; "
            "none of 10 nodes has disk=ssd (disk: nowhere)",
        ),
        (
            GangRequest(bundle=Bundle(cpus=1), nodes=2, labels=[{"zone": "a"}, {"zone": "c"}]),
            "needs 1 x {CPU: 1} with zone=a and 1 x {CPU: 1} with zone=c on different nodes; "
            "of these 1 with zone=c: none of 10 nodes has zone=c (zone: a, b)",
        ),
        (
            GangRequest(
                bundle=Bundle(cpus=4),
                nodes=4,
                labels=[{"zone": "a"}, {"zone": "a"}, {"zone": "!b"}, {"zone": "!b"}],
            ),
            "needs 2 x {CPU: 4} with zone=a and 2 x {CPU: 4} with zone!=b on different nodes; "
            "10 nodes can hold 3 of the 4 together",
        ),
        (
            GangRequest(
                bundle=Bundle(cpus=1),
                nodes=2,
                strategy=Strategy.STRICT_PACK,
                labels=[{"zone": "a"}, {"zone": "b"}],
            ),
            "needs 1 x {CPU: 1} with zone=a and 1 x {CPU: 1} with zone=b on one node; "
            "none of 10 nodes can hold all of them; with strategy=Strategy.PACK it would fit",
        ),
    ],
)
def test_explanations_tell_of_labels(request_: GangRequest, text: str) -> None:
    assert explain_unplaceable(request_, TEN) == text


def test_a_ledger_knows_labels() -> None:
    granted: dict[str, tuple[str, ...]] = {}
    ledger: Ledger[str] = Ledger(
        granted.__setitem__, {"a": {"CPU": 1}, "b": {"CPU": 1}}, labels={"b": {"zone": "z"}}
    )
    ledger.ask("on b", GangRequest(bundle=Bundle(cpus=1), labels={"zone": "z"}))
    ledger.ask("elsewhere", GangRequest(bundle=Bundle(cpus=1), labels={"zone": "y"}))
    assert granted == {"on b": ("b",)}
    ledger.add_node("c", {"CPU": 1}, {"zone": "y"})
    assert granted == {"on b": ("b",), "elsewhere": ("c",)}
    ledger.check_invariants()
