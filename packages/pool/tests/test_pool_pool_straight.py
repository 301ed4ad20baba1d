"""A straight line between pool and worker, for who knows the secret only."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import anyio
import anyio.abc
import pytest

from thornback.pool.connection import Connection, WorkerCallError, WorkerGoneError
from thornback.pool.straight import LineRefused, LineServer, dial

pytestmark = pytest.mark.anyio
HERE = "127.0.0.1"
SECRET = b"s" * 32


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def handle(method: str, payload: object) -> object:
    match method:
        case "echo":
            return payload
        case "hang":
            await anyio.sleep_forever()
    raise ValueError(f"no method {method}")


@asynccontextmanager
async def serving(server: LineServer) -> AsyncIterator[int]:
    port = await server.open(HERE)
    try:
        yield port
    finally:
        server.close()


@asynccontextmanager
async def line() -> AsyncIterator[Connection]:
    async with serving(LineServer(handle, SECRET)) as port:
        connection = await dial(HERE, port, SECRET)
        try:
            yield connection
        finally:
            connection.abort()


async def test_calls_go_through_side_by_side_and_failures_are_data() -> None:
    async with line() as connection:
        found: list[int] = []

        async def echo(number: int) -> None:
            payload = (number, bytes(1 << 20))
            assert await connection.call("echo", payload) == payload
            found.append(number)

        async with anyio.create_task_group() as group:
            for number in range(4):
                group.start_soon(echo, number)
        assert sorted(found) == list(range(4))
        with pytest.raises(WorkerCallError, match="no method dance"):
            await connection.call("dance", None)


async def test_who_does_not_know_the_secret_is_refused_by_both_ends() -> None:
    calls: list[str] = []

    async def never(method: str, payload: object) -> object:
        calls.append(method)
        return None

    async with serving(LineServer(never, SECRET)) as port:
        with pytest.raises((LineRefused, OSError)):
            await dial(HERE, port, b"x" * 32)

    async def impostor(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(bytes(32))
        await reader.readexactly(64)
        writer.write(bytes(32))
        await reader.read()
        writer.close()

    server = await asyncio.start_server(impostor, HERE, 0)
    async with server:
        with pytest.raises(LineRefused, match="does not know the secret"):
            await dial(HERE, server.sockets[0].getsockname()[1], SECRET)
    assert calls == []


async def test_frames_before_the_proof_are_never_unpickled() -> None:
    async with (
        serving(LineServer(handle, SECRET)) as port,
        await anyio.connect_tcp(HERE, port) as stream,
    ):
        await stream.receive(32)
        await stream.send(bytes(64) + b"\0\0\0\0\0\0\0\1.")
        with pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)):
            await stream.receive()


@asynccontextmanager
async def strangers(port: int, count: int) -> AsyncIterator[list[anyio.abc.SocketStream]]:
    """Connections that never prove anything."""
    streams = [await anyio.connect_tcp(HERE, port) for _ in range(count)]
    try:
        yield streams
    finally:
        for stream in streams:
            await stream.aclose()


async def test_dial_with_100_idle_strangers_gets_a_line() -> None:
    async with (
        serving(LineServer(handle, SECRET)) as port,
        strangers(port, 100) as idle,
    ):
        for stream in idle[-3:]:
            assert len(await stream.receive()) == 32  # the server has accepted all of them
        with anyio.fail_after(2):
            connection = await dial(HERE, port, SECRET)
            assert await connection.call("echo", 1) == 1
        connection.abort()


async def test_dial_among_strangers_that_send_byte_by_byte_gets_a_line() -> None:
    async with (
        serving(LineServer(handle, SECRET)) as port,
        strangers(port, 60) as slow,
        anyio.create_task_group() as group,
    ):

        async def trickle(stream: anyio.abc.SocketStream) -> None:
            with suppress(anyio.BrokenResourceError):
                while True:
                    await stream.send(b"x")
                    await anyio.sleep(0.05)

        for stream in slow:
            group.start_soon(trickle, stream)
        for _ in range(20):
            with anyio.fail_after(2):
                connection = await dial(HERE, port, SECRET)
                assert await connection.call("echo", 1) == 1
            connection.abort()
        group.cancel_scope.cancel()


async def test_line_in_use_outlives_100_strangers() -> None:
    async with serving(LineServer(handle, SECRET)) as port:
        connection = await dial(HERE, port, SECRET)
        async with strangers(port, 100) as idle:
            await idle[-1].receive()
            assert await connection.call("echo", 1) == 1
        connection.abort()


async def test_strangers_over_the_limit_are_dropped_oldest_first() -> None:
    async with serving(LineServer(handle, SECRET)) as port, strangers(port, 66) as idle:
        for stream in idle[:2]:
            with anyio.fail_after(5), suppress(anyio.BrokenResourceError, anyio.EndOfStream):
                while True:
                    await stream.receive()
        assert len(await idle[2].receive()) == 32
        with anyio.move_on_after(0.1) as scope:
            await idle[2].receive()
        assert scope.cancelled_caught


async def test_nobody_there_is_an_error_and_leaves_no_socket() -> None:
    with socket.socket() as taken:
        taken.bind((HERE, 0))
        with pytest.raises(OSError):  # noqa: PT011  # by the system
            await dial(HERE, taken.getsockname()[1], SECRET)


async def test_who_answers_nothing_can_be_given_up() -> None:
    with socket.socket() as mute:
        mute.bind((HERE, 0))
        mute.listen()
        with anyio.move_on_after(0.05) as scope:
            await dial(HERE, mute.getsockname()[1], SECRET)
        assert scope.cancelled_caught


async def test_an_abort_wakes_all_who_wait_and_closes_behind_them() -> None:
    async with line() as connection:
        ended: list[str] = []

        async def hang(what: str) -> None:
            try:
                await connection.call("hang", what)
            except WorkerGoneError:
                ended.append(what)

        with anyio.fail_after(5):
            async with anyio.create_task_group() as group:
                for what in ("reads", "waits"):
                    group.start_soon(hang, what)
                await anyio.wait_all_tasks_blocked()
                connection.abort()
        assert sorted(ended) == ["reads", "waits"]
        with pytest.raises(WorkerGoneError):
            await connection.call("echo", 1)
        connection.abort()


async def test_the_end_of_the_other_side_ends_the_calls() -> None:
    servers: list[asyncio.StreamWriter] = []

    class Hangs(LineServer):
        async def _answer_all(
            self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
        ) -> None:
            servers.append(writer)
            await reader.read(1)

    async with serving(Hangs(handle, SECRET)) as port:
        connection = await dial(HERE, port, SECRET)
        with anyio.fail_after(5), pytest.raises(WorkerGoneError):
            await connection.call("echo", 1)
        assert len(servers) == 1
        connection.abort()
