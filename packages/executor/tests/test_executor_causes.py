"""What a failed run says: few lines, the most frequent causes, the summary last."""

from __future__ import annotations

import copy
import pickle
import traceback
from collections.abc import Callable, Sequence

import pytest

from thornback.executor import AttemptReport, GivenUp, RankFailure, RunFailed, RunReport
from thornback.executor.causes import causes_of, normalised, run_failed
from thornback.executor.endings import bad_end
from thornback.executor.report import StageProgress
from thornback.executor.results import Results, packed
from thornback.faults import Fault, FaultKind, Origin, StopReason

TRACE = """Traceback (most recent call last):
  File "/home/me/job.py", line 5, in clean
    return parse(text)
  File "/home/me/job.py", line 9, in parse
    return undefined
{error}"""


def no_results(stage: str) -> Results:
    return Results(packed({}, (), 0))


def given_up(
    rank: int,
    message: str = "name 'undefined' is not defined",
    *,
    stage: str = "clean",
    frame: str = "job.py:9 in parse",
    kind: FaultKind = FaultKind.APPLICATION,
    error_type: str = "builtins.NameError",
    traceback: str | None = None,
    log_tail: str = "",
    reason: str = "no retries for this",
    stop: StopReason = StopReason.NO_RETRIES,
) -> GivenUp:
    name = error_type.rpartition(".")[2]
    error = TRACE.format(error=f"{name}: {message}\n")
    fault = Fault(
        kind=kind,
        origin=Origin.RANK,
        rule="rank.raised",
        error_type=error_type,
        message=message,
        facts={"user_frame": frame},
        traceback=error if traceback is None else traceback,
    )
    last = AttemptReport(
        stage=stage,
        rank=rank,
        attempt=1,
        epoch="e",
        gang=0,
        node="n",
        fault=fault,
        verdict=reason,
        retried=False,
        log_tail=log_tail,
        log_url=f"/s/logs/1/0-{rank}.log",
        log_slice=(0, 14),
    )
    return GivenUp(stage=stage, ranks=(range(rank, rank + 1),), reason=reason, stop=stop, last=last)


def report(
    ended: Sequence[GivenUp], *, total: int = 2000, stopped: dict[str, StopReason] | None = None
) -> RunReport:
    names = dict.fromkeys(each.stage for each in ended) or {"clean": None}
    stages = {}
    for name in names:
        failed = sum(len(piece) for each in ended if each.stage == name for piece in each.ranks)
        skipped = total - failed if stopped and name in stopped else 0
        stages[name] = StageProgress(
            name=name, total=total, done=total - failed - skipped, failed=failed, skipped=skipped
        )
    return RunReport(
        job="words",
        state="failed",
        reason="stage 'clean': failed",
        state_url="/s",
        term=1,
        backend="here",
        stages=stages,
        attempts=(),
        seconds=1.0,
        given_up=tuple(ended),
        stopped=stopped or {},
        logs_url="/s/logs/1",
        read_results=no_results,
    )


def printed(error: RunFailed) -> list[str]:
    return "".join(traceback.format_exception(error)).splitlines()


def test_run_failed_one_cause_is_one_traceback_with_the_summary_last() -> None:
    ended = [given_up(rank) for rank in range(21)]
    error = run_failed(report(ended, stopped={"clean": StopReason.ALL_ALIKE}))
    assert printed(error) == [
        "  | thornback.executor.errors.RunFailed: Job 'words' failed: 21 of 2,000 ranks of stage "
        "'clean' failed: NameError: name 'undefined' is not defined",
        "  +-+---------------- 1 ----------------",
        "    | thornback.executor.errors.RankFailure: 21 ranks of stage 'clean' (0-20): NameError: "
        "name 'undefined' is not defined",
        '    |   File "/home/me/job.py", line 5, in clean',
        "    |     return parse(text)",
        '    |   File "/home/me/job.py", line 9, in parse',
        "    |     return undefined",
        "    |   log of rank 0: /s/logs/1/0-0.log, bytes 0 to 14",
        "    | ",
        "    | stage 'clean': 0 of 2,000 done, 21 failed, 1,979 not run (stopped: all ranks failed "
        "with the same error)",
        "    | logs: /s/logs/1",
        "    | state: /s (run the same job again to go on from there)",
        "    +------------------------------------",
    ]


