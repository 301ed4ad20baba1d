"""Records: they round-trip, repeat the run exactly, and tell the story of a rank.

Long, since all three are asked of the same plays, which hold every kind of event.
"""

from __future__ import annotations

import io
import json
import random
from collections.abc import Iterator, Sequence
from functools import cache
from typing import cast, get_args

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from thornback.faults import StopReason
from thornback.scheduler import (
    Scheduler,
    SchedulerParams,
    StagePlan,
    UsageError,
    commands,
    events,
    ports,
    recorded,
)
from thornback.scheduler.commands import (
    CloseGang,
    Command,
    Dispatch,
    FinishRun,
    OpenGang,
    Recall,
    Record,
    RecordState,
    RunState,
    ShapeKey,
)
from thornback.scheduler.events import (
    CancelRequested,
    Event,
    RanksSucceeded,
    RunStarted,
)
from thornback.scheduler.recorder import (
    MomentKind,
    RecordedFault,
    Recorder,
    RecordError,
    read_record,
    replay,
    story,
)
from thornback.scheduler.testing import FakeDependencies, Play, dispatches, opened, plan

FAULTS = ("code", "again", "later", "crash", "died", "preempted", "oom", "waited")
K = MomentKind


class Handled:
    """A scheduler for a `Play` whose events go through a recorder."""

    def __init__(self, recorder: Recorder[str]) -> None:
        self._recorder = recorder

    def handle(self, event: Event[str], now: float) -> Sequence[Command]:
        return self._recorder.handle(event, now)

    def __getattr__(self, name: str) -> object:
        return getattr(self._recorder.scheduler, name)


def recorded_play(
    *stages: StagePlan[str],
    parents: Sequence[Sequence[int]] = (),
    names: Sequence[str] = (),
    keep: int | None = None,
    now: float = 0.0,
) -> tuple[Play[str], Recorder[str], io.StringIO]:
    file = io.StringIO()
    dependencies = FakeDependencies([stage.world_size for stage in stages], parents)
    recorder = Recorder(stages, dependencies, seed=3, names=names, keep=keep, write=file.write)
    return Play(cast(Scheduler[str], Handled(recorder)), now), recorder, file


def told(recorder: Recorder[str], rank: int, stage: int = 0) -> list[tuple[MomentKind, str]]:
    return [(moment.kind, moment.text) for moment in recorder.story(stage, rank)]


def lines(file: io.StringIO) -> Iterator[str]:
    return iter(file.getvalue().splitlines(keepends=True))


# -- whole runs ------------------------------------------------------------------------------------


class World:
    """Answers in any order, with faults, repeats and late answers, all drawn from a seed."""

    def __init__(self, seed: int, *, keep: int | None = None) -> None:
        self.random = random.Random(seed)
        self.play, self.recorder, self.file = recorded_play(
            plan(40, slots=2, priority=1, max_failed=40),
            plan(7, shape=1, nodes=2, max_failed=7),
            plan(3, shape=2),
            parents=((), (), (0, 1)),
            keep=keep,
        )
        self.owed: list[Command] = []
        self.said: list[Event[str]] = []

    def run(self) -> None:
        self.take(self.play.start(done={0: (range(5, 9),)}))
        for _ in range(2000):
            if self.play.scheduler.finished:
                return
            if self.random.random() < 0.02 and self.said:
                self.take(self.play.send(self.random.choice(self.said), 0.01))
            elif self.owed:
                at = self.random.randrange(len(self.owed))
                self.answer(self.owed.pop(at))
            else:
                self.take(self.play.tick())
        raise AssertionError("the run does not end")

    def take(self, answer: Sequence[Command]) -> None:
        self.owed += [c for c in answer if not isinstance(c, FinishRun | Recall)]

    def answer(self, command: Command) -> None:
        draw, fault = self.random.random(), self.random.choice(FAULTS)
        event: Event[str]
        match command:
            case OpenGang() if draw < 0.1:
                event = command.lost("waited")
            case OpenGang():
                event = command.ready(f"n{self.random.randrange(4)}")
            case CloseGang():
                event = command.closed()
            case Record():
                event = command.recorded()
            case Dispatch() if draw < 0.1 and command.gang in self.held():
                event = command.lost(fault, "n1")
            case Dispatch() if draw < 0.3:
                event = command.failed(command.ranks[0].start, fault, "n2", 0.1)
                self.send(event)
                event = command.returned()
            case Dispatch():
                event = RanksSucceeded(
                    assignment=command.assignment, ranks=command.ranks, busy_s=draw
                )
            case _:
                return
        self.send(event)

    def held(self) -> list[int]:
        return [n for n, gang in self.play.referee.gangs.items() if gang.state == "ready"]

    def send(self, event: Event[str]) -> None:
        if not isinstance(event, events.GangClosed):
            self.said.append(event)
        self.take(self.play.send(event, self.random.random()))


