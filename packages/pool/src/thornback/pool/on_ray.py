"""Workers as Ray actors, in the bundles of a placement group.

Nothing here waits in a thread for a worker: a call's object reference says by callback that its
result exists, and per worker one call that never returns is pending, whose failure is the notice of
death. What Ray has only as blocking calls runs in worker threads, at most four at a time.

A call of an actor costs the driver half a millisecond. So each worker has a straight line besides
(`straight.py`), a connection of our own. It is an extra: where it cannot be made (a firewall), or
breaks, or Ray says that the worker is out of reach, calls go by Ray, and only Ray is asked whether
a worker lives. Large arguments go by Ray in any case.

Over 400 lines, and not split: what knows Ray is in files of this name.

Sources, ray 2.60: `includes/object_ref.pyi`, `_private/state.py`, `core/generated/common_pb2`.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

import anyio
import anyio.lowlevel
import anyio.to_thread
import attrs
import ray
import ray.exceptions
import ray.util
from ray.util.client import ray as client
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import (
    NodeAffinitySchedulingStrategy,
    PlacementGroupSchedulingStrategy,
)

from thornback.pool.connection import Connection, WorkerCallError, WorkerGoneError
from thornback.pool.ports import (
    Assignment,
    Attribute,
    CaughtError,
    GangLostError,
    LogChunk,
    Worker,
    WorkerSpec,
)
from thornback.pool.runtime_env.on_ray import RuntimeEnvs, UploadFailed, explained
from thornback.pool.straight import LineRefused, LineServer, dial
from thornback.pool.worker import logshelf
from thornback.pool.worker.supervisor import Supervisor

__all__ = ["RayBackend"]

_LOG = logging.getLogger(__name__)
_THREADS = 4
_MAX_CONCURRENCY = 1000
"""Of an actor: a `hold`, two assignments per slot, loads, beats and recalls, all at once."""
_LARGE_BYTES = 100_000
"""Larger arguments are put into the object store by the call itself, which blocks."""
_CONFIRM_FIRST_S = 0.02
_EXPLAIN_S = 5.0
_SALVAGE_S = 8.0
"""A worker process of Ray may have to be started for it."""
_CANCEL_S = 2.0
_DIAL_S = 2.0
"""For a straight line to be made."""
_EXIT_TYPE = re.compile(r"exit type: ([A-Z_]+)")

T = TypeVar("T")


class RankWorker:
    """The actor: hosts a supervisor, and never runs user code in its own process.

    Its constructor does nothing, since Ray loses what a constructor raises.
    """

    def __init__(self) -> None:
        self._supervisor: Supervisor | None = None
        self._line: LineServer | None = None

    async def start(
        self, spec: WorkerSpec, node: str, node_index: int, nodes: int, secret: bytes
    ) -> tuple[str, int]:
        """Make the supervisor ready; return the address and the port of a straight line, for who
        knows the secret (0: there is none)."""
        address = str(ray.util.get_node_ip_address())  # type: ignore[no-untyped-call]  # ray has no types there
        log_root = _log_root()
        supervisor = Supervisor(spec, node, node_index, nodes, address=address, log_root=log_root)
        await supervisor.start()
        self._supervisor = supervisor
        if not secret:
            return address, 0
        self._line = LineServer(supervisor.handle, secret)
        try:
            return address, await self._line.open(address)
        except OSError as error:
            _LOG.warning("no straight line to this worker: %r", error)
            return address, 0

    async def call(self, method: str, payload: object) -> object:
        """Pass a call on to the supervisor."""
        if self._supervisor is None:
            raise RuntimeError(f"{method!r} before the supervisor was started")
        return await self._supervisor.handle(method, payload)

    async def hold(self) -> object:
        """Return what `Supervisor.watch` returns. If this call fails, the worker is dead."""
        return await self.call("watch", None)


def _log_root() -> str:
    """Return a folder for logs among those of this node's Ray, which outlives a worker, and is
    cleaned up with them; empty: there is none."""
    node = getattr(ray._private.worker, "_global_node", None)
    if node is None:
        return ""
    folder = os.path.join(str(node.get_logs_dir_path()), "thornback")
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        _LOG.warning("no logs among those of Ray: %r", error)
        return ""
    return folder


def _salvage(log_dir: str, log_prefix: str, offsets: Mapping[str, int]) -> Sequence[LogChunk]:
    """Run on the node, as a task."""
    return logshelf.salvage(log_dir, log_prefix, offsets, remove=True)


@attrs.define(slots=True, eq=False)
class _Pending:
    """A reference that somebody waits for. Held, since one that is dropped may never fire."""

    ref: Any
    ready: anyio.Event = attrs.field(factory=anyio.Event)
    abandoned: bool = False


class _Bridge:
    """Wakes tasks of one event loop when objects exist. The callbacks come from a thread of
    Ray's, which must not wait."""

    def __init__(self) -> None:
        # By the loop's own means: anyio has no public call that does not wait for the loop.
        loop: Any = anyio.lowlevel.current_token().native_token  # asyncio's loop, or trio's token
        self._soon = getattr(loop, "call_soon_threadsafe", None) or loop.run_sync_soon
        self._pending: dict[int, _Pending] = {}
        self._fired: deque[int] = deque()
        self._armed = False
        self._count = 0
        self._limiter = anyio.CapacityLimiter(_THREADS)

    async def in_thread(self, call: Callable[[], T]) -> T:
        """Run something of Ray's that blocks. Cancelled: its result is dropped when it comes."""
        return await anyio.to_thread.run_sync(call, abandon_on_cancel=True, limiter=self._limiter)

    async def result(self, ref: Any) -> Any:
        """Return the result of a call, or raise it. Cancelled: dropped when it comes."""
        self._count += 1
        number = self._count
        pending = self._pending[number] = _Pending(ref)
        if hasattr(ref, "_on_ready"):
            ref._on_ready(lambda _: self._fire(number))
        else:  # before ray 2.60: fetches the result as well
            ref._on_completed(lambda _: self._fire(number))
        try:
            await pending.ready.wait()
        except BaseException:
            pending.abandoned = True
            raise
        try:
            return ray.get(ref, timeout=0)  # small results are in this process already
        except ray.exceptions.GetTimeoutError:
            return await self.in_thread(partial(ray.get, ref))

    def _fire(self, number: int) -> None:
        """Called in a thread of Ray's, or in ours: never blocks, never raises."""
        self._fired.append(number)
        if not self._armed:
            self._armed = True
            try:
                self._soon(self._drain)
            except RuntimeError:
                self._armed = False  # the loop has ended, and so has everybody who waited

    def _drain(self) -> None:
        self._armed = False
        while self._fired:
            pending = self._pending.pop(self._fired.popleft(), None)
            if pending is None:
                continue
            pending.ready.set()
            if pending.abandoned:
                _consume(pending.ref)


