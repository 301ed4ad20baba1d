"""Bases and segments as bytes, and back. Pure.

An object is JSON lines: a header (what it is and which), the records, and a last line with the
number of lines before it and the sha256 of their bytes. Whatever is cut off, changed, or put under
another name is noticed. JSON is the only format, so that people, other programs and later versions
can read a state.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from typing import Any, Literal, TypeVar

import attrs

from thornback.executor.journal.ledger import StageRecords
from thornback.executor.ports import Completion, Identity, Ranks, StageIdentity

T = TypeVar("T")

FORMAT = "thornback-journal"
VERSION = 1
STATES = ("done", "failed", "skipped", "void")
_CHUNK = 1000
"""Ranges or results on one line of a base: keeps lines short enough to look at."""


class Torn(Exception):
    """The bytes are not a whole object of this name; the text says why."""


@attrs.frozen(kw_only=True, slots=True)
class Header:
    """The first line."""

    kind: Literal["base", "seg"]
    term: int
    n: int
    promoted: int = 0
    """The segments of this term up to this number were promoted before this one was written."""
    identity: Identity | None = None
    """Only in a base."""


def encode(header: Header, lines: Iterable[bytes]) -> bytes:
    """Return the bytes of an object with these lines, each made by `encode_record`. One line at a
    time is in memory besides: a base may be a good part of what there is.
    """
    first = {
        "format": FORMAT,
        "version": VERSION,
        "kind": header.kind,
        "term": header.term,
        "n": header.n,
        "promoted": header.promoted,
    }
    if header.identity is not None:
        first["identity"] = attrs.asdict(header.identity)
    count, digest, data = 0, hashlib.sha256(), io.BytesIO()
    for line in chain((_line(first),), lines):
        count += 1
        digest.update(line)
        data.write(line)
    data.write(_line({"count": count, "sha256": digest.hexdigest()}))
    return data.getvalue()


def decode(data: bytes, header: Header) -> tuple[Header, Iterator[Completion]]:
    """Return the header and the records of the object that is said to be `header` (kind, term, n).

    Raises:
        Torn: it is not that object, or not all of it.
    """
    lines = _lines(data, _checked(data))
    try:
        found = _header(json.loads(next(lines)))
    except (ValueError, KeyError, TypeError) as error:
        raise Torn(f"its first line is not a header: {error!r}") from error
    if (found.kind, found.term, found.n) != (header.kind, header.term, header.n):
        raise Torn(f"it is {found.kind} {found.n} of term {found.term}, under another name")
    if (found.kind == "base") != (found.identity is not None):
        raise Torn("a base has an identity, and only a base")
    return found, (_record(json.loads(line)) for line in lines)


def encode_record(record: Completion) -> bytes:
    """Return the line of one record.

    Raises:
        ValueError: ranks or state are malformed, or the certificate is not JSON.
    """
    if record.state not in STATES:
        raise ValueError(f"state of {record.stage!r} is {record.state!r}: expected {STATES}")
    if record.state == "void" and (record.results or record.outputs):
        raise ValueError(f"a void record of {record.stage!r} has results or outputs")
    if any(piece.step != 1 or piece.start < 0 or not piece for piece in record.ranks):
        raise ValueError(
            f"ranks of {record.stage!r} are {record.ranks}: expected non-empty ranges of step 1 "
            "from 0 up"
        )
    fields: dict[str, Any] = {
        "stage": record.stage,
        "state": record.state,
        "ranks": [[piece.start, piece.stop] for piece in record.ranks],
    }
    if record.epoch:
        fields["epoch"] = record.epoch
    if record.results:
        fields["results"] = {str(rank): text for rank, text in record.results.items()}
    if record.outputs:
        fields["outputs"] = [[staged, final] for staged, final in record.outputs]
    if record.certificate is not None:
        fields["certificate"] = dict(record.certificate)
    try:
        return _line(fields)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"the record of {record.stage!r}, ranks {record.ranks}, is not JSON: {error}"
        ) from error


def base_lines(records: Mapping[str, StageRecords]) -> Iterator[bytes]:
    """Yield the lines of a base. Ranges are merged; epochs and outputs (promoted by then) are left
    out.
    """
    return (encode_record(record) for name in records for record in merged(name, records[name]))


def merged(stage: str, records: StageRecords) -> Iterator[Completion]:
    """Yield few records that fold to `records`."""
    for ranks in _chunks(records.done):
        yield Completion(stage=stage, ranks=ranks, state="done")
    for items in _chunks(tuple(records.results.items())):
        yield Completion(stage=stage, ranks=(), state="done", results=dict(items))
    for ranks in _chunks(records.failed):
        yield Completion(stage=stage, ranks=ranks, state="failed")
    for ranks in _chunks(records.skipped):
        yield Completion(stage=stage, ranks=ranks, state="skipped")
    for paper in records.certificates:
        yield Completion(stage=stage, ranks=paper.ranks, state=paper.state, certificate=paper.why)


def _chunks(items: tuple[T, ...]) -> Iterator[tuple[T, ...]]:
    for start in range(0, len(items), _CHUNK):
        yield items[start : start + _CHUNK]


def _line(fields: Mapping[str, Any]) -> bytes:
    """Return one line. ASCII: no byte of a text can be taken for the end of a line, lone surrogates
    survive.
    """
    return json.dumps(fields, separators=(",", ":"), allow_nan=False).encode("ascii") + b"\n"


def _checked(data: bytes) -> int:
    """Return where the last line begins, once it fits what is before it. Nothing is copied."""
    if not data.endswith(b"\n"):
        raise Torn("it does not end with a whole line" if data else "it is empty")
    end = data.rfind(b"\n", 0, len(data) - 1) + 1
    try:
        last = json.loads(data[end:])
        count, digest = last["count"], last["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise Torn("its last line is not a count and a checksum") from error
    if not end or digest != hashlib.sha256(memoryview(data)[:end]).hexdigest():
        raise Torn("its checksum does not fit its content")
    lines = data.count(b"\n", 0, end)
    if count != lines:
        raise Torn(f"it has {lines} lines, its last line says {count}")
    return end


def _lines(data: bytes, end: int) -> Iterator[bytes]:
    start = 0
    while start < end:
        stop = data.index(b"\n", start, end)
        yield data[start:stop]
        start = stop + 1


def _header(fields: Mapping[str, Any]) -> Header:
    if fields["format"] != FORMAT or fields["version"] != VERSION:
        raise ValueError(
            f"format {fields['format']!r} version {fields['version']!r}; "
            f"this thornback reads {FORMAT!r} version {VERSION}"
        )
    identity = fields.get("identity")
    return Header(
        kind=fields["kind"],
        term=fields["term"],
        n=fields["n"],
        promoted=fields["promoted"],
        identity=None if identity is None else _identity(identity),
    )


def _identity(fields: Mapping[str, Any]) -> Identity:
    stages = [{**stage, "parents": tuple(stage["parents"])} for stage in fields["stages"]]
    return Identity(job=fields["job"], stages=tuple(StageIdentity(**stage) for stage in stages))


def _record(fields: Mapping[str, Any]) -> Completion:
    ranks: Ranks = tuple(range(start, stop) for start, stop in fields["ranks"])
    return Completion(
        stage=fields["stage"],
        ranks=ranks,
        state=fields["state"],
        epoch=fields.get("epoch", ""),
        results={int(rank): text for rank, text in fields.get("results", {}).items()},
        outputs=[(staged, final) for staged, final in fields.get("outputs", ())],
        certificate=fields.get("certificate"),
    )
