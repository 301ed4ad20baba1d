"""What `Allocator.acquire` raises. All of them pickle, and are named `thornback.placement.X`."""

from __future__ import annotations


class PlacementError(Exception):
    """A gang could not be leased. The backend's own exceptions are raised as they are."""

    __module__ = "thornback.placement"


class AllocatorClosed(PlacementError):
    """Your code closed the allocator (or never opened it) and asked it for a lease all the same."""

    __module__ = "thornback.placement"


class Unschedulable(PlacementError):
    """The request does not fit the nodes, not even when all is free.

    Compare `PlacementTimedOut`: there it would fit.

    Attributes:
        message: what is needed and what there is, with numbers.
        largest_memory_bytes: the most memory that a bundle of this request could have; None: memory
            is not what is missing, or unknown.
    """

    __module__ = "thornback.placement"

    def __init__(self, message: str, largest_memory_bytes: int | None = None) -> None:
        super().__init__(message, largest_memory_bytes)
        self.message = message
        self.largest_memory_bytes = largest_memory_bytes

    def __str__(self) -> str:
        return self.message


class PlacementTimedOut(PlacementError):
    """The resources exist but were not free before the deadline (compare `Unschedulable`).

    Attributes:
        message: what was asked for.
        timeout_s: how long was waited.
    """

    __module__ = "thornback.placement"

    def __init__(self, message: str, timeout_s: float) -> None:
        super().__init__(message, timeout_s)
        self.message = message
        self.timeout_s = timeout_s

    def __str__(self) -> str:
        return self.message


class PlacementRemoved(PlacementError):
    """Somebody else removed the reservation while it was waited for."""

    __module__ = "thornback.placement"
