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

from thornback.executor.apart import apart, in_order

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
WAITING = """
import anyio, sys, threading
from thornback.executor.waiting import NotKept, WaitingTexts

def hang():
    threading.Event().wait()

async def main():
    waiting = WaitingTexts(0, timeout_s=0.05, open_rows=hang)
    waiting.put(0, {0: "abc"})
    try:
        await waiting.get(0, (range(1),))
    except NotKept:
        print("lost 3")
    waiting.close()

anyio.run(main, backend=sys.argv[1])
"""


@pytest.mark.parametrize(
    "program", [LOGS, JOURNAL, WAITING], ids=["logs", "journal", "results that wait"]
)
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


HANGS_IN_ORDER = """
import sys, threading
from thornback.executor.apart import in_order

for number in in_order(lambda item: item or threading.Event().wait(), [1, 2, 0, 0], 4):
    print(number, flush=True)
    if number == 2:
        break
"""


def test_calls_in_order_that_hang_do_not_keep_the_process() -> None:
    command = [sys.executable, "-c", HANGS_IN_ORDER]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout == "1\n2\n"


@pytest.mark.parametrize("at_once", [1, 2, 8, 100])
@pytest.mark.parametrize("count", [0, 1, 7, 500])
def test_results_come_in_the_order_of_the_items(count: int, at_once: int) -> None:
    assert list(in_order(lambda item: -item, range(count), at_once)) == [-i for i in range(count)]


def test_so_many_calls_are_in_flight_and_no_more() -> None:
    gate, lock, running, most = threading.Barrier(4), threading.Lock(), [0], [0]

    def call(item: int) -> int:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        gate.wait(20)  # passes only if four are here together
        with lock:
            running[0] -= 1
        return item

    assert list(in_order(call, range(40), 4)) == list(range(40))
    assert most == [4]


def test_few_results_wait_to_be_taken() -> None:
    started: list[int] = []
    full = threading.Event()

    def call(item: int) -> int:
        started.append(item)
        if len(started) == 5:  # the first was taken: room for two times two more
            full.set()
        return item

    results = in_order(call, range(1000), 2)
    assert next(results) == 0
    assert full.wait(20)
    results.close()
    assert len(started) == 5


def test_the_first_failure_is_raised_when_no_call_is_in_flight_any_more() -> None:
    both, let, told = threading.Barrier(3), threading.Event(), threading.Event()
    started: list[int] = []

    def call(item: int) -> int:
        started.append(item)
        if item in (2, 3):
            both.wait(20)
        if item == 2:
            raise ValueError("item 2")
        if item == 3:
            let.wait(20)
        return item

    def take() -> None:
        with pytest.raises(ValueError, match="item 2"):
            next(results)
        told.set()

    results = in_order(call, range(100), 2)
    assert [next(results), next(results)] == [0, 1]
    taker = threading.Thread(target=take)
    taker.start()
    try:
        both.wait(20)
        assert not told.wait(0.2)
    finally:
        let.set()
    assert told.wait(20)
    taker.join(20)
    assert len(started) <= 6
