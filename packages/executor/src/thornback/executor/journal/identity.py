"""Is this state a state of this job? Pure.

A stage differs if its name is known and its world size, function, version, items, parameters or
parents are not the recorded ones, or if one of its parents differs. A stage that is new differs
from nothing; one that is gone is kept in the state, for the day it comes back. Another name of the
job is a difference too. Changed code is none, since people fix a bug and go on: it is a reason to
warn.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, TypeAlias

import attrs

from thornback.executor.fingerprint import digests_differ, is_plain
from thornback.executor.journal.errors import IdentityMismatch
from thornback.executor.journal.ledger import StageRecords, clip
from thornback.executor.names import same_name
from thornback.executor.ports import Identity, StageIdentity

OnMismatch: TypeAlias = Literal["refuse", "adopt", "fresh"]
CompareStages: TypeAlias = Callable[[StageIdentity, StageIdentity], Sequence[str]]
"""Given the recorded stage and the new one, returns one clause per difference."""

_PARAM = re.compile(r"(?:(setup|teardown)\.)?(\w+)(?:\[(\d+)\]|\.(.*))?", re.DOTALL)
_WHERE = {
    "partial": "bound by functools.partial",
    "closure": "a variable of the enclosing function",
    "default": "a default",
    "attribute": "an attribute of the function",
    "self": "an attribute of the callable object",
}
_SHOWN = 5
_OF_CODE = ("closure", "default")
"""A parameter of these kinds comes and goes only with the code of its function."""


@attrs.frozen(kw_only=True, slots=True)
class Kept:
    """What of the state goes on into the new term."""

    identity: Identity
    """That of the job, and of stages that it no longer has."""
    records: Mapping[str, StageRecords]
    differences: tuple[str, ...] = ()
    """How the job differs from that of the state, which is kept or forgotten all the same."""
    warnings: tuple[str, ...] = ()
    """What users should know about these records, one sentence each."""


def stage_differences(old: StageIdentity, new: StageIdentity) -> tuple[str, ...]:
    """Return one clause per difference between two stages of the same name."""
    found = []
    for name, old_value, new_value in (
        ("world size", old.world_size, new.world_size),
        ("function", old.function, new.function),
        ("version", old.version, new.version),
    ):
        if name == "function" and same_name(old.function, new.function):
            continue
        if old_value != new_value:
            found.append(f"{name} was {_show(old_value)}, is {_show(new_value)}")
    if _items_differ(old, new):
        found.append("its items changed since the recorded run")
    if old.parents != new.parents:
        found.append(f"parents was {_show(old.parents)}, is {_show(new.parents)}")
    return (*found, *param_differences(old.params, new.params, compared=bool(old.code)))


def param_differences(
    old: Mapping[str, str], new: Mapping[str, str], *, compared: bool = True
) -> tuple[str, ...]:
    """Return one clause per parameter that changed, came or went; never its value.

    Args:
        old: digests by name, of the recorded run.
        new: of this one.
        compared: False: the recorded run has recorded none.
    """
    found = []
    for name in dict.fromkeys((*old, *new)) if compared else ():
        if name in old and name in new:
            if digests_differ(old[name], new[name]):
                found.append(f"{described(name)} changed since the recorded run")
        elif _may_go(name):
            continue
        elif old.get(name):
            found.append(f"{described(name)} was there in the recorded run")
        elif new.get(name):
            found.append(f"{described(name)} was not there in the recorded run")
    return tuple(found)


def described(param: str) -> str:
    """Return the name of a parameter for people: `parameter 'n' (bound by functools.partial)`."""
    match = _PARAM.fullmatch(param)
    if match is None:
        return f"parameter {param!r}"
    hook, kind, number, name = match.groups()
    what = f"argument {number}" if number else f"parameter {name or kind!r}"
    where = [_WHERE[kind]] if kind in _WHERE and (name or number) else []
    if hook:
        where.append(f"of {hook}=")
    return f"{what} ({', '.join(where)})" if where else what


def warnings_of(old: Identity, new: Identity, recorded: Mapping[str, StageRecords]) -> list[str]:
    """Return what is not known of the records that are taken over, or may surprise: one sentence
    each."""
    by_name = {stage.name: stage for stage in old.stages if stage.name in recorded}
    pairs = [(by_name[stage.name], stage) for stage in new.stages if stage.name in by_name]
    found = [
        f"the code of stage {is_.name!r} changed since its results were recorded; set version= to "
        "invalidate them"
        for was, is_ in pairs
        if _code_changed(was.code, is_.code)
    ]
    unknown = [is_.name for was, is_ in pairs if is_.code and not was.code]
    if unknown:
        noun = "stage" if len(unknown) == 1 else "stages"
        found.append(
            f"the parameters of {noun} {', '.join(map(repr, unknown))} could not be compared with "
            "those of the recorded run: it was made by an earlier version of thornback, which did "
            "not record them. The recorded results are used"
        )
    return found


def unseen(identity: Identity) -> tuple[str, ...]:
    """Return one sentence per stage with parameters that cannot be compared."""
    return tuple(
        f"stage {stage.name!r}: {_listed(names)} cannot be compared with those of another run, so "
        "that a change is not noticed: set version= to invalidate the results"
        for stage in identity.stages
        if (names := [described(name) for name, digest in stage.params.items() if not digest])
    )


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_SHOWN])
    return f"{shown} and {len(names) - _SHOWN} more" if len(names) > _SHOWN else shown


def differences(
    old: Identity, new: Identity, compare: CompareStages = stage_differences
) -> tuple[str, ...]:
    """Return one sentence per difference; none: the records of `old` are records of `new`."""
    found = [] if old.job == new.job else [f"Job: was {old.job!r}, is {new.job!r}"]
    by_name = {stage.name: stage for stage in old.stages}
    own = {
        stage.name: compare(by_name[stage.name], stage)
        for stage in new.stages
        if stage.name in by_name
    }
    changed = _with_descendants({name: bool(said) for name, said in own.items()}, new)
    for stage in new.stages:
        said = own.get(stage.name, ())
        if said:
            found.append(f"Stage {stage.name!r}: {'; '.join(said)}")
        elif stage.name in own:
            guilty = [parent for parent in stage.parents if changed.get(parent)]
            found += [f"Stage {stage.name!r}: comes after {p!r}, which has changed" for p in guilty]
    return tuple(found)


def reconcile(
    url: str,
    old: Identity | None,
    records: Mapping[str, StageRecords],
    new: Identity,
    on_mismatch: OnMismatch,
    compare: CompareStages = stage_differences,
    strangers: Sequence[str] = (),
) -> Kept:
    """Return what the new term starts with.

    Args:
        url: of the state, for messages.
        old: the job of the state; None: there is no base that could tell it.
        records: of the state.
        new: the job that is to be run.
        on_mismatch: what to do about a difference.
        strangers: where the job of the state is not known: segments that may be of another job.

    Raises:
        IdentityMismatch: with `refuse`, if there is a difference.
    """
    found = _misfits(records, new, strangers) if old is None else differences(old, new, compare)
    if found and on_mismatch == "refuse":
        raise IdentityMismatch(url, found)
    if found and on_mismatch == "fresh":
        return Kept(identity=new, records={}, differences=found)
    sizes = {stage.name: stage.world_size for stage in new.stages}
    kept = {name: clip(records[name], size) for name, size in sizes.items() if name in records}
    warnings = () if old is None else tuple(warnings_of(old, new, kept))
    if found:
        return Kept(identity=new, records=kept, differences=found, warnings=warnings)
    gone = tuple(s for s in (old or new).stages if s.name not in sizes and s.name in records)
    kept |= {stage.name: records[stage.name] for stage in gone}
    identity = attrs.evolve(new, stages=(*new.stages, *gone))
    return Kept(identity=identity, records=kept, warnings=warnings)


def _items_differ(old: StageIdentity, new: StageIdentity) -> bool:
    if bool(old.items_digest) != bool(new.items_digest):
        return True
    if not old.code and not is_plain(new.items_digest):
        return False  # of such items an earlier version saw too little
    return digests_differ(old.items_digest, new.items_digest)


def _may_go(param: str) -> bool:
    match = _PARAM.fullmatch(param)
    return match is not None and match[2] in _OF_CODE


def _code_changed(old: str, new: str) -> bool:
    """Return whether code changed; False where another Python made it."""
    (old_python, _, old_code), (new_python, _, new_code) = old.partition(":"), new.partition(":")
    return bool(old and new) and old_python == new_python and old_code != new_code


def _misfits(
    records: Mapping[str, StageRecords], new: Identity, strangers: Sequence[str]
) -> tuple[str, ...]:
    """Return why records of which nobody knows the job are not those of `new`, as far as that can
    be told.
    """
    found = []
    if strangers:
        found.append(
            "Job: what would tell it is missing or damaged, and these segments were written by "
            f"another job, or an earlier form of this one: {', '.join(strangers)}"
        )
    sizes = {stage.name: stage.world_size for stage in new.stages}
    for name, known in records.items():
        if name not in sizes:
            found.append(f"Stage {name!r}: is recorded, and not in this job")
        elif clip(known, sizes[name]) != known:
            found.append(f"Stage {name!r}: has more than {sizes[name]} ranks in the record")
    return tuple(found)


def _show(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(repr, value)) or "none"
    if isinstance(value, str):
        shown = value if len(value) <= 60 else f"{value[:12]}..."
        return repr(shown) if shown else "none"
    return str(value)


def _with_descendants(changed: Mapping[str, bool], new: Identity) -> Mapping[str, bool]:
    """Return `changed` with every stage below a changed one marked too, whatever the order of the
    stages.
    """
    marked = dict(changed)
    for _ in new.stages:
        before = dict(marked)
        for stage in new.stages:
            marked[stage.name] = marked.get(stage.name, False) or any(
                marked.get(parent, False) for parent in stage.parents
            )
        if marked == before:
            break
    return marked
