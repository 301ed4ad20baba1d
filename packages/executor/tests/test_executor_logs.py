"""What ranks have written is kept, in its place; a flood or a bad store harms nothing else."""

from __future__ import annotations

import errno
import itertools
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import anyio
import anyio.lowlevel
import fsspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from thornback.executor.logbuffer import LogBuffer, LogParams, Stretch, name_of
from thornback.executor.logs import FileSink, LogStore, ObjectSink
from thornback.pool import LogChunk

PARAMS = LogParams(every_s=30.0, log_bytes=100, max_bytes=1000, write_s=30.0, retry_s=0.0)
_ids = itertools.count()


@pytest.fixture
def objects() -> Iterator[str]:
    """An empty folder in memory."""
    folder = f"memory://logs-{next(_ids)}"
    yield folder
    fs = fsspec.filesystem("memory")
    if fs.exists(folder):
        fs.rm(folder, recursive=True)


def chunk(offset: int, data: bytes, log: str = "a.log", *, closed: bool = False) -> LogChunk:
    return LogChunk(log=log, offset=offset, data=data, closed=closed, gang=3)


# -- the buffer


def test_an_object_store_gets_a_log_every_30_s_and_at_its_end() -> None:
    buffer = LogBuffer(PARAMS, 30.0)
    buffer.add(chunk(0, b"one "), 10.0)
    buffer.add(chunk(4, b"two"), 20.0)
    assert buffer.due(39.9) == []
    assert buffer.due_at() == 40.0
    (stretch,) = batch = buffer.due(40.0)
    assert (stretch.name, stretch.pieces) == ("3-a.log", ((0, b"one "), (4, b"two")))
    assert buffer.due_at() is None
    buffer.done(batch)
    buffer.add(chunk(7, b"!", closed=True), 41.0)
    (last,) = buffer.due(41.0)
    assert (last.after, last.pieces) == (7, ((7, b"!"),))


def test_what_came_before_is_left_out() -> None:
    buffer = LogBuffer(PARAMS, 0.0)
    for offset, data in [(0, b"abcd"), (0, b"abcd"), (2, b"cdef"), (1, b"b")]:
        buffer.add(chunk(offset, data), 0.0)
    (stretch,) = buffer.due(0.0)
    assert stretch.pieces == ((0, b"abcd"), (4, b"ef"))
    assert buffer.lost == 0


def test_much_of_one_log_or_much_in_all_does_not_wait() -> None:
    buffer = LogBuffer(PARAMS, 30.0)
    buffer.add(chunk(0, b"x" * 99), 0.0)
    assert buffer.due(0.0) == []
    buffer.add(chunk(99, b"x"), 0.0)
    assert buffer.due_at() == 0.0
    assert [stretch.size for stretch in buffer.due(0.0)] == [100]  # counts until it is done
    for number in range(5):
        assert buffer.due(0.0) == []
        buffer.add(chunk(0, b"x" * 90, f"{number}"), 0.0)
    assert len(buffer.due(0.0)) == 5


def test_beyond_the_bound_bytes_are_lost_and_counted_and_the_log_goes_on() -> None:
    buffer = LogBuffer(PARAMS, 30.0)
    buffer.add(chunk(0, b"x" * 900), 0.0)
    batch = buffer.due(0.0)
    buffer.add(chunk(900, b"y" * 101), 0.0)
    assert buffer.lost == 101
    buffer.done(batch)
    buffer.add(chunk(1001, b"z"), 0.0)
    (stretch,) = buffer.due(0.0, everything=True)
    assert (stretch.after, stretch.pieces) == (900, ((1001, b"z"),))
    assert buffer.lost == 101


def test_what_failed_is_due_again_with_what_came_since() -> None:
    buffer = LogBuffer(LogParams(retry_s=5.0), 0.0)
    buffer.add(chunk(0, b"a", closed=True), 0.0)
    batch = buffer.due(0.0)
    buffer.add(chunk(1, b"b"), 1.0)
    buffer.failed(batch, 2.0)
    assert buffer.due(6.9) == []
    assert buffer.due_at() == 7.0
    (stretch,) = buffer.due(7.0)
    assert stretch.pieces == ((0, b"a"), (1, b"b"))
    buffer.done([stretch])
    assert buffer.due(100.0, everything=True) == []


def test_logs_that_ended_are_forgotten() -> None:
    buffer = LogBuffer(PARAMS, 0.0)
    for number in range(100):
        buffer.add(chunk(0, b"x", f"{number}"), 0.0)
        batch = buffer.due(0.0)
        buffer.add(chunk(1, b"", f"{number}", closed=True), 0.0)
        buffer.done(batch)
        buffer.add(chunk(0, b"", f"empty {number}", closed=True), 0.0)
    assert not buffer._logs


