"""Reads a state without claiming it: for `status`, reports, and whoever wants results of a run."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from thornback.executor.journal.errors import JournalError
from thornback.executor.journal.ledger import Certificate, StageRecords
from thornback.executor.journal.steps import run_blocking
from thornback.executor.journal.store import StorageOptions, open_store
from thornback.executor.journal.terms import Stored, damage_text, load
from thornback.executor.ports import Identity, Ranks


@attrs.frozen(kw_only=True, slots=True)
class RecordedRun:
    """What a state held at the moment of reading. All mappings are by name of stage; stages without
    are left out. Made by `read_run`.
    """

    url: str
    """Of the state."""
    identity: Identity
    """Of the job; stages that it once had and that have records come last."""
    term: int
    """How many drivers have held the state."""
    done: Mapping[str, Ranks]
    failed: Mapping[str, Ranks]
    """Given up; the next run tries them again."""
    skipped: Mapping[str, Ranks]
    """Never run, because a rank failed that they depend on."""
    certificates: Mapping[str, tuple[Certificate, ...]]
    """Why ranks failed or were skipped."""
    damaged: tuple[str, ...] = ()
    """What is torn, foreign or missing, each object with the reason: not counted."""
    _storage_options: StorageOptions | None = attrs.field(default=None, eq=False, repr=False)

    def results(self, stage: str) -> Mapping[int, str]:
        """Return the recorded results of a stage, JSON text by rank, ascending. Blocking: reads the
        state again.

        Raises:
            JournalError: the state cannot be read.
        """
        stored = _load(self.url, self._storage_options, stage)
        return stored.records.get(stage, StageRecords()).results


def read_run(url: str, *, storage_options: StorageOptions | None = None) -> RecordedRun:
    """Return what is recorded under `url` (blocking). Writes nothing; a run may go on meanwhile.

    Args:
        url: the state: a path or an fsspec URL.
        storage_options: of its file system, as fsspec takes them; `RecordedRun.results` needs them
            again, so they go with it, also into its pickle.

    Raises:
        NewerFormat: a later version has written it.
        JournalError: there is no run there, or it cannot be read.
    """
    stored = _load(url, storage_options, None)
    if stored.identity is None and stored.damaged:
        raise JournalError(
            f"{damage_text(url, stored.damaged)}. Which job it is cannot be told without the base: "
            "run the job again on this state, which uses what is left"
        )
    if stored.identity is None:
        raise JournalError(
            f"no run is recorded under {url!r}: expected the state= of a run, a folder with "
            "control/base-* in it"
        )
    names = [stage.name for stage in stored.identity.stages if stage.name in stored.records]
    records = {name: stored.records[name] for name in names}
    return RecordedRun(
        url=url,
        identity=stored.identity,
        term=stored.term,
        done={name: r.done for name, r in records.items() if r.done},
        failed={name: r.failed for name, r in records.items() if r.failed},
        skipped={name: r.skipped for name, r in records.items() if r.skipped},
        certificates={name: r.certificates for name, r in records.items() if r.certificates},
        damaged=stored.damaged,
        storage_options=storage_options,
    )


def _load(url: str, options: StorageOptions | None, stage: str | None) -> Stored:
    """Read the state; keep the results of one stage only, or of none."""
    return run_blocking(open_store(url, options), load(url, lambda name: name == stage))
