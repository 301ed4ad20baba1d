"""The command line: `python -m thornback.scheduler simulate`."""

from __future__ import annotations

import json

import pytest

from thornback.scheduler.__main__ import main
from thornback.scheduler.commandline_simulate import policy, share, whole

SMALL = ["simulate", "--ranks", "40", "--nodes", "3", "--rank-s", "20"]


def test_two_policies_meet_the_same_worlds(capsys: pytest.CaptureFixture[str]) -> None:
    policies = ["--policy", "default", "--policy", "code=5,delay_s=2"]
    assert main([*SMALL, "--rank-failures", "10%", *policies, "--seeds", "2", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["policy"], row["seed"]) for row in rows] == [
        ("default", 0),
        ("default", 1),
        ("code=5,delay_s=2", 0),
        ("code=5,delay_s=2", 1),
    ]
    assert [row["state"] for row in rows[2:]] == ["succeeded", "succeeded"]
    assert rows[0]["failed"] + rows[1]["failed"] > 0
    assert rows[0]["failed"] + rows[0]["done"] == 40
    assert rows[2]["attempts"] >= 40 + rows[0]["failed"]
    for name in ("makespan_s", "wasted_s", "gangs_opened", "gangs_lost"):
        assert rows[0][name] >= 0


def test_the_text_has_a_row_for_each_world_and_a_mean(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, "--preempted-per-hour", "50%", "--seeds", "2", "--checked"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split()[:4] == ["policy", "seed", "end", "makespan"]
    assert [line.split()[1] for line in lines] == ["0", "1", "mean"]
    assert "succeeded" in lines[0]


def test_the_load_says_what_the_driver_needs_and_where_it_breaks(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main([*SMALL, "--slots", "4", "--load", "--driver-calls-per-s", "1"]) == 0
    out = capsys.readouterr().out
    assert "(12 slots)" in out
    assert "bytes a second" in out
    assert "breaks at about" in out
    assert "24 calls a second, and 0 slots are the most" in out


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--policy", "wrker=1"], "'wrker' is no budget: write `default`, or some of code"),
        (["--policy", "worker=x"], "'x' is no number"),
        (["--policy", "worker=-1"], "worker must not be negative"),
        (["--preempted-per-hour", "120%"], "not between 0 and 100%"),
        (["--preempted-per-hour", "a fifth"], "is no share: write 0.2, 20% or 1/5"),
        (["--ranks", "1.5"], "not a whole number above 0"),
        (["--hangs", "1%"], "give timeout_s"),
        (["--gang-nodes", "30"], "a gang of 30 nodes, and 20 nodes"),
        (["--rank-s", "0"], "rank_s must be above 0"),
    ],
)
def test_bad_arguments_are_answered_with_what_is_expected(
    arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["simulate", *arguments])
    assert ended.value.code == 2
    assert complaint in capsys.readouterr().err


def test_numbers_are_read_as_people_write_them() -> None:
    assert [share(text) for text in ("0.2", "20%", "1/5", "0")] == [0.2, 0.2, 0.2, 0.0]
    assert [whole(text) for text in ("1000000", "1e6", "1_000")] == [10**6, 10**6, 1000]
    assert policy("worker=1,delay_s=2.5")[1].delay_s == 2.5
