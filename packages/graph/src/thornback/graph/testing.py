"""A conformance suite for anything that tells which ranks may run: `check_dependencies`.

Needs no test framework: every check is a plain `assert` with a message.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from thornback.graph.dag import SAME_RANK
from thornback.graph.edges import Condition, Edge, Node

__all__ = ["Answer", "Factory", "Subject", "check_dependencies", "ranks_of"]


class Answer(Protocol):
    """What one call answers."""

    @property
    def ready(self) -> Sequence[tuple[int, range]]:
        """Ranks that may run now: (stage, ranks)."""
        ...

    @property
    def skipped(self) -> Sequence[tuple[int, range, tuple[int, int]]]:
        """Ranks that never will: (stage, ranks, (stage, rank) of the failure at the root;
        rank -1: each because of the one of its own number)."""
        ...


class Subject(Protocol):
    """What is checked: `Dag`, or something in its place."""

    def start(self, /) -> Answer:
        """Return what may run before anything has ended. Called once, first."""
        ...

    def finished(self, stage: int, ranks: Sequence[range], ok: bool, /) -> Answer:
        """Take in that ranks have ended, done (`ok`) or failed; return what follows."""
        ...


Factory = Callable[[Sequence[Node]], Subject]
"""Makes a fresh subject for these stages."""


def check_dependencies(factory: Factory) -> None:
    """Check what `factory` makes; it is called anew for each case.

    Raises:
        AssertionError: naming the case and what is wrong.
    """
    _check_chain(factory)
    _check_diamond(factory)
    _check_tolerance(factory)
    _check_repeats(factory)
    _check_resume(factory)
    _check_two_roots(factory)
    _check_one_to_one(factory)
    _check_beside_a_barrier(factory)
    _check_conditions(factory)


def ranks_of(answer: Answer) -> tuple[list[tuple[int, int]], list[tuple[int, int, int, int]]]:
    """Return an answer rank by rank: ready as (stage, rank), and skipped as (stage, rank, stage and
    rank at the root)."""
    ready = [(stage, rank) for stage, ranks in answer.ready for rank in ranks]
    skipped = [
        (stage, rank, root, rank if culprit == SAME_RANK else culprit)
        for stage, ranks, (root, culprit) in answer.skipped
        for rank in ranks
    ]
    return ready, skipped


def _expect(
    answer: Answer,
    what: str,
    ready: Sequence[tuple[int, int]] = (),
    skipped: Sequence[tuple[int, int, int, int]] = (),
) -> None:
    got_ready, got_skipped = ranks_of(answer)
    assert got_ready == list(ready), f"{what}: ready {got_ready}, expected {list(ready)}"
    assert got_skipped == list(skipped), f"{what}: skipped {got_skipped}, expected {list(skipped)}"
    for stage, ranks in (*answer.ready, *(item[:2] for item in answer.skipped)):
        assert ranks, f"{what}: an empty range of stage {stage}"
        assert ranks.step == 1, f"{what}: {ranks!r} of stage {stage} has a step"


def _check_chain(factory: Factory) -> None:
    subject = factory([Node(3), Node(2, (0,)), Node(1, (1,))])
    _expect(subject.start(), "start", [(0, 0), (0, 1), (0, 2)])
    _expect(subject.finished(0, [range(0, 1), range(2, 3)], True), "a barrier holds")
    _expect(subject.finished(0, [range(1, 2)], True), "the last one opens it", [(1, 0), (1, 1)])
    _expect(
        subject.finished(1, [range(1)], False),
        "a failure skips what comes after it at once",
        skipped=[(2, 0, 1, 0)],
    )
    _expect(subject.finished(1, [range(1, 2)], True), "siblings of a failure still end")


def _check_diamond(factory: Factory) -> None:
    nodes = [Node(1), Node(1, (0,)), Node(1, (0,)), Node(2, (1, 2))]
    subject = factory(nodes)
    subject.start()
    _expect(subject.finished(0, [range(1)], True), "both sides open", [(1, 0), (2, 0)])
    _expect(subject.finished(1, [range(1)], True), "the join waits for the other side")
    _expect(subject.finished(2, [range(1)], True), "then it opens, once", [(3, 0), (3, 1)])
    subject = factory(nodes)
    subject.start()
    subject.finished(0, [range(1)], True)
    _expect(
        subject.finished(2, [range(1)], False),
        "one side failed",
        skipped=[(3, 0, 2, 0), (3, 1, 2, 0)],
    )
    _expect(subject.finished(1, [range(1)], False), "the join is not skipped a second time")
    subject = factory(nodes)
    subject.start()
    answer = subject.finished(0, [range(1)], False)
    root = (0, 0)
    _expect(
        answer,
        "everything below the root is skipped once, with the root's own failure",
        skipped=[(1, 0, *root), (2, 0, *root), (3, 0, *root), (3, 1, *root)],
    )


def _check_tolerance(factory: Factory) -> None:
    subject = factory([Node(5, (), 1), Node(1, (0,))])
    subject.start()
    _expect(subject.finished(0, [range(0, 1)], False), "one failure is tolerated")
    _expect(subject.finished(0, [range(1, 5)], True), "and the next stage runs", [(1, 0)])
    subject = factory([Node(5, (), 1), Node(1, (0,))])
    subject.start()
    answer = subject.finished(0, [range(2, 5)], False)
    _expect(answer, "the failure that was one too many is the root", skipped=[(1, 0, 0, 3)])
    subject = factory([Node(5, (), 1), Node(1, (0,))])
    subject.start()
    _expect(subject.finished(0, [range(1)], False), "one failure is tolerated")
    answer = subject.finished(0, [range(3, 4)], False)
    _expect(answer, "and not taken for the root of the next one", skipped=[(1, 0, 0, 3)])


def _check_repeats(factory: Factory) -> None:
    subject = factory([Node(3, (), 1), Node(1, (0,))])
    subject.start()
    _expect(subject.finished(0, [range(2)], True), "two of three")
    _expect(subject.finished(0, [range(2)], True), "told again: counted once")
    _expect(subject.finished(0, [range(2), range(1)], False), "what was told first holds")
    _expect(subject.finished(0, [range(2, 3)], False), "the third", [(1, 0)])
    _expect(subject.finished(0, [range(3)], False), "told after the end")


def _check_resume(factory: Factory) -> None:
    subject = factory([Node(1), Node(5, (0,)), Node(1, (1,))])
    subject.start()
    _expect(subject.finished(1, [range(1, 2), range(3, 4)], True), "an earlier run did these")
    answer = subject.finished(0, [range(1)], True)
    _expect(answer, "what has ended is not handed out", [(1, 0), (1, 2), (1, 4)])
    answer = subject.finished(1, [range(0, 1), range(2, 3), range(4, 5)], True)
    _expect(answer, "the holes count", [(2, 0)])


def _check_two_roots(factory: Factory) -> None:
    subject = factory([Node(1), Node(1), Node(1, (0,)), Node(1, (2, 1))])
    _expect(subject.start(), "two stages without parents", [(0, 0), (1, 0)])
    _expect(
        subject.finished(1, [range(1)], False),
        "only what comes after the failure is skipped",
        skipped=[(3, 0, 1, 0)],
    )
    _expect(subject.finished(0, [range(1)], True), "the other branch goes on", [(2, 0)])
    _expect(subject.finished(2, [range(1)], False), "and may fail without skipping twice")


def _check_one_to_one(factory: Factory) -> None:
    subject = factory([Node(4), Node(4, (Edge(0, one_to_one=True),)), Node(1, (1,))])
    subject.start()
    _expect(subject.finished(0, [range(1, 3)], True), "rank by rank", [(1, 1), (1, 2)])
    _expect(
        subject.finished(0, [range(1)], False),
        "a failure skips the rank of its number, and what waits for that one",
        skipped=[(1, 0, 0, 0), (2, 0, 0, 0)],
    )
    _expect(subject.finished(0, [range(3, 4)], True), "the others go on", [(1, 3)])
    nodes = [Node(3), Node(3, (Edge(0, one_to_one=True),)), Node(3, (Edge(1, one_to_one=True),))]
    subject = factory(nodes)
    subject.start()
    answer = subject.finished(0, [range(1), range(2, 3)], False)
    down = [(1, 0, 0, 0), (1, 2, 0, 2), (2, 0, 0, 0), (2, 2, 0, 2)]
    _expect(answer, "down the chain, each with its own root", skipped=down)
    both = (Edge(0, one_to_one=True), Edge(1, one_to_one=True))
    subject = factory([Node(2), Node(2), Node(2, both)])
    subject.start()
    _expect(subject.finished(0, [range(2)], True), "one parent of two")
    _expect(subject.finished(1, [range(1, 2)], True), "and the other", [(2, 1)])
    _expect(subject.finished(1, [range(1)], False), "or not", skipped=[(2, 0, 1, 0)])


def _check_beside_a_barrier(factory: Factory) -> None:
    subject = factory([Node(3), Node(1), Node(3, (Edge(0, one_to_one=True), 1))])
    subject.start()
    _expect(subject.finished(0, [range(2)], True), "the barrier holds back what is counted")
    _expect(subject.finished(1, [range(1)], True), "and lets it pass at once", [(2, 0), (2, 1)])
    _expect(subject.finished(0, [range(2, 3)], True), "then rank by rank", [(2, 2)])


def _check_conditions(factory: Factory) -> None:
    always = Condition.all_done()
    subject = factory([Node(2), Node(1, (0,)), Node(1, (Edge(1, condition=always),))])
    subject.start()
    answer = subject.finished(0, [range(1)], False)
    _expect(answer, "all_done runs after what was skipped, too", [(2, 0)], [(1, 0, 0, 0)])
    strict = Edge(0, condition=Condition.all_success())
    subject = factory([Node(3, (), 3), Node(1, (strict,)), Node(1, (0,))])
    subject.start()
    answer = subject.finished(0, [range(1, 2)], False)
    _expect(answer, "all_success is not what its parent tolerates", skipped=[(1, 0, 0, 1)])
    _expect(subject.finished(0, [range(1), range(2, 3)], True), "the other edge is", [(2, 0)])
    some = Edge(0, condition=Condition.within(1))
    subject = factory([Node(3), Node(1, (some,))])
    subject.start()
    _expect(subject.finished(0, [range(1)], False), "within its number")
    _expect(subject.finished(0, [range(1, 3)], True), "it passes", [(1, 0)])
    some = Edge(0, one_to_one=True, condition=Condition.within(1))
    subject = factory([Node(4), Node(4, (some,))])
    subject.start()
    _expect(subject.finished(0, [range(1)], False), "a failure", skipped=[(1, 0, 0, 0)])
    answer = subject.finished(0, [range(1, 2)], False)
    rest = [(1, 1, 0, 1), (1, 2, 0, 1), (1, 3, 0, 1)]
    _expect(answer, "one too many stops the rest", skipped=rest)
    own = Edge(0, one_to_one=True, condition=always)
    subject = factory([Node(2), Node(2, (own,))])
    subject.start()
    _expect(subject.finished(0, [range(2)], False), "whatever it came to", [(1, 0), (1, 1)])
