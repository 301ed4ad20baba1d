"""What is printed, line by line."""

from __future__ import annotations

import io
from types import MappingProxyType

import attrs
import pytest
from rich.console import Console

from thornback.cli.demo.index import Index
from thornback.cli.display import Display, LineConsole, fault_text, result_tables
from thornback.executor import AttemptReport, Observer, RunInfo, RunReport, StageProgress
from thornback.executor.results import Results, packed
from thornback.faults import Fault, FaultKind, Origin


@attrs.define
class Screen:
    """A display on a file that is no terminal, with a clock that stands still."""

    file: io.StringIO = attrs.field(factory=io.StringIO)
    now_s: float = 100.0
    display: Display = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        """Make the display."""
        console = LineConsole(file=self.file, highlight=False, width=40)
        self.display = Display(console, lambda: self.now_s)

    def lines(self) -> list[str]:
        text = self.file.getvalue()
        self.file.seek(0)
        self.file.truncate()
        return text.splitlines()


@pytest.fixture
def screen() -> Screen:
    return Screen()


def info(*stages: StageProgress) -> RunInfo:
    return RunInfo(job="demo", state_url="/state", term=3, backend="Ray 9", stages=stages)


def index(**counts: int) -> StageProgress:
    return StageProgress(name="index", total=32, **counts)


def attempt(rank: int | None = 3, retried: bool = True, message: str = "killed") -> AttemptReport:
    return AttemptReport(
        stage="index",
        rank=rank,
        attempt=1,
        epoch="000001.000000004",
        gang=2,
        node="0123456789abcdef",
        fault=Fault(
            kind=FaultKind.WORKER_CRASH,
            origin=Origin.PROCESS,
            rule="rank killed by a signal",
            error_type="x.Died",
            message=message,
        ),
        verdict="retry 1 of 3",
        retried=retried,
    )


def report(state: str = "succeeded", reason: str = "", **counts: int) -> RunReport:
    return RunReport(
        job="demo",
        state=state,
        reason=reason,
        state_url="/state",
        term=3,
        backend="Ray 9",
        stages=MappingProxyType({"index": index(**counts)}),
        attempts=(attempt(),),
        seconds=8.25,
        read_results=lambda stage: Results(packed({}, (), 0)),
    )


def test_the_display_is_an_observer(screen: Screen) -> None:
    observer: Observer = screen.display
    observer.started(info())


def test_the_header_tells_job_backend_state_term_and_what_was_recorded(screen: Screen) -> None:
    assert not screen.display.has_started
    screen.display.started(info(index(done=7, recorded_before=7), StageProgress(name="m", total=1)))
    assert screen.display.has_started
    assert screen.lines() == [
        "job      demo",
        "backend  Ray 9",
        "state    /state (term 3)",
        "stage    index: 32 ranks, 7 recorded earlier",
        "stage    m: 1 rank",
    ]


def test_progress_is_at_most_two_lines_a_second(screen: Screen) -> None:
    screen.display.started(info(index()))
    screen.lines()
    for done in range(20):
        screen.display.progressed((index(done=done, running=4, gangs=4),))
        screen.now_s += 0.1
    lines = screen.lines()
    assert lines[0] == "[   0.0 s] index 0/32 done, 4 running, 4 gangs"
    assert len(lines) == 4, lines


def test_progress_that_says_the_same_is_said_once(screen: Screen) -> None:
    screen.display.started(info(index()))
    screen.lines()
    for _ in range(5):
        screen.display.progressed((index(done=1),))
        screen.now_s += 1
    assert screen.lines() == ["[   0.0 s] index 1/32 done"]


def test_the_end_of_a_stage_is_told_at_once_and_once(screen: Screen) -> None:
    screen.display.started(info(index()))
    screen.display.progressed((index(done=31, running=1),))
    screen.lines()
    for _ in range(3):
        screen.display.progressed((index(done=30, failed=1, skipped=1),))
    assert screen.lines() == [
        "[   0.0 s] index has ended: 30/32 done, 1 failed, 1 skipped",
    ]


def test_a_stage_recorded_earlier_does_not_end_again(screen: Screen) -> None:
    done = index(done=32, recorded_before=32)
    screen.display.started(info(done))
    screen.lines()
    screen.display.progressed((done,))
    assert screen.lines() == []


