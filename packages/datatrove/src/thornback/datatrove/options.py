"""From datatrove's arguments and Ray's options to the resources of a stage, or a refusal that says
why and what to do instead. Pure.

The names of Ray's options are those of actors in ray 2.60 (`_common/ray_option_utils.py`), and
those of tasks, which people give as well: datatrove passed them on, and hung.
"""

from __future__ import annotations

import difflib
import math
import operator
from collections.abc import Mapping, Sequence
from typing import SupportsIndex, cast

import attrs

from thornback.executor import UsageError

GIB = 1024**3
MAPPED = (
    "num_cpus",
    "num_gpus",
    "memory",
    "resources",
    "accelerator_type",
    "label_selector",
    "runtime_env",
)
"""Ray's options that reach the stage."""

_RECOVERY = "thornback recovers what is lost, and counts; give retries= for errors of your own code"
_PLACED = (
    "every worker has a placement group of its own; give strategy= for several nodes per task, "
    "label_selector, resources or accelerator_type to choose nodes"
)
_NAMED = "there are several workers, which come and go, and thornback names them"
_ONE = "a worker answers thornback alone; give tasks_per_job= for several ranks in one worker"
_STREAM = "ranks return their statistics, no objects or streams"
_REFUSED: Mapping[str, tuple[tuple[object, ...], str]] = {
    "max_restarts": ((None, 0), _RECOVERY),
    "max_task_retries": ((None, 0), _RECOVERY),
    "max_retries": ((None,), _RECOVERY),
    "retry_exceptions": ((None, False), _RECOVERY),
    "scheduling_strategy": ((None, "DEFAULT"), _PLACED),
    "placement_group": ((None, "default"), _PLACED),
    "placement_group_bundle_index": ((None, -1), _PLACED),
    "placement_group_capture_child_tasks": ((None, False), _PLACED),
    "fallback_strategy": ((None, []), _PLACED),
    "_labels": ((None, {}), _PLACED),
    "name": ((None,), _NAMED),
    "namespace": ((None,), _NAMED),
    "get_if_exists": ((None, False), _NAMED),
    "lifetime": ((None, "non_detached"), "workers end with the run, so that nothing is left over"),
    "max_concurrency": ((None, 1), _ONE),
    "concurrency_groups": ((None, [], {}), _ONE),
    "max_pending_calls": ((None, -1), _ONE),
    "allow_out_of_order_execution": ((None, False), _ONE),
    "max_calls": ((None, 0), "give fresh=True for a process of its own for each rank"),
    "num_returns": ((None, 1), _STREAM),
    "enable_tensor_transport": ((None, False), _STREAM),
    "_generator_backpressure_num_objects": ((None, -1), _STREAM),
    "_actor_generator_backpressure_num_objects": ((None, -1), _STREAM),
    "_num_objects_per_yield": ((None, 1), _STREAM),
    "object_store_memory": ((None, 0), "ranks keep no objects in Ray's store"),
    "enable_task_events": ((None, True), "Ray's events of workers cannot be turned off here"),
}
"""By name: the values that change nothing and are accepted, and why any other is not."""


@attrs.frozen(kw_only=True, slots=True)
class Reserved:
    """What each rank has, on each of its nodes."""

    cpus: float
    gpus: float
    memory_bytes: int | None
    """None: none is reserved."""
    mem_per_cpu_gb: float
    """GiB for each CPU, as steps are told."""
    resources: Mapping[str, float] = attrs.field(factory=dict)
    accelerator: str = ""
    labels: Mapping[str, str] = attrs.field(factory=dict)
    runtime_env: Mapping[str, object] = attrs.field(factory=dict, repr=False)


def reserved(
    *,
    cpus_per_task: float,
    mem_per_cpu_gb: float,
    gpus_per_task: float,
    ray_remote_kwargs: Mapping[str, object] | None = None,
) -> Reserved:
    """Return what is to be reserved; Ray's options count more than datatrove's arguments.

    Raises:
        UsageError: a number that is none, or an option of Ray that cannot be followed.
    """
    for name, value in (
        ("cpus_per_task", cpus_per_task),
        ("mem_per_cpu_gb", mem_per_cpu_gb),
        ("gpus_per_task", gpus_per_task),
    ):
        amount(name, value)
    options = checked_remote_kwargs(ray_remote_kwargs)
    cpus = amount("ray_remote_kwargs['num_cpus']", options.get("num_cpus", cpus_per_task))
    gpus = amount("ray_remote_kwargs['num_gpus']", options.get("num_gpus", gpus_per_task))
    memory, per_cpu = int(mem_per_cpu_gb * cpus_per_task * GIB), mem_per_cpu_gb
    if "memory" in options:
        memory = int(amount("ray_remote_kwargs['memory']", options["memory"]))
        per_cpu = memory / GIB / cpus if cpus else mem_per_cpu_gb
    return Reserved(
        cpus=cpus,
        gpus=gpus,
        memory_bytes=memory or None,
        mem_per_cpu_gb=per_cpu,
        resources=cast("Mapping[str, float]", _by_name(options, "resources")),
        accelerator=_text(options, "accelerator_type"),
        labels=cast("Mapping[str, str]", _by_name(options, "label_selector")),
        runtime_env=_by_name(options, "runtime_env"),
    )


