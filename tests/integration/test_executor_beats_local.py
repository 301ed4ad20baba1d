"""What the heartbeats of workers bring while a rank runs, on the local backend with real
processes."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import anyio

from thornback.executor import Executor, Job, RankContext, RunReport, Stage, StageProgress
from thornback.executor.on_local import LocalPlatform
from thornback.executor.ports import LiveRun
from thornback.pool import PoolParams


def run(folder: Path, stage: Stage, **options: Any) -> RunReport:
    """Run a stage whose workers give a sign of life five times a second."""
    platform = LocalPlatform(cpus=4, pool=PoolParams(beat_every_s=0.2))
    return Executor(platform=platform, state=str(folder / "state"), **options).run(
        Job("j", [stage])
    )


def test_the_certificate_of_a_lost_worker_says_where_the_log_of_its_rank_is(tmp_path: Path) -> None:
    told: list[int] = []

    class Watch:
        def started(self, info: object) -> None: ...
        def failed(self, attempt: object) -> None: ...
        def finished(self, report: object) -> None: ...
        def progressed(self, stages: Sequence[StageProgress]) -> None:
            if stages[0].partial == 0.5 and not told:
                told.append(1)
                seen.set()

    def talk(ctx: RankContext) -> int:
        import os
        import time

        os.write(1, f"attempt {ctx.attempt} of rank {ctx.rank}\n".encode())
        if ctx.rank == 1:
            ctx.progress(1, 2)
        while ctx.attempt == 1 and ctx.rank == 1:
            time.sleep(0.05)
        return ctx.attempt

    async def kill_when_told(live: LiveRun) -> None:
        async for each in live.dispatches():
            if any(1 in piece for piece in each.ranks):
                break
        await seen.wait()  # a sign of life has told of it
        (beat,) = await live.beat(each.gang)
        os.kill(beat.pid, signal.SIGKILL)

    seen = anyio.Event()
    stage = Stage("a", talk, ranks=2, max_gangs=1)
    report = run(tmp_path, stage, observers=[Watch()], companions=[kill_when_told])
    assert report.results("a") == {0: 1, 1: 2}
    (attempt,) = report.attempts
    assert attempt.lost_ranks
    start, end = attempt.log_slice
    assert Path(attempt.log_url).read_bytes()[start:end].decode() == "attempt 1 of rank 1\n"
    assert Path(attempt.log_path).name in attempt.log_url
    assert attempt.log_part == f"from byte {start} on"


def test_how_far_a_rank_is_reaches_the_observers(tmp_path: Path) -> None:
    gate = tmp_path / "gate"

    class Watch:
        def started(self, info: object) -> None: ...
        def failed(self, attempt: object) -> None: ...
        def finished(self, report: object) -> None: ...
        def progressed(self, stages: Sequence[StageProgress]) -> None:
            seen.append(stages[0].partial)
            if stages[0].partial == 0.75:
                gate.touch()

    def half(ctx: RankContext) -> None:
        import os
        import time

        ctx.progress(3, 4)
        while not os.path.exists(gate):
            time.sleep(0.01)

    seen: list[float] = []
    run(tmp_path, Stage("a", half), observers=[Watch()])
    assert 0.75 in seen
    assert seen[-1] == 0.0
