"""Settings of every test run: the Hypothesis profiles, and Ray's tests last.

The profile is `ci` unless the variable HYPOTHESIS_PROFILE or the option --hypothesis-profile says
`nightly`.
"""

from __future__ import annotations

import os
import sys

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
