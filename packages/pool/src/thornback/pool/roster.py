"""What is known of one gang: its members, the calls in flight, and the one fact they fold into.
Pure.

Theory of operation
-------------------
The pool tells the roster what it sees, and carries out the instructions it gets back. A gang ends
in exactly one of two ways: it is closed (the pool then forgets the roster), or it is lost
(`GangGone`, once). A member moves by this table; what is not in it is a defined no-op, so that late
news of a dead member does nothing:

    state          ANSWERED     UNAVAILABLE    DIED
    STARTING       ALIVE        -              DEAD
    ALIVE          ALIVE        UNREACHABLE    DEAD
    UNREACHABLE    ALIVE        -              DEAD
    DEAD           -            -              -

*Calls.* `assigned` opens the books of an assignment, one page per member: every rank is outstanding
until that member reports it, as an outcome or as returned. What is reported twice, or was never
asked for, is dropped; what a final report leaves out counts as returned. So every rank is reported
exactly once, whatever a worker answers.

*One node.* The member's news is passed on as it comes.

*Several nodes.* All members run the same single rank. It is finished when all have reported success
(the result is that of node 0, outputs and spans are those of all). At the first failure the
siblings are recalled with a kill, and the verdict is withheld until each has answered or is dead:
collateral errors (a reset connection) arrive before their cause (the loss of a peer's node). The
same holds for the death of a member while calls are in flight. Then the root cause is the worst by
`Severity`, the earliest among equals. If the worst is a rank's failure it is delivered as that
rank's outcome; otherwise the assignment ends with the gang. Waiting is bounded: the pool declares
dead who does not answer a recall.

*Silence* is counted in observed time: a tick adds at most `max_tick_s`, so that a driver that was
stopped for a while does not kill workers whose answers wait in its inbox.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from types import MappingProxyType
from typing import TypeAlias

import attrs

from thornback.pool.ports import CaughtError, Outcome, Ranks, Report, SeenBy, SpanData
from thornback.pool.severity import Loss, Severity, severity_of


class MemberState(enum.Enum):
    """Where a worker stands, as the pool sees it."""

    STARTING = "starting"
    """Asked for; has not answered yet."""
    ALIVE = "alive"
    """Has answered."""
    UNREACHABLE = "unreachable"
    """A call could not reach it; it may be alive, and has a grace window to answer."""
    DEAD = "dead"
    """Gone for good, or declared so (and killed)."""


class MemberNews(enum.Enum):
    """What can be learned of a member."""

    ANSWERED = "answered"
    UNAVAILABLE = "unavailable"
    DIED = "died"


TRANSITIONS: Mapping[MemberState, Mapping[MemberNews, MemberState]] = MappingProxyType(
    {
        MemberState.STARTING: {
            MemberNews.ANSWERED: MemberState.ALIVE,
            MemberNews.DIED: MemberState.DEAD,
        },
        MemberState.ALIVE: {
            MemberNews.ANSWERED: MemberState.ALIVE,
            MemberNews.UNAVAILABLE: MemberState.UNREACHABLE,
            MemberNews.DIED: MemberState.DEAD,
        },
        MemberState.UNREACHABLE: {
            MemberNews.ANSWERED: MemberState.ALIVE,
            MemberNews.DIED: MemberState.DEAD,
        },
        MemberState.DEAD: {},
    }
)


@attrs.frozen(kw_only=True, slots=True)
class Deliver:
    """Hand this to who reads the reports of the assignment."""

    assignment: int
    report: Report


@attrs.frozen(kw_only=True, slots=True)
class KillRank:
    """Recall the assignment from this member with a kill: a sibling failed."""

    member: int
    assignment: int


@attrs.frozen(kw_only=True, slots=True)
class GangGone:
    """The gang is lost. Comes once, last."""

    loss: Loss


Instruction: TypeAlias = Deliver | KillRank | GangGone


@attrs.define(slots=True, eq=False)
class _Call:
    """The books of one assignment: a page per member."""

    rank: int
    """The first, which is the only one on several nodes."""
    outstanding: list[dict[int, None]]
    """By member: the ranks not reported yet, in order (a dict, since order counts)."""
    finished: list[Outcome | None]
    """By member, for several nodes: the outcome of its rank."""
    failures: list[Outcome] = attrs.field(factory=list)
    """For several nodes: in the order they came in."""
    recalled: bool = False

    def settled(self, member: int) -> bool:
        return not self.outstanding[member]


def _spans_with_node(outcome: Outcome) -> Iterator[SpanData]:
    """Return the spans of one of several nodes, with its name on each."""
    for span in outcome.spans:
        yield attrs.evolve(span, attributes={**span.attributes, "thornback.node": outcome.node})


def _ranges(ranks: Iterable[int]) -> Ranks:
    """Fold ascending or not: neighbours join, order stays."""
    found: list[range] = []
    for rank in ranks:
        if found and found[-1].stop == rank:
            found[-1] = range(found[-1].start, rank + 1)
        else:
            found.append(range(rank, rank + 1))
    return tuple(found)


class Roster:
    """The members of one gang and their calls (see the top of this file).

    Args:
        nodes: the node of each member, in order.
        silence_s: a member that has not answered for so long is silent.
        max_tick_s: the most that one tick adds to the silence of a member.
    """

    def __init__(
        self,
        nodes: Sequence[str],
        *,
        silence_s: float = 60.0,
        max_tick_s: float = 15.0,
    ) -> None:
        if not nodes:
            raise ValueError("a gang needs at least one node, got none")
        self._nodes = tuple(nodes)
        self._silence_s = silence_s
        self._max_tick_s = max_tick_s
        self._states = [MemberState.STARTING] * len(nodes)
        self._quiet_s = [0.0] * len(nodes)
        self._ticked_at: float | None = None
        self._calls: dict[int, _Call] = {}
        self._losses: list[Loss] = []
        self._gone: Loss | None = None

    @property
    def gone(self) -> Loss | None:
        """Why the gang is lost; None while it is not."""
        return self._gone

    @property
    def doomed(self) -> bool:
        """A member is dead: the gang is lost, or will be as soon as the verdict is known."""
        return bool(self._losses)

    @property
    def assignments(self) -> tuple[int, ...]:
        """Those in flight."""
        return tuple(self._calls)

    def owes(self, member: int, assignment: int) -> bool:
        """Whether a member still has ranks of an assignment to report."""
        call = self._calls.get(assignment)
        return call is not None and not call.settled(member)

    def state(self, member: int) -> MemberState:
        """Where a member stands."""
        return self._states[member]

    def answered(self, member: int) -> None:
        """A member gave a sign of life."""
        self._move(member, MemberNews.ANSWERED)
        self._quiet_s[member] = 0.0

    def unavailable(self, member: int) -> bool:
        """A member could not be reached. True: its grace window opens now, so somebody has to probe
        it."""
        return self._move(member, MemberNews.UNAVAILABLE)

    def ticked(self, now: float) -> tuple[int, ...]:
        """Time has passed. Return the members that have been silent for too long."""
        since = now if self._ticked_at is None else self._ticked_at
        self._ticked_at = now
        step_s = min(max(now - since, 0.0), self._max_tick_s)
        silent = []
        for member, state in enumerate(self._states):
            if state in (MemberState.ALIVE, MemberState.UNREACHABLE):
                self._quiet_s[member] += step_s
                if self._quiet_s[member] >= self._silence_s:
                    silent.append(member)
        return tuple(silent)

    def assigned(self, assignment: int, ranks: Sequence[range]) -> bool:
        """Open the books of an assignment. False: the gang is doomed, hand out nothing.

        Raises:
            ValueError: the assignment is in flight already, has no rank or a rank twice, or has
            several ranks on a gang
                of several nodes.
        """
        asked = list(chain.from_iterable(ranks))
        page = dict.fromkeys(asked)
        if assignment in self._calls:
            raise ValueError(f"assignment {assignment} is in flight already: numbers are used once")
        if not page or len(page) != len(asked):
            raise ValueError(f"assignment {assignment} needs ranks, each once; got {tuple(ranks)}")
        if len(self._nodes) > 1 and len(page) > 1:
            raise ValueError(
                f"assignment {assignment} has {len(page)} ranks, but a gang of {len(self._nodes)} "
                "nodes runs one rank at a time: send one rank per assignment"
            )
        if self._losses:
            return False
        members = len(self._nodes)
        self._calls[assignment] = _Call(
            asked[0], [dict(page) for _ in range(members)], [None] * members
        )
        return True

    def withdrawn(self, assignment: int) -> None:
        """Close the books of an assignment of which no member has heard."""
        self._calls.pop(assignment, None)

    def reported(self, member: int, assignment: int, report: Report) -> tuple[Instruction, ...]:
        """A member has news of an assignment. Stale news is a no-op."""
        call = self._calls.get(assignment)
        if call is None or self._states[member] is MemberState.DEAD:
            return ()
        page = call.outstanding[member]
        outcomes = []
        for outcome in report.outcomes:
            if outcome.rank in page:
                del page[outcome.rank]
                outcomes.append(attrs.evolve(outcome, node=self._nodes[member]))
        returned = dict.fromkeys(r for r in chain.from_iterable(report.returned) if r in page)
        if report.final:
            returned |= page
        for rank in returned:
            del page[rank]
        if len(self._nodes) > 1:
            return self._merged(member, assignment, call, outcomes)
        final = not page
        if final:
            del self._calls[assignment]
        running = report.running if report.running in page else None
        if not (outcomes or returned or final or running is not None):
            return ()
        news = Report(
            outcomes=tuple(outcomes), returned=_ranges(returned), running=running, final=final
        )
        return (Deliver(assignment=assignment, report=news),)

    def died(self, member: int, loss: Loss) -> tuple[Instruction, ...]:
        """A member is gone for good. Repeated: a no-op."""
        if not self._move(member, MemberNews.DIED):
            return ()
        self._losses.append(attrs.evolve(loss, node=loss.node or self._nodes[member]))
        recalls: list[Instruction] = []
        for assignment, call in self._calls.items():
            call.outstanding[member].clear()
            recalls += self._recall_siblings(assignment, call)
        return (*recalls, *self._verdict())

    def _move(self, member: int, news: MemberNews) -> bool:
        """Follow the table. True: the state changed."""
        state = self._states[member]
        self._states[member] = TRANSITIONS[state].get(news, state)
        return self._states[member] is not state

    def _merged(
        self, member: int, assignment: int, call: _Call, outcomes: Sequence[Outcome]
    ) -> tuple[Instruction, ...]:
        """Fold the news of one of several nodes into its assignment, whose only rank all of them
        run."""
        for outcome in outcomes:
            call.finished[member] = outcome
            if not outcome.ok:
                call.failures.append(outcome)
        recalls: list[Instruction] = []
        lacking = call.settled(member) and call.finished[member] is None
        if call.failures or lacking:
            # A rank that one node handed back cannot finish on the others either.
            recalls = self._recall_siblings(assignment, call)
        if self._losses:
            return (*recalls, *self._verdict())
        if any(call.outstanding):
            return tuple(recalls)
        del self._calls[assignment]
        return (Deliver(assignment=assignment, report=self._conclusion(call)),)

    def _recall_siblings(self, assignment: int, call: _Call) -> list[Instruction]:
        if call.recalled or len(self._nodes) == 1:
            return []
        call.recalled = True
        return [
            KillRank(member=member, assignment=assignment)
            for member, state in enumerate(self._states)
            if state is not MemberState.DEAD and not call.settled(member)
        ]

    def _conclusion(self, call: _Call) -> Report:
        """Make the final report of a rank that several nodes ran, all of which have answered."""
        if call.failures:
            return Report(outcomes=(max(call.failures, key=self._outcome_severity),), final=True)
        done = [outcome for outcome in call.finished if outcome is not None]
        if len(done) < len(self._nodes):
            rank = call.rank
            return Report(returned=(range(rank, rank + 1),), final=True)
        outputs = dict.fromkeys(chain.from_iterable(outcome.outputs for outcome in done))
        merged = attrs.evolve(
            done[0],
            outputs=tuple(outputs),
            ran_s=max(outcome.ran_s for outcome in done),
            spans=tuple(chain.from_iterable(map(_spans_with_node, done))),
            spans_dropped=sum(outcome.spans_dropped for outcome in done),
        )
        return Report(outcomes=(merged,), final=True)

    def _verdict(self) -> tuple[Instruction, ...]:
        """Say that the gang is gone, once every living member has answered for every call (one
        node: at once)."""
        if self._gone is not None:
            return ()
        if len(self._nodes) > 1 and any(any(c.outstanding) for c in self._calls.values()):
            return ()
        self._gone = max(self._losses, key=self._loss_severity)
        worst = self._loss_severity(self._gone)
        last: list[Instruction] = []
        for assignment, call in self._calls.items():
            graver = [o for o in call.failures if self._outcome_severity(o) > worst]
            if graver:
                cause = max(graver, key=self._outcome_severity)
                report = Report(outcomes=(cause,), final=True)
                last.append(Deliver(assignment=assignment, report=report))
        self._calls.clear()
        return (*last, GangGone(loss=self._gone))

    def _loss_severity(self, loss: Loss) -> Severity:
        return severity_of(loss.error, loss.facts, SeenBy.WORKER)

    def _outcome_severity(self, outcome: Outcome) -> Severity:
        error = outcome.error or CaughtError(type_names=(), message="")
        return severity_of(error, {}, outcome.seen_by)
