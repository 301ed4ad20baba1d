"""Runs a chain of pipelines as one job: what has to be run, the job, and what its end comes to."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import attrs

from datatrove.executor.base import PipelineExecutor
from datatrove.executor.ray import RayPipelineExecutor as StockRayPipelineExecutor
from datatrove.utils.logging import logger
from datatrove.utils.stats import PipelineStats
from thornback.datatrove import markers
from thornback.datatrove.announcer import Announcer
from thornback.datatrove.chain import Chain, collect, dependencies
from thornback.datatrove.directory import (
    JournalAfterOpen,
    check_marks,
    differences,
    logs_of,
    save_executors,
    warn_of_memory,
    warn_of_params,
)
from thornback.datatrove.errors import DependencyFailed
from thornback.datatrove.failures import failure_of
from thornback.datatrove.identity import stage_identity
from thornback.datatrove.journal import (
    PipelineJournals,
    PipelineState,
    state_url,
    storage_options,
)
from thornback.datatrove.launch import claim, is_ours
from thornback.datatrove.rank import rank_function
from thornback.datatrove.stages import rank_timeout_of, stage_of
from thornback.datatrove.stagestats import StatsKeeper, merge, of_complete, readable
from thornback.datatrove.tasklines import TaskLines
from thornback.datatrove.tasklogs import TaskLogs
from thornback.executor import Executor, Job, RunFailed, RunReport
from thornback.executor.ports import Journal, Platform
from thornback.faults import Classifier

if TYPE_CHECKING:
    from thornback.datatrove.executor import RayPipelineExecutor

WAIT_S = 120.0
"""Between two lines that say what is waited for; as datatrove's own."""


@attrs.frozen(kw_only=True, slots=True, eq=False)
class Todo:
    """A pipeline that is to be run."""

    member: RayPipelineExecutor
    count: int
    """Of its incomplete ranks."""
    state: PipelineState


@attrs.frozen(kw_only=True, slots=True, eq=False)
class Work:
    """What this run has to do."""

    chain: Chain
    root: RayPipelineExecutor
    incomplete: Mapping[str, Todo]
    """What is to be run, by name; what others depend on comes first."""

    @property
    def root_runs(self) -> bool:
        """Whether the pipeline whose `run()` was called is itself to be run."""
        return any(todo.member is self.root for todo in self.incomplete.values())

    @property
    def head(self) -> str:
        """The name of the stage under whose directory the job's state is."""
        return self.chain.name(self.root) if self.root_runs else [*self.incomplete][-1]

    def is_stage(self, member: PipelineExecutor) -> bool:
        """Whether a member of the chain is to be run."""
        return self.chain.name(member) in self.incomplete


@attrs.frozen(kw_only=True, slots=True, eq=False)
class Ended:
    """What a job has come to."""

    report: RunReport
    failed: RunFailed | None
    """As `run()` raises it, if it does."""
    stats: PipelineStats | None
    """Of the root, if it is complete and they could be merged."""


def run_chain(root: RayPipelineExecutor) -> PipelineStats:
    """Run all that `root` needs, and return its statistics. Raises as its `run()` does."""
    chain = collect(root)
    own = _own_members(root)
    for member in own:
        member._check()
    _run_stock(chain, own, root)
    claimed: list[RayPipelineExecutor] = []
    before: list[bool] = []
    ran = False
    try:
        _claim(claimed, chain, own, root)
        before = [member._launched for member in claimed]
        for member in claimed:
            member._launched = True
        work = _work(chain, root, claimed)
        if not work.incomplete:
            ran = True
            return readable(_of_complete_root(work))
        ended = _run_job(work)
        ran = True
        return readable(_end(work, ended))
    finally:
        for member, launched in zip(claimed, before, strict=False):  # shorter: interrupted
            member._launched = ran or launched  # what was never run can still be run by others
        for member in claimed:
            member._launch.settle()


def _own_members(root: RayPipelineExecutor) -> list[RayPipelineExecutor]:
    """Return those that we run, with `root` first. What a stock executor depends on is its own
    business."""
    found: dict[int, RayPipelineExecutor] = {}
    waiting: list[PipelineExecutor] = [root]
    while waiting:
        member = waiting.pop(0)
        if is_ours(member) and id(member) not in found:
            found[id(member)] = member
            waiting += dependencies(member)
    return [*found.values()]


