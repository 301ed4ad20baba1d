"""The fake and the local cluster pass the suites that a real Ray passes too."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from thornback.placement import Bundle, GangRequest
from thornback.placement.on_local import LocalCluster
from thornback.placement.testing import (
    ClusterCase,
    FakeCluster,
    MakeCase,
    check_cluster,
    check_leases,
)

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@asynccontextmanager
async def fake_case() -> AsyncIterator[ClusterCase]:
    fake = FakeCluster(
        {"a": {"CPU": 2}, "b": {"CPU": 2}, "c": {"CPU": 2}},
        labels={"b": {"zone": "z"}, "c": {"zone": "y"}},
    )

    async def reserved() -> int:
        fake.ledger.check_invariants()
        return fake.reserved

    yield ClusterCase(
        cluster=fake,
        fits=GangRequest(bundle=Bundle(cpus=1)),
        fills=GangRequest(bundle=Bundle(cpus=2), nodes=3),
        never=GangRequest(bundle=Bundle(cpus=3)),
        reserved=reserved,
        labelled=GangRequest(
            bundle=Bundle(cpus=1), nodes=2, labels=[{"zone": "!z"}, {"zone": "in(y,z)"}]
        ),
        mislabelled=GangRequest(bundle=Bundle(cpus=1), labels={"zone": "x"}),
    )


@asynccontextmanager
async def local_case() -> AsyncIterator[ClusterCase]:
    local = LocalCluster(cpus=2, memory_bytes=2**30, labels={"zone": "here"})

    async def reserved() -> int:
        return local.reserved

    yield ClusterCase(
        cluster=local,
        fits=GangRequest(bundle=Bundle(cpus=1, memory_bytes=2**20)),
        fills=GangRequest(bundle=Bundle(cpus=2)),
        never=GangRequest(bundle=Bundle(cpus=1), nodes=2),
        reserved=reserved,
        labelled=GangRequest(bundle=Bundle(cpus=1), labels={"zone": "in(here,there)"}),
        mislabelled=GangRequest(bundle=Bundle(cpus=1), labels={"zone": "!here"}),
    )


CASES = pytest.mark.parametrize("make", [fake_case, local_case])


@CASES
async def test_clusters_keep_the_protocol(make: MakeCase) -> None:
    await check_cluster(make)


@CASES
async def test_allocators_keep_their_guarantees(make: MakeCase) -> None:
    await check_leases(make)
