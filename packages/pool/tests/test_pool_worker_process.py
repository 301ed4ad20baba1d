"""A worker in a process of its own: the protocol on its socket, and that nothing outlives it."""

from __future__ import annotations

import os
import pickle
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from thornback.pool import Assignment, CaughtError, Report, WorkerSpec
from thornback.pool.worker import wire
from thornback.pool.worker.proctree import descendants_of, is_alive
from thornback.pool.worker.sources import source_program
from thornback.pool.worker.supervisor import GAVE_UP_EXIT_CODE

BOUND_S = 30.0


class Worker:
    """A blocking client, so that it depends on nothing but the protocol."""

    def __init__(self) -> None:
        self.stream, theirs = socket.socketpair()
        self.stream.settimeout(BOUND_S)
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "thornback.pool.worker", "--fd", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stderr=subprocess.PIPE,
            )
        self.calls = 0

    def send(self, method: str, payload: object) -> int:
        self.calls += 1
        self.stream.sendall(wire.pickled((self.calls, method, payload)))
        return self.calls

    def answer(self) -> tuple[int, bool, object]:
        body = wire.receive(self.stream)
        assert body is not None, "the worker hung up"
        call, ok, result = pickle.loads(body)
        return call, ok, result

    def call(self, method: str, payload: object) -> object:
        number = self.send(method, payload)
        call, ok, result = self.answer()
        assert (call, ok) == (number, True), result
        return result

    def start(self, spec: WorkerSpec | None = None) -> None:
        assert self.call("start", (spec or WorkerSpec(), "node-1", 0, 1, 0)) is None


@pytest.fixture
def worker() -> Iterator[Worker]:
    made = Worker()
    yield made
    made.stream.close()
    made.process.kill()
    _, errors = made.process.communicate(timeout=BOUND_S)
    assert errors == b""


def work(number: int = 1) -> Assignment:
    return Assignment(
        assignment=number, epoch="e", stage=0, ranks=(range(number, number + 1),), program="p"
    )


def wait_gone(pids: list[int], pidfds: list[int]) -> None:
    """Wait until all are dead; no polling: a pidfd becomes readable at the end of its process."""
    for pid, pidfd in zip(pids, pidfds, strict=True):
        ready, _, _ = select.select([pidfd], [], [], BOUND_S)
        os.close(pidfd)
        assert ready, f"process {pid} is still there"
        assert not is_alive(pid)


STUBBORN = """
import os, signal, subprocess, time
subprocess.Popen(['sleep', '60'], start_new_session=True)
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
        time.sleep(60)
    os._exit(0)
os.wait()
with open(FIFO, 'w') as fifo: print('ready', file=fifo)
time.sleep(60)
"""


def run_stubborn(worker: Worker, folder: Path) -> tuple[list[int], list[int]]:
    """Have a rank start a tree; return all processes below the worker, with a pidfd of each."""
    fifo = folder / "fifo"
    os.mkfifo(fifo)
    worker.start(WorkerSpec(log_dir=str(folder / "logs")))
    worker.call("load", ("p", source_program(f"FIFO = {str(fifo)!r}\n{STUBBORN}")))
    worker.send("run", (work(), ()))
    assert fifo.read_text() == "ready\n"
    pids = descendants_of(worker.process.pid)
    assert len(pids) == 4  # fork server, rank process, its child, its daemon
    return pids, [os.pidfd_open(pid) for pid in pids]


def test_ctrl_c_is_left_to_the_driver(worker: Worker) -> None:
    worker.start()
    worker.process.send_signal(signal.SIGINT)
    assert worker.call("beat", ((), None)) is not None


def kill(worker: Worker) -> None:
    worker.process.kill()


def terminate(worker: Worker) -> None:
    worker.process.terminate()


def hang_up(worker: Worker) -> None:
    worker.stream.close()


def kill_fork_server(worker: Worker) -> None:
    """It has one more, after which the worker gives up."""
    pids = descendants_of(worker.process.pid)
    os.kill(pids[0], 9)


