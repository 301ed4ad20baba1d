"""What a user submits: a job of stages. Values, checked when they are made; nothing here runs
anything."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias, TypeVar

import attrs

from thornback.executor.checks import check_stage
from thornback.executor.confidential import without_secrets
from thornback.executor.edges import After, Parents, allowed, parents_of
from thornback.executor.errors import UsageError
from thornback.executor.fingerprint import digest_of_items, fingerprint
from thornback.executor.names import function_name
from thornback.executor.ports import Identity, StageIdentity
from thornback.executor.program import RankContext
from thornback.faults import RetryPolicy

RankFunction: TypeAlias = Callable[..., Any]
"""`fn(ctx)` with `ranks=`, `fn(ctx, item)` with `items=`. Its value must be JSON."""

T = TypeVar("T")
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_UNITS |= {"KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


def parse_memory(value: int | str | None, field: str = "memory") -> int | None:
    """Return bytes for `3221225472`, `"3GiB"` or `"500MB"`; None stays None. `field` is named in
    errors."""
    if value is None:
        return None
    if isinstance(value, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?I?)B?\s*", value.upper())
        if match is None or match[2] not in _UNITS:
            raise UsageError(f"{field}={value!r}: expected bytes or text like '3GiB' or '500MB'")
        value = int(float(match[1]) * _UNITS[match[2]])
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise UsageError(f"{field}={value!r}: expected a positive number of bytes or '3GiB'")
    return value


def _growth(value: int | str | None) -> int | None:
    return parse_memory(value, "max_growth")


def _resources(value: Mapping[str, float]) -> dict[str, float]:
    return _by_name(value, "resources")


def _labels(value: Mapping[str, str]) -> dict[str, str]:
    return _by_name(value, "labels")


def _runtime_env(value: Mapping[str, object]) -> dict[str, object]:
    return _by_name(value, "runtime_env")


def _by_name(value: Mapping[str, T], field: str) -> dict[str, T]:
    if not isinstance(value, Mapping):
        raise UsageError(f"{field}={value!r}: expected a mapping by name")
    return dict(value)


def _sequence(items: Sequence[Any] | None) -> tuple[Any, ...] | None:
    if items is None:
        return None
    if isinstance(items, str | bytes):
        raise UsageError(f"items={items!r}: expected a list with one item per rank, not text")
    return tuple(items)


@attrs.frozen(slots=True)
class Stage:
    """One function, run for ranks `0..world_size-1`. Resources are **per rank**.

    Raises:
        UsageError: it can never run; the message names the mend.
    """

    name: str
    """Unique in its job; letters, digits, `_`, `-` and `.`, since it names folders."""
    fn: RankFunction
    """`fn(ctx)`, with `items` `fn(ctx, item)`; ctx is a `RankContext`. What it returns must be JSON
    of at most 64 KiB."""
    ranks: int | None = attrs.field(default=None, kw_only=True)
    """World size, for `fn(ctx)`. Give this or `items`; neither means one rank."""
    items: tuple[Any, ...] | None = attrs.field(default=None, kw_only=True, converter=_sequence)
    """One item per rank, for `fn(ctx, item)`."""
    after: Parents = attrs.field(default=(), kw_only=True, converter=parents_of)
    """Stages that must end first, by name; their results are `ctx.results(name)`. `After(name)`
    says more: rank by rank, or on another condition than its `max_failed`."""
    cpus: float = attrs.field(default=1, kw_only=True)
    """Logical CPUs: reserved, not enforced."""
    gpus: float = attrs.field(default=0, kw_only=True)
    """Each rank process sees its own in CUDA_VISIBLE_DEVICES."""
    memory: int | None = attrs.field(default=None, kw_only=True, converter=parse_memory)
    """Bytes (or '3GiB') reserved for a rank, and its limit (but see `enforce_memory`): a rank over
    it is killed as OOM and tried with more."""
    enforce_memory: bool = attrs.field(default=True, kw_only=True)
    """False: `memory` is only reserved; what a rank holds is not looked at. If the machine runs out
    of it, the rank is tried with more reserved, and again without a limit."""
    resources: Mapping[str, float] = attrs.field(factory=dict, kw_only=True, converter=_resources)
    """Custom resources by name, as the cluster's nodes declare them."""
    accelerator: str = attrs.field(default="", kw_only=True)
    """Only nodes with this kind of accelerator, such as 'A100', in Ray's words; empty: any."""
    labels: Mapping[str, str] = attrs.field(factory=dict, kw_only=True, converter=_labels)
    """Only nodes with these labels: by name, 'value', '!value', 'in(a,b)' or '!in(a,b)' (the
    grammar is Ray's)."""
    runtime_env: Mapping[str, object] = attrs.field(
        factory=dict, kw_only=True, converter=_runtime_env, repr=without_secrets
    )
    """Ray's, over the executor's: the stage's word counts, and its `env_vars` are added to the
    executor's. Stages with another one never share workers. Refused by other platforms."""
    nodes: int = attrs.field(default=1, kw_only=True)
    """Nodes that run one rank together, each with these resources; then `processes` is 1. Each has
    THORNBACK_ADDRESSES (of all of them, in order, with commas) and THORNBACK_MASTER_PORT (free on
    the first)."""
    strategy: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] | None = attrs.field(
        default=None, kw_only=True
    )
    """How the bundles of several nodes are spread, in Ray's words; None: STRICT_SPREAD, each on a
    node of its own."""
    rendezvous: Literal["", "torch"] = attrs.field(default="", kw_only=True)
    """'torch': the rank has RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT in its environment, as
    `torch.distributed` wants them; the ranks there are nodes."""
    finished_when: Literal["all", "leader"] = attrs.field(default="all", kw_only=True)
    """When a rank of several nodes is finished: 'all' have returned, or the 'leader' (node 0) has:
    the others are ended then, and what they come to does not count."""
    grace_s: float = attrs.field(default=30.0, kw_only=True)
    """With 'leader': seconds that the others may go on after it."""
    processes: int = attrs.field(default=1, kw_only=True)
    """Ranks that one worker runs at the same time; its bundle is that much larger."""
    timeout_s: float | None = attrs.field(default=None, kw_only=True)
    """Seconds. A rank that runs longer is killed and tried again; None: no limit."""
    retries: int = attrs.field(default=0, kw_only=True)
    """Retries of a rank whose own code raised."""
    max_retries: int | Literal["unbounded"] | None = attrs.field(default=None, kw_only=True)
    """Caps the retries of a rank for every kind of fault at once; None: the default table.
    'unbounded': what is retried at all (with `retries` or rule sets, also errors of its own code)
    is retried for ever, but for poison, for what runs out of all memory, and for a stage in which
    nothing gets through any more, unless it is its own code that raises: that has no end then."""
    max_gangs: int | None = attrs.field(default=None, kw_only=True)
    """Gangs at the same time; None: as many as fit (or what the executor says)."""
    max_failed: float = attrs.field(default=0, kw_only=True)
    """Ranks that may fail or be skipped: a count, or a fraction of the world size below 1."""
    retry: RetryPolicy | None = attrs.field(default=None, kw_only=True)
    """Budgets, pauses and remedies for every kind of fault, instead of `retries` and `max_retries`;
    None: the default table with these two."""
    fail_fast: int | None = attrs.field(default=20, kw_only=True)
    """Stop the stage when so many ranks were given up for the same error of its own code (type and
    innermost frame of user code) and none has succeeded, in this run or an earlier one; stages of
    less than 40 ranks stop at half of them, at least 3. Running ranks finish, the rest is skipped.
    None: never. Off by itself where `max_failed` allows as many."""
    setup: Callable[[RankContext], Any] | None = attrs.field(default=None, kw_only=True)
    """Called once per process before its first rank; its value is `ctx.setup_value`. A process in
    which it breaks is replaced (see the README), and then it is called again."""
    setup_timeout_s: float = attrs.field(default=900.0, kw_only=True)
    """Seconds, from the start of the process to the end of `setup`."""
    teardown: Callable[[Any], None] | None = attrs.field(default=None, kw_only=True)
    """Called with what `setup` returned, once per process that ends in order (not one that dies or
    is killed); what it raises goes to the log."""
    fresh: bool = attrs.field(default=False, kw_only=True)
    """A process of its own for each rank, forked from a clean one. Otherwise a rank meets what an
    earlier one left in its process: modules and their state, `sys.path`, threads, resource limits.
    The working directory, umask, environment, signal handlers and signal mask are always put back
    to what they were after `setup`."""
    max_ranks_per_child: int | None = attrs.field(default=None, kw_only=True)
    """A process is replaced after so many ranks; None: no limit."""
    max_growth: int | None = attrs.field(default=None, kw_only=True, converter=_growth)
    """A process is replaced after a rank that leaves it larger by more bytes (or '500MB') than it
    was after `setup`: for functions that leak. None: no limit."""
    version: str = attrs.field(default="", kw_only=True)
    """Change it when the function changes, to invalidate recorded results. What is bound to the
    functions of a stage (arguments of a partial, variables of an enclosing function, defaults,
    attributes) is compared by itself; what they read from globals, files or the environment is
    not."""

    def __attrs_post_init__(self) -> None:
        """Refuse what can never run, naming the mend."""
        check_stage(self)

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        if self.items is not None:
            return len(self.items)
        return 1 if self.ranks is None else self.ranks

    @property
    def failed_allowed(self) -> int:
        """`max_failed` as a number of ranks."""
        return allowed(self.max_failed, self.world_size)

    @property
    def fail_fast_after(self) -> int | None:
        """`fail_fast` for this many ranks; None: it is off."""
        if self.fail_fast is None:
            return None
        few = max(3, self.world_size // 2) if self.world_size < 40 else self.fail_fast
        limit = min(self.fail_fast, few)
        return None if self.failed_allowed >= limit else limit

    @property
    def edges(self) -> tuple[After, ...]:
        """What it comes after, a bare name as `After(name)`."""
        return tuple(each if isinstance(each, After) else After(each) for each in self.after)

    @property
    def slots(self) -> int:
        """Ranks that one gang runs at the same time."""
        return 1 if self.nodes > 1 else self.processes


def _stages(stages: Sequence[Stage]) -> tuple[Stage, ...]:
    return tuple(stages)


def _outputs(places: Sequence[str | os.PathLike[str]]) -> tuple[str, ...]:
    if isinstance(places, str | bytes):
        raise UsageError(f"outputs={places!r}: expected a list of folders or URLs, not text")
    return tuple(os.fspath(place) for place in places)


@attrs.frozen(slots=True)
class Job:
    """Stages in the order of submission, which breaks ties of priority. Their order of running is
    `after`.

    Raises:
        UsageError: it has no stages. Unknown parents and cycles are found by `Executor.run`.
    """

    name: str
    """For people, and part of the job's identity."""
    stages: tuple[Stage, ...] = attrs.field(converter=_stages)
    outputs: tuple[str, ...] = attrs.field(default=(), kw_only=True, converter=_outputs)
    """Local folders and URL prefixes in which ranks publish, besides the driver's folder and the
    folder of `state`. A run that was killed has recorded outputs that still have to be moved to
    their final names: the next one moves them to such places only, and runs other ranks again."""

    def __attrs_post_init__(self) -> None:
        """Refuse an empty job; names, parents and cycles are checked when the graph is built."""
        if not self.stages:
            raise UsageError(f"job {self.name!r} has no stages: give at least one Stage(name, fn)")
        for stage in self.stages:
            if not isinstance(stage, Stage):
                raise UsageError(f"job {self.name!r}: {stage!r} is not a Stage(name, fn, ...)")


def identity_of(job: Job) -> Identity:
    """Return what makes another run a run of the same job."""
    return Identity(job=job.name, stages=tuple(map(_identity_of_stage, job.stages)))


def _identity_of_stage(stage: Stage) -> StageIdentity:
    bound = fingerprint(stage.fn, setup=stage.setup, teardown=stage.teardown)
    params, items_digest = dict(bound.params), ""
    if stage.items is not None:
        items_digest, whole = digest_of_items(stage.items)
        if not whole:
            params["items"] = ""
    return StageIdentity(
        name=stage.name,
        world_size=stage.world_size,
        function=function_name(stage.fn),
        version=stage.version,
        items_digest=items_digest,
        parents=tuple(dict.fromkeys(edge.stage for edge in stage.edges)),
        params=params,
        code=bound.code,
    )
