"""Never run: mypy checks here that the public API reads well typed."""

from __future__ import annotations

from opentelemetry.trace import NoOpTracerProvider

from thornback.datatrove import (
    DependencyFailed,
    LoggingDirInUse,
    PipelineMismatch,
    RayPipelineExecutor,
)
from thornback.executor import HeldByAnother, UsageError
from thornback.executor.on_local import LocalPlatform
from thornback.faults import NETWORK_RULES, THROTTLED_RULES, Classifier


def chain() -> RayPipelineExecutor:
    """Make pipelines with every argument."""
    first = RayPipelineExecutor([print], 10, -1, logging_dir="logs/first")
    second = RayPipelineExecutor(
        pipeline=[[1, 2], print],
        tasks=100,
        workers=20,
        depends=first,
        skip_completed=True,
        logging_dir=("s3://bucket/second", {"endpoint_url": "https://store"}),
        randomize_start_duration=3,
        cpus_per_task=2,
        mem_per_cpu_gb=1.5,
        gpus_per_task=1,
        nodes_per_task=2,
        ray_remote_kwargs={"resources": {"tape": 1}},
        log_first=True,
        tasks_per_job=4,
        time=3600,
        retries=2,
        memory_growth="500MB",
        enforce_memory=True,
        fresh=True,
        strategy="PACK",
        on_failure="return",
        on_mismatch="adopt",
        run_on_dependency_fail=True,
        classifier=Classifier(user_rules=(*THROTTLED_RULES, *NETWORK_RULES)),
        trace=NoOpTracerProvider(),
        platform=LocalPlatform(cpus=2),
        observers=[],
        companions=[],
    )
    return RayPipelineExecutor([print], depends=[first, second], timeout_s=1.5)


def told(error: DependencyFailed | PipelineMismatch | LoggingDirInUse) -> str:
    """Read what the exceptions say."""
    match error:
        case DependencyFailed():
            return f"{error.name} {error.incomplete:d} {error.world_size:d} {error.logs}"
        case PipelineMismatch():
            wrong_call: UsageError = error
            return f"{wrong_call} {error.url} {error.differences[0]}"
    held: HeldByAnother = error
    return held.url
