"""The facade: one constructor, one `run`."""

from __future__ import annotations

import contextvars
import logging
import math
import os
import signal
import sys
import threading
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from functools import partial
from typing import Literal, TypeAlias, TypedDict, TypeVar, Unpack

import anyio
import attrs
from opentelemetry import trace
from opentelemetry.trace import TracerProvider

from thornback.executor.blobs import RunBlobs
from thornback.executor.certifier import no_logs
from thornback.executor.checks import check_classifier
from thornback.executor.clock import SystemClock
from thornback.executor.confidential import (
    DiscreetClassifier,
    conceal,
    names_only,
    secrets_of,
    shown_url,
    without_secrets,
)
from thornback.executor.console import LeftOut, Printer, RankConsole, say
from thornback.executor.driver import Driver, Parts
from thornback.executor.endings import bad_end, beginning, make_report, read_results, results_of
from thornback.executor.errors import UsageError
from thornback.executor.job import Job, identity_of
from thornback.executor.journal.filejournal import FileJournal
from thornback.executor.journal.identity import unseen
from thornback.executor.journal.store import protocols
from thornback.executor.logs import LOGS, LogStore
from thornback.executor.params import ExecutorParams
from thornback.executor.paths import is_url, located_state
from thornback.executor.plan import RunPlan, Settings
from thornback.executor.ports import (
    ChecksRuntimeEnvs,
    Classifier,
    Clock,
    Companion,
    JournalFactory,
    PlacesOutputs,
    Platform,
    SaysStart,
)
from thornback.executor.recording import record_file
from thornback.executor.report import Observer, RunInfo, RunReport
from thornback.executor.runtime_env import check_types
from thornback.executor.tracing import RunTracer
from thornback.executor.watching import Watchers, WorkerNews, tell_waits
from thornback.faults import Classifier as FaultClassifier
from thornback.faults import Redactor, redact
from thornback.scheduler import SchedulerParams

logger = logging.getLogger(__name__)
OnMismatch: TypeAlias = Literal["refuse", "adopt", "fresh"]
T = TypeVar("T")
_SAME_S = {signal.SIGINT: 0.1, signal.SIGTERM: 1.0}
"""A repeated signal within so long is the same request: `timeout` and service managers signal the
process and then its group; a launcher may pass on a Ctrl-C that the terminal has sent already."""


class ExecutorOptions(TypedDict, total=False):
    """The fields of `Executor` but for its platform and state, for `on_ray` and `on_local`."""

    max_gangs: int | None
    env: Mapping[str, str]
    runtime_env: Mapping[str, object]
    on_mismatch: OnMismatch
    journal: JournalFactory | None
    storage_options: Mapping[str, object]
    observers: Sequence[Observer]
    companions: Sequence[Companion]
    tracer_provider: TracerProvider | None
    classifier: Classifier
    clock: Clock
    params: ExecutorParams
    scheduler: SchedulerParams
    seed: int
    retry_failed: bool
    logs: bool
    quiet: bool | LeftOut
    record: str | None


def _is_classifier(_: object, __: object, value: object) -> None:
    check_classifier(value)


