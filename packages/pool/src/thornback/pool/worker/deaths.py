"""Why a rank process ended, as data. Pure, but for the reading of the kernel's counter of
out-of-memory kills."""

from __future__ import annotations

import enum
import os
import signal
from pathlib import Path

import attrs

from thornback.pool.ports import Attribute, CaughtError


class KillReason(enum.Enum):
    """Why the supervisor killed a rank process."""

    CLOSED = "closed"
    """The worker ends."""
    MEMORY = "memory"
    """Over `rank_memory_bytes`."""
    NOT_STARTED = "not_started"
    """It did not begin with the rank it was given."""
    PROTOCOL = "protocol"
    """It said what a rank process does not say, or closed its stream."""
    RECALLED = "recalled"
    RETIRED = "retired"
    """Between ranks: of another program, or of no use any more."""
    TIMED_OUT = "timed_out"


@attrs.frozen(kw_only=True, slots=True)
class Death:
    """The end of a rank process, as the kernel tells it."""

    pid: int
    status: int
    """As `waitpid` gives it."""
    max_rss_bytes: int
    killed_for: KillReason | None = None
    """Set only if our signal was what ended it."""
    detail: str = ""

    @property
    def signal(self) -> int:
        """The signal that ended it, or 0."""
        return os.WTERMSIG(self.status) if os.WIFSIGNALED(self.status) else 0


def died(death: Death, *, oom_kill: bool) -> CaughtError:
    """Return the error of a rank whose process died under it."""
    over = death.killed_for is KillReason.MEMORY
    attributes: dict[str, Attribute] = {}
    if oom_kill:
        attributes["oom_kill"] = True
    if over:
        attributes["memory_limit_exceeded"] = True
    if death.signal:
        name = _signal_name(death.signal)
        attributes |= {"signal": death.signal, "signal_name": name}
        how = f"was killed by {name} (signal {death.signal})"
    else:
        code = os.WEXITSTATUS(death.status)
        attributes["exit_code"] = code
        how = f"exited with code {code} before the rank returned"
    notes = [
        note for note in (death.detail, "the kernel ran out of memory" if oom_kill else "") if note
    ]
    message = f"rank process {death.pid} {how}" + "".join(f"; {note}" for note in notes)
    return _error("RankProcessDied", message, attributes)


def timed_out(what: str, timeout_s: float) -> CaughtError:
    """Return the error of a rank (or set-up) that took too long."""
    message = f"the {what} took longer than {timeout_s:g} s and was killed"
    return _error("RankTimedOut", message, {"timeout_s": timeout_s})


def _error(name: str, message: str, attributes: dict[str, Attribute]) -> CaughtError:
    return CaughtError(
        type_names=(f"thornback.pool.{name}", "builtins.Exception"),
        message=message,
        attributes=attributes,
    )


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIG{number}"


class OomKills:
    """Tells whether the kernel has killed for want of memory lately.

    Counts the kills in our own memory cgroup where there is one that counts, else those of the
    whole machine. Then a kill elsewhere can be taken for ours, so only the last few samples are
    compared.
    """

    def __init__(self, sources: tuple[tuple[Path, str], ...] | None = None) -> None:
        self._source = next(
            ((path, key) for path, key in (sources or _sources()) if _read(path, key) is not None),
            None,
        )
        self._samples = [self._count()] * 3

    def sample(self) -> None:
        """Look at the counter; to be called about once a second."""
        self._samples = [*self._samples[1:], self._count()]

    def risen(self) -> bool:
        """Tell whether the counter is higher than two samples ago."""
        return self._count() > self._samples[0]

    def _count(self) -> int:
        if self._source is None:
            return 0
        return _read(*self._source) or 0


def _sources() -> tuple[tuple[Path, str], ...]:
    """Return counters to try, most specific first. Source: kernel docs `cgroup-v2.rst`,
    `cgroup-v1/memory.rst`."""
    root = Path("/sys/fs/cgroup")
    found: list[tuple[Path, str]] = []
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            found.append((root / path.lstrip("/") / "memory.events", "oom_kill"))
        elif "memory" in controllers.split(","):
            found.append((root / "memory" / path.lstrip("/") / "memory.oom_control", "oom_kill"))
    found.append((root / "memory.events", "oom_kill"))
    found.append((Path("/proc/vmstat"), "oom_kill"))
    return tuple(found)


def _read(path: Path, key: str) -> int | None:
    try:
        for line in path.read_text().splitlines():
            name, _, value = line.partition(" ")
            if name == key:
                return int(value)
    except (OSError, ValueError):
        return None
    return None
