"""The pure parts of a worker: frames, books, deaths, environments, what a rank process may say."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from itertools import chain
from pathlib import Path

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from thornback.pool import Assignment, Checkpoint, WorkerSpec
from thornback.pool.worker import wire
from thornback.pool.worker.assignments import Books, Item
from thornback.pool.worker.deaths import Death, KillReason, OomKills, died
from thornback.pool.worker.environ import slot_env, worker_env
from thornback.pool.worker.freeport import FreePorts, outside
from thornback.pool.worker.news import (
    Done,
    Need,
    Progressed,
    Saved,
    SetUp,
    Started,
    TornDown,
    parse,
)
from thornback.pool.worker.pace import Pace
from thornback.pool.worker.wire import FrameError, Frames

# -- frames --------------------------------------------------------------------------------------


@given(st.lists(st.binary(max_size=20), max_size=6), st.integers(1, 12))
def test_frames_come_out_as_they_went_in_however_they_are_cut(
    bodies: list[bytes], piece: int
) -> None:
    stream = b"".join(map(wire.frame, bodies))
    frames = Frames()
    found: list[bytes] = []
    for at in range(0, len(stream), piece):
        found += frames.feed(stream[at : at + piece])
    assert found == bodies


def test_a_frame_that_is_too_long_is_refused() -> None:
    with pytest.raises(FrameError, match="9 bytes, expected at most 8"):
        Frames(8).feed(wire.frame(bytes(9))[:8])


def test_pickled_and_json_frames() -> None:
    (body,) = Frames().feed(wire.pickled(("a", 1)))
    assert wire.unpickled(body) == ("a", 1)
    assert Frames().feed(wire.as_json(["ä", 1])) == [b'["\\u00e4",1]']


# -- what a rank process may say -----------------------------------------------------------------


def test_what_a_rank_process_says_is_understood() -> None:
    assert parse(b'["started",3]') == Started(serial=3)
    assert parse(b'["need","k"]') == Need(key="k")
    assert parse(b'["set_up",null,5,null,true]') == SetUp(
        error=None, peak_rss_bytes=5, has_teardown=True
    )
    assert parse(b'["done",3,"{}",[["a","b"]],null,0.5,9,null,7,4]') == Done(
        serial=3,
        result="{}",
        outputs=(("a", "b"),),
        error=None,
        ran_s=0.5,
        peak_rss_bytes=9,
        log_size=7,
        next=4,
    )
    assert parse(b'["torn_down"]') == TornDown()
    assert parse(b'["checkpoint",3,1,"AAE="]') == Saved(serial=3, number=1, data=b"\x00\x01")
    assert parse(b'["progress",3,1.5,null]') == Progressed(serial=3, done=1.5, total=None)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff\x00",
        b"{}",
        b'["done",3]',
        b'["done",3,1,[],null,0.5,9,null,7,4]',
        b'["done",3,null,[["a"]],null,0.5,9,null,7,4]',
        b'["done",3,null,[["a",1]],null,0.5,9,null,7,4]',
        b'["done",3,null,[],"error",0.5,9,null,7,4]',
        b'["done",3,null,[],null,"0.5",9,null,7,4]',
        b'["done",3,null,[],null,NaN,9,null,7,4]',
        b'["done",3,null,[],null,0.5,9,null,7]',
        b'["done",3,null,[],null,0.5,9,null,-2,0]',
        b'["done",3,null,[],null,0.5,9,null,1e300,0]',
        b'["done",3,null,[],null,0.5,9,[],7,4]',
        b'["done",3,null,[],null,0.5,9,[0,0,1.5,[["name"]]],7,4]',
        b'["torn_down"] ["torn_down"]',
        b'["set_up",[],5,null,false]',
        b'["set_up",null,5,null,1]',
        b'["checkpoint",3,1,"A"]',
        b'["checkpoint",3,1,"' + b"AAAA" * 349_526 + b'"]',
        b'["progress",3,Infinity,null]',
        b'["progress",3,1.0,NaN]',
        b'["progress",3,null,null]',
        b'["started","3"]',
    ],
)
def test_anything_else_is_refused(body: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        parse(body)


# -- books ---------------------------------------------------------------------------------------


def assignment(*ranks: range) -> Assignment:
    return Assignment(assignment=1, epoch="e", stage=0, ranks=ranks, program="p")


@st.composite
def _ranges(draw: st.DrawFn) -> tuple[range, ...]:
    edges = sorted(draw(st.sets(st.integers(0, 20), min_size=2, max_size=6)))
    return tuple(range(*edge) for edge in zip(edges[::2], edges[1::2], strict=False))


EVENTS = ["begin", "ok", "recalled", "take back", "hand back"]


@given(_ranges(), st.lists(st.sampled_from(EVENTS), max_size=40))
def test_every_rank_is_reported_once(ranks: tuple[range, ...], events: list[str]) -> None:
    books = Books(work=assignment(*ranks))
    for now, event in enumerate(chain(events, ["ok", "begin"] * 25)):
        if event == "hand back":
            books.hand_back()
        elif event == "begin":
            books.begin()
        elif event == "take back":
            books.unbegin(list(books.out)[now % 3 :: 2])
        elif books.out:
            books.end({"rank": books.out[0].rank, "ok": True} if event == "ok" else None, now)
        books.report()
    assert books.over
    assert books.first is not None
    assert books.last is not None
    parts = [books.first.report(99.0)]
    if not parts[0].final:
        parts.append(books.last.report(99.0))
    assert [part.final for part in parts][-1:] == [True]
    outcomes = [outcome.rank for part in parts for outcome in part.outcomes]
    returned = [rank for part in parts for each in part.returned for rank in each]
    assert sorted(outcomes + returned) == list(chain.from_iterable(ranks))


def test_the_first_part_comes_with_the_hand_back_and_the_last_with_the_end() -> None:
    books = Books(work=assignment(range(4)))
    books.begin()
    books.end({"rank": 0, "ok": True}, 1.0)
    books.begin()
    books.report()
    assert books.first is None
    books.hand_back()
    books.report()
    assert books.first is not None
    first = books.first.report(5.0)
    assert (first.running, first.returned, first.final) == (1, (range(2, 4),), False)
    assert [outcome.ago_s for outcome in first.outcomes] == [4.0]
    assert books.last is None
    books.end(None, 6.0)
    books.report()
    assert books.last is not None
    last = books.last.report(6.0)
    assert (last.returned, last.final) == ((range(1, 2),), True)
    assert books.first.report(5.0) == first


def test_what_is_taken_back_comes_again_with_what_is_its_own() -> None:
    work = attrs.evolve(assignment(range(3)), args=(b"a", b"b", b"c"), restored=(None, b"s", None))
    books = Books(work=work)
    for _ in range(3):
        books.begin()
    first, second, third = books.out
    assert first == Item(0, 0, b"a", None)
    assert second == Item(1, 1, b"b", b"s")
    assert third == Item(2, 2, b"c", None)
    assert books.begin() is None
    books.unbegin([third])
    books.unbegin([second])
    assert not books.over
    assert [books.begin(), books.begin(), books.begin()] == [second, third, None]
    books.hand_back()
    books.unbegin([third])
    books.end({"rank": 0, "ok": True}, 1.0)
    books.end(None, 1.0)
    books.report()
    assert books.last is not None
    assert books.last.report(1.0).returned == (range(1, 2), range(2, 3))


def test_what_was_taken_back_is_returned_with_the_rest() -> None:
    books = Books(work=assignment(range(3, 9), range(20, 22)))
    for _ in range(4):
        books.begin()
    books.unbegin([item for item in tuple(books.out)[1:] if item.rank != 5])
    books.hand_back()
    books.report()
    assert books.first is not None
    assert books.first.report(0.0).returned == (range(4, 5), range(6, 9), range(20, 22))


def test_a_checkpoint_lasts_until_its_rank_has_succeeded() -> None:
    books = Books(work=assignment(range(3)))
    books.begin()
    books.save(b"one")
    books.save(b"two")
    saved = Checkpoint(rank=0, version=2, data=b"two")
    assert (books.newer(0), books.newer(1), books.newer(2)) == (saved, saved, None)
    books.end({"rank": 0, "ok": False}, 1.0)
    books.begin()
    books.end({"rank": 1, "ok": True}, 1.0)
    assert books.newer(0) == saved
    books.begin()
    books.save(b"three")
    assert books.newer(2) == Checkpoint(rank=2, version=3, data=b"three")
    books.end({"rank": 2, "ok": True}, 1.0)
    assert books.newer(0) is None


# -- pace ----------------------------------------------------------------------------------------


def test_only_fast_ranks_lie_ahead() -> None:
    pace = Pace()
    assert (pace.most, pace.nap_s(0)) == (1, 0.0)
    pace.ran(1e-6)
    assert pace.most == 64
    assert 0.0 < pace.nap_s(63) <= 63 * pace.each_s / 2
    assert pace.nap_s(3) == 0.0
    pace.ran(1.0)
    assert pace.most == 1
    for _ in range(20):
        pace.ran(0.004)
    assert pace.most in (3, 4)
    assert Pace(0.001).nap_s(1000) == 0.005


# -- ports ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("low", "high", "found"),
    [
        (32_768, 60_999, [range(20_000, 32_768), range(61_000, 65_536)]),
        (1_024, 65_535, []),
        (15_000, 61_000, [range(61_001, 65_536)]),
        (20_010, 65_500, []),
    ],
)
def test_ports_outside_of_the_ephemeral_range(low: int, high: int, found: list[range]) -> None:
    assert list(outside(low, high)) == found


def test_a_port_is_free_and_not_given_twice() -> None:
    ports = FreePorts()
    given = [ports.one() for _ in range(50)]
    assert len(set(given)) == 50
    low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    if outside(low, high):
        assert not any(low <= port <= high for port in given)
    with socket.create_server(("", given[0])):
        pass


# -- deaths --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("death", "oom_kill", "attributes", "words"),
    [
        (Death(pid=5, status=3 << 8, max_rss_bytes=0), False, {"exit_code": 3}, "code 3"),
        (
            Death(pid=5, status=9, max_rss_bytes=0),
            True,
            {"signal": 9, "signal_name": "SIGKILL", "oom_kill": True},
            "ran out of memory",
        ),
        (
            Death(pid=5, status=9, max_rss_bytes=0, killed_for=KillReason.MEMORY, detail="why"),
            False,
            {"signal": 9, "signal_name": "SIGKILL", "memory_limit_exceeded": True},
            "; why",
        ),
        (
            Death(pid=5, status=signal.SIGRTMIN + 3, max_rss_bytes=0),
            False,
            {"signal": signal.SIGRTMIN + 3, "signal_name": f"SIG{signal.SIGRTMIN + 3}"},
            "was killed by SIG",
        ),
    ],
)
def test_a_death_as_data(
    death: Death, oom_kill: bool, attributes: Mapping[str, object], words: str
) -> None:
    error = died(death, oom_kill=oom_kill)
    assert error.attributes == attributes
    assert words in error.message


def test_out_of_memory_kills_are_noticed_for_two_samples(tmp_path: Path) -> None:
    missing, counter = tmp_path / "missing", tmp_path / "memory.events"
    counter.write_text("max 3\noom_kill 1\n")
    kills = OomKills(((missing, "oom_kill"), (counter, "nothing"), (counter, "oom_kill")))
    assert not kills.risen()
    counter.write_text("max 3\noom_kill 2\n")
    for _ in range(2):
        assert kills.risen()
        kills.sample()
    assert kills.risen()
    kills.sample()
    assert not kills.risen()
    assert not OomKills(((missing, "oom_kill"),)).risen()


# -- environment ---------------------------------------------------------------------------------


def test_the_environment_of_a_worker() -> None:
    spec = WorkerSpec(cpus=5.0, slots=2, env={"MY": "1", "MKL_NUM_THREADS": "7"})
    inherited = {"OMP_NUM_THREADS": "5", "HOME": "/h", "MY": "0"}
    assert worker_env(spec, inherited, marker="m", node_index=1, nodes=2) == {
        "HOME": "/h",
        "MKL_NUM_THREADS": "7",
        "MY": "1",
        "OMP_NUM_THREADS": "2",
        "OPENBLAS_NUM_THREADS": "2",
        "THORNBACK_NODES": "2",
        "THORNBACK_NODE_INDEX": "1",
        "THORNBACK_WORKER": "m",
    }
    half = worker_env(WorkerSpec(cpus=0.5), {}, marker="m", node_index=0, nodes=1)
    assert half["OMP_NUM_THREADS"] == "1"


@pytest.mark.parametrize(
    ("visible", "slots", "shares"),
    [
        ("0,1,2,3", 2, ["0,1", "2,3"]),
        ("GPU-a,GPU-b", 2, ["GPU-a", "GPU-b"]),
        ("0,1,2", 2, ["0", "1"]),
        ("4", 3, ["4", "4", "4"]),
        ("", 2, [None, None]),
        (None, 1, [None]),
    ],
)
def test_slots_share_the_gpus(visible: str | None, slots: int, shares: list[str | None]) -> None:
    inherited = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    spec = WorkerSpec(slots=slots)
    found = [slot_env(spec, inherited, slot) for slot in range(slots)]
    assert [env.get("CUDA_VISIBLE_DEVICES") for env in found] == shares
    assert [env["THORNBACK_SLOT"] for env in found] == [str(slot) for slot in range(slots)]


def test_gpus_given_in_the_spec_are_left_alone() -> None:
    spec = WorkerSpec(slots=2, env={"CUDA_VISIBLE_DEVICES": "7"})
    assert "CUDA_VISIBLE_DEVICES" not in slot_env(spec, {"CUDA_VISIBLE_DEVICES": "0,1"}, 0)


def test_a_worker_imports_nothing_of_the_drivers_side() -> None:
    """And what is imported when it is asked for is there, or said not to be."""
    code = """
import sys, thornback.pool.worker.supervisor
ours = {"gang", "link", "pool", "roster"} & {n.removeprefix("thornback.pool.") for n in sys.modules}
assert not ours and "opentelemetry.trace" not in sys.modules, ours
import thornback.pool as pool
assert all(hasattr(pool, name) and name in dir(pool) for name in pool.__all__)
assert not hasattr(pool, "WorkerPol")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