def _consume(ref: Any) -> None:
    """Look at a result that nobody wants: Ray complains about failures that were never looked
    at."""
    try:
        ray.get(ref, timeout=0)
    except Exception as error:  # noqa: BLE001  # whatever it is, it comes too late
        _LOG.debug("dropped a late failure: %r", error)


class _RayWorker:
    """An actor that hosts a supervisor (fulfils `Worker`)."""

    def __init__(
        self, bridge: _Bridge, actor: Any, node: str, salvaging: Any, *, straight: bool
    ) -> None:
        self._bridge = bridge
        self._actor = actor
        self._node = node
        self._salvaging = salvaging
        """The remote function that reads logs on the node."""
        self._node_gone = False
        """As the GCS says: nothing is to be read there."""
        self._straight = straight
        self._line: Connection | None = None
        self._hold: Any = None
        """The call that tells of its death; None: not called yet, or the last one failed because
        the actor was out of reach."""

    async def start(self, spec: WorkerSpec, index: int, nodes: int) -> None:
        """Make the supervisor ready. Kills the actor if that fails, or is cancelled."""
        started = False
        try:
            secret = secrets.token_bytes(32) if self._straight else b""
            ready = self._actor.start.remote(spec, self._node, index, nodes, secret)
            address, port = await self._bridge.result(ready)
            self._hold = self._actor.hold.remote()
            if port:
                await self._connect(address, port, secret)
            started = True
        except ray.exceptions.RayError as error:
            _, facts = await self.death(error)
            raise GangLostError(explained(error), self._node, "start", facts) from error
        finally:
            if not started:
                await _kill_now(self._bridge, self._actor)

    async def call(self, method: str, payload: object, /) -> object:
        """Call the supervisor.

        Raises:
            ray.exceptions.ActorDiedError: gone for good. Other subclasses of `RayError`: see
                `is_unavailable`.
        """
        if method == "watch":
            return await self._watch()
        if self._line is not None and _size(payload) <= _LARGE_BYTES:
            try:
                return await self._line.call(method, payload)
            except WorkerGoneError:
                self._hang_up()  # Ray knows whether it is dead: ask there
        return await self._call(method, payload)

    async def _call(self, method: str, payload: object) -> object:
        if _size(payload) > _LARGE_BYTES:
            send = partial(self._actor.call.remote, method, payload)
            ref = await self._bridge.in_thread(send)
        else:
            ref = self._actor.call.remote(method, payload)
        return await self._bridge.result(ref)

    async def _connect(self, address: str, port: int, secret: bytes) -> None:
        try:
            with anyio.move_on_after(_DIAL_S) as scope:
                self._line = await dial(address, port, secret)
        except (OSError, LineRefused) as error:
            _LOG.info("no straight line to node %s, calls go by Ray: %r", self._node, error)
        if scope.cancelled_caught:
            _LOG.info("no straight line to node %s within %g s", self._node, _DIAL_S)

    def _hang_up(self) -> None:
        """From now on call by Ray; what is under way on the line is repeated there."""
        if self._line is not None:
            self._line.abort()
            self._line = None

    async def _watch(self) -> object:
        if self._hold is None:
            self._hold = self._actor.hold.remote()
        ref = self._hold
        try:
            return await self._bridge.result(ref)
        except ray.exceptions.RayError as error:
            self._hang_up()  # Ray has lost it: whatever is said on the line may be to nobody
            if self._hold is ref and isinstance(error, ray.exceptions.ActorUnavailableError):
                self._hold = None  # the next watch asks anew
            raise

    def is_unavailable(self, error: BaseException, /) -> bool:
        """Whether the actor is only out of reach: not so for an error from inside it."""
        cut = isinstance(error, ray.exceptions.ActorUnavailableError | ray.exceptions.RpcError)
        return cut and not isinstance(error, ray.exceptions.RayTaskError)

    async def kill(self, *, timeout_s: float) -> bool:
        """`ray.kill`, then wait until the GCS says DEAD.

        True means what Ray knows: a process that is stopped, or cut off by the network, can outlive
        it.
        """
        self._hang_up()
        with anyio.move_on_after(timeout_s):
            await _kill(self._bridge, self._actor)
            with anyio.move_on_after(timeout_s / 2), suppress(ray.exceptions.RayError):
                await self._watch()
            delay_s = _CONFIRM_FIRST_S
            while True:
                record = await self._record()
                if record.get("State") == "DEAD":
                    return True
                await anyio.sleep(delay_s)
                delay_s *= 2
        return False

    async def death(
        self, error: BaseException, /
    ) -> tuple[CaughtError | BaseException, Mapping[str, Attribute]]:
        """Ask the GCS why the actor, or its node, died. The error itself is returned as it is."""
        if isinstance(error, WorkerCallError):
            return error.error, {}  # it lives: its own code raised
        if isinstance(error, ray.exceptions.RayTaskError):
            return error, {}  # it lives, too
        facts: dict[str, Attribute] = {}
        if isinstance(error, ray.exceptions.RayActorError):
            facts["preempted"] = error.preempted
        with anyio.move_on_after(_EXPLAIN_S):
            record = await self._record()
            facts |= death_facts(record.get("DeathCause"))
            if record.get("Pid"):
                facts["pid"] = int(record["Pid"])
            if facts.get("death_cause") in (None, "NODE_DIED"):
                nodes = await self._bridge.in_thread(ray.nodes)
                facts = {**node_facts(nodes, self._node), **facts}
        self._node_gone = facts.get("death_cause") == "NODE_DIED"
        return error, facts

    async def salvage(
        self, log_dir: str, log_prefix: str, offsets: Mapping[str, int], /
    ) -> Sequence[LogChunk]:
        """Read the rest of its logs, by a task on the node, and remove them. A node that is gone
        gives nothing.

        Cancellation: so is the task.
        """
        if self._node_gone:
            return ()
        send = partial(self._salvaging.remote, log_dir, log_prefix, dict(offsets))
        ref = await self._bridge.in_thread(send)
        read = False
        try:
            with anyio.move_on_after(_SALVAGE_S):
                found: Sequence[LogChunk] = await self._bridge.result(ref)
                read = True
                return found
        except ray.exceptions.RayError as error:
            read = True
            _LOG.debug("no logs from node %s: %r", self._node, error)
        finally:
            if not read:
                with anyio.CancelScope(shield=True), anyio.move_on_after(_CANCEL_S):
                    await self._bridge.in_thread(partial(ray.cancel, ref, force=True))
        return ()

    async def _record(self) -> Mapping[str, Any]:
        """Return what the GCS knows of the actor; empty when it knows nothing, or cannot be
        asked."""
        actor_id = self._actor._actor_id.hex()
        try:
            record: Mapping[str, Any] = await self._bridge.in_thread(
                partial(ray._private.state.actors, actor_id)
            )
        except Exception as error:  # noqa: BLE001  # a private call of a system that may be down
            _LOG.warning("the GCS does not tell of actor %s: %r", actor_id, error)
            return {}
        return record or {}


