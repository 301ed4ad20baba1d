"""What the user of a journal does with records beyond the promotion of outputs (marker files, say)
before they are announced.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import TypeAlias, TypeVar

import anyio
import attrs

from thornback.executor.journal.errors import JournalError
from thornback.executor.journal.ledger import intersect, normalise
from thornback.executor.journal.steps import RetryParams, give_up_or_go_on
from thornback.executor.ports import Completion

T = TypeVar("T")
Promoter: TypeAlias = Callable[[tuple[Completion, ...]], Awaitable[None]]
"""Does what is to be done with durable records, in their order, and returns when that is durable.

Idempotent: it is called again with the same records after a failure, and by the next driver if this
one dies before it knows that they are promoted. So it may also be called late, for records that the
next driver has promoted meanwhile. Whatever it raises is retried, but for a `JournalError`.

Cancellation: as a failure; what runs in a thread of its own may go on.
"""


def owed(records: Iterable[Completion], sizes: Mapping[str, int]) -> tuple[Completion, ...]:
    """Return what is left of the records when only these stages, of so many ranks, count. Pure."""
    clipped = (_clip(record, sizes[record.stage]) for record in records if record.stage in sizes)
    return tuple(record for record in clipped if record.ranks)


def _clip(record: Completion, size: int) -> Completion:
    ranks = intersect(normalise(record.ranks), (range(size),) if size > 0 else ())
    results = {rank: text for rank, text in record.results.items() if rank < size}
    return attrs.evolve(record, ranks=ranks, results=results)


async def patiently(
    said: str,
    attempt: Callable[[], Awaitable[T]],
    retry: RetryParams,
    *,
    monotonic: Callable[[], float],
    sleep: Callable[[float], Awaitable[None]],
) -> T:
    """Return what `attempt` returns, once it does.

    Args:
        said: what is attempted, for messages: "<url>: cannot ...".
        attempt: may be repeated.
        retry: with what patience; `timeout_s` bounds the whole.
        monotonic, sleep: the clock.

    Raises:
        JournalError: it failed, or did not return, for `retry.timeout_s`; or raised that itself.
    """
    since, backoff_s = monotonic(), retry.backoff_s
    while True:
        failed: Exception | None = None
        with anyio.move_on_after(retry.timeout_s - (monotonic() - since)):
            try:
                return await attempt()
            except JournalError:
                raise
            except Exception as error:  # noqa: BLE001 - foreign code and stores raise anything
                failed = error
        if failed is None:
            raise JournalError(f"{said}: it has not returned for {retry.timeout_s:.0f} s")
        give_up_or_go_on(said, failed, retry, monotonic() - since, backoff_s)
        await sleep(backoff_s)
        backoff_s = min(2 * backoff_s, retry.backoff_cap_s)