def checked_remote_kwargs(given: Mapping[str, object] | None) -> dict[str, object]:
    """Return those of the options that are mapped and given.

    Raises:
        UsageError: one that is unknown, or cannot be followed.
    """
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise UsageError(
            f"ray_remote_kwargs={given!r}: expected options by name, such as "
            "{'resources': {'tape': 1}}"
        )
    for name, value in given.items():
        _check_option(name, value)
    return {name: given[name] for name in MAPPED if given.get(name) is not None}


def _check_option(name: str, value: object) -> None:
    if name in MAPPED:
        return
    if name not in _REFUSED:
        known = [*MAPPED, *_REFUSED]
        near = difflib.get_close_matches(str(name), known, n=1)
        meant = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(MAPPED)}"
        raise UsageError(f"ray_remote_kwargs: Ray has no option {name!r} for actors: {meant}")
    accepted, why = _REFUSED[name]
    # 0 is not False here: Ray tells them apart, too.
    if not any(value == each and type(value) is type(each) for each in accepted):
        raise UsageError(
            f"ray_remote_kwargs={{{name!r}: {value!r}}} cannot be followed: {why}. Leave it out"
        )


def _by_name(options: Mapping[str, object], name: str) -> Mapping[str, object]:
    value = options.get(name, {})
    if not isinstance(value, Mapping):
        raise UsageError(f"ray_remote_kwargs[{name!r}]={value!r}: expected a mapping by name")
    return dict(value)


def _text(options: Mapping[str, object], name: str) -> str:
    value = options.get(name, "")
    if not isinstance(value, str):
        raise UsageError(f"ray_remote_kwargs[{name!r}]={value!r}: expected text such as 'A100'")
    return value


def amount(name: str, value: object) -> float:
    """Return a finite number that is not negative.

    Raises:
        UsageError: it is none; `name` is named.
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 <= cast(float, value) < math.inf:
        raise UsageError(f"{name}={value!r}: expected a finite number, 0 or more")
    return cast(float, value)


def whole(name: str, value: object, *, least: int, mend: str = "") -> int:
    """Return a whole number that is at least `least`.

    Raises:
        UsageError: it is none; `name` is named, and the mend, if one is given.
    """
    if not isinstance(value, bool) and hasattr(value, "__index__"):
        number = operator.index(cast(SupportsIndex, value))
        if number >= least:
            return number
    raise UsageError(f"{name}={value!r}: expected a whole number, {least} or more{mend}")


def word(name: str, value: object, words: Sequence[object]) -> None:
    """Return if the value is one of the words.

    Raises:
        UsageError: it is not; the nearest one is named.
    """
    if value in words:
        return
    texts = [each for each in words if isinstance(each, str)]
    near = difflib.get_close_matches(str(value), texts, n=1, cutoff=0.4)
    meant = f": did you mean {near[0]!r}?" if near else ""
    raise UsageError(f"{name}={value!r}: expected {' or '.join(map(repr, words))}{meant}")


def rank_timeout_s(
    time: float | None, timeout_s: float | None, start_delay_s: float
) -> float | None:
    """Return the seconds that a rank may take, with the delay of its start; None: no limit.

    Raises:
        UsageError: both are given, or one that leaves no time.
    """
    if time is not None and timeout_s is not None:
        raise UsageError(
            f"time={time!r} and timeout_s={timeout_s!r}: both are the seconds that a rank may "
            "take; give one of them"
        )
    name, limit = ("time", time) if timeout_s is None else ("timeout_s", timeout_s)
    if limit is None:
        return None
    if amount(name, limit) == 0:
        raise UsageError(f"{name}=0 leaves no time; None means no limit")
    return limit + start_delay_s


def check_pipeline(pipeline: object, nodes_per_task: int) -> None:
    """Return if the steps can be run on so many nodes.

    Raises:
        UsageError: something is no step, or stops the Ray that it runs on.
    """
    if not isinstance(pipeline, Sequence) or isinstance(pipeline, str):
        raise UsageError(f"pipeline={pipeline!r}: expected a list of steps")
    for place, step in enumerate(pipeline):
        is_documents = isinstance(step, Sequence) and not isinstance(step, str)
        if not callable(step) and not is_documents:
            raise UsageError(
                f"pipeline: step {place} is {step!r} ({type(step).__name__}): expected a "
                "PipelineStep, a function (data, rank, world_size), or a list of documents"
            )
        if nodes_per_task > 1 and _serves_vllm(step):
            raise UsageError(
                f"pipeline: step {place} ({type(step).__name__}) serves with vLLM, which on "
                f"nodes_per_task={nodes_per_task} runs `ray stop` before it starts: that would "
                "end the Ray this runs on. Use nodes_per_task=1 (vLLM with tensor parallelism in "
                "one node), or server_type='sglang', which needs no Ray"
            )


def _serves_vllm(step: object, depth: int = 2) -> bool:
    """Return whether the step, or one that it holds, has a configuration of a vLLM server.

    Source: datatrove 0.10 `pipeline/inference/servers/vllm_server.py`, `server_cleanup`.
    """
    if getattr(step, "server_type", None) == "vllm":
        return True
    inner = getattr(step, "__dict__", None)
    if depth == 0 or not isinstance(inner, dict):
        return False
    return any(_serves_vllm(each, depth - 1) for each in inner.values())


def as_whole(value: float) -> str:
    """Return an amount as text that `int()` reads: what is less than one counts as one, since steps
    read 0 as nothing and have no word for a share."""
    if value <= 0:
        return "0"
    return str(max(1, int(value)))
