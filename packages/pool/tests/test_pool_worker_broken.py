"""Rank processes that break without dying, and slots whose GPUs do: with real children."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Protocol

import anyio
import attrs
import pytest

from thornback.pool import Assignment, CaughtError, Outcome, ParkedSlot, Report, WorkerSpec
from thornback.pool.worker.environ import own_gpus, slot_env
from thornback.pool.worker.params import SupervisorParams
from thornback.pool.worker.proctree import descendants_of, is_alive
from thornback.pool.worker.sources import source_program
from thornback.pool.worker.supervisor import Supervisor

pytestmark = pytest.mark.anyio

BOUND_S = 30.0
PATIENT = SupervisorParams(reclaim_s=BOUND_S)
HASTY = SupervisorParams(reclaim_s=0.3)
ONE_SLOT, TWO_SLOTS = WorkerSpec(), WorkerSpec(slots=2)
ECC = "raise RuntimeError('CUDA error: uncorrectable ECC error encountered')"
ILLEGAL = "raise RuntimeError('CUDA error: an illegal memory access was encountered')"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


class Start(Protocol):
    """Starts a supervisor with one program `p`; it is closed after the test."""

    def __call__(
        self,
        body: str,
        setup: str = ...,
        teardown: str | None = ...,
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
        teardown: str | None = None,
        /,
        *,
        spec: WorkerSpec = ONE_SLOT,
        params: SupervisorParams = PATIENT,
    ) -> Supervisor:
        supervisor = Supervisor(spec, "node-1", params=params, give_up=given_up.append)
        stack.push_async_callback(close, supervisor)
        await supervisor.start()
        await supervisor.load("p", source_program("import os\n" + body, setup, teardown))
        return supervisor

    async def close(supervisor: Supervisor) -> None:
        before = descendants_of(os.getpid())
        assert await supervisor.close()
        assert [pid for pid in before if is_alive(pid)] == []

    with anyio.fail_after(BOUND_S):
        async with AsyncExitStack() as stack:
            yield make
    assert given_up == []


def work(number: int, *ranks: range) -> Assignment:
    return Assignment(
        assignment=number,
        epoch=f"000001.{number:09}",
        stage=0,
        ranks=ranks or (range(1),),
        program="p",
    )


def failed(report: Report) -> list[int]:
    return [outcome.rank for outcome in report.outcomes if not outcome.ok]


def ran(report: Report) -> list[int]:
    return [outcome.rank for outcome in report.outcomes]


def only(report: Report) -> Outcome:
    (outcome,) = report.outcomes
    return outcome


def breaks_once(marker: Path, after: int) -> tuple[str, str]:
    """Return the body and the set-up of a program whose first process is of no use any more after
    so many ranks."""
    setup = f"""
import os
state['ranks'] = 0
try:
    os.close(os.open({str(marker)!r}, os.O_CREAT | os.O_EXCL))
    state['first'] = True
except FileExistsError:
    state['first'] = False
"""
    body = f"""
state['ranks'] += 1
if state['first'] and state['ranks'] > {after}:
    raise RuntimeError('the engine is dead')
return os.getpid()
"""
    return body, setup


class Gate:
    """Lets a rank wait for leave to go on. Neither end blocks while the other is not there."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self._end = os.open(path, os.O_RDWR | os.O_NONBLOCK)
        self.wait = f"open({str(path)!r}).readline()"

    def open(self) -> None:
        os.write(self._end, b"\n")

    def close(self) -> None:
        os.close(self._end)


@pytest.fixture
async def gate(tmp_path: Path) -> AsyncIterator[Gate]:
    made = Gate(tmp_path / "leave")
    yield made
    made.close()


# -- replaced processes --------------------------------------------------------------------------


async def test_process_that_breaks_fails_two_ranks_and_is_replaced(
    start: Start, tmp_path: Path
) -> None:
    """The ranks are of no length, so that many lie ahead in the queue of the broken process: they
    are taken back, and run once, in the new one."""
    supervisor = await start(*breaks_once(tmp_path / "once", 100))
    report = await supervisor.run(work(1, range(300)))
    assert failed(report) == [100, 101]
    assert report.outcomes[100].healthy_before
    assert ran(report) == list(range(300))
    assert (report.returned, report.final) == ((), True)
    assert len({outcome.pid for outcome in report.outcomes}) == 2
    assert len({outcome.pid for outcome in report.outcomes[102:]}) == 1


