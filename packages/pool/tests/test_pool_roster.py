"""The roster, rule by rule."""

from __future__ import annotations

import itertools

import attrs
import pytest

from thornback.pool import (
    CaughtError,
    Checkpoint,
    FinishedWhen,
    Outcome,
    Report,
    SeenBy,
    SpanData,
)
from thornback.pool.members import TRANSITIONS, MemberNews, MemberState
from thornback.pool.roster import (
    Deliver,
    GangGone,
    Grace,
    KillRank,
    Roster,
)
from thornback.pool.severity import Loss, Severity, severity_of


def ok(
    rank: int,
    node: str = "",
    result: str | None = None,
    ran_s: float = 0.0,
    outputs: tuple[tuple[str, str], ...] = (),
) -> Outcome:
    return Outcome(rank=rank, ok=True, node=node, result=result, ran_s=ran_s, outputs=outputs)


def failed(rank: int, name: str = "builtins.ValueError", seen_by: SeenBy = SeenBy.RANK) -> Outcome:
    error = CaughtError(type_names=(name,), message="no")
    return Outcome(rank=rank, ok=False, error=error, seen_by=seen_by)


def loss(name: str = "thornback.pool.WorkerDied", **facts: str | int | bool) -> Loss:
    return Loss(error=CaughtError(type_names=(name,), message="dead"), facts=facts)


def final(*outcomes: Outcome) -> Report:
    return Report(outcomes=outcomes, final=True)


def gang(nodes: int = 1) -> Roster:
    roster = Roster([f"n{index}" for index in range(nodes)])
    for member in range(nodes):
        roster.answered(member)
    return roster


@pytest.mark.parametrize("state", MemberState)
@pytest.mark.parametrize("news", MemberNews)
def test_members_follow_the_table(state: MemberState, news: MemberNews) -> None:
    roster = Roster(["n0"])
    ways = {
        MemberState.STARTING: [],
        MemberState.ALIVE: [MemberNews.ANSWERED],
        MemberState.UNREACHABLE: [MemberNews.ANSWERED, MemberNews.UNAVAILABLE],
        MemberState.DEAD: [MemberNews.DIED],
    }
    for step in [*ways[state], news]:
        match step:
            case MemberNews.ANSWERED:
                roster.answered(0)
            case MemberNews.UNAVAILABLE:
                roster.unavailable(0)
            case MemberNews.DIED:
                roster.died(0, loss())
    assert roster.state(0) is TRANSITIONS[state].get(news, state)


def test_only_the_first_cut_opens_a_grace_window() -> None:
    roster = gang()
    assert roster.unavailable(0)
    assert not roster.unavailable(0)
    roster.answered(0)
    assert roster.unavailable(0)


def test_one_node_passes_news_on_with_its_node() -> None:
    roster = gang()
    assert roster.assigned(7, [range(0, 4)])
    news = Report(outcomes=(ok(0),), returned=(range(2, 4),), running=1)
    (deliver,) = roster.reported(0, 7, news)
    assert deliver == Deliver(
        assignment=7,
        report=Report(outcomes=(ok(0, node="n0"),), returned=(range(2, 4),), running=1),
    )
    (last,) = roster.reported(0, 7, final(ok(1)))
    assert last == Deliver(assignment=7, report=final(ok(1, node="n0")))
    assert roster.assignments == ()


def test_duplicates_and_foreign_ranks_are_dropped_and_missing_ones_returned() -> None:
    roster = gang()
    roster.assigned(1, [range(0, 3), range(8, 9)])
    roster.reported(0, 1, Report(outcomes=(ok(0), ok(0), ok(99)), running=1))
    (last,) = roster.reported(
        0, 1, Report(outcomes=(ok(0), failed(1)), returned=(range(0, 2),), final=True)
    )
    assert isinstance(last, Deliver)
    assert [outcome.rank for outcome in last.report.outcomes] == [1]
    assert last.report.returned == (range(2, 3), range(8, 9))
    assert last.report.final
    assert roster.reported(0, 1, final(ok(2))) == ()


def test_all_ranks_reported_is_final_even_if_the_worker_does_not_say_so() -> None:
    roster = gang()
    roster.assigned(1, [range(1)])
    (last,) = roster.reported(0, 1, Report(outcomes=(ok(0),)))
    assert isinstance(last, Deliver)
    assert last.report.final


