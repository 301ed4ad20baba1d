"""Mutation testing: are the tests of the pure packages noticing, when the code is wrong?

    .venv/bin/python tools/mutants.py [TARGET...] [--sample 300] [--seed 0] [--json FILE]
    .venv/bin/python tools/mutants.py scheduler --at judging.py:65         # all mutants of a line

Draws a sample of all small changes that could be made to the code of a target, makes each in a
copy of the tree, and runs the target's tests against it until the first fails. Prints, by target,
how many were killed, timed out (also noticed) and survived, with each survivor. Exit code 1: of a
target too few were noticed. Nothing of the tree itself is touched.

Considered, and tried on `packages/graph`:

- mutmut 3.8.1: works with this layout, samples if one gives it names, and is four times as fast. It
  changes nothing outside of functions, nor in decorated ones: no transition table, no table of
  rules or budgets, no default of a parameter class, no property. Those are half of what is decided
  here. It removes no statement, and a third of its mutants are texts for people.
- cosmic-ray 8.7.0: no sampling, a fresh Python per mutant, changes the sources in place. Nearly
  half of its mutants are numbers plus or minus one, none is a removed statement or return value.
- mutatest 3.1.0, mutpy 0.6.1: without a release since 2022 and 2019.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.context import ForkServerContext
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MEMORY_BYTES = 4 << 30
"""Of one run of the tests: a mutant may collect for ever."""
NOT_THE_COPY = 99
"""Exit code of a run that tested other sources than those that are changed."""
KILLED, TIMED_OUT, SURVIVED = "killed", "timed out", "survived"


@dataclass(frozen=True, kw_only=True)
class Target:
    """What is changed, and what should notice."""

    sources: Path
    include: str = "*.py"
    exclude: tuple[str, ...] = ()
    """Patterns of names. What only checks cannot be checked so: an assertion that is taken away
    makes no test fail."""
    tests: tuple[str, ...]
    least: float | None = 0.85
    """Share that must be noticed; None: only told."""


_SCHEDULER = Path("packages/scheduler/src/thornback/scheduler")
_SCHEDULER_TESTS = ("packages/scheduler/tests", "tests/simulation")
TARGETS = {
    "faults": Target(
        sources=Path("packages/faults/src/thornback/faults"),
        exclude=("testing.py",),
        tests=("packages/faults/tests",),
    ),
    "graph": Target(
        sources=Path("packages/graph/src/thornback/graph"),
        exclude=("testing.py",),
        tests=("packages/graph/tests",),
    ),
    "scheduler": Target(
        sources=_SCHEDULER,
        exclude=("testing.py", "checks.py", "simulat*"),
        tests=_SCHEDULER_TESTS,
    ),
    # Apart, and not judged: another duration of a simulated start is no error.
    "simulator": Target(sources=_SCHEDULER, include="simulat*", tests=_SCHEDULER_TESTS, least=None),
}


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """One change: bytes `start` to `stop` of a file become `after`."""

    path: str
    line: int
    kind: str
    start: int
    stop: int
    before: str
    after: str

    def __str__(self) -> str:
        return (
            f"{self.path}:{self.line}: {self.kind}: {_short(self.before)} -> {_short(self.after)}"
        )


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What the tests said about one mutant."""

    mutant: Mutant
    verdict: str
    by: str
    """The test that failed; empty: none."""
    seconds: float


def _short(text: str) -> str:
    line = " ".join(text.split())
    return repr(line if len(line) <= 90 else f"{line[:60]} ... {line[-25:]}")


# -- which mutants there are -----------------------------------------------------------------------

COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
}
ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult,
    ast.Pow: ast.Mult,
    ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
    ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
}