def test_no_log_leaves_its_folder() -> None:
    assert name_of(3, "../../etc/passwd") == "3-passwd"
    assert name_of(3, "/tmp/x/rank 1.log") == "3-rank_1.log"
    assert name_of(3, "..") == "3-.."


@given(
    text=st.binary(min_size=1, max_size=60),
    cuts=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=20),
    fails=st.lists(st.booleans(), max_size=20),
)
def test_however_chunks_repeat_and_writes_fail_the_log_is_whole(
    text: bytes, cuts: list[tuple[int, int]], fails: list[bool]
) -> None:
    """The reader's offset only grows; what it has acknowledged it may still send again."""
    buffer = LogBuffer(PARAMS, 0.0)
    written = bytearray(len(text))
    end, failing = 0, iter(fails)
    for back, length in [*cuts, (0, len(text))]:
        start = max(0, end - back)
        stop = max(end, start + length) if back else end + length
        buffer.add(chunk(start, text[start:stop]), 0.0)
        end = max(end, min(stop, len(text)))
        batch = buffer.due(0.0)
        for stretch in batch:
            for offset, data in stretch.pieces:
                written[offset : offset + len(data)] = data
        if next(failing, False):
            buffer.failed(batch, 0.0)
        else:
            buffer.done(batch)
    assert bytes(written[:end]) == text[:end]
    assert end == len(text)
    assert buffer.lost == 0


# -- the sinks


def test_a_file_keeps_the_offsets_and_says_what_is_missing(tmp_path: Path) -> None:
    sink = FileSink(str(tmp_path / "logs"))
    sink.write([Stretch(name="3-a", after=0, pieces=((0, b"begin\n"), (200, b"end\n")))])
    sink.write([Stretch(name="3-a", after=204, pieces=((206, b"more\n"),))])
    data = (tmp_path / "logs" / "3-a").read_bytes()
    assert (data[:6], data[200:204], data[206:]) == (b"begin\n", b"end\n", b"more\n")
    assert data[6:].startswith(b"\n[thornback: 194 bytes are left out here]\n\0")
    assert data[204:206] == b"\0\0", "too small a hole for the words"
    sink.write([Stretch(name="3-a", after=0, pieces=((0, b"begin\n"), (200, b"end\n")))])
    assert (tmp_path / "logs" / "3-a").read_bytes() == data, "a write that is repeated"


def test_an_object_is_named_by_its_first_offset_and_says_what_is_missing(objects: str) -> None:
    fs = fsspec.filesystem("memory")
    ObjectSink(fs, objects).write([Stretch(name="3-a", after=0, pieces=((5, b"a"), (9, b"b")))])
    (path,) = fs.ls(f"{objects}/3-a", detail=False)
    assert path.endswith("/3-a/000000000005.log")
    assert fs.cat_file(path) == b"a\n[thornback: 3 bytes are left out here]\nb"


def test_folders_are_made_where_the_store_needs_them(tmp_path: Path) -> None:
    """Of a remote file system, not an object store: here the local one in its place."""
    fs = fsspec.filesystem("file", auto_mkdir=False)
    ObjectSink(fs, f"{tmp_path}/logs").write([Stretch(name="3-a", after=0, pieces=((0, b"a"),))])
    assert (tmp_path / "logs" / "3-a" / "000000000000.log").read_bytes() == b"a"


# -- the store


class Scripted:
    """A sink that fails as often as it is told, and then keeps everything."""

    def __init__(self, failures: int = 0) -> None:
        self.failures = failures
        self.batches: list[tuple[Stretch, ...]] = []

    def write(self, batch: Sequence[Stretch], /) -> None:
        self.batches.append(tuple(batch))
        if len(self.batches) <= self.failures:
            raise OSError(errno.ENOSPC, "disk is full")

    def text(self) -> bytes:
        """All that was written, in order."""
        return b"".join(
            data
            for batch in self.batches[self.failures :]
            for stretch in batch
            for _, data in stretch.pieces
        )


@pytest.mark.anyio
async def test_a_file_has_the_bytes_while_the_run_goes_on(tmp_path: Path) -> None:
    url = str(tmp_path / "logs" / "000001")
    with anyio.fail_after(20):
        async with LogStore(url, flush_s=5.0) as store:
            store.put([chunk(0, b"hello\n"), chunk(0, b"other\n", "b.log")])
            where = anyio.Path(store.url_of(3, "/node/logs/a.log"))
            while not await where.exists() or not (await where.read_bytes()).endswith(b"\n"):
                await anyio.lowlevel.checkpoint()
            store.put([chunk(6, b"world\n")])
    assert (tmp_path / "logs/000001/3-a.log").read_text() == "hello\nworld\n"
    assert (tmp_path / "logs/000001/3-b.log").read_text() == "other\n"
    assert store.lost == 0


