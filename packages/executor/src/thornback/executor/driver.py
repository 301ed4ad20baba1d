"""The driver: feeds events to the scheduler and carries out its commands. It decides nothing.

One loop, one inbox. Every command is carried out by a task of its own that turns *any* exception
into the command's one answer. The inbox is drained before time is told (`Ticked`), so a driver that
was paused never times out answers that are already there.

A little over 400 lines: what carries out commands shares the maps from ids to objects, and what
does not has been moved out (`gangs`, `certifier`, `watching`).
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TypeAlias, assert_never

import anyio
import attrs

from thornback.executor.blobs import InputTooLarge
from thornback.executor.certifier import Certifier, LiveAssignment, fault_of, no_logs
from thornback.executor.checkpoints import CheckpointKeeper
from thornback.executor.chronicle import Witness
from thornback.executor.counts import Counts
from thornback.executor.drains import DrainTeller
from thornback.executor.gangs import GangKeeper, Loss
from thornback.executor.handover import Handover
from thornback.executor.inbox import Inbox
from thornback.executor.outputs import OutputDesk
from thornback.executor.params import ExecutorParams
from thornback.executor.partials import Partials
from thornback.executor.plan import RunPlan, merge_ranks
from thornback.executor.ports import (
    Attribute,
    Classifier,
    Clock,
    Completion,
    Dispatched,
    Journal,
    Leases,
    Opened,
    Ranks,
    Workers,
)
from thornback.executor.recording import deciding
from thornback.executor.records import RecordDesk
from thornback.executor.report import StageProgress
from thornback.executor.tracing import RunTracer
from thornback.executor.waiting import NotKept
from thornback.executor.watching import DispatchFeed, Teller, Watchers
from thornback.faults import Fault, Redactor, RetryVerdict
from thornback.pool import Beat, Checkpoint, GangLostError, Outcome, Report
from thornback.scheduler import commands as cmd
from thornback.scheduler import events as ev

logger = logging.getLogger(__name__)
Event: TypeAlias = ev.Event[Fault]
Posted: TypeAlias = Event | Loss
Settled: TypeAlias = tuple[cmd.Record, Completion]


@attrs.frozen(kw_only=True, slots=True)
class Parts:
    """What a driver is put together from: each fulfils a protocol of `ports.py`."""

    leases: Leases
    workers: Workers
    journal: Journal
    classifier: Classifier
    clock: Clock


def _ignore(completions: Sequence[Completion], /) -> None:
    """Nobody reads results of the run while it goes on."""


class Driver:
    """One run (fulfils `LiveRun`). Use once."""

    def __init__(
        self,
        plan: RunPlan,
        parts: Parts,
        opened: Opened,
        *,
        tracer: RunTracer,
        watchers: Watchers,
        params: ExecutorParams,
        log_url: Callable[[int, str], str] = no_logs,
        record: Callable[[str], object] | None = None,
        recorded: Callable[[Sequence[Completion]], None] = _ignore,
        redactor: Redactor | None = None,
    ) -> None:
        self._plan = plan
        self._parts = parts
        self._opened = opened
        self._tracer = tracer
        self._params = params
        self._recorded = recorded
        self._redactor = redactor or Redactor()
        self._verdicts: list[RetryVerdict] = []
        """Those that were given on the event which is being handled."""
        stages = plan.scheduler_stages([Witness(p, self._verdicts) for p in plan.policies()])
        self.scheduler, self._decide = deciding(plan, stages, record)
        self.certifier = Certifier(plan, tracer, watchers, log_url)
        self.end: cmd.FinishRun | None = None
        self.unconfirmed: list[int] = []
        self._inbox: Inbox[Posted] = Inbox()
        self._gangs = GangKeeper(
            plan, parts.leases, parts.workers, tracer, params, self._inbox.post, self._reports_in
        )
        self._assignments: dict[int, LiveAssignment] = {}
        self._outputs = OutputDesk(plan, opened, disk_s=params.disk_s)
        self._records = RecordDesk(plan, self.certifier, opened.term)
        self._checkpoints = CheckpointKeeper()
        self._handover = Handover(plan, parts.journal, opened, disk_s=params.disk_s)
        self._partials = Partials()
        self._counts = Counts(plan, self.scheduler, self._partials, opened)
        self._drains = DrainTeller(parts.workers, parts.clock, params.drain_s)
        self._nodes: dict[str, None] = {}
        """Every node that a gang of this run was on; with one only, there is no other node."""
        self._gang_nodes: dict[int, tuple[str, ...]] = {}
        """Of gangs that were placed and are not closed."""
        self._feed = DispatchFeed()
        self._teller = Teller(parts.clock, watchers, params.progress_s)

    # -- the loop

    async def run(self) -> None:
        """Run to the end; `end` then says how. Cancelled or failed: everything held is closed
        first, bounded."""
        names = self._plan.index
        done = {names[n]: r for n, r in self._opened.done.items() if n in names and r}
        failed = {names[n]: r for n, r in self._opened.failed.items() if n in names and r}
        if self._plan.settings.retry_failed:
            failed = {}
        self._inbox.post(ev.RunStarted(done=done, failed=failed))
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(self._watch_drains, group)
                while self.end is None:
                    await self._turn(group)
                group.cancel_scope.cancel()
        finally:
            if self._gangs:
                with anyio.move_on_after(self._params.cancel_s, shield=True):
                    await self._gangs.close_all()
            self._handover.close()
            self._teller.tell(self.progress, last=True)

    async def _turn(self, group: anyio.abc.TaskGroup) -> None:
        clock, scheduler = self._parts.clock, self.scheduler
        due = [at for at in (scheduler.wake_at, self._teller.due) if at is not None]
        await self._inbox.wait(max(0.0, min(due) - clock.monotonic()) if due else None)
        records: list[Settled] = []
        while self._inbox:
            self._handle(self._event(self._inbox.pop()), group, records)
        if scheduler.wake_at is not None and scheduler.wake_at <= clock.monotonic():
            self._handle(ev.Ticked(), group, records)
        if records:
            group.start_soon(self._record, records)
        self._teller.tell(self.progress)

    def _handle(self, event: Event, group: anyio.abc.TaskGroup, records: list[Settled]) -> None:
        self._verdicts.clear()
        lost = self._held_by(event.gang) if isinstance(event, ev.GangLost) else []
        commands = self._decide(event, self._parts.clock.monotonic())
        self._certify(event, commands, lost)
        if isinstance(event, ev.GangReady):
            self._drains.gang_ready(event.nodes, group)
        for command in commands:
            match command:
                case cmd.OpenGang():
                    self.certifier.gang_asked(command)
                    self._gangs.expect(command.gang)
                    group.start_soon(self._gangs.open, command)
                case cmd.CloseGang():
                    group.start_soon(self._gangs.close, command)
                case cmd.Dispatch():
                    self._dispatch(command, group)
                case cmd.Recall():
                    if (live := self._assignments.get(command.assignment)) is not None:
                        live.killed = live.killed or command.kill
                    group.start_soon(self._recall, command)
                case cmd.Record():
                    records.append((command, self._settle(command)))
                case cmd.FinishRun():
                    self.end = command
                case _:
                    assert_never(command)
        self._end_stages(event, commands)
        self._forget(event)

    def _end_stages(self, event: Event, commands: Sequence[cmd.Command]) -> None:
        """End the spans of stages whose last rank has ended with this event."""
        ended = {command.stage: None for command in commands if isinstance(command, cmd.Record)}
        if isinstance(event, ev.Recorded):
            ended[event.stage] = None
        for number in ended:
            counts = self.scheduler.counts(number)
            if counts.done + counts.failed + counts.skipped == self._plan.stages[number].world_size:
                self._tracer.stage_ended(number, counts.done, counts.failed, counts.skipped)

    # -- assignments

    def _dispatch(self, command: cmd.Dispatch, group: anyio.abc.TaskGroup) -> None:
        epoch = f"{self._opened.term:06d}.{command.assignment:09d}"
        live = self._assignments[command.assignment] = LiveAssignment(command, epoch)
        traceparent = self._tracer.dispatched(
            command.stage,
            command.gang,
            command.assignment,
            command.ranks,
            command.attempt,
            epoch,
        )
        group.start_soon(self._follow, live, traceparent)
        self._feed.offer(
            Dispatched(
                stage=self._plan.stages[command.stage].name,
                gang=command.gang,
                assignment=command.assignment,
                ranks=command.ranks,
                attempt=command.attempt,
            )
        )

    async def _follow(self, live: LiveAssignment, traceparent: str) -> None:
        """Carry out a `Dispatch`: hand it over and turn its reports into events."""
        command, loss = live.command, None
        try:
            self._handover.check(command.stage)
            restored = self._checkpoints.of(command.stage, command.ranks)
            with anyio.CancelScope() as live.preparing:
                if live.killed:
                    live.preparing.cancel()
                handed = await self._handover.of(command.stage, command.ranks)
            if live.preparing.cancelled_caught:
                returned = ev.RanksReturned(assignment=command.assignment, ranks=command.ranks)
                self._inbox.post(returned)
                self._tracer.assignment_ended(command.assignment)
                return
            work = self._plan.assignment(command, live.epoch, traceparent, restored, handed)
            reports = self._parts.workers.run(command.gang, work)
            live.handed.set()
            async for report in reports:
                self._reported(command.assignment, await self._outputs.examine(live, report))
            self._tracer.assignment_ended(command.assignment)
        except GangLostError as error:
            facts = {**error.facts, "origin": "worker", "phase": error.phase}
            loss = Loss(gang=command.gang, error=error.error, facts=facts, node=error.node)
        except (InputTooLarge, NotKept) as error:  # not the gang's fault
            self._refused(live, error)
        except Exception as error:  # noqa: BLE001  # the command's one answer, whatever happened
            facts = {"origin": "driver", "phase": "dispatch"}
            loss = Loss(gang=command.gang, error=error, facts=facts)
        finally:
            live.handed.set()
            live.ended.set()
        if loss is not None:
            await self._reports_in(command.gang)
            self._inbox.post(loss)

    def _refused(self, live: LiveAssignment, error: Exception) -> None:
        """Answer a `Dispatch` whose ranks cannot be given what they ask for: each of them fails."""
        number = live.command.assignment
        facts = {"origin": "driver", "phase": "dispatch"}
        fault = self._parts.classifier.classify(error, facts)
        for rank in (rank for piece in live.command.ranks for rank in piece):
            live.outcomes[rank] = Outcome(rank=rank, ok=False)
            self._inbox.post(ev.RankFailed(assignment=number, rank=rank, fault=fault, node=""))
        self._tracer.assignment_ended(number)

    async def _reports_in(self, gang: int) -> None:
        """Wait until what a lost gang has reported is in the inbox: its loss must not overtake it.

        The workers have failed all readers of a lost gang, so that this takes a few turns.
        """
        with anyio.move_on_after(self._params.close_s):
            for live in [each for each in self._assignments.values() if each.command.gang == gang]:
                await live.ended.wait()

    def _reported(self, assignment: int, report: Report) -> None:
        live = self._assignments.get(assignment)
        if live is None:
            return  # everything it was given is settled: a repeated report
        saved = report.left if report.checkpoint is None else (*report.left, report.checkpoint)
        for checkpoint in saved:  # before its rank ends by an outcome of the same report
            self._keep_checkpoint(live, checkpoint)
        now_ns = self._parts.clock.time_ns()
        outcomes = [self._claimed(live, outcome) for outcome in report.outcomes]
        good = [outcome for outcome in outcomes if outcome.ok]
        for outcome in outcomes:
            fault = None if outcome.ok else self._fault(outcome, live)
            self._tracer.outcome(assignment, outcome, fault, now_ns)
            if outcome.spans or outcome.log_tail:  # spans are told, and not kept until the record
                tail = self._redactor.redact(outcome.log_tail)
                outcome = attrs.evolve(outcome, spans=(), log_tail=tail)
            live.outcomes[outcome.rank] = outcome
            if fault is not None:
                self._inbox.post(
                    ev.RankFailed(
                        assignment=assignment,
                        rank=outcome.rank,
                        fault=fault,
                        node=outcome.node,
                        ran_s=outcome.ran_s,
                    )
                )
        if good:
            ranks = merge_ranks([outcome.rank for outcome in good])
            busy_s = sum(outcome.ran_s for outcome in good)
            self._inbox.post(ev.RanksSucceeded(assignment=assignment, ranks=ranks, busy_s=busy_s))
        if report.returned:
            self._inbox.post(ev.RanksReturned(assignment=assignment, ranks=report.returned))

    def _claimed(self, live: LiveAssignment, outcome: Outcome) -> Outcome:
        """Return the outcome; failed, if another rank has published under one of its names."""
        if not outcome.ok or not outcome.outputs or not self._holds(live, outcome.rank):
            return outcome
        return self._outputs.claim(live, outcome)

    def _fault(self, outcome: Outcome, live: LiveAssignment) -> Fault:
        only_node, killed = len(self._nodes) < 2, live.killed
        return fault_of(
            self._parts.classifier,
            outcome,
            only_node=only_node,
            killed=killed,
            drain=self._drain_facts(live.command.gang, outcome.node),
        )

    def _drain_facts(self, gang: int, node: str | None) -> dict[str, Attribute]:
        """Say whether a node of the gang is draining: a member that goes away breaks the others."""
        nodes = self._gang_nodes.get(gang, ())
        if not self._drains.knows((*nodes, node or "")):
            return {}
        return {"node_draining": True, "gang_nodes": len(dict.fromkeys(nodes)) or 1}

    def _keep_checkpoint(self, live: LiveAssignment, checkpoint: Checkpoint) -> None:
        """Keep it for the rank's next attempt, unless the assignment holds the rank no more."""
        if self._holds(live, checkpoint.rank):
            command = live.command
            self._checkpoints.keep(command.stage, command.assignment, checkpoint)

    def _holds(self, live: LiveAssignment, rank: int) -> bool:
        return any(rank in piece for piece in self.scheduler.outstanding(live.command.assignment))

    async def _recall(self, command: cmd.Recall) -> None:
        live = self._assignments.get(command.assignment)
        if live is None:
            return
        if command.kill and live.preparing is not None and not live.handed.is_set():
            live.preparing.cancel()  # a disk that hangs must not hold up a cancel
        try:
            with anyio.move_on_after(self._params.close_s):
                await live.handed.wait()  # on trio a task may overtake the one started before it
                await self._parts.workers.recall(
                    live.command.gang, command.assignment, kill=command.kill
                )
        except Exception:  # a recall only hastens; the assignment has its own answer
            logger.warning("could not recall assignment %d", command.assignment, exc_info=True)

    # -- records

    def _settle(self, command: cmd.Record) -> Completion:
        """Ranks end: return what is to be recorded, and forget what they saved."""
        self._checkpoints.drop(command.stage, command.ranks)
        self._handover.drop(command.stage, command.ranks)
        if command.state is cmd.RecordState.DONE:
            return self._records.done(command, self._assignments[command.assignment or 0])
        reason = self.scheduler.reason(command.stage, command.ranks[0].start)
        return self._records.ended(command, reason, self._verdicts)

    async def _record(self, records: Sequence[Settled]) -> None:
        """Carry out all `Record`s of one turn in one commit."""
        completions = [completion for _, completion in records]
        try:
            await self._parts.journal.commit(completions)
        except Exception as error:  # noqa: BLE001  # the commands' one answer, whatever happened
            facts = {"origin": "driver", "phase": "record"}
            fault = self._parts.classifier.classify(error, facts)
            self._inbox.post(ev.JournalFailed(fault=fault))
            return
        self._recorded(completions)
        await self._handover.note(completions)  # before what comes after them is dispatched
        for command, _ in records:
            self._inbox.post(ev.Recorded(stage=command.stage, ranks=command.ranks))

    # -- certificates

    def _event(self, posted: Posted) -> Event:
        """Return what the scheduler is told: a loss is classified here."""
        if not isinstance(posted, Loss):
            if isinstance(posted, ev.GangClosed):
                self._gang_nodes.pop(posted.gang, None)
                if not posted.confirmed:
                    self.unconfirmed.append(posted.gang)
            if isinstance(posted, ev.GangPlaced | ev.GangReady):
                self._gang_nodes[posted.gang] = posted.nodes
            if isinstance(posted, ev.GangReady):
                self._nodes.update(dict.fromkeys(posted.nodes))
            return posted
        # Ray calls a node preempted only if it finds it dead after the deadline of its drain. The
        # pool never forgets a notice, so what it says of drains does not count.
        drain = self._drain_facts(posted.gang, posted.node) or {"node_draining": False}
        facts = {**posted.facts, **drain}
        if any(live.killed for live, _ in self._held_by(posted.gang)):
            facts["cancelled_by_us"] = True  # nobody judges it, but it is recorded
        fault = self._parts.classifier.classify(posted.error, facts)
        return ev.GangLost(gang=posted.gang, fault=fault, node=posted.node)

    def _held_by(self, gang: int) -> list[tuple[LiveAssignment, Ranks]]:
        """Return the assignments of a gang with the ranks that they still owe."""
        return [
            (live, self.scheduler.outstanding(number))
            for number, live in self._assignments.items()
            if live.command.gang == gang
        ]

    def _certify(
        self,
        event: Event,
        commands: Sequence[cmd.Command],
        lost: Sequence[tuple[LiveAssignment, Ranks]],
    ) -> None:
        """Have the certificate of a failure written that was just judged; a stale one was not."""
        if not self._verdicts:
            return
        verdicts, reason = self._verdicts, self.scheduler.reason
        if isinstance(event, ev.RankFailed):
            live = self._assignments[event.assignment]
            self.certifier.rank_failed(event, verdicts[-1], commands, live, reason)
        elif isinstance(event, ev.GangLost):
            self.certifier.gang_lost(event, verdicts, commands, lost, reason)

    def _forget(self, event: Event) -> None:
        """Drop what the event carried and nobody claimed: a report of ranks that were no longer
        outstanding."""
        if isinstance(event, ev.RanksSucceeded | ev.RankFailed | ev.RanksReturned):
            live = self._assignments.get(event.assignment)
            if live is not None:
                ranks = (
                    (range(event.rank, event.rank + 1),)
                    if isinstance(event, ev.RankFailed)
                    else event.ranks
                )
                self._partials.ended(event.assignment, ranks)
                for rank in (rank for piece in ranks for rank in piece):
                    live.outcomes.pop(rank, None)
                    live.targets.pop(rank, None)
                if not self.scheduler.outstanding(event.assignment) and not live.outcomes:
                    del self._assignments[event.assignment]
        elif isinstance(event, ev.GangLost):
            self._partials.gang_ended(event.gang)
        elif isinstance(event, ev.GangClosed):
            self._partials.gang_ended(event.gang)
            for number, live in list(self._assignments.items()):
                if live.command.gang == event.gang:
                    del self._assignments[number]

    # -- what others may ask

    async def _watch_drains(self, group: anyio.abc.TaskGroup) -> None:
        try:
            async for node, left_s in self._parts.leases.drains():
                # Known at once: reports are classified as they come, before the inbox is read.
                self._drains.draining(node, left_s, group)
                self._inbox.post(ev.NodeDraining(node=node, left_s=left_s))
        except Exception:  # drains are a hint: without them a lost node is still noticed
            logger.warning("no more drain notices in this run", exc_info=True)

    def cancel(self, reason: str, /, *, kill: bool) -> None:
        """Ask the scheduler to end the run. Only from the loop's own thread."""
        self._inbox.post(ev.CancelRequested(reason=reason, kill=kill))

    def outstanding(self, assignment: int, /) -> Ranks:
        """Return the ranks of an assignment that were not reported yet."""
        return self.scheduler.outstanding(assignment)

    def saw(self, gang: int, beat: Beat) -> None:
        """Note what runs and how far; what an assignment does not hold any more does not count."""
        for running in beat.running:
            live = self._assignments.get(running.assignment)
            if live is not None and live.command.gang == gang and self._holds(live, running.rank):
                live.seen[beat.node] = running
                self._partials.saw(live.command.stage, gang, beat.node, running)
        self._inbox.wake()  # to tell it

    async def beat(self, gang: int, /) -> Sequence[Beat]:
        """Ask the workers of a gang what they run now; nothing for a gang that is gone."""
        return await self._parts.workers.beat(gang)

    def dispatches(self) -> AsyncIterator[Dispatched]:
        """Yield every assignment from now on, as it is handed over. Slow readers miss some."""
        return self._feed.follow()

    def progress(self) -> tuple[StageProgress, ...]:
        """Return the counts of every stage."""
        return self._counts.progress()
