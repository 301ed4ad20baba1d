"""What a simulated world is made of, as values: nodes, times, chances, incidents, and what a run
came to. All seconds are simulated ones."""

from __future__ import annotations

import enum
from typing import Any

import attrs

from thornback.scheduler.commands import FinishRun
from thornback.scheduler.states import SchedulerError, UsageError

GIB = 2**30


class Unfinished(SchedulerError):
    """A simulated run did not end within its bounds."""

    def __init__(self, story: str, stats: RunStats) -> None:
        super().__init__(story, stats)
        self.story = story
        """Which bound."""
        self.stats = stats
        """How far it came."""


class MishapKind(enum.Enum):
    """What can go wrong in a simulated world."""

    CODE = "code"
    """The rank's code raised."""
    COLLATERAL = "collateral"
    """It raised because its part on another node was gone."""
    PROCESS = "process"
    """The rank's own process died."""
    TIMEOUT = "timeout"
    """The rank exceeded its time."""
    OOM = "oom"
    """The rank needed more memory than its gang gave it."""
    WORKER = "worker"
    """The worker died, by what a rank did."""
    SILENT = "silent"
    """The worker has not answered for too long, and was declared dead."""
    PREEMPTED = "preempted"
    """The node went away, after a notice."""
    NODE = "node"
    """The node died without a notice."""
    START = "start"
    """A worker of the gang did not start in time."""
    SETUP = "setup"
    """What the ranks need could not be set up on a node."""
    PLACE = "place"
    """There was no room in time."""
    IMPOSSIBLE = "impossible"
    """No node is large enough."""
    JOURNAL = "journal"
    """The journal could not write for too long."""
    EIO = "eio"
    """The rank met a broken disk."""
    ENOSPC = "enospc"
    """The rank met a full disk."""
    LOAD = "load"
    """The set-up of the rank's process failed."""
    GPU = "gpu"
    """The GPU of the rank's process failed."""


class BadKind(enum.Enum):
    """What a bad node does to whatever runs there."""

    EXIT = "exit"
    """Every rank process dies."""
    EIO = "eio"
    """Every rank meets a broken disk."""
    ENOSPC = "enospc"
    """Every rank meets a full disk."""
    LOAD = "load"
    """The set-up of every rank process fails."""
    SETUP = "setup"
    """No gang can be set up there."""
    GPU = "gpu"
    """The GPU of the first slot of every gang is broken; the other slots work."""


@attrs.frozen(kw_only=True, slots=True)
class BadNode:
    """A node that is broken, and stays so or flaps. Raises `UsageError` for impossible numbers."""

    number: int
    """Which one: nodes are numbered from 1 in the order in which they come."""
    kind: BadKind
    """What is wrong with it."""
    after_s: float = 0.1
    """A rank runs for so long before it fails there, or for as long as it takes if that is less."""
    flaps_s: float | None = None
    """It is bad and good by turns, for so long each; None: it is always bad."""

    def __attrs_post_init__(self) -> None:
        flaps_s = 1.0 if self.flaps_s is None else self.flaps_s
        if self.number < 1 or not self.after_s > 0 or not flaps_s > 0:
            raise UsageError(
                "A bad node needs number >= 1, after_s > 0 and flaps_s > 0 or None, not "
                f"{self.number!r}, {self.after_s!r} and {self.flaps_s!r}."
            )


@attrs.frozen(kw_only=True, slots=True)
class Mishap:
    """Something went wrong: what the world says, before anybody has classified it."""

    kind: MishapKind
    """What."""
    node: str = ""
    """Where; empty: nowhere in particular."""
    only_node: bool = False
    """The driver has seen no other node."""
    memory_bytes: int | None = None
    """For OOM: what the rank had used when it was ended."""
    largest_bytes: int | None = None
    """For OOM and IMPOSSIBLE: the most that a rank can be given."""


class IncidentKind(enum.Enum):
    """What can be planned to happen at a time."""

    PREEMPT_NODE = "preempt node"
    """A node gets its notice, and goes away when `notice_s` is over."""
    KILL_NODE = "kill node"
    """A node dies at once."""
    RESTART_DRIVER = "restart driver"
    """The driver dies with all its workers; a new one resumes from the journal."""
    PAUSE_DRIVER = "pause driver"
    """The driver stands still for `lasts_s`; what happens meanwhile waits in its inbox."""
    JOURNAL_OUTAGE = "journal outage"
    """Nothing can be written for `lasts_s`."""
    CANCEL = "cancel"
    """The user cancels the run, and lets running ranks end."""
    CANCEL_AND_KILL = "cancel and kill"
    """The user cancels the run, and has running ranks killed."""


