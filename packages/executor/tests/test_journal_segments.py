"""Bytes of the journal: what goes in comes out, and nothing else does."""

from __future__ import annotations

import hashlib
import json
import time
import tracemalloc
from collections.abc import Mapping
from typing import Literal

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from thornback.executor.journal import segments
from thornback.executor.journal.errors import NewerFormat
from thornback.executor.journal.ledger import (
    Ledger,
    StageRecords,
    clip,
    intersect,
    normalise,
    subtract,
)
from thornback.executor.journal.segments import (
    Header,
    Torn,
    base_lines,
    decode,
    digest,
    encode,
    encode_record,
    merged,
)
from thornback.executor.journal.targets import Targets
from thornback.executor.ports import Completion, Identity, Json, Ranks, StageIdentity

RANKS = 40
texts = st.text(max_size=20)
json_values: st.SearchStrategy[Json] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
json_texts = json_values.map(json.dumps)
rank_sets = st.frozensets(st.integers(0, RANKS - 1))


def ranks_of(numbers: frozenset[int] | set[int]) -> Ranks:
    return normalise(range(n, n + 1) for n in sorted(numbers))


def numbers_of(ranks: Ranks) -> set[int]:
    return {n for piece in ranks for n in piece}


def targets_of(ranks: frozenset[int]) -> st.SearchStrategy[tuple[int, int]]:
    return st.tuples(st.sampled_from(sorted(ranks)), st.integers(0, 2**64 - 1))


@st.composite
def records(draw: st.DrawFn) -> Completion:
    ranks = draw(rank_sets.filter(bool))
    states: list[Literal["done", "failed", "skipped", "void"]]
    states = ["done", "failed", "skipped", "void"]
    state = draw(st.sampled_from(states))
    done = state == "done"
    results = draw(st.dictionaries(st.sampled_from(sorted(ranks)), json_texts)) if done else {}
    why = None if done else draw(st.none() | st.dictionaries(texts, json_values, max_size=3))
    return Completion(
        stage=draw(st.sampled_from(["a", "b", "\u2028\ud800"])),
        ranks=ranks_of(ranks),
        state=state,
        epoch=draw(st.sampled_from(["", "000001.000000002"])),
        results=results,
        outputs=draw(st.lists(st.tuples(texts, texts), max_size=2)) if done else [],
        targets=(done and Targets(draw(st.lists(targets_of(ranks), max_size=3)))) or (),
        certificate=why,
    )


identities = st.builds(
    Identity,
    job=texts,
    stages=st.lists(
        st.builds(
            StageIdentity,
            name=texts,
            world_size=st.integers(0, 10**6),
            function=texts,
            version=texts,
            items_digest=texts,
            parents=st.lists(texts, max_size=2).map(tuple),
        ),
        max_size=2,
        unique_by=lambda stage: stage.name,
    ).map(tuple),
)


@given(
    batch=st.lists(records(), max_size=4),
    identity=st.none() | identities,
    term=st.integers(1, 10**7),
    n=st.integers(0, 10**7),
)
def test_round_trip(batch: list[Completion], identity: Identity | None, term: int, n: int) -> None:
    header = Header(
        kind="seg" if identity is None else "base",
        term=term,
        n=n,
        promoted=n,
        after="seg-000001-000002",
        identity_sha256="" if identity is None else digest(identity),
        identity=identity,
    )
    data = encode(header, [encode_record(record) for record in batch])
    found, decoded = decode(data, Header(kind=header.kind, term=term, n=n))
    assert found == header
    assert list(decoded) == batch


@given(batch=st.lists(records(), min_size=1, max_size=2))
def test_torn_at_every_byte(batch: list[Completion]) -> None:
    header = Header(kind="seg", term=3, n=4)
    data = encode(header, [encode_record(record) for record in batch])
    for length in range(len(data)):
        with pytest.raises(Torn):
            decode(data[:length], header)