@attrs.frozen(kw_only=True, slots=True)
class Executor:
    """Runs jobs on a platform, with the record of each kept under `state`.

    Make one with `Executor.on_ray(...)` or `Executor.on_local(...)`, or give a `platform` of your
    own."""

    platform: Platform
    """Where gangs live."""
    state: str = attrs.field(repr=without_secrets)
    """Folder (path or fsspec URL) of **one** job's record; run the job again with it to resume."""
    max_gangs: int | None = None
    """Gangs at the same time, per stage; None: as many as fit."""
    env: Mapping[str, str] = attrs.field(factory=dict, repr=names_only)
    """Environment variables of the rank processes."""
    runtime_env: Mapping[str, object] = attrs.field(factory=dict, repr=without_secrets)
    """Ray's; refused by other platforms."""
    on_mismatch: OnMismatch = "refuse"
    """If `state` holds another job: refuse, adopt what has the same stage names, or start
    afresh."""
    journal: JournalFactory | None = None
    """Makes the journal of each run; None: files under `state`. `state` keeps the rest."""
    storage_options: Mapping[str, object] = attrs.field(factory=dict, repr=False)
    """Of the file system of `state`, as fsspec takes them. Used by the driver alone; they go into
    no log and no file, but into the pickle of a `RunReport`, which reads results with them."""
    observers: Sequence[Observer] = ()
    """Are told how the run goes."""
    companions: Sequence[Companion] = ()
    """Go along with the run, and may ask and cancel it (`thornback.executor.ports.Companion`)."""
    tracer_provider: TracerProvider | None = None
    """Makes the spans of the run, and those of user code in its ranks (see `RankContext`); None:
    OpenTelemetry's global one."""
    classifier: Classifier = attrs.field(factory=FaultClassifier, validator=_is_classifier)
    """Turns errors into faults, which decide what is tried again. An error that a rank's own code
    raises is only tried again with `Stage.retries`, unless a rule set that you ask for knows it as
    one that may go away: `thornback.faults.Classifier(user_rules=(*THROTTLED_RULES,
    *NETWORK_RULES))`, all from `thornback.faults`."""
    clock: Clock = attrs.field(factory=SystemClock)
    params: ExecutorParams = attrs.field(factory=ExecutorParams)
    """Time-outs of the driver."""
    scheduler: SchedulerParams = attrs.field(factory=SchedulerParams)
    """Numbers that tune its decisions: quarantine of nodes, when a stage stops, batch sizes."""
    seed: int = 0
    """Of the jitter between retries."""
    retry_failed: bool = True
    """Try ranks that an earlier run gave up again, with fresh budgets; False leaves them failed."""
    logs: bool = True
    """Keep what rank processes write under `<state>/logs/<term>`, and ask them how far they are
    (`RankContext.progress`). False: neither is sent to the driver; logs go with the workers."""
    quiet: bool | LeftOut = False
    """True: print nothing. False: print on stderr what ranks write, as `[stage:rank] text` within
    about a second and at most 100 lines a second, and what is being started, if you have configured
    no logging (else it is logged at level INFO). A function of a line (stage, rank, text): True for
    lines of ranks that are not to be printed. With `logs=False` nothing of ranks is printed."""
    record: str | None = None
    """File of this machine (also a `.gz`) to which every decision is written, and replaced by the
    next run: `python -m thornback.scheduler story FILE STAGE:RANK`. None: nothing is recorded."""

    @staticmethod
    def on_local(
        *, state: str, cpus: float | None = None, **options: Unpack[ExecutorOptions]
    ) -> Executor:
        """Return an executor whose workers are processes of this machine.

        Args:
            state: as the field of that name.
            cpus: logical CPUs to hand out; None: what the machine has.
            **options: the other fields of `Executor`, but for `platform`.
        """
        from thornback.executor.on_local import LocalPlatform

        return Executor(platform=LocalPlatform(cpus=cpus), state=os.fspath(state), **options)

    @staticmethod
    def on_ray(
        *,
        state: str,
        address: str | None = None,
        local_cpus: int | None = None,
        **options: Unpack[ExecutorOptions],
    ) -> Executor:
        """Return an executor on Ray.

        Attaches to a Ray that this process has initialised, else to `address`, else to RAY_ADDRESS,
        else to a cluster that runs on this machine, else starts one of its own, and says which in
        `RunInfo.backend`.

        Args:
            state: as the field of that name; a folder or URL that all nodes reach.
            address: of the cluster's GCS, as `host:port`; None: see above.
            local_cpus: logical CPUs of a Ray that is started; None: what the machine has.
            **options: the other fields of `Executor`, but for `platform`.

        Raises:
            BackendUnavailable: Ray is not installed, or the address is a Ray Client one (`ray://`).
        """
        from thornback.executor.on_ray import RayPlatform

        platform = RayPlatform(address=address, local_cpus=local_cpus)
        return Executor(platform=platform, state=os.fspath(state), **options)

    def run(self, job: Job, *, check: bool = True) -> RunReport:
        """Run the job to its end and return the report; blocks. In a thread of its own when an
        event loop runs here (a notebook).

        In the main thread, Ctrl-C (or SIGTERM) once ends the run in order: running ranks are
        killed, what is recorded stays, and `RunCancelled` is raised. A script that does not catch
        it exits with code 130 (or 143), without a traceback. Twice ends the process at once; two
        SIGTERM within a second count as one, since supervisors send one to a process and one to its
        group.

        Args:
            job: what to run.
            check: raise if the run failed or was cancelled; False returns the report then, too.

        Raises:
            UsageError: the job cannot run as it is; nothing was run.
            RunFailed: ranks failed, beyond `max_failed` of their stage; carries the report.
            RunCancelled: the run was cancelled; carries the report.
            HeldByAnother: another driver holds the state.
            IdentityMismatch: the state is of another job (see `on_mismatch`).
            JournalError: the state cannot be read, or not be written when the run begins.
        """
        plan = self._plan(job)
        remote = _RemoteCancel()
        with Printer(silent=self.quiet is True) as printer:
            self._prepare(printer)

            async def main() -> RunReport:
                return await self._run(plan, printer, remote=remote)

            try:
                report = _outside_of_any_loop(main, remote.cancel)
            except KeyboardInterrupt:  # before there was a run to cancel
                raise KeyboardInterrupt from None
        if check and (error := bad_end(report, signal=remote.signal)):
            raise error  # here, so that its traceback shows the caller's line, not our insides
        return report

    async def arun(self, job: Job, *, check: bool = True) -> RunReport:
        """As `run`, under asyncio or trio, and without its handling of signals.

        Raises:
            UsageError: as `run`, and so do the others.

        Cancellation: running ranks are killed and everything that the run opened is closed first,
        within bounds; what is recorded stays.
        """
        plan = self._plan(job)
        with Printer(silent=self.quiet is True) as printer:
            self._prepare(printer)
            report = await self._run(plan, printer, remote=None)
        if check and (error := bad_end(report, signal=None)) is not None:
            raise error
        return report

    def _prepare(self, printer: Printer) -> None:
        if isinstance(self.platform, SaysStart) and (text := self.platform.starting()):
            say(printer, text)
        self.platform.prepare()

    def _plan(self, job: Job) -> RunPlan:
        known = protocols()
        check_types(self.runtime_env, "Executor")
        scheduler = self.scheduler
        if self.params.wait_s is not None:
            scheduler = attrs.evolve(scheduler, wait_s=self.params.wait_s)
        plan = RunPlan(
            job,
            Settings(
                state_url=self._state(known),
                cwd=os.getcwd(),
                protocols=known,
                max_gangs=self.max_gangs,
                env=dict(self.env),
                runtime_env=dict(self.runtime_env),
                seed=self.seed,
                retry_failed=self.retry_failed,
                scheduler=scheduler,
            ),
        )
        if isinstance(self.platform, ChecksRuntimeEnvs):
            for stage, env in plan.runtime_envs():
                self.platform.check_runtime_env(env, f"Stage {stage!r}")
        return plan

    def _state(self, known: Collection[str]) -> str:
        try:
            place = located_state(self.state, os.getcwd(), known)
        except ValueError as error:
            raise UsageError(
                f"state={redact(self.state)!r} cannot hold a run: {error}. Expected a folder, as a "
                "path or as a URL that fsspec can write to"
            ) from None
        return place if is_url(place) else os.path.abspath(place)

    async def _run(
        self, plan: RunPlan, printer: Printer, *, remote: _RemoteCancel | None
    ) -> RunReport:
        provider = self.tracer_provider or trace.get_tracer_provider()
        names = [stage.name for stage in plan.stages]
        own = provider.get_tracer("thornback.executor")
        settings = plan.settings
        envs = [settings.runtime_env, *(stage.runtime_env for stage in plan.stages)]
        redactor = secrets_of(settings.state_url, settings.env, self.storage_options, envs)
        tracer = RunTracer(own, plan.job.name, names, redactor)
        state, reason = "failed", "the driver failed"
        try:
            report = await self._drive(plan, printer, tracer, provider, remote, redactor)
            state, reason = report.state, report.reason
            return report
        except BaseException as raised:
            error = _only(raised) if isinstance(raised, BaseExceptionGroup) else raised
            conceal(error, redactor)
            if error is raised:
                raise
            raise error from None
        finally:
            tracer.finished(state, reason)

    async def _drive(
        self,
        plan: RunPlan,
        printer: Printer,
        tracer: RunTracer,
        provider: TracerProvider,
        remote: _RemoteCancel | None,
        redactor: Redactor,
    ) -> RunReport:
        started_s = self.clock.monotonic()
        watchers = Watchers(self.observers)
        url = plan.settings.state_url
        async with AsyncExitStack() as stack:
            own = partial(FileJournal, url, storage_options=self.storage_options)
            journal = await stack.enter_async_context((self.journal or own)())
            if isinstance(journal, PlacesOutputs):
                journal.place_outputs(plan.places())
            identity = identity_of(plan.job)
            opened = await journal.open(identity, on_mismatch=self.on_mismatch)
            warnings = (*unseen(identity), *opened.warnings)
            for warning in warnings:
                logger.warning("%s", warning)
            logs = await self._logs(stack, url, opened.term)
            record = stack.enter_context(record_file(self.record))
            news = None
            if logs is not None:
                news = self._news(stack, plan, logs, printer, redactor)
            blobs = RunBlobs(plan, journal, opened.done)
            connection = await stack.enter_async_context(
                self.platform.connect(blobs, provider, news)
            )
            if connection.size:
                say(printer, f"connected to {connection.name}: {connection.size}")
            tracer.started(opened.term, shown_url(url), connection.name)
            parts = Parts(
                leases=connection.leases,
                workers=connection.workers,
                journal=journal,
                classifier=DiscreetClassifier(self.classifier, redactor),
                clock=self.clock,
            )
            driver = Driver(
                plan,
                parts,
                opened,
                tracer=tracer,
                watchers=watchers,
                params=self.params,
                log_url=no_logs if logs is None else logs.url_of,
                record=record,
                recorded=blobs.recorded,
                redactor=redactor,
            )
            if news is not None:
                news.aim(driver.saw)
            info = RunInfo(
                job=plan.job.name,
                state_url=shown_url(url),
                term=opened.term,
                backend=connection.name,
                stages=driver.progress(),
            )
            say(printer, beginning(info, where=not connection.size))
            watchers.tell(lambda observer: observer.started(info))
            tell_waits(connection.leases, watchers)
            await self._accompanied(driver, remote)
        seconds = self.clock.monotonic() - started_s
        reader = results_of(self.journal, url, self.storage_options)
        done = {stage.name: blobs.done.of(stage.name) for stage in plan.stages}
        results = partial(read_results, reader, done, plan.world_sizes)
        report = make_report(plan, driver, opened, info, seconds, logs, results, warnings)
        watchers.tell(lambda observer: observer.finished(report))
        return report

    async def _logs(self, stack: AsyncExitStack, url: str, term: int) -> LogStore | None:
        """Return the store for logs. It ends after the platform, which sends the last of them."""
        if not self.logs:
            return None
        folder = f"{url}/{LOGS}/{term:06d}"
        flush_s, options = self.params.logs_s, self.storage_options
        store = LogStore(folder, flush_s=flush_s, storage_options=options)
        return await stack.enter_async_context(store)

    def _news(
        self,
        stack: AsyncExitStack,
        plan: RunPlan,
        logs: LogStore,
        printer: Printer,
        redactor: Redactor,
    ) -> WorkerNews:
        """Return what takes the logs: they are kept, and shown unless that is not wanted."""
        if printer.silent:
            return WorkerNews(logs.put)
        console = RankConsole(
            [stage.name for stage in plan.stages],
            printer,
            self.clock.monotonic,
            where=logs.url,
            hide=redactor.redact,
            left_out=self.quiet if callable(self.quiet) else None,
        )
        stack.callback(console.close)
        return WorkerNews(logs.put, console.put)

    async def _accompanied(self, driver: Driver, remote: _RemoteCancel | None) -> None:
        """Run the driver, with the companions and what listens for signals beside it."""
        async with anyio.create_task_group() as group:
            for companion in self.companions:
                group.start_soon(_accompany, companion, driver)
            if remote is not None:
                remote.aim(driver)
                if threading.current_thread() is threading.main_thread():
                    group.start_soon(remote.watch_signals, driver)
            await driver.run()
            group.cancel_scope.cancel()


