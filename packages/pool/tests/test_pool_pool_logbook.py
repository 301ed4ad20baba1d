"""What has arrived of the logs, whatever is sent twice, late or not at all."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from thornback.pool import LogChunk
from thornback.pool.logbook import LogBook, has_more


def chunk(log: str, offset: int, data: bytes, *, closed: bool = False) -> LogChunk:
    return LogChunk(log=log, offset=offset, data=data, closed=closed)


def enter(book: LogBook, *chunks: LogChunk) -> list[tuple[str, int, bytes, int, bool]]:
    new = book.entered(chunks, gang=3, node="n")
    assert all((each.gang, each.node) == (3, "n") for each in new)
    return [(each.log, each.offset, each.data, each.skipped, each.closed) for each in new]


def test_what_is_here_already_is_not_told_again() -> None:
    book = LogBook()
    assert enter(book, chunk("a", 0, b"one ")) == [("a", 0, b"one ", 0, False)]
    assert enter(book, chunk("a", 0, b"one ")) == []
    assert enter(book, chunk("a", 2, b"e two")) == [("a", 4, b"two", 0, False)]
    assert book.offsets() == {"a": 7}


def test_what_was_left_out_is_counted() -> None:
    book = LogBook()
    enter(book, chunk("a", 0, b"one "))
    assert enter(book, chunk("a", 100, b"late")) == [("a", 100, b"late", 96, False)]
    assert book.offsets() == {"a": 104}


def test_a_closed_log_is_told_once_and_forgotten_when_the_worker_knows() -> None:
    book = LogBook()
    enter(book, chunk("a", 0, b"one"))
    assert enter(book, chunk("a", 3, b"", closed=True)) == [("a", 3, b"", 0, True)]
    assert enter(book, chunk("a", 3, b"", closed=True)) == []
    book.acknowledged({"a": 2})
    assert book.offsets() == {"a": 3}, "the worker does not know yet that all has arrived"
    book.acknowledged({"a": 3, "b": 0})
    assert book.offsets() == {}


def test_a_late_answer_does_not_bring_back_a_log_that_is_over() -> None:
    """A companion's call and the pool's own were under way; the worker has closed and forgotten."""
    book = LogBook()
    enter(book, chunk("a", 0, b"one "))
    asked, answer = book.offsets(), [chunk("a", 4, b"two", closed=True), chunk("b", 0, b"new")]
    enter(book, *answer)
    book.acknowledged({"a": 7, "b": 3})
    assert book.entered(answer, gang=3, node="n", asked=asked) == ()
    assert book.offsets() == {"b": 3}


def test_an_empty_chunk_is_no_news() -> None:
    book = LogBook()
    assert enter(book, chunk("a", 0, b"")) == []
    assert book.offsets() == {}


def test_logs_that_stay_in_their_folder_are_remembered() -> None:
    book = LogBook(kept=True)
    enter(book, chunk("a", 0, b"one", closed=True), chunk("b", 0, b"x"))
    book.acknowledged({"a": 3})
    assert (book.offsets(), book.for_salvage()) == ({"b": 1}, {"a": 3, "b": 1})


def test_an_open_log_is_never_forgotten() -> None:
    book = LogBook()
    enter(book, chunk("a", 0, b"one"))
    book.acknowledged({"a": 3})
    assert book.offsets() == {"a": 3}


PIECES = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40), st.booleans()), max_size=20)


@given(PIECES)
def test_what_is_told_joins_to_the_log(pieces: list[tuple[int, int, bool]]) -> None:
    written, book, told = bytes(range(40)), LogBook(), bytearray()
    closings = 0
    for start, stop, closed in pieces:
        sent = chunk("a", start, written[start:stop], closed=closed and max(start, stop) >= 40)
        for each in book.entered([sent], gang=0, node=""):
            assert each.offset == len(told) + each.skipped
            told += bytes(each.skipped) + each.data
            assert each.data or each.closed
            closings += each.closed
    assert closings <= 1
    assert len(told) == book.offsets().get("a", 0)
    assert all(byte in (0, written[at]) for at, byte in enumerate(told))


def test_a_full_answer_says_that_there_is_more() -> None:
    assert not has_more([])
    assert not has_more([chunk("a", 0, bytes(1000))] * 10)
    assert has_more([chunk("a", 0, bytes(256 << 10))])
    assert has_more([chunk(str(log), 0, bytes(64 << 10)) for log in range(16)])
    assert has_more([chunk(str(log), 0, b"x") for log in range(256)])
