"""Every test run: Hypothesis profiles, Ray's tests last, times by tier, examples as programs.

The profile is `ci` unless the variable HYPOTHESIS_PROFILE or the option --hypothesis-profile says
`nightly` or `mutants`.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import Phase, settings

# Ray would otherwise start each worker by `uv run` when pytest is started by it.
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")

# No deadlines: a busy machine is not a bug. The parent is named because Hypothesis has another
# default where the variable CI is set.
_DEFAULT = settings.get_profile("default")
settings.register_profile("ci", _DEFAULT, max_examples=60, deadline=None, print_blob=True)
settings.register_profile("nightly", _DEFAULT, max_examples=2000, deadline=None, print_blob=True)
# For tools/mutants.py: that something fails is enough.
_PHASES = [Phase.explicit, Phase.generate]
settings.register_profile("mutants", settings.get_profile("ci"), phases=_PHASES)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

# Child processes must find the sources in another folder too; Pants gives relative paths.
sys.path[:] = [path and os.path.abspath(path) for path in sys.path]
if _extra := os.environ.get("__PEX_EXTRA_SYS_PATH__"):
    _paths = (os.path.abspath(path) for path in _extra.split(os.pathsep))
    os.environ["__PEX_EXTRA_SYS_PATH__"] = os.pathsep.join(_paths)


TIERS = {
    "unit and property": 90,
    "simulation": 30,
    "integration and Ray": 240,
    "acceptance": 120,
}
"""Seconds that a tier may take on a quiet machine; printed, never asserted."""


def tier(path: str) -> str:
    """Return the tier of a test file."""
    if "tests/acceptance/" in path:
        return "acceptance"
    if "tests/simulation/" in path:
        return "simulation"
    real = path.endswith("_ray.py") or "tests/integration/" in path
    return "integration and Ray" if real else "unit and property"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the tests that start Ray last: all others have then said what is wrong.

    A file that starts Ray is called `test_*_ray.py`: Pants knows it by its name.
    """
    for item in items:
        marked = item.get_closest_marker("ray") is not None
        if marked != item.path.name.endswith("_ray.py"):
            raise pytest.UsageError(
                f"{item.nodeid}: a test has the mark 'ray' if, and only if, its file is called"
                " test_*_ray.py: mark it, or move it"
            )
    items.sort(key=lambda item: item.path.name.endswith("_ray.py"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what each tier took, beside its budget."""
    took: dict[str, float] = {}
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                name = tier(report.nodeid.partition("::")[0])
                took[name] = took.get(name, 0.0) + report.duration
    if len(took) > 1:
        terminalreporter.section("tiers: seconds, of a budget for a quiet machine")
        for name in sorted(took, key=list(TIERS).index):
            terminalreporter.write_line(f"{name:22} {took[name]:6.0f} of {TIERS[name]}")


@pytest.fixture
def run_examples(tmp_path: Path) -> Callable[..., str]:
    """Return a function that runs the Python examples of a Markdown file, or a Python file, as one
    program in a process and folder of its own, as a reader would; it returns what they print.
    Nothing but how a run begins may go to standard error unless `logs` says that the example
    logs."""

    def run(path: Path, *, logs: bool = False) -> str:
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
        assert done.returncode == 0, done.stdout + done.stderr
        lines = done.stderr.splitlines()
        assert logs or all(line.startswith("thornback: job ") for line in lines), done.stderr
        return done.stdout

    return run
