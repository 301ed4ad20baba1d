"""One real Ray cluster for all tests that ask for it, of our own: it attaches to nobody's."""

from __future__ import annotations

import gc
import os
import secrets
import select
import shutil
import signal
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from ray._private.node import Node
    from ray.cluster_utils import Cluster

START_S = 300
"""A test that starts the cluster may take as long as this: nodes start one after the other."""

# A dead node is noticed after 500 ms x 5 instead of some 10 s; shorter is too tight when busy.
SYSTEM_CONFIG = {
    "health_check_initial_delay_ms": 500,
    "health_check_period_ms": 500,
    "health_check_timeout_ms": 2000,
    "health_check_failure_threshold": 5,
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give tests that use Ray the time to start it."""
    for item in items:
        if item.get_closest_marker("ray") and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(START_S))


class RayTestCluster:
    """A head without CPUs and two nodes of two logical CPUs each; this process is connected."""

    def __init__(self, cluster: Cluster, environment: Mapping[str, str]) -> None:
        self.cluster = cluster
        self.environment = dict(environment)
        """What another driver of this cluster needs in its environment, besides `address`."""

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    def add_node(self, **arguments: Any) -> Node:
        """Start another node, which the test removes with `remove_node`. Takes 5 s and more.

        On a loaded machine a raylet may not come up in the 30 s that Ray gives it, which nothing
        can make longer: it is ended then, and there is one more try.
        """
        with _environment(self.environment):
            known = self._raylets()
            try:
                node: Node = self.cluster.add_node(**arguments)
            except Exception as error:
                if "timed out during startup" not in str(error):
                    raise
                for pid in self._raylets().keys() - known.keys():
                    os.kill(pid, signal.SIGKILL)
                node = self.cluster.add_node(**arguments)
        return node

    def _raylets(self) -> dict[int, str]:
        return _processes("/raylet/raylet", f"RAY_TMPDIR={self.environment['RAY_TMPDIR']}")

    def leftovers(self) -> dict[str, object]:
        """Return groups that are not REMOVED, actors that are not DEAD, and live worker processes
        of ours, by name; empty if a run left nothing."""
        import ray
        import ray._private.state
        from ray.util.placement_group import placement_group_table

        assert ray.is_initialized()
        found: dict[str, object] = {}
        for group, row in placement_group_table().items():
            if row["state"] != "REMOVED":
                found[f"group {group}"] = row["state"]
        for actor, row in ray._private.state.actors().items():
            if row["State"] != "DEAD":
                found[f"actor {actor}"] = row["State"]
        mark = f"RAY_TMPDIR={self.environment['RAY_TMPDIR']}"  # no other cluster's, no local ones
        for pid, command in _processes("thornback.pool", mark).items():
            found[f"process {pid}"] = command
        return found

    def assert_nothing_left(self, *, timeout_s: float) -> None:
        """Wait until a run has left nothing: Ray tells of groups and actors only when asked."""
        deadline = time.monotonic() + timeout_s
        pause = threading.Event()
        while left := self.leftovers():
            if time.monotonic() > deadline:
                raise AssertionError(f"left behind after {timeout_s} s: {left}")
            pause.wait(0.1)

    def retire_node(self, node: Node, *, timeout_s: float = 60.0) -> None:
        """End a node at the end of its test, unless that has happened, and wait until Ray counts it
        as gone: the next test must not find it."""
        import ray

        if node in self.cluster.worker_nodes:
            self.remove_node(node, graceful=True)
        deadline = time.monotonic() + timeout_s
        pause = threading.Event()
        while any(each["NodeID"] == node.node_id and each["Alive"] for each in ray.nodes()):  # type: ignore[no-untyped-call]  # ray has no types here
            if time.monotonic() > deadline:
                raise AssertionError(f"node {node.node_id} is not gone after {timeout_s} s")
            pause.wait(0.1)

    def remove_node(self, node: Node, *, graceful: bool = False) -> None:
        """End a node: gracefully, or by SIGKILL of all its processes."""
        self.cluster.remove_node(node, allow_graceful=graceful)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[RayTestCluster]:
    """Start the cluster when the first test asks for it; end it, with every process, at the end."""
    # The path is short because Ray's sockets live under it, and those names have 107 bytes at most.
    folder = Path(tempfile.mkdtemp(prefix="tb", dir="/tmp"))
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    environment = {
        "RAY_TMPDIR": str(folder),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    on_term = signal.getsignal(signal.SIGTERM)
    try:
        yield from _running(environment)
    finally:
        signal.signal(signal.SIGTERM, on_term)
        _end_processes(f"RAY_TMPDIR={folder}")
        shutil.rmtree(folder, ignore_errors=True)


def _running(environment: Mapping[str, str]) -> Iterator[RayTestCluster]:
    with _environment(environment):
        # Imported here: it takes seconds.
        import ray
        from ray.cluster_utils import Cluster

        _read_environment_again()
        cluster = Cluster()
        try:
            cluster.add_node(num_cpus=0, include_dashboard=False, _system_config=SYSTEM_CONFIG)
            for _ in range(2):
                cluster.add_node(num_cpus=2)
            ray.init(address=cluster.address, log_to_driver=False, configure_logging=False)
        except BaseException:
            _shut_down(cluster)
            raise
    try:
        yield RayTestCluster(cluster, environment)
    finally:
        _shut_down(cluster)


def _read_environment_again() -> None:
    """A module that imported ray before us made it read its mode and token of authentication then.

    Source: ray 2.60 `_private/authentication_test_utils.py` `reset_auth_token_state`.
    """
    from ray import _raylet

    _raylet.Config.initialize("")  # type: ignore[attr-defined]  # compiled: no types
    _raylet.AuthenticationTokenLoader.instance().reset_cache()  # type: ignore[attr-defined]  # as above


def _shut_down(cluster: Cluster) -> None:
    import ray

    ray.shutdown()
    cluster.shutdown()  # type: ignore[no-untyped-call]  # ray has no types here


def _processes(word: str, mark: str) -> dict[int, str]:
    """Return the live processes with the word in their command line and the mark in their
    environment."""
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                if word in command and mark.encode() in (folder / "environ").read_bytes():
                    found[int(folder.name)] = command
            except OSError:  # it ended while we looked
                continue
    return found


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set variables for the processes that are started within, and for nobody else."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        # Ray's own, which none of our code causes: before ray 2.56 a tip about a variable and files
        # left open by whoever starts a node, some of them in cycles.
        warnings.simplefilter("ignore")
        patch.delenv("RAY_ADDRESS", raising=False)
        for name, value in variables.items():
            patch.setenv(name, value)
        yield
        gc.collect()


def _end_processes(mark: str, timeout_s: float = 10.0) -> None:
    """Wait for the end of every process started with this in its environment; then kill."""
    for folder in Path("/proc").iterdir():
        try:
            if not folder.name.isdigit() or mark.encode() not in (folder / "environ").read_bytes():
                continue
            descriptor = os.pidfd_open(int(folder.name))
        except OSError:  # it has ended, or is another user's
            continue
        try:
            if not select.select([descriptor], [], [], timeout_s)[0]:
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        finally:
            os.close(descriptor)
