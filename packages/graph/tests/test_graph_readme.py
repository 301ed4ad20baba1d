"""The README keeps its word."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from thornback.graph import Dag, Node

README = Path(__file__).parent.parent / "README.md"


def test_the_example_of_the_readme_runs(run_examples: Callable[[Path], str]) -> None:
    assert run_examples(README) == (
        "((0, range(0, 1000)),)\n"
        "((1, range(0, 1)),)\n"
        "((1, range(0, 3)),)\n"
        "((1, range(3, 4), (0, 3)),)\n"
    )


def test_one_failure_more_is_answered_as_it_says() -> None:
    dag = Dag([Node(1000, (), 1), Node(1, (0,))])
    dag.start()
    dag.finished(0, [range(998, 999)], False)
    answer = dag.finished(0, [range(999, 1000)], False)
    assert f"skipped={answer.skipped}" in README.read_text(encoding="utf-8")
