"""Calls in one thread: in order, with patience for what goes on, and none for what hangs."""

from __future__ import annotations

import operator
import threading
from functools import partial

import anyio
import anyio.lowlevel
import pytest
import trio
from trio.testing import MockClock

from thornback.executor.onebyone import Ended, OneByOne

pytestmark = pytest.mark.anyio


def nothing() -> None:
    pass


class Led:
    """A call that ends when it is let."""

    def __init__(self, calls: OneByOne) -> None:
        self._calls = calls
        self._gate = threading.Semaphore(0)

    def __call__(self) -> None:
        assert self._gate.acquire(timeout=60)

    async def let(self) -> None:
        """Let one more end; virtual time stands still."""
        before = self._calls.made
        self._gate.release()
        while self._calls.made == before:
            await anyio.lowlevel.checkpoint()


@pytest.fixture
def virtual() -> MockClock:
    """Jumps to the next deadline when all tasks wait."""
    return MockClock(autojump_threshold=0)


async def test_calls_are_made_in_the_order_in_which_they_are_given() -> None:
    calls, made = OneByOne(), list[int]()
    for number in range(500):
        calls.give(partial(made.append, number))
    assert await calls.ask(made.copy, timeout_s=20) == list(range(500))
    with pytest.raises(KeyError, match="mine"):
        await calls.ask(partial(operator.getitem, {}, "mine"), timeout_s=20)
    last = threading.Event()
    calls.end(last.set)
    assert last.wait(20)
    calls.give(partial(made.append, -1))
    with pytest.raises(Ended):
        await calls.ask(made.copy, timeout_s=20)
    assert made == list(range(500))


async def test_the_end_waits_for_nothing_and_forgets_what_waits() -> None:
    calls, made = OneByOne(), list[int]()
    gate, hangs, last = threading.Event(), threading.Event(), threading.Event()
    errors: list[Ended] = []

    async def ask() -> None:
        try:
            await calls.ask(partial(made.append, 1), timeout_s=20)
        except Ended as error:
            errors.append(error)

    def hang() -> None:
        hangs.set()
        gate.wait(60)

    calls.give(hang)
    async with anyio.create_task_group() as group:
        group.start_soon(ask)
        await anyio.wait_all_tasks_blocked()
        assert hangs.wait(20)
        calls.end(last.set)
        calls.end(partial(made.append, 2))
    assert len(errors) == 1
    assert not last.is_set(), "the call at hand hangs"
    gate.set()
    assert last.wait(20)
    assert made == []
    assert calls._thread is not None
    calls._thread.join(20)
    assert not calls._thread.is_alive()


async def test_without_a_call_there_is_no_thread() -> None:
    calls, last = OneByOne(), threading.Event()
    calls.end(last.set)
    assert calls._thread is None
    assert not last.is_set()


async def test_who_is_cancelled_leaves_the_others_their_turn() -> None:
    calls, gate, made = OneByOne(), threading.Event(), list[int]()
    calls.give(gate.wait)
    with anyio.move_on_after(0.01) as scope:
        await calls.ask(partial(made.append, 1), timeout_s=20)
    assert scope.cancelled_caught
    gate.set()
    assert await calls.ask(made.copy, timeout_s=20) == [1]
    calls.end(nothing)


def test_a_call_may_take_so_long_and_not_all_together(virtual: MockClock) -> None:
    async def main() -> None:
        calls = OneByOne()
        slow = Led(calls)
        for _ in range(20):
            calls.give(slow)

        async def lead() -> None:
            for _ in range(20):
                await trio.sleep(50)
                await slow.let()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(lead)
            assert await calls.ask(lambda: calls.made, timeout_s=60) == 20
        calls.end(nothing)

    trio.run(main, clock=virtual)


def test_what_hangs_for_so_long_is_given_up(virtual: MockClock) -> None:
    async def main() -> None:
        calls, gate = OneByOne(), threading.Event()
        calls.give(gate.wait)
        before = trio.current_time()
        with pytest.raises(TimeoutError, match="no answer for 60 s"):
            await calls.ask(nothing, timeout_s=60)
        assert 60 <= trio.current_time() - before <= 72
        calls.end(nothing)
        gate.set()

    trio.run(main, clock=virtual)


def test_who_waits_is_told_of_the_end_at_once(virtual: MockClock) -> None:
    async def main() -> None:
        calls, gate = OneByOne(), threading.Event()
        calls.give(gate.wait)

        before = trio.current_time()

        async def end() -> None:
            calls.end(nothing)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(end)
            with pytest.raises(Ended):
                await calls.ask(nothing, timeout_s=60)
        assert trio.current_time() == before, "not at the next look"
        gate.set()

    trio.run(main, clock=virtual)


def test_a_process_that_was_paused_has_not_waited(virtual: MockClock) -> None:
    async def main() -> None:
        calls = OneByOne()
        slow = Led(calls)
        calls.give(slow)

        async def pause() -> None:
            virtual.jump(1000)
            await trio.sleep(20)
            await slow.let()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(pause)
            assert await calls.ask(lambda: calls.made, timeout_s=60) == 1
        calls.end(nothing)

    trio.run(main, clock=virtual)
