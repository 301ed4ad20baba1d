"""Which ranks may run, given which have ended: stages joined by barriers.

A stage may run when every rank of every stage before it has ended, and none of those stages had
more than `max_failed` failures. One failure more, and everything downstream is skipped at once,
with the failed rank as the root cause.

Theory of operation. There is no object per rank. A stage keeps two counters (ended, failed), the
number of parents that have not settled, and one byte per rank saying whether it has ended, made
when the first of its ranks ends; so a rank that is told twice counts once. A stage *settles* once:

- when all of its ranks have ended within the tolerance: `_release_below` counts it off its
  children; a child that waits for no other parent is ready, in ranges that leave out what has ended
  already (an earlier run has finished it);
- or when its failures exceed the tolerance: `_skip_below` walks down, each stage once.

Both walks pass each edge at most once in the life of a Dag: O(1) amortised per call, plus a scan,
at the speed of C, of the bytes of the ranks that are told.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import attrs

from thornback.graph.order import GraphError, children_of, depths, resolve, topological_order

ENDED = b"\x01"


def _whole(instance: object, attribute: attrs.Attribute[int], value: object) -> None:
    least = 1 if attribute.name == "world_size" else 0
    if type(value) is not int or value < least:
        why = "a stage needs a rank to run" if least else "it counts ranks"
        raise GraphError(f"{attribute.name} must be an int >= {least}, not {value!r}: {why}.")


@attrs.frozen(slots=True)
class Node:
    """One stage. Raises `GraphError` for a world size below 1 or a negative tolerance."""

    world_size: int = attrs.field(validator=_whole)
    """Its ranks are 0..world_size-1."""
    parents: tuple[int, ...] = attrs.field(default=())
    """Positions of the stages that must end before it; `Dag` checks them."""
    max_failed: int = attrs.field(default=0, validator=_whole)
    """So many of *this* stage's ranks may fail without stopping what comes after it."""


@attrs.frozen(kw_only=True, slots=True)
class Consequences:
    """What follows from one call: ranks that may run now, ranks that never will."""

    ready: tuple[tuple[int, range], ...] = ()
    """(stage, ranks); ascending ranges of one stage stand together."""
    skipped: tuple[tuple[int, range, tuple[int, int]], ...] = ()
    """(stage, ranks, (stage, rank) of the failure at the root)."""


@attrs.define(slots=True, eq=False)
class _Progress:
    """What is known of one stage."""

    waiting: int
    """Parents that have not settled."""
    ended: int = 0
    failed: int = 0
    settled: bool = False
    root: tuple[int, int] | None = None
    """The failure for which it is skipped, or its own that was one too many."""
    marks: bytearray | None = None
    """One byte per rank; None: none has ended."""


