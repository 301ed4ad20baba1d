"""Used as a stranger would. Never executed: mypy reads it, against the sources and against the
installed wheel."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import assert_never, assert_type

from opentelemetry import trace

from thornback.pool import (
    Assignment,
    Attribute,
    Beat,
    Blobs,
    CaughtError,
    Checkpoint,
    Clock,
    FinishedWhen,
    GangLostError,
    LogChunk,
    Outcome,
    PoolObserver,
    PoolParams,
    Program,
    ProgramResult,
    RankCall,
    Report,
    RunningRank,
    SeenBy,
    SpanData,
    Worker,
    WorkerBackend,
    WorkerPool,
    WorkerSpec,
)


class Words:
    """Fulfils `Program`."""

    def setup(self, call: RankCall, /) -> None:
        assert_type(call.slot, int)
        assert_type(call.node_index, int)
        assert_type(call.nodes, int)
        assert_type(call.address, str)

    def run(self, call: RankCall, /) -> ProgramResult:
        assert_type(call.rank, int)
        assert_type(call.attempt, int)
        assert_type(call.epoch, str)
        assert_type(call.stage, int)
        assert_type(call.node, str)
        assert_type(call.args, bytes | None)
        assert_type(call.traceparent, str)
        assert_type(call.draining(), float | None)
        call.checkpoint(call.restored or b"")
        call.progress(1, None)
        text = assert_type(call.inputs("words"), bytes)
        return ProgramResult(result=str(len(text)), outputs=(("/tmp/a", "/data/a"),))


class Remote:
    """Fulfils `Worker`; its positional parameters have names of their own."""

    async def call(self, what: str, with_this: object, /) -> object:
        raise ConnectionError(what, with_this)

    def is_unavailable(self, failure: BaseException, /) -> bool:
        return isinstance(failure, ConnectionError)

    async def kill(self, *, timeout_s: float) -> bool:
        return timeout_s > 0

    async def death(
        self, failure: BaseException, /
    ) -> tuple[CaughtError | BaseException, Mapping[str, Attribute]]:
        return failure, {"exit_code": 1, "preempted": False, "reason": None}

    async def salvage(
        self, folder: str, prefix: str, have: Mapping[str, int], /
    ) -> Sequence[LogChunk]:
        return [LogChunk(log=name, offset=at, data=folder.encode()) for name, at in have.items()]


class Elsewhere:
    """Fulfils `WorkerBackend`."""

    async def start(
        self, where: str, index: int, of: int, lease: object, spec: WorkerSpec, /
    ) -> Remote:
        if index >= of or spec.slots > 8:
            raise GangLostError(OSError("no room"), where, "start", {"index": index})
        return Remote()


class Audience:
    """Fulfils `PoolObserver`."""

    def beat(self, number: int, sign: Beat, /) -> None:
        assert_type((sign.address, sign.log_dir), tuple[str, str])
        for each in sign.running:
            assert_type(each.progress, tuple[float, float | None] | None)

    def logs(self, news: Sequence[LogChunk], /) -> None:
        for chunk in news:
            assert_type((chunk.log, chunk.offset, chunk.data), tuple[str, int, bytes])
            assert_type((chunk.skipped, chunk.closed), tuple[int, bool])
            assert_type((chunk.gang, chunk.node), tuple[int, str])


class Hours:
    """Fulfils `Clock`."""

    def monotonic(self) -> float:
        return 0.0

    async def sleep(self, hours: float, /) -> None:
        print(hours)


async def read(key: str) -> bytes:
    return key.encode()


program: Program = Words()
worker: Worker = Remote()
backend: WorkerBackend = Elsewhere()
clock: Clock = Hours()
observer: PoolObserver = Audience()
blobs: Blobs = read


async def run_ranks() -> None:
    params = PoolParams(
        beat_every_s=5,
        beats_in_a_row=4,
        silence_s=30,
        grace_s=10,
        probe_first_s=0.1,
        probe_most_s=1,
        regains_per_call=1,
        recall_s=10,
        ask_s=1,
        death_s=5,
        kill_s=5,
        salvage_s=5,
        close_s=10,
    )
    spec = WorkerSpec(
        slots=2,
        cpus=4,
        gpus=0.5,
        memory_bytes=2**30,
        resources={"disk": 1},
        rank_memory_bytes=2**29,
        env={"A": "b"},
        preload=("json",),
        log_dir="/tmp/logs",
        runtime_env={"pip": ["numpy"]},
    )
    work = Assignment(
        assignment=7,
        epoch="000001.000000007",
        stage=0,
        ranks=(range(3), range(5, 6)),
        attempt=2,
        program="words",
        args=(b"a", b"b", b"c", b"d"),
        inputs=("words",),
        timeout_s=60,
        setup_timeout_s=5,
        traceparent="",
        env={"A": "b"},
        restored=(b"half", None, None, None),
        rendezvous="torch",
        finished_when=FinishedWhen.LEADER,
        grace_s=5,
    )
    provider = trace.get_tracer_provider()
    async with WorkerPool(
        backend, blobs, params, observer=observer, clock=clock, tracer_provider=provider
    ) as pool:
        assert_type(pool, WorkerPool)
        await pool.open(1, ["a"], None, spec, timeout_s=60)
        reports = pool.run(1, work)
        assert_type(reports, AsyncIterator[Report])
        async for report in reports:
            for outcome in report.outcomes:
                read_outcome(outcome)
            assert_type(report.returned, tuple[range, ...])
            assert_type(report.running, int | None)
            assert_type(report.final, bool)
            if (saved := report.checkpoint) is not None:
                assert_type(saved, Checkpoint)
                assert_type((saved.rank, saved.version, saved.data), tuple[int, int, bytes])
        await pool.drain("a", 30)
        await pool.drain("a", None)
        await pool.recall(1, 7, kill=True)
        beats = await pool.beat(1)
        assert_type(beats, Sequence[Beat])
        for beat in beats:
            assert_type((beat.host, beat.pid, beat.rss_bytes, beat.node), tuple[str, int, int, str])
            for rank in beat.running:
                assert_type(rank, RunningRank)
                assert_type((rank.assignment, rank.rank, rank.attempt), tuple[int, int, int])
                assert_type((rank.pid, rank.ran_s), tuple[int, float])
        loss = await pool.lost(1)
        assert_type(loss, GangLostError)
        assert_type(loss.error, CaughtError | BaseException)
        assert_type(loss.node, str | None)
        assert_type(loss.phase, str)
        assert_type(loss.facts, Mapping[str, Attribute])
        assert_type(await pool.close(1, kill=False, timeout_s=15), bool)


def read_outcome(outcome: Outcome) -> None:
    assert_type((outcome.rank, outcome.ok, outcome.result), tuple[int, bool, str | None])
    assert_type(outcome.outputs, tuple[tuple[str, str], ...])
    assert_type((outcome.node, outcome.pid, outcome.phase), tuple[str, int, str])
    assert_type((outcome.ago_s, outcome.ran_s, outcome.peak_rss_bytes), tuple[float, float, int])
    assert_type((outcome.log_tail, outcome.log_path), tuple[str, str])
    assert_type(outcome.log_slice, tuple[int, int])
    assert_type(outcome.spans_dropped, int)
    for span in outcome.spans:
        assert_type(span, SpanData)
        assert_type((span.name, span.before_end_s, span.duration_s), tuple[str, float, float])
    match outcome.seen_by:
        case SeenBy.RANK | SeenBy.PROCESS | SeenBy.WORKER:
            pass
        case _:
            assert_never(outcome.seen_by)
    if (error := outcome.error) is not None:
        assert_type(error, CaughtError)
        assert_type(error.type_names, tuple[str, ...])
        assert_type((error.message, error.traceback), tuple[str, str])
        assert_type(error.attributes, Mapping[str, Attribute])
        assert_type(error.causes, tuple[CaughtError, ...])
        assert_type(error.members, tuple[CaughtError, ...])


async def processes() -> None:
    from thornback.pool.on_local import LocalBackend
    from thornback.pool.processes import (
        WorkerCallError,
        WorkerGoneError,
        WorkerProcess,
        worker_command,
    )

    here: WorkerBackend = LocalBackend(python="/usr/bin/python3")
    assert_type(await here.start("here", 0, 1, None, WorkerSpec()), Worker)
    command = ["nice", *worker_command(), *worker_command("/usr/bin/python3")]
    started = await WorkerProcess.start(command, "here", 0, 1, WorkerSpec())
    assert_type(started, WorkerProcess)
    assert_type(started.pid, int)
    as_worker: Worker = started
    try:
        assert_type(await as_worker.call("beat", ((), None)), object)
    except WorkerCallError as failure:
        assert_type(failure.error, CaughtError)
    except WorkerGoneError as failure:
        error, facts = await as_worker.death(failure)
        assert_type(error, CaughtError | BaseException)
        assert_type(facts, Mapping[str, Attribute])


async def on_ray() -> None:
    from thornback.pool.on_ray import RayBackend

    as_backend: WorkerBackend = RayBackend()
    as_backend = RayBackend(straight=False)
    print(as_backend)


async def conformance() -> None:
    from thornback.pool.testing import (
        Bench,
        FakeBackend,
        FakeDeathError,
        FakeUnavailableError,
        FakeWorker,
        MakeBench,
        ManualClock,
        assignment,
        check_worker_backend,
        check_workers,
        fake_blobs,
        fake_script,
        reported,
        settle,
    )

    def script(fake: FakeWorker, work: Assignment, rank: int) -> Outcome | None:
        return fake_script(fake, work, rank) if rank else None

    fakes = FakeBackend(script, on_start=lambda fake: fake.die(OSError("at once"), {"signal": 9}))
    as_backend: WorkerBackend = fakes
    as_blobs: Blobs = fake_blobs
    hand = ManualClock()
    as_clock: Clock = hand
    await hand.advance(5)
    async with WorkerPool(as_backend, as_blobs, clock=as_clock) as pool:
        await settle()
        work = assignment(1, 2, 3, program="blocks", timeout_s=5)
        assert_type(work, Assignment)
        outcomes, returned = reported([report async for report in pool.run(1, work)])
        assert_type(outcomes, dict[int, Outcome])
        assert_type(returned, list[int])
    fake = fakes.of("a")
    assert_type(fake, FakeWorker)
    assert_type(fakes.workers, list[FakeWorker])
    as_worker: Worker = fake
    assert_type(as_worker.is_unavailable(FakeUnavailableError("cut")), bool)
    fake.die()
    fake.fall_silent()
    fake.fall_silent(False)
    fake.cut()
    fake.cut(False)
    fake.finish(1, Outcome(rank=2, ok=True, result="2"))
    fake.finish(1, None)
    fake.checkpoint(1, b"half")
    fake.progress(1, 3)
    fake.progress(1, 3, 10)
    fake.write("log", b"text")
    fake.write("log", b"", closed=True)
    fake.unkillable = fake.stuck_in_start = fake.stuck_in_end = fake.stuck_in_salvage = True
    assert_type((fake.log_dir, fake.closed, fake.ports), tuple[str, bool, int])
    assert_type(fake.drains, list[float | None])
    assert_type(fake.salvages, list[tuple[str, Mapping[str, int]]])
    fake.overrides["beat"] = lambda payload: payload
    fake.obituary = (FakeDeathError("before"), {})
    assert_type((fake.count("beat"), fake.kills, fake.pid), tuple[int, int, int])
    assert_type(fake.calls, list[tuple[str, object]])

    @contextlib.asynccontextmanager
    async def make() -> AsyncIterator[Bench]:
        yield Bench(
            backend=fakes,
            node="n0",
            handle=None,
            spec=WorkerSpec(slots=2),
            ok=b"ok",
            fails=b"fails",
            blocks=b"blocks",
            crash=fakes.crash,
            bound_s=5,
        )

    as_make: MakeBench = make
    suites: tuple[Callable[[MakeBench], object], ...] = (check_worker_backend, check_workers)
    for suite in suites:
        suite(as_make)
    async with as_make() as bench:
        as_blobs = bench.blob


async def what_user_code_does() -> None:
    from thornback.pool.testing import (
        USER_CODE,
        Bench,
        FakeBackend,
        MakeBench,
        UserCodeRow,
        UserCodeTrial,
        check_user_code,
    )

    @contextlib.asynccontextmanager
    async def make() -> AsyncIterator[Bench]:
        yield bench

    bench = Bench(
        backend=FakeBackend(),
        node="n0",
        handle=None,
        spec=WorkerSpec(),
        ok=b"",
        fails=b"",
        blocks=b"",
        crash=lambda pid: None,
    )
    as_make: MakeBench = make
    await check_user_code(as_make)
    assert_type(USER_CODE, tuple[UserCodeRow, ...])
    async with UserCodeTrial(bench) as trial:
        for row in USER_CODE:
            assert_type((row.name, row.kind, row.ok), tuple[str, str, bool])
            assert_type(await trial.check(row), Outcome)
