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
siblings are recalled with a kill, and the verdict is withheld until each has reported and vouched,
or is dead: collateral errors (a reset connection) arrive before their cause (the loss of a peer's
node). To vouch is to answer that recall: a report can have been sent before the failure, and its
sender be dead since, so siblings that have ended their part are asked as well. The death of a
member while calls are in flight recalls the siblings, too. Then the root cause is the worst by
`Severity`, the earliest among equals. If the worst is a rank's failure it is delivered as that
rank's outcome; otherwise the assignment ends with the gang. Waiting is bounded: the pool declares
dead who does not answer a recall, or is silent. What cannot be told: whether who vouches has broken
and mended something that the failed rank needed (a network cut between nodes, say), and which of
two failures came first; the order of arrival stands for the latter.

*Node 0 decides* (`FinishedWhen.LEADER`). A rank of several nodes then moves by this table:

    state       node 0 succeeded    other succeeded    failed, handed back or died    grace is over
    RUNNING     LED, Grace          -                  RECALLED                       -
    LED         -                   -                  -; a death: RECALLED           RECALLED
    RECALLED    -                   -                  -                              -

RUNNING is as above, but for node 0's success: what the others do after it no longer matters. They
have the grace, whose timer the pool runs, and are then recalled with a kill; their faults count for
nothing. A death ends the grace, since the gang is lost, and nobody may wait for that verdict. The
rank is finished when all have answered or are dead: with node 0's outcome if it ever was LED, to
which the outputs and spans of those who succeeded as well are added, and before the gang is called
lost; else as above.

*Checkpoints* are passed on at once, of a rank that is still outstanding and has not just succeeded,
and never an older one after a newer one. Of several nodes, only those of node 0.

*Silence* is counted in observed time: a tick adds at most `max_tick_s`, so that a driver that was
stopped for a while does not kill workers whose answers wait in its inbox.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import TypeAlias

import attrs

from thornback.pool.calls import Call, ranges_of
from thornback.pool.conclusion import conclusion, severity_of_loss, severity_of_outcome
from thornback.pool.members import TRANSITIONS, MemberNews, MemberState
from thornback.pool.ports import Checkpoint, FinishedWhen, Outcome, Report
from thornback.pool.severity import Loss


@attrs.frozen(kw_only=True, slots=True)
class Deliver:
    """Hand this to who reads the reports of the assignment."""

    assignment: int
    report: Report


@attrs.frozen(kw_only=True, slots=True)
class Grace:
    """Node 0 has finished the rank of this assignment: say `grace_over` after `grace_s`, unless the
    final report is delivered before."""

    assignment: int


@attrs.frozen(kw_only=True, slots=True)
class KillRank:
    """Recall the assignment from this member with a kill: a sibling failed, or the grace after node
    0's success is over."""

    member: int
    assignment: int
    vouch: bool = False
    """Say `vouched` when the member has answered this call, which is to be a new one: the verdict
    waits for that. The member may have ended its part already."""


@attrs.frozen(kw_only=True, slots=True)
class GangGone:
    """The gang is lost. Comes once, last."""

    loss: Loss