@pytest.mark.anyio
async def test_a_remote_store_gets_few_objects_and_the_rest_at_the_end(objects: str) -> None:
    async with LogStore(objects, flush_s=20.0) as store:
        for offset in range(50):
            store.put([chunk(offset, b"x")])
            await anyio.lowlevel.checkpoint()
    fs = fsspec.filesystem("memory")
    (path,) = fs.ls(store.url_of(3, "a.log").rstrip("/"), detail=False)
    assert fs.cat_file(path) == b"x" * 50


@pytest.mark.anyio
async def test_a_store_that_fails_is_tried_again_and_told_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    sink = Scripted(failures=3)
    async with LogStore("/nowhere", flush_s=20.0, params=PARAMS, sink=sink) as store:
        store.put([chunk(0, b"a")])
        with anyio.fail_after(20):
            while len(sink.batches) < 4:
                await anyio.lowlevel.checkpoint()
        store.put([chunk(1, b"b")])
    assert sink.text() == b"ab"
    assert store.lost == 0
    assert caplog.text.count("cannot be stored at the moment") == 1
    assert "disk is full" in caplog.text


@pytest.mark.anyio
async def test_a_store_that_always_fails_does_not_keep_the_end_of_the_run() -> None:
    sink = Scripted(failures=1 << 30)
    params = LogParams(retry_s=3600.0)
    with anyio.fail_after(10):
        async with LogStore("/nowhere", flush_s=60.0, params=params, sink=sink) as store:
            store.put([chunk(0, b"a")])
    assert sink.batches
    assert store.lost == 1, "the report tells that it is not there"


@pytest.mark.anyio
async def test_a_store_that_hangs_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    class Hangs:
        writes = 0

        def write(self, batch: Sequence[Stretch], /) -> None:
            self.writes += 1
            gate.wait()

    gate, sink = threading.Event(), Hangs()
    params = LogParams(write_s=0.02)
    try:
        with anyio.fail_after(20):
            async with LogStore("/nowhere", flush_s=10.0, params=params, sink=sink) as store:
                store.put([chunk(0, b"abc")])
                while not store.lost:
                    await anyio.lowlevel.checkpoint()
                store.put([chunk(3, b"defg")])
    finally:
        gate.set()
    assert sink.writes == 1, "a thread that hangs is lost: there must not be more of them"
    assert store.lost == 7
    assert "the store does not answer" in caplog.text


@pytest.mark.anyio
async def test_the_end_waits_for_the_store_no_longer_than_it_may(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Hangs:
        def write(self, batch: Sequence[Stretch], /) -> None:
            gate.wait()

    gate = threading.Event()
    try:
        with anyio.fail_after(10):
            async with LogStore("/nowhere", flush_s=0.05, sink=Hangs()) as store:
                store.put([chunk(0, b"abc")])
    finally:
        gate.set()
    assert "were not stored within 0.05 s" in caplog.text
    assert store.lost == 3


@pytest.mark.anyio
async def test_a_flood_is_bounded_counted_and_told_once(caplog: pytest.LogCaptureFixture) -> None:
    sink = Scripted()
    async with LogStore("/nowhere", flush_s=20.0, params=PARAMS, sink=sink) as store:
        for start in range(0, 5000, 500):  # no turn of the loop in between
            store.put([chunk(start, b"x" * 500)])
    assert len(sink.text()) == 1000
    assert store.lost == 4000
    assert caplog.text.count("are not whole") == 1


@pytest.mark.anyio
async def test_a_cancelled_run_keeps_what_was_written() -> None:
    sink = Scripted()
    with anyio.CancelScope() as scope:
        async with LogStore("/nowhere", flush_s=20.0, params=PARAMS, sink=sink) as store:
            scope.cancel()
            store.put([chunk(0, b"last words")])
            await anyio.sleep_forever()
    assert scope.cancelled_caught
    assert sink.text() == b"last words"


@pytest.mark.anyio
async def test_an_error_of_the_run_passes_through_as_it_is() -> None:
    sink = Scripted()
    store = LogStore("/nowhere", flush_s=20.0, params=PARAMS, sink=sink)

    async def fail() -> None:
        async with store:
            store.put([chunk(0, b"a")])
            raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        await fail()
    assert sink.text() == b"a"
    store.put([chunk(1, b"late")])
    assert store.lost == 4
