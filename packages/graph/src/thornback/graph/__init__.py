"""Which stage or rank of a job may run next?

Public: this module, and `thornback.graph.testing` (a conformance suite for what stands in the place
of `Dag`). Everything else is private.
"""

from thornback.graph.dag import Consequences, Dag
from thornback.graph.edges import Condition, Edge, Node
from thornback.graph.order import (
    CycleError,
    DuplicateStageError,
    GraphError,
    UnknownStageError,
    depths,
    resolve,
    topological_order,
)

__all__ = [
    "Condition",
    "Consequences",
    "CycleError",
    "Dag",
    "DuplicateStageError",
    "Edge",
    "GraphError",
    "Node",
    "UnknownStageError",
    "depths",
    "resolve",
    "topological_order",
]