async def test_process_with_a_bug_in_every_rank_is_replaced_once(
    start: Start, tmp_path: Path
) -> None:
    setups = tmp_path / "setups"
    supervisor = await start(
        "raise ValueError('a bug')", f"print('x', file=open({str(setups)!r}, 'a'))"
    )
    report = await supervisor.run(work(1, range(40)))
    assert failed(report) == list(range(40))
    assert setups.read_text() == "x\n" * 2


async def test_process_whose_ranks_meet_a_busy_server_is_kept(start: Start) -> None:
    supervisor = await start("""
class Busy(Exception):
    status_code = 503
raise Busy('try later') if call.rank % 2 else ConnectionResetError('by peer')
""")
    report = await supervisor.run(work(1, range(10)))
    assert failed(report) == list(range(10))
    assert len({outcome.pid for outcome in report.outcomes}) == 1


async def test_process_that_is_replaced_tears_down_first(start: Start, tmp_path: Path) -> None:
    torn = tmp_path / "torn"
    supervisor = await start(
        *breaks_once(tmp_path / "once", 1),
        f"if state['first']: open({str(torn)!r}, 'x').write(str(os.getpid()))".replace(
            "os.", "__import__('os')."
        ),
    )
    report = await supervisor.run(work(1, range(6)))
    assert failed(report) == [1, 2]
    assert torn.read_text() == str(report.outcomes[0].pid)


async def test_process_whose_teardown_hangs_is_replaced_all_the_same(
    start: Start, tmp_path: Path
) -> None:
    supervisor = await start(
        *breaks_once(tmp_path / "once", 1), "__import__('threading').Event().wait()"
    )
    assignment = attrs.evolve(work(1, range(6)), teardown_timeout_s=0.2)
    report = await supervisor.run(assignment)
    assert failed(report) == [1, 2]
    assert not is_alive(report.outcomes[0].pid)


async def test_replacement_that_cannot_be_set_up_fails_in_phase_setup(
    start: Start, tmp_path: Path
) -> None:
    body, setup = breaks_once(tmp_path / "once", 1)
    supervisor = await start(body, setup + "if not state['first']: raise OSError(5, 'no model')")
    report = await supervisor.run(work(1, range(5)))
    assert [(each.rank, each.ok, each.phase) for each in report.outcomes] == [
        (0, True, "rank"),
        (1, False, "rank"),
        (2, False, "rank"),
        (3, False, "setup"),
        (4, False, "setup"),
    ]


async def test_process_that_broke_is_not_replaced_before_there_is_work(
    start: Start, tmp_path: Path
) -> None:
    setups = tmp_path / "setups"
    supervisor = await start(
        "raise ValueError('a bug')", f"print('x', file=open({str(setups)!r}, 'a'))"
    )
    assert failed(await supervisor.run(work(1, range(2)))) == [0, 1]
    assert failed(await supervisor.run(work(2, range(2, 3)))) == [2]
    assert setups.read_text() == "x\n" * 2


async def test_what_is_recalled_while_a_process_is_replaced_comes_back(
    start: Start, tmp_path: Path
) -> None:
    """The last of it waits in the set-up of the new process, and is killed there."""
    said = tmp_path / "said"
    os.mkfifo(said)
    body, setup = breaks_once(tmp_path / "once", 1)
    wait = f"""
if not state['first']:
    print('set-up', file=open({str(said)!r}, 'w'), flush=True)
    __import__('threading').Event().wait()
"""
    supervisor = await start(body, setup + wait)
    descriptor = os.open(said, os.O_RDWR | os.O_NONBLOCK)
    found: list[Report] = []

    async def run() -> None:
        found.append(await supervisor.run(work(1, range(10))))

    try:
        async with anyio.create_task_group() as group:
            group.start_soon(run)
            await anyio.wait_readable(descriptor)
            await supervisor.recall(1, kill=True)
    finally:
        os.close(descriptor)
    (report,) = found
    assert ran(report) == [0, 1, 2]
    assert (report.returned, report.final) == ((range(3, 4), range(4, 10)), True)


# -- retries go to another process ---------------------------------------------------------------


