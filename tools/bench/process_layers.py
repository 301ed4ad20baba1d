"""What other layers of worker processes do with what ours has to bear: tried, not quoted.

    uv run --no-sync --with pebble --with loky python tools/bench/process_layers.py

Every probe runs in a process of its own, bounded, and prints one word or figure; the table is
Markdown, for the README of the pool.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import importlib.metadata
import json
import multiprocessing
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

BOUND_S = 12.0
PROBE_S = 60.0
GRACE_S = 2.0


class Layer(Protocol):
    """One way to run functions in processes."""

    def submit(self, function: Callable[..., Any], /, *args: Any) -> Any:
        """Return a future."""
        ...

    def submit_timed(self, timeout_s: float, function: Callable[..., Any], /, *args: Any) -> Any:
        """Return a future of a task that is ended after so long.

        Raises:
            NotImplementedError: the layer has nothing of the kind.
        """
        ...


# -- what the tasks do


def pid_of(path: str) -> int:
    """Wait until a task has written its process id there."""
    end = time.monotonic() + BOUND_S
    while time.monotonic() < end:
        with contextlib.suppress(OSError, ValueError):
            return int(Path(path).read_text())
        time.sleep(0.002)
    raise TimeoutError(path)


def alive(pid: int) -> bool:
    """Tell whether a process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def hang(path: str) -> None:
    """Say who we are, and never return."""
    Path(path + ".new").write_text(str(os.getpid()))
    os.rename(path + ".new", path)
    threading.Event().wait()


def hang_in_c(path: str) -> None:
    """The same, in C code that holds the GIL."""
    import re

    Path(path + ".new").write_text(str(os.getpid()))
    os.rename(path + ".new", path)
    re.match("(a+)+$", "a" * 60 + "b")


class Picky(Exception):
    """Pickles, and does not unpickle."""

    def __init__(self, first: str, second: str) -> None:
        super().__init__(f"{first} and {second}")


def raise_picky() -> None:
    """Raise what does not unpickle."""
    raise Picky("one", "two")


def leave_grandchild() -> int:
    """Leave a process in a session of its own; return its id."""
    return subprocess.Popen(["sleep", "300"], start_new_session=True).pid


def leave_and_hang(path: str) -> None:
    """Leave such a process, say which, and never return."""
    Path(path + ".grandchild").write_text(str(leave_grandchild()))
    hang(path)


def do_nothing() -> int:
    """Return who we are."""
    return os.getpid()


def start_process() -> int:
    """Use a process of our own in the task."""
    process = multiprocessing.get_context("fork").Process(target=do_nothing)
    process.start()
    process.join()
    return process.exitcode or 0


def close_streams() -> None:
    """Close the standard output."""
    os.close(1)
    os.close(2)


def say() -> int:
    """Use the standard output."""
    print("words", flush=True)
    return 1


# -- the layers


class Standard:
    """`concurrent.futures.ProcessPoolExecutor`."""

    def __init__(self, method: str, fresh: bool) -> None:
        self.pool = concurrent.futures.ProcessPoolExecutor(
            1,
            mp_context=multiprocessing.get_context(method),
            max_tasks_per_child=1 if fresh else None,
        )

    def submit(self, function: Callable[..., Any], /, *args: Any) -> Any:
        """See `Layer`."""
        return self.pool.submit(function, *args)

    def submit_timed(self, timeout_s: float, function: Callable[..., Any], /, *args: Any) -> Any:
        """See `Layer`."""
        raise NotImplementedError


class Loky(Standard):
    """loky's reusable executor."""

    def __init__(self, fresh: bool) -> None:
        import loky  # pants: no-infer-dep

        if fresh:
            raise NotImplementedError
        self.pool = loky.get_reusable_executor(max_workers=1)


class Pebble:
    """pebble's `ProcessPool`."""

    def __init__(self, fresh: bool) -> None:
        import pebble  # pants: no-infer-dep

        context = multiprocessing.get_context("forkserver")
        self.pool = pebble.ProcessPool(1, max_tasks=1 if fresh else 0, context=context)

    def submit(self, function: Callable[..., Any], /, *args: Any) -> Any:
        """See `Layer`."""
        return self.pool.schedule(function, args=args)

    def submit_timed(self, timeout_s: float, function: Callable[..., Any], /, *args: Any) -> Any:
        """See `Layer`."""
        return self.pool.schedule(function, args=args, timeout=timeout_s)


