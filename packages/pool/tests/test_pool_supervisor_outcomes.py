"""Everything that user code can do to its process comes back as data, and the next rank goes on."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import pytest

from thornback.pool import Assignment, Outcome, SeenBy, WorkerSpec
from thornback.pool.ports import Attribute
from thornback.pool.worker.params import SupervisorParams
from thornback.pool.worker.sources import source_program
from thornback.pool.worker.supervisor import Supervisor

pytestmark = pytest.mark.anyio

BOUND_S = 30.0
SIGKILL, SIGSEGV, SIGABRT, SIGTERM = 9, 11, 6, 15


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def no_way(reason: str) -> None:
    raise AssertionError(f"the worker gave up: {reason}")


@asynccontextmanager
async def running(spec: WorkerSpec, params: SupervisorParams) -> AsyncIterator[Supervisor]:
    with anyio.fail_after(BOUND_S):
        supervisor = Supervisor(spec, "node-1", params=params, give_up=no_way)
        await supervisor.start()
        try:
            yield supervisor
        finally:
            assert await supervisor.close()


async def first_and_next(
    body: str,
    *,
    following: str = "return 1",
    timeout_s: float | None = None,
    spec: WorkerSpec | None = None,
) -> tuple[Outcome, Outcome]:
    """Run the body as rank 0, and a harmless rank 1 after it in the same assignment."""
    params = SupervisorParams(reclaim_s=BOUND_S)
    async with running(spec or WorkerSpec(), params) as supervisor:
        second = "if call.rank:" + f"\n{following}".replace("\n", "\n    ")
        program = f"{second}\nimport os, sys, signal, time\n{body}"
        await supervisor.load("p", source_program(program))
        work = Assignment(
            assignment=1,
            epoch="000001.000000001",
            stage=0,
            ranks=(range(2),),
            program="p",
            timeout_s=timeout_s,
        )
        report = await supervisor.run(work)
        assert report.final
        assert not report.returned
        first, second_outcome = report.outcomes
        assert second_outcome.ok, second_outcome.error
        return first, second_outcome


RAISES: list[tuple[str, str, Mapping[str, Attribute], str]] = [
    ("raise ValueError('bad rank')", "builtins.ValueError", {}, "bad rank"),
    ("sys.exit(3)", "builtins.SystemExit", {"exit_code": 3}, "exited with code 3"),
    ("sys.exit(0)", "builtins.SystemExit", {"exit_code": 0}, "exited before returning"),
    ("sys.exit('because')", "builtins.SystemExit", {"exit_code": 1}, "because"),
    ("raise KeyboardInterrupt", "builtins.KeyboardInterrupt", {}, ""),
    ("def f(): f()\nf()", "builtins.RecursionError", {}, "recursion"),
    ("raise MemoryError", "builtins.MemoryError", {}, ""),
    ("open('/does/not/exist')", "builtins.FileNotFoundError", {"errno": 2}, "does/not/exist"),
    (
        "class Odd(Exception):\n"
        "    def __reduce__(self): raise TypeError('no pickle')\n"
        "    def __str__(self): raise SystemExit\n"
        "raise Odd(lambda: 0)",
        "builtins.body.<locals>.Odd",
        {},
        "str() of this",
    ),
    ("state['raw'] = 42", "builtins.TypeError", {}, "expected a ProgramResult"),
    (
        "from thornback.pool import ProgramResult\nreturn ProgramResult(result=b'bytes')",
        "builtins.TypeError",
        {},
        "expected JSON text",
    ),
    (
        "from thornback.pool import ProgramResult\nreturn ProgramResult(outputs=(('a',),))",
        "builtins.TypeError",
        {},
        "pairs of str",
    ),
    ("return 'x' * (1 << 20)", "builtins.ValueError", {}, "at most 1048576 bytes"),
    (
        "from thornback.pool import ProgramResult\nreturn ProgramResult(result='\\udc00')",
        "builtins.UnicodeEncodeError",
        {},
        "surrogates",
    ),
]


@pytest.mark.parametrize(("body", "type_name", "attributes", "words"), RAISES)
async def test_what_the_rank_raises_is_data_and_its_process_goes_on(
    body: str, type_name: str, attributes: Mapping[str, Attribute], words: str
) -> None:
    outcome, following = await first_and_next(body)
    assert not outcome.ok
    assert outcome.seen_by is SeenBy.RANK
    assert outcome.phase == "rank"
    assert outcome.error is not None
    assert outcome.error.type_names[0] == type_name
    assert words in outcome.error.message
    assert attributes.items() <= outcome.error.attributes.items()
    assert following.pid == outcome.pid


async def test_a_rank_that_shuts_all_its_sockets_down_is_ended_and_the_next_goes_on() -> None:
    body = """
