"""Hypothesis makes the worlds, and shrinks one in which something is wrong to the least that shows
it."""

from __future__ import annotations

from hypothesis import HealthCheck, Phase, find, given, settings
from hypothesis import strategies as st

from tests.simulation.test_planted_bugs import ForgetsCloseGang, Watchful
from tests.simulation.worlds import Scenario
from thornback.faults import RetryPolicy
from thornback.scheduler import StagePlan
from thornback.scheduler.simulate import (
    Incident,
    IncidentKind,
    SimulatedCluster,
    SimulatedFaults,
    Unfinished,
)

share = st.sampled_from([0.0, 0.05, 0.3])
mean_s = st.none() | st.sampled_from([20.0, 100.0])
faults = st.builds(
    SimulatedFaults,
    rank_failures=share,
    process_deaths=share,
    worker_deaths=share,
    worker_silences=share,
    hangs=share,
    culprits=share,
    start_failures=share,
    setup_failures=share,
    preemption_s=mean_s,
    unannounced=share,
    flapping_share=share,
    reports_lost=share,
    reports_late=share,
    answers_repeated=share,
    journal_errors=share,
    fair_after_s=st.just(300.0),
    retry_failed=st.booleans(),
)
clusters = st.builds(
    SimulatedCluster,
    nodes=st.integers(2, 4),
    gangs_per_node=st.integers(1, 3),
    rank_s=st.sampled_from([1.0, 0.1, 10.0]),
    timeout_s=st.just(60.0),
    most_nodes=st.none() | st.just(6),
    slow_share=share,
)
incidents = st.lists(
    st.builds(
        Incident,
        at_s=st.integers(0, 60).map(float),
        kind=st.sampled_from(IncidentKind),
        node=st.integers(0, 3),
        lasts_s=st.sampled_from([1.0, 30.0]),
    ),
    max_size=3,
).map(tuple)


stages: st.SearchStrategy[list[dict[str, int]]] = st.lists(
    st.builds(
        dict,
        world_size=st.integers(1, 12),
        nodes=st.integers(1, 2),
        slots=st.integers(1, 2),
        after=st.booleans(),
    ),
    min_size=1,
    max_size=3,
)


@st.composite
def scenarios(draw: st.DrawFn) -> Scenario:
    """A job of one to three stages on some cluster."""
    drawn = draw(stages)
    return Scenario(
        stages=tuple(
            StagePlan(
                world_size=stage["world_size"],
                shape=number,
                slots=1 if stage["nodes"] > 1 else stage["slots"],
                nodes=stage["nodes"],
                policy=RetryPolicy(retries=2),
            )
            for number, stage in enumerate(drawn)
        ),
        parents=tuple(
            (number - 1,) if stage["after"] and number else () for number, stage in enumerate(drawn)
        ),
        cluster=draw(clusters),
        faults=draw(faults),
        incidents=draw(incidents),
        seed=draw(st.integers(0, 3)),
    )


@given(scenario=scenarios())
def test_whatever_happens_a_run_ends_with_its_books_in_order(scenario: Scenario) -> None:
    stats = scenario.run()
    assert stats.finish is not None
    assert stats.done + stats.failed + stats.skipped <= scenario.ranks


def smallest(bug: type[Watchful]) -> Scenario:
    def shows(scenario: Scenario) -> bool:
        try:
            scenario.simulation(make=bug).run(most_events=5_000)
        except (AssertionError, Unfinished):
            return True
        return False

    quick = settings(
        max_examples=200,
        database=None,
        derandomize=True,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
        deadline=None,
    )
    return find(scenarios(), shows, settings=quick)


def test_a_world_that_shows_a_bug_shrinks_to_what_is_needed_for_it() -> None:
    lost = smallest(ForgetsCloseGang)
    assert (len(lost.stages), lost.ranks) == (1, 1)
    chances = [lost.faults.worker_deaths, lost.faults.culprits, lost.faults.worker_silences]
    chances += [lost.faults.start_failures, lost.faults.setup_failures]
    assert any(chances) or lost.faults.preemption_s or lost.incidents, "something has to go wrong"
