"""Whether each kill was seen and retried: judged from the report alone."""

from __future__ import annotations

from typing import Literal

import attrs
import pytest

from thornback.cli.demo.verdict import judge_chaos
from thornback.executor import AttemptReport
from thornback.executor.testing import Kill
from thornback.faults import Fault, FaultKind, Origin

RANK_KILL = Kill(what="rank", pid=71, stage="index", rank=5, gang=1)
WORKER_KILL = Kill(what="worker", pid=80, stage="index", rank=6, gang=2)


def attempt(rank: int | None, origin: Origin, *, gang: int, pid: int = 0) -> AttemptReport:
    return AttemptReport(
        stage="index",
        rank=rank,
        attempt=1,
        epoch="000001.000000001",
        gang=gang,
        node="n",
        fault=Fault(
            kind=FaultKind.WORKER_CRASH, origin=origin, rule="r", error_type="e", message="m"
        ),
        verdict="again",
        retried=True,
        pid=pid,
    )


RANK_FAULT = attempt(5, Origin.PROCESS, gang=1, pid=71)
GANG_LOST = attempt(None, Origin.WORKER, gang=2)


def test_both_kills_seen_and_retried() -> None:
    verdict = judge_chaos((RANK_KILL, WORKER_KILL), (GANG_LOST, RANK_FAULT), recorded_before=0)
    assert verdict.problems == ()
    assert verdict.notes == (
        "killed a rank process (pid 71, index rank 5, gang 1): worker_crash, retried",
        "killed a worker process (pid 80, gang 2): worker_crash, retried",
    )


@pytest.mark.parametrize("what", ["rank", "worker"])
def test_a_kill_that_no_fault_tells_of(what: Literal["rank", "worker"]) -> None:
    missing = {"rank": RANK_FAULT, "worker": GANG_LOST}[what]
    kept = [fault for fault in (RANK_FAULT, GANG_LOST) if fault is not missing]
    problems = judge_chaos((RANK_KILL, WORKER_KILL), kept, recorded_before=0).problems
    assert len(problems) == 1
    assert problems[0].startswith(f"killed a {what} process")


def test_a_fault_that_was_not_retried_does_not_count() -> None:
    given_up = attrs.evolve(RANK_FAULT, retried=False)
    verdict = judge_chaos((RANK_KILL, WORKER_KILL), (given_up, GANG_LOST), recorded_before=0)
    assert len(verdict.problems) == 1


def test_the_lost_gangs_own_rank_does_not_stand_for_the_killed_rank() -> None:
    charged = attempt(6, Origin.WORKER, gang=2)
    verdict = judge_chaos((RANK_KILL, WORKER_KILL), (charged, GANG_LOST), recorded_before=0)
    assert len(verdict.problems) == 1


def test_a_killed_worker_that_had_one_rank_shows_as_that_ranks_fault() -> None:
    charged = attempt(6, Origin.WORKER, gang=2)
    verdict = judge_chaos((RANK_KILL, WORKER_KILL), (RANK_FAULT, charged), recorded_before=0)
    assert verdict.problems == ()


def test_a_rank_process_that_died_in_the_gang_does_not_stand_for_its_worker() -> None:
    child = attempt(6, Origin.PROCESS, gang=2, pid=90)
    verdict = judge_chaos((RANK_KILL, WORKER_KILL), (RANK_FAULT, child), recorded_before=0)
    assert len(verdict.problems) == 1


def test_other_faults_do_not_stand_for_the_kills() -> None:
    other_child = attempt(5, Origin.PROCESS, gang=1, pid=72)
    other_gang = attempt(None, Origin.WORKER, gang=3)
    kills = (RANK_KILL, WORKER_KILL)
    assert len(judge_chaos(kills, (other_child, other_gang), recorded_before=0).problems) == 2


def test_one_fault_does_not_stand_for_two_kills() -> None:
    twice = attrs.evolve(RANK_KILL, rank=9)
    kills = (RANK_KILL, twice, WORKER_KILL)
    assert len(judge_chaos(kills, (RANK_FAULT, GANG_LOST), recorded_before=0).problems) == 1


def test_a_fresh_run_without_kills_is_a_problem_a_resumed_one_only_says_so() -> None:
    assert len(judge_chaos((), (), recorded_before=0).problems) == 2
    resumed = judge_chaos((), (), recorded_before=33)
    assert resumed.problems == ()
    assert resumed.notes[0] == "no rank was killed: 33 ranks were recorded earlier"
