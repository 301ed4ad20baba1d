"""The supervisor's end of a rank process, with the test at the other end."""

from __future__ import annotations

import asyncio
import pickle
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import attrs
import pytest

from thornback.pool import Assignment, Report
from thornback.pool.worker import wire
from thornback.pool.worker.assignments import Books
from thornback.pool.worker.deaths import Death, KillReason
from thornback.pool.worker.feed import Feed, FeedContext
from thornback.pool.worker.forks import Sockets
from thornback.pool.worker.health import SlotHealth
from thornback.pool.worker.params import SupervisorParams
from thornback.pool.worker.ranklog import RankLog
from thornback.pool.worker.rankprocess import RankProcess

pytestmark = pytest.mark.anyio

BOUND_S = 10.0
PATIENT = SupervisorParams(start_limit_s=BOUND_S)


def done(serial: int, following: int = 0) -> bytes:
    return wire.as_json(["done", serial, "{}", [], None, 0.5, 9, None, 0, following])


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Other:
    """What a test holds: the process object, the other ends of its sockets, the kills asked
    for."""

    def __init__(self, log: RankLog) -> None:
        ours, self.stream, self.takes = Sockets.made()
        self.kills: list[int] = []
        self.killed = anyio.Event()
        self.process = RankProcess(
            5,
            ours,
            log,
            program="p",
            kill=self.kill,
            blob={"k": b"blob"}.get,
        )
        self.books = Books(
            work=Assignment(assignment=1, epoch="e", stage=0, ranks=(range(4),), program="p")
        )

    def kill(self, pid: int) -> None:
        self.kills.append(pid)
        self.killed.set()

    def take(self) -> int:
        """Take a ticket as the process does; return its serial."""
        serial: int = pickle.loads(self.takes.recv(1 << 14))[1]
        return serial

    def say(self, *messages: bytes) -> None:
        self.stream.sendall(b"".join(messages))

    def start(self) -> int:
        serial = self.take()
        self.say(wire.as_json(["started", serial]))
        return serial

    @property
    def fate(self) -> Report:
        """What became of the ranks so far, handing back what is left."""
        self.books.hand_back()
        self.books.report()
        assert self.books.first is not None
        return self.books.first.report(0.0)


@pytest.fixture
async def other(tmp_path: Path) -> AsyncIterator[Other]:
    log = RankLog(str(tmp_path / "log"), 1 << 20)
    made = Other(log)
    with anyio.fail_after(BOUND_S):
        made.process.connect()
        yield made
        made.stream.close()
        made.takes.close()
        made.process.reaped(0, 0)
        log.close()


async def feed(
    other: Other,
    found: list[int],
    timeout_s: float | None = None,
    params: SupervisorParams = PATIENT,
) -> Feed:
    """Begin to feed the ranks; their first ticket is there then."""
    other.books.work = attrs.evolve(other.books.work, timeout_s=timeout_s)
    context = FeedContext(
        node="n",
        params=params,
        health=SlotHealth(own_gpus=False),
        oom_risen=lambda: False,
        saved=lambda go_on: go_on(),
    )
    made = Feed(other.process, other.books, context)
    assert other.books.begin() is not None

    async def run() -> None:
        found.append(await made.run({}, 0))

    other.process.pace.each_s = 0.005  # so that several tickets lie ahead
    asyncio.get_running_loop().create_task(run())
    await anyio.wait_all_tasks_blocked()
    return made


async def test_what_was_said_before_the_death_counts(other: Other) -> None:
    found: list[int] = []
    await feed(other, found)
    serial = other.start()
    other.say(done(serial))
    other.stream.shutdown(socket.SHUT_RDWR)
    other.process.reaped(9, 7)
    await anyio.wait_all_tasks_blocked()
    assert [each.ok for each in other.fate.outcomes] == [True]
    assert (other.fate.running, other.fate.returned) == (1, (range(2, 4),))
    assert found == [1]
    assert not other.process.usable
    assert other.process.death == Death(pid=5, status=9, max_rss_bytes=7)


async def test_a_death_counts_also_if_something_holds_the_stream_open(other: Other) -> None:
    found: list[int] = []
    await feed(other, found)
    other.start()
    other.process.reaped(3 << 8, 7)
    await anyio.wait_all_tasks_blocked()
    assert found == [0]
    (outcome,) = other.fate.outcomes
    assert outcome.error is not None
    assert outcome.error.attributes == {"exit_code": 3}
    assert other.fate.returned == (range(1, 4),)


async def test_what_has_died_runs_no_more_also_before_its_slot_goes_on(other: Other) -> None:
    """A heartbeat that asks in between is answered from books that have no such rank any more."""
    found: list[int] = []
    made = await feed(other, found)
    other.start()
    other.process.pull()
    before = made.began
    assert before is not None
    other.process.reaped(9, 0)
    assert list(other.books.out) == []
    assert made.began is None
    await anyio.wait_all_tasks_blocked()
    assert found == [0]


@pytest.mark.parametrize("took", [0, 1, 3])
async def test_a_death_costs_one_rank_however_many_tickets_were_taken(
    other: Other, took: int
) -> None:
    """A rank that has not said that it started is nobody's victim: it goes to the next process."""
    found: list[int] = []
    await feed(other, found)
    for _ in range(took):
        other.take()
    other.process.reaped(9, 0)
    await anyio.wait_all_tasks_blocked()
    assert found == [1]
    assert [item.rank for item in other.books.out] == [0]
    assert other.fate.outcomes == ()


