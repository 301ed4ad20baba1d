"""Turns a job into what the parts need: the graph, the scheduler's stages, requests for gangs,
assignments. Pure."""

from __future__ import annotations

import math
import pickle
from collections.abc import Collection, Iterator, Mapping, Sequence

import attrs

from thornback.executor import pickling
from thornback.executor.edges import edge_to
from thornback.executor.errors import UsageError
from thornback.executor.job import Job, Stage
from thornback.executor.names import MAIN, is_main
from thornback.executor.paths import STAGING, located
from thornback.executor.ports import Places, Ranks
from thornback.executor.program import SentProgram, StageProgram
from thornback.executor.runtime_env import resolved
from thornback.faults import Fault, RetryPolicy
from thornback.graph import Dag, GraphError, Node, depths, resolve
from thornback.placement import Bundle, GangRequest, Strategy
from thornback.placement.bundles import resources_of
from thornback.pool import Assignment, FinishedWhen, WorkerSpec
from thornback.scheduler import SchedulerParams, StagePlan, ports
from thornback.scheduler.commands import Dispatch, ShapeKey

PROGRAM_MODULE = "thornback.executor.program"
_INSTALLS = ("conda", "container", "image_uri", "pip", "py_modules", "uv", "working_dir")
"""Fields of a runtime_env that make a worker wait until something is fetched."""
_RAY_SETUP_S = 600.0
"""Ray's default of `setup_timeout_seconds`. Source: ray 2.60 `DEFAULT_RUNTIME_ENV_TIMEOUT_SECONDS`.
"""


@attrs.frozen(kw_only=True, slots=True)
class Settings:
    """What an executor adds to a job."""

    state_url: str = attrs.field(repr=False)
    cwd: str
    protocols: Collection[str] = ()
    """Of URLs, those that fsspec knows."""
    max_gangs: int | None = None
    env: Mapping[str, str] = attrs.field(factory=dict, repr=False)
    runtime_env: Mapping[str, object] = attrs.field(factory=dict, repr=False)
    seed: int = 0
    retry_failed: bool = True
    scheduler: SchedulerParams = attrs.field(factory=SchedulerParams)


@attrs.frozen(kw_only=True, slots=True)
class _Shape:
    """Stages that are equal in these share warm gangs."""

    cpus: float
    gpus: float
    memory: int | None
    enforce_memory: bool
    resources: tuple[tuple[str, float], ...]
    accelerator: str
    labels: tuple[tuple[str, str], ...]
    nodes: int
    slots: int
    strategy: Strategy | None
    runtime_env: Mapping[str, object] = attrs.field(hash=False, repr=False)
    """Compared by value; what is in it need not be hashable."""


def _shape(stage: Stage) -> _Shape:
    strategy = Strategy(stage.strategy) if stage.strategy else Strategy.STRICT_SPREAD
    return _Shape(
        cpus=stage.cpus,
        gpus=stage.gpus,
        memory=stage.memory,
        enforce_memory=stage.enforce_memory,
        resources=tuple(sorted(stage.resources.items())),
        accelerator=stage.accelerator,
        labels=tuple(sorted(stage.labels.items())),
        nodes=stage.nodes,
        slots=stage.slots,
        strategy=strategy if stage.nodes > 1 else None,  # one bundle cannot be spread
        runtime_env=stage.runtime_env,
    )


def _policy(stage: Stage) -> RetryPolicy:
    own = stage.retry
    if own is None:
        own = RetryPolicy(retries=stage.retries, max_retries=stage.max_retries)
    return own if own.memory_bytes is not None else own.__replace__(memory_bytes=stage.memory)


