"""Bases and segments as bytes, and back. Pure.

Format 2. An object is lines of JSON in ASCII, each ended by a newline: a header, one line per
record, and an end. JSON is the only format, so that people, other programs and later versions can
read a state. Whatever is cut off, changed, or put under another name is noticed.

The header is an object with

    format            "thornback-journal"
    version           2
    kind              "base" (all that was known at that moment) or "seg" (what one flush added)
    term, n           of its name; bases and segments of a term are counted together, from base 0 on
    promoted          segments of this term up to this number were promoted before it was written
    after             name of the object that it follows. A segment: the one with the number below.
                      A base: the newest that it covers; "" for the first of a state. "" in a
                      segment: not known
    identity_sha256   digest of the job whose driver wrote it (`digest`); "": not known
    identity          of the job, and of stages that it no longer has; in a base, and only there
    kept              names of damaged objects that no driver may remove; in a base

A record is an object with

    stage, state      name; "done", "failed", "skipped" or "void"
    ranks             [[start, stop], ...]
    epoch             of the assignment; may be missing, as may all below
    results           {"<rank>": "<JSON text>"}
    outputs           [["<staged>", "<final>"], ...]
    targets           [[<rank>, ...], "<16 hexadecimal digits for each>"]: hashes of the final names
                      that these ranks have published, so that no two publish under one name
    certificate       an object: why it failed or was skipped

The end is an object with

    count             number of lines before it
    sha256            of the bytes of these lines, in hexadecimal digits

Rules for later versions, so that old and new ones can meet in one state:

- A field that a reader does not know is ignored, and one that may be missing has a default. That
  holds for claims and beats, too (`holder`).
- A line of a `state` that a reader does not know, or of none, is ignored if it has
  `"optional": true`, and else makes the object a damaged one. So other lines (say, a table of keys
  of ranks) need no new version, if a reader may do without. A base that an older version writes is
  without them.
- `version` grows when an older reader must not guess. Format, version, and the end stay as they
  are: an object that its end fits, with a higher version, is newer, and not damaged. It is refused
  (`NewerFormat`).

Version 1 is read. It has neither `after` nor `identity_sha256`, and no void records.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from typing import Any, Literal, TypeVar

import attrs

from thornback.executor.journal.errors import NewerFormat
from thornback.executor.journal.ledger import StageRecords, normalise
from thornback.executor.journal.targets import Targets
from thornback.executor.ports import Completion, Identity, Json, Ranks, StageIdentity

T = TypeVar("T")

FORMAT = "thornback-journal"
VERSION = 2
STATES = ("done", "failed", "skipped", "void")
TOP = 2**62
"""No rank is as high: a range of such ranks still has a length."""
DEPTH = 100
"""Certificates that are nested deeper are taken for damage: they could not be written again."""
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
    after: str = ""
    """Name of the object that it follows; empty: none, or not known."""
    identity_sha256: str = ""
    """Digest of the job whose driver wrote it; empty: not known."""
    identity: Identity | None = None
    """Only in a base."""
    kept: tuple[str, ...] = ()
    """Objects that were damaged, or did not count, when this base was written: not to be removed,
    since nothing has replaced them.
    """


def digest(identity: Identity) -> str:
    """Return the sha256 of a job's identity, in hexadecimal digits.

    Fields that are empty do not count, so that a later version may add some, nor does the code,
    which may change. Stages count in order.
    """
    stages = [
        {name: value for name, value in stage.items() if value and name != "code"}
        for stage in _plain(identity)["stages"]
    ]
    told = {"job": identity.job, "stages": stages}
    text = json.dumps(told, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def encode(header: Header, lines: Iterable[bytes]) -> bytes:
    """Return the bytes of an object with these lines, each made by `encode_record`. One line at a
    time is in memory besides: a base may be a good part of what there is.
    """
    first: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "kind": header.kind,
        "term": header.term,
        "n": header.n,
        "promoted": header.promoted,
        "after": header.after,
        "identity_sha256": header.identity_sha256,
    }
    if header.identity is not None:
        first["identity"] = _plain(header.identity)
    if header.kept:
        first["kept"] = [*header.kept]
    count, sha, data = 0, hashlib.sha256(), io.BytesIO()
    for line in chain((_line(first),), lines):
        count += 1
        sha.update(line)
        data.write(line)
    data.write(_line({"count": count, "sha256": sha.hexdigest()}))
    return data.getvalue()


def decode(data: bytes, header: Header) -> tuple[Header, Iterator[Completion]]:
    """Return the header and the records of the object that is said to be `header` (kind, term, n).

    Raises:
        Torn: it is not that object, or not all of it. Also while the records are iterated: then
            none of them counts.
        NewerFormat: a later version wrote it.
    """
    lines = _lines(data, _checked(data))
    first = _parse(next(lines), "its first line")
    if first.get("format") != FORMAT:
        raise Torn(f"its first line is not a header of {FORMAT!r}")
    version = _whole(first.get("version"), 1)
    if version > VERSION:
        raise NewerFormat(
            f"control/{header.kind}-{header.term:06d}-{header.n:06d}", version, VERSION
        )
    found = _header(first)
    if (found.kind, found.term, found.n) != (header.kind, header.term, header.n):
        raise Torn(f"it is {found.kind} {found.n} of term {found.term}, under another name")
    if (found.kind == "base") != (found.identity is not None):
        raise Torn("a base has an identity, and only a base")
    return found, _records(lines)


def encode_record(record: Completion) -> bytes:
    """Return the line of one record.

    Raises:
        ValueError: ranks or state are malformed, or results or the certificate are not JSON.
    """
    if record.state not in STATES:
        raise ValueError(f"state of {record.stage!r} is {record.state!r}: expected {STATES}")
    if any(piece.step != 1 or piece.start < 0 or not piece for piece in record.ranks):
        raise ValueError(
            f"ranks of {record.stage!r} are {record.ranks}: expected non-empty ranges of step 1 "
            "from 0 up"
        )
    line = _encoded(record)
    try:
        _record(json.loads(line))  # what a reader would refuse
    except Torn as error:
        raise ValueError(f"the record of {record.stage!r} cannot be kept: {error}") from error
    return line


def _encoded(record: Completion) -> bytes:
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
    if targets := Targets(record.targets):
        fields["targets"] = targets.as_json()
    if record.certificate is not None:
        fields["certificate"] = dict(record.certificate)
    try:
        return _line(fields)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"the record of {record.stage!r}, ranks {record.ranks}, is not JSON: {error}"
        ) from error


def base_lines(records: Mapping[str, StageRecords]) -> Iterator[bytes]:
    """Yield the lines of a base. Ranges are merged; epochs and outputs (promoted by then) are left
    out.
    """
    return (_encoded(record) for name in records for record in merged(name, records[name]))


def merged(stage: str, records: StageRecords) -> Iterator[Completion]:
    """Yield few records that fold to `records`."""
    for ranks in _chunks(records.done):
        yield Completion(stage=stage, ranks=ranks, state="done")
    for items in _chunks(tuple(records.results.items())):
        yield Completion(stage=stage, ranks=(), state="done", results=dict(items))
    for targets in records.targets.batched(_CHUNK):
        yield Completion(stage=stage, ranks=(), state="done", targets=targets)
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
    last = _parse(data[end:], "its last line")
    if "count" not in last or "sha256" not in last:
        raise Torn("its last line is not a count and a checksum")
    if not end or last["sha256"] != hashlib.sha256(memoryview(data)[:end]).hexdigest():
        raise Torn("its checksum does not fit its content")
    lines = data.count(b"\n", 0, end)
    if last["count"] != lines:
        raise Torn(f"it has {lines} lines, its last line says {last['count']!r:.20}")
    return end


def _lines(data: bytes, end: int) -> Iterator[bytes]:
    start = 0
    while start < end:
        stop = data.index(b"\n", start, end)
        yield data[start:stop]
        start = stop + 1


def _header(fields: Mapping[str, Any]) -> Header:
    kind: Literal["base", "seg"] = "base" if fields.get("kind") == "base" else "seg"
    if fields.get("kind") != kind:
        raise Torn("its first line does not say whether it is a base or a segment")
    identity = fields.get("identity")
    return Header(
        kind=kind,
        term=_whole(fields.get("term"), 0),
        n=_whole(fields.get("n"), 0),
        promoted=_whole(fields.get("promoted", 0), 0),
        after=_text(fields.get("after", "")),
        identity_sha256=_text(fields.get("identity_sha256", "")),
        identity=None if identity is None else _identity(identity),
        kept=tuple(map(_text, _sequence(fields.get("kept", [])))),
    )


def _identity(found: object) -> Identity:
    fields = _mapping(found)
    stages = _sequence(fields.get("stages"))
    names = [_text(_mapping(stage).get("name")) for stage in stages]
    if len(set(names)) < len(names):
        raise Torn("its identity has two stages of one name")
    return Identity(job=_text(fields.get("job")), stages=tuple(map(_stage, stages)))


def _stage(found: object) -> StageIdentity:
    """Return the stage in a header: what this version knows of it, with defaults for the rest."""
    fields = _mapping(found)
    known = {a.name: a.type for a in attrs.fields(StageIdentity)}
    required = {"name", "world_size", "function"}
    values = {
        n: _READ[str(t)](fields.get(n)) for n, t in known.items() if n in required | {*fields}
    }
    return StageIdentity(**values)


def _records(lines: Iterable[bytes]) -> Iterator[Completion]:
    for number, line in enumerate(lines, start=2):
        fields = _parse(line, f"line {number}")
        if fields.get("state") in STATES:
            try:
                yield _record(fields)
            except Torn as torn:
                raise Torn(f"line {number}: {torn}") from torn
        elif fields.get("optional") is not True:
            raise Torn(f"line {number} is no record that this version knows")


def _record(fields: Mapping[str, Any]) -> Completion:
    results = {
        _rank(key): _json_text(text) for key, text in _mapping(fields.get("results", {})).items()
    }
    if fields["state"] == "void" and (results or fields.get("outputs") or fields.get("targets")):
        raise Torn("a void record has results or outputs")
    certificate = fields.get("certificate")
    if certificate is not None:
        _check_depth(_mapping(certificate), DEPTH)
    return Completion(
        stage=_text(fields.get("stage")),
        ranks=_ranks(fields.get("ranks")),
        state=fields["state"],
        epoch=_text(fields.get("epoch", "")),
        results=results,
        outputs=[_pair(pair) for pair in _sequence(fields.get("outputs", []))],
        targets=_targets(fields["targets"]) if "targets" in fields else (),
        certificate=certificate,
    )


# -- hostile JSON: everything is looked at before it is believed -----------------------------------


def _refuse_number(text: str) -> float:
    raise ValueError(f"{text:.30} is no number of JSON")


def _finite(text: str) -> float:
    number = float(text)
    return number if abs(number) < float("inf") else _refuse_number(text)


_parse_json = json.JSONDecoder(parse_constant=_refuse_number, parse_float=_finite).decode
_raw_decode = json.JSONDecoder().raw_decode


def _parse(line: bytes, which: str) -> dict[str, Any]:
    try:
        found = _parse_json(line.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise Torn(f"{which} is not JSON: {error!s:.80}") from error
    if not isinstance(found, dict):
        raise Torn(f"{which} is not a JSON object")
    return found


def _expected(what: str, found: object) -> Torn:
    return Torn(f"found {found!r:.60} where {what} is expected")


def _text(found: object) -> str:
    if not isinstance(found, str):
        raise _expected("a text", found)
    return found


def _whole(found: object, low: int) -> int:
    if type(found) is not int or not low <= found < TOP:  # a bool is an int
        raise _expected(f"a whole number from {low} up", found)
    return found


def _mapping(found: object) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise _expected("an object", found)
    return found


def _sequence(found: object) -> list[Any]:
    if not isinstance(found, list):
        raise _expected("a list", found)
    return found


def _pair(found: object) -> tuple[str, str]:
    match found:
        case [str(staged), str(final)]:
            return staged, final
    raise _expected("a pair of texts", found)


def _ranks(found: object) -> Ranks:
    pieces = []
    for piece in _sequence(found):
        match piece:
            case [start, stop] if _whole(start, 0) < _whole(stop, 1):
                pieces.append(range(start, stop))
            case _:
                raise _expected("a first rank and the one after the last", piece)
    return normalise(pieces)


def _targets(found: object) -> Targets:
    try:
        targets = Targets.from_json(found)
    except ValueError as error:
        raise _expected("hashes of final names", found) from error
    _whole(max(targets.top, 0), 0)
    return targets


def _rank(key: str) -> int:
    if not (key.isascii() and key.isdecimal() and len(key) < 20 and str(int(key)) == key):
        raise _expected("a rank", key)
    return _whole(int(key), 0)


def _json_text(found: object) -> str:
    """Return the result of a rank, which is JSON, or nested too deep for that to be known here."""
    text = _text(found)
    try:
        if _raw_decode(text)[1] != len(text):  # the quick way; blanks around it are rare
            json.loads(text)
    except RecursionError:
        pass  # depends on the stack at hand: not to be called damage
    except ValueError as error:
        raise Torn(f"a result is not JSON: {error!s:.80}") from error
    return text


def _check_depth(found: Json, left: int) -> None:
    if not left:
        raise Torn(f"a certificate is nested deeper than {DEPTH} levels")
    inner = found.values() if isinstance(found, dict) else found if isinstance(found, list) else ()
    for value in inner:
        _check_depth(value, left - 1)


_READ: Mapping[str, Callable[[object], Any]] = {
    "str": _text,
    "int": lambda found: _whole(found, 0),
    "tuple[str, ...]": lambda found: tuple(map(_text, _sequence(found))),
    "Mapping[str, str]": lambda found: {k: _text(v) for k, v in _mapping(found).items()},
}
"""By the type of a field of `StageIdentity`: how it is read."""


def _plain(identity: Identity) -> dict[str, Any]:
    """Return the identity as JSON has it."""
    return {
        "job": identity.job,
        "stages": [
            {
                name: dict(value) if isinstance(value, Mapping) else value
                for name, value in attrs.asdict(stage, recurse=False).items()
            }
            for stage in identity.stages
        ],
    }
