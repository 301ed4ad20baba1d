"""Puts what a killed rank has left where datatrove's tools look for it: `logs/task_{rank:05d}.log`.

A rank writes its own log when it ends, by itself or by an exception. One that is killed cannot; but
what it had logged went to its stderr as well, and so to the driver. When that certifies such a
death, the last lines are written at once, and in the end the whole, of ranks that were given up.

An attempt may already be followed by another, whose log must not be replaced by that of a dead one.
So while a rank is tried again, its log is only written where there is none, or where it is still
what was written here before. Left is this: a store that carries out a write late, after the next
attempt has come to its end.
"""

from __future__ import annotations

import logging
import posixpath
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

from thornback.datatrove.backlog import Backlog
from thornback.datatrove.ranklog import NOT_WRITTEN, log_name
from thornback.datatrove.slices import read_slice
from thornback.faults import Origin

if TYPE_CHECKING:
    from thornback.executor import AttemptReport, RunInfo, RunReport, StageProgress

logger = logging.getLogger(__name__)
Key: TypeAlias = tuple[str, int]
"""(stage, rank)."""
MAX_DEATHS = 10_000
"""So many ranks get the whole of their log in the end; of more, the last lines stay."""


class TaskLogs:
    """Watches a run (fulfils `thornback.executor.Observer`). Never slows or fails it.

    Call `close` when the run is over, however it ended.

    Args:
        folders: logging directory (`DataFolder`) of each stage, by name; others are not watched.
        logs: folder of the logs that the run keeps, as it is opened: reports tell its URL without
            the secrets in it. Empty: as they tell it.
        storage_options: of the file system of the run's state.
    """

    def __init__(
        self,
        folders: Mapping[str, Any],
        *,
        logs: str = "",
        storage_options: Mapping[str, object] | None = None,
    ) -> None:
        self._logs = logs
        self._folders = dict(folders)
        self._storage_options = dict(storage_options or {})
        self._backlog = Backlog("the log of a killed rank could not be written")
        self._deaths: dict[Key, AttemptReport] = {}
        """The last attempt of a rank, if that left no log."""
        self._written: dict[Key, bytes] = {}
        """What was written here last. Each key belongs to one thread at a time."""

    def started(self, info: RunInfo, /) -> None:
        """Nothing to do."""

    def progressed(self, stages: tuple[StageProgress, ...], /) -> None:
        """Nothing to do."""

    def failed(self, attempt: AttemptReport, /) -> None:
        """Have the last lines of a dead attempt written."""
        if attempt.rank is None or attempt.stage not in self._folders:
            return
        key = (attempt.stage, attempt.rank)
        self._deaths.pop(key, None)
        if not left_no_log(attempt):
            return
        if len(self._deaths) < MAX_DEATHS:
            self._deaths[key] = attempt
        data = _joined(attempt.log_tail.encode("utf-8", "replace"), last_line(attempt))
        self._backlog.put(key, partial(self._write, key, attempt, data))

    def finished(self, report: RunReport, /) -> None:
        """Have the whole log written of each rank that was given up and whose last attempt died."""
        self._backlog.put("end", partial(self._complete, report))

    def close(self, *, timeout_s: float = 30.0) -> None:
        """Wait until everything is written, for at most `timeout_s` seconds; what is not is told in
        the log. Blocks. Idempotent; nothing is written for the run after that, but for a call to a
        store that hangs."""
        done = self._backlog.close(timeout_s=timeout_s)
        if not done or self._backlog.dropped:
            logger.warning(
                "not all logs of killed ranks are in logs/ (%d were dropped): the run's state has "
                "what they wrote",
                self._backlog.dropped,
            )

    def _complete(self, report: RunReport) -> None:
        """Sort out, away from the event loop, who was given up."""
        given_up = {key for key, attempt in self._deaths.items() if not attempt.retried}
        for ended in report.given_up:
            for piece in ended.ranks:
                if len(piece) > len(self._deaths):
                    ranks = [rank for stage, rank in self._deaths if stage == ended.stage]
                else:
                    ranks = [*piece]
                given_up.update((ended.stage, rank) for rank in ranks if rank in piece)
        for key, attempt in self._deaths.items():
            if key in given_up:
                self._backlog.put(key, partial(self._write_whole, key, attempt))

    def _write_whole(self, key: Key, attempt: AttemptReport) -> None:
        data = attempt.log_tail.encode("utf-8", "replace")
        try:
            if attempt.log_url:
                url = self._url_of(attempt.log_url)
                data = read_slice(url, attempt.log_slice, self._storage_options) or data
        finally:
            self._replace(key, _joined(data, last_line(attempt)))

    def _url_of(self, told: str) -> str:
        """Return what can be opened: `<logs>/<term>/<log>`, with a slash at the end of a folder."""
        if not self._logs:
            return told
        term, log = told.rstrip("/").rsplit("/", 2)[1:]
        return f"{self._logs}/{term}/{log}{'/' if told.endswith('/') else ''}"

    def _write(self, key: Key, attempt: AttemptReport, data: bytes) -> None:
        """Write it, unless a later attempt may have written."""
        if not attempt.retried:
            self._replace(key, data)
            return
        folder, name = self._folders[key[0]], log_name(key[1], -1)
        folder.fs.invalidate_cache()
        if folder.exists(f"completions/{key[1]:05d}"):
            return
        if folder.exists(name):
            if folder.cat_file(name) == self._written.get(key):
                self._replace(key, data)
        elif _create(folder, name, data):
            self._written[key] = data

    def _replace(self, key: Key, data: bytes) -> None:
        folder, name = self._folders[key[0]], log_name(key[1], -1)
        with folder.open(name, "wb") as file:
            file.write(data)
        self._written[key] = data


def left_no_log(attempt: AttemptReport) -> bool:
    """Whether a rank could not write its log itself: it died, was killed, never began, or its store
    refused."""
    fault = attempt.fault
    if fault.origin is not Origin.RANK or fault.phase == "setup":
        return True
    return NOT_WRITTEN in attempt.log_tail


def last_line(attempt: AttemptReport) -> str:
    """Return the line that says how an attempt ended."""
    fault = attempt.fault
    facts = [
        f"{name} {fault.facts[name]}" for name in ("signal", "exit_code") if name in fault.facts
    ]
    how = ", ".join([fault.kind.name, *facts, fault.message.strip().partition("\n")[0]])
    what = "it is tried again" if attempt.retried else "it is not tried again"
    return (
        f"thornback: attempt {attempt.attempt} of rank {attempt.rank} (epoch {attempt.epoch}, node "
        f"{attempt.node or 'unknown'}) ended after {attempt.ran_s:.1f} s: {how}; {what}: "
        f"{attempt.verdict}\n"
    )


def _joined(log: bytes, line: str) -> bytes:
    gap = b"" if not log or log.endswith(b"\n") else b"\n"
    return log + gap + line.encode("utf-8", "replace")


def _create(folder: Any, name: str, data: bytes) -> bool:
    """Write a file that is not there; False: by now it is. In one step, where the store can."""
    folder.makedirs(posixpath.dirname(name), exist_ok=True)
    try:
        if folder.is_local():
            with folder.open(name, "xb") as file:
                file.write(data)
        else:
            folder.pipe_file(name, data, mode="create")
    except FileExistsError:
        return False
    return True
