"""The example cluster runs as it stands, and passes the suites that a real Ray passes too."""

from __future__ import annotations

import importlib.util
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from thornback.placement import Bundle, Cluster, GangRequest
from thornback.placement.testing import ClusterCase, MakeCase, check_cluster, check_leases

OWN_CLUSTER = Path(__file__).parent.parent / "examples" / "own_cluster.py"


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def make_case() -> MakeCase:
    spec = importlib.util.spec_from_file_location("own_cluster", OWN_CLUSTER)
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)

    @asynccontextmanager
    async def make() -> AsyncIterator[ClusterCase]:
        hosts = example.Hosts({"a": {"CPU": 2}, "b": {"CPU": 2}})
        cluster: Cluster = hosts

        async def reserved() -> int:
            hosts.ledger.check_invariants()
            return len(hosts.ledger.waiting) + len(hosts.ledger.held)

        yield ClusterCase(
            cluster=cluster,
            fits=GangRequest(bundle=Bundle(cpus=1)),
            fills=GangRequest(bundle=Bundle(cpus=2), nodes=2),
            never=GangRequest(bundle=Bundle(cpus=3)),
            reserved=reserved,
        )

    return make


def test_it_places_a_gang(run_examples: Callable[[Path], str]) -> None:
    assert run_examples(OWN_CLUSTER) == "('a', 'c')\n"


@pytest.mark.anyio
async def test_it_keeps_the_protocol(make_case: MakeCase) -> None:
    await check_cluster(make_case)


@pytest.mark.anyio
async def test_allocators_keep_their_guarantees_on_it(make_case: MakeCase) -> None:
    await check_leases(make_case)