def test_bad_assignments_are_refused() -> None:
    roster = gang(2)
    roster.assigned(1, [range(1)])
    with pytest.raises(ValueError, match="in flight already"):
        roster.assigned(1, [range(1)])
    with pytest.raises(ValueError, match="each once"):
        roster.assigned(2, [range(0, 0)])
    with pytest.raises(ValueError, match="each once"):
        gang().assigned(2, [range(2), range(1, 3)])
    with pytest.raises(ValueError, match="one rank per assignment"):
        roster.assigned(2, [range(2)])
    with pytest.raises(ValueError, match="at least one node"):
        Roster([])


def test_several_nodes_finish_when_all_have_and_node_0_gives_the_result() -> None:
    roster = gang(3)
    roster.assigned(1, [range(5, 6)])
    assert roster.reported(2, 1, final(ok(5, result="c", outputs=(("s2", "f2"),)))) == ()
    assert roster.reported(0, 1, final(ok(5, result="a", outputs=(("s0", "f0"),)))) == ()
    (last,) = roster.reported(1, 1, final(ok(5, result="b", ran_s=3.0)))
    expected = ok(5, result="a", node="n0", ran_s=3.0, outputs=(("s2", "f2"), ("s0", "f0")))
    assert last == Deliver(assignment=1, report=final(expected))


def test_several_nodes_have_their_spans_told_apart() -> None:
    roster = gang(2)
    roster.assigned(1, [range(1)])
    span = SpanData(name="s", span_id="1", before_end_s=1.0, duration_s=1.0, attributes={"a": 1})
    roster.reported(1, 1, final(attrs.evolve(ok(0), spans=(span,), spans_dropped=2)))
    (last,) = roster.reported(0, 1, final(attrs.evolve(ok(0), spans=(span,), spans_dropped=1)))
    assert isinstance(last, Deliver)
    (outcome,) = last.report.outcomes
    assert outcome.spans == tuple(
        attrs.evolve(span, attributes={"a": 1, "thornback.node": node}) for node in ("n0", "n1")
    )
    assert outcome.spans_dropped == 3


def asks(*members: int) -> tuple[KillRank, ...]:
    return tuple(KillRank(member=member, assignment=1, vouch=True) for member in members)


def test_the_first_failure_recalls_the_siblings_once_and_waits_for_them() -> None:
    roster = gang(3)
    roster.assigned(1, [range(1)])
    assert roster.reported(1, 1, final(failed(0))) == asks(0, 2)
    assert roster.vouched(2, 1) == ()
    assert roster.reported(0, 1, final(failed(0, "builtins.OSError"))) == ()
    assert roster.vouched(0, 1) == ()
    (last,) = roster.reported(2, 1, Report(returned=(range(1),), final=True))
    assert last == Deliver(assignment=1, report=final(attrs.evolve(failed(0), node="n1")))
    assert roster.vouched(2, 1) == (), "late"


def test_who_had_ended_its_part_and_died_is_the_cause_of_a_failure_that_came_before_the_news() -> (
    None
):
    roster = gang(2)
    roster.assigned(1, [range(1)])
    roster.reported(0, 1, final(ok(0)))
    assert roster.reported(1, 1, final(failed(0, "builtins.ConnectionResetError"))) == asks(0)
    (gone,) = roster.died(0, loss(death_cause="NODE_DIED"))
    assert gone == GangGone(loss=attrs.evolve(loss(death_cause="NODE_DIED"), node="n0"))
    assert roster.vouched(0, 1) == ()


def test_a_success_that_was_under_way_when_its_node_died_proves_nothing() -> None:
    roster = gang(2)
    roster.assigned(1, [range(1)])
    assert roster.reported(1, 1, final(failed(0, "builtins.ConnectionResetError"))) == asks(0)
    assert roster.reported(0, 1, final(ok(0))) == ()
    (gone,) = roster.died(0, loss(death_cause="NODE_DIED"))
    assert isinstance(gone, GangGone)


