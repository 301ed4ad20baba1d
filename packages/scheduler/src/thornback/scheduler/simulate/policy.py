"""A retry policy by a table, for simulations without a policy of one's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import attrs

from thornback.scheduler.simulate.values import Mishap, MishapKind
from thornback.scheduler.states import UsageError
from thornback.scheduler.testing import FakeVerdict

_K = MishapKind
FREE = (_K.PREEMPTED,)
"""Charged to nobody."""
RANK_BLAMED = (_K.WORKER, _K.SILENT, _K.OOM)
NODE_BLAMED = (_K.NODE, _K.WORKER, _K.START, _K.SETUP, _K.SILENT)
ELSEWHERE = (_K.PREEMPTED, _K.NODE, _K.START, _K.SETUP)
AT_ONCE = (_K.PREEMPTED, _K.WORKER, _K.PROCESS)
NEVER = (_K.PLACE, _K.IMPOSSIBLE, _K.JOURNAL)


@attrs.frozen(kw_only=True, slots=True)
class SimulatedPolicy:
    """Decides by budgets, one per kind of mishap (fulfils `RetryPolicy[Mishap]`).

    A budget counts retries. Raises `UsageError` for a negative one.
    """

    code: int = 0
    """Retries after errors of the rank's own code."""
    process: int = 3
    """After deaths of its process."""
    worker: int = 3
    """After deaths and silences of its worker that it has to pay for."""
    timeout: int = 1
    """After it exceeded its time."""
    oom: int = 4
    """After it ran out of memory; each asks for half as much again."""
    preempted: int = 50
    """After preemptions, which charge nobody."""
    node: int = 20
    """After deaths of its node."""
    setup: int = 3
    """After gangs that did not start or could not be set up."""
    delay_s: float = 1.0
    """The first pause; each further one is twice as long."""
    max_delay_s: float = 60.0
    """The longest."""

    def __attrs_post_init__(self) -> None:
        for field in attrs.fields(SimulatedPolicy):
            value = getattr(self, field.name)
            if value < 0:
                raise UsageError(f"{field.name} must not be negative, but is {value!r}.")

    def decide(
        self, fault: Mishap, history: Sequence[tuple[Mishap, str]], draw: float, /
    ) -> FakeVerdict:
        """Return the verdict: see `RetryPolicy`."""
        kind = _counted_as(fault.kind)
        earlier = sum(_counted_as(past.kind) is kind for past, _ in history)
        budget = 0 if kind in NEVER else self._budgets()[kind]
        memory, exhausted = _memory([*(past for past, _ in history), fault])
        retry = earlier < budget and not (kind is _K.OOM and exhausted)
        if fault.kind is _K.IMPOSSIBLE and memory is not None and not earlier:
            retry = not exhausted
        waits_s = min(self.max_delay_s, self.delay_s * 2.0 ** min(earlier, 30))
        return FakeVerdict(
            retry=retry,
            delay_s=0.0 if kind in AT_ONCE and not earlier else draw * waits_s,
            charged=fault.kind not in FREE,
            infrastructure=kind is not _K.CODE,
            blames_rank=fault.kind in RANK_BLAMED,
            blames_node=fault.kind in NODE_BLAMED,
            avoid_node=fault.kind in ELSEWHERE,
            memory_bytes=memory,
            reason=f"{fault.kind.value}: {earlier} of {budget} retries used",
        )

    def _budgets(self) -> Mapping[MishapKind, int]:
        return {
            _K.CODE: self.code,
            _K.PROCESS: self.process,
            _K.WORKER: self.worker,
            _K.TIMEOUT: self.timeout,
            _K.OOM: self.oom,
            _K.PREEMPTED: self.preempted,
            _K.NODE: self.node,
            _K.SETUP: self.setup,
        }


_COUNTED_AS = {_K.COLLATERAL: _K.CODE, _K.SILENT: _K.WORKER, _K.START: _K.SETUP}


def _counted_as(kind: MishapKind) -> MishapKind:
    return _COUNTED_AS.get(kind, kind)


def _memory(mishaps: Sequence[Mishap]) -> tuple[int | None, bool]:
    """Return what to ask for after these, and whether that was the most there is."""
    asked: int | None = None
    exhausted = False
    for mishap in mishaps:
        if mishap.kind is _K.OOM and mishap.memory_bytes is not None:
            largest = mishap.largest_bytes or mishap.memory_bytes
            exhausted = mishap.memory_bytes >= largest
            asked = min(max(asked or 0, mishap.memory_bytes * 3 // 2), largest)
    return asked, exhausted
