"""The README keeps its word: what its example prints, and the table of answers, are the code's."""

from __future__ import annotations

import re
import typing
from collections.abc import Callable
from pathlib import Path

import pytest

from thornback.scheduler import commands, events

README = Path(__file__).parent.parent / "README.md"
TEXT = README.read_text(encoding="utf-8")
TABLE = TEXT[TEXT.index("| command | answer |") : TEXT.index("## Guarantees")]
ROWS = [re.split(r"\s*\|\s*", line)[1:-1] for line in re.findall(r"^\| `.*$", TABLE, re.M)]


def names(text: str) -> set[str]:
    return set(re.findall(r"`(\w+)`", text))


def answers(command: type) -> dict[str, str]:
    """Return the methods of a command with the events that they make."""
    return {
        name: typing.get_type_hints(method)["return"].__name__
        for name, method in vars(command).items()
        if not name.startswith("_") and callable(method)
    }


def test_the_example_prints_what_its_comments_say(run_examples: Callable[[Path], str]) -> None:
    # Behind the call, up to a colon; or in lines of their own below it, indented.
    found = re.findall(r"^(?:print\(.*\)  # (.+?)(?:: .*)?|# (  .*))$", TEXT, re.M)
    said = [behind or below for behind, below in found]
    assert run_examples(README).splitlines() == said
    assert len(said) == 10


def test_the_table_has_every_command() -> None:
    kinds = [f"`{kind.__name__}`" for kind in typing.get_args(commands.Command)]
    assert [row[0] for row in ROWS] == kinds


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_the_table_names_the_answers_that_a_command_makes(row: list[str]) -> None:
    made = answers(getattr(commands, row[0].strip("`")))
    assert names(row[1]) & set(events.__all__) == set(made.values())
    assert names(row[2]) == set(made)


def test_what_answers_nothing_is_named() -> None:
    (line,) = re.findall(r"^(.*) answer nothing\.$", TEXT, re.M)
    answering = {event for row in ROWS for event in names(row[1]) & set(events.__all__)}
    kinds = {getattr(kind, "__name__", "") for kind in typing.get_args(events.Event)}
    assert names(line) == kinds - answering