async def test_retry_goes_to_the_slot_that_has_not_failed_it(start: Start) -> None:
    supervisor = await start(
        "if call.slot == state.setdefault('slot', call.slot) and call.rank < 2:\n"
        "    raise ValueError(call.slot)\n"
        "return call.slot",
        spec=TWO_SLOTS,
    )
    first = only(await supervisor.run(work(1)))
    second = only(await supervisor.run(work(2)))
    assert first.error is not None
    assert second.error is not None
    assert {first.error.message, second.error.message} == {"0", "1"}
    assert not only(await supervisor.run(work(3))).ok  # all have failed it: any will do


async def test_retry_waits_for_a_busy_slot_and_lets_others_pass(start: Start, gate: Gate) -> None:
    supervisor = await start(
        f"""
if call.rank == 9:
    {gate.wait}
if call.rank == 1 and call.attempt == 1:
    raise ValueError(call.slot)
return [call.slot, os.getpid()]
""",
        spec=TWO_SLOTS,
    )
    found: dict[int, Report] = {}

    async def run(number: int, rank: int, attempt: int = 1) -> None:
        each = attrs.evolve(work(number, range(rank, rank + 1)), attempt=attempt)
        found[number] = await supervisor.run(each)

    async with anyio.create_task_group() as group:
        group.start_soon(run, 1, 9)
        await anyio.wait_all_tasks_blocked()
        await run(2, 1)
        group.start_soon(run, 3, 1, 2)
        await anyio.wait_all_tasks_blocked()
        await run(4, 5)
        assert 3 not in found
        gate.open()
    error = only(found[2]).error
    assert error is not None
    slots = {number: json.loads(only(found[number]).result or "")[0] for number in (1, 3, 4)}
    assert slots[4] == int(error.message)
    assert slots[3] == slots[1] != slots[4]


async def test_retry_that_waits_too_long_runs_in_the_process_that_failed_it(
    start: Start, gate: Gate
) -> None:
    supervisor = await start(
        f"""
if call.rank == 9:
    {gate.wait}
if call.attempt == 1:
    raise ValueError(call.slot)
return call.slot
""",
        spec=TWO_SLOTS,
        params=HASTY,
    )
    busy = await supervisor.run(work(1, range(9, 10)))
    assert busy.running == 9
    first = only(await supervisor.run(work(2)))
    again = await supervisor.run(attrs.evolve(work(3), attempt=2))
    assert first.error is not None
    assert only(again).result == first.error.message
    gate.open()
    assert (await supervisor.wait(1)).final


# -- parked slots --------------------------------------------------------------------------------


def test_own_gpus_are_those_that_no_other_slot_has() -> None:
    inherited = {"CUDA_VISIBLE_DEVICES": "4,5,7"}
    assert [own_gpus(TWO_SLOTS, inherited, slot) for slot in range(2)] == [("4",), ("5",)]
    assert own_gpus(ONE_SLOT, inherited, 0) == ("4", "5", "7")
    assert own_gpus(WorkerSpec(slots=4), inherited, 0) == ()
    assert own_gpus(TWO_SLOTS, {}, 0) == ()
    own = WorkerSpec(env={"CUDA_VISIBLE_DEVICES": "0"})
    assert own_gpus(own, inherited, 0) == ()
    assert slot_env(WorkerSpec(slots=4), inherited, 3)["CUDA_VISIBLE_DEVICES"] == "4"
    assert slot_env(TWO_SLOTS, inherited, 1)["CUDA_VISIBLE_DEVICES"] == "5"


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")


BAD_GPU = "if os.environ['CUDA_VISIBLE_DEVICES'] == '5':\n    "


@pytest.mark.usefixtures("two_gpus")
async def test_slot_with_broken_hardware_is_parked_and_the_other_goes_on(
    start: Start, capfd: pytest.CaptureFixture[str]
) -> None:
    supervisor = await start(BAD_GPU + ECC + "\nreturn call.slot", spec=TWO_SLOTS)
    reports: list[Report] = []

    async def run(number: int) -> None:
        reports.append(await supervisor.run(work(number, range(10 * number, 10 * number + 10))))

    async with anyio.create_task_group() as group:
        for number in (1, 2):
            group.start_soon(run, number)
    bad, good = sorted(reports, key=lambda each: len(each.outcomes))
    assert [outcome.ok for outcome in good.outcomes] == [True] * 10
    assert [outcome.ok for outcome in bad.outcomes] == [False]
    assert sum(map(len, bad.returned)) == 9
    assert bad.final
    (parked,) = (await supervisor.beat()).parked
    assert parked == ParkedSlot(
        slot=1, gpus=("5",), reason="RuntimeError: CUDA error: uncorrectable ECC error encountered"
    )
    assert (
        "thornback: slot 1 gets no more work, since its GPU (5) failed: RuntimeError"
        in capfd.readouterr().err
    )
    for number in (3, 4, 5):  # all by the other slot
        assert failed(await supervisor.run(work(number, range(5)))) == []