class RunPlan:
    """A checked job. Raises `UsageError`, naming the mend, for whatever can be known to be wrong
    before it runs."""

    def __init__(self, job: Job, settings: Settings) -> None:
        self.job = job
        self.stages = job.stages
        self.settings = settings
        try:
            names = [(stage.name, [edge.stage for edge in stage.edges]) for stage in job.stages]
            self._parents = resolve(names, job.name)
        except GraphError as error:
            raise UsageError(str(error)) from error
        self.places()  # refuses what `Job.outputs` cannot be
        self.index = {stage.name: number for number, stage in enumerate(job.stages)}
        self.world_sizes = {stage.name: stage.world_size for stage in job.stages}
        own = {
            stage.name: tuple(e.stage for e in stage.edges if e.one_to_one and e.results)
            for stage in job.stages
        }
        self.own_parents = {name: parents for name, parents in own.items() if parents}
        """By name: the stages that it comes one to one after, and may read the results of."""
        whole = {
            stage.name: tuple(e.stage for e in stage.edges if not e.one_to_one and e.results)
            for stage in job.stages
        }
        self.whole_parents = {name: parents for name, parents in whole.items() if parents}
        """By name: the stages that it may read all results of."""
        self._nodes = [self._node(stage) for stage in job.stages]
        shapes = [_shape(stage) for stage in job.stages]
        self._shapes = list(dict.fromkeys(shapes))
        numbers = {shape: number for number, shape in enumerate(self._shapes)}
        self._shape_of = [numbers[shape] for shape in shapes]
        """By stage, the position in `_shapes`."""
        self._modules = self._preload()
        self._runtime_envs = [
            resolved(_over(settings.runtime_env, shape.runtime_env), settings.cwd)
            for shape in self._shapes
        ]
        self.programs = {
            f"program:{number}": self._program(number) for number in self.index.values()
        }
        self._items = [self._pickled_items(stage) for stage in job.stages]

    def places(self) -> Places:
        """Return where outputs may be.

        Raises:
            UsageError: one of `Job.outputs` is neither a path nor a URL.
        """
        settings = self.settings
        try:
            declared = [
                located(each, settings.cwd, settings.protocols) for each in self.job.outputs
            ]
        except ValueError as error:
            raise UsageError(f"Job(outputs={list(self.job.outputs)!r}): {error}") from None
        return Places(state=settings.state_url, folder=settings.cwd, declared=declared)

    def dag(self) -> Dag:
        """Return a fresh graph."""
        return Dag(self._nodes)

    def _node(self, stage: Stage) -> Node:
        edges = []
        for after in stage.edges:
            position = self.index[after.stage]
            size = self.stages[position].world_size
            if after.one_to_one and size != stage.world_size:
                raise UsageError(
                    f"Stage {stage.name!r} has {stage.world_size} ranks and comes one to one after "
                    f"{after.stage!r}, which has {size}: give both as many, or use a barrier"
                )
            edges.append(edge_to(after, position, size))
        return Node(stage.world_size, tuple(edges), stage.failed_allowed)

    def scheduler_stages(
        self, policies: Sequence[ports.RetryPolicy[Fault]]
    ) -> list[StagePlan[Fault]]:
        """Return the stages as the scheduler sees them: deeper critical path first."""
        priorities = depths(self._parents)
        return [
            StagePlan(
                world_size=stage.world_size,
                shape=self._shape_of[number],
                slots=stage.slots,
                nodes=stage.nodes,
                max_gangs=self._max_gangs(stage),
                policy=policies[number],
                priority=priorities[number],
                max_failed=stage.failed_allowed,
                fail_fast=stage.fail_fast_after,
            )
            for number, stage in enumerate(self.stages)
        ]

    def policies(self) -> list[RetryPolicy]:
        """Return the retry policy of each stage."""
        return [_policy(stage) for stage in self.stages]

    def request(self, key: ShapeKey) -> GangRequest:
        """Return what to lease for a gang of this shape."""
        shape, slots = self._shapes[key.base], self.slots(key)
        return GangRequest(
            bundle=Bundle(
                cpus=shape.cpus * slots,
                gpus=shape.gpus * slots,
                memory_bytes=(key.memory_bytes or shape.memory or 0) * slots,
                resources={name: amount * slots for name, amount in shape.resources},
                accelerator=shape.accelerator,
            ),
            labels=(dict(shape.labels),),
            nodes=shape.nodes,
            strategy=shape.strategy,
            name=f"thornback-{self.job.name}",
        )

    def stage_of_shape(self, key: ShapeKey) -> str:
        """Return the first stage that runs in gangs of this shape: for people."""
        return self.stages[self._shape_of.index(key.base)].name

    def runtime_envs(self) -> Iterator[tuple[str, Mapping[str, object]]]:
        """Yield each runtime_env that is not empty, with the name of a stage that has it."""
        for base, env in enumerate(self._runtime_envs):
            if env:
                yield self.stage_of_shape(ShapeKey(base)), env

    def start_s(self, key: ShapeKey, start_s: float) -> float:
        """Return how long the workers of such a gang may take to start.

        What their runtime_env installs comes on top: `setup_timeout_seconds` of its `config`, or
        Ray's default. So Ray's own time-out, which says what it was doing, comes first.
        """
        env = self._runtime_envs[key.base]
        if not any(env.get(name) for name in _INSTALLS):
            return start_s
        config = env.get("config")
        said = config.get("setup_timeout_seconds") if isinstance(config, Mapping) else None
        if isinstance(said, int) and said > 0:  # -1 means no limit, which no phase of ours has
            return start_s + said
        return start_s + _RAY_SETUP_S

    def slots(self, key: ShapeKey) -> int:
        """Return the slots of a gang: one where memory was raised as a remedy."""
        return 1 if key.memory_bytes is not None else self._shapes[key.base].slots

    def worker_spec(self, key: ShapeKey) -> WorkerSpec:
        """Return what the workers of such a gang are like."""
        request = self.request(key)
        shape = self._shapes[key.base]
        limit = key.memory_bytes or shape.memory
        return WorkerSpec(
            slots=self.slots(key),
            cpus=request.bundle.cpus,
            gpus=request.bundle.gpus,
            memory_bytes=request.bundle.memory_bytes,
            resources=_custom(request.bundle),
            rank_memory_bytes=limit if shape.enforce_memory else None,
            env=self.settings.env,
            preload=self._modules,
            runtime_env=self._runtime_envs[key.base],
        )

    def assignment(
        self,
        command: Dispatch,
        epoch: str,
        traceparent: str,
        restored: tuple[bytes | None, ...] = (),
        handed: Sequence[Mapping[str, str]] = (),
    ) -> Assignment:
        """Return the work that a command asks for.

        Args:
            command: which ranks, and in which assignment.
            epoch: of the assignment.
            traceparent: of the assignment; empty: none.
            restored: what each of its ranks saved in an earlier attempt, or nothing at all.
            handed: for each of its ranks, the results of the rank of the same number in the stages
                that it comes one to one after: JSON text by stage. Nothing at all: after none.
        """
        stage = self.stages[command.stage]
        timeout_s = stage.timeout_s and stage.timeout_s * command.timeout_factor
        return Assignment(
            assignment=command.assignment,
            epoch=epoch,
            stage=command.stage,
            ranks=command.ranks,
            attempt=command.attempt,
            program=f"program:{command.stage}",
            args=self._args(command.stage, command.ranks, handed),
            inputs=tuple(self._results_of(stage).values()),
            timeout_s=timeout_s,
            setup_timeout_s=stage.setup_timeout_s,
            traceparent=traceparent,
            restored=restored,
            max_ranks_per_child=1 if stage.fresh else stage.max_ranks_per_child,
            max_growth_bytes=stage.max_growth,
            rendezvous=stage.rendezvous,
            finished_when=FinishedWhen(stage.finished_when),
            grace_s=stage.grace_s,
        )

    def _args(
        self, stage: int, ranks: Ranks, handed: Sequence[Mapping[str, str]]
    ) -> tuple[bytes, ...]:
        items = self._items[stage]
        own = tuple(items[rank] for piece in ranks for rank in piece) if items else ()
        if not handed:
            return own
        pairs = zip(own or (b"",) * len(handed), handed, strict=True)
        return tuple(pickle.dumps(pair) for pair in pairs)

    def _results_of(self, stage: Stage) -> dict[str, str]:
        """Return the keys of the results that a whole stage may read, by name of the parent."""
        parents = self.whole_parents.get(stage.name, ())
        return {name: f"results:{self.index[name]}" for name in parents}

    def _max_gangs(self, stage: Stage) -> int | None:
        limits = [n for n in (stage.max_gangs, self.settings.max_gangs) if n is not None]
        most = math.ceil(stage.world_size / stage.slots)
        return min([*limits, most])

    def _preload(self) -> tuple[str, ...]:
        """Return what rank processes start with: the module of each function, and those that it
        names itself, in `__thornback_preload__`, for what it will import or unpickle. They must
        start no threads: the fork server would begin again without any."""
        modules = [PROGRAM_MODULE]
        for stage in self.stages:
            modules.append(getattr(stage.fn, "__module__", None) or MAIN)
            modules += getattr(stage.fn, "__thornback_preload__", ())
        return tuple(name for name in dict.fromkeys(modules) if not is_main(name))

    def _program(self, number: int) -> bytes:
        stage = self.stages[number]
        program = StageProgram(
            stage=stage.name,
            world_size=stage.world_size,
            fn=stage.fn,
            has_items=stage.items is not None,
            setup_fn=stage.setup,
            teardown_fn=stage.teardown,
            staging=f"{self.settings.state_url.rstrip('/')}/{STAGING}",
            cwd=self.settings.cwd,
            protocols=frozenset(self.settings.protocols),
            parents=self._results_of(stage),
            own_parents=self.own_parents.get(stage.name, ()),
        )
        data = _pickled(program, f"Stage {stage.name!r}: its function does not pickle")
        return pickle.dumps(SentProgram(stage=stage.name, data=data))

    def _pickled_items(self, stage: Stage) -> list[bytes]:
        return [
            _pickled(item, f"Stage {stage.name!r}: item {rank} does not pickle")
            for rank, item in enumerate(stage.items or ())
        ]


