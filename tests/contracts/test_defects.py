"""The table of defects in the adapter's README is whole, and names tests that there are."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ROW = re.compile(r"^\| (\d+) \|.*\| (`[^|]+`) \|$", re.MULTILINE)
DEFECTS = 37


def table() -> dict[int, list[str]]:
    text = (ROOT / "packages" / "datatrove" / "README.md").read_text(encoding="utf-8")
    return {int(number): re.findall(r"`([^`]+)`", tests) for number, tests in ROW.findall(text)}


def test_every_defect_has_a_row() -> None:
    assert [*table()] == [*range(1, DEFECTS + 1)]


def test_every_test_that_is_named_exists() -> None:
    missing = []
    for number, tests in table().items():
        for test in tests:
            module, _, name = test.partition("::")
            (path,) = [
                *ROOT.glob(f"tests/*/{module}.py"),
                *ROOT.glob(f"packages/*/tests/{module}.py"),
            ]
            found = re.search(
                rf"^(async def|def|class) {name}\b|^{name} = ",
                path.read_text(encoding="utf-8"),
                re.MULTILINE,
            )
            if found is None:
                missing.append(f"{number}: {test}")
    assert missing == []


def test_every_test_that_is_named_after_a_defect_is_in_its_row() -> None:
    named = table()
    lacking = []
    for path in [
        *ROOT.glob("tests/*/test_datatrove_*.py"),
        *ROOT.glob("packages/datatrove/tests/test_*.py"),
    ]:
        for name in re.findall(
            r"^(?:async )?def (test_defect_\d+\w*)", path.read_text(), re.MULTILINE
        ):
            number = int(name.split("_")[2])
            if f"{path.stem}::{name}" not in named[number]:
                lacking.append(f"{number}: {path.stem}::{name}")
    assert lacking == []