@pytest.mark.usefixtures("two_gpus")
async def test_slot_that_loses_contexts_in_two_processes_is_parked(start: Start) -> None:
    supervisor = await start(
        "if call.slot == 1 and call.rank > 2:\n    " + ILLEGAL + "\nreturn os.getpid()",
        "if call.slot == 0: __import__('time').sleep(1000)",
        spec=TWO_SLOTS,
    )
    reports: list[Report] = []

    async def run(number: int) -> None:
        reports.append(await supervisor.run(work(number, range(10))))

    async with anyio.create_task_group() as group:
        for number in (1, 2):
            group.start_soon(run, number)
        while not reports:
            await anyio.lowlevel.checkpoint()
        (report,) = reports
        for number in (1, 2):
            await supervisor.recall(number, kill=True)
    assert [(each.rank, each.ok) for each in report.outcomes] == [
        (0, True),
        (1, True),
        (2, True),
        (3, False),
        (4, False),
    ]
    assert report.outcomes[3].pid != report.outcomes[4].pid
    assert sum(map(len, report.returned)) == 5


@pytest.mark.usefixtures("two_gpus")
async def test_worker_without_any_slot_left_hands_back_and_says_why(start: Start) -> None:
    supervisor = await start(ECC, spec=TWO_SLOTS)
    reports: list[Report] = []
    answers: list[CaughtError | None] = []

    async def watch() -> None:
        answers.append(await supervisor.watch())

    async def run(number: int) -> None:
        reports.append(await supervisor.run(work(number, range(3 * number, 3 * number + 3))))
        assert answers == []

    async with anyio.create_task_group() as group:
        group.start_soon(watch)
        for number in range(4):
            group.start_soon(run, number)
    assert all(report.final for report in reports)
    assert len([outcome for report in reports for outcome in report.outcomes]) == 2
    assert sum(len(each) for report in reports for each in report.returned) == 10
    (why,) = answers
    assert why is not None
    assert why.type_names == ("thornback.pool.NoSlotLeft",)
    assert why.message.startswith(
        "the worker has no slot left, since the GPUs of all 2 slots failed: slot 0 (GPU 4): "
        "RuntimeError: CUDA error"
    )
    late = await supervisor.run(work(9, range(4)))
    assert late == Report(returned=(range(4),), final=True)


@pytest.mark.usefixtures("two_gpus")
async def test_worker_whose_set_ups_find_no_gpu_is_lost_after_two_each(start: Start) -> None:
    supervisor = await start("return 1", "raise RuntimeError('No CUDA-capable device is detected')")
    report = await supervisor.run(work(1, range(10)))
    assert [(each.ok, each.phase) for each in report.outcomes] == [(False, "setup")] * 2
    assert report.returned == (range(2, 10),)
    why = await supervisor.watch()
    assert why is not None
    assert "the GPUs of its only slot failed" in why.message


@pytest.mark.usefixtures("two_gpus")
async def test_worker_without_any_slot_left_lets_its_last_report_be_fetched_first(
    start: Start, gate: Gate
) -> None:
    supervisor = await start(f"{gate.wait}\n" + ECC, params=HASTY)
    answers: list[CaughtError | None] = []

    async def watch() -> None:
        answers.append(await supervisor.watch())

    assert (await supervisor.run(work(1))).running == 0
    async with anyio.create_task_group() as group:
        group.start_soon(watch)
        gate.open()
        while not (await supervisor.beat()).parked:
            await anyio.lowlevel.checkpoint()
        await anyio.wait_all_tasks_blocked()
        assert answers == []
        assert failed(await supervisor.wait(1)) == [0]
    assert len(answers) == 1