class Portal:
    """Something async, from a thread."""

    def __init__(self) -> None:
        import anyio.from_thread

        self.context: Any = anyio.from_thread.start_blocking_portal()  # ends when it is collected
        self.portal: Any = self.context.__enter__()


class AnyioProcess(Portal):
    """`anyio.to_process`."""

    def __init__(self, fresh: bool) -> None:
        super().__init__()
        if fresh:
            raise NotImplementedError

    def submit(self, function: Callable[..., Any], /, *args: Any) -> Any:
        """See `Layer`."""
        import anyio.to_process

        return self.portal.start_task_soon(anyio.to_process.run_sync, function, *args)

    def submit_timed(self, timeout_s: float, function: Callable[..., Any], /, *args: Any) -> Any:
        """See `Layer`."""
        import anyio.to_process

        async def timed() -> Any:
            with anyio.fail_after(timeout_s):
                return await anyio.to_process.run_sync(function, *args, cancellable=True)

        return self.portal.start_task_soon(timed)


class Failed(Exception):
    """An outcome that is not ok."""


class Ours(Portal):
    """`WorkerPool` on the local backend."""

    def __init__(self, fresh: bool) -> None:
        from thornback.pool import WorkerPool, WorkerSpec
        from thornback.pool.on_local import LocalBackend

        super().__init__()
        self.fresh = fresh
        self.number = 0
        self.programs: dict[str, bytes] = {}

        async def blob(key: str) -> bytes:
            return self.programs[key]

        async def open_pool() -> WorkerPool:
            pool = await WorkerPool(LocalBackend(), blob).__aenter__()
            await pool.open(1, ["here"], None, WorkerSpec(), timeout_s=30)
            return pool

        self.entered = threading.Event()
        self.pool: Any = None

        async def live() -> None:  # the task group of the pool needs a task to live in
            import anyio

            self.pool = await open_pool()
            self.entered.set()
            await anyio.sleep_forever()

        self.portal.start_task_soon(live)
        self.entered.wait(30)

    def submit(self, function: Callable[..., Any], /, *args: Any) -> Any:
        """See `Layer`."""
        return self._submit(None, function, *args)

    def submit_timed(self, timeout_s: float, function: Callable[..., Any], /, *args: Any) -> Any:
        """See `Layer`."""
        return self._submit(timeout_s, function, *args)

    def _submit(self, timeout_s: float | None, function: Callable[..., Any], *args: Any) -> Any:
        import cloudpickle

        from thornback.pool import Assignment

        self.number += 1
        key = "".join(map(str, (function.__name__, *args)))
        self.programs[key] = cloudpickle.dumps(_program(function, args))
        work = Assignment(
            assignment=self.number,
            epoch=f"000001.{self.number:09}",
            stage=0,
            ranks=(range(1),),
            program=key,
            timeout_s=timeout_s,
            max_ranks_per_child=1 if self.fresh else None,
        )

        async def run() -> Any:
            async for report in self.pool.run(1, work):
                for outcome in report.outcomes:
                    if outcome.ok:
                        return json.loads(outcome.result)
                    raise Failed(f"{outcome.error.type_names[0]}, peak {outcome.peak_rss_bytes}")

        return self.portal.start_task_soon(run)


def _program(function: Callable[..., Any], args: Sequence[Any]) -> Any:
    from thornback.pool import ProgramResult

    class Program:
        def setup(self, call: object) -> None:
            pass

        def run(self, call: object) -> ProgramResult:
            return ProgramResult(result=json.dumps(function(*args)))

    return Program()


LAYERS: dict[str, Callable[[bool], Any]] = {
    "ProcessPoolExecutor, spawn": lambda fresh: Standard("spawn", fresh),
    "ProcessPoolExecutor, forkserver": lambda fresh: Standard("forkserver", fresh),
    "loky": Loky,
    "pebble": Pebble,
    "anyio.to_process": AnyioProcess,
    "thornback.pool": Ours,
}