@cache
def ended(seed: int) -> World:
    """Return a world whose run is over: only to be read."""
    world = World(seed)
    world.run()
    return world


@pytest.mark.parametrize("seed", range(4))
def test_a_run_with_faults_is_repeated_exactly_from_its_file(seed: int) -> None:
    world = ended(seed)
    assert replay(world.recorder.record()) is None
    assert replay(read_record(lines(world.file))) is None
    record = read_record(lines(world.file))
    for again, here in zip(record.entries, world.recorder.record().entries, strict=True):
        assert (again.at, again.commands) == (here.at, here.commands)
        assert (again.verdicts, again.deltas) == (here.verdicts, here.deltas)
        assert type(again.event) is type(here.event)


@pytest.mark.parametrize("seed", range(2))
def test_every_story_ends_as_the_rank_did_and_is_the_same_from_the_file(seed: int) -> None:
    world = ended(seed)
    for stage, rank in [(0, 0), (0, 6), (0, 39), (1, 6), (2, 1)]:
        moments = world.recorder.story(stage, rank)
        state = world.play.scheduler.state(stage, rank)
        last = [moment for moment in moments if moment.kind in (K.ENDED, K.FOUND)][-1]
        assert state.name in last.text, (stage, rank, moments)
        assert moments == story(read_record(lines(world.file)), stage, rank)
        assert [m.at_s for m in moments] == sorted(m.at_s for m in moments)
        given = [moment for moment in moments if moment.kind is K.DISPATCHED]
        over = (K.RETURNED, K.LOST, K.FAILED, K.SUCCEEDED)
        assert len(given) <= len([moment for moment in moments if moment.kind in over])


def test_the_world_of_these_tests_is_not_a_calm_one() -> None:
    kinds = set()
    for seed in range(3):
        for rank in (0, 6, 21):
            kinds |= {moment.kind for moment in ended(seed).recorder.story(0, rank)}
    assert {K.FOUND, K.READY, K.LOST, K.FAILED, K.JUDGED, K.RETURNED, K.STALE, K.ENDED} <= kinds


@pytest.mark.parametrize("cut", [1, 2, 50, 400])
def test_a_cut_file_is_read_up_to_the_cut(cut: int) -> None:
    world = ended(3)
    text = world.file.getvalue()[:-cut]
    record = read_record(io.StringIO(text))
    assert replay(record) is None
    whole = text.count("\n") - 1
    entries = list(read_record(io.StringIO(text)).entries)
    assert len(entries) in (whole, whole + 1)  # a newline alone may be what was cut off


# -- differences -----------------------------------------------------------------------------------


def finished_play() -> tuple[Play[str], Recorder[str], io.StringIO]:
    game, recorder, file = recorded_play(plan(4, max_gangs=1), names=["clean"])
    (gang,) = opened(game.start())
    ((_, assignment, _),) = dispatches(game.ready(gang))
    game.fail(assignment, 0, "again")
    return game, recorder, file


def changed(file: io.StringIO, line: int, **values: object) -> Iterator[str]:
    """Return the lines of a record with other values in one of them."""
    text = file.getvalue().splitlines(keepends=True)
    text[line - 1] = json.dumps({**json.loads(text[line - 1]), **values}) + "\n"
    return iter(text)


