"""The local platform: workers are processes of this machine."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import attrs
from opentelemetry.trace import TracerProvider

from thornback.executor.errors import UsageError
from thornback.executor.ports import Connection
from thornback.placement import Allocator
from thornback.placement.on_local import LocalCluster
from thornback.pool import Blobs, PoolObserver, PoolParams, WorkerPool
from thornback.pool.on_local import LocalBackend

__all__ = ["LocalPlatform"]


@attrs.frozen(kw_only=True, slots=True)
class LocalPlatform:
    """This machine as one node (fulfils `Platform`). Needs Linux; refuses a `runtime_env`."""

    cpus: float | None = None
    """Logical CPUs to hand out; None: what the machine has."""
    pool: PoolParams = attrs.field(factory=PoolParams)
    """Bounds and rhythms of the workers."""

    def prepare(self) -> None:
        """Nothing to do."""

    def check_runtime_env(self, env: Mapping[str, object], where: str, /) -> None:
        """Raise, because only Ray can build a `runtime_env`.

        Raises:
            UsageError: always.
        """
        raise UsageError(
            f"{where}: runtime_env (with {', '.join(map(repr, env))}) needs Ray: leave it out, and "
            "install what the job needs into the environment of this process, or use "
            "Executor.on_ray(...)"
        )

    @asynccontextmanager
    async def connect(
        self, blobs: Blobs, tracers: TracerProvider, observer: PoolObserver | None, /
    ) -> AsyncIterator[Connection]:
        """Return an allocator and a pool of local processes; they end with the context, also when
        it is cancelled."""
        cluster = LocalCluster(cpus=self.cpus)
        leases = Allocator(cluster, tracer=tracers.get_tracer("thornback.placement"))
        workers = WorkerPool(
            LocalBackend(), blobs, params=self.pool, tracer_provider=tracers, observer=observer
        )
        async with leases, workers:
            yield Connection(name="this machine", leases=leases, workers=workers)
