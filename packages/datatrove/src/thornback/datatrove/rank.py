"""A pipeline in a rank process: what datatrove's `_run_for_rank` does, without the driver's part.

The rank returns its stats. Nobody but the driver writes `stats/` and `completions/`, once the rank
is recorded: so an attempt that was given up cannot complete a rank behind the driver's back.

Nothing here may import the driver's side: each rank process would.
"""

from __future__ import annotations

import copy
import os
import pickle
import random
import sys
import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import attrs

from datatrove.utils.logging import log_pipeline, logger
from datatrove.utils.stats import PipelineStats
from thornback.datatrove import rankresult
from thornback.datatrove.apart import Apart
from thornback.datatrove.ranklog import NOT_WRITTEN, LogDesk, RankLog, again_line, log_name
from thornback.datatrove.surroundings import undone

if TYPE_CHECKING:
    from datatrove.executor.ray import RayPipelineExecutor
    from thornback.executor import RankContext

DRIVER_ONLY = frozenset({"companions", "observers", "platform", "trace"})
"""Attributes of an executor that stay with the driver. It may name more in `driver_only`."""
_LEAST_S = 1.0
"""For the log in any case; and what is left over of a rank's time after it."""


def rank_function(
    executor: RayPipelineExecutor, *, logs: str = "", time_s: float | None = None
) -> PipelineRank:
    """Return the function of a stage that runs the ranks of an executor, for `Stage(fn=...)`.

    The executor is pickled now, once, without what it depends on: what is done to it later does not
    reach the ranks.

    Args:
        executor: of datatrove's, or a subclass.
        logs: where the run keeps what rank processes write: for people.
        time_s: seconds after which a rank is killed; None: it is not.

    Raises:
        UsageError: it does not pickle; the message names the step, and the mend.
    """
    from thornback.datatrove.pickling import dumps, pickled  # the driver's side

    sent = copy.copy(executor)
    sent.depends = None
    for name in DRIVER_ONLY | frozenset(getattr(executor, "driver_only", ())):
        sent.__dict__.pop(name, None)
    return PipelineRank(
        executor=pickled(sent),
        folder=dumps(executor.logging_dir),
        logs=logs,
        time_s=time_s,
        preload=_needed(executor),
    )


@attrs.define(kw_only=True, slots=True, eq=False)
class PipelineRank:
    """Runs a rank of one pipeline; made by `rank_function`."""

    executor: bytes = attrs.field(repr=False)
    """Pickled. Each rank has a fresh one: stats add up in the steps."""
    folder: bytes = attrs.field(repr=False)
    """Its logging directory, pickled: a pipeline that does not unpickle leaves a log as well."""
    logs: str = ""
    preload: tuple[str, ...] = ()
    """Modules that every rank needs, and that start no threads."""
    time_s: float | None = None
    """After so many seconds a rank is killed."""
    upload_s: float = 60.0
    """For the writing of the log: a store that hangs must not hold a rank that is done."""
    _apart: Apart = attrs.field(factory=Apart, repr=False)
    _desk: LogDesk = attrs.field(factory=LogDesk, repr=False)

    @property
    def __thornback_params__(self) -> Mapping[str, object]:
        """Nothing: the parameters of the steps are compared by the journal of the pipeline."""
        return {}

    @property
    def __thornback_preload__(self) -> tuple[str, ...]:
        return self.preload

    def upload_limit_s(self, ran_s: float) -> float:
        """Return the seconds that the writing of the log may take: a rank that is done must not be
        killed for it."""
        if self.time_s is None:
            return self.upload_s
        return min(self.upload_s, max(_LEAST_S, self.time_s - ran_s - _LEAST_S))

    def __call__(self, ctx: RankContext) -> rankresult.Result | None:
        """Run the pipeline, and return its stats (`rankresult`); None on all nodes of a gang but
        the first.

        The log is in the logging directory then, also if it raises; if it cannot be written there
        within `upload_s`, stderr has it, and that is told on stderr.

        Raises:
            BaseException: what a step raised, as it is.
        """
        pid, began_s = os.getpid(), time.monotonic()
        node_rank = -1 if ctx.nodes == 1 else ctx.node_index
        again = ctx.attempt > 1
        first = again_line(ctx.rank, ctx.attempt, ctx.epoch, self.logs) if again else ""
        log = RankLog()
        try:
            self._desk.begin(log, ctx.rank, node_rank, first_line=first)
            with undone():
                stats = self._logged(ctx, node_rank)
            return None if stats is None else self._result(ctx, stats)
        finally:
            if os.getpid() == pid:  # not in a forked copy that user code let come back
                limit_s = self.upload_limit_s(time.monotonic() - began_s)
                self._deliver(log, log_name(ctx.rank, node_rank), limit_s)

    def _logged(self, ctx: RankContext, node_rank: int) -> str | None:
        """Return the stats as JSON (None: not ours to tell); what it raises is in the log."""
        try:
            executor = self._unpickled(ctx.node)
            _tell_where(executor, ctx, node_rank)
            return _run(executor, ctx.rank, node_rank)
        except BaseException as error:
            logger.error(_told(error))
            raise

    def _unpickled(self, node: str) -> RayPipelineExecutor:
        try:
            return pickle.loads(self.executor)
        except Exception as error:
            error.add_note(
                f"The pipeline does not unpickle on node {node!r}: what it imports must be "
                "installed there, or come with the runtime_env."
            )
            raise

    def _result(self, ctx: RankContext, stats: str) -> rankresult.Result:
        result = rankresult.encode(stats)
        if result is None:
            name = f"thornback/stats/{ctx.epoch}-{ctx.rank:05d}.json"
            folder = pickle.loads(self.folder)
            self._apart.call(partial(_write, folder, name, stats), limit_s=self.upload_s)
            result = rankresult.in_file(name)
        return result

    def _deliver(self, log: RankLog, name: str, limit_s: float) -> None:
        """End the log, and write it to its place; whatever comes of that, the rank is as it was."""
        try:
            self._desk.end()
            folder = pickle.loads(self.folder)
            self._apart.call(partial(log.write_to, folder, name), limit_s=limit_s)
        except Exception as error:  # noqa: BLE001  # whatever a store raises
            with suppress(OSError, ValueError, AttributeError):  # user code has closed it
                print(f"{NOT_WRITTEN} to {name}: {error!r}", file=sys.stderr)
        finally:
            log.close()


