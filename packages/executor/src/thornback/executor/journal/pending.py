"""Settles, when a state is opened, outputs that an earlier driver has recorded and perhaps not
promoted.

Only the record speaks for them, and whoever can write the state can write a record. So they go to
places that this run names, and nowhere else. What cannot be promoted is never a reason to refuse
the state: the ranks are voided and run again. An output that is gone, and whose dependents are all
done, was consumed.
"""

from __future__ import annotations

import os
import posixpath
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial

import attrs

from thornback.executor.apart import in_order
from thornback.executor.folders import sync_folder
from thornback.executor.journal.errors import JournalError
from thornback.executor.journal.ledger import StageRecords, intersect, normalise, subtract
from thornback.executor.journal.promote import AT_ONCE, Missing, Mover
from thornback.executor.journal.steps import AsyncSteps, RetryParams, call
from thornback.executor.paths import (
    CONTROL,
    STAGING,
    is_below,
    is_url,
    located,
    normalised,
    staged_parts,
)
from thornback.executor.ports import Completion, Identity, Places, Ranks

MAX_TERMS = 100
"""Drivers before this one whose unfinished copies are looked for."""
_SHOWN = 5


@attrs.frozen(slots=True)
class _Pending:
    """One recorded output that may still be staged."""

    stage: str
    ranks: Ranks
    """The rank, if its staged path says which; else all of its record."""
    staged: str
    final: str
    term: int
    """Of the driver that has recorded it."""


@attrs.define(slots=True)
class Settled:
    """What became of pending outputs."""

    void: dict[str, Ranks] = attrs.field(factory=dict)
    """Ranks that have to run again, by name of stage."""
    consumed: list[str] = attrs.field(factory=list)
    """Final names that are gone, and no longer needed."""
    reasons: list[str] = attrs.field(factory=list)
    """Why ranks have to run again."""

    def warnings(self) -> list[str]:
        """Return what people should know, in one sentence of each kind."""
        told = []
        if self.reasons:
            told.append(
                "outputs that an earlier run has recorded cannot be promoted; their ranks run "
                f"again: {_some(self.reasons)}"
            )
        if self.consumed:
            told.append(
                "outputs of an earlier run are gone; as every rank after them is done, they count "
                f"as consumed: {_some([repr(final) for final in self.consumed])}"
            )
        return told

    def left(self, records: Iterable[Completion]) -> list[Completion]:
        """Return the records without the ranks that have to run again."""
        found = []
        for record in records:
            ranks = subtract(normalise(record.ranks), self.void.get(record.stage, ()))
            if ranks:
                found.append(attrs.evolve(record, ranks=ranks))
        return found


async def settle(
    steps: AsyncSteps,
    mover: Mover,
    places: Places,
    identity: Identity,
    records: Mapping[str, StageRecords],
    unpromoted: Sequence[Completion],
    retry: RetryParams,
) -> Settled:
    """Promote what may be promoted, and say what has to be done again.

    Args:
        steps: runs blocking calls.
        mover: of this driver.
        places: where outputs may go.
        identity: of the job, for the parents of its stages.
        records: what counts, by name of stage.
        unpromoted: records that are not known to be promoted.
        retry: how long a store that fails is asked again.
    """
    with_outputs = [record for record in unpromoted if record.outputs]
    todo = list(_todo(with_outputs, records, places.folder))
    attempt = _Attempt(mover, places, todo)
    if todo:
        try:
            await steps.run(call("promote outputs of an earlier run", attempt), retry)
        except JournalError as error:
            attempt.give_up(str(error))
    settled = Settled(reasons=[reason for _, reason in attempt.failed])
    void: dict[str, list[range]] = {}
    for item, _ in attempt.failed:
        void.setdefault(item.stage, []).extend(item.ranks)
    gone = list(attempt.gone)
    while True:
        settled.void = {name: normalise(ranks) for name, ranks in void.items()}
        needed = [item for item in gone if not _consumed(item.stage, identity, records, settled)]
        if not needed:
            break
        for item in needed:  # it may be what a rank that was taken for done has read
            gone.remove(item)
            void.setdefault(item.stage, []).extend(item.ranks)
            settled.reasons.append(f"{_named(item)}: {item.final!r} is gone, staged and final")
    settled.consumed = [item.final for item in gone]
    return settled


class _Attempt:
    """Promotes pending outputs (blocking); called again, it goes on with what is left."""

    def __init__(self, mover: Mover, places: Places, todo: list[_Pending]) -> None:
        self._mover = mover
        self._allowed = Allowed(places)
        self._todo = todo
        self._given_up = False
        self.failed: list[tuple[_Pending, str]] = []
        """Those that will never be promoted, with the reason."""
        self.gone: list[_Pending] = []
        """Those that are neither staged nor final."""

    def __call__(self) -> None:
        """Raises the error of one of those that are worth another try."""
        local = [item for item in self._todo if not is_url(item.staged) and not is_url(item.final)]
        remote = [item for item in self._todo if is_url(item.staged) or is_url(item.final)]
        results = [(item, self._one(item)) for item in local]
        results += zip(remote, in_order(self._one, remote, AT_ONCE), strict=True)
        if self._given_up:
            return
        for folder in dict.fromkeys(found for _, found in results if isinstance(found, str)):
            sync_folder(folder)
        again: list[tuple[_Pending, Exception]] = []
        for item, found in results:
            if isinstance(found, Missing):
                self.gone.append(item)
            elif isinstance(found, JournalError):
                self.failed.append((item, f"{_named(item)}: {found}"))
            elif isinstance(found, Exception):
                again.append((item, found))
        self._todo = [item for item, _ in again]
        if again:
            raise again[0][1]

    def give_up(self, reason: str) -> None:
        """Count what is left as failed. A thread that hangs in a store may come back later: it must
        not promote what another attempt of the rank has published meanwhile.
        """
        self._given_up = True
        self.failed += [(item, f"{_named(item)}: {reason}") for item in self._todo]

    def _one(self, item: _Pending) -> str | Exception | None:
        """Promote one; return its local folder, if there is one, or why it is not promoted."""
        if self._given_up:
            return None
        try:
            if self._allowed(item.final):
                first = max(item.term, self._mover.term - MAX_TERMS)
                self._mover.clean(item.staged, item.final, range(first, self._mover.term))
                return self._mover.promote(item.staged, item.final)
            if self._mover.is_staged(item.staged):
                return JournalError(
                    f"{item.final!r} is outside of the driver's folder, of the folder of the state "
                    "and of what Job(outputs=[...]) declares"
                )
            # It may have been promoted before: nothing has to be placed then.
            return None if self._mover.is_there(item.final) else Missing(item.final)
        except Exception as error:  # noqa: BLE001  # stores raise whatever their libraries raise
            return error


