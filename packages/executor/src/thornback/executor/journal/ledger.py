"""Folds records, oldest first, into what is known of each stage. Pure.

DONE is final: what comes later for such a rank is ignored, also another result. Otherwise the later
record counts: a rank that failed in one run may be skipped, fail again or be done in the next.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from itertools import groupby
from typing import Literal, TypeAlias

import attrs

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


@attrs.define(slots=True)
class _Stage:
    done: list[range] = attrs.field(factory=list)
    ended: list[tuple[Ended, Ranks]] = attrs.field(factory=list)
    certificates: dict[tuple[Ended, Ranks], Mapping[str, Json]] = attrs.field(factory=dict)
    results: dict[int, str] = attrs.field(factory=dict)


class Ledger:
    """Takes records in order; `freeze` tells what they come to. Cost: O(n log n) in the number of
    ranges.
    """

    def __init__(self, keep_results: Callable[[str], bool] = lambda stage: True) -> None:
        self._keep_results = keep_results
        self._stages: dict[str, _Stage] = {}

    def add(self, record: Completion) -> None:
        """Take the next record."""
        stage = self._stages.setdefault(record.stage, _Stage())
        if record.state == "done":
            stage.done += record.ranks
            if record.results and self._keep_results(record.stage):
                for rank, text in record.results.items():
                    stage.results.setdefault(rank, text)
            return
        stage.ended.append((record.state, record.ranks))
        if record.certificate is not None:
            stage.certificates.pop((record.state, record.ranks), None)  # the later one goes last
            stage.certificates[record.state, record.ranks] = record.certificate

    def freeze(self) -> dict[str, StageRecords]:
        """Return what is known by name of stage; stages without any record are left out."""
        frozen = {name: _freeze(stage) for name, stage in self._stages.items()}
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


def _freeze(stage: _Stage) -> StageRecords:
    done = normalise(stage.done)
    failed: Ranks = ()
    skipped: Ranks = ()
    for state, group in groupby(stage.ended, key=lambda pair: pair[0]):
        ranks = normalise(piece for _, pieces in group for piece in pieces)
        if state == "failed":
            failed, skipped = normalise((*failed, *ranks)), subtract(skipped, ranks)
        else:
            failed, skipped = subtract(failed, ranks), normalise((*skipped, *ranks))
    failed, skipped = subtract(failed, done), subtract(skipped, done)
    return StageRecords(
        done=done,
        failed=failed,
        skipped=skipped,
        results={rank: stage.results[rank] for rank in sorted(stage.results)},
        certificates=tuple(_valid(stage, failed, skipped)),
    )


def _valid(stage: _Stage, failed: Ranks, skipped: Ranks) -> Iterable[Certificate]:
    """Yield the certificates that still say something, cut to the ranks they are about."""
    for (state, ranks), why in stage.certificates.items():
        about = intersect(ranks, failed if state == "failed" else skipped)
        if about:
            yield Certificate(ranks=about, state=state, why=why)
