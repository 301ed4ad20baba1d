"""What a rank is told and says while it runs, and how its process ends: checkpoints, progress,
drains, variables, teardown, replacement, tickets ahead.

Long, since all of it stands on one supervisor and on rank functions that wait for its next word.
"""

from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import attrs
import pytest

from thornback.pool import Assignment, Checkpoint, Outcome, Report, WorkerSpec
from thornback.pool.worker.assignments import Books
from thornback.pool.worker.params import SupervisorParams
from thornback.pool.worker.proctree import is_alive
from thornback.pool.worker.sources import source_program
from thornback.pool.worker.supervisor import Supervisor, SupervisorRefused

pytestmark = pytest.mark.anyio

BOUND_S = 30.0
HASTY = SupervisorParams(reclaim_s=0.05)
ONE_SLOT = WorkerSpec()
PATIENT = SupervisorParams(reclaim_s=BOUND_S)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def no_way(reason: str) -> None:
    raise AssertionError(f"the worker gave up: {reason}")


@asynccontextmanager
async def running(
    body: str,
    setup: str = "pass",
    *,
    spec: WorkerSpec = ONE_SLOT,
    params: SupervisorParams = HASTY,
    more: str = "",
) -> AsyncIterator[Supervisor]:
    """A supervisor with program `p`; `more` is the code of its `teardown`."""
    with anyio.fail_after(BOUND_S):
        supervisor = Supervisor(spec, "node-1", params=params, give_up=no_way)
        await supervisor.start()
        try:
            head = "import os, signal, sys, time\n"
            blob = source_program(head + body, setup, f"{head}{more}" if more else None)
            await supervisor.load("p", blob)
            yield supervisor
        finally:
            assert await supervisor.close()


def work(number: int = 1, count: int = 1) -> Assignment:
    return Assignment(
        assignment=number, epoch=f"e{number}", stage=0, ranks=(range(count),), program="p"
    )


async def final(supervisor: Supervisor, one: Assignment) -> Report:
    """Run one rank to its end, however slow the machine is."""
    report = await supervisor.run(one)
    return report if report.final else await supervisor.wait(one.assignment)


def values(report: Report) -> list[object]:
    assert all(outcome.ok for outcome in report.outcomes), report
    return [json.loads(outcome.result or "null") for outcome in report.outcomes]


def only(report: Report) -> Outcome:
    (outcome,) = report.outcomes
    return outcome


