"""Pickles a pipeline for its ranks: the driver's side."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from datatrove.io import DataFolder
from datatrove.utils.logging import logger
from thornback.datatrove.ranklog import this_logger
from thornback.executor import UsageError
from thornback.executor.pickling import SourcePickler

if TYPE_CHECKING:
    from datatrove.executor.ray import RayPipelineExecutor


class _PipelinePickler(SourcePickler):
    """Pickles two things of datatrove otherwise than they would pickle themselves.

    - The logger that all of datatrove uses, as what it is there. By value, as a global of a step
      that is defined in a script, it would come with the handlers that the driver has, and its
      lines would not be in the log of the rank.
    - Local folders, by absolute path. fsspec makes a file system anew from its first arguments, so
      a relative path would count from the folder of the rank process, and be another one there.
    """

    def reducer_override(self, value: Any, /) -> Any:
        """See `pickle.Pickler.reducer_override`."""
        if value is logger:
            return this_logger, ()
        if type(value) is DataFolder and value.is_local():
            return DataFolder, (value.path, value.fs, value.auto_mkdir)
        return super().reducer_override(value)


def dumps(value: object) -> bytes:
    """Return the pickle of a value. Raises what its `__reduce__` raises."""
    file = io.BytesIO()
    _PipelinePickler(file).dump(value)
    return file.getvalue()


def pickled(executor: RayPipelineExecutor) -> bytes:
    """Return the pickle of an executor.

    Raises:
        UsageError: it does not pickle; the message names the step, and how to fix it.
    """
    try:
        return dumps(executor)
    except Exception as error:  # a user's object may raise anything from __reduce__
        raise UsageError(
            f"{_culprit(executor)} does not pickle ({type(error).__name__}: {error}): open files, "
            "locks and connections when the step runs, not when it is made, so that it can be sent "
            "to the workers"
        ) from error


def _culprit(executor: RayPipelineExecutor) -> str:
    """Return what of an executor does not pickle, for people."""
    for index, step in enumerate(executor.pipeline):
        if not _pickles(step):
            name = getattr(step, "__qualname__", type(step).__qualname__)
            return f"step {index} of the pipeline ({name})"
    for name, value in executor.__dict__.items():
        if name != "pipeline" and not _pickles(value):
            return f"the attribute {name!r} of the executor ({type(value).__qualname__})"
    return f"the executor ({type(executor).__qualname__})"


def _pickles(value: object) -> bool:
    try:
        dumps(value)
    except Exception:  # noqa: BLE001  # see `_pickled`
        return False
    return True
