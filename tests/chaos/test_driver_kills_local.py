"""The driver is killed at random instants, again and again, while stages delete what earlier ones
have published, and files have odd names: nothing is lost, nothing refused, nothing left over.

20 kills in the profile `ci`, 200 in `nightly`. A seed that fails becomes a named test.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import uuid
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import settings

from tests.chaos.killed_job import NAMES, RANKS, STAGES, STATE, path_of, text_of
from tests.processes import MARK, assert_none_left
from thornback.executor import JournalError, read_run

ROOT = Path(__file__).resolve().parents[2]
KILLS_A_SEED = 10
SEEDS = 20 if settings.default and settings.default.max_examples > 100 else 2
SECONDS = (0.5, 2.5)
"""After which a driver is killed: it needs some 0.5 s until its first rank, and 3 s in all."""
LONGEST_S = 120
EVERY_RANK = set(range(RANKS))


def recorded(folder: Path) -> dict[str, set[int]]:
    """Return the ranks that the record has as done, by stage."""
    try:
        run = read_run(str(folder / STATE))
    except JournalError:  # killed before it had begun
        return {}
    assert not run.damaged
    return {name: {rank for piece in pieces for rank in piece} for name, pieces in run.done.items()}


def starts(folder: Path) -> dict[tuple[str, int], int]:
    """Return how often each rank was started."""
    return {
        (stage, rank): len(path.read_text().splitlines())
        for path in (folder / "starts").glob("*-*")
        for stage, rank in [(path.name.split("-")[0], int(path.name.split("-")[1]))]
    }


def drive(folder: Path, mark: str, kill_after_s: float | None) -> int | None:
    """Run a driver; kill it after so many seconds. Return its exit code, None: it was killed."""
    with (folder / "output.txt").open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.killed_job", str(folder)],
            cwd=ROOT,
            env={**os.environ, MARK: mark},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            return process.wait(LONGEST_S if kill_after_s is None else kill_after_s)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait(10)
            return -signal.SIGKILL if kill_after_s is None else None


def assert_only_consumed_ranks_ran_again(
    folder: Path, known: Mapping[str, set[int]], before: Mapping[tuple[str, int], int]
) -> None:
    """A recorded rank is started again only if it published what a later stage has deleted."""
    now = starts(folder)
    again = {
        (stage, rank)
        for stage, ranks in known.items()
        for rank in ranks
        if now[stage, rank] != before[stage, rank]
    }
    assert {stage for stage, _ in again} <= {"part", "raw"}, again


@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", range(SEEDS))
def test_killed_drivers_lose_nothing_and_leave_nothing(seed: int, tmp_path: Path) -> None:
    rnd, mark = random.Random(seed), uuid.uuid4().hex
    kills, job = 0, 0
    while kills < KILLS_A_SEED:
        folder = tmp_path / str(job)
        (folder / "starts").mkdir(parents=True)
        job, code = job + 1, None
        while code is None:
            known, before = recorded(folder), starts(folder)
            limit_s = rnd.uniform(*SECONDS) if kills < KILLS_A_SEED else None
            code = drive(folder, mark, limit_s)
            kills += code is None
            assert_none_left(mark, timeout_s=15)
            if code is not None:
                assert code == 0, (folder / "output.txt").read_text()
            assert_only_consumed_ranks_ran_again(folder, known, before)
        assert_complete(folder)


def assert_complete(folder: Path) -> None:
    """Every rank is recorded once, every file is whole, and there are no others."""
    assert recorded(folder) == dict.fromkeys(STAGES, EVERY_RANK)
    run = read_run(str(folder / STATE))
    for stage in STAGES:
        results = {rank: json.loads(text) for rank, text in run.results(stage).items()}
        assert results == {rank: rank for rank in EVERY_RANK}
    texts = {
        stage: {path_of(str(folder), stage, rank): text_of(stage, rank) for rank in EVERY_RANK}
        for stage in ("part", "sum", "raw")
    }
    known = {path: text for each in texts.values() for path, text in each.items()}
    paths = [path for path in (folder / "out").rglob("*") if path.is_file()]
    found = {str(path): path.read_text() for path in paths}
    assert found.items() <= known.items()
    assert texts["sum"].items() <= found.items()
    assert not [path for path in (folder / STATE / "staging").rglob("*") if path.is_file()]
    top = {path.name for path in folder.iterdir()}
    assert top == {"starts", "out", "output.txt", STATE.split("/")[0]}, top


def test_names_are_as_many_as_ranks_and_odd() -> None:
    assert len(set(NAMES)) == RANKS
    assert sum("::" in name for name in NAMES) >= 3
