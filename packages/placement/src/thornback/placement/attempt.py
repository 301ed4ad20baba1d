"""The life of one reservation, in one task: asked for, waited for, held, removed.

Theory of operation. Whoever wants a lease starts `Attempt.run` in the allocator's task group and
waits; nobody but that task touches the reservation. So every way to lose interest (release,
cancellation, a deadline, close) is the same call, `leave()`, at any moment: before the creation has
returned, while it waits, or when it is held. The task is shielded: it always comes to the removal.
"""

from __future__ import annotations

import enum
import logging
from collections.abc import Callable

import anyio
import attrs

from thornback.placement.bundles import GangRequest, Strategy
from thornback.placement.params import RemovalParams
from thornback.placement.ports import Cluster, Grant, Reservation

_log = logging.getLogger(__name__)


class LeaseState(enum.Enum):
    """Where a lease is: PENDING -> HELD -> RELEASING -> gone, or PENDING -> RELEASING -> gone."""

    PENDING = "pending"
    """Asked for; not granted yet."""
    HELD = "held"
    """Granted, and not given back."""
    RELEASING = "releasing"
    """Nobody wants it any more; its removal is not confirmed yet."""


@attrs.define(eq=False, kw_only=True)
class Attempt:
    """One reservation, from before it exists until after it is gone."""

    lease_id: int
    """Of the lease that it becomes, if it does."""
    request: GangRequest
    strategy: Strategy
    avoid: tuple[str, ...]
    removal: RemovalParams
    on_settled: Callable[[], None]
    """Called once, when `grant` or `error` is there."""
    state: LeaseState = LeaseState.PENDING
    grant: Grant | None = None
    error: Exception | None = None
    confirmed: bool = False
    """Nothing of it is reserved any more."""
    gone: anyio.Event = attrs.field(factory=anyio.Event)
    """The task has ended: confirmed, or given up."""
    _reservation: Reservation | None = None
    _wanted: anyio.CancelScope = attrs.field(factory=anyio.CancelScope)
    _shield: anyio.CancelScope = attrs.field(factory=lambda: anyio.CancelScope(shield=True))

    async def run(self, cluster: Cluster) -> None:
        """Live. Never raises an `Exception`; ends soon after `leave()`."""
        try:
            with self._shield:
                if self._reservation is not None or await self._create(cluster):
                    await self._hold()
                    self.state = LeaseState.RELEASING
                    await self._remove()
        finally:
            self.gone.set()

    def revive(self) -> None:
        """Prepare another `run`, to try once more the removal that was not confirmed."""
        self.gone = anyio.Event()
        self._shield = anyio.CancelScope(shield=True)
        self._wanted = anyio.CancelScope()
        self._wanted.cancel()

    def leave(self) -> None:
        """Give up interest. Idempotent, at any moment."""
        self.state = LeaseState.RELEASING
        self._wanted.cancel()

    def settle(self, outcome: Grant | Exception) -> None:
        """Tell the waiting caller how it went. Only the first outcome of a wanted attempt
        counts."""
        if self.state is not LeaseState.PENDING or self.error is not None:
            return
        if isinstance(outcome, Grant):
            self.grant, self.state = outcome, LeaseState.HELD
        else:
            self.error = outcome
        self.on_settled()

    def abandon(self) -> None:
        """Stop the task, wherever it hangs: the last resort of an allocator that must end."""
        self._shield.cancel()

    async def _create(self, cluster: Cluster) -> bool:
        try:
            self._reservation = await cluster.reserve(self.request, self.strategy, self.avoid)
        except Exception as error:  # noqa: BLE001 - whatever the backend raises belongs to the caller
            # of acquire(), in its own task; here it would end every other lease
            self.settle(error)
            self.confirmed = True
        return self._reservation is not None

    async def _hold(self) -> None:
        assert self._reservation is not None
        with self._wanted:
            try:
                self.settle(await self._reservation.granted())
            except Exception as error:  # noqa: BLE001 - as above: it belongs to the caller of acquire()
                self.settle(error)
                return
            await anyio.sleep_forever()

    async def _remove(self) -> None:
        delay_s = self.removal.delay_s
        for number in range(1, self.removal.attempts + 1):
            if await self._removed(number):
                self.confirmed = True
                return
            if number < self.removal.attempts:
                await anyio.sleep(delay_s)
                delay_s *= 2

    async def _removed(self, number: int) -> bool:
        assert self._reservation is not None
        try:
            return await self._reservation.remove()
        except Exception as error:  # noqa: BLE001 - a removal that fails in any way is tried again, and
            # what stays unconfirmed is reported by release() and close()
            _log.warning(
                "lease %d: removal failed (try %d of %d): %s: %s",
                self.lease_id,
                number,
                self.removal.attempts,
                type(error).__name__,
                error,
            )
            return False