def test_the_first_other_command_is_shown() -> None:
    _, _, file = finished_play()
    difference = replay(read_record(changed(file, 3, commands=[{"is": "CloseGang", "gang": 7}])))
    assert difference is not None
    assert (difference.number, difference.note) == (2, "other commands")
    assert difference.entry.commands == (CloseGang(gang=7),)
    assert [type(command) for command in difference.commands] == [Dispatch]
    text = str(difference)
    assert text.startswith(
        "entry 2, GangReady(gang=0, nodes=('n',), fitting=None), at 0.0 s: other commands\n"
    )
    assert "recorded: CloseGang(gang=7, kill=False)" in text
    assert "now: Dispatch(gang=0" in text


@pytest.mark.parametrize(
    ("line", "values", "note"),
    [
        (4, {"verdicts": []}, "the policy of stage 0 was not asked then"),
        (2, {"deltas": []}, "the dependencies were not told the start then"),
        (3, {"deltas": [{"is": "RecordedDelta"}]}, "not told the start any more"),
        (3, {"error": "KeyError: 'x'"}, "it raised nothing; recorded is KeyError: 'x'"),
        (
            3,
            {"verdicts": [{"is": "RecordedVerdict", "stage": 0, "draw": 0.5, "retry": True}]},
            "the policy of stage 0 is not asked any more",
        ),
        (
            4,
            {"verdicts": [{"is": "RecordedVerdict", "stage": 0, "draw": 0.5, "retry": True}]},
            "the policy of stage 0 is asked about another fault",
        ),
    ],
)
def test_other_questions_are_differences_too(
    line: int, values: dict[str, object], note: str
) -> None:
    _, _, file = finished_play()
    difference = replay(read_record(changed(file, line, **values)))
    assert difference is not None
    assert difference.number == line - 1
    assert note in difference.note


def test_what_handle_raises_is_recorded_raised_and_raised_again() -> None:
    game, recorder, file = finished_play()
    event = events.Recorded(stage=9, ranks=())
    with pytest.raises(UsageError):
        recorder.handle(event, game.now)
    (*_, last) = recorder.record().entries
    assert last.error == "UsageError: Recorded: there is no stage 9."
    assert replay(read_record(lines(file))) is None


# -- what is kept, and written ---------------------------------------------------------------------


def test_the_ring_is_bounded_and_says_what_it_dropped() -> None:
    world = World(1, keep=10)
    world.run()
    record = world.recorder.record()
    assert len(list(record.entries)) == 10
    assert record.dropped == len(list(read_record(lines(world.file)).entries)) - 10
    with pytest.raises(RecordError, match="entries were not kept"):
        replay(record)
    assert world.recorder.story(2, 0)  # what there is of it


def test_a_write_that_fails_loses_no_command() -> None:
    written: list[str] = []

    def write(line: str) -> None:
        if written:
            raise OSError("disk full")
        written.append(line)

    recorder = Recorder([plan(1)], FakeDependencies([1]), write=write)
    assert [type(c) for c in recorder.handle(RunStarted(), 0.0)] == [OpenGang]
    assert str(recorder.broken) == "disk full"
    assert len(recorder.handle(OpenGang(gang=0, shape=ShapeKey(0)).ready("n"), 1.0)) == 1
    assert len(written) == 1
    assert len(list(recorder.record().entries)) == 2


def test_recorded_or_not_the_commands_are_the_same() -> None:
    world = ended(2)
    stages = [plan(40, slots=2, priority=1, max_failed=40)]
    stages += [plan(7, shape=1, nodes=2, max_failed=7), plan(3, shape=2)]
    bare = Scheduler(stages, FakeDependencies([40, 7, 3], ((), (), (0, 1))), seed=3)
    for entry in world.recorder.record().entries:
        assert tuple(bare.handle(entry.event, entry.at)) == entry.commands


# -- values ----------------------------------------------------------------------------------------

