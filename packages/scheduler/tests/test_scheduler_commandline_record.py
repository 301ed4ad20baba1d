"""`python -m thornback.scheduler story | replay`."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path

import pytest

from thornback.scheduler.__main__ import main
from thornback.scheduler.commands import OpenGang
from thornback.scheduler.events import RunStarted
from thornback.scheduler.recorder import Recorder
from thornback.scheduler.testing import FakeDependencies, plan


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A record of two stages, "clean" and "total", in which rank 0 of the first was dispatched."""
    path = tmp_path / "run.jsonl"
    dependencies = FakeDependencies([2, 1], ((), (0,)))
    with path.open("w") as out:
        stages = [plan(2, max_gangs=1), plan(1)]
        recorder = Recorder(stages, dependencies, names=("clean", "total"), write=out.write)
        (opening,) = recorder.handle(RunStarted(), 0.0)
        assert isinstance(opening, OpenGang)
        recorder.handle(opening.ready("n1"), 1.5)
    return path


STORY = """\
     0.000 s  may run: it depends on nothing
     1.500 s  is given to gang 0 on n1: assignment 0, attempt 1, alone; it had waited 1.5 s
"""


@pytest.mark.parametrize("rank", ["0", "0:0", "clean:0"])
def test_story(file: Path, rank: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["story", str(file), rank]) == 0
    assert capsys.readouterr().out == STORY


@pytest.mark.parametrize("rank", ["1:0", "total:0"])
def test_story_of_another_stage(file: Path, rank: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["story", str(file), rank]) == 0
    expected = "     0.000 s  waits for the ranks that it depends on\n"
    assert capsys.readouterr().out == expected


def test_story_as_json(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["story", str(file), "0", "--json"]) == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert first["kind"] == "ready"
    assert second["nodes"] == ["n1"]
    assert (second["at_s"], second["gang"], second["assignment"]) == (1.5, 0, 0)


def test_a_compressed_record(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    packed = file.with_suffix(".gz")
    packed.write_bytes(gzip.compress(file.read_bytes()))
    assert main(["story", str(packed), "0"]) == 0
    assert capsys.readouterr().out == STORY


def test_standard_input(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(file.read_text()))
    assert main(["replay", "-"]) == 0
    assert capsys.readouterr().out == "the same commands\n"


def test_replay_shows_a_difference(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file.write_text(file.read_text().replace('"ranks":[[0,1]]', '"ranks":[[0,2]]'))
    assert main(["replay", str(file)]) == 1
    assert "entry 2, GangReady" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("rank", "message"),
    [
        ("2", "Stage 0 has no rank 2; its ranks are 0..1."),
        ("7:0", "There is no stage 7; stages are 0..1."),
        ("claen:0", "there is no stage 'claen'; the stages are clean, total."),
        ("clean", "'clean' is not a rank: give its number, or STAGE:NUMBER."),
    ],
)
def test_a_rank_that_is_not_there(
    file: Path, rank: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["story", str(file), rank]) == 2
    assert capsys.readouterr().err == f"{file}: {message}\n"


@pytest.mark.parametrize("name", ["none.jsonl", "other.jsonl", "other.gz"])
def test_no_record(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    if "other" in name:
        (tmp_path / name).write_text("something else\n")
    assert main(["replay", str(tmp_path / name)]) == 2
    assert str(tmp_path / name) in capsys.readouterr().err