@pytest.mark.parametrize("end", [kill, terminate, hang_up, kill_fork_server])
def test_nothing_outlives_a_worker(
    worker: Worker, tmp_path: Path, end: Callable[[Worker], None]
) -> None:
    pids, pidfds = run_stubborn(worker, tmp_path)
    end(worker)
    wait_gone(pids, pidfds)


def test_a_rank_process_dies_with_its_fork_server_though_nobody_cleans_up(
    worker: Worker, tmp_path: Path
) -> None:
    pids, pidfds = run_stubborn(worker, tmp_path)
    worker.process.send_signal(signal.SIGSTOP)
    os.kill(pids[0], signal.SIGKILL)
    ready, _, _ = select.select([pidfds[1]], [], [], BOUND_S)
    assert ready == [pidfds[1]]
    worker.process.send_signal(signal.SIGCONT)
    wait_gone(pids, pidfds)


def test_a_temporary_folder_for_logs_goes_with_the_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    worker = Worker()
    worker.start()
    (fork_server,) = descendants_of(worker.process.pid)
    pidfd = os.pidfd_open(fork_server)
    assert len(list(tmp_path.iterdir())) == 1
    worker.process.kill()
    worker.process.communicate(timeout=BOUND_S)
    worker.stream.close()
    wait_gone([fork_server], [pidfd])
    assert list(tmp_path.iterdir()) == []


def test_calls_are_answered_side_by_side(worker: Worker, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    worker.start(WorkerSpec(slots=2))
    body = f"if call.rank == 1: open({str(tmp_path / 'fifo')!r}).read()\nreturn call.rank"
    worker.call("load", ("p", source_program(body)))
    watch = worker.send("watch", None)
    first = worker.send("run", (work(1), ()))
    second = worker.send("run", (work(2), ()))
    answered = {}
    call, ok, answered[2] = worker.answer()
    assert (call, ok) == (second, True)
    (tmp_path / "fifo").write_text("go")
    call, ok, answered[1] = worker.answer()
    assert (call, ok) == (first, True)
    for number, report in answered.items():
        assert isinstance(report, Report)
        assert [outcome.result for outcome in report.outcomes] == [str(number)]
    worker.send("close", None)
    assert {worker.answer()[0], worker.answer()[0]} == {watch, worker.calls}


def test_a_wrong_call_is_answered_with_the_error_as_data(worker: Worker) -> None:
    worker.send("beat", ((), None))
    _, ok, error = worker.answer()
    assert not ok
    assert isinstance(error, CaughtError)
    assert error.type_names[0] == "thornback.pool.worker.supervisor.SupervisorRefused"
    assert "expected one request `start`" in error.message
    worker.start()
    worker.send("run", (work(), ()))
    _, ok, error = worker.answer()
    assert not ok
    assert isinstance(error, CaughtError)
    assert "call load first" in error.message


def test_a_worker_that_gives_up_ends_its_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    worker = Worker()
    worker.start()
    worker.call("load", ("p", source_program("return 1")))
    kill_fork_server(worker)
    worker.call("run", (work(1), ()))  # by another fork server
    kill_fork_server(worker)
    _, errors = worker.process.communicate(timeout=BOUND_S)
    worker.stream.close()
    assert worker.process.returncode == GAVE_UP_EXIT_CODE
    assert b"the worker gives up: its fork server ended" in errors
    assert list(tmp_path.iterdir()) == []


def test_a_fork_server_that_is_still_importing_ends_with_its_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fifo = tmp_path / "said"
    os.mkfifo(fifo)
    said = os.open(fifo, os.O_RDWR | os.O_NONBLOCK)
    (tmp_path / "thornback_imports_long.py").write_text(
        f"import os, time\nopen({str(fifo)!r}, 'w').write(str(os.getpid()))\ntime.sleep(600)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    worker = Worker()
    worker.send("start", (WorkerSpec(preload=("thornback_imports_long",)), "node-1", 0, 1, 0))
    assert select.select([said], [], [], BOUND_S)[0], "the module is being imported"
    pid = int(os.read(said, 100))
    os.close(said)
    pidfd = os.pidfd_open(pid)
    worker.process.kill()
    wait_gone([pid], [pidfd])
    worker.stream.close()
    worker.process.communicate(timeout=BOUND_S)
