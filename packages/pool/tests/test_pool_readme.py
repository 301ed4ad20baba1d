"""The example of the README runs as it stands."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"


def test_the_example_of_the_readme_runs(run_examples: Callable[[Path], str]) -> None:
    """On a machine where a process takes seconds to start, some ranks come back unstarted."""
    printed = run_examples(README)
    outcomes = {int(rank): value for rank, value in re.findall(r"\((\d), '(\d)'\)", printed)}
    back = [range(int(a), int(b)) for a, b in re.findall(r"range\((\d), (\d)\)", printed)]
    assert outcomes[0] == "0", printed
    assert all(value == str(rank**2) for rank, value in outcomes.items()), printed
    assert sorted([*outcomes, *(rank for piece in back for rank in piece)]) == [0, 1, 2, 3], printed