@given(where=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_a_flipped_bit_is_noticed(where: int, bit: int) -> None:
    header = Header(kind="seg", term=3, n=4)
    good = Completion(stage="a", ranks=(range(5),), state="done", results={1: "[1]"})
    data = bytearray(encode(header, [encode_record(good)]))
    data[where % len(data)] ^= 1 << bit
    try:
        found, decoded = decode(bytes(data), header)
        assert (found, list(decoded)) == (
            header,
            [good],
        )  # hex digits of either case are one number
    except Torn:
        pass


@pytest.mark.parametrize(
    "other",
    [
        Header(kind="seg", term=3, n=5),
        Header(kind="seg", term=2, n=4),
        Header(kind="base", term=3, n=4, identity=Identity(job="j", stages=())),
    ],
)
def test_another_object_under_this_name_is_foreign(other: Header) -> None:
    with pytest.raises(Torn, match="under another name"):
        decode(encode(other, []), Header(kind="seg", term=3, n=4))


def test_two_objects_in_one_are_torn() -> None:
    header = Header(kind="seg", term=3, n=4)
    data = encode(header, [])
    with pytest.raises(Torn, match="checksum"):
        decode(data + data, header)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "empty"),
        (b"\n", "last line"),
        (b"hello\n", "last line"),
        (b"[]\n[]\n", "last line"),
        (b'{}\n{"count":1}\n', "last line"),
        (b"[" * 100_000 + b"\n", "last line"),
        (b"\xff\xfe\n\xff\n", "last line"),
    ],
)
def test_foreign_bytes_are_torn(data: bytes, why: str) -> None:
    with pytest.raises(Torn, match=why):
        decode(data, Header(kind="seg", term=3, n=4))


def forged(*lines: str, header: Mapping[str, object] | None = None) -> bytes:
    """Return a segment (term 3, number 4) of these lines, with an end that fits."""
    first = {"format": "thornback-journal", "version": 2, "kind": "seg", "term": 3, "n": 4}
    body = "".join(f"{line}\n" for line in (json.dumps({**first, **(header or {})}), *lines))
    end = {"count": len(lines) + 1, "sha256": hashlib.sha256(body.encode()).hexdigest()}
    return body.encode() + json.dumps(end).encode() + b"\n"


SEG = Header(kind="seg", term=3, n=4)


def test_decode_of_a_newer_version_says_that_it_is_newer() -> None:
    with pytest.raises(NewerFormat, match="newer thornback: journal version 3, this one reads up"):
        decode(forged("anything", header={"version": 3}), SEG)


def test_decode_of_a_newer_version_that_is_cut_off_is_torn() -> None:
    """One bit makes 3 of 2: that must not turn damage into a refusal."""
    with pytest.raises(Torn):
        decode(forged("anything", header={"version": 3})[:-5], SEG)


def test_decode_ignores_fields_and_optional_lines_of_later_versions() -> None:
    data = forged(
        '{"stage":"a","state":"done","ranks":[[0,2]],"speed":[1]}',
        '{"optional":true,"keys":{"a":["x","y"]}}',
        '{"optional":true,"state":"paused","ranks":7}',
        header={"mood": "good", "promoted": 2},
    )
    found, records_ = decode(data, SEG)
    assert found == attrs.evolve(SEG, promoted=2)
    assert list(records_) == [Completion(stage="a", ranks=(range(2),), state="done", outputs=[])]


def test_decode_ignores_fields_of_stages_and_has_defaults() -> None:
    stage = {"name": "a", "world_size": 3, "function": "f", "colour": "red"}
    identity = {"job": "j", "stages": [stage], "owner": "me"}
    base = attrs.evolve(SEG, kind="base")
    found, _ = decode(forged(header={"kind": "base", "identity": identity}), base)
    expected = StageIdentity(name="a", world_size=3, function="f")
    assert found.identity == Identity(job="j", stages=(expected,))


def test_every_field_of_a_stage_can_be_read() -> None:
    """A field of a new type needs an entry in `segments._READ`."""
    assert {str(field.type) for field in attrs.fields(StageIdentity)} <= {*segments._READ}


