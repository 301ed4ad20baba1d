"""datatrove's `RayPipelineExecutor`, run by thornback: the constructor, and what others read of an
executor. How it runs is in `running`, which rank processes do not import."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from datatrove.executor.base import DistributedEnvVars, PipelineExecutor
from datatrove.executor.ray import RayPipelineExecutor as StockRayPipelineExecutor
from datatrove.io import DataFolderLike
from thornback.datatrove import options, redaction
from thornback.datatrove.launch import Launch
from thornback.executor import UsageError

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

    from datatrove.utils.stats import PipelineStats
    from thornback.executor import Observer
    from thornback.executor.ports import Classifier, Companion, Platform

Strategy: TypeAlias = Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"]

_DRIVERS_OWN: Mapping[str, object] = {
    "classifier": None,
    "trace": None,
    "platform": None,
    "observers": (),
    "companions": (),
}
"""Attributes that only the driver needs, with what a copy has instead: they need not pickle."""
_NOT_CALLED = ("_run_for_rank", "mark_rank_as_completed")
"""What datatrove calls in the ranks. They are still there, to be called by people."""
_DEFAULTS: Mapping[str, object] = {
    "retries": 0,
    "timeout_s": None,
    "memory_growth": None,
    "enforce_memory": False,
    "fresh": False,
    "strategy": None,
    "on_failure": "raise",
    "on_mismatch": "refuse",
    "run_on_dependency_fail": False,
}
"""Options that datatrove's executor does not have: in executor.json only if they are others."""


