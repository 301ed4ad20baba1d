"""The bounds of a supervisor."""

from __future__ import annotations

import attrs


@attrs.frozen(kw_only=True, slots=True)
class SupervisorParams:
    """Bounds and sizes of a supervisor."""

    reclaim_s: float = 2.0
    """An assignment older than this hands back what has not started; one that waits so long for a
    slot, everything."""
    start_limit_s: float = 60.0
    """For a rank process to begin with a rank it was given (a thread left over from the last one
    may hold the GIL)."""
    fork_server_s: float = 60.0
    """For the fork server to start, before it imports anything of the stage."""
    fork_server_restarts: int = 1
    """After so many the worker gives up and ends, so that the pool sees it lost."""
    confirm_s: float = 5.0
    """For the pool to confirm a checkpoint while the node drains; then the rank goes on without."""
    kill_s: float = 5.0
    """For the fork server to confirm a death, before it is itself killed, which kills all
    children."""
    close_s: float = 6.0
    """For the fork server to end everything."""
    tick_s: float = 0.25
    """How often memory and logs of running ranks are looked at."""
    log_cap_bytes: int = 64 << 20
    """Disk space for the log of one rank process."""
    fork_retries: int = 5
    """When the system cannot fork (no memory, no process ids), one second apart; then the worker
    gives up."""