def expression_mutants(node: ast.expr, tabled: bool) -> Iterator[tuple[str, ast.expr]]:
    """Yield (kind, what to put in its place) for one expression, itself only. `tabled`: it stands
    outside of functions."""
    match node:
        case ast.Compare(left, operators, others):
            for place, operator in enumerate(operators):
                changed = [*operators]
                changed[place] = COMPARISONS[type(operator)]()
                yield "comparison", ast.Compare(left, changed, others)
        case ast.BoolOp(operator, values):
            other = ast.Or() if isinstance(operator, ast.And) else ast.And()
            yield "boolean", ast.BoolOp(other, values)
        case ast.UnaryOp(ast.Not() | ast.USub(), operand):
            yield "boolean" if isinstance(node.op, ast.Not) else "arithmetic", operand
        case ast.BinOp(left, operator, right) if type(operator) in ARITHMETIC:
            yield "arithmetic", ast.BinOp(left, ARITHMETIC[type(operator)](), right)
        case ast.IfExp(test, body, orelse):
            yield "condition", ast.IfExp(ast.UnaryOp(ast.Not(), test), body, orelse)
        case ast.Constant(value):
            yield from (("constant", ast.Constant(other)) for other in other_constants(value))
        case ast.Dict(keys, values) if tabled and len(keys) > 1:
            for at in range(len(keys)):
                yield "entry", ast.Dict(keys[:at] + keys[at + 1 :], values[:at] + values[at + 1 :])
        case ast.Tuple(items, ast.Load()) | ast.List(items, ast.Load()) if tabled and items[1:]:
            for at in range(len(items)):
                yield "entry", type(node)(items[:at] + items[at + 1 :], ast.Load())


def other_constants(value: object) -> Iterator[bool | int | float | str]:
    """Yield what a constant may be mistaken for. A text with a space in it is for people."""
    if isinstance(value, bool):
        yield not value
    elif isinstance(value, int):
        yield value + 1
    elif isinstance(value, float):
        yield value * 2 if value else 1.0
    elif isinstance(value, str) and value and " " not in value:
        yield f"XX{value}"


def statement_mutants(node: ast.stmt) -> Iterator[tuple[str, ast.AST, str]]:
    """Yield (kind, node to replace, text in its place) for one statement, itself only."""
    match node:
        case ast.Return(ast.Constant(None | False)):
            pass  # None instead of False: hardly ever another program
        case ast.Return(value) if value is not None:
            yield "return", node, "return None"
        case ast.If(ast.Name("TYPE_CHECKING")):
            pass
        case ast.If(test) | ast.While(test):
            yield "condition", test, f"not ({ast.unparse(test)})"
        case ast.Expr(ast.Call(ast.Name("assert_never"))):
            pass  # never reached
        case ast.Expr(ast.Call()) | ast.Assign([ast.Attribute() | ast.Subscript()]):
            yield "removed", node, "pass"
        case ast.AugAssign() | ast.Raise() | ast.Continue() | ast.Break() | ast.Delete():
            yield "removed", node, "pass"
        case ast.Assert():
            yield "removed", node, "pass"


class Finder(ast.NodeVisitor):
    """Collects the mutants of one file. Skips what makes no difference at run time (annotations,
    type variables, docstrings) and texts for people (of exceptions; f-strings)."""

    def __init__(self, path: str, source: bytes) -> None:
        self.found: list[Mutant] = []
        self._path = path
        self._source = source
        self._starts = [0]
        for line in source.splitlines(keepends=True):
            self._starts.append(self._starts[-1] + len(line))
        self._depth = 0

    def visit(self, node: ast.AST) -> None:
        if isinstance(node, ast.stmt):
            for kind, part, text in statement_mutants(node):
                self._add(kind, part, text)
        elif isinstance(node, ast.expr):
            for kind, expression in expression_mutants(node, tabled=self._depth == 0):
                self._add(kind, node, f"({ast.unparse(ast.fix_missing_locations(expression))})")
        super().visit(node)

    def generic_visit(self, node: ast.AST) -> None:
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        self._depth += inside
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "returns", "bases", "decorator_list", "pattern"):
                continue
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    self.visit(child)
        self._depth -= inside

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        if node.name != "check_invariants":  # it only checks: see `Target.exclude`
            self.generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> None:
        if not isinstance(node.value, ast.Constant):  # else a docstring
            self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> None:
        """Leave its text alone: only that it is raised counts."""

    def visit_Assert(self, node: ast.Assert) -> None:
        self.visit(node.test)

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        """Leave it alone: a text for people, mostly."""

    def visit_Assign(self, node: ast.Assign) -> None:
        names = [target.id for target in node.targets if isinstance(target, ast.Name)]
        if "__all__" not in names and not _calls(node.value, "TypeVar"):
            self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if ast.unparse(node.annotation) != "TypeAlias" and node.value is not None:
            self.visit(node.value)

    def visit_If(self, node: ast.If) -> None:
        if ast.unparse(node.test) != "TYPE_CHECKING":
            self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        if not (_calls(node, "cast") or _calls(node, "TypeVar")):
            self.generic_visit(node)

    def _add(self, kind: str, node: ast.AST, after: str) -> None:
        assert isinstance(node, ast.expr | ast.stmt)
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        start = self._starts[node.lineno - 1] + node.col_offset
        stop = self._starts[node.end_lineno - 1] + node.end_col_offset
        self.found.append(
            Mutant(
                path=self._path,
                line=node.lineno,
                kind=kind,
                start=start,
                stop=stop,
                before=self._source[start:stop].decode(),
                after=after,
            )
        )


