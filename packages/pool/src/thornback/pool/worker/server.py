"""Hosts a supervisor in a process of its own, on an inherited socket: `python -m
thornback.pool.worker --fd N`.

Frames and messages are those of `wire.py`. The first request is `("start", (spec, node, node_index,
nodes))`, with the pid of who will salvage the logs after that, if there is such a process. The end
of the stream means that the driver side is gone: everything is ended, then the process.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import socket
from collections.abc import Sequence

from thornback.pool.caught import catch
from thornback.pool.ports import WorkerSpec
from thornback.pool.worker import wire
from thornback.pool.worker.supervisor import Supervisor, SupervisorRefused

_CHUNK_BYTES = 1 << 18


class WorkerServer:
    """Serves one client, with calls in flight side by side."""

    def __init__(self, stream: socket.socket) -> None:
        self._stream = stream
        self._supervisor: Supervisor | None = None
        self._calls: dict[asyncio.Task[None], None] = {}

    async def serve(self) -> None:
        """Answer until the stream ends; then end the rank processes."""
        reader, writer = await asyncio.open_unix_connection(sock=self._stream)
        frames = wire.Frames()
        try:
            while data := await reader.read(_CHUNK_BYTES):
                for body in frames.feed(data):
                    task = asyncio.get_running_loop().create_task(self._answer(body, writer))
                    self._calls[task] = None
                    task.add_done_callback(self._calls.pop)
        except ConnectionError:
            pass
        finally:
            if self._supervisor is not None:
                await self._supervisor.close()
                self._supervisor.leave_logs()
            for task in tuple(self._calls):
                task.cancel()
            writer.close()

    async def _answer(self, body: bytes, writer: asyncio.StreamWriter) -> None:
        match wire.unpickled(body):
            case (int(call), str(method), payload):
                pass
            case other:
                raise wire.FrameError(f"expected (id, method, payload), got {str(other)[:80]}")
        try:
            reply = (call, True, await self._handle(method, payload))
        except Exception as error:  # noqa: BLE001  # whatever it is, the caller must hear of it
            reply = (call, False, catch(error))
        if not writer.is_closing():
            writer.write(wire.pickled(reply))

    async def _handle(self, method: str, payload: object) -> object:
        match method, payload, self._supervisor:
            case "start", (WorkerSpec() as spec, str(node), int(index), int(nodes)), None:
                await self._start(spec, node, index, nodes, 0)
                return None
            case (
                "start",
                (WorkerSpec() as spec, str(node), int(index), int(nodes), int(owner)),
                None,
            ):
                await self._start(spec, node, index, nodes, owner)
                return None
            case _, _, Supervisor() as supervisor if method != "start":
                return await supervisor.handle(method, payload)
        raise SupervisorRefused(
            "expected one request `start` with (spec, node, node_index, nodes), and an owner's pid "
            "perhaps, before all others"
        )

    async def _start(self, spec: WorkerSpec, node: str, index: int, nodes: int, owner: int) -> None:
        self._supervisor = Supervisor(spec, node, index, nodes, owner=owner)
        await self._supervisor.start()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program; returns its exit code."""
    parser = argparse.ArgumentParser(prog="thornback.pool.worker", description=__doc__)
    parser.add_argument("--fd", type=int, required=True, help="the inherited end of a socket pair")
    fd: int = parser.parse_args(arguments).fd
    # Ctrl-C in a terminal reaches us too, but what it means is for the driver to say.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    stream = socket.socket(fileno=fd)
    stream.set_inheritable(False)
    stream.setblocking(False)
    asyncio.run(WorkerServer(stream).serve())
    return 0