class Allowed:
    """Decides whether an output that only a record speaks for may go to a place (blocking).

    Links are followed first, so that none leads out of the places. The root folder is none of them:
    it would allow everything.
    """

    def __init__(self, places: Places) -> None:
        state = _one_spelling(places.state)
        self._own = [f"{state}/{name}" for name in (CONTROL, STAGING)]
        roots = [places.state, _parent(places.state), places.folder, *places.declared]
        found = dict.fromkeys(map(_one_spelling, roots))
        self._roots = [root for root in found if root not in (None, "", "/")]
        self._folders: dict[str, str] = {}

    def __call__(self, final: str) -> bool:
        """Return whether it may; `final` is located."""
        if posixpath.basename(final) in ("", ".", ".."):
            return False
        place = _one_spelling(final) if is_url(final) else self._resolved(final)
        if place is None or any(is_below(place, own) for own in self._own):
            return False
        return any(is_below(place, root) for root in self._roots if root is not None)

    def _resolved(self, final: str) -> str:
        folder, name = os.path.split(final)
        if folder not in self._folders:
            self._folders[folder] = os.path.realpath(folder)
        return os.path.join(self._folders[folder], name)


def _one_spelling(place: str) -> str | None:
    """Return one spelling of a folder or URL; None: it has none."""
    if not is_url(place):
        return os.path.realpath(place)
    if {".", ".."} & set(place.split("/")):  # some stores have folders, others take it literally
        return None
    return normalised(place).rstrip("/")


def _parent(state: str) -> str:
    if is_url(state) and "/" not in state.partition("://")[2].strip("/"):
        return state
    return posixpath.dirname(state.rstrip("/")) or "/"


def _todo(
    unpromoted: Sequence[Completion], records: Mapping[str, StageRecords], folder: str
) -> Iterator[_Pending]:
    """Yield the outputs of ranks that count as done, each by the last of its records."""
    last: dict[tuple[str, int], int] = {}
    found: list[tuple[Completion, list[int]]] = []
    for number, record in enumerate(unpromoted):
        done = records[record.stage].done if record.stage in records else ()
        ranks = list(ranks_of(intersect(normalise(record.ranks), done)))
        last |= {(record.stage, rank): number for rank in ranks}
        found.append((record, ranks))
    for number, (record, ranks) in enumerate(found):
        counts = {rank for rank in ranks if last[record.stage, rank] == number}
        if counts:
            yield from _taken_apart(record, counts, folder)


def _taken_apart(record: Completion, counts: Collection[int], folder: str) -> Iterator[_Pending]:
    """Yield outputs; one that no rank of this assignment can have staged counts against all."""
    term = record.epoch.partition(".")[0]
    make = partial(_Pending, term=int(term) if term.isdecimal() and term.isascii() else 0)
    whole = normalise(range(rank, rank + 1) for rank in counts)
    for staged, final in record.outputs:
        parts = staged_parts(staged) if isinstance(staged, str) else None
        try:
            final = located(final, folder)  # some earlier versions recorded what they were given
        except (TypeError, ValueError):
            parts = None
        if parts is None or parts[2] != record.epoch:
            yield make(record.stage, whole, "", str(final))
        elif parts[3] in counts:
            yield make(record.stage, (range(parts[3], parts[3] + 1),), staged, final)
        elif not any(parts[3] in piece for piece in record.ranks):
            yield make(record.stage, whole, "", final)


def ranks_of(ranks: Ranks) -> Iterator[int]:
    """Yield each rank of ranges."""
    return (rank for piece in ranks for rank in piece)


def _consumed(
    stage: str, identity: Identity, records: Mapping[str, StageRecords], settled: Settled
) -> bool:
    """Return whether every rank of every stage that comes after this one is done.

    Edges rank by rank are not told apart: then a rank may run once more than it has to.
    """
    after = [each for each in identity.stages if stage in each.parents]
    for each in after:
        done = records[each.name].done if each.name in records else ()
        if sum(map(len, subtract(done, settled.void.get(each.name, ())))) < each.world_size:
            return False
    return bool(after)


def _named(item: _Pending) -> str:
    ranks = ", ".join(
        str(r.start) if len(r) == 1 else f"{r.start}-{r.stop - 1}" for r in item.ranks
    )
    return f"stage {item.stage!r}, rank {ranks}"


def _some(texts: Sequence[str]) -> str:
    more = len(texts) - _SHOWN
    return "; ".join(texts[:_SHOWN]) + (f"; and {more} more" if more > 0 else "")