numbers = st.integers(0, 9)
seconds = st.floats(allow_nan=False)
ranges = st.lists(st.builds(range, numbers, numbers, st.sampled_from([1, 1, 2])), max_size=3)
texts = st.text(max_size=5)
RANKS = ranges.map(tuple)
BY_TYPE: dict[str, st.SearchStrategy[object]] = {
    "int": numbers,
    "float": seconds,
    "bool": st.booleans(),
    "str": texts,
    "int | None": numbers | st.none(),
    "float | None": seconds | st.none(),
    "str | None": texts | st.none(),
    "tuple[str, ...]": st.lists(texts, max_size=3).map(tuple),
    "Ranks": RANKS,
    "Mapping[int, Ranks]": st.dictionaries(numbers, RANKS, max_size=2),
    "F": st.builds(RecordedFault, texts, st.none() | st.dictionaries(texts, numbers, max_size=2)),
    "ShapeKey": st.builds(ShapeKey, numbers, numbers | st.none()),
    "RecordState": st.sampled_from(RecordState),
    "StopReason | None": st.none() | st.sampled_from(StopReason),
    "RunState": st.sampled_from(RunState),
}
CLASSES: list[type[attrs.AttrsInstance]] = [
    *(getattr(events, name) for name in events.__all__ if name not in ("Event", "Ranks")),
    *get_args(commands.Command),
]


def values(made: type[attrs.AttrsInstance]) -> st.SearchStrategy[attrs.AttrsInstance]:
    return st.builds(made, **{f.name: BY_TYPE[str(f.type)] for f in attrs.fields(made)})


@pytest.mark.parametrize("made", CLASSES, ids=lambda made: made.__name__)
def test_every_event_and_command_round_trips(made: type[attrs.AttrsInstance]) -> None:
    @settings(max_examples=10)
    @given(values(made))
    def check(value: attrs.AttrsInstance) -> None:
        text = json.dumps(recorded.pack(value))
        assert recorded.unpack(json.loads(text), {made.__name__: made}) == value

    check()


def test_what_is_at_its_default_is_left_out() -> None:
    assert recorded.pack(RunStarted()) == {"is": "RunStarted"}
    assert recorded.pack(CloseGang(gang=3)) == {"is": "CloseGang", "gang": 3}


def test_all_there_are_can_be_read() -> None:
    known = recorded._known()
    assert [known[made.__name__] for made in CLASSES] == CLASSES


def test_a_verdict_and_a_delta_are_kept_whole() -> None:
    def named(port: type) -> set[str]:
        return {name for name, value in vars(port).items() if isinstance(value, property)}

    verdict = {field.name for field in attrs.fields(recorded.RecordedVerdict)}
    assert verdict - {"stage", "draw"} == named(ports.Verdict)
    delta = {field.name for field in attrs.fields(recorded.RecordedDelta)}
    assert delta - {"asked"} == named(ports.Delta)


def test_a_fault_is_kept_as_text_and_data() -> None:
    class Told:
        def __str__(self) -> str:
            return "it broke"

        def as_json(self) -> dict[str, int]:
            return {"code": 7}

    recorder = Recorder([plan(1)], FakeDependencies([1]), write=(file := io.StringIO()).write)
    recorder.handle(events.JournalFailed(fault=cast(str, Told())), 0.0)
    (entry,) = read_record(lines(file)).entries
    assert isinstance(entry.event, events.JournalFailed)
    assert entry.event.fault == RecordedFault("it broke", {"code": 7})
    assert replay(read_record(lines(file))) is None  # its text is in the reason of `FinishRun`


def test_plans_params_and_seed_are_in_the_header() -> None:
    params = SchedulerParams(max_batch=3)
    file = io.StringIO()
    Recorder([plan(5, slots=2)], FakeDependencies([5]), params, 9, names=["a"], write=file.write)
    header = read_record(lines(file)).header
    assert (header.params, header.seed, header.plans[0].name) == (params, 9, "a")
    assert header.plans[0].plan == {
        "world_size": 5,
        "shape": 0,
        "slots": 2,
        "nodes": 1,
        "max_gangs": None,
        "priority": 0,
        "max_failed": 0,
        "fail_fast": None,
    }


