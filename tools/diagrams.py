"""The diagrams of states in the READMEs, drawn from the tables of transitions in the code.

    .venv/bin/python tools/diagrams.py [--write]

Compares them with what stands between `<!-- diagram NAME -->` and `<!-- end -->`; `--write` puts
them there. What leaves a state as it is (a defined no-op) is not drawn. Exit code 1: one differs.
"""

from __future__ import annotations

import enum
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TypeAlias

from thornback.pool.members import TRANSITIONS
from thornback.scheduler.states import GANG_MOVES, RANK_MOVES

ROOT = Path(__file__).resolve().parents[1]
Table: TypeAlias = Mapping[enum.Enum, Mapping[enum.Enum, enum.Enum | None]]
"""By state and move: the next state; None: gone."""


def diagram(table: Table) -> str:
    """Return a state diagram in mermaid. It begins in the first state; a state without moves is an
    end."""
    lines = [f"[*] --> {next(iter(table)).name}"]
    for state, moves in table.items():
        arrows: dict[str, list[str]] = {}
        for move, target in moves.items():
            if target is not state:
                arrows.setdefault("[*]" if target is None else target.name, []).append(move.value)
        lines += [f"{state.name} --> {target}: {', '.join(m)}" for target, m in arrows.items()]
        if not moves:
            lines.append(f"{state.name} --> [*]")
    body = "".join(f"    {line}\n" for line in lines)
    return f"```mermaid\nstateDiagram-v2\n{body}```\n"


def drawn(text: str, name: str, table: Table) -> str:
    """Return a README with the diagram of that name as it should be. Raises SystemExit if it has no
    place for it."""
    pattern = re.compile(rf"(<!-- diagram {name} -->\n).*?(<!-- end -->)", re.DOTALL)
    if len(pattern.findall(text)) != 1:
        sys.exit(f"expected one place for a diagram {name!r}")
    return pattern.sub(lambda found: f"{found[1]}\n{diagram(table)}\n{found[2]}", text)


def main() -> int:
    diagrams: dict[str, dict[str, Table]] = {
        "scheduler": {"ranks": RANK_MOVES, "gangs": GANG_MOVES},  # type: ignore[dict-item]  # keys of Mapping
        "pool": {"members": TRANSITIONS},  # type: ignore[dict-item]  # are invariant
    }
    stale = []
    for package, tables in diagrams.items():
        readme = ROOT / "packages" / package / "README.md"
        text = old = readme.read_text(encoding="utf-8")
        for name, table in tables.items():
            text = drawn(text, name, table)
        if text != old and sys.argv[1:] == ["--write"]:
            readme.write_text(text, encoding="utf-8")
        elif text != old:
            stale.append(readme)
    for readme in stale:
        print(f"{readme.relative_to(ROOT)}: not as the tables say: run tools/diagrams.py --write")
    return int(bool(stale))


if __name__ == "__main__":
    sys.exit(main())