async def test_what_is_handed_back_is_what_the_process_has_not_taken(other: Other) -> None:
    found: list[int] = []
    made = await feed(other, found)
    first = other.start()
    second = other.take()  # so it is done with the first, and has not said so yet
    made.hand_back()
    assert other.books.running == 1
    assert other.fate.returned == (range(2, 4),)
    with pytest.raises(BlockingIOError):
        other.takes.recv(1, socket.MSG_DONTWAIT)
    other.say(done(first, second), done(second))
    while not found:
        await anyio.lowlevel.checkpoint()
    other.books.report()
    assert other.books.last is not None
    last = other.books.last.report(0.0)
    assert [(each.rank, each.ok) for each in last.outcomes] == [(0, True), (1, True)]


async def test_a_kill_waits_until_it_is_certain_whom_it_hits(other: Other) -> None:
    found: list[int] = []
    made = await feed(other, found)
    assert not made.kill(KillReason.MEMORY), "nothing has started"
    first = other.start()
    second = other.take()
    assert not made.kill(KillReason.MEMORY), "it is done with the first rank"
    other.say(done(first, second))
    assert not made.kill(KillReason.MEMORY), "the first rank is over"
    assert other.kills == []
    assert made.kill(KillReason.MEMORY)
    assert other.kills == [5]
    with pytest.raises(BlockingIOError):
        other.takes.recv(1, socket.MSG_DONTWAIT)


async def test_kills_that_wait_for_a_rank_to_begin_do_not_put_off_its_time_to_begin(
    other: Other,
) -> None:
    params = SupervisorParams(start_limit_s=0.2)
    made = await feed(other, [], params=params)
    while not other.kills:
        assert not made.kill(KillReason.MEMORY)
        await anyio.sleep(0.02)
    other.process.reaped(9, 0)
    assert other.process.death is not None
    assert other.process.death.killed_for is KillReason.NOT_STARTED


async def test_a_process_that_shuts_its_sockets_down_dies_like_any_other(other: Other) -> None:
    found: list[int] = []
    await feed(other, found)
    other.start()
    other.takes.shutdown(socket.SHUT_RDWR)
    other.process.kill(KillReason.TIMED_OUT)
    assert other.kills == [5]
    other.process.reaped(9, 0)
    await anyio.wait_all_tasks_blocked()
    assert found == [0]
    assert [each.rank for each in other.fate.outcomes] == [0]


async def test_a_time_out_counts_from_the_start_of_each_rank(other: Other) -> None:
    found: list[int] = []
    await feed(other, found, timeout_s=0.05)
    first = other.start()
    second = other.take()
    await anyio.sleep(0.1)  # now it is over its time, but it is done: a kill would hit the next
    assert other.kills == []
    other.say(done(first, second))
    await other.killed.wait()
    other.process.reaped(9, 0)
    await anyio.wait_all_tasks_blocked()
    fine, late = other.fate.outcomes
    assert fine.ok
    assert late.error is not None
    assert late.error.type_names[0] == "thornback.pool.RankTimedOut"
    assert late.rank == 1


@pytest.mark.parametrize(
    "said",
    [
        pytest.param(done(77), id="another-rank"),
        pytest.param(wire.as_json(["set_up", None, 9, None, False]), id="a-setup"),
        pytest.param(wire.as_json(["torn_down"]), id="a-teardown"),
        pytest.param(done(77, 78), id="another-rank-next"),
        pytest.param(wire.as_json(["checkpoint", 77, 1, ""]), id="a-checkpoint-of-another"),
        pytest.param(wire.as_json(["progress", 77, 1.0, None]), id="progress-of-another"),
        pytest.param(wire.as_json({}), id="nonsense"),
        pytest.param(b"\xff" * 8, id="a-huge-frame"),
        pytest.param(wire.frame(b"[" * 100_000), id="deep-json"),
        pytest.param(None, id="twice"),
    ],
)
async def test_a_process_that_says_something_else_is_killed(
    other: Other, said: bytes | None
) -> None:
    await feed(other, [])
    serial = other.start()
    other.say(done(serial) * 2 if said is None else said)
    await other.killed.wait()
    with pytest.raises(BlockingIOError):
        other.takes.recv(1, socket.MSG_DONTWAIT)  # nothing more is started in it
    other.process.reaped(9, 0)
    assert other.process.death is not None
    assert other.process.death.killed_for is KillReason.PROTOCOL
    assert not other.process.usable


async def test_what_it_says_of_no_rank_at_all_is_not_believed(other: Other) -> None:
    made = await feed(other, [])
    serial = other.start()
    made.hand_back()
    other.say(done(serial), wire.as_json(["started", 0]), done(0))
    await other.killed.wait()
    assert [each.rank for each in other.fate.outcomes] == [0]


async def test_why_it_was_killed_stands_only_if_that_is_what_ended_it(other: Other) -> None:
    other.process.kill(KillReason.TIMED_OUT)
    other.process.kill(KillReason.RETIRED)
    assert other.kills == [5, 5]
    other.process.reaped(11, 0)
    other.process.kill(KillReason.CLOSED)
    assert other.kills == [5, 5]
    assert other.process.death == Death(pid=5, status=11, max_rss_bytes=0)