@attrs.frozen(kw_only=True, slots=True)
class Incident:
    """Something that is planned to happen."""

    at_s: float
    """When, from the start of the run."""
    kind: IncidentKind
    """What."""
    node: int = 0
    """For nodes: which, counted among those that are there, modulo their number."""
    lasts_s: float = 0.0
    """For a pause and an outage: how long."""


def _share(instance: object, attribute: attrs.Attribute[float], value: float) -> None:
    if not 0.0 <= value <= 1.0:
        raise UsageError(f"{attribute.name} must be within 0..1, not {value!r}.")


def _above_zero(instance: object, attribute: attrs.Attribute[Any], value: float) -> None:
    if not value > 0:
        raise UsageError(f"{attribute.name} must be above 0, not {value!r}.")


def _not_negative(instance: object, attribute: attrs.Attribute[float], value: float) -> None:
    if not value >= 0:
        raise UsageError(f"{attribute.name} must not be negative, but is {value!r}.")


def _mean(instance: object, attribute: attrs.Attribute[float], value: float | None) -> None:
    if value is not None and not value > 0:
        raise UsageError(f"{attribute.name} must be None or above 0, not {value!r}.")


def _chance() -> float:
    field: float = attrs.field(default=0.0, validator=_share)
    return field


def _seconds(default: float) -> float:
    field: float = attrs.field(default=default, validator=_not_negative)
    return field


