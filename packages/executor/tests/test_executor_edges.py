"""Edges as a user says them: refused with the mend, turned into the graph's, and the own rank's
results handed over."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from typing import Any, cast

import anyio
import attrs
import pytest

from packages.executor.tests.disks import GatedRows
from thornback.executor import After, Job, RankContext, Stage, UsageError, Within, blobs
from thornback.executor.clock import SystemClock
from thornback.executor.handover import Handover
from thornback.executor.job import identity_of
from thornback.executor.journal.testing import FakeJournal, FakeState
from thornback.executor.plan import RunPlan, Settings
from thornback.executor.ports import Completion, Identity
from thornback.executor.program import StageProgram
from thornback.executor.report import AttemptReport, RunInfo, RunReport, StageProgress
from thornback.executor.results import MISSING, packed
from thornback.executor.waiting import NotKept, WaitingTexts
from thornback.executor.watching import Teller, Watchers
from thornback.graph import Condition, Edge
from thornback.pool import RankCall
from thornback.scheduler.commands import Dispatch

SETTINGS = Settings(state_url="/state", cwd="/", seed=1)
OWN = After("a", kind="one_to_one")


def work(ctx: RankContext) -> int:
    return ctx.rank


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: After("a", kind=cast(Any, "each")), "expected 'barrier' or 'one_to_one'"),
        (lambda: After("a", condition=cast(Any, "any")), "'all_success', 'all_done' or Within(n)"),
        (lambda: After(cast(Any, 3)), "expected the name of a stage"),
        (lambda: Within(-1), "expected a number of ranks"),
        (lambda: Within(cast(Any, True)), "expected a number of ranks"),
        (lambda: Stage("b", work, after=cast(Any, [3])), "expected the name of a stage, or After"),
        (lambda: Stage("b", work, after=["a", OWN]), "by a barrier and one to one"),
        (
            lambda: RunPlan(
                Job("j", [Stage("a", work, ranks=2), Stage("b", work, after=OWN)]), SETTINGS
            ),
            "Stage 'b' has 1 ranks and comes one to one after 'a', which has 2",
        ),
    ],
)
def test_edges_that_cannot_be_are_refused_with_the_mend(make: Any, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        make()
    assert says in str(caught.value)


def test_words_become_edges_of_the_graph_and_parents_by_name() -> None:
    job = Job(
        "j",
        [
            Stage("a", work, ranks=200, max_failed=0.01),
            Stage("b", work, ranks=200, after=OWN),
            Stage("c", work, after=["b", After("a", condition=Within(0.02))]),
            Stage(
                "d",
                work,
                after=[After("c", condition="all_done"), After("b", condition="all_success")],
            ),
            Stage("e", work, after=After("a", condition=Within(7))),
        ],
    )
    nodes = RunPlan(job, SETTINGS).dag()._nodes
    assert [node.edges for node in nodes] == [
        (),
        (Edge(0, one_to_one=True),),
        (Edge(1), Edge(0, condition=Condition.within(4))),
        (Edge(2, condition=Condition.all_done()), Edge(1, condition=Condition.all_success())),
        (Edge(0, condition=Condition.within(7)),),
    ]
    assert nodes[0].max_failed == 2
    assert [each.parents for each in identity_of(job).stages] == [
        (),
        ("a",),
        ("b", "a"),
        ("c", "b"),
        ("a",),
    ]


# -- what a rank is handed -------------------------------------------------------------------------


def call(args: bytes) -> RankCall:
    return RankCall(
        rank=1,
        attempt=1,
        epoch="000001.000000002",
        stage=0,
        slot=0,
        node="n",
        args=args,
        traceparent="",
        inputs=lambda key: packed({0: json.dumps(key)}, (), 1),
    )


def program(fn: Any, *, has_items: bool = False) -> StageProgram:
    return StageProgram(
        stage="b",
        world_size=3,
        fn=fn,
        has_items=has_items,
        setup_fn=None,
        teardown_fn=None,
        staging="/none",
        cwd="/",
        parents={"whole": "results:1"},
        own_parents=("a",),
    )


def test_a_rank_reads_the_result_of_its_own_number_and_its_item() -> None:
    made = program(
        lambda ctx, item: [item, ctx.result("a"), ctx.results("whole")[0]], has_items=True
    )
    args = pickle.dumps((pickle.dumps("it"), {"a": '{"x": 1}'}))
    assert made.run(call(args)).result == '["it", {"x": 1}, "results:1"]'
    nothing = pickle.dumps((b"", {}))
    assert program(lambda ctx: ctx.result("a") is MISSING).run(call(nothing)).result == "true"
    none = pickle.dumps((b"", {"a": "null"}))
    assert program(lambda ctx: [ctx.result("a")]).run(call(none)).result == "[null]"


@pytest.mark.parametrize(
    ("ask", "says"),
    [
        (lambda ctx: ctx.results("a"), r"use ctx.result\('a'\)"),
        (lambda ctx: ctx.result("whole"), r"one to one after 'a'; use ctx.results\('whole'\)"),
        (lambda ctx: ctx.result("other"), r"add after=After\('other', kind='one_to_one'\)"),
    ],
)
def test_asking_for_what_is_not_handed_names_the_mend(ask: Any, says: str) -> None:
    with pytest.raises(KeyError, match=says):
        program(ask).run(call(pickle.dumps((b"", {}))))


def two_stages() -> RunPlan:
    stages = [Stage("a", work, ranks=4), Stage("b", work, ranks=4, after=OWN), Stage("c", work)]
    return RunPlan(Job("j", stages), SETTINGS)


def done(rank: int, text: str) -> Completion:
    return Completion(stage="a", ranks=(range(rank, rank + 1),), state="done", results={rank: text})


@pytest.mark.anyio
async def test_results_are_kept_until_the_rank_that_wants_them_is_settled() -> None:
    plan, journal = two_stages(), FakeJournal()
    opened = await journal.open(identity_of(plan.job), on_mismatch="refuse")
    handover = Handover(plan, journal, opened)
    await handover.note([done(0, "10"), done(2, "12")])
    assert await handover.of(2, (range(1),)) == ()
    lost = Completion(stage="a", ranks=(range(1, 2),), state="failed")
    await handover.note([lost])
    assert await handover.of(1, (range(0, 2),)) == [{"a": "10"}, {}]
    ranks = (range(0, 1), range(2, 4))
    assert await handover.of(1, ranks) == [{"a": "10"}, {"a": "12"}, {}]
    assert await handover.of(1, ranks) == [{"a": "10"}, {"a": "12"}, {}], "for another attempt"
    handover.drop(1, (range(0, 1),))
    assert await handover.of(1, ranks) == [{}, {"a": "12"}, {}]
    command = Dispatch(gang=0, assignment=0, stage=1, ranks=(range(2, 3),))
    work = plan.assignment(command, "e", "", (), await handover.of(1, command.ranks))
    assert [pickle.loads(each) for each in work.args] == [(b"", {"a": "12"})]
    assert work.inputs == ()


@pytest.mark.anyio
async def test_what_an_earlier_run_recorded_is_read_once_and_only_what_is_wanted() -> None:
    plan, state = two_stages(), FakeState()
    identity: Identity = identity_of(plan.job)
    first = FakeJournal(state)
    await first.open(identity, on_mismatch="refuse")
    settled = Completion(stage="b", ranks=(range(0, 1),), state="done")
    await first.commit([done(0, "10"), done(1, "11"), settled])
    await first.close()
    journal = FakeJournal(state)
    handover = Handover(plan, journal, await journal.open(identity, on_mismatch="refuse"))
    assert await handover.of(1, (range(0, 3),)) == [{}, {"a": "11"}, {}]
    await journal.close()
    assert await handover.of(1, (range(1, 2),)) == [{"a": "11"}], "the journal is not asked again"


@pytest.mark.anyio
async def test_what_memory_has_no_room_for_is_handed_all_the_same_or_refused() -> None:
    plan, journal = two_stages(), FakeJournal()
    opened = await journal.open(identity_of(plan.job), on_mismatch="refuse")
    spilled = Handover(plan, journal, opened, WaitingTexts(0))
    await spilled.note([done(0, "10"), done(2, "12")])
    assert await spilled.of(1, (range(0, 3),)) == [{"a": "10"}, {}, {"a": "12"}]
    lost = Handover(plan, journal, opened, WaitingTexts(0, max_file_bytes=0))
    await lost.note([done(0, '"' + "x" * 60_000 + '"')])
    with pytest.raises(NotKept):
        await lost.of(1, (range(0, 1),))
    for each in (spilled, lost):
        each.close()


@pytest.mark.anyio
async def test_results_that_are_too_many_are_told_while_their_stage_still_runs(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(blobs, "MAX_INPUT_BYTES", 10)
    stages = [
        Stage("a", work, ranks=9),
        Stage("reads", work, after="a"),
        Stage("also", work, after=["reads", "a"]),
        Stage("blind", work, after=After("a", results=False)),
    ]
    plan, journal = RunPlan(Job("j", stages), SETTINGS), FakeJournal()
    opened = await journal.open(identity_of(plan.job), on_mismatch="refuse")
    handover = Handover(plan, journal, opened)
    await handover.note([done(0, "12345"), done(1, "67890")])
    assert not caplog.messages
    handover.check(1)
    await handover.note([done(2, "1")])
    await handover.note([done(3, "1")])
    (told,) = caplog.messages
    assert "'reads', 'also' will be refused" in told
    assert "After('a', results=False)" in told
    for number in (1, 2):
        with pytest.raises(blobs.InputTooLarge, match="are 12 bytes or more, at most 10"):
            handover.check(number)
    handover.check(3)


class Counted(FakeJournal):
    """Has one text for each stage, and counts how often it is asked for."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.reads = 0
        self._text = text

    async def results(self, stage: str, /) -> Mapping[int, str]:
        self.reads += 1
        return {0: self._text}


