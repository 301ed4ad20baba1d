"""What a run says of itself: to its observers while it goes on, and to its caller at the end. Plain
values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol, runtime_checkable

import attrs

from thornback.executor.ports import Json, Ranks
from thornback.executor.results import Results
from thornback.faults import Fault, StopReason, WeighedFault

LOG_END = 2**53 - 1
"""Stands for the end of a log of which nobody knows how long it is: behind that of any, and exact
in any JSON."""


@attrs.frozen(kw_only=True, slots=True)
class StageProgress:
    """Counts of one stage; `done + failed + skipped == total` when it has ended."""

    name: str
    total: int
    """Ranks of the stage."""
    done: int = 0
    """Recorded as done, by this run or an earlier one."""
    failed: int = 0
    """Given up."""
    skipped: int = 0
    """Never run, because a rank failed that they depend on."""
    running: int = 0
    """Handed to a worker and not settled yet."""
    gangs: int = 0
    """Open now, or opening."""
    recorded_before: int = 0
    """Of `done`: recorded by earlier runs."""
    partial: float = 0.0
    """How far the running ranks are, added up: one that has told `ctx.progress(3, 4)` counts 0.75.
    From `running` and not from `done`; 0.0 where `Executor.logs` is off."""


@attrs.frozen(kw_only=True, slots=True)
class AttemptReport:
    """The death certificate of one failed attempt of a rank, or of a lost gang (`rank` is None)."""

    stage: str
    """Its name; of a gang that was given no work: the first stage that asked for it."""
    rank: int | None
    attempt: int
    """From 1."""
    epoch: str
    """Of the assignment, as `000007.000000123`; empty for a gang without one."""
    gang: int
    node: str
    """Where it happened; empty: not known."""
    fault: Fault
    """What went wrong, classified."""
    verdict: str
    """Why it is, or is not, tried again: one line for people."""
    retried: bool
    stop: StopReason | None = None
    """Why it is not tried again, as a word that stays the same; None: it is."""
    ran_s: float = 0.0
    """Seconds that the rank had run."""
    pid: int = 0
    """Of the rank process; 0: not known."""
    peak_rss_bytes: int = 0
    """The most resident memory seen; 0: not known."""
    log_tail: str = ""
    """The last lines that the rank wrote."""
    log_path: str = ""
    """Of the log of the rank process, on the node: gone with the worker."""
    log_url: str = ""
    """Where that log is kept with the state; a folder of pieces named by their first offset, where
    the store is no file system of this machine. It comes a little later than this, and what
    exceeds the bounds is left out. Empty: nowhere."""
    log_slice: tuple[int, int] = (0, 0)
    """Offsets of this attempt in the log: first byte, and the one after the last. The second is
    larger than any log where the rank died with its worker: to the end."""
    lost_ranks: Ranks = ()
    """For a lost gang: the ranks it had not reported. The log is then that of the one among them
    that ran on the node, where a sign of life had told of it: one comes every few seconds, so of a
    rank that was lost sooner nobody knows in which log it wrote."""

    @property
    def log_part(self) -> str:
        """Which part of the log is of this attempt, for people."""
        start, end = self.log_slice
        return f"bytes {start} to {end}" if end < LOG_END else f"from byte {start} on"

    def as_json(self) -> dict[str, Json]:
        """Return the certificate as JSON, as the journal keeps it: long texts are cut."""
        fault = self.fault
        return {
            "stage": self.stage,
            "rank": self.rank,
            "attempt": self.attempt,
            "epoch": self.epoch,
            "node": self.node,
            "kind": fault.kind.value,
            "origin": fault.origin.value,
            "rule": fault.rule,
            "error_type": fault.error_type,
            "message": fault.message[:2000],
            "phase": fault.phase,
            "verdict": self.verdict,
            "stop": None if self.stop is None else self.stop.value,
            "ran_s": round(self.ran_s, 3),
            "peak_rss_bytes": self.peak_rss_bytes,
            "traceback": fault.traceback[-4000:],
            "log_tail": self.log_tail[-4000:],
            "log_url": self.log_url,
            "log_slice": [*self.log_slice],
        }


@attrs.frozen(kw_only=True, slots=True)
class GivenUp:
    """Ranks that ended FAILED together."""

    stage: str
    """Its name."""
    ranks: Ranks
    reason: str
    """Why they are not tried again: one line for people."""
    stop: StopReason | None = None
    """The same as a word that stays the same; None: of several records together, which may
    differ."""
    last: AttemptReport | None = None
    """The last failed attempt of the first of them; where it has none, the loss of the gang that
    ended them (its `rank` is None); None: they were given up without either."""
    evidence: tuple[WeighedFault, ...] = ()
    """The last 50 faults of the first of them, and whom each counts against."""


@attrs.frozen(kw_only=True, slots=True)
class RunInfo:
    """What is known when a run starts."""

    job: str
    """Its name."""
    state_url: str
    term: int
    """How many drivers have held this state, this one included."""
    backend: str
    """Which cluster: for people."""
    stages: tuple[StageProgress, ...]
    """In the order of submission; what earlier runs recorded is counted."""


@attrs.frozen(kw_only=True, slots=True)
class RunReport:
    """The end of a run. Made by `Executor.run`."""

    job: str
    """Its name."""
    state: str
    """`succeeded`, `failed` or `cancelled`."""
    reason: str
    """For people: why it failed or was cancelled."""
    state_url: str
    term: int
    """How many drivers have held this state, this one included."""
    backend: str
    """Which cluster: for people."""
    stages: Mapping[str, StageProgress]
    """By name, in the order of submission."""
    attempts: tuple[AttemptReport, ...]
    """Every failed attempt and lost gang, oldest first (the first 10,000)."""
    seconds: float
    """From the opening of the state to the end."""
    given_up: tuple[GivenUp, ...] = ()
    """The ranks that failed in this run, with the reason."""
    stopped: Mapping[str, StopReason] = attrs.field(factory=dict)
    """Stages that were stopped before all of their ranks had been tried, by name, and why."""
    unconfirmed_gangs: tuple[int, ...] = ()
    """Gangs whose end could not be confirmed in time."""
    logs_url: str = ""
    """Folder of what the rank processes of this run have written; empty: it was not kept."""
    logs_lost_bytes: int = 0
    """Of that: what was left out, since it was too much, or could not be stored."""
    warnings: tuple[str, ...] = ()
    """What is not known of the results that earlier runs recorded: parameters that could not be
    compared, changed code. One sentence each; they were logged when the run began."""
    _read_results: Callable[[str], Results] = attrs.field(eq=False, repr=False)

    def results(self, stage: str) -> Results:
        """Return the recorded results of a stage by rank, of this run and earlier ones: a mapping
        of all its ranks, with `MISSING` for those that have no result.

        Reads the journal, and blocks meanwhile.

        Raises:
            KeyError: the job has no such stage.
            JournalError: the state cannot be read.
        """
        if stage not in self.stages:
            raise KeyError(f"no stage {stage!r} in job {self.job!r}: {', '.join(self.stages)}")
        return self._read_results(stage)


@attrs.frozen(kw_only=True, slots=True)
class Waiting:
    """Why a gang waits for its resources."""

    text: str
    """With numbers: what it needs, what the nodes have, what this run holds."""
    busy: bool
    """True: it fits the nodes, but others use them. False: no present node can hold it."""


@runtime_checkable
class WaitObserver(Protocol):
    """Optional extension of `Observer`: receives the reasons why gangs wait."""

    def waiting(self, waiting: Waiting, /) -> None:
        """A gang waits, for this reason. Called within 2 s, and again when the reason changes; not
        where only this run itself uses the nodes."""
        ...


class Observer(Protocol):
    """Watches a run from the driver. Called in its event loop: must be quick, and not block. What
    it raises is logged and ends the watching, not the run."""

    def started(self, info: RunInfo, /) -> None:
        """The state is claimed, and the platform connected. Called once, first."""
        ...

    def progressed(self, stages: tuple[StageProgress, ...], /) -> None:
        """Counts have changed. Called at most every `ExecutorParams.progress_s` seconds, and once
        at the end; what is counted as done is recorded."""
        ...

    def failed(self, attempt: AttemptReport, /) -> None:
        """An attempt of a rank has failed, or a gang was lost, and it is decided what follows."""
        ...

    def finished(self, report: RunReport, /) -> None:
        """The run is over and everything is closed. Called once, last; not if the driver itself
        fails or `arun` is cancelled."""
        ...