def _tell_where(executor: RayPipelineExecutor, ctx: RankContext, node_rank: int) -> None:
    """Set the variables that datatrove's steps read."""
    addresses = os.environ.get("THORNBACK_ADDRESSES", "") if ctx.nodes > 1 else ctx.address
    os.environ["RAY_NODELIST"] = addresses
    os.environ["RAY_NODEID"] = str(ctx.node_index)
    executor._set_distributed_environment(node_rank)


def _run(executor: RayPipelineExecutor, rank: int, node_rank: int) -> str | None:
    log_pipeline(executor.pipeline)
    if executor.randomize_start_duration > 0:
        time.sleep(random.randint(0, executor.randomize_start_duration))
    drain(executor.pipeline, rank, executor.world_size)
    logger.success(f"Processing done for {rank=}")
    if node_rank > 0:
        return None
    stats = PipelineStats(executor.pipeline)
    logger.info(stats.get_repr(f"Task {rank}"))
    return str(stats.to_json())


def drain(pipeline: Sequence[object], rank: int, world_size: int) -> None:
    """Pipe the data from each step to the next, and take all that the last one gives.

    Raises:
        ValueError: a step is neither callable nor a sequence of documents.
        BaseException: what a step raised.
    """
    data: Any = None
    for index, step in enumerate(pipeline):
        if callable(step):
            data = step(data, rank, world_size)
        elif isinstance(step, Sequence) and not isinstance(step, str):
            data = step
        else:
            raise ValueError(
                f"step {index} of the pipeline is a {type(step).__qualname__}: expected something "
                "to call with (data, rank, world_size), or a list of documents"
            )
    if data:
        deque(data, maxlen=0)


def _needed(executor: RayPipelineExecutor) -> tuple[str, ...]:
    """Return the modules of the executor and of the file system of its logging directory: 0.2 to
    0.8 s of imports in each rank process. Not those of steps: numpy starts threads."""
    fs = executor.logging_dir.fs
    own = [cls.__module__ for cls in type(executor).__mro__]
    return (
        *(name for name in own if name.startswith(("datatrove.executor.", "thornback.datatrove."))),
        *dict.fromkeys(type(each).__module__ for each in (fs, getattr(fs, "fs", fs))),
    )


def _told(error: BaseException) -> str:
    """Return the traceback of an error. Never raises.

    Not by `logger.exception`: loguru also shows the values of variables, which may be secret, and
    keeps the frames that it looked at, with all that is open there, until a garbage collection.
    """
    from thornback.faults import ErrorRecord  # only what fails needs it

    record = ErrorRecord.of(error)
    return f"{record.message}\n{record.traceback.rstrip()}"


def _write(folder: Any, name: str, text: str) -> None:
    with folder.open(name, "wb") as target:
        target.write(text.encode("utf-8", "surrogatepass"))
