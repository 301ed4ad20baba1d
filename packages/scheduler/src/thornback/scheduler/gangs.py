"""Gangs as intent, the assignments they hold, and the lanes that bind them to work.

A **lane** is where work and gangs of one stage and one shape meet: ready ranks, gangs that are
opening or ready, and what is known about opening more. A stage has one lane for its own shape and
one for each amount of memory that was given as a remedy. A gang is bound to one lane at a time;
lanes of equal shape hand idle gangs over.
"""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

import attrs

from thornback.scheduler.commands import ShapeKey
from thornback.scheduler.events import Ranks
from thornback.scheduler.ranges import ReadyRanges, normalised, split, total
from thornback.scheduler.stages import Stage
from thornback.scheduler.states import GangMove, GangState, after_gang_move

F = TypeVar("F")
# Members of an Enum class cost more to look up than to use.
OPENING, READY = GangState.OPENING, GangState.READY


@attrs.define(slots=True, eq=False)
class Assignment(Generic[F]):
    """Ranks of one stage for one slot of a gang; `outstanding` is the fence."""

    number: int
    gang: Gang[F]
    stage: Stage[F]
    outstanding: Ranks
    size: int
    """Ranks that it was given."""
    left: int
    """Ranks that are outstanding."""
    limit: int
    """The least batch limit among its ranks."""
    retried: bool
    """One rank that has failed before."""
    suspect: bool
    """Its ranks are to be told apart from others: nothing is queued behind them."""
    at: float = 0.0
    """When it was dispatched."""
    recalled: bool = False
    killed: bool = False

    def settle(self, given: Ranks) -> Ranks:
        """Strike out what is reported; return those that were outstanding: `outstanding` as it was
        if just these are reported, all at once. Raises `UsageError` as `normalised` does."""
        taken = self.outstanding
        if given == taken:  # the ordinary case; not `given`: (5, 6) and (5, 8, 3) are equal ranges
            self.outstanding, self.left = (), 0
            return taken
        taken, self.outstanding = split(taken, normalised(given))
        self.left -= total(taken)
        return taken


@attrs.define(slots=True, eq=False, kw_only=True)
class Gang(Generic[F]):
    """A gang that was asked for and is not gone."""

    number: int
    lane: Lane[F]
    asked_at: float
    avoid: tuple[str, ...] = ()
    state: GangState = OPENING
    ready_at: float = 0.0
    nodes: tuple[str, ...] = ()
    live: dict[int, Assignment[F]] = attrs.field(factory=dict)
    """Its assignments, oldest first: the first `slots` of them can be running."""
    suspects: int = 0
    """How many of them are `suspect`."""
    drain_by: float | None = None
    yields_to: Lane[F] | None = None
    """Gets no more work: the next free moment belongs to another lane."""
    kept: bool = False
    """Won by the yield rule: a higher priority does not take it back at once."""
    ahead: bool = True
    """May hold a second assignment per slot: its last one did not come straight back."""
    finished: int = 0
    """Ranks that it has run with success."""
    assigned: int = 0
    """Assignments that it was ever given."""
    held: bool = False
    """Gets no more work: it is on a suspected node."""
    most_live: int | None = None
    """Its worker has not started an assignment beyond so many: slots are parked there. None: not
    known."""
    forced: bool = False
    """Its suspected node is used all the same: no other became free."""
    probing: bool = False
    """Gets one rank at a time: its node is on parole, or used all the same."""

    def move(self, move: GangMove) -> bool:
        """Move; True if that changed anything: else it was a stale event. Raises
        `InvalidTransition`."""
        target = after_gang_move(self.state, move, self)
        if target is self.state:
            return False
        self.state = target or self.state
        return True

    def __str__(self) -> str:
        return f"gang {self.number}, nodes {self.nodes}"

    @property
    def usable(self) -> bool:
        """Takes any work."""
        return (
            self.state is READY
            and self.drain_by is None
            and self.yields_to is None
            and not self.held
        )

    @property
    def places(self) -> int:
        """How many assignments it may run at a time."""
        if self.probing:
            return 1
        return self.lane.slots if self.most_live is None else self.most_live

    @property
    def is_unproven(self) -> bool:
        """Whether it has finished nothing while its stage is in trouble: it is given one rank at a
        time, so that a large bad node costs no more than a small one."""
        return not self.finished and self.lane.stage.streak.faults > 1


