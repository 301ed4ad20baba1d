"""One worker, as its gang sees it: calls that survive a short cut, blobs sent once, logs,
and its end. Internal to the pool.

A call that could not reach the worker waits until the worker answers again, and is then repeated
(the worker knows a repeated `run` or `wait` by its assignment). The first caller that is cut off
probes, with growing delays, for one grace window; the others wait for what it finds. So a cut costs
one probe, however many calls are in flight.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence

import anyio
import attrs

from thornback.pool.clock import Expired, within
from thornback.pool.logbook import LogBook, has_more
from thornback.pool.poolparams import Surroundings
from thornback.pool.ports import Attribute, Beat, CaughtError, GangLostError, Worker, WorkerSpec
from thornback.pool.roster import Roster
from thornback.pool.telling import Telling

_LOG = logging.getLogger(__name__)
_ACKNOWLEDGING = ("run", "wait", "beat")


class BlobsFailed(Exception):
    """The driver's side could not give a blob: not the worker's fault. The reason is the
    `__cause__`."""


class Link:
    """The pool's side of one worker.

    Args:
        gang: the number of its gang.
        member: its number in the gang.
        node: where it is to run.
        surroundings: of the pool.
        roster: of the gang; told of every sign of life.
    """

    def __init__(
        self, gang: int, member: int, node: str, surroundings: Surroundings, roster: Roster
    ) -> None:
        self.member = member
        self.node = node
        self.killed = True
        """There is nothing to kill: no start is under way, or its death is confirmed."""
        self.beating = False
        """A heartbeat is under way."""
        self.beat_again = False
        """Something has happened since it was sent: another one is wanted."""
        self.address = ""
        """Where the other nodes reach it; empty: not known yet."""
        self._gang = gang
        self._logs = LogBook()
        self._parked: dict[int, None] = {}
        """Slots whose parking was logged."""
        self._log_dir = ""
        """Where it has logs that are wanted; empty: nothing is to be salvaged."""
        self._log_prefix = ""
        self._around = surroundings
        self._roster = roster
        self._worker: Worker | None = None
        self._loads: dict[str, anyio.Event] = {}
        self._acks: dict[int, None] = {}
        self._regaining: anyio.Event | None = None
        self._cut_off: BaseException | None = None

    async def start(self, nodes: int, handle: object, spec: WorkerSpec) -> None:
        """Start the worker and wait for its first sign of life.

        Raises:
            GangLostError: it did not come up, whatever the reason.
        """
        phase = "start"
        self._logs = LogBook(kept=spec.log_dir != "")
        try:
            self._worker = await self._begun(nodes, handle, spec)
            phase = "ping"
            beat = await self.call("beat", ((), self._offsets()))
            if isinstance(beat, Beat):
                self.address = beat.address
                self._log_dir = beat.log_dir if self._telling.wanted else ""
                self._log_prefix = beat.log_prefix
                self._tell(beat)
        except GangLostError:
            raise  # the backend has explained it already
        except Exception as error:
            # Whatever the backend raised is the reason why this worker did not come up.
            explained, facts = await self.explain(error)
            raise GangLostError(explained, self.node, phase, facts) from error
        self._roster.answered(self.member)

    async def _begun(self, nodes: int, handle: object, spec: WorkerSpec) -> Worker:
        """Return the worker. While its start, or the undoing of that, is under way, it may live."""
        self.killed = False
        try:
            return await self._around.backend.start(self.node, self.member, nodes, handle, spec)
        except BaseException:
            self.killed = True  # see `WorkerBackend.start`
            raise

    async def call(self, method: str, payload: object) -> object:
        """Call once. Raises whatever the backend raises."""
        return await self._started().call(method, payload)

    async def ask(self, method: str, payload: Callable[[tuple[int, ...]], object]) -> object:
        """Call until it is answered; `payload` gets the assignments to acknowledge.

        Raises:
            Exception: the worker is gone, or could not be reached for a grace window.
        """
        cuts, clock, since = 0, self._around.clock, 0.0
        while True:
            acks = tuple(self._acks)
            try:
                answer = await self.call(method, payload(acks))
            except Exception as error:
                steady = clock.monotonic() - since > self._around.params.grace_s
                cuts = 1 if steady else cuts + 1
                many = cuts > self._around.params.regains_per_call
                if many or not self._started().is_unavailable(error):
                    raise
                await self._regain(error)
                since = clock.monotonic()
                continue
            if method in _ACKNOWLEDGING:
                for assignment in acks:
                    self._acks.pop(assignment, None)
            self._roster.answered(self.member)
            return answer

    async def beat(self) -> bool:
        """Ask for a sign of life, and tell the observer. True: there are more logs to be had at
        once.

        Raises:
            Exception: as `ask`.
        """
        offsets = self._offsets()
        answer = await self.ask("beat", lambda acks: (acks, offsets))
        return isinstance(answer, Beat) and self._arrived(answer, offsets)

    async def fetch_rest(self) -> None:
        """After a close: fetch what is left of the logs, and let the worker know that it is here.

        Raises:
            Exception: as `call`.
        """
        while (offsets := self._offsets()) is not None:
            answer = await self.call("beat", ((), offsets))
            if not isinstance(answer, Beat):
                return
            self._arrived(answer, offsets)
            if offsets == self._offsets():
                self._log_dir = ""  # all has arrived, and the worker knows
                return

    def _offsets(self) -> dict[str, int] | None:
        return self._logs.offsets() if self._telling.wanted else None

    def _arrived(self, beat: Beat, offsets: Mapping[str, int] | None) -> bool:
        if offsets is not None:
            self._logs.acknowledged(offsets)
        self._tell(beat, offsets)
        return has_more(beat.logs)

    def _tell(self, beat: Beat, asked: Mapping[str, int] | None = None) -> None:
        for slot in beat.parked:
            if slot.slot in self._parked:
                continue
            self._parked[slot.slot] = None
            _LOG.warning(
                "slot %d of the worker on %s (gang %d) gets no more work, since its GPU (%s) "
                "failed: %s",
                slot.slot,
                self.node,
                self._gang,
                ", ".join(slot.gpus),
                slot.reason,
            )
        chunks = self._logs.entered(beat.logs, gang=self._gang, node=self.node, asked=asked)
        self._telling.beat(self._gang, attrs.evolve(beat, node=self.node, logs=()))
        self._telling.logs(chunks)

    def acknowledge(self, assignment: int) -> None:
        """Let the worker forget an assignment, with the next call that can say so."""
        self._acks[assignment] = None

    def has(self, keys: Sequence[str]) -> bool:
        """Whether the worker has all these blobs."""
        return all((done := self._loads.get(key)) is not None and done.is_set() for key in keys)

    async def load(self, keys: Sequence[str]) -> None:
        """Send the blobs that the worker does not have: each once, also when asked for at the same
        time.

        Raises:
            BlobsFailed: the driver's side could not give one.
            Exception: as `ask`.
        """
        for key in keys:
            while (pending := self._loads.get(key)) is not None and not pending.is_set():
                await pending.wait()
            if key not in self._loads:
                await self._load(key)

    async def _load(self, key: str) -> None:
        self._loads[key] = done = anyio.Event()
        loaded = False
        try:
            try:
                blob = await self._around.blobs(key)
            except Exception as error:
                raise BlobsFailed(key) from error
            await self.ask("load", lambda _: (key, blob))
            loaded = True
        finally:
            if not loaded:
                del self._loads[key]
            done.set()

    async def explain(
        self, error: BaseException
    ) -> tuple[CaughtError | BaseException, Mapping[str, Attribute]]:
        """Ask the backend about a death; bounded, never raises."""
        worker, around = self._worker, self._around
        if worker is None:
            return error, {}
        try:
            return await within(around.clock, around.params.death_s, lambda: worker.death(error))
        except Exception as failure:  # noqa: BLE001  # then the error speaks for itself
            _LOG.warning("no explanation for the death of a worker on %s: %r", self.node, failure)
            return error, {}

    async def end(self, timeout_s: float) -> None:
        """Kill the worker, and fetch what it had not sent of its logs. Bounded by `timeout_s` and
        `salvage_s`, idempotent, never raises."""
        await self.kill(timeout_s)
        worker, clock = self._worker, self._around.clock
        log_dir, prefix = self._log_dir, self._log_prefix
        if worker is None or not log_dir or not self.killed:
            return
        try:
            limit_s, offsets = self._around.params.salvage_s, self._logs.for_salvage()
            chunks = await within(clock, limit_s, lambda: worker.salvage(log_dir, prefix, offsets))
        except Exception as failure:  # noqa: BLE001  # then the logs end where they end
            _LOG.warning("the logs of a dead worker on %s are lost: %r", self.node, failure)
        else:
            self._telling.logs(self._logs.entered(chunks, gang=self._gang, node=self.node))
        self._log_dir = ""  # it is read once, and then it is gone

    async def kill(self, timeout_s: float) -> None:
        """Kill the worker; `killed` tells whether its death is confirmed. Bounded, idempotent,
        never raises."""
        worker = self._worker
        if self.killed or worker is None:
            return
        try:
            self.killed = await within(
                self._around.clock, timeout_s, lambda: worker.kill(timeout_s=timeout_s)
            )
        except Exception as failure:  # noqa: BLE001  # answered by `killed`
            _LOG.warning("the kill of a worker on %s failed: %r", self.node, failure)

    async def _regain(self, error: BaseException) -> None:
        """Return when the worker answers again; raise when it does not within the grace window."""
        if self._cut_off is None and self._regaining is None:
            await self._probe_for_all(error)
        elif self._regaining is not None:
            await self._regaining.wait()
        if self._cut_off is not None:
            raise self._cut_off

    async def _probe_for_all(self, error: BaseException) -> None:
        self._regaining = found = anyio.Event()
        self._roster.unavailable(self.member)
        try:
            await within(self._around.clock, self._around.params.grace_s, self._probe)
        except Expired:
            self._cut_off = error
        except Exception as death:  # noqa: BLE001  # raised by everybody who waits for it
            self._cut_off = death
        finally:
            self._regaining = None
            found.set()

    async def _probe(self) -> None:
        delay_s = self._around.params.probe_first_s
        while True:
            await self._around.clock.sleep(delay_s)
            try:
                await self.call("beat", ((), None))
            except Exception as error:
                if not self._started().is_unavailable(error):
                    raise
            else:
                self._roster.answered(self.member)
                return
            delay_s = min(2 * delay_s, self._around.params.probe_most_s)

    @property
    def _telling(self) -> Telling:
        return self._around.telling

    def _started(self) -> Worker:
        assert self._worker is not None, "nothing is asked of a worker that was not started"
        return self._worker


async def everywhere(links: Sequence[Link], call: Callable[[Link], Awaitable[object]]) -> None:
    """Do it for all workers at once. The first failure cancels the rest, and is raised."""
    if len(links) == 1:
        await call(links[0])
        return
    failures: list[Exception] = []
    async with anyio.create_task_group() as group:

        async def attempt(link: Link) -> None:
            try:
                await call(link)
            except Exception as error:  # noqa: BLE001  # raised below, outside of the group
                failures.append(error)
                group.cancel_scope.cancel()

        for link in links:
            group.start_soon(attempt, link)
    if failures:
        raise failures[0]
