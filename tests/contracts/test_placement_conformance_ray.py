"""A real Ray passes the suites that the fake and the local cluster pass."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from thornback.placement import Bundle, GangRequest
from thornback.placement.testing import ClusterCase, MakeCase, check_cluster, check_leases

pytestmark = [pytest.mark.anyio, pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=[None, False], ids=["callbacks", "polling"])
def make_case(request: pytest.FixtureRequest) -> MakeCase:
    from thornback.placement.on_ray import RayCluster

    @asynccontextmanager
    async def make() -> AsyncIterator[ClusterCase]:
        cluster = RayCluster(callbacks=request.param)

        async def reserved() -> int:
            return await cluster.call(live_groups)

        nodes = (await cluster.look()).nodes
        node = next(node.name for node in nodes if node.resources.get("CPU"))

        yield ClusterCase(
            cluster=cluster,
            fits=GangRequest(bundle=Bundle(cpus=1), name="fits"),
            fills=GangRequest(bundle=Bundle(cpus=2), nodes=2, name="fills"),
            never=GangRequest(bundle=Bundle(cpus=3), name="never"),
            reserved=reserved,
            labelled=GangRequest(
                bundle=Bundle(cpus=1),
                nodes=2,
                labels=[{"ray.io/node-id": f"!{node}"}, {"ray.io/node-id": f"in({node}, none)"}],
            ),
            mislabelled=GangRequest(bundle=Bundle(cpus=1), labels={"ray.io/node-id": "none"}),
        )

    return make


def live_groups() -> int:
    from ray.util.placement_group import placement_group_table

    table = placement_group_table()
    return sum(row["state"] != "REMOVED" for row in table.values())


async def test_ray_keeps_the_protocol_of_a_cluster(make_case: MakeCase) -> None:
    await check_cluster(make_case)


async def test_allocators_on_ray_keep_their_guarantees(make_case: MakeCase) -> None:
    await check_leases(make_case)