def _run_stock(chain: Chain, own: Sequence[RayPipelineExecutor], root: RayPipelineExecutor) -> None:
    """Run the executors of datatrove's that ours depend on, by themselves."""
    children = _children(own)
    for member in chain.members:
        if is_ours(member) or id(member) not in children:
            continue
        if getattr(member, "_launched", False):
            continue
        name = chain.name(member)
        logger.info(f"Launching dependency job {name!r}, a {type(member).__name__}")
        if isinstance(member, StockRayPipelineExecutor):
            _platform(root).prepare()  # it expects a Ray that is initialised
        try:
            member.run()
        except Exception as error:
            if not all(child.run_on_dependency_fail for child in children[id(member)]):
                incomplete = len(_incomplete_of_other(member))
                raise DependencyFailed(
                    name, incomplete, member.world_size, logs_of(member)
                ) from error
            logger.exception(f"Dependency {name!r} failed; going on without it")


def _children(own: Sequence[RayPipelineExecutor]) -> dict[int, list[RayPipelineExecutor]]:
    found: dict[int, list[RayPipelineExecutor]] = {}
    for member in own:
        for parent in dependencies(member):
            found.setdefault(id(parent), []).append(member)
    return found


def _claim(
    picked: list[RayPipelineExecutor],
    chain: Chain,
    own: Sequence[RayPipelineExecutor],
    root: RayPipelineExecutor,
) -> None:
    """Wait until nobody else runs any of them; claim those that are ours to run, which are put into
    `picked` first: the root, what was never launched, and what an earlier run of this root
    launched."""

    def wanted() -> list[Any]:
        picked[:] = [
            member
            for member in own
            if member is root or not member._launched or member._launch.was_claimed_by(root)
        ]
        return [member._launch for member in picked]

    while not claim(wanted, [member._launch for member in own], root):
        for member in own:
            if member._launch.active:
                told = f"{chain.name(member)!r} is run by another thread. Waiting..."
                member._launch.wait(WAIT_S, partial(logger.info, told))


def _work(chain: Chain, root: RayPipelineExecutor, claimed: list[RayPipelineExecutor]) -> Work:
    """Find out what is complete.

    Raises:
        DependencyFailed, PipelineMismatch: as `run()`.
    """
    found: dict[str, Todo] = {}
    for member in chain.members:
        if is_ours(member) and any(member is each for each in claimed):
            name = chain.name(member)
            count = len(member.get_incomplete_ranks(range(member.world_size)))
            state = _state(name, member, count)
            if count:
                found[name] = Todo(member=member, count=count, state=state)
    work = Work(chain=chain, root=root, incomplete=found)
    for todo in found.values():
        _check_others(work, todo.member, claimed)
    for member in claimed:
        if not work.is_stage(member) and member is not root:
            _complete_stats(chain.name(member), member)
    return work


def _state(name: str, member: RayPipelineExecutor, incomplete: int) -> PipelineState:
    """Return what its journal is to do; look first whether its directory is its own.

    Raises:
        PipelineMismatch: another pipeline has completions there, and that is refused.
    """
    wanted = stage_identity(name=name, pipeline=member.pipeline, world_size=member.world_size)
    skip = member.skip_completed and member.world_size > 0
    found = differences(member.logging_dir, wanted) if skip else ()
    # Without completions nothing can be skipped by mistake: the directory begins anew. Those of
    # ranks that a smaller world no longer has are completions, too.
    anew = bool(found) and incomplete == member.world_size
    anew = anew and not markers.completed_ranks(member.logging_dir)
    if not anew:
        check_marks(member, found)
    if skip and incomplete < member.world_size:
        warn_of_params(member, wanted)
    return PipelineState(
        stage=name,
        folder=member.logging_dir,
        identity=wanted,
        skip_completed=member.skip_completed and not anew,
        on_mismatch="adopt" if found else member.on_mismatch,  # it has been said
    )


def _check_others(
    work: Work, child: RayPipelineExecutor, claimed: Sequence[RayPipelineExecutor]
) -> None:
    """Look at the dependencies that others have run."""
    for parent in dependencies(child):
        if any(parent is each for each in claimed):
            continue
        if not (incomplete := len(_incomplete_of_other(parent))):
            continue
        failed = DependencyFailed(
            work.chain.name(parent), incomplete, parent.world_size, logs_of(parent)
        )
        if not child.run_on_dependency_fail:
            raise failed
        logger.warning(f"{work.chain.name(child)} runs though: {failed}")


