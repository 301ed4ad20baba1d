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
    begin    put base(t+1, 0), then remove what it covers.
    flush    put seg(t, n), then list: a claim with a higher term: `Superseded`, announce nothing of
             it. Else recorded: whoever claims from now on lists after its claim, and so reads this
             segment.
    compact  put base(t, n), then remove what it covers.

Each of these orders is needed: `tests/test_journal_model.py` takes every one away and finds a lost
record.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeAlias

import attrs

from thornback.executor.journal.errors import HeldByAnother, JournalError, Superseded
from thornback.executor.journal.holder import Heartbeat, Holder
from thornback.executor.journal.ledger import Ledger, StageRecords, normalise, subtract
from thornback.executor.journal.segments import Header, Torn, base_lines, decode, encode
from thornback.executor.journal.steps import Delete, Pause, Steps, get, listing, put
from thornback.executor.ports import Completion, Identity

LOOKS = 10
"""How often the beat is read while it is watched."""
ROUNDS = 20
"""How often the state is listed again because it changes under the reader, before giving up."""
_NAME = re.compile(r"(?P<kind>claim|beat|base|seg)-(?P<term>\d{6,})(?:-(?P<tail>[0-9a-z]+))?")
KeepResults: TypeAlias = Callable[[str], bool]
Owing: TypeAlias = Callable[[Completion], bool]


def _all_results(stage: str) -> bool:
    return True


def _has_outputs(record: Completion) -> bool:
    return bool(record.outputs)


class Unreadable(JournalError):
    """The base that counts cannot be read: nothing is known of what was recorded."""

    def __init__(self, message: str, names: tuple[Name, ...] = ()) -> None:
        super().__init__(message, names)
        self.names = names

    def __str__(self) -> str:
        return str(self.args[0])


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
    records: dict[str, StageRecords] = attrs.field(factory=dict)
    unpromoted: tuple[Completion, ...] = ()
    """Records that are not known to be promoted, oldest first: of those with outputs, or of all
    (see `load`).
    """
    damaged: tuple[str, ...] = ()
    """Objects that are torn or foreign, with the reason: not counted, never removed."""
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
        kind, tail = match["kind"], match["tail"] or ""
        numbered = kind in ("base", "seg")
        if numbered and not tail.isdecimal():
            continue
        n = int(tail) if numbered else 0
        found.append(Name(int(match["term"]), n, kind, text, "" if numbered else tail))
    return sorted(found)


def watch(url: str, ttl_s: float, gone: Callable[[Holder], bool]) -> Steps[int]:
    """Return the highest term there is, once nobody can be seen to hold it.

    Raises:
        HeldByAnother: its beat changed while it was watched.
    """
    names = parse((yield from listing()))
    term = max((name.term for name in names), default=0)
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
    url: str, keep_results: KeepResults = _all_results, *, owing: Owing = _has_outputs
) -> Steps[Stored]:
    """Return what the state holds.

    Args:
        url: of the state, for messages.
        keep_results: by name of stage: whether its results are wanted.
        owing: which records have to be promoted.

    Raises:
        Unreadable: the base that counts is damaged.
        JournalError: the state does not hold still.
    """
    for round_ in range(ROUNDS):
        if round_:
            yield Pause(0.05 * round_)
        names = parse((yield from listing()))
        stored = yield from _read(url, names, keep_results, owing)
        if stored is not None:
            return stored
    raise JournalError(
        f"{url}: objects that were listed are gone, {ROUNDS} times in a row: try again"
    )


def begin(
    term: int, identity: Identity, records: Mapping[str, StageRecords], old: Stored
) -> Steps[int]:
    """Start the term that was won with these records; remove what that covers. Return the size of
    the base in bytes.
    """
    header = Header(kind="base", term=term, n=0, identity=identity)
    data = encode(header, base_lines(records))
    yield from put(base_name(term, 0), data)
    yield Delete(_garbage(old, lambda name: name.term < term))
    return len(data)


def flush(url: str, term: int, n: int, promoted: int, lines: Sequence[bytes]) -> Steps[int]:
    """Record these lines. Return the size of the segment in bytes.

    Raises:
        Superseded: a later term is claimed: nothing of this may be announced.
    """
    data = encode(Header(kind="seg", term=term, n=n, promoted=promoted), lines)
    yield from put(seg_name(term, n), data)
    _refuse_if_superseded(url, term, parse((yield from listing())))
    return len(data)