@pytest.mark.parametrize("ranks", [1, 12, 2000])
@pytest.mark.parametrize("causes", [1, 50])
def test_run_failed_of_any_size_prints_at_most_60_lines(ranks: int, causes: int) -> None:
    message = "no {}\n" + "x" * 300 + "\n" + "detail\n" * 1000
    names = [f"word{chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(causes)]
    frames = '  File "/home/me/job.py", line 7, in deeper\n    deeper()\n' * 40
    trace = f"Traceback (most recent call last):\n{frames}NameError: {{}}"
    ended = []
    for rank in range(ranks):
        text = message.format(names[rank % causes])
        ended.append(given_up(rank, text, traceback=trace.format(text)))
    error = run_failed(report(ended))
    assert len(printed(error)) <= 60
    assert max(map(len, printed(error))) < 600
    assert printed(error)[-2].endswith("state: /s (run the same job again to go on from there)")
    assert error.text.splitlines()[0].startswith(f"Job 'words' failed: {ranks:,} of 2,000 rank")
    assert len(error.exceptions) == min(causes, ranks, 6)
    found = [rank for leaf in error.exceptions for rank in leaf.ranks]  # type: ignore[union-attr]
    assert sorted(found) == list(range(ranks))


def test_run_failed_the_most_frequent_cause_comes_first_and_others_are_counted() -> None:
    ended = [given_up(rank, f"no {chr(97 + rank) * 3}") for rank in range(9)]
    ended += [given_up(rank, "the same") for rank in (20, 22)]
    error = run_failed(report(ended))
    leaves = error.exceptions
    assert str(leaves[0]) == "2 ranks of stage 'clean' (20, 22): NameError: the same"
    assert str(leaves[5]) == ("5 ranks of stage 'clean' (4-8): 5 other causes, see report.given_up")
    assert error.message.endswith("failed: NameError: the same (and 9 other causes)")


def test_run_failed_causes_of_many_stages_are_counted_in_one_leaf() -> None:
    ended = [given_up(0, "no", stage=f"stage{number}") for number in range(20)]
    error = run_failed(report(ended, total=1))
    assert str(error.exceptions[5]) == "15 ranks of 15 stages: 15 other causes, see report.given_up"
    assert "of stage 'stage4' and of 15 more stages failed" in error.message
    assert error.summary.count("\n") == 7


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("rank 1: no such key 0x7f2a", "rank 200: no such key 0xdeadbeef"),
        ("[Errno 2] No such file: '/data/a/1.txt'", "[Errno 2] No such file: '/data/b/c.txt'"),
        ("s3://bucket/a missing", "s3://bucket/b missing"),
        (
            "id 123e4567-e89b-12d3-a456-426614174000 at 2026-12-01 04:30:01.123",
            "id 00000000-0000-0000-0000-000000000000 at 2027-01-02 14:31:02.1",
        ),
        ("worker i-0abc123def456 gone", "worker i-99fff123def456 gone"),
    ],
)
def test_normalised_numbers_paths_and_ids_make_no_difference(one: str, other: str) -> None:
    assert normalised(one) == normalised(other)
    ended = [given_up(0, one), given_up(1, other)]
    (cause,) = causes_of(report(ended))
    assert (cause.ranks, cause.varies) == ((range(2),), True)
    assert str(run_failed(report(ended)).exceptions[0]).startswith(
        "2 ranks of stage 'clean' (0-1), such as rank 0: NameError: "
    )


@pytest.mark.parametrize(
    "other",
    [
        given_up(1, "another text"),
        given_up(1, frame="job.py:10 in parse"),
        given_up(1, error_type="builtins.ValueError"),
        given_up(1, stage="merge"),
    ],
)
def test_causes_of_other_words_place_type_or_stage_are_other_causes(other: GivenUp) -> None:
    assert len(causes_of(report([given_up(0), other]))) == 2


def test_run_failed_hostile_text_drives_no_terminal() -> None:
    ended = [given_up(0, "\x1b[2Jgone\r\u202eevil\nnext\x9b1m", stage="clean\x1b[1m")]
    text = "\n".join([*printed(run_failed(report(ended))), run_failed(report(ended)).text])
    assert all(line.isprintable() for line in text.splitlines())
    assert "\\x1b[2Jgone" in text


def test_run_failed_a_death_shows_its_last_lines_and_why_it_is_given_up() -> None:
    died = given_up(
        3,
        "process 12 exited with code 7",
        kind=FaultKind.WORKER_CRASH,
        error_type="thornback.pool.RankProcessDied",
        traceback="",
        log_tail="loading\nlast words\n",
        reason="worker_crash: retry limit (3) reached",
        stop=StopReason.BUDGET,
    )
    (leaf,) = run_failed(report([died])).exceptions
    assert isinstance(leaf, RankFailure)
    assert str(leaf) == ("1 rank of stage 'clean' (3): process died: process 12 exited with code 7")
    assert leaf.detail.splitlines() == [
        "  the last lines that it wrote:",
        "    loading",
        "    last words",
        "  worker_crash: retry limit (3) reached",
        "  log of rank 3: /s/logs/1/0-3.log, bytes 0 to 14",
    ]


@pytest.mark.parametrize("copied", [lambda e: pickle.loads(pickle.dumps(e)), copy.copy])
def test_run_failed_copies_and_splits_keep_what_they_say(
    copied: Callable[[RunFailed], RunFailed],
) -> None:
    error = run_failed(report([given_up(0), given_up(1, "other"), given_up(2, "third")]))
    again = copied(error)
    assert printed(again) == printed(error)
    assert (again.text, again.report) == (error.text, error.report)
    match, rest = error.split(lambda each: isinstance(each, RankFailure) and 0 in each.ranks)
    assert isinstance(match, RunFailed)
    assert isinstance(rest, RunFailed)
    assert (len(match.exceptions), len(rest.exceptions)) == (1, 2)
    assert rest.report is error.report


def test_bad_end_without_ranks_given_up_says_the_reason() -> None:
    """Such as ranks that failed in an earlier run and are not tried again."""
    error = bad_end(report([]), signal=None)
    assert isinstance(error, RunFailed)
    assert error.message == "Job 'words' failed: stage 'clean': failed"
