"""What surrounds a script must not get into its workers, nor keep them from starting unnoticed.

Each test runs a script as a user would, in a folder that holds modules with the names of modules of
the standard library.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

BOUND_S = 60
SHADOWS = ("asyncio", "json", "random", "selectors", "socket", "typing")
JOB = """
import os
import sys
from thornback.executor import Executor, Job, Stage

def rank(ctx):
    {rank}

if __name__ == "__main__":
    executor = Executor.on_local(state=os.environ["STATE"], cpus=1, env={env!r})
    print(executor.run(Job("job", [Stage("stage", rank, ranks=1)])).results("stage")[0])
"""


@pytest.fixture
def shadowed(tmp_path: Path) -> Path:
    """A folder whose modules must not be imported."""
    folder = tmp_path / "current"
    folder.mkdir()
    for name in SHADOWS:
        (folder / f"{name}.py").write_text(f"raise RuntimeError('imported the wrong {name}')\n")
    return folder


def run(
    *command: str, cwd: Path, tmp_path: Path, **variables: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *command],
        cwd=cwd,
        env={**os.environ, "STATE": str(tmp_path / "state"), **variables},
        capture_output=True,
        text=True,
        timeout=BOUND_S,
        check=False,
    )


def script(folder: Path, rank: str, env: dict[str, str] | None = None) -> str:
    folder.mkdir(exist_ok=True)
    path = folder / "job.py"
    path.write_text(JOB.format(rank=rank, env=env or {}))
    return str(path)


def test_workers_in_a_folder_with_shadowing_modules_ignore_them(
    shadowed: Path, tmp_path: Path
) -> None:
    names = ", ".join(SHADOWS)
    job = script(tmp_path / "scripts", f"import {names}, helper; return helper.VALUE")
    (tmp_path / "scripts" / "helper.py").write_text("VALUE = 'from beside the script'\n")
    ended = run(job, cwd=shadowed, tmp_path=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert "from beside the script" in ended.stdout


def test_workers_of_a_driver_with_the_current_folder_on_its_path_have_it_too(
    tmp_path: Path,
) -> None:
    (tmp_path / "helper.py").write_text("VALUE = 'from the current folder'\n")
    code = JOB.format(rank="import helper; return helper.VALUE", env={})
    ended = run("-c", code, cwd=tmp_path, tmp_path=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert "from the current folder" in ended.stdout


def test_worker_path_keeps_the_order_of_the_driver(shadowed: Path, tmp_path: Path) -> None:
    """A folder that the driver has appended must not come before the standard library."""
    job = script(tmp_path / "scripts", "import json, late; return late.VALUE")
    (shadowed / "late.py").write_text("VALUE = 'appended'\n")
    text = Path(job).read_text()
    Path(job).write_text(
        text.replace("import sys", f"import sys; sys.path.append({str(shadowed)!r})")
    )
    ended = run(job, cwd=tmp_path, tmp_path=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert "appended" in ended.stdout


@pytest.mark.parametrize("where", ["worker", "fork server"])
def test_run_whose_workers_cannot_start_fails_at_once_with_their_stderr(
    tmp_path: Path, where: str
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "sitecustomize.py").write_text(
        "import os, sys\n"
        "print('libfoo.so.1: cannot open shared object file', file=sys.stderr, flush=True)\n"
        "os._exit(3)\n"
    )
    variables = {"PYTHONPATH": str(broken)}
    job = script(tmp_path / "scripts", "return 1", variables if where == "fork server" else None)
    if where == "worker":  # the driver itself has started by then
        text = Path(job).read_text()
        Path(job).write_text(f"import os\nos.environ.update({variables!r})\n{text}")
    ended = run(job, cwd=tmp_path, tmp_path=tmp_path)
    assert ended.returncode == 1
    assert "a worker did not start" in ended.stderr
    assert "libfoo.so.1: cannot open shared object file" in ended.stderr