# -- the probes: each returns a cell


def outcome_of(future: Any) -> str:
    """Return what a future comes to, bounded."""
    try:
        return f"returns {future.result(BOUND_S)!r}"
    except concurrent.futures.TimeoutError as error:
        # The layer's own time-out is the same class: ours comes after the bound.
        return "hangs" if not future.done() else f"{type(error).__name__}"
    except BaseException as error:  # noqa: BLE001  # whatever it is, it is the finding
        text = str(error) if isinstance(error, Failed) else ""
        return text.partition(",")[0].rpartition(".")[2] or type(error).__name__


def then(layer: Layer) -> str:
    """Tell whether the layer still works."""
    try:
        ok = layer.submit(do_nothing).result(BOUND_S) > 0
    except BaseException as error:  # noqa: BLE001  # whatever it is, it is the finding
        return f"; then {type(error).__name__} for ever"
    return "; goes on" if ok else ""


def probe_killed(make: Callable[[bool], Layer], folder: str) -> str:
    """A child that is killed is noticed."""
    layer, path = make(False), os.path.join(folder, "pid")
    future = layer.submit(hang, path)
    pid = pid_of(path)
    started = time.perf_counter()
    os.kill(pid, signal.SIGKILL)
    what = outcome_of(future)
    took_ms = (time.perf_counter() - started) * 1e3
    return what + ("" if what == "hangs" else f" in {took_ms:.0f} ms") + then(layer)


def probe_unpickle(make: Callable[[bool], Layer], folder: str) -> str:
    """An exception that does not unpickle comes back."""
    layer = make(False)
    return outcome_of(layer.submit(raise_picky)) + then(layer)


def probe_timeout(make: Callable[[bool], Layer], folder: str) -> str:
    """A time-out ends C code that holds the GIL."""
    layer, path = make(False), os.path.join(folder, "pid")
    layer.submit(do_nothing).result(BOUND_S)
    try:
        future = layer.submit_timed(1.0, hang_in_c, path)
    except NotImplementedError:
        return "has none"
    pid, what = pid_of(path), outcome_of(future)
    time.sleep(0.1)
    return what + (", process lives on" if alive(pid) else ", killed") + then(layer)


def probe_grandchild(make: Callable[[bool], Layer], folder: str) -> str:
    """A grandchild in a session of its own ends with its task."""
    layer = make(False)
    pid = layer.submit(leave_grandchild).result(BOUND_S)
    time.sleep(0.2)
    lives = alive(pid)
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    return "lives on" if lives else "ended"


def probe_orphan(make: Callable[[bool], Layer], folder: str) -> str:
    """A task, and its grandchild, end with a parent that is killed."""
    layer, path = make(False), os.path.join(folder, "pid")
    layer.submit(leave_and_hang, path)
    pid_of(path)
    os.kill(os.getpid(), signal.SIGKILL)
    return ""


def probe_fresh(make: Callable[[bool], Layer], folder: str) -> str:
    """What a fresh process for each task costs."""
    try:
        layer = make(True)
    except NotImplementedError:
        return "has none"
    pids, times = set(), []
    for _ in range(8):
        started = time.perf_counter()
        pids.add(layer.submit(do_nothing).result(BOUND_S))
        times.append(time.perf_counter() - started)
    if len(pids) < 8:
        return "not fresh"
    return f"{statistics.median(times[1:]) * 1e3:.0f} ms"


def probe_state(make: Callable[[bool], Layer], folder: str) -> str:
    """A process keeps what a task has loaded."""
    layer = make(False)
    pids = {layer.submit(do_nothing).result(BOUND_S) for _ in range(3)}
    return "yes" if len(pids) == 1 else "no"


def probe_children(make: Callable[[bool], Layer], folder: str) -> str:
    """A task may have processes of its own."""
    layer = make(False)
    what = outcome_of(layer.submit(start_process))
    return "allowed" if what == "returns 0" else what