class Gate:
    """Holds ranks until it is opened for one of them."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self._fd = os.open(path, os.O_RDWR | os.O_NONBLOCK)
        self.body = f"\nwith open({str(path)!r}) as leave: leave.readline()\n"

    def open(self) -> None:
        os.write(self._fd, b"\n")

    def close(self) -> None:
        os.close(self._fd)


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Gate]:
    made = Gate(tmp_path / "leave")
    yield made
    made.close()


# -- checkpoints ---------------------------------------------------------------------------------


async def test_a_checkpoint_is_sent_at_once_and_again_until_it_was_seen(gate: Gate) -> None:
    body = f"call.checkpoint(b'one'){gate.body}call.checkpoint(b'two'){gate.body}1/0"
    async with running(body) as supervisor:
        first = await supervisor.run(work())
        assert (first.running, first.final) == (0, False)
        one = Checkpoint(rank=0, version=1, data=b"one")
        for _ in range(2):
            report = await supervisor.handle("wait", (1, (), 0))
            assert report == Report(running=0, checkpoint=one)
        gate.open()
        two = Checkpoint(rank=0, version=2, data=b"two")
        assert await supervisor.wait(1, (), 1) == Report(running=0, checkpoint=two)
        gate.open()
        last = await supervisor.wait(1, (), 2)
        assert (last.final, last.checkpoint, only(last).ok) == (True, None, False)
        assert (await supervisor.wait(1, (), 1)).checkpoint == two


async def test_a_checkpoint_outlives_a_process_that_is_killed_right_after() -> None:
    body = "call.checkpoint(bytes(range(256)) * 4096)\nos.kill(os.getpid(), 9)"
    async with running(body, params=PATIENT) as supervisor:
        report = await supervisor.run(work())
    assert not only(report).ok
    assert report.checkpoint is not None
    assert report.checkpoint.data == bytes(range(256)) * 4096


async def test_a_recalled_rank_keeps_its_checkpoint_and_a_good_one_does_not(gate: Gate) -> None:
    body = f"call.checkpoint(b'x')\nif call.rank:{gate.body.replace(chr(10), chr(10) + '    ')}"
    async with running(body, params=PATIENT) as supervisor:
        assert (await supervisor.run(work())).checkpoint is None
        async with anyio.create_task_group() as group:
            one = attrs.evolve(work(2), ranks=(range(1, 2),))
            group.start_soon(supervisor.run, one)
            report = await wait_for_checkpoint(supervisor, one)
            assert report.running == 1
            await supervisor.recall(2, kill=True)
            assert (await supervisor.wait(2, (), 1)).checkpoint is None
            last = await supervisor.wait(2)
    assert last.returned == (range(1, 2),)
    assert last.checkpoint == Checkpoint(rank=1, version=1, data=b"x")


async def test_of_several_ranks_that_fail_each_keeps_its_checkpoint() -> None:
    body = "call.checkpoint(bytes([call.rank]))\nif call.rank != 1: os.kill(os.getpid(), 9)"
    async with running(body, params=PATIENT) as supervisor:
        four = attrs.evolve(work(), ranks=(range(4),))
        report = await supervisor.run(four)
        assert (await supervisor.run(four)).left == report.left, "asked for again"
    assert [outcome.ok for outcome in report.outcomes] == [False, True, False, False]
    assert report.left == (
        Checkpoint(rank=0, version=1, data=b"\x00"),
        Checkpoint(rank=2, version=3, data=b"\x02"),
    )
    assert report.checkpoint == Checkpoint(rank=3, version=4, data=b"\x03")


async def test_of_too_much_that_failed_ranks_leave_the_oldest_is_dropped() -> None:
    books = Books(work=attrs.evolve(work(), ranks=(range(40),)))
    for _ in range(40):
        books.begin()
        books.save(bytes(1 << 20))
        books.end({"rank": 0, "ok": False}, 0.0)
    books.report()
    assert books.last is not None
    assert [checkpoint.rank for checkpoint in books.last.left] == list(range(23, 39))


UNTIL_DRAINING = "while call.draining() is None: time.sleep(0.001)\ncall.checkpoint(b'x')\n"


async def test_while_the_node_drains_a_checkpoint_is_kept_once_the_pool_has_it(
    tmp_path: Path,
) -> None:
    """Sent at once, too, with what has not started, however young the assignment is."""
    seen = tmp_path / "seen"
    body = f"{UNTIL_DRAINING}return os.path.exists({str(seen)!r})"
    async with running(body, params=PATIENT) as supervisor:
        await supervisor.drain(60)
        first = await supervisor.run(work(count=3))
        assert first.checkpoint == Checkpoint(rank=0, version=1, data=b"x")
        assert (first.running, first.returned, first.final) == (0, (range(1, 3),), False)
        assert (await supervisor.wait(1, (), 0)).checkpoint == first.checkpoint
        seen.touch()
        assert values(await supervisor.wait(1, (), 1)) == [True]


async def test_what_was_saved_before_the_notice_is_sent_at_the_notice(gate: Gate) -> None:
    async with running(f"call.checkpoint(b'x'){gate.body}", params=PATIENT) as supervisor:
        async with anyio.create_task_group() as group:
            group.start_soon(supervisor.run, work(count=2))
            await anyio.lowlevel.checkpoint()
            assert (await supervisor.wait(1)).checkpoint == Checkpoint(rank=0, version=1, data=b"x")
            await supervisor.drain(60)
            first = await supervisor.run(work(count=2))  # asked again: the same report
        assert first.checkpoint == Checkpoint(rank=0, version=1, data=b"x")
        assert (first.running, first.returned, first.final) == (0, (range(1, 2),), False)
        gate.open()
        assert (await supervisor.wait(1, (), 1)).final


async def test_a_pool_that_confirms_nothing_holds_no_rank_for_ever() -> None:
    params = attrs.evolve(PATIENT, confirm_s=0.01)
    async with running(f"{UNTIL_DRAINING}return 7", params=params) as supervisor:
        await supervisor.drain(60)
        await supervisor.run(work())
        assert values(await unconfirmed(supervisor)) == [7]


async def unconfirmed(supervisor: Supervisor) -> Report:
    """Like a pool to which no checkpoint ever comes."""
    while not (report := await supervisor.wait(1, (), 0)).final:
        await anyio.lowlevel.checkpoint()
    return report


async def test_a_rank_that_waits_for_the_pool_is_recalled_and_closed() -> None:
    async with running(f"{UNTIL_DRAINING}return 7", params=PATIENT) as supervisor:
        await supervisor.drain(60)
        await supervisor.run(work())
        await supervisor.recall(1, kill=True)
        assert (await unconfirmed(supervisor)).returned == (range(1),)
        again = await supervisor.run(work(2))
        assert again.checkpoint == Checkpoint(rank=0, version=1, data=b"x")


async def wait_for_checkpoint(supervisor: Supervisor, one: Assignment) -> Report:
    """Like a pool that waits from the start."""
    await anyio.lowlevel.checkpoint()
    return await supervisor.wait(one.assignment)


async def test_what_was_saved_is_there_in_the_next_attempt() -> None:
    body = "return [call.restored and len(call.restored), call.args and len(call.args)]"
    async with running(body, params=PATIENT) as supervisor:
        again = attrs.evolve(work(count=3), restored=(None, b"abc", bytes(1 << 20)))
        assert values(await supervisor.run(again)) == [[None, None], [3, None], [1 << 20, None]]
        large = attrs.evolve(work(2, 3), args=(b"a", bytes(3 << 20), b"b"))
        assert values(await supervisor.run(large)) == [[None, 1], [None, 3 << 20], [None, 1]]
        with pytest.raises(
            SupervisorRefused, match="restored for all of its 2 ranks or none, got 1"
        ):
            await supervisor.run(attrs.evolve(work(3, 2), restored=(b"",)))


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("call.checkpoint(bytes((1 << 20) + 1))", "at most 1048576 bytes, got 1048577"),
        ("call.checkpoint('text')", "expected bytes as a checkpoint, got str"),
        ("state['call'].checkpoint(b'')", "outside of the rank it belongs to"),
        ("state['setup'].checkpoint(b'')", "save it in `run`, not in `setup`"),
        ("call.progress(float('nan'), None)", "finite numbers"),
    ],
)
async def test_a_wrong_checkpoint_is_the_ranks_failure(body: str, words: str) -> None:
    body = f"if not call.rank: state['call'] = call\nelse:\n    {body}"
    async with running(body, "state['setup'] = call", params=PATIENT) as supervisor:
        fine, failed = (await supervisor.run(work(count=2))).outcomes
    assert fine.ok
    assert failed.error is not None
    assert words in failed.error.message


async def test_checkpoints_inputs_and_drains_are_asked_for_by_many_threads() -> None:
    body = """
