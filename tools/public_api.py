"""The public API of all packages: one line for each name, with its signature.

    .venv/bin/python tools/public_api.py [--write]

Compares it with tools/public_api.txt, so that no public name comes, goes or changes unnoticed;
`--write` approves what is there. Every public class, function, method and property must have a
docstring, and every public module an `__all__`. Which modules are public stands in pyproject.toml.
Exit code 1: something differs or is missing.
"""

from __future__ import annotations

import difflib
import enum
import importlib
import inspect
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]
RECORD = ROOT / "tools" / "public_api.txt"


class Plain(str):
    """An annotation that is printed without quotes."""

    __repr__ = str.__str__


def signature(function: object) -> str:
    """Return a signature without what changes from run to run."""
    try:
        found = inspect.signature(function)  # type: ignore[arg-type]  # what has none raises
    except (TypeError, ValueError):
        return "(...)"
    parameters = []
    for parameter in found.parameters.values():
        default = parameter.default
        if default is not parameter.empty and not re.fullmatch(
            r"[\d.-]+|\w+|'.*'|\(\)", repr(default)
        ):
            parameter = parameter.replace(default=Plain("..."))
        if isinstance(parameter.annotation, str):
            parameter = parameter.replace(annotation=Plain(parameter.annotation))
        parameters.append(parameter)
    answer = found.return_annotation
    if isinstance(answer, str):
        answer = Plain(answer)
    return str(found.replace(parameters=parameters, return_annotation=answer))


def members(made: type) -> Iterator[tuple[str, str, object]]:
    """Yield (name, text, object) for the public members that we ourselves define."""
    seen: set[str] = set()
    for base in made.__mro__:
        if not base.__module__.startswith("thornback"):
            continue
        for name, member in vars(base).items():
            if name.startswith("_") or name in seen:
                continue
            seen.add(name)
            if isinstance(member, property):
                yield name, "", member
            elif isinstance(member, staticmethod | classmethod):
                yield name, signature(getattr(made, name)), member.__func__
            elif inspect.isfunction(member):
                yield name, signature(member), member


def describe(name: str, thing: object) -> Iterator[tuple[str, object | None]]:
    """Yield a line for each name, with the object whose docstring counts (None: needs none)."""
    if isinstance(thing, type) and issubclass(thing, enum.Enum):
        yield f"{name} = {' | '.join(member.name for member in thing)}", thing
    elif isinstance(thing, type):
        protocol = getattr(thing, "_is_protocol", False)
        yield f"{name}{'' if protocol else signature(thing)}", thing
        for inner, text, member in sorted(members(thing), key=lambda found: found[0]):
            yield f"{name}.{inner}{text}", member
    elif inspect.isroutine(thing):
        yield f"{name}{signature(thing)}", thing
    elif not isinstance(thing, ModuleType):
        yield f"{name}: {type(thing).__name__}", None


def main() -> int:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    lines, problems = [], []
    for module_name in settings["tool"]["thornback"]["public"]:
        module = importlib.import_module(module_name)
        if not inspect.getdoc(module):
            problems.append(f"{module_name} has no docstring")
        if not getattr(module, "__all__", ()):
            problems.append(f"{module_name} has no __all__, so all that it imports looks public")
        for name in getattr(module, "__all__", ()):
            for line, documented in describe(f"{module_name}.{name}", getattr(module, name)):
                lines.append(line)
                if (
                    documented is not None
                    and not (getattr(documented, "__doc__", "") or "").strip()
                ):
                    problems.append(f"{line.partition('(')[0]} has no docstring")
    if sys.argv[1:] == ["--write"]:
        RECORD.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    recorded = RECORD.read_text(encoding="utf-8").splitlines() if RECORD.exists() else []
    changes = list(difflib.unified_diff(recorded, lines, "approved", "now", lineterm="", n=0))
    if changes:
        problems += changes
        problems.append("The public API has changed: if it should, run tools/public_api.py --write")
    print(*problems, f"{len(lines)} public names and members looked at", sep="\n")
    return int(bool(problems) or not lines)


if __name__ == "__main__":
    sys.exit(main())
