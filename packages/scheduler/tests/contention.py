"""A stage at work and one of higher priority that comes, and how such a play goes on to its end."""

from __future__ import annotations

from thornback.scheduler import SchedulerParams, StagePlan
from thornback.scheduler.commands import Command, Dispatch, Recall, RunState
from thornback.scheduler.testing import Play as AnyPlay
from thornback.scheduler.testing import plan, play

Play = AnyPlay[str]
LOW, URGENT = 1, 2
"""The two stages; stage 0 is what the urgent one waits for."""


def low(gangs: int, *, slots: int = 1, nodes: int = 1) -> StagePlan[str]:
    """The stage that is at work when another comes."""
    return plan(40, max_gangs=gangs, slots=slots, nodes=nodes, shape=1)


def urgent(
    ranks: int, *, slots: int = 1, nodes: int = 1, max_gangs: int | None = None
) -> StagePlan[str]:
    """The one that comes."""
    return plan(ranks, priority=1, slots=slots, nodes=nodes, max_gangs=max_gangs, shape=1)


def contended(
    first: StagePlan[str],
    second: StagePlan[str],
    *others: StagePlan[str],
    params: SchedulerParams | None = None,
    low_s: float = 9.0,
) -> Play:
    """Return a play at whose end stage 2 has just become ready, while stage 1 has as many gangs as
    it may have, each on nodes of its own, and has finished a rank in each slot."""
    parents = [[], [], [0], *([] for _ in others)]
    game = play(plan(1), first, second, *others, parents=parents, params=params)
    game.start()
    (starter,) = gangs_of(game, 0)
    game.ready(starter)
    for gang in gangs_of(game, LOW):
        game.ready(gang, *(f"{gang}{letter}" for letter in "ab"[: first.nodes]))
        for number in held(game, gang):
            game.succeed(number, busy_s=low_s)
            game.record()
    end_all(game, starter)
    game.record()
    game.close()
    assert game.scheduler.counts(URGENT).ready == second.world_size
    return game


def long_awaited() -> tuple[Play, list[int]]:
    """Return a play in which two gangs of stage 1 make way, and its third was lost: a minute later
    it may have one of others, by the yield rule. And those three gangs."""
    game = contended(low(3, slots=2), urgent(12, slots=2))
    gangs, own = gangs_of(game, LOW), gangs_of(game, URGENT)[:2]
    for gang in own:
        game.ready(gang)
        end_one(game, gang)
    game.record()
    game.lost(gangs[2], "preempted")
    game.tick(5.0)
    assert yielding(game) == gangs[:2]
    end_one(game, gangs[0])
    game.record()
    return game, gangs


def gangs_of(game: Play, stage: int) -> list[int]:
    """The gangs that a stage has, opening ones too."""
    gangs = game.scheduler._board.gangs.values()
    return [gang.number for gang in gangs if gang.lane.stage.number == stage]


def yielding(game: Play) -> list[int]:
    return [gang.number for gang in game.scheduler._board.gangs.values() if gang.yields_to]


def held(game: Play, gang: int) -> list[int]:
    return list(game.referee.gangs[gang].live)


def end_one(game: Play, gang: int, busy_s: float = 9.0) -> list[Command]:
    """The oldest assignment of a gang ends well."""
    return game.succeed(held(game, gang)[0], busy_s=busy_s)


def end_all(game: Play, gang: int, busy_s: float = 9.0) -> list[Command]:
    """All that a gang holds now ends well."""
    return [c for number in held(game, gang) for c in game.succeed(number, busy_s=busy_s)]


def given(commands: list[Command]) -> list[tuple[int, int]]:
    """(gang, stage) of each `Dispatch`."""
    return [(c.gang, c.stage) for c in commands if isinstance(c, Dispatch)]


def recalled(commands: list[Command]) -> list[int]:
    return [c.assignment for c in commands if isinstance(c, Recall)]


def go_on(game: Play, room: int) -> None:
    """Answer one thing that is owed, on a cluster with room for so many gangs; without one, let
    time pass."""
    board, seen = game.scheduler._board, game.referee.gangs
    opening = [number for number, gang in seen.items() if gang.state == "opening"]
    taken = sum(gang.state in ("ready", "closing") for gang in seen.values())
    if game.referee.records:
        game.record()
    elif board.assignments:
        number, assignment = next(iter(board.assignments.items()))
        for later, queued in board.assignments.items():
            if queued.recalled and list(queued.gang.live).index(later) >= queued.gang.lane.slots:
                game.give_back(later, *queued.outstanding)
                return
        game.succeed(number, busy_s=1.0 * assignment.left)
    elif any(gang.state == "closing" for gang in seen.values()):
        game.close()
    elif opening and taken < room:
        game.ready(opening[0], f"{opening[0]}a", f"{opening[0]}b")
    elif game.scheduler.wake_at is not None:
        game.tick()
    else:
        game.lost(opening[0], "preempted")


def finish(game: Play, room: int, *, lost: int = 0) -> None:
    """Bring the run to its end in a fair world; all ranks but so many must be done."""
    for _ in range(1000):
        if game.scheduler.finished:
            break
        go_on(game, room)
    assert game.referee.finish is not None, "the run does not end"
    stages = game.scheduler._board.stages
    done = sum(game.scheduler.counts(stage.number).done for stage in stages)
    assert done == sum(stage.plan.world_size for stage in stages) - lost
    assert (game.referee.finish.state is RunState.SUCCEEDED) == (not lost)
