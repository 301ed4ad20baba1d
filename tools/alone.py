"""Each package by itself: its wheel in a clean environment, with its own tests run there.

    uv build --all-packages --wheel && .venv/bin/python tools/alone.py [--python 3.11 3.12 3.13]

For every package and Python: install the wheel and nothing else; see that only what is named in
BRINGS came along; import every module that needs no Ray; measure the import; let mypy read the
package's `typing_api.py` against the wheel; install the extra `testing` and run the package's tests
from a folder that has no sources. Ends with a table. Exit code 1: something failed, and it was said
what.

Needs `uv` on PATH. nox would make the environments as well, but neither the checks nor the table.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import attrs

ROOT = Path(__file__).resolve().parents[1]
LOCK = ROOT / "tools" / "requirements.lock"
TEST_TIMEOUT_S = 900
IMPORT_REPEATS = 7

PURE: frozenset[str] = frozenset({"attrs"})
ASYNC = frozenset({"anyio", "attrs", "idna", "opentelemetry-api", "typing-extensions"})
LEAVES = frozenset(f"thornback-{leaf}" for leaf in ("faults", "graph", "scheduler"))
LEAVES |= {"thornback-placement", "thornback-pool"}
EXECUTOR = ASYNC | LEAVES | {"cloudpickle", "fsspec"}
DISPLAY = {"click", "markdown-it-py", "mdurl", "pygments", "rich"}
SDK = {"opentelemetry-sdk", "opentelemetry-semantic-conventions"}
BRINGS: dict[str, frozenset[str] | None] = {
    "faults": PURE,
    "graph": PURE,
    "scheduler": PURE | {"thornback-faults"},
    "placement": ASYNC,
    "pool": ASYNC | {"thornback-faults"},
    "executor": EXECUTOR,
    "cli": EXECUTOR | DISPLAY | SDK | {"thornback-executor"},
    "datatrove": None,
}
"""What may be installed beside the wheel itself: its dependencies and theirs. Ray never is, but
with the adapter: that brings what Ray and datatrove bring, which is theirs (None)."""
SLOW = ("pool", "executor")
"""Their tests start real processes: begun first, so that they do not run alone at the end."""

INSTALLED = """
from importlib import metadata
print(*sorted(d.metadata["Name"].lower().replace("_", "-") for d in metadata.distributions()))
"""

NEEDS_AN_EXTRA = ("thornback.pool.worker.sdkspans",)
"""Beside the `on_ray` modules; that of faults is a table of names."""

IMPORT_ALL = """
import importlib, pkgutil, sys
package = importlib.import_module("thornback.{name}")
assert sys.prefix in package.__file__, package.__file__
for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
    needs_ray = module.name.endswith(".on_ray") and module.name != "thornback.faults.on_ray"
    if not needs_ray and not module.name.endswith(".__main__") and module.name not in {skipped}:
        importlib.import_module(module.name)
assert "ray" not in sys.modules
"""


class CheckFailed(Exception):
    """A package does not stand alone; the text says why."""


@attrs.define(kw_only=True)
class Cell:
    """One package on one Python."""

    name: str
    python: str
    """As X.Y."""
    base: str
    """Path of a Python of that version."""
    folder: Path
    brought: tuple[str, ...] = ()
    import_ms: float = 0.0
    tests: str = ""
    failure: str = ""

    @property
    def interpreter(self) -> str:
        """The Python of its environment."""
        return str(self.folder / "venv" / "bin" / "python")

    @property
    def tree(self) -> Path:
        """Its tests and what they read, without the sources."""
        return self.folder / "tree"

    def __str__(self) -> str:
        return f"{self.name} on {self.python}"


@attrs.frozen(kw_only=True)
class Build:
    """What is tested, and how it is installed."""

    wheels: Path
    oldest: bool
    """With the oldest dependencies that a package admits, in place of the lock's."""

    def wheel(self, name: str) -> Path:
        """Return the one wheel of a package."""
        distribution = "thornback" if name == "cli" else f"thornback_{name}"
        found = sorted(self.wheels.glob(f"{distribution}-*.whl"))
        if len(found) != 1:
            raise CheckFailed(
                f"{self.wheels} has {len(found)} wheels of {distribution}, expected one:"
                " remove the folder and run 'uv build --all-packages --wheel'"
            )
        return found[0]

    def pins(self, cell: Cell) -> Path:
        """Return a file of constraints: which version of each dependency."""
        if not self.oldest:
            return LOCK
        pins = cell.folder / "oldest.txt"
        if pins.exists():
            return pins
        project = ROOT / "packages" / cell.name / "pyproject.toml"
        command = ["uv", "pip", "compile", "--quiet", "--no-sources", "--extra", "testing"]
        command += ["--resolution", "lowest-direct", "--python", cell.interpreter]
        run([*command, "--find-links", str(self.wheels), "-o", str(pins), str(project)])
        return pins

    def install(self, cell: Cell, extra: str = "") -> None:
        """Install the wheel with what it needs."""
        command = ["uv", "pip", "install", "--quiet", "--python", cell.interpreter]
        command += ["--constraint", str(self.pins(cell)), "--find-links", str(self.wheels)]
        # Else uv takes what an earlier build of the same version had put at the same path.
        for wheel in self.wheels.glob("thornback*.whl"):
            command += ["--refresh-package", wheel.name.partition("-")[0].replace("_", "-")]
        run([*command, f"{self.wheel(cell.name)}{extra}"])


