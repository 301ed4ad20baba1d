"""Blocking calls to a store, which may never return, in threads that nobody waits for."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

import anyio
from anyio.lowlevel import current_token

T = TypeVar("T")


async def apart(function: Callable[[], T], limiter: anyio.CapacityLimiter) -> T:
    """Return what a blocking function returns, or raise what it raises; it has a thread of its own.

    Not by `anyio.to_thread`: under asyncio its threads are not daemonic, so that Python would wait
    at its exit, for ever, for a call that was given up. Source: anyio 4.16 `_backends/_asyncio.py`
    `WorkerThread`.

    Cancellation: the thread goes on alone, and counts for the limiter until it ends.
    """
    results: list[T] = []
    errors: list[BaseException] = []
    ended, token, borrower = anyio.Event(), current_token(), object()

    def end() -> None:
        limiter.release_on_behalf_of(borrower)
        ended.set()

    def body() -> None:
        try:
            results.append(function())
        except BaseException as error:  # noqa: BLE001  # whatever it is, it belongs to the caller
            errors.append(error)
        # Semi-private in anyio 4, whose `from_thread.run_sync` waits for an answer: for ever, if
        # the loop ends just now.
        with suppress(RuntimeError):  # it has ended: nobody waits
            token.backend_class.run_sync_soon(end, (), token.native_token)

    await limiter.acquire_on_behalf_of(borrower)
    try:
        threading.Thread(target=body, name="thornback-store", daemon=True).start()
    except BaseException:  # there can be no more threads
        limiter.release_on_behalf_of(borrower)
        raise
    await ended.wait()
    if errors:
        raise errors[0]
    return results[0]
