"""Build the reference documentation of all public modules from their docstrings, with pdoc.

    .venv/bin/python tools/docs.py [FOLDER]         # default: dist/docs; see index.html

Any warning ends the build with exit code 1. Which modules are public stands in pyproject.toml.
Sphinx and mkdocs were considered: both need pages of their own beside the docstrings, or a
generator for those; pdoc needs none.
"""

from __future__ import annotations

import importlib
import sys
import tomllib
import warnings
from pathlib import Path

import attrs
import pdoc
import pdoc.render

ROOT = Path(__file__).resolve().parents[1]


def main() -> int:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "dist" / "docs"
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    modules = settings["tool"]["thornback"]["public"]
    warnings.simplefilter("error")
    pdoc.render.configure(docformat="google")
    for module in map(importlib.import_module, modules):
        for name in module.__all__:
            if attrs.has(made := getattr(module, name)):
                made.__init__.__doc__ = None  # else every class says that attrs made it
    # A module in the `__all__` of another public one comes with that one.
    inner = {
        f"{module}.{name}"
        for module in modules
        for name in getattr(importlib.import_module(module), "__all__", ())
    }
    pdoc.pdoc(*(m for m in modules if m not in inner), output_directory=folder)
    missing = [m for m in modules if not (folder / f"{m.replace('.', '/')}.html").is_file()]
    if missing:
        print(f"tools/docs.py: no page was made for {', '.join(missing)}", file=sys.stderr)
        return 1
    print(f"{len(modules)} modules: {folder / 'index.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
