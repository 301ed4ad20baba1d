"""How the nodes of a gang are told of each other."""

from __future__ import annotations

import attrs
import pytest

from thornback.pool.rendezvous import checked, for_members, needs_port
from thornback.pool.testing import assignment

PLAIN = assignment(1, 0)
TORCH = attrs.evolve(PLAIN, rendezvous="torch")
SHARED = {"THORNBACK_ADDRESSES": "10.0.0.1,10.0.0.2", "THORNBACK_MASTER_PORT": "29500"}
ADDRESSES = ("10.0.0.1", "10.0.0.2")


def test_several_nodes_know_all_addresses_and_a_port_on_node_0() -> None:
    members = for_members(PLAIN, ADDRESSES, 29500, theirs={})
    assert [dict(each.env) for each in members] == [SHARED, SHARED]
    assert [attrs.evolve(each, env={}) for each in members] == [PLAIN, PLAIN]


def test_torch_has_its_own_variables_besides() -> None:
    members = for_members(TORCH, ADDRESSES, 29500, theirs={})
    torch = {**SHARED, "WORLD_SIZE": "2", "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}
    assert [dict(each.env) for each in members] == [{**torch, "RANK": "0"}, {**torch, "RANK": "1"}]


def test_what_the_user_says_wins() -> None:
    work = attrs.evolve(TORCH, env={"MASTER_ADDR": "mine", "OTHER": "1"})
    members = for_members(work, ADDRESSES, 29500, theirs={"MASTER_PORT": "1", "RANK": "7"})
    for member in members:
        assert member.env["MASTER_ADDR"] == "mine"
        assert member.env["OTHER"] == "1"
        assert "MASTER_PORT" not in member.env, "the worker has it from the user"
        assert "RANK" not in member.env


def test_one_node_meets_nobody_unless_asked_to() -> None:
    assert not needs_port(PLAIN, 1)
    assert needs_port(TORCH, 1)
    assert needs_port(PLAIN, 2)


def test_an_unknown_rendezvous_is_refused() -> None:
    checked("")
    checked("torch")
    with pytest.raises(ValueError, match="'mpi' is not known: expected 'torch'"):
        checked("mpi")