async def _kill(bridge: _Bridge, actor: Any) -> None:
    try:
        await bridge.in_thread(partial(ray.kill, actor, no_restart=True))
    except Exception as error:  # noqa: BLE001  # dead already, or no GCS: the confirmation tells
        _LOG.debug("ray.kill: %r", error)


async def _kill_now(bridge: _Bridge, actor: Any) -> None:
    """Kill an actor that nobody has got, also when we are cancelled."""
    with anyio.CancelScope(shield=True), anyio.move_on_after(_EXPLAIN_S):
        await _kill(bridge, actor)


class RayBackend:
    """Starts workers as actors (fulfils `WorkerBackend`), on leases whose handle is a placement
    group.

    For one event loop, after `ray.init`. Actors are not detached: they die with the driver. A
    worker's confirmed death is what Ray knows: a process that is stopped, or cut off by the
    network, can outlive it.

    Why an actor or its node died, the GCS is asked. Facts: `death_cause` (`RAY_KILL`,
    `WORKER_DIED`, `NODE_DIED`, `OUT_OF_SCOPE`, `OOM`, `RUNTIME_ENV_FAILED`, `CREATION_TASK_FAILED`,
    `ACTOR_UNSCHEDULABLE`), `exit_type`, `preempted`, `node_death_reason`, `pid`.

    Args:
        straight: let each worker listen on a TCP port of its own, for calls that cost a fraction
            of Ray's; both ends prove that they know a secret that Ray has carried. Where that port
            cannot be reached, calls go by Ray. Ignored where Ray is set to use TLS, since these
            connections are not encrypted.

    Raises:
        RuntimeError: Ray is not initialised, or this is a Ray Client.
    """

    def __init__(self, *, straight: bool = True) -> None:
        if not ray.is_initialized():
            raise RuntimeError("Ray is not initialised: call ray.init() first")
        if client.is_connected():  # type: ignore[no-untyped-call]  # ray has no types there
            raise RuntimeError(
                "this is a Ray Client (ray://), which hides when results are there and why actors "
                "died: run the driver on a node of the cluster, as `ray job submit` does"
            )
        self._bridge: _Bridge | None = None
        self._runtime_envs: RuntimeEnvs | None = None
        encrypted = os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true")
        self._straight = straight and not encrypted
        self._actor_class = ray.remote(RankWorker)
        self._salvaging = ray.remote(_salvage)

    async def start(
        self, node: str, index: int, nodes: int, handle: object, spec: WorkerSpec, /
    ) -> Worker:
        """Start an actor on bundle `index` of the group; returns when its supervisor is ready.

        Local files of its `runtime_env` are uploaded first, once for all workers.

        Raises:
            GangLostError: it did not come up; with what Ray knows of it.
            TypeError: the handle is no placement group.

        Cancellation: the actor is killed.
        """
        if not isinstance(handle, PlacementGroup):
            raise TypeError(f"expected the placement group of a lease, got {handle!r:.200}")
        if self._bridge is None:
            self._bridge = _Bridge()
        if self._runtime_envs is None:
            self._runtime_envs = RuntimeEnvs()
        try:
            runtime_env = await self._runtime_envs.prepare(spec.runtime_env)
        except UploadFailed as failed:
            facts: dict[str, Attribute] = {"non_retryable": True} if failed.final else {}
            raise GangLostError(explained(failed.error), node, "start", facts) from failed
        options: dict[str, Any] = {
            "num_cpus": spec.cpus,
            "num_gpus": spec.gpus,
            "resources": dict(spec.resources) or None,
            "memory": spec.memory_bytes or None,
            "max_restarts": 0,
            "max_task_retries": 0,
            "max_concurrency": max(_MAX_CONCURRENCY, 4 * spec.slots + 100),
            "runtime_env": runtime_env or None,
            "scheduling_strategy": PlacementGroupSchedulingStrategy(
                placement_group=handle,
                placement_group_bundle_index=index,
                placement_group_capture_child_tasks=False,
            ),
        }
        salvaging = self._salvaging.options(
            num_cpus=0,
            max_retries=0,
            runtime_env=options["runtime_env"],
            scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
        )
        actor = await self._make(self._bridge, options)
        worker = _RayWorker(self._bridge, actor, node, salvaging, straight=self._straight)
        try:
            # The worker has the environment; it needs no description, which may hold secrets.
            await worker.start(attrs.evolve(spec, runtime_env={}), index, nodes)
        except GangLostError as error:
            if isinstance(error.__cause__, ray.exceptions.RuntimeEnvSetupError):
                self._runtime_envs.failed(runtime_env)
            raise
        return worker

    async def _make(self, bridge: _Bridge, options: Mapping[str, Any]) -> Any:
        """Create the actor in a thread. Cancelled: it is killed, also when it comes to be later."""
        made: list[Any] = []
        unwanted: list[bool] = []

        def make() -> None:
            made.append(self._actor_class.options(**options).remote())
            if unwanted:
                ray.kill(made[0])

        try:
            await bridge.in_thread(make)
        except BaseException:
            unwanted.append(True)
            for actor in made:
                await _kill_now(bridge, actor)
            raise
        return made[0]


