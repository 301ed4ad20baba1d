"""From one pipeline executor to the stage of a job. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from thornback.datatrove.options import rank_timeout_s
from thornback.executor import After, Stage

if TYPE_CHECKING:
    from thornback.datatrove.executor import RayPipelineExecutor

GRACE_S = 300.0
"""For the other nodes of a task when the first has ended: steps there may still hand something
over."""


def stage_of(
    executor: RayPipelineExecutor,
    name: str,
    fn: Callable[..., Any],
    *,
    incomplete: int,
    after: tuple[After, ...] = (),
) -> Stage:
    """Return the stage that runs a pipeline.

    Args:
        executor: the pipeline.
        name: of the stage.
        fn: runs a rank.
        incomplete: number of ranks that are to be run: no more are run at the same time.
        after: what it comes after.

    Raises:
        UsageError: it can never run.
    """
    has = executor._reserved()
    at_once = 1 if executor.nodes_per_task > 1 else min(executor.tasks_per_job, incomplete)
    return Stage(
        name,
        fn,
        ranks=executor.world_size,
        after=after,
        cpus=has.cpus,
        gpus=has.gpus,
        memory=has.memory_bytes,
        enforce_memory=executor.enforce_memory,
        resources=has.resources,
        accelerator=has.accelerator,
        labels=has.labels,
        runtime_env=has.runtime_env,
        nodes=executor.nodes_per_task,
        strategy=executor.strategy,
        finished_when="leader",
        grace_s=GRACE_S,
        processes=at_once,
        timeout_s=rank_timeout_of(executor),
        retries=executor.retries,
        max_gangs=max(1, executor.workers),
        max_growth=executor.memory_growth,
        fresh=executor.fresh,
    )


def rank_timeout_of(executor: RayPipelineExecutor) -> float | None:
    """Return the seconds after which a rank is killed; None: it is not.

    Raises:
        UsageError: its arguments make no sense.
    """
    return rank_timeout_s(executor.time, executor.timeout_s, executor.randomize_start_duration)
