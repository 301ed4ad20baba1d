"""Which ranks may run, given which have ended: stages joined by barriers and one-to-one edges.

A rank may run when all edges of its stage let it pass; a rank that one of them can never let pass
is skipped at once, with the failed rank that is the cause. A skipped rank counts as a failed one
for what comes after it.

Theory of operation. There is no object per rank, and none per edge between ranks. A stage keeps two
counters (ended; missing: failed or skipped), the number of barriers it waits for, and one byte per
rank, made when the first of its ranks is touched:

    how many one-to-one parents it waits for (0..250) -> HANDED (ready) -> DONE, FAILED
                                                      -> SKIPPED

An edge is a `_Link` that stands with its parent. When ranks end, `_spread` goes over the links of
their stage: a one-to-one link counts the same ranks of the child down, or skips them; a barrier
lets the whole child pass with the last rank of the parent; either is *broken* by one missing rank
too many, and then skips all of the child that was not handed out. What is skipped has ended in its
turn, so that this goes on below, breadth first and without recursion.

Each link breaks or lets pass once, each byte changes at most once per parent: O(1) amortised per
call and edge, plus scans of the bytes concerned, at the speed of C.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Sequence

import attrs

from thornback.graph.edges import Edge, Node
from thornback.graph.order import GraphError, depths, resolve, topological_order

SAME_RANK = -1
"""Rank of a root: each of these ranks is skipped because of the one of its own number."""
HANDED, DONE, FAILED, SKIPPED = 0xFC, 0xFD, 0xFE, 0xFF
MAX_ONE_TO_ONE = 250
ANY_NUMBER = 1 << 62
COUNT_DOWN = bytes((0, *range(HANDED - 1), *range(HANDED, 0x100)))
"""Translates a byte to the one after a one-to-one parent has let the rank pass."""
WAITS_FOR_NOTHING = re.compile(rb"\x00+")
NOT_HANDED = re.compile(rb"[\x00-\xfb]+")
NOT_ENDED = re.compile(rb"[\x00-\xfc]+")
Root = tuple[int, int]


@attrs.frozen(kw_only=True, slots=True)
class Consequences:
    """What follows from one call: ranks that may run now, ranks that never will."""

    ready: tuple[tuple[int, range], ...] = ()
    """(stage, ranks); ascending ranges of one stage stand together."""
    skipped: tuple[tuple[int, range, tuple[int, int]], ...] = ()
    """(stage, ranks, (stage, rank) of the failure at the root); the rank is -1 for several ranks
    that are skipped each because of the one of its own number."""


NOTHING = Consequences()


@attrs.define(slots=True, eq=False)
class _Link:
    """An edge, as its parent sees it."""

    child: int
    one_to_one: bool
    passes_missing: bool
    """A one-to-one link that lets a rank pass however the parent's has ended."""
    tolerated: int
    """One missing rank of the parent more breaks it."""
    is_open: bool = True
    """Not broken; and of a barrier, not passed either."""


@attrs.define(slots=True, eq=False)
class _Progress:
    """What is known of one stage."""

    size: int
    barriers: int = 0
    """Barriers that have not let it pass."""
    one_to_one: int = 0
    """Links from rank to rank that lead to it."""
    ended: int = 0
    """Ranks that are done, failed or skipped."""
    missing: int = 0
    """Ranks that failed or were skipped."""
    is_quiet: bool = True
    """No one-to-one link leads on from it: only its last rank lets something pass."""
    marks: bytearray | None = None
    """One byte per rank; None: nothing has happened to any."""

    def made(self) -> bytearray:
        """Return its marks, which are made when first asked for."""
        if self.marks is None:
            self.marks = bytearray((self.one_to_one,)) * self.size
        return self.marks

    def ends(self, piece: range) -> bool:
        """Mark ranks as done of which nothing follows: all are handed out, no link leads on from
        them, and they are not the last. False, and nothing is marked: it is not so simple."""
        start, stop, count, marks = piece.start, piece.stop, len(piece), self.marks
        if marks is None or not self.is_quiet or self.ended + count >= self.size:
            return False
        if start < 0 or stop > self.size or piece.step != 1:
            return False
        if count == 1:
            if marks[start] != HANDED:
                return False
            marks[start] = DONE
        elif marks.count(HANDED, start, stop) == count:
            marks[start:stop] = bytes((DONE,)) * count
        else:
            return False
        self.ended += count
        return True

    def strike(self, which: re.Pattern[bytes], piece: range, mark: int) -> list[range]:
        """Mark the ranks of the piece that are so; return them."""
        marks = self.made()
        if len(piece) == marks.count(HANDED, piece.start, piece.stop) and which is NOT_ENDED:
            marks[piece.start : piece.stop] = bytes((mark,)) * len(piece)  # the ordinary case
            return [piece] if piece else []
        spans = [match.span() for match in which.finditer(marks, piece.start, piece.stop)]
        for start, stop in spans:
            marks[start:stop] = bytes((mark,)) * (stop - start)
        return [range(start, stop) for start, stop in spans]


