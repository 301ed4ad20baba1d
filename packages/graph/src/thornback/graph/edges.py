"""What a stage waits for: edges, their conditions, and the stages themselves. Values."""

from __future__ import annotations

import attrs

from thornback.graph.order import GraphError


def whole(name: str, value: object, least: int, why: str) -> None:
    """Refuse what is no int of at least that. Raises `GraphError`."""
    if type(value) is not int or value < least:
        raise GraphError(f"{name} must be an int >= {least}, not {value!r}: {why}.")


@attrs.frozen(slots=True)
class Condition:
    """How a parent must have ended. A rank that was skipped counts as one that failed.

    Made by `all_success`, `all_done` and `within`.
    """

    max_failed: int | None
    """So many of its ranks may have failed or been skipped; None: any number."""

    @classmethod
    def all_success(cls) -> Condition:
        """Every rank of it is done; with a one-to-one edge: the rank of the same number is."""
        return cls(0)

    @classmethod
    def all_done(cls) -> Condition:
        """Every rank of it has ended, or never will run; with a one-to-one edge: the rank of the
        same number."""
        return cls(None)

    @classmethod
    def within(cls, max_failed: int) -> Condition:
        """Every rank of it has ended, at most so many without success. With a one-to-one edge: the
        rank of the same number is done; and once more have failed, all that waits is skipped.

        Raises:
            GraphError: a negative number.
        """
        whole("max_failed", max_failed, 0, "it counts ranks")
        return cls(max_failed)


@attrs.frozen(slots=True)
class Edge:
    """One stage after another."""

    parent: int
    """Position of the stage that comes first."""
    one_to_one: bool = attrs.field(default=False, kw_only=True)
    """Rank i waits for rank i of the parent alone, which must be as large. False: a barrier, every
    rank waits for all of the parent's."""
    condition: Condition | None = attrs.field(default=None, kw_only=True)
    """None: of a barrier, within the parent's own `max_failed`; of a one-to-one edge, that rank i
    of the parent is done, whatever the others come to."""


@attrs.frozen(slots=True)
class Node:
    """One stage. Raises `GraphError` for a world size below 1 or a negative tolerance."""

    world_size: int = attrs.field()
    """Its ranks are 0..world_size-1."""
    parents: tuple[int | Edge, ...] = attrs.field(default=())
    """Positions of the stages that must end before it, or edges to them; `Dag` checks them."""
    max_failed: int = attrs.field(default=0)
    """So many of *this* stage's ranks may fail, or be skipped, without stopping what comes after it
    by an edge that says nothing else."""

    def __attrs_post_init__(self) -> None:
        """Refuse impossible numbers."""
        whole("world_size", self.world_size, 1, "a stage needs a rank to run")
        whole("max_failed", self.max_failed, 0, "it counts ranks")

    @property
    def edges(self) -> tuple[Edge, ...]:
        """The parents as edges, each once; a bare position is a barrier."""
        given = (Edge(each) if isinstance(each, int) else each for each in self.parents)
        return tuple(dict.fromkeys(given))
