"""The demo's driver is killed, or interrupted: nothing outlives it, and what is recorded stays."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.acceptance.conftest import DemoProcess

COMMAND = ("--backend", "local", "--state", "state")
SOME_RECORDED = r"index ([6-9]|[12]\d)/32 done"
"""Printed after the record: so many ranks must never run again."""


def test_after_a_killed_driver_only_what_is_missing_is_run(
    start_demo: Callable[..., DemoProcess],
) -> None:
    first = start_demo(*COMMAND)
    announced = int(first.wait_for(SOME_RECORDED, timeout_s=60)[1])
    first.send(signal.SIGKILL)
    assert first.finish(timeout_s=10) == -signal.SIGKILL
    first.assert_nothing_left(timeout_s=10)

    second = start_demo(*COMMAND)
    assert second.finish(timeout_s=100) == 0, second.output
    header = re.search(r"stage +index: 32 ranks, (\d+) recorded earlier", second.output)
    assert header, second.output
    recorded = int(header[1])
    assert announced <= recorded < 32
    end = f"{33 - recorded} ranks recorded now, {recorded} recorded earlier"
    assert end in second.output, second.output
    assert "(term 2)" in second.output
    assert "result verified" in second.output
    second.assert_nothing_left(timeout_s=10)


def test_an_interrupted_demo_ends_in_order_and_says_what_stays(
    start_demo: Callable[..., DemoProcess],
) -> None:
    demo = start_demo(*COMMAND)
    demo.wait_for(SOME_RECORDED, timeout_s=60)
    demo.send(signal.SIGINT)
    assert demo.finish(timeout_s=30) == 130, demo.output
    assert "interrupted; what is recorded stays in state" in demo.output
    assert "Traceback" not in demo.output
    demo.assert_nothing_left(timeout_s=10)
