"""tools/mutants.py finds what can be changed, and leaves alone what makes no difference."""

from __future__ import annotations

import ast
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

TOOL = Path(__file__).resolve().parents[2] / "tools" / "mutants.py"


@pytest.fixture(scope="module")
def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("thornback_tools_mutants", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("source", "changed"),
    [
        ("x = a < b", ["x = (a <= b)"]),
        ("x = a and b", ["x = (a or b)"]),
        ("x = not a", ["x = (a)"]),
        ("x = a + b", ["x = (a - b)"]),
        ("x = 2", ["x = (3)"]),
        ("x = True", ["x = (False)"]),
        ("x = 0.5", ["x = (1.0)"]),
        ("x = 'name'", ["x = ('XXname')"]),
        ("x = {a: 1, b: c}", ["x = ({b: c})", "x = ({a: 1})", "x = {a: (2), b: c}"]),
        ("x = (a, b)", ["x = ((b,))", "x = ((a,))"]),
        ("x = a if b else c", ["x = (a if not b else c)"]),
        ("def f():\n    return a, b", ["def f():\n    return None"]),
        ("if a:\n    b()", ["if not (a):\n    b()", "if a:\n    pass"]),
        ("while a:\n    break", ["while not (a):\n    break", "while a:\n    pass"]),
        ("a.b = c", ["pass"]),
        ("a += b", ["pass"]),
        ("raise A('it is 7')", ["pass"]),
        ("é = 'ü ' < b", ["é = ('ü ' <= b)"]),
    ],
)
def test_what_is_changed(tool: ModuleType, source: str, changed: list[str]) -> None:
    data = source.encode()
    found = [tool.apply(data, mutant).decode() for mutant in tool.mutants_of("f.py", data)]
    assert found == changed


@pytest.mark.parametrize(
    "source",
    [
        '"""A docstring with 7."""',
        "x: int | None = None",
        "x: TypeAlias = int | str",
        "__all__ = ['a', 'b']",
        "T = TypeVar('T')",
        "x = 'a text for people'",
        "x = f'{a + 1}'",
        "if TYPE_CHECKING:\n    a()",
        "def f(a: 'b | c') -> 'd | e':\n    return None",
        "assert_never(x)",
        "def check_invariants():\n    assert a < 7",
    ],
)
def test_what_is_left_alone(tool: ModuleType, source: str) -> None:
    assert tool.mutants_of("f.py", source.encode()) == []


def test_every_mutant_compiles_and_is_another_program(tool: ModuleType) -> None:
    data = TOOL.read_bytes()
    same = ast.dump(ast.parse(data))
    for mutant in tool.mutants_of("mutants.py", data)[::7]:
        assert ast.dump(ast.parse(tool.apply(data, mutant))) != same, str(mutant)


def test_every_target_has_sources_and_tests(tool: ModuleType) -> None:
    for name, target in tool.TARGETS.items():
        assert len(tool.all_mutants(target)) > 100, name
        assert all((TOOL.parents[1] / tests).is_dir() for tests in target.tests)
