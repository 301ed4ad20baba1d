"""Stories, and what a record means: see also `test_scheduler_recorder.py`."""

from __future__ import annotations

import attrs

from thornback.scheduler import recorded
from thornback.scheduler.events import GangLost, GangReady, RankFailed, RunStarted, Ticked
from thornback.scheduler.recorder import MomentKind, Recorder
from thornback.scheduler.testing import (
    VERDICTS,
    FakeDependencies,
    FakeVerdict,
    ScriptedPolicy,
    opened,
    plan,
)

K = MomentKind
SOON = FakeVerdict(delay_s=0.5)


def recorder_of(world_size: int, **verdicts: FakeVerdict) -> Recorder[str]:
    """Return a recorder of a run that has started: one stage, one gang at a time."""
    policy = ScriptedPolicy({**VERDICTS, **verdicts})
    stages = [plan(world_size, max_gangs=1, policy=policy)]
    recorder = Recorder(stages, FakeDependencies([world_size]), seed=3)
    recorder.handle(RunStarted(), 0.0)
    recorder.handle(GangReady(gang=0, nodes=("n",)), 0.0)
    return recorder


def fail(recorder: Recorder[str], fault: str) -> None:
    """Rank 0 fails in the first assignment."""
    recorder.handle(RankFailed(assignment=0, rank=0, fault=fault, node="n"), 0.0)


def kinds(recorder: Recorder[str], rank: int) -> list[MomentKind]:
    return [moment.kind for moment in recorder.story(0, rank)]


def test_what_will_be_different_the_next_time_is_told() -> None:
    verdict = attrs.evolve(SOON, memory_bytes=3, charged=False, reason="it was unlucky")
    recorder = recorder_of(1, bad=verdict)
    fail(recorder, "bad")
    assert recorder.story(0, 0)[-1].text == (
        "is tried again in 0.5 s, with 3 bytes of memory, free of charge: it was unlucky"
    )


def test_no_delay_is_told_as_none() -> None:
    recorder = recorder_of(1)
    fail(recorder, "again")
    assert (K.JUDGED, "is tried again at once: scripted") in [
        (moment.kind, moment.text) for moment in recorder.story(0, 0)
    ]


def test_a_rank_that_waits_for_its_time_does_not_wait_for_a_gang() -> None:
    recorder = recorder_of(2, soon=SOON)
    fail(recorder, "soon")
    (gang,) = opened(recorder.handle(GangLost(gang=0, fault="preempted"), 0.1))
    recorder.handle(GangLost(gang=gang, fault="waited"), 0.1)
    assert kinds(recorder, 0) == [K.READY, K.DISPATCHED, K.FAILED, K.JUDGED]
    assert kinds(recorder, 1)[-1] is K.WAITS


def test_a_rank_whose_delay_is_over_waits_for_a_gang() -> None:
    recorder = recorder_of(2, soon=SOON)
    fail(recorder, "soon")
    (gang,) = opened(recorder.handle(GangLost(gang=0, fault="preempted"), 0.1))
    recorder.handle(GangLost(gang=gang, fault="waited"), 0.2)
    recorder.handle(Ticked(), 0.6)
    *_, ready, waits = recorder.story(0, 0)
    assert (ready.kind, ready.text) == (K.READY, "may run again: its delay is over")
    assert (waits.kind, waits.at_s) == (K.WAITS, 0.6)
    assert waits.text.startswith("waits for a gang: a gang could not be opened or was lost")


def test_why_a_rank_waits_is_told_once_though_the_time_goes_down() -> None:
    recorder = recorder_of(1)
    (gang,) = opened(recorder.handle(GangLost(gang=0, fault="preempted"), 0.0))
    recorder.handle(GangLost(gang=gang, fault="waited"), 0.0)
    before = kinds(recorder, 0)
    assert before[-1] is K.WAITS
    recorder.handle(Ticked(), 0.3)
    assert recorder.scheduler.waiting_reason(0) == (
        "a gang could not be opened or was lost; asked again in 0.7 s"
    )
    assert kinds(recorder, 0) == before


def test_a_rank_is_not_said_to_have_failed_because_another_has() -> None:
    recorder = recorder_of(3)
    fail(recorder, "code")
    assert kinds(recorder, 0)[-1] is K.ENDED
    assert kinds(recorder, 1) == [K.READY, K.DISPATCHED]
    assert kinds(recorder, 2) == [K.READY]


def test_what_is_left_out_of_a_record_means_what_it_meant_in_version_2() -> None:
    """Whoever changes this must raise `VERSION`: records that are there would be misread."""
    made = {name: recorded._fields(each) for name, each in recorded._known().items()}
    defaults = {
        name: {field: default for field, _, default in fields if default is not attrs.NOTHING}
        for name, fields in made.items()
    }
    assert recorded.VERSION == 2
    assert {name: fields for name, fields in defaults.items() if fields} == {
        "CancelRequested": {"kill": False},
        "GangClosed": {"confirmed": True},
        "GangLost": {"node": None},
        "NodeDraining": {"left_s": None},
        "RankFailed": {"ran_s": 0.0},
        "RanksSucceeded": {"busy_s": 0.0},
        "RunStarted": {"done": {}, "failed": {}},
        "OpenGang": {"avoid": ()},
        "CloseGang": {"kill": False},
        "Dispatch": {"attempt": 1, "timeout_factor": 1.0},
        "Recall": {"kill": False},
        "FinishRun": {"reason": ""},
        "GangReady": {"fitting": None},
        "Record": {"stop": None},
        "RecordedVerdict": {
            "delay_s": 0.0,
            "charged": True,
            "machine_fault": False,
            "blames_rank": False,
            "blames_node": False,
            "memory_bytes": None,
            "timeout_factor": 1.0,
            "reason": "",
            "stop": None,
            "signature": "",
        },
        "RecordedDelta": {"asked": None, "ready": (), "skipped": ()},
    }
