"""What an event costs the scheduler, beside bare loops over the same events in the same run.

    python tools/bench/scheduler.py [--ranks 10000 100000 1000000] [--repeat 3]

One stage on 1,000 gangs, no faults, answers at once; and the least of these sizes once more with 99
stages of one rank behind it. Two kinds of work:

- *long*: ranks of 3 s, so that each is an assignment of its own: two events a rank, and every event
  does all there is to do. Cost per event, and its ratio to the bare loops.
- *short*: ranks of 0.5 ms, in assignments as large as the scheduler makes them: ranks per second.

The bare loops handle the recorded events of the long run. `moves`: find the handler of an event by
its type, and move its ranks through the transition table. `commands`: likewise, take the slot's
next ranks, and make the same commands, which is the least that any scheduler does: a rank is three
moves and two commands. Seconds are CPU time of this process, the least of the
repeats, taken in turns. Memory is what `tracemalloc` sees at its peak in one more long run, driver
excluded: nothing here keeps what it has told. Targets: cost flat within 1.3 from 10^4 to 10^6 and
whatever else the job has, at most 100 bytes per rank at 10^6, ratio to either bare loop at least
0.25 (aim 0.4), 10^6 ranks per second.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
import tracemalloc
from collections import deque
from collections.abc import Callable, Iterator, Sequence

from thornback.graph import Dag, Node
from thornback.scheduler import RankState, Scheduler, StagePlan
from thornback.scheduler.commands import (
    CloseGang,
    Command,
    Dispatch,
    OpenGang,
    Record,
    RecordState,
)
from thornback.scheduler.events import (
    Event,
    GangReady,
    Ranks,
    RanksSucceeded,
    Recorded,
    RunStarted,
)
from thornback.scheduler.states import RANK_MOVES, RankMove
from thornback.scheduler.testing import ScriptedPolicy

GANGS = 1000
LONG_S, SHORT_S = 3.0, 0.0005


def made(ranks: int, stages: int = 1) -> Scheduler[str]:
    """Return a scheduler of one stage, and of others of one rank each, in a chain."""
    policy = ScriptedPolicy({})
    plans = [StagePlan(world_size=ranks, max_gangs=GANGS, policy=policy)]
    plans += [StagePlan(world_size=1, shape=n, policy=policy) for n in range(1, stages)]
    return Scheduler(plans, Dag([Node(ranks), *(Node(1, (n - 1,)) for n in range(1, stages))]))


def answer(command: Command, rank_s: float) -> Event[str] | None:
    """Return the event that answers a command; None: it is owed none."""
    match command:
        case Dispatch():
            busy_s = rank_s * sum(map(len, command.ranks))
            return RanksSucceeded(assignment=command.assignment, ranks=command.ranks, busy_s=busy_s)
        case Record():
            return command.recorded()
        case OpenGang():
            return command.ready("node")
        case CloseGang():
            return command.closed()
        case _:
            return None


def play(
    ranks: int, rank_s: float, handle: Callable[[Event[str], float], Sequence[Command]]
) -> Iterator[Event[str]]:
    """Have a run handled in the order of a queue; yield its events."""
    inbox: deque[Event[str]] = deque([RunStarted()])
    now = 0.0
    while inbox:
        event = inbox.popleft()
        now += 1e-4
        for command in handle(event, now):
            told = answer(command, rank_s)
            if told is not None:
                inbox.append(told)
        yield event


def events_of(ranks: int, rank_s: float, stages: int = 1) -> list[Event[str]]:
    """Return all events of a run."""
    scheduler = made(ranks, stages)
    events = list(play(ranks, rank_s, scheduler.handle))
    assert scheduler.finished
    assert scheduler.counts(0).done == ranks
    return events


def cpu_s(events: Sequence[Event[str]], handle: Callable[[Event[str], float], object]) -> float:
    """Return the CPU seconds of handling these events."""
    gc.collect()
    gc.disable()
    started = time.process_time()
    now = 0.0
    for event in events:
        now += 1e-4
        handle(event, now)
    took = time.process_time() - started
    gc.enable()
    return took


class Bare:
    """A table from types of events to handlers that move ranks through the transition table."""

    def __init__(self, ranks: int, *, commands: bool) -> None:
        self._states = bytearray((RankState.READY,)) * ranks
        self._size = ranks
        self._next = 0
        self._live: dict[int, Ranks] = {}
        self._assignments = 0
        self._out: list[Command] = []
        self._table: dict[type, Callable[..., None]] = {
            RanksSucceeded: self._succeeded_with_commands if commands else self._succeeded,
            Recorded: self._recorded,
        }
        if commands:
            self._table[GangReady] = self._ready
        else:
            self._states = bytearray((RankState.RUNNING,)) * ranks

    def handle(self, event: Event[str], now: float) -> Sequence[Command]:
        """Handle one event."""
        handler = self._table.get(type(event))
        if handler is not None:
            handler(event)
        out, self._out = self._out, []
        return out

    def _move(self, ranks: Ranks, source: RankState, move: RankMove) -> None:
        target = RANK_MOVES[source][move]
        for piece in ranks:
            size = len(piece)
            if self._states.count(source, piece.start, piece.stop) != size:
                raise ValueError(ranks)
            self._states[piece.start : piece.stop] = bytes((target,)) * size

    def _ready(self, event: GangReady) -> None:
        self._dispatch(event.gang, 1)

    def _succeeded(self, event: RanksSucceeded) -> None:
        self._move(event.ranks, RankState.RUNNING, RankMove.SUCCEEDED)

    def _succeeded_with_commands(self, event: RanksSucceeded) -> None:
        ranks = self._live.pop(event.assignment)
        self._move(ranks, RankState.RUNNING, RankMove.SUCCEEDED)
        self._out.append(
            Record(stage=0, ranks=ranks, assignment=event.assignment, state=RecordState.DONE)
        )
        self._dispatch(0, len(ranks[0]))

    def _dispatch(self, gang: int, size: int) -> None:
        if self._next >= self._size:
            return
        ranks = (range(self._next, min(self._size, self._next + size)),)
        self._next = ranks[0].stop
        self._move(ranks, RankState.READY, RankMove.DISPATCHED)
        number = self._assignments
        self._assignments += 1
        self._live[number] = ranks
        self._out.append(Dispatch(gang=gang, assignment=number, stage=0, ranks=ranks))

    def _recorded(self, event: Recorded) -> None:
        self._move(event.ranks, RankState.RECORDING, RankMove.RECORDED)


def peak_bytes(ranks: int) -> int:
    """Return the most memory that a scheduler of so many long ranks holds."""
    gc.collect()
    tracemalloc.start()
    scheduler = made(ranks)
    for _ in play(ranks, LONG_S, scheduler.handle):
        pass
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return peak


def measure(ranks: int, repeat: int) -> dict[str, float]:
    """Return the figures for so many ranks."""
    long, short = events_of(ranks, LONG_S), events_of(ranks, SHORT_S)
    ours, moves, commands, fast = [], [], [], []
    for _ in range(repeat):
        ours.append(cpu_s(long, made(ranks).handle))
        moves.append(cpu_s(long, Bare(ranks, commands=False).handle))
        commands.append(cpu_s(long, Bare(ranks, commands=True).handle))
        fast.append(cpu_s(short, made(ranks).handle))
    each = min(ours) / len(long)
    return {
        "events": len(long),
        "us_per_event": round(each * 1e6, 2),
        "bare_moves_us": round(min(moves) / len(long) * 1e6, 2),
        "bare_commands_us": round(min(commands) / len(long) * 1e6, 2),
        "ratio_to_moves": round(min(moves) / min(ours), 3),
        "ratio_to_commands": round(min(commands) / min(ours), 3),
        "short_events": len(short),
        "short_ranks_per_s": round(ranks / min(fast)),
    }


def chain(ranks: int, repeat: int) -> dict[str, float]:
    """Return the figures for so many long ranks with 99 stages behind them."""
    events = events_of(ranks, LONG_S, 100)
    ours = [cpu_s(events, made(ranks, 100).handle) for _ in range(repeat)]
    each = min(ours) / len(events)
    return {"ranks": ranks, "stages": 100, "us_per_event": round(each * 1e6, 2)}


def main() -> None:
    """Measure, and print one line of JSON per size and one with the whole."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--memory-ranks", type=int, default=1_000_000)
    options = parser.parse_args()
    found: dict[object, dict[str, float]] = {}
    for ranks in options.ranks:
        found[ranks] = measure(ranks, options.repeat)
        print(json.dumps({"ranks": ranks, **found[ranks]}), flush=True)
    found["chain"] = chain(min(options.ranks), options.repeat)
    print(json.dumps(found["chain"]), flush=True)
    costs = [figures["us_per_event"] for figures in found.values()]
    whole: dict[str, float] = {"flat_within": round(max(costs) / min(costs), 2)}
    if options.memory_ranks:
        peak = peak_bytes(options.memory_ranks)
        whole["bytes_per_rank"] = round(peak / options.memory_ranks, 1)
    print(json.dumps(whole))


if __name__ == "__main__":
    main()