def probe_streams(make: Callable[[bool], Layer], folder: str) -> str:
    """A task that closes the standard output costs the next one nothing."""
    layer = make(False)
    what = outcome_of(layer.submit(close_streams))
    return f"{what}; next {outcome_of(layer.submit(say))}".replace("returns None", "returns")


def probe_peak(make: Callable[[bool], Layer], folder: str) -> str:
    """The peak memory of a task is told."""
    layer = make(False)
    try:
        layer.submit(raise_picky).result(BOUND_S)
    except Failed as error:
        return "told" if int(str(error).rpartition(" ")[2]) > 0 else "not told"
    except BaseException as error:  # noqa: BLE001  # what it carries is the finding
        return "told" if any("rss" in name for name in vars(error)) else "not told"
    return "not told"


PROBES: dict[str, Callable[[Callable[[bool], Layer], str], str]] = {
    "child SIGKILLed": probe_killed,
    "exception that does not unpickle": probe_unpickle,
    "time-out of 1 s, C code with the GIL": probe_timeout,
    "setsid grandchild at the end of its task": probe_grandchild,
    "task and setsid grandchild at the parent's SIGKILL": probe_orphan,
    "fresh process per task": probe_fresh,
    "process kept between tasks": probe_state,
    "multiprocessing inside a task": probe_children,
    "stdout closed by a task": probe_streams,
    "peak RSS of a task": probe_peak,
}


def measure(layer: str, probe: str) -> str:
    """Try it in a process of its own."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        command = [sys.executable, __file__, "--layer", layer, "--probe", probe, "--in", folder]
        output = Path(folder, "output")  # not a pipe: what a layer leaves behind would hold it open
        with output.open("wb") as stream:
            process = subprocess.Popen(
                command, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True
            )
        try:
            process.wait(PROBE_S)
        except subprocess.TimeoutExpired:
            with output.open("ab") as stream:
                stream.write(b"\n= hangs\n")
        finally:
            with contextlib.suppress(ProcessLookupError):
                if PROBES[probe] is not probe_orphan:
                    os.killpg(process.pid, signal.SIGKILL)
            process.kill()
            process.wait()
        if PROBES[probe] is probe_orphan:
            return _orphans(folder)
        lines = output.read_text(errors="replace").splitlines() or ["nothing"]
        cells = [line[2:] for line in lines if line.startswith("= ")]
        return cells[-1] if cells else f"exit code {process.returncode}: {lines[-1]}"


def _orphans(folder: str) -> str:
    """Look at what a killed parent has left, then end it."""
    names = {"task": "pid", "grandchild": "pid.grandchild"}
    pids = {what: pid_of(os.path.join(folder, name)) for what, name in names.items()}
    end = time.monotonic() + GRACE_S
    while any(map(alive, pids.values())) and time.monotonic() < end:
        time.sleep(0.01)
    left = [what for what, pid in pids.items() if alive(pid)]
    for pid in pids.values():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return f"{' and '.join(left)} live on" if left else "both ended"


def versions() -> Iterator[str]:
    """Yield what was tried."""
    yield f"Python {sys.version.split()[0]}"
    for name in ("loky", "pebble", "anyio"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            yield f"{name} {importlib.metadata.version(name)}"


def main() -> None:
    """Print the table, or one cell."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layer", choices=LAYERS)
    parser.add_argument("--probe", choices=PROBES)
    parser.add_argument("--in", dest="folder", help="only from this program to itself")
    options = parser.parse_args()
    if options.folder:
        cell = PROBES[options.probe](LAYERS[options.layer], options.folder)
        print(f"= {cell}", flush=True)
        os._exit(0)  # whatever the layer would wait for
    layers = [options.layer] if options.layer else list(LAYERS)
    probes = [options.probe] if options.probe else list(PROBES)
    print(f"<!-- {', '.join(versions())} -->")
    print("| |", " | ".join(layers), "|")
    print("|---" * (len(layers) + 1) + "|")
    for probe in probes:
        print(f"| {probe} |", " | ".join(measure(layer, probe) for layer in layers), "|")


if __name__ == "__main__":
    main()
