"""A journal in memory, and the checks that every journal has to pass.

`check_journal(make, folder)` is run against `FakeJournal` and `FileJournal` alike, so that a test
with the fake says something about the real one. Needs no test framework: a failed check is an
`AssertionError`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from types import TracebackType
from typing import Literal, Self, TypeAlias, TypeVar

import anyio
import anyio.lowlevel
import attrs

from thornback.executor.journal.errors import (
    HeldByAnother,
    IdentityMismatch,
    JournalError,
    Superseded,
)
from thornback.executor.journal.identity import reconcile
from thornback.executor.journal.ledger import Ledger, StageRecords, normalise
from thornback.executor.journal.promote import Mover
from thornback.executor.journal.segments import encode_record, merged
from thornback.executor.paths import STAGING
from thornback.executor.ports import (
    Completion,
    Identity,
    Journal,
    Json,
    Opened,
    Places,
    PlacesOutputs,
    StageIdentity,
)

__all__ = [
    "FakeJournal",
    "FakeState",
    "MakeJournal",
    "check_journal",
    "done",
    "failed",
    "job",
]

E = TypeVar("E", bound=Exception)
MakeJournal: TypeAlias = Callable[[str], AbstractAsyncContextManager[Journal]]
"""Gives a new journal over the state of that name; a new name is an empty state."""


@attrs.define(slots=True, eq=False)
class FakeState:
    """What outlives a `FakeJournal`: give the same one to the next."""

    term: int = 0
    """How many journals have held it."""
    identity: Identity | None = None
    """Of the last job; None: there was none."""
    records: list[Completion] = attrs.field(factory=list)
    """Oldest first."""
    holder: FakeJournal | None = None
    """The journal that is open."""


class FakeJournal:
    """A journal without files (fulfils `thornback.executor.ports.Journal`).

    Local outputs are really promoted. Leaving its context closes it.

    Args:
        state: shared by the journals of one state.
        failing: called before every commit; a `JournalError` that it raises is what `commit`
            raises, for ever after.
    """

    def __init__(
        self, state: FakeState | None = None, failing: Callable[[], None] | None = None
    ) -> None:
        self.state = state or FakeState()
        """What it writes to."""
        self._failing = failing or (lambda: None)
        self._broken: JournalError | None = None
        self._staging: str | None = None
        self._status: Literal["new", "open", "closed"] = "new"
        self._term = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    def place_outputs(self, places: Places, /) -> None:
        """Say below which state outputs are staged; else any will do."""
        self._staging = places.state

    async def open(
        self, identity: Identity, /, *, on_mismatch: Literal["refuse", "adopt", "fresh"]
    ) -> Opened:
        """Take the state.

        Raises:
            HeldByAnother: another journal has it.
            IdentityMismatch: it is of another job, and `on_mismatch` is `refuse`.
            JournalError: this journal was opened before.
        """
        await anyio.lowlevel.checkpoint()
        state = self.state
        if self._status != "new":
            raise JournalError("a journal is opened once: make another FakeJournal")
        if on_mismatch not in ("refuse", "adopt", "fresh"):
            raise ValueError(f"on_mismatch is {on_mismatch!r}: expected refuse, adopt or fresh")
        self._status = "closed"
        if state.holder is not None:
            raise HeldByAnother("fake", "here", 0, "", "it is open")
        state.term += 1
        kept = reconcile("fake", state.identity, self._read(), identity, on_mismatch)
        state.identity, state.holder = kept.identity, self
        self._term, self._status = state.term, "open"
        state.records = [r for name in kept.records for r in merged(name, kept.records[name])]
        names = [stage.name for stage in identity.stages if stage.name in kept.records]
        known = {name: kept.records[name] for name in names}
        return Opened(
            term=self._term,
            done={name: records.done for name, records in known.items() if records.done},
            failed={name: records.failed for name, records in known.items() if records.failed},
            targets={name: records.targets for name, records in known.items() if records.targets},
            warnings=kept.warnings,
        )

    async def commit(self, records: Sequence[Completion], /) -> None:
        """Keep the records and promote their outputs.

        Raises:
            ValueError: a record is malformed; nothing was kept.
            Superseded: `supersede` was called.
            JournalError: an output is lost, the journal is not open, or `failing` said so.
        """
        await anyio.lowlevel.checkpoint()
        self._check_open()
        for record in records:
            encode_record(record)  # refuses what cannot be kept
        try:
            self._failing()
            self.state.records += records
            Mover(state=self._staging).promote_all(
                [pair for record in records for pair in record.outputs]
            )
        except JournalError as error:
            self._broken = error
            raise

    async def results(self, stage: str, /) -> Mapping[int, str]:
        """Return the recorded results of a stage: JSON text by rank.

        Raises:
            JournalError: as `commit`.
        """
        await anyio.lowlevel.checkpoint()
        self._check_open()
        return self._read().get(stage, StageRecords()).results

    async def close(self) -> None:
        """Give the state back. Idempotent."""
        if self.state.holder is self:
            self.state.holder = None
        self._status = "closed"

    def supersede(self) -> None:
        """Let another driver have taken the state over: what this journal does now fails."""
        self.state.term += 1
        self._broken = Superseded("fake", self._term, self.state.term)
        self.state.holder = None

    def _check_open(self) -> None:
        if self._broken is not None:
            raise type(self._broken)(*self._broken.args)
        if self._status != "open":
            raise JournalError(f"the journal is {'closed' if self._term else 'not open'}")

    def _read(self) -> dict[str, StageRecords]:
        ledger = Ledger()
        for record in self.state.records:
            ledger.add(record)
        return ledger.freeze()


def done(stage: str, *ranks: int, results: bool = True) -> Completion:
    """Return the record of finished ranks; the result of rank 3 is `{"rank": 3}`."""
    texts = {rank: f'{{"rank": {rank}}}' for rank in ranks} if results else {}
    pieces = normalise(range(rank, rank + 1) for rank in ranks)
    return Completion(stage=stage, ranks=pieces, state="done", epoch="000001.1", results=texts)


def failed(stage: str, rank: int) -> Completion:
    """Return the record of a rank that was given up, with a certificate that is hard to keep."""
    why: dict[str, Json] = {"kind": "application", "message": f"rank {rank} \u2028 \ud800"}
    ranks = (range(rank, rank + 1),)
    return Completion(stage=stage, ranks=ranks, state="failed", certificate=why)


def job(*stages: StageIdentity, name: str = "job") -> Identity:
    """Return an identity; without stages: `a` and, after it, `b`, of 100 ranks each."""
    both = (
        StageIdentity(name="a", world_size=100, function="m.a"),
        StageIdentity(name="b", world_size=100, function="m.b", parents=("a",)),
    )
    return Identity(job=name, stages=stages or both)


async def check_journal(make: MakeJournal, folder: str) -> None:
    """Check that the journals of `make` keep the contract of `thornback.executor.ports.Journal`.

    Args:
        make: a new journal over the state of that name; a name is an empty state at first.
        folder: path of an empty local folder, for published outputs.

    Raises:
        AssertionError: a check failed.
    """
    await _check_empty(make)
    await _check_kept(make)
    await _check_done_is_final(make)
    await _check_void(make)
    await _check_concurrent_commits(make)
    await _check_one_holder(make)
    await _check_identity(make)
    await _check_outputs(make, folder)
    await _check_misuse(make)


async def _check_empty(make: MakeJournal) -> None:
    async with make("empty") as journal:
        opened = await journal.open(job(), on_mismatch="refuse")
        assert opened.term >= 1, opened
        assert (opened.done, opened.failed) == ({}, {}), opened
        assert dict(await journal.results("a")) == {}
        await journal.commit([])


async def _check_kept(make: MakeJournal) -> None:
    async with make("kept") as journal:
        first = await journal.open(job(), on_mismatch="refuse")
        await journal.commit([done("a", 0, 1, 2, 7), failed("a", 5)])
        skipped = Completion(stage="b", ranks=(range(0, 9),), state="skipped", certificate={})
        await journal.commit([skipped, done("b", 50, results=False)])
        assert list((await journal.results("a")).items()) == [
            (rank, f'{{"rank": {rank}}}') for rank in (0, 1, 2, 7)
        ]
        assert dict(await journal.results("b")) == {}
    async with make("kept") as journal:
        opened = await journal.open(job(), on_mismatch="refuse")
        assert opened.term > first.term, (first, opened)
        assert opened.done == {"a": (range(0, 3), range(7, 8)), "b": (range(50, 51),)}, opened
        assert opened.failed == {"a": (range(5, 6),)}, opened
        assert sorted(await journal.results("a")) == [0, 1, 2, 7]


async def _check_done_is_final(make: MakeJournal) -> None:
    async with make("final") as journal:
        await journal.open(job(), on_mismatch="refuse")
        await journal.commit([failed("a", 1)])
        await journal.commit([done("a", 1)])
        await journal.commit([failed("a", 1), done("a", 2)])
    async with make("final") as journal:
        opened = await journal.open(job(), on_mismatch="refuse")
        assert opened.done == {"a": (range(1, 3),)}, opened
        assert not opened.failed, opened


async def _check_void(make: MakeJournal) -> None:
    void = Completion(stage="a", ranks=(range(1, 3), range(8, 10)), state="void")
    async with make("void") as journal:
        await journal.open(job(), on_mismatch="refuse")
        await journal.commit([done("a", 1, 2, 3), done("b", 1), failed("a", 8)])
        await journal.commit([void, attrs.evolve(done("a", 2), results={2: '"again"'})])
        await journal.commit([failed("a", 9)])
        assert dict(await journal.results("a")) == {2: '"again"', 3: '{"rank": 3}'}
        bad = attrs.evolve(void, results={1: "1"})
        await _raises(ValueError, lambda: journal.commit([bad]))
    for _ in range(2):  # as it was recorded, and as it was taken over
        async with make("void") as journal:
            opened = await journal.open(job(), on_mismatch="refuse")
            assert opened.done == {"a": (range(2, 4),), "b": (range(1, 2),)}, opened
            assert opened.failed == {"a": (range(9, 10),)}, opened
            assert dict(await journal.results("a")) == {2: '"again"', 3: '{"rank": 3}'}
    async with make("void") as journal:
        await journal.open(job(), on_mismatch="refuse")
        await journal.commit([attrs.evolve(void, ranks=(range(0, 100),))])
    async with make("void") as journal:
        opened = await journal.open(job(), on_mismatch="refuse")
        assert (opened.done, opened.failed) == ({"b": (range(1, 2),)}, {}), opened
        await journal.commit([done("a", 1)])
    async with make("void") as journal:
        opened = await journal.open(job(), on_mismatch="refuse")
        assert opened.done == {"a": (range(1, 2),), "b": (range(1, 2),)}, opened


async def _check_concurrent_commits(make: MakeJournal) -> None:
    async with make("concurrent") as journal:
        await journal.open(job(), on_mismatch="refuse")
        async with anyio.create_task_group() as tasks:
            for rank in range(40):
                tasks.start_soon(journal.commit, [done("a", rank)])
        assert sorted(await journal.results("a")) == list(range(40))
    async with make("concurrent") as journal:
        opened = await journal.open(job(), on_mismatch="refuse")
        assert opened.done == {"a": (range(0, 40),)}, opened


async def _check_one_holder(make: MakeJournal) -> None:
    async with make("held") as journal:
        await journal.open(job(), on_mismatch="refuse")
        async with make("held") as other:
            await _raises(HeldByAnother, lambda: other.open(job(), on_mismatch="refuse"))
        await journal.commit([done("a", 3)])
    async with make("held") as journal:
        opened = await journal.open(job(), on_mismatch="refuse")
        assert opened.done == {"a": (range(3, 4),)}, opened


async def _check_identity(make: MakeJournal) -> None:
    a, b = job().stages
    half = attrs.evolve(a, world_size=50)
    async with make("identity") as journal:
        await journal.open(job(), on_mismatch="refuse")
        await journal.commit([done("a", 1, 60), done("b", 2), failed("a", 70)])
    for other in (job(name="other"), job(half, b), job(attrs.evolve(a, version="2"), b)):
        async with make("identity") as journal:
            await _raises(IdentityMismatch, _opening(journal, other))
    async with make("identity") as journal:  # a refusal changes nothing; a new stage neither
        c = StageIdentity(name="c", world_size=1, function="m.c", parents=("b",))
        opened = await journal.open(job(a, b, c), on_mismatch="refuse")
        assert opened.done == {"a": (range(1, 2), range(60, 61)), "b": (range(2, 3),)}, opened
    async with make("identity") as journal:
        opened = await journal.open(job(half, b), on_mismatch="adopt")
        assert opened.done == {"a": (range(1, 2),), "b": (range(2, 3),)}, opened
        assert not opened.failed, opened
        assert sorted(await journal.results("a")) == [1]
    async with make("identity") as journal:
        opened = await journal.open(job(half, b), on_mismatch="fresh")
        assert opened.done, "fresh is for a mismatch only"
    async with make("identity") as journal:
        opened = await journal.open(job(name="other"), on_mismatch="fresh")
        assert (opened.done, opened.failed) == ({}, {}), opened
        assert dict(await journal.results("a")) == {}


async def _check_outputs(make: MakeJournal, folder: str) -> None:
    epoch = "000001.000000000"
    staging = f"{folder}/{STAGING}/a/{epoch}"
    staged, final = f"{staging}/1/0", f"{folder}/final/new/1"
    await anyio.Path(staging, "1").mkdir(parents=True)
    await anyio.Path(staged).write_bytes(b"output")
    record = attrs.evolve(done("a", 1), epoch=epoch, outputs=((staged, final),))
    async with make("outputs") as journal:
        if isinstance(journal, PlacesOutputs):
            journal.place_outputs(Places(state=folder, folder=folder))
        await journal.open(job(), on_mismatch="refuse")
        await journal.commit([record])
        assert await anyio.Path(final).read_bytes() == b"output"
        assert not await anyio.Path(staged).exists()
        await journal.commit([record])  # again: done already
        nowhere = f"{staging}/2/0", f"{folder}/final/2"
        lost = attrs.evolve(done("a", 2), epoch=epoch, outputs=(nowhere,))
        error = await _raises(JournalError, lambda: journal.commit([lost]))
        assert all(path in str(error) for path in nowhere), error
        await _raises(JournalError, lambda: journal.commit([done("a", 3)]))


async def _check_misuse(make: MakeJournal) -> None:
    async with make("misuse") as journal:
        await _raises(JournalError, lambda: journal.commit([done("a", 1)]))
        await journal.open(job(), on_mismatch="refuse")
        await _raises(JournalError, lambda: journal.open(job(), on_mismatch="refuse"))
        bad = Completion(stage="a", ranks=(range(0, 4, 2),), state="done")
        await _raises(ValueError, lambda: journal.commit([bad]))
        not_json: Mapping[str, Json] = {"x": object()}  # type: ignore[dict-item]  # on purpose
        await _raises(ValueError, lambda: journal.commit([_certified(not_json)]))
        await journal.commit([done("a", 1)])
        await journal.close()
        await journal.close()
        await _raises(JournalError, lambda: journal.commit([done("a", 2)]))
        await _raises(JournalError, lambda: journal.results("a"))
    async with make("misuse") as journal:
        opened = await journal.open(job(), on_mismatch="refuse")
        assert opened.done == {"a": (range(1, 2),)}, opened


def _certified(certificate: Mapping[str, Json]) -> Completion:
    return attrs.evolve(failed("a", 1), certificate=certificate)


def _opening(journal: Journal, identity: Identity) -> Callable[[], Awaitable[object]]:
    return lambda: journal.open(identity, on_mismatch="refuse")


async def _raises(kind: type[E], call: Callable[[], Awaitable[object]]) -> E:
    try:
        await call()
    except kind as error:
        return error
    raise AssertionError(f"expected {kind.__name__}, nothing was raised")
