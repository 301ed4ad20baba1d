"""Each protocol is fulfilled by the class that the executor puts there: asserted once for mypy,
once at run time."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from thornback.datatrove.journal import PipelineJournals
from thornback.executor import ports
from thornback.executor.chronicle import Witness
from thornback.executor.clock import SystemClock
from thornback.executor.journal.filejournal import FileJournal
from thornback.executor.on_local import LocalPlatform
from thornback.executor.on_ray import RayPlatform
from thornback.executor.program import StageProgram
from thornback.executor.watching import WorkerNews
from thornback.faults import Classifier, ErrorData, Fault, Origin, RetryPolicy, RetryVerdict
from thornback.graph import Dag
from thornback.placement import Allocator
from thornback.pool import CaughtError, SeenBy, WorkerPool
from thornback.pool import ports as pool_ports
from thornback.scheduler import ports as scheduler_ports

if TYPE_CHECKING:  # never run: mypy refuses the line whose class no longer matches

    def _static(
        allocator: Allocator,
        pool: WorkerPool,
        journal: FileJournal,
        journals: PipelineJournals,
        classifier: Classifier,
        dag: Dag,
        policy: RetryPolicy,
        verdict: RetryVerdict,
        program: StageProgram,
        caught: CaughtError,
        witness: Witness,
        news: WorkerNews,
    ) -> None:
        _leases: ports.Leases = allocator
        _workers: ports.Workers = pool
        _journal: ports.Journal = journal
        _journals: ports.Journal = journals
        _classifier: ports.Classifier = classifier
        _dependencies: scheduler_ports.Dependencies = dag
        _policy: scheduler_ports.RetryPolicy[Fault] = policy
        _witness: scheduler_ports.RetryPolicy[Fault] = witness
        _verdict: scheduler_ports.Verdict = verdict
        _program: pool_ports.Program = program
        _observer: pool_ports.PoolObserver = news
        _error: ErrorData = caught
        _clock: ports.Clock = SystemClock()
        _local: ports.Platform = LocalPlatform()
        _ray: ports.Platform = RayPlatform()


PAIRS: list[tuple[type, type]] = [
    (ports.Leases, Allocator),
    (ports.Workers, WorkerPool),
    (ports.Journal, FileJournal),
    (ports.Journal, PipelineJournals),
    (ports.Classifier, Classifier),
    (ports.Clock, SystemClock),
    (ports.Platform, LocalPlatform),
    (ports.Platform, RayPlatform),
    (scheduler_ports.Dependencies, Dag),
    (scheduler_ports.RetryPolicy, RetryPolicy),
    (scheduler_ports.RetryPolicy, Witness),
    (scheduler_ports.Verdict, RetryVerdict),
    (pool_ports.Program, StageProgram),
    (pool_ports.PoolObserver, WorkerNews),
    (ErrorData, CaughtError),
]


def _shape(function: Callable[..., Any]) -> list[tuple[str, bool]]:
    """Return (name, positional or not) of the parameters; positional ones may be named
    otherwise."""
    parameters = list(inspect.signature(function).parameters.values())[1:]
    named = inspect.Parameter.KEYWORD_ONLY
    return sorted(
        (p.name if p.kind is named else f"#{i}", p.kind is not named)
        for i, p in enumerate(parameters)
    )


@pytest.mark.parametrize(("port", "made"), PAIRS, ids=lambda c: c.__name__)
def test_class_has_every_member_of_its_protocol(port: type, made: type) -> None:
    fields = set(inspect.get_annotations(made))
    for name, member in vars(port).items():
        if name.startswith("_") or not (callable(member) or isinstance(member, property)):
            continue
        if isinstance(member, property):
            assert name in fields or hasattr(made, name), f"{made.__name__} lacks {name}"
        elif (
            name != "connect"
        ):  # an async context manager: the decorator hides its parameters' kinds
            assert _shape(getattr(made, name)) == _shape(member), f"{made.__name__}.{name}"


def test_who_saw_it_means_the_same_on_both_sides() -> None:
    assert {seen.value for seen in SeenBy} <= {origin.value for origin in Origin}
