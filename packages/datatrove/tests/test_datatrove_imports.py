"""Which modules of the package import which: never in a circle, also not within functions."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import thornback.datatrove as package

OWN = package.__name__


def imports(node: ast.AST) -> Iterator[str]:
    """Yield the modules of the package that are imported at run time: not for types alone."""
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        return
    if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(OWN):
        names = [alias.name for alias in node.names] if node.module == OWN else []
        yield from names or [str(node.module).removeprefix(f"{OWN}.")]
    for child in ast.iter_child_nodes(node):
        yield from imports(child)


def test_no_module_imports_another_that_imports_it() -> None:
    graph = {
        path.stem: {*imports(ast.parse(path.read_text(encoding="utf-8")))}
        for path in Path(str(package.__file__)).parent.glob("*.py")
        if path.name != "__init__.py"  # it imports what it exports when it is asked for
    }
    assert "running" in graph["executor"], "the walk sees what is imported within a function"
    assert graph.keys() >= {*TopologicalSorter(graph).static_order()}  # raises CycleError
