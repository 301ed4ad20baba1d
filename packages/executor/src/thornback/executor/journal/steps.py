"""Store operations as data: the journal's protocol is written as generators that yield them
(sans-IO).

So the code that is shipped is the code that the model test interleaves, and retries, threads and
deadlines live in one place, `AsyncSteps`.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Awaitable, Callable, Generator
from typing import Generic, TypeAlias, TypeVar, assert_never

import anyio
import attrs

from thornback.executor.apart import apart
from thornback.executor.journal.errors import JournalError
from thornback.executor.journal.store import Store
from thornback.faults import redact

T = TypeVar("T")
logger = logging.getLogger(__name__)


@attrs.frozen(slots=True)
class Put:
    """Write an object whole. Reply: None."""

    name: str
    data: bytes = attrs.field(repr=False)


@attrs.frozen(slots=True)
class Get:
    """Read an object. Reply: its bytes, or None when there is none (any more)."""

    name: str


@attrs.frozen(slots=True)
class List:
    """Reply: the names of all objects, as a tuple, with everything that was put before."""


@attrs.frozen(slots=True)
class Delete:
    """Remove objects, in any order; one that is not there is fine. Reply: None."""

    names: tuple[str, ...]


@attrs.frozen(slots=True)
class Pause:
    """Wait. Reply: None."""

    delay_s: float
    why: str = ""
    """Told to the user, where it is long."""


@attrs.frozen(slots=True)
class Call:
    """Do something else that blocks, may fail and may be repeated. A `JournalError` from it is
    final. Reply: None.
    """

    what: str
    """After "cannot"."""
    do: Callable[[], None]


Op: TypeAlias = Put | Get | List | Delete | Pause | Call
Reply: TypeAlias = "bytes | tuple[str, ...] | None"
Steps: TypeAlias = Generator[Op, Reply, T]


def put(name: str, data: bytes) -> Steps[None]:
    """Yield a `Put`."""
    yield Put(name, data)


def get(name: str) -> Steps[bytes | None]:
    """Yield a `Get`; return its reply."""
    reply = yield Get(name)
    assert not isinstance(reply, tuple)
    return reply


def listing() -> Steps[tuple[str, ...]]:
    """Yield a `List`; return its reply."""
    reply = yield List()
    assert isinstance(reply, tuple)
    return reply


def call(what: str, do: Callable[[], None]) -> Steps[None]:
    """Yield a `Call`."""
    yield Call(what, do)


@attrs.frozen(slots=True)
class Finished(Generic[T]):
    """The steps have returned."""

    value: T


@attrs.frozen(slots=True)
class StoreFailed:
    """The store raised; `advance` tries the same operation again."""

    op: Op
    error: Exception


class StepRunner(Generic[T]):
    """Runs steps on a store until they end, pause, or the store fails. Blocking; one thread at a
    time.
    """

    def __init__(self, store: Store, steps: Steps[T]) -> None:
        self._store = store
        self._steps = steps
        self._op: Op | None = None
        self._reply: Reply = None
        self.performed = 0
        """Operations that have succeeded."""

    def advance(self) -> Finished[T] | Pause | StoreFailed:
        """Go on. Raises what the steps raise."""
        while True:
            if self._op is None:
                try:
                    self._op = self._steps.send(self._reply)
                except StopIteration as stop:
                    return Finished(stop.value)
            op = self._op
            if isinstance(op, Pause):
                self._op, self._reply = None, None
                return op
            try:
                self._reply = _perform(self._store, op)
            except JournalError:
                raise
            except Exception as error:  # noqa: BLE001 - stores raise whatever their libraries raise: data
                return StoreFailed(op, error)
            self._op = None
            self.performed += 1


def run_blocking(store: Store, steps: Steps[T], sleep: Callable[[float], None] = time.sleep) -> T:
    """Run steps to their end in this thread; the first failure of the store is raised as
    `JournalError`.
    """
    runner = StepRunner(store, steps)
    while True:
        match runner.advance():
            case Finished(value):
                return value
            case Pause(delay_s):
                sleep(delay_s)
            case StoreFailed(op, error):
                said = f"cannot {_describe(op)}: {type(error).__name__}: {error}"
                raise JournalError(f"{store.url}: {said}{_mend(op, error)}") from error


@attrs.frozen(kw_only=True, slots=True)
class RetryParams:
    """How failures of the store are retried."""

    timeout_s: float
    """An operation that fails, or does not return, for so long is given up."""
    backoff_s: float = 0.1
    """Before the second try; doubles."""
    backoff_cap_s: float = 30.0
    patient: bool = True
    """Retry also what looks permanent (permission denied, no such bucket): right once the store has
    worked.
    """


PERMANENT = (
    PermissionError,
    FileNotFoundError,
    FileExistsError,
    NotADirectoryError,
    IsADirectoryError,
    ImportError,
    TypeError,
    ValueError,
)


_NO_USE = {errno.EIO, errno.ELOOP, errno.EROFS, errno.ENAMETOOLONG}
"""Errors of a local file (which the exception names) that trying again does not change. A remote
store may report anything as EIO."""


def looks_permanent(error: Exception) -> bool:
    """Return whether trying again is not likely to help."""
    if isinstance(error, PERMANENT):
        return True
    return isinstance(error, OSError) and error.errno in _NO_USE and error.filename is not None


class AsyncSteps:
    """Runs steps in worker threads, with retries. A store call is never left half-way, unless it
    hangs.
    """

    def __init__(
        self,
        store: Store,
        *,
        monotonic: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]],
        threads: int,
    ) -> None:
        self._store = store
        self._monotonic = monotonic
        self.sleep = sleep
        self._limiter = anyio.CapacityLimiter(threads)
        self._calls: list[anyio.CancelScope] = []

    async def run(self, steps: Steps[T], retry: RetryParams) -> T:
        """Return what the steps return.

        Cancellation takes effect between store calls, not within one: it waits for the call at
        hand, at most `retry.timeout_s`.

        Raises:
            JournalError: the store failed for `retry.timeout_s`, or hangs. And whatever the steps
                raise.
        """
        runner = StepRunner(self._store, steps)
        performed, since, backoff_s = 0, self._monotonic(), retry.backoff_s
        while True:
            outcome = await self._advance(runner, retry.timeout_s)
            if runner.performed > performed:
                performed, since, backoff_s = runner.performed, self._monotonic(), retry.backoff_s
            match outcome:
                case Finished(value):
                    return value
                case Pause(delay_s, why):
                    if why:
                        logger.warning("%s: %s", redact(self._store.url), why)
                    await self.sleep(delay_s)
                    since = self._monotonic()
                case StoreFailed(op, error):
                    said = f"{self._store.url}: cannot {_describe(op)}"
                    failing_s = self._monotonic() - since
                    give_up_or_go_on(said, error, retry, failing_s, backoff_s, _mend(op, error))
                    await self.sleep(backoff_s)
                    backoff_s = min(2 * backoff_s, retry.backoff_cap_s)
                case _ as never:
                    assert_never(never)

    def abandon(self) -> None:
        """Give up on the calls that are in flight: their steps raise. For the end, when the store
        hangs.
        """
        for scope in self._calls:
            scope.cancel()

    async def _advance(
        self, runner: StepRunner[T], timeout_s: float
    ) -> Finished[T] | Pause | StoreFailed:
        with anyio.move_on_after(timeout_s, shield=True) as scope:
            self._calls.append(scope)
            try:
                return await apart(runner.advance, self._limiter)
            finally:
                self._calls.remove(scope)
        raise JournalError(
            f"{self._store.url}: the store has not answered for {timeout_s:.0f} s, or until the "
            "journal was closed"
        )


def give_up_or_go_on(
    said: str,
    error: Exception,
    retry: RetryParams,
    failing_s: float,
    backoff_s: float,
    mend: str = "",
) -> None:
    """Return if what failed for so long is to be tried again after `backoff_s`, and tell so.
    `mend` ends the message if it is not: how to fix it.

    Raises:
        JournalError: it is not.
    """
    said = redact(f"{said}: {type(error).__name__}: {error}")
    hopeless = looks_permanent(error) and not retry.patient
    if hopeless or failing_s + backoff_s > retry.timeout_s:
        raise JournalError(f"{said} (tried for {failing_s:.0f} s){mend}") from error
    logger.warning("%s; again in %.1f s", said, backoff_s)


def _perform(store: Store, op: Put | Get | List | Delete | Call) -> Reply:
    match op:
        case Put(name, data):
            store.put(name, data)
            return None
        case Get(name):
            return store.get(name)
        case List():
            return store.list()
        case Delete(names):
            store.delete(names)
            return None
        case Call(_, do):
            do()
            return None
        case _ as never:
            assert_never(never)


def _mend(op: Op, error: Exception) -> str:
    if not isinstance(op, Get) or not looks_permanent(error):
        return ""
    return ". Make it readable, or move it away: what only it has recorded is then run again"


def _describe(op: Op) -> str:
    match op:
        case Put(name, _):
            return f"write control/{name}"
        case Get(name):
            return f"read control/{name}"
        case Delete(names):
            return f"remove {len(names)} objects of control/"
        case Call(said, _):
            return said
        case _:
            return "list control/"
