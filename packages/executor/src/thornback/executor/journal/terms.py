"""The protocol of terms: two drivers must never both record. Sans-IO: generators of store
operations.

Objects under `control/`: `claim-<term>-<id>`, `beat-<term>`, `base-<term>-<n>`, `seg-<term>-<n>`.
Only put and list with read-after-write are needed: no conditional put, and no clock in the argument
(a paused driver may wake up at any time).

    watch    if the beat of the highest claim changes while I look: refuse. (Politeness. Safety does
             not rest on it.)
    elect    put claim(t+1), then list: another claim with term >= mine: delete mine, refuse. Both
             may lose, never two win: of two claims of a term, the later put is followed by a list
             that shows both.
    load     only now list and read the highest base and the later segments of its term. Segments of
             older terms are void. An object that was listed and is gone was compacted away: list
             again.
    begin    put base(t+1, 0), then a beat that tells of it, then remove what it covers.
    flush    put seg(t, n), then list: a claim with a higher term: `Superseded`, announce nothing of
             it. Else recorded: whoever claims from now on lists after its claim, and so reads this
             segment.
    compact  put base(t, n), then remove what it covers.

Each of these orders is needed: `tests/test_journal_model.py` takes every one away and finds a lost
record.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeAlias

import attrs

from thornback.executor.journal.errors import HeldByAnother, JournalError, NewerFormat, Superseded
from thornback.executor.journal.holder import Heartbeat, Holder
from thornback.executor.journal.ledger import Ledger, StageRecords, clip, normalise, subtract
from thornback.executor.journal.segments import (
    Header,
    Torn,
    base_lines,
    decode,
    digest,
    encode,
)
from thornback.executor.journal.steps import Delete, Pause, Steps, get, listing, put
from thornback.executor.ports import Completion, Identity

LOOKS = 10
"""How often the beat is read while it is watched."""
ROUNDS = 20
"""How often the state is listed again because it changes under the reader, before giving up."""
DIGITS = 18
"""Of a term or number in a name, at most: what has more is foreign."""
_NAME = re.compile(r"(?P<kind>claim|beat|base|seg)-(?P<term>[0-9]{6,18})(?:-(?P<tail>[0-9a-z]+))?")
KeepResults: TypeAlias = Callable[[str], bool]
Owing: TypeAlias = Callable[[Completion], bool]
Trusted: TypeAlias = frozenset[str] | None


def _all_results(stage: str) -> bool:
    return True


def _has_outputs(record: Completion) -> bool:
    return bool(record.outputs)


@attrs.frozen(slots=True, order=True)
class Name:
    """A name under `control/`, taken apart. Order: by term, then number."""

    term: int
    n: int
    """Of bases and segments, which are counted together; else 0."""
    kind: str
    text: str
    id: str = ""
    """Of claims."""


@attrs.frozen(kw_only=True, slots=True)
class Stored:
    """What a state holds."""

    term: int = 0
    """Of the base that counts; 0: there is none."""
    identity: Identity | None = None
    """Of that base."""
    identity_sha256: str = ""
    """Of that base."""
    newest: str = ""
    """Name of the newest object that counts; empty: there is none."""
    records: dict[str, StageRecords] = attrs.field(factory=dict)
    unpromoted: tuple[Completion, ...] = ()
    """Records that are not known to be promoted, oldest first: of those with outputs, or of all
    (see `load`).
    """
    damaged: tuple[str, ...] = ()
    """Objects that are torn, foreign or missing, each with the reason."""
    kept: tuple[str, ...] = ()
    """Names of objects that are damaged, or were when an earlier driver met them: never removed."""
    strangers: tuple[str, ...] = ()
    """Those of them that are whole and newer than what counts, but whose base is missing, and that
    another job may have written: not counted.
    """
    names: tuple[Name, ...] = ()


def claim_name(term: int, holder_id: str) -> str:
    return f"claim-{term:06d}-{holder_id}"


def beat_name(term: int) -> str:
    return f"beat-{term:06d}"


def base_name(term: int, n: int) -> str:
    return f"base-{term:06d}-{n:06d}"


def seg_name(term: int, n: int) -> str:
    return f"seg-{term:06d}-{n:06d}"


def parse(names: Iterable[str]) -> list[Name]:
    """Return the names that are ours, ascending."""
    found = []
    for text in names:
        match = _NAME.fullmatch(text)
        if match is None:
            continue
        kind, term, tail = match["kind"], int(match["term"]), match["tail"] or ""
        numbered = kind in ("base", "seg")
        if numbered and not (tail.isdecimal() and len(tail) <= DIGITS):
            continue
        name = Name(term, int(tail) if numbered else 0, kind, text, "" if numbered else tail)
        if not numbered or text == f"{kind}-{term:06d}-{name.n:06d}":  # each has one name only
            found.append(name)
    return sorted(found)


def watch(url: str, ttl_s: float, gone: Callable[[Holder], bool]) -> Steps[int]:
    """Return the highest term there is, once nobody can be seen to hold it.

    Raises:
        HeldByAnother: its beat changed while it was watched.
        JournalError: no term can come after it.
    """
    names = parse((yield from listing()))
    term = max((name.term for name in names), default=0)
    if len(str(term + 1)) > DIGITS:
        raise JournalError(
            f"{url}: control/{names[-1].text} was written by no driver: remove it and try again"
        )
    holders = []
    for name in names:
        if name.kind == "claim" and name.term == term:
            data = yield from get(name.text)
            holders.append(Holder.decode(data) if data is not None else Holder(id=""))
    first = yield from get(beat_name(term))
    if not holders or _closed(first) or all(gone(holder) for holder in holders):
        return term
    who = ", ".join(f"process {h.pid} on {h.host or 'an unknown host'}" for h in holders)
    why = f"its last driver ({who}) did not close it: watching for {ttl_s:.0f} s if it is alive"
    for look in range(LOOKS):
        yield Pause(ttl_s / LOOKS, "" if look else why)
        beat = yield from get(beat_name(term))
        if _closed(beat):
            return term
        if beat != first:
            raise held(url, holders, "its beat goes on")
    return term


def find_holder(url: str, seen: str) -> Steps[HeldByAnother]:
    """Return the error that names the holder of the highest claim."""
    names = [name for name in parse((yield from listing())) if name.kind == "claim"]
    data = (yield from get(names[-1].text)) if names else None
    return held(url, [Holder.decode(data)] if data is not None else [], seen)


def elect(url: str, me: Holder, term: int) -> Steps[None]:
    """Win `term`, or give way.

    Raises:
        HeldByAnother: someone else claimed it, or a later one.
    """
    mine = claim_name(term, me.id)
    yield from put(mine, me.encode())
    names = parse((yield from listing()))
    rivals = [
        name
        for name in names
        if name.kind in ("claim", "base") and name.term >= term and name.text != mine
    ]
    if not rivals:
        return
    data = yield from get(rivals[-1].text)
    yield Delete((mine,))
    holders = [Holder.decode(data)] if data is not None and rivals[-1].kind == "claim" else []
    raise held(
        url, holders, "both claimed it at the same moment: try again if the other one gave way too"
    )


def load(
    url: str,
    keep_results: KeepResults = _all_results,
    *,
    owing: Owing = _has_outputs,
    trusted: Trusted = frozenset(),
) -> Steps[Stored]:
    """Return what the state holds: the highest base that can be read, and whatever follows it.

    Damage is named and never raised. A number that is missing among the segments of a term, or up
    to the one that its beat has told of, is damage: numbers have no gaps. What was flushed after
    the last beat of a driver that died, and is missing, is not noticed.

    A segment whose base is missing, or cannot be read, counts if a driver of the same job wrote it.

    Args:
        url: of the state, for messages.
        keep_results: by name of stage: whether its results are wanted.
        owing: which records have to be promoted.
        trusted: digests of jobs whose segments count without their base, besides those of the
            highest base that can be read. "": those that do not say of which job they are. None:
            any.

    Raises:
        NewerFormat: a later version wrote it.
        JournalError: the state does not hold still.
    """
    gone: set[str] = set()
    for round_ in range(ROUNDS):
        if round_:
            yield Pause(0.05 * round_)
        # An object that stays in the list, and yet is not there, is damage in the end.
        given_up = frozenset(gone) if round_ == ROUNDS - 1 else frozenset()
        names = parse((yield from listing()))
        reader = _Reader(keep_results, owing, trusted, given_up)
        try:
            lost = yield from reader.read(names)
        except NewerFormat as error:
            raise NewerFormat(f"state {url!r}", error.version, error.known) from error
        if lost:
            gone |= lost
            continue
        # A list that is taken while another driver compacts may be of two moments: look again
        # before something is called missing.
        if reader.gaps and not reader.still(parse((yield from listing()))):
            continue
        return reader.stored(names)
    raise JournalError(
        f"{url}: objects that were listed are gone, {ROUNDS} times in a row: try again"
    )


def begin(
    term: int,
    identity: Identity,
    records: Mapping[str, StageRecords],
    old: Stored,
    identity_sha256: str = "",
) -> Steps[int]:
    """Start the term that was won with these records. Return the size of the base in bytes.

    Args:
        term: that was won.
        identity: of the job, and of stages that it no longer has.
        records: what counts from now on.
        old: what the state held.
        identity_sha256: digest of the job alone.
    """
    header = Header(
        kind="base",
        term=term,
        n=0,
        after=old.newest,
        identity_sha256=identity_sha256,
        identity=identity,
        kept=old.kept,
    )
    data = encode(header, base_lines(records))
    yield from put(base_name(term, 0), data)
    return len(data)


def clear(term: int, old: Stored) -> Steps[None]:
    """Remove what the base of a new term covers. To be done when a beat has told of that base:
    then not all can be missing unnoticed.
    """
    yield Delete(_garbage(old, lambda name: name.term < term))


def flush(
    url: str,
    term: int,
    n: int,
    promoted: int,
    lines: Sequence[bytes],
    *,
    after: str = "",
    identity_sha256: str = "",
) -> Steps[int]:
    """Record these lines. Return the size of the segment in bytes.

    Raises:
        Superseded: a later term is claimed: nothing of this may be announced.
    """
    header = Header(
        kind="seg",
        term=term,
        n=n,
        promoted=promoted,
        after=after,
        identity_sha256=identity_sha256,
    )
    data = encode(header, lines)
    yield from put(seg_name(term, n), data)
    _refuse_if_superseded(url, term, parse((yield from listing())))
    return len(data)


def compact(url: str, term: int, n: int, keep_results: KeepResults = _all_results) -> Steps[int]:
    """Write all records of the term as base `n`, with the results that are to be kept; remove what
    it covers. Every flush must be promoted by now.

    Raises:
        Superseded: a later term is claimed.
        JournalError: records of this term were damaged since they were written.
    """
    stored = yield from load(url, keep_results)
    _refuse_if_superseded(url, term, stored.names)
    refuse_if_damaged(url, stored)
    assert stored.identity is not None
    header = Header(
        kind="base",
        term=term,
        n=n,
        promoted=n,
        after=stored.newest,
        identity_sha256=stored.identity_sha256,
        identity=stored.identity,
        kept=stored.kept,
    )
    data = encode(header, base_lines(stored.records))
    yield from put(base_name(term, n), data)
    covered = _garbage(stored, lambda name: name.kind in ("base", "seg") and name.n < n)
    yield Delete(covered)
    return len(data)


def damage_text(url: str, damaged: Sequence[str]) -> str:
    """Return one line about damage that was found when a state was opened."""
    more = f"; and {len(damaged) - 10} more" if len(damaged) > 10 else ""
    return (
        f"state {url!r} is damaged; what can be read of it counts, and what is lost is run again: "
        f"{'; '.join(damaged[:10])}{more}"
    )


def refuse_if_damaged(url: str, stored: Stored) -> None:
    """Keep a driver from going on with less than it has recorded and announced.

    Raises:
        JournalError: the state of a term that goes on is damaged.
    """
    if stored.damaged:
        raise JournalError(
            f"{url}: damaged while this driver has it: {'; '.join(stored.damaged)}. Run again: "
            "what can be read counts, and what is lost is run again"
        )


def held(url: str, holders: Sequence[Holder], seen: str) -> HeldByAnother:
    """Return the error about the (last) holder."""
    holder = holders[-1] if holders else Holder(id="")
    return HeldByAnother(url, holder.host, holder.pid, holder.since, seen)


def _closed(beat: bytes | None) -> bool:
    heartbeat = Heartbeat.decode(beat)
    return heartbeat is not None and heartbeat.closed


def _refuse_if_superseded(url: str, term: int, names: Iterable[Name]) -> None:
    later = [n.term for n in names if n.term > term and n.kind in ("claim", "base")]
    if later:
        raise Superseded(url, term, max(later))


def _garbage(stored: Stored, covered: Callable[[Name], bool]) -> tuple[str, ...]:
    kept = {*stored.kept}
    return tuple(n.text for n in stored.names if covered(n) and n.text not in kept)


class _Reader:
    """Reads a state as one list shows it."""

    def __init__(
        self,
        keep_results: KeepResults,
        owing: Owing,
        trusted: Trusted,
        given_up: frozenset[str],
    ) -> None:
        self._keep_results = keep_results
        self._owing = owing
        self._trusted = trusted
        self._given_up = given_up
        self._ledger = Ledger(keep_results)
        self._base: Name | None = None
        self._header: Header | None = None
        self._newest = ""
        self._after: dict[tuple[int, int], str] = {}
        """What segments say that they follow, by term and number."""
        self._pending: list[tuple[Name, Completion]] = []
        """Records that owe a promotion and are not known to have had it."""
        self._beats: dict[int, Heartbeat] = {}
        self._damaged: list[str] = []
        self._strangers: list[str] = []
        self._bases: list[Name] = []
        """Those that were listed above the one that counts."""
        self.gaps: list[_Gap] = []
        """What is missing."""

    def read(self, names: Sequence[Name]) -> Steps[frozenset[str]]:
        """Read all that counts. Return the names of objects that are gone: then nothing counts."""
        for name in _bases(names):
            data = yield from get(name.text)
            if data is None:
                if name.text not in self._given_up:
                    return frozenset({name.text})
                self._damaged.append(f"{name.text}: it is listed, but not there")
            elif self._read_base(name, data):
                break
            self._bases.append(name)
        start = (self._base.term, self._base.n) if self._base is not None else (0, -1)
        later = [name for name in names if (name.term, name.n) > start]
        for name in later:
            if name.kind != "seg":
                continue
            data = yield from get(name.text)
            if data is None:
                if name.text not in self._given_up:
                    return frozenset({name.text})
                self._damaged.append(f"{name.text}: it is listed, but not there")
            else:
                self._read_segment(name, data)
        for name in names:
            if name.kind == "beat" and name.term >= start[0]:
                beat = Heartbeat.decode((yield from get(name.text)))
                if beat is not None:
                    self._beats[name.term] = beat
        for term in sorted({name.term for name in later} | {*self._beats}):
            self.gaps += self._find_gaps(term, [n for n in names if n.term == term])
        return frozenset()

    def still(self, names: Sequence[Name]) -> bool:
        """Return whether a later list has the same highest bases, and the same gaps."""
        listed = _bases(names)
        if self._base is not None and self._base not in listed:
            return False
        above = [name for name in listed if self._base is None or name > self._base]
        numbered = [name for name in names if name.kind in ("base", "seg")]
        return above == self._bases and not any(
            name.term == gap.term and name.n in gap.numbers
            for name in numbered
            for gap in self.gaps
        )

    def stored(self, names: Sequence[Name]) -> Stored:
        """Return what was read."""
        damaged = (*self._damaged, *(f"{gap.text}: missing" for gap in self.gaps))
        kept = {text.partition(":")[0] for text in damaged}
        kept |= {*(self._header.kept if self._header is not None else ())}
        records = self._ledger.freeze()
        identity = self._header.identity if self._header is not None else None
        for stage in identity.stages if identity is not None else ():
            if stage.name in records:
                records[stage.name] = clip(records[stage.name], stage.world_size)
        return Stored(
            term=self._base.term if self._base is not None else 0,
            identity=identity,
            identity_sha256=self._header.identity_sha256 if self._header is not None else "",
            newest=self._newest,
            records=records,
            unpromoted=tuple(self._unpromoted()),
            damaged=damaged,
            kept=tuple(sorted(kept & {name.text for name in names})),
            strangers=tuple(self._strangers),
            names=tuple(names),
        )

    def _read_base(self, name: Name, data: bytes) -> bool:
        ledger = Ledger(self._keep_results)
        try:
            header, records = decode(data, Header(kind="base", term=name.term, n=name.n))
            for record in records:
                ledger.add(record)
        except Torn as torn:
            # Its writer may have died in the middle, or it was whole once. In either case the one
            # below counts, if it is still there, and whatever follows this one.
            self._damaged.append(f"{name.text}: {torn}")
            return False
        self._base, self._header, self._ledger, self._newest = name, header, ledger, name.text
        return True

    def _read_segment(self, name: Name, data: bytes) -> None:
        try:
            header, lines = decode(data, Header(kind="seg", term=name.term, n=name.n))
            records = list(lines)  # all of them, or none
        except Torn as torn:
            self._damaged.append(f"{name.text}: {torn}")
            return
        self._after[name.term, name.n] = header.after
        if self._base is None or name.term != self._base.term:
            if not self._trusts(header.identity_sha256):
                self._strangers.append(name.text)
                self._damaged.append(
                    f"{name.text}: not counted: its base is missing, and it may be of another job"
                )
                return
            if not header.identity_sha256:
                self._damaged.append(
                    f"{name.text}: counted, though its base is missing, which alone would tell of "
                    "which job it is"
                )
            self._strangers.clear()  # a driver of this job has come after theirs
        self._newest = name.text
        self._pending = [
            (at, record)
            for at, record in self._pending
            # The driver of a term promotes all of the terms before it before it writes its base.
            if at.term == name.term and at.n > header.promoted
        ]
        for record in records:
            self._ledger.add(record)
            if record.state == "void":
                self._pending = [
                    (at, left)
                    for at, old in self._pending
                    if (left := _without(old, record)) is not None
                ]
            if self._owing(record):
                self._pending.append((name, record))

    def _trusts(self, sha256: str) -> bool:
        if self._trusted is None or sha256 in self._trusted:
            return True
        if self._header is None or self._header.identity is None:
            return False
        return sha256 == (self._header.identity_sha256 or digest(self._header.identity))

    def _find_gaps(self, term: int, names: Iterable[Name]) -> list[_Gap]:
        """Return the numbers that are missing from the highest base of a term on. What such a base
        covers is not missed, also where it cannot be read: then it is named itself.
        """
        numbers = sorted({(n.n, n.kind == "base") for n in names if n.kind in ("base", "seg")})
        beat = self._beats.get(term)
        top = max(beat.flushed if beat is not None else -1, numbers[-1][0] if numbers else -1)
        gaps: list[_Gap] = []
        for n, is_base in reversed(numbers):
            if n < top:
                gaps.append(_Gap(term, range(n + 1, top + 1)))
            top = n - 1
            if is_base:
                return gaps
            if self._after.get((term, n)) == base_name(term, top):
                lost = [] if (top, True) in numbers else [_Gap(term, range(top, n), is_base=True)]
                return [*gaps, *lost]
        return [*gaps, _Gap(term, range(top + 1))] if top >= 0 else gaps

    def _unpromoted(self) -> Iterator[Completion]:
        """Leave out what the driver of a term has promoted before it closed."""
        for name, record in self._pending:
            beat = self._beats.get(name.term)
            if beat is None or not beat.closed or name.n > beat.promoted:
                yield record


@attrs.frozen(slots=True)
class _Gap:
    """Numbers of a term that are missing."""

    term: int
    numbers: range
    is_base: bool = False

    @property
    def text(self) -> str:
        low, high = self.numbers[0], self.numbers[-1]
        is_base = self.is_base or low == 0
        first = base_name(self.term, low) if is_base else seg_name(self.term, low)
        return first if low == high else f"{first} to {seg_name(self.term, high)}"


def _bases(names: Iterable[Name]) -> list[Name]:
    """Return the bases, highest first."""
    return [name for name in names if name.kind == "base"][::-1]


def _without(record: Completion, void: Completion) -> Completion | None:
    """Return what a void record leaves of a record; None: nothing."""
    if record.stage != void.stage:
        return record
    ranks = subtract(normalise(record.ranks), normalise(void.ranks))
    return attrs.evolve(record, ranks=ranks) if ranks else None
