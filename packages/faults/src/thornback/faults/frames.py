"""Finds the line of user code that an error comes from. Pure."""

from __future__ import annotations

import re

_FRAME = re.compile(r'^[ |]*File "(?P<file>[^"\n]+)", line (?P<line>\d+), in (?P<name>.+)$', re.M)
_LIBRARY = re.compile(
    r"[/\\](?:site|dist)-packages[/\\]|[/\\]lib[/\\]python3\.|^<frozen |\.(?:pyx|pxi)$", re.I
)
"""Installed packages, Python itself, and what Cython has compiled."""


def is_library(file: str) -> bool:
    """Return whether a frame of this file is none of user code."""
    return _LIBRARY.search(file) is not None


def user_frame(traceback: str) -> str:
    """Return the innermost frame of user code in a traceback, as `file:line in name`.

    Frames of installed packages and of Python itself are passed over, unless there are no others.
    For chained exceptions the last one counts, since Python prints the causes first. Empty: the
    text has no frames.
    """
    frames = list(_FRAME.finditer(traceback))
    users = [match for match in frames if not is_library(match["file"])]
    if not frames:
        return ""
    last = (users or frames)[-1]
    return f"{last['file']}:{last['line']} in {last['name'].strip()}"
