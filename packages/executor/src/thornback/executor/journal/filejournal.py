"""The journal in files: on a local folder or anything fsspec can write to.

The protocol is in `terms.py`, the bytes in `segments.py`; here it is driven: tasks, deadlines,
group commit, promotion.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Self, TypeVar

import anyio
import anyio.abc
import attrs

from thornback.executor.apart import apart
from thornback.executor.journal.beats import Beats
from thornback.executor.journal.errors import (
    HeldByAnother,
    IdentityMismatch,
    JournalError,
    NewerFormat,
    Superseded,
)
from thornback.executor.journal.group_commit import Entry, GroupCommit, again
from thornback.executor.journal.holder import Holder, certainly_gone, this_process
from thornback.executor.journal.identity import (
    CompareStages,
    Kept,
    OnMismatch,
    reconcile,
    stage_differences,
)
from thornback.executor.journal.ledger import StageRecords
from thornback.executor.journal.pending import settle
from thornback.executor.journal.promote import Mover
from thornback.executor.journal.promoter import Promoter, owed, patiently
from thornback.executor.journal.recorded import RecordedRun, read_run
from thornback.executor.journal.segments import digest, encode_record
from thornback.executor.journal.steps import AsyncSteps, RetryParams, Steps, call
from thornback.executor.journal.store import JournalStore, StorageOptions, open_store
from thornback.executor.journal.tenure import JournalParams, Tenure
from thornback.executor.journal.terms import (
    begin,
    clear,
    damage_text,
    elect,
    find_holder,
    load,
    refuse_if_damaged,
    watch,
)
from thornback.executor.paths import located_state
from thornback.executor.ports import Completion, Identity, Opened, Places
from thornback.faults import redact

__all__ = [
    "FileJournal",
    "HeldByAnother",
    "IdentityMismatch",
    "JournalError",
    "JournalParams",
    "NewerFormat",
    "RecordedRun",
    "Superseded",
    "read_run",
]

T = TypeVar("T")
logger = logging.getLogger(__name__)
_SLOW_PROTOCOLS = {"hf": 60.0}
"""Seconds between puts where a put is dear: Hugging Face makes a commit of each."""


class FileJournal:
    """The durable record of finished ranks under a URL (fulfils `ports.Journal`).

        async with FileJournal("s3://bucket/runs/clean") as journal:
            opened = await journal.open(identity, on_mismatch="refuse")
            await journal.commit([Completion(stage="clean", ranks=(range(0, 20),), state="done")])

    Guaranteed: what `commit` has returned for is read by every later `open` and `read_run`,
    whatever dies when, and also when two drivers meet. One driver holds a state at a time. Leaving
    the context closes the journal.

    Limits: on NFS a stale listing can hide another driver, and only the lock (where the server
    keeps locks) protects. A Hugging Face repository gets a commit per put: 60 s between puts, and a
    warning. Results that are kept are read into memory whole when a run starts and at compactions.
    A process that forks without exec hands its lock to the child.

    Args:
        url: a path or any URL that fsspec knows.
        storage_options: of its file system, as fsspec takes them; never logged or written. What
            ranks publish is promoted with them at the same host (or bucket), elsewhere without.
        promoter: called with the records of a flush when they are durable and their outputs are
            promoted, and before `commit` returns; again at the next `open` if this driver dies
            before it knows that they are promoted. Retried as long as the store is.
        keep_results: False: what ranks returned is recorded for the promoter alone, and may be
            forgotten when it is promoted, so that a state of many ranks stays small.
        anew: forget what the state holds, also of the same job.
        compare: tells how a stage differs from the recorded one of its name, for owners of a state
            whose stages are something else.
        params: time-outs and sizes.
        monotonic, sleep, time_ns: the clock, for tests.
    """

    def __init__(
        self,
        url: str,
        *,
        storage_options: StorageOptions | None = None,
        promoter: Promoter | None = None,
        keep_results: bool = True,
        anew: bool = False,
        compare: CompareStages = stage_differences,
        params: JournalParams | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
        time_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self.url = url
        self.params = params or JournalParams()
        self.damaged: tuple[str, ...] = ()
        """What was found torn, foreign or missing at `open`, each object with the reason. None is
        removed or overwritten; what is lost is run again.
        """
        self.differences: tuple[str, ...] = ()
        """How the job differs from that of the state, one sentence each: after an `open` that has
        adopted or forgotten its records all the same.
        """
        self._storage_options = storage_options
        self._places: Places | None = None
        self._promoter = promoter
        self._keep_results = keep_results
        self._anew = anew
        self._compare = compare
        self._monotonic = monotonic
        self._sleep = sleep
        self._time_ns = time_ns
        self._tasks: anyio.abc.TaskGroup | None = None
        self._opening = False
        self._released = False
        self._store: JournalStore | None = None
        self._steps: AsyncSteps | None = None
        self._beats: Beats | None = None
        self._group: GroupCommit | None = None
        self._tenure: Tenure | None = None
        self._ending = anyio.Lock()
        self._patience = RetryParams(timeout_s=self.params.record_timeout_s)
        # At open, what looks permanent is told at once; a full disk, say, may get room.
        self._firmness = RetryParams(timeout_s=self.params.record_timeout_s, patient=False)
        self._impatience = RetryParams(timeout_s=self.params.open_timeout_s, patient=False)

    async def __aenter__(self) -> Self:
        self._tasks = anyio.create_task_group()
        await self._tasks.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool | None:
        assert self._tasks is not None
        cancelled = isinstance(error, anyio.get_cancelled_exc_class())
        absorbed: bool | None = None
        try:
            if error is None:
                await self.close()
        finally:
            await self.end()
            self._tasks.cancel_scope.cancel()
            if cancelled:
                absorbed = await self._tasks.__aexit__(kind, error, trace)
            else:  # the body's own error must not come out wrapped in a group
                await self._tasks.__aexit__(None, None, None)
        return absorbed

    def place_outputs(self, places: Places, /) -> None:
        """Say where outputs may be, before `open`; else they are staged in this state, and those of
        an earlier run go to the folder around it or below the current one.
        """
        self._places = places

    async def open(self, identity: Identity, /, *, on_mismatch: OnMismatch) -> Opened:
        """Claim the next term and return what earlier ones have recorded.

        Takes `ttl_s` when the last driver did not close and may be alive elsewhere; else
        milliseconds.

        Args:
            identity: of the job.
            on_mismatch: when the state is that of another job: `refuse`; `adopt`: keep the records
                of ranks below the world size of stages with the same name; `fresh`: start with no
                record.

        Raises:
            HeldByAnother: another driver has this state.
            IdentityMismatch: with `refuse`.
            NewerFormat: a later version has written the state. Nothing of it was changed.
            JournalError: the store cannot be used, or an object in it cannot be read. Damaged
                objects are no error: see `damaged`.
        """
        if self._tasks is None:
            raise JournalError(
                "open the journal inside of `async with FileJournal(url) as journal:`"
            )
        if self._opening:
            raise JournalError("a journal is opened once: make another FileJournal")
        if on_mismatch not in ("refuse", "adopt", "fresh"):
            raise ValueError(f"on_mismatch is {on_mismatch!r}: expected refuse, adopt or fresh")
        self._opening = True
        try:
            return await self._open(identity, on_mismatch, self._tasks)
        except BaseException:
            await self.end()
            raise

    async def commit(self, records: Sequence[Completion], /) -> None:
        """Return when the records are durable and promoted.

        Concurrent commits share a flush. Cancelled: the records may be recorded all the same.

        Raises:
            ValueError: a record is malformed; nothing was written.
            Superseded: another driver has taken over. For ever after.
            JournalError: the store or the promoter failed for `record_timeout_s`, or an output is
                lost. For ever after.
        """
        group = self._opened()
        if not records:
            return
        lines = [encode_record(record) for record in records]
        outputs = [pair for record in records for pair in record.outputs]
        size = sum(len(line) for line in lines)
        await group.commit(Entry(lines=lines, records=records, outputs=outputs, size_bytes=size))

    async def results(self, stage: str, /) -> Mapping[int, str]:
        """Return the recorded results of a stage, JSON text by rank, ascending: read from the
        store, not kept.

        Raises:
            Superseded, JournalError: as `commit`; or results are not kept.
        """
        self._opened()
        if not self._keep_results:
            raise JournalError(f"{self.url}: what ranks returned is not kept")
        assert self._tenure is not None
        term = self._tenure.term
        stored = await self._run(load(self.url, lambda name: name == stage))
        if stored.term != term:
            raise Superseded(self.url, term, stored.term)
        refuse_if_damaged(self.url, stored)
        return stored.records.get(stage, StageRecords()).results

    async def close(self) -> None:
        """Flush what is pending, give the state back. Idempotent; bounded by `record_timeout_s`.

        Cancelled: leaving the context does the rest.
        """
        if self._group is not None:
            self._group.close()
            await self._group.finished.wait()
        await self.end()

    async def end(self) -> None:
        """Give the state back within about `close_timeout_s`, whatever is the matter: what is
        pending is flushed if that takes no longer. Idempotent, shielded from cancellation.
        """
        with anyio.CancelScope(shield=True):
            async with self._ending:
                if not self._released:
                    self._released = True
                    await self._release()

    async def _open(
        self, identity: Identity, on_mismatch: OnMismatch, tasks: anyio.abc.TaskGroup
    ) -> Opened:
        store = await self._connect()
        me = await self._lock(store)
        term = 1 + await self._run(
            watch(self.url, self.params.ttl_s, lambda other: certainly_gone(other, me)),
            self._impatience,
        )
        await self._run(elect(self.url, me, term), self._impatience)
        steps = self._new_steps(store, threads=1)  # its own thread: never behind a long flush
        self._beats = Beats(steps, me.id, term, self.params.ttl_s, self._flushed)
        await self._beats.first()
        tasks.start_soon(self._beats.run)
        tenure, kept = await self._begin(term, identity, on_mismatch)
        self._group = GroupCommit(
            tenure.flush,
            tenure.compact_if_due,
            min_interval_s=self._min_interval_s(store.protocol),
            max_bytes=self.params.max_segment_bytes,
        )
        tasks.start_soon(self._group.run)
        known = {s.name: kept.records[s.name] for s in identity.stages if s.name in kept.records}
        said = [damage_text(redact(self.url), self.damaged)] if self.damaged else []
        return Opened(
            term=term,
            done={name: records.done for name, records in known.items() if records.done},
            failed={name: records.failed for name, records in known.items() if records.failed},
            targets={name: records.targets for name, records in known.items() if records.targets},
            warnings=(*said, *kept.warnings),
            damaged=self.damaged,
        )

    async def _begin(
        self, term: int, identity: Identity, on_mismatch: OnMismatch
    ) -> tuple[Tenure, Kept]:
        """Take over what the state holds into a term that was won."""
        sha256 = digest(identity)
        keep, everything = self._keep_results, self._promoter is not None
        reading = load(
            self.url,
            lambda _: keep,
            owing=lambda record: everything or bool(record.outputs),
            # Version 1 does not say in a segment of which job it is.
            trusted=None if on_mismatch == "adopt" else frozenset({sha256, ""}),
        )
        stored = await self._run(reading, self._firmness)
        self.damaged = stored.damaged
        if self._anew:
            kept = Kept(identity=identity, records={})
        else:
            kept = reconcile(
                *(self.url, stored.identity, stored.records, identity, on_mismatch),
                compare=self._compare,
                strangers=stored.strangers,
            )
        self.differences = kept.differences
        assert self._steps is not None
        assert self._beats is not None
        places = self._places or _places_of(self.url)
        mover = Mover(state=places.state, storage_options=self._storage_options, term=term)
        retry = RetryParams(timeout_s=self.params.open_timeout_s)
        settled = await settle(
            self._steps,
            mover,
            places,
            kept.identity,
            kept.records,
            stored.unpromoted,
            retry,
        )
        records = {name: r.without(settled.void.get(name, ())) for name, r in kept.records.items()}
        kept = attrs.evolve(kept, records=records, warnings=(*kept.warnings, *settled.warnings()))
        sizes = {s.name: s.world_size for s in kept.identity.stages if s.name in kept.records}
        await self._promote(owed(settled.left(stored.unpromoted), sizes))
        steps = begin(term, kept.identity, kept.records, stored, sha256)
        size = await self._run(steps, self._firmness)
        self._tenure = Tenure(
            url=self.url,
            term=term,
            steps=self._steps,
            params=self.params,
            identity_sha256=sha256,
            mover=mover,
            promote=self._promote,
            base_bytes=size,
            keep_results=self._keep_results,
        )
        await self._beats.now()
        await self._run(clear(term, stored), self._firmness)
        return self._tenure, kept

    def _flushed(self) -> int:
        return self._tenure.flushed if self._tenure is not None else -1

    async def _promote(self, records: tuple[Completion, ...]) -> None:
        if self._promoter is not None and records:
            await patiently(
                f"{self.url}: cannot promote what is recorded",
                partial(self._promoter, records),
                self._patience,
                monotonic=self._monotonic,
                sleep=self._sleep,
            )

    async def _connect(self) -> JournalStore:
        with anyio.move_on_after(self.params.open_timeout_s):
            connect = partial(open_store, self.url, self._storage_options)
            self._store = await apart(connect, anyio.CapacityLimiter(1))
            self._steps = self._new_steps(self._store, threads=10)
            return self._store
        raise JournalError(f"{self.url}: no connection within {self.params.open_timeout_s:.0f} s")

    async def _lock(self, store: JournalStore) -> Holder:
        found: list[bool | None] = []
        await self._run(
            call("lock the state", lambda: found.append(store.lock())), self._impatience
        )
        if found[-1] is False:
            raise await self._run(find_holder(self.url, "it has the lock"), self._impatience)
        return this_process(self._time_ns(), locked=found[-1] is True)

    async def _release(self) -> None:
        if self._group is not None:
            self._group.close()
            with anyio.move_on_after(self.params.close_timeout_s):
                await self._group.finished.wait()
                if self._group.broken is None:
                    await self._sweep()
        if self._beats is not None:
            await self._beats.close(self._tenure.promoted if self._tenure is not None else 0)
        if self._steps is not None:
            self._steps.abandon()  # what still hangs must not keep the task group waiting
        if self._store is not None:
            self._store.unlock()

    async def _sweep(self) -> None:
        """Remove what unrecorded attempts have staged. Litter is no failure."""
        assert self._store is not None
        assert self._tenure is not None
        store, term = self._store, self._tenure.term
        retry = RetryParams(timeout_s=self.params.close_timeout_s, patient=False)
        try:
            await self._run(call("sweep staging/", lambda: store.sweep_staging(term)), retry)
        except JournalError as error:
            logger.warning("staged files are left over: %s", error)

    async def _run(self, steps: Steps[T], retry: RetryParams | None = None) -> T:
        assert self._steps is not None
        return await self._steps.run(steps, retry or self._patience)

    def _new_steps(self, store: JournalStore, threads: int) -> AsyncSteps:
        return AsyncSteps(store, monotonic=self._monotonic, sleep=self._sleep, threads=threads)

    def _opened(self) -> GroupCommit:
        if self._group is None:
            raise JournalError(f"{self.url}: the journal is not open")
        if self._group.broken is not None:
            raise again(self._group.broken)
        if self._released:
            raise JournalError(f"{self.url}: the journal is closed")
        return self._group

    def _min_interval_s(self, protocol: str) -> float:
        if self.params.min_interval_s is not None:
            return self.params.min_interval_s
        if protocol in _SLOW_PROTOCOLS:
            interval_s = _SLOW_PROTOCOLS[protocol]
            logger.warning(
                "%s: %s makes a commit of every write: the journal writes once in %.0f s",
                *(redact(self.url), protocol, interval_s),
            )
            return interval_s
        return 0.0 if protocol == "file" else 1.0


def _places_of(url: str) -> Places:
    folder = os.getcwd()
    return Places(state=located_state(url, folder), folder=folder)
