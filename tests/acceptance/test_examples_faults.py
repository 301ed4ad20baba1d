"""The examples of the retry classifier, inside tenacity and inside stamina."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import stamina
import tenacity

from thornback.faults import is_retriable
from thornback.faults.testing import lookalike

EXAMPLES = Path(__file__).parents[2] / "packages" / "faults" / "examples"


def test_tenacity_tries_again_what_may_go_away(run_examples: Callable[[Path], str]) -> None:
    assert run_examples(EXAMPLES / "retry_with_tenacity.py").splitlines() == [
        "network: retry 1 of 10, after a pause",
        "network: retry 2 of 10, after a pause",
        "part 0 is here",
        "network: retry 1 of 10, after a pause",
        "application: given up: no retries for this: ValueError: bad row",
        "part 1 failed: ValueError('bad row')",
    ]


def test_stamina_waits_as_long_as_the_server_asks_for(
    run_examples: Callable[[Path], str],
) -> None:
    began = time.monotonic()
    printed = run_examples(EXAMPLES / "retry_with_stamina.py")
    assert time.monotonic() - began >= 0.3
    assert printed.splitlines() == [
        "throttled: retry 1 of 10, after a pause",
        "throttled: retry 2 of 10, after a pause",
        "up: yes",
        "throttled: retry 1 of 10, after a pause",
        "application: given up: no retries for this: KeyError: 'down'",
        "it failed: KeyError('down')",
    ]


LOOPS: list[Callable[[Callable[[], str]], str]] = [
    tenacity.Retrying(retry=tenacity.retry_if_exception(is_retriable)),
    stamina.RetryingCaller(wait_initial=0, wait_jitter=0).on(is_retriable),
]


@pytest.mark.parametrize("loop", LOOPS, ids=["tenacity", "stamina"])
def test_the_one_line_of_the_readme_works(loop: Callable[[Callable[[], str]], str]) -> None:
    errors = [lookalike("ActorDiedError"), lookalike("RpcError")]

    def call() -> str:
        if errors:
            raise errors.pop(0)
        return "here"

    assert loop(call) == "here"
    errors += [lookalike("NodeDiedError"), ValueError("bad row"), lookalike("NodeDiedError")]
    with pytest.raises(ValueError, match="bad row"):
        loop(call)
    assert len(errors) == 1
