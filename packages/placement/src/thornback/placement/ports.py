"""What the allocator needs from a cluster, as protocols.

`on_ray`, `on_local` and `testing` fulfil them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import attrs

from thornback.placement.bundles import GangRequest, NodeType, NodeView, Strategy, Supply


@attrs.frozen(kw_only=True, slots=True)
class Snapshot:
    """The nodes at one moment."""

    nodes: tuple[NodeView, ...]
    """The live ones, also those that drain."""
    supply: Supply = Supply.CHANGING
    """Whether others may come."""
    version: int = 0
    """The backend's own mark, so that `Cluster.changed` misses nothing."""
    node_types: tuple[NodeType, ...] = ()
    """What may come where the supply is ELASTIC; empty: unknown, so it may be anything."""


@attrs.frozen(kw_only=True, slots=True)
class Grant:
    """What a reservation came to."""

    nodes: tuple[str, ...]
    """One node per bundle, in the order of the bundles."""
    handle: object = attrs.field(eq=False, repr=False, default=None)
    """Becomes `Lease.handle`."""


class Reservation(Protocol):
    """Resources asked for: first waiting, then granted, in the end removed."""

    async def granted(self) -> Grant:
        """Return once all bundles are reserved; wait without limit, also when they can never be.

        Called again, it answers again.

        Raises:
            PlacementRemoved: the reservation was removed.

        Cancellation: changes nothing; the reservation goes on waiting, or stays granted.
        """
        ...

    async def remove(self) -> bool:
        """Give everything back, granted or not. Idempotent.

        Returns:
            True when the backend confirmed that nothing is reserved any more. False, or any
            exception: unknown; the allocator tries again.

        Cancellation: only when an allocator that ends gives it up.
        """
        ...


class Cluster(Protocol):
    """Where gangs are placed."""

    async def reserve(
        self, request: GangRequest, strategy: Strategy, avoid: Sequence[str], /
    ) -> Reservation:
        """Ask for the bundles and return, without waiting for them.

        Args:
            request: the bundles.
            strategy: of the request, with the default filled in.
            avoid: nodes that must not be used. The allocator decides when to give this up.

        Raises:
            Exception: whatever the backend raises; then nothing is reserved.

        Cancellation: the allocator shields this call and undoes what is made late. Only when it
        gives up on a call that never returns does it cancel it: then the backend undoes by itself.
        """
        ...

    async def look(self) -> Snapshot:
        """Return the nodes now.

        Raises:
            Exception: whatever the backend raises: the allocator complains, and looks again later.
                Leases can be had without a look.

        Cancellation: at any time, also when it takes longer than `AllocatorParams.look_s`.
        """
        ...

    async def changed(self, since: Snapshot, /) -> None:
        """Return when another look may tell something new: at once, if that was before this call.

        A backend without notices of its own sleeps for its interval. One that never changes never
        returns.

        Cancellation: at any time.
        """
        ...
