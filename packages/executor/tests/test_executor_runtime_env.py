"""Tests that a wrong `runtime_env` is refused before anything runs, naming stage and field."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, cast

import pytest

from thornback.executor import Executor, Job, RankContext, Stage, UsageError
from thornback.executor.plan import RunPlan, Settings
from thornback.executor.runtime_env import check_files, resolved
from thornback.scheduler.commands import ShapeKey


def work(ctx: RankContext) -> int:
    return ctx.rank


@pytest.mark.parametrize(
    ("env", "says"),
    [
        ({"env_vars": {"N": 1}}, "{'N': <int>}, expected variables by name, with texts as values"),
        ({"env_vars": {1: "N"}}, "{1: <str>}, expected variables by name"),
        ({"working_dir": 3}, "is 3, expected a path or a URI"),
        ({"py_modules": "code"}, "is 'code', expected a list of paths, URIs or imported modules"),
        ({"py_modules": [1]}, "is [1], expected a list"),
        ({"excludes": "*.bin"}, "is '*.bin', expected a list of patterns"),
        ({"worker_process_setup_hook": 1}, "is 1, expected a function, or its name"),
    ],
)
def test_runtime_env_of_wrong_types_is_refused_by_stage_and_executor(
    env: dict[str, object], says: str, tmp_path: Path
) -> None:
    (field,) = env
    with pytest.raises(UsageError) as caught:
        Stage("a", work, runtime_env=env)
    assert str(caught.value).startswith(f"Stage 'a': runtime_env={{'{field}': ...}} ")
    assert says in str(caught.value)
    executor = Executor.on_local(state=os.fspath(tmp_path), runtime_env=env)
    with pytest.raises(UsageError, match=r"Executor: runtime_env=.*expected"):
        executor.run(Job("j", [Stage("a", work)]))


def test_runtime_env_error_shows_no_value_of_a_variable() -> None:
    variables = cast(Any, {"TOKEN": b"hidden"})
    with pytest.raises(UsageError) as caught:
        Stage("a", work, runtime_env={"env_vars": variables})
    assert "hidden" not in str(caught.value)


def test_runtime_env_values_of_none_are_as_if_left_out() -> None:
    Stage("a", work, runtime_env={"working_dir": None, "env_vars": None, "py_modules": None})


def test_runtime_env_paths_are_absolute_and_uris_stay() -> None:
    env = {
        "working_dir": Path("code"),
        "py_modules": ["../lib", "s3://bucket/lib.zip", "/opt/lib", json],
        "pip": "requirements.txt",
        "uv": {"packages": "requirements.txt", "uv_check": True},
        "conda": "env.yaml",
        "excludes": ["*.bin"],
    }
    assert resolved(env, "/home/me") == {
        "working_dir": "/home/me/code",
        "py_modules": [
            "/home/lib",
            "s3://bucket/lib.zip",
            "/opt/lib",
            os.path.dirname(json.__file__),
        ],
        "pip": "/home/me/requirements.txt",
        "uv": {"packages": "/home/me/requirements.txt", "uv_check": True},
        "conda": "/home/me/env.yaml",
        "excludes": ["*.bin"],
    }
    unchanged = {
        "working_dir": "gcs://pkg.zip",
        "pip": ["six"],
        "uv": {"packages": ["six"]},
        "conda": "torch",
    }
    assert resolved(unchanged, "/home/me") == unchanged


@pytest.mark.parametrize(
    ("env", "says"),
    [
        ({"working_dir": "gone"}, "gone', which does not exist on this machine: expected a folder"),
        ({"working_dir": "code.py"}, "code.py', which is something else: expected a folder, or an"),
        ({"py_modules": ["code.py", "gone"]}, "gone', which does not exist on this machine"),
        ({"pip": "gone.txt"}, "expected a file of requirements; or a list: pip=['six']"),
        ({"uv": "."}, "which is something else: expected a file of requirements"),
        ({"pip": {"packages": "gone.txt"}}, "gone.txt', which does not exist"),
        ({"conda": "gone.yml"}, "expected a YAML file; or the name of an environment"),
    ],
)
def test_runtime_env_file_that_is_missing_is_refused(
    env: dict[str, object], says: str, tmp_path: Path
) -> None:
    (tmp_path / "code.py").touch()
    (field,) = env
    with pytest.raises(UsageError) as caught:
        check_files(resolved(env, os.fspath(tmp_path)), "Stage 'a'")
    assert str(caught.value).startswith(f"Stage 'a': runtime_env={{'{field}': ...}} names '/")
    assert says in str(caught.value)


def test_runtime_env_files_that_exist_are_accepted(tmp_path: Path) -> None:
    for name in ("code.py", "code.zip", "requirements.txt"):
        (tmp_path / name).touch()
    for env in (
        {"working_dir": ".", "py_modules": ["code.py"], "pip": "requirements.txt"},
        {"working_dir": "code.zip", "conda": "torch", "uv": ["six"]},
        {"working_dir": "s3://bucket/code.zip", "py_modules": ["https://x/y.whl"]},
    ):
        check_files(resolved(env, os.fspath(tmp_path)), "Stage 'a'")


def test_runtime_env_on_this_machine_is_refused_before_anything_runs(tmp_path: Path) -> None:
    state = tmp_path / "state"
    job = Job("j", [Stage("a", work), Stage("b", work, runtime_env={"pip": ["six"]})])
    with pytest.raises(UsageError, match=r"Stage 'b': runtime_env \(with 'pip'\) needs Ray"):
        Executor.on_local(state=os.fspath(state)).run(job)
    assert not state.exists()


@pytest.mark.parametrize(
    ("env", "seconds"),
    [
        ({}, 180.0),
        ({"env_vars": {"A": "1"}}, 180.0),
        ({"pip": ["six"]}, 780.0),
        ({"working_dir": "s3://bucket/code.zip"}, 780.0),
        ({"pip": ["torch"], "config": {"setup_timeout_seconds": 1800}}, 1980.0),
        ({"pip": ["torch"], "config": {"setup_timeout_seconds": -1}}, 780.0),
        ({"config": {"setup_timeout_seconds": 1800}}, 180.0),
    ],
)
def test_workers_that_install_something_may_start_later(
    env: dict[str, object], seconds: float
) -> None:
    plan = RunPlan(
        Job("j", [Stage("a", work, runtime_env=env)]), Settings(state_url="/state", cwd="/")
    )
    assert plan.start_s(ShapeKey(0), 180.0) == seconds
