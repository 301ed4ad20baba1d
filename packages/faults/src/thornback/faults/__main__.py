"""What the rules say: about the installed Ray (`audit`), and about a failure (`explain`)."""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Sequence
from contextlib import nullcontext

from thornback.faults.classifier import DEFAULT_RULES, Classifier
from thornback.faults.kinds import Attribute, Origin
from thornback.faults.on_gpu import CUDA_RULES
from thornback.faults.on_ray import RAY_VERSIONS, unruled
from thornback.faults.opt_in import NETWORK_RULES, THROTTLED_RULES
from thornback.faults.policy import RetryPolicy
from thornback.faults.reading import MAX_BYTES, read_failure
from thornback.faults.records import ErrorRecord
from thornback.faults.verdicts import Standing

MODULES = ("ray.exceptions", "ray.data.exceptions", "ray.serve.exceptions")
"""Where Ray defines them. The first must be there; the others need extras of Ray."""
SETS = {"throttled": THROTTLED_RULES, "network": NETWORK_RULES, "cuda": CUDA_RULES}


def main(arguments: Sequence[str] | None = None, modules: Sequence[str] = MODULES) -> int:
    """Run the command; return its exit code."""
    parsed = _parser().parse_args(arguments)
    return _audit(modules) if parsed.command == "audit" else _explain(parsed)


def ray_classes(
    base: type[BaseException], modules: Sequence[str] = ()
) -> dict[str, tuple[str, ...]]:
    """Return `module.qualname` -> names of its MRO, for `base`, every loaded class below it, and
    every exception class that these loaded modules define."""
    found: dict[str, tuple[str, ...]] = {}
    todo: list[type] = [base]
    for name in modules:
        defined = vars(sys.modules[name]).values()
        todo += [c for c in defined if isinstance(c, type) and c.__module__ == name]
    while todo:
        cls = todo.pop(0)
        if not issubclass(cls, BaseException):
            continue
        mro = tuple(f"{c.__module__}.{c.__qualname__}" for c in cls.__mro__ if c is not object)
        # Classes that ray makes on the way, like RayTaskError(ValueError), are left out.
        if "<locals>" not in mro[0] and "(" not in mro[0]:
            found.setdefault(mro[0], mro)
        todo.extend(cls.__subclasses__())
    return found


def _audit(modules: Sequence[str]) -> int:
    try:
        base = importlib.import_module(modules[0]).RayError
    except ImportError as error:
        print(f"Ray cannot be imported ({error}); install it: pip install ray", file=sys.stderr)
        return 2
    loaded = [name for name in modules if _import(name)]
    classes = ray_classes(base, loaded)
    missing = unruled(tuple(classes), DEFAULT_RULES)
    classifier = Classifier()
    width = max(map(len, classes))
    for name, mro in sorted(classes.items()):
        fault = classifier.classify(ErrorRecord(type_names=mro), {"origin": "worker"})
        caught = f"only by {fault.rule}" if name in missing else fault.rule
        print(f"{name:{width}}  {fault.kind.value:17}  {caught}")
    for name in modules:
        if name not in loaded:
            print(f"not looked at, cannot be imported: {name}")
    version = getattr(sys.modules.get("ray"), "__version__", "?")
    print(f"ray {version}: {len(classes)} exception classes, {len(missing)} without a rule")
    checked = "is one of" if version in RAY_VERSIONS else "is none of"
    print(f"it {checked} those that the rules were checked against: {', '.join(RAY_VERSIONS)}")
    return 1 if missing else 0


def _explain(parsed: argparse.Namespace) -> int:
    try:
        with (
            nullcontext(sys.stdin.buffer) if parsed.file == "-" else open(parsed.file, "rb") as file
        ):
            read = read_failure(file.read(MAX_BYTES + 1))
        facts = {**read.facts, **dict(map(_fact, parsed.fact))}
    except (OSError, ValueError) as error:
        print(f"{parsed.file}: {error}", file=sys.stderr)
        return 2
    if parsed.origin:
        facts["origin"] = parsed.origin
    classifier = Classifier(user_rules=[rule for name in parsed.rules for rule in SETS[name]])
    explanation = classifier.explain(read.error, facts)
    verdict = RetryPolicy().decide(explanation.fault, (), Standing.UNDECIDED, 1.0)
    if parsed.json:
        both = {**explanation.as_json(), "verdict": verdict.as_json()}
        print(json.dumps(both, indent=2, allow_nan=False))
    else:
        print(f"{explanation}\nverdict: {verdict.reason}")
    return 0


def _fact(text: str) -> tuple[str, Attribute]:
    """Return `signal=9` as ("signal", 9): what is plain JSON is that, all else a string."""
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"a fact is given as name=value, not as {text!r}")
    try:
        loaded = json.loads(value)
    except ValueError:
        return name, value
    return name, loaded if isinstance(loaded, str | int | float | bool | None) else value


def _import(name: str) -> bool:
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m thornback.faults", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser(
        "audit",
        help="list every exception class of the installed Ray with the rule that catches it",
        description="Exit code 0: each is named by a rule; 1: some are not; 2: there is no Ray.",
    )
    explain = commands.add_parser(
        "explain",
        help="say what a failure is, by which rule, and whether it would be tried again",
        description="Exit code 2: the input is no failure.",
    )
    explain.add_argument(
        "file",
        nargs="?",
        default="-",
        help="a traceback as text, or JSON of an ErrorRecord, a Fault or a journal's certificate "
        "(default: standard input)",
    )
    explain.add_argument("--origin", choices=[origin.value for origin in Origin], help="who saw it")
    explain.add_argument(
        "--fact",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="what is known besides: signal=9, death_cause=NODE_DIED, ...",
    )
    explain.add_argument(
        "--rules", nargs="+", default=[], choices=SETS, help="opt-in sets, tried in this order"
    )
    explain.add_argument("--json", action="store_true", help="all of it as JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main())
