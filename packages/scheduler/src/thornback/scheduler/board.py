"""The scheduler's books, and the elementary entries: open, close, bind, dispatch, take back, wake.

Every entry keeps the books whole by itself (states, lanes, counters) and writes the command that
goes with it. *When* to make which entry is decided in `feeding`, `opening`, `judging` and
`settling`.
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import takewhile
from typing import Generic, TypeVar

import attrs

from thornback.scheduler.commands import (
    CloseGang,
    Command,
    Dispatch,
    OpenGang,
    Recall,
    RunState,
    ShapeKey,
)
from thornback.scheduler.events import Ranks
from thornback.scheduler.evidence import Evidence
from thornback.scheduler.gangs import Assignment, Gang, Lane, Shape
from thornback.scheduler.params import SchedulerParams, StagePlan
from thornback.scheduler.ports import Dependencies
from thornback.scheduler.ranges import NO_LIMIT
from thornback.scheduler.stages import Stage
from thornback.scheduler.states import (
    RANK_STEPS,
    GangMove,
    GangState,
    RankMove,
    RankState,
    UsageError,
)

F = TypeVar("F")
NEVER = math.inf
DISPATCH = RANK_STEPS[RankState.READY][RankMove.DISPATCHED]


@attrs.define(slots=True)
class Ending:
    """The run ends before its work is done."""

    state: RunState
    reason: str
    kill: bool = False
    """Running ranks are killed."""
    unrecorded: bool = False
    """The journal has failed: nothing more is recorded, and nothing is waited for."""


@attrs.frozen(slots=True)
class Drain:
    """A node will go away."""

    by: float
    """When."""
    next_gang: int
    """Gangs before this one were asked for before the notice came."""


class Board(Generic[F]):
    """All that the scheduler knows."""

    def __init__(
        self,
        plans: Sequence[StagePlan[F]],
        dependencies: Dependencies,
        params: SchedulerParams,
        seed: int,
    ) -> None:
        _check_shapes(plans)
        self.params = params
        self.dependencies = dependencies
        self.stages = [Stage(number, plan, params) for number, plan in enumerate(plans)]
        self.lanes: list[Lane[F]] = []
        """In the order of priority."""
        self.active: list[Lane[F]] = []
        """Those of them to look at after every event, in the same order: with gangs, or with ready
        ranks and not resting. Replaced, never changed: a loop over it goes on over what it was."""
        self.resting: dict[Shape[F], None] = {}
        """Shapes with resting lanes (`Shape.resting`): these have ready ranks and nothing else, and
        are looked at while their shape has something to give, or when a timer is due."""
        self.shapes: dict[ShapeKey, Shape[F]] = {}
        self.gangs: dict[int, Gang[F]] = {}
        self.assignments: dict[int, Assignment[F]] = {}
        self.next_gang = 0
        self.next_assignment = 0
        self.closed = 0
        """Gangs that are gone."""
        self.held_until = 0.0
        """When the last gang was gone that had a place."""
        self.now = 0.0
        self.out: list[Command] = []
        self.started = False
        self.ending: Ending | None = None
        self.finished = False
        self.evidence: Evidence[F] = Evidence(params.parole_s, params.max_parole_s)
        self.review_at = NEVER
        """When to look again which gangs are on suspected nodes."""
        self.tripped: list[Stage[F]] = []
        """Stages that are stopped if nothing of what still runs succeeds."""
        self.slow: str | None = None
        """Why nothing is dispatched until the journal has caught up."""
        self.drains: dict[str, Drain] = {}
        """Nodes that will go away."""
        self.recording = 0
        """Ranks that are RECORDING, of all stages."""
        self.unrecorded: deque[tuple[float, Stage[F], Ranks]] = deque()
        """Successes that are not durable yet, oldest first."""
        self.thinned = False
        """A gang has left a lane, which may be active no longer."""
        self.starving = False
        """A lane had ready ranks and no usable gang when that was last looked at."""
        self.yielding = False
        """A gang has yielded and is not handed over yet."""
        self.ended_ranks: deque[tuple[Stage[F], Ranks, bool]] = deque()
        """Ends that the dependencies have not been told yet."""
        self.due_at = NEVER
        """When the next timer is due."""
        self._unsettled = self.stages[::-1]
        self._seed = seed
        self._timers: list[tuple[float, int, int]] = []
        for stage in self.stages:
            self.lane(stage, None)

    # -- lanes and time ----------------------------------------------------------------------------

    def lane(self, stage: Stage[F], memory_bytes: int | None) -> Lane[F]:
        """Return the lane of a stage with so much memory; made when first asked for."""
        for lane in stage.lanes:
            if lane.shape.key.memory_bytes == memory_bytes:
                return lane
        key = ShapeKey(stage.plan.shape, memory_bytes)
        shape = self.shapes.setdefault(key, Shape(key))
        lane = Lane(stage, shape)
        stage.lanes.append(lane)
        insort(shape.lanes, lane, key=_order)
        insort(self.lanes, lane, key=_order)
        shape.unsettled[lane] = None
        return lane

    def activate(self, lane: Lane[F]) -> None:
        """Look at a lane after every event from now on."""
        if lane.active:
            return
        if lane.rests:
            lane.rests = False
            resting = lane.shape.resting
            at = bisect_left(resting, lane.order, key=_order)
            lane.shape.resting = resting[:at] + resting[at + 1 :]
            if not lane.shape.resting:
                del self.resting[lane.shape]
        lane.active = True
        active = self.active.copy()
        insort(active, lane, key=_order)
        self.active = active

    def activate_all(self) -> None:
        """Look at all resting lanes: a timer is due, or nothing is dispatched for some time."""
        woken = [lane for shape in self.resting for lane in shape.resting]
        for lane in woken:
            lane.rests, lane.active = False, True
        for shape in self.resting:
            shape.resting = []
        self.resting.clear()
        if woken:
            self.active = sorted([*self.active, *woken], key=_order)

    def rest(self, starving: Sequence[Lane[F]]) -> None:
        """Look no longer after every event at those of these lanes that have nothing but ready
        ranks: their clocks run. Not where these also depend on the gangs of others (`wait_s`)."""
        if self.params.wait_s is not None:
            return
        rested: dict[Shape[F], list[Lane[F]]] = {}
        for lane in starving:
            if lane.active and lane.may_rest:
                rested.setdefault(lane.shape, []).append(lane)
        if not rested:
            return
        for shape, lanes in rested.items():
            for lane in lanes:
                lane.active, lane.rests = False, True
            shape.resting = sorted([*shape.resting, *lanes], key=_order)
            self.resting[shape] = None
        self.active = [lane for lane in self.active if lane.active]

    def lanes_for(self, gives: Callable[[Lane[F]], bool]) -> Iterable[Lane[F]]:
        """Return the active lanes and, of each shape, those resting ones for which `gives` says
        that the shape has something to give, up to the first for which it says no; in the order of
        priority."""
        resting = [takewhile(gives, shape.resting) for shape in self.resting]
        return heapq.merge(self.active, *resting, key=_order)

    def retire_lanes(self) -> None:
        """Look no longer at lanes in which nothing is left, and no clock runs."""
        self.thinned = False
        for lane in self.active:
            if lane.gangs or lane.opening or lane.waiting:
                continue
            if lane.starved_at is None and lane.empty_at is None:
                lane.active = False
            else:
                self.thinned = True  # the next look at it stops the clock
        self.active = [lane for lane in self.active if lane.active]

    def lane_of(self, stage: Stage[F], rank: int) -> Lane[F]:
        """Return the lane in which a rank that has failed is tried again."""
        return self.lane(stage, stage.failures[rank].memory_bytes)

    def wake(self, at: float, stage: int = -1, rank: int = -1) -> None:
        """Look again at that time; with a rank: it is due then."""
        heapq.heappush(self._timers, (at, stage, rank))
        self.due_at = self._timers[0][0]

    def review_by(self, at: float) -> None:
        """Look again at that time at the latest which gangs are on suspected nodes."""
        if at < self.review_at:
            self.review_at = at
            self.wake(at)

    @property
    def wake_at(self) -> float | None:
        """The next time to look; None: only an event can change anything."""
        if self.finished or self.ending is not None or not self._timers:
            return None
        return self.due_at

    def due(self) -> list[tuple[int, int]]:
        """Take the timers whose time has come; return the ranks among them, as (stage, rank)."""
        ranks: list[tuple[int, int]] = []
        while self._timers and self._timers[0][0] <= self.now:
            _, stage, rank = heapq.heappop(self._timers)
            if rank >= 0:
                ranks.append((stage, rank))
        self.due_at = self._timers[0][0] if self._timers else NEVER
        return ranks

    def timed(self) -> list[tuple[int, int]]:
        """Return the ranks that have a timer, as (stage, rank): for checks."""
        return [(stage, rank) for _, stage, rank in self._timers if rank >= 0]

    def draw(self, stage: int, rank: int, attempt: int) -> float:
        """Return the jitter in [0, 1) of one attempt."""
        return jitter(self._seed, stage, rank, attempt)

    def unsettled(self) -> list[Stage[F]]:
        """Return the stages with ranks that may still need a slot, and perhaps some without; empty
        if there is none. O(1) amortised: a stage that needs no slot will never need one again."""
        while self._unsettled and not self._unsettled[-1].unfinished:
            self._unsettled.pop()
        return self._unsettled

    # -- gangs -------------------------------------------------------------------------------------

    def open(self, lane: Lane[F]) -> None:
        """Ask for a gang."""
        avoid = () if lane.try_anywhere else self._to_avoid(lane)
        gang = Gang(number=self.next_gang, lane=lane, asked_at=self.now, avoid=avoid)
        self.next_gang += 1
        self.gangs[gang.number] = gang
        self.activate(lane)
        lane.place(gang)
        self.out.append(OpenGang(gang=gang.number, shape=lane.shape.key, avoid=avoid))
        shape = lane.shape
        if shape.stuck_wake <= self.now and lane.outranks(shape.lanes[-1]):
            shape.stuck_wake = self.now + self.params.linger_s  # for `feeding`, which came before
            self.wake(shape.stuck_wake)

    def _to_avoid(self, lane: Lane[F]) -> tuple[str, ...]:
        """Return nodes that a new gang had better not be on: at most half of those of its shape."""
        nodes = [node for node, drain in self.drains.items() if drain.by > self.now]
        if lane.alone and not lane.ready.count:
            nodes += lane.stage.failures[lane.alone[0]].avoid
        shape = lane.shape
        # It is a preference: where it is not known how many nodes there are, there may be others.
        most = len(shape.nodes) if shape.fitting is None else shape.most_suspects
        nodes += self.evidence.suspects(shape.nodes, most, self.now)
        on_parole = self.evidence.on_parole(self.now)
        nodes += [node for node in on_parole if shape.is_probed(node)]
        known = [node for node in dict.fromkeys(nodes) if node in shape.nodes]
        return tuple(known[:most])

    def close(
        self, gang: Gang[F], move: GangMove = GangMove.UNWANTED, *, kill: bool = False
    ) -> None:
        """Send the one `CloseGang` of a gang that holds no assignment any more."""
        if gang.live:
            raise UsageError(f"gang {gang.number} still holds assignments {list(gang.live)}")
        if gang.state is not GangState.CLOSING:
            self.keep_on(gang)
            gang.move(move)
            gang.lane.drop(gang)
            self.thinned = True
            self.out.append(CloseGang(gang=gang.number, kill=kill))

    def make_way(self, gang: Gang[F], to: Lane[F]) -> None:
        """Have a gang end what it runs, and hand back what it has not started."""
        gang.yields_to = to
        to.coming += 1
        self.yielding = True
        gang.lane.place(gang)
        for assignment in gang.live.values():
            self.recall(assignment)

    def keep_on(self, gang: Gang[F]) -> None:
        """Let a gang go on that was to make way, if it was."""
        if gang.yields_to is not None:
            gang.yields_to.coming -= 1
            gang.yields_to = None
            gang.lane.place(gang)

    def bind(self, gang: Gang[F], lane: Lane[F]) -> None:
        """Hand a gang without work over to another lane of its shape."""
        self.keep_on(gang)
        gang.lane.drop(gang)
        self.thinned = True
        gang.lane = lane
        gang.kept = False
        gang.ahead = True
        gang.finished = 0
        self.activate(lane)
        lane.place(gang)

    def hand_over(self, gang: Gang[F], lane: Lane[F]) -> None:
        """Bind a gang without work to a lane of its shape that may gain one; if its stage has no
        room, in exchange for a pending one, which else would keep it from one that is there."""
        is_full, giver = lane.stage.room < 1, gang.lane
        self.bind(gang, lane)
        if is_full:
            self.bind(next(iter(lane.opening.values())), giver)

    # -- assignments -------------------------------------------------------------------------------

    def dispatch(self, lane: Lane[F], gang: Gang[F], ranks: Ranks, limit: int) -> None:
        """Hand ready ranks, already taken from their queue, to a gang."""
        self.assign(lane.stage, gang, ranks, limit)
        lane.loaded(gang)

    def assign(self, stage: Stage[F], gang: Gang[F], ranks: Ranks, limit: int) -> None:
        """Likewise, but the lane is not told: it holds as many assignments as it last had there."""
        size = 0
        for piece in ranks:
            stage.step(piece, DISPATCH)
            size += len(piece)
        attempt, factor, retried = 1, 1.0, False
        if stage.failures and size == 1:
            record = stage.failures.get(ranks[0].start)
            if record is not None:
                attempt, factor, retried = record.attempt, record.timeout_factor, True
        suspect = retried or limit < NO_LIMIT
        number = self.next_assignment
        self.next_assignment = number + 1
        self.assignments[number] = gang.live[number] = Assignment(
            number, gang, stage, ranks, size, size, limit, retried, suspect, self.now
        )
        gang.suspects += suspect
        gang.assigned += 1
        stage.assigned += 1
        self.out.append(Dispatch(gang.number, number, stage.number, ranks, attempt, factor))

    def free_slot(self, assignment: Assignment[F]) -> None:
        """Forget an assignment of which nothing is outstanding: its gang can take another."""
        self.forget(assignment)
        gang = assignment.gang
        gang.lane.loaded(gang)

    def forget(self, assignment: Assignment[F]) -> None:
        """Strike out an assignment; late reports of it will be stale."""
        number, gang = assignment.number, assignment.gang
        del self.assignments[number]
        del gang.live[number]
        gang.suspects -= assignment.suspect
        assignment.stage.assigned -= 1

    def recall(self, assignment: Assignment[F], *, kill: bool = False) -> None:
        """Ask for what is not started, or for all; each once."""
        if assignment.recalled and (assignment.killed or not kill):
            return
        assignment.recalled = True
        assignment.killed = kill
        self.out.append(Recall(assignment=assignment.number, kill=kill))

    # -- ready ranks -------------------------------------------------------------------------------

    def release(self, stage: Stage[F], piece: range) -> None:
        """Queue ranks that became READY for the first time."""
        lane = self.lane(stage, None)
        lane.ready.append(piece)
        self.activate(lane)

    def queue(self, stage: Stage[F], ranks: Sequence[range], limit: int = NO_LIMIT) -> None:
        """Queue ranks that came back to READY; those that have failed before travel alone."""
        if len(ranks) == 1 and len(ranks[0]) == 1 and ranks[0].start in stage.failures:
            self.queue_alone(stage, ranks[0].start)
        else:
            lane = self.lane(stage, None)
            lane.ready.give_back(ranks, limit)
            self.activate(lane)

    def queue_alone(self, stage: Stage[F], rank: int) -> None:
        """Queue a READY rank that has failed before."""
        record = stage.failures[rank]
        record.ready_at = self.now
        lane = self.lane_of(stage, rank)
        lane.alone.append(rank)
        self.activate(lane)
        if record.avoid:
            self.wake(self.now + self.params.avoid_wait_s)


def _order(lane: Lane[F]) -> tuple[int, int, int]:
    return lane.order


def jitter(seed: int, stage: int, rank: int, attempt: int) -> float:
    """Return the jitter in [0, 1) of one attempt: a hash, so that a run can be repeated."""
    # Imported here: only a fault needs it, and it costs as much as ten modules of this package.
    from hashlib import blake2b

    text = f"{seed}:{stage}:{rank}:{attempt}".encode()
    return int.from_bytes(blake2b(text, digest_size=6).digest()) / (1 << 48)


def _check_shapes(plans: Sequence[StagePlan[F]]) -> None:
    if not plans:
        raise UsageError("A run needs at least one stage.")
    first: dict[int, int] = {}
    for number, plan in enumerate(plans):
        other = plans[first.setdefault(plan.shape, number)]
        if (plan.slots, plan.nodes) != (other.slots, other.nodes):
            raise UsageError(
                f"Stages {first[plan.shape]} and {number} have the same shape {plan.shape} but "
                f"(slots, nodes) {(other.slots, other.nodes)} and {(plan.slots, plan.nodes)}: give "
                "them different shapes."
            )
