"""No public name comes, goes or changes unnoticed; all are documented, and the reference builds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def run(tool: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / tool), *arguments],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_public_api_is_the_approved_one_and_documented() -> None:
    assert "public names and members looked at" in run("public_api.py")


def test_the_reference_documentation_builds_without_a_warning(tmp_path: Path) -> None:
    run("docs.py", str(tmp_path))
    page = (tmp_path / "thornback" / "faults.html").read_text(encoding="utf-8")
    assert "is_retriable" in page
