"""Is this state a state of this job? Pure.

A stage differs if its name is known and its world size, function, version, items or parents are not
the recorded ones, or if one of its parents differs. A stage that is new differs from nothing; one
that is gone is kept in the state, for the day it comes back. Another name of the job is a
difference too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

import attrs

from thornback.executor.journal.errors import IdentityMismatch
from thornback.executor.journal.ledger import StageRecords, clip
from thornback.executor.ports import Identity, StageIdentity

OnMismatch: TypeAlias = Literal["refuse", "adopt", "fresh"]

_FIELDS = {
    "world_size": "world size",
    "function": "function",
    "version": "version",
    "items_digest": "digest of the items",
    "parents": "parents",
}


@attrs.frozen(kw_only=True, slots=True)
class Kept:
    """What of the state goes on into the new term."""

    identity: Identity
    """That of the job, and of stages that it no longer has."""
    records: Mapping[str, StageRecords]
    differences: tuple[str, ...] = ()
    """How the job differs from that of the state, which is kept or forgotten all the same."""


def differences(old: Identity, new: Identity) -> tuple[str, ...]:
    """Return one sentence per difference; none: the records of `old` are records of `new`."""
    found = [] if old.job == new.job else [f"Job: was {old.job!r}, is {new.job!r}"]
    by_name = {stage.name: stage for stage in old.stages}
    own = {
        stage.name: _stage_differences(by_name[stage.name], stage)
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
    found = _misfits(records, new, strangers) if old is None else differences(old, new)
    if found and on_mismatch == "refuse":
        raise IdentityMismatch(url, found)
    if found and on_mismatch == "fresh":
        return Kept(identity=new, records={}, differences=found)
    sizes = {stage.name: stage.world_size for stage in new.stages}
    kept = {name: clip(records[name], size) for name, size in sizes.items() if name in records}
    if found:
        return Kept(identity=new, records=kept, differences=found)
    gone = tuple(s for s in (old or new).stages if s.name not in sizes and s.name in records)
    kept |= {stage.name: records[stage.name] for stage in gone}
    return Kept(identity=attrs.evolve(new, stages=(*new.stages, *gone)), records=kept)


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


def _stage_differences(old: StageIdentity, new: StageIdentity) -> tuple[str, ...]:
    pairs = [(word, getattr(old, name), getattr(new, name)) for name, word in _FIELDS.items()]
    return tuple(f"{word} was {_show(a)}, is {_show(b)}" for word, a, b in pairs if a != b)


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
