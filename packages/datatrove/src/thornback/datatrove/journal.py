"""The journal of a chain of pipelines: one journal of files per stage, each in its logging_dir."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Literal, Self

import anyio
import attrs

from thornback.datatrove.stagejournal import (
    PIPELINE,
    Decode,
    PipelineState,
    StageJournal,
    state_url,
    storage_options,
)
from thornback.executor import JournalError, Superseded, UsageError
from thornback.executor.journal.filejournal import JournalParams
from thornback.executor.journal.group_commit import again
from thornback.executor.journal.segments import encode_record
from thornback.executor.ports import Completion, Identity, Opened, Places, Ranks

__all__ = ["PipelineJournals", "PipelineState", "state_url", "storage_options"]


class PipelineJournals:
    """The durable record of the stages of a job (fulfils `thornback.executor.ports.Journal`).

        async with PipelineJournals(states, root="count") as journal:
            opened = await journal.open(identity, on_mismatch="refuse")

    Guaranteed: what `commit` has returned for is recorded in the logging_dir of its stage, and the
    stats and the marker of every rank that is done are there, in this order; whatever dies when.
    One driver holds a logging_dir at a time. Leaving the context closes all of them.

    Args:
        states: of the stages.
        root: the stage whose term is the run's.
        decode: makes the text of a stats file of a rank's result; None: as our ranks encode it.
        keep_results: keep what ranks returned, for `results`. Pipelines have it in `stats/`, and a
            hundred thousand of them would take most of a gigabyte at each start.
        params: time-outs and sizes of each journal.
        monotonic, sleep: the clock, for tests.

    Raises:
        UsageError: two stages have one logging_dir, or its file system cannot be opened again.
        ValueError: `root` is none of the stages, or two have the same name.
    """

    def __init__(
        self,
        states: Sequence[PipelineState],
        *,
        root: str,
        decode: Decode | None = None,
        keep_results: bool = False,
        params: JournalParams | None = None,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
    ) -> None:
        self._stages = {
            state.stage: StageJournal(
                state,
                decode=decode,
                keep_results=keep_results,
                params=params or JournalParams(),
                monotonic=monotonic,
                sleep=sleep,
            )
            for state in states
        }
        if len(self._stages) < len(states) or root not in self._stages:
            names = [state.stage for state in states]
            raise ValueError(f"stages are {names}: expected different names, and {root!r} in them")
        _refuse_shared([*self._stages.values()])
        self._root = root
        self._contexts: AsyncExitStack | None = None
        self._status: Literal["new", "open", "closed"] = "new"
        self._broken: JournalError | None = None

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            for stage in self._stages.values():
                await stack.enter_async_context(stage.native)
            stack.push_async_exit(self._leave)
            self._contexts = stack.pop_all()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool | None:
        assert self._contexts is not None
        return await self._contexts.__aexit__(kind, error, trace)

    def place_outputs(self, places: Places, /) -> None:
        """Say where outputs may be, before `open`: see `thornback.executor.ports.PlacesOutputs`."""
        for stage in self._stages.values():
            stage.native.place_outputs(places)

    async def open(
        self, identity: Identity, /, *, on_mismatch: Literal["refuse", "adopt", "fresh"]
    ) -> Opened:
        """Claim all logging_dirs, and return what is done and what has failed.

        The first is claimed alone: of two drivers of the same chain one gives way there, and the
        other has all. The rest are claimed at the same time, since each that a driver left behind
        when it died may have to be watched for half a minute.

        Files that belong to records of a driver that died are there when this returns; with
        `skip_completed=False`, no markers are.

        Args:
            identity: of the job. Only the names of its stages count: what a logging_dir is
                compared with, and what follows from a difference, is said by each state.
            on_mismatch: see above.

        Raises:
            PipelineMismatch: a logging_dir is another pipeline's, and its state refuses that.
            LoggingDirInUse: another driver has one of them.
            JournalError: one cannot be read or claimed.

        Cancellation: nothing is held.
        """
        if on_mismatch not in ("refuse", "adopt", "fresh"):
            raise ValueError(f"on_mismatch is {on_mismatch!r}: expected refuse, adopt or fresh")
        if self._contexts is None:
            raise JournalError("open the journal inside of `async with PipelineJournals(...)`")
        if self._status != "new":
            raise JournalError("a journal is opened once: make another PipelineJournals")
        names = [stage.name for stage in identity.stages]
        if sorted(names) != sorted(self._stages):
            raise ValueError(f"stages of the job are {names}: expected {list(self._stages)}")
        self._status = "closed"  # until it is open
        done: dict[str, Ranks] = {}
        failed: dict[str, Ranks] = {}
        terms: dict[str, int] = {}
        errors: list[Exception] = []

        async def claim(name: str, scope: anyio.CancelScope) -> None:
            try:
                opened = await self._stages[name].open()
                terms[name], done[name], failed[name] = opened
            except Exception as error:  # noqa: BLE001  # to be raised as it is, not in a group
                errors.append(error)
                scope.cancel()

        try:
            first, *rest = self._stages
            for names in ([first], rest):
                async with anyio.create_task_group() as tasks:
                    for name in names:
                        tasks.start_soon(claim, name, tasks.cancel_scope)
                if errors:
                    raise errors[0]
        except BaseException:
            await self._end()
            raise
        self._status = "open"
        return Opened(
            term=terms[self._root],
            done={name: ranks for name, ranks in done.items() if ranks},
            failed={name: ranks for name, ranks in failed.items() if ranks},
        )

    async def commit(self, records: Sequence[Completion], /) -> None:
        """Return when the records are durable, and stats and markers of ranks that are done are
        written. Those of different stages go to their logging_dirs at the same time.

        Raises:
            ValueError: a record is malformed, or of no stage of these; nothing was written.
            Superseded: another driver has taken a logging_dir over. For ever after.
            JournalError: a file system failed for `record_timeout_s`. For ever after.

        Cancellation: the records may be recorded all the same.
        """
        self._check_open()
        by_stage: dict[str, list[Completion]] = {}
        for record in records:
            if record.stage not in self._stages:
                raise ValueError(f"no stage {record.stage!r}: expected one of {[*self._stages]}")
            by_stage.setdefault(record.stage, []).append(attrs.evolve(record, stage=PIPELINE))
        if len(by_stage) > 1:  # one is refused as a whole; of several none must be written first
            for record in records:
                encode_record(record)
        errors: list[JournalError] = []

        async def one(stage: str) -> None:
            try:
                await self._stages[stage].native.commit(by_stage[stage])
            except JournalError as error:
                errors.append(error)

        if len(by_stage) == 1:
            await one(*by_stage)  # without a group, which would wrap what else it raises
        else:
            async with anyio.create_task_group() as tasks:
                for stage in by_stage:
                    tasks.start_soon(one, stage)
        if errors:
            errors.sort(key=lambda error: not isinstance(error, Superseded))
            self._broken = self._broken or errors[0]
            raise errors[0]

    async def results(self, stage: str, /) -> Mapping[int, str]:
        """Return the recorded results of a stage: JSON text by rank, ascending.

        Of a rank that was run again since its marker was removed, the first: its stats file has
        the last.

        Raises:
            Superseded, JournalError: as `commit`; there is no such stage, or they are not kept.
        """
        self._check_open()
        if stage not in self._stages:
            raise JournalError(f"no stage {stage!r}: expected one of {[*self._stages]}")
        return await self._stages[stage].native.results(PIPELINE)

    async def close(self) -> None:
        """Flush what is pending, give the logging_dirs back, all at the same time. Idempotent;
        bounded by `record_timeout_s`.

        Cancelled: leaving the context does the rest.
        """
        self._status = "closed"
        async with anyio.create_task_group() as tasks:
            for stage in self._stages.values():
                tasks.start_soon(stage.native.close)

    async def _leave(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close before the contexts do, which are left one after the other: time-outs would add
        up."""
        if error is None:
            await self.close()
        else:
            await self._end()

    async def _end(self) -> None:
        self._status = "closed"
        with anyio.CancelScope(shield=True):
            async with anyio.create_task_group() as tasks:
                for stage in self._stages.values():
                    tasks.start_soon(stage.native.end)

    def _check_open(self) -> None:
        if self._broken is not None:
            raise again(self._broken)
        if self._status != "open":
            raise JournalError(
                f"the journal is {'closed' if self._status == 'closed' else 'not open'}"
            )


def _refuse_shared(stages: Sequence[StageJournal]) -> None:
    by_url: dict[str, str] = {}
    for stage in stages:
        name = by_url.setdefault(stage.url, stage.state.stage)
        if name != stage.state.stage:
            raise UsageError(
                f"{name!r} and {stage.state.stage!r} have the same logging_dir, "
                f"{stage.state.folder.path!r}, and so the same completions: give each its own"
            )
