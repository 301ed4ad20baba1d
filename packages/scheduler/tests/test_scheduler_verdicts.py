"""What is done with a verdict: those that make no sense are refused where they come in, so that
nothing waits for them for good; and some change nothing any more."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

import pytest

from thornback.faults import Standing
from thornback.scheduler import SchedulerParams
from thornback.scheduler.commands import RunState
from thornback.scheduler.events import CancelRequested, GangLost, RunStarted
from thornback.scheduler.recorded import read_record
from thornback.scheduler.recorder import Recorder
from thornback.scheduler.replaying import replay
from thornback.scheduler.states import UsageError
from thornback.scheduler.testing import (
    FakeDependencies,
    FakeVerdict,
    Play,
    ScriptedPolicy,
    check_retry_policy,
    dispatches,
    plan,
    play,
)

BAD: list[tuple[str, float | int]] = [
    ("delay_s", math.nan),
    ("delay_s", math.inf),
    ("delay_s", -0.5),
    ("timeout_factor", math.nan),
    ("timeout_factor", math.inf),
    ("timeout_factor", 0.0),
    ("memory_bytes", 0),
]


class Odd:
    """Gives one verdict on everything."""

    def __init__(self, **fields: Any) -> None:
        self._verdict = FakeVerdict(**fields)

    def decide(
        self,
        fault: str,
        history: Sequence[tuple[str, str, Standing]],
        standing: Standing,
        draw: float,
        /,
    ) -> FakeVerdict:
        return self._verdict


def judged(game: Play[str], at: str) -> None:
    """The policy of stage 1 is asked, about a rank or about a gang."""
    game.start()
    if at == "opening":
        game.lost(1, "broken")
        return
    game.ready(1)
    (number,) = game.referee.gangs[1].live
    if at == "rank":
        game.fail(number, 0, "broken")
    else:
        game.lost(1, "broken", "n")


@pytest.mark.parametrize("retry", [True, False])
@pytest.mark.parametrize("at", ["rank", "opening", "work"])
@pytest.mark.parametrize(("name", "value"), BAD)
def test_a_number_that_makes_no_sense_is_refused_with_who_said_it(
    name: str, value: float, at: str, retry: bool
) -> None:
    game = play(plan(1), plan(1, policy=Odd(**{name: value, "retry": retry})))
    with pytest.raises(UsageError) as caught:
        judged(game, at)
    message = str(caught.value)
    assert f"The retry policy of stage 1 says {name}={value!r}; expected" in message
    assert "check_retry_policy" in message
    assert message.endswith("The fault: broken")


def test_a_fault_with_much_to_say_does_not_drown_what_is_wrong() -> None:
    game = play(plan(1, policy=Odd(delay_s=math.nan)))
    game.start()
    with pytest.raises(UsageError) as caught:
        game.lost(0, "x" * 10_000)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("at", ["rank", "opening", "work"])
@pytest.mark.parametrize(
    "fields",
    [
        {"delay_s": 0},
        {"delay_s": -0.0},
        {"delay_s": 1e300},
        {"timeout_factor": 1e-9},
        {"memory_bytes": 1},
        {"memory_bytes": None},
    ],
)
def test_the_least_and_the_most_that_makes_sense_is_taken(fields: dict[str, Any], at: str) -> None:
    policy = Odd(**fields)
    check_retry_policy(policy, ["broken"])
    judged(play(plan(1), plan(1, policy=policy)), at)


@pytest.mark.parametrize(("name", "value"), BAD)
def test_the_check_of_a_policy_refuses_what_a_run_refuses(name: str, value: float) -> None:
    with pytest.raises(AssertionError):
        check_retry_policy(Odd(**{name: value}), ["broken"])


def test_a_pause_that_no_clock_can_tell_from_none_is_over_at_once() -> None:
    policy = ScriptedPolicy({"broken": FakeVerdict(delay_s=1e-300)})
    game = play(plan(1, policy=policy))
    game.now = 1e9
    game.start()
    game.ready(0)
    assert dispatches(game.fail(0, 0, "broken"))


def test_what_was_refused_is_recorded_and_refused_again() -> None:
    """In the same words, though another policy stands in then."""
    file = io.StringIO()
    stages = [plan(1, policy=Odd(delay_s=math.nan))]
    recorder = Recorder(stages, FakeDependencies([1]), write=file.write)
    recorder.handle(RunStarted(), 0.0)
    with pytest.raises(UsageError):
        recorder.handle(GangLost(gang=0, fault="broken", node=None), 1.0)
    (*_, last) = recorder.record().entries
    assert last.error.startswith("UsageError: The retry policy of stage 0 says delay_s=nan;")
    assert replay(read_record(iter(file.getvalue().splitlines(keepends=True)))) is None


# -- verdicts that change nothing ------------------------------------------------------------------


def test_nobody_is_judged_for_a_gang_that_is_lost_when_the_run_is_cancelled() -> None:
    policy = ScriptedPolicy({"broken": FakeVerdict()})
    game = play(plan(2, max_gangs=1, policy=policy))
    game.start()
    game.ready(0)
    game.send(CancelRequested(reason="enough", kill=False))
    game.lost(0, "broken")
    game.close()
    assert policy.asked == []
    assert game.scheduler.counts(0).ready == 2
    assert game.referee.finish is not None
    assert game.referee.finish.state is RunState.CANCELLED


def test_a_cancelled_stage_is_not_stopped_for_want_of_progress() -> None:
    """It would fail what the next run may do."""
    params = SchedulerParams(no_progress_faults=1)
    game = play(plan(2, max_gangs=1, policy=Odd()), params=params)
    game.start()
    game.ready(0)
    game.send(CancelRequested(reason="enough", kill=False))
    game.fail(0, 0, "broken")
    assert (game.scheduler.counts(0).ready, game.scheduler.counts(0).failed) == (2, 0)


def test_a_gang_that_could_not_be_opened_free_of_charge_is_asked_for_for_ever() -> None:
    params = SchedulerParams(no_progress_losses=2)
    game = play(plan(1, policy=Odd(charged=False)), params=params)
    game.start()
    for gang in range(9):
        while gang not in game.referee.gangs:
            game.tick()
        game.lost(gang, "broken")
    assert game.scheduler.counts(0).ready == 1