def compact(url: str, term: int, n: int, keep_results: KeepResults = _all_results) -> Steps[int]:
    """Write all records of the term as base `n`, with the results that are to be kept; remove what
    it covers. Every flush must be promoted by now.

    Raises:
        Superseded: a later term is claimed.
    """
    stored = yield from load(url, keep_results)
    _refuse_if_superseded(url, term, stored.names)
    assert stored.identity is not None
    header = Header(kind="base", term=term, n=n, promoted=n, identity=stored.identity)
    data = encode(header, base_lines(stored.records))
    yield from put(base_name(term, n), data)
    covered = _garbage(stored, lambda name: name.kind in ("base", "seg") and name.n < n)
    yield Delete(covered)
    return len(data)


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
    torn = {text.partition(":")[0] for text in stored.damaged}
    return tuple(n.text for n in stored.names if covered(n) and n.text not in torn)


def _read(
    url: str, names: list[Name], keep_results: KeepResults, owing: Owing
) -> Steps[Stored | None]:
    """Read what was listed; None: something of it is gone."""
    damaged: list[str] = []
    for base in reversed([name for name in names if name.kind == "base"]):
        segs = [n for n in names if n.kind == "seg" and n.term == base.term and n.n > base.n]
        data = yield from get(base.text)
        if data is None:
            return None
        try:
            header, records = decode(data, Header(kind="base", term=base.term, n=base.n))
        except Torn as torn:
            if segs:
                raise _unreadable(url, f"{base.text}: {torn}; it was whole once", names) from torn
            damaged.append(
                f"{base.text}: {torn}"
            )  # its writer died in the middle: the one below counts
            continue
        ledger = Ledger(keep_results)
        for record in records:
            ledger.add(record)
        pending = yield from _read_segments(segs, ledger, damaged, owing)
        if pending is None:
            return None
        return Stored(
            term=base.term,
            identity=header.identity,
            records=ledger.freeze(),
            unpromoted=(yield from _unpromoted(base.term, pending)),
            damaged=tuple(damaged),
            names=tuple(names),
        )
    if damaged:
        raise _unreadable(url, "; ".join(damaged), names)
    return Stored(names=tuple(names))


def _read_segments(
    segs: Sequence[Name], ledger: Ledger, damaged: list[str], owing: Owing
) -> Steps[list[tuple[int, Completion]] | None]:
    """Fold segments; return (number, record) of those that owe a promotion and are not known to
    have had it.
    """
    pending: list[tuple[int, Completion]] = []
    for seg in segs:
        data = yield from get(seg.text)
        if data is None:
            return None
        try:
            header, records = decode(data, Header(kind="seg", term=seg.term, n=seg.n))
        except Torn as torn:
            damaged.append(f"{seg.text}: {torn}")
            continue
        pending = [(n, record) for n, record in pending if n > header.promoted]
        for record in records:
            ledger.add(record)
            if record.state == "void":
                pending = [(n, left) for n, old in pending if (left := _without(old, record))]
            if owing(record):
                pending.append((seg.n, record))
    return pending


def _without(record: Completion, void: Completion) -> Completion | None:
    """Return what a void record leaves of a record; None: nothing."""
    if record.stage != void.stage:
        return record
    ranks = subtract(normalise(record.ranks), normalise(void.ranks))
    return attrs.evolve(record, ranks=ranks) if ranks else None


def _unpromoted(term: int, pending: list[tuple[int, Completion]]) -> Steps[tuple[Completion, ...]]:
    """Leave out what the driver of that term has promoted before it closed."""
    if not pending:
        return ()
    beat = Heartbeat.decode((yield from get(beat_name(term))))
    promoted = beat.promoted if beat is not None and beat.closed else 0
    return tuple(record for n, record in pending if n > promoted)


def _unreadable(url: str, what: str, names: Sequence[Name]) -> Unreadable:
    return Unreadable(
        f"{url}: the base of the journal is damaged ({what}). Restore it from a copy, or start "
        "anew with on_mismatch='fresh'",
        tuple(names),
    )
