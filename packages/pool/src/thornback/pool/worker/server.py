"""Hosts a supervisor in a process of its own, on an inherited socket: `python -m
thornback.pool.worker --fd N`.

Frames and messages are those of `wire.py`. The first request is `("start", (spec, node, node_index,
nodes, owner))`; `owner` is the pid of who will salvage the logs, or 0. The end of the stream means
that the driver side is gone: everything is ended, then the process.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import socket
from collections.abc import Sequence

from thornback.pool.ports import WorkerSpec
from thornback.pool.worker.answering import Answering
from thornback.pool.worker.params import SupervisorParams
from thornback.pool.worker.supervisor import Supervisor, SupervisorRefused


class WorkerServer:
    """Serves one client, with calls in flight side by side."""

    def __init__(
        self,
        stream: socket.socket,
        params: SupervisorParams | None = None,
        *,
        join_output: bool = False,
    ) -> None:
        self._stream = stream
        self._params = params
        self._join_output = join_output
        self._supervisor: Supervisor | None = None
        self._answering = Answering(self._handle)

    async def serve(self) -> None:
        """Answer until the stream ends; then end the rank processes."""
        reader, writer = await asyncio.open_unix_connection(sock=self._stream)
        try:
            await self._answering.serve(reader, writer)
        except ConnectionError:
            pass
        finally:
            if self._supervisor is not None:
                await self._supervisor.close()
            self._answering.cancel()
            writer.close()

    async def _handle(self, method: str, payload: object) -> object:
        match method, payload, self._supervisor:
            case (
                "start",
                (WorkerSpec() as spec, str(node), int(index), int(nodes), int(owner)),
                None,
            ):
                self._supervisor = Supervisor(
                    spec, node, index, nodes, owner=owner, params=self._params
                )
                await self._supervisor.start()
                if self._join_output:
                    os.dup2(1, 2)
                return None
            case _, _, Supervisor() as supervisor if method != "start":
                return await supervisor.handle(method, payload)
        raise SupervisorRefused(
            "expected one request `start` with (spec, node, node_index, nodes, owner), before all "
            "others"
        )


def main(arguments: Sequence[str] | None = None, *, params: SupervisorParams | None = None) -> int:
    """Run the program; returns its exit code. Without `params` its bounds are the usual ones."""
    parser = argparse.ArgumentParser(prog="thornback.pool.worker", description=__doc__)
    parser.add_argument("--fd", type=int, required=True, help="the inherited end of a socket pair")
    parser.add_argument(
        "--join-output",
        action="store_true",
        help="once started, write to standard output what would go to standard error",
    )
    options = parser.parse_args(arguments)
    # Ctrl-C in a terminal reaches us too, but what it means is for the driver to say.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    stream = socket.socket(fileno=options.fd)
    stream.set_inheritable(False)
    stream.setblocking(False)
    server = WorkerServer(stream, params, join_output=options.join_output)
    asyncio.run(server.serve())
    return 0
