"""What is written of failures that the scheduler gave up by a rule of its own, against a stage that
makes no progress: the policy would have tried again."""

from __future__ import annotations

import attrs
import pytest
from opentelemetry.trace import NoOpTracer

from thornback.executor import AttemptReport, Job, RankContext, Stage
from thornback.executor.certifier import Certifier, LiveAssignment, no_logs
from thornback.executor.plan import RunPlan, Settings
from thornback.executor.records import RecordDesk
from thornback.executor.tracing import RunTracer
from thornback.executor.watching import Watchers
from thornback.faults import Fault, FaultKind, Origin, RetryVerdict, StopReason
from thornback.pool import Outcome
from thornback.scheduler import commands as cmd
from thornback.scheduler import events as ev

NO_PROGRESS = "no progress: 20 attempts in a row failed, and no rank finished. The last: x"
AGAIN = RetryVerdict(retry=True, reason="worker_crash: retry 1 of 3, in a fresh process")
SPENT = RetryVerdict(retry=False, reason="oom: given up: 4 used up", stop=StopReason.BUDGET)
FAULT = Fault(
    kind=FaultKind.WORKER_CRASH, origin=Origin.PROCESS, rule="r", error_type="E", message="m"
)
LIVE = cmd.Dispatch(gang=1, assignment=7, stage=0, ranks=(range(3, 4),))
FAILED = cmd.Record(
    stage=0,
    ranks=(range(3, 4),),
    assignment=None,
    state=cmd.RecordState.FAILED,
    stop=StopReason.NO_PROGRESS,
)


def work(ctx: RankContext) -> None: ...


@pytest.fixture
def plan() -> RunPlan:
    job = Job("j", [Stage("a", work, ranks=9)])
    return RunPlan(job, Settings(state_url="/state", cwd="/"))


@pytest.fixture
def certifier(plan: RunPlan) -> Certifier:
    made = Certifier(plan, RunTracer(NoOpTracer(), "j", ["a"]), Watchers(()), no_logs)
    shape = cmd.ShapeKey(base=0)
    made.gang_asked(cmd.OpenGang(gang=1, shape=shape))
    return made


def test_a_rank_whose_stage_was_stopped_is_certified_with_that_reason(
    plan: RunPlan, certifier: Certifier
) -> None:
    live = LiveAssignment(LIVE, "000001.000000007", outcomes={3: Outcome(rank=3, ok=False)})
    event = ev.RankFailed(assignment=7, rank=3, fault=FAULT, node="n")
    certifier.rank_failed(event, AGAIN, [FAILED], live, lambda stage, rank: NO_PROGRESS)
    done = RecordDesk(plan, certifier, 1).ended(FAILED, NO_PROGRESS, [AGAIN])
    (attempt,) = certifier.chronicle.attempts
    (ended,) = certifier.chronicle.given_up
    assert (attempt.stop, attempt.verdict, attempt.retried) == (
        StopReason.NO_PROGRESS,
        NO_PROGRESS,
        False,
    )
    assert (ended.stop, ended.last) == (StopReason.NO_PROGRESS, attempt)
    assert done.certificate is not None
    assert done.certificate["stop"] == "no_progress"


def test_a_rank_lost_with_its_gang_has_the_word_of_its_own_verdict(certifier: Certifier) -> None:
    live = LiveAssignment(LIVE, "000001.000000007")
    event = ev.GangLost(gang=1, fault=FAULT, node="n")
    lost = [(live, LIVE.ranks)]
    spent = attrs.evolve(FAILED, stop=StopReason.BUDGET)
    certifier.gang_lost(event, [AGAIN, SPENT], [spent], lost, lambda stage, rank: SPENT.reason)
    certifier.gang_lost(event, [AGAIN, AGAIN], [], lost, lambda stage, rank: "")
    certifier.gang_lost(event, [SPENT], [], [], lambda stage, rank: "")
    assert [(a.stop, a.retried) for a in certifier.chronicle.attempts] == [
        (StopReason.BUDGET, False),
        (None, True),
        (StopReason.BUDGET, False),
    ]


def test_ranks_lost_together_and_the_last_of_many_openings_stop_with_their_stage(
    certifier: Certifier,
) -> None:
    command = attrs.evolve(LIVE, ranks=(range(2, 5),))
    live = LiveAssignment(command, "000001.000000007")
    event = ev.GangLost(gang=1, fault=FAULT, node="n")
    all_of_them = attrs.evolve(FAILED, ranks=(range(0, 9),))
    lost = [(live, command.ranks)]
    certifier.gang_lost(event, [AGAIN], [all_of_them], lost, lambda stage, rank: NO_PROGRESS)
    certifier.gang_lost(event, [AGAIN], [all_of_them], [], lambda stage, rank: NO_PROGRESS)
    for attempt in certifier.chronicle.attempts:
        assert (attempt.stop, attempt.verdict) == (StopReason.NO_PROGRESS, NO_PROGRESS)
        assert not attempt.retried
    certifier.gang_lost(event, [AGAIN], [], lost, lambda stage, rank: "")
    assert certifier.chronicle.attempts[-1].retried


def test_ranks_given_up_while_their_gang_opens_name_its_loss_and_no_other(
    plan: RunPlan, certifier: Certifier
) -> None:
    desk = RecordDesk(plan, certifier, 1)
    event = ev.GangLost(gang=1, fault=FAULT, node="n")
    all_of_them = attrs.evolve(FAILED, ranks=(range(0, 9),))

    def given_up(reason: str) -> AttemptReport | None:
        desk.ended(all_of_them, reason, [AGAIN])
        return certifier.chronicle.given_up[-1].last

    assert given_up(NO_PROGRESS) is None
    certifier.gang_lost(event, [AGAIN], [], [], lambda stage, rank: "")
    assert given_up(AGAIN.reason) is None, "that gang was asked for again"
    certifier.gang_lost(event, [AGAIN], [all_of_them], [], lambda stage, rank: NO_PROGRESS)
    assert given_up(NO_PROGRESS) == certifier.chronicle.attempts[-1]
    assert given_up("another reason") is None
    live = LiveAssignment(LIVE, "000001.000000007", outcomes={3: Outcome(rank=3, ok=False)})
    failed = ev.RankFailed(assignment=7, rank=3, fault=FAULT, node="n")
    certifier.rank_failed(failed, AGAIN, [FAILED], live, lambda stage, rank: NO_PROGRESS)
    assert given_up(NO_PROGRESS) is None, "that was another rank's"


def test_what_is_skipped_was_not_given_up(plan: RunPlan, certifier: Certifier) -> None:
    skipped = cmd.Record(
        stage=0, ranks=(range(3, 4),), assignment=None, state=cmd.RecordState.SKIPPED
    )
    done = RecordDesk(plan, certifier, 1).ended(skipped, "skipped: rank 1 failed", [SPENT])
    assert (done.state, done.certificate) == (
        "skipped",
        {"reason": "skipped: rank 1 failed", "stop": None, "last": None, "evidence": []},
    )
    assert not certifier.chronicle.given_up
