"""Ranks that raise, return or set up what defends itself.

Each is the user's own failure and reported as such, and the rank process lives on.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from thornback.executor import Executor, Job, RankContext, Stage
from thornback.faults import FaultKind
from thornback.faults.testing import HOSTILE_ERRORS

NAMES = tuple(HOSTILE_ERRORS)


def raises() -> Callable[[RankContext, str], int]:
    def rank(ctx: RankContext, name: str) -> int:
        from thornback.faults.testing import HOSTILE_ERRORS

        if name:
            HOSTILE_ERRORS[name](name)
        return os.getpid()

    return rank


def test_run_with_hostile_errors_names_each_and_keeps_its_process(tmp_path: Path) -> None:
    """A process in which ranks fail one after the other is replaced: so good ones lie between."""
    items = [item for name in NAMES for item in (name, "")]
    stage = Stage("a", raises(), items=items, fail_fast=None)
    executor = Executor.on_local(state=str(tmp_path), cpus=1)
    report = executor.run(Job("j", [stage]), check=False)
    assert {items[attempt.rank or 0] for attempt in report.attempts} == {*NAMES}
    assert len(report.attempts) == len(NAMES)
    for attempt in report.attempts:
        name, fault = items[attempt.rank or 0], attempt.fault
        assert fault.kind is FaultKind.APPLICATION, (name, fault)
        assert (attempt.attempt, attempt.retried) == (1, False)
        assert name in f"{fault.error_type} {fault.traceback}", fault
        assert "user_frame" in fault.facts, name
    results = report.results("a")
    pids = {results[rank] for rank in range(1, len(items), 2)}
    assert {attempt.pid for attempt in report.attempts} == pids
    assert len(pids) == 1


def returns() -> Callable[[RankContext, str], Any]:
    from thornback.faults import hostile

    def rank(ctx: RankContext, kind: str) -> Any:
        exits = hostile._exits
        match kind:
            case "reduce":
                return type("Reduces", (), {"__reduce__": exits, "__getstate__": exits})()
            case "class":
                return hostile.Impostor()
            case "guarded":
                return hostile.Guarded("Odd", (), {})()
            case "dict":
                return hostile.Answer(a=1)
            case "list":
                return type("Odd", (list,), {"__iter__": exits, "__len__": exits})([1])
            case "text":
                return [hostile.Text("x"), hostile.Number(3)]
            case "key":
                return {hostile.Text("x"): 1} if hash("x") else None
            case "cycle":
                ring: list[Any] = []
                ring.append(ring)
                return ring
            case "deep":
                value: list[Any] = []
                for _ in range(100_000):
                    value = [value]
                return value
            case "surrogate":
                return {"a\ud800": "\0\udfff"}
            case _:
                return os.getpid()

    return rank


KINDS = (
    "reduce",
    "class",
    "guarded",
    "dict",
    "list",
    "text",
    "key",
    "cycle",
    "deep",
    "surrogate",
    "",
)


def test_run_with_hostile_results_fails_only_their_ranks(tmp_path: Path) -> None:
    items = [item for kind in KINDS for item in (kind, "")]
    stage = Stage("a", returns(), items=items, fail_fast=None)
    executor = Executor.on_local(state=str(tmp_path), cpus=1)
    report = executor.run(Job("j", [stage]), check=False)
    for attempt in report.attempts:
        assert attempt.fault.kind is FaultKind.APPLICATION, (items[attempt.rank or 0], attempt)
        assert not attempt.retried
    failed = {items[attempt.rank or 0] for attempt in report.attempts}
    assert {"reduce", "class", "guarded", "cycle", "deep"} <= failed < {*KINDS}
    results = report.results("a")
    pids = {results[rank] for rank in range(1, len(items), 2)}
    assert {attempt.pid for attempt in report.attempts} == pids
    assert len(pids) == 1


def test_run_with_hostile_setups_tells_the_error_of_each(tmp_path: Path) -> None:
    def stage(name: str) -> Stage:
        def set_up(ctx: RankContext) -> None:
            from thornback.faults.testing import HOSTILE_ERRORS

            HOSTILE_ERRORS[name](name)

        return Stage(name, raises(), items=[""], setup=set_up, max_retries=0)

    names = ("AttributesExit", "MroHides", "MessageIsHuge")
    executor = Executor.on_local(state=str(tmp_path), cpus=1)
    report = executor.run(Job("j", [stage(name) for name in names]), check=False)
    assert {attempt.stage: attempt.fault.kind for attempt in report.attempts} == dict.fromkeys(
        names, FaultKind.SETUP
    )
    for attempt in report.attempts:
        assert attempt.fault.error_type == f"hostile.{attempt.stage}"


def test_setup_value_that_defends_itself_is_handed_to_the_ranks(tmp_path: Path) -> None:
    def set_up(ctx: RankContext) -> Any:
        from thornback.faults import hostile

        return hostile.Impostor()

    def rank(ctx: RankContext) -> str:
        return type(ctx.setup_value).__name__

    executor = Executor.on_local(state=str(tmp_path), cpus=1)
    report = executor.run(Job("j", [Stage("a", rank, ranks=2, setup=set_up)]))
    assert list(report.results("a").values()) == ["Impostor", "Impostor"]
