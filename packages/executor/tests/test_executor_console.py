"""What a driver shows of its ranks: bounded, safe, and never in the way of the run."""

from __future__ import annotations

import io
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest

from thornback.executor.console import CLOSE_S, LINES_PER_S, WAITING, Printer, RankConsole, say
from thornback.faults import Redactor
from thornback.pool import LogChunk


class FakePrinter(Printer):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def print(self, line: str) -> None:
        self.lines.append(line)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def chunk(
    data: bytes,
    *marks: tuple[int, int, int],
    offset: int = 0,
    log: str = "a",
    skipped: int = 0,
    closed: bool = False,
) -> LogChunk:
    return LogChunk(
        log=log, offset=offset, data=data, marks=marks, skipped=skipped, closed=closed, gang=1
    )


def shown(*chunks: LogChunk, **more: object) -> list[str]:
    printer = FakePrinter()
    console = RankConsole(["clean", "merge"], printer, Clock(), where="/logs", **more)  # type: ignore[arg-type]  # a test helper
    console.put(chunks)
    console.close()
    return printer.lines


def test_console_lines_name_stage_and_rank() -> None:
    data = b"set-up\none\ntwo\n"
    assert shown(chunk(data, (0, 0, 3), (7, 0, 4), (11, 1, 0))) == [
        "[clean:3] set-up",
        "[clean:4] one",
        "[merge:0] two",
    ]


def test_console_line_in_two_chunks_is_one_line() -> None:
    assert shown(chunk(b"a b", (0, 0, 1)), chunk(b"c d\n", (0, 0, 1), offset=3)) == [
        "[clean:1] a bc d"
    ]


def test_console_line_without_end_is_shown_when_its_rank_or_log_ends() -> None:
    chunks = [
        chunk(b"onetwo", (0, 0, 1), (3, 0, 2)),
        chunk(b"", (3, 0, 2), offset=6, closed=True),
    ]
    assert shown(*chunks) == ["[clean:1] one", "[clean:2] two"]


def test_console_bytes_after_a_gap_do_not_join_what_was_before() -> None:
    chunks = [chunk(b"ab", (0, 0, 1)), chunk(b"cd\n", (0, 0, 1), offset=99, skipped=97)]
    assert shown(*chunks) == ["[clean:1] cd"]


def test_console_salvaged_bytes_without_marks_go_on_as_the_rank_before() -> None:
    assert shown(chunk(b"a\n", (0, 0, 1)), chunk(b"b\n", offset=2)) == [
        "[clean:1] a",
        "[clean:1] b",
    ]
    assert shown(chunk(b"nobody knows\n")) == ["nobody knows"]


def test_console_progress_bar_is_shown_once() -> None:
    bar = b"".join(b"\r%d%%" % each for each in range(101))
    assert shown(chunk(bar + b"\n", (0, 0, 1))) == ["[clean:1] 100%"]
    assert shown(chunk(bar, (0, 0, 1), closed=True)) == ["[clean:1] 100%"]


@pytest.mark.parametrize(
    ("hostile", "expected"),
    [
        (b"\x1b[31mred\x1b[0m", "red"),
        (b"\x1b]0;title\x07\x1b[2J", "\\x1b]0;title\\x07\\x1b[2J"),
        ("\u202edesrever\u2066".encode(), "\\u202edesrever\\u2066"),
        ("c1 \x9b2J".encode(), "c1 \\x9b2J"),
        (b"not \xff utf-8", "not \ufffd utf-8"),
        (b"nul\0\0", "nul"),
    ],
)
def test_console_hostile_bytes_drive_no_terminal(hostile: bytes, expected: str) -> None:
    assert shown(chunk(hostile + b"\n", (0, 0, 1))) == [f"[clean:1] {expected}"]


def test_console_hides_secrets_by_shape_and_by_value() -> None:
    hide = Redactor(["s3cr3t-value"]).redact
    (line,) = shown(chunk(b"password=hunter2 s3cr3t-value\n", (0, 0, 1)), hide=hide)
    assert "hunter2" not in line
    assert "s3cr3t-value" not in line


def test_console_long_line_is_cut() -> None:
    (line,) = shown(chunk(b"x y " * 100_000 + b"\n", (0, 0, 1)))
    assert len(line) < 1100
    (line,) = shown(
        *(chunk(b"z" * 100_000, (0, 0, 1), offset=n * 100_000) for n in range(9)),
        chunk(b"\n", offset=900_000),
    )
    assert len(line) < 1100