def test_who_had_ended_its_part_and_lives_is_not_the_cause() -> None:
    roster = gang(3)
    roster.assigned(1, [range(1)])
    roster.reported(0, 1, final(ok(0)))
    assert roster.reported(1, 1, final(failed(0))) == asks(0, 2)
    assert roster.reported(2, 1, Report(returned=(range(1),), final=True)) == ()
    assert roster.vouched(1, 1) == (), "nobody had asked"
    assert roster.vouched(2, 1) == ()
    (last,) = roster.vouched(0, 1)
    assert last == Deliver(assignment=1, report=final(attrs.evolve(failed(0), node="n1")))


def test_a_loss_waits_for_those_who_have_to_vouch_as_well() -> None:
    roster = gang(3)
    roster.assigned(1, [range(1)])
    roster.reported(0, 1, final(ok(0)))
    roster.reported(1, 1, final(failed(0)))
    assert roster.died(2, loss()) == ()
    (gone,) = roster.died(0, loss(preempted=True))
    assert gone == GangGone(loss=attrs.evolve(loss(preempted=True), node="n0"))


def test_a_failure_after_a_death_asks_all_who_live() -> None:
    roster = gang(3)
    roster.assigned(1, [range(1)])
    roster.died(2, loss())
    assert roster.reported(1, 1, final(failed(0))) == asks(0)


def test_the_root_cause_is_the_worst_of_the_failures() -> None:
    roster = gang(2)
    roster.assigned(1, [range(1)])
    roster.reported(0, 1, final(failed(0, "builtins.ConnectionResetError")))
    roster.vouched(1, 1)
    crash = failed(0, "thornback.pool.RankProcessDied", SeenBy.PROCESS)
    (last,) = roster.reported(1, 1, final(crash))
    assert last == Deliver(assignment=1, report=final(attrs.evolve(crash, node="n1")))


def test_a_rank_that_one_node_hands_back_is_returned_as_a_whole() -> None:
    roster = gang(2)
    roster.assigned(1, [range(1)])
    returned = Report(returned=(range(1),), final=True)
    assert roster.reported(0, 1, returned) == (KillRank(member=1, assignment=1),)
    (last,) = roster.reported(1, 1, final(ok(0)))
    assert last == Deliver(assignment=1, report=returned)


def test_the_loss_of_a_single_node_is_told_at_once_and_once() -> None:
    roster = gang()
    roster.assigned(1, [range(4)])
    (gone,) = roster.died(0, loss())
    assert gone == GangGone(loss=attrs.evolve(loss(), node="n0"))
    assert roster.died(0, loss()) == ()
    assert roster.reported(0, 1, final(ok(0))) == ()
    assert not roster.assigned(2, [range(1)])
    assert roster.gone is not None


def test_a_loss_among_several_nodes_waits_for_the_siblings() -> None:
    roster = gang(3)
    roster.assigned(1, [range(1)])
    recalls = roster.died(2, loss())
    assert recalls == (KillRank(member=0, assignment=1), KillRank(member=1, assignment=1))
    assert roster.doomed
    assert roster.gone is None
    assert roster.reported(0, 1, final(failed(0, "builtins.ConnectionResetError"))) == asks(1)
    (gone,) = roster.died(1, loss(preempted=True))
    assert isinstance(gone, GangGone)
    assert (gone.loss.node, gone.loss.facts) == ("n1", {"preempted": True})


def test_without_work_a_loss_among_several_nodes_is_told_at_once() -> None:
    (gone,) = gang(2).died(1, loss())
    assert isinstance(gone, GangGone)


def test_a_failure_graver_than_the_loss_is_the_outcome_of_the_rank() -> None:
    roster = gang(2)
    roster.assigned(1, [range(1)])
    error = CaughtError(
        type_names=("thornback.pool.RankProcessDied",),
        message="killed",
        attributes={"memory_limit_exceeded": True},
    )
    oom = Outcome(rank=0, ok=False, error=error, seen_by=SeenBy.PROCESS)
    roster.reported(0, 1, final(oom))
    deliver, gone = roster.died(1, loss("thornback.pool.RecallTimedOut"))
    assert deliver == Deliver(assignment=1, report=final(attrs.evolve(oom, node="n0")))
    assert isinstance(gone, GangGone)


