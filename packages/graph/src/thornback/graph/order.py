"""Names to positions, and the order of stages: what can be wrong with edges, and the mend. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence


class GraphError(ValueError):
    """What was given makes no sense: stages that cannot be ordered (the subclasses say why), or
    numbers and ranks that cannot be."""


class DuplicateStageError(GraphError):
    """Two stages of one job have the same name."""

    def __init__(self, stage: str, job: str = "") -> None:
        super().__init__(stage, job)
        self.stage = stage
        """The name."""
        self.job = job
        """Name of the job; empty: not known."""

    def __str__(self) -> str:
        where = f"Job {self.job!r}" if self.job else "This job"
        return (
            f"{where} has two stages named {self.stage!r}: `after=` and the journal go by names, "
            "so give each stage its own."
        )


class UnknownStageError(GraphError):
    """A stage comes after one that is not in the job (`CycleError`: it is, but too late)."""

    def __init__(self, stage: str, parent: str, known: tuple[str, ...], job: str = "") -> None:
        super().__init__(stage, parent, known, job)
        self.stage = stage
        """The one that names a parent."""
        self.parent = parent
        """The name that no stage has."""
        self.known = known
        """The names that there are, in the order of the job."""
        self.job = job
        """Name of the job; empty: not known."""

    def __str__(self) -> str:
        # Imported here: only a message needs it, and it costs more than this whole package.
        from difflib import get_close_matches

        where = f"job {self.job!r}" if self.job else "this job"
        near = get_close_matches(
            self.parent, [name for name in self.known if name != self.stage], 1
        )
        if near:
            hint = f"did you mean {near[0]!r}?"
        else:
            hint = "its stages are " + ", ".join(map(repr, self.known)) + "."
        return f"Stage {self.stage!r} comes after {self.parent!r}, which is not in {where}: {hint}"


class CycleError(GraphError):
    """Stages wait for each other (`UnknownStageError`: one waits for a stage that is not there)."""

    def __init__(self, cycle: tuple[str, ...], job: str = "") -> None:
        super().__init__(cycle, job)
        self.cycle = cycle
        """Starts and ends with the same name; each comes before the next."""
        self.job = job
        """Name of the job; empty: not known."""

    def __str__(self) -> str:
        shown = " -> ".join(self.cycle)
        if len(self.cycle) == 2:
            name = self.cycle[0]
            return f"Stage {name!r} comes after itself ({shown}): remove it from its `after=`."
        where = f"job {self.job!r}" if self.job else "this job"
        return (
            f"Stages of {where} wait for each other: {shown} (each must end before the next "
            "starts). Remove one of them from the `after=` of another."
        )


def resolve(
    stages: Sequence[tuple[str, Sequence[str]]], job: str = ""
) -> tuple[tuple[int, ...], ...]:
    """Return for each stage the positions of the stages it comes after, ascending, each once.

    Args:
        stages: (name, names of the stages it comes after), in the order of the job.
        job: name of the job, for messages.

    Raises:
        DuplicateStageError: two stages have one name.
        UnknownStageError: a parent is not among the stages; names the nearest one.
        CycleError: the stages cannot be ordered; shows the cycle.
    """
    index: dict[str, int] = {}
    for name, _ in stages:
        if name in index:
            raise DuplicateStageError(name, job)
        index[name] = len(index)
    parents: list[tuple[int, ...]] = []
    for name, after in stages:
        for parent in after:
            if parent not in index:
                raise UnknownStageError(name, parent, tuple(index), job)
        parents.append(tuple(sorted(dict.fromkeys(index[parent] for parent in after))))
    topological_order(parents, tuple(index), job)
    return tuple(parents)


def topological_order(
    parents: Sequence[Sequence[int]], names: Sequence[str] = (), job: str = ""
) -> tuple[int, ...]:
    """Return every position once, parents before children; first come first among equals.

    Args:
        parents: for each position the positions before it. Repeats count once.
        names: what to call the positions in an error; their numbers if empty.
        job: name of the job, for messages.

    Raises:
        GraphError: a parent is not a position.
        CycleError: there is no such order.
    """
    children = children_of(parents)
    waiting = [len(dict.fromkeys(mine)) for mine in parents]
    ready = deque(stage for stage, count in enumerate(waiting) if count == 0)
    order: list[int] = []
    while ready:
        stage = ready.popleft()
        order.append(stage)
        for child in children[stage]:
            waiting[child] -= 1
            if waiting[child] == 0:
                ready.append(child)
    if len(order) < len(waiting):
        cycle = _find_cycle(parents, waiting)
        raise CycleError(tuple(names[stage] if names else str(stage) for stage in cycle), job)
    return tuple(order)


def children_of(parents: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    """Return for each position the positions that come directly after it, ascending.

    Raises:
        GraphError: a parent is not a position.
    """
    children: list[list[int]] = [[] for _ in parents]
    for stage, mine in enumerate(parents):
        for parent in dict.fromkeys(mine):
            if not 0 <= parent < len(children):
                raise GraphError(
                    f"Stage {stage} comes after stage {parent}, but there are only the stages "
                    f"0..{len(children) - 1}."
                )
            children[parent].append(stage)
    return tuple(map(tuple, children))


def depths(parents: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """Return for each position the edges on the longest path from it down to a leaf (a leaf: 0).

    What lies on the critical path has the greatest depth: it should run first.

    Args:
        parents: for each position the positions before it. Repeats count once.

    Raises:
        GraphError: a parent is not a position.
        CycleError: there is no order.
    """
    depth = [0] * len(parents)
    for stage in reversed(topological_order(parents)):
        for parent in parents[stage]:
            depth[parent] = max(depth[parent], depth[stage] + 1)
    return tuple(depth)


def _find_cycle(parents: Sequence[Sequence[int]], waiting: Sequence[int]) -> tuple[int, ...]:
    """Return a cycle: each before the next, the smallest position first and again at the end.

    Every position still waiting has a parent that still waits: walking up must come round.
    """
    at = next(stage for stage, count in enumerate(waiting) if count)
    seen: dict[int, int] = {}
    path: list[int] = []
    while at not in seen:
        seen[at] = len(path)
        path.append(at)
        at = next(parent for parent in parents[at] if waiting[parent])
    loop = path[seen[at] :][::-1]
    start = loop.index(min(loop))
    return (*loop[start:], *loop[: start + 1])