def run(command: Sequence[str], *, cwd: Path | None = None, timeout_s: float = 300) -> str:
    """Run a command without this environment's own paths; return what it prints."""
    inherited = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    try:
        done = subprocess.run(
            command,
            cwd=cwd,
            env=inherited,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise CheckFailed(f"{' '.join(command)}: not done after {timeout_s:.0f} s") from error
    if done.returncode:
        raise CheckFailed(f"{' '.join(command)}: exit {done.returncode}\n{done.stdout}")
    return done.stdout


def prepare(build: Build, cell: Cell) -> None:
    """Install the wheel alone and look at what came along."""
    run(["uv", "venv", "--quiet", "--python", cell.base, str(cell.folder / "venv")])
    build.install(cell)
    present = set(run([cell.interpreter, "-I", "-c", INSTALLED]).split())
    own = "thornback" if cell.name == "cli" else f"thornback-{cell.name}"
    cell.brought = tuple(sorted(present - {own}))
    invited = BRINGS[cell.name]
    strangers = sorted(present - (present if invited is None else invited) - {own})
    if strangers and not build.oldest:
        raise CheckFailed(f"came along uninvited: {', '.join(strangers)}")
    run([cell.interpreter, "-I", "-c", IMPORT_ALL.format(name=cell.name, skipped=NEEDS_AN_EXTRA)])


def measure(build: Build, cell: Cell) -> None:
    """Measure the import over a Python that imports nothing: least of interleaved fresh runs."""

    def once(code: str) -> float:
        began = time.perf_counter()
        run([cell.interpreter, "-I", "-c", code])
        return 1000 * (time.perf_counter() - began)

    statement = f"import thornback.{cell.name}"
    pairs = [(once("pass"), once(statement)) for _ in range(IMPORT_REPEATS)]
    bare, full = (min(column) for column in zip(*pairs, strict=True))
    cell.import_ms = full - bare


def check_types(cell: Cell) -> None:
    """Let mypy read the typed file against the installed wheel, as in a stranger's project."""
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--cache-dir"]
    command += [str(cell.folder / "mypy"), "--python-executable", cell.interpreter]
    run([*command, "typing_api.py"], cwd=cell.tree / "packages" / cell.name / "tests")


def lay_out(cell: Cell) -> None:
    """Copy the tests and what they read; not the sources."""
    package = ROOT / "packages" / cell.name
    target = cell.tree / "packages" / cell.name
    target.mkdir(parents=True)
    for name in ("conftest.py", "pyproject.toml"):
        shutil.copy(ROOT / name, cell.tree)
    for path in package.iterdir():
        if path.is_file():
            shutil.copy(path, target)
        elif path.name in ("tests", "examples"):
            shutil.copytree(path, target / path.name, ignore=shutil.ignore_patterns("__pycache__"))


def test(build: Build, cell: Cell) -> None:
    """Run the package's own tests in its environment."""
    lay_out(cell)
    if cell.python == f"{sys.version_info[0]}.{sys.version_info[1]}":
        check_types(cell)
    build.install(cell, "[testing]")
    command = [cell.interpreter, "-m", "pytest", "-q", "--durations=0", "--durations-min=60"]
    command += ["-p", "no:cacheprovider", f"packages/{cell.name}"]
    printed = run(command, cwd=cell.tree, timeout_s=TEST_TIMEOUT_S)
    summary = re.search(r"^(\d+ passed.*?) in ", printed, flags=re.MULTILINE)
    if summary is None:
        raise CheckFailed(f"pytest has run no test\n{printed}")
    cell.tests = summary[1]


def attempt(build: Build, cell: Cell, step: Callable[[Build, Cell], None]) -> None:
    """Run one step of a cell unless an earlier one failed; keep and tell the failure."""
    if cell.failure:
        return
    try:
        step(build, cell)
    except CheckFailed as error:
        cell.failure = str(error)
        print(f"--- {cell}: FAILED: {cell.failure}", flush=True)


def find_python(version: str) -> str | None:
    """Return the path of this Python, where uv finds one."""

    def ask(*command: str, **variables: str) -> str:
        answer = subprocess.run(
            command, env=os.environ | variables, capture_output=True, text=True, check=False
        )
        return answer.stdout.strip()

    variables = {}
    if shutil.which("pyenv"):  # its launchers start the versions that this variable names
        latest = ask("pyenv", "latest", version) or "system"
        variables["PYENV_VERSION"] = f"{ask('pyenv', 'version-name')}:{latest}"
    find = ("uv", "python", "find", "--no-project", "--no-python-downloads", version)
    return ask(*find, **variables) or None


def brings(names: Sequence[str]) -> str:
    """Return the names in short: ours without their first half, of very many only how many."""
    ours = [name.removeprefix("thornback") for name in names if name.startswith("thornback-")]
    others = [name for name in names if not name.startswith("thornback-")]
    if len(others) > 20:
        others = [f"{len(others)} more"]
    return ", ".join(ours + others) or "nothing"


def table(cells: Sequence[Cell], build: Build) -> str:
    """Return the table of the first Python, with a column of tests for each."""
    pythons = list(dict.fromkeys(cell.python for cell in cells))
    head = ["wheel", "KiB", "brings", "import, ms", *(f"tests on {p}" for p in pythons)]
    rows = [head, ["---"] * len(head)]
    for name in dict.fromkeys(cell.name for cell in cells):
        own = [cell for cell in cells if cell.name == name]
        wheel = build.wheel(name)
        rows.append(
            [
                wheel.name.split("-")[0].replace("_", "-"),
                f"{wheel.stat().st_size / 1024:.0f}",
                brings(own[0].brought),
                f"{own[0].import_ms:.0f}" if own[0].import_ms else "-",
                *("FAILED" if cell.failure else cell.tests for cell in own),
            ]
        )
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--python", nargs="+", default=["3.11"], metavar="X.Y")
    parser.add_argument("--package", nargs="+", default=list(BRINGS), choices=list(BRINGS))
    parser.add_argument("--wheels", type=Path, default=ROOT / "dist", metavar="FOLDER")
    parser.add_argument("--oldest", action="store_true", help="with the oldest dependencies")
    parser.add_argument("--jobs", type=int, default=2, help="tests at the same time")
    options = parser.parse_args()
    bases = {version: find_python(version) for version in options.python}
    for version, base in bases.items():
        if base is None:
            print(f"tools/alone.py: uv finds no Python {version} here", file=sys.stderr)
            return 1
    build = Build(wheels=options.wheels.resolve(), oldest=options.oldest)
    with tempfile.TemporaryDirectory(prefix="thornback-alone.") as folder:
        cells = [
            Cell(name=name, python=python, base=base, folder=Path(folder) / f"{name}-{python}")
            for python, base in bases.items()
            if base
            for name in options.package
        ]
        with ThreadPoolExecutor(options.jobs) as pool:
            list(pool.map(lambda cell: attempt(build, cell, prepare), cells))
            if not options.oldest:  # what an import takes with them is nobody's question
                for cell in cells:
                    attempt(build, cell, measure)
            slowest_first = sorted(cells, key=lambda cell: cell.name not in SLOW)
            list(pool.map(lambda cell: attempt(build, cell, test), slowest_first))
        print(table(cells, build))
    return int(any(cell.failure for cell in cells))


if __name__ == "__main__":
    sys.exit(main())
