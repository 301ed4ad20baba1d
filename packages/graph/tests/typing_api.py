"""Used as a stranger would. Never executed: mypy reads it, against the sources and against the
installed wheel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_type

from thornback.graph import (
    Condition,
    Consequences,
    CycleError,
    Dag,
    DuplicateStageError,
    Edge,
    GraphError,
    Node,
    UnknownStageError,
    depths,
    resolve,
    topological_order,
)
from thornback.graph.testing import Answer, Factory, Subject, check_dependencies, ranks_of

# Names to positions, and the order.

parents = resolve([("clean", ()), ("total", ["clean"])], job="demo")
assert_type(parents, tuple[tuple[int, ...], ...])
assert_type(topological_order(parents), tuple[int, ...])
assert_type(topological_order([[], [0]], names=["clean", "total"], job="demo"), tuple[int, ...])
assert_type(depths(parents), tuple[int, ...])

# What is wrong, as data.

try:
    resolve([("clean", ("cleen",))])
except DuplicateStageError as error:
    assert_type((error.stage, error.job), tuple[str, str])
except UnknownStageError as error:
    assert_type((error.stage, error.parent, error.job), tuple[str, str, str])
    assert_type(error.known, tuple[str, ...])
except CycleError as error:
    assert_type(error.cycle, tuple[str, ...])
    assert_type(error.job, str)
except GraphError as error:
    as_value_error: ValueError = error

# Which ranks may run.

node = Node(1000, max_failed=1)
assert_type((node.world_size, node.max_failed), tuple[int, int])
assert_type(node.parents, tuple[int | Edge, ...])
assert_type(node.edges, tuple[Edge, ...])
edge = Edge(0, one_to_one=True, condition=Condition.within(3))
assert_type((edge.parent, edge.one_to_one), tuple[int, bool])
assert_type(edge.condition, Condition | None)
assert_type(Condition.all_success().max_failed, int | None)
last = Node(1, (0, Edge(parent=1, condition=Condition.all_done())))
dag = Dag([node, Node(world_size=1000, parents=(edge,)), last])
assert_type(dag.order(), tuple[int, ...])
assert_type(dag.depths(), tuple[int, ...])
started = dag.start()
assert_type(started, Consequences)
for stage, ranks in started.ready:
    assert_type(stage, int)
    assert_type(ranks, range)
    dag.finished(stage, [ranks], True)
for stage, ranks, (root_stage, root_rank) in dag.finished(0, (range(3),), ok=False).skipped:
    assert_type((stage, ranks, root_stage, root_rank), tuple[int, range, int, int])
dag.check_invariants()
assert_type(Dag.from_names([("clean", ())], world_sizes=[3], max_failed=[1], job="demo"), Dag)
nothing = Consequences()
something = Consequences(ready=((0, range(3)),), skipped=((1, range(1), (0, 2)),))

# Something in the place of `Dag`, and its suite.


class Always:
    """All stages at once."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self._nodes = nodes

    def start(self) -> Consequences:
        sizes = (node.world_size for node in self._nodes)
        return Consequences(ready=tuple((n, range(size)) for n, size in enumerate(sizes)))

    def finished(self, stage: int, ranks: Sequence[range], ok: bool) -> Consequences:
        return Consequences()


def make_subject(nodes: Sequence[Node]) -> Subject:
    return Always(nodes)


factory: Factory = make_subject
subject: Subject = factory([node])
subject = dag
answer: Answer = subject.start()
assert_type(answer.ready, Sequence[tuple[int, range]])
assert_type(answer.skipped, Sequence[tuple[int, range, tuple[int, int]]])
assert_type(ranks_of(answer), tuple[list[tuple[int, int]], list[tuple[int, int, int, int]]])
check_dependencies(Dag)
check_dependencies(Always)
check_dependencies(factory)
