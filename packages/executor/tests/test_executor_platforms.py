"""Platforms that cannot be used say so at once, with the mend; and the chaos helper aims well."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from thornback.executor import BackendUnavailable, Executor, Job, Stage, UsageError
from thornback.executor.on_ray import RayPlatform, _probe
from thornback.executor.testing import _running
from thornback.faults import NETWORK_RULES, Classifier
from thornback.pool import Beat, RunningRank


@pytest.mark.parametrize("given", [Classifier, NETWORK_RULES, None, "network"])
def test_what_is_no_classifier_is_refused_with_the_mend(given: object) -> None:
    classifier: Any = given
    with pytest.raises(UsageError, match=r"classifier=.* expected .*Classifier\(user_rules="):
        Executor.on_local(state="s", classifier=classifier)


def test_ray_client_address_is_refused_with_the_mend() -> None:
    pytest.importorskip("ray")
    with pytest.raises(BackendUnavailable, match=r"Ray Client .* run the driver on a node"):
        Executor.on_ray(state="s", address="ray://host:10001")


def test_ray_client_address_of_the_environment_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_ADDRESS", "ray://host:10001")
    with pytest.raises(BackendUnavailable, match="Ray Client"):
        RayPlatform()


def test_missing_ray_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(BackendUnavailable, match=r"pip install 'thornback\[ray\]'"):
        Executor.on_ray(state="s")


def test_address_at_which_nobody_answers_is_refused_in_seconds() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        _probe(f"127.0.0.1:{port}")
    with pytest.raises(BackendUnavailable, match=f"no Ray answers at '127.0.0.1:{port}'"):
        _probe(f"127.0.0.1:{port}")
    _probe("auto")


@pytest.mark.parametrize(
    ("env", "says"),
    [
        (
            {"pipp": ["six"]},
            r"Stage 'a': runtime_env={'pipp': ...}: Ray knows no such field: did you"
            r" mean 'pip'\? It knows conda, config, .*working_dir",
        ),
        ({"x": 1}, r"{'x': ...}: Ray knows no such field. It knows conda"),
        ({"config": {"setup_timeout": 9}}, r"'setup_timeout': .* mean 'setup_timeout_seconds'"),
        ({"pip": 3}, r"runtime_env={'pip': ...}: Ray refuses it: .*must be of type"),
        ({"config": {"setup_timeout_seconds": "9"}}, r"'config': ...}: Ray refuses it"),
        ({"pip": ["six"], "uv": ["six"]}, r"runtime_env with 'pip', 'uv': Ray refuses it"),
        ({"working_dir": "/no/such/folder"}, r"'working_dir': ...} names '/no/such/folder', which"),
    ],
)
def test_runtime_env_that_ray_would_ignore_or_refuse_is_refused_at_once(
    env: dict[str, object], says: str, tmp_path: Path
) -> None:
    """Ray ignores fields that it does not know, and refuses the others when a worker starts."""
    pytest.importorskip("ray")
    executor = Executor.on_ray(state=str(tmp_path / "state"))
    with pytest.raises(UsageError, match=says):
        executor.run(Job("j", [Stage("a", print, runtime_env=env)]))
    assert not (tmp_path / "state").exists()


def test_runtime_env_fields_of_plug_ins_are_let_through(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray")
    monkeypatch.setenv("RAY_RUNTIME_ENV_PLUGINS", '[{"class": "some.Plugin"}]')
    RayPlatform().check_runtime_env({"some_plugin": 1, "pip": ["six"]}, "Stage 'a'")


def test_chaos_never_aims_at_a_process_that_is_not_there_yet() -> None:
    """Signal 9 to process 0 would end our own process group."""

    def beat(pid: int) -> Beat:
        rank = RunningRank(assignment=7, rank=1, attempt=1, pid=pid, ran_s=0.0)
        return Beat(host="here", pid=12, rss_bytes=0, running=(rank,))

    assert _running([beat(0)], 7) is None
    found = _running([beat(0), beat(34)], 7)
    assert found is not None
    assert found[1].pid == 34
    assert _running([beat(34)], 8) is None
