"""Workers as processes of this machine. Linux; asyncio and trio."""

from __future__ import annotations

from thornback.pool.ports import WorkerSpec
from thornback.pool.processes import WorkerProcess, worker_command

__all__ = ["LocalBackend"]


class LocalBackend:
    """Starts workers as subprocesses of this one (fulfils `WorkerBackend`).

    A worker ends itself, with everything below it, when this process dies. Resources are not
    enforced.

    Args:
        python: the interpreter; it must find this package. None: the one that runs this.
    """

    def __init__(self, python: str | None = None) -> None:
        self._command = worker_command(python)

    async def start(
        self, node: str, index: int, nodes: int, handle: object, spec: WorkerSpec, /
    ) -> WorkerProcess:
        """Start a worker, whatever the node is called; returns when its supervisor is ready.

        Raises:
            GangLostError: it ended before it was ready, or could not be: says why.
            OSError: no process, or no log file, can be made.
            ValueError: the spec has a `runtime_env`.

        Cancellation: nothing is left running.
        """
        return await WorkerProcess.start(self._command, node, index, nodes, spec)
