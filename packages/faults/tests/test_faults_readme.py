"""The examples of the README run as they stand, and print what it says."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from thornback.faults import RAY_VERSIONS, RetryPolicy, Standing
from thornback.faults.budgets import DEFAULT_BUDGETS

README = Path(__file__).parent.parent / "README.md"


def test_the_examples_of_the_readme_run(run_examples: Callable[[Path], str]) -> None:
    text = README.read_text(encoding="utf-8")
    said = re.findall(r"^# ((?:True|False) .+)$", text, re.MULTILINE)
    first, second, pause, *explained = run_examples(README).splitlines()
    assert (first, second, pause) == ("True", "False", "4.0")
    assert explained[1] == "=> node_lost, by rule 'ray.actor_node_died': its node died"
    assert explained[-7:-4] == said
    hidden = explained[-2:]
    assert hidden == re.findall(r"# ((?:connect|no access) .+)$", text, re.MULTILINE)
    assert explained[-4:-2] == ["4.0", "True"]


def test_the_table_is_the_one_that_decides() -> None:
    rows = re.findall(r"^\| ([A-Z_, ]+) \| (.*?) \|", README.read_text("utf-8"), re.MULTILINE)
    told: dict[str, int | None] = {}
    for names, said in rows:
        kinds = names.split(", ")
        numbers: list[int | None] = [int(n) for n in re.findall(r"\b\d+\b", said)]
        if said.startswith("no limit"):
            numbers = [None]
        told |= dict(
            zip(kinds, numbers if len(numbers) == len(kinds) else [numbers[0]] * 9, strict=False)
        )
    assert told == {kind.name: budget.retries for kind, budget in DEFAULT_BUDGETS.items()}


def test_limits_told_of_free_retries_are_those_of_the_policy() -> None:
    text = README.read_text(encoding="utf-8")
    assert f"`max_free={RetryPolicy().max_free}`" in text
    assert all(f"| `{standing.name}` |" in text for standing in Standing)


def test_the_programs_that_it_names_are_there() -> None:
    named = re.findall(r"`(\w+\.py)`", README.read_text(encoding="utf-8"))
    examples = {path.name for path in (README.parent / "examples").glob("*.py")}
    assert examples == {name for name in named if name.startswith("retry_")}


def test_the_releases_of_ray_are_those_that_were_checked() -> None:
    first, last = (".".join(RAY_VERSIONS[at].split(".")[:2]) for at in (0, -1))
    told = f"Every exception class of Ray {first} to {last} is named by a rule"
    assert told in README.read_text(encoding="utf-8")