class Lane(Generic[F]):
    """Work and gangs of one stage and one shape."""

    def __init__(self, stage: Stage[F], shape: Shape[F]) -> None:
        self.stage = stage
        self.shape = shape
        self.order = (*stage.order, shape.key.memory_bytes or 0)
        self.slots = 1 if shape.key.memory_bytes is not None else stage.plan.slots
        self.active = False
        """Stands in the board's list."""
        self.rests = False
        """Stands in its shape's list of those that are looked at only if there is a gang to get."""
        self.ready = ReadyRanges()
        self.alone: deque[int] = deque()
        """Ready ranks that have failed before: each travels alone."""
        self.backoff = 0
        self.opening: dict[int, Gang[F]] = {}
        self.gangs: dict[int, Gang[F]] = {}
        """All that are READY; the following are parts of it, in the order in which they came free.
        """
        self.usable: dict[int, Gang[F]] = {}
        self.free: dict[int, Gang[F]] = {}
        """Usable with an idle slot."""
        self.idle: dict[int, Gang[F]] = {}
        """Usable and without any work."""
        self.queueable: dict[int, Gang[F]] = {}
        """Usable, every slot busy, with place for an assignment in advance."""
        self.draining: dict[int, Gang[F]] = {}
        self.held: dict[int, Gang[F]] = {}
        """On suspected nodes, and not draining: like these, they do not count for `max_gangs`."""
        self.yielding: dict[int, Gang[F]] = {}
        self.coming = 0
        """Gangs of any lane that yield to this one."""
        self.retry_at = 0.0
        """Not before that is another gang asked for."""
        self.failed_openings = 0
        """In a row: each was asked for after the one before was known to have failed."""
        self.refused_up_to = -1
        self.forced = 0
        """Gangs in a row on suspected nodes that it used for want of others."""
        self.forced_at = 0.0
        """When it last did."""
        self.try_anywhere = False
        """The next gang is asked for without avoiding a node."""
        self.starved_at: float | None = None
        """Since when it has ready ranks and no usable gang."""
        self.starved_wake = 0.0
        """A timer is set for then, to look at that again; likewise below."""
        self.next_yield_at = 0.0
        self.yielding_to: Lane[F] | None = None
        self.yielding_until = 0.0
        self.empty_at: float | None = None
        """Since when it has no ready ranks, but gangs that are opening."""
        self.empty_wake = 0.0

    @property
    def waiting(self) -> int:
        """Ranks that are ready."""
        return self.ready.count + len(self.alone)

    @property
    def starves(self) -> bool:
        """Has ready ranks, and has had no usable gang for some time."""
        return self.starved_at is not None and self.waiting > 0 and not self.usable

    @property
    def may_rest(self) -> bool:
        """Has ready ranks and no gang: only gangs of its shape, or a timer, can change anything."""
        has_gangs = self.gangs or self.opening or self.empty_at is not None
        return self.waiting > 0 and not has_gangs

    @property
    def may_gain(self) -> bool:
        """One more of its gangs can be ready: its stage has room for it, or has asked for it."""
        return bool(self.opening) or self.stage.room > 0

    def outranks(self, other: Lane[F]) -> bool:
        """Is of higher priority; the order of submission does not count."""
        return self.stage.plan.priority > other.stage.plan.priority

    def place(self, gang: Gang[F]) -> None:
        """Put a gang of this lane into the parts it belongs to. O(1)."""
        number = gang.number
        if gang.state is OPENING:
            self.opening.setdefault(number, gang)
            self.shape.opening.setdefault(number, gang)
            return
        self.opening.pop(number, None)
        self.shape.opening.pop(number, None)
        is_ready, usable, live = gang.state is READY, gang.usable, len(gang.live)
        may_queue = usable and self.slots <= live < 2 * self.slots and gang.ahead
        may_queue = may_queue and not gang.suspects and not gang.probing
        for part, belongs in (
            (self.gangs, is_ready),
            (self.draining, is_ready and gang.drain_by is not None),
            (self.held, is_ready and gang.held and gang.drain_by is None),
            (self.yielding, is_ready and gang.yields_to is not None),
            (self.usable, usable),
            (self.free, usable and live < gang.places),
            (self.idle, usable and not live),
            (self.queueable, may_queue),
        ):
            if belongs:
                part.setdefault(number, gang)
            else:
                part.pop(number, None)

    def loaded(self, gang: Gang[F]) -> None:
        """Likewise for a gang of which only the assignments have changed: in the path of every
        event."""
        number, live = gang.number, len(gang.live)
        if number not in self.usable:
            return
        if live < gang.places:
            self.queueable.pop(number, None)
            self.free.setdefault(number, gang)
            if live:
                self.idle.pop(number, None)
            else:
                self.idle.setdefault(number, gang)
            return
        self.free.pop(number, None)
        self.idle.pop(number, None)
        if live < 2 * self.slots and gang.ahead and not gang.suspects and not gang.probing:
            self.queueable[number] = gang
        else:
            self.queueable.pop(number, None)

    def drop(self, gang: Gang[F]) -> None:
        """Take a gang out of the lane."""
        for part in (
            self.opening,
            self.shape.opening,
            self.gangs,
            self.draining,
            self.held,
            self.yielding,
            self.usable,
            self.free,
            self.idle,
            self.queueable,
        ):
            part.pop(gang.number, None)


@attrs.define(slots=True, eq=False)
class Shape(Generic[F]):
    """Lanes of equal shape: their gangs can be handed over."""

    key: ShapeKey
    lanes: list[Lane[F]] = attrs.field(factory=list)
    """In the order of priority."""

    resting: list[Lane[F]] = attrs.field(factory=list)
    """Those of them that rest, in the same order. Replaced, never changed."""
    unsettled: dict[Lane[F], None] = attrs.field(factory=dict)
    """Those of stages with ranks that may still need a slot, and perhaps some of others."""

    nodes: dict[str, None] = attrs.field(factory=dict)
    """Nodes that gangs of this shape have been on."""
    fitting: int | None = None
    """Live nodes that fit it, as the last gang that was ready said."""

    opening: dict[int, Gang[F]] = attrs.field(factory=dict)
    """Gangs of this shape, of any lane, that were asked for and not answered."""

    def is_probed(self, node: str) -> bool:
        """Return whether a gang is on the node already, or may come to it."""
        if any(node not in gang.avoid for gang in self.opening.values()):
            return True
        gangs = (gang for lane in self.lanes for gang in lane.gangs.values())
        return any(node in gang.nodes for gang in gangs)

    @property
    def most_suspects(self) -> int:
        """How many of its nodes may be avoided at once: at most half, and one gang has room."""
        nodes = len(self.nodes) if self.fitting is None else self.fitting
        return min(nodes // 2, nodes - self.lanes[0].stage.plan.nodes)

    stuck_wake: float = 0.0
    """A timer is set for then, to look whether one of these is long in coming."""
