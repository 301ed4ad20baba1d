"""The README of faults shows what the classifier makes of real errors."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_readme_table_of_real_errors_is_current() -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "real_errors.py")],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
