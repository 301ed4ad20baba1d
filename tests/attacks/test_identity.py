"""The same state with other parameters, other code, and other ways to start the same script.

Scripts are run as users run them: results must not be reused by mistake, and not be refused where
nothing has changed.
"""

from __future__ import annotations

import functools
import logging
import os
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import cloudpickle
import pytest

from thornback.executor import (
    Executor,
    IdentityMismatch,
    Job,
    RankContext,
    RunFailed,
    RunReport,
    Stage,
)
from thornback.executor.journal.recorded import read_run

BOUND_S = 60
SECRET = "hunter2-is-secret"
JOB = """
import functools
import os
from thornback.executor import Executor, Job, Stage

class Item:
    def __init__(self, n):
        self.n = n

def scaled(factor, ctx, item):
    return [factor * item.n, __name__ != "gone"]

def main():
    stage = Stage("a", functools.partial(scaled, 2), items=[Item(1), Item(2)])
    executor = Executor.on_local(state=os.environ["STATE"], cpus=1)
    report = executor.run(Job("job", [stage]))
    print(report.stages["a"].recorded_before, [*report.results("a").values()], report.warnings)

def spawned(kind):
    import concurrent.futures
    import multiprocessing
    context = multiprocessing.get_context(kind)
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        pool.submit(main).result()

if __name__ == "__main__":
    import sys
    spawned(sys.argv[1]) if sys.argv[1:] else main()
"""


def scaled(factor: object, ctx: RankContext) -> str:
    return "first"


@attrs.frozen
class Scaler:
    """A callable object."""

    factor: object

    def __call__(self, ctx: RankContext) -> str:
        return "first"


class Attribute:
    def __init__(self, factor: object) -> None:
        self.factor = factor

    def scale(self, ctx: RankContext) -> str:
        return "first"


def closed(factor: object) -> Callable[[RankContext], str]:
    def scale(ctx: RankContext) -> str:
        return "first" if factor else "never"

    return scale


def with_default(factor: object) -> Callable[[RankContext], str]:
    def scale(ctx: RankContext, factor: object = factor) -> str:
        return "first"

    return scale


@pytest.fixture(autouse=True)
def by_value() -> Iterator[None]:
    """Workers need not find this module."""
    module = sys.modules[__name__]
    cloudpickle.register_pickle_by_value(module)
    yield
    cloudpickle.unregister_pickle_by_value(module)


def run(folder: Path, stage: Stage, **options: Any) -> RunReport:
    executor = Executor.on_local(state=str(folder / "state"), cpus=1, **options)
    return executor.run(Job("j", [stage]))


def binds(fn: Any) -> Callable[[object], Stage]:
    return lambda factor: Stage("a", fn(factor))


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (binds(lambda v: functools.partial(scaled, v)), "argument 0 (bound by functools.partial"),
        (binds(closed), "parameter 'factor' (a variable of the enclosing function"),
        (binds(with_default), "parameter 'factor' (a default"),
        (binds(Scaler), "parameter 'factor' (an attribute of the callable object"),
        (binds(lambda v: Attribute(v).scale), "parameter 'factor' (an attribute"),
        (
            lambda v: Stage("a", closed(1), setup=functools.partial(scaled, v)),
            "argument 0 (bound by functools.partial, of setup=)",
        ),
        (lambda v: Stage("a", lambda ctx, x: 1, items=[Scaler(v)]), "its items changed"),
    ],
    ids=["partial", "closure", "default", "object", "method", "setup", "items"],
)
def test_run_with_another_bound_value_is_refused_and_names_it(
    make: Callable[[object], Stage], name: str, tmp_path: Path
) -> None:
    assert run(tmp_path, make({"token": SECRET})).warnings == ()
    assert run(tmp_path, make({"token": SECRET})).stages["a"].recorded_before == 1
    with pytest.raises(IdentityMismatch) as caught:
        run(tmp_path, make({"token": SECRET + "!"}))
    assert name in str(caught.value)
    assert SECRET not in str(caught.value)
    for path in (tmp_path / "state" / "control").rglob("*"):
        assert not path.is_file() or SECRET.encode() not in path.read_bytes(), path
    adopted = run(tmp_path, make({"token": SECRET + "!"}), on_mismatch="adopt")
    assert adopted.stages["a"].recorded_before == 1
    again = run(tmp_path, make({"token": SECRET + "!"}))
    assert (again.stages["a"].recorded_before, again.warnings) == (1, ())