class RayPipelineExecutor(StockRayPipelineExecutor):  # type: ignore[misc]  # datatrove has no types
    """Runs a datatrove pipeline on Ray, each rank executed at least once and recorded exactly once.

    Takes the place of `datatrove.executor.ray.RayPipelineExecutor`: the same arguments, attributes
    and files. With `depends=` all pipelines that are not complete become one job, so that workers
    stay warm from one to the next, and independent ones run at the same time.

    Args:
        pipeline: steps, functions `(data, rank, world_size)`, or lists of documents.
        tasks: number of ranks.
        workers: most jobs at the same time, each of `tasks_per_job` ranks on `nodes_per_task`
            nodes; -1: as many as fit.
        depends: what has to be complete before: an executor, or a list of them, also stock ones of
            datatrove, which are run first, by themselves.
        skip_completed: leave out ranks that are complete; False: run all ranks again.
        logging_dir: folder for completions, statistics and logs, reached by every node. What is
            ours is in `thornback/` there.
        randomize_start_duration: each rank starts after up to so many seconds.
        cpus_per_task: CPUs that each rank has on each of its nodes: reserved, not enforced.
        mem_per_cpu_gb: GiB for each CPU: reserved; not enforced, but for `enforce_memory`.
        gpus_per_task: GPUs that each rank has on each of its nodes.
        nodes_per_task: nodes that run one rank together; see `strategy`.
        ray_remote_kwargs: Ray's options of actors. Those for resources, labels and runtime_env
            count; one that cannot be followed is refused, with the reason.
        log_first: print on the driver's stderr what the first task of each `tasks_per_job` logs,
            from INFO on. Errors, and what steps print by themselves, are printed in any case, at
            most 100 lines a second. All of it is kept in `thornback/logs/` while tasks run, and in
            `logs/` when they have ended.
        tasks_per_job: ranks that one worker runs at the same time; it reserves as much for each.
        time: seconds that a rank may take, then it is killed and tried again.
        retries: how often a rank is tried again whose own code raised. What the machine did
            (lost nodes, killed processes, no memory) is tried again anyway.
        timeout_s: the same as `time`; give one of them.
        memory_growth: bytes, or text like '500MB': a rank process that has grown by more is
            replaced after its rank: for steps that leak.
        enforce_memory: kill ranks that hold more memory than is reserved for them, and try them
            again with more.
        fresh: a process of its own for each rank.
        strategy: how the nodes of a rank are spread, in Ray's words; None: 'STRICT_SPREAD', each a
            node of the cluster.
        on_failure: 'raise': `run()` raises if ranks failed. 'return': it warns. The default is to
            raise, though datatrove's returns: a script that goes on after a failure, and ends with
            exit code 0, is what nobody asked for, and datatrove's other executors raise as well.
        on_mismatch: if `logging_dir` holds the marks of a pipeline with other steps, or another
            number of tasks: 'refuse', 'warn' and take them, or 'adopt' them.
        run_on_dependency_fail: run even if dependencies end with incomplete ranks.
        classifier: turns errors into faults, which decide what is tried again, as
            `thornback.executor.Executor.classifier`; None: `thornback.faults.Classifier()`. With
            `Classifier(user_rules=(*THROTTLED_RULES, *NETWORK_RULES))` steps are tried again where
            a server asked for patience or a connection failed. This and the following count on the
            executor whose `run()` is called; copies and pickles of an executor are without them.
        trace: makes the spans of the run; None: OpenTelemetry's global provider.
        platform: where it runs; None: Ray.
        observers: are told how the run goes (`thornback.executor.Observer`).
        companions: go along with the run (`thornback.executor.ports.Companion`).

    Raises:
        UsageError: it can never run; the message names the mend.
    """

    driver_only = frozenset({*_DRIVERS_OWN, "_launch"})
    """Attributes that are neither sent to ranks nor written anywhere."""

    def __init__(
        self,
        pipeline: Sequence[Any],
        tasks: int = 1,
        workers: int = -1,
        depends: PipelineExecutor | Sequence[PipelineExecutor] | None = None,
        skip_completed: bool = True,
        logging_dir: DataFolderLike = None,
        randomize_start_duration: int = 0,
        cpus_per_task: float = 1,
        mem_per_cpu_gb: float = 2,
        gpus_per_task: float = 0,
        nodes_per_task: int = 1,
        ray_remote_kwargs: Mapping[str, Any] | None = None,
        log_first: bool = False,
        tasks_per_job: int = 1,
        time: float | None = None,
        *,
        retries: int = 0,
        timeout_s: float | None = None,
        memory_growth: int | str | None = None,
        enforce_memory: bool = False,
        fresh: bool = False,
        strategy: Strategy | None = None,
        on_failure: Literal["raise", "return"] = "raise",
        on_mismatch: Literal["refuse", "warn", "adopt"] = "refuse",
        run_on_dependency_fail: bool = False,
        classifier: Classifier | None = None,
        trace: TracerProvider | None = None,
        platform: Platform | None = None,
        observers: Sequence[Observer] = (),
        companions: Sequence[Companion] = (),
    ) -> None:
        tasks = options.whole("tasks", tasks, least=0)
        if workers != -1:
            workers = options.whole("workers", workers, least=1, mend="; -1 means as many as fit")
        super().__init__(
            pipeline,
            tasks=tasks,
            workers=workers,
            depends=depends,
            skip_completed=skip_completed,
            logging_dir=logging_dir,
            randomize_start_duration=randomize_start_duration,
            cpus_per_task=cpus_per_task,
            mem_per_cpu_gb=mem_per_cpu_gb,
            gpus_per_task=gpus_per_task,
            nodes_per_task=nodes_per_task,
            ray_remote_kwargs=ray_remote_kwargs,
            log_first=log_first,
            tasks_per_job=tasks_per_job,
            time=time,
        )
        self.retries = retries
        self.timeout_s = timeout_s
        self.memory_growth = memory_growth
        self.enforce_memory = enforce_memory
        self.fresh = fresh
        self.strategy = strategy
        self.on_failure = on_failure
        self.on_mismatch = on_mismatch
        self.run_on_dependency_fail = run_on_dependency_fail
        self.classifier = classifier
        self.trace = trace
        self.platform = platform
        self.observers = tuple(observers)
        self.companions = tuple(companions)
        self._launch = Launch()
        self._check()

    def _check(self) -> None:
        """Return if it can run. Attributes may have been changed since it was made, so `run()`
        asks again.

        Raises:
            UsageError: it cannot; the message names the mend.
        """
        from thornback.datatrove.chain import dependencies
        from thornback.datatrove.stages import stage_of
        from thornback.executor.checks import check_classifier

        options.whole("tasks", self.tasks, least=0)
        options.whole("nodes_per_task", self.nodes_per_task, least=1)
        options.whole("tasks_per_job", self.tasks_per_job, least=1)
        options.whole("randomize_start_duration", self.randomize_start_duration, least=0)
        options.whole("retries", self.retries, least=0)
        options.word("on_failure", self.on_failure, ("raise", "return"))
        options.word("on_mismatch", self.on_mismatch, ("refuse", "warn", "adopt"))
        if self.classifier is not None:
            check_classifier(self.classifier)
        words = (None, "PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD")
        options.word("strategy", self.strategy, words)
        options.check_pipeline(self.pipeline, self.nodes_per_task)
        for name in _NOT_CALLED:
            if getattr(type(self), name) is not getattr(StockRayPipelineExecutor, name):
                raise UsageError(
                    f"{type(self).__qualname__}.{name} would never be called: ranks run only the "
                    "pipeline, and the driver marks them when they are recorded. Put what it does "
                    "into a step of the pipeline, or into get_distributed_env"
                )
        dependencies(self)
        if self.tasks:
            stage_of(self, "pipeline", print, incomplete=self.tasks)

    def run(self) -> PipelineStats:
        """Run what is not complete, of this pipeline and of those it depends on; return the merged
        statistics of this one. Blocks; also works in a notebook or a thread.

        `executor.json` is written before the first rank, `stats.json` of each pipeline as soon as
        its last rank is recorded. Ctrl-C in the main thread ends the run in order.

        Raises:
            UsageError: it cannot run as it is; nothing was run.
            PipelineMismatch: a `logging_dir` holds the marks of another pipeline.
            DependencyFailed: a dependency that something else has run has incomplete ranks.
            thornback.executor.RunFailed: ranks failed; the message names them, the causes and the
                logs. Not with `on_failure='return'`: then it warns, and returns the statistics of
                the ranks that are complete.
            thornback.executor.RunCancelled: it was cancelled; what is complete stays so.
            LoggingDirInUse: another run has a `logging_dir` in use.
            thornback.executor.JournalError: a `logging_dir` cannot be read or written.
        """
        from thornback.datatrove.running import run_chain

        return run_chain(self)

    def _reserved(self) -> options.Reserved:
        """Return what each rank has on each of its nodes.

        Raises:
            UsageError: an argument, or an option of Ray, makes no sense.
        """
        return options.reserved(
            cpus_per_task=self.cpus_per_task,
            mem_per_cpu_gb=self.mem_per_cpu_gb,
            gpus_per_task=self.gpus_per_task,
            ray_remote_kwargs=self.ray_remote_kwargs,
        )

    def get_distributed_env(self, node_rank: int = -1) -> DistributedEnvVars:
        """Return what steps find in their environment: what is really reserved, as whole numbers,
        since steps read them by `int()`."""
        has = self._reserved()
        variables = super().get_distributed_env(node_rank)
        variables["datatrove_cpus_per_task"] = options.as_whole(has.cpus)
        variables["datatrove_mem_per_cpu"] = options.as_whole(has.mem_per_cpu_gb)
        variables["datatrove_gpus_on_node"] = options.as_whole(has.gpus)
        return variables

    def get_incomplete_ranks(
        self, ranks: Sequence[int] | None = None, skip_completed: bool | None = None
    ) -> list[int]:
        """Return the ranks that are not complete, by a fresh listing.

        Args:
            ranks: which to look at; None: all.
            skip_completed: False: all of them; None: as the executor's own.
        """
        self.logging_dir.fs.invalidate_cache()  # others write there, too
        found: list[int] = super().get_incomplete_ranks(ranks, skip_completed)
        return found

    def is_rank_completed(self, rank: int) -> bool:
        """Return whether a rank is complete, as the store says now; always False without
        `skip_completed`."""
        self.logging_dir.fs.invalidate_cache()
        return bool(super().is_rank_completed(rank))

    def to_json(self, indent: int | None = 4) -> str:
        """Return what is written to executor.json. Changes nothing."""
        return json.dumps(redaction.plain(self), indent=indent)

    def save_executor_as_json(self, indent: int | None = 4) -> None:
        """Write executor.json: as datatrove does, but without secrets."""
        text = self.to_json(indent)  # first: one that cannot be made must not leave half a file
        with self.logging_dir.open("executor.json", "w") as file:
            file.write(text)

    def _recorded(self) -> dict[str, object]:
        """Return the attributes that executor.json has."""
        return {
            name: value
            for name, value in vars(self).items()
            if name not in self.driver_only and not (name in _DEFAULTS and value == _DEFAULTS[name])
        }

    def __getstate__(self) -> dict[str, object]:
        """Leave out what only this driver has."""
        state = {**vars(self), **_DRIVERS_OWN}
        state.pop("_launch", None)  # ranks are sent a copy that has lost it already
        return state

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._launch = Launch()