HEADER = '{"format":"thornback.scheduler record","version":2,"seed":0,"plans":[],"params":{}}\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the first line is not that of a scheduler's record"),
        ("[]\n", "the first line is not"),
        ('{"a": 1}\n', "the first line is not"),
        (HEADER.replace(":2", ":3"), "it is of version 3; this can read 2"),
        (HEADER.replace('"params":{}', '"params":{"x":1}'), "line 1: .*'x'"),
        (HEADER + "nonsense\n", "line 2: Expecting value"),
        (HEADER + '{"at":0,"event":{"is":"Vanished"}}\n', "line 2: it has a 'Vanished', which"),
        (HEADER + '{"at":0,"event":{"is":"Ticked","x":1}}\n', "line 2: its Ticked has a 'x'"),
        (HEADER + '{"event":{"is":"Ticked"}}\n', "line 2: 'at'"),
        (HEADER + '{"at":0,"event":{"is":"Recorded","stage":0,"ranks":[3]}}\n', "line 2: "),
    ],
)
def test_what_is_no_record_is_refused_with_its_line(text: str, message: str) -> None:
    with pytest.raises(RecordError, match=message):
        list(read_record(io.StringIO(text)).entries)


# -- stories ---------------------------------------------------------------------------------------


def test_the_story_of_a_rank_that_is_tried_again() -> None:
    game, recorder, _ = recorded_play(plan(1), now=100.0)
    (gang,) = opened(game.start())
    game.tick(2.0)
    ((_, first, _),) = dispatches(game.ready(gang, "n1"))
    game.send(events.RankFailed(assignment=first, rank=0, fault="later", node="n1", ran_s=0.5), 1.0)
    ((_, second, _),) = dispatches(game.tick(5.0))
    game.succeed(first, 0)  # once more, too late
    game.succeed(second)
    game.record()
    assert [str(moment) for moment in recorder.story(0, 0)] == [
        "     0.000 s  may run: it depends on nothing",
        "     2.000 s  is given to gang 0 on n1: assignment 0, attempt 1, alone;"
        " it had waited 2.0 s",
        "     3.000 s  failed on n1 after 0.5 s: later",
        "     3.000 s  is tried again in 5.0 s: scripted",
        "     8.000 s  is given to gang 0 on n1: assignment 1, attempt 2, alone;"
        " it had waited 5.0 s",
        "     8.000 s  assignment 0 reported a result: dropped, it does not hold the rank",
        "     8.000 s  succeeded; its result waits for the journal",
        "     8.000 s  is DONE: its result is recorded",
    ]
    failed = recorder.story(0, 0)[2]
    assert (failed.kind, failed.gang, failed.nodes) == (K.FAILED, 0, ("n1",))
    assert (failed.assignment, failed.fault) == (0, "later")


def test_the_story_says_why_a_rank_waits() -> None:
    game, recorder, _ = recorded_play(plan(1))
    (gang,) = opened(game.start())
    game.lost(gang, "waited")
    (gang,) = opened(game.tick())
    game.ready(gang)
    kinds = told(recorder, 0)
    assert [kind for kind, _ in kinds] == [K.READY, K.WAITS, K.WAITS, K.DISPATCHED]
    assert kinds[1][1] == "waits: a gang could not be opened: waited"
    assert kinds[2][1].startswith("waits for a gang: a gang could not be opened or was lost; asked")


def test_the_story_of_a_rank_that_is_given_up_and_of_one_below_it() -> None:
    game, recorder, _ = recorded_play(plan(1), plan(2), parents=((), (0,)), names=("a", "b"))
    (gang,) = opened(game.start())
    ((_, assignment, _),) = dispatches(game.ready(gang))
    game.fail(assignment, 0, "code")
    assert told(recorder, 0)[-2:] == [
        (K.JUDGED, "is given up: its code failed"),
        (K.ENDED, "is FAILED"),
    ]
    game.record()
    game.close()
    assert game.scheduler.finished
    assert told(recorder, 1, stage=1) == [
        (K.WAITS, "waits for the ranks that it depends on"),
        (K.ENDED, "is SKIPPED: rank 0 of stage 'a' failed"),
    ], "and nothing more when the run ends"


def test_each_sees_only_its_own_verdict_when_a_gang_is_lost() -> None:
    game, recorder, _ = recorded_play(plan(3, slots=2, max_gangs=1))
    (gang,) = opened(game.start())
    given = dispatches(game.ready(gang))
    assert [ranks for _, _, ranks in given] == [(range(0, 1),), (range(1, 2),)]
    game.lost(gang, "crash", "n")
    for rank in (0, 1):
        kinds = [kind for kind, _ in told(recorder, rank)]
        assert kinds[:4] == [K.READY, K.DISPATCHED, K.LOST, K.JUDGED]
    assert told(recorder, 2)[-1][0] is not K.JUDGED


