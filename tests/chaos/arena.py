"""What the tests of this folder share: a stage whose ranks wait until the blow has fallen, and what
has to be true of every run, whatever hit it.

No rank knows of the chaos. A rank leaves a mark when it starts, so that the marks say what was
executed, and the journal what was recorded.
"""

from __future__ import annotations

import json
import os
import select
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
import attrs

from thornback.executor import (
    MISSING,
    AttemptReport,
    Executor,
    Job,
    RankContext,
    RunInfo,
    RunReport,
    Stage,
    StageProgress,
)
from thornback.executor.on_ray import RayPlatform
from thornback.executor.ports import LiveRun
from thornback.executor.testing import Sighting

if TYPE_CHECKING:
    from ray._private.node import Node

    from tests.conftest import RayTestCluster

Strike = Callable[[LiveRun], Awaitable[None]]
HELD_S = 120.0
"""A rank ends after so long in any case."""


@attrs.frozen(kw_only=True, slots=True)
class Arena:
    """One run on the cluster, and one blow."""

    folder: Path
    cluster: RayTestCluster
    failed: anyio.Event = attrs.field(factory=anyio.Event, init=False)
    """Set once the driver has judged a failure."""

    @property
    def released(self) -> Path:
        """Exists once the ranks may end."""
        return self.folder / "released"

    @property
    def marks(self) -> Path:
        """Folder with a file for each start of a rank."""
        return self.folder / "marks"

    def hold(self) -> Callable[[RankContext], str]:
        """Return a rank function that leaves its mark and waits; its result is its epoch."""
        marks, released, held_s = str(self.marks), str(self.released), HELD_S

        def hold(ctx: RankContext) -> str:
            import os
            import time

            open(
                os.path.join(marks, f"{ctx.rank} {ctx.attempt} {ctx.epoch} {ctx.node_index}"), "x"
            ).close()
            end = time.monotonic() + held_s
            while not os.path.exists(released) and time.monotonic() < end:
                time.sleep(0.02)
            return ctx.epoch

        return hold

    def run(
        self, strike: Strike, *, platform: RayPlatform | None = None, **options: Any
    ) -> RunReport:
        """Run a stage `hold` and strike; then release the ranks. Options are those of `Stage`; six
        ranks that fill a node each, unless they say otherwise.

        Raises:
            Exception: what `strike` raised; the run has ended by then.
        """
        self.marks.mkdir()
        failed: list[Exception] = []

        async def companion(driver: LiveRun) -> None:
            try:
                await strike(driver)
            except Exception as error:  # noqa: BLE001  # a run only logs it
                failed.append(error)
            finally:
                self.released.touch()

        job = Job("chaos", [Stage("hold", self.hold(), **{"ranks": 6, "cpus": 2, **options})])
        executor = Executor(
            platform=platform or RayPlatform(),
            state=str(self.folder / "state"),
            companions=[companion],
            observers=[Failures(self.failed)],
        )
        report = executor.run(job, check=False)
        if failed:
            raise failed[0]
        return report

    def starts(self) -> dict[int, list[tuple[int, str]]]:
        """Return (attempt, epoch) of every start of each rank."""
        found: dict[int, list[tuple[int, str]]] = {}
        for mark in self.marks.iterdir():
            rank, attempt, epoch, node_index = mark.name.split()
            if node_index == "0":
                found.setdefault(int(rank), []).append((int(attempt), epoch))
        return found

    def assert_recorded_once(self, report: RunReport) -> None:
        """Every rank was executed at least once and recorded exactly once, and what is recorded is
        the result of a try that took place."""
        assert report.state == "succeeded", f"{report.reason}: {told(report)}"
        ranks = report.stages["hold"].total
        recorded = records(self.folder / "state", "hold")
        assert recorded == dict.fromkeys(range(ranks), 1)
        results, starts = report.results("hold"), self.starts()
        assert list(results) == sorted(starts) == list(range(ranks))
        assert MISSING not in results.values()
        for rank, epoch in results.items():
            assert epoch in [each for _, each in starts[rank]]

    def assert_charged_to_nobody(self) -> None:
        """Every start of a rank was its first attempt: nothing was charged."""
        assert {attempt for starts in self.starts().values() for attempt, _ in starts} == {1}


@attrs.frozen(slots=True)
class Failures:
    """Notes the first failure that the driver has judged (fulfils `Observer`)."""

    seen: anyio.Event

    def started(self, info: RunInfo, /) -> None:
        """Nothing to do."""

    def progressed(self, stages: tuple[StageProgress, ...], /) -> None:
        """Nothing to do."""

    def failed(self, attempt: AttemptReport, /) -> None:
        """Tell it."""
        self.seen.set()

    def finished(self, report: RunReport, /) -> None:
        """Nothing to do."""


def records(state: Path, stage: str) -> Counter[int]:
    """Return how often each rank of a stage is recorded as done in the segments of a journal."""
    found: Counter[int] = Counter()
    for segment in (state / "control").glob("seg-*"):
        for line in segment.read_text().splitlines():
            record = json.loads(line)
            if record.get("stage") == stage and record["state"] == "done":
                for start, stop in record["ranks"]:
                    found.update(range(start, stop))
    return found


async def gone(at: Sighting, timeout_s: float = 20.0) -> None:
    """Wait until a worker and the rank that it ran are dead: then the rank cannot report any more.

    Raises:
        TimeoutError: they live on.
    """

    def wait() -> None:
        for pid in (at.beat.pid, at.running.pid):
            try:
                descriptor = os.pidfd_open(pid)
            except ProcessLookupError:
                continue
            try:
                if not select.select([descriptor], [], [], timeout_s)[0]:
                    raise TimeoutError(f"process {pid} is alive after {timeout_s} s")
            finally:
                os.close(descriptor)

    await anyio.to_thread.run_sync(wait)


def kinds(report: RunReport) -> set[str]:
    """Return the kinds of fault in the report, which are all of one gang and were all retried.

    One gang can be there several times: a rank that was queued behind the running one is charged,
    too, if its worker dies before it has said that it did not start it.
    """
    assert len({attempt.gang for attempt in report.attempts}) == 1, told(report)
    assert all(attempt.retried for attempt in report.attempts), told(report)
    return {attempt.fault.kind.value for attempt in report.attempts}


def told(report: RunReport) -> str:
    """Return every fault and verdict in the report, for a test that fails."""
    return "; ".join(
        f"{a.rank} {a.fault} ({a.verdict}) {dict(a.fault.facts)}" for a in report.attempts
    )


def drain(node: Node, left_s: float) -> None:
    """Tell Ray that a node will be preempted in so many seconds."""
    import ray
    from ray.core.generated import autoscaler_pb2

    worker: Any = ray._private.worker.global_worker
    messages: Any = autoscaler_pb2
    reason = messages.DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
    until_ms = int((time.time() + left_s) * 1000)
    accepted, why = worker.gcs_client.drain_node(node.node_id, reason, "spot", until_ms)
    assert accepted, why


def death_reason(node: Node, timeout_s: float = 10.0) -> int:
    """Return why Ray thinks that a node is dead, once it does."""
    import ray

    deadline = time.monotonic() + timeout_s
    pause = threading.Event()
    while True:
        nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]  # ray has no types here
        (record,) = [each for each in nodes if each["NodeID"] == node.node_id]
        if not record["Alive"]:
            reason: int = record["DeathReason"]
            return reason
        assert time.monotonic() < deadline, f"Ray thinks that {node.node_id} lives"
        pause.wait(0.1)
