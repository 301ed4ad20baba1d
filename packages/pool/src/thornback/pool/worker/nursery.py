"""The rank processes of a worker: starts them, knows them, kills them, hears of their deaths.

It keeps one fork server, and replaces it when it was lost. Then all its children are dead: the
kernel kills them with it, and what they had started is found by the mark in its environment.
"""

from __future__ import annotations

import asyncio
import os
import signal
import tempfile
from collections.abc import Callable, Mapping

from thornback.pool.ports import LogChunk, WorkerSpec
from thornback.pool.worker.deaths import KillReason
from thornback.pool.worker.environ import slot_env, worker_env
from thornback.pool.worker.forks import (
    ForkFailed,
    ForkServerClient,
    ForkServerConfig,
    ForkServerLost,
    Sockets,
)
from thornback.pool.worker.logshelf import LogShelf, Owner, make_own, remove_own
from thornback.pool.worker.params import SupervisorParams
from thornback.pool.worker.ranklog import RankLog
from thornback.pool.worker.rankprocess import RankProcess

_FORK_AGAIN_S = 1.0


class Nursery:
    """Belongs to the event loop's thread."""

    def __init__(
        self,
        spec: WorkerSpec,
        node_index: int,
        nodes: int,
        *,
        params: SupervisorParams,
        log_root: str,
        owner: int,
        blob: Callable[[str], bytes | None],
        give_up: Callable[[str], None],
    ) -> None:
        """Make it, not started.

        Args:
            spec: what the worker is like.
            node_index: position of the worker in its gang of `nodes`.
            nodes: size of the gang.
            params: bounds.
            log_root: where the worker's own folder of logs is made; empty: the system's temporary
                folder.
            owner: pid of the process that salvages that folder; 0: none.
            blob: gives a blob that a program asks for; None: unknown key.
            give_up: called with the reason when no process can be started any more.
        """
        self._spec = spec
        self._node_index = node_index
        self._nodes = nodes
        self._params = params
        self._blob = blob
        self._give_up = give_up
        self._marker = os.urandom(8).hex()
        self._log_root = log_root
        self._owner = Owner.of(owner)
        self._shelf: LogShelf | None = None
        self._logs_asked = False
        self._goes_at: float | None = None
        self._preload = spec.preload
        self._server: ForkServerClient | None = None
        self._ready = asyncio.Event()
        self._restarts = 0
        self._awaiting: asyncio.Task[None] | None = None
        """Waits for a fork server: the first one, or one that replaces a lost one."""
        self._processes: dict[int, RankProcess] = {}
        self._forks = 0
        self._forking: dict[int, tuple[RankLog, str]] = {}
        """Asked for, by number of the fork: the log, the key of the program."""
        self._born: dict[int, RankProcess] = {}
        """There, but not yet taken by who asked."""
        self._has_forked = False
        self._closed = False

    @property
    def log_prefix(self) -> str:
        """What the names of this worker's logs begin with."""
        return f"{self._marker}-"

    async def start(self) -> None:
        """Start the fork server. One that is lost later is replaced, and in the end the worker
        given up.

        Raises:
            ForkServerLost: it does not start; says why, with what it wrote.
            OSError: there is no place for the logs.
        """
        folder = self._spec.log_dir or self._log_root
        if folder:
            os.makedirs(folder, exist_ok=True)
        if not self._spec.log_dir:
            folder = tempfile.mkdtemp(prefix="thornback-", dir=folder or None)
            make_own(folder)
        self._shelf = LogShelf(
            folder,
            own=not self._spec.log_dir,
            marker=self._marker,
            cap_bytes=self._params.log_cap_bytes,
        )
        server = self._spawn_server()
        await server.answered(self._params.fork_server_s)
        if server.lost:
            raise ForkServerLost("the fork server ended as soon as it had started")
        self._ready.set()

    @property
    def log_dir(self) -> str:
        """Folder of the logs; empty before the start."""
        return self._shelf.folder if self._shelf is not None else ""

    def logs(self, offsets: Mapping[str, int]) -> tuple[LogChunk, ...]:
        """Return what follows these offsets (see `LogShelf.chunks`). From the first call on, the
        logs are kept until they are read, also after `close`."""
        if self._shelf is None:
            return ()
        if not self._logs_asked:
            self._logs_asked = True
            if self._server is not None:
                self._server.keep_logs()
        found = self._shelf.chunks(offsets)
        if self._closed and self._shelf.empty and not found:
            remove_own(self.log_dir)
        return found

    def drain(self, goes_at: float) -> None:
        """Tell all processes, and those to come, when the node goes away."""
        self._goes_at = goes_at
        for process in self._processes.values():
            process.drain(goes_at)

    async def start_process(self, slot: int, program: str) -> RankProcess:
        """Fork a rank process. Gives the worker up if that is not possible. Cancellation: it is
        killed."""
        failures = 0
        while True:
            await self._ready.wait()
            server = self._server
            assert server is not None, "ready means that there is one"
            try:
                process = await self._fork(server, slot, program)
            except ForkServerLost:
                continue  # not ready any more, until there is another
            except ForkFailed as error:
                failures += 1
                if failures > self._params.fork_retries:
                    self._give_up(str(error))
                await asyncio.sleep(_FORK_AGAIN_S)
                continue
            process.connect()
            if self._goes_at is not None:
                process.drain(self._goes_at)
            return process

    def stuck(self) -> None:
        """Kill the fork server: a fork took longer than a whole set-up may, so a preloaded module
        hangs at import."""
        if self._server is not None:
            self._server.terminate()

    async def close(self) -> bool:
        """End everything, with all that descends from it. Bounded. True: nothing is left."""
        self._closed = True
        if self._awaiting is not None:
            self._awaiting.cancel()
            await asyncio.wait({self._awaiting})
        gone, pids = True, tuple(self._processes)
        if self._server is not None:
            gone = await self._server.close(self._params.close_s, pids)
        processes, forking = tuple(self._processes.values()), tuple(self._forking.values())
        self._all_died()
        for log in (*(process.log for process in processes), *(log for log, _ in forking)):
            log.close()
        self.leave_logs()
        return gone

    def leave_logs(self) -> None:
        """Remove the logs, unless somebody reads them who has not got them yet."""
        if not self._logs_asked or self._owner.gone:
            remove_own(self.log_dir)

    # -- forks and deaths ------------------------------------------------------------------------

    async def _fork(self, server: ForkServerClient, slot: int, program: str) -> RankProcess:
        self._forks += 1
        number = self._forks
        assert self._shelf is not None, "there is one before there is a fork server"
        log = self._shelf.new(slot, number)
        self._forking[number] = (log, program)
        try:
            await server.fork(number, log.path, slot_env(self._spec, os.environ, slot))
            return self._born.pop(number)
        finally:
            if self._forking.pop(number, None) is not None:  # it failed, or nobody waits any more
                log.close()
            elif (process := self._born.pop(number, None)) is not None:
                process.kill(KillReason.RETIRED)
                process.log.close()

    def _forked(self, number: int, pid: int, sockets: Sockets) -> None:
        asked = self._forking.pop(number, None)
        if asked is None:
            sockets.close()
            if self._server is not None:
                self._server.kill(pid)
            return
        self._has_forked = True
        log, program = asked
        self._processes[pid] = self._born[number] = RankProcess(
            pid, sockets, log, program=program, kill=self._kill, blob=self._blob
        )

    def _kill(self, pid: int) -> None:
        if self._server is not None and pid in self._processes:
            self._server.kill(pid)
            loop = asyncio.get_running_loop()
            loop.call_later(self._params.kill_s, self._check_dead, self._processes[pid])

    def _check_dead(self, process: RankProcess) -> None:
        if self._processes.get(process.pid) is process and self._server is not None:
            self._server.terminate()

    def _died(self, pid: int, status: int, max_rss_bytes: int) -> None:
        process = self._processes.pop(pid, None)
        if process is not None:
            process.reaped(status, max_rss_bytes)

    def _all_died(self) -> None:
        for pid in tuple(self._processes):
            self._died(pid, signal.SIGKILL, 0)

    # -- the fork server -------------------------------------------------------------------------

    def _spawn_server(self) -> ForkServerClient:
        marker = f"{self._marker}.{self._restarts}"
        config = ForkServerConfig(
            env=worker_env(
                self._spec,
                os.environ,
                marker=marker,
                node_index=self._node_index,
                nodes=self._nodes,
            ),
            marker=marker,
            preload=self._preload,
            log_path=os.path.join(self.log_dir, f"{self._marker}-forkserver.log"),
            log_dir=self.log_dir,
            owner=self._owner,
            logs_asked=self._logs_asked,
        )
        server = self._server = ForkServerClient(
            config, on_forked=self._forked, on_death=self._died, on_lost=self._lost
        )
        server.start()
        return server

    async def _await_server(self, server: ForkServerClient) -> None:
        try:
            await server.answered(self._params.fork_server_s)
        except ForkServerLost as error:
            await self._replace_server(str(error))
        else:
            if not server.lost:
                self._ready.set()

    def _lost(self) -> None:
        ready = self._ready.is_set()
        self._ready.clear()
        if ready and not self._closed:  # else who waits for it hears of it
            replace = self._replace_server("it ended by itself")
            self._awaiting = asyncio.get_running_loop().create_task(replace)

    async def _replace_server(self, reason: str) -> None:
        """End what the lost fork server leaves; tell the deaths that it could not tell; start
        another."""
        assert self._server is not None
        await self._server.close(self._params.kill_s, tuple(self._processes))
        self._all_died()
        if not self._has_forked:  # perhaps a module that it preloaded killed it
            self._preload = ()
        self._restarts += 1
        if self._restarts > self._params.fork_server_restarts:
            self.leave_logs()  # the worker ends at once, and the fork server cannot do it
            self._give_up(f"its fork server ended, {self._restarts} times by now: {reason}")
            return
        try:
            server = self._spawn_server()
        except (ForkServerLost, OSError) as error:
            self.leave_logs()
            self._give_up(f"its fork server ended, and another could not be started: {error}")
        else:
            await self._await_server(server)
