"""The Ray platform: gangs are placement groups, workers are actors."""

from __future__ import annotations

import difflib
import importlib.util
import logging
import os
import socket
import sys
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import attrs
from opentelemetry.trace import TracerProvider

from thornback.executor.errors import BackendUnavailable, UsageError
from thornback.executor.plaintext import counted
from thornback.executor.ports import Connection
from thornback.executor.runtime_env import check_files
from thornback.faults import redact
from thornback.placement import Allocator, AllocatorParams
from thornback.pool import Blobs, PoolObserver, PoolParams, WorkerPool

__all__ = ["RayPlatform"]

PROBE_S = 10.0
_AUTH_MODE = "RAY_AUTH_MODE"
_LOG = logging.getLogger(__name__)


@attrs.define(kw_only=True, slots=True)
class RayPlatform:
    """A Ray cluster (fulfils `Platform`). Everything it creates is non-detached: it dies with this
    driver.

    Raises:
        BackendUnavailable: Ray is not installed, or the address is a Ray Client one (`ray://`).
    """

    address: str | None = None
    """Of the cluster's GCS, as `host:port`; `local`: start a Ray here; None: RAY_ADDRESS, else a
    cluster that runs on this machine, else start one."""
    local_cpus: int | None = None
    """Logical CPUs of a Ray that is started for this run; None: what the machine has."""
    pool: PoolParams = attrs.field(factory=PoolParams)
    """Bounds and rhythms of the workers."""
    placement: AllocatorParams = attrs.field(factory=AllocatorParams)
    """Durations of the leases."""
    _size: str = attrs.field(default="", init=False, repr=False, eq=False)

    def __attrs_post_init__(self) -> None:
        """Refuse at once what can never work."""
        if importlib.util.find_spec("ray") is None:
            raise BackendUnavailable(
                "Ray is not installed: pip install 'thornback[ray]', or use Executor.on_local()"
            )
        address = self.address or os.environ.get("RAY_ADDRESS", "")
        if address.startswith("ray://"):
            raise BackendUnavailable(
                f"{address!r} is a Ray Client address, which hides what a driver needs to know of "
                "its workers: run the driver on a node of the cluster (for example with `ray job "
                "submit`) and leave the address out, or give the GCS address host:6379"
            )

    def check_runtime_env(self, env: Mapping[str, object], where: str, /) -> None:
        """Check it as Ray would when a worker starts, and that local files exist.

        Raises:
            UsageError: Ray knows no such field, or refuses it; or a file does not exist.
        """
        _before_ray_is_imported()
        from ray.runtime_env import RuntimeEnv, RuntimeEnvConfig

        known = RuntimeEnv.known_fields | {"nsight", "rocprof_sys"}  # two have a private name, too
        # Plug-ins of a cluster bring fields of their own.
        if not os.environ.get("RAY_RUNTIME_ENV_PLUGINS"):
            _refuse_unknown(env, known, f"{where}: runtime_env=")
        config = env.get("config")
        if isinstance(config, Mapping):
            fields = RuntimeEnvConfig.known_fields
            _refuse_unknown(config, fields, f"{where}: runtime_env={{'config': ...}}, ")
        check_files(env, where)
        for name, value in env.items():
            _accepted(RuntimeEnv, {name: value}, f"{where}: runtime_env={{{name!r}: ...}}")
        _accepted(RuntimeEnv, env, f"{where}: runtime_env with {', '.join(map(repr, env))}")

    def starting(self) -> str:
        """Say which Ray is looked for."""
        ray = sys.modules.get("ray")
        if ray is not None and ray.is_initialized():
            return ""
        address = self.address or os.environ.get("RAY_ADDRESS", "")
        if address == "local":
            return "starting a Ray on this machine ..."
        if address:
            return f"connecting to Ray at {address} ..."
        return "looking for a Ray on this machine, else starting one ..."

    def prepare(self) -> None:
        """Initialise Ray, unless this process has done so. Blocks: seconds for a Ray that is
        started here.

        In the caller's thread, since a Ray head installs a SIGTERM handler, for which it needs the
        main one. Source: ray 2.60 `_private/node.py`.

        Raises:
            BackendUnavailable: no Ray answers at the address within 10 s, or it asks for a token
                that is not found here.
            Exception: whatever `ray.init` raises.
        """
        _before_ray_is_imported()
        import ray

        if not ray.is_initialized():
            self._initialise()
        self._size = _size_of(ray.nodes())  # type: ignore[no-untyped-call]  # it has no types

    def _initialise(self) -> None:
        import ray

        init = partial(ray.init, log_to_driver=False, logging_level=logging.WARNING)
        address = self.address or os.environ.get("RAY_ADDRESS")
        if address and address != "local":
            _probe(address)
            _authenticate(address)
            init(address=address)
            return
        if address is None:
            try:
                _authenticate("auto")
                init(address="auto")
            except ConnectionError:
                address = "local"
            else:
                return
        # What fails to build is tried again by the run, if that can help; Ray would do so thrice.
        # Source: ray 2.60 `_private/runtime_env/agent/runtime_env_consts.py`.
        os.environ.setdefault("RUNTIME_ENV_RETRY_TIMES", "1")
        init(address="local", num_cpus=self.local_cpus, include_dashboard=False)

    @asynccontextmanager
    async def connect(
        self, blobs: Blobs, tracers: TracerProvider, observer: PoolObserver | None, /
    ) -> AsyncIterator[Connection]:
        """Return an allocator and a pool on the cluster; placement groups and actors end with the
        context, also when it is cancelled."""
        import ray

        from thornback.placement.on_ray import RayCluster
        from thornback.pool.on_ray import RayBackend

        address = ray.get_runtime_context().gcs_address
        cluster, backend = RayCluster(), RayBackend()
        tracer = tracers.get_tracer("thornback.placement")
        leases = Allocator(cluster, params=self.placement, tracer=tracer)
        workers = WorkerPool(backend, blobs, self.pool, tracer_provider=tracers, observer=observer)
        async with leases, workers:
            yield Connection(
                name=f"Ray {ray.__version__} at {address}",
                leases=leases,
                workers=workers,
                size=self._size,
            )


