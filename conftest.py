"""Settings of every test run: the Hypothesis profiles, Ray's tests last, examples as programs.

The profile is `ci` unless the variable HYPOTHESIS_PROFILE or the option --hypothesis-profile says
`nightly`.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

# Ray would otherwise start each worker by `uv run` when pytest is started by it.
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")

# No deadlines: a busy machine is not a bug. The parent is named because Hypothesis has another
# default where the variable CI is set.
_DEFAULT = settings.get_profile("default")
settings.register_profile("ci", _DEFAULT, max_examples=60, deadline=None, print_blob=True)
settings.register_profile("nightly", _DEFAULT, max_examples=2000, deadline=None, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

# Child processes must find the sources in another folder too; Pants gives relative paths.
sys.path[:] = [path and os.path.abspath(path) for path in sys.path]
if _extra := os.environ.get("__PEX_EXTRA_SYS_PATH__"):
    _paths = (os.path.abspath(path) for path in _extra.split(os.pathsep))
    os.environ["__PEX_EXTRA_SYS_PATH__"] = os.pathsep.join(_paths)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests that start Ray last: all others have then said what is wrong."""
    items.sort(key=lambda item: item.get_closest_marker("ray") is not None)


@pytest.fixture
def run_examples(tmp_path: Path) -> Callable[[Path], str]:
    """Return a function that runs the Python examples of a Markdown file, or a Python file, as one
    program in a process and folder of its own, as a reader would; it returns what they print."""

    def run(path: Path) -> str:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".md":
            blocks = re.findall(r"^```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
            assert blocks, f"{path} has no example in Python"
            text = "\n".join(blocks)
        program = tmp_path / "example.py"
        program.write_text(text, encoding="utf-8")
        done = subprocess.run(
            [sys.executable, str(program)],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr
        return done.stdout

    return run