@attrs.define(slots=True, eq=False)
class _Wave:
    """What one call leads to, while it is found out."""

    ready: list[tuple[int, range]] = attrs.field(factory=list)
    skipped: list[tuple[int, range, Root]] = attrs.field(factory=list)
    todo: deque[tuple[int, list[range], Root | None]] = attrs.field(factory=deque)
    """Ranks that have ended: (stage, ranks, None if they are done, else the root)."""


class Dag:
    """The stages of a job and how far they are: the `Dependencies` that a scheduler asks for.

    Every rank is handed out as ready or skipped, once, by the call after which that is certain;
    except those that have ended before. Not for several threads at once.
    """

    def __init__(self, nodes: Sequence[Node]) -> None:
        """Take the stages in the order of the job; a parent is a position in `nodes`.

        Raises:
            GraphError: a parent is not a position; or a one-to-one edge joins stages of unequal
                size.
            CycleError: the stages wait for each other; they are named by their numbers.
        """
        self._nodes = tuple(nodes)
        edges = [node.edges for node in self._nodes]
        parents = [[edge.parent for edge in mine] for mine in edges]
        self._order = topological_order(parents)
        self._depths = depths(parents)
        self._stages = [_Progress(size=node.world_size) for node in self._nodes]
        self._below: list[list[_Link]] = [[] for _ in self._nodes]
        for child, mine in enumerate(edges):
            for edge in mine:
                self._add(child, edge)
        self._started = False

    @classmethod
    def from_names(
        cls,
        stages: Sequence[tuple[str, Sequence[str]]],
        world_sizes: Sequence[int],
        max_failed: Sequence[int] = (),
        job: str = "",
    ) -> Dag:
        """Return a graph of named stages joined by barriers; from here on they go by their
        positions.

        Args:
            stages: (name, names of the stages it comes after), in the order of the job.
            world_sizes: by stage: how many ranks it has.
            max_failed: by stage: how many of its ranks may fail; empty: none.
            job: name of the job, for messages.

        Raises:
            GraphError: as `resolve` and `Node` do; or the arguments differ in length.
        """
        parents = resolve(stages, job)
        if len(world_sizes) != len(parents) or (max_failed and len(max_failed) != len(parents)):
            raise GraphError(
                f"{len(parents)} stages need {len(parents)} world sizes and as many max_failed "
                f"(or none), not {len(world_sizes)} and {len(max_failed)}."
            )
        tolerances = max_failed or (0,) * len(parents)
        return cls([Node(*row) for row in zip(world_sizes, parents, tolerances, strict=True)])

    def order(self) -> tuple[int, ...]:
        """Return every stage once, parents first."""
        return self._order

    def depths(self) -> tuple[int, ...]:
        """Return by stage the edges on the longest path down to a leaf: deeper should run first."""
        return self._depths

    def start(self) -> Consequences:
        """Return what may run before anything has ended: all ranks of the stages without parents.

        Raises:
            GraphError: called before.
        """
        if self._started:
            raise GraphError("start() was called twice: it hands out each first rank once.")
        self._started = True
        wave = _Wave()
        for stage, progress in enumerate(self._stages):
            if not progress.barriers and not progress.one_to_one:
                self._release(wave, stage, [range(progress.size)])
        return Consequences(ready=tuple(wave.ready))

    def finished(self, stage: int, ranks: Sequence[range], ok: bool) -> Consequences:
        """Tell that these ranks have ended, done (`ok`) or failed for good; return what follows.

        A rank that is told again is ignored: what was told first holds. A rank may end before its
        stage is ready (an earlier run has finished it): it is neither handed out nor skipped.
        O(1) amortised per edge below, and a scan of the ranks' bytes.

        Args:
            stage: its position.
            ranks: ranges of step 1, in any order; empty and overlapping ones do no harm.
            ok: done; False: failed for good.

        Raises:
            GraphError: before `start`; no such stage or rank; a range with another step than 1; a
                rank that was skipped. Nothing is changed then.
        """
        is_plain = ok and len(ranks) == 1 and 0 <= stage < len(self._stages)
        if is_plain and self._stages[stage].ends(ranks[0]):  # the ordinary case
            return NOTHING
        self._check(stage, ranks)
        progress, mark = self._stages[stage], DONE if ok else FAILED
        new = [run for piece in ranks for run in progress.strike(NOT_ENDED, piece, mark)]
        if not new:
            return NOTHING
        wave = _Wave()
        wave.todo.append((stage, new, None if ok else (stage, SAME_RANK)))
        while wave.todo:
            self._spread(wave, *wave.todo.popleft())
        return Consequences(ready=tuple(wave.ready), skipped=tuple(wave.skipped))

    def check_invariants(self) -> None:
        """Raise AssertionError where the books contradict each other. O(ranks x edges): for
        tests."""
        for stage, progress in enumerate(self._stages):
            marks = progress.marks or b""
            missing = marks.count(FAILED) + marks.count(SKIPPED)
            assert progress.missing == missing, stage
            assert progress.ended == missing + marks.count(DONE), stage
            up = [(p, link) for p, mine in enumerate(self._below) for link in mine]
            mine = [(p, link) for p, link in up if link.child == stage]
            waits = [
                link for p, link in mine if not link.one_to_one and not self._lets_pass(p, link)
            ]
            assert progress.barriers == len(waits), stage
            for parent, link in mine:
                broken = self._stages[parent].missing > link.tolerated
                assert link.is_open != (broken or self._lets_pass(parent, link)), (parent, stage)
            for rank in range(progress.size):
                count = sum(self._is_waiting(p, link, rank) for p, link in mine)
                mark = marks[rank] if marks else progress.one_to_one
                assert mark >= HANDED or mark == count, (stage, rank)
                assert mark or progress.barriers or not self._started, (stage, rank)

    # -- the pieces --------------------------------------------------------------------------------

    def _add(self, child: int, edge: Edge) -> None:
        progress, parent, size = self._stages[child], edge.parent, self._stages[edge.parent].size
        condition = edge.condition
        if condition is not None:
            most = ANY_NUMBER if condition.max_failed is None else condition.max_failed
        else:
            most = ANY_NUMBER if edge.one_to_one else self._nodes[parent].max_failed
        if not edge.one_to_one:
            progress.barriers += 1
            self._below[parent].append(_Link(child, False, False, most))
            return
        if size != progress.size:
            raise GraphError(
                f"Stage {child} has {progress.size} ranks and comes one to one after stage "
                f"{parent}, which has {size}: give both as many ranks, or join them by a barrier."
            )
        self._stages[parent].is_quiet = False
        progress.one_to_one += 1
        if progress.one_to_one > MAX_ONE_TO_ONE:
            raise GraphError(f"Stage {child} has more than {MAX_ONE_TO_ONE} one-to-one parents.")
        if condition is not None and condition.max_failed == 0:
            most = ANY_NUMBER  # all_success: of the own rank
        passes_missing = condition is not None and condition.max_failed is None
        self._below[parent].append(_Link(child, True, passes_missing, most))

    def _check(self, stage: int, ranks: Sequence[range]) -> None:
        if not self._started:
            raise GraphError("finished() before start(): call start() once, first.")
        if not 0 <= stage < len(self._nodes):
            raise GraphError(f"There is no stage {stage}; stages are 0..{len(self._nodes) - 1}.")
        size, marks = self._stages[stage].size, self._stages[stage].marks
        for piece in ranks:
            if piece.step != 1:
                raise GraphError(f"Ranks come as ranges of step 1, not {piece!r}.")
            if piece and (piece.start < 0 or piece.stop > size):
                raise GraphError(f"{piece!r} reaches beyond the ranks 0..{size - 1} of {stage}.")
            if marks is not None and marks.count(SKIPPED, piece.start, piece.stop):
                raise GraphError(
                    f"Ranks of {piece!r} of stage {stage} were skipped: they cannot end any more."
                )

    def _spread(self, wave: _Wave, stage: int, ranks: list[range], root: Root | None) -> None:
        """Let what comes after these ranks know that they have ended."""
        progress, before = self._stages[stage], self._stages[stage].missing
        count = sum(map(len, ranks))
        progress.ended += count
        progress.missing += count if root is not None else 0
        for link in self._below[stage]:
            if link.one_to_one:
                if root is None or link.passes_missing:
                    self._count_down(wave, link.child, ranks)
                else:
                    self._skip(wave, link.child, ranks, root)
            if not link.is_open:
                continue
            if root is not None and progress.missing > link.tolerated:
                link.is_open = False
                one_too_many = _nth(ranks, link.tolerated - before)
                culprit = (root[0], one_too_many) if root[1] == SAME_RANK else root
                self._skip(wave, link.child, [range(self._stages[link.child].size)], culprit)
            elif not link.one_to_one and progress.ended == progress.size:
                link.is_open = False
                child = self._stages[link.child]
                child.barriers -= 1
                if not child.barriers:
                    self._release(wave, link.child, [range(child.size)])

    def _count_down(self, wave: _Wave, child: int, ranks: list[range]) -> None:
        progress = self._stages[child]
        marks = progress.made()
        for piece in ranks:
            part = slice(piece.start, piece.stop)
            marks[part] = marks[part].translate(COUNT_DOWN)
        if not progress.barriers:
            self._release(wave, child, ranks)

    def _release(self, wave: _Wave, stage: int, ranks: list[range]) -> None:
        """Hand out those of the ranks that wait for nothing more."""
        for piece in ranks:
            runs = self._stages[stage].strike(WAITS_FOR_NOTHING, piece, HANDED)
            wave.ready += [(stage, run) for run in runs]

    def _skip(self, wave: _Wave, stage: int, ranks: Iterable[range], root: Root) -> None:
        """Skip those of the ranks that were not handed out and have not ended."""
        progress = self._stages[stage]
        runs = [run for each in ranks for run in progress.strike(NOT_HANDED, each, SKIPPED)]
        if not runs:
            return
        for run in runs:
            exact = root[1] == SAME_RANK and len(run) == 1
            wave.skipped.append((stage, run, (root[0], run.start) if exact else root))
        wave.todo.append((stage, runs, root))

    def _lets_pass(self, parent: int, link: _Link) -> bool:
        """Whether a barrier has let its child pass: for checks."""
        above = self._stages[parent]
        is_whole = above.ended == above.size and above.missing <= link.tolerated
        return is_whole and not link.one_to_one

    def _is_waiting(self, parent: int, link: _Link, rank: int) -> bool:
        """Whether this link holds the rank back by itself: for checks."""
        if not link.one_to_one:
            return False
        marks = self._stages[parent].marks
        mark = marks[rank] if marks else 0
        return mark != DONE and not (link.passes_missing and mark > DONE)


def _nth(ranks: Iterable[range], n: int) -> int:
    """Return the n-th rank, from 0. There is one."""
    for piece in ranks:
        if n < len(piece):
            return piece.start + n
        n -= len(piece)
    raise AssertionError(n)
