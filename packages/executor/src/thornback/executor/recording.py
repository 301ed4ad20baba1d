"""Writes down what the scheduler of a run is told and answers, where the user wants to know."""

from __future__ import annotations

import gzip
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TextIO, TypeAlias

from thornback.executor.plan import RunPlan
from thornback.faults import Fault
from thornback.scheduler import Scheduler, StagePlan
from thornback.scheduler.commands import Command
from thornback.scheduler.events import Event

logger = logging.getLogger(__name__)
Decide: TypeAlias = Callable[[Event[Fault], float], Sequence[Command]]


def deciding(
    plan: RunPlan,
    stages: Sequence[StagePlan[Fault]],
    record: Callable[[str], object] | None,
) -> tuple[Scheduler[Fault], Decide]:
    """Return the scheduler of a run, to be asked, and what is to be told its events: its own
    `handle`, or that of a recorder which gives each line to `record`."""
    if record is None:
        scheduler = Scheduler(stages, plan.dag(), plan.settings.scheduler, plan.settings.seed)
        return scheduler, scheduler.handle
    from thornback.scheduler.recorder import Recorder  # only where something is recorded

    recorder = Recorder(
        stages,
        plan.dag(),
        plan.settings.scheduler,
        seed=plan.settings.seed,
        names=[stage.name for stage in plan.stages],
        keep=0,
        write=record,
    )
    return recorder.scheduler, recorder.handle


@contextmanager
def record_file(path: str | None) -> Iterator[Callable[[str], object] | None]:
    """Open the file of `Executor.record` for a run; None: nothing is recorded.

    Every line is in the file at once, or, of one that ends in .gz, at the end. A file that can no
    longer be written harms nothing but the record.

    Raises:
        OSError: it cannot be opened.
    """
    if path is None:
        yield None
        return
    os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
    file = _open(path)

    def write(line: str) -> None:
        try:
            file.write(line)
        except OSError:
            logger.warning("the record in %s ends here", path, exc_info=True)
            raise

    try:
        yield write
    finally:
        try:
            file.close()
        except OSError:
            logger.warning("the record in %s is not whole", path, exc_info=True)


def _open(path: str) -> TextIO:
    if path.endswith(".gz"):
        return gzip.open(path, "wt", encoding="utf-8")
    return open(path, "w", encoding="utf-8", buffering=1)
