"""States that earlier versions of the format wrote are read and resumed.

`states_v1/README.md` says how each was made.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import attrs
import pytest

from packages.executor.tests.journals import control, journal_at
from thornback.executor.journal.filejournal import JournalError, read_run
from thornback.executor.journal.ledger import normalise
from thornback.executor.journal.testing import done, failed, job
from thornback.executor.ports import Identity, Ranks

pytestmark = pytest.mark.anyio
STATES = Path(__file__).with_name("states_v1")
A, B = job().stages
FIRST = (range(0, 3), range(8, 9))


@attrs.frozen
class Case:
    """What one of the states holds."""

    name: str
    identity: Identity
    a: Ranks
    b: Ranks
    failed: Ranks = ()


CASES = [
    Case("closed", job(), FIRST, (range(0, 1),), (range(7, 8),)),
    Case(
        "compacted",
        job(),
        (*FIRST, range(20, 22), range(23, 24), range(25, 26)),
        (range(0, 1),),
        (range(7, 8),),
    ),
    Case("crashed", job(), FIRST, (range(0, 1),), (range(7, 8),)),
    Case("adopted", job(attrs.evolve(A, world_size=50), B), (range(0, 2),), (range(2, 3),)),
    Case("narrowed", job(), (range(0, 2), range(60, 61)), (range(2, 3),)),
    Case("staged", job(), (range(0, 1), range(4, 5)), ()),
]


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def case(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Case:
    """Copy a state into the current directory: it holds relative paths."""
    found: Case = request.param
    shutil.copytree(STATES / found.name, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return found


def objects(*kinds: str) -> list[bytes]:
    return [data for name, data in control("state").items() if name.startswith(kinds)]


def test_version_1_is_read(case: Case) -> None:
    run = read_run("state")
    assert run.damaged == ()
    assert (run.done["a"], run.done.get("b", ())) == (case.a, case.b)
    assert run.failed.get("a", ()) == case.failed
    assert run.results("a") == {rank: f'{{"rank": {rank}}}' for piece in case.a for rank in piece}
    if case.failed:
        assert run.skipped == {"b": (range(5, 9),)}
        assert [paper.why for paper in run.certificates["a"]] == [failed("a", 7).certificate]
        assert [paper.why for paper in run.certificates["b"]] == [{"reason": "rank 7 of a failed"}]


async def test_version_1_is_resumed(case: Case) -> None:
    async with journal_at("state") as journal:
        opened = await journal.open(case.identity, on_mismatch="refuse")
        assert (opened.done["a"], opened.done.get("b", ())) == (case.a, case.b)
        assert opened.failed.get("a", ()) == case.failed
        assert (journal.damaged, journal.differences) == ((), ())
        headers = {json.loads(d.splitlines()[0])["version"] for d in objects("base", "seg")}
        assert headers == {2}
        await journal.commit([done("a", 40)])
        assert 40 in await journal.results("a")
    assert normalise((*case.a, range(40, 41))) == read_run("state").done["a"]
    assert len({name.split("-")[1] for name in control("state")}) == 1  # older terms are removed


async def test_version_1_promotes_what_it_had_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(STATES / "staged", tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    async with journal_at("state") as journal:
        await journal.open(job(), on_mismatch="refuse")
    assert (tmp_path / "out/four.txt").read_text() == "four\n"


async def test_version_1_of_another_job_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(STATES / "closed", tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    async with journal_at("state") as journal:
        with pytest.raises(JournalError, match="world size was 100, is 50"):
            await journal.open(job(attrs.evolve(A, world_size=50), B), on_mismatch="refuse")