@pytest.mark.parametrize(
    "line",
    [
        "[]",
        "7",
        "{}",
        '{"optional":1}',
        '{"state":"paused","stage":"a","ranks":[]}',
        '{"state":"done","ranks":[[0,1]]}',
        '{"state":"done","stage":5,"ranks":[[0,1]]}',
        '{"state":"done","stage":"a"}',
        '{"state":"done","stage":"a","ranks":{"0":1}}',
        '{"state":"done","stage":"a","ranks":[[0]]}',
        '{"state":"done","stage":"a","ranks":[[-1,4]]}',
        '{"state":"done","stage":"a","ranks":[[4,4]]}',
        '{"state":"done","stage":"a","ranks":[[5,4]]}',
        '{"state":"done","stage":"a","ranks":[[0,1.5]]}',
        '{"state":"done","stage":"a","ranks":[[false,true]]}',
        '{"state":"done","stage":"a","ranks":[["0","1"]]}',
        '{"state":"done","stage":"a","ranks":[[0,99999999999999999999]]}',
        '{"state":"done","stage":"a","ranks":[[0,1]],"epoch":3}',
        '{"state":"done","stage":"a","ranks":[[0,1]],"results":["1"]}',
        '{"state":"done","stage":"a","ranks":[[0,1]],"results":{"0":1}}',
        '{"state":"done","stage":"a","ranks":[[0,1]],"results":{"0":"{"}}',
        '{"state":"done","stage":"a","ranks":[[0,1]],"results":{"0":""}}',
        '{"state":"done","stage":"a","ranks":[[0,1]],"results":{"x":"1"}}',
        '{"state":"done","stage":"a","ranks":[[0,1]],"results":{"-1":"1"}}',
        '{"state":"done","stage":"a","ranks":[[0,1]],"results":{"00":"1"}}',
        '{"state":"done","stage":"a","ranks":[[0,1]],"outputs":"ab"}',
        '{"state":"done","stage":"a","ranks":[[0,1]],"outputs":[["a"]]}',
        '{"state":"done","stage":"a","ranks":[[0,1]],"outputs":[["a",1]]}',
        '{"state":"failed","stage":"a","ranks":[[0,1]],"certificate":[]}',
        '{"state":"failed","stage":"a","ranks":[[0,1]],"certificate":{"x":NaN}}',
        '{"state":"failed","stage":"a","ranks":[[0,1]],"certificate":{"x":1e999}}',
        '{"state":"failed","stage":"a","ranks":[[0,1]],"certificate":{"x":DEEP}}',
        '{"state":"void","stage":"a","ranks":[[0,1]],"results":{"0":"1"}}',
        '{"state":"void","stage":"a","ranks":[[0,1]],"outputs":[["a","b"]]}',
        '{"x":' + "[" * 100_000,
        '{"x":' + "9" * 5_000 + "}",
    ],
    ids=lambda line: line[:90],
)
def test_decode_of_a_hostile_line_is_torn(line: str) -> None:
    good = '{"stage":"a","state":"done","ranks":[[0,2]]}'
    bad = line.replace("DEEP", "[" * 200 + "]" * 200)
    _, found = decode(forged(good, bad), SEG)
    with pytest.raises(Torn, match="line 3"):
        list(found)


json_lines = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 10**20) | st.floats() | st.sampled_from(["a", "1"]),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.dictionaries(
            st.sampled_from(
                [
                    "stage",
                    "state",
                    "ranks",
                    "results",
                    "outputs",
                    "certificate",
                    "epoch",
                    "optional",
                ]
            ),
            inner | st.sampled_from(["done", "failed", "void"]),
            max_size=6,
        )
    ),
    max_leaves=8,
)


@given(lines=st.lists(json_lines.map(json.dumps) | st.text(max_size=9), max_size=3))
def test_decode_of_anything_that_its_end_fits_gives_records_or_torn(lines: list[str]) -> None:
    try:
        _, found = decode(forged(*lines), SEG)
        for record in found:
            assert decode(encode(SEG, [encode_record(record)]), SEG)
    except Torn:
        pass


