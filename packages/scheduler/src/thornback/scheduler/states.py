"""States and legal moves of ranks and gangs: every change of state in this package goes through
here.

Theory of operation
===================

A **rank** is one unit of work. Its golden path:

    BLOCKED --released--> READY --dispatched--> RUNNING --succeeded--> RECORDING --recorded--> DONE

- The *slot* is free as soon as the rank has left RUNNING; only dependents, progress and the end of
  the run wait for DONE, because only what is durable may be announced.
- RUNNING means: outstanding in exactly one assignment. That is the fence: a report counts only for
  ranks that are still outstanding in the assignment it names. Whatever else arrives (repeated,
  late, from a gang that was given up) never reaches the table: it is dropped before, as a defined
  no-op.
- A rank comes back from RUNNING free of charge (returned, or its worker was lost in company), or is
  judged by the retry policy: READY again, BACKOFF until a timer is due, or FAILED.
- FAILED and SKIPPED are ends as soon as they are decided; the journal's answer is only a receipt
  (the flag OWED on the state's byte), which the end of the run waits for.

A **gang** is resources with workers on them, as *intent*: what has been asked for, and what has
been answered. Draining is not a state but a deadline beside it.

    (OpenGang) OPENING --answered--> READY --closed by us, or lost--> CLOSING --GangClosed--> gone

- CLOSING begins with the one `CloseGang` that every `OpenGang` gets, whether the gang was never
  ready, was lost, or is not wanted any more. Nothing is outstanding in a CLOSING gang.
- An answer that comes after the question was dropped (`GangReady` for a gang that is CLOSING, a
  second `GangLost`) stands in the table as a move from a state to itself: a defined no-op.
- `GangClosed` for a gang that nobody has asked to close is nobody's late message: it is refused.

States of ranks are bytes in a `bytearray` and move by ranges, so a million ranks cost a megabyte.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from types import MappingProxyType
from typing import TypeAlias


class SchedulerError(Exception):
    """Base of what this package raises of its own accord."""


class UsageError(SchedulerError, ValueError):
    """The caller gave something impossible: a plan, a stage that is not there, ranks out of range.

    Not `InvalidTransition`, which is about a gang or an assignment, and what has become of it.
    """


class InvalidTransition(SchedulerError):
    """A rank or a gang was to make a move that its state does not allow, or is not known at all: a
    bug, here or in the driver."""

    def __init__(self, state: str, event: str, story: str) -> None:
        super().__init__(state, event, story)
        self.state = state
        """Its name."""
        self.event = event
        """The name of the move."""
        self.story = story
        """Who, and what was known."""

    def __str__(self) -> str:
        return f"{self.event} is not possible in state {self.state}: {self.story}"


class InvariantBroken(SchedulerError, AssertionError):
    """`check_invariants` found the scheduler's books to contradict each other: a bug of ours."""

    def __init__(self, story: str) -> None:
        super().__init__(story)
        self.story = story
        """What contradicts what."""


class RankState(enum.IntEnum):
    """Where a rank is. The values are the bytes that are kept."""

    BLOCKED = 0
    """Waits for other ranks to be DONE."""
    READY = 1
    """May run; waits for a slot."""
    RUNNING = 2
    """Outstanding in one assignment: running, or waiting in its slot."""
    RECORDING = 3
    """Has a result that is not durable yet."""
    BACKOFF = 4
    """Waits for a timer, to be tried again."""
    DONE = 5
    """Its result is durable. An end."""
    FAILED = 6
    """Given up, or left as an earlier run has left it. An end."""
    SKIPPED = 7
    """Never runs: another one failed, or its stage was stopped. An end."""


class RankMove(enum.Enum):
    """What happens to a rank."""

    __hash__ = object.__hash__  # members are single; Enum's own is Python, and in every event's way

    RELEASED = "released"
    """All it depends on is recorded."""
    FOUND_DONE = "found done"
    """An earlier run has recorded it as done."""
    FOUND_FAILED = "found failed"
    """An earlier run has recorded it as failed, and this one leaves it so."""
    ROOT_FAILED = "root failed"
    """Something it depends on has failed."""
    DISPATCHED = "dispatched"
    SUCCEEDED = "succeeded"
    RECORDED = "recorded"
    GIVEN_BACK = "given back"
    """Comes back to be tried at once: returned, lost with its worker, or retried without delay."""
    POSTPONED = "postponed"
    """Shall be tried again later."""
    DUE = "due"
    """Later is now."""
    GIVEN_UP = "given up"
    """The policy does not try it again, or its stage was stopped."""
    LEFT_OUT = "left out"
    """Its stage was stopped before it had failed or finished."""


