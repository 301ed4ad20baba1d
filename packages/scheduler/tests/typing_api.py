"""Used as a stranger would. Never executed: mypy reads it, against the sources and against the
installed wheel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, assert_never, assert_type

import thornback.faults
from thornback.faults import Fault, Standing
from thornback.scheduler import (
    GangState,
    InvalidTransition,
    InvariantBroken,
    RankState,
    Scheduler,
    SchedulerError,
    SchedulerParams,
    StageCounts,
    StagePlan,
    UsageError,
    commands,
    events,
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
    GangClosed,
    GangLost,
    GangReady,
    JournalFailed,
    NodeDraining,
    RankFailed,
    Ranks,
    RanksReturned,
    RanksSucceeded,
    Recorded,
    RunStarted,
    Ticked,
)
from thornback.scheduler.ports import Delta, Dependencies, RetryPolicy, Verdict
from thornback.scheduler.recorder import (
    Difference,
    Entry,
    Moment,
    MomentKind,
    RecordedFault,
    Recorder,
    RecordError,
    read_record,
    replay,
    story,
)
from thornback.scheduler.recorder import Record as RunRecord
from thornback.scheduler.simulate import (
    BadKind,
    BadNode,
    GangSide,
    Incident,
    IncidentKind,
    LoadStats,
    Mishap,
    MishapKind,
    News,
    RunStats,
    SimpleGang,
    SimulatedCluster,
    SimulatedFaults,
    Simulation,
    Unfinished,
    classified,
)
from thornback.scheduler.testing import (
    FakeDelta,
    FakeDependencies,
    FakeVerdict,
    GangSeen,
    Play,
    Referee,
    ScriptedPolicy,
    check_retry_policy,
    closed,
    dispatches,
    opened,
)

# What a scheduler needs: here, faults are exceptions.


class Again:
    """A verdict."""

    retry = True
    delay_s = 1.0
    charged = True
    machine_fault = False
    blames_rank = False
    blames_node = False
    memory_bytes = None
    timeout_factor = 1.0
    reason = "once more"
    stop = None
    signature = ""


class Thrice:
    """A policy."""

    def decide(
        self,
        fault: Exception,
        history: Sequence[tuple[Exception, str, Standing]],
        standing: Standing,
        draw: float,
    ) -> Verdict:
        return Again() if len(history) < 3 else FakeVerdict(retry=False)


class Nothing:
    """What follows from an end: nothing."""

    ready: Sequence[tuple[int, range]] = ()
    skipped: Sequence[tuple[int, range, tuple[int, int]]] = ()


class Sizes:
    """Stages that wait for nothing."""

    def start(self) -> Delta:
        return FakeDelta(ready=((0, range(10)),))

    def finished(self, stage: int, ranks: Sequence[range], ok: bool) -> Delta:
        return Nothing()


verdict: Verdict = Again()
policy: RetryPolicy[Exception] = Thrice()
narrower: RetryPolicy[OSError] = policy
delta: Delta = Nothing()
dependencies: Dependencies = Sizes()
past = [(OSError(), "node-1", Standing.NODE)]
assert_type(policy.decide(OSError(), past, Standing.OPEN, 0.5), Verdict)
assert_type(verdict.memory_bytes, int | None)

# Plans and questions.

plan = StagePlan(
    world_size=10, policy=policy, shape=1, slots=2, nodes=1, max_gangs=4, priority=1, max_failed=2
)
assert_type(plan, StagePlan[Exception])
params = SchedulerParams(target_s=1.0, max_batch=100, no_progress_losses=5)
scheduler = Scheduler([plan], dependencies, params, seed=7)
assert_type(scheduler, Scheduler[Exception])
assert_type(scheduler.wake_at, float | None)
assert_type(scheduler.wait_s(0.0), float | None)
assert_type(scheduler.finished, bool)
assert_type(scheduler.counts(0), StageCounts)
assert_type(scheduler.counts(0).backoff, int)
assert_type(scheduler.outstanding(0), Ranks)
assert_type(scheduler.gang_of(0), int | None)
assert_type(scheduler.state(0, 9), RankState)
assert_type(scheduler.reason(0, 9), str)
assert_type(scheduler.waiting_reason(0), str | None)
assert_type(GangState.READY, Literal[GangState.READY])

try:
    scheduler.check_invariants()
except InvariantBroken as error:
    as_assertion: AssertionError = error
    assert_type(error.story, str)
except InvalidTransition as error:
    assert_type((error.state, error.event, error.story), tuple[str, str, str])
except UsageError as error:
    as_value_error: ValueError = error
except SchedulerError:
    pass

# Events in, commands out.


def drive(event: Event[Exception], now: float) -> list[Event[Exception]]:
    """Answer at once."""
    answers: list[Event[Exception]] = []
    for command in scheduler.handle(event, now):
        match command:
            case OpenGang(gang=gang, shape=ShapeKey(base=base, memory_bytes=memory), avoid=avoid):
                assert_type((gang, base, memory), tuple[int, int, int | None])
                assert_type(avoid, tuple[str, ...])
                assert_type(command.ready("node-1", "node-2"), GangReady)
                assert_type(command.lost(OSError(), "node-1"), GangLost[OSError])
                answers += [command.ready("node-1"), command.lost(OSError())]
            case CloseGang(kill=kill):
                assert_type(kill, bool)
                assert_type(command.closed(confirmed=False), GangClosed)
                answers.append(command.closed())
            case Dispatch(ranks=ranks, attempt=attempt, timeout_factor=factor):
                assert_type((ranks, attempt, factor), tuple[Ranks, int, float])
                assert_type(command.succeeded(0, busy_s=0.5), RanksSucceeded)
                assert_type(command.failed(1, OSError(), "node-1", ran_s=0.5), RankFailed[OSError])
                assert_type(command.returned(), RanksReturned)
                assert_type(command.lost(OSError()), GangLost[OSError])
                answers += [command.failed(0, OSError(), "node-1"), command.returned(ranks)]
            case Recall(assignment=assignment):
                assert_type(assignment, int)
            case Record(stage=stage, assignment=of, state=state):
                assert_type((stage, of, state), tuple[int, int | None, RecordState])
                assert_type(command.recorded(), Recorded)
                assert_type(command.failed(OSError()), JournalFailed[OSError])
                answers.append(command.recorded())
            case FinishRun(state=end, reason=reason):
                assert_type((end, reason), tuple[RunState, str])
            case _:
                assert_never(command)
    return answers


everything: Ranks = (range(0, 3), range(5, 10))
told: list[Event[Exception]] = [
    RunStarted(done={0: everything}, failed={1: (range(1),)}),
    RunStarted(),
    GangReady(gang=0, nodes=("node-1",)),
    GangLost(gang=0, fault=OSError(), node="node-1"),
    GangClosed(gang=0, confirmed=False),
    RanksSucceeded(assignment=0, ranks=everything, busy_s=2.0),
    RankFailed(assignment=0, rank=3, fault=ValueError(), node="node-1", ran_s=0.5),
    RanksReturned(assignment=0, ranks=everything),
    Recorded(stage=0, ranks=everything),
    JournalFailed(fault=OSError()),
    NodeDraining(node="node-1", left_s=30.0),
    CancelRequested(reason="enough", kill=True),
    Ticked(),
]
for each in told:
    drive(each, now=1.0)
assert_type(scheduler.handle(Ticked(), 0.0), Sequence[Command])
assert_type(RankFailed(assignment=0, rank=3, fault="text", node="n").fault, str)
by_module: tuple[commands.Command, events.Event[Exception]]
by_module = Recall(assignment=0, kill=True), events.Ticked()
last = FinishRun(state=RunState.SUCCEEDED)

# Whole runs in simulated time.

faults = SimulatedFaults(rank_failures=0.01, worker_deaths=0.001, preemption_s=600.0)
verdicts: Mapping[str, FakeVerdict] = {"code": FakeVerdict(retry=False), "died": FakeVerdict()}
scripted = ScriptedPolicy(verdicts, budget=3)
as_policy: RetryPolicy[str] = scripted
as_verdict: Verdict = FakeVerdict(delay_s=2.0)
as_delta: Delta = FakeDelta()
plans = [StagePlan(world_size=100, policy=scripted), StagePlan(world_size=1, policy=scripted)]
assert_type(plans, list[StagePlan[str]])


def watch(event: Event[str], given: Sequence[Command], asked: Scheduler[str]) -> None:
    asked.check_invariants()


def classify(mishap: Mishap) -> str:
    return "died" if mishap.kind is MishapKind.WORKER else "code"


def side(nodes: Sequence[str], silence_s: float) -> GangSide:
    return SimpleGang(nodes, silence_s)


simulation = Simulation(
    plans,
    lambda: FakeDependencies([100, 1], [[], [0]]),
    classify,
    SimulatedCluster(nodes=3, gangs_per_node=2),
    faults,
    incidents=[Incident(at_s=5.0, kind=IncidentKind.RESTART_DRIVER)],
    params=SchedulerParams(),
    seed=1,
    checked=True,
    gang_side=side,
    watch=watch,
)
assert_type(simulation, Simulation[str])
assert_type(classified(Mishap(kind=MishapKind.CODE)), Fault)
broken = SimulatedFaults(bad_nodes=(BadNode(number=1, kind=BadKind.EIO, flaps_s=60.0),))
by_faults: RetryPolicy[Fault] = thornback.faults.RetryPolicy(retries=2)
books = SimpleGang(["a", "b"])
books.assigned(1, (range(1),), False)
assert_type(books.owes(0, 1), bool)
books.reported(0, 1, News(done=((0, 2.5),), final=True))
assert_type(simulation.scheduler, Scheduler[str])
try:
    stats = simulation.run(most_events=10_000)
    assert_type(stats, RunStats)
    assert_type(
        (stats.makespan_s, stats.attempts, stats.finish), tuple[float, int, FinishRun | None]
    )
    assert_type(simulation.load(), LoadStats)
except Unfinished as error:
    assert_type((error.story, error.stats), tuple[str, RunStats])

# What happened, and why.

recorder = Recorder(plans, dependencies, SchedulerParams(), 1, names=["a"], keep=None, write=print)
assert_type(recorder.scheduler, Scheduler[str])
assert_type(recorder.handle(Ticked(), 1.0), Sequence[Command])
assert_type(recorder.record(), RunRecord[str])
assert_type(recorder.broken, Exception | None)
for moment in recorder.story(0, 17):
    assert_type((moment.kind, moment.text, moment.at_s), tuple[MomentKind, str, float])
    assert_type((moment.gang, moment.assignment), tuple[int | None, int | None])
    assert_type((moment.nodes, moment.fault), tuple[tuple[str, ...], str])
try:
    read = read_record(["{}"])
    assert_type(read, RunRecord[RecordedFault])
    assert_type(story(read, 0, 17), tuple[Moment, ...])
    difference = replay(read)
    assert_type(difference, Difference[RecordedFault] | None)
    for entry in read.entries:
        assert_type(entry, Entry[RecordedFault])
        assert_type((entry.at, entry.commands), tuple[float, tuple[Command, ...]])
except RecordError as error:
    bad_record: ValueError = error

# Checks for what a stranger puts in the place of ours.

check_retry_policy(policy, [OSError(), ValueError()])
check_retry_policy(scripted, list(verdicts))
play = Play(scheduler, now=5.0)
assert_type(play, Play[Exception])
assert_type(play.scheduler, Scheduler[Exception])
assert_type(play.now, float)
assert_type(play.referee, Referee[Exception])
given = [*play.start(), *play.start(done={0: everything}, failed={0: (range(4, 5),)})]
given += play.ready(0, "node-1")
given += play.lost(0, OSError(), node="node-1")
given += play.succeed(0, 1, 2, busy_s=0.5)
given += play.fail(0, 3, ValueError(), node="node-1")
given += play.give_back(0, range(4, 6))
given += [*play.record(), *play.close(), *play.tick(), *play.tick(2.0), *play.send(Ticked(), 1.0)]
assert_type(given, list[Command])
assert_type(dispatches(given), list[tuple[int, int, Ranks]])
assert_type((opened(given), closed(given)), tuple[list[int], list[int]])
referee: Referee[Exception] = Referee()
referee.tell(Ticked())
referee.heard(given)
assert_type(referee.gangs, dict[int, GangSeen])
assert_type(referee.ended, dict[tuple[int, int], RecordState])
assert_type(
    scripted.asked, list[tuple[str, tuple[tuple[str, str, Standing], ...], Standing, float]]
)
