"""What the scheduler needs from others, as protocols: a retry policy for each stage, and the order
of the stages."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

from thornback.faults import Standing, StopReason

__all__ = ["Delta", "Dependencies", "RetryPolicy", "Verdict"]

F_contra = TypeVar("F_contra", contravariant=True)


class Verdict(Protocol):
    """What shall be done about a fault."""

    @property
    def retry(self) -> bool:
        """Try the rank again (for a gang: open another one)."""
        ...

    @property
    def delay_s(self) -> float:
        """Seconds to wait before that, finite; 0: at once. For a gang also without `retry`: until
        the next one is asked for."""
        ...

    @property
    def charged(self) -> bool:
        """The fault counts as an attempt of the rank."""
        ...

    @property
    def machine_fault(self) -> bool:
        """It speaks against the machines: it counts for the rule that stops a stage in which
        everything fails."""
        ...

    @property
    def blames_rank(self) -> bool:
        """A rank's code may have caused the loss of its worker: who was in one batch with others is
        isolated."""
        ...

    @property
    def blames_node(self) -> bool:
        """The node may have caused it: evidence from other ranks there is collected. Without
        `machine_fault` the node is suspected at once: it is gone."""
        ...

    @property
    def memory_bytes(self) -> int | None:
        """Try this rank in a gang with that many bytes for it, at least 1; None: with as much as
        before."""
        ...

    @property
    def timeout_factor(self) -> float:
        """Multiply the time-out that the rank began with by this, finite and above 0:
        `Dispatch.timeout_factor`."""
        ...

    @property
    def reason(self) -> str:
        """One sentence for people: what `Scheduler.reason` says of a rank that is given up."""
        ...

    @property
    def stop(self) -> StopReason | None:
        """Why the rank is given up: `Record.stop`. None with `retry`."""
        ...

    @property
    def signature(self) -> str:
        """Equal for errors of the user's code with the same cause; empty for other faults. Stages
        stop early when all their first ranks fail with one signature."""
        ...


class RetryPolicy(Protocol[F_contra]):
    """Decides about a fault. Pure: the same arguments give the same verdict.

    A verdict with a number that makes no sense is refused: `Scheduler.handle` raises `UsageError`.
    `testing.check_retry_policy` finds that out, and more, before a run does.
    """

    def decide(
        self,
        fault: F_contra,
        history: Sequence[tuple[F_contra, str, Standing]],
        standing: Standing,
        draw: float,
        /,
    ) -> Verdict:
        """Return the verdict on `fault`.

        It is asked again about the same fault, with RANK, when evidence settles it so while the
        rank waits: it may give the rank up then.

        Args:
            fault: what has happened now.
            history: the other faults of this rank with their nodes and their standing by now,
                oldest first, charged or not; empty for a gang's fault.
            standing: what the evidence says about `fault`.
            draw: in [0, 1), derived by the scheduler from (seed, stage, rank, attempt): the jitter.
        """
        ...


class Delta(Protocol):
    """What has changed by one call to `Dependencies`."""

    @property
    def ready(self) -> Sequence[tuple[int, range]]:
        """Ranks that may run now: (stage, ranks)."""
        ...

    @property
    def skipped(self) -> Sequence[tuple[int, range, tuple[int, int]]]:
        """Ranks that can never run: (stage, ranks, (stage, rank) of the failed rank at the root).
        A rank of -1: each because of the one of its own number."""
        ...


class Dependencies(Protocol):
    """Which ranks may run, given which have ended. What a call raises goes through
    `Scheduler.handle`."""

    def start(self, /) -> Delta:
        """Return what may run before anything has ended. Called once, first."""
        ...

    def finished(self, stage: int, ranks: Sequence[range], ok: bool, /) -> Delta:
        """Tell that these ranks have ended: recorded as done (`ok`), or given up. Never called for
        ranks that it has said to be skipped."""
        ...
