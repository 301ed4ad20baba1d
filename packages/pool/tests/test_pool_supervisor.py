"""The supervisor: assignments, reports, recalls, set-ups, and the fork server's own death.

Long, since all of it stands on one supervisor with real children, and on how they are told what to
do.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Protocol

import anyio
import attrs
import pytest

from thornback.pool import Assignment, Beat, Outcome, Report, RunningRank, SeenBy, WorkerSpec
from thornback.pool.worker.forks import ForkServerLost
from thornback.pool.worker.params import SupervisorParams
from thornback.pool.worker.proctree import descendants_of, is_alive
from thornback.pool.worker.ranklog import RankLog
from thornback.pool.worker.sources import source_program
from thornback.pool.worker.supervisor import Supervisor, SupervisorRefused

pytestmark = pytest.mark.anyio

BOUND_S = 30.0
PATIENT = SupervisorParams(reclaim_s=BOUND_S)
ONE_SLOT = WorkerSpec()
HASTY = SupervisorParams(reclaim_s=0.05)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Start(Protocol):
    """Starts a supervisor with one program `p`; it is closed after the test."""

    def __call__(
        self,
        body: str,
        setup: str = ...,
        /,
        *,
        spec: WorkerSpec = ...,
        params: SupervisorParams = ...,
    ) -> Awaitable[Supervisor]: ...


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    given_up: list[str] = []

    async def make(
        body: str,
        setup: str = "pass",
        /,
        *,
        spec: WorkerSpec = ONE_SLOT,
        params: SupervisorParams = PATIENT,
    ) -> Supervisor:
        supervisor = Supervisor(
            spec,
            "node-1",
            2,
            3,
            address="10.0.0.3",
            params=params,
            give_up=given_up.append,
        )
        stack.push_async_callback(close, supervisor)
        await supervisor.start()
        await supervisor.load("p", source_program("import os, sys, signal, time\n" + body, setup))
        return supervisor

    async def close(supervisor: Supervisor) -> None:
        before = descendants_of(os.getpid())
        assert await supervisor.close()
        assert [pid for pid in before if is_alive(pid)] == []

    with anyio.fail_after(BOUND_S):
        async with AsyncExitStack() as stack:
            yield make
    assert given_up == []


def work(number: int, *ranks: range, timeout_s: float | None = None) -> Assignment:
    return Assignment(
        assignment=number,
        epoch=f"000001.{number:09}",
        stage=7,
        ranks=ranks or (range(1),),
        program="p",
        timeout_s=timeout_s,
    )


def results(report: Report) -> dict[int, object]:
    assert all(outcome.ok for outcome in report.outcomes), report
    return {outcome.rank: json.loads(outcome.result or "null") for outcome in report.outcomes}


def only(report: Report) -> Outcome:
    (outcome,) = report.outcomes
    return outcome


class Gate:
    """Lets a rank say that it has begun, and wait for leave to go on."""

    def __init__(self, folder: Path) -> None:
        for name in ("said", "leave"):
            os.mkfifo(folder / name)
        self._said = os.open(folder / "said", os.O_RDWR | os.O_NONBLOCK)
        self._leave = os.open(folder / "leave", os.O_RDWR | os.O_NONBLOCK)
        self.body = f"""
