"""The command line: `python -m thornback.scheduler simulate`."""

from __future__ import annotations

import json
import runpy
import sys

import pytest

import thornback.scheduler.__main__ as program
from thornback.faults import FaultKind
from thornback.scheduler.__main__ import main
from thornback.scheduler.commandline_simulate import Row, policy, share, table, whole
from thornback.scheduler.commands import FinishRun, RunState
from thornback.scheduler.simulate import RunStats
from thornback.scheduler.simulate.load import LoadMeter

SMALL = ["simulate", "--ranks", "40", "--nodes", "3", "--rank-s", "20"]


def test_two_policies_meet_the_same_worlds(capsys: pytest.CaptureFixture[str]) -> None:
    policies = ["--policy", "default", "--policy", "retries=5,base_delay_s=2"]
    assert main([*SMALL, "--rank-failures", "10%", *policies, "--seeds", "2", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["policy"], row["seed"]) for row in rows] == [
        ("default", 0),
        ("default", 1),
        ("retries=5,base_delay_s=2", 0),
        ("retries=5,base_delay_s=2", 1),
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


def test_a_share_of_the_nodes_is_preempted_per_hour(capsys: pytest.CaptureFixture[str]) -> None:
    """40 minutes on 10 nodes: 100 % an hour are some 7 of them, 10 % one or none."""
    lost = []
    for share_of in ("100%", "10%"):
        world = ["simulate", "--ranks", "400", "--nodes", "10", "--rank-s", "60", "--json"]
        assert main([*world, "--preempted-per-hour", share_of]) == 0
        (row,) = json.loads(capsys.readouterr().out)
        assert row["makespan_s"] > 2000
        lost.append(row["gangs_lost"])
    assert 3 <= lost[0] <= 12, lost
    assert lost[1] <= 2, lost


@pytest.mark.parametrize("kind", ["exit", "enospc", "load", "setup", "gpu"])
def test_simulate_bad_node_fails_no_rank(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    bad = ["--bad-nodes", "1", "--bad-kind", kind, "--slots", "2"]
    assert main([*SMALL, *bad, "--checked", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert (row["done"], row["failed"]) == (40, 0)
    assert row["faults"]["node-1"] > 0


def test_a_row_tells_each_figure_and_the_mean_row_their_means() -> None:
    def row(seed: int, lost: int, busy_s: float) -> Row:
        stats = RunStats(
            finish=FinishRun(state=RunState.FAILED),
            makespan_s=3600.0 + 90.0 * seed,
            attempts=50 + lost,
            gangs_opened=9,
            gangs_lost=lost,
            failed=2 * lost,
            busy_s=busy_s,
            wasted_s=busy_s / 4,
        )
        return Row(policy="default", seed=seed, stats=stats, load=LoadMeter().stats())

    lines = table([row(0, 1, 0.0), row(1, 4, 80.0)]).splitlines()
    assert [" ".join(line.split()) for line in lines] == [
        "policy seed end makespan wasted attempts gangs lost failed",
        "default 0 failed 1:00:00 - 51 9 1 2",
        "default 1 failed 1:01:30 25.0% 54 9 4 8",
        "default mean 1:00:45 25.0% 52.5 9.0 2.5 5.0",
    ]


def test_one_world_is_simulated_unless_said_otherwise(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, "--json"]) == 0
    assert [row["seed"] for row in json.loads(capsys.readouterr().out)] == [0]


def test_the_module_is_a_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["scheduler", *SMALL])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(program.__file__, run_name="__main__")
    assert ended.value.code == 0


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
        (["--policy", "wrker=1"], "'wrker' is not part of a policy: write `default`, or some of"),
        (["--policy", "worker_crash=x"], "'x' is not a number"),
        (["--policy", "worker_crash=-1"], "retries must be an int >= 0"),
        (["--policy", "max_free=-1"], "must be an int >= 0"),
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
    _, read = policy("worker_crash=1,base_delay_s=2.5")
    assert (read.budget(FaultKind.WORKER_CRASH).retries, read.base_delay_s) == (1, 2.5)