@pytest.mark.anyio
async def test_results_that_are_too_many_are_read_once_and_not_for_every_rank(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(blobs, "MAX_INPUT_BYTES", 10)
    journal = Counted("x" * 11)
    ask = blobs.RunBlobs(two_stages(), journal)
    for _ in range(3):
        with pytest.raises(blobs.InputTooLarge, match="are 11 bytes or more"):
            await ask("results:0")
    assert journal.reads == 1


@pytest.mark.anyio
async def test_results_of_many_stages_are_kept_within_a_bound(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    journal = Counted("x" * 9)
    monkeypatch.setattr(blobs, "MAX_KEPT_BYTES", 110)
    ask = blobs.RunBlobs(two_stages(), journal)
    for number in (0, 1, 1, 2, 1, 0):
        assert (await ask(f"results:{number}")).endswith(b"xxxxxxxxx")
    assert journal.reads == 4, "the first of three had to go"


def barrier() -> RunPlan:
    """Return a plan with a stage that may read all results of another."""
    stages = [Stage("a", work, ranks=2), Stage("b", work, ranks=2, after=["a"])]
    return RunPlan(Job("j", stages), SETTINGS)


@pytest.mark.anyio
async def test_blobs_results_of_this_run_are_not_read_from_the_journal() -> None:
    """Else each stage of a chain would read the whole state."""
    plan, journal = barrier(), Counted("old")
    ask = blobs.RunBlobs(plan, journal)
    ask.recorded([done(1, "b"), done(0, "a")])
    assert ask.done.of("a") == (range(0, 2),)
    assert (await ask("results:0"), journal.reads) == (packed({0: "a", 1: "b"}, (), 2), 0)
    ask = blobs.RunBlobs(plan, journal, before={"a": (range(1, 2),)})
    ask.recorded([done(0, "a")])
    old = packed({0: "old", 1: "null"}, (), 2)
    assert (await ask("results:0"), journal.reads) == (old, 1), "an earlier run has others"


@pytest.mark.anyio
async def test_blobs_results_beyond_the_bound_are_read_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(blobs, "MAX_KEPT_BYTES", 25)
    plan, journal = barrier(), Counted("x")
    ask = blobs.RunBlobs(plan, journal)
    ask.recorded([done(0, "a" * 26)])
    ask.recorded([done(1, "b")])
    assert (await ask("results:0"), journal.reads) == (packed({0: "x", 1: "null"}, (), 2), 1)


class Listener:
    """An `Observer` that counts the updates it gets."""

    def __init__(self) -> None:
        self.told = 0

    def started(self, info: RunInfo, /) -> None:
        pass

    def progressed(self, stages: tuple[StageProgress, ...], /) -> None:
        self.told += 1

    def failed(self, attempt: AttemptReport, /) -> None:
        pass

    def finished(self, report: RunReport, /) -> None:
        pass


def test_teller_counts_progress_only_when_it_is_told() -> None:
    """Counting costs O(stages), and would be repeated on each turn of the driver."""
    counted = 0

    def count() -> tuple[StageProgress, ...]:
        nonlocal counted
        counted += 1
        return (StageProgress(name="a", total=9, done=counted),)

    listener = Listener()
    nobody = Teller(SystemClock(), Watchers([]), 60.0)
    teller = Teller(SystemClock(), Watchers([listener]), 60.0)
    for _ in range(5):
        nobody.tell(count)
        teller.tell(count)
    assert (counted, listener.told, nobody.due) == (1, 1, None)
    teller.tell(count, last=True)
    assert (counted, listener.told) == (2, 2)


class Remembered(WaitingTexts):
    """Tells what was put into it."""

    def __init__(self, disk: GatedRows | None = None) -> None:
        if disk is None:
            super().__init__()
        else:
            super().__init__(0, max_on_way_bytes=0, open_rows=lambda: disk)
        self.ranks: list[int] = []

    def put(self, queue: int, texts: Mapping[int, str]) -> None:
        self.ranks += texts
        super().put(queue, texts)


@pytest.mark.anyio
async def test_nothing_is_kept_for_a_rank_that_was_settled_before_its_result_came() -> None:
    plan, state = two_stages(), FakeState()
    identity: Identity = identity_of(plan.job)
    first = FakeJournal(state)
    await first.open(identity, on_mismatch="refuse")
    await first.commit([Completion(stage="b", ranks=(range(0, 1),), state="done")])
    await first.close()
    journal, waiting = FakeJournal(state), Remembered()
    handover = Handover(plan, journal, await journal.open(identity, on_mismatch="refuse"), waiting)
    handover.drop(1, (range(1, 2),))  # skipped, for another rank that it comes after
    await handover.note([done(0, "10"), done(1, "11"), done(2, "12")])
    assert waiting.ranks == [2]
    assert await handover.of(1, (range(0, 4),)) == [{}, {}, {"a": "12"}, {}]


class DropsWhileRead(FakeJournal):
    """A rank is settled while the results are read that it would have been handed."""

    handover: Handover

    async def results(self, stage: str, /) -> Mapping[int, str]:
        found = await super().results(stage)
        self.handover.drop(1, (range(0, 1),))
        return found


@pytest.mark.anyio
async def test_what_is_settled_while_an_earlier_runs_results_are_read_is_not_kept() -> None:
    plan, state = two_stages(), FakeState()
    identity: Identity = identity_of(plan.job)
    first = FakeJournal(state)
    await first.open(identity, on_mismatch="refuse")
    await first.commit([done(0, "10"), done(1, "11")])
    await first.close()
    journal, waiting = DropsWhileRead(state), Remembered()
    opened = await journal.open(identity, on_mismatch="refuse")
    journal.handover = Handover(plan, journal, opened, waiting)
    assert await journal.handover.of(1, (range(1, 2),)) == [{"a": "11"}]
    assert waiting.ranks == [1]


@pytest.mark.anyio
async def test_what_is_recorded_waits_for_a_disk_that_is_slower() -> None:
    plan, journal, disk = two_stages(), FakeJournal(), GatedRows()
    opened = await journal.open(identity_of(plan.job), on_mismatch="refuse")
    waiting = WaitingTexts(0, max_on_way_bytes=0, open_rows=lambda: disk)
    handover, noted = Handover(plan, journal, opened, waiting), list[int]()

    async def note(rank: int) -> None:
        await handover.note([done(rank, "1")])
        noted.append(rank)

    await note(0)
    async with anyio.create_task_group() as group:
        group.start_soon(note, 1)
        await anyio.wait_all_tasks_blocked()
        assert noted == [0]
        handover.drop(1, (range(1, 2),))  # skipped meanwhile: nothing is kept for it
        disk.let.set()
    assert noted == [0, 1]
    assert await handover.of(1, (range(0, 4),)) == [{"a": "1"}, {}, {}, {}]
    handover.close()


@pytest.mark.anyio
async def test_what_an_earlier_run_recorded_waits_for_a_disk_that_is_slower(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("thornback.executor.handover._READ_AT_ONCE", 1)
    plan, state, disk = two_stages(), FakeState(), GatedRows()
    first = FakeJournal(state)
    await first.open(identity_of(plan.job), on_mismatch="refuse")
    await first.commit([done(rank, "1") for rank in range(4)])
    await first.close()
    journal = FakeJournal(state)
    opened = await journal.open(identity_of(plan.job), on_mismatch="refuse")
    waiting = Remembered(disk)
    handover, handed = Handover(plan, journal, opened, waiting), list[object]()

    async def of() -> None:
        handed.extend(await handover.of(1, (range(0, 4),)))

    async with anyio.create_task_group() as group:
        group.start_soon(of)
        await anyio.wait_all_tasks_blocked()
        assert waiting.ranks == [0]
        disk.let.set()
    assert handed == [{"a": "1"}] * 4
    handover.close()


@pytest.mark.anyio
@pytest.mark.parametrize("retry_failed", [True, False])
async def test_a_rank_that_stays_failed_is_handed_nothing(retry_failed: bool) -> None:
    job, state = two_stages().job, FakeState()
    plan = RunPlan(job, attrs.evolve(SETTINGS, retry_failed=retry_failed))
    first = FakeJournal(state)
    await first.open(identity_of(job), on_mismatch="refuse")
    failed = Completion(stage="b", ranks=(range(0, 1),), state="failed", certificate={})
    await first.commit([done(0, "10"), failed])
    await first.close()
    journal, waiting = FakeJournal(state), Remembered()
    opened = await journal.open(identity_of(job), on_mismatch="refuse")
    handover = Handover(plan, journal, opened, waiting)
    await handover.of(1, (range(1, 2),))
    assert waiting.ranks == ([0] if retry_failed else [])


@pytest.mark.anyio
async def test_handover_rank_that_returned_none_is_told_from_one_without_a_result() -> None:
    plan, state = two_stages(), FakeState()
    identity: Identity = identity_of(plan.job)
    first = FakeJournal(state)
    await first.open(identity, on_mismatch="refuse")
    nothing = Completion(stage="a", ranks=(range(0, 2),), state="done", results={0: "10"})
    await first.commit([nothing, Completion(stage="a", ranks=(range(2, 3),), state="failed")])
    await first.close()
    journal = FakeJournal(state)
    handover = Handover(plan, journal, await journal.open(identity, on_mismatch="refuse"))
    await handover.note([Completion(stage="a", ranks=(range(3, 4),), state="done")])
    everything = [{"a": "10"}, {"a": "null"}, {}, {"a": "null"}]
    assert await handover.of(1, (range(0, 4),)) == everything
