"""Calls that never return: nobody waits for their threads, least of all Python's exit."""

from __future__ import annotations

import operator
import subprocess
import sys
import threading
from functools import partial

import anyio
import anyio.lowlevel
import pytest

from thornback.executor.apart import apart

LOGS = """
import anyio, sys, threading
from thornback.executor.logbuffer import LogParams
from thornback.executor.logs import LogStore
from thornback.pool import LogChunk

class Hangs:
    def write(self, batch):
        threading.Event().wait()

async def main():
    params = LogParams(write_s=0.05)
    async with LogStore("/nowhere", flush_s=20.0, params=params, sink=Hangs()) as store:
        store.put([LogChunk(log="a", offset=0, data=b"abc", gang=1)])
    print("lost", store.lost)

anyio.run(main, backend=sys.argv[1])
"""
JOURNAL = """
import anyio, sys, threading
from thornback.executor.journal.errors import JournalError
from thornback.executor.journal.steps import AsyncSteps, RetryParams, call

async def main():
    steps = AsyncSteps(Store(), monotonic=anyio.current_time, sleep=anyio.sleep, threads=1)
    try:
        await steps.run(call("hang", threading.Event().wait), RetryParams(timeout_s=0.05))
    except JournalError:
        print("lost 3")

class Store:
    url = "/nowhere"

anyio.run(main, backend=sys.argv[1])
"""


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("program", [LOGS, JOURNAL], ids=["logs", "journal"])
def test_a_store_that_hangs_does_not_keep_the_process(anyio_backend: str, program: str) -> None:
    command = [sys.executable, "-c", program, anyio_backend]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout == "lost 3\n"


@pytest.mark.anyio
async def test_a_call_answers_or_raises(anyio_backend: str) -> None:
    limiter = anyio.CapacityLimiter(1)
    assert await apart(lambda: 3, limiter) == 3
    with pytest.raises(KeyError, match="mine"):
        await apart(partial(operator.getitem, {}, "mine"), limiter)
    assert limiter.borrowed_tokens == 0


@pytest.mark.anyio
async def test_a_thread_that_was_given_up_counts_until_it_ends(anyio_backend: str) -> None:
    limiter, gate = anyio.CapacityLimiter(1), threading.Event()
    try:
        with anyio.fail_after(20):
            with anyio.move_on_after(0.01) as scope:
                await apart(gate.wait, limiter)
            assert scope.cancelled_caught
            assert limiter.borrowed_tokens == 1
            gate.set()
            while limiter.borrowed_tokens:
                await anyio.lowlevel.checkpoint()
    finally:
        gate.set()