with open({str(folder / "said")!r}, "w") as said: print(os.getpid(), call.rank, file=said)
with open({str(folder / "leave")!r}) as leave: leave.readline()
"""

    async def begun(self) -> int:
        """Return the pid of the rank process, once a rank is there."""
        await anyio.wait_readable(self._said)
        return int(os.read(self._said, 100).split()[0])

    def open(self) -> None:
        os.write(self._leave, b"\n")

    def close(self) -> None:
        os.close(self._said)
        os.close(self._leave)


@pytest.fixture
async def gate(tmp_path: Path) -> AsyncIterator[Gate]:
    made = Gate(tmp_path)
    yield made
    made.close()


# -- reports -------------------------------------------------------------------------------------


async def test_ranks_run_in_order_in_one_process_with_one_setup(start: Start) -> None:
    supervisor = await start(
        "return [state['setups'], os.getpid(), call.args.decode()]",
        "state['setups'] = state.get('setups', 0) + 1",
    )
    args = tuple(str(rank).encode() for rank in (3, 4, 9))
    report = await supervisor.run(attrs.evolve(work(1, range(3, 5), range(9, 10)), args=args))
    pid = report.outcomes[0].pid
    assert results(report) == {3: [1, pid, "3"], 4: [1, pid, "4"], 9: [1, pid, "9"]}
    assert (report.final, report.running, report.returned) == (True, None, ())
    again = await supervisor.run(attrs.evolve(work(2), args=(b"x",)))
    assert results(again) == {0: [1, pid, "x"]}


async def test_slots_run_side_by_side(start: Start, gate: Gate) -> None:
    supervisor = await start(
        "if call.rank == 0:" + gate.body.replace("\n", "\n    ") + "\nreturn call.slot",
        spec=WorkerSpec(slots=2),
    )
    found: dict[int, Report] = {}

    async def run(number: int, rank: int) -> None:
        found[number] = await supervisor.run(work(number, range(rank, rank + 1)))

    async with anyio.create_task_group() as group:
        group.start_soon(run, 1, 0)
        await gate.begun()
        await run(2, 5)
        assert 1 not in found
        gate.open()
    assert {results(found[1])[0], results(found[2])[5]} == {0, 1}


async def test_an_old_assignment_hands_back_what_has_not_started(start: Start, gate: Gate) -> None:
    supervisor = await start(gate.body, params=HASTY)
    first = await supervisor.run(work(1, range(2, 5), range(8, 9)))
    assert first == Report(returned=(range(3, 5), range(8, 9)), running=2)
    pid = await gate.begun()
    beat = await supervisor.beat()
    (running,) = beat.running
    assert attrs.evolve(running, ran_s=0.0, log_path="") == RunningRank(
        assignment=1, rank=2, attempt=1, pid=pid, ran_s=0.0
    )
    gate.open()
    last = await supervisor.wait(1)
    assert running.log_path == last.outcomes[0].log_path
    assert [outcome.rank for outcome in last.outcomes] == [2]
    assert (last.returned, last.running, last.final) == ((), None, True)


async def test_what_waits_for_a_slot_too_long_is_handed_back_whole(
    start: Start, gate: Gate
) -> None:
    supervisor = await start(gate.body, params=HASTY)
    first = await supervisor.run(work(1))
    assert (first.running, first.final) == (0, False)
    queued = await supervisor.run(work(2, range(4, 7)))
    assert queued == Report(returned=(range(4, 7),), final=True)
    gate.open()
    assert only(await supervisor.wait(1)).ok


async def test_a_repeated_call_gets_the_same_report_and_runs_nothing_twice(
    start: Start, gate: Gate
) -> None:
    runs = "state['runs'] = state.get('runs', 0) + 1\n"
    supervisor = await start(runs + gate.body + "return state['runs']", params=HASTY)
    first = await supervisor.run(work(1, range(2)))
    assert first == await supervisor.run(work(1, range(2)))
    gate.open()
    last = await supervisor.wait(1)
    again = await supervisor.wait(1)
    assert results(last) == {0: 1}
    assert again.outcomes[0].ago_s >= last.outcomes[0].ago_s
    assert attrs.evolve(only(again), ago_s=0) == attrs.evolve(only(last), ago_s=0)
    assert await supervisor.run(work(1, range(2))) == first
    await supervisor.beat((1,))
    with pytest.raises(SupervisorRefused, match="acknowledged"):
        await supervisor.run(work(1, range(2)))
    with pytest.raises(SupervisorRefused, match="not known here"):
        await supervisor.wait(1)


async def test_calls_that_are_wrong_say_what_is_wrong(start: Start, gate: Gate) -> None:
    supervisor = await start(gate.body, params=HASTY)
    with pytest.raises(SupervisorRefused, match="'q' is not loaded: call load first"):
        await supervisor.run(attrs.evolve(work(1), program="q"))
    with pytest.raises(SupervisorRefused, match="args for all of its 2 ranks or none, got 1"):
        await supervisor.run(attrs.evolve(work(1, range(2)), args=(b"",)))
    with pytest.raises(SupervisorRefused, match="no ranks"):
        await supervisor.run(work(1, range(0)))
    with pytest.raises(SupervisorRefused, match="no method 'jump'"):
        await supervisor.handle("jump", ())
    with pytest.raises(SupervisorRefused, match="at least 1 slot"):
        Supervisor(WorkerSpec(slots=0), "node")
    with pytest.raises(SupervisorRefused, match="not running"):
        await Supervisor(WorkerSpec(), "node").run(work(1))


async def test_at_most_two_assignments_per_slot_are_accepted(start: Start, gate: Gate) -> None:
    supervisor = await start(gate.body)
    async with anyio.create_task_group() as group:
        group.start_soon(supervisor.run, work(1))
        await gate.begun()
        group.start_soon(supervisor.run, work(2))
        await anyio.lowlevel.checkpoint()
        with pytest.raises(SupervisorRefused, match="2 already, at most 2"):
            await supervisor.run(work(3))
        gate.open()
        await gate.begun()
        gate.open()


# -- recall and close ----------------------------------------------------------------------------


async def test_a_recall_returns_what_has_not_started(start: Start, gate: Gate) -> None:
    supervisor = await start("if call.rank == 2:" + gate.body.replace("\n", "\n    "))
    async with anyio.create_task_group() as group:
        group.start_soon(supervisor.run, work(1, range(5)))
        await gate.begun()
        await supervisor.recall(1, kill=False)
        first = await supervisor.run(work(1, range(5)))
        assert [outcome.rank for outcome in first.outcomes] == [0, 1]
        assert (first.returned, first.running, first.final) == ((range(3, 5),), 2, False)
        gate.open()
        assert only(await supervisor.wait(1)).ok
    await supervisor.recall(1, kill=True)
    await supervisor.recall(99, kill=True)


async def test_a_recall_with_kill_returns_the_running_rank_too(start: Start, gate: Gate) -> None:
    supervisor = await start(gate.body)
    async with anyio.create_task_group() as group:
        group.start_soon(supervisor.run, work(1, range(3)))
        pid = await gate.begun()
        await supervisor.recall(1, kill=True)
        report = await supervisor.wait(1)
    assert report == Report(returned=(range(0, 1), range(1, 3)), final=True)
    assert not is_alive(pid)
    gate.open()
    assert only(await supervisor.run(work(2))).ok


async def test_closing_ends_running_ranks_and_waiting_calls(start: Start, gate: Gate) -> None:
    supervisor = await start(gate.body)
    refused: list[str] = []

    async def run() -> None:
        try:
            await supervisor.run(work(1))
        except SupervisorRefused as error:
            refused.append(str(error))

    async with anyio.create_task_group() as group:
        group.start_soon(run)
        group.start_soon(supervisor.watch)
        pid = await gate.begun()
        assert await supervisor.handle("close", None) is True
        assert await supervisor.close() is True
    assert refused == ["the worker is closed"]
    assert not is_alive(pid)
    with pytest.raises(SupervisorRefused, match="not running"):
        await supervisor.run(work(2))


# -- set-up, environment, inputs, logs -----------------------------------------------------------


@pytest.mark.parametrize(
    ("setup", "limit_s", "seen_by", "type_name"),
    [
        ("raise OSError(5, 'no model')", 60, SeenBy.RANK, "builtins.OSError"),
        ("import os; os._exit(4)", 60, SeenBy.PROCESS, "thornback.pool.RankProcessDied"),
        ("import time; time.sleep(60)", 0.5, SeenBy.PROCESS, "thornback.pool.RankTimedOut"),
    ],
)
async def test_a_setup_that_fails_is_the_ranks_failure_and_the_next_gets_a_fresh_process(
    start: Start, setup: str, limit_s: float, seen_by: SeenBy, type_name: str
) -> None:
    once = f"if call.rank == 0:\n    {setup}"
    supervisor = await start("return 1", once)
    report = await supervisor.run(attrs.evolve(work(1, range(2)), setup_timeout_s=limit_s))
    failed, fine = report.outcomes
    assert failed.error is not None
    assert (failed.ok, failed.phase, failed.seen_by) == (False, "setup", seen_by)
    assert failed.error.type_names[0] == type_name
    assert fine.ok
    assert fine.pid != failed.pid


async def test_a_blob_that_cannot_be_unpickled_is_a_failed_setup(start: Start) -> None:
    supervisor = await start("return 1")
    await supervisor.load("q", b"cno_such_module\nname\n.")
    outcome = only(await supervisor.run(attrs.evolve(work(1), program="q")))
    assert (outcome.ok, outcome.phase, outcome.seen_by) == (False, "setup", SeenBy.RANK)
    assert outcome.error is not None
    assert outcome.error.type_names[0] == "builtins.ModuleNotFoundError"


async def test_what_the_setup_started_lives_until_another_program_comes(start: Start) -> None:
    supervisor = await start(
        "return [state['server'].pid, state['server'].poll()]",
        "import subprocess; state['server'] = subprocess.Popen(['sleep', '60'])",
    )
    report = await supervisor.run(work(1, range(2)))
    server = report.outcomes[0].pid
    (pid, poll), (again, still) = (json.loads(each.result or "") for each in report.outcomes)
    assert (pid, poll, still) == (again, None, None)
    assert is_alive(pid)
    await supervisor.load("q", source_program("return 1"))
    other = only(await supervisor.run(attrs.evolve(work(2), program="q")))
    assert other.pid != server
    assert not is_alive(pid)


async def test_the_environment_tells_the_rank_where_it_is(start: Start) -> None:
    names = "('RANK', 'ATTEMPT', 'EPOCH', 'STAGE', 'SLOT', 'NODE_INDEX', 'NODES')"
    supervisor = await start(
        f"mine = [os.environ['THORNBACK_' + name] for name in {names}]\n"
        "return [*mine, os.environ['OMP_NUM_THREADS'], os.environ['MKL_NUM_THREADS'],"
        " os.environ['MY'], call.node, call.node_index, call.nodes, call.address,"
        " call.traceparent]",
        spec=WorkerSpec(cpus=4, slots=2, env={"MY": "own", "MKL_NUM_THREADS": "9"}),
    )
    one = attrs.evolve(work(1, range(5, 6)), attempt=3, traceparent="00-1-2-01")
    assert results(await supervisor.run(one))[5] == [
        *("5", "3", "000001.000000001", "7", "0", "2", "3"),
        *("2", "9", "own", "node-1", 2, 3, "10.0.0.3", "00-1-2-01"),
    ]
    assert (await supervisor.beat()).address == "10.0.0.3"


async def test_inputs_are_asked_for_and_an_unknown_key_is_named(start: Start) -> None:
    supervisor = await start(
        "state['call'] = call\nreturn [len(call.inputs(key)) for key in ('a', 'big', 'a')]"
    )
    await supervisor.load("a", b"12")
    await supervisor.load("big", bytes(5 << 20))
    assert results(await supervisor.run(work(1))) == {0: [2, 5 << 20, 2]}
    await supervisor.load("q", source_program("return call.inputs('nothing')"))
    outcome = only(await supervisor.run(attrs.evolve(work(2), program="q")))
    assert outcome.error is not None
    assert outcome.error.type_names[0] == "builtins.KeyError"
    assert "'nothing' is not known" in outcome.error.message


def _written(outcome: Outcome) -> str:
    return Path(outcome.log_path).read_bytes()[slice(*outcome.log_slice)].decode()


async def test_each_rank_has_its_slice_of_the_log(start: Start, tmp_path: Path) -> None:
    supervisor = await start(
        "print('rank', call.rank)\nos.write(2, b'raw\\n')\nassert call.rank != 1, 'odd'",
        spec=WorkerSpec(log_dir=str(tmp_path / "logs")),
    )
    report = await supervisor.run(work(1, range(3)))
    for outcome in report.outcomes:
        data = _written(outcome)
        assert sorted(data.splitlines()) == [f"rank {outcome.rank}", "raw"]
        assert outcome.log_tail == ("" if outcome.ok else data)
    assert Path(report.outcomes[0].log_path).parent == tmp_path / "logs"


async def test_a_flood_of_output_does_not_fill_the_disk(start: Start, tmp_path: Path) -> None:
    supervisor = await start(
        "line = b'x' * 1023 + b'\\n'\n"
        "for _ in range(64): os.write(1, line * 1024)\n"
        "while os.fstat(1).st_blocks * 512 > 1 << 20: time.sleep(0.01)\n"
        "print('the end')\nraise ValueError",
        spec=WorkerSpec(log_dir=str(tmp_path)),
        params=SupervisorParams(reclaim_s=BOUND_S, log_cap_bytes=1 << 20, tick_s=0.01),
    )
    outcome = only(await supervisor.run(work(1)))
    assert outcome.log_slice == (0, (64 << 20) + 8)
    assert outcome.log_tail.endswith("the end\n")
    assert len(outcome.log_tail) <= 4096
    assert os.stat(outcome.log_path).st_blocks * 512 <= 1 << 20


def test_without_room_for_a_log_there_is_none(tmp_path: Path) -> None:
    log = RankLog(str(tmp_path / "missing" / "x.log"), 1 << 20)
    assert (log.path, log.size(), log.tail(0)) == ("", 0, "")
    log.trim()
    log.close()


async def test_what_a_rank_leaves_behind_does_not_reach_the_next(start: Start) -> None:
    supervisor = await start(
        "left = signal.getitimer(signal.ITIMER_REAL)\nsignal.alarm(30)\n"
        "import subprocess; subprocess.Popen(['sleep', '60'])\n"
        "return [left, len(open(f'/proc/self/task/{os.getpid()}/children').read().split())]"
    )
    assert results(await supervisor.run(work(1, range(3)))) == {
        rank: [[0.0, 0.0], 1] for rank in range(3)
    }


# -- preloading, and the fork server's own death -------------------------------------------------


@pytest.mark.parametrize(
    ("source", "loaded"),
    [
        ("VALUE = 1", True),
        ("import threading as t, time\nt.Thread(target=time.sleep, args=(60,)).start()", False),
        ("raise SystemExit('not today')", False),
    ],
)
async def test_modules_are_preloaded_unless_they_start_threads(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, loaded: bool
) -> None:
    (tmp_path / "thornback_preloaded.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    threads = "len(os.listdir('/proc/self/task'))"
    body = f"return ['thornback_preloaded' in sys.modules, 'ray' in sys.modules, {threads}]"
    supervisor = await start(body, spec=WorkerSpec(preload=("thornback_preloaded",)))
    assert results(await supervisor.run(work(1))) == {0: [loaded, False, 1]}


async def test_a_preload_that_hangs_is_a_failed_setup_and_is_left_out_then(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "thornback_hangs.py").write_text("import time; time.sleep(60)")
    monkeypatch.syspath_prepend(str(tmp_path))
    supervisor = await start("return 1", spec=WorkerSpec(preload=("thornback_hangs",)))
    report = await supervisor.run(attrs.evolve(work(1, range(2)), setup_timeout_s=1.0))
    failed, fine = report.outcomes
    assert failed.error is not None
    assert (failed.phase, failed.error.type_names[0]) == ("setup", "thornback.pool.RankTimedOut")
    assert fine.ok


async def test_a_fork_server_that_dies_takes_its_ranks_along_and_is_replaced(
    start: Start, gate: Gate
) -> None:
    leave = "import subprocess; left = subprocess.Popen(['sleep', '60'], start_new_session=True)\n"
    first = (leave + gate.body).replace("\n", "\n    ")
    supervisor = await start("if call.rank == 0:\n    " + first)
    async with anyio.create_task_group() as group:
        group.start_soon(supervisor.run, work(1, range(2)))
        pid = await gate.begun()
        tree = descendants_of(pid)
        assert len(tree) == 1
        server = _parent_of(pid)
        os.kill(server, signal.SIGKILL)
        died, fine = (await supervisor.run(work(1, range(2)))).outcomes
    assert died.error is not None
    assert died.error.type_names[0] == "thornback.pool.RankProcessDied"
    assert died.error.attributes["signal"] == signal.SIGKILL
    assert fine.ok
    assert [each for each in (server, pid, *tree) if is_alive(each)] == []


async def test_a_fork_server_that_does_not_answer_is_killed(start: Start, gate: Gate) -> None:
    params = SupervisorParams(reclaim_s=BOUND_S, kill_s=0.3, fork_server_restarts=5)
    supervisor = await start(gate.body, params=params)
    async with anyio.create_task_group() as group:
        group.start_soon(supervisor.run, work(1))
        pid = await gate.begun()
        os.kill(_parent_of(pid), signal.SIGSTOP)
        await supervisor.recall(1, kill=True)
        assert await supervisor.wait(1) == Report(returned=(range(1),), final=True)
    assert not is_alive(pid)
    gate.open()
    assert only(await supervisor.run(work(2))).ok


async def test_a_worker_that_loses_its_fork_server_again_gives_up() -> None:
    given_up = anyio.Event()
    reasons: list[str] = []

    def give_up(reason: str) -> None:
        reasons.append(reason)
        given_up.set()

    with anyio.fail_after(BOUND_S):
        params = SupervisorParams(reclaim_s=BOUND_S, fork_server_restarts=0)
        supervisor = Supervisor(WorkerSpec(), "node-1", params=params, give_up=give_up)
        await supervisor.start()
        try:
            (server,) = descendants_of(os.getpid())
            await supervisor.load("p", source_program("return 1", "pass"))
            assert only(await supervisor.run(work(1))).ok
            os.kill(server, signal.SIGKILL)
            await given_up.wait()
        finally:
            await supervisor.close()
    assert reasons == ["its fork server ended, 1 times by now: it ended by itself"]


@pytest.mark.parametrize("blow", [signal.SIGSTOP, signal.SIGKILL])
async def test_supervisor_start_without_fork_server_raises(blow: signal.Signals) -> None:
    killed: list[int] = []

    async def strike() -> None:
        (server,) = descendants_of(os.getpid())  # it has just been started, and is waited for
        os.kill(server, blow)
        killed.append(server)

    params = SupervisorParams(fork_server_s=0.5)
    supervisor = Supervisor(WorkerSpec(), "node-1", params=params)
    with anyio.fail_after(BOUND_S):
        async with anyio.create_task_group() as group:
            group.start_soon(strike)
            with pytest.raises(ForkServerLost, match=r"the fork server (ended|gave no answer)"):
                await supervisor.start()
    assert [is_alive(pid) for pid in killed] == [False]


def _parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


async def test_a_process_that_died_between_ranks_costs_nobody_anything(start: Start) -> None:
    supervisor = await start("return 1")
    first = only(await supervisor.run(work(1)))
    os.kill(first.pid, signal.SIGKILL)  # the supervisor cannot know of it yet
    second = only(await supervisor.run(work(2)))
    assert second.ok, second
    assert second.pid != first.pid


async def test_signals_that_the_host_has_blocked_are_not_blocked_in_a_rank(start: Start) -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        supervisor = await start("return list(signal.pthread_sigmask(signal.SIG_BLOCK, []))")
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    assert results(await supervisor.run(work(1))) == {0: []}


async def test_handle_dispatches_to_the_methods(start: Start) -> None:
    supervisor = await start("return 1")
    await supervisor.handle("load", ("k", b"blob"))
    report = await supervisor.handle("run", (work(1), ()))
    assert isinstance(report, Report)
    assert results(report) == {0: 1}
    assert await supervisor.handle("wait", (1, (), 0)) is not None
    assert await supervisor.handle("recall", (1, True)) is None
    beat = await supervisor.handle("beat", ((1,), None))
    assert isinstance(beat, Beat)
    assert (beat.pid, beat.running) == (os.getpid(), ())
    assert beat.rss_bytes > 1 << 20


async def test_a_recall_that_overtakes_its_run_is_not_lost(start: Start) -> None:
    supervisor = await start("return 1")
    await supervisor.recall(5, kill=True)
    report = await supervisor.run(work(5))
    assert (report.outcomes, report.returned, report.final) == ((), (range(1),), True)
    assert results(await supervisor.run(work(6))) == {0: 1}


async def test_a_beat_names_only_ranks_that_have_begun(start: Start, gate: Gate) -> None:
    """Who is killed before that is no rank's fault: nobody must aim there."""
    supervisor = await start("return 1", "import os\n" + gate.body)
    async with anyio.create_task_group() as group:
        group.start_soon(supervisor.run, work(1))
        await gate.begun()
        assert (await supervisor.beat(())).running == ()
        gate.open()
