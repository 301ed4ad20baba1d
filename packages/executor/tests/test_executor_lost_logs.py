"""What the certificate of a lost gang says of the log that its rank had written."""

from __future__ import annotations

import pytest
from opentelemetry.trace import NoOpTracerProvider

from thornback.executor import AttemptReport, Job, RankContext, Stage
from thornback.executor.certifier import Certifier, LiveAssignment
from thornback.executor.plan import RunPlan, Settings
from thornback.executor.ports import Ranks
from thornback.executor.tracing import RunTracer
from thornback.executor.watching import Watchers
from thornback.faults import FaultKind, RetryVerdict
from thornback.faults.testing import fault
from thornback.pool import RunningRank
from thornback.scheduler.commands import Dispatch, OpenGang, ShapeKey
from thornback.scheduler.events import GangLost

TO_THE_END = 2**53 - 1


def work(ctx: RankContext) -> None:
    """Never called."""


def running(rank: int, log_path: str = "/tmp/x-slot0-3.log", log_start: int = 40) -> RunningRank:
    return RunningRank(
        assignment=5,
        rank=rank,
        attempt=1,
        pid=7,
        ran_s=1.0,
        log_path=log_path,
        log_start=log_start,
    )


def certificate(
    seen: dict[str, RunningRank], ranks: Ranks = (range(2, 3),), node: str | None = "n1"
) -> AttemptReport:
    """Return that of an assignment of the gang 4, which owed these ranks when it was lost."""
    plan = RunPlan(Job("j", [Stage("a", work, ranks=9)]), Settings(state_url="/state", cwd="/"))
    tracer = RunTracer(NoOpTracerProvider().get_tracer("test"), "j", ["a"])
    certifier = Certifier(plan, tracer, Watchers(()), lambda gang, path: path and f"{gang}:{path}")
    certifier.gang_asked(OpenGang(gang=4, shape=ShapeKey(base=0)))
    command = Dispatch(gang=4, assignment=5, stage=0, ranks=ranks)
    live = LiveAssignment(command, "000001.000000005", seen=dict(seen))
    lost = GangLost(gang=4, fault=fault(FaultKind.NODE_LOST), node=node)
    certifier.gang_lost(
        lost, [RetryVerdict(retry=True, reason="again")], (), [(live, ranks)], lambda s, r: ""
    )
    (told,) = certifier.chronicle.attempts
    return told


def test_the_log_is_that_of_the_rank_that_ran_on_the_lost_node() -> None:
    told = certificate({"n0": running(2, "/tmp/other.log"), "n1": running(2)})
    assert told.log_url == "4:/tmp/x-slot0-3.log"
    assert (told.log_path, told.log_slice) == ("/tmp/x-slot0-3.log", (40, TO_THE_END))
    assert (told.log_part, told.pid, told.rank) == ("from byte 40 on", 7, 2)


def test_of_several_ranks_that_were_lost_it_is_that_of_the_one_that_ran() -> None:
    told = certificate({"n1": running(6)}, (range(2, 9),))
    assert (told.rank, told.log_url) == (None, "4:/tmp/x-slot0-3.log")


@pytest.mark.parametrize(
    ("seen", "node"),
    [
        ({}, "n1"),
        ({"n1": running(1)}, "n1"),  # it has ended since
        ({"n0": running(2)}, "n1"),
        ({"n1": running(2)}, None),
    ],
)
def test_where_no_sign_of_life_has_told_of_it_there_is_no_log(
    seen: dict[str, RunningRank], node: str | None
) -> None:
    told = certificate(seen, node=node)
    assert (told.log_path, told.log_url, told.log_slice, told.pid) == ("", "", (0, 0), 0)


def test_a_process_without_a_log_has_none() -> None:
    told = certificate({"n1": running(2, log_path="", log_start=0)})
    assert (told.log_path, told.log_url, told.log_slice, told.pid) == ("", "", (0, 0), 7)
