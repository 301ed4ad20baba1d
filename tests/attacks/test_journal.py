"""Runs on a state whose journal was damaged: what is left counts, what is lost runs again, and the
report says so."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from thornback.executor import Executor, Job, NewerFormat, RankContext, RunReport, Stage


def job(folder: Path) -> Job:
    ran = str(folder / "ran")

    def square(ctx: RankContext) -> int:
        with open(ran, "a") as file:
            file.write(f"{ctx.rank} ")
        return ctx.rank**2

    return Job("squares", [Stage("square", square, ranks=6)])


def run(folder: Path) -> tuple[RunReport, list[int]]:
    """Run the job; return the report and the ranks that ran."""
    (folder / "ran").write_text("")
    executor = Executor.on_local(state=str(folder / "state"), cpus=2, max_gangs=1)
    report = executor.run(job(folder))
    return report, sorted(map(int, (folder / "ran").read_text().split()))


def test_run_on_a_damaged_state_uses_what_is_left_and_says_so(tmp_path: Path) -> None:
    first, ran = run(tmp_path)
    assert (ran, first.warnings) == ([*range(6)], ())
    control = tmp_path / "state" / "control"
    [base] = control.glob("base-*")
    base.unlink()
    report, ran = run(tmp_path)
    assert ran == []
    [warning] = [text for text in report.warnings if "is damaged" in text]
    assert warning.endswith(f"{base.name}: missing")

    [base] = control.glob("base-*")  # of the second run: it holds everything
    base.write_bytes(base.read_bytes()[:-9])
    report, ran = run(tmp_path)
    assert ran == [*range(6)]
    [warning] = [text for text in report.warnings if "is damaged" in text]
    assert f"{base.name}: " in warning
    assert list(report.results("square").values()) == [rank**2 for rank in range(6)]
    assert base.exists()

    report, ran = run(tmp_path)
    assert (ran, report.warnings) == ([], ())


def test_run_on_a_state_of_a_newer_version_is_refused_and_changes_nothing(tmp_path: Path) -> None:
    run(tmp_path)
    control = tmp_path / "state" / "control"
    [base] = control.glob("base-*")
    forge_newer(base)
    before = objects(control)
    executor = Executor.on_local(state=str(tmp_path / "state"), cpus=2, on_mismatch="fresh")
    with pytest.raises(NewerFormat, match="journal version 9, this one reads up to 2"):
        executor.run(job(tmp_path))
    assert objects(control) == before


def objects(control: Path) -> dict[str, bytes]:
    return {
        path.name: path.read_bytes()
        for path in control.iterdir()
        if path.name.startswith(("base-", "seg-"))
    }


def forge_newer(path: Path) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    lines[0] = json.dumps({**json.loads(lines[0]), "version": 9}).encode() + b"\n"
    body = b"".join(lines[:-1])
    end = {"count": len(lines) - 1, "sha256": hashlib.sha256(body).hexdigest()}
    path.write_bytes(body + json.dumps(end).encode() + b"\n")