Instruction: TypeAlias = Deliver | Grace | KillRank | GangGone


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
        self._calls: dict[int, Call] = {}
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

    def assigned(
        self,
        assignment: int,
        ranks: Sequence[range],
        *,
        finished_when: FinishedWhen = FinishedWhen.ALL,
    ) -> bool:
        """Open the books of an assignment. False: the gang is doomed, hand out nothing.

        Raises:
            ValueError: the assignment is in flight already, has no rank or a rank twice, or has
                several ranks on a gang of several nodes.
        """
        page = dict.fromkeys(chain.from_iterable(ranks))
        if assignment in self._calls:
            raise ValueError(f"assignment {assignment} is in flight already: numbers are used once")
        if not page or len(page) != sum(map(len, ranks)):
            raise ValueError(f"assignment {assignment} needs ranks, each once; got {tuple(ranks)}")
        if len(self._nodes) > 1 and len(page) > 1:
            raise ValueError(
                f"assignment {assignment} has {len(page)} ranks, but a gang of {len(self._nodes)} "
                "nodes runs one rank at a time: send one rank per assignment"
            )
        if self._losses:
            return False
        members = len(self._nodes)
        self._calls[assignment] = Call(
            rank=next(iter(page)),
            outstanding=[page, *(dict(page) for _ in range(1, members))],
            finished=[None] * members,
            by_leader=members > 1 and finished_when is FinishedWhen.LEADER,
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
        page, node = call.outstanding[member], self._nodes[member]
        # Not by version: a later rank's newer checkpoint may have come by itself, before this.
        left = tuple(c for c in report.left if c.rank in page)
        checkpoint = self._newer(member, call, report)
        outcomes = []
        for outcome in report.outcomes:
            if outcome.rank in page:
                del page[outcome.rank]
                named = outcome.node == node  # as a rule: evolving costs more than all the rest
                outcomes.append(outcome if named else attrs.evolve(outcome, node=node))
        returned = dict.fromkeys(r for r in chain.from_iterable(report.returned) if r in page)
        if report.final:
            returned |= page
        for rank in returned:
            del page[rank]
        if len(self._nodes) > 1:
            return self._merged(member, assignment, call, outcomes, checkpoint)
        final = not page
        if final:
            del self._calls[assignment]
        running = report.running if report.running in page else None
        if not (outcomes or returned or final or checkpoint or running is not None):
            return ()
        news = Report(
            outcomes=tuple(outcomes),
            returned=ranges_of(returned),
            running=running,
            final=final,
            checkpoint=checkpoint,
            left=left,
        )
        return (Deliver(assignment=assignment, report=news),)

    def died(self, member: int, loss: Loss) -> tuple[Instruction, ...]:
        """A member is gone for good. Repeated: a no-op."""
        if not self._move(member, MemberNews.DIED):
            return ()
        self._losses.append(attrs.evolve(loss, node=loss.node or self._nodes[member]))
        news: list[Instruction] = []
        for assignment, call in tuple(self._calls.items()):
            call.outstanding[member].clear()
            call.doubted.pop(member, None)
            news += self._recall_siblings(assignment, call)
            news += self._success(assignment, call)
        return (*news, *self._verdict())

    def vouched(self, member: int, assignment: int) -> tuple[Instruction, ...]:
        """A member has answered a recall that was to `vouch`: it lived after the failure of its
        sibling. Stale news is a no-op."""
        call = self._calls.get(assignment)
        if call is None or member not in call.doubted:
            return ()
        del call.doubted[member]
        return self._folded(assignment, call)

    def grace_over(self, assignment: int) -> tuple[Instruction, ...]:
        """The time is over that the others had after node 0's success. Unknown, ended: a no-op."""
        call = self._calls.get(assignment)
        if call is None or not call.led:
            return ()
        return tuple(self._recall_siblings(assignment, call))

    def _move(self, member: int, news: MemberNews) -> bool:
        """Follow the table. True: the state changed."""
        state = self._states[member]
        self._states[member] = TRANSITIONS[state].get(news, state)
        return self._states[member] is not state

    def _newer(self, member: int, call: Call, report: Report) -> Checkpoint | None:
        """Return the report's checkpoint, if it is to be passed on."""
        found = report.checkpoint
        if found is None or found.version <= call.version or member != 0:
            return None
        if found.rank not in call.outstanding[member]:
            return None
        call.version = found.version
        over = any(outcome.ok and outcome.rank == found.rank for outcome in report.outcomes)
        return None if over else found

    def _merged(
        self,
        member: int,
        assignment: int,
        call: Call,
        outcomes: Sequence[Outcome],
        checkpoint: Checkpoint | None,
    ) -> tuple[Instruction, ...]:
        """Fold the news of one of several nodes into its assignment, whose only rank all of them
        run."""
        news: list[Instruction] = []
        if checkpoint is not None:
            report = Report(running=call.rank, checkpoint=checkpoint)
            news.append(Deliver(assignment=assignment, report=report))
        for outcome in outcomes:
            call.finished[member] = outcome
            if call.by_leader and member == 0 and outcome.ok and not call.recalled:
                call.led = True
                if any(call.outstanding):
                    news.append(Grace(assignment=assignment))
            elif not outcome.ok and not call.led:
                call.failures.append(outcome)
        lacking = call.settled(member) and call.finished[member] is None
        if not call.led and call.failures:
            news += self._ask_siblings(member, assignment, call)
        elif not call.led and lacking:
            # A rank that one node handed back cannot finish on the others either.
            news += self._recall_siblings(assignment, call)
        news += self._success(assignment, call)
        return (*news, *self._folded(assignment, call))

    def _folded(self, assignment: int, call: Call) -> tuple[Instruction, ...]:
        """Conclude the rank of several nodes, or the gang, if nothing more is waited for."""
        if self._losses:
            return self._verdict()
        if assignment not in self._calls or call.open:
            return ()
        del self._calls[assignment]
        report = conclusion(call.rank, call.finished, call.failures, led=call.led)
        return (Deliver(assignment=assignment, report=report),)

    def _success(self, assignment: int, call: Call) -> list[Instruction]:
        """Deliver a rank that node 0 has finished, once all have answered or are dead."""
        if not call.led or any(call.outstanding):
            return []
        del self._calls[assignment]
        return [
            Deliver(
                assignment=assignment,
                report=conclusion(call.rank, call.finished, call.failures, led=call.led),
            )
        ]

    def _recall_siblings(self, assignment: int, call: Call) -> list[Instruction]:
        if call.recalled or len(self._nodes) == 1:
            return []
        call.recalled = True
        return [
            KillRank(member=member, assignment=assignment)
            for member, state in enumerate(self._states)
            if state is not MemberState.DEAD and not call.settled(member)
        ]

    def _ask_siblings(self, failed: int, assignment: int, call: Call) -> list[Instruction]:
        """At the first failure: recall the rank from all others, and let each of them vouch."""
        if call.asked:
            return []
        call.asked = call.recalled = True
        living = [m for m, state in enumerate(self._states) if state is not MemberState.DEAD]
        call.doubted = {member: None for member in living if member != failed}
        return [
            KillRank(member=member, assignment=assignment, vouch=True) for member in call.doubted
        ]

    def _verdict(self) -> tuple[Instruction, ...]:
        """Say that the gang is gone, once every living member has answered for every call, and
        vouched where that is asked (one node: at once)."""
        if self._gone is not None:
            return ()
        if len(self._nodes) > 1 and any(c.open for c in self._calls.values()):
            return ()
        self._gone = max(self._losses, key=severity_of_loss)
        worst = severity_of_loss(self._gone)
        last: list[Instruction] = []
        for assignment, call in self._calls.items():
            graver = [o for o in call.failures if severity_of_outcome(o) > worst]
            if graver:
                cause = max(graver, key=severity_of_outcome)
                report = Report(outcomes=(cause,), final=True)
                last.append(Deliver(assignment=assignment, report=report))
        self._calls.clear()
        return (*last, GangGone(loss=self._gone))
