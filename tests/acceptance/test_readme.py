"""The README keeps its word: its example runs, its commands and paths exist."""

from __future__ import annotations

import gzip
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def example() -> str:
    """Return the README's Python example, on the local backend."""
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    return str(code).replace('Executor.on_ray(state="runs/clean"', "Executor.on_local(state=STATE")


def test_the_example_runs(tmp_path: Path) -> None:
    def filter_file(path: str, staged: str) -> dict[str, int]:
        with open(path) as lines, gzip.open(staged, "wt") as kept:
            good = [line for line in lines if "good" in line]
            kept.writelines(good)
        return {"kept": len(good)}

    def add(parts: list[dict[str, int]]) -> dict[str, int]:
        return dict(sum((Counter(part) for part in parts), Counter()))

    paths = []
    for number in range(5):
        paths.append(str(tmp_path / f"{number}.txt"))
        Path(paths[-1]).write_text("good\nbad\n" * number)
    names: dict[str, Any] = {
        "__name__": "readme_example",
        "OUT": str(tmp_path / "out"),
        "STATE": str(tmp_path / "state"),
        "paths": paths,
        "filter_file": filter_file,
        "add": add,
    }
    exec(compile(example(), "README.md", "exec"), names)
    assert names["report"].results("total") == {0: {"kept": 10}}
    with gzip.open(tmp_path / "out" / "00003.jsonl.gz", "rt") as published:
        assert published.read() == "good\n" * 3


def test_both_commands_stand_there_as_they_are_run_by_strangers() -> None:
    for command in (".venv/bin/thornback demo", ".venv/bin/pytest"):
        assert f"\npip install uv && uv sync && {command}\n" in README


@pytest.mark.parametrize("path", re.findall(r"`((?:packages|tools|tests)/[\w/.-]+)`", README))
def test_paths_that_are_named_exist(path: str) -> None:
    assert (ROOT / path).exists(), path


def test_the_promise_is_the_one_of_the_design() -> None:
    promise = " ".join(line.lstrip("> ") for line in README.splitlines() if line.startswith(">"))
    assert "Every rank is **executed at least once and recorded exactly once**." in promise


def test_stage_table_names_real_arguments() -> None:
    from thornback.executor import Stage

    table = README[README.index("| a stage says") : README.index("## The tree")]
    named = re.findall(
        r"`(\w+)=?[^`]*`(?=[^|]*\|)", "\n".join(re.findall(r"^\|[^|]*\|", table, re.M))
    )
    fields = {field.name for field in Stage.__attrs_attrs__}
    assert named
    assert set(named) <= fields, json.dumps(sorted(set(named) - fields))
