"""Checks what ranks say they have published, before it is recorded.

What a worker sends is data: a rank may name the staged file of another rank, a file of the driver's
machine, or a final name that another rank has. Any of these is that rank's failure, not the run's.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from functools import partial
from hashlib import blake2b

import anyio
import attrs

from thornback.executor.apart import apart
from thornback.executor.certifier import LiveAssignment
from thornback.executor.journal.errors import JournalError
from thornback.executor.journal.promote import Mover
from thornback.executor.journal.targets import Holders
from thornback.executor.paths import (
    CONTROL,
    STAGING,
    check_file_name,
    is_below,
    is_url,
    located,
    normalised,
    staged_parts,
    staging_of,
)
from thornback.executor.plan import RunPlan
from thornback.executor.ports import Opened
from thornback.pool import CaughtError, Outcome, Report, SeenBy

THREADS = 8
_RANK_BITS = 40


class OutputDesk:
    """Examines reports, and knows which rank has published under which final name.

    Of a name only a hash of 64 bits is kept: a million of them take 50 MB.

    Args:
        plan: of the run.
        opened: what earlier runs have published.
        disk_s: how long looking at the files of one report may take.
    """

    def __init__(self, plan: RunPlan, opened: Opened, *, disk_s: float) -> None:
        self._plan = plan
        self._state = plan.settings.state_url
        self._mover = Mover(state=self._state)
        self._disk_s = disk_s
        self._limiter = anyio.CapacityLimiter(THREADS)
        self._holders = Holders()
        """By hash of the name: stage and rank in one number."""
        for name, pairs in opened.targets.items():
            if (number := plan.index.get(name)) is not None:
                for rank, target in pairs:
                    self._holders.set(target, number << _RANK_BITS | rank)

    async def examine(self, live: LiveAssignment, report: Report) -> Report:
        """Return the report with outcomes failed whose files are not what a rank may publish.

        Cancellation: nothing is changed.
        """
        if not any(outcome.ok and outcome.outputs for outcome in report.outcomes):
            return report
        outcomes = [self._sound(live, outcome) for outcome in report.outcomes]
        looked = [(outcome, _as_named(outcome)) for outcome in outcomes]
        look = partial(self._look, outcomes)
        with anyio.move_on_after(self._disk_s):  # a disk that hangs: promotion looks once more
            looked = await apart(look, self._limiter)
        for outcome, places in looked:
            live.targets[outcome.rank] = tuple(map(_hash, places))
        return attrs.evolve(report, outcomes=tuple(outcome for outcome, _ in looked))

    def claim(self, live: LiveAssignment, outcome: Outcome) -> Outcome:
        """Return the outcome, failed if another rank has one of its final names; else they are
        this rank's from now on, whichever of its attempts is recorded.
        """
        stage = live.command.stage
        mine = stage << _RANK_BITS | outcome.rank
        hashes = live.targets.get(outcome.rank, ())
        for number, (_, final) in zip(hashes, outcome.outputs, strict=True):
            holder = self._holders.get(number)
            if holder is not None and holder != mine:
                other, rank = holder >> _RANK_BITS, holder & (1 << _RANK_BITS) - 1
                return _refused(
                    outcome,
                    f"{final!r} was published by stage {self._plan.stages[other].name!r}, rank "
                    f"{rank}, and by stage {self._plan.stages[stage].name!r}, rank {outcome.rank}: "
                    "the first one stays. Give each rank a name of its own, such as "
                    "f'part-{ctx.rank}'",
                )
        for number in hashes:
            self._holders.set(number, mine)
        return outcome

    def _sound(self, live: LiveAssignment, outcome: Outcome) -> Outcome:
        """Return the outcome, failed if its names alone are wrong. Looks at no disk."""
        if not outcome.ok or not outcome.outputs:
            return outcome
        stage = self._plan.stages[live.command.stage].name
        folder = staging_of(f"{self._state.rstrip('/')}/{STAGING}", stage, live.epoch, outcome.rank)
        pairs: dict[str, tuple[str, str]] = {}
        for staged, final in outcome.outputs:
            if staged_parts(staged) is None or os.path.dirname(staged) != folder:
                return _refused(
                    outcome, f"{staged!r} is not in {folder!r}, where this attempt stages its files"
                )
            try:
                if located(final, self._plan.settings.cwd, self._plan.settings.protocols) != final:
                    raise ValueError("expected an absolute path or a URL")
                check_file_name(final)
            except ValueError as error:
                return _refused(outcome, f"nothing can be published as {final!r}: {error}")
            pairs[normalised(final)] = staged, final  # the last of one name counts
        return attrs.evolve(outcome, outputs=tuple(pairs.values()))

    def _look(self, outcomes: Sequence[Outcome]) -> list[tuple[Outcome, list[str]]]:
        """Return each outcome, failed if its files are not there or are no files, and where its
        final names lead (blocking).
        """
        looked = []
        for outcome in outcomes:
            try:
                places = [self._place(staged, final) for staged, final in outcome.outputs]
                looked.append((outcome, places))
            except JournalError as error:
                looked.append((_refused(outcome, str(error)), []))
            except FileNotFoundError as error:
                looked.append((_lost(outcome, str(error)), []))
            except OSError:  # promotion says so, if it is still the case then
                looked.append((outcome, _as_named(outcome)))
        return looked

    def _place(self, staged: str, final: str) -> str:
        """Return where a final name leads."""
        if not is_url(staged) and not self._mover.is_staged(staged):
            raise FileNotFoundError(
                f"{staged!r} is not there: it was removed, or state= is a folder that the driver "
                "does not share with the node that wrote it"
            )
        place = _real(final)
        for own in (CONTROL, STAGING):
            if is_below(place, f"{_real_folder(self._state)}/{own}"):
                raise JournalError(f"{final!r} is in the folder {own!r} of the state")
        return place


def _as_named(outcome: Outcome) -> list[str]:
    return [normalised(final) for _, final in outcome.outputs]


def _real(place: str) -> str:
    if is_url(place):
        return normalised(place)
    return os.path.join(_real_folder(os.path.dirname(place)), os.path.basename(place))


def _real_folder(place: str) -> str:
    return normalised(place).rstrip("/") if is_url(place) else os.path.realpath(place)


def _hash(place: str) -> int:
    digest = blake2b(place.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big")


def _refused(outcome: Outcome, why: str) -> Outcome:
    """Return the outcome as a failure of the rank's own code, which no retry heals."""
    error = CaughtError(
        type_names=("thornback.executor.BadOutput", "builtins.ValueError", "builtins.Exception"),
        message=why,
        attributes={"non_retryable": True},
    )
    return _failed(outcome, error)


def _lost(outcome: Outcome, why: str) -> Outcome:
    """Return the outcome as a failure of its node, which may have lost the file."""
    error = CaughtError(
        type_names=("thornback.executor.OutputLost", "builtins.OSError", "builtins.Exception"),
        message=why,
        attributes={"errno": errno.ESTALE},
    )
    return _failed(outcome, error)


def _failed(outcome: Outcome, error: CaughtError) -> Outcome:
    return attrs.evolve(
        outcome, ok=False, result=None, outputs=(), error=error, seen_by=SeenBy.RANK, phase="rank"
    )
