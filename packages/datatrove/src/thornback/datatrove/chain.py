"""Which pipelines a run is about: those of `depends=`, and theirs. Pure.

A dependency that is complete, and one that something else has run, are no stages of the job; what
waits for them then waits for the stages above them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

import attrs

from datatrove.executor.base import PipelineExecutor
from thornback.executor import After, UsageError

_FIRST_OF_STAGE = re.compile(r"[A-Za-z0-9]")
_AUTOMATIC = re.compile(r"\d{4}-\d{2}-\d{2}_\d{2}-\d{2}-\d{2}_[a-z]{5}")
"""The last part of a `logging_dir` that datatrove made up."""
_GENERIC = ("log", "logs", "logging")
_LONGEST = 60


@attrs.frozen(kw_only=True, slots=True, eq=False)
class Chain:
    """Pipelines that belong together, each after what it depends on. Made by `collect`."""

    members: tuple[PipelineExecutor, ...]
    """That of `run()` is the last."""
    names: Mapping[int, str]
    """By `id` of the member: unique, and legal for a stage."""

    @property
    def root(self) -> PipelineExecutor:
        """That whose `run()` was called."""
        return self.members[-1]

    def name(self, member: PipelineExecutor) -> str:
        """Return the name of a member."""
        return self.names[id(member)]

    def stages_before(
        self, member: PipelineExecutor, is_stage: Callable[[PipelineExecutor], bool]
    ) -> tuple[PipelineExecutor, ...]:
        """Return the nearest stages that it comes after, each once, through members that are
        none."""
        found: dict[int, PipelineExecutor] = {}
        seen: set[int] = set()
        waiting = [*dependencies(member)]
        while waiting:
            parent = waiting.pop(0)
            if id(parent) in seen:
                continue
            seen.add(id(parent))
            if is_stage(parent):
                found[id(parent)] = parent
            else:
                waiting += dependencies(parent)
        return tuple(found.values())

    def edges(
        self,
        member: PipelineExecutor,
        is_stage: Callable[[PipelineExecutor], bool],
        *,
        also_failed: bool,
    ) -> tuple[After, ...]:
        """Return what its stage comes after; with `also_failed` it runs whatever became of
        those."""
        return tuple(
            After(
                self.name(parent),
                condition="all_done" if also_failed else "all_success",
                results=False,  # statistics; of many ranks they are too much to be handed on
            )
            for parent in self.stages_before(member, is_stage)
        )


def dependencies(member: PipelineExecutor) -> tuple[PipelineExecutor, ...]:
    """Return what `depends=` says, always as several.

    Raises:
        UsageError: it is no pipeline executor, or one that does not wait for its ranks.
    """
    given = getattr(member, "depends", None)
    several = given if isinstance(given, list | tuple) else () if given is None else (given,)
    for each in several:
        if not isinstance(each, PipelineExecutor):
            raise UsageError(f"depends={each!r}: expected a pipeline executor, or a list of them")
        if any(cls.__name__ == "SlurmPipelineExecutor" for cls in type(each).__mro__):
            raise UsageError(
                f"depends={each!r}: a SlurmPipelineExecutor submits its ranks and does not wait "
                "for them. Wait until they have ended, and leave it out"
            )
    return tuple(several)


def collect(root: PipelineExecutor) -> Chain:
    """Return all pipelines that a run of `root` is about.

    Raises:
        UsageError: they depend on each other in a circle, or two of them share a `logging_dir`.
    """
    members = tuple(_parents_first(root))
    chain = Chain(members=members, names=_names(members))
    _check_folders(chain)
    return chain


def _parents_first(root: PipelineExecutor) -> list[PipelineExecutor]:
    """Walk without recursion, since chains may be long, in the order of `depends=`."""
    done: dict[int, PipelineExecutor] = {}
    path: dict[int, PipelineExecutor] = {id(root): root}
    waiting = [list(dependencies(root))]
    while path:
        if not waiting[-1]:
            waiting.pop()
            number, member = path.popitem()
            done[number] = member
            continue
        parent = waiting[-1].pop(0)
        if id(parent) in path:
            circle = [*path.values()]
            circle = [*circle[[id(each) for each in circle].index(id(parent)) :], parent]
            names = _names(tuple({id(each): each for each in circle}.values()))
            shown = " -> ".join(names[id(each)] for each in circle)
            raise UsageError(
                f"depends= goes in a circle: {shown} (each depends on the next). Take one of "
                "them out"
            )
        if id(parent) not in done:
            path[id(parent)] = parent
            waiting.append(list(dependencies(parent)))
    return list(done.values())


def _check_folders(chain: Chain) -> None:
    seen: dict[tuple[str, object], PipelineExecutor] = {}
    for member in chain.members:
        folder = member.logging_dir
        place = (folder.fs.unstrip_protocol(folder.path).rstrip("/"), folder.fs)
        other = seen.setdefault(place, member)
        if other is not member:
            raise UsageError(
                f"two pipelines of this chain have the logging_dir {place[0]!r}: the first is "
                f"{signature_of(other)}, the other {signature_of(member)}. The completions of one "
                "would count for the other, so that its ranks were skipped: give each its own"
            )


def signature_of(member: PipelineExecutor) -> str:
    """Return a short name for the steps of a pipeline: the first and the last."""
    steps = [_step(step) for step in member.pipeline]
    ends = steps[:1] + steps[-1:] if len(steps) > 1 else steps
    return "-".join(ends) or "empty"


def _step(step: object) -> str:
    inner = getattr(step, "func", step)  # functools.partial
    named = inner if hasattr(inner, "__qualname__") else type(inner)
    return str(named.__qualname__).rpartition(".")[2].strip("<>")


def _names(members: Sequence[PipelineExecutor]) -> dict[int, str]:
    names: dict[int, str] = {}
    taken: set[str] = set()
    for member in members:
        wanted = _name(member)
        name, number = wanted, 1
        while name in taken:
            number += 1
            name = f"{wanted}-{number}"
        taken.add(name)
        names[id(member)] = name
    return names


def _name(member: PipelineExecutor) -> str:
    parts = [part for part in str(member.logging_dir.path).split("/") if part]
    if not parts or _AUTOMATIC.fullmatch(parts[-1]):
        return _legal(signature_of(member))
    if parts[-1].lower() in _GENERIC and len(parts) > 1:
        return _legal("-".join(parts[-2:]))
    return _legal(parts[-1])


def _legal(text: str) -> str:
    """Return the text as `Stage.name` wants it."""
    text = re.sub(r"[^\w.-]+", "-", text)
    while text and not _FIRST_OF_STAGE.match(text):
        text = text[1:]
    return text[:_LONGEST] or "pipeline"