def test_run_with_an_unseen_value_warns_once_and_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def stage(unseen: object) -> Stage:
        return Stage("a", closed(1), setup=functools.partial(scaled, unseen))

    with caplog.at_level(logging.WARNING):
        first = run(tmp_path, stage(map(len, [])))
    (warning,) = first.warnings
    assert "stage 'a': argument 0 (bound by functools.partial, of setup=) cannot be" in warning
    assert [record.getMessage() for record in caplog.records].count(warning) == 1
    again = run(tmp_path, stage(iter([1])))
    assert again.stages["a"].recorded_before == 1


def test_run_with_changed_code_warns_in_one_line_and_version_invalidates(tmp_path: Path) -> None:
    def stage(text: str, version: str = "") -> Stage:
        space: dict[str, Any] = {"__name__": "__main__"}
        exec(f"def f(ctx):\n    return {text}", space)
        return Stage("a", space["f"], version=version)

    assert run(tmp_path, stage("1")).results("a") == {0: 1}
    changed = run(tmp_path, stage("2"))
    assert changed.results("a") == {0: 1}
    assert changed.warnings == (
        "the code of stage 'a' changed since its results were recorded; set version= to "
        "invalidate them",
    )
    with pytest.raises(IdentityMismatch, match="version was none, is '2'"):
        run(tmp_path, stage("2", version="2"))


@pytest.fixture
def job(tmp_path: Path) -> Callable[..., str]:
    """Runs the script in some way; returns what it printed."""
    (tmp_path / "job.py").write_text(JOB)

    def run_it(*command: str, text: str | None = None) -> str:
        ended = subprocess.run(
            [sys.executable, *command],
            cwd=tmp_path,
            env={**os.environ, "STATE": str(tmp_path / "state"), "PYTHONPATH": str(tmp_path)},
            input=text,
            capture_output=True,
            text=True,
            timeout=BOUND_S,
        )
        assert ended.returncode == 0, ended.stderr
        return ended.stdout.strip()

    return run_it


def test_script_is_the_same_job_however_it_is_started(job: Callable[..., str]) -> None:
    results = "[[2, True], [4, True]] ()"
    assert job("job.py") == f"0 {results}"
    exec_it = "text = open('job.py').read(); exec(compile(text, 'cell', 'exec'), globals())"
    for command in (
        ("-m", "job"),
        ("-c", "import job; job.main()"),
        ("-c", f"{exec_it}"),
        ("-c", "import runpy; runpy.run_path('job.py', run_name='__main__')"),
        ("job.py", "spawn"),
    ):
        assert job(*command) == f"2 {results}", command
    assert job(text=JOB) == f"2 {results}", "a __main__ without a file, as in a notebook"


@pytest.mark.parametrize("kind", ["fork", "spawn", "forkserver"])
def test_driver_in_a_process_of_multiprocessing_runs_the_functions_of_its_script(
    job: Callable[..., str], kind: str
) -> None:
    assert job("job.py", kind) == "0 [[2, True], [4, True]] ()"


def test_function_that_a_worker_cannot_load_ends_the_stage_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = types.ModuleType("only_here")
    exec("def f(ctx):\n    return 1", module.__dict__)
    monkeypatch.setitem(sys.modules, "only_here", module)
    with pytest.raises(RunFailed) as caught:
        run(tmp_path, Stage("a", module.f, ranks=1000, retries=5))
    text = "stage 'a': its function cannot be loaded on the worker: No module named 'only_here'"
    assert text in str(caught.value)
    (attempt,) = caught.value.report.attempts
    assert text in attempt.fault.message
    assert caught.value.report.stages["a"].skipped == 999


def test_recorded_run_shows_digests_and_names_only(tmp_path: Path) -> None:
    run(tmp_path, Stage("a", functools.partial(scaled, SECRET)))
    (stage,) = read_run(str(tmp_path / "state")).identity.stages
    assert [*stage.params] == ["partial[0]"]
    assert SECRET not in repr(stage)
