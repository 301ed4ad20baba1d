"""What is said when an autoscaler may bring nodes, and what is hopeless."""

from __future__ import annotations

from typing import Any

import attrs
import pytest

from thornback.placement import (
    Bundle,
    GangRequest,
    NodeType,
    NodeView,
    Snapshot,
    Strategy,
    explain_unplaceable,
)
from thornback.placement.explain import Diagnoses, diagnose, largest_memory_bytes

NODES = [NodeView(name="a", resources={"CPU": 4}), NodeView(name="b", resources={"CPU": 4})]
GPU = NodeType(name="gpu", resources={"CPU": 8, "GPU": 4}, labels={"group": "gpu"}, more=2)
CPU = NodeType(name="cpu", resources={"CPU": 16}, more=1)
ENDLESS = NodeType(name="endless", resources={"CPU": 16})


def gpus(each: float, nodes: int = 1, **labels: str) -> GangRequest:
    return GangRequest(bundle=Bundle(cpus=0, gpus=each), nodes=nodes, labels=labels)


@pytest.mark.parametrize(
    ("request_", "types", "end", "hopeless"),
    [
        (gpus(4), (), "largest node has {GPU: 0}", False),
        (gpus(4), (GPU,), "would fit on 1 more node of type 'gpu'; waiting for the autoscaler", 0),
        (
            gpus(4, 2),
            (CPU, GPU),
            "fit on 2 more nodes of type 'gpu'; waiting for the autoscaler",
            0,
        ),
        (
            gpus(8),
            (GPU, CPU),
            "no node type of the autoscaler can hold it: largest has {GPU: 4}",
            True,
        ),
        (
            gpus(4, 3),
            (GPU,),
            "not even on all nodes that the autoscaler may add ('gpu': 2)",
            True,
        ),
        (
            GangRequest(bundle=Bundle(cpus=16), nodes=30),
            (ENDLESS,),
            "would fit on 30 more nodes of type 'endless'; waiting for the autoscaler",
            False,
        ),
        (
            GangRequest(bundle=Bundle(cpus=8), nodes=3),
            (GPU, CPU),
            "would fit on more nodes of types 'gpu', 'cpu'; waiting for the autoscaler",
            False,
        ),
        (
            GangRequest(bundle=Bundle(cpus=4), nodes=3),
            (GPU,),
            "would fit on 1 more node of type 'gpu'; waiting for the autoscaler",
            False,
        ),
        (
            GangRequest(bundle=Bundle(cpus=5), nodes=2, strategy=Strategy.STRICT_PACK),
            (GPU, CPU),
            "would fit on 1 more node of type 'cpu'; waiting for the autoscaler",
            False,
        ),
        (gpus(4, group="cpu"), (GPU,), "may add ('gpu': 2)", True),
        (gpus(4, group="!cpu"), (GPU,), "type 'gpu'; waiting for the autoscaler", False),
        (gpus(4, zone="a"), (GPU,), "type 'gpu'; waiting for the autoscaler", False),
    ],
)
def test_help_that_may_come_is_told_from_none(
    request_: GangRequest, types: tuple[NodeType, ...], end: str, hopeless: bool
) -> None:
    found = diagnose(request_, NODES, types)
    assert found is not None
    assert found.text.endswith(end)
    assert found.hopeless == hopeless
    assert explain_unplaceable(request_, NODES, types) == found.text


def test_what_fits_needs_no_help() -> None:
    assert diagnose(GangRequest(bundle=Bundle(cpus=4), nodes=2), NODES, [GPU]) is None


def test_a_node_type_that_is_used_up_does_not_help() -> None:
    used_up = NodeType(name="gpu", resources={"GPU": 4}, more=0)
    found = diagnose(gpus(4), NODES, [used_up])
    assert found is not None
    assert found.hopeless
    assert found.text.endswith("may add ('gpu': 0)")


class Counted(dict[str, float]):
    """Counts how often it is looked at."""

    looks = 0

    def get(self, *args: Any) -> Any:
        self.looks += 1
        return super().get(*args)


def test_what_many_ask_for_alike_is_found_once_in_a_snapshot() -> None:
    resources = Counted({"CPU": 4})
    snapshot = Snapshot(nodes=(NodeView(name="a", resources=resources),))
    diagnoses = Diagnoses()
    first = diagnoses.of(gpus(8), snapshot)
    looks = resources.looks
    assert looks
    named = GangRequest(bundle=Bundle(cpus=0, gpus=8), name="called otherwise")
    assert all(diagnoses.of(named, snapshot) is first for _ in range(100))
    assert resources.looks == looks
    others = [gpus(7), gpus(8, 2), gpus(8, zone="a"), attrs.evolve(named, nodes=3)]
    texts = {getattr(diagnoses.of(other, snapshot), "text", "") for other in others}
    assert len(texts) == 4, "what is asked for otherwise is found otherwise"
    avoiding = diagnoses.of(gpus(8), snapshot, ["a"])
    assert avoiding is not None
    assert avoiding.text.endswith("there is no node")
    better = Snapshot(nodes=(NodeView(name="a", resources={"GPU": 8}),))
    assert diagnoses.of(gpus(8), better) is None


def test_the_largest_memory_counts_what_may_come() -> None:
    big = NodeType(name="big", resources={"CPU": 8, "memory": 2**40}, more=1)
    nodes = [NodeView(name="a", resources={"CPU": 8, "memory": 2**30})]
    request = GangRequest(bundle=Bundle(cpus=1, memory_bytes=2**50))
    assert largest_memory_bytes(request, nodes) == 2**30
    assert largest_memory_bytes(request, nodes, [big]) == 2**40
