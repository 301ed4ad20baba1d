"""Folds records, oldest first, into what is known of each stage. Pure.

A void record removes whatever the records before it say of its ranks. Else DONE is final: what
comes later for such a rank is ignored, also another result. Otherwise the later record counts: a
rank that failed in one run may be skipped, fail again or be done in the next.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby, starmap
from typing import Literal, TypeAlias

import attrs

from thornback.executor.journal.targets import Targets
from thornback.executor.ports import Completion, Json, Ranks

Ended: TypeAlias = Literal["failed", "skipped"]


@attrs.frozen(kw_only=True, slots=True)
class Certificate:
    """Why ranks failed or were skipped."""

    ranks: Ranks
    state: Ended
    why: Mapping[str, Json]
    """`reason`; `stop`: the same as a word, or null (what earlier releases recorded is without it);
    `last`: `AttemptReport.as_json` of the last failed attempt, or null."""


@attrs.frozen(kw_only=True, slots=True)
class StageRecords:
    """What is recorded of one stage. `done`, `failed` and `skipped` are disjoint."""

    done: Ranks = ()
    failed: Ranks = ()
    skipped: Ranks = ()
    results: Mapping[int, str] = attrs.field(factory=dict)
    """JSON text by rank; only of stages whose results were asked for."""
    certificates: tuple[Certificate, ...] = ()
    targets: Targets = attrs.field(factory=Targets)
    """What its ranks have published."""

    def without(self, ranks: Ranks) -> StageRecords:
        """Return the records as if these ranks had never been done."""
        if not ranks:
            return self
        return attrs.evolve(
            self,
            done=subtract(self.done, ranks),
            results={r: t for r, t in self.results.items() if not contains(ranks, r)},
            targets=self.targets.of(lambda rank: not contains(ranks, rank)),
        )


@attrs.define(slots=True)
class _Era:
    """The records of a stage from one void record to the next."""

    void: list[range] = attrs.field(factory=list)
    """Ranks of which nothing counts that earlier eras say."""
    done: list[range] = attrs.field(factory=list)
    ended: list[tuple[Ended, Ranks]] = attrs.field(factory=list)
    certificates: dict[tuple[Ended, Ranks], Mapping[str, Json]] = attrs.field(factory=dict)
    results: dict[int, str] = attrs.field(factory=dict)
    targets: Targets = attrs.field(factory=Targets)


class Ledger:
    """Takes records in order; `freeze` returns what follows from them. Cost: O(n log n) in the
    number of ranges, times the logarithm of the number of void records.
    """

    def __init__(self, keep_results: Callable[[str], bool] = lambda stage: True) -> None:
        self._keep_results = keep_results
        self._stages: dict[str, list[_Era]] = {}

    def add(self, record: Completion) -> None:
        """Take the next record."""
        eras = self._stages.setdefault(record.stage, [_Era()])
        if record.state == "void":
            last = eras[-1]
            if last.done or last.ended or last.results or len(last.targets):
                eras.append(_Era())
            eras[-1].void += record.ranks
            return
        era = eras[-1]
        if record.state == "done":
            era.done += record.ranks
            era.targets.add(record.targets)
            if record.results and self._keep_results(record.stage):
                for rank, text in record.results.items():
                    era.results.setdefault(rank, text)
            return
        era.ended.append((record.state, record.ranks))
        if record.certificate is not None:
            era.certificates.pop((record.state, record.ranks), None)  # the later one goes last
            era.certificates[record.state, record.ranks] = record.certificate

    def freeze(self) -> dict[str, StageRecords]:
        """Return what is known by name of stage; stages without any record are left out."""
        frozen = {name: _freeze(eras) for name, eras in self._stages.items()}
        return {n: r for n, r in frozen.items() if r.done or r.failed or r.skipped}


def clip(records: StageRecords, world_size: int) -> StageRecords:
    """Return the records of ranks below `world_size`."""
    top = (range(world_size),) if world_size > 0 else ()
    pieces = [(intersect(c.ranks, top), c) for c in records.certificates]
    return StageRecords(
        done=intersect(records.done, top),
        failed=intersect(records.failed, top),
        skipped=intersect(records.skipped, top),
        results={rank: text for rank, text in records.results.items() if rank < world_size},
        certificates=tuple(attrs.evolve(c, ranks=ranks) for ranks, c in pieces if ranks),
        targets=records.targets.below(world_size),
    )


def normalise(pieces: Iterable[range]) -> Ranks:
    """Return the union of `pieces` (step 1) as disjoint, ascending, non-empty ranges."""
    merged: list[range] = []
    for piece in sorted(pieces, key=lambda r: r.start):
        if not piece:
            continue
        if merged and piece.start <= merged[-1].stop:
            if piece.stop > merged[-1].stop:
                merged[-1] = range(merged[-1].start, piece.stop)
        else:
            merged.append(range(piece.start, piece.stop))
    return tuple(merged)


def subtract(ranks: Ranks, gone: Ranks) -> Ranks:
    """Return `ranks` without `gone`; both normalised."""
    left: list[range] = []
    for piece in ranks:
        start = piece.start
        for hole in _touching(gone, piece):
            if hole.start > start:
                left.append(range(start, hole.start))
            start = max(start, hole.stop)
        if start < piece.stop:
            left.append(range(start, piece.stop))
    return tuple(left)


def intersect(ranks: Ranks, other: Ranks) -> Ranks:
    """Return the ranks in both; both normalised."""
    return tuple(
        range(max(piece.start, there.start), min(piece.stop, there.stop))
        for piece in ranks
        for there in _touching(other, piece)
    )


def _touching(ranks: Ranks, piece: range) -> Iterable[range]:
    """Yield the pieces of `ranks` that overlap `piece`, in order."""
    index = max(0, bisect_right(ranks, piece.start, key=lambda r: r.start) - 1)
    while index < len(ranks) and ranks[index].start < piece.stop:
        if ranks[index].stop > piece.start:
            yield ranks[index]
        index += 1


def contains(ranks: Ranks, rank: int) -> bool:
    """Return whether a rank is among `ranks`, which are normalised."""
    index = bisect_right(ranks, rank, key=lambda r: r.start) - 1
    return index >= 0 and rank < ranks[index].stop


@attrs.frozen(kw_only=True, slots=True)
class _Folded:
    """One era, or several in a row, with all ranges normalised."""

    void: Ranks
    done: Ranks
    failed: Ranks
    skipped: Ranks
    """`failed` and `skipped` are disjoint. Ranks that are done may be among them."""
    certificates: Mapping[tuple[Ended, Ranks], Mapping[str, Json]]
    results: Mapping[int, str]
    targets: Targets


def _fold(era: _Era) -> _Folded:
    failed: Ranks = ()
    skipped: Ranks = ()
    for state, group in groupby(era.ended, key=lambda pair: pair[0]):
        ranks = normalise(piece for _, pieces in group for piece in pieces)
        if state == "failed":
            failed, skipped = normalise((*failed, *ranks)), subtract(skipped, ranks)
        else:
            failed, skipped = subtract(failed, ranks), normalise((*skipped, *ranks))
    return _Folded(
        void=normalise(era.void),
        done=normalise(era.done),
        failed=failed,
        skipped=skipped,
        certificates=era.certificates,
        results=era.results,
        targets=era.targets,
    )


def _join(old: _Folded, new: _Folded) -> _Folded:
    """Return both as one. Associative, so that many can be joined in pairs."""
    void = new.void
    failed, skipped = subtract(old.failed, void), subtract(old.skipped, void)
    cut = {(state, subtract(r, void)): why for (state, r), why in old.certificates.items()}
    for key in new.certificates:
        cut.pop(key, None)
    kept = {rank: text for rank, text in old.results.items() if not contains(void, rank)}
    targets = old.targets.of(lambda rank: not contains(void, rank))
    return _Folded(
        void=normalise((*old.void, *void)),
        done=normalise((*subtract(old.done, void), *new.done)),
        failed=normalise((*subtract(failed, new.skipped), *new.failed)),
        skipped=normalise((*subtract(skipped, new.failed), *new.skipped)),
        certificates={**cut, **new.certificates},
        results={**new.results, **kept},
        targets=targets.joined(new.targets),
    )


def _freeze(eras: Sequence[_Era]) -> StageRecords:
    folded = [_fold(era) for era in eras]
    while len(folded) > 1:
        pairs = zip(folded[::2], folded[1::2], strict=False)
        folded = [*starmap(_join, pairs), *folded[len(folded) & ~1 :]]
    [last] = folded
    failed, skipped = subtract(last.failed, last.done), subtract(last.skipped, last.done)
    return StageRecords(
        done=last.done,
        failed=failed,
        skipped=skipped,
        results={rank: last.results[rank] for rank in sorted(last.results)},
        certificates=tuple(_valid(last, failed, skipped)),
        targets=last.targets,
    )


def _valid(folded: _Folded, failed: Ranks, skipped: Ranks) -> Iterable[Certificate]:
    """Yield the certificates that still say something, cut to the ranks they are about."""
    for (state, ranks), why in folded.certificates.items():
        about = intersect(ranks, failed if state == "failed" else skipped)
        if about:
            yield Certificate(ranks=about, state=state, why=why)