def test_whatever_the_order_of_several_losses_the_worst_one_counts() -> None:
    causes = [loss("a.B"), loss(death_cause="NODE_DIED"), loss(preempted=True)]
    for order in itertools.permutations(range(3)):
        roster = gang(3)
        roster.assigned(1, [range(1)])
        last = [roster.died(member, causes[member]) for member in order][-1]
        assert last == (GangGone(loss=attrs.evolve(causes[2], node="n2")),)


@pytest.mark.parametrize(
    ("facts", "severity"),
    [
        ({"preempted": True}, Severity.PREEMPTION),
        ({"node_death_reason": "AUTOSCALER_DRAIN_PREEMPTED"}, Severity.PREEMPTION),
        ({"death_cause": "NODE_DIED"}, Severity.NODE_LOST),
        ({"death_cause": "NODE_DIED", "node_draining": True}, Severity.PREEMPTION),
        ({"death_cause": "OOM"}, Severity.OOM),
        ({"oom_kill": True, "signal": 9}, Severity.OOM),
        ({"signal": 9}, Severity.WORKER_CRASH),
    ],
)
def test_severity_goes_by_facts(facts: dict[str, str | int | bool], severity: Severity) -> None:
    error = CaughtError(type_names=("thornback.pool.WorkerDied",), message="")
    assert severity_of(error, facts, SeenBy.WORKER) is severity
    assert severity_of(error, facts, SeenBy.RANK) is Severity.OTHER


def test_silence_counts_observed_time_and_ends_with_an_answer() -> None:
    roster = Roster(["n0", "n1"], silence_s=60.0, max_tick_s=15.0)
    roster.answered(0)
    roster.answered(1)
    assert roster.ticked(0.0) == ()
    assert roster.ticked(100_000.0) == (), "a driver that was stopped must not blame its workers"
    for at in (100_010.0, 100_020.0, 100_030.0, 100_040.0):
        roster.answered(1)
        assert roster.ticked(at) == ()
    assert roster.ticked(100_050.0) == (0,)
    roster.died(0, loss())
    assert roster.ticked(100_060.0) == ()


def test_a_member_that_starts_is_not_silent() -> None:
    roster = Roster(["n0"], silence_s=1.0)
    roster.ticked(0.0)
    assert roster.ticked(10.0) == ()


def led(nodes: int) -> Roster:
    roster = gang(nodes)
    assert roster.assigned(1, [range(1)], finished_when=FinishedWhen.LEADER)
    return roster


def test_the_success_of_node_0_gives_the_others_a_grace_and_their_outputs_count() -> None:
    roster = led(4)
    assert roster.reported(3, 1, final(ok(0, outputs=(("s3", "f3"),)))) == ()
    news = roster.reported(0, 1, final(ok(0, result="a", ran_s=1.0, outputs=(("s0", "f0"),))))
    assert news == (Grace(assignment=1),)
    assert roster.reported(1, 1, final(failed(0))) == (), "their faults are ignored"
    assert roster.grace_over(1) == (KillRank(member=2, assignment=1),)
    assert roster.grace_over(1) == (), "once"
    (last,) = roster.reported(2, 1, Report(returned=(range(1),), final=True))
    expected = ok(0, node="n0", result="a", ran_s=1.0, outputs=(("s3", "f3"), ("s0", "f0")))
    assert last == Deliver(assignment=1, report=final(expected))
    assert roster.grace_over(1) == ()


def test_no_grace_is_needed_when_the_others_have_ended_before_node_0() -> None:
    roster = led(2)
    roster.reported(1, 1, final(ok(0)))
    (last,) = roster.reported(0, 1, final(ok(0)))
    assert last == Deliver(assignment=1, report=final(ok(0, node="n0")))


def test_a_failure_before_node_0_has_succeeded_fails_the_rank() -> None:
    roster = led(2)
    assert roster.reported(1, 1, final(failed(0))) == asks(0)
    assert roster.reported(0, 1, final(ok(0))) == ()
    (last,) = roster.vouched(0, 1)
    assert last == Deliver(assignment=1, report=final(attrs.evolve(failed(0), node="n1")))


def test_a_rank_handed_back_before_node_0_has_succeeded_is_returned() -> None:
    roster = led(2)
    returned = Report(returned=(range(1),), final=True)
    assert roster.reported(1, 1, returned) == (KillRank(member=0, assignment=1),)
    assert roster.reported(0, 1, final(ok(0))) == (Deliver(assignment=1, report=returned),)


