"""The examples of the README run as they stand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"


def test_the_examples_of_the_readme_run(run_examples: Callable[[Path], str]) -> None:
    total = sum(n * n for n in range(100))
    assert run_examples(README) == f"{total}\n2 network\n"