import socket
for fd in map(int, os.listdir('/proc/self/fd')):
    try:
        socket.socket(fileno=os.dup(fd)).shutdown(socket.SHUT_RDWR)
    except OSError:
        pass
time.sleep(1000)
"""
    outcome, _ = await first_and_next(body)
    assert (outcome.ok, outcome.seen_by) == (False, SeenBy.PROCESS)
    assert outcome.error is not None
    assert "closed its stream" in outcome.error.message


async def test_groups_and_causes_travel() -> None:
    body = """
try:
    1 / 0
except ZeroDivisionError as error:
    raise ExceptionGroup('several', [ValueError('one'), ExceptionGroup('', [OSError(28, 'full')])]
    ) from error
"""
    outcome, _ = await first_and_next(body)
    assert outcome.error is not None
    assert [each.message for each in outcome.error.members] == ["one", "[Errno 28] full"]
    assert outcome.error.members[1].attributes["errno"] == 28
    assert [each.type_names[0] for each in outcome.error.causes] == ["builtins.ZeroDivisionError"]
    assert "1 / 0" not in outcome.error.message
    assert "ZeroDivisionError" in outcome.error.traceback


DEATHS: list[tuple[str, Mapping[str, Attribute], str]] = [
    ("os._exit(7)", {"exit_code": 7}, "exited with code 7"),
    ("os._exit(0)", {"exit_code": 0}, "exited with code 0"),
    ("os.execv('/bin/true', ['true'])", {"exit_code": 0}, "exited with code 0"),
    ("os.kill(os.getpid(), 9)", {"signal": SIGKILL, "signal_name": "SIGKILL"}, "SIGKILL"),
    ("os.kill(os.getpid(), 15)", {"signal": SIGTERM, "signal_name": "SIGTERM"}, "SIGTERM"),
    ("import ctypes; ctypes.string_at(0)", {"signal": SIGSEGV}, "SIGSEGV"),
    ("os.abort()", {"signal": SIGABRT, "signal_name": "SIGABRT"}, "SIGABRT"),
    ("import faulthandler; faulthandler._stack_overflow()", {"signal": SIGSEGV}, "SIGSEGV"),
    ("os.killpg(0, 9)", {"signal": SIGKILL}, "SIGKILL"),
    ("os.closerange(3, 4096); time.sleep(60)", {"signal": SIGKILL}, "closed its stream"),
    (
        "import stat\n"
        "for fd in range(3, 1100):\n"
        "    try:\n"
        "        if stat.S_ISSOCK(os.fstat(fd).st_mode): os.write(fd, b'garbage' * 1000)\n"
        "    except OSError: pass\n"
        "time.sleep(60)",
        {"signal": SIGKILL},
        "something else wrote to its stream",
    ),
]


@pytest.mark.parametrize(("body", "attributes", "words"), DEATHS)
async def test_the_death_of_the_process_is_data_and_the_next_rank_gets_another(
    body: str, attributes: Mapping[str, Attribute], words: str
) -> None:
    outcome, following = await first_and_next("print('last words', flush=True)\n" + body)
    assert not outcome.ok
    assert outcome.seen_by is SeenBy.PROCESS
    assert outcome.phase == "rank"
    assert outcome.error is not None
    assert outcome.error.type_names == ("thornback.pool.RankProcessDied", "builtins.Exception")
    assert words in outcome.error.message
    assert attributes.items() <= outcome.error.attributes.items()
    assert "oom_kill" not in outcome.error.attributes
    assert outcome.log_tail.startswith("last words")
    assert outcome.peak_rss_bytes > 1 << 20
    assert following.pid != outcome.pid


async def test_a_fatal_signal_leaves_the_python_stack_in_the_log() -> None:
    outcome, _ = await first_and_next("os.abort()")
    assert "Fatal Python error: Aborted" in outcome.log_tail
    assert "in body" in outcome.log_tail


@pytest.mark.parametrize(
    "body",
    [
        pytest.param("time.sleep(60)", id="in-python"),
        pytest.param("import re; re.match('(a+)+$', 'a' * 60 + 'b')", id="in-c-holding-the-gil"),
        pytest.param(
            "signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))\ntime.sleep(60)",
            id="all-signals-blocked",
        ),
        pytest.param("os.kill(os.getpid(), signal.SIGSTOP)", id="stopped"),
    ],
)
async def test_a_rank_over_its_time_is_killed(body: str) -> None:
    outcome, following = await first_and_next(body, timeout_s=0.3)
    assert not outcome.ok
    assert (outcome.seen_by, outcome.phase) == (SeenBy.PROCESS, "rank")
    assert outcome.error is not None
    assert outcome.error.type_names[0] == "thornback.pool.RankTimedOut"
    assert outcome.error.attributes == {"timeout_s": 0.3}
    assert 0.3 <= outcome.ran_s < 5.0
    assert following.pid != outcome.pid


FORKED = """
if pid := os.fork():
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
else:
    """
HARMLESS = [
    pytest.param("os.close(1); os.close(2); return 1", id="stdout-closed"),
    pytest.param("sys.stdout.close(); sys.stderr.close(); return 1", id="python-stdout-closed"),
    pytest.param("sys.stdout = sys.stderr = None; return 1", id="stdout-none"),
    pytest.param("os.closerange(3, 256); return 1", id="descriptors-closed"),
    pytest.param("print('x' * (8 << 20)); return 1", id="flood"),
    pytest.param("print('\\udcff'); return 1", id="unencodable-output"),
    pytest.param("sys.stdin.read(); return 1", id="reads-stdin"),
    pytest.param("os.fork(); return 1", id="fork-comes-back"),
    pytest.param(FORKED + "sys.exit(51)\nreturn code - 50", id="fork-exits"),
    pytest.param(FORKED + "raise ValueError\nreturn code", id="fork-raises"),
    pytest.param(FORKED + "return 1\nreturn code + 1", id="fork-returns"),
    pytest.param("if os.fork() == 0: time.sleep(60)\nreturn 1", id="fork-stays"),
    pytest.param(
        "import threading\n"
        "threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
        "threading.Thread(target=time.sleep, args=(60,)).start()\n"
        "return 1",
        id="threads-left",
    ),
    pytest.param("signal.alarm(1); return 1", id="alarm-left"),
    pytest.param("import subprocess; subprocess.Popen(['sleep', '60']); return 1", id="child-left"),
    pytest.param(
        "import multiprocessing as m\n"
        "with m.get_context('fork').Pool(2) as pool: return sum(pool.map(abs, [-1, 0]))",
        id="own-process-pool",
    ),
    pytest.param("os.chdir('/'); os.umask(0); return 1", id="moves-away"),
]


@pytest.mark.parametrize("body", HARMLESS)
async def test_what_does_no_harm_leaves_the_rank_its_own_result(body: str) -> None:
    outcome, following = await first_and_next(body, following="print('here'); return 1")
    assert outcome.ok, outcome.error
    assert outcome.result == "1"
    assert following.log_slice[1] - following.log_slice[0] == len("here\n")
    assert outcome.seen_by is SeenBy.RANK
    assert following.pid == outcome.pid


LEAVES_DAEMON = """
import subprocess
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.execv('/bin/sleep', ['sleep', '60'])
    os._exit(0)