def test_a_rank_lost_in_company_comes_back_unjudged() -> None:
    game, recorder, _ = recorded_play(plan(4, max_gangs=1))
    (gang,) = opened(game.start())
    ((_, first, _),) = dispatches(game.ready(gang))
    ((_, second, ranks), _) = dispatches(game.succeed(first, busy_s=0.001))
    assert ranks == (range(1, 3),)
    game.lost(gang, "crash", "n")
    assert [kind for kind, _ in told(recorder, 1)][:4] == [
        K.READY,
        K.DISPATCHED,
        K.LOST,
        K.RETURNED,
    ]
    assert "with 1 others" in told(recorder, 1)[1][1]
    assert second == recorder.story(0, 1)[1].assignment


def test_cancel_recall_and_the_end_are_told() -> None:
    game, recorder, _ = recorded_play(plan(2, max_gangs=1))
    (gang,) = opened(game.start())
    ((_, assignment, _),) = dispatches(game.ready(gang))
    game.send(CancelRequested(reason="enough", kill=True))
    game.give_back(assignment, range(0, 1))
    game.close()
    assert told(recorder, 0)[2:] == [
        (K.RUN, "the run was cancelled: enough"),
        (K.RECALLED, "is asked back, with a kill"),
        (K.RETURNED, "came back, free of charge: it may run again"),
        *[moment for moment in told(recorder, 0) if moment[0] is K.WAITS],
        (K.ENDED, "the run has cancelled, and this rank has not ended: enough"),
    ]


def test_what_happens_to_others_is_not_told() -> None:
    game, recorder, _ = recorded_play(
        plan(2, slots=2, max_gangs=1),
        plan(1, shape=1),
        plan(1, shape=2),
        plan(1, shape=2),
        parents=((), (), (0,), (1,)),
    )
    first, second = opened(game.start())
    game.ready(second)
    game.ready(first)
    stage_1 = next(n for n, (_, stage, _) in game.referee.outstanding.items() if stage == 1)
    game.fail(stage_1, 0, "code")
    assert [kind for kind, _ in told(recorder, 0, stage=3)] == [K.WAITS, K.ENDED]
    assert [kind for kind, _ in told(recorder, 0, stage=2)] == [K.WAITS]
    game.send(CancelRequested(reason="enough"))
    for rank in (0, 1):
        assert [kind for kind, _ in told(recorder, rank)].count(K.RECALLED) == 1


def test_ranks_of_an_earlier_run_are_told_as_such() -> None:
    game, recorder, _ = recorded_play(plan(3))
    game.start(done={0: (range(0, 1),)}, failed={0: (range(1, 2),)})
    assert told(recorder, 0) == [(K.FOUND, "an earlier run has recorded it as DONE")]
    assert told(recorder, 1) == [(K.FOUND, "an earlier run has recorded it as FAILED")]
    assert told(recorder, 2)[0][0] is K.READY


def test_a_journal_that_fails_is_told() -> None:
    game, recorder, _ = finished_play()
    game.send(events.JournalFailed(fault="full"))
    assert (K.RUN, "the journal failed: full") in told(recorder, 3)


def test_a_long_fault_is_told_in_one_line() -> None:
    game, recorder, _ = finished_play()
    game.send(events.JournalFailed(fault="full\nno space left"))
    moment = next(moment for moment in recorder.story(0, 3) if moment.kind is K.RUN)
    assert (moment.fault, moment.text) == ("full", "the journal failed: full")


def test_what_kinds_are_called_outside() -> None:
    assert [kind.value for kind in K] == [kind.name.lower() for kind in K]


@pytest.mark.parametrize(("stage", "rank"), [(1, 0), (-1, 0), (0, 4), (0, -1)])
def test_a_rank_that_is_not_there_is_refused(stage: int, rank: int) -> None:
    _, recorder, _ = finished_play()
    with pytest.raises(UsageError, match=r"has no rank|There is no stage"):
        recorder.story(stage, rank)
