"""A whole run per seed, on a world of its own: scheduler, graph, retry policy and roster are the
real ones, and every check of the simulator is on.

300 of them in the profile `ci`, 10,000 in `nightly`. A seed that fails is a bug: say
`scenario_of(seed).run()`, find it, and keep the seed as a named test below.
"""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import settings

from tests.simulation.worlds import scenario_of
from thornback.scheduler.commands import RunState

BLOCK = 25
SEEDS = 5 * settings.default.max_examples if settings.default else 300


@pytest.mark.parametrize("first", range(0, SEEDS, BLOCK))
def test_every_seed_ends_with_all_its_books_in_order(first: int) -> None:
    for seed in range(first, first + BLOCK):
        scenario = scenario_of(seed)
        stats = scenario.run()
        assert stats.finish is not None, f"seed {seed}"
        assert stats.checks, f"seed {seed}"
        if stats.finish.state is RunState.SUCCEEDED:
            allowed = sum(plan.max_failed for plan in scenario.stages)
            assert stats.done >= scenario.ranks - allowed, f"seed {seed}: {stats}"


def test_the_seeds_bring_every_kind_of_trouble_and_every_end() -> None:
    scenarios = [scenario_of(seed) for seed in range(60)]
    ends = Counter(s.run().finish.state for s in scenarios[:25])  # type: ignore[union-attr]
    assert len(ends) == 3, ends
    planned = {incident.kind for s in scenarios for incident in s.incidents}
    assert len(planned) >= 6, planned
    assert sum(s.ranks <= 50 for s in scenarios) >= 50
    for name in ("hangs", "culprits", "preemption_s", "reports_lost", "journal_errors"):
        have = sum(bool(getattr(s.faults, name)) for s in scenarios)
        assert 5 <= have < 60, (name, have)


def test_a_seed_names_a_run() -> None:
    assert scenario_of(7).run() == scenario_of(7).run()
    assert scenario_of(7).run() != scenario_of(8).run()
