"""What makes two pipelines the same: the number of their ranks, and the types of their steps in
order. Pure.

The parameters of steps do not count: to run a pipeline again with another limit or another prompt
in the same directory, so that only the ranks that are missing are run, is what people do. A
function is known by its qualified name, and a lambda, which has none, by its place in the pipeline
and the function that it stands in. Line numbers do not count: a line added to a script would make
another pipeline of it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from thornback.executor.ports import StageIdentity

FUNCTION = "thornback.datatrove.rank.PipelineRank"
"""What runs every pipeline: constant, so that a release that renames it voids no directory."""
_BETWEEN = " > "
_SHOWN = 3


def step_name(step: object) -> str:
    """Return the name of a step, the same in every process: `package.module.Class`, or of a
    function `package.module.function`; "Iterable" for documents that are given as such."""
    inner = getattr(step, "func", step)  # functools.partial
    if not callable(inner):
        return "Iterable" if _is_documents(inner) else type(inner).__qualname__
    named = inner if hasattr(inner, "__qualname__") else type(inner)
    return f"{getattr(named, '__module__', '?')}.{named.__qualname__}"


def _is_documents(step: object) -> bool:
    return isinstance(step, Sequence) and not isinstance(step, str | bytes)


def signature(pipeline: Sequence[object]) -> str:
    """Return what `StageIdentity.version` holds: the steps in order, as people read them."""
    return _BETWEEN.join(step_name(step) for step in pipeline)


def stage_identity(*, name: str, pipeline: Sequence[object], world_size: int) -> StageIdentity:
    """Return the identity of a pipeline. What it depends on is no part of it: a pipeline that is
    run alone is the same as in a chain."""
    return StageIdentity(
        name=name, world_size=world_size, function=FUNCTION, version=signature(pipeline)
    )


def as_text(identity: StageIdentity) -> str:
    """Return what is kept in the directory, as JSON."""
    steps = identity.version.split(_BETWEEN)
    return json.dumps({"world_size": identity.world_size, "steps": steps}, indent=4)


def differences(
    identity: StageIdentity, *, own: str | None, executor_json: str | None
) -> tuple[str, ...]:
    """Return one sentence for each difference between a pipeline and what a directory says; none:
    its marks are marks of this pipeline, as far as can be known.

    Args:
        identity: of the pipeline.
        own: what `as_text` gave when the directory was last used; None: it was never.
        executor_json: the text of `executor.json`, which other executors write, too; None: there is
            none. It does not tell the types of steps.
    """
    theirs, mine = _loaded(executor_json), _loaded(own)
    found = []
    sizes = (each.get("world_size") for each in (mine, theirs))
    size = next((size for size in sizes if isinstance(size, int)), None)
    if size is not None and size != identity.world_size:
        found.append(f"world size (tasks) was {size}, is {identity.world_size}")
    steps = mine.get("steps")
    if isinstance(steps, list):
        found += step_differences([str(step) for step in steps], identity.version.split(_BETWEEN))
    return tuple(found)


def step_differences(old: Sequence[str], new: Sequence[str]) -> list[str]:
    """Return one sentence for each step that differs, the first ones only."""
    found = [
        f"step {place} was {before}, is {after}"
        for place, (before, after) in enumerate(zip(old, new, strict=False))
        if before != after
    ]
    if len(found) > _SHOWN:
        found = [*found[:_SHOWN], f"{len(found) - _SHOWN} more steps differ"]
    if len(old) != len(new):
        found.append(f"number of steps was {len(old)}, is {len(new)}")
    return found


def _loaded(text: str | None) -> dict[str, object]:
    """Return the object in the text; a torn file says nothing."""
    try:
        value = json.loads(text or "{}")
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
