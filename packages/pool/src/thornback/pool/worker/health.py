"""Decides when a rank process is replaced, and when a slot is parked because its GPUs failed. Pure.

A process can break without dying: its model engine is dead, or its CUDA context is lost. Then every
rank fails in it. Before its next rank the process is *replaced*, so that the set-up runs again in a
fresh one, in two cases:

- an error lost the process its GPU;
- two different ranks failed in it in a row. Errors of networks and of throttling servers neither
  count nor reset the count; a success resets it.

A set-up can take ten minutes, and repeating it repairs no bug. So a *signature* (type of the
exception and innermost frame of user code) causes one replacement. It causes another one only in a
process in which a rank has succeeded, and each time after twice as many failures in a row. An
engine that dies every few hours is therefore replaced each time; an error in part of the data soon
causes no more replacements. After three replacements in a row without a success there are no more
until a rank succeeds.

The memory belongs to the slot and ends with the worker. A memory per worker would be wrong: if
eight engines die of one cause, each slot has to replace its own. The rules do not ask whether the
program has a set-up: without one a fresh process costs milliseconds, and module globals can break
as well.

A slot is *parked* when GPUs that no other slot uses fail: at once if the hardware reports it,
otherwise when the next process fails in the same way with another rank, or in its set-up.
"""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from thornback.faults import (
    NETWORK_RULES,
    THROTTLED_RULES,
    Classifier,
    FaultKind,
    is_gpu_broken,
    is_gpu_fault,
    loses_gpu,
)
from thornback.pool.ports import CaughtError

ENOUGH_IN_A_ROW = 2
FRUITLESS = 3
"""Replacements in a row without a success, after which there are no more."""
_REMEMBERED = 64
"""Number of signatures that are kept; the oldest is dropped first."""
_REMEMBERED_RANKS = 1024
_CLASSIFIER = Classifier(user_rules=(*THROTTLED_RULES, *NETWORK_RULES))
_SETUP = -1
"""Stands for the set-up among the numbers of ranks."""


class SlotHealth:
    """Keeps the record of one slot (see the top of this file).

    Args:
        own_gpus: the slot has GPUs that no other slot of the worker uses.
    """

    def __init__(self, *, own_gpus: bool) -> None:
        self.parked: CaughtError | None = None
        """The error that parked the slot; None: it is in use."""
        self._own_gpus = own_gpus
        self._program = ""
        self._process = 0
        """Number of the current process."""
        self._in_a_row: dict[int, None] = {}
        """Ranks that failed in this process since its last success."""
        self._failed: dict[int, None] = {}
        """Ranks that failed in this process."""
        self.healthy = False
        """A rank has succeeded in this process."""
        self._was_healthy = False
        """A rank has succeeded in this slot."""
        self._fruitless = 0
        self._replaced: dict[tuple[str, str, str], int] = {}
        """Number of replacements by program and signature."""
        self._suspects: dict[int, int] = {}
        """Evidence against the GPUs since the last success: rank and number of the process."""

    def began(self, program: str) -> None:
        """Note that a fresh process was started for a program."""
        if program != self._program:
            self._program, self._fruitless = program, 0
        self._process += 1
        self._in_a_row.clear()
        self._failed.clear()
        self.healthy = False

    def succeeded(self) -> None:
        """Note that a rank succeeded."""
        self.healthy = self._was_healthy = True
        self._fruitless = 0
        if self._in_a_row or self._suspects:
            self._in_a_row.clear()
            self._suspects.clear()

    def failed(self, rank: int, error: CaughtError) -> bool:
        """Note that a rank raised an error; return whether the process is to be replaced."""
        if _is_passing(error):
            return False
        _remember(self._failed, rank)
        _remember(self._in_a_row, rank)
        if self._parks(rank, error):
            return True
        if not self._is_broken(error):
            return False
        signature = self._signature(error)
        times = self._replaced.pop(signature, 0)
        self._replaced[signature] = times + 1
        while len(self._replaced) > _REMEMBERED:
            del self._replaced[next(iter(self._replaced))]
        self._fruitless += 1
        return True

    def set_up_failed(self, error: CaughtError) -> None:
        """Note that the set-up raised an error in a fresh process."""
        self._parks(_SETUP, error)

    def has_failed(self, ranks: Iterable[int]) -> bool:
        """Return whether one of these ranks failed in the current process."""
        return bool(self._failed) and any(rank in self._failed for rank in ranks)

    def _is_broken(self, error: CaughtError) -> bool:
        """Return whether the process is to be replaced."""
        if self._fruitless >= FRUITLESS:
            return False
        if loses_gpu(error):
            return True
        times = self._replaced.get(self._signature(error), 0)
        enough = len(self._in_a_row) >= ENOUGH_IN_A_ROW << times
        return enough and (times == 0 or self.healthy)

    def _parks(self, rank: int, error: CaughtError) -> bool:
        """Park the slot if its GPUs failed; return whether it is parked."""
        if not self._own_gpus or not is_gpu_fault(error, healthy_before=self._was_healthy):
            return False
        again = any(
            process < self._process and (other != rank or rank == _SETUP)
            for other, process in self._suspects.items()
        )
        self._suspects.setdefault(rank, self._process)
        if again or is_gpu_broken(error):
            self.parked = error
        return self.parked is not None

    def _signature(self, error: CaughtError) -> tuple[str, str, str]:
        name = error.type_names[0] if error.type_names else ""
        return self._program, name, str(error.attributes.get("user_frame", ""))


def _is_passing(error: CaughtError) -> bool:
    """Return whether a server or a network failed, which says nothing about the process."""
    # No rule looks at the traceback, but to redact it costs most of the time.
    brief = attrs.evolve(error, traceback="")
    kind = _CLASSIFIER.classify(brief, {"origin": "rank", "phase": "rank"}).kind
    return kind in (FaultKind.THROTTLED, FaultKind.NETWORK)


def _remember(ranks: dict[int, None], rank: int) -> None:
    ranks[rank] = None
    if len(ranks) > _REMEMBERED_RANKS:
        del ranks[next(iter(ranks))]
