"""What is remembered of failures, also when everything fails."""

from __future__ import annotations

from thornback.executor import AttemptReport, GivenUp
from thornback.executor.chronicle import MAX_ATTEMPTS_KEPT, Chronicle
from thornback.faults import Fault, FaultKind, Origin


def attempt(rank: int) -> AttemptReport:
    fault = Fault(
        kind=FaultKind.APPLICATION,
        origin=Origin.RANK,
        rule="r",
        error_type="E",
        message="m" * 1000,
        traceback="t" * 1000,
    )
    return AttemptReport(
        stage="s",
        rank=rank,
        attempt=1,
        epoch="",
        gang=0,
        node="n",
        fault=fault,
        verdict="",
        retried=False,
        log_tail="l" * 1000,
    )


def test_every_given_up_rank_is_told_and_the_memory_for_it_is_bounded() -> None:
    chronicle = Chronicle()
    total = MAX_ATTEMPTS_KEPT + 500
    for rank in range(total):
        chronicle.add(attempt(rank))
        last = chronicle.take_last("s", rank)
        assert last is not None
        assert chronicle.take_last("s", rank) is None, "a settled rank is forgotten"
        chronicle.give_up(
            GivenUp(stage="s", ranks=(range(rank, rank + 1),), reason="why", last=last)
        )
    assert len(chronicle.attempts) == MAX_ATTEMPTS_KEPT
    told = chronicle.all_given_up()
    assert len(told) == MAX_ATTEMPTS_KEPT + 1
    assert told[-1].ranks == (range(MAX_ATTEMPTS_KEPT, total),)
    shortened = chronicle.last_of("s")
    assert shortened is not None
    assert (shortened.log_tail, shortened.fault.traceback) == ("", "")
    assert len(shortened.fault.message) == 200
