"""The examples of the README run as they stand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"


def test_the_examples_of_the_readme_run(run_examples: Callable[..., str]) -> None:
    assert run_examples(README, logs=True) == "['00000', '00001']\n[]\n"