def death_facts(cause: Any) -> dict[str, Attribute]:
    """Return what an `ActorDeathCause` says, as plain facts. Source: ray 2.60
    `common_pb2.ActorDeathCause`."""
    context = cause.WhichOneof("context") if cause is not None else None
    if context is None:
        return {}
    if context != "actor_died_error_context":
        name = context.removesuffix("_context").upper()
        return {"death_cause": {"CREATION_TASK_FAILURE": "CREATION_TASK_FAILED"}.get(name, name)}
    died = cause.actor_died_error_context
    facts: dict[str, Attribute] = {
        "death_cause": type(died).Reason.Name(died.reason),
        "death_message": died.error_message[:1000],
        "never_started": died.never_started,
    }
    if found := _EXIT_TYPE.search(died.error_message):
        facts["exit_type"] = found[1]
    if died.HasField("node_death_info"):
        info = died.node_death_info
        facts["node_death_reason"] = type(info).Reason.Name(info.reason)
        if facts["node_death_reason"] == "AUTOSCALER_DRAIN_PREEMPTED":
            facts["preempted"] = True
    return facts


def node_facts(nodes: list[dict[str, Any]], node: str) -> dict[str, Attribute]:
    """Return what the cluster knows of a dead node; of a living or unknown one, nothing."""
    for record in nodes:
        if record.get("NodeID") == node and not record.get("Alive", True):
            reason = record.get("DeathReason")
            message = str(record.get("DeathReasonMessage") or "")[:1000]
            return {
                "death_cause": "NODE_DIED",
                "node_death_reason": reason if isinstance(reason, int | str) else str(reason),
                "node_death_message": message,
            }
    return {}


def _size(payload: object) -> int:
    """Return about how many bytes a call's arguments have: those of its byte strings."""
    parts = payload if isinstance(payload, tuple) else ()
    works = [part for part in parts if isinstance(part, Assignment)]
    args = [arg for work in works for arg in (*work.args, *work.restored)]
    return sum(len(part) for part in (*parts, *args) if isinstance(part, bytes))
