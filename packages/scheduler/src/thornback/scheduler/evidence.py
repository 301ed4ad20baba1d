"""Collects evidence about nodes: whose fault was it, and which nodes get no new work.

Theory of operation
===================

A fault that a machine may have caused (`Verdict.blames_node`) opens a *case* on its node. Cases are
settled by what happens to other ranks there:

- against the rank, when a different rank that was dispatched to the node after the fault finishes,
  or fails by its own code after running longer;
- against the node, when a second, different rank has such a fault there first.

A node against which a case is settled, or which lost a worker, is **suspected** for a term: it gets
no new ranks. When the term is over it is on **parole** for as long again: its gangs get one rank at
a time, so that a node that is bad again costs one fault. That fault starts a new term, twice as
long. A success after the parole clears the node; if it relapses, the next term is longer still.

Suspicion is bounded: at most half of the nodes that fit a shape are avoided at once, the worst
first, and one gang always finds room. So suspicion alone never stops a run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Generic, TypeVar

import attrs

from thornback.faults import Standing

F = TypeVar("F")


@attrs.define(slots=True, eq=False)
class PastFault(Generic[F]):
    """One fault in the history of a rank."""

    fault: F
    node: str
    """Where it happened; empty: not known."""
    standing: Standing


@attrs.define(slots=True, eq=False, kw_only=True)
class Case(Generic[F]):
    """A fault that is not settled."""

    stage: int
    rank: int
    past: PastFault[F]
    nodes: list[str]
    """Where it is still open. More than one for a gang whose root cause is not known."""
    last_assignment: int
    """Assignments up to this one were dispatched before the fault was known."""
    ran_s: float
    """How long the rank had run."""
    is_known_killer: bool = False
    """Another fault of the rank is settled against it: this one says nothing about nodes."""

    def is_about(self, stage: int, rank: int) -> bool:
        """Return whether it is a fault of this rank."""
        return (self.stage, self.rank) == (stage, rank)


@attrs.define(slots=True)
class _Node(Generic[F]):
    cases: list[Case[F]] = attrs.field(factory=list)
    faults: int = 0
    """Since a rank last finished there."""
    is_doubtful: bool = False
    """It is suspected or on parole."""
    term_s: float = 0.0
    """Of the last suspicion; 0: there was none."""
    until: float = 0.0
    """When that ended, or ends."""
    last_assignment: int = -1
    """Assignments up to this one were dispatched before it was suspected."""


class Evidence(Generic[F]):
    """What is known against nodes. Time is an argument."""

    def __init__(self, parole_s: float, max_parole_s: float) -> None:
        self._parole_s = parole_s
        self._max_parole_s = max_parole_s
        self._nodes: dict[str, _Node[F]] = {}
        self.changed = False
        """A node has become suspected, or was cleared, since somebody last set this to False."""

    def __bool__(self) -> bool:
        """Whether there is anything to settle, or a node to clear."""
        return bool(self._nodes)

    def standing(
        self, stage: int, rank: int, nodes: Sequence[str], *, is_known_killer: bool
    ) -> Standing:
        """Return how a fault of this rank there stands before it is added: NODE or OPEN."""
        if is_known_killer:
            return Standing.OPEN
        for name in nodes:
            node = self._nodes.get(name)
            if node is not None and (
                node.is_doubtful
                or any(
                    not (case.is_known_killer or case.is_about(stage, rank)) for case in node.cases
                )
            ):
                return Standing.NODE
        return Standing.OPEN

    def add(self, case: Case[F], now: float) -> None:
        """Take in a fault whose standing is what `standing` said, or UNDECIDED."""
        for name in list(case.nodes):
            if case.past.standing is Standing.NODE:
                self.suspect(name, now, case.last_assignment)
                continue
            node = self._nodes.setdefault(name, _Node())
            node.faults += 1
            node.cases.append(case)

    def suspect(self, name: str, now: float, last_assignment: int) -> None:
        """Suspect a node for a term, because of one more fault, and settle what is open there
        against it."""
        node = self._nodes.setdefault(name, _Node())
        node.faults += 1
        for case in node.cases:
            case.past.standing = Standing.NODE
            for other in case.nodes:
                if other != name:
                    self._nodes[other].cases.remove(case)
        node.cases.clear()
        self.changed = True
        if node.until > now:
            return  # what was under way when it was suspected does not count again
        node.term_s = min(self._max_parole_s, 2 * node.term_s) or self._parole_s
        node.is_doubtful = True
        node.until = now + node.term_s
        node.last_assignment = last_assignment

    def ran_well(
        self,
        nodes: Sequence[str],
        stage: int,
        rank: int,
        assignment: int,
        now: float,
        *,
        probing: bool,
        ran_s: float | None = None,
    ) -> list[Case[F]]:
        """Note that a rank was fine on these nodes. Return the cases that this settles against
        their ranks.

        Args:
            nodes: of its gang.
            stage: of the rank.
            rank: that has succeeded, or has failed by its own code.
            assignment: it was part of.
            now: the time.
            probing: its gang got one rank at a time. Else the node was used as any other.
            ran_s: how long it ran before it failed; None: it succeeded.
        """
        settled: list[Case[F]] = []
        for name in nodes:
            node = self._nodes.get(name)
            if node is None:
                continue
            for case in list(node.cases):
                if case.is_about(stage, rank) or assignment <= case.last_assignment:
                    continue
                if ran_s is None or ran_s > case.ran_s:
                    node.cases.remove(case)
                    case.nodes.remove(name)
                    if not case.nodes:
                        case.past.standing = Standing.RANK
                        settled.append(case)
            if ran_s is None:
                node.faults = 0
            if node.is_doubtful and ran_s is None and assignment > node.last_assignment:
                if not probing or now >= node.until + node.term_s:
                    node.is_doubtful = False
                    node.until = min(node.until, now)
                    self.changed = True
                elif node.until > now:  # used because there was no other node: parole begins early
                    node.until = now
                    self.changed = True
            if not (node.cases or node.term_s):
                del self._nodes[name]
        return settled

    def is_on_parole(self, name: str, now: float) -> bool:
        """Return whether the suspicion of a node is over and it has not proved itself yet."""
        node = self._nodes.get(name)
        return node is not None and node.is_doubtful and node.until <= now

    def on_parole(self, now: float) -> list[str]:
        """Return the nodes whose suspicion is over and that have not proved themselves yet."""
        return [name for name in self._nodes if self.is_on_parole(name, now)]

    def suspects(self, fitting: Mapping[str, None], most: int, now: float) -> tuple[str, ...]:
        """Return the suspected nodes among `fitting`, the worst first: at most so many."""
        found = [
            (-node.faults, -node.term_s, name)
            for name, node in self._nodes.items()
            if node.is_doubtful and node.until > now and name in fitting
        ]
        return tuple(name for _, _, name in sorted(found)[: max(0, most)])

    def parole_at(self, names: Sequence[str], now: float) -> float:
        """Return when the last of these nodes is on parole; `now` if none is suspected."""
        return max((self._nodes[name].until for name in names if name in self._nodes), default=now)

    def next_parole(self, now: float) -> float | None:
        """Return when the next term ends; None: no node is suspected."""
        return min((node.until for node in self._nodes.values() if node.until > now), default=None)
