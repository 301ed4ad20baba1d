"""What a conformance suite needs to know of the backend that it checks. Public as
`thornback.pool.testing`."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import attrs

from thornback.pool.ports import WorkerBackend, WorkerSpec


@attrs.frozen(kw_only=True, slots=True)
class Bench:
    """A backend to be checked, and what the checks need to know of it.

    The checks of a suite run beside each other, each on a bench of its own: there are four at once.
    """

    backend: WorkerBackend
    node: str
    """Where its workers are to be started."""
    handle: object
    """Of a lease that holds one bundle for `spec`, on `node`."""
    spec: WorkerSpec
    """With two slots."""
    ok: bytes
    """A program that returns the rank as JSON."""
    fails: bytes
    """A program that raises `ValueError`."""
    blocks: bytes
    """A program that runs until it is killed."""
    crash: Callable[[int], None]
    """Kills the worker with this process id, as a crash would."""
    bound_s: float = 60.0
    """For each check."""

    async def blob(self, key: str) -> bytes:
        """Give the programs by name (fulfils `Blobs`)."""
        return {"ok": self.ok, "fails": self.fails, "blocks": self.blocks}[key]


MakeBench = Callable[[], AbstractAsyncContextManager[Bench]]
"""Returns a bench for one check, which is left at its end: for clean-up."""