import threading
found = []
def ask(number):
    call.checkpoint(bytes([number]) * 1000)
    found.append(len(call.inputs(f'i{number % 2}')))
    call.progress(number, None)
    call.draining()
threads = [threading.Thread(target=ask, args=(number,)) for number in range(16)]
for each in threads: each.start()
for each in threads: each.join()
return sorted(found)
"""
    async with running(body, params=PATIENT) as supervisor:
        await supervisor.load("i0", bytes(5))
        await supervisor.load("i1", bytes(1 << 20))
        assert values(await supervisor.run(work())) == [[5] * 8 + [1 << 20] * 8]


async def test_a_forked_copy_cannot_speak_for_its_rank(gate: Gate) -> None:
    """Also if a thread held the lock at the fork."""
    body = f"""
import threading
lock = call.checkpoint.__self__._line._lock
with lock:
    pid = os.fork()
    if pid == 0:
        try: call.checkpoint(b'copy')
        except RuntimeError: said = 1
        else: said = 2
        call.progress(1, 2)
        os._exit(said if call.draining() is not None else 3)
code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
call.checkpoint(b'original')
{gate.body}
return code
"""
    async with running("call.draining()" + body) as supervisor:
        await supervisor.drain(60)
        await supervisor.run(work())
        report = await supervisor.wait(1)
        assert report.checkpoint == Checkpoint(rank=0, version=1, data=b"original")
        gate.open()
        assert values(await supervisor.wait(1, (), 1)) == [1]


# -- progress, drains ----------------------------------------------------------------------------


async def test_progress_is_in_the_beats(gate: Gate) -> None:
    body = f"call.progress(3, 10)\ncall.progress(4, 10)\ncall.checkpoint(b''){gate.body}"
    async with running(body) as supervisor:
        await supervisor.run(work(count=2))
        await supervisor.wait(1)
        (found,) = (await supervisor.beat()).running
        assert found.progress == (3.0, 10.0)  # the second came within a second
        gate.open()
        await supervisor.wait(1, (), 1)
        (await supervisor.run(attrs.evolve(work(2), ranks=(range(7, 8),))))
        await supervisor.wait(2)
        (found,) = (await supervisor.beat()).running
        assert (found.rank, found.progress) == (7, (3.0, 10.0))
        gate.open()
        await supervisor.wait(2, (), 1)


async def test_a_running_rank_hears_of_a_drain_and_the_newest_counts(gate: Gate) -> None:
    body = (
        "seen = [call.draining()]\ncall.checkpoint(b'')\n"
        f"{gate.body}seen.append(call.draining())\nreturn seen"
    )
    async with running(body, spec=WorkerSpec(slots=2)) as supervisor:
        await supervisor.run(work())
        await supervisor.wait(1)
        await supervisor.handle("drain", None)
        await supervisor.handle("drain", 50)
        gate.open()
        (seen,) = values(await supervisor.wait(1, (), 1))
        match seen:
            case [None, float(left_s)]:
                assert 40 < left_s <= 50
            case _:
                pytest.fail(f"{seen!r}")
        await supervisor.drain(-1.0)
        other = attrs.evolve(work(2), program="q")  # in a process that comes after the notice
        await supervisor.load("q", source_program("return call.draining()", "call.draining()"))
        assert values(await final(supervisor, other)) == [0.0]
        await supervisor.drain(None)
        await supervisor.load("r", source_program("return str(call.draining())"))
        soon = await final(supervisor, attrs.evolve(work(3), program="r"))
        assert values(soon) == [str(math.inf)]
        with pytest.raises(SupervisorRefused, match="nan"):
            await supervisor.drain(math.nan)


async def test_time_goes_on_while_a_notice_lies_unread() -> None:
    async with running("return call.draining()") as supervisor:
        await final(supervisor, work())
        await supervisor.drain(50.0)
        began = anyio.current_time()
        await anyio.sleep(0.2)
        (left_s,) = values(await final(supervisor, work(2)))
        assert isinstance(left_s, float)
        assert left_s <= 50.0 - 0.2
        assert left_s >= 50.0 - (anyio.current_time() - began) - 0.01


# -- variables -----------------------------------------------------------------------------------


async def test_variables_of_an_assignment_are_there_while_it_runs_and_no_longer() -> None:
    names = "('MINE', 'HOME', 'NEW')"
    body = f"found = [os.environ.get(n) for n in {names}]\nos.environ['MINE'] = 'x'\nreturn found"
    async with running(
        body,
        "import os; assert os.environ.get('MINE') == 'a'",
        spec=WorkerSpec(env={"HOME": "/home"}),
        params=PATIENT,
    ) as supervisor:
        mine = {"MINE": "a", "HOME": "/other"}
        first = await supervisor.run(attrs.evolve(work(1, 2), env=mine))
        assert values(first) == [["a", "/other", None]] * 2
        second = await supervisor.run(attrs.evolve(work(2), env={"NEW": "b"}))
        assert values(second) == [[None, "/home", "b"]]
        assert first.outcomes[0].pid == second.outcomes[0].pid


# -- teardown ------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["another program", "worn", "close"])
async def test_a_program_is_torn_down_when_its_process_ends_in_order(
    end: str, tmp_path: Path
) -> None:
    said = tmp_path / "said"
    torn = f"open({str(said)!r}, 'a').write(os.environ['THORNBACK_SLOT'] + state['s'] + '|')"
    async with running("return 1", "state['s'] = 'x'", more=torn, params=PATIENT) as supervisor:
        limit = 1 if end == "worn" else None
        await supervisor.run(attrs.evolve(work(1), max_ranks_per_child=limit))
        if end == "close":
            assert await supervisor.handle("close", 10.0) is True
        elif end == "worn":
            await supervisor.run(work(2))
        else:
            await supervisor.load("q", source_program("return 1"))
            await supervisor.run(attrs.evolve(work(2), program="q"))
        assert said.read_text() == "0x|"
    assert said.read_text() == "0x|", "a close without leave does not tear down"


async def test_a_close_in_order_does_not_wait_for_a_rank_that_runs(
    gate: Gate, tmp_path: Path
) -> None:
    torn = tmp_path / "torn"
    more = f"open({str(torn)!r}, 'w')"
    async with running(f"call.checkpoint(b'begun'){gate.body}", more=more) as supervisor:
        assert (await supervisor.run(work(1, 2))).running == 0
        assert (await supervisor.wait(1, (), 0)).checkpoint is not None, "it has begun"
        with anyio.fail_after(5.0):  # half of `teardown_timeout_s`
            assert await supervisor.close(BOUND_S)
    assert not torn.exists()


@pytest.mark.parametrize(
    "torn", ["time.sleep(60)", "raise ValueError('odd')", "os._exit(3)", "os.fork()", "sys.exit()"]
)
async def test_a_teardown_that_goes_wrong_delays_and_fails_nobody(torn: str) -> None:
    async with running("return os.getpid()", more=torn, params=PATIENT) as supervisor:
        first = attrs.evolve(work(1), max_ranks_per_child=1, teardown_timeout_s=0.3)
        before = only(await supervisor.run(first))
        after = only(await supervisor.run(work(2)))
        assert (before.ok, after.ok) == (True, True)
        assert before.pid != after.pid
        assert not is_alive(before.pid)
        logged = b"".join(chunk.data for chunk in (await supervisor.beat((), {})).logs)
        assert (b"ValueError: odd" in logged) == ("odd" in torn)


async def test_a_close_waits_for_teardowns_only_so_long_and_another_hastens_it(
    tmp_path: Path,
) -> None:
    fifo = tmp_path / "said"
    os.mkfifo(fifo)
    said = os.open(fifo, os.O_RDWR | os.O_NONBLOCK)
    torn = f"open({str(fifo)!r}, 'w').write('x')\ntime.sleep(60)"
    async with running("return 1", more=torn, params=PATIENT) as supervisor:
        patient = attrs.evolve(work(), teardown_timeout_s=60.0)
        pid = only(await supervisor.run(patient)).pid
        async with anyio.create_task_group() as group:
            group.start_soon(supervisor.close, 60.0)
            await anyio.wait_readable(said)
            assert await supervisor.close(None)
        assert not is_alive(pid)
    os.close(said)
    async with running("return 1", more="time.sleep(60)", params=PATIENT) as supervisor:
        await supervisor.run(attrs.evolve(work(), teardown_timeout_s=60.0))
        assert await supervisor.close(0.2)


# -- replacement ---------------------------------------------------------------------------------


async def test_a_process_is_replaced_after_so_many_ranks() -> None:
    async with running("return 1", params=PATIENT) as supervisor:
        before: list[int] = []
        for number, (limit, count) in enumerate([(1, 6), (2, 3), (3, 2), (None, 1), (1, 6)]):
            one = attrs.evolve(work(number, 6), max_ranks_per_child=limit)
            pids = [outcome.pid for outcome in (await supervisor.run(one)).outcomes]
            assert len(set(pids)) == count, (limit, pids)
            assert sorted(pids, key=pids.index) == pids
            assert not {*pids} & {*before}, "what an assignment without a limit used is worn now"
            before = pids


async def test_a_process_that_grows_is_replaced() -> None:
    body = "state.setdefault('kept', []).append(bytearray(call.rank % 2 * (64 << 20)))"
    async with running(body, params=PATIENT) as supervisor:
        bounded = attrs.evolve(work(1, 6), max_growth_bytes=32 << 20)
        pids = [outcome.pid for outcome in (await supervisor.run(bounded)).outcomes]
        assert [pids.index(pid) for pid in pids] == [0, 0, 2, 2, 4, 4]
        free = [outcome.pid for outcome in (await supervisor.run(work(2, 4))).outcomes]
        assert len(set(free)) == 1


# -- tickets ahead -------------------------------------------------------------------------------


async def test_a_recall_takes_back_what_lies_ahead_behind_a_rank_that_blocks(gate: Gate) -> None:
    body = f"if call.rank == 500:{gate.body.replace(chr(10), chr(10) + '    ')}"
    async with running(body, params=PATIENT) as supervisor:
        async with anyio.create_task_group() as group:
            group.start_soon(supervisor.run, work(count=1000))
            while not (found := (await supervisor.beat()).running) or found[0].rank < 500:
                await anyio.lowlevel.checkpoint()
            await supervisor.recall(1, kill=False)
            first = await supervisor.run(work(count=1000))
            assert (len(first.outcomes), first.running) == (500, 500)
            assert first.returned == (range(501, 1000),)
            gate.open()
            last = await supervisor.wait(1)
        assert [(each.rank, each.ok) for each in last.outcomes] == [(500, True)]
        assert only(await supervisor.run(work(2))).pid == last.outcomes[0].pid


async def test_an_assignment_that_is_reclaimed_in_full_flight_loses_and_repeats_nothing(
    tmp_path: Path,
) -> None:
    ran = tmp_path / "ran"
    body = f"with open({str(ran)!r}, 'a') as file: file.write(f'{{call.rank}} ')"
    async with running(body, params=SupervisorParams(reclaim_s=0.02)) as supervisor:
        began: list[int] = []
        for number in range(20):
            first = await supervisor.run(work(number, 2000))
            last = first if first.final else await supervisor.wait(number)
            parts = (first,) if first.final else (first, last)
            outcomes = [each.rank for part in parts for each in part.outcomes]
            returned = [rank for part in parts for each in part.returned for rank in each]
            assert sorted(outcomes + returned) == list(range(2000))
            began += outcomes
        assert list(map(int, ran.read_text().split())) == began, "what was returned was not run"


async def test_deaths_in_full_flight_cost_their_own_ranks_only() -> None:
    body = "if call.rank % 100 == 50: os.kill(os.getpid(), 9)\nreturn call.rank"
    async with running(body, params=PATIENT) as supervisor:
        report = await supervisor.run(work(count=500))
    assert [each.rank for each in report.outcomes] == list(range(500))
    assert [each.rank for each in report.outcomes if not each.ok] == [50, 150, 250, 350, 450]
    assert all(each.result == str(each.rank) for each in report.outcomes if each.ok)


async def test_a_time_out_behind_fast_ranks_hits_the_rank_that_blocks() -> None:
    body = "if call.rank == 300: time.sleep(60)"
    async with running(body, params=PATIENT) as supervisor:
        report = await supervisor.run(attrs.evolve(work(count=400), timeout_s=0.4))
    (late,) = [each for each in report.outcomes if not each.ok]
    assert late.rank == 300
    assert late.error is not None
    assert late.error.type_names[0] == "thornback.pool.RankTimedOut"
    assert 0.4 <= late.ran_s < 2.0
    assert len(report.outcomes) == 400


async def test_a_process_that_does_not_begin_is_killed_and_the_rank_goes_on() -> None:
    """Stopped between two ranks: nothing says so."""
    params = SupervisorParams(reclaim_s=BOUND_S, start_limit_s=0.3)
    async with running("return os.getpid()", params=params) as supervisor:
        first = only(await supervisor.run(work(1)))
        os.kill(first.pid, signal.SIGSTOP)
        second = only(await supervisor.run(work(2)))
        assert second.ok
        assert second.pid != first.pid
        assert not is_alive(first.pid)


async def test_slices_of_the_log_stay_those_of_the_rank_in_full_flight() -> None:
    async with running("print('rank', call.rank)", params=PATIENT) as supervisor:
        report = await supervisor.run(work(count=300))
        (chunk,) = (await supervisor.beat((), {})).logs
    assert len({each.pid for each in report.outcomes}) == 1
    for each in report.outcomes:
        assert chunk.data[slice(*each.log_slice)].decode() == f"rank {each.rank}\n"