def test_a_death_after_node_0_has_succeeded_costs_the_gang_and_not_the_rank() -> None:
    roster = led(3)
    roster.reported(0, 1, final(ok(0)))
    assert roster.died(1, loss()) == (KillRank(member=2, assignment=1),), "the grace is over"
    deliver, gone = roster.reported(2, 1, Report(returned=(range(1),), final=True))
    assert deliver == Deliver(assignment=1, report=final(ok(0, node="n0")))
    assert gone == GangGone(loss=attrs.evolve(loss(), node="n1"))


def test_a_death_before_node_0_has_succeeded_fails_the_rank_with_the_gang() -> None:
    roster = led(2)
    assert roster.died(1, loss()) == (KillRank(member=0, assignment=1),)
    (gone,) = roster.reported(0, 1, final(ok(0)))
    assert isinstance(gone, GangGone)


def saved(rank: int, version: int) -> Checkpoint:
    return Checkpoint(rank=rank, version=version, data=b"x")


def test_checkpoints_are_passed_on_once_and_never_back() -> None:
    roster = gang()
    roster.assigned(1, [range(3)])
    (deliver,) = roster.reported(0, 1, Report(running=1, checkpoint=saved(1, 2)))
    assert deliver == Deliver(
        assignment=1,
        report=Report(running=1, checkpoint=saved(1, 2)),
    )
    for stale in (saved(1, 2), saved(1, 1), saved(9, 5)):
        assert roster.reported(0, 1, Report(checkpoint=stale)) == ()
    (deliver,) = roster.reported(0, 1, Report(outcomes=(ok(1),), checkpoint=saved(1, 6)))
    assert isinstance(deliver, Deliver)
    assert deliver.report.checkpoint is None, "a rank that has succeeded needs none"
    (last,) = roster.reported(
        0, 1, Report(outcomes=(ok(0), failed(2)), checkpoint=saved(2, 7), final=True)
    )
    assert isinstance(last, Deliver)
    assert last.report.checkpoint == saved(2, 7), "what failed goes on from there"
    assert roster.reported(0, 1, Report(checkpoint=saved(2, 8))) == ()


def test_what_several_failed_ranks_have_saved_is_passed_on_once() -> None:
    roster = gang()
    roster.assigned(1, [range(4)])
    roster.reported(0, 1, Report(running=2, checkpoint=saved(2, 4)))  # newer, and here before
    left = (saved(0, 1), saved(1, 2), saved(9, 3))
    report = Report(outcomes=(failed(0), failed(1), failed(2)), checkpoint=saved(2, 5), left=left)
    (deliver,) = roster.reported(0, 1, report)
    assert isinstance(deliver, Deliver)
    assert deliver.report.left == (saved(0, 1), saved(1, 2)), "there is no rank 9"
    assert deliver.report.checkpoint == saved(2, 5)
    assert roster.reported(0, 1, report) == ()


def test_of_several_nodes_the_checkpoints_of_node_0_are_passed_on() -> None:
    roster = gang(2)
    roster.assigned(1, [range(4, 5)])
    assert roster.reported(1, 1, Report(running=4, checkpoint=saved(4, 1))) == ()
    news = roster.reported(0, 1, Report(running=4, checkpoint=saved(4, 1)))
    assert news == (Deliver(assignment=1, report=Report(running=4, checkpoint=saved(4, 1))),)
    roster.reported(1, 1, final(failed(4)))
    roster.vouched(0, 1)
    deliver, last = roster.reported(
        0, 1, Report(returned=(range(4, 5),), checkpoint=saved(4, 2), final=True)
    )
    assert isinstance(deliver, Deliver)
    assert deliver.report.checkpoint == saved(4, 2)
    assert isinstance(last, Deliver)
    assert last.report.final


def test_an_outcome_that_names_its_node_is_passed_on_as_it_is() -> None:
    roster = gang()
    roster.assigned(1, [range(1)])
    outcome = ok(0, node="n0")
    (last,) = roster.reported(0, 1, final(outcome))
    assert isinstance(last, Deliver)
    assert last.report.outcomes[0] is outcome
