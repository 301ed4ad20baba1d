"""Drivers of a cluster that asks for a token, as any that `ray start --head` starts since Ray 2.61.

The shared cluster asks for one. Each driver is a script of its own, whose environment does not say
that tokens are used.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import pytest

if TYPE_CHECKING:
    from tests.conftest import RayTestCluster

JOB = """
import sys
from thornback.executor import Executor, Job, Stage

def rank(ctx):
    return ctx.rank + 40

if __name__ == "__main__":
    executor = Executor.on_ray(address=sys.argv[1], state=sys.argv[2])
    report = executor.run(Job("job", [Stage("stage", rank, ranks=2)]))
    print("ranks:", report.stages["stage"].done)
"""
Drive: TypeAlias = Callable[..., subprocess.CompletedProcess[str]]
pytestmark = pytest.mark.ray


@pytest.fixture
def drive(ray_cluster: RayTestCluster, tmp_path: Path) -> Drive:
    """Return a function that runs the script with these variables, and without any token or mode
    but theirs."""

    def run(**variables: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "job.py").write_text(JOB)
        inherited = {
            name: value
            for name, value in (os.environ | ray_cluster.environment).items()
            if not name.startswith("RAY_AUTH") and name != "RAY_ADDRESS"
        }
        home = tmp_path / "home"
        home.mkdir(exist_ok=True)
        return subprocess.run(
            [sys.executable, "job.py", ray_cluster.address, str(tmp_path / "state")],
            cwd=tmp_path,
            env={**inherited, "HOME": str(home), **variables},
            capture_output=True,
            text=True,
            timeout=100,
            check=False,
        )

    return run


def test_driver_with_a_token_in_its_home_connects(
    ray_cluster: RayTestCluster, drive: Drive, tmp_path: Path
) -> None:
    folder = tmp_path / "home" / ".ray"
    folder.mkdir(parents=True)
    token = Path(ray_cluster.environment["RAY_AUTH_TOKEN_PATH"]).read_text()
    (folder / "auth_token").touch(mode=0o600)
    (folder / "auth_token").write_text(token)
    ended = drive()
    assert ended.returncode == 0, ended.stderr
    assert "ranks: 2" in ended.stdout
    assert ended.stderr.count("InvalidAuthToken") <= 1
    assert "asks for a token: sending the one found here" in ended.stderr
    assert token not in ended.stdout + ended.stderr


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({}, "none was found here: put the token"),
        ({"RAY_AUTH_MODE": "disabled"}, "unset RAY_AUTH_MODE"),
        ({"RAY_AUTH_TOKEN": "0" * 64}, "refuses the token"),
        ({"RAY_AUTH_TOKEN": "0" * 64, "RAY_AUTH_MODE": "token"}, "refuses the token"),
    ],
    ids=["no token", "mode disabled", "wrong token", "wrong token, mode token"],
)
def test_driver_without_the_token_fails_at_once_and_says_what_to_set(
    drive: Drive, variables: dict[str, str], words: str
) -> None:
    began = time.monotonic()
    ended = drive(**variables)
    assert time.monotonic() - began < 20.0
    assert ended.returncode == 1
    last = ended.stderr.splitlines()[-1]
    assert "BackendUnavailable: the Ray cluster at" in last
    assert words in last
    assert ended.stderr.count("InvalidAuthToken") <= 2, ended.stderr
