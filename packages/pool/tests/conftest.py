"""What several of the tests share."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

PROGRAM = """
import sys
from thornback.pool.worker.params import SupervisorParams
from thornback.pool.worker.server import main
sys.exit(main(sys.argv[4:], params=SupervisorParams(reclaim_s=0.1)))
"""


@pytest.fixture
def hasty_python(tmp_path: Path) -> str:
    """An interpreter whose workers report on a long rank after 0.1 s, not after 2 s: for tests of
    what comes with that first report, and not of what it hands back."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\nexec '{sys.executable}' '{program}' \"$@\"\n")
    python.chmod(0o700)
    return str(python)
