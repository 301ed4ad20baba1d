"""What a scheduler is told at its start, and what it tells about a stage: plans, tuning, counts."""

from __future__ import annotations

from typing import Generic, TypeVar

import attrs

from thornback.scheduler.ports import RetryPolicy
from thornback.scheduler.states import UsageError

F = TypeVar("F")


def _whole(attribute: attrs.Attribute[int], value: object, least: int) -> None:
    if type(value) is not int or value < least:
        raise UsageError(f"{attribute.name} must be an int >= {least}, not {value!r}.")


def _from_one(instance: object, attribute: attrs.Attribute[int], value: int) -> None:
    _whole(attribute, value, 1)


def _from_zero(instance: object, attribute: attrs.Attribute[int], value: int) -> None:
    _whole(attribute, value, 0)


def _one_or_none(instance: object, attribute: attrs.Attribute[int], value: int | None) -> None:
    if value is not None:
        _whole(attribute, value, 1)


def _positive(instance: object, attribute: attrs.Attribute[float], value: float) -> None:
    if not value > 0:
        raise UsageError(f"{attribute.name} must be above 0, not {value!r}.")


def _positive_or_none(
    instance: object, attribute: attrs.Attribute[float | None], value: float | None
) -> None:
    if value is not None and not value > 0:
        raise UsageError(f"{attribute.name} must be above 0, or None, not {value!r}.")


@attrs.frozen(kw_only=True, slots=True)
class StagePlan(Generic[F]):
    """One stage, as far as scheduling goes. Raises `UsageError` for impossible numbers."""

    world_size: int = attrs.field(validator=_from_one)
    """Its ranks are 0..world_size-1; the dependencies must say the same."""
    shape: int = attrs.field(default=0, validator=_from_zero)
    """`ShapeKey.base`: stages with the same number share warm gangs, and must agree on slots and
    nodes."""
    slots: int = attrs.field(default=1, validator=_from_one)
    """Rank processes of a gang; 1 when it has several nodes."""
    nodes: int = attrs.field(default=1, validator=_from_one)
    """Nodes of a gang, a worker on each. Above 1, a rank runs on all of them together."""
    max_gangs: int | None = attrs.field(default=None, validator=_one_or_none)
    """Most gangs at a time, draining ones not counted; None: as many as fit."""
    policy: RetryPolicy[F]
    """Asked about every fault of its ranks and its gangs."""
    priority: int = 0
    """Higher first; then in the order of submission. Gangs of stages of the same shape make way for
    a higher priority when no new ones come within `SchedulerParams.linger_s`."""
    max_failed: int = attrs.field(default=0, validator=_from_zero)
    """So many ranks that failed or were skipped do not make the run a failure. Whether they stop
    what comes after this stage is for the dependencies to say, which have conditions of their own.
    """

    fail_fast: int | None = attrs.field(default=None, validator=_one_or_none)
    """Stop the stage when so many ranks were given up with one `Verdict.signature`, and none has
    succeeded in this run or an earlier one. None: never."""

    def __attrs_post_init__(self) -> None:
        if self.nodes > 1 and self.slots != 1:
            raise UsageError(
                f"A gang of {self.nodes} nodes runs one rank at a time: slots must be 1, "
                f"not {self.slots}."
            )