@attrs.frozen(kw_only=True, slots=True)
class SimulatedCluster:
    """Nodes, times and memory. Raises `UsageError` for impossible numbers."""

    nodes: int = attrs.field(default=4, validator=_above_zero)
    """Nodes at the start; one that goes away comes back after `back_s`."""
    gangs_per_node: int = attrs.field(default=2, validator=_above_zero)
    """Places of a node: a gang takes one on each of its nodes."""
    place_bytes: int = attrs.field(default=4 * GIB, validator=_above_zero)
    """Memory of a place: its slots share it. A gang with one slot and more memory per rank takes
    several places."""
    joins_s: tuple[float, ...] = ()
    """Further nodes join at these times."""
    avoid_s: float = _seconds(30.0)
    """A gang waits so long for nodes that it does not have to avoid, if these could hold it; then
    it takes any."""
    start_s: float = _seconds(3.0)
    """Mean to start a gang's workers (exponential)."""
    close_s: float = _seconds(0.5)
    """To close a gang."""
    record_s: float = _seconds(0.2)
    """Until a commit of the journal is durable; one at a time."""
    rank_s: float = attrs.field(default=1.0, validator=_above_zero)
    """Median of a rank (log-normal). A rank takes as long at each try, on a node as fast."""
    rank_sigma: float = _seconds(1.0)
    """Standard deviation of the logarithm of that; 0: all take the same."""
    rank_bytes: int = attrs.field(default=GIB // 2, validator=_above_zero)
    """Median of the memory that a rank needs (log-normal)."""
    memory_sigma: float = _seconds(0.0)
    """Standard deviation of the logarithm of that."""
    timeout_s: float | None = attrs.field(default=None, validator=_mean)
    """Time limit of a rank; None: none, and then no rank may hang."""
    reclaim_s: float = attrs.field(default=2.0, validator=_above_zero)
    """Workers hand back what they have not started after so long."""
    back_s: float = _seconds(60.0)
    """A node that went away comes back, empty and under a new name, after so long."""
    most_nodes: int | None = None
    """With an autoscaler: the most nodes; None: there is none."""
    scale_after_s: float = _seconds(30.0)
    """The autoscaler adds a node when a gang has waited so long for room ..."""
    node_start_s: float = _seconds(60.0)
    """... which is there after so long ..."""
    idle_s: float = _seconds(300.0)
    """... and goes when it has been empty for so long (not below `nodes`)."""
    slow_share: float = _chance()
    """Share of the nodes that are slow."""
    slow_factor: float = attrs.field(default=4.0, validator=_above_zero)
    """Ranks take so many times longer there."""
    led_stages: tuple[int, ...] = ()
    """Stages of several nodes whose ranks are finished when node 0 says so; the others then have
    `grace_s`."""
    grace_s: float = _seconds(5.0)
    """That time."""


@attrs.frozen(kw_only=True, slots=True)
class SimulatedFaults:
    """How often what goes wrong. Chances are per attempt of a rank unless said otherwise. Raises
    `UsageError` for impossible numbers."""

    rank_failures: float = _chance()
    """Its code raises."""
    process_deaths: float = _chance()
    """Its process dies."""
    worker_deaths: float = _chance()
    """Its worker dies, by what the rank did."""
    worker_silences: float = _chance()
    """Its worker goes silent, and is declared dead after `silence_s`."""
    hangs: float = _chance()
    """It never ends by itself: its time limit ends it."""
    culprits: float = _chance()
    """Share of the ranks that take their worker down at every attempt."""
    poison: float = _chance()
    """Share of the ranks whose own process dies at every attempt."""
    bugs: float = _chance()
    """Share of the ranks whose code raises at every attempt."""
    bad_nodes: tuple[BadNode, ...] = ()
    """Nodes that are broken."""
    start_failures: float = _chance()
    """Per gang: it does not start in time."""
    setup_failures: float = _chance()
    """Per gang: its set-up fails."""
    preemption_s: float | None = attrs.field(default=None, validator=_mean)
    """Mean that a node lives until it is taken away; None: no node is."""
    notice_s: float = _seconds(30.0)
    """Between the notice and the end."""
    unannounced: float = _chance()
    """Share of those nodes that go without a notice."""
    flapping_share: float = _chance()
    """Share of the nodes that go and come back under the same name all the time."""
    flapping_s: float = attrs.field(default=60.0, validator=_above_zero)
    """Mean that such a node stays (exponential), and stays away (a third of it)."""
    reports_lost: float = _chance()
    """Per report of a worker: it does not arrive; the worker sends it again, with what is new,
    after `resend_s`."""
    reports_late: float = _chance()
    """Per report: it arrives late, perhaps after the gang is gone."""
    answers_repeated: float = _chance()
    """Per event that answers a command: the scheduler is told it once more, later."""
    late_s: float = attrs.field(default=20.0, validator=_above_zero)
    """Mean of what is late, by reports and by repeated answers (exponential)."""
    journal_errors: float = _chance()
    """Per commit: it fails, and is tried again after `journal_retry_s`."""
    fair_after_s: float | None = attrs.field(default=None, validator=_mean)
    """From then on no chance above counts but those of ranks' own failures; None: never. Then the
    run must make progress within a bound: see `Umpire`."""
    place_s: float = attrs.field(default=600.0, validator=_above_zero)
    """A gang that has not found room after so long is given up."""
    start_timeout_s: float = attrs.field(default=180.0, validator=_above_zero)
    """A gang that has not started after so long is given up."""
    silence_s: float = attrs.field(default=60.0, validator=_above_zero)
    """A worker that has not answered for so long is dead."""
    beat_s: float = attrs.field(default=10.0, validator=_above_zero)
    """Workers are asked for a sign of life that often."""
    recall_s: float = attrs.field(default=10.0, validator=_above_zero)
    """A worker that ignores a recall with a kill for so long is dead."""
    detect_s: float = attrs.field(default=8.0, validator=_above_zero)
    """Mean until the death of a node is noticed (exponential): less than `silence_s`."""
    resend_s: float = attrs.field(default=10.0, validator=_above_zero)
    """See `reports_lost`."""
    journal_retry_s: float = attrs.field(default=5.0, validator=_above_zero)
    """See `journal_errors`."""
    journal_timeout_s: float = attrs.field(default=600.0, validator=_above_zero)
    """A commit that has failed for so long ends the run."""
    restart_s: float = _seconds(20.0)
    """Between the death of a driver and the start of the next."""
    retry_failed: bool = True
    """The next driver tries again what has failed."""


@attrs.define(slots=True, kw_only=True)
class RunStats:
    """What a simulated run came to."""

    makespan_s: float = 0.0
    """From the start to `FinishRun`."""
    finish: FinishRun | None = None
    """The last command; None: it did not come."""
    done: int = 0
    """Ranks with a durable result."""
    failed: int = 0
    """Ranks that were given up, durably."""
    skipped: int = 0
    """Ranks that can never run, durably."""
    events: int = 0
    """That the scheduler was told."""
    attempts: int = 0
    """Ranks that were started, counted per start (once for a gang of several nodes)."""
    gangs_opened: int = 0
    """Gangs that were asked for."""
    gangs_lost: int = 0
    """Gangs that were ready and died."""
    most_slots: int = 0
    """Most slots of ready gangs at a time."""
    longest_rank_s: float = 0.0
    """What the longest rank takes."""
    faults: dict[str, int] = attrs.field(factory=dict)
    """By node: the failures of ranks and the losses of gangs there; under "" those without a node.
    """
    nodes_lost: int = 0
    """Nodes that went away."""
    drivers: int = 0
    """Drivers that were started: 1 + restarts."""
    commits: int = 0
    """Of the journal, that were durable."""
    busy_s: float = 0.0
    """Slot seconds that ranks ran, on all their nodes."""
    wasted_s: float = 0.0
    """Part of it that was not recorded as a result."""
    checks: int = 0
    """Checks of the whole books that were made."""
    longest_wait_s: float = 0.0
    """In a world that has become fair: the longest time without progress."""