def _incomplete_of_other(member: PipelineExecutor) -> list[int]:
    member.logging_dir.fs.invalidate_cache()
    found: list[int] = member.get_incomplete_ranks(skip_completed=True)
    return found


def _complete_stats(name: str, member: RayPipelineExecutor) -> None:
    """Write the stats.json of a pipeline whose driver died before it did."""
    if member.world_size and not member.logging_dir.isfile("stats.json"):
        merge(name, member)


def _of_complete_root(work: Work) -> PipelineStats:
    size = work.root.world_size
    logger.info(f"All {size} tasks appear to be completed already. Nothing to run.")
    return of_complete(work.chain.name(work.root), work.root) if size else PipelineStats()


def _run_job(work: Work) -> Ended:
    """Run the job to its end."""
    stages, states = [], []
    for each in work.incomplete.values():
        warn_of_memory(each.member)
    members = {name: todo.member for name, todo in work.incomplete.items()}
    folder = members[work.head].logging_dir
    kept = f"{state_url(folder)}/logs"
    for name, todo in work.incomplete.items():
        member, count, size = todo.member, todo.count, todo.member.world_size
        prefix = f"{name}: " if len(work.incomplete) > 1 else ""
        logger.info(f"{prefix}Will run pipeline on {count} incomplete ranks out of {size} total.")
        tolerant = member.run_on_dependency_fail
        after = work.chain.edges(member, work.is_stage, also_failed=tolerant)
        rank = rank_function(member, logs=kept, time_s=rank_timeout_of(member))
        stages.append(stage_of(member, name, rank, incomplete=count, after=after))
        states.append(todo.state)
    task_logs = TaskLogs(
        {name: member.logging_dir for name, member in members.items()},
        logs=kept,
        storage_options=storage_options(folder),
    )
    keeper = StatsKeeper(members, settled=lambda name: members[name]._launch.settle())
    executor = Executor(
        platform=_platform(work.root),
        state=state_url(folder),
        storage_options=storage_options(folder),
        journal=_journal_factory(states, work.head, partial(save_executors, members)),
        observers=(Announcer(), keeper, task_logs, *work.root.observers),
        companions=work.root.companions,
        tracer_provider=work.root.trace,
        classifier=Classifier() if work.root.classifier is None else work.root.classifier,
        quiet=TaskLines(
            {name: each.tasks_per_job for name, each in members.items() if each.log_first}
        ),
    )
    failed = None
    try:
        report = executor.run(Job(work.head, stages))
    except RunFailed as error:
        logs = {name: logs_of(member) for name, member in members.items()}
        nodes = {name: member.nodes_per_task for name, member in members.items()}
        report, failed = error.report, failure_of(error.report, logs, nodes)
    except BaseException:  # who cancels a run does not wait for a million files
        keeper.close(in_all_s=10.0)
        raise
    finally:
        task_logs.close()
    keeper.close()
    return Ended(report=report, failed=failed, stats=keeper.merged(work.chain.name(work.root)))


def _journal_factory(
    states: Sequence[PipelineState], root: str, save: Callable[[], None]
) -> Callable[[], Any]:
    @asynccontextmanager
    async def opened() -> AsyncIterator[Journal]:
        async with PipelineJournals(states, root=root) as inner:
            yield JournalAfterOpen(inner, save)

    return opened


def _platform(root: RayPipelineExecutor) -> Platform:
    if root.platform is not None:
        return root.platform
    from thornback.executor.on_ray import RayPlatform

    return RayPlatform()


def _end(work: Work, ended: Ended) -> PipelineStats:
    """Return the statistics of the root, or raise."""
    root, name, failed = work.root, work.chain.name(work.root), ended.failed
    done = ended.report.stages[name].done if work.root_runs else root.world_size
    size = root.world_size
    if failed is None:
        logger.info("All tasks have finished.")
    elif done < size or not (work.root_runs or root.run_on_dependency_fail):
        logger.warning(f"Only {done}/{size} tasks completed.")
        if root.on_failure == "raise":
            raise failed from None
        logger.warning(failed.text)
        stats: PipelineStats = markers.merge_stats(root.logging_dir, size).stats
        return stats
    else:
        logger.warning(f"Dependencies failed, and that was allowed. {failed.message}")
    total = ended.stats
    if total is None:  # of what ran they could not be merged, which was said: that is no failure
        total = PipelineStats() if work.root_runs or not size else of_complete(name, root)
    logger.success(total.get_repr(f"All {done}/{size} tasks."))
    return total
