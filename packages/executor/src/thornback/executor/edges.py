"""What a stage comes after, as a user says it: `Stage(after=After("clean", kind="one_to_one"))`.
Values, checked when they are made."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, TypeAlias

import attrs

from thornback.executor.errors import UsageError
from thornback.graph import Condition, Edge


@attrs.frozen(slots=True)
class Within:
    """A condition: so many ranks of the stage before may have failed or been skipped.

    Raises:
        UsageError: a negative number, or no number.
    """

    max_failed: float
    """A count, or a fraction of its ranks below 1."""

    def __attrs_post_init__(self) -> None:
        """Refuse what is no number of ranks."""
        is_number = isinstance(self.max_failed, int | float) and not isinstance(
            self.max_failed, bool
        )
        if not is_number or not 0 <= self.max_failed < math.inf:
            raise UsageError(f"Within({self.max_failed!r}): expected a number of ranks, 0 or more")


@attrs.frozen(slots=True)
class After:
    """One stage that must come first, where a bare name does not say enough.

    Raises:
        UsageError: a kind or a condition that there is not.
    """

    stage: str
    """Its name."""
    kind: Literal["barrier", "one_to_one"] = attrs.field(default="barrier", kw_only=True)
    """'barrier': every rank waits for all of its ranks, and reads them by `ctx.results(name)`.
    'one_to_one': rank i waits for its rank i alone, and reads that by `ctx.result(name)`; both
    stages have as many ranks."""
    condition: Literal["all_success", "all_done"] | Within | None = attrs.field(
        default=None, kw_only=True
    )
    """How it must have ended. 'all_success': every rank is done; 'all_done': every rank has ended,
    whatever it came to; `Within(n)`: at most n have failed or been skipped. None: within its own
    `max_failed`. From rank to rank these speak of the rank of the same number ('all_done' runs also
    where that failed); None is 'all_success', and `Within(n)` besides skips all that waits once
    more than n have failed."""

    results: bool = attrs.field(default=True, kw_only=True)
    """Whether its results can be read. After a barrier they are sent to every worker before the
    first rank there, and more than 64 MiB are refused; from rank to rank each has its own, which
    the driver keeps until then, in memory and beyond 256 MiB on disk. False where they are not
    wanted."""

    def __attrs_post_init__(self) -> None:
        """Refuse words that mean nothing."""
        if not isinstance(self.stage, str):
            raise UsageError(f"After({self.stage!r}): expected the name of a stage")
        if self.kind not in ("barrier", "one_to_one"):
            raise UsageError(
                f"After({self.stage!r}, kind={self.kind!r}): expected 'barrier' or 'one_to_one'"
            )
        words = (None, "all_success", "all_done")
        if not isinstance(self.condition, Within) and self.condition not in words:
            raise UsageError(
                f"After({self.stage!r}, condition={self.condition!r}): expected 'all_success', "
                "'all_done' or Within(n)"
            )

    @property
    def one_to_one(self) -> bool:
        """Whether rank i waits for rank i."""
        return self.kind == "one_to_one"


Parents: TypeAlias = tuple[str | After, ...]


def parents_of(after: str | After | Sequence[str | After]) -> Parents:
    """Return what was given as one or several, always as several."""
    return (after,) if isinstance(after, str | After) else tuple(after)


def allowed(max_failed: float, world_size: int) -> int:
    """Return a count, or a fraction of the world size below 1, as a number of ranks."""
    return math.floor(max_failed * world_size) if max_failed < 1 else int(max_failed)


def edge_to(after: After, position: int, world_size: int) -> Edge:
    """Return the edge of the graph; `position` and `world_size` are those of the stage before."""
    condition: Condition | None = None
    match after.condition:
        case "all_success":
            condition = Condition.all_success()
        case "all_done":
            condition = Condition.all_done()
        case Within(max_failed=most):
            condition = Condition.within(allowed(most, world_size))
        case None:
            pass
    return Edge(position, one_to_one=after.one_to_one, condition=condition)
