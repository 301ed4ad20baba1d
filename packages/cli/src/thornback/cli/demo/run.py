"""Runs the demo and judges it: the job, then the same in one process, the kills, the trace."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import attrs
from opentelemetry.sdk.trace import TracerProvider
from rich.console import Console

from thornback.cli.demo.corpus import Corpus, installed
from thornback.cli.demo.index import differences, single_process
from thornback.cli.demo.stages import demo_job
from thornback.cli.demo.verdict import judge_chaos
from thornback.cli.display import Display, result_tables
from thornback.cli.otlp import CollectorSpans, collector, is_disabled
from thornback.cli.state_folder import CONTROL, check_usable, mark, remove
from thornback.cli.trace_file import JsonLinesExporter, check_trace, file_tracing
from thornback.executor import BackendUnavailable, Executor, RunReport
from thornback.executor.testing import Chaos


@attrs.frozen(kw_only=True, slots=True)
class DemoOptions:
    """What the command line asks for."""

    backend: Literal["ray", "local"] = "ray"
    chaos: bool = True
    """Kill one rank process and one worker, from the driver's side."""
    fresh: bool = False
    """Remove the state of earlier runs first."""
    state: Path = Path(".thornback/demo")
    cpus: int = 4
    """Logical CPUs of the local backend or an embedded Ray, and the most workers at a time."""


def run_demo(options: DemoOptions, console: Console, warn: Callable[[str], None]) -> bool:
    """Run the demo and print it. Returns whether everything it promises was seen.

    Args:
        options: what to run.
        console: what is printed.
        warn: is told, a line each, of what does not belong to the result: spans not sent.

    Raises:
        NotAState, NoCorpusError, UsageError: nothing was run; the message names the mend.
        RunFailed, RunCancelled, KeyboardInterrupt: what is recorded stays in the state.
    """
    state = options.state.absolute()
    if options.backend == "ray" and importlib.util.find_spec("ray") is None:
        raise BackendUnavailable(
            "Ray is not installed: pip install 'thornback[ray]', or use --backend local"
        )
    check_usable(state)
    corpus = installed()
    sources = corpus.sources()
    display = Display(console, time.monotonic)
    if options.fresh and remove(state):
        display.line(f"removed  {state}")
    mark(state)
    chaos = Chaos(kill_ranks=1, kill_workers=1) if options.chaos else None
    provider, trace = file_tracing(state / "traces")
    if spans := collector(warn):
        provider.add_span_processor(spans)
    try:
        executor = _executor(options, state, display, chaos, provider)
        report = executor.run(demo_job(sources, state / "parts"))
    finally:
        provider.shutdown()
        _say_where(state, trace, display)
        _say_sent(spans, display, warn)
    verified = _verify(report, corpus, sources, display, console)
    traced = check_written(trace, display)
    return verified and _check_chaos(chaos, report, display) and traced


def _say_where(state: Path, trace: JsonLinesExporter, display: Display) -> None:
    """Print where the records lie, unless the run was refused before it began."""
    if display.has_started:
        display.line(f"journal  {state / CONTROL}")
        why_none = "OTEL_SDK_DISABLED is set" if is_disabled() else "no span has ended"
        display.line(f"trace    {trace.path or trace.error or f'none: {why_none}'}")


def _say_sent(spans: CollectorSpans | None, display: Display, warn: Callable[[str], None]) -> None:
    if spans and spans.sent:
        display.line(f"spans    {spans.sent} sent to {spans.endpoint}")
    if spans and (failure := spans.failure):
        warn(f"{failure}; the trace file has them")


def _executor(
    options: DemoOptions,
    state: Path,
    display: Display,
    chaos: Chaos | None,
    provider: TracerProvider,
) -> Executor:
    companions = [chaos] if chaos else []
    if options.backend == "local":
        return Executor.on_local(
            state=str(state),
            quiet=True,  # the display says it all
            cpus=options.cpus,
            max_gangs=options.cpus,
            observers=[display],
            companions=companions,
            tracer_provider=provider,
        )
    return Executor.on_ray(
        state=str(state),
        quiet=True,
        local_cpus=options.cpus,
        max_gangs=options.cpus,
        observers=[display],
        companions=companions,
        tracer_provider=provider,
    )


def _verify(
    report: RunReport, corpus: Corpus, sources: list[str], display: Display, console: Console
) -> bool:
    """Print the result, and compare it with what one process computes by itself."""
    found = report.results("merge")[0]
    display.line("verifying: the same in this process alone ...")
    expected = single_process(corpus, sources)
    wrong = differences(expected, found)
    if wrong:
        display.line("the result differs from that of a single process:", "bold red")
        for text in wrong:
            display.line(f"  {text}", "red")
        return False
    for table in result_tables(expected):
        console.print(table)
    display.line("result verified", "bold green")
    return True


def check_written(trace: JsonLinesExporter, display: Display) -> bool:
    """Print whether the trace file of a run that has ended is one tree, and return it.

    There is none to be whole where the environment turns tracing off.
    """
    if is_disabled():
        return True
    if trace.error is not None or trace.path is None:
        display.line(f"no whole trace was written: {trace.error or 'no span ended'}", "red")
        return False
    check = check_trace(trace.path)
    if check.ok:
        display.line(
            f"trace: one tree of {check.spans} spans, {check.ranks} of ranks, "
            f"{check.retried} of them retries, linked"
        )
    for problem in check.problems:
        display.line(f"trace: {problem}", "red")
    return check.ok


def _check_chaos(chaos: Chaos | None, report: RunReport, display: Display) -> bool:
    if chaos is None:
        return True
    before = sum(stage.recorded_before for stage in report.stages.values())
    verdict = judge_chaos(chaos.kills, report.attempts, recorded_before=before)
    for note in verdict.notes:
        display.line(f"chaos: {note}")
    for problem in verdict.problems:
        display.line(f"chaos: {problem}", "red")
    return not verdict.problems
