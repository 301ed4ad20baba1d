"""The supervisor's end of a rank process, with the test at the other end."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

from thornback.pool.worker import wire
from thornback.pool.worker.deaths import Death, KillReason
from thornback.pool.worker.ranklog import RankLog
from thornback.pool.worker.rankprocess import Done, RankProcess

pytestmark = pytest.mark.anyio

DONE = wire.as_json(["done", 1, "{}", [], None, 0.5, 9, None])
BOUND_S = 10.0


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Other:
    """What a test holds: the process object, the other end of its stream, the kills asked for."""

    def __init__(self, log: RankLog) -> None:
        ours, self.stream = socket.socketpair()
        self.kills: list[int] = []
        self.process = RankProcess(
            5,
            ours,
            log,
            program="p",
            kill=self.kills.append,
            blob={"k": b"blob"}.get,
        )


@pytest.fixture
async def other(tmp_path: Path) -> AsyncIterator[Other]:
    log = RankLog(str(tmp_path / "log"), 1 << 20)
    made = Other(log)
    with anyio.fail_after(BOUND_S):
        await made.process.connect()
        yield made
        made.stream.close()
        made.process.reaped(0, 0)
        made.process.finish()
        log.close()


async def ask(other: Other, found: list[object]) -> None:
    found.append(await other.process.ask(("rank", 1, {}), serial=1))


async def test_what_was_said_before_the_death_counts(other: Other) -> None:
    found: list[object] = []
    async with anyio.create_task_group() as group:
        group.start_soon(ask, other, found)
        await anyio.wait_all_tasks_blocked()
        other.stream.sendall(DONE)
        other.stream.shutdown(socket.SHUT_RDWR)
        other.process.reaped(9, 7)
    assert [type(each) for each in found] == [Done]
    assert not other.process.usable
    await other.process.dead.wait()
    assert other.process.death == Death(pid=5, status=9, max_rss_bytes=7)


async def test_a_death_counts_also_if_something_holds_the_stream_open(other: Other) -> None:
    found: list[object] = []
    async with anyio.create_task_group() as group:
        group.start_soon(ask, other, found)
        await anyio.wait_all_tasks_blocked()
        other.process.reaped(3 << 8, 7)
    assert found == [Death(pid=5, status=3 << 8, max_rss_bytes=7)]
    assert await other.process.ask(("rank", 2, {}), serial=2) == found[0]


@pytest.mark.parametrize(
    "said",
    [
        pytest.param(wire.as_json(["done", 2, None, [], None, 0.5, 9, None]), id="another-rank"),
        pytest.param(wire.as_json(["set_up", None, 9, None]), id="a-setup"),
        pytest.param(wire.as_json({}), id="nonsense"),
        pytest.param(b"\xff" * 8, id="a-huge-frame"),
        pytest.param(wire.frame(b"[" * 100_000), id="deep-json"),
        pytest.param(DONE + DONE, id="twice"),
    ],
)
async def test_a_process_that_says_something_else_is_killed(other: Other, said: bytes) -> None:
    found: list[object] = []
    async with anyio.create_task_group() as group:
        group.start_soon(ask, other, found)
        await anyio.wait_all_tasks_blocked()
        other.stream.sendall(said)
        while not other.kills:
            await anyio.lowlevel.checkpoint()
        other.process.reaped(9, 0)
    assert other.process.death is not None
    assert other.process.death.killed_for is KillReason.PROTOCOL
    assert not other.process.usable


async def test_why_it_was_killed_stands_only_if_that_is_what_ended_it(other: Other) -> None:
    other.process.kill(KillReason.TIMED_OUT)
    other.process.kill(KillReason.RETIRED)
    assert other.kills == [5, 5]
    other.process.reaped(11, 0)
    other.process.kill(KillReason.CLOSED)
    other.process.finish()
    assert other.kills == [5, 5]
    assert other.process.death == Death(pid=5, status=11, max_rss_bytes=0)