def _over(base: Mapping[str, object], own: Mapping[str, object]) -> dict[str, object]:
    """Return the runtime_env of a stage over that of the executor."""
    merged = {**base, **own}
    variables, more = base.get("env_vars"), own.get("env_vars")
    if isinstance(variables, Mapping) and isinstance(more, Mapping):
        merged["env_vars"] = {**variables, **more}
    return merged


def _custom(bundle: Bundle) -> dict[str, float]:
    """Return what the bundle reserves and a `WorkerSpec` has no field for: the worker has to ask
    for it, too."""
    own = ("CPU", "GPU", "memory")
    return {name: amount for name, amount in resources_of(bundle).items() if name not in own}


def _pickled(value: object, what: str) -> bytes:
    try:
        return pickling.dumps(value)
    except Exception as error:  # a user's object may raise anything from __reduce__
        raise UsageError(
            f"{what} ({type(error).__name__}: {error}): open files, locks and connections where "
            "they are used, in the function or in the stage's setup="
        ) from error


def merge_ranks(ranks: Sequence[int]) -> Ranks:
    """Return ascending ranges for ranks in any order, each once."""
    pieces: list[range] = []
    for rank in sorted(set(ranks)):
        if pieces and pieces[-1].stop == rank:
            pieces[-1] = range(pieces[-1].start, rank + 1)
        else:
            pieces.append(range(rank, rank + 1))
    return tuple(pieces)
