"""How much memory a rank gets after it ran out of it: a ladder with few rungs. Pure.

Rungs are `base x 1.5^n`, so that many ranks ask for few different amounts, and gangs can be shared.
The base is what the stage asked for; else the first peak that was seen, rounded up to a grid.
"""

from __future__ import annotations

from collections.abc import Iterable

import attrs

from thornback.faults.kinds import Fault, FaultKind
from thornback.faults.values import Value

MIB = 1024 * 1024
GRID_BYTES = 256 * MIB


@attrs.frozen(kw_only=True)
class MemoryNeed(Value):
    """What the failures of a rank say about its memory."""

    memory_bytes: int | None
    """What to ask for; None: what the stage asks for."""
    exhausted: bool
    """It ran out of the largest amount there is."""


def memory_need(base_bytes: int | None, faults: Iterable[Fault]) -> MemoryNeed:
    """Return what to ask for after these faults, oldest first.

    Args:
        base_bytes: what the stage asks for, per rank; None: nothing.
        faults: all that happened to the rank; `peak_rss_bytes` and `largest_memory_bytes` among
            their facts are taken into account.
    """
    base, level, ran_out_at = base_bytes, None, 0
    largest: int | None = None
    for fault in faults:
        if fault.kind not in (FaultKind.OOM, FaultKind.UNSCHEDULABLE):
            continue
        if fault.facts.get("secondhand") is True:
            continue  # Another task ran out of its memory.
        largest = _positive(fault, "largest_memory_bytes") or largest
        if fault.kind is FaultKind.OOM:
            peak = _positive(fault, "peak_rss_bytes") or 0
            if base is None and peak:
                base = rung(GRID_BYTES, above=peak - 1)
            if base is None:
                continue
            ran_out_at = level or base
            level = rung(base, above=max(ran_out_at, peak))
        if level is not None and largest is not None:
            level = min(level, largest)
    exhausted = level is not None and largest is not None and ran_out_at >= largest
    return MemoryNeed(memory_bytes=level, exhausted=exhausted)


def rung(base_bytes: int, *, above: int) -> int:
    """Return the lowest rung above `above`: base x 1.5^n, in whole MiB but for the base itself."""
    level, n = base_bytes, 0
    while level <= above:
        n += 1
        level = -(-base_bytes * 3**n // (2**n * MIB)) * MIB
    return level


def _positive(fault: Fault, name: str) -> int | None:
    value = fault.facts.get(name)
    return value if isinstance(value, int) and value > 0 else None
