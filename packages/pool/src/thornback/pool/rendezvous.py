"""What the nodes of a gang are told of each other, as environment variables. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import attrs

from thornback.pool.ports import Assignment

_KNOWN = ("", "torch")


def checked(rendezvous: str) -> None:
    """Refuse a rendezvous that is not known.

    Raises:
        ValueError: it is not.
    """
    if rendezvous not in _KNOWN:
        raise ValueError(
            f"rendezvous {rendezvous!r} is not known: expected 'torch', or '' for no more than "
            "THORNBACK_ADDRESSES and THORNBACK_MASTER_PORT"
        )


def needs_port(work: Assignment, nodes: int) -> bool:
    """Whether the ranks of an assignment are told how to meet."""
    return nodes > 1 or work.rendezvous != ""


def for_members(
    work: Assignment, addresses: Sequence[str], port: int, *, theirs: Mapping[str, str]
) -> tuple[Assignment, ...]:
    """Return the assignment for each node, with what it is told in `env`.

    Args:
        work: the assignment; what its own `env` says is left as it is.
        addresses: of the nodes, in order.
        port: free on node 0.
        theirs: variables that the workers have from the user; those are left as they are, too.
    """
    shared = {"THORNBACK_ADDRESSES": ",".join(addresses), "THORNBACK_MASTER_PORT": str(port)}
    if work.rendezvous == "torch":
        shared |= {
            "WORLD_SIZE": str(len(addresses)),
            "MASTER_ADDR": addresses[0],
            "MASTER_PORT": str(port),
        }
    found = []
    for index in range(len(addresses)):
        own = {**shared, "RANK": str(index)} if work.rendezvous == "torch" else shared
        told = {name: value for name, value in own.items() if name not in theirs}
        found.append(attrs.evolve(work, env={**told, **work.env}))
    return tuple(found)
