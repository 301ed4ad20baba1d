"""What makes two pipelines the same: the number of their ranks, and the types of their steps in
order. Pure.

The parameters of steps do not count: to run a pipeline again with another limit or another prompt
in the same directory, so that only the ranks that are missing are run, is what people do. A change
is warned of. A function is known by its qualified name, and a lambda, which has none, by its place
in the pipeline and the function that it stands in. Line numbers do not count: a line added to a
script would make another pipeline of it. Nor does the name of the module where a step comes from a
script: by import it has another one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from thornback.executor.fingerprint import digests_differ, fingerprint
from thornback.executor.names import function_name, same_name
from thornback.executor.ports import StageIdentity

FUNCTION = "thornback.datatrove.rank.PipelineRank"
"""What runs every pipeline: constant, so that a release that renames it voids no directory."""
_BETWEEN = " > "
_SHOWN = 3


def step_name(step: object) -> str:
    """Return the name of a step, the same in every process: `package.module.Class`, or of a
    function `package.module.function`; "Iterable" for documents that are given as such."""
    if callable(step):
        return function_name(step)
    return "Iterable" if _is_documents(step) else type(step).__qualname__


def _is_documents(step: object) -> bool:
    return isinstance(step, Sequence) and not isinstance(step, str | bytes)


def signature(pipeline: Sequence[object]) -> str:
    """Return what `StageIdentity.version` holds: the steps in order, as people read them."""
    return _BETWEEN.join(step_name(step) for step in pipeline)


def stage_identity(*, name: str, pipeline: Sequence[object], world_size: int) -> StageIdentity:
    """Return the identity of a pipeline. What it depends on is no part of it: a pipeline that is
    run alone is the same as in a chain."""
    params = {
        f"{place}.{param}": digest
        for place, step in enumerate(pipeline)
        for param, digest in fingerprint(step).params.items()
        if digest
    }
    return StageIdentity(
        name=name,
        world_size=world_size,
        function=FUNCTION,
        version=signature(pipeline),
        params=params,
    )


def pipeline_differences(old: StageIdentity, new: StageIdentity) -> tuple[str, ...]:
    """Return one clause per difference between the recorded pipeline and this one."""
    found = []
    if old.world_size != new.world_size:
        found.append(f"number of tasks was {old.world_size}, is {new.world_size}")
    steps = old.version.split(_BETWEEN), new.version.split(_BETWEEN)
    return (*found, *step_differences(*steps))


def changed_params(identity: StageIdentity, own: str | None) -> tuple[str, ...]:
    """Return one clause for each step that is the same, but has other parameters: their names.

    Args:
        identity: of the pipeline.
        own: what `as_text` gave when the directory was last used; None: it was never.
    """
    mine = _loaded(own)
    before, steps = mine.get("params"), mine.get("steps")
    if not isinstance(before, Mapping) or not isinstance(steps, list):
        return ()
    found: dict[int, list[str]] = {}
    for name, digest in identity.params.items():
        place, _, param = name.partition(".")
        old = before.get(name)
        if isinstance(old, str) and digests_differ(old, digest):
            found.setdefault(int(place), []).append(_param_name(param))
    new = identity.version.split(_BETWEEN)
    return tuple(
        f"step {place} ({new[place]}): {', '.join(names)}"
        for place, names in found.items()
        if place < len(steps) and same_name(str(steps[place]), new[place])
    )


def _param_name(param: str) -> str:
    """Return the name for people: `limit` of `self.limit`."""
    if param == "self":
        return "the documents"
    return param.partition(".")[2] or param


def as_text(identity: StageIdentity) -> str:
    """Return what is kept in the directory, as JSON."""
    steps = identity.version.split(_BETWEEN)
    kept = {"world_size": identity.world_size, "steps": steps, "params": dict(identity.params)}
    return json.dumps(kept, indent=4)


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
        if not same_name(before, after)
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