def _size_of(nodes: Sequence[Mapping[str, Any]]) -> str:
    """Return how large a cluster is, by what `ray.nodes()` returns."""
    alive = [node.get("Resources", {}) for node in nodes if node.get("Alive")]
    texts = [counted(len(alive), "node")]
    for name in ("CPU", "GPU"):
        if amount := sum(resources.get(name, 0) for resources in alive):
            texts.append(counted(int(amount), name))
    return ", ".join(texts)


def _before_ray_is_imported() -> None:
    """Under `uv run` Ray would upload the tree and start every worker through uv; it reads this
    when imported.

    Source: ray 2.60 `_private/worker.py`.
    """
    os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")


def _refuse_unknown(given: Mapping[str, object], known: Collection[str], where: str) -> None:
    """Refuse fields that Ray would ignore."""
    public = sorted(name for name in known if not name.startswith("_"))
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, public, n=1)
            hint = f": did you mean {near[0]!r}?" if near else "."
            raise UsageError(
                f"{where}{{{name!r}: ...}}: Ray knows no such field{hint} It knows "
                f"{', '.join(public)}"
            )


def _accepted(make: Callable[..., object], env: Mapping[str, object], where: str) -> None:
    try:
        make(**env)
    except Exception as error:
        raise UsageError(redact(f"{where}: Ray refuses it: {error}")) from error


def _probe(address: str) -> None:
    """Refuse an address at which nobody answers: `ray.init` would wait for minutes.

    Source: ray 2.60, where the GCS client reconnects for longer than 255 s (seen).
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        return  # "auto" and the like: Ray knows
    try:
        socket.create_connection((host, int(port)), timeout=PROBE_S).close()
    except OSError as error:
        raise BackendUnavailable(
            f"no Ray answers at {address!r} ({error}): is the cluster up, and is this its GCS "
            "address? Unset RAY_ADDRESS (and leave address= out) to start a Ray here"
        ) from error


def _authenticate(address: str) -> None:
    """Use the token that Ray itself would find, if the cluster asks for one.

    Since Ray 2.59 a head asks for a token as soon as it finds one itself, but `ray.init` sends none
    to an address that it is given, and fails after 20 s. A cluster that we connect to can run code
    here in any case, so sending it the token gives nothing more away.

    Source: ray 2.60 `_private/authentication/authentication_token_setup.py`.

    Raises:
        BackendUnavailable: there is no token, or it is the wrong one.
        ConnectionError: no cluster runs on this machine (for `auto`).
    """
    from ray._private.services import canonicalize_bootstrap_address

    found = canonicalize_bootstrap_address(address)
    if found is None or _lets_us_in(found):
        return
    mode = os.environ.get(_AUTH_MODE)
    if mode is None:
        if not _token_found():
            raise BackendUnavailable(
                f"the Ray cluster at {found} asks for a token, and none was found here: put the "
                "token that `ray get-auth-token` prints on its head node into ~/.ray/auth_token, "
                "or set RAY_AUTH_TOKEN_PATH to a file that holds it"
            )
        if _lets_us_in(found):
            # It explains a warning that Ray's own code has just printed.
            told = "the Ray cluster at %s asks for a token: sending the one found here (%s=token)"
            _LOG.warning(told, found, _AUTH_MODE)
            return
    elif mode != "token":
        raise BackendUnavailable(
            f"the Ray cluster at {found} asks for a token, and {_AUTH_MODE}={mode} keeps Ray from "
            f"sending one: unset {_AUTH_MODE}, or set it to token"
        )
    raise BackendUnavailable(
        f"the Ray cluster at {found} refuses the token of this process (from RAY_AUTH_TOKEN, the "
        "file RAY_AUTH_TOKEN_PATH, or ~/.ray/auth_token): expected the one that `ray "
        "get-auth-token` prints on its head node"
    )


def _lets_us_in(address: str) -> bool:
    """Ask the cluster for its id, which takes milliseconds; False: it wants another token."""
    import ray.exceptions
    from ray._raylet import GcsClient  # type: ignore[attr-defined]  # compiled: no types

    try:
        GcsClient(address=address)
    except ray.exceptions.AuthenticationError:
        return False
    except Exception as error:  # noqa: BLE001  # a private call: `ray.init` will say what is wrong
        _LOG.debug("the Ray cluster at %s was not asked for a token: %r", address, error)
    return True


def _token_found() -> bool:
    """Have this process send the token that Ray finds; False: Ray finds none."""
    import ray.exceptions
    from ray._raylet import (  # type: ignore[attr-defined]  # compiled: no types
        AuthenticationTokenLoader,
        Config,
    )

    os.environ[_AUTH_MODE] = "token"
    Config.initialize("")  # reads the mode again
    loader = AuthenticationTokenLoader.instance()
    loader.reset_cache()
    try:
        if loader.has_token():
            return True
    except ray.exceptions.AuthenticationError:  # its way to say no
        _LOG.debug("Ray finds no token here")
    del os.environ[_AUTH_MODE]
    Config.initialize("")
    return False
