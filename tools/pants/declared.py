"""Each package declares what its sources import, and imports what it declares.

    tools/pants/run peek --peek-output-file=dist/targets.json :: && \
        .venv/bin/python tools/pants/declared.py dist/targets.json

What is imported is what Pants infers, file by file, imports within functions included. A file may
import the dependencies of its own package's pyproject.toml, and those of one extra where EXTRAS
says so. Exit code 1: some import is not declared, or some dependency is imported nowhere.
"""

from __future__ import annotations

import json
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]

EXTRAS: Mapping[str, str] = {"on_ray.py": "ray", "sdkspans.py": "tracing", "otlp.py": "otlp"}
"""Files that are imported, or import what they need, only where an extra is installed."""

SOURCE = re.compile(r"packages/(?P<package>\w+)/src/(?P<path>[\w/]+\.py)\b")
THIRD_PARTY = "//:3rdparty#"


def names(requirements: list[str], own: str) -> Iterator[str]:
    """Yield what is required, normalised; an extra of another of our packages stands for ray."""
    for text in requirements:
        requirement = Requirement(text)
        yield requirement.name.lower().replace("_", "-")
        if own in requirement.extras:
            yield own


def distribution(package: str) -> str:
    """Return the name that a package folder is installed by."""
    return "thornback" if package == "cli" else f"thornback-{package}"


def imports(targets: list[dict[str, Any]]) -> Iterator[tuple[str, str, str]]:
    """Yield (package, file, distribution) for every import that leaves the package."""
    for target in targets:
        source = SOURCE.match(target["address"])
        if source is None or target["target_type"] != "python_source":
            continue
        for dependency in target["dependencies"]:
            if dependency.startswith(THIRD_PARTY):
                yield source["package"], source["path"], dependency.removeprefix(THIRD_PARTY)
            elif (other := SOURCE.match(dependency)) and other["package"] != source["package"]:
                yield source["package"], source["path"], distribution(other["package"])


def main() -> int:
    targets = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    used: dict[str, set[str]] = {path.parent.name: set() for path in ROOT.glob("packages/*/src")}
    problems = []
    projects = {}
    for package in used:
        text = (ROOT / "packages" / package / "pyproject.toml").read_text(encoding="utf-8")
        projects[package] = tomllib.loads(text)["project"]
    for package, path, imported in sorted(set(imports(targets))):
        used[package].add(imported)
        project = projects[package]
        declared = set(names(project["dependencies"], ""))
        if extra := EXTRAS.get(Path(path).name):
            declared |= set(names(project["optional-dependencies"][extra], extra))
        if imported not in declared:
            problems.append(
                f"packages/{package}/src/{path} imports {imported}, which"
                f" packages/{package}/pyproject.toml does not declare"
            )
    for package, project in projects.items():
        for idle in sorted(set(names(project["dependencies"], "")) - used[package]):
            problems.append(
                f"packages/{package}/pyproject.toml declares {idle}, which no source imports"
            )
    print(*problems, f"{sum(map(len, used.values()))} dependencies looked at", sep="\n")
    return int(bool(problems) or not any(used.values()))


if __name__ == "__main__":
    sys.exit(main())
