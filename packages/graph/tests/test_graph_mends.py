"""What is refused says what to mend; what is omitted has its default. Mutants had survived here."""

from __future__ import annotations

import re

import pytest

from thornback.graph import Condition, Dag, DuplicateStageError, Edge, GraphError, Node


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (DuplicateStageError("a", "j"), "Job 'j' has two stages named 'a': "),
        (DuplicateStageError("a"), "This job has two stages named 'a': "),
    ],
)
def test_a_name_given_twice_is_told_with_its_job(error: GraphError, text: str) -> None:
    assert str(error).startswith(text)


def test_why_a_number_is_refused() -> None:
    why = "world_size must be an int >= 1, not 0: a stage needs a rank to run."
    with pytest.raises(GraphError, match=f"^{re.escape(why)}$"):
        Node(0)
    why = "max_failed must be an int >= 0, not -1: it counts ranks."
    with pytest.raises(GraphError, match=f"^{re.escape(why)}$"):
        Node(1, max_failed=-1)
    with pytest.raises(GraphError, match=f"^{re.escape(why)}$"):
        Condition.within(-1)


def test_what_an_edge_says_besides_its_parent_is_said_by_name() -> None:
    with pytest.raises(TypeError, match="positional"):
        Edge(0, True)  # type: ignore[call-arg]  # the test
    with pytest.raises(TypeError, match="positional"):
        Edge(0, Condition.all_done(), one_to_one=True)  # type: ignore[misc,arg-type]  # the test


def test_no_failure_is_tolerated_unless_it_is_said() -> None:
    stages = [("a", ()), ("b", ("a",))]
    strict = Dag.from_names(stages, [2, 1])
    strict.start()
    assert strict.finished(0, [range(1)], False).skipped == ((1, range(1), (0, 0)),)
    lenient = Dag.from_names(stages, [2, 1], [1, 0])
    lenient.start()
    assert lenient.finished(0, [range(1)], False).skipped == ()
    assert lenient.finished(0, [range(1, 2)], True).ready == ((1, range(1)),)