class Dag:
    """The stages of a job and how far they are: the `Dependencies` that a scheduler asks for.

    Every rank is handed out as ready or skipped, once, by the call after which that is certain;
    except those that have ended before. Not for several threads at once.
    """

    def __init__(self, nodes: Sequence[Node]) -> None:
        """Take the stages in the order of the job; a parent is a position in `nodes`.

        Raises:
            GraphError: a parent is not a position.
            CycleError: the stages wait for each other; they are named by their numbers.
        """
        self._nodes = tuple(nodes)
        parents = [node.parents for node in self._nodes]
        self._children = children_of(parents)
        self._order = topological_order(parents)
        self._depths = depths(parents)
        self._stages = [_Progress(waiting=len(dict.fromkeys(mine))) for mine in parents]
        self._started = False

    @classmethod
    def from_names(
        cls,
        stages: Sequence[tuple[str, Sequence[str]]],
        world_sizes: Sequence[int],
        max_failed: Sequence[int] = (),
        job: str = "",
    ) -> Dag:
        """Return a graph of named stages; from here on they go by their positions.

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
        return Consequences(
            ready=tuple(
                (stage, range(self._nodes[stage].world_size))
                for stage, progress in enumerate(self._stages)
                if progress.waiting == 0
            )
        )

    def finished(self, stage: int, ranks: Sequence[range], ok: bool) -> Consequences:
        """Tell that these ranks have ended, done (`ok`) or failed for good; return what follows.

        A rank that is told again is ignored: what was told first holds. A rank may end before its
        stage is ready (an earlier run has finished it): it is neither handed out nor skipped.
        O(1) amortised, and a scan of the ranks' bytes.

        Args:
            stage: its position.
            ranks: ranges of step 1, in any order; empty and overlapping ones do no harm.
            ok: done; False: failed for good.

        Raises:
            GraphError: before `start`; no such stage or rank; a range with another step than 1; a
                rank that was skipped. Nothing is changed then.
        """
        self._check(stage, ranks)
        progress, node = self._stages[stage], self._nodes[stage]
        if progress.marks is None:
            progress.marks = bytearray(node.world_size)
        for piece in ranks:
            self._count(stage, piece, ok)
        if progress.settled:
            return Consequences()
        if progress.failed > node.max_failed and progress.root is not None:
            progress.settled = True
            return Consequences(skipped=tuple(self._skip_below(stage, progress.root)))
        if progress.ended == node.world_size:
            progress.settled = True
            return Consequences(ready=tuple(self._release_below(stage)))
        return Consequences()

    def check_invariants(self) -> None:
        """Raise AssertionError where the counters contradict each other. O(ranks): for tests."""
        for stage, progress in enumerate(self._stages):
            node, marks = self._nodes[stage], progress.marks or b""
            assert marks.count(ENDED) == progress.ended <= node.world_size, stage
            assert 0 <= progress.failed <= progress.ended, stage
            open_parents = [p for p in dict.fromkeys(node.parents) if not self._passed(p)]
            assert progress.waiting == len(open_parents), stage
            if not progress.settled:
                assert progress.failed <= node.max_failed, stage
                assert progress.ended < node.world_size, stage

    def _passed(self, stage: int) -> bool:
        progress, node = self._stages[stage], self._nodes[stage]
        return progress.ended == node.world_size and progress.failed <= node.max_failed

    def _check(self, stage: int, ranks: Sequence[range]) -> None:
        if not self._started:
            raise GraphError("finished() before start(): call start() once, first.")
        if not 0 <= stage < len(self._nodes):
            raise GraphError(f"There is no stage {stage}; stages are 0..{len(self._nodes) - 1}.")
        size, progress = self._nodes[stage].world_size, self._stages[stage]
        for piece in ranks:
            if piece.step != 1:
                raise GraphError(f"Ranks come as ranges of step 1, not {piece!r}.")
            if piece and (piece.start < 0 or piece.stop > size):
                raise GraphError(f"{piece!r} reaches beyond the ranks 0..{size - 1} of {stage}.")
            if self._is_skipped(stage) and _count(progress.marks, b"\x00", piece):
                raise GraphError(
                    f"Ranks of {piece!r} of stage {stage} were skipped because of {progress.root}: "
                    "they cannot end any more."
                )

    def _is_skipped(self, stage: int) -> bool:
        root = self._stages[stage].root
        return root is not None and root[0] != stage

    def _count(self, stage: int, piece: range, ok: bool) -> None:
        progress = self._stages[stage]
        marks = progress.marks
        new = _count(marks, b"\x00", piece)
        if not new or marks is None:
            return
        progress.ended += new
        if not ok:
            spare = self._nodes[stage].max_failed - progress.failed
            progress.failed += new
            if progress.root is None and new > spare:
                progress.root = (stage, _nth_open(marks, piece, spare))
        marks[piece.start : piece.stop] = ENDED * len(piece)

    def _release_below(self, stage: int) -> list[tuple[int, range]]:
        ready: list[tuple[int, range]] = []
        for child in self._children[stage]:
            progress = self._stages[child]
            progress.waiting -= 1
            if progress.waiting == 0 and not self._is_skipped(child):
                ready += [(child, piece) for piece in self._open_ranges(child)]
        return ready

    def _skip_below(
        self, stage: int, root: tuple[int, int]
    ) -> list[tuple[int, range, tuple[int, int]]]:
        skipped: list[tuple[int, range, tuple[int, int]]] = []
        below = deque(self._children[stage])
        while below:
            child = below.popleft()
            progress = self._stages[child]
            # Walked before; or all of its ranks have ended, so that it holds up nobody below.
            if self._is_skipped(child) or progress.ended == self._nodes[child].world_size:
                continue
            skipped += [(child, piece, root) for piece in self._open_ranges(child)]
            progress.root = root
            # If it had settled, by failures of its own, all below it were walked then.
            if not progress.settled:
                progress.settled = True
                below.extend(self._children[child])
        return skipped

    def _open_ranges(self, stage: int) -> list[range]:
        """Return the ranks that have not ended, as ascending ranges."""
        marks, size = self._stages[stage].marks, self._nodes[stage].world_size
        if marks is None:
            return [range(size)]
        pieces: list[range] = []
        start = marks.find(b"\x00")
        while start >= 0:
            stop = marks.find(ENDED, start)
            stop = size if stop < 0 else stop
            pieces.append(range(start, stop))
            start = marks.find(b"\x00", stop)
        return pieces


def _count(marks: bytearray | None, mark: bytes, piece: range) -> int:
    return len(piece) if marks is None else marks.count(mark, piece.start, piece.stop)


def _nth_open(marks: bytearray, piece: range, n: int) -> int:
    """Return the n-th rank (from 0) of the piece that has not ended. There is one."""
    at = marks.find(b"\x00", piece.start)
    for _ in range(n):
        at = marks.find(b"\x00", at + 1)
    return at