@attrs.frozen(kw_only=True, slots=True)
class SchedulerParams:
    """Every number that tunes a decision. Seconds are on the clock of `handle(event, now)`."""

    target_s: float = attrs.field(default=0.5, validator=_positive)
    """Work in one assignment: long against a message (ms), short against what a lost worker costs.
    """
    reclaim_s: float = attrs.field(default=2.0, validator=_positive)
    """After so long a worker hands back by itself what it has not started. A slot gets a second
    assignment in advance only where a rank takes less than this: else it would come straight
    back."""
    max_batch: int = attrs.field(default=10_000, validator=_from_one)
    """Most ranks of an assignment: bounds the size of one message."""
    pace_weight: float = attrs.field(default=0.3, validator=_positive)
    """Weight of the newest report in the moving average of seconds per rank."""
    max_opening: int = attrs.field(default=8, validator=_from_one)
    """Gangs of one shape asked for at a time: a backend places them one after the other anyway."""
    open_backoff_s: float = attrs.field(default=0.5, validator=_positive)
    """Least wait before a gang is asked for again after one could not be opened; doubles."""
    max_open_backoff_s: float = attrs.field(default=30.0, validator=_positive)
    """Most of that wait: a node that comes back is noticed within this."""
    refusals_in_company: int = attrs.field(default=3, validator=_from_one)
    """So often must a shape be refused for good (a verdict without retry) to be given up while
    other shapes of this run hold gangs: it may only have found no room beside them."""
    linger_s: float = attrs.field(default=5.0, validator=_positive)
    """A pending gang outlives the work it was asked for by this, and idle gangs are given up to a
    shape that has waited so long: work trickles, and leases are not made and unmade for each
    drop. A stage whose gangs take longer than this to open makes those of lower priority make way.
    """
    yield_after_s: float = attrs.field(default=60.0, validator=_positive)
    """A shape that has waited so long with ready ranks and no gang makes another one give one up.
    """
    yield_openings: float = attrs.field(default=5.0, validator=_positive)
    """... but not more often than so many times what the gang took to open: else only opening is
    done."""
    no_progress_losses: int = attrs.field(default=10, validator=_from_one)
    """So many gangs of a stage lost in a row, each begun after the one before was known to be lost,
    without a rank finished between: the stage stops."""
    no_progress_faults: int = attrs.field(default=20, validator=_from_one)
    """So many machine faults of a stage (`Verdict.machine_fault`) since a rank of it last finished:
    nothing more is dispatched until what runs has ended. If nothing of that succeeds, the stage
    stops."""
    no_room_s: float = attrs.field(default=600.0, validator=_positive)
    """Longest pause after a gang came to a node that it was to avoid, while the stage has others:
    only suspected nodes have room. New nodes are noticed within this."""
    place_wait_s: float = attrs.field(default=2.0, validator=_positive)
    """A stage in which everything fails waits so long for a gang that was asked for before to get
    its place: it may be on a good node. One that has its place is waited for until it is ready."""
    parole_s: float = attrs.field(default=120.0, validator=_positive)
    """First term of suspicion of a node; doubles with every further one."""
    max_parole_s: float = attrs.field(default=3600.0, validator=_positive)
    """Longest term: a repaired node is used again within the hour."""
    wait_s: float | None = attrs.field(default=None, validator=_positive_or_none)
    """A stage whose resources are busy while this run holds no gang at all waits so long, then its
    ready ranks are given up. None: as long as it takes."""
    drain_s: float = attrs.field(default=120.0, validator=_positive)
    """Time left on a draining node when the notice does not say: what spot markets give."""
    drain_share: float = attrs.field(default=0.5, validator=_positive)
    """Share of the time left that new work on a draining node may take: estimates are rough."""
    avoid_wait_s: float = attrs.field(default=10.0, validator=_positive)
    """A rank that has failed waits so long for a gang on another, unsuspected node, then takes any.
    A stage that finds no other node for so long uses suspected ones."""
    max_unrecorded: int = attrs.field(default=100_000, validator=_from_one)
    """Ranks finished and not durable: beyond this nothing is dispatched, as a crash would repeat
    them."""
    max_unrecorded_s: float = attrs.field(default=60.0, validator=_positive)
    """Likewise for the age of the oldest: the journal cannot keep up."""


@attrs.frozen(kw_only=True, slots=True)
class StageCounts:
    """Ranks of a stage by state, and its gangs that are opening or ready."""

    blocked: int
    ready: int
    running: int
    recording: int
    backoff: int
    done: int
    failed: int
    skipped: int
    gangs: int
