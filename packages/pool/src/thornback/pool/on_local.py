"""Workers as processes of this machine. Linux; asyncio and trio."""

from __future__ import annotations

import errno
from collections.abc import Mapping

from thornback.pool.ports import CaughtError, GangLostError, WorkerSpec
from thornback.pool.processes import WorkerProcess, worker_command

__all__ = ["LocalBackend"]

_MAY_PASS = (
    errno.EAGAIN,
    errno.EDQUOT,
    errno.EINTR,
    errno.EIO,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    errno.ENOSPC,
)
"""What a start can fail with that may be over a moment later."""


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
            GangLostError: it ended before it was ready, or could not be: says why. With the fact
                `non_retryable` where the next one would end in the same way.
            ValueError: the spec has a `runtime_env`.

        Cancellation: nothing is left running.
        """
        try:
            return await WorkerProcess.start(self._command, node, index, nodes, spec)
        except OSError as error:
            raise _final(GangLostError(error, node, "start")) from error
        except GangLostError as error:
            raise _final(error) from error.__cause__


def _final(error: GangLostError) -> GangLostError:
    """Mark the failure of a start that any other start on this machine would share: Python, or our
    own code, has ended by itself, or a file cannot be used. A signal or a lack of resources may not
    hit the next one."""
    if isinstance(error.error, CaughtError):
        known: Mapping[str, object] = {**error.error.attributes, **error.facts}
    else:
        known = {"errno": getattr(error.error, "errno", None)}
    exit_code, number = known.get("exit_code"), known.get("errno")
    exited = isinstance(exit_code, int) and exit_code > 0
    if exited or (isinstance(number, int) and number not in _MAY_PASS):
        error.facts = {**error.facts, "non_retryable": True}
    return error