def _outside_of_any_loop(main: Callable[[], Awaitable[T]], cancel: Callable[[], None]) -> T:
    """Run `main` here, or in a fresh thread when this thread has a loop already (a notebook).

    There `KeyboardInterrupt` reaches this thread only: it calls `cancel` and waits on; a second one
    ends the process.
    """
    if not _in_a_loop():
        # In a context of its own: that of a worker thread names a loop which is not here.
        return contextvars.Context().run(anyio.run, main)
    result: list[T] = []
    error: list[BaseException] = []

    def body() -> None:
        try:
            result.append(anyio.run(main))
        except BaseException as raised:  # noqa: BLE001  # handed to the calling thread, whatever it is
            error.append(raised)

    thread = threading.Thread(target=body, name="thornback-run")
    thread.start()
    asked = False
    while thread.is_alive():
        try:
            thread.join()
        except KeyboardInterrupt:
            if asked:
                os._exit(130)
            asked = True
            cancel()
    if error:
        raise error[0]
    return result[0]


def _in_a_loop() -> bool:
    try:
        anyio.lowlevel.current_token()
    except RuntimeError:
        return False
    return True


class _RemoteCancel:
    """Lets another thread, or a signal, end a run in order, as soon as there is one."""

    def __init__(self) -> None:
        self._driver: Driver | None = None
        self._token: anyio.lowlevel.EventLoopToken | None = None
        self._asked = False
        self.signal: int | None = None
        """The first signal that asked for the end."""

    def aim(self, driver: Driver) -> None:
        """Say whose run it is; called on its loop."""
        self._driver, self._token = driver, anyio.lowlevel.current_token()
        if self._asked:
            driver.cancel("KeyboardInterrupt", kill=True)

    def cancel(self) -> None:
        """Ask for the end; called from the other thread."""
        self._asked = True
        if self._driver is not None and self._token is not None:
            ask = partial(self._driver.cancel, "KeyboardInterrupt", kill=True)
            anyio.from_thread.run_sync(ask, token=self._token)

    async def watch_signals(self, driver: Driver) -> None:
        """First Ctrl-C: end in order. Second: end now; workers see the driver's end and kill their
        own trees."""
        first_s = -math.inf
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async for number in signals:
                now_s = anyio.current_time()
                if number == self.signal and now_s - first_s < _SAME_S[number]:
                    continue
                if self.signal is not None:
                    _tell("ended at once")
                    os._exit(128 + number)
                self.signal, first_s = number, now_s
                name = signal.Signals(number).name
                _tell(f"{name}: ending the run; what is recorded stays. Once more ends it at once")
                driver.cancel(f"{name} received", kill=True)


def _tell(text: str) -> None:
    with suppress(OSError, ValueError, AttributeError):  # there may be no standard error
        print(f"thornback: {text}", file=sys.stderr, flush=True)


async def _accompany(companion: Companion, driver: Driver) -> None:
    try:
        await companion(driver)
    except Exception:  # foreign code: whatever it raises ends the companion, not the run
        logger.exception("a companion of the run raised: %r", companion)


def _only(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the one exception inside, if there is just one: task groups wrap whatever passes
    through them."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error