@pytest.mark.parametrize(
    "header",
    [
        {"format": "other"},
        {"version": True},
        {"version": 0},
        {"version": "2"},
        {"term": 3.0},
        {"term": True},
        {"n": None},
        {"kind": ["seg"]},
        {"promoted": -1},
        {"after": 5},
        {"identity_sha256": {}},
        {"identity": []},
        {"identity": {"job": "j"}},
        {"identity": {"job": 5, "stages": []}},
        {"identity": {"job": "j", "stages": [{"name": "a"}]}},
        {"identity": {"job": "j", "stages": [5]}},
    ],
    ids=str,
)
def test_decode_of_a_hostile_header_is_torn(header: dict[str, object]) -> None:
    with pytest.raises(Torn):
        decode(forged(header=header), SEG)


def test_decode_takes_huge_and_overlapping_ranges_in_order() -> None:
    _, found = decode(
        forged('{"state":"done","stage":"a","ranks":[[5,4000000000000000000],[0,7]]}'), SEG
    )
    [record] = found
    assert record.ranks == (range(0, 4_000_000_000_000_000_000),)


def test_digest_ignores_empty_fields_and_nothing_else() -> None:
    """So that a later version may add fields, and old segments are still of the same job."""
    a = StageIdentity(name="a", world_size=3, function="f")
    known = digest(Identity(job="j", stages=(a,)))
    assert known == "f31667d4907ff8aaa04823cd0f54e5f46a0003a19398790e7324732d6758a9aa"
    for other in (
        attrs.evolve(a, name="b"),
        attrs.evolve(a, world_size=4),
        attrs.evolve(a, version="2"),
        attrs.evolve(a, parents=("x",)),
    ):
        assert digest(Identity(job="j", stages=(other,))) != known
    assert digest(Identity(job="k", stages=(a,))) != known


