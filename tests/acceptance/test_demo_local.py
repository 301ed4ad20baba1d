"""`thornback demo --backend local`: finishes although its processes are killed, and says so."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from thornback.cli.trace_file import check_trace

if TYPE_CHECKING:
    from tests.acceptance.conftest import DemoProcess


def test_the_demo_survives_its_kills_and_has_nothing_to_do_the_second_time(
    start_demo: Callable[..., DemoProcess], tmp_path: Path
) -> None:
    first = start_demo("--backend", "local", "--state", "state")
    assert first.finish(timeout_s=100) == 0, first.output
    for text in (
        "job      demo",
        f"state    {tmp_path}/state (term 1)",
        "index has ended: 32/32 done",
        "merge has ended: 1/1 done",
        "chaos: killed a rank process",
        "chaos: killed a worker process",
        "result verified",
    ):
        assert text in first.output, first.output
    faults = [line for line in first.output.splitlines() if "fault: index" in line]
    assert len(faults) >= 2, first.output
    assert all("worker_crash (rule " in line and "-> retried" in line for line in faults)
    first.assert_nothing_left(timeout_s=10)

    traces = sorted((tmp_path / "state" / "traces").iterdir())
    check = check_trace(traces[0])
    assert check.ok, check.problems
    assert check.retried >= 1
    parts = sorted((tmp_path / "state" / "parts").iterdir())
    assert [part.name for part in parts] == [f"{rank:05d}.json" for rank in range(32)]
    assert all("self" in json.loads(part.read_text()) for part in parts)

    second = start_demo("--backend", "local", "--state", "state")
    assert second.finish(timeout_s=60) == 0, second.output
    assert "nothing left to run: all 33 ranks were recorded earlier" in second.output
    assert "result verified" in second.output
    assert "fault:" not in second.output
