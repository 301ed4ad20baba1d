"""Used as a stranger would. Never executed: mypy reads it, against the sources and against the
installed wheel."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Literal, assert_type

from opentelemetry.trace import NoOpTracerProvider, TracerProvider

from thornback.executor import (
    MISSING,
    After,
    AttemptReport,
    BackendUnavailable,
    Certificate,
    Executor,
    ExecutorParams,
    GivenUp,
    HeldByAnother,
    IdentityMismatch,
    Job,
    JournalError,
    Observer,
    RankContext,
    RankFailure,
    RecordedRun,
    Results,
    RunCancelled,
    RunFailed,
    RunInfo,
    RunReport,
    Stage,
    StageProgress,
    Superseded,
    UsageError,
    Within,
    read_run,
)
from thornback.executor.journal.testing import (
    FakeJournal,
    FakeState,
    MakeJournal,
    check_journal,
    done,
    failed,
    job,
)
from thornback.executor.on_local import LocalPlatform
from thornback.executor.on_ray import RayPlatform
from thornback.executor.ports import (
    Attribute,
    Classifier,
    Clock,
    Companion,
    Completion,
    Connection,
    Dispatched,
    Identity,
    Journal,
    JournalFactory,
    Json,
    Leases,
    LiveRun,
    Opened,
    Platform,
    Ranks,
    ReadsResults,
    StageIdentity,
    Workers,
)
from thornback.executor.testing import Chaos, Kill, Sighting, sighted
from thornback.faults import ErrorData, Fault, FaultKind, Origin
from thornback.placement import AllocatorParams, GangRequest, Lease
from thornback.pool import (
    Assignment,
    Beat,
    Blobs,
    GangLostError,
    PoolObserver,
    PoolParams,
    Report,
    RunningRank,
    WorkerSpec,
)

# -- ranks ---------------------------------------------------------------------------------------


def load(ctx: RankContext) -> dict[str, str]:
    return {"model": ctx.node}


def clean(ctx: RankContext, path: str) -> dict[str, Json]:
    assert_type(ctx.rank, int)
    assert_type(ctx.world_size, int)
    assert_type(ctx.attempt, int)
    assert_type(ctx.slot, int)
    assert_type(ctx.node_index, int)
    assert_type(ctx.nodes, int)
    texts: list[str] = [ctx.stage, ctx.epoch, ctx.node, ctx.address, ctx.traceparent, ctx.staging]
    model: dict[str, str] = ctx.setup_value
    assert_type(ctx.shard(texts), Sequence[str])
    with ctx.publish(f"out/{ctx.rank}.txt") as staged:
        assert_type(staged, str)
    return {"path": path, "texts": [*texts], "model": model["model"]}


def total(ctx: RankContext) -> int:
    ctx.progress(1, 2)
    if assert_type(ctx.draining, float | None) is not None and ctx.restored is None:
        ctx.checkpoint({"at": 3})
    own = ctx.result("clean")
    assert_type(ctx.results("clean"), Results)
    return len(ctx.results("clean")) if own is MISSING else 0


# -- jobs and runs -------------------------------------------------------------------------------


class Watch:
    def started(self, info: RunInfo, /) -> None:
        assert_type(info.stages, tuple[StageProgress, ...])
        print(info.job, info.state_url, info.term, info.backend)

    def progressed(self, stages: tuple[StageProgress, ...], /) -> None:
        for each in stages:
            assert_type(each.name, str)
            print(each.total, each.done, each.failed, each.skipped, each.running, each.gangs)
            print(each.recorded_before)
            assert_type(each.partial, float)

    def failed(self, attempt: AttemptReport, /) -> None:
        assert_type(attempt.fault, Fault)
        assert_type(attempt.rank, int | None)
        assert_type(attempt.lost_ranks, Ranks)
        assert_type(attempt.log_slice, tuple[int, int])
        print(attempt.log_path, attempt.log_url)
        assert_type(attempt.as_json(), dict[str, Json])

    def finished(self, report: RunReport, /) -> None:
        print(report.state)


async def stop_soon(run: LiveRun) -> None:
    async for seen in run.dispatches():
        assert_type(seen, Dispatched)
        print(seen.stage, seen.gang, seen.assignment, seen.ranks, seen.attempt)
        assert_type(await run.beat(seen.gang), Sequence[Beat])
        assert_type(run.outstanding(seen.assignment), Ranks)
        run.cancel("seen enough", kill=True)


observer: Observer = Watch()
companion: Companion = stop_soon
chaos = Chaos(kill_ranks=2, kill_workers=0, stage="clean")
also_a_companion: Companion = chaos
assert_type(chaos.kills, tuple[Kill, ...])


def make() -> tuple[Job, Executor]:
    stages = [
        Stage("clean", clean, items=["a", "b"], setup=load, memory="3GiB", retries=1),
        Stage("total", total, after="clean", timeout_s=60, max_failed=0.5, version="2"),
        Stage("ranks", total, ranks=8, after=["clean", "total"], cpus=0.5, gpus=1, processes=2),
        Stage("own", total, ranks=8, after=After("ranks", kind="one_to_one", condition="all_done")),
        Stage("some", total, after=["own", After("ranks", condition=Within(0.1))]),
        Stage("nodes", total, nodes=2, max_gangs=1, max_retries=3, setup_timeout_s=5.0),
        Stage("stubborn", total, max_retries="unbounded"),
        Stage("own", total, fresh=True, teardown=print, resources={"tape": 1}, labels={"a": "!b"}),
        Stage("leaky", total, max_ranks_per_child=100, max_growth="1GiB", accelerator="A100"),
        Stage("big", total, memory="9GiB", enforce_memory=False, runtime_env={"pip": ["numpy"]}),
        Stage(
            "train",
            total,
            nodes=2,
            strategy="PACK",
            rendezvous="torch",
            finished_when="leader",
            grace_s=5,
        ),
    ]
    assert_type(stages[0].world_size, int)
    assert_type(stages[0].failed_allowed, int)
    assert_type(stages[0].slots, int)
    executor = Executor.on_local(
        state="runs/clean",
        cpus=2,
        max_gangs=2,
        env={"A": "1"},
        observers=[observer],
        companions=[companion, chaos],
        tracer_provider=NoOpTracerProvider(),
        on_mismatch="adopt",
        journal=None,
        storage_options={"endpoint_url": "https://store"},
        params=ExecutorParams(place_s=60),
        seed=1,
        retry_failed=False,
        logs=False,
        record="runs/clean.jsonl.gz",
    )
    Executor.on_ray(state="runs/clean", address="host:6379", local_cpus=2, runtime_env={"pip": []})
    return Job("clean", stages), executor


def run() -> RunReport | None:
    work, executor = make()
    try:
        report = executor.run(work)
    except RunFailed as error:
        assert_type(error.report, RunReport)
        assert_type(error.exceptions[0], RankFailure | ExceptionGroup[RankFailure])
        return error.report
    except RunCancelled as error:
        return error.report
    except HeldByAnother as error:
        print(error.url, error.host, error.pid, error.since, error.seen)
    except Superseded as error:
        print(error.url, error.term, error.by_term)
    except IdentityMismatch as error:
        assert_type(error.differences, tuple[str, ...])
    except (JournalError, BackendUnavailable, UsageError) as error:
        print(error)
    else:
        return report
    return None


def look(failure: RankFailure) -> tuple[str, tuple[int, ...], str, str]:
    return failure.stage, failure.ranks, failure.cause, failure.detail


async def arun() -> None:
    work, executor = make()
    report = await executor.arun(work, check=False)
    assert_type(report, RunReport)
    assert_type(report.stages, Mapping[str, StageProgress])
    assert_type(report.attempts, tuple[AttemptReport, ...])
    assert_type(report.results("clean"), Results)
    assert_type(report.unconfirmed_gangs, tuple[int, ...])
    print(report.logs_url, report.logs_lost_bytes)
    for given_up in report.given_up:
        assert_type(given_up, GivenUp)
        assert_type(given_up.last, AttemptReport | None)
        assert_type(given_up.ranks, Ranks)


def read() -> None:
    recorded = read_run("runs/clean")
    assert_type(recorded, RecordedRun)
    assert_type(recorded.done, Mapping[str, Ranks])
    assert_type(recorded.results("clean"), Mapping[int, str])
    assert_type(recorded.certificates, Mapping[str, tuple[Certificate, ...]])
    assert_type(recorded.certificates["clean"][0].why, Mapping[str, Json])
    assert_type(recorded.identity, Identity)
    read_run("s3://bucket/runs/clean", storage_options={"anon": True})


# -- parts of one's own --------------------------------------------------------------------------


class StoppedClock:
    def monotonic(self) -> float:
        return 0.0

    def time_ns(self) -> int:
        return 0

    async def sleep(self, delay_s: float, /) -> None:
        return None


class Gloomy:
    def classify(
        self, error: BaseException | ErrorData, facts: Mapping[str, Attribute], /
    ) -> Fault:
        return Fault(
            kind=FaultKind.UNKNOWN, origin=Origin.DRIVER, rule="none", error_type="", message=""
        )


class OneLease:
    async def acquire(
        self,
        request: GangRequest,
        /,
        *,
        avoid: Sequence[str],
        timeout_s: float,
        wait_for_nodes_s: float | None,
    ) -> Lease:
        raise TimeoutError(f"{request.nodes} nodes but for {avoid}")

    async def release(self, lease: Lease, /, *, timeout_s: float) -> bool:
        return True

    async def drains(self) -> AsyncIterator[tuple[str, float | None]]:
        yield "node", 3.0


class NoWorkers:
    async def open(
        self,
        gang: int,
        nodes: Sequence[str],
        handle: object,
        spec: WorkerSpec,
        /,
        *,
        timeout_s: float,
    ) -> None:
        raise GangLostError(OSError("none here"))

    async def run(self, gang: int, work: Assignment, /) -> AsyncIterator[Report]:
        yield Report(returned=work.ranks, final=True)

    async def recall(self, gang: int, assignment: int, /, *, kill: bool) -> None:
        return None

    async def lost(self, gang: int, /) -> GangLostError:
        return GangLostError(OSError("none here"))

    async def beat(self, gang: int, /) -> Sequence[Beat]:
        return []

    async def drain(self, node: str, left_s: float | None, /) -> None:
        return None

    async def close(self, gang: int, /, *, kill: bool, timeout_s: float) -> bool:
        return True


class Forgetful:
    async def open(
        self, identity: Identity, /, *, on_mismatch: Literal["refuse", "adopt", "fresh"]
    ) -> Opened:
        stage = identity.stages[0]
        assert_type(stage, StageIdentity)
        return Opened(term=1, done={stage.name: (range(stage.world_size),)})

    async def commit(self, records: Sequence[Completion], /) -> None:
        return None

    async def results(self, stage: str, /) -> Mapping[int, str]:
        return {}

    async def close(self) -> None:
        return None


class Remembers:
    def __call__(self) -> AbstractAsyncContextManager[Journal]:
        return FakeJournal()

    def read_results(self, stage: str, /) -> Mapping[int, str]:
        return {0: "1"}


class Nowhere:
    def prepare(self) -> None:
        raise BackendUnavailable("nowhere")

    @asynccontextmanager
    async def connect(
        self, blobs: Blobs, tracers: TracerProvider, observer: PoolObserver | None, /
    ) -> AsyncIterator[Connection]:
        yield Connection(name="nowhere", leases=OneLease(), workers=NoWorkers())


class Seen:
    async def dispatches(self) -> AsyncIterator[Dispatched]:
        yield Dispatched(stage="a", gang=1, assignment=1, ranks=(range(1),), attempt=1)

    def outstanding(self, assignment: int, /) -> Ranks:
        return ()

    async def beat(self, gang: int, /) -> Sequence[Beat]:
        return []

    def cancel(self, reason: str, /, *, kill: bool) -> None:
        return None


clock: Clock = StoppedClock()
classifier: Classifier = Gloomy()
leases: Leases = OneLease()
workers: Workers = NoWorkers()
journal: Journal = Forgetful()
fake: Journal = FakeJournal(FakeState())
journals: JournalFactory = Remembers()
readable: ReadsResults = Remembers()
platform: Platform = Nowhere()
live: LiveRun = Seen()
local: Platform = LocalPlatform(cpus=2, pool=PoolParams(beat_every_s=1))
ray: Platform = RayPlatform(address="host:6379", local_cpus=2)
quick: Platform = RayPlatform(
    pool=PoolParams(silence_s=5), placement=AllocatorParams(wait_for_nodes_s=1)
)


async def look_for(run: LiveRun) -> None:
    at = await sighted(run, where=lambda beat: beat.node == "n0", stage="clean")
    assert_type(at, Sighting)
    assert_type(at.beat, Beat)
    assert_type(at.running, RunningRank)
    assert_type(at.dispatched.gang, int)


mine = Executor(
    platform=platform, state="runs/mine", clock=clock, classifier=classifier, journal=journals
)


def new_journal(name: str) -> AbstractAsyncContextManager[Journal]:
    return FakeJournal(FakeState())


async def check() -> None:
    journals: MakeJournal = new_journal
    await check_journal(journals, "an/empty/folder")
    await chaos(live)
    async with FakeJournal() as journal:
        assert_type(journal, FakeJournal)
        await journal.open(job(name="j"), on_mismatch="refuse")
        await journal.commit([done("a", 1, 2), failed("a", 3)])
        journal.supersede()