_R, _M = RankState, RankMove
RANK_MOVES: Mapping[RankState, Mapping[RankMove, RankState]] = MappingProxyType(
    {
        _R.BLOCKED: {
            _M.RELEASED: _R.READY,
            _M.FOUND_DONE: _R.DONE,
            _M.FOUND_FAILED: _R.FAILED,
            _M.ROOT_FAILED: _R.SKIPPED,
        },
        _R.READY: {
            _M.DISPATCHED: _R.RUNNING,
            _M.POSTPONED: _R.BACKOFF,
            _M.GIVEN_UP: _R.FAILED,
            _M.LEFT_OUT: _R.SKIPPED,
        },
        _R.RUNNING: {
            _M.SUCCEEDED: _R.RECORDING,
            _M.GIVEN_BACK: _R.READY,
            _M.POSTPONED: _R.BACKOFF,
            _M.GIVEN_UP: _R.FAILED,
            _M.LEFT_OUT: _R.SKIPPED,
        },
        _R.RECORDING: {_M.RECORDED: _R.DONE},
        _R.BACKOFF: {_M.DUE: _R.READY, _M.GIVEN_UP: _R.FAILED},
        _R.DONE: {},
        _R.FAILED: {},
        _R.SKIPPED: {},
    }
)

OWED = 0x80
"""Flag on the byte of a FAILED or SKIPPED rank: the journal's receipt is still owed."""
RECEIPTED = frozenset({RankMove.GIVEN_UP, RankMove.ROOT_FAILED, RankMove.LEFT_OUT})
"""Moves that are recorded, and end at once."""
RankStep: TypeAlias = tuple[int, int, int, RankMove]
"""A move as numbers: the state before, the one after, and the byte that is kept then; and its
name."""
RANK_STEPS: Mapping[RankState, Mapping[RankMove, RankStep]] = {
    state: {
        move: (int(state), int(target), target | (OWED if move in RECEIPTED else 0), move)
        for move, target in moves.items()
    }
    for state, moves in RANK_MOVES.items()
}
"""`RANK_MOVES` likewise."""
OWING = (RankState.FAILED | OWED, RankState.SKIPPED | OWED)
RECEIVED = bytes(byte & ~OWED for byte in range(0x100))
"""Translates a byte to the one after its receipt."""


class GangState(enum.Enum):
    """How far a gang is, as far as the scheduler knows."""

    __hash__ = object.__hash__  # as above

    OPENING = "opening"
    """`OpenGang` was sent and not answered."""
    READY = "ready"
    """Its workers are alive: it can be given work."""
    CLOSING = "closing"
    """`CloseGang` was sent and not answered."""


class GangMove(enum.Enum):
    """What happens to a gang."""

    __hash__ = object.__hash__  # as above

    ANSWERED = "GangReady"
    LOST = "GangLost"
    UNWANTED = "close"
    """The scheduler itself wants it closed."""
    CLOSED = "GangClosed"


_G, _V = GangState, GangMove
GANG_MOVES: Mapping[GangState, Mapping[GangMove, GangState | None]] = MappingProxyType(
    {
        _G.OPENING: {
            _V.ANSWERED: _G.READY,
            _V.LOST: _G.CLOSING,
            _V.UNWANTED: _G.CLOSING,
        },
        _G.READY: {
            _V.ANSWERED: _G.READY,  # repeated: a no-op
            _V.LOST: _G.CLOSING,
            _V.UNWANTED: _G.CLOSING,
        },
        _G.CLOSING: {
            _V.ANSWERED: _G.CLOSING,  # the answer crossed our CloseGang: a no-op
            _V.LOST: _G.CLOSING,  # likewise, or repeated: a no-op
            _V.CLOSED: None,
        },
    }
)
"""None: the gang is gone, and forgotten."""


def after_rank_move(state: RankState, move: RankMove, story: str) -> RankState:
    """Return the state after the move. Raises `InvalidTransition`."""
    target = RANK_MOVES[state].get(move)
    if target is None:
        raise InvalidTransition(state.name, move.value, story)
    return target


def after_gang_move(state: GangState, move: GangMove, who: object) -> GangState | None:
    """Return the state after the move; None: gone. Raises `InvalidTransition`, which tells who it
    is."""
    moves = GANG_MOVES[state]
    if move not in moves:
        raise InvalidTransition(state.name, move.value, str(who))
    return moves[move]
