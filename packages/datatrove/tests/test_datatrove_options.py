"""Which options are followed, and which are refused with what reason."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import pytest
from datatrove.pipeline.base import PipelineStep

from thornback.datatrove import RayPipelineExecutor
from thornback.datatrove.options import as_whole, reserved
from thornback.datatrove.stages import stage_of
from thornback.executor import UsageError


def make(folder: object = "memory://options", **arguments: Any) -> RayPipelineExecutor:
    return RayPipelineExecutor(**{"pipeline": [], "logging_dir": folder, **arguments})


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"workers": 0}, "workers=0: expected a whole number, 1 or more; -1 means as many as fit"),
        ({"workers": -2}, "-1 means as many as fit"),
        ({"tasks": -1}, "tasks=-1: expected a whole number, 0 or more"),
        ({"tasks": 1.5}, "tasks=1.5: expected a whole number"),
        ({"tasks": True}, "tasks=True: expected a whole number"),
        ({"tasks_per_job": 0}, "tasks_per_job=0"),
        ({"nodes_per_task": 0}, "nodes_per_task=0"),
        ({"retries": -1}, "retries=-1"),
        ({"randomize_start_duration": 0.5}, "randomize_start_duration=0.5"),
        ({"time": 5, "timeout_s": 6}, "time=5 and timeout_s=6: both are .* give one of them"),
        ({"time": 0}, "time=0 leaves no time"),
        ({"timeout_s": -3}, "timeout_s=-3: expected a finite number"),
        ({"cpus_per_task": -1}, "cpus_per_task=-1"),
        ({"mem_per_cpu_gb": "2"}, "mem_per_cpu_gb='2': expected a finite number"),
        ({"gpus_per_task": float("nan")}, "gpus_per_task=nan"),
        ({"on_failure": "rais"}, "did you mean 'raise'?"),
        ({"on_mismatch": "adapt"}, "did you mean 'adopt'?"),
        ({"strategy": "STRICT-PACK"}, "did you mean 'STRICT_PACK'?"),
        ({"memory_growth": "a lot"}, "max_growth='a lot': expected bytes"),
        ({"enforce_memory": 1}, "enforce_memory=1, expected True or False"),
        ({"depends": "other"}, "depends='other': expected a pipeline executor, or a list"),
        ({"depends": ["other"]}, "expected a pipeline executor"),
        ({"pipeline": "steps"}, "pipeline='steps': expected a list of steps"),
        ({"pipeline": [print, 3]}, "step 1 is 3 .int.: expected a PipelineStep"),
        ({"ray_remote_kwargs": {"num_cpus": -1}}, "ray_remote_kwargs\\['num_cpus'\\]=-1"),
        ({"ray_remote_kwargs": [1]}, "expected options by name"),
        ({"ray_remote_kwargs": {"resources": {"GPU": 1}}}, "use gpus="),
        ({"ray_remote_kwargs": {"resources": 3}}, "expected a mapping by name"),
        ({"ray_remote_kwargs": {"accelerator_type": 3}}, "expected text such as 'A100'"),
        ({"ray_remote_kwargs": {"label_selector": {"zone": "in(a"}}}, "'in\\(a,b\\)'"),
    ],
)
def test_what_can_never_run_is_refused_when_it_is_made_and_the_mend_is_named(
    arguments: dict[str, Any], says: str
) -> None:
    with pytest.raises(UsageError, match=says):
        make(**arguments)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"max_retries": 3}, "retries="),
        ({"retry_exceptions": True}, "retries="),
        ({"max_restarts": -1}, "retries="),
        ({"max_task_retries": 2}, "retries="),
        ({"scheduling_strategy": "SPREAD"}, "strategy="),
        ({"placement_group": object()}, "strategy="),
        ({"placement_group_bundle_index": 0}, "strategy="),
        ({"name": "me"}, "thornback names them"),
        ({"namespace": "mine"}, "thornback names them"),
        ({"lifetime": "detached"}, "workers end with the run"),
        ({"max_concurrency": 4}, "tasks_per_job="),
        ({"max_calls": 1}, "fresh=True"),
        ({"object_store_memory": 10}, "Ray's store"),
        ({"num_cpu": 2}, "did you mean 'num_cpus'?"),
        ({"max_retry": 2}, "did you mean 'max_retries'?"),
        ({"colour": "red"}, "expected one of num_cpus, num_gpus"),
    ],
)
def test_defect_4_options_that_cannot_be_followed_are_refused_with_the_reason_and_hang_nothing(
    options: dict[str, Any], says: str
) -> None:
    with pytest.raises(UsageError, match=says) as refused:
        make(ray_remote_kwargs=options)
    assert next(iter(options)) in str(refused.value)


def test_options_that_change_nothing_are_accepted() -> None:
    options = {
        "max_restarts": 0,
        "max_task_retries": 0,
        "lifetime": None,
        "name": None,
        "max_concurrency": 1,
        "scheduling_strategy": "DEFAULT",
        "placement_group": "default",
        "runtime_env": None,
    }
    has = make(ray_remote_kwargs=options)._reserved()
    assert (has.cpus, has.memory_bytes, has.runtime_env) == (1, 2 << 30, {})


def test_every_option_of_an_actor_that_ray_has_is_mapped_or_refused() -> None:
    from ray._common.ray_option_utils import valid_options

    from thornback.datatrove.options import _REFUSED, MAPPED

    assert not {*valid_options} - {*MAPPED, *_REFUSED}


def test_defect_4_resources_labels_and_accelerator_reach_the_stage() -> None:
    executor = make(
        tasks=4,
        cpus_per_task=2,
        mem_per_cpu_gb=1.5,
        ray_remote_kwargs={
            "num_gpus": 4,
            "resources": {"tape": 1},
            "accelerator_type": "A100",
            "label_selector": {"zone": "!eu"},
            "runtime_env": {"env_vars": {"A": "1"}},
        },
    )
    stage = stage_of(executor, "s", print, incomplete=4)
    assert (stage.cpus, stage.gpus, stage.memory) == (2, 4, 3 << 30)
    assert (stage.resources, stage.accelerator, stage.labels) == (
        {"tape": 1},
        "A100",
        {"zone": "!eu"},
    )
    assert stage.runtime_env == {"env_vars": {"A": "1"}}


def test_memory_is_a_reservation_unless_it_is_to_be_enforced() -> None:
    assert not stage_of(make(), "s", print, incomplete=1).enforce_memory
    assert stage_of(make(enforce_memory=True), "s", print, incomplete=1).enforce_memory
    none = stage_of(make(mem_per_cpu_gb=0), "s", print, incomplete=1)
    assert none.memory is None


def test_defect_17_tasks_per_job_are_slots_that_reserve_each_what_they_run() -> None:
    executor = make(tasks=10, tasks_per_job=4, workers=3)
    stage = stage_of(executor, "s", print, incomplete=10)
    assert (stage.processes, stage.max_gangs, stage.cpus) == (4, 3, 1)
    assert stage_of(executor, "s", print, incomplete=2).processes == 2, "no more than there is"
    several = make(tasks=10, tasks_per_job=4, nodes_per_task=2)
    assert stage_of(several, "s", print, incomplete=10).processes == 1


def test_defect_15_workers_count_groups_and_not_nodes() -> None:
    stage = stage_of(make(tasks=20, workers=8, nodes_per_task=4), "s", print, incomplete=20)
    assert (stage.max_gangs, stage.nodes) == (8, 4)
    assert stage_of(make(tasks=20), "s", print, incomplete=20).max_gangs == 20


def test_defect_31_nodes_of_a_task_are_distinct_unless_asked_otherwise() -> None:
    assert stage_of(make(nodes_per_task=2), "s", print, incomplete=1).strategy is None
    packed = make(nodes_per_task=2, strategy="PACK")
    assert stage_of(packed, "s", print, incomplete=1).strategy == "PACK"


def test_time_is_of_each_rank_and_the_delay_of_its_start_is_added() -> None:
    delayed = make(time=60, randomize_start_duration=30)
    assert stage_of(delayed, "s", print, incomplete=1).timeout_s == 90
    assert stage_of(make(timeout_s=7), "s", print, incomplete=1).timeout_s == 7
    assert stage_of(make(), "s", print, incomplete=1).timeout_s is None


class Config:
    def __init__(self, server_type: str) -> None:
        self.server_type = server_type


class Serving(PipelineStep):  # type: ignore[misc]  # datatrove has no types
    def __init__(self, server_type: str) -> None:
        super().__init__()
        self.config = Config(server_type)

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Any:
        yield from data


class Wrapping(PipelineStep):  # type: ignore[misc]  # datatrove has no types
    def __init__(self, inner: object) -> None:
        super().__init__()
        self.inner = inner

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Any:
        yield from data


def test_defect_23_vllm_on_several_nodes_is_refused_since_it_stops_the_ray_it_runs_on() -> None:
    with pytest.raises(UsageError, match=r"step 1 .Serving. serves with vLLM.*nodes_per_task=1"):
        make(pipeline=[[], Serving("vllm")], nodes_per_task=2)
    with pytest.raises(UsageError, match="vLLM"):
        make(pipeline=[Wrapping(Serving("vllm"))], nodes_per_task=2)
    make(pipeline=[Serving("vllm")])
    make(pipeline=[Serving("sglang")], nodes_per_task=2)


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (0.5, "1"), (1, "1"), (1.5, "1"), (2.0, "2"), (4, "4")]
)
def test_an_amount_is_text_that_int_reads(value: float, text: str) -> None:
    assert as_whole(value) == text
    int(as_whole(value))


Check = Callable[[Mapping[str, str]], object]


def test_defect_24_steps_can_read_what_is_reserved_by_int(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_NODELIST", "10.0.0.1,10.0.0.2")
    executor = make(
        cpus_per_task=3,
        mem_per_cpu_gb=1.5,
        gpus_per_task=1,
        ray_remote_kwargs={"num_gpus": 4.0},
    )
    assert executor.get_distributed_env() == {
        "datatrove_node_ips": "10.0.0.1,10.0.0.2",
        "datatrove_cpus_per_task": "3",
        "datatrove_mem_per_cpu": "1",
        "datatrove_gpus_on_node": "4",
        "datatrove_executor": "RAY",
    }
    plain = make()
    stock = super(RayPipelineExecutor, plain).get_distributed_env()
    assert plain.get_distributed_env() == stock, "as datatrove's where that is right"


def test_memory_of_rays_options_is_told_per_cpu() -> None:
    has = reserved(
        cpus_per_task=2,
        mem_per_cpu_gb=2,
        gpus_per_task=0,
        ray_remote_kwargs={"memory": 12 << 30, "num_cpus": 4},
    )
    assert (has.memory_bytes, has.mem_per_cpu_gb) == (12 << 30, 3)


def test_attributes_that_were_changed_are_checked_again(tmp_path: Path) -> None:
    executor = make(str(tmp_path))
    executor.on_failure = cast(Any, "ignore")
    with pytest.raises(UsageError, match="on_failure='ignore'"):
        executor.run()
