"""A whole run whose resources never become free, on a cluster without notices of its own."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
from pathlib import Path

PROGRAM = textwrap.dedent(
    """
    import contextlib, sys
    from thornback.executor import Executor, Job, Stage
    from thornback.executor.ports import Connection
    from thornback.placement import Allocator, NodeView, Snapshot
    from thornback.placement.testing import FakeCluster
    from thornback.pool import WorkerPool
    from thornback.pool.on_local import LocalBackend

    class Restless:
        async def reserve(self, request, strategy, avoid, /):
            return await FakeCluster({}).reserve(request, strategy, avoid)
        async def look(self):
            return Snapshot(nodes=(NodeView(name="a", resources={"CPU": 4}),))
        async def changed(self, since, /):
            return

    class Platform:
        def prepare(self):
            pass
        @contextlib.asynccontextmanager
        async def connect(self, blobs, tracers, observer, /):
            workers = WorkerPool(LocalBackend(), blobs, observer=observer)
            async with Allocator(Restless()) as leases, workers:
                yield Connection(name="restless", leases=leases, workers=workers)

    class Observer:
        def started(self, info): pass
        def progressed(self, stages): pass
        def failed(self, attempt): print("failed", attempt.fault, flush=True)
        def finished(self, report): print(report.state, flush=True)
        def waiting(self, waiting): print(waiting.busy, waiting.text, flush=True)

    def work(ctx):
        pass

    executor = Executor(platform=Platform(), state=sys.argv[1], observers=[Observer()])
    executor.run(Job("j", [Stage("a", work, ranks=2)]), check=False)
    """
)


def test_run_busy_on_restless_cluster_is_told_and_first_sigterm_ends_it(tmp_path: Path) -> None:
    path = tmp_path / "program.py"
    path.write_text(PROGRAM)
    with subprocess.Popen(
        [sys.executable, str(path), str(tmp_path / "state")], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == (
                "True needs 1 x {CPU: 1}; 1 node has {CPU: 4}, this run holds {CPU: 0}; "
                "others use what it needs of the rest\n"
            )
            process.send_signal(signal.SIGTERM)
            said, _ = process.communicate(timeout=20)
        finally:
            process.kill()
    assert said.splitlines() == ["cancelled"], "told once, and ended in order"
    assert process.returncode == 0
