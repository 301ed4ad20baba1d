"""`python -m thornback.faults audit`: has every exception class of the installed Ray a rule?"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from thornback.faults.classifier import DEFAULT_RULES
from thornback.faults.on_ray import unruled

MODULES = ("ray.exceptions", "ray.data.exceptions", "ray.serve.exceptions")
"""Where Ray defines them. The first must be there; the others need extras of Ray."""


def main(arguments: Sequence[str] | None = None, modules: Sequence[str] = MODULES) -> int:
    """Run the command; return its exit code: 0 all have a rule, 1 some have none, 2 no Ray here."""
    parser = argparse.ArgumentParser(prog="python -m thornback.faults", description=__doc__)
    parser.add_argument("command", choices=["audit"])
    parser.parse_args(arguments)
    try:
        base = importlib.import_module(modules[0]).RayError
    except ImportError as error:
        print(f"Ray cannot be imported ({error}); install it: pip install ray", file=sys.stderr)
        return 2
    skipped = [name for name in modules[1:] if not _import(name)]
    classes = ray_classes(base)
    missing = unruled(tuple(classes), DEFAULT_RULES)
    version = getattr(sys.modules.get("ray"), "__version__", "?")
    for name in missing:
        print(f"no rule: {name} ({' > '.join(classes[name][1:])})")
    for name in skipped:
        print(f"not looked at, cannot be imported: {name}")
    print(f"ray {version}: {len(classes)} exception classes, {len(missing)} without a rule")
    return 1 if missing else 0


def ray_classes(base: type[BaseException]) -> dict[str, tuple[str, ...]]:
    """Return `base` and every loaded class below it: `module.qualname` -> names of its MRO."""
    found: dict[str, tuple[str, ...]] = {}
    todo = [base]
    while todo:
        cls = todo.pop(0)
        mro = tuple(f"{c.__module__}.{c.__qualname__}" for c in cls.__mro__ if c is not object)
        # Classes that ray makes on the way, like RayTaskError(ValueError), are left out.
        if "<locals>" not in mro[0] and "(" not in mro[0]:
            found.setdefault(mro[0], mro)
        todo.extend(cls.__subclasses__())
    return found


def _import(name: str) -> bool:
    try:
        importlib.import_module(name)
    except ImportError:
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