os.wait()
own = int(open(f'/proc/self/task/{os.getpid()}/children').read())
other = subprocess.Popen(['sleep', '60'], start_new_session=True).pid
open(PIDS, 'w').write(f'{own} {other}')
"""
ALIVE = """
from thornback.pool.worker.proctree import is_alive
pids = list(map(int, open(PIDS).read().split()))
return [len(pids), [pid for pid in pids if is_alive(pid)]]
"""


@pytest.mark.parametrize(
    ("end", "ok"),
    [
        ("return 1", True),
        ("raise ValueError", False),
        ("os._exit(3)", False),
        ("os.kill(os.getpid(), 9)", False),
        ("time.sleep(60)", False),
    ],
)
async def test_the_whole_tree_is_gone_when_the_next_rank_runs(
    end: str, ok: bool, tmp_path: Path
) -> None:
    where = f"PIDS = {str(tmp_path / 'pids')!r}\n"
    outcome, following = await first_and_next(
        where + LEAVES_DAEMON + end, following=where + ALIVE, timeout_s=1.0
    )
    assert outcome.ok is ok
    assert following.result == "[2, []]"


async def test_a_rank_over_its_memory_is_killed() -> None:
    limit = 200 << 20
    outcome, _ = await first_and_next(
        "import subprocess\n"
        f"code = 'x = bytearray({limit}); import time; time.sleep(60)'\n"
        "subprocess.run([sys.executable, '-c', code])",
        spec=WorkerSpec(rank_memory_bytes=limit),
    )
    assert outcome.error is not None
    assert outcome.error.type_names[0] == "thornback.pool.RankProcessDied"
    assert outcome.error.attributes["memory_limit_exceeded"] is True
    assert outcome.error.attributes["signal"] == SIGKILL
    assert outcome.peak_rss_bytes > limit


async def test_the_peak_memory_is_that_of_the_rank() -> None:
    outcome, following = await first_and_next("x = bytearray(150 << 20); del x; return 1")
    assert outcome.peak_rss_bytes > 150 << 20
    assert 1 << 20 < following.peak_rss_bytes < 150 << 20