def test_a_fault_is_one_line_with_kind_rule_and_verdict(screen: Screen) -> None:
    screen.display.started(info(index()))
    screen.lines()
    screen.display.failed(attempt())
    assert screen.lines() == [
        "[   0.0 s] fault: index rank 3, attempt 1 on 0123456789ab: worker_crash "
        "(rule rank killed by a signal): killed -> retried: retry 1 of 3"
    ]


def test_a_lost_gang_and_a_rank_given_up() -> None:
    assert "index, gang 2 on" in fault_text(attempt(rank=None))
    lost = attrs.evolve(attempt(rank=None), lost_ranks=(range(3, 6), range(8, 9)))
    assert "index, gang 2 with ranks 3-5, 8 on" in fault_text(lost)
    assert "-> given up: retry 1 of 3" in fault_text(attempt(retried=False))


def test_a_message_cannot_drive_the_terminal_nor_fill_it() -> None:
    text = fault_text(attempt(message="\n  \x1b[2J[red]bad[/red]" + "x" * 500 + "\nmore"))
    assert "\x1b" not in text
    assert "[red]bad[/red]x" in text
    assert len(text) < 400
    assert "more" not in text


def test_markup_in_a_message_is_text(screen: Screen) -> None:
    screen.display.failed(attempt(message="[bold]no[/bold]"))
    assert "[bold]no[/bold]" in screen.lines()[0]


def test_an_empty_message_shows_the_type() -> None:
    assert ": x.Died ->" in fault_text(attempt(message=""))


def test_the_end_counts_what_is_new_and_what_was_there(screen: Screen) -> None:
    screen.display.finished(report(done=32, recorded_before=10))
    assert screen.lines() == [
        "run succeeded in 8.2 s: 22 ranks recorded now, 10 recorded earlier, 1 fault"
    ]
    screen.display.finished(report("failed", "index: 2 ranks failed", done=30, failed=2))
    assert screen.lines() == [
        "run failed (index: 2 ranks failed) in 8.2 s: 30 ranks recorded now, 1 fault"
    ]


def test_a_run_with_nothing_to_do_says_so(screen: Screen) -> None:
    screen.display.finished(report(done=32, recorded_before=32))
    assert screen.lines() == ["nothing left to run: all 32 ranks were recorded earlier"]


def test_the_result_is_shown(screen: Screen) -> None:
    result: Index = {
        "counts": {"files": 1786},
        "distinct_words": 41138,
        "top_words": [["self", 222870]],
        "largest": [["test/test_typing.py", 302456]],
    }
    console = Console(file=screen.file, width=60)
    for table in result_tables(result):
        console.print(table)
    shown = "\n".join(screen.lines())
    for text in ("files", "1,786", "41,138", "self", "222,870", "test/test_typing.py", "302,456"):
        assert text in shown


class BrokenPipe(io.StringIO):
    """The write end of a pipe that nobody reads any more."""

    def write(self, _text: str, /) -> int:
        raise BrokenPipeError


def test_a_reader_that_went_away_ends_the_display_not_the_run() -> None:
    console = LineConsole(file=BrokenPipe())
    display = Display(console, lambda: 0.0)
    display.line("one")
    display.line("two")
    assert console.quiet


def test_how_far_running_ranks_are_is_shown_where_they_tell(screen: Screen) -> None:
    screen.display.progressed([index(done=12, running=4)])
    screen.now_s += 10.0
    screen.display.progressed([attrs.evolve(index(done=12, running=4), partial=1.5)])
    plain, told = screen.lines()
    assert plain.endswith("index 12/32 done, 4 running")
    assert told.endswith("index 12/32 done, 4 running (38%)")


def test_the_log_of_a_rank_that_is_given_up_is_named(screen: Screen) -> None:
    kept = attrs.evolve(attempt(), log_url="/state/logs/000001/2-r.log", log_slice=(10, 25))
    screen.display.failed(kept)
    assert len(screen.lines()) == 1
    screen.display.failed(attrs.evolve(kept, retried=False))
    _, where = screen.lines()
    assert where.strip() == "its log: /state/logs/000001/2-r.log, bytes 10 to 25"
    screen.display.failed(attrs.evolve(kept, retried=False, log_slice=(10, 2**53 - 1)))
    assert screen.lines()[-1].strip() == "its log: /state/logs/000001/2-r.log, from byte 10 on"
