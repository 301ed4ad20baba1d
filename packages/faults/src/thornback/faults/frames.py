"""Tells frames of libraries from those of user code. Pure."""

from __future__ import annotations

import re

_LIBRARY = re.compile(
    r"[/\\](?:site|dist)-packages[/\\]|[/\\]lib[/\\]python3\.|^<frozen |\.(?:pyx|pxi)$", re.I
)
"""Installed packages, Python itself, and what Cython has compiled."""


def is_library(file: str) -> bool:
    """Return whether a frame of this file is none of user code."""
    return _LIBRARY.search(file) is not None
