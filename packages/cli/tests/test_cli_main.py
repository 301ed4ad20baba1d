"""The command line: bad options, exit codes, messages that name the mend."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from thornback.cli.__main__ import main


def thornback(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def test_version_names_the_parts() -> None:
    result = thornback("version")
    assert result.exit_code == 0
    words = [line.split()[0] for line in result.output.splitlines()]
    exporter = "opentelemetry-exporter-otlp-proto-http"
    assert words == ["thornback", "thornback-executor", "ray", "datatrove", exporter, "python"]
    for line in result.output.splitlines():
        # Of ours no more is known where it runs from the sources alone.
        if "not installed" in line and not line.startswith("thornback"):
            assert re.search(r": pip install 'thornback\[(ray|datatrove|otlp)\]'$", line)


def test_help() -> None:
    result = thornback("demo", "-h")
    assert result.exit_code == 0
    assert "--no-chaos" in result.output


@pytest.mark.parametrize(
    "arguments",
    [
        ["demo", "--backend", "slurm"],
        ["demo", "--cpus", "0"],
        ["demo", "--cpus", "many"],
        ["demo", "--chaos"],
        ["demo", "here"],
        ["dmeo"],
    ],
)
def test_wrong_use_exits_2_and_says_what_was_expected(arguments: list[str]) -> None:
    result = thornback(*arguments)
    assert result.exit_code == 2
    assert arguments[-1] in result.output


def test_ray_missing_names_both_mends(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # as if it were not installed
    result = thornback("demo", "--state", str(tmp_path / "state"))
    assert result.exit_code == 2
    assert result.stderr == (
        "thornback demo: Ray is not installed: pip install 'thornback[ray]', "
        "or use --backend local\n"
    )
    assert not (tmp_path / "state").exists()


def test_ray_missing_removes_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    (tmp_path / "control").mkdir()
    assert thornback("demo", "--fresh", "--state", str(tmp_path)).exit_code == 2
    assert (tmp_path / "control").is_dir()


@pytest.mark.parametrize("extra", [[], ["--fresh"]])
def test_a_folder_that_is_no_state_is_refused_untouched(tmp_path: Path, extra: list[str]) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    result = thornback("demo", "--backend", "local", "--state", str(tmp_path), *extra)
    assert result.exit_code == 2
    assert "give --state a new or an empty folder" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_for_a_state_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = thornback("demo", "--backend", "local", "--state", str(tmp_path / "file"))
    assert result.exit_code == 2