@pytest.mark.parametrize(
    ("record", "why"),
    [
        (Completion(stage="a", ranks=(range(0, 4, 2),), state="done"), "step 1"),
        (Completion(stage="a", ranks=(range(-1, 4),), state="done"), "from 0"),
        (Completion(stage="a", ranks=(range(4, 4),), state="done"), "non-empty"),
        (
            Completion(
                stage="a", ranks=(range(1),), state="failed", certificate={"x": float("nan")}
            ),
            "not JSON",
        ),
        (Completion(stage="a", ranks=(range(1),), state="done", results={0: "{"}), "not JSON"),
        (Completion(stage="a", ranks=(range(1),), state="done", results={-1: "1"}), "a rank"),
        (Completion(stage="a", ranks=(range(1),), state="void", results={0: "1"}), "void record"),
        (Completion(stage="a", ranks=(range(1),), state="void", targets=[(0, 1)]), "void record"),
    ],
)
def test_what_cannot_be_kept_is_refused(record: Completion, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        encode_record(record)


def test_a_million_ranks_in_order_are_one_short_line() -> None:
    ledger = Ledger()
    for start in range(0, 1_000_000, 100):
        ledger.add(Completion(stage="a", ranks=(range(start, start + 100),), state="done"))
    assert sum(map(len, base_lines(ledger.freeze()))) < 100


class Plain:
    """The obvious fold, rank by rank."""

    def __init__(self, batch: list[Completion]) -> None:
        self.state: dict[tuple[str, int], str] = {}
        self.results: dict[tuple[str, int], str] = {}
        self.targets: dict[tuple[str, int], set[int]] = {}
        for record in batch:
            for rank in numbers_of(record.ranks):
                key = record.stage, rank
                if record.state == "void":
                    self.state.pop(key, None)
                    self.results.pop(key, None)
                    self.targets.pop(key, None)
                elif self.state.get(key) != "done":
                    self.state[key] = record.state
            if record.state == "done":
                for rank, text in record.results.items():
                    self.results.setdefault((record.stage, rank), text)
                for rank, number in record.targets:
                    self.targets.setdefault((record.stage, rank), set()).add(number)

    def of(self, stage: str, state: str) -> set[int]:
        return {rank for (name, rank), said in self.state.items() if (name, said) == (stage, state)}


def fold(batch: list[Completion]) -> dict[str, StageRecords]:
    ledger = Ledger()
    for record in batch:
        ledger.add(record)
    return ledger.freeze()


@given(batch=st.lists(records(), max_size=8))
def test_the_fold_is_the_obvious_one(batch: list[Completion]) -> None:
    plain = Plain(batch)
    folded = fold(batch)
    for stage, found in folded.items():
        assert numbers_of(found.done) == plain.of(stage, "done")
        assert numbers_of(found.failed) == plain.of(stage, "failed")
        assert numbers_of(found.skipped) == plain.of(stage, "skipped")
        assert dict(found.results) == {
            rank: text for (name, rank), text in plain.results.items() if name == stage
        }
        assert set(found.targets) == {
            (rank, number)
            for (name, rank), numbers in plain.targets.items()
            for number in numbers
            if name == stage
        }
        for paper in found.certificates:
            assert paper.ranks
            about = found.failed if paper.state == "failed" else found.skipped
            assert intersect(paper.ranks, about) == paper.ranks
    assert set(folded) == {name for name, _ in plain.state}


@given(batch=st.lists(records(), max_size=8))
def test_compaction_changes_nothing(batch: list[Completion]) -> None:
    folded = fold(batch)
    again = fold([record for name in folded for record in merged(name, folded[name])])
    assert again == folded


@given(batch=st.lists(records(), max_size=4), size=st.integers(0, RANKS))
def test_clip(batch: list[Completion], size: int) -> None:
    for found in fold(batch).values():
        clipped = clip(found, size)
        for field in ("done", "failed", "skipped"):
            kept = {n for n in numbers_of(getattr(found, field)) if n < size}
            assert numbers_of(getattr(clipped, field)) == kept
        assert all(rank < size for rank in clipped.results)
        assert set(clipped.targets) == {pair for pair in found.targets if pair[0] < size}
        assert clip(found, RANKS) == found


@given(a=rank_sets, b=rank_sets)
def test_ranges_are_sets(a: frozenset[int], b: frozenset[int]) -> None:
    x, y = ranks_of(a), ranks_of(b)
    assert numbers_of(subtract(x, y)) == a - b
    assert numbers_of(intersect(x, y)) == a & b
    assert numbers_of(normalise((*x, *y))) == a | b
    for ranks in (subtract(x, y), intersect(x, y), normalise((*y, *x))):
        assert normalise(ranks) == ranks


def test_the_later_certificate_counts() -> None:
    first = Completion(stage="a", ranks=(range(1),), state="failed", certificate={"n": 1})
    found = fold([first, attrs.evolve(first, certificate={"n": 2})])["a"]
    assert [paper.why for paper in found.certificates] == [{"n": 2}]


def test_ledger_void_in_turns_with_done_is_folded_quickly() -> None:
    """A hostile state of a few MB must not keep a driver busy for hours."""
    ledger = Ledger()
    for rank in range(8_000):
        ledger.add(Completion(stage="a", ranks=(range(0, 1),), state="void"))
        done = (range(2 * rank, 2 * rank + 1),)
        ledger.add(Completion(stage="a", ranks=done, state="done", results={2 * rank: "1"}))
    started_s = time.process_time()
    found = ledger.freeze()["a"]
    assert time.process_time() - started_s < 15
    assert found.done == tuple(range(rank, rank + 1) for rank in range(2, 16_000, 2))
    assert sorted(found.results) == [*range(2, 16_000, 2)]


def test_results_of_other_stages_are_not_held() -> None:
    ledger = Ledger(lambda stage: stage == "b")
    for stage in "ab":
        ledger.add(Completion(stage=stage, ranks=(range(1),), state="done", results={0: "1"}))
    folded = ledger.freeze()
    assert (folded["a"].results, folded["b"].results) == ({}, {0: "1"})


def test_a_base_takes_its_own_size_in_memory_and_a_line_besides() -> None:
    header = Header(kind="base", term=1, n=0, identity=Identity(job="j", stages=()))
    results = {rank: f'"{rank}{"x" * 500}"' for rank in range(20_000)}
    known = {"a": StageRecords(done=(range(20_000),), results=results)}
    tracemalloc.start()
    try:
        data = encode(header, base_lines(known))
        written = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        _, found = decode(data, header)
        assert sum(len(record.results) for record in found) == 20_000
        read = tracemalloc.get_traced_memory()[1] - len(data)
    finally:
        tracemalloc.stop()
    assert written < 1.5 * len(data)
    assert read < 0.5 * len(data)
