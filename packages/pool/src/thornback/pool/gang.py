"""One gang's traffic: starts its workers, hands them work, and carries out what the roster says.
Internal to the pool.

All tasks of a gang live in one task group (`_tend`), which ends when the gang is lost or closed:
nothing outlives it. Per worker one `watch` call is always pending: its failure is the notice of
death.

Over 400 lines, and not split: its tasks share the state of one gang, and nothing else does.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import assert_never

import anyio
import attrs
from anyio.abc import TaskGroup, TaskStatus

from thornback.pool import losses, rendezvous
from thornback.pool.clock import Expired, Flag, within
from thornback.pool.link import BlobsFailed, Link, everywhere
from thornback.pool.members import MemberState
from thornback.pool.poolparams import Surroundings
from thornback.pool.ports import Assignment, Beat, CaughtError, GangLostError, Report, WorkerSpec
from thornback.pool.reports import Reports, copy_of
from thornback.pool.roster import Deliver, GangGone, Grace, Instruction, KillRank, Roster
from thornback.pool.severity import Loss

_LOG = logging.getLogger(__name__)


@attrs.define(slots=True, eq=False)
class _Work:
    """An assignment under way."""

    assignment: Assignment
    reports: Reports
    ended: Flag = attrs.field(factory=Flag)
    issued: tuple[Flag, ...] = ()
    """By member: its `run` has been called, so that a recall finds something to recall. Empty: not
    sent."""
    recalled: bool = False


class _MemberDown(Exception):
    """This worker is dead or about to be declared so: whoever asks it stops here. Never leaves the
    gang."""


class Gang:
    """The workers of one gang, from `open` to `close`."""

    def __init__(
        self,
        gang: int,
        nodes: Sequence[str],
        handle: object,
        spec: WorkerSpec,
        surroundings: Surroundings,
    ) -> None:
        self.settled = anyio.Event()
        """Lost or closed."""
        self.loss: GangLostError | None = None
        self._gang = gang
        self._handle = handle
        self._spec = spec
        self._telling = surroundings.telling
        self._params = surroundings.params
        self._clock = surroundings.clock
        self._roster = Roster(
            nodes,
            silence_s=self._params.silence_s,
            max_tick_s=1.5 * self._params.beat_every_s,
        )
        self._links = [
            Link(gang, member, node, surroundings, self._roster)
            for member, node in enumerate(nodes)
        ]
        self._dying: dict[int, None] = {}
        self._draining: set[str] = set()
        """Nodes of which there was a notice."""
        self._work: dict[int, _Work] = {}
        self._tasks: TaskGroup | None = None
        self._opening = anyio.CancelScope()
        self._idle = anyio.Event()
        """Neither `open` nor `_tend` is under way."""
        self._burying = anyio.Lock()
        self._closed = False

    @property
    def size(self) -> int:
        """How many workers it has."""
        return len(self._links)

    async def open(self, group: TaskGroup, timeout_s: float) -> None:
        """Start all workers, wait until each has answered, and tend them in `group` from then on.

        Raises:
            GangLostError: a worker did not come up in time, or the gang was closed; no worker is
            left running.
        """
        opened = False
        try:
            with self._opening:
                await within(self._clock, timeout_s, self._start_all)
                await group.start(self._tend)
                opened = True
            if not opened:
                raise losses.closed(self._gang)
        except Expired:
            states = map(self._roster.state, range(len(self._links)))
            slow = [
                link.node
                for link, state in zip(self._links, states, strict=True)
                if state is MemberState.STARTING
            ]
            error = losses.start_timed_out(
                slow, len(self._links), timeout_s, self._spec.runtime_env
            )
            self._lose(Loss(error=error, node=slow[0] if slow else None, phase="start"))
            raise self.lost() from None
        except GangLostError as error:
            self._lose(
                Loss(error=error.error, node=error.node, phase=error.phase, facts=error.facts)
            )
            raise
        finally:
            if not opened:
                with anyio.CancelScope(shield=True):
                    await self._bury(self._params.kill_s)
                self._idle.set()

    async def _start_all(self) -> None:
        nodes = len(self._links)
        await everywhere(self._links, lambda link: link.start(nodes, self._handle, self._spec))

    async def _tend(self, *, task_status: TaskStatus[None]) -> None:
        """Live the life of an open gang; when it is lost, end its workers."""
        try:
            async with anyio.create_task_group() as tasks:
                self._tasks = tasks
                try:
                    for link in self._links:
                        self._spawn(partial(self._watch, link))
                    task_status.started()
                    await anyio.sleep_forever()
                finally:
                    self._tasks = None  # here, where the group still takes tasks
        finally:
            with anyio.CancelScope(shield=True):
                if self.loss is not None:
                    await self._bury(self._params.kill_s)
            self._idle.set()

    async def close(self, *, kill: bool, timeout_s: float) -> bool:
        """End the workers, whatever they do. Shielded, bounded, idempotent, never raises. True: all
        confirmed dead."""
        with anyio.CancelScope(shield=True):
            graceful = not kill and not self._closed and self._tasks is not None
            self._closed = True
            self._fail_all(losses.closed(self._gang))
            self.settled.set()
            self._opening.cancel()
            if self._tasks is not None:
                self._tasks.cancel_scope.cancel()
            try:
                await within(self._clock, timeout_s, partial(self._end_all, graceful, timeout_s))
            except Exception as failure:  # noqa: BLE001  # answered by False
                _LOG.warning("gang %d is not closed cleanly: %r", self._gang, failure)
        return all(link.killed for link in self._links)

    async def _end_all(self, graceful: bool, timeout_s: float) -> None:
        if graceful:
            close = partial(self._close_in_order, timeout_s / 2)
            with contextlib.suppress(Expired):  # the kill below does not need its consent
                await within(
                    self._clock, 3 * timeout_s / 4, partial(everywhere, self._links, close)
                )
        with contextlib.suppress(Expired):  # a task of ours may sit in a shielded read of a blob
            await within(self._clock, timeout_s / 8, self._idle.wait)
        await self._bury(timeout_s)

    async def _close_in_order(self, teardown_s: float, link: Link) -> None:
        try:
            await link.call("close", teardown_s)
            await link.fetch_rest()
        except Exception as failure:  # noqa: BLE001  # the kill does not need its consent
            _LOG.debug("a worker on %s did not close by itself: %r", link.node, failure)

    async def _bury(self, timeout_s: float) -> None:
        async with self._burying, anyio.create_task_group() as group:
            for link in self._links:
                group.start_soon(link.end, timeout_s)

    def run(self, assignment: Assignment) -> Reports:
        """Hand out an assignment; the reports come as the workers send them.

        Raises:
            ValueError: see `Roster.assigned`; or its rendezvous is not known.
        """
        rendezvous.checked(assignment.rendezvous)
        reports = Reports()
        if self.loss is not None:
            reports.fail(self.lost())
        elif self._closed:
            reports.fail(losses.closed(self._gang))
        elif self._tasks is None:
            reports.fail(losses.not_open(self._gang))
        else:
            accepted = self._roster.assigned(
                assignment.assignment,
                assignment.ranks,
                finished_when=assignment.finished_when,
            )
            work = self._work[assignment.assignment] = _Work(assignment, reports)
            if accepted and self._ready(assignment):
                self._launch(work, (assignment,))
            elif accepted:
                self._spawn(partial(self._drive, work))
        return reports

    def _ready(self, assignment: Assignment) -> bool:
        """Whether it can be sent as it is, at once: the usual case, which is worth a task less."""
        if rendezvous.needs_port(assignment, len(self._links)):
            return False
        return self._links[0].has((assignment.program, *assignment.inputs))

    async def _drive(self, work: _Work) -> None:
        """Load what is missing, everywhere; let the nodes meet; then run, everywhere."""
        assignment = work.assignment
        number = assignment.assignment
        keys = (assignment.program, *assignment.inputs)
        try:
            await everywhere(
                self._links, lambda link: self._of(link, partial(link.load, keys), "run")
            )
            shares = await self._shares(assignment)
        except BlobsFailed as error:
            self._roster.withdrawn(number)
            self._end(number)
            work.reports.fail(error.__cause__ or error)
            return
        except _MemberDown:
            work.recalled = True
        if work.recalled:
            for link in self._links:
                self._apply(self._roster.reported(link.member, number, Report(final=True)))
            return
        self._launch(work, shares)

    def _launch(self, work: _Work, shares: Sequence[Assignment]) -> None:
        work.issued = tuple(Flag() for _ in self._links)
        for link, share in zip(self._links, shares, strict=True):
            self._spawn(partial(self._run, link, work, share))

    async def _shares(self, assignment: Assignment) -> Sequence[Assignment]:
        """Return what each member is to run: the same, but for how the nodes find each other."""
        if not rendezvous.needs_port(assignment, len(self._links)):
            return (assignment,)
        leader = self._links[0]
        port = await self._ask(leader, "port", lambda _: None)
        if not isinstance(port, int):
            await self._declare_dead(leader, losses.no_port(port), "run")
            raise _MemberDown
        addresses = [link.address for link in self._links]
        return rendezvous.for_members(assignment, addresses, port, theirs=self._spec.env)

    async def _run(self, link: Link, work: _Work, assignment: Assignment) -> None:
        number = assignment.assignment

        def payload(acks: tuple[int, ...]) -> object:
            work.issued[link.member].set()
            return (assignment, acks)

        seen, first = 0, True
        report = await self._ask(link, "run", payload)
        while isinstance(report, Report) and not report.final:
            version = report.checkpoint.version if report.checkpoint is not None else 0
            if version <= seen and not first:
                break  # no news, though `wait` is for news: it would be asked in a circle
            self._reported(link, number, report)
            seen, first = max(seen, version), False
            report = await self._ask(link, "wait", partial(_wait_payload, number, seen))
        if not isinstance(report, Report) or not report.final:
            await self._declare_dead(link, losses.misbehaved(number, report), "run")
            return
        link.acknowledge(number)
        self._reported(link, number, report)

    def _reported(self, link: Link, number: int, report: Report) -> None:
        self._apply(self._roster.reported(link.member, number, report))
        if self._telling.wanted and not all(outcome.ok for outcome in report.outcomes):
            self._fetch_logs(link)  # that of a rank that failed is wanted at once

    def recall(self, number: int, *, kill: bool) -> None:
        """Hasten the end of an assignment. Unknown or ended: a no-op."""
        work = self._work.get(number)
        if work is None or self._tasks is None:
            return
        for link in self._links:
            self._recall_from(link, work, kill)

    def _recall_from(self, link: Link, work: _Work, kill: bool, vouch: bool = False) -> None:
        if work.issued:
            self._spawn(partial(self._recall, link, work, kill, vouch))
        else:
            work.recalled = True

    async def _recall(self, link: Link, work: _Work, kill: bool, vouch: bool) -> None:
        number, params = work.assignment.assignment, self._params
        ask = partial(self._ask, link, "recall", lambda _: (number, kill))
        await work.issued[link.member].wait()
        if not kill:
            await ask()
            return
        # Who is cut off or silent is found out sooner; who just ignores it holds up a verdict.
        limit_s = params.silence_s + params.recall_s
        try:
            await within(self._clock, limit_s, ask)
        except Expired:
            error = losses.recall_timed_out(number, limit_s)
            await self._declare_dead(link, error, "recall")
            return
        if vouch:
            self._apply(self._roster.vouched(link.member, number))
        limit_s = params.recall_s
        try:
            await within(self._clock, limit_s, work.ended.wait)
        except Expired:
            if self._roster.owes(link.member, number):
                error = losses.recall_timed_out(number, limit_s)
                await self._declare_dead(link, error, "recall")

    def pulse(self) -> None:
        """Ask every worker that has none pending for a heartbeat; end those that are silent for too
        long."""
        if self._tasks is None:
            return
        limit_s = self._params.silence_s
        for member in self._roster.ticked(self._clock.monotonic()):
            error = losses.silent(limit_s)
            self._spawn(partial(self._declare_dead, self._links[member], error, "heartbeat"))
        for link in self._links:
            if not link.beating and self._roster.state(link.member) is MemberState.ALIVE:
                self._start_beat(link)

    def _fetch_logs(self, link: Link) -> None:
        """Ask for a heartbeat that is sent after this call."""
        if link.beating:
            link.beat_again = True
        else:
            self._start_beat(link)

    def _start_beat(self, link: Link) -> None:
        if self._tasks is not None:
            link.beating = True
            self._spawn(partial(self._beat, link))

    async def _beat(self, link: Link) -> None:
        answers: list[bool] = []

        async def beat() -> None:
            link.beat_again = False
            answers.append(await link.beat())

        try:
            while True:
                await self._of(link, beat, "heartbeat")
                more = answers[-1] and len(answers) < self._params.beats_in_a_row
                if not more and not link.beat_again:
                    return
        finally:
            link.beating = False

    async def drain(self, node: str, left_s: float | None) -> None:
        """Tell the workers on a node that it goes away, and keep it in mind for when one of them
        dies. Bounded, never raises."""
        self._draining.add(node)

        async def tell(link: Link) -> None:
            ask = partial(link.ask, "drain", lambda _: left_s)
            try:
                await within(self._clock, self._params.ask_s, ask)
            except Exception as failure:  # noqa: BLE001  # a notice; `watch` tells of deaths
                _LOG.debug("gang %d was not told of a drain: %r", self._gang, failure)

        if self._tasks is not None:
            await everywhere([link for link in self._links if link.node == node], tell)

    async def beats(self) -> tuple[Beat, ...]:
        """Return a heartbeat of each worker that answers within `ask_s`, in the order of the
        nodes."""
        found: dict[int, Beat] = {}

        async def ask(link: Link) -> None:
            try:
                beat = await within(
                    self._clock, self._params.ask_s, partial(link.call, "beat", ((), None))
                )
            except Exception:  # noqa: BLE001  # left out; `watch` tells of deaths
                return
            if isinstance(beat, Beat):
                self._roster.answered(link.member)
                found[link.member] = attrs.evolve(beat, node=link.node)

        if self._tasks is not None:
            await everywhere(self._links, ask)
        return tuple(found[member] for member in sorted(found))

    async def _watch(self, link: Link) -> None:
        why = await self._ask(link, "watch", lambda _: None)
        error = why if isinstance(why, CaughtError) else losses.ended()
        await self._declare_dead(link, error, "run")

    async def _end_grace(self, work: _Work) -> None:
        try:
            await within(self._clock, work.assignment.grace_s, work.ended.wait)
        except Expired:
            self._apply(self._roster.grace_over(work.assignment.assignment))

    def lost(self) -> GangLostError:
        """Return the loss, as a new exception."""
        return copy_of(self.loss or losses.closed(self._gang))

    def _spawn(self, call: Callable[[], Awaitable[None]]) -> None:
        if self._tasks is not None:
            self._tasks.start_soon(self._guarded, call)

    async def _guarded(self, call: Callable[[], Awaitable[None]]) -> None:
        try:
            await call()
        except _MemberDown:
            pass
        except Exception as error:  # noqa: BLE001  # it costs one gang only
            _LOG.exception("gang %d failed by an error of the pool", self._gang)
            self._lose(Loss(error=error))

    async def _ask(
        self,
        link: Link,
        method: str,
        payload: Callable[[tuple[int, ...]], object],
        phase: str = "run",
    ) -> object:
        try:
            return await link.ask(method, payload)
        except Exception as error:
            # Whatever a backend raises from a call means that the worker is gone (`Worker.call`).
            await self._declare_dead(link, error, phase)
            raise _MemberDown from error

    async def _of(self, link: Link, call: Callable[[], Awaitable[None]], phase: str) -> None:
        """Do something with a worker, like `_ask`; what the driver's side failed of is not its
        fault."""
        try:
            await call()
        except BlobsFailed:
            raise
        except Exception as error:
            await self._declare_dead(link, error, phase)
            raise _MemberDown from error

    async def _declare_dead(
        self, link: Link, error: CaughtError | BaseException, phase: str
    ) -> None:
        """Explain, kill (it may be alive, out of our reach), and only then tell the roster. Once
        per worker."""
        if link.member in self._dying:
            return
        self._dying[link.member] = None
        told = anyio.Event()

        async def end() -> None:
            try:
                await self._end_of(link, error, phase)
            finally:
                told.set()

        self._spawn(end)  # of the gang: the caller may be cancelled by a sibling's failure
        await told.wait()

    async def _end_of(self, link: Link, error: CaughtError | BaseException, phase: str) -> None:
        seen = GangLostError(error, link.node, phase) if isinstance(error, CaughtError) else error
        explained, facts = await link.explain(seen)
        if isinstance(error, CaughtError):
            explained = error
        if link.node in self._draining:
            facts = {"node_draining": True, **facts}
        await link.kill(self._params.kill_s)
        loss = Loss(error=explained, node=link.node, phase=phase, facts=facts)
        self._apply(self._roster.died(link.member, loss))

    def _apply(self, instructions: Sequence[Instruction]) -> None:
        for instruction in instructions:
            match instruction:
                case Deliver(assignment=number, report=report):
                    if (work := self._work.get(number)) is not None:
                        work.reports.push(report)
                    if report.final:
                        self._end(number)
                case Grace(assignment=number):
                    if (work := self._work.get(number)) is not None:
                        self._spawn(partial(self._end_grace, work))
                case KillRank(member=member, assignment=number, vouch=vouch):
                    if (work := self._work.get(number)) is not None:
                        self._recall_from(self._links[member], work, True, vouch)
                case GangGone(loss=loss):
                    self._lose(loss)
                case _:
                    assert_never(instruction)

    def _end(self, number: int) -> None:
        work = self._work.pop(number, None)
        if work is not None:
            work.ended.set()

    def _lose(self, loss: Loss) -> None:
        """The gang is lost: say so to everybody, once."""
        if self.loss is not None or self._closed:
            return
        self.loss = GangLostError(loss.error, loss.node, loss.phase, loss.facts)
        self._fail_all(self.loss)
        self.settled.set()
        if self._tasks is not None:
            self._tasks.cancel_scope.cancel()

    def _fail_all(self, error: GangLostError) -> None:
        for work in self._work.values():
            work.reports.fail(error)
        self._work.clear()


def _wait_payload(number: int, seen: int, acks: tuple[int, ...]) -> object:
    return (number, acks, seen)
