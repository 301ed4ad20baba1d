"""Set-up on a real Ray: local files reach the ranks, and what cannot be built ends its stage at
once."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from thornback.executor import Executor, Job, RankContext, RankFailure, RunFailed, Stage
from thornback.faults import StopReason

pytestmark = pytest.mark.ray

HIDDEN = "a-token-of-an-index"


def functions() -> tuple[Any, Any, Any]:
    """Return a stage's function that looks around, one that does nothing, and a hook: sent by
    value, since workers do not find this module."""

    def look(ctx: RankContext) -> dict[str, Any]:
        import os

        import helping  # type: ignore[import-not-found]  # in a folder that is uploaded
        import packed  # type: ignore[import-not-found]  # likewise

        with open("data.txt") as file:
            return {
                "data": file.read(),
                "files": sorted(name for name in os.listdir(".") if name != "__pycache__"),
                "modules": [helping.NAME, packed.NAME],
                "hook": os.environ.get("HOOK"),
            }

    def work(ctx: RankContext) -> int:
        return ctx.rank

    def hook() -> None:
        import os

        os.environ["HOOK"] = "has run"

    return look, work, hook


@pytest.fixture
def code(tmp_path: Path) -> Path:
    """A folder with a module, data, and what is to stay behind; beside it a package."""
    folder = tmp_path / "code"
    folder.mkdir()
    (folder / "helping.py").write_text("NAME = 'helping'\n")
    (folder / "data.txt").write_text("data")
    (folder / "large.bin").write_text("large")
    package = tmp_path / "lib" / "packed"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("NAME = 'packed'\n")
    return tmp_path


@pytest.mark.usefixtures("ray_cluster")
def test_local_folders_and_hook_reach_the_ranks_as_by_ray_init(
    code: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    look, _, hook = functions()
    monkeypatch.chdir(code)  # paths are relative to where the driver is
    env = {
        "working_dir": "code",
        "py_modules": ["lib/packed"],
        "excludes": ["*.bin"],
        "worker_process_setup_hook": hook,
    }
    executor = Executor.on_ray(state=str(code / "state"), runtime_env=env)
    job = Job("j", [Stage("a", look, ranks=2), Stage("b", look, cpus=0.5)])
    report = executor.run(job)
    seen = [*report.results("a").values(), *report.results("b").values()]
    assert (
        seen
        == [
            {
                "data": "data",
                "files": ["data.txt", "helping.py"],
                "modules": ["helping", "packed"],
                "hook": "has run",
            }
        ]
        * 3
    )


@pytest.mark.usefixtures("ray_cluster")
def test_runtime_env_that_can_never_be_built_ends_its_stage_at_once(tmp_path: Path) -> None:
    """With pip's own words; or, where Ray could not even call pip, with Ray's."""
    packages = {
        "packages": ["thornback-no-such-package"],
        "pip_install_options": ["--no-index", "--find-links", f"https://{HIDDEN}@localhost/"],
    }
    _, work, _ = functions()
    executor = Executor.on_ray(state=str(tmp_path / "state"))
    job = Job("j", [Stage("a", work, ranks=20, max_gangs=2, runtime_env={"pip": packages})])
    with pytest.raises(RunFailed) as caught:
        executor.run(job)
    report = caught.value.report
    (failure,) = caught.value.exceptions
    words = r"No matching distribution found for thornback-no-such|Please install virtualenv"
    assert re.search(words, caught.value.text)
    assert isinstance(failure, RankFailure)
    assert re.search(r"Could not find a version|Please install virtualenv", failure.cause)
    assert len(report.attempts) <= 2, "the gangs that were asked for together, and no more"
    assert {attempt.stop for attempt in report.attempts} == {StopReason.FINAL}
    assert HIDDEN not in repr(report)
    assert HIDDEN not in caught.value.text


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.usefixtures("ray_cluster", "anyio_backend")
async def test_files_are_uploaded_once_and_again_if_ray_has_dropped_them(code: Path) -> None:
    """Ray keeps a package for ten minutes, unless a job refers to it; gangs may open later."""
    from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_exists

    from thornback.pool.runtime_env.on_ray import RuntimeEnvs

    envs = RuntimeEnvs()
    env = {"working_dir": str(code / "code"), "py_modules": [str(code / "lib/packed")]}
    first = await envs.prepare({**env, "env_vars": {"A": "1"}})
    uris = [first["working_dir"], *first["py_modules"]]
    assert all(uri.startswith("gcs://") for uri in uris)
    (code / "code" / "helping.py").write_text("NAME = 'changed'\n")
    second = await envs.prepare({**env, "env_vars": {"A": "2"}})
    assert [second["working_dir"], *second["py_modules"]] == uris, "one version for the whole run"
    for uri in uris:
        _internal_kv_del(uri)
    third = await envs.prepare(env)
    assert third["py_modules"] == first["py_modules"]
    assert third["working_dir"] != first["working_dir"], "named by its content, which has changed"
    assert all(_internal_kv_exists(uri) for uri in (third["working_dir"], *third["py_modules"]))


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.usefixtures("ray_cluster", "anyio_backend")
async def test_environment_that_failed_is_asked_for_as_another_one(code: Path) -> None:
    """Else a node would answer from memory, for ten minutes."""
    from thornback.pool.runtime_env.on_ray import TRY_VARIABLE, RuntimeEnvs, UploadFailed

    envs = RuntimeEnvs()
    env = {"pip": ["six"], "env_vars": {"A": "1"}}
    for tries in (1, 2):
        envs.failed(await envs.prepare(env))
        again = await envs.prepare(env)
        assert again == {"pip": ["six"], "env_vars": {"A": "1", TRY_VARIABLE: str(tries)}}
    assert await envs.prepare({"pip": ["other"]}) == {"pip": ["other"]}
    with pytest.raises(UploadFailed) as caught:
        await envs.prepare({"working_dir": str(code / "gone")})
    assert caught.value.final
    assert "gone" in str(caught.value.error)