def test_console_flood_of_one_rank_leaves_room_to_others_and_is_counted() -> None:
    printer, clock = FakePrinter(), Clock()
    console = RankConsole(["clean"], printer, clock, where="s3://key:pw@host/logs")
    flood = chunk(b"flood\n" * 10_000, (0, 0, 1), log="a")
    console.put([flood, chunk(b"calm\n", (0, 0, 2), log="b")])
    assert printer.lines.count("[clean:1] flood") == 60
    assert "[clean:2] calm" in printer.lines
    assert "9,940 lines of ranks, which are too many" in printer.lines[-1]
    assert "pw@" not in printer.lines[-1]
    clock.now = 1.0
    console.put([chunk(b"flood\n" * 10_000, (0, 0, 1), offset=60_000)])
    assert printer.lines.count("[clean:1] flood") == 80
    console.close()
    assert "9,980 lines" in printer.lines[-1]


def test_console_of_many_floods_is_bounded_in_all() -> None:
    printer, clock = FakePrinter(), Clock()
    console = RankConsole(["clean"], printer, clock, where="/logs")
    for second in range(10):
        clock.now = float(second)
        console.put(
            [
                chunk(b"flood\n" * 100, (0, 0, rank), log=str(rank), offset=600 * second)
                for rank in range(100)
            ]
        )
    assert len(printer.lines) <= (10 + 2) * LINES_PER_S


def test_console_rank_after_a_flood_in_its_process_is_still_seen() -> None:
    lines = shown(chunk(b"flood\n" * 1000 + b"calm\n", (0, 0, 1), (6000, 0, 2)))
    assert "[clean:2] calm" in lines


def test_console_filter_leaves_lines_out_without_counting_them() -> None:
    lines = shown(
        chunk(b"no\nyes\n" + b"no\n" * 500, (0, 0, 1)),
        left_out=lambda stage, rank, text: (stage, rank, text) == ("clean", 1, "no"),
    )
    assert lines == ["[clean:1] yes"]


# -- the printer


@contextmanager
def stderr_to_a_pipe() -> Iterator[int]:
    """Yield the end to read. Within the test: pytest sets `sys.stderr` after the fixtures."""
    reader, writer = os.pipe()
    before = sys.stderr
    with open(writer, "w") as sys.stderr:
        try:
            yield reader
        finally:
            sys.stderr = before
            with suppress(OSError):  # a test has closed it
                os.close(reader)


def test_printer_writes_in_order_and_all_of_it_by_its_end() -> None:
    with stderr_to_a_pipe() as reader:
        with Printer() as printer:
            for number in range(100):
                printer.print(f"line {number}")
        text = os.read(reader, 1 << 16).decode()
    assert text.splitlines() == [f"line {number}" for number in range(100)]


def test_printer_on_a_closed_pipe_drops_lines() -> None:
    with stderr_to_a_pipe() as reader, Printer() as printer:
        os.close(reader)
        for _ in range(WAITING // 2):
            printer.print("x" * 100)
        assert printer.dropped == 0, "the thread takes them, and writes nothing"


def test_printer_on_a_pipe_that_nobody_reads_neither_waits_nor_grows() -> None:
    with stderr_to_a_pipe() as reader:
        began = time.monotonic()
        with Printer() as printer:
            for _ in range(10 * WAITING):
                printer.print("x" * 1000)
        assert time.monotonic() - began < 10 * CLOSE_S
        assert printer.dropped > 8 * WAITING
        threads = [each for each in threading.enumerate() if each.name == "thornback-print"]
        assert os.read(reader, 1 << 20)  # lets the thread go on
        for thread in threads:
            thread.join(10)
        assert not any(thread.is_alive() for thread in threads), "it does not write the rest later"


def test_printer_without_a_file_writes_to_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a notebook."""
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with Printer() as printer:
        printer.print("é")
    assert stream.getvalue() == "é\n"


@pytest.mark.parametrize("stream", [None, open(os.devnull)])  # noqa: SIM115  # closed in the test
def test_printer_without_stderr_does_nothing(
    stream: io.TextIOWrapper | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if stream is not None:
        stream.close()
    monkeypatch.setattr(sys, "stderr", stream)
    with Printer() as printer:
        printer.print("x")


def test_say_is_logged_where_logging_is_configured_and_printed_where_not(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    printer = FakePrinter()
    with caplog.at_level(logging.INFO, "thornback.executor"):
        say(printer, "state: s3://key:hunter2hunter2@host/x")
    assert "hunter2" not in caplog.text
    assert (caplog.record_tuples[0][0], printer.lines) == ("thornback.executor", [])
    monkeypatch.setattr(logging.getLogger("thornback.executor"), "propagate", False)
    say(printer, "starting\x1b[2J")
    assert printer.lines == ["thornback: starting\\x1b[2J"]


def test_silent_printer_starts_no_thread() -> None:
    before = threading.active_count()
    with Printer(silent=True) as printer:
        printer.print("x")
        assert threading.active_count() == before
