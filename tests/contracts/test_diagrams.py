"""The diagrams of the READMEs show the moves that the code allows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from thornback.scheduler.states import GANG_MOVES, RANK_MOVES

ROOT = Path(__file__).resolve().parents[2]


def test_the_diagrams_are_those_of_the_tables() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "diagrams.py")],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout


def test_every_move_that_changes_a_state_is_in_the_readme() -> None:
    text = (ROOT / "packages/scheduler/README.md").read_text(encoding="utf-8")
    arrows = [line.strip() for line in text.splitlines() if " --> " in line]
    ranks = [(s.name, m.value, t.name) for s, moves in RANK_MOVES.items() for m, t in moves.items()]
    gangs = [
        (s.name, m.value, "[*]" if t is None else t.name)
        for s, moves in GANG_MOVES.items()
        for m, t in moves.items()
        if t is not s
    ]
    for source, move, target in ranks + gangs:
        assert any(
            line.startswith(f"{source} --> {target}: ") and move in line for line in arrows
        ), (source, move, target)
