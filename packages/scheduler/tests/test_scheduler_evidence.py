"""Evidence about nodes: what settles a case, and which nodes are suspected for how long."""

from __future__ import annotations

import pytest

from thornback.faults import Standing
from thornback.scheduler.evidence import Case, Evidence, PastFault

NODES = dict.fromkeys(("a", "b", "c", "d"))


def case(rank: int, *nodes: str, last: int = 10, ran_s: float = 5.0) -> Case[str]:
    past = PastFault("died", nodes[0] if len(nodes) == 1 else "", Standing.OPEN)
    return Case(stage=0, rank=rank, past=past, nodes=list(nodes), last_assignment=last, ran_s=ran_s)


def evidence() -> Evidence[str]:
    return Evidence(parole_s=100.0, max_parole_s=350.0)


def suspect(known: Evidence[str], *names: str, now: float = 0.0) -> None:
    for name in names:
        known.suspect(name, now, 10)


def fine(
    known: Evidence[str],
    node: str,
    *,
    rank: int = 7,
    assignment: int = 11,
    now: float = 1.0,
    probing: bool = False,
    ran_s: float | None = None,
) -> list[Case[str]]:
    return known.ran_well((node,), 0, rank, assignment, now, probing=probing, ran_s=ran_s)


def test_case_is_settled_against_the_rank_by_another_that_started_later() -> None:
    known, died = evidence(), case(3, "a")
    known.add(died, 0.0)
    assert fine(known, "a", assignment=10) == [], "it was dispatched before the death"
    assert fine(known, "a", rank=3) == [], "it is the same rank"
    assert fine(known, "b") == [], "it is another node"
    assert fine(known, "a") == [died]
    assert died.past.standing is Standing.RANK
    assert not known


def test_case_is_settled_by_a_bug_of_another_only_if_that_ran_longer() -> None:
    known, died = evidence(), case(3, "a", ran_s=5.0)
    known.add(died, 0.0)
    assert fine(known, "a", ran_s=4.0) == []
    assert fine(known, "a", ran_s=6.0) == [died]


def test_second_rank_on_a_node_settles_both_against_the_node() -> None:
    known, first, second = evidence(), case(3, "a"), case(4, "a")
    known.add(first, 0.0)
    assert known.standing(0, 3, ("a",), is_known_killer=False) is Standing.OPEN, "the same rank"
    assert known.standing(0, 4, ("a",), is_known_killer=True) is Standing.OPEN
    assert known.standing(0, 4, ("a",), is_known_killer=False) is Standing.NODE
    second.past.standing = Standing.NODE
    known.add(second, 0.0)
    assert first.past.standing is Standing.NODE
    assert known.suspects(NODES, 2, 1.0) == ("a",)


def test_known_killer_opens_a_case_that_convicts_no_node() -> None:
    known, killer = evidence(), case(3, "a")
    killer.is_known_killer = True
    known.add(killer, 0.0)
    assert known.standing(0, 4, ("a",), is_known_killer=False) is Standing.OPEN


def test_case_of_several_nodes_counts_against_the_rank_when_all_are_fine() -> None:
    known, died = evidence(), case(3, "a", "b")
    known.add(died, 0.0)
    assert fine(known, "a") == []
    assert fine(known, "b") == [died]
    again = case(3, "a", "b")
    known.add(again, 0.0)
    suspect(known, "b")
    assert again.past.standing is Standing.NODE
    assert known.standing(0, 9, ("a",), is_known_killer=False) is Standing.OPEN, (
        "it is closed there"
    )


def test_suspects_are_limited_and_the_worst_come_first() -> None:
    known = evidence()
    for node, faults in (("a", 1), ("b", 3), ("c", 2)):
        for rank in range(faults):
            known.add(case(rank, node), 0.0)
        suspect(known, node)
    assert known.suspects(NODES, 2, 1.0) == ("b", "c")
    assert known.suspects({"a": None}, 2, 1.0) == ("a",), "others do not fit the shape"
    assert known.suspects(NODES, 0, 1.0) == ()
    assert known.suspects(NODES, 4, 100.0) == (), "their terms are over"


def test_node_that_only_loses_gangs_becomes_the_worst_too() -> None:
    """Else it is used again and again where more nodes are suspected than may be avoided."""
    known = evidence()
    for rank in range(2):
        known.add(case(rank, "a"), 0.0)
    suspect(known, "a")
    for _ in range(4):
        suspect(known, "b")
    assert known.suspects(NODES, 1, 1.0) == ("b",)


def test_terms_double_up_to_the_longest_and_a_relapse_goes_on() -> None:
    known, now, terms = evidence(), 0.0, []
    for _ in range(4):
        known.suspect("a", now, 10)
        terms.append(known.parole_at(("a",), now) - now)
        now = known.parole_at(("a",), now)
    assert terms == [100.0, 200.0, 350.0, 350.0]


def test_fault_of_what_was_under_way_does_not_lengthen_the_term() -> None:
    known = evidence()
    suspect(known, "a")
    known.suspect("a", 50.0, 10)
    assert known.parole_at(("a",), 50.0) == 100.0


@pytest.mark.parametrize(("now", "is_cleared"), [(150.0, False), (200.0, True)])
def test_node_on_parole_is_cleared_by_a_success_after_the_parole(
    now: float, is_cleared: bool
) -> None:
    known = evidence()
    suspect(known, "a")
    assert known.is_on_parole("a", now)
    assert known.on_parole(now) == ["a"]
    fine(known, "a", now=now, probing=True)
    assert known.is_on_parole("a", now) is not is_cleared


def test_suspected_node_in_normal_use_is_cleared_by_the_first_success() -> None:
    known = evidence()
    suspect(known, "a")
    fine(known, "a", assignment=10)
    assert known.suspects(NODES, 2, 1.0) == ("a",), "that one had started before"
    fine(known, "a", assignment=11)
    assert known.suspects(NODES, 2, 1.0) == ()
    known.suspect("a", 500.0, 20)
    assert known.parole_at(("a",), 500.0) == 700.0, "a relapse: the term goes on from there"


def test_suspected_node_used_for_want_of_others_begins_its_parole_early() -> None:
    known = evidence()
    suspect(known, "a")
    fine(known, "a", now=30.0, probing=True)
    assert known.is_on_parole("a", 30.0)
