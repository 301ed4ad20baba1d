"""The table of real errors in the README of faults: what the classifier makes of each, and why.

    .venv/bin/python tools/real_errors.py [--write]

Compares it with what stands between `<!-- real errors -->` and `<!-- end -->`; `--write` puts it
there. The errors are those of `packages/faults/tests/real_errors.json`, which
`tests/integration/real_errors.py` writes. Exit code 1: the table differs.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

from thornback.faults import (
    CUDA_RULES,
    NETWORK_RULES,
    THROTTLED_RULES,
    Classifier,
    ErrorRecord,
    Explanation,
    FaultKind,
    RetryPolicy,
    Standing,
)

FAULTS = Path(__file__).resolve().parents[1] / "packages" / "faults"
SETS = {"throttled": THROTTLED_RULES, "network": NETWORK_RULES, "cuda": CUDA_RULES}
PLACE = re.compile(r"(<!-- real errors -->\n).*?(<!-- end -->)", re.DOTALL)


def verdict(told: Explanation) -> str:
    """Return what becomes of it, in short."""
    fault = told.fault
    if RetryPolicy().decide(fault, (), Standing.UNDECIDED, 0.5).retry:
        again = "retried"
    elif fault.facts.get("non_retryable") is True or fault.kind is not FaultKind.APPLICATION:
        again = "never retried"
    else:
        again = "retried if `retries` says so"
    facts = [
        name for name in ("secondhand", "gpu_fault", "gpu_context_lost") if name in fault.facts
    ]
    return f"{fault.kind.name}, {again}" + "".join(f", `{name}`" for name in facts)


def table() -> str:
    """Return the table in Markdown. Errors of one library with one verdict share a line."""
    lines: dict[tuple[str, str, str, str], list[str]] = {}
    for row in json.loads((FAULTS / "tests" / "real_errors.json").read_text(encoding="utf-8")):
        rules = [rule for name in row["sets"] for rule in SETS[name]]
        told = Classifier(user_rules=rules).explain(ErrorRecord.from_json(row["record"]))
        sets = ", ".join(name.upper() for name in row["sets"]) or "-"
        key = (row["library"], sets, verdict(told), told.why)
        lines.setdefault(key, []).append(row["error"])
    head = "| library | error | opt-in rules | verdict | why |\n|---|---|---|---|---|\n"
    return head + "".join(
        f"| {library} | {'; '.join(errors)} | {sets} | {what} | {why} |\n"
        for (library, sets, what, why), errors in lines.items()
    )


def main() -> int:
    readme = FAULTS / "README.md"
    old = readme.read_text(encoding="utf-8")
    if len(PLACE.findall(old)) != 1:
        sys.exit(f"expected one place for the table of real errors in {readme}")
    text = PLACE.sub(lambda found: f"{found[1]}\n{table()}\n{found[2]}", old)
    if "--write" in sys.argv[1:]:
        readme.write_text(text, encoding="utf-8")
    elif text != old:
        print(f"{readme} shows other verdicts: run tools/real_errors.py --write")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
