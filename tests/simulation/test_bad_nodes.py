"""A world with bad nodes for every seed: healthy ranks succeed, bad nodes cost little.

100 worlds in the profile `ci`, 2,000 in `nightly`. Budget: 20 s in `ci`. To look at one:
`.venv/bin/python -m tests.simulation.badnodes nodes 17`. A seed that fails becomes a named test
below, with the rule that it has shown to be wrong.
"""

from __future__ import annotations

import pytest
from hypothesis import settings

from tests.simulation.badnodes import Family, too_late, world_of, wrongs

BLOCK = 10
WORLDS = 2_000 if settings.default and settings.default.max_examples > 100 else 100
SHARES = {Family.NODES: 0.6, Family.RANKS: 0.2, Family.ALL: 0.2}
BLOCKS = [
    (family, first)
    for family, share in SHARES.items()
    for first in range(0, round(WORLDS * share), BLOCK)
]


@pytest.mark.parametrize(("family", "first"), BLOCKS)
def test_bad_nodes_fail_no_healthy_rank(family: Family, first: int) -> None:
    found = {seed: wrongs(world_of(seed, family)) for seed in range(first, first + BLOCK)}
    assert not any(found.values()), {seed: each for seed, each in found.items() if each}


def test_world_of_covers_every_kind_of_badness() -> None:
    worlds = [world_of(seed) for seed in range(60)]
    bad = [each for world in worlds for each in world.faults.bad_nodes]
    assert len({each.kind for each in bad}) == 6
    assert {each.flaps_s for each in bad} == {None, 60.0}
    assert any(len(world.faults.bad_nodes) == 1 for world in worlds)
    assert any(2 * len(world.faults.bad_nodes) == world.cluster.nodes for world in worlds)
    assert any(world.cluster.joins_s for world in worlds)
    assert {world.cluster.nodes for world in worlds} >= {2, 3}
    assert max(world.cluster.nodes for world in worlds) > 100
    assert {len(world.stages) for world in worlds} == {1, 2, 3}


def test_too_late_sees_a_run_that_does_not_stop() -> None:
    """The oracle itself: a stage that has no breaker is noticed."""
    world = world_of(1, Family.ALL)
    stats = world.run(checked=False)
    assert not too_late(world, stats)
    stats.attempts = 10_000
    assert too_late(world, stats)


@pytest.mark.parametrize(
    ("family", "seed"),
    [
        pytest.param(Family.NODES, 29, id="a lone rank is tried again on another node"),
        pytest.param(Family.NODES, 123, id="a node that no gang was ever ready on is avoided"),
        pytest.param(Family.NODES, 41, id="gangs are not opened again and again on a bad node"),
        pytest.param(Family.NODES, 42, id="a node on parole gets one rank, not one per gang"),
        pytest.param(Family.NODES, 72, id="some bad nodes in a row do not stop a stage"),
        pytest.param(Family.NODES, 120, id="a stage left with bad nodes waits for good ones"),
        pytest.param(Family.ALL, 331, id="a stage stops while others fail beside it"),
        pytest.param(Family.RANKS, 320, id="a stage in trouble sets no timers"),
        pytest.param(Family.RANKS, 30, id="the worst nodes are suspected first"),
        pytest.param(Family.RANKS, 265, id="a node that loses gangs is among the worst"),
        pytest.param(Family.RANKS, 37, id="ranks tried again do not keep fresh ones waiting"),
        pytest.param(Family.NODES, 265, id="a starved stage opens few gangs on bad nodes"),
        pytest.param(Family.NODES, 302, id="suspected nodes are tried less and less"),
        pytest.param(Family.NODES, 325, id="a node that relapses is suspected for longer"),
        pytest.param(Family.NODES, 679, id="work is not handed to a parked slot again and again"),
    ],
)
def test_bad_nodes_named_world_goes_well(family: Family, seed: int) -> None:
    assert not wrongs(world_of(seed, family))
