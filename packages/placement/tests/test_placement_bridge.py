"""The bridge from foreign threads into the event loop, under both loops."""

from __future__ import annotations

import threading
from functools import partial
from typing import Any

import anyio
import pytest

from thornback.placement.bridge import LoopBridge

LOOPS = pytest.mark.parametrize("backend", ["asyncio", "trio"])


@LOOPS
def test_what_a_thread_posts_runs_in_the_loop_in_order(backend: str) -> None:
    async def main() -> tuple[list[int], set[str]]:
        bridge, done = LoopBridge(), anyio.Event()
        seen: list[int] = []
        threads: set[str] = set()

        def note(number: int) -> None:
            seen.append(number)
            threads.add(threading.current_thread().name)
            if number == 99:
                done.set()

        def foreign() -> None:
            for number in range(100):
                bridge.post(partial(note, number))

        thread = threading.Thread(target=foreign, name="foreign")
        thread.start()
        with anyio.fail_after(20):
            await done.wait()
        thread.join()
        return seen, threads

    seen, threads = anyio.run(main, backend=backend)
    assert seen == list(range(100))
    assert threads == {threading.current_thread().name}


@LOOPS
def test_after_the_loop_a_post_is_a_no_op(backend: str) -> None:
    async def main() -> LoopBridge:
        return LoopBridge()

    bridge = anyio.run(main, backend=backend)
    ran: list[Any] = []
    bridge.post(lambda: ran.append(1))
    assert ran == []
