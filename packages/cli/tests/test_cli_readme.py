"""The README says what the program says: commands, options, defaults, exit codes."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from thornback.cli import __main__ as program

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
SHELL = "".join(re.findall(r"^```sh\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE))
COMMANDS = [line.partition("#")[0] for line in SHELL.splitlines() if "thornback " in line]


def options() -> dict[str, click.Option]:
    """Return the options of `thornback demo` as its help shows them, without `--help` itself."""
    found = [option for option in program.demo.params if isinstance(option, click.Option)]
    return {option.opts[0]: option for option in found if not option.hidden}


def rows() -> dict[str, tuple[str, str]]:
    """Return the README's table: the values and the meaning of each option."""
    found = re.findall(r"^\| `(--[a-z-]+) ?(.*?)` \| (.*) \|$", README, flags=re.MULTILINE)
    return {name: (values, meaning) for name, values, meaning in found}


def test_the_table_has_every_option_and_no_other() -> None:
    assert set(rows()) == set(options())


@pytest.mark.parametrize("name", list(options()))
def test_a_row_agrees_with_the_option(name: str) -> None:
    option, (values, meaning) = options()[name], rows()[name]
    assert bool(values) == (not option.is_flag)
    if isinstance(option.type, click.Choice):
        assert values == "\\|".join(option.type.choices)
    if not option.is_flag:
        assert re.match(rf"default `?{re.escape(str(option.default))}`?[:;,]", meaning)


@pytest.mark.parametrize("line", [line for line in COMMANDS if "pip install" not in line])
def test_a_command_of_the_examples_is_one(line: str) -> None:
    words = [word for word in shlex.split(line) if not re.match(r"[A-Z_]+=", word)]
    assert words.pop(0) == "thornback"
    command = program.main.commands[words.pop(0)]
    command.make_context("thornback", words)  # raises where an argument is wrong


def test_every_command_and_extra_is_named() -> None:
    for name in program.main.commands:
        assert f"`thornback {name}`" in README or f"\nthornback {name}" in README
    for extra in {*program.EXTRAS.values()} - {"datatrove"}:
        assert re.search(rf"thornback\[[a-z,]*\b{extra}\b[a-z,]*\]", README)


def test_the_exit_codes_are_those_of_the_program() -> None:
    codes = [int(code) for code in re.findall(r"(?:^|[;:] )(\d+)\s(?=the|it|wrong|inter)", README)]
    assert codes == [0, program.FAILED, program.WRONG_USE, program.INTERRUPTED]
