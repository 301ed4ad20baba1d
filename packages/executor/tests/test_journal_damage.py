"""Damage is named, what can be read counts, and a state can always be used.

Objects are torn, exchanged and removed between two drivers. Whatever is done to them, the second
driver opens the state, and names what it misses.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path

import anyio
import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from packages.executor.tests.journals import (
    QUICK,
    VirtualTime,
    control,
    journal_at,
    name_of,
    run_once,
)
from thornback.executor.journal.errors import (
    IdentityMismatch,
    JournalError,
    NewerFormat,
)
from thornback.executor.journal.filejournal import JournalParams, read_run
from thornback.executor.journal.holder import Heartbeat, Holder
from thornback.executor.journal.ledger import StageRecords
from thornback.executor.journal.segments import digest
from thornback.executor.journal.steps import Get, List, Reply
from thornback.executor.journal.store import open_store
from thornback.executor.journal.terms import (
    Stored,
    base_name,
    beat_name,
    claim_name,
    load,
    parse,
    seg_name,
)
from thornback.executor.journal.testing import done, job
from thornback.executor.ports import Completion, Identity, Opened

pytestmark = pytest.mark.anyio
V1 = Path(__file__).with_name("states_v1")
COMPACTING = JournalParams(min_interval_s=0, compact_segments=3, compact_segments_max=3)
A, B = job().stages


async def write(url: str, *ranks: int, params: JournalParams = QUICK) -> None:
    """Record ranks of `a`, one per segment, and close."""
    async with journal_at(url, params=params) as journal:
        await journal.open(job(), on_mismatch="refuse")
        for rank in ranks:
            await journal.commit([done("a", rank)])


async def resume(
    url: str, identity: Identity | None = None, *, on_mismatch: str = "refuse"
) -> Opened:
    """Open and close."""
    async with journal_at(url) as journal:
        how = {"refuse": "refuse", "adopt": "adopt", "fresh": "fresh"}[on_mismatch]
        opened = await journal.open(identity or job(), on_mismatch=how)  # type: ignore[arg-type]
        assert opened.damaged == journal.damaged
        return opened


def lose(url: str, *names: str) -> None:
    assert set(names) <= set(control(url))
    open_store(url).delete(names)


def tear(url: str, name: str) -> None:
    store = open_store(url)
    store.put(name, (store.get(name) or b"")[:-3])


def ranks_of(opened: Opened) -> list[int]:
    return [rank for piece in opened.done.get("a", ()) for rank in piece]


def named(damaged: tuple[str, ...]) -> list[str]:
    return [text.partition(":")[0] for text in damaged]


# -- missing objects -------------------------------------------------------------------------------


async def test_missing_base_leaves_its_segments_to_count(memory: str) -> None:
    await write(memory, 1, 2, 3)
    lose(memory, base_name(1, 0))
    opened = await resume(memory)
    assert ranks_of(opened) == [1, 2, 3]
    assert opened.damaged == (f"{base_name(1, 0)}: missing",)
    again = await resume(memory)
    assert (ranks_of(again), again.damaged) == ([1, 2, 3], ())


async def test_missing_compacted_base_is_named_alone(memory: str) -> None:
    await write(memory, *range(6), params=COMPACTING)
    assert [n.n for n in parse(control(memory)) if n.kind == "base"] == [5]
    lose(memory, base_name(1, 5))
    opened = await resume(memory)
    assert (ranks_of(opened), opened.damaged) == ([4, 5], (f"{base_name(1, 5)}: missing",))


async def test_missing_segments_in_the_middle_are_named(memory: str) -> None:
    await write(memory, *range(1, 7))
    lose(memory, seg_name(1, 2), seg_name(1, 4), seg_name(1, 5))
    opened = await resume(memory)
    assert ranks_of(opened) == [1, 3, 6]
    assert set(opened.damaged) == {
        f"{seg_name(1, 2)}: missing",
        f"{seg_name(1, 4)} to {seg_name(1, 5)}: missing",
    }


async def test_missing_tail_is_named_up_to_the_last_beat(memory: str) -> None:
    await write(memory, *range(1, 6))
    lose(memory, seg_name(1, 4), seg_name(1, 5))
    opened = await resume(memory)
    assert ranks_of(opened) == [1, 2, 3]
    assert opened.damaged == (f"{seg_name(1, 4)} to {seg_name(1, 5)}: missing",)


async def test_everything_missing_but_the_beat_is_named(memory: str) -> None:
    await write(memory, 1, 2)
    lose(memory, base_name(1, 0), seg_name(1, 1), seg_name(1, 2))
    opened = await resume(memory)
    assert ranks_of(opened) == []
    assert opened.damaged == (f"{base_name(1, 0)} to {seg_name(1, 2)}: missing",)
    assert (await resume(memory)).damaged == ()


async def test_claims_and_unused_beats_alone_are_an_empty_state(memory: str) -> None:
    store = open_store(memory)
    for term in (1, 2):
        store.put(claim_name(term, "x"), Holder(id="x").encode())
        store.put(beat_name(term), Heartbeat(id="x", count=1, closed=True).encode())
    opened = await resume(memory)
    assert (opened.term, ranks_of(opened), opened.damaged) == (3, [], ())


async def test_a_driver_that_died_before_its_base_is_no_damage(memory: str) -> None:
    await write(memory, 1, 2)
    store = open_store(memory)
    store.put(claim_name(2, "x"), Holder(id="x").encode())
    store.put(beat_name(2), Heartbeat(id="x", count=1, closed=True).encode())
    opened = await resume(memory)
    assert (ranks_of(opened), opened.damaged) == ([1, 2], ())


async def test_what_a_later_term_has_lost_is_named_and_the_older_base_counts(memory: str) -> None:
    """As after a copy that is older than the beat."""
    await write(memory, 1)
    copy = control(memory)
    await write(memory, 2, 3)
    lose(memory, base_name(2, 0), seg_name(2, 1))
    for name in (base_name(1, 0), seg_name(1, 1)):
        open_store(memory).put(name, copy[name])
    opened = await resume(memory)
    assert ranks_of(opened) == [1, 3]
    assert opened.damaged == (f"{base_name(2, 0)} to {seg_name(2, 1)}: missing",)


async def test_beat_is_written_with_the_number_of_the_last_flush(memory: str) -> None:
    await write(memory, 1, 2)
    beat = Heartbeat.decode(control(memory)[beat_name(1)])
    assert beat is not None
    assert (beat.closed, beat.flushed) == (True, 2)


async def test_beat_of_a_refused_job_tells_of_no_flush(memory: str) -> None:
    await write(memory, 1)
    with pytest.raises(IdentityMismatch):
        await resume(memory, job(name="other"))
    beat = Heartbeat.decode(control(memory)[beat_name(2)])
    assert beat is not None
    assert (beat.closed, beat.flushed) == (True, -1)
    opened = await resume(memory)
    assert (ranks_of(opened), opened.damaged) == ([1], ())


# -- torn objects ----------------------------------------------------------------------------------


async def test_torn_base_leaves_its_segments_to_count(memory: str) -> None:
    await write(memory, 1, 2)
    tear(memory, base_name(1, 0))
    opened = await resume(memory)
    assert ranks_of(opened) == [1, 2]
    assert named(opened.damaged) == [base_name(1, 0)]
    assert base_name(1, 0) in control(memory)  # evidence
    again = await resume(memory)
    assert (ranks_of(again), again.damaged) == ([1, 2], ())
    assert base_name(1, 0) in control(memory)


async def test_torn_base_gives_way_to_the_one_below(memory: str) -> None:
    await write(memory, 1)
    copy = control(memory)
    await write(memory, 2)
    for name in (base_name(1, 0), seg_name(1, 1)):
        open_store(memory).put(name, copy[name])
    tear(memory, base_name(2, 0))
    opened = await resume(memory)
    assert ranks_of(opened) == [1, 2]
    assert named(opened.damaged) == [base_name(2, 0)]


async def test_damage_is_one_warning_of_the_run(memory: str) -> None:
    await write(memory, 1)
    lose(memory, seg_name(1, 1))
    assert (await resume(memory)).warnings == (
        f"state {memory!r} is damaged; what can be read of it counts, and what is lost is run "
        f"again: {seg_name(1, 1)}: missing",
    )


async def test_read_run_names_damage_and_needs_a_base(memory: str) -> None:
    await write(memory, 1, 2)
    lose(memory, seg_name(1, 1))
    run = read_run(memory)
    assert (run.done, run.damaged) == ({"a": (range(2, 3),)}, (f"{seg_name(1, 1)}: missing",))
    lose(memory, base_name(1, 0))
    with pytest.raises(JournalError, match="run the job again on this state, which uses what is"):
        read_run(memory)
    assert ranks_of(await resume(memory)) == [2]


async def test_damage_under_a_living_driver_stops_it(memory: str) -> None:
    """It has announced what is lost, so that it cannot go on."""
    async with journal_at(memory) as journal:
        await journal.open(job(), on_mismatch="refuse")
        await journal.commit([done("a", 1)])
        await journal.commit([done("a", 2)])
        lose(memory, seg_name(1, 1))
        with pytest.raises(JournalError, match="damaged while this driver has it"):
            await journal.results("a")
    opened = await resume(memory)
    assert (ranks_of(opened), opened.damaged) == ([2], (f"{seg_name(1, 1)}: missing",))


async def test_compaction_of_a_damaged_term_is_refused(memory: str) -> None:
    async with journal_at(memory, params=COMPACTING) as journal:
        await journal.open(job(), on_mismatch="refuse")
        await journal.commit([done("a", 1)])
        tear(memory, seg_name(1, 1))
        for rank in (2, 3, 4):
            await journal.commit([done("a", rank)])
        with pytest.raises(JournalError, match="damaged while this driver has it"):
            await journal.commit([done("a", 5)])
    assert ranks_of(await resume(memory)) == [2, 3, 4]


# -- of which job segments without a base are ------------------------------------------------------


async def test_segments_without_a_base_of_another_job_are_refused_and_kept(memory: str) -> None:
    await write(memory, 1, 2)
    lose(memory, base_name(1, 0))
    other = job(attrs.evolve(A, version="2"), B)
    with pytest.raises(IdentityMismatch, match="written by another job, or an earlier form"):
        await resume(memory, other)
    assert ranks_of(await resume(memory)) == [1, 2]  # nothing was removed


async def test_segments_without_a_base_of_another_job_can_be_adopted(memory: str) -> None:
    await write(memory, 1, 60)
    lose(memory, base_name(1, 0))
    other = job(attrs.evolve(A, world_size=50), B)
    assert ranks_of(await resume(memory, other, on_mismatch="adopt")) == [1]


async def test_segments_without_a_base_of_another_job_can_be_forgotten(memory: str) -> None:
    await write(memory, 1, 2)
    lose(memory, base_name(1, 0))
    other = job(attrs.evolve(A, version="2"), B)
    assert ranks_of(await resume(memory, other, on_mismatch="fresh")) == []
    assert (await resume(memory, other)).damaged == ()


@pytest.mark.parametrize("name", ["closed", "crashed"])
async def test_segments_of_version_1_without_a_base_count_and_are_kept(
    tmp_path: Path, name: str
) -> None:
    state = str(tmp_path / "state")
    shutil.copytree(V1 / name / "state", state)
    lose(state, base_name(1, 0))
    segments = [n for n in control(state) if n.startswith("seg-")]
    opened = await resume(state)
    assert ranks_of(opened) == [0, 1, 2, 8]
    assert {*named(opened.damaged)} == {base_name(1, 0), *segments}
    assert set(segments) <= set(control(state))


async def test_segments_of_version_1_without_a_base_must_fit_the_job(tmp_path: Path) -> None:
    state = str(tmp_path / "state")
    shutil.copytree(V1 / "closed" / "state", state)
    lose(state, base_name(1, 0))
    for other, why in ((job(A), "'b': is recorded"), (job(attrs.evolve(A, world_size=5), B), "5")):
        with pytest.raises(IdentityMismatch, match=why):
            await resume(state, other)
    assert ranks_of(await resume(state)) == [0, 1, 2, 8]


async def test_segments_of_version_1_in_which_one_is_missing_name_it(tmp_path: Path) -> None:
    state = str(tmp_path / "state")
    shutil.copytree(V1 / "closed" / "state", state)
    lose(state, seg_name(1, 3))
    opened = await resume(state)
    assert opened.damaged == (f"{seg_name(1, 3)}: missing",)
    assert "b" not in opened.done


# -- newer formats ---------------------------------------------------------------------------------


def newer(data: bytes) -> bytes:
    """Return an object as a later version may write it."""
    first, *rest = data.splitlines(keepends=True)[:-1]
    body = json.dumps({**json.loads(first), "version": 3}).encode() + b"\n" + b"".join(rest)
    end = {"count": 1 + len(rest), "sha256": hashlib.sha256(body).hexdigest()}
    return body + json.dumps(end).encode() + b"\n"


@pytest.mark.parametrize("kind", ["base", "seg"])
@pytest.mark.parametrize("how", ["refuse", "adopt", "fresh", "anew"])
async def test_newer_format_is_refused_and_untouched(memory: str, kind: str, how: str) -> None:
    await write(memory, 1, 2)
    name = name_of(memory, kind)
    open_store(memory).put(name, newer(control(memory)[name]))
    before = {n: data for n, data in control(memory).items() if n.startswith(("base", "seg"))}
    said = "was written by a newer thornback: journal version 3, this one reads up to 2. Upgrade"
    async with journal_at(memory, anew=how == "anew") as journal:
        mode = {"adopt": "adopt", "fresh": "fresh"}.get(how, "refuse")
        with pytest.raises(NewerFormat, match=f"state '{memory}' {said}"):
            await journal.open(job(), on_mismatch=mode)  # type: ignore[arg-type]
    with pytest.raises(NewerFormat):
        read_run(memory)
    assert before.items() <= control(memory).items()


# -- objects that cannot be read -------------------------------------------------------------------


def directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


@pytest.mark.parametrize("kind", ["base", "seg", "beat", "claim"])
@pytest.mark.parametrize("spoil", [directory, loop])
async def test_object_that_cannot_be_read_is_named_at_once(
    tmp_path: Path, kind: str, spoil: Callable[[Path], None]
) -> None:
    state, time = str(tmp_path), VirtualTime()
    await run_once(state, done("a", 1))
    name = name_of(state, kind)
    spoil(tmp_path / "control" / name)
    async with journal_at(state, time) as journal:
        with pytest.raises(JournalError, match=f"cannot read control/{name}: .*move it away"):
            await journal.open(job(), on_mismatch="refuse")
    assert time.slept == []


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
async def test_object_without_permission_is_named_at_once(tmp_path: Path) -> None:
    state, time = str(tmp_path), VirtualTime()
    await run_once(state, done("a", 1))
    base = tmp_path / "control" / name_of(state, "base")
    base.chmod(0)
    async with journal_at(state, time) as journal:
        with pytest.raises(JournalError, match=f"cannot read control/{base.name}: PermissionErr"):
            await journal.open(job(), on_mismatch="refuse")
    assert time.slept == []


async def test_object_that_is_listed_and_never_there_is_damage(tmp_path: Path) -> None:
    """As a link to nowhere, or a list that stays out of date."""
    state = str(tmp_path)
    await run_once(state, done("a", 1), done("a", 2))
    segment = tmp_path / "control" / name_of(state, "seg")
    segment.unlink()
    segment.symlink_to("nowhere")
    opened = await resume(state)
    assert (ranks_of(opened), named(opened.damaged)) == ([], [segment.name])


# -- hostile objects -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"[1]",
        b"[" * 100_000,
        b'{"id":5,"host":[],"boot":null,"pids":{},"pid":"x","locked":"yes"}',
        b'{"id":"x","pid":-1}',
        b'{"pid":99999999999999999999999}',
        b'{"id":"x","mood":"good"}',
    ],
    ids=lambda data: str(data[:20]),
)
async def test_hostile_claims_do_not_matter(memory: str, data: bytes) -> None:
    await write(memory, 1)
    open_store(memory).put(claim_name(7, "zz"), data)
    opened = await resume(memory)
    assert (opened.term, ranks_of(opened), opened.damaged) == (8, [1], ())


@pytest.mark.parametrize(
    "data",
    [
        b"[1]",
        b"[" * 100_000,
        b'{"id":1,"count":[],"closed":"yes","promoted":"many","flushed":"all"}',
        b'{"flushed":true,"closed":1}',
        b'{"id":"x","count":3,"closed":true,"promoted":1,"mood":"good"}',
    ],
    ids=lambda data: str(data[:20]),
)
async def test_hostile_beats_do_not_matter(memory: str, data: bytes) -> None:
    await write(memory, 1)
    open_store(memory).put(beat_name(1), data)
    opened = await resume(memory)
    assert (ranks_of(opened), opened.damaged) == ([1], ())


async def test_beat_that_tells_of_a_huge_number_is_quick(memory: str) -> None:
    await write(memory, 1)
    beat = Heartbeat(id="x", count=1, closed=True, flushed=10**30)
    open_store(memory).put(beat_name(1), beat.encode())
    opened = await resume(memory)
    assert ranks_of(opened) == [1]
    assert opened.damaged == (f"{seg_name(1, 2)} to {seg_name(1, 10**30)}: missing",)


@pytest.mark.parametrize(
    "name",
    [
        "base-99999999999999999999-000000",
        "claim-9999999999999999999-x",
        "base-0000001-000000",
        "seg-000001-1",
        "seg-\u0660\u0660\u0660\u0660\u0660\u0661-000001",
        "seg-000001-99999999999999999999",
    ],
)
async def test_names_that_no_driver_gives_are_passed_over(memory: str, name: str) -> None:
    await write(memory, 1)
    open_store(memory).put(name, b"x")
    opened = await resume(memory)
    assert (opened.term, ranks_of(opened), opened.damaged) == (2, [1], ())
    assert control(memory)[name] == b"x"


async def test_highest_term_of_all_is_refused_by_name(memory: str) -> None:
    name = claim_name(10**18 - 1, "x")
    open_store(memory).put(name, b"x")
    with pytest.raises(JournalError, match=f"control/{name} was written by no driver"):
        await resume(memory)


async def test_ranks_above_the_world_size_are_clipped(memory: str) -> None:
    await write(memory, 1)
    huge = Completion(stage="a", ranks=(range(90, 2**61),), state="done")
    stranger = Completion(stage="nowhere", ranks=(range(0, 2**61),), state="failed")
    async with journal_at(memory) as journal:
        await journal.open(job(), on_mismatch="refuse")
        await journal.commit([huge, stranger])
        assert sorted(await journal.results("a")) == [1]
    run = read_run(memory)
    assert (run.done, run.failed) == ({"a": (range(1, 2), range(90, 100))}, {})
    assert ranks_of(await resume(memory)) == [1, *range(90, 100)]


# -- any damage ------------------------------------------------------------------------------------


@cache
def written() -> tuple[tuple[str, bytes], ...]:
    """Return the objects of a state: a base, segments, and what the next driver put before it
    died: its claim, a beat and a base, without the removal of the rest.
    """
    url = "memory://damage-of-any-kind"

    async def body() -> dict[str, bytes]:
        await write(url, *range(7), params=COMPACTING)
        first = control(url)
        await write(url, 20)
        return first

    first = anyio.run(body)
    second = {name: data for name, data in control(url).items() if not name.startswith("seg")}
    beat = Heartbeat(id="x", count=2, flushed=0)
    return tuple(sorted({**first, **second, beat_name(2): beat.encode()}.items()))


def alone() -> dict[str, bytes]:
    """Return the same before the next driver."""
    return {name: data for name, data in written() if "-000001" in name}


def ranks_read(objects: dict[str, bytes]) -> tuple[set[int], set[int], tuple[str, ...]]:
    """Return the ranks that are done, those with results, and the damage that is named."""
    steps = load("x", trusted=frozenset({digest(job()), ""}))
    reply: Reply = None
    while True:
        try:
            op = steps.send(reply)
        except StopIteration as stop:
            stored: Stored = stop.value
            break
        reply = None
        if isinstance(op, Get):
            reply = objects.get(op.name)
        elif isinstance(op, List):
            reply = tuple(sorted(objects))
    records = stored.records.get("a", StageRecords())
    return {r for piece in records.done for r in piece}, {*records.results}, stored.damaged


@st.composite
def damaged_objects(draw: st.DrawFn, objects: dict[str, bytes]) -> dict[str, bytes]:
    names = sorted(objects)
    for _ in range(draw(st.integers(1, 3))):
        name = draw(st.sampled_from(names))
        data = objects.get(name, b"")
        at = draw(st.integers(0, max(0, len(data) - 1)))
        match draw(st.integers(0, 7)):
            case 0:
                objects.pop(name, None)
            case 1:
                objects[name] = data[:at]
            case 2:
                objects[name] = data[:at] + draw(st.binary(min_size=1, max_size=3)) + data[at:]
            case 3:
                bit = bytes([data[at] ^ 1 << draw(st.integers(0, 7))]) if data else b""
                objects[name] = data[:at] + bit + data[at + 1 :]
            case 4:
                objects[name] = objects.get(draw(st.sampled_from(names)), b"")
            case 5:
                objects[name] = data + data
            case 6:
                lines = data.splitlines(keepends=True)
                objects[name] = b"".join(draw(st.permutations(lines)))
            case _:
                objects[name] = bytes(len(data))
    return objects


def test_the_objects_that_are_damaged_below_are_whole() -> None:
    assert ranks_read(alone()) == ({*range(7)}, {*range(7)}, ())
    assert ranks_read(dict(written())) == ({*range(7)}, {*range(7)}, ())
    kinds = [name.partition("-")[0] for name, _ in written()]
    assert {kind: kinds.count(kind) for kind in kinds} == {
        "base": 2,
        "beat": 2,
        "claim": 2,
        "seg": 3,
    }


@pytest.mark.parametrize("later", [False, True], ids=["one term", "two terms"])
@settings(max_examples=300)
@given(data=st.data())
def test_any_damage_leaves_the_truth_or_is_named(later: bool, data: st.DataObject) -> None:
    original = dict(written()) if later else alone()
    objects = data.draw(damaged_objects(dict(original)))
    done, results, damaged = ranks_read(objects)
    truth = {*range(7)}
    assert done <= truth
    assert results <= done
    beats = [name for name in original if name.startswith("beat")]
    if all(objects.get(name) == original[name] for name in beats):  # else a lost tail is silent
        assert damaged or done == results == truth
