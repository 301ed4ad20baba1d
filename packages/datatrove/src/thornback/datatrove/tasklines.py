"""Decides which lines of tasks are printed where the driver runs."""

from __future__ import annotations

import re
from collections.abc import Mapping

from thornback.datatrove.ranklog import MORE

_HEAD = re.compile(r"(?:\[NODE \d+\] )?\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3} \| (\w+) *\| ")
_ERRORS = ("ERROR", "CRITICAL")
_OWN = " thornback.datatrove.rank:"
_LOW = ("TRACE", "DEBUG")
_MOST = 100_000


class TaskLines:
    """Leaves out what datatrove would not log to the console (for `Executor(quiet=...)`).

    Printed are errors, except those with which tasks fail: the driver tells them. With `log_first`
    also what the first task of each job logs, from INFO on; and what steps print by themselves.

    Args:
        first: of each stage with `log_first`, by name: its `tasks_per_job`.
    """

    def __init__(self, first: Mapping[str, int]) -> None:
        self._first = dict(first)
        self._hidden: dict[tuple[str, int], None] = {}
        """Tasks of which the last message was left out."""

    def __call__(self, stage: str, rank: int, line: str) -> bool:
        """Return whether a line is left out. Lines of a task come in order."""
        key = (stage, rank)
        head = _HEAD.match(line)
        if head is None:
            return key in self._hidden and line.startswith(MORE)
        is_first = stage in self._first and rank % self._first[stage] == 0
        is_error = head[1] in _ERRORS and _OWN not in line
        if is_error or (is_first and head[1] not in _LOW):
            self._hidden.pop(key, None)
            return False
        if len(self._hidden) >= _MOST:
            self._hidden.clear()
        self._hidden[key] = None
        return True