def _calls(node: ast.expr, name: str) -> bool:
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name


def mutants_of(path: str, source: bytes) -> list[Mutant]:
    """Return every mutant of a file, in order. Each compiles."""
    finder = Finder(path, source)
    finder.visit(ast.parse(source))
    return finder.found


def apply(source: bytes, mutant: Mutant) -> bytes:
    """Return the source with the change made."""
    return source[: mutant.start] + mutant.after.encode() + source[mutant.stop :]


def all_mutants(target: Target) -> list[Mutant]:
    """Return every mutant of a target, in order of files and lines."""
    found: list[Mutant] = []
    for path in sorted((ROOT / target.sources).rglob("*.py")):
        name = path.relative_to(ROOT / target.sources)
        top = Path(name.parts[0])
        if top.match(target.include) and not any(top.match(each) for each in target.exclude):
            found += mutants_of(str(path.relative_to(ROOT)), path.read_bytes())
    return found


# -- trying them -----------------------------------------------------------------------------------


class QuickFirst:
    """A pytest plugin: most mutants are killed by a test that takes milliseconds."""

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Put tests of many examples, and of whole runs, last."""
        items.sort(
            key=lambda item: (
                item.nodeid.startswith("tests/simulation/"),
                item.get_closest_marker("hypothesis") is not None,
            )
        )


def run_tests(copy: str, tests: Sequence[str], log: str) -> None:
    """Run the tests in this process, which is given up after that; 0: all have passed."""
    os.setsid()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.chdir(copy)
    sys.path[:0] = os.environ["PYTHONPATH"].split(os.pathsep)  # the fork server has its parent's
    options = ["-x", "-q", "--no-header", "--tb=no", "--hypothesis-seed=0"]
    # Hypothesis was loaded in advance, before pytest could rewrite its assertions.
    options += ["-W", "ignore::pytest.PytestAssertRewriteWarning", "-p", "no:cacheprovider"]
    code = int(pytest.main([*options, *tests], plugins=[QuickFirst()]))
    loaded = [m.__file__ or "" for n, m in [*sys.modules.items()] if n.startswith("thornback.")]
    sys.exit(code if all(path.startswith(copy) for path in loaded) else NOT_THE_COPY)


class Laboratory:
    """A copy of the tree in which the tests can be run against one mutant after the other."""

    def __init__(self, folder: Path) -> None:
        self.copy = folder / "copy"
        self._log = folder / "log"
        ignore = shutil.ignore_patterns("__pycache__", ".hypothesis", "*.pyc")
        for name in ("packages", "tests", "tools"):
            shutil.copytree(ROOT / name, self.copy / name, ignore=ignore)
        for name in ("conftest.py", "pyproject.toml"):
            shutil.copy(ROOT / name, self.copy / name)
        sources = sorted(str(path) for path in self.copy.glob("packages/*/src"))
        # Before what is installed, also for the programs that tests start. No bytecode: it is told
        # from the source by size and second only. No shrinking: that something fails is enough.
        os.environ["PYTHONPATH"] = os.pathsep.join(sources)
        os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
        os.environ["HYPOTHESIS_PROFILE"] = "mutants"
        self._context: ForkServerContext = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["attrs", "hypothesis.stateful", "pytest"])

    def run(self, tests: Sequence[str], limit_s: float) -> tuple[str, str]:
        """Run the tests; return (verdict, the first that failed)."""
        shutil.rmtree(self.copy / ".hypothesis" / "examples", ignore_errors=True)
        arguments = (str(self.copy), tests, str(self._log))
        process = self._context.Process(target=run_tests, args=arguments)
        process.start()
        pid = process.pid
        assert pid is not None
        process.join(limit_s)
        late = process.is_alive()
        process.kill()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)  # what its tests have started
        process.join()
        if late:
            return TIMED_OUT, ""
        text = self._log.read_text(encoding="utf-8", errors="replace")
        failed = [line for line in text.splitlines() if line.startswith(("FAILED", "ERROR"))]
        if process.exitcode == NOT_THE_COPY:
            sys.exit("the tests did not import the code from the copy of the tree")
        if process.exitcode == 0:
            return SURVIVED, ""
        return KILLED, failed[0].split(" - ")[0] if failed else f"exit code {process.exitcode}"

    def baseline(self, tests: Sequence[str]) -> float:
        """Return how many seconds the tests take. Raises SystemExit if they do not pass as it
        is."""
        start = time.monotonic()
        verdict, by = self.run(tests, limit_s=600)
        if verdict != SURVIVED:
            log = self._log.read_text(encoding="utf-8", errors="replace")
            sys.exit(f"{log}the tests do not pass without a mutant: {verdict} {by}")
        return time.monotonic() - start

    def judge(self, mutant: Mutant, tests: Sequence[str], limit_s: float) -> Outcome:
        """Try one mutant."""
        path = self.copy / mutant.path
        original = path.read_bytes()
        start = time.monotonic()
        path.write_bytes(apply(original, mutant))
        try:
            verdict, by = self.run(tests, limit_s)
        finally:
            path.write_bytes(original)
        seconds = round(time.monotonic() - start, 2)
        return Outcome(mutant=mutant, verdict=verdict, by=by, seconds=seconds)


def examine(
    laboratory: Laboratory, name: str, choose: Callable[[list[Mutant]], list[Mutant]]
) -> list[Outcome]:
    """Try the chosen mutants of a target, and print what came of it."""
    target = TARGETS[name]
    possible = all_mutants(target)
    chosen = choose(possible)
    base_s = laboratory.baseline(target.tests)
    limit_s = 20 + 4 * base_s
    outcomes: list[Outcome] = []
    print(
        f"{name}: {len(chosen)} of {len(possible)} mutants; tests take {base_s:.1f} s", flush=True
    )
    for mutant in chosen:
        outcomes.append(laboratory.judge(mutant, target.tests, limit_s))
        if outcomes[-1].verdict != KILLED:
            print(f"  {outcomes[-1].verdict:9} {mutant}", flush=True)
    counts = {v: sum(o.verdict == v for o in outcomes) for v in (KILLED, TIMED_OUT, SURVIVED)}
    told = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    print(f"{name}: {told}; noticed {share(outcomes):.1%}\n", flush=True)
    return outcomes


def share(outcomes: Sequence[Outcome]) -> float:
    """Return the share of mutants that were noticed; a time-out counts, as CI has one too."""
    noticed = sum(outcome.verdict != SURVIVED for outcome in outcomes)
    return noticed / len(outcomes) if outcomes else 1.0


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=f"of {', '.join(TARGETS)}")
    parser.add_argument("--sample", type=int, default=300, help="mutants per target")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--at", metavar="FILE:LINE", help="instead: all mutants of one line")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every outcome there")
    given = parser.parse_args()
    if unknown := [name for name in given.targets if name not in TARGETS]:
        parser.error(f"no target {unknown[0]!r}: one of {', '.join(TARGETS)}")

    def choose(possible: list[Mutant]) -> list[Mutant]:
        if given.at is not None:
            return [m for m in possible if f"{m.path}:{m.line}".endswith(f"/{given.at}")]
        drawn = random.Random(given.seed).sample(possible, min(given.sample, len(possible)))
        return sorted(drawn, key=lambda mutant: (mutant.path, mutant.start, mutant.after))

    outcomes: dict[str, list[Outcome]] = {}
    with tempfile.TemporaryDirectory(prefix="thornback-mutants.") as folder:
        laboratory = Laboratory(Path(folder))
        for name in given.targets or TARGETS:
            outcomes[name] = examine(laboratory, name, choose)
            if given.json is not None:
                told = {
                    target: [asdict(each) for each in all_] for target, all_ in outcomes.items()
                }
                given.json.write_text(json.dumps(told, indent=1), encoding="utf-8")
    least = {name: TARGETS[name].least for name in outcomes}
    poor = [name for name, all_ in outcomes.items() if share(all_) < (least[name] or 0.0)]
    for name in poor:
        print(f"{name}: fewer than {least[name]:.0%} were noticed", file=sys.stderr)
    return int(bool(poor) and given.at is None)


if __name__ == "__main__":
    sys.exit(main())
