"""A whole run whose record is in the logging_dirs of its stages, and a driver that is killed."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from datatrove.io import get_datafolder

from thornback.datatrove.markers import completed_ranks

DRIVER = """
import os, signal, sys
from datatrove.io import get_datafolder
from thornback.datatrove.journal import PipelineJournals, PipelineState, state_url
from thornback.executor import After, Executor, Job, Stage
from thornback.executor.job import identity_of

root, deadly = sys.argv[1:]
folders = {name: get_datafolder(f"{root}/{name}") for name in ("read", "count")}

def work(ctx):
    open(f"{root}/ran-{ctx.stage}-{ctx.rank}", "a").write("x")
    print("log of", ctx.rank)
    return ctx.rank

def decode(result):
    if result == deadly:
        os.kill(os.getpid(), signal.SIGKILL)  # recorded, and neither stats nor marker written
    return f"[{result}]"

after = After("read", results=False)  # such a journal does not keep them
job = Job("chain", [Stage("read", work, ranks=6), Stage("count", work, ranks=3, after=after)])
states = [
    PipelineState(stage=stage.name, folder=folders[stage.name], identity=stage)
    for stage in identity_of(job).stages
]
executor = Executor.on_local(
    state=state_url(folders["count"]),
    cpus=2,
    journal=lambda: PipelineJournals(states, root="count", decode=decode),
)
report = executor.run(job)
print(report.term, [stage.done for stage in report.stages.values()])
"""


def drive(root: Path, deadly: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", DRIVER, str(root), deadly]
    return subprocess.run(command, capture_output=True, text=True, timeout=90)


@pytest.mark.parametrize("deadly", ["2", "5"])
def test_a_driver_that_dies_between_record_and_marker_leaves_nothing_to_run_twice(
    tmp_path: Path, deadly: str
) -> None:
    killed = drive(tmp_path, deadly)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not (tmp_path / "read" / "completions" / f"0000{deadly}").exists()
    resumed = drive(tmp_path, "none")
    assert resumed.stdout == "2 [6, 3]\n", resumed.stderr
    for name, size in (("read", 6), ("count", 3)):
        folder = get_datafolder(str(tmp_path / name))
        assert completed_ranks(folder, size) == (range(size),)
        assert [folder.cat_file(f"stats/{rank:05d}.json") for rank in range(size)] == [
            f"[{rank}]".encode() for rank in range(size)
        ]
        assert sorted(folder.ls("", detail=False)) == ["completions", "stats", "thornback"]
    # What was recorded is not run again, though nothing but the journal knew of it.
    assert (tmp_path / f"ran-read-{deadly}").read_text() == "x"


def test_a_chain_that_is_done_is_not_run_again(tmp_path: Path) -> None:
    assert drive(tmp_path, "none").stdout == "1 [6, 3]\n"
    assert drive(tmp_path, "none").stdout == "2 [6, 3]\n"
    assert {path.read_text() for path in tmp_path.glob("ran-*")} == {"x"}
    assert (tmp_path / "count" / "thornback" / "logs" / "000001").is_dir()
