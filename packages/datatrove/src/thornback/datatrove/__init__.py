"""datatrove's `RayPipelineExecutor`, drop-in: change one import.

    from thornback.datatrove import RayPipelineExecutor

Each rank is executed at least once and recorded exactly once; directories stay as datatrove's tools
know them. Everything else in this package is private.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from thornback.datatrove.errors import (
        DependencyFailed,
        LoggingDirInUse,
        PipelineMismatch,
    )
    from thornback.datatrove.executor import RayPipelineExecutor

__all__ = ["DependencyFailed", "LoggingDirInUse", "PipelineMismatch", "RayPipelineExecutor"]

_NAMES: dict[str, tuple[str, ...]] = {
    "errors": ("DependencyFailed", "LoggingDirInUse", "PipelineMismatch"),
    "executor": ("RayPipelineExecutor",),
}
"""What is imported when it is first asked for, by module: a rank process starts with less."""


def __getattr__(name: str) -> object:
    for module, names in _NAMES.items():
        if name in names:
            found = getattr(importlib.import_module(f"{__name__}.{module}"), name)
            globals()[name] = found
            return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
