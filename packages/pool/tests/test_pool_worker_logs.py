"""What rank processes write: which of it is sent, and what a dead worker leaves."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import anyio
import attrs
import pytest

from thornback.pool import Assignment, Beat, LogChunk, WorkerSpec
from thornback.pool.worker import ranklog, wire
from thornback.pool.worker.logshelf import LogShelf, Owner, make_own, salvage
from thornback.pool.worker.params import SupervisorParams
from thornback.pool.worker.proctree import descendants_of, is_alive
from thornback.pool.worker.ranklog import MAX_MARKS
from thornback.pool.worker.sources import source_program
from thornback.pool.worker.supervisor import Supervisor

BOUND_S = 30.0


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Reader:
    """Follows logs as a pool does, and checks that the chunks join."""

    def __init__(self) -> None:
        self.offsets: dict[str, int] = {}
        self.data: dict[str, bytes] = {}
        self.skipped: dict[str, int] = {}
        self.closed: dict[str, None] = {}

    def take(self, chunks: Sequence[LogChunk]) -> int:
        for chunk in chunks:
            assert chunk.offset == self.offsets.get(chunk.log, 0) + chunk.skipped
            assert chunk.log not in self.closed
            self.offsets[chunk.log] = chunk.offset + len(chunk.data)
            self.data[chunk.log] = self.data.get(chunk.log, b"") + chunk.data
            self.skipped[chunk.log] = self.skipped.get(chunk.log, 0) + chunk.skipped
            if chunk.closed:
                self.closed[chunk.log] = None
        return len(chunks)

    def take_all(self, shelf: LogShelf) -> None:
        while self.take(shelf.chunks(self.offsets)):
            continue


def make_shelf(folder: Path, *, own: bool = True, cap_bytes: int = 1 << 30) -> LogShelf:
    return LogShelf(str(folder), own=own, marker="m", cap_bytes=cap_bytes)


def entries(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def write(path: str, data: bytes) -> None:
    with open(path, "ab") as file:
        file.write(data)


# -- the shelf -----------------------------------------------------------------------------------


def test_an_answer_that_was_lost_is_given_again_and_nothing_twice(tmp_path: Path) -> None:
    shelf, reader = make_shelf(tmp_path), Reader()
    log = shelf.new(0, 1)
    assert shelf.chunks({}) == ()
    write(log.path, b"one\n")
    assert shelf.chunks({}) == shelf.chunks({}) != ()
    reader.take(shelf.chunks(reader.offsets))
    assert shelf.chunks(reader.offsets) == ()
    write(log.path, b"two\n")
    log.close()
    assert shelf.chunks(reader.offsets) == shelf.chunks(reader.offsets)
    reader.take(shelf.chunks(reader.offsets))
    assert reader.data == {"m-slot0-1.log": b"one\ntwo\n"}
    assert list(reader.closed) == ["m-slot0-1.log"]
    assert not shelf.empty
    assert os.path.exists(log.path)
    assert shelf.chunks(reader.offsets) == ()
    assert shelf.empty
    assert not os.path.exists(log.path)


def test_a_log_that_is_closed_after_it_was_read_is_mentioned_once_more(tmp_path: Path) -> None:
    shelf, reader = make_shelf(tmp_path), Reader()
    log = shelf.new(0, 1)
    write(log.path, b"x")
    reader.take_all(shelf)
    log.close()
    (chunk,) = shelf.chunks(reader.offsets)
    assert (chunk.offset, chunk.data, chunk.closed) == (1, b"", True)
    assert shelf.chunks(reader.offsets) == ()
    assert shelf.empty


def test_an_answer_is_bounded_and_no_log_starves(tmp_path: Path) -> None:
    shelf, reader = make_shelf(tmp_path), Reader()
    logs = [shelf.new(0, number) for number in range(10)]
    for log in logs:
        write(log.path, b"y" * (1 << 20))
    for _ in range(10):
        chunks = shelf.chunks(reader.offsets)
        assert max(len(chunk.data) for chunk in chunks) <= 256 << 10
        assert sum(len(chunk.data) for chunk in chunks) == 1 << 20
        reader.take(chunks)
    assert set(reader.offsets.values()) == {1 << 20}
    many = make_shelf(tmp_path / "many")
    (tmp_path / "many").mkdir()
    for number in range(300):
        write(many.new(1, number).path, b"z")
    assert len(many.chunks({})) == 256
    other = Reader()
    other.take_all(many)
    assert len(other.data) == 300


def test_a_reader_far_behind_gets_the_end_from_a_whole_line_on(tmp_path: Path) -> None:
    shelf, reader = make_shelf(tmp_path), Reader()
    line = b"%099d\n"
    data = b"".join(line % number for number in range(100_000))
    write(shelf.new(0, 1).path, data)
    reader.take_all(shelf)
    ((name, found),) = reader.data.items()
    assert (4 << 20) - 100 <= len(found) <= 4 << 20
    assert found == data[reader.skipped[name] :]
    assert len(found) % 100 == 0


def test_what_a_flood_lost_is_skipped(tmp_path: Path) -> None:
    shelf, reader = make_shelf(tmp_path, cap_bytes=64 << 10), Reader()
    log = shelf.new(0, 1)
    write(log.path, b"a" * (1 << 20))
    log.trim()
    reader.take_all(shelf)
    ((name, found),) = reader.data.items()
    assert reader.skipped[name] + len(found) == 1 << 20
    assert set(found) == {ord("a")}
    assert len(found) <= 64 << 10
    log.close()
    (chunk, *_) = salvage(str(tmp_path), "m-", {"m-slot0-1.log": 0})
    assert set(chunk.data) == {ord("a")}
    assert chunk.skipped == reader.skipped[name]


def test_a_log_that_somebody_removed_does_not_stop_the_others(tmp_path: Path) -> None:
    shelf, reader = make_shelf(tmp_path), Reader()
    gone, there = shelf.new(0, 1), shelf.new(0, 2)
    for log in (gone, there):
        write(log.path, b"x")
        log.close()
    os.unlink(gone.path)
    reader.take_all(shelf)
    assert shelf.empty
    assert reader.data == {"m-slot0-1.log": b"", "m-slot0-2.log": b"x"}


def test_in_a_shared_folder_logs_stay_and_those_of_others_are_left_alone(tmp_path: Path) -> None:
    shelf, reader = make_shelf(tmp_path, own=False), Reader()
    log = shelf.new(0, 1)
    assert shelf.chunks({}) == ()
    write(log.path, b"x")
    (tmp_path / "other-slot0-1.log").write_bytes(b"of another worker")
    assert [c.log for c in salvage(str(tmp_path), "m-", reader.offsets, remove=True)] == [
        "m-slot0-1.log"
    ]
    log.close()
    reader.take_all(shelf)
    assert shelf.empty
    assert sorted(os.listdir(tmp_path)) == ["m-slot0-1.log", "other-slot0-1.log"]


def test_so_many_closed_logs_are_kept_and_no_more(tmp_path: Path) -> None:
    shelf = LogShelf(str(tmp_path), own=True, marker="m", cap_bytes=1 << 30, most_closed=10)
    alive = shelf.new(0, 0)
    for number in range(1, 100):
        log = shelf.new(0, number)
        write(log.path, b"x")
        log.close()
        assert len(os.listdir(tmp_path)) <= 12
    assert os.path.exists(alive.path)
    assert os.path.exists(log.path)


# -- salvage -------------------------------------------------------------------------------------


def test_salvage_gives_the_rest_of_each_log_and_removes_only_a_workers_own_folder(
    tmp_path: Path,
) -> None:
    own = tmp_path / "own"
    own.mkdir()
    make_own(str(own))
    (own / "m-slot0-1.log").write_bytes(b"read\nrest")
    (own / "m-slot1-2.log").write_bytes(b"n" * (600 << 10))
    (own / "m-slot1-3.log").write_bytes(b"all read")
    (own / "m-forkserver.log").write_bytes(b"not a rank's")
    offsets = {"m-slot0-1.log": 5, "m-slot1-3.log": 8}
    reader = Reader()
    reader.offsets = dict(offsets)
    chunks = salvage(str(own), "m-", offsets)
    assert all(len(chunk.data) <= 256 << 10 for chunk in chunks)
    reader.take(chunks)
    assert reader.data == {"m-slot0-1.log": b"rest", "m-slot1-2.log": b"n" * (600 << 10)}
    assert list(reader.closed) == ["m-slot0-1.log", "m-slot1-2.log"]
    assert salvage(str(own), "m-", offsets, remove=True) == chunks
    assert not own.exists()
    assert salvage(str(own), "m-", offsets, remove=True) == []


# -- a supervisor --------------------------------------------------------------------------------


def work(number: int = 1, count: int = 1) -> Assignment:
    return Assignment(
        assignment=number, epoch=f"e{number}", stage=0, ranks=(range(count),), program="p"
    )


async def read_all(supervisor: Supervisor, reader: Reader) -> None:
    """As after a close: until nothing new comes."""
    while True:
        beat = await supervisor.handle("beat", ((), dict(reader.offsets)))
        assert isinstance(beat, Beat)
        if not reader.take(beat.logs):
            return


@pytest.mark.anyio
async def test_logs_of_a_hundred_children_are_complete_to_the_last_line_and_then_gone(
    tmp_path: Path,
) -> None:
    params = SupervisorParams(reclaim_s=BOUND_S)
    supervisor = Supervisor(WorkerSpec(), "n", params=params, log_root=str(tmp_path / "root"))
    with anyio.fail_after(BOUND_S):
        await supervisor.start()
        try:
            body = "import os\nos.write(1, b'rank %d\\n' % call.rank)\nos.kill(os.getpid(), 9)"
            await supervisor.load("p", source_program(body))
            fresh = attrs.evolve(work(count=100), max_ranks_per_child=1)
            report = await supervisor.run(fresh)
            reader = Reader()
            await read_all(supervisor, reader)
            assert len(reader.closed) == 99, "the last process is replaced when it must"
            (folder,) = entries(tmp_path / "root")
            logs = [name for name in entries(tmp_path / "root" / folder) if "slot" in name]
            assert logs == [os.path.basename(report.outcomes[-1].log_path)]
        finally:
            assert await supervisor.close()
        await read_all(supervisor, reader)
    assert len(reader.closed) == 100
    for outcome in report.outcomes:
        name = os.path.basename(outcome.log_path)
        assert reader.data[name] == b"rank %d\n" % outcome.rank
    assert entries(tmp_path / "root") == []


@pytest.mark.anyio
async def test_logs_can_be_fetched_after_a_close_and_then_the_folder_goes(tmp_path: Path) -> None:
    supervisor = Supervisor(WorkerSpec(), "n", log_root=str(tmp_path), address="10.1.2.3")
    with anyio.fail_after(BOUND_S):
        await supervisor.start()
        reader = Reader()
        first = await supervisor.beat((), reader.offsets)
        assert (first.address, Path(first.log_dir).parent) == ("10.1.2.3", tmp_path)
        await supervisor.load("p", source_program("print('last words')", "", "print('bye')"))
        await supervisor.run(work())
        assert await supervisor.close(5.0)
        assert entries(tmp_path) == [os.path.basename(first.log_dir)]
        await read_all(supervisor, reader)
    assert list(reader.data.values()) == [b"last words\nbye\n"]
    assert entries(tmp_path) == []


@pytest.mark.anyio
async def test_logs_that_nobody_asked_for_go_with_the_worker(tmp_path: Path) -> None:
    supervisor = Supervisor(WorkerSpec(), "n", log_root=str(tmp_path), owner=os.getpid())
    with anyio.fail_after(BOUND_S):
        await supervisor.start()
        await supervisor.load("p", source_program("print('x')"))
        await supervisor.run(work())
        assert (await supervisor.beat()).logs == ()
        assert await supervisor.close()
    assert entries(tmp_path) == []


@pytest.mark.anyio
async def test_a_lost_fork_server_loses_no_logs(tmp_path: Path) -> None:
    params = SupervisorParams(reclaim_s=BOUND_S)
    supervisor = Supervisor(WorkerSpec(), "n", params=params, log_root=str(tmp_path))
    with anyio.fail_after(BOUND_S):
        await supervisor.start()
        reader = Reader()
        await read_all(supervisor, reader)
        body = (
            "import os\nprint('rank', call.rank, flush=True)\n"
            "if call.rank == 1: os.kill(os.getppid(), 9)\nwhile call.rank == 1: pass"
        )
        await supervisor.load("p", source_program(body))
        died = [not each.ok for each in (await supervisor.run(work(count=3))).outcomes]
        assert died == [False, True, False]
        assert await supervisor.close()
        await read_all(supervisor, reader)
    assert sorted(reader.data.values()) == [b"rank 0\nrank 1\n", b"rank 2\n"]
    assert entries(tmp_path) == []


# -- a worker that is killed ---------------------------------------------------------------------


class KilledWorker:
    """A worker process that has written a line, and is then killed."""

    def __init__(self, folder: Path, owner: int, offsets: Mapping[str, int] | None) -> None:
        stream, theirs = socket.socketpair()
        stream.settimeout(BOUND_S)
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-m", "thornback.pool.worker", "--fd", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env={**os.environ, "TMPDIR": str(folder)},
            )
        for number, (method, payload) in enumerate(
            [
                ("start", (WorkerSpec(), "n", 0, 1, owner)),
                ("load", ("p", source_program("print('last words')"))),
                ("run", (work(), ())),
                ("beat", ((), offsets)),
            ]
        ):
            stream.sendall(wire.pickled((number, method, payload)))
            body = wire.receive(stream)
            assert body is not None
            reply = wire.unpickled(body)
            assert isinstance(reply, tuple)
            assert reply[:2] == (number, True), reply
            answer = reply[2]
        assert isinstance(answer, Beat)
        self.log_dir = answer.log_dir
        pids = descendants_of(process.pid)
        assert len(pids) == 2
        pidfds = [os.pidfd_open(pid) for pid in pids]
        process.kill()
        process.wait()
        stream.close()
        for pid, pidfd in zip(pids, pidfds, strict=True):
            assert select.select([pidfd], [], [], BOUND_S)[0]
            os.close(pidfd)
            assert not is_alive(pid)


def dead_pid() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


@pytest.mark.parametrize(
    ("owner", "offsets", "stays"),
    [
        (os.getpid, {}, True),
        (dead_pid, {}, False),
        (lambda: 0, {}, True),
        (os.getpid, None, False),
        (lambda: 0, None, False),
    ],
)
def test_logs_of_a_killed_worker_stay_for_who_salvages_them(
    tmp_path: Path, owner: object, offsets: Mapping[str, int] | None, stays: bool
) -> None:
    assert callable(owner)
    worker = KilledWorker(tmp_path, owner(), offsets)
    assert entries(tmp_path) == [os.path.basename(worker.log_dir)] * stays
    (chunk,) = salvage(worker.log_dir, "", {}, remove=True) if stays else [None]
    if chunk is not None:
        assert (chunk.data, chunk.closed) == (b"last words\n", True)
    assert entries(tmp_path) == []


def test_an_owner_is_not_mistaken_for_another_process() -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        owner = Owner.of(process.pid)
        assert not owner.gone
        assert Owner(process.pid, owner.started - 1).gone
        process.send_signal(signal.SIGKILL)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert owner.gone, "a zombie salvages nothing"
    assert owner.gone
    assert not Owner().gone


def test_chunks_say_which_rank_wrote_which_bytes(tmp_path: Path) -> None:
    shelf = make_shelf(tmp_path)
    log = shelf.new(0, 1)
    log.mark(0, 7, 3)
    write(log.path, b"set-up\n")
    log.mark(7, 7, 3)
    log.mark(7, 7, 4)  # rank 3 wrote nothing
    write(log.path, b"four\n")
    log.mark(12, 7, 5)
    (first,) = shelf.chunks({})
    assert (first.data, first.marks) == (b"set-up\nfour\n", ((0, 7, 3), (7, 7, 4)))
    write(log.path, b"five\n")
    name = first.log
    (second,) = shelf.chunks({name: 12})
    assert (second.data, second.marks) == (b"five\n", ((12, 7, 5),))
    write(log.path, b"more\n")
    (third,) = shelf.chunks({name: 17})
    assert third.marks == ((12, 7, 5),), "an earlier mark says whose the first bytes are"


def test_marks_of_a_log_that_nobody_reads_are_bounded(tmp_path: Path) -> None:
    log = make_shelf(tmp_path).new(0, 1)
    for number in range(2 * MAX_MARKS):
        log.mark(number, 0, number)
    assert len(log.marks(0, 1 << 30)) == MAX_MARKS


def test_marks_count_from_the_first_byte_also_where_a_disk_has_no_holes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranklog, "_punch_hole", lambda *_: False)
    log = make_shelf(tmp_path, cap_bytes=10).new(0, 1)
    write(log.path, b"x" * 20)
    log.trim()
    log.mark(0, 0, 1)
    assert log.marks(20, 30) == ((20, 0, 1),)
