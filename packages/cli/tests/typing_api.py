"""Used as a stranger would. Never executed: mypy reads it, against the sources and against the
installed wheel."""

from __future__ import annotations

from pathlib import Path
from typing import assert_type

from thornback.cli.trace_file import TraceCheck, check_trace


def is_one_tree(path: Path) -> bool:
    check = assert_type(check_trace(path), TraceCheck)
    assert_type(check.spans, int)
    assert_type(check.ranks, int)
    assert_type(check.retried, int)
    for problem in assert_type(check.problems, tuple[str, ...]):
        print(problem)
    return assert_type(check.ok, bool)


assert_type(TraceCheck(spans=3, ranks=1, retried=0, problems=("torn",)), TraceCheck)
