"""The time-outs that the driver itself enforces. Seconds; each says why."""

from __future__ import annotations

import attrs


@attrs.frozen(kw_only=True, slots=True)
class ExecutorParams:
    """Time-outs in seconds. One enforcer per phase: place is the driver's; start, silence and close
    are the pool's; rank the supervisor's."""

    place_s: float = 600.0
    """For a gang that fits the nodes to get its resources; then it is busy, and asked for again,
    free of charge. The leases obey it; the driver's own backstop lies behind it."""
    wait_for_nodes_s: float | None = None
    """For nodes to come that can hold a gang: workers join after the head, pods come back, an
    autoscaler needs minutes. None: what the platform says (600 s, unless you changed it there)."""
    wait_s: float | None = None
    """A stage whose resources are busy while this run holds no gang at all waits so long, then its
    ready ranks are given up. None: as long as it takes. Replaces `SchedulerParams.wait_s`."""
    start_s: float = 180.0
    """Until every worker of a gang has answered; a loaded machine starts a Ray actor in tens of
    seconds. The `setup_timeout_seconds` of a `runtime_env` that installs something come on top."""
    close_s: float = 15.0
    """For the workers of a gang to die; then the run goes on and the report names the gang."""
    release_s: float = 30.0
    """For a lease to be given back."""
    drain_s: float = 10.0
    """For the workers of a node to be told that it drains; later it is of little use to them."""
    progress_s: float = 0.2
    """At most one progress call to observers in this time."""
    disk_s: float = 60.0
    """For the disk of this machine to take, or to give, some results that wait for later ranks; a
    network disk that fails over takes tens of seconds."""
    cancel_s: float = 60.0
    """For everything to be closed when the driver itself is cancelled or fails."""
    logs_s: float = 15.0
    """For what ranks have written to be stored, at the end of a run; the rest is lost."""
